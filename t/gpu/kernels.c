/*
 * Our kernels on a real GPU: every launcher against references in double
 * precision computed here, outputs poisoned before; a sample alone and in a
 * batch has the same bits; then how long each takes at the shapes of Stable
 * Diffusion 1.5, beside the time its bytes need at 3.0 TB/s.
 *
 * kernels            tests and measures
 * kernels test, kernels bench, kernels bench group_norm
 * kernels small      tests what is quick enough for compute-sanitizer
 */

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "../../cuda/kernels.h"
#include "../../src/ops/philox.h"
#include "../unit/tap.h"


#define COLD       ((size_t) 120 << 20)     /* more than twice any L2 */
#define BANDWIDTH  3.0e12

#define min(a, b)  ((a) < (b) ? (a) : (b))
#define max(a, b)  ((a) > (b) ? (a) : (b))


/*
 * Not a cudaStreamNonBlocking: launches must come after cudaMemset, which does
 * not wait, and after cudaMemcpy, which may return before the bytes are there.
 */
static cudaStream_t    stream;
static sd_cuda_chip_t  chip;
static void           *scratch;
static const char     *only;        /* what to measure */


static void
must(cudaError_t rc, const char *what)
{
    if (rc != cudaSuccess) {
        printf("Bail out! %s: %s\n", what, cudaGetErrorString(rc));
        exit(1);
    }
}


static void *
device(size_t size, const void *from)
{
    void  *p;

    must(cudaMalloc(&p, size + 16), "cudaMalloc");

    if (from == NULL) {
        must(cudaMemset(p, 0xff, size + 16), "cudaMemset");
    } else {
        must(cudaMemcpy(p, from, size, cudaMemcpyHostToDevice), "cudaMemcpy");
    }

    return p;
}


static void *
host(const void *p, size_t size)
{
    void  *h = malloc(size + 16);

    must(cudaStreamSynchronize(stream), "a kernel");
    must(cudaMemcpy(h, p, size, cudaMemcpyDeviceToHost), "cudaMemcpy");

    return h;
}


/* halves, rounded to nearest even */

static float
value(sd_half_t h)
{
    float     f;
    uint32_t  bits, e = h >> 10 & 31;

    if (e == 0) {
        f = (float) (h & 1023) * 0x1p-24f;
        return h & 0x8000 ? -f : f;
    }

    bits = (uint32_t) (h & 0x8000) << 16 | (uint32_t) (h & 1023) << 13
           | (e == 31 ? 255 : e + 112) << 23;
    memcpy(&f, &bits, 4);

    return f;
}


static sd_half_t
half(float f)
{
    float     g;
    uint32_t  bits, a, sign;

    memcpy(&bits, &f, 4);
    sign = bits >> 16 & 0x8000;
    a = bits & 0x7fffffff;

    if (a > 0x7f800000) {
        return 0x7fff;
    }

    if (a >= 0x477ff000) {
        return (sd_half_t) (sign | 0x7c00);
    }

    if (a < 0x38800000) {
        memcpy(&g, &a, 4);
        g += 0.5f;
        memcpy(&a, &g, 4);
        return (sd_half_t) (sign | (a - 0x3f000000));
    }

    a += 0xfff + (a >> 13 & 1);

    return (sd_half_t) (sign | (a - 0x38000000) >> 13);
}


static uint64_t  seed = 1;


static float
number(void)
{
    seed = seed * 6364136223846793005 + 1442695040888963407;
    return (float) ((int32_t) (seed >> 32) * 0x1p-31);
}


static sd_half_t *
halves(size_t n, float scale)
{
    size_t      i;
    sd_half_t  *p = malloc(n * 2 + 16);

    for (i = 0; i < n; i++) {
        p[i] = half(number() * scale);
    }

    return p;
}


static float *
floats(size_t n, float scale)
{
    size_t  i;
    float  *p = malloc(n * 4 + 16);

    for (i = 0; i < n; i++) {
        p[i] = number() * scale;
    }

    return p;
}


static size_t
any(size_t n)
{
    seed = seed * 6364136223846793005 + 1442695040888963407;
    return (size_t) (seed >> 20) % n;
}


/* the larger of *worst and how far y is from ref, relative where ref > 1 */

