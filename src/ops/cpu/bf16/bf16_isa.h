/*
 * The product of the bf16 tasks: by AMX tiles, or by vdpbf16ps.
 */

#ifndef SD_CPU_BF16_ISA_H
#define SD_CPU_BF16_ISA_H

#include <math.h>
#include <string.h>

#include "../bf16.h"
#include "../simd.h"


/*
 * c += a b, or c = a b where add is zero
 * a: [m, k] bf16, lda elements; b: a panel's steps; c: [m, 32], ldc floats;
 * m and k multiples of 32.  ahead: the panel that comes next, as big as b
 */
void sd_bf16_gemm(int amx, float *c, size_t ldc, const sd_bf16_t *a,
    size_t lda, const sd_bf16_t *b, int m, int k, int add,
    const sd_bf16_t *ahead);

/* around what a task does: AMX's tiles belong to a thread */
void sd_bf16_enter(int amx);
void sd_bf16_leave(int amx);


/* 16 floats rounded to bf16 */

sd_inline void
v_store_bf16(sd_bf16_t *p, v16 a)
{
    _mm256_storeu_si256((__m256i *) p, (__m256i) _mm512_cvtneps_pbh(a));
}


/* n floats, and zeros up to padded, a multiple of 16 */

sd_inline void
v_row_bf16(sd_bf16_t *dst, const float *src, int n, int padded)
{
    int  i;

    for (i = 0; i + SD_LANES <= n; i += SD_LANES) {
        v_store_bf16(dst + i, v_load(src + i));
    }

    if (i < n) {
        v_store_bf16(dst + i, v_loadn(src + i, n - i));
        i += SD_LANES;
    }

    memset(dst + i, 0, (padded - i) * sizeof(sd_bf16_t));
}


/* a and b >= 0 rounded, half up, a[0] b[0] a[1] b[1] ... */

sd_inline void
v_store_pairs(sd_bf16_t *p, v16 a, v16 b)
{
    __m512i  half, odd;

    half = _mm512_set1_epi32(0x8000);

    odd = _mm512_set_epi16(63, 31, 61, 29, 59, 27, 57, 25, 55, 23, 53, 21, 51,
                           19, 49, 17, 47, 15, 45, 13, 43, 11, 41, 9, 39, 7,
                           37, 5, 35, 3, 33, 1);

    _mm512_storeu_si512(p, _mm512_permutex2var_epi16(
                               _mm512_add_epi32(_mm512_castps_si512(a), half),
                               odd,
                               _mm512_add_epi32(_mm512_castps_si512(b),
                                                half)));
}


#endif
