/*
 * bf16 products.
 *
 * AMX: 32 x 32 sums in four tiles, two tiles of a and two of b a step of 32.
 * Floor: four TDPBF16PS of 16 cycles a step, in which 4 kB have to arrive from
 * the caches; that is 13 TFLOP/s on two threads, and 2.0 to 2.3 are reached:
 * rows come from the second-level cache.  AVX512_BF16: 8 x 32 sums, pairs of k
 * by vdpbf16ps.
 */

#include "bf16_isa.h"


typedef struct {
    uint8_t   palette, start;
    uint8_t   reserved[14];
    uint16_t  bytes[16];
    uint8_t   rows[16];
} sd_tiles_t;


void
sd_bf16_enter(int amx)
{
    int         i;
    sd_tiles_t  t __attribute__((aligned(64)));

    if (!amx) {
        return;
    }

    memset(&t, 0, sizeof(t));
    t.palette = 1;

    for (i = 0; i < 8; i++) {
        t.bytes[i] = 64;
        t.rows[i] = 16;
    }

    __asm__ volatile ("" : : "r" (&t) : "memory");
    _tile_loadconfig(&t);
}


void
sd_bf16_leave(int amx)
{
    if (amx) {
        _tile_release();
    }
}


/* the intrinsics do not say that they touch memory: barriers do */

static __attribute__((noinline)) void
sd_bf16_amx(float *c, size_t ldc, const sd_bf16_t *a, size_t lda,
    const sd_bf16_t *b, int m, int k, int add, const char *ahead, size_t pace)
{
    int               i, j;
    size_t            l;
    const sd_bf16_t  *p, *q;

    __asm__ volatile ("" : : : "memory");

    for (i = 0; i < m; i += 32) {

        if (add) {
            _tile_loadd(0, c, ldc * 4);
            _tile_loadd(1, c + 16, ldc * 4);
            _tile_loadd(2, c + 16 * ldc, ldc * 4);
            _tile_loadd(3, c + 16 * ldc + 16, ldc * 4);

        } else {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        }

        p = a;
        q = b;

        for (j = 0; j < k; j += 32) {
            _tile_loadd(4, p, lda * 2);
            _tile_loadd(6, q, 64);
            _tile_loadd(7, q + 512, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, p + 16 * lda, lda * 2);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);

            for (l = 0; l < pace; l += 64) {
                __builtin_prefetch(ahead + l, 0, 2);
            }

            ahead += pace;
            p += 32;
            q += 1024;
        }

        _tile_stored(0, c, ldc * 4);
        _tile_stored(1, c + 16, ldc * 4);
        _tile_stored(2, c + 16 * ldc, ldc * 4);
        _tile_stored(3, c + 16 * ldc + 16, ldc * 4);

        a += 32 * lda;
        c += 32 * ldc;
    }

    __asm__ volatile ("" : : : "memory");
}


static void
sd_bf16_dot(float *c, size_t ldc, const sd_bf16_t *a, size_t lda,
    const sd_bf16_t *b, int m, int k, int add)
{
    int               i, j, l, r;
    int32_t           pair;
    __m512            s[8][2];
    __m512bh          w[2], x;
    const sd_bf16_t  *q;

    for (i = 0; i < m; i += 8) {

#pragma GCC unroll 8
        for (r = 0; r < 8; r++) {
            s[r][0] = add ? _mm512_loadu_ps(c + r * ldc) : _mm512_setzero_ps();
            s[r][1] = add ? _mm512_loadu_ps(c + r * ldc + 16)
                          : _mm512_setzero_ps();
        }

        for (j = 0; j < k; j += 32) {
            q = b + j * 32;

            for (l = 0; l < 32; l += 2) {
                w[0] = (__m512bh) _mm512_loadu_ps((float *) (q + l * 16));
                w[1] = (__m512bh) _mm512_loadu_ps((float *) (q + 512 + l * 16));

#pragma GCC unroll 8
                for (r = 0; r < 8; r++) {
                    memcpy(&pair, a + r * lda + j + l, sizeof(pair));
                    x = (__m512bh) _mm512_set1_epi32(pair);
                    s[r][0] = _mm512_dpbf16_ps(s[r][0], x, w[0]);
                    s[r][1] = _mm512_dpbf16_ps(s[r][1], x, w[1]);
                }
            }
        }

#pragma GCC unroll 8
        for (r = 0; r < 8; r++) {
            _mm512_storeu_ps(c + r * ldc, s[r][0]);
            _mm512_storeu_ps(c + r * ldc + 16, s[r][1]);
        }

        a += 8 * lda;
        c += 8 * ldc;
    }
}


void
sd_bf16_gemm(int amx, float *c, size_t ldc, const sd_bf16_t *a, size_t lda,
    const sd_bf16_t *b, int m, int k, int add, const sd_bf16_t *ahead)
{
    if (amx) {
        /* a step of b is 2 kB, and m / 32 rows of tiles fetch one each */

        sd_bf16_amx(c, ldc, a, lda, b, m, k, add, (const char *) ahead,
                    ahead ? sd_align(2048 / (m / 32), 64) : 0);

    } else {
        sd_bf16_dot(c, ldc, a, lda, b, m, k, add);
    }
}
