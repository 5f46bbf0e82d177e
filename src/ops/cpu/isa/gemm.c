/*
 * The matrix product that everything else is made of: a tile of SD_MR rows by
 * SD_NV vectors of columns, whose sums stay in registers while k goes by.
 *
 * Floor: FMA units.  A step of a 12 x 32 tile is 24 FMAs, 2 loads of b and 12
 * broadcasts of a: 14 loads in the 12 cycles that two units need.  From the
 * first two caches it reaches 0.9 (k of 24) to 1.0 of the peak (k of 120).
 */

#include "isa.h"


/*
 * rows at a, a + lda, ... a + (mr - 1) lda; columns, mr and nv are constants.
 * ahead: what to fetch meanwhile, pace bytes a step
 */

sd_inline void
sd_step(v16 s[SD_MR][SD_NV], const float *a, size_t lda, const float *b,
    const int mr, const int nv)
{
    int  m, v;
    v16  w[SD_NV], x;

#pragma GCC unroll 2
    for (v = 0; v < nv; v++) {
        w[v] = v_load(b + v * SD_LANES);
    }

#pragma GCC unroll 12
    for (m = 0; m < mr; m++) {
        x = v_set(a[m * lda]);

#pragma GCC unroll 2
        for (v = 0; v < nv; v++) {
            s[m][v] = v_fma(x, w[v], s[m][v]);
        }
    }
}


sd_inline void
sd_tile(float *c, size_t ldc, const float *a, size_t lda, const float *b,
    int k, int add, const char *ahead, size_t pace, const int columns,
    const int mr, const int nv)
{
    int  i, m, v;
    v16  s[SD_MR][SD_NV];

#pragma GCC unroll 12
    for (m = 0; m < mr; m++) {
#pragma GCC unroll 2
        for (v = 0; v < nv; v++) {
            s[m][v] = add ? v_load(c + m * ldc + v * SD_LANES) : v_set(0);
        }
    }

    for (i = k; i >= 4; i -= 4) {
        sd_fetch(ahead);
        sd_step(s, a, lda, b, mr, nv);
        ahead += pace;
        sd_fetch(ahead);
        sd_step(s, a + 1, lda, b + columns, mr, nv);
        ahead += pace;
        sd_fetch(ahead);
        sd_step(s, a + 2, lda, b + 2 * columns, mr, nv);
        ahead += pace;
        sd_fetch(ahead);
        sd_step(s, a + 3, lda, b + 3 * columns, mr, nv);
        ahead += pace;

        a += 4;
        b += 4 * columns;
    }

    for ( /* void */ ; i > 0; i--) {
        sd_step(s, a, lda, b, mr, nv);
        a++;
        b += columns;
    }

#pragma GCC unroll 12
    for (m = 0; m < mr; m++) {
#pragma GCC unroll 2
        for (v = 0; v < nv; v++) {
            v_store(c + m * ldc + v * SD_LANES, s[m][v]);
        }
    }
}


#define sd_rows(n)                                                            \
    case n:                                                                   \
        sd_tile(c, ldc, a, lda, b, k, add, ahead, pace, columns, n, nv);      \
        break;

#define sd_tiles(name, width, vectors)                                        \
                                                                              \
    static void                                                               \
    name(float *c, size_t ldc, const float *a, size_t lda, const float *b,    \
        int mr, int k, int add, const char *ahead, size_t pace)               \
    {                                                                         \
        enum { columns = width, nv = vectors };                               \
                                                                              \
        switch (mr) {                                                         \
        sd_all_rows                                                           \
        }                                                                     \
    }

#if (SD_MR == 12)
#define sd_all_rows                                                           \
    sd_rows(1) sd_rows(2) sd_rows(3) sd_rows(4) sd_rows(5) sd_rows(6)         \
    sd_rows(7) sd_rows(8) sd_rows(9) sd_rows(10) sd_rows(11) sd_rows(12)
#elif (SD_MR == 6)
#define sd_all_rows                                                           \
    sd_rows(1) sd_rows(2) sd_rows(3) sd_rows(4) sd_rows(5) sd_rows(6)
#else
#define sd_all_rows                                                           \
    sd_rows(1) sd_rows(2)
#endif

sd_tiles(sd_tiles_32, 32, SD_NV)
sd_tiles(sd_tiles_16, 16, 1)


void
sd_isa(sd_gemm)(float *c, size_t ldc, const float *a, size_t lda,
    const float *b, int columns, int m, int k, int add, const void *ahead,
    size_t size)
{
    int          i, n, mr, tiles;
    size_t       pace;
    const char  *p;

    /* tiles of about the same height: 16 rows are 8 and 8, not 12 and 4 */

    tiles = (m + SD_MR - 1) / SD_MR;

    /* without anything to fetch, what is here already */

    p = ahead != NULL ? ahead : b;
    pace = ahead != NULL ? size / tiles / sd_max(k, 1) : 0;

    for (i = 0; i < m; i += mr, tiles--) {
        mr = (m - i + tiles - 1) / tiles;

        if (columns == SD_LANES) {
            sd_tiles_16(c + i * ldc, ldc, a + i * lda, lda, b, mr, k, add, p,
                        pace);

        } else {
            for (n = 0; n < SD_PANEL; n += SD_NV * SD_LANES) {
                sd_tiles_32(c + i * ldc + n, ldc, a + i * lda, lda, b + n, mr,
                            k, add, p, pace);
            }
        }

        p += pace * k;
    }
}
