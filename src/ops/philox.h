/*
 * Noise that any program can reproduce: Philox4x32-10 (Salmon et al. 2011) with
 * torch's CUDA generator's use of it.  key = seed, counter = {draw, 0, element,
 * 0}; a normal number is Box and Muller's of the first two words as cuRAND has
 * it: sqrt(-2 ln u) sin(2 pi v), u = x 2^-32 + 2^-33, v = y 2^-32 + 2^-33.
 *
 * Logarithm and sine are our own, in double precision by basic operations
 * alone, and rounded to float at the end: the same bytes on any machine and
 * with any C library.  Compile with -ffp-contract=off (nvcc: -fmad=false).
 */

#ifndef SD_PHILOX_H
#define SD_PHILOX_H

#include <math.h>
#include <stdint.h>
#include <string.h>


/* kernels include this, too */

#ifdef __CUDACC__
#define SD_PHILOX_FN  static __device__ inline
#else
#define SD_PHILOX_FN  static inline
#endif


SD_PHILOX_FN void
sd_philox(uint32_t c[4], uint64_t seed)
{
    int       i;
    uint32_t  k0, k1, h0, h1, l0, l1;
    uint64_t  p0, p1;

    k0 = (uint32_t) seed;
    k1 = (uint32_t) (seed >> 32);

    for (i = 0; i < 10; i++) {
        p0 = (uint64_t) 0xd2511f53 * c[0];
        p1 = (uint64_t) 0xcd9e8d57 * c[2];

        h0 = (uint32_t) (p0 >> 32);
        l0 = (uint32_t) p0;
        h1 = (uint32_t) (p1 >> 32);
        l1 = (uint32_t) p1;

        c[0] = h1 ^ c[1] ^ k0;
        c[1] = l1;
        c[2] = h0 ^ c[3] ^ k1;
        c[3] = l0;

        k0 += 0x9e3779b9;
        k1 += 0xbb67ae85;
    }
}


/* natural logarithm, 0 < x < 1; 2 atanh((m - 1) / (m + 1)) by its series */

SD_PHILOX_FN double
sd_philox_log(double x)
{
    int       i, e;
    double    m, s, z, p;
    uint64_t  bits;

    memcpy(&bits, &x, sizeof(bits));

    e = (int) (bits >> 52) - 1022;
    bits = (bits & 0x000fffffffffffff) | 0x3fe0000000000000;
    memcpy(&m, &bits, sizeof(m));

    if (m < 0.70710678118654752) {
        m = m * 2;
        e--;
    }

    s = (m - 1) / (m + 1);
    z = s * s;
    p = 0;

    for (i = 21; i >= 1; i -= 2) {
        p = p * z + 1.0 / i;
    }

    return 2 * s * p + e * 0.69314718055994530942;
}


/* sin(2 pi v), 0 < v < 1; Taylor's series on an eighth of the circle */

SD_PHILOX_FN double
sd_philox_sin(double v)
{
    int     i, q;
    double  t, z, p;

    /* v = q / 4 + t, |t| <= 1/8; both differences are exact */

    q = (int) (v * 4 + 0.5);
    t = (v - q * 0.25) * 6.28318530717958647692;
    z = t * t;
    p = 1;

    if (q & 1) {
        for (i = 18; i >= 2; i -= 2) {
            p = 1 - p * z / (i * (i - 1));
        }

    } else {
        for (i = 19; i >= 3; i -= 2) {
            p = 1 - p * z / (i * (i - 1));
        }

        p = p * t;
    }

    return q & 2 ? -p : p;
}


/* the number that torch's CUDA generator gives element i of its draw */

SD_PHILOX_FN float
sd_philox_normal(uint64_t seed, uint32_t draw, uint32_t i)
{
    double    u, v;
    uint32_t  c[4];

    c[0] = draw;
    c[1] = 0;
    c[2] = i;
    c[3] = 0;

    sd_philox(c, seed);

    u = c[0] * 0x1p-32 + 0x1p-33;
    v = c[1] * 0x1p-32 + 0x1p-33;

    return (float) (sqrt(-2 * sd_philox_log(u)) * sd_philox_sin(v));
}


#endif