static void
compare(double *worst, double y, double ref)
{
    double  d = fabs(y - ref) / fmax(1, fabs(ref));

    if (!(d <= *worst)) {
        *worst = d == d ? d : INFINITY;
    }
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


/* group_norm */

typedef struct {
    int  hw, c, c2, groups, silu, addend;
} norm_t;

static const norm_t  norms[] = {
    /* the UNet's */
    { 4096, 320, 0, 32, 1, 1 }, { 4096, 320, 320, 32, 1, 0 },
    { 4096, 640, 320, 32, 1, 0 }, { 4096, 320, 0, 32, 0, 0 },
    { 1024, 320, 0, 32, 1, 0 }, { 1024, 640, 0, 32, 1, 1 },
    { 1024, 640, 320, 32, 1, 0 }, { 1024, 640, 640, 32, 1, 0 },
    { 1024, 1280, 640, 32, 1, 0 }, { 256, 640, 0, 32, 1, 0 },
    { 256, 1280, 0, 32, 1, 1 }, { 256, 1280, 640, 32, 1, 0 },
    { 256, 1280, 1280, 32, 1, 0 }, { 64, 1280, 0, 32, 1, 1 },
    { 64, 1280, 1280, 32, 1, 0 }, { 9216, 320, 0, 32, 1, 1 },
    { 9216, 640, 320, 32, 1, 0 },
    /* the VAE's */
    { 4096, 512, 0, 32, 1, 0 }, { 16384, 512, 0, 32, 1, 0 },
    { 65536, 512, 0, 32, 1, 0 }, { 65536, 256, 0, 32, 1, 0 },
    { 262144, 256, 0, 32, 1, 0 }, { 262144, 128, 0, 32, 1, 0 },
    /* others */
    { 1, 320, 0, 32, 1, 1 }, { 63, 64, 32, 32, 1, 1 }, { 77, 12, 0, 4, 1, 1 },
    { 1000, 33, 0, 3, 0, 1 }, { 5000, 1, 0, 1, 1, 0 }, { 300, 20, 3, 1, 1, 1 },
    { 999, 128, 0, 32, 1, 1 }, { 2501, 64, 0, 32, 0, 1 },
    { 100, 640, 0, 2, 1, 1 }
};


static void
test_norm(const norm_t *t)
{
    int                    i, j, k, g, p, n, ch, c, cpg, most, same;
    float                 *gamma, *beta, *table;
    size_t                 one, at, size;
    double                *mean, *rstd, v, d, worst;
    sd_half_t             *x[2], *y, *first;
    const float           *rows[16];
    sd_cuda_group_norm_t   a;

    static const int  batches[] = { 2, 1, 16 };

    memset(&a, 0, sizeof(a));

    c = t->c + t->c2;
    cpg = c / t->groups;
    one = (size_t) t->hw * c;
    most = one > ((size_t) 16 << 20) ? 3 : 16;

    gamma = floats(c, 1);
    beta = floats(c, 1);
    table = floats((size_t) 17 * (c + 5), 1);
    x[0] = halves((size_t) 2 * t->hw * t->c, 1.5f);
    x[1] = halves((size_t) 2 * t->hw * t->c2, 3);
    mean = calloc(2 * t->groups, sizeof(double));
    rstd = calloc(2 * t->groups, sizeof(double));
    first = NULL;
    worst = 0;
    same = 1;

    float  *dt = device((size_t) 17 * (c + 5) * 4, table);

    for (i = 0; i < 16; i++) {
        rows[i] = dt + (size_t) (i * 7 % 17) * (c + 5);
    }

    for (k = 0; k < 2; k++) {
        for (i = 0; i < 2; i++) {
            for (p = 0; p < t->hw; p++) {
                for (ch = 0; ch < c; ch++) {
                    g = i * t->groups + ch / cpg;
                    v = ch < t->c
                        ? value(x[0][((size_t) i * t->hw + p) * t->c + ch])
                        : value(x[1][((size_t) i * t->hw + p) * t->c2 + ch
                                     - t->c]);
                    v += t->addend ? table[(i * 7 % 17) * (c + 5) + 5 + ch] : 0;

                    if (k == 0) {
                        mean[g] += v / ((double) t->hw * cpg);
                    } else {
                        rstd[g] += (v - mean[g]) * (v - mean[g])
                                   / ((double) t->hw * cpg);
                    }
                }
            }
        }
    }

    a.gamma = device(c * 4, gamma);
    a.beta = device(c * 4, beta);
    a.addend = t->addend ? device(sizeof(rows), rows) : NULL;
    a.addend_at = 5;
    a.hw = t->hw;
    a.c = t->c;
    a.c2 = t->c2;
    a.groups = t->groups;
    a.eps = 1e-5f;
    a.silu = t->silu;
    a.scratch = scratch;

    for (j = 0; j < 3; j++) {
        n = min(batches[j], most);
        size = (size_t) t->hw * 2;

        /* the two samples, again and again */

        sd_half_t  *dx = device(size * t->c * n, NULL);
        sd_half_t  *dx2 = device(size * t->c2 * n, NULL);

        for (i = 0; i < n; i++) {
            must(cudaMemcpy(dx + (size_t) i * t->hw * t->c,
                            x[0] + (size_t) (i % 2) * t->hw * t->c,
                            size * t->c, cudaMemcpyHostToDevice), "copy");
            must(cudaMemcpy(dx2 + (size_t) i * t->hw * t->c2,
                            x[1] + (size_t) (i % 2) * t->hw * t->c2,
                            size * t->c2, cudaMemcpyHostToDevice), "copy");
        }

        /* in place where that is allowed, once */

        a.n = n;
        a.x = dx;
        a.x2 = t->c2 ? dx2 : NULL;
        a.y = t->c2 || j != 1 ? device(one * 2 * n, NULL) : dx;

        must(cudaMemset(scratch, 0xff, sd_cuda_group_norm_scratch(n, t->hw, c,
                                                                  t->groups)),
             "cudaMemset");
        must(sd_cuda_group_norm(stream, &chip, &a), "group_norm");
        y = host(a.y, one * 2 * n);

        if (j == 0) {
            for (i = 0; i < 20000; i++) {
                at = any(2 * one);
                ch = at % c;
                k = (int) (at / one);
                p = at / c % t->hw;
                g = k * t->groups + ch / cpg;

                v = ch < t->c
                    ? value(x[0][((size_t) k * t->hw + p) * t->c + ch])
                    : value(x[1][((size_t) k * t->hw + p) * t->c2 + ch - t->c]);
                v += t->addend ? table[(k * 7 % 17) * (c + 5) + 5 + ch] : 0;
                d = (v - mean[g]) / sqrt(rstd[g] + 1e-5) * gamma[ch] + beta[ch];

                compare(&worst, value(y[at]), t->silu ? silu(d) : d);
            }

            first = y;

        } else {
            same &= memcmp(first, y, one * 2) == 0;
            free(y);
        }

        if (a.y != dx) {
            cudaFree(a.y);
        }

        cudaFree(dx);
        cudaFree(dx2);
    }

    ok(worst < 1e-3 && same, "group_norm %dx%d+%d, %d groups%s%s: %.1e off%s",
       t->hw, t->c, t->c2, t->groups, t->silu ? ", silu" : "",
       t->addend ? ", addend" : "", worst, same ? "" : ", n changes the bits");

    cudaFree((void *) a.gamma);
    cudaFree((void *) a.beta);
    cudaFree((void *) a.addend);
    cudaFree(dt);
    free(gamma);
    free(beta);
    free(table);
    free(x[0]);
    free(x[1]);
    free(mean);
    free(rstd);
    free(first);
}


static void
test_layer(int rows, int c)
{
    int         i, j, r, same;
    float      *gamma = floats(c, 1), *beta = floats(c, 1), *g, *b;
    double      mean, var, d, worst = 0;
    size_t      size = (size_t) rows * c * 2;
    sd_half_t  *x = halves((size_t) rows * c, 2), *dx, *dy, *y, *z;

    dx = device(size, x);
    dy = device(size, NULL);
    g = device(c * 4, gamma);
    b = device(c * 4, beta);

    must(sd_cuda_layer_norm(stream, dy, dx, g, b, rows, c, 1e-5f), "layer");
    y = host(dy, size);
    must(sd_cuda_layer_norm(stream, dx, dx, g, b, (rows + 1) / 2, c, 1e-5f),
         "layer");
    z = host(dx, size);
    same = memcmp(y, z, (size_t) ((rows + 1) / 2) * c * 2) == 0;

    for (i = 0; i < min(rows, 200); i++) {
        r = (int) any(rows);
        mean = 0;
        var = 0;

        for (j = 0; j < c; j++) {
            mean += value(x[(size_t) r * c + j]) / (double) c;
        }

        for (j = 0; j < c; j++) {
            d = value(x[(size_t) r * c + j]) - mean;
            var += d * d / c;
        }

        for (j = 0; j < c; j++) {
            compare(&worst, value(y[(size_t) r * c + j]),
                    (value(x[(size_t) r * c + j]) - mean) / sqrt(var + 1e-5)
                    * gamma[j] + beta[j]);
        }
    }

    ok(worst < 1e-3 && same, "layer_norm %dx%d: %.1e off%s", rows, c, worst,
       same ? "" : ", rows change the bits");

    cudaFree(dx);
    cudaFree(dy);
    cudaFree(g);
    cudaFree(b);
    free(x);
    free(y);
    free(z);
    free(gamma);
    free(beta);
}


static void
test_geglu(int rows, int inner)
{
    int         i;
    double      worst = 0;
    size_t      at, n = (size_t) rows * inner;
    sd_half_t  *x = halves(2 * n, 4), *r = halves(n, 1), *dx, *dy, *y;

    dx = device(n * 4, x);
    dy = device(n * 2, r);

    must(sd_cuda_geglu(stream, dy, dx, dy, rows, inner), "geglu");
    y = host(dy, n * 2);

    for (i = 0; i < 50000; i++) {
        at = any(n);
        compare(&worst, value(y[at]),
                value(x[at / inner * 2 * inner + at % inner])
                * gelu(value(x[at / inner * 2 * inner + inner + at % inner]))
                + value(r[at]));
    }

    ok(worst < 6e-4, "geglu %dx%d + residual: %.1e off", rows, inner, worst);

    cudaFree(dx);
    cudaFree(dy);
    free(x);
    free(r);
    free(y);
}


static void
test_act(int act, size_t n)
{
    double      v, worst = 0;
    size_t      i;
    sd_half_t  *x = halves(n, 12), *dx, *y;

    x[0] = half(60000);
    x[n - 1] = half(-60000);
    dx = device(n * 2, x);

    must(sd_cuda_act(stream, dx, dx, NULL, n, act), "act");
    y = host(dx, n * 2);

    for (i = 0; i < n; i++) {
        v = value(x[i]);
        v = act == 1 ? silu(v) : act == 2 ? gelu(v)
            : act == 3 ? v / (1 + exp(-1.702 * v))
            : act == 4 ? 0.5 * v * (1 + tanh(0.79788456080286535588
                                             * (v + 0.044715 * v * v * v)))
            : v;
        compare(&worst, value(y[i]), v);
    }

    ok(worst < 6e-4, "act %d of %zu: %.1e off", act, n, worst);

    cudaFree(dx);
    free(x);
    free(y);
}


static void
test_softmax(int rows, int cols, int ld, float scale)
{
    int         i, j, r;
    double      top, sum, worst = 0;
    size_t      n = (size_t) rows * ld;
    sd_half_t  *x = halves(n, scale), *dx, *y;

    dx = device(n * 2, x);

    must(sd_cuda_softmax(stream, dx, rows, cols, ld), "softmax");
    y = host(dx, n * 2);

    for (i = 0; i < min(rows, 40); i++) {
        r = (int) any(rows);
        top = -INFINITY;
        sum = 0;

        for (j = 0; j < cols; j++) {
            top = fmax(top, value(x[(size_t) r * ld + j]));
        }

        for (j = 0; j < cols; j++) {
            sum += exp(value(x[(size_t) r * ld + j]) - top);
        }

        for (j = 0; j < ld; j++) {
            double  v = value(x[(size_t) r * ld + j]);

            compare(&worst, value(y[(size_t) r * ld + j]),
                    j < cols ? exp(v - top) / sum : v);
        }
    }

    ok(worst < 3e-4, "softmax %dx%d of %d: %.1e off", rows, cols, ld, worst);

    cudaFree(dx);
    free(x);
    free(y);
}


typedef struct {
    int  h, w, c, c2, k, r, stride, up, odd, residual;
} conv_t;

static const conv_t  convs[] = {
    { 64, 64, 4, 0, 320, 3, 1, 0, 0, 0 }, { 64, 64, 320, 0, 4, 3, 1, 0, 0, 0 },
    { 64, 64, 4, 0, 512, 3, 1, 0, 0, 0 }, { 512, 512, 128, 0, 3, 3, 1, 0, 0, 0 },
    { 64, 64, 4, 0, 4, 1, 1, 0, 0, 0 }, { 37, 51, 4, 0, 72, 3, 2, 0, 0, 1 },
    { 13, 9, 3, 0, 64, 3, 1, 0, 0, 1 }, { 9, 8, 9, 4, 32, 3, 1, 1, 1, 0 },
    { 40, 33, 64, 32, 8, 3, 1, 0, 0, 1 }, { 40, 33, 64, 32, 5, 3, 2, 0, 0, 0 },
    { 17, 16, 24, 0, 3, 3, 1, 1, 1, 1 }, { 70, 19, 40, 0, 1, 3, 1, 0, 0, 1 },
    { 9, 9, 33, 0, 20, 3, 1, 0, 0, 1 }, { 16, 16, 12, 20, 20, 3, 2, 0, 0, 0 },
    { 8, 9, 20, 12, 33, 1, 1, 0, 0, 1 }, { 8, 8, 64, 0, 64, 3, 1, 1, 0, 1 }
};


static void
test_conv(const conv_t *t)
{
    int              i, j, a, b, n, y, x, m, ch, iy, ix, oh, ow, c, same;
    double           s, worst = 0;
    size_t           at, in, one, weights;
    sd_half_t       *hx, *hx2, *hw, *hb, *hr, *out, *first;
    sd_cuda_conv_t   d;

    static const int  batches[] = { 2, 1, 16 };

    memset(&d, 0, sizeof(d));

    c = t->c + t->c2;
    oh = t->up ? 2 * t->h - t->odd : (t->h - 1) / t->stride + 1;
    ow = t->up ? 2 * t->w - t->odd : (t->w - 1) / t->stride + 1;
    in = (size_t) t->h * t->w;
    one = (size_t) oh * ow * t->k;
    weights = (size_t) t->k * t->r * t->r * c;

    hx = halves(2 * in * t->c, 1);
    hx2 = halves(2 * in * t->c2, 1);
    hw = halves(weights, 0.3f);
    hb = halves(t->k, 1);
    hr = halves(2 * one, 1);
    first = NULL;
    same = 1;

    d.w = device(weights * 2, hw);
    d.bias = device(t->k * 2, hb);
    d.h = t->h;
    d.wd = t->w;
    d.c = t->c;
    d.c2 = t->c2;
    d.oh = oh;
    d.ow = ow;
    d.k = t->k;
    d.r = t->r;
    d.stride = t->stride;
    d.upsample = t->up;

    for (j = 0; j < 3; j++) {
        n = min(batches[j], in * c > 1 << 24 ? 3 : 16);

        sd_half_t  *dx = device(in * t->c * 2 * n, NULL);
        sd_half_t  *dx2 = device(in * t->c2 * 2 * n, NULL);
        sd_half_t  *dy = device(one * 2 * n, NULL);

        for (i = 0; i < n; i++) {
            must(cudaMemcpy(dx + i * in * t->c, hx + i % 2 * in * t->c,
                            in * t->c * 2, cudaMemcpyHostToDevice), "copy");
            must(cudaMemcpy(dx2 + i * in * t->c2, hx2 + i % 2 * in * t->c2,
                            in * t->c2 * 2, cudaMemcpyHostToDevice), "copy");

            if (t->residual) {
                must(cudaMemcpy(dy + i * one, hr + i % 2 * one, one * 2,
                                cudaMemcpyHostToDevice), "copy");
            }
        }

        d.n = n;
        d.x = dx;
        d.x2 = t->c2 ? dx2 : NULL;
        d.y = dy;
        d.residual = t->residual ? dy : NULL;

        must(sd_cuda_conv_direct(stream, &chip, &d), "conv_direct");
        out = host(dy, one * 2 * n);

        for (i = 0; j == 0 && i < 3000; i++) {
            at = i < 300 ? (size_t) i % (2 * one) : any(2 * one);
            m = at % t->k;
            x = at / t->k % ow;
            y = at / t->k / ow % oh;
            n = (int) (at / one);
            s = value(hb[m]) + (t->residual ? value(hr[at]) : 0);

            for (a = 0; a < t->r; a++) {
                for (b = 0; b < t->r; b++) {
                    iy = y * t->stride + a - t->r / 2;
                    ix = x * t->stride + b - t->r / 2;

                    if (iy < 0 || ix < 0 || iy >= (t->up ? oh : t->h)
                        || ix >= (t->up ? ow : t->w))
                    {
                        continue;
                    }

                    iy >>= t->up;
                    ix >>= t->up;

                    for (ch = 0; ch < c; ch++) {
                        s += (double) value(ch < t->c
                             ? hx[((n * in) + (size_t) iy * t->w + ix) * t->c
                                  + ch]
                             : hx2[((n * in) + (size_t) iy * t->w + ix) * t->c2
                                   + ch - t->c])
                             * value(hw[((size_t) (m * t->r + a) * t->r + b) * c
                                        + ch]);
                    }
                }
            }

            compare(&worst, value(out[at]), s);
        }

        if (j == 0) {
            first = out;

        } else {
            same &= memcmp(first, out, one * 2) == 0;
            free(out);
        }

        cudaFree(dx);
        cudaFree(dx2);
        cudaFree(dy);
    }

    ok(worst < 1e-3 && same, "conv %dx%d, %dx%dx%d+%d to %d, stride %d%s%s: "
       "%.1e off%s", t->r, t->r, t->h, t->w, t->c, t->c2, t->k, t->stride,
       t->up ? ", enlarged" : "", t->residual ? ", residual" : "", worst,
       same ? "" : ", n changes the bits");

    cudaFree((void *) d.w);
    cudaFree((void *) d.bias);
    free(hx);
    free(hx2);
    free(hw);
    free(hb);
    free(hr);
    free(first);
}


/* weights are F32 for the reference: what their sums lose is an error, too */

static void
test_conv_up(int h, int w, int c, int k)
{
    int              i, j, a, b, n, y, x, m, ch, iy, ix, same;
    float           *hw, *dw;
    double           s, worst = 0;
    size_t           at, in, one;
    sd_half_t       *hx, *hb, *packed, *out, *first;
    sd_cuda_conv_t   d;

    static const int  batches[] = { 2, 1, 5, 16 };

    if (chip.arch != 90) {
        return;
    }

    memset(&d, 0, sizeof(d));

    in = (size_t) h * w * c;
    one = (size_t) 4 * h * w * k;

    hx = halves(2 * in, 1);
    hb = halves(k, 1);
    hw = floats((size_t) k * c * 9, 1 / sqrtf((float) c));
    first = NULL;
    same = 1;

    dw = device((size_t) k * c * 9 * sizeof(float), hw);
    packed = device((size_t) 16 * k * c * 2, NULL);
    must(sd_cuda_pack_up(stream, packed, dw, k, c), "pack_up");

    d.w = packed;
    d.bias = device(k * 2, hb);
    d.h = h;
    d.wd = w;
    d.c = c;
    d.oh = 2 * h;
    d.ow = 2 * w;
    d.k = k;
    d.r = 3;
    d.stride = 1;
    d.upsample = 1;

    for (j = 0; j < 4; j++) {
        n = min(batches[j], one > 1 << 24 ? 3 : 16);

        sd_half_t  *dx = device(in * 2 * n, NULL);
        sd_half_t  *dy = device(one * 2 * n, NULL);

        for (i = 0; i < n; i++) {
            must(cudaMemcpy(dx + i * in, hx + i % 2 * in, in * 2,
                            cudaMemcpyHostToDevice), "copy");
        }

        d.n = n;
        d.x = dx;
        d.y = dy;

        if (!sd_cuda_conv_up_takes(&chip, &d)) {
            ok(0, "conv_up takes %dx%dx%d to %d", h, w, c, k);
            exit(1);
        }

        must(sd_cuda_conv_up(stream, &chip, &d), "conv_up");
        out = host(dy, one * 2 * n);

        for (i = 0; j == 0 && i < 3000; i++) {
            at = i < 300 ? (size_t) i % (2 * one) : any(2 * one);
            m = at % k;
            x = at / k % (2 * w);
            y = at / k / (2 * w) % (2 * h);
            s = value(hb[m]);

            for (a = -1; a < 2; a++) {
                for (b = -1; b < 2; b++) {
                    iy = y + a;
                    ix = x + b;

                    if (iy < 0 || ix < 0 || iy >= 2 * h || ix >= 2 * w) {
                        continue;
                    }

                    for (ch = 0; ch < c; ch++) {
                        s += (double) value(hx[at / one * in
                                               + ((size_t) iy / 2 * w + ix / 2)
                                                 * c + ch])
                             * hw[((size_t) m * c + ch) * 9 + a * 3 + b + 4];
                    }
                }
            }

            compare(&worst, value(out[at]), s);
        }

        for (at = 0; at < one * n; at++) {
            same &= (out[at] & 0x7c00) != 0x7c00;
        }

        if (j == 0) {
            first = out;

        } else {
            same &= memcmp(first, out, one * 2) == 0;
            free(out);
        }

        cudaFree(dx);
        cudaFree(dy);
    }

    ok(worst < 1.5e-3 && same, "conv_up %dx%dx%d to %d: %.1e off%s", h, w, c, k,
       worst, same ? "" : ", n changes the bits");

    cudaFree((void *) d.w);
    cudaFree((void *) d.bias);
    cudaFree(dw);
    free(hx);
    free(hw);
    free(hb);
    free(first);
}


/* a kernel's every way to do it, which are to give the same bits */

static void
test_conv_sm90(int h, int w, int c, int k, int residual)
{
    int              i, j, a, b, n, y, x, m, way, ways, same;
    double           s, worst = 0;
    size_t           at, in, one, weights;
    sd_half_t       *hx, *hw, *hb, *hr, *out, *first;
    cudaError_t      rc;
    sd_cuda_conv_t   d;

    static const int  batches[] = { 2, 1, 5, 16 };

    if (chip.arch != 90) {
        return;
    }

    memset(&d, 0, sizeof(d));

    in = (size_t) h * w * c;
    one = (size_t) h * w * k;
    weights = (size_t) k * 9 * c;

    hx = halves(2 * in, 1);
    hw = halves(weights, 1 / sqrtf((float) c));
    hb = halves(k, 1);
    hr = halves(2 * one, 1);
    first = NULL;
    same = 1;
    ways = 0;

    d.w = device(weights * 2, hw);
    d.bias = device(k * 2, hb);
    d.h = d.oh = h;
    d.wd = d.ow = w;
    d.c = c;
    d.k = k;
    d.r = 3;
    d.stride = 1;

    for (j = 0; j < 4; j++) {
        n = batches[j];

        sd_half_t  *dx = device(in * 2 * n, NULL);
        sd_half_t  *dy = device(one * 2 * n, NULL);
        sd_half_t  *dr = device(one * 2 * n, NULL);

        for (i = 0; i < n; i++) {
            must(cudaMemcpy(dx + i * in, hx + i % 2 * in, in * 2,
                            cudaMemcpyHostToDevice), "copy");
            must(cudaMemcpy(dr + i * one, hr + i % 2 * one, one * 2,
                            cudaMemcpyHostToDevice), "copy");
        }

        d.n = n;
        d.x = dx;
        d.y = dy;
        d.residual = residual ? dy : NULL;

        if (!sd_cuda_conv_sm90_takes(&chip, &d)) {
            ok(0, "conv_sm90 takes %dx%dx%d to %d", h, w, c, k);
            exit(1);
        }

        for (way = 0; way <= SD_CUDA_CONV_WAYS; way++) {
            d.way = way;

            must(residual ? cudaMemcpyAsync(dy, dr, one * 2 * n,
                                            cudaMemcpyDeviceToDevice, stream)
                          : cudaMemsetAsync(dy, 0xff, one * 2 * n, stream),
                 "copy");

            rc = sd_cuda_conv_sm90(stream, &chip, &d);

            if (way && rc == cudaErrorInvalidValue) {
                continue;
            }

            must(rc, "conv_sm90");
            out = host(dy, one * 2 * n);
            ways += way > 0;

            for (at = 0; at < one * n; at++) {
                same &= (out[at] & 0x7c00) != 0x7c00;
            }

            if (first == NULL) {
                first = out;
                continue;
            }

            for (i = 0; i < n; i++) {
                same &= memcmp(first + i % 2 * one, out + i * one, one * 2)
                        == 0;
            }

            free(out);
        }

        cudaFree(dx);
        cudaFree(dy);
        cudaFree(dr);
    }

    for (i = 0; i < 3000; i++) {
        at = i < 300 ? (size_t) i : any(2 * one);
        m = at % k;
        x = at / k % w;
        y = at / k / w % h;
        s = value(hb[m]) + (residual ? value(hr[at]) : 0);

        for (a = -1; a < 2; a++) {
            for (b = -1; b < 2; b++) {
                if (y + a < 0 || x + b < 0 || y + a >= h || x + b >= w) {
                    continue;
                }

                for (j = 0; j < c; j++) {
                    s += (double) value(hx[at / one * in
                                           + ((size_t) (y + a) * w + x + b) * c
                                           + j])
                         * value(hw[((size_t) m * 9 + a * 3 + b + 4) * c + j]);
                }
            }
        }

        compare(&worst, value(first[at]), s);
    }

    ok(worst < 1.5e-3 && same && ways, "conv_sm90 %dx%dx%d to %d%s: %.1e off, "
       "%d runs%s", h, w, c, k, residual ? ", residual" : "", worst, ways,
       same ? "" : ", bits differ");

    cudaFree((void *) d.w);
    cudaFree((void *) d.bias);
    free(hx);
    free(hw);
    free(hb);
    free(hr);
    free(first);
}


static void
test_layouts(int c)
{
    int         i, x, same, h = 5, w = 7, oh = 9, ow = 14;
    float      *f, *df;
    size_t      at, n;
    sd_half_t  *in, *in2, *out, *dx, *dx2, *dy;

    /* nearest x2, to one row less */

    n = (size_t) 2 * oh * ow * c;
    in = halves((size_t) 2 * h * w * c, 1);
    in2 = halves((size_t) 70 * 8, 1);
    dx = device((size_t) 2 * h * w * c * 2, in);
    dx2 = device((size_t) 70 * 8 * 2, in2);
    dy = device(n * 2, NULL);

    must(sd_cuda_upsample(stream, dy, dx, 2, h, w, c, oh, ow), "upsample");
    out = host(dy, n * 2);
    same = 1;

    for (at = 0; at < (size_t) 2 * oh * ow; at++) {
        x = (int) (at / (oh * ow)) * h * w + (int) (at / ow % oh) / 2 * w
            + (int) (at % ow) / 2;
        same &= memcmp(out + at * c, in + (size_t) x * c, c * 2) == 0;
    }

    free(out);
    cudaFree(dy);

    dy = device((size_t) 70 * (c + 8) * 2, NULL);
    must(sd_cuda_concat(stream, dy, dx, dx2, 70, c, 8), "concat");
    out = host(dy, (size_t) 70 * (c + 8) * 2);

    for (i = 0; i < 70; i++) {
        same &= memcmp(out + i * (c + 8), in + i * c, c * 2) == 0
                && memcmp(out + i * (c + 8) + c, in2 + i * 8, 16) == 0;
    }

    free(out);
    cudaFree(dy);

    f = floats((size_t) 5 * c * 9, 1);
    df = device((size_t) 5 * c * 9 * 4, f);
    n = (size_t) 8 * 9 * (c + 3);
    dy = device(n * 2, NULL);
    must(sd_cuda_pack(stream, dy, df, 5, c, 3, 8, c + 3), "pack");
    out = host(dy, n * 2);

    for (at = 0; at < n; at++) {
        i = (int) (at / (9 * (c + 3)));
        x = at % (c + 3);
        same &= out[at] == (i < 5 && x < c
                            ? half(f[(i * c + x) * 9 + at / (c + 3) % 9]) : 0);
    }

    free(out);

    must(sd_cuda_to_half(stream, dy, df, 5 * c), "to_half");
    out = host(dy, 5 * c * 2);

    for (i = 0; i < 5 * c; i++) {
        same &= out[i] == half(f[i]);
    }

    free(f);
    must(sd_cuda_to_float(stream, df, dx, 5 * c), "to_float");
    f = host(df, 5 * c * 4);

    for (i = 0; i < 5 * c; i++) {
        same &= f[i] == value(in[i]);
    }

    ok(same, "upsample, concat, pack, to_half, to_float: %d channels", c);

    cudaFree(dx);
    cudaFree(dx2);
    cudaFree(dy);
    cudaFree(df);
    free(in);
    free(in2);
    free(out);
    free(f);
}


static void
test_sampler(void)
{
    int         i, j, s, e, hw = 64 * 64, c = 4, hwc = hw * c, same, equal;
    float      *x, *dx, *y, in[3 + SD_KEPT + 2], v, u;
    double      worst;
    sd_slot_t   slots[4], *ds;
    sd_half_t  *out, *dout, *di, *input;

    x = floats((size_t) 4 * 6 * hwc, 1);
    out = halves((size_t) 6 * hwc, 3);
    dx = device((size_t) 4 * 6 * hwc * 4, x);
    dout = device((size_t) 6 * hwc * 2, out);
    di = device((size_t) 6 * hwc * 2, NULL);
    memset(slots, 0, sizeof(slots));

    for (s = 0; s < 4; s++) {
        slots[s].scale_in = number();
        slots[s].a = number();
        slots[s].b = number();
        slots[s].clamp = s == 2 ? 0.5f : 0;
        slots[s].guidance = 7.5f;
        slots[s].guided = s != 1;
        slots[s].out = s == 0 ? 3 : s == 1 ? 2 : s == 2 ? 0 : -1;
        slots[s].nkept = s == 1 ? SD_KEPT : s;
        slots[s].draw = 17 + s;
        slots[s].seed = 0x123456789abcdef0u + s;
        slots[s].x = dx + (size_t) s * 6 * hwc;
        slots[s].next = (float *) slots[s].x;
        slots[s].kept = slots[s].x + hwc;
        slots[s].kept_next = (float *) slots[s].kept;
        slots[s].denoised = slots[s].next + 5 * (size_t) hwc;

        for (i = 0; i <= SD_KEPT; i++) {
            for (j = 0; j < 3 + SD_KEPT + 2; j++) {
                slots[s].m[i][j] = j >= 3 + SD_KEPT + s ? 0 : number();
            }
        }
    }

    ds = device(sizeof(slots), slots);
    must(sd_cuda_scale_input(stream, di, ds, 4, hwc), "scale_input");
    must(sd_cuda_sampler_step(stream, dout, ds, 4, hw, c), "sampler_step");
    input = host(di, (size_t) 6 * hwc * 2);
    y = host(dx, (size_t) 4 * 6 * hwc * 4);
    same = 1;
    equal = 1;
    worst = 0;

    for (s = 0; s < 4; s++) {
        for (e = 0; e < hwc; e++) {
            sd_slot_t    *t = &slots[s];
            size_t        at = (size_t) e % hw * c + e / hw;
            const float  *a = x + (size_t) s * 6 * hwc;
            const float  *b = y + (size_t) s * 6 * hwc;

            if (t->out < 0) {
                for (i = 0; i < 6; i++) {
                    same &= a[(size_t) i * hwc + at] == b[(size_t) i * hwc + at];
                }

                continue;
            }

            for (i = 0; i <= t->guided; i++) {
                same &= input[(size_t) (t->out + i) * hwc + at]
                        == half(a[at] * t->scale_in);
            }

            memset(in, 0, sizeof(in));
            u = value(out[(size_t) t->out * hwc + at]);
            in[0] = a[at];
            in[1] = t->guided
                    ? u + t->guidance
                          * (value(out[(size_t) (t->out + 1) * hwc + at]) - u)
                    : u;
            in[2] = t->a * in[0] + t->b * in[1];
            in[2] = t->clamp > 0 ? min(max(in[2], -t->clamp), t->clamp) : in[2];

            for (i = 0; i < t->nkept; i++) {
                in[3 + i] = a[(size_t) (1 + i) * hwc + at];
            }

            for (j = 0; j < min(s, 2); j++) {
                in[3 + SD_KEPT + j] = sd_philox_normal(t->seed, t->draw + j, e);
            }

            for (i = 0; i <= t->nkept; i++) {
                v = 0;

                for (j = 0; j < 3 + SD_KEPT + 2; j++) {
                    v += t->m[i][j] * in[j];
                }

                compare(&worst, b[(size_t) i * hwc + at], v);
                equal &= b[(size_t) i * hwc + at] == v;
            }

            for ( /* void */ ; i <= SD_KEPT; i++) {
                same &= a[(size_t) i * hwc + at] == b[(size_t) i * hwc + at];
            }

            equal &= b[(size_t) 5 * hwc + at] == in[2];
        }
    }

    for (i = 0; i < hwc; i++) {
        same &= input[(size_t) 5 * hwc + i] == 0xffff;
    }

    ok(same, "scale_input, empty slots");
    ok(worst < 1e-5, "sampler_step: %.1e off%s", worst,
       equal ? ", the cpu's bits" : "");

    free(y);
    must(sd_cuda_noise(stream, dx, 987654321987654321u, 5, 14.6f, hw, c),
         "noise");
    y = host(dx, (size_t) hwc * 4);
    same = 0;

    for (e = 0; e < hwc; e++) {
        same += y[e % hw * c + e / hw]
                == 14.6f * sd_philox_normal(987654321987654321u, 5, e);
    }

    ok(same == hwc, "noise: the cpu's bits in %d of %d", same, hwc);

    cudaFree(dx);
    cudaFree(dout);
    cudaFree(di);
    cudaFree(ds);
    free(x);
    free(out);
    free(y);
    free(input);
}


static uint8_t
byte(float v)
{
    v = v * 127.5f + 127.5f;

    return !(v > 0) ? 0 : v >= 255 ? 255 : (uint8_t) (v + 0.5f);
}


static void
test_pictures(int c)
{
    int             i, j, same, n = 64 * 64;
    float          *x, *dx, v;
    uint8_t        *y, *dy;
    int32_t         ids[6] = { 4, 0, 2, 2, 1, 3 }, *di;
    sd_half_t      *h, *dh, *out, *dout, *position, *dp;
    sd_cuda_rgb_t   rgb;

    for (i = 0; i < 48; i++) {
        rgb.factors[i / 3][i % 3] = number();
        rgb.bias[i % 3] = number();
    }

    x = floats((size_t) n * c, 2);
    h = halves((size_t) n * c, 1.5f);
    x[7] = NAN;
    h[3] = 0x7e00;
    dx = device((size_t) n * c * 4, x);
    dh = device((size_t) n * c * 2, h);
    dy = device((size_t) n * 3, NULL);
    dout = device((size_t) n * c * 2, NULL);

    must(sd_cuda_preview_rgb(stream, dy, dx, &rgb, n, c), "preview_rgb");
    y = host(dy, (size_t) n * 3);
    same = 1;

    for (i = 0; i < n * 3; i++) {
        v = rgb.bias[i % 3];

        for (j = 0; j < c; j++) {
            v += x[i / 3 * c + j] * rgb.factors[j][i % 3];
        }

        same &= y[i] == byte(v);
    }

    free(y);
    must(sd_cuda_image_rgb8(stream, (uint8_t *) dout, dh, (size_t) n * c - 3),
         "image_rgb8");
    y = host(dout, (size_t) n * c);

    for (i = 0; i < n * c - 3; i++) {
        same &= y[i] == byte(value(h[i]));
    }

    ok(same, "preview_rgb, image_rgb8: the cpu's bytes, %d channels", c);

    must(sd_cuda_scale(stream, dout, dx, 0, 5.5f, (size_t) n * c), "scale");
    out = host(dout, (size_t) n * c * 2);
    same = 1;

    for (i = 8; i < n * c; i++) {
        same &= out[i] == half(5.5f * x[i]);
    }

    free(out);
    must(sd_cuda_scale(stream, dout, dh, 1, 5.5f, (size_t) n * c), "scale");
    out = host(dout, (size_t) n * c * 2);

    for (i = 8; i < n * c; i++) {
        same &= out[i] == half(5.5f * value(h[i]));
    }

    free(out);

    /* 5 rows of the table, two samples of 3 tokens */

    position = halves((size_t) 3 * c, 1);
    dp = device((size_t) 3 * c * 2, position);
    di = device(sizeof(ids), ids);
    must(sd_cuda_embed(stream, dout, di, dh + 8 * c, dp, 2, 3, c), "embed");
    out = host(dout, (size_t) 6 * c * 2);

    for (i = 0; i < 6 * c; i++) {
        same &= out[i] == half(value(h[(8 + ids[i / c]) * c + i % c])
                               + value(position[i % (3 * c)]));
    }

    free(y);
    must(sd_cuda_add_bias(stream, dx, dp, 5, c), "add_bias");
    y = host(dx, (size_t) 5 * c * 4);

    for (i = 8; i < 5 * c; i++) {
        same &= ((float *) y)[i] == x[i] + value(position[i % c]);
    }

    ok(same, "scale, embed, add_bias: %d channels", c);

    cudaFree(dx);
    cudaFree(dh);
    cudaFree(dy);
    cudaFree(dout);
    cudaFree(dp);
    cudaFree(di);
    free(x);
    free(h);
    free(y);
    free(out);
    free(position);
}


/* small: what does not take long */

static void
test(int small)
{
    int     i;
    size_t  n, most;

    static const int  widths[] = { 1, 3, 8, 20, 33, 320, 328, 640, 768, 1024,
                                   1280, 2560, 2568 };

    most = small ? 330000 : (size_t) -1;

    for (i = 0; i < (int) (sizeof(norms) / sizeof(norms[0])); i++) {
        if ((size_t) norms[i].hw * (norms[i].c + norms[i].c2) <= most) {
            test_norm(&norms[i]);
        }
    }

    for (i = 0; i < (int) (sizeof(widths) / sizeof(widths[0])); i++) {
        test_layer(small ? 101 : 1001, widths[i]);
    }

    test_geglu(small ? 82 : 8192, 1280);
    test_geglu(77, 5120);
    test_geglu(33, 1);
    test_geglu(19, 100);

    for (i = 0; i < 5; i++) {
        for (n = 2; n < 100000; n = n * 17 + 3) {
            test_act(i, n);
        }
    }

    test_softmax(small ? 40 : 4096, 4096, 4096, 10);
    test_softmax(100, 77, 80, 10);
    test_softmax(100, 64, 64, 60000);
    test_softmax(20, 8192, 8192, 10);
    test_softmax(20, 16384, 16384, 10);
    test_softmax(20, 65536, 65536, 10);
    test_softmax(20, 20001, 20008, 10);

    for (i = 0; i < (int) (sizeof(convs) / sizeof(convs[0])); i++) {
        if ((size_t) convs[i].h * convs[i].w * convs[i].c * convs[i].k <= most)
        {
            test_conv(&convs[i]);
        }
    }

    test_conv_up(32, 32, 640, 640);
    test_conv_up(16, 16, 1280, 1280);
    test_conv_up(8, 8, 1280, 1280);
    test_conv_up(64, 64, 512, 512);
    test_conv_up(128, 128, 256, 256);
    test_conv_up(64, 36, 640, 640);
    test_conv_up(13, 9, 72, 88);
    test_conv_up(1, 1, 8, 8);
    test_conv_up(5, 200, 320, 24);

    test_conv_sm90(8, 8, 1280, 1280, 1);
    test_conv_sm90(8, 8, 2560, 1280, 0);
    test_conv_sm90(16, 16, 1280, 1280, 1);
    test_conv_sm90(16, 16, 640, 1280, 0);
    test_conv_sm90(32, 32, 640, 640, 1);
    test_conv_sm90(32, 32, 320, 640, 0);
    test_conv_sm90(64, 64, 320, 320, 1);
    test_conv_sm90(64, 64, 960, 320, 0);
    test_conv_sm90(24, 24, 320, 640, 1);
    test_conv_sm90(40, 72, 64, 160, 1);
    test_conv_sm90(16, 8, 64, 320, 1);
    test_conv_sm90(8, 8, 64, 160, 0);

    test_layouts(1);
    test_layouts(33);
    test_layouts(64);
    test_sampler();
    test_pictures(3);
    test_pictures(4);
    test_pictures(16);
}


/* measuring: launches that take turns with sets of buffers */

typedef struct bench_s  bench_t;

struct bench_s {
    cudaError_t  (*run)(const bench_t *b, void *x, void *y);
    char           name[64];
    size_t         in, in2, out;        /* bytes of x, x2 behind it, and y */
    int            n, a, b, c, c2, k;
    void          *extra[3];
};


static int
ascending(const void *a, const void *b)
{
    return (*(float *) a > *(float *) b) - (*(float *) a < *(float *) b);
}


static float
measure(const bench_t *b, char *memory, size_t stride, int sets, int launches)
{
    int              i;
    float            ms[7];
    cudaEvent_t      from, to;
    cudaGraph_t      graph;
    cudaGraphExec_t  exec;

    must(cudaEventCreate(&from), "event");
    must(cudaEventCreate(&to), "event");
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "graph");

    for (i = 0; i < launches; i++) {
        char  *x = memory + i % sets * stride;

        must(b->run(b, x, x + (b->in + b->in2 + 255) / 256 * 256), b->name);
    }

    must(cudaStreamEndCapture(stream, &graph), "graph");
    must(cudaGraphInstantiate(&exec, graph, 0), "graph");

    for (i = -1; i < 7; i++) {
        must(cudaEventRecord(from, stream), "event");
        must(cudaGraphLaunch(exec, stream), "graph");
        must(cudaEventRecord(to, stream), "event");
        must(cudaEventSynchronize(to), b->name);

        if (i >= 0) {
            must(cudaEventElapsedTime(&ms[i], from, to), "event");
        }
    }

    qsort(ms, 7, sizeof(float), ascending);

    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaEventDestroy(from);
    cudaEventDestroy(to);

    return ms[3] * 1000 / launches;
}


