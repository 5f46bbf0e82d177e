/*
 * The table of this instruction set's kernels, and its peak: what a loop of
 * independent FMAs does, which benchmarks measure shares of.
 */

#include "isa.h"


static double
sd_peak(long n)
{
    int     i;
    long    j;
    v16     s[8], a, b;
    float   t[SD_LANES];
    double  sum;

    a = v_set(0.9999f);
    b = v_set(1e-4f);

    /* unrolled everywhere, or the sums would live in memory */

#pragma GCC unroll 8
    for (i = 0; i < 8; i++) {
        s[i] = v_set((float) i);
    }

    for (j = 0; j < n; j++) {
#pragma GCC unroll 8
        for (i = 0; i < 8; i++) {
            s[i] = v_fma(s[i], a, b);
        }

        /* or the compiler would take the loop apart */
        __asm__ volatile ("" : : : "memory");
    }

    sum = 0;

#pragma GCC unroll 8
    for (i = 0; i < 8; i++) {
        v_store(t, s[i]);
        sum += t[0];
    }

    /* of 16 lanes, 8 registers, two operations; the sum only has to be used */

    return sum == 0 ? 0 : 2.0 * 8 * SD_LANES * n;
}


const sd_kernels_t  sd_isa(sd_kernels) = {
#if defined(SD_AVX512)
    "avx512",
    "cpu-fp32-fma-2",
#elif defined(SD_AVX2)
    "avx2",
    "cpu-fp32-fma-2",
#elif defined(__x86_64__)
    "baseline",
    "cpu-fp32-sse2-2",
#else
    "baseline",
    "cpu-fp32-2",
#endif
    sd_isa(sd_conv2d),
    sd_isa(sd_group_norm),
    sd_isa(sd_linear),
    sd_isa(sd_layer_norm),
    sd_isa(sd_attention),
    sd_peak
};
