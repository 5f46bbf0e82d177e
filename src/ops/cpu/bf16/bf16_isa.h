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


#endif
