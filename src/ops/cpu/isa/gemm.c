/*
 * The matrix product that everything else is made of: a tile of SD_MR rows by
 * SD_NV vectors of columns, whose sums stay in registers while k goes by.
 *
 * Floor: FMA units.  A step of a 12 x 32 tile is 24 FMAs, 2 loads of b and 12
 * broadcasts of a: 14 loads in the 12 cycles that two units need.
 */

#include "isa.h"


/* rows at a, a + lda, ... a + (mr - 1) lda; m and nv are constants */

sd_inline void
sd_tile(float *c, size_t ldc, const float *a, size_t lda, const float *b,
    int columns, int k, int add, const int mr, const int nv)
{
    int  i, m, v;
    v16  s[SD_MR][SD_NV], w[SD_NV], x;

#pragma GCC unroll 12
    for (m = 0; m < mr; m++) {
#pragma GCC unroll 2
        for (v = 0; v < nv; v++) {
            s[m][v] = add ? v_load(c + m * ldc + v * SD_LANES) : v_set(0);
        }
    }

    for (i = 0; i < k; i++) {

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
        sd_tile(c, ldc, a, lda, b, columns, k, add, n, nv);                   \
        break;

sd_inline void
sd_tiles(float *c, size_t ldc, const float *a, size_t lda, const float *b,
    int columns, int mr, int k, int add, const int nv)
{
    switch (mr) {
    sd_rows(1)
    sd_rows(2)
#if (SD_MR > 2)
    sd_rows(3)
    sd_rows(4)
    sd_rows(5)
    sd_rows(6)
#endif
#if (SD_MR > 6)
    sd_rows(7)
    sd_rows(8)
    sd_rows(9)
    sd_rows(10)
    sd_rows(11)
    sd_rows(12)
#endif
    }
}


static void
sd_tiles_wide(float *c, size_t ldc, const float *a, size_t lda, const float *b,
    int columns, int mr, int k, int add)
{
    sd_tiles(c, ldc, a, lda, b, columns, mr, k, add, SD_NV);
}


#if (SD_NV > 1)

static void
sd_tiles_half(float *c, size_t ldc, const float *a, size_t lda, const float *b,
    int columns, int mr, int k, int add)
{
    sd_tiles(c, ldc, a, lda, b, columns, mr, k, add, 1);
}

#else

#define sd_tiles_half  sd_tiles_wide

#endif


void
sd_isa(sd_gemm)(float *c, size_t ldc, const float *a, size_t lda,
    const float *b, int columns, int m, int k, int add)
{
    int  i, n, v, mr, tiles;

    /* tiles of about the same height: 16 rows are 8 and 8, not 12 and 4 */

    tiles = (m + SD_MR - 1) / SD_MR;

    for (i = 0; i < m; i += mr, tiles--) {
        mr = (m - i + tiles - 1) / tiles;

        for (n = 0; n < columns; n += v) {
            v = SD_NV * SD_LANES;

            if (n + v <= columns) {
                sd_tiles_wide(c + i * ldc + n, ldc, a + i * lda, lda, b + n,
                              columns, mr, k, add);

            } else {
                v = SD_LANES;
                sd_tiles_half(c + i * ldc + n, ldc, a + i * lda, lda, b + n,
                              columns, mr, k, add);
            }
        }
    }
}