static void
bench(const bench_t *b)
{
    int         sets;
    char       *memory;
    float       cold, warm;
    double      floor;
    size_t      i, n, bytes, stride;
    sd_half_t  *noise;

    if (only != NULL && strncmp(b->name, only, strlen(only)) != 0) {
        return;
    }

    bytes = b->in + b->in2 + b->out;
    stride = (b->in + b->in2 + 255) / 256 * 256 + (b->out + 255) / 256 * 256;
    sets = (int) max(2, min(COLD / stride + 1, 400));

    memory = device(stride * sets, NULL);
    n = (size_t) 1 << 20;
    noise = halves(n, 2);

    /* numbers, not zeros, as they may cost power */

    for (i = 0; i < stride * sets; i += n * 2) {
        must(cudaMemcpy(memory + i, noise, min(n * 2, stride * sets - i),
                        cudaMemcpyHostToDevice), "copy");
    }

    cold = measure(b, memory, stride, sets, max(20, sets));
    warm = measure(b, memory, stride, 1, 20);
    floor = bytes / BANDWIDTH * 1e6;

    printf("# %-40s cold %7.2f us, warm %7.2f, floor %6.2f, cold / floor "
           "%5.2f\n", b->name, cold, warm, floor, cold / floor);
    fflush(stdout);

    cudaFree(memory);
    free(noise);
}


