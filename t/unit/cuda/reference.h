/*
 * What the tests of kernels on the host share: numbers, differences, and runs
 * in three orders of the threads, with outputs that are poison before.  For
 * programs that include kernels after cuda_host.h; one a file, as tap.h.
 */

#ifndef CUDA_REFERENCE_H
#define CUDA_REFERENCE_H

#include <vector>

#include "cuda_host.h"

#include "../../../cuda/common.cuh"

#include "../tap.h"


typedef std::vector<sd_half_t>  halves_t;
typedef std::vector<float>      floats_t;
typedef std::vector<double>     doubles_t;


static uint64_t  seed = 1;


/* [-1, 1) */

static float
number(void)
{
    seed = seed * 6364136223846793005 + 1442695040888963407;
    return (float) ((int32_t) (seed >> 32) * 0x1p-31);
}


static halves_t
halves(size_t n, float scale = 1, float bias = 0)
{
    halves_t  v(n);

    for (sd_half_t &h : v) {
        h = sd_to_half(number() * scale + bias);
    }

    return v;
}


static floats_t
floats(size_t n, float scale = 1)
{
    floats_t  v(n);

    for (float &f : v) {
        f = number() * scale;
    }

    return v;
}


static double
value(sd_half_t h)
{
    return sd_to_float(h);
}


/* how far off, in units of 1 or of the reference where that is larger */

static double
difference(const halves_t &y, const doubles_t &ref)
{
    size_t  i;
    double  d, worst = 0;

    if (y.size() < ref.size()) {
        return INFINITY;
    }

    for (i = 0; i < ref.size(); i++) {
        d = fabs(value(y[i]) - ref[i]) / fmax(1, fabs(ref[i]));
        worst = d <= worst ? worst : d;

        if (d != d) {
            return INFINITY;
        }
    }

    return worst;
}


/*
 * calls run(y) in each order with a poisoned y; all must give the same bits
 */

template <class F>
static halves_t
orders(size_t n, const char *name, F run)
{
    int       same = 1;
    halves_t  first, y;

    for (cuda_host_order = 0; cuda_host_order < 3; cuda_host_order++) {
        y.assign(n, 0xffff);
        same &= run(y.data()) == cudaSuccess;

        if (cuda_host_order == 0) {
            first = y;
        }

        same &= y == first;
    }

    cuda_host_order = 0;

    if (!same) {
        ok(0, "%s: one result whatever the order of threads", name);
    }

    return first;
}


static double
gelu(double x)
{
    return 0.5 * x * (1 + erf(x * 0.70710678118654752440));
}


static double
silu(double x)
{
    return x / (1 + exp(-x));
}


#endif