static cudaError_t
run_norm(const bench_t *b, void *x, void *y)
{
    sd_cuda_group_norm_t  a;

    memset(&a, 0, sizeof(a));
    a.y = y;
    a.x = x;
    a.x2 = b->c2 ? (sd_half_t *) ((char *) x + b->in) : NULL;
    a.gamma = b->extra[0];
    a.beta = b->extra[0];
    a.addend = b->extra[1];
    a.n = b->n;
    a.hw = b->a;
    a.c = b->c;
    a.c2 = b->c2;
    a.groups = 32;
    a.eps = 1e-5f;
    a.silu = 1;
    a.scratch = scratch;

    return sd_cuda_group_norm(stream, &chip, &a);
}


static cudaError_t
run_layer(const bench_t *b, void *x, void *y)
{
    return sd_cuda_layer_norm(stream, y, x, b->extra[0], b->extra[0], b->a,
                              b->c, 1e-5f);
}


static cudaError_t
run_geglu(const bench_t *b, void *x, void *y)
{
    return sd_cuda_geglu(stream, y, x, NULL, b->a, b->c);
}


static cudaError_t
run_softmax(const bench_t *b, void *x, void *y)
{
    return sd_cuda_softmax(stream, x, b->a, b->c, b->c);
}


static cudaError_t
run_conv(const bench_t *b, void *x, void *y)
{
    sd_cuda_conv_t  d;

    memset(&d, 0, sizeof(d));
    d.y = y;
    d.x = x;
    d.w = b->extra[0];
    d.bias = b->extra[0];
    d.n = b->n;
    d.h = d.oh = b->a;
    d.wd = d.ow = b->b;
    d.c = b->c;
    d.k = b->k;
    d.r = 3;
    d.stride = 1;

    return sd_cuda_conv_direct(stream, &chip, &d);
}


static cudaError_t
run_conv_up(const bench_t *b, void *x, void *y)
{
    sd_cuda_conv_t  d;

    memset(&d, 0, sizeof(d));
    d.y = y;
    d.x = x;
    d.w = b->extra[0];
    d.bias = b->extra[0];
    d.n = b->n;
    d.h = b->a;
    d.wd = b->b;
    d.oh = 2 * b->a;
    d.ow = 2 * b->b;
    d.c = b->c;
    d.k = b->c;
    d.r = 3;
    d.stride = 1;
    d.upsample = 1;

    return sd_cuda_conv_up(stream, &chip, &d);
}


/* x is what there is much of: the weights */

static cudaError_t
run_conv_sm90(const bench_t *b, void *x, void *y)
{
    sd_cuda_conv_t  d;

    memset(&d, 0, sizeof(d));
    d.y = y;
    d.x = b->extra[0];
    d.w = x;
    d.bias = b->extra[1];
    d.residual = b->extra[2];
    d.n = b->n;
    d.h = d.oh = d.wd = d.ow = b->a;
    d.c = b->c;
    d.k = b->k;
    d.r = 3;
    d.stride = 1;

    return sd_cuda_conv_sm90(stream, &chip, &d);
}


static cudaError_t
run_upsample(const bench_t *b, void *x, void *y)
{
    return sd_cuda_upsample(stream, y, x, b->n, b->a, b->b, b->c, 2 * b->a,
                            2 * b->b);
}


static cudaError_t
run_image(const bench_t *b, void *x, void *y)
{
    return sd_cuda_image_rgb8(stream, y, x, b->out);
}


static cudaError_t
run_step(const bench_t *b, void *x, void *y)
{
    return sd_cuda_sampler_step(stream, b->extra[0], b->extra[1], b->n, b->a,
                                4);
}


static void
benches(void)
{
    int         i, j, n;
    bench_t     b;
    float      *ones = floats(1 << 15, 1);
    sd_half_t  *small = halves(1 << 20, 0.1f);
    void       *f32 = device((1 << 15) * 4, ones);
    void       *f16 = device((1 << 20) * 2, small);
    const float  *rows[16];

    static const int  layers[][2] = { { 4096, 320 }, { 1024, 640 },
                                      { 256, 1280 }, { 64, 1280 } };
    static const int  batches[] = { 2, 16 };

    for (i = 0; i < 16; i++) {
        rows[i] = f32;
    }

    void  *table = device(sizeof(rows), rows);

    for (j = 0; j < 2; j++) {
        for (i = 0; i < 23; i++) {
            const norm_t  *t = &norms[i];

            memset(&b, 0, sizeof(b));
            n = batches[j];

            /* the VAE decodes one or two pictures at once */

            if (i >= 17) {
                n = j + 1;
            }

            b.run = run_norm;
            b.n = n;
            b.a = t->hw;
            b.c = t->c;
            b.c2 = t->c2;
            b.in = (size_t) n * t->hw * t->c * 2;
            b.in2 = (size_t) n * t->hw * t->c2 * 2;
            b.out = b.in + b.in2;
            b.extra[0] = f32;
            b.extra[1] = t->addend ? table : NULL;
            snprintf(b.name, sizeof(b.name), "group_norm %d x %d x %d%s%.0d%s",
                     n, t->hw, t->c, t->c2 ? "+" : "", t->c2,
                     t->addend ? " addend" : "");
            bench(&b);
        }
    }

    for (j = 0; j < 2; j++) {
        for (i = 0; i < 4; i++) {
            memset(&b, 0, sizeof(b));
            b.run = run_layer;
            b.a = batches[j] * layers[i][0];
            b.c = layers[i][1];
            b.in = b.out = (size_t) b.a * b.c * 2;
            b.extra[0] = f32;
            snprintf(b.name, sizeof(b.name), "layer_norm %d x %d", b.a, b.c);
            bench(&b);
        }

        for (i = 0; i < 4; i++) {
            memset(&b, 0, sizeof(b));
            b.run = run_geglu;
            b.a = batches[j] * layers[i][0];
            b.c = layers[i][1] * 4;
            b.in = (size_t) b.a * b.c * 4;
            b.out = b.in / 2;
            snprintf(b.name, sizeof(b.name), "geglu %d x %d", b.a, b.c);
            bench(&b);
        }
    }

    memset(&b, 0, sizeof(b));
    b.run = run_softmax;
    b.a = 4096;
    b.c = 4096;

    /* in place: what is read is written, too, but memory is one */

    b.in = (size_t) 4096 * 4096 * 2;
    b.in2 = 0;
    b.out = b.in;
    snprintf(b.name, sizeof(b.name), "softmax 4096 x 4096");
    bench(&b);

    for (i = 0; i < 5; i++) {
        memset(&b, 0, sizeof(b));
        b.run = run_conv;
        b.n = i == 2 ? 1 : i == 4 ? 16 : i == 3 ? 1 : 2;
        b.a = b.b = i == 3 ? 512 : 64;
        b.c = i == 0 || i == 2 ? 4 : i == 3 ? 128 : 320;
        b.k = i == 0 ? 320 : i == 2 ? 512 : i == 3 ? 3 : 4;
        b.in = (size_t) b.n * b.a * b.b * b.c * 2;
        b.out = (size_t) b.n * b.a * b.b * b.k * 2;
        b.extra[0] = f16;
        snprintf(b.name, sizeof(b.name), "conv_direct %d x %dx%d x %d to %d",
                 b.n, b.a, b.b, b.c, b.k);
        bench(&b);
    }

    static const int  ups[][3] = { { 2, 32, 640 }, { 2, 16, 1280 },
                                   { 2, 8, 1280 }, { 16, 32, 640 },
                                   { 16, 16, 1280 }, { 16, 8, 1280 },
                                   { 1, 64, 512 }, { 1, 128, 512 },
                                   { 1, 256, 256 } };

    void  *weights = device((size_t) 16 * 1280 * 1280 * 2, NULL);

    must(sd_cuda_random(stream, weights, (size_t) 16 * 1280 * 1280), "random");

    for (i = 0; i < 9 && chip.arch == 90; i++) {
        memset(&b, 0, sizeof(b));
        b.run = run_conv_up;
        b.n = ups[i][0];
        b.a = b.b = ups[i][1];
        b.c = ups[i][2];
        b.in = (size_t) b.n * b.a * b.b * b.c * 2;
        b.out = 4 * b.in;
        b.extra[0] = weights;
        snprintf(b.name, sizeof(b.name), "conv_up %d x %dx%d x %d", b.n, b.a,
                 b.b, b.c);
        bench(&b);
    }

    static const int  threes[][3] = { { 64, 320, 320 }, { 64, 640, 320 },
                                      { 64, 960, 320 }, { 32, 320, 640 },
                                      { 32, 640, 640 }, { 32, 960, 640 },
                                      { 32, 1280, 640 }, { 32, 1920, 640 },
                                      { 16, 640, 1280 }, { 16, 1280, 1280 },
                                      { 16, 1920, 1280 }, { 16, 2560, 1280 },
                                      { 8, 1280, 1280 }, { 8, 2560, 1280 } };
    static const int  pictures[] = { 2, 4, 16 };

    n = 16 * 64 * 64 * 960;

    sd_half_t  *pixels = device((size_t) n * 2, NULL);

    must(sd_cuda_random(stream, pixels, n), "random");

    for (i = 0; i < 3 * 14 && chip.arch == 90; i++) {
        memset(&b, 0, sizeof(b));
        b.run = run_conv_sm90;
        b.n = pictures[i / 14];
        b.a = threes[i % 14][0];
        b.c = threes[i % 14][1];
        b.k = threes[i % 14][2];
        b.in = (size_t) b.k * 9 * b.c * 2;
        b.out = (size_t) b.n * b.a * b.a * b.k * 2;
        b.extra[0] = pixels;
        b.extra[1] = f16;
        b.extra[2] = b.c == b.k ? pixels : NULL;
        snprintf(b.name, sizeof(b.name), "conv_sm90 %d x %dx%d x %d to %d",
                 b.n, b.a, b.a, b.c, b.k);
        bench(&b);
    }

    cudaFree(pixels);

    memset(&b, 0, sizeof(b));
    b.run = run_upsample;
    b.n = 1;
    b.a = b.b = 128;
    b.c = 512;
    b.in = (size_t) 128 * 128 * 512 * 2;
    b.out = 4 * b.in;
    snprintf(b.name, sizeof(b.name), "upsample 128x128x512");
    bench(&b);

    memset(&b, 0, sizeof(b));
    b.run = run_image;
    b.out = 512 * 512 * 3;
    b.in = 2 * b.out;
    snprintf(b.name, sizeof(b.name), "image_rgb8 512x512");
    bench(&b);

    sd_slot_t  slot;

    memset(&slot, 0, sizeof(slot));
    slot.x = f32;
    slot.next = device(1 << 16, NULL);
    slot.guided = 1;
    slot.guidance = 7.5f;
    slot.a = 1;
    slot.m[0][0] = 1;

    for (i = 0; i < 2; i++) {
        slot.m[0][3 + SD_KEPT] = (float) i;

        memset(&b, 0, sizeof(b));
        b.run = run_step;
        b.n = 1;
        b.a = 64 * 64;
        b.in = 64 * 64 * 4 * 8;
        b.out = 64 * 64 * 4 * 4;
        b.extra[0] = f16;
        b.extra[1] = device(sizeof(slot), &slot);
        snprintf(b.name, sizeof(b.name), "sampler_step%s",
                 i ? " with noise" : "");
        bench(&b);
    }
}


int
main(int argc, char **argv)
{
    struct cudaDeviceProp  p;

    must(cudaGetDeviceProperties(&p, 0), "cudaGetDeviceProperties");

    /* one that waits for what cudaMemcpy() and cudaMemset() leave to be done */

    must(cudaStreamCreate(&stream), "stream");

    chip.arch = p.major * 10 + p.minor;
    chip.sms = p.multiProcessorCount;
    chip.shared = (int) p.sharedMemPerBlockOptin;
    scratch = device((size_t) 8 << 20, NULL);

    printf("# %s, sm_%d, %d multiprocessors, %d bytes shared\n", p.name,
           chip.arch, chip.sms, chip.shared);

    only = argc > 2 ? argv[2] : NULL;

    if (argc < 2 || strcmp(argv[1], "test") == 0) {
        test(0);
    }

    if (argc > 1 && strcmp(argv[1], "small") == 0) {
        test(1);
    }

    if (argc < 2 || strcmp(argv[1], "bench") == 0) {
        benches();
    }

    return done();
}
