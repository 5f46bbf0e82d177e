/*
 * 3x3 convolution by Winograd's F(4x4, 3x3) (Lavin and Gray 2016): 4x4 outputs
 * from 36 products instead of 144, a quarter of the multiplications.
 *
 *     y = A^T [ (G g G^T) . (B^T d B) ] A
 *
 * Tiles of 6x6 inputs are transformed to 36 matrices [tiles, c], each of which
 * is multiplied by the filters' matrix of its position; what comes out is
 * transformed back, with bias and residual.  In fp32 the error is about 2e-6.
 *
 * Points of interpolation are 0, 1, -1, 1/2, -2, which lose least.  After
 * enlargement by two they are 0, 1, -1, 2, -2: a tile is then (a b b c c d) in
 * both directions, and the row of B^T for -1, (0 4 -4 -1 1 0), is zero on all
 * of these: 25 products do instead of 36.
 *
 * For the smallest pictures (see weight.c) it is F(2x2, 3x3): 2x2 outputs from
 * 16 products instead of 36, at the points 0, 1, -1.
 *
 * Filters in bf16 are transformed whenever they are needed, which pays where
 * pictures are big; see weight.c.
 *
 * Where there are many tiles, a task is a block of tiles.  Where there are few
 * (deep in the unet), filters are what takes time to read: all tiles are
 * transformed first, and a task is a group of panels, so that each filter is
 * read once.  That choice changes no sum.
 *
 * Floor: a quarter of the FMA time, or 1 / 2.25 of it for 2x2, and the filters'
 * bytes.  In multiples of what the FMA peak would do directly, on one thread:
 * 320 channels at 64x64 3.1, 640 at 32x32 3.1 to 3.4, 1280 at 16x16 3.3, at
 * 8x8 2.0; 128 at 512x512 2.4 and 32 at 256x256 1.7 (transforms); after
 * enlargement 4.4 to 5.  On two threads the filters' bytes show at 16x16 and
 * 8x8: a 3x3 of 1280 channels has 236 and 105 MB of them.
 */

#include "../bf16.h"
#include "isa.h"


#define SD_TILES    96          /* of a task */
#define SD_FEW      160         /* tiles in all ... */
#define SD_DEEP     256         /* ... with so many outputs to share out; */
#define SD_FEWEST   64          /* or that few ... */
#define SD_SHALLOW  128         /* ... with that many */
#define SD_GROUP    4           /* panels of a task, where tiles are few, or */
#define SD_GROUPS   8           /* fewer, for so many tasks */
#define SD_SKEW     80          /* floats between positions, or all 36 would
                                   meet in one set of the cache */


typedef struct {
    const float   *x[2];
    int            c[2];
    int            channels, outputs;
    int            sh, sw;      /* the picture as it is stored */
    int            h, w;        /* as the kernel sees it, and as y is */
    int            up;
    int            ty, tx;      /* tiles in a picture */
    int            tiles;       /* in all */
    int            edge;        /* of a tile of inputs: 6 or 4 */
    int            skip;        /* the position that is zero, or -1 */

    sd_packed_t    packed;
    const float   *weight;
    float         *filters;     /* [positions][panels][c][columns] */
    float         *y;
    const float   *residual;

    int            few;
    float         *v;           /* few: [36][tiles][c] */
    size_t         vstride;
    int            groups;
} sd_winograd_t;


static void sd_winograd_in(const sd_winograd_t *p, float *v, size_t stride,
    int tile);
static void sd_winograd_product(const sd_winograd_t *p, const float *v,
    size_t vstride, float *m, size_t mstride, int tiles, int first, int last);
static void sd_winograd_out(const sd_winograd_t *p, const float *m,
    size_t stride, int tile, int column, int columns);
static void sd_winograd_out2(const sd_winograd_t *p, const float *m,
    size_t stride, int tile, int column, int columns);
static void sd_winograd_widen(void *data, int task, char *scratch);
static void sd_winograd_block(void *data, int task, char *scratch);
static void sd_winograd_few_in(void *data, int task, char *scratch);
static void sd_winograd_few_out(void *data, int task, char *scratch);


/* six values of one row or column, by B^T */

sd_inline void
sd_b(v16 *o, size_t step, v16 d0, v16 d1, v16 d2, v16 d3, v16 d4, v16 d5,
    const int up)
{
    v16  a, b;

    if (up) {
        /* 4 0 -5 0 1 0, 0 -4 -4 1 1 0, 0 4 -4 -1 1 0, 0 -2 -1 2 1 0,
         * 0 2 -1 -2 1 0, 0 4 0 -5 0 1 */

        o[0] = v_fma(v_set(4), d0, v_fnma(v_set(5), d2, d4));
        a = v_fnma(v_set(4), d2, d4);
        b = v_fnma(v_set(4), d1, d3);
        o[step] = v_add(a, b);
        o[2 * step] = v_sub(a, b);
        a = v_sub(d4, d2);
        b = v_sub(d3, d1);
        o[3 * step] = v_fma(v_set(2), b, a);
        o[4 * step] = v_fnma(v_set(2), b, a);
        o[5 * step] = v_fma(v_set(4), d1, v_fnma(v_set(5), d3, d5));
        return;
    }

    /* 1 -3/2 -2 3/2 1 0, 0 -1 1/2 5/2 1 0, 0 1 -5/2 1/2 1 0, 0 -2 -1 2 1 0,
     * 0 1/2 -1 -1/2 1 0, 0 1 -3/2 -2 3/2 1 */

    a = v_sub(d4, d2);
    b = v_sub(d3, d1);

    o[0] = v_add(v_fma(v_set(1.5f), b, v_sub(d0, d2)), a);
    o[step] = v_fma(v_set(2.5f), d3, v_fma(v_set(0.5f), d2, v_sub(d4, d1)));
    o[2 * step] = v_fma(v_set(0.5f), d3,
                        v_fnma(v_set(2.5f), d2, v_add(d4, d1)));
    o[3 * step] = v_fma(v_set(2), b, a);
    o[4 * step] = v_fnma(v_set(0.5f), b, a);
    o[5 * step] = v_add(v_fma(v_set(1.5f), a, v_sub(d1, d3)), v_sub(d5, d3));
}


/* six products of one row or column to four values, by A^T */

sd_inline void
sd_a(v16 *o, v16 m0, v16 m1, v16 m2, v16 m3, v16 m4, v16 m5, const int up)
{
    v16  s, d, a, b;

    s = v_add(m1, m2);
    d = v_sub(m1, m2);

    if (up) {
        a = v_add(m3, m4);
        b = v_sub(m3, m4);

        o[0] = v_add(v_add(m0, s), a);
        o[1] = v_fma(v_set(2), b, d);
        o[2] = v_fma(v_set(4), a, s);
        o[3] = v_add(v_fma(v_set(8), b, d), m5);
        return;
    }

    o[0] = v_add(v_add(m0, s), v_add(m3, m4));
    o[1] = v_fma(v_set(0.5f), m3, v_fnma(v_set(2), m4, d));
    o[2] = v_fma(v_set(0.25f), m3, v_fma(v_set(4), m4, s));
    o[3] = v_add(v_fma(v_set(0.125f), m3, v_fnma(v_set(8), m4, d)), m5);
}


sd_inline void
sd_winograd_lanes(float *v, size_t stride, const float *const at[36], int c,
    int lanes, const int up)
{
    int  i, j;
    v16  d[6], t[36], o[6];

#pragma GCC unroll 6
    for (j = 0; j < 6; j++) {
#pragma GCC unroll 6
        for (i = 0; i < 6; i++) {
            d[i] = at[i * 6 + j] != NULL ? v_loadx(at[i * 6 + j] + c, lanes)
                                         : v_set(0);
        }

        sd_b(t + j, 6, d[0], d[1], d[2], d[3], d[4], d[5], up);
    }

#pragma GCC unroll 6
    for (i = 0; i < 6; i++) {
        sd_b(o, 1, t[i * 6], t[i * 6 + 1], t[i * 6 + 2], t[i * 6 + 3],
             t[i * 6 + 4], t[i * 6 + 5], up);

#pragma GCC unroll 6
        for (j = 0; j < 6; j++) {
            v_storex(v + (i * 6 + j) * stride, o[j], lanes);
        }
    }
}


/* F(2x2, 3x3) */

sd_inline void
sd_winograd_lanes4(float *v, size_t stride, const float *const at[36], int c,
    int lanes)
{
    int  i, j;
    v16  d[4], t[16];

#pragma GCC unroll 4
    for (j = 0; j < 4; j++) {
#pragma GCC unroll 4
        for (i = 0; i < 4; i++) {
            d[i] = at[i * 4 + j] != NULL ? v_loadx(at[i * 4 + j] + c, lanes)
                                         : v_set(0);
        }

        t[j] = v_sub(d[0], d[2]);
        t[4 + j] = v_add(d[1], d[2]);
        t[8 + j] = v_sub(d[2], d[1]);
        t[12 + j] = v_sub(d[1], d[3]);
    }

#pragma GCC unroll 4
    for (i = 0; i < 16; i += 4) {
        v_storex(v + i * stride, v_sub(t[i], t[i + 2]), lanes);
        v_storex(v + (i + 1) * stride, v_add(t[i + 1], t[i + 2]), lanes);
        v_storex(v + (i + 2) * stride, v_sub(t[i + 2], t[i + 1]), lanes);
        v_storex(v + (i + 3) * stride, v_sub(t[i + 1], t[i + 3]), lanes);
    }
}


/* all channels of one tile to v: [36 or 16] at stride, [c] */

static void
sd_winograd_in(const sd_winograd_t *p, float *v, size_t stride, int tile)
{
    int           i, j, s, n, c, y, x, iy, ix;
    const float  *at[36];

    n = tile / (p->ty * p->tx);
    y = tile / p->tx % p->ty * (p->edge - 2) - 1;
    x = tile % p->tx * (p->edge - 2) - 1;

    for (s = 0; s < 2; s++) {
        for (i = 0; i < p->edge; i++) {
            for (j = 0; j < p->edge; j++) {
                iy = y + i;
                ix = x + j;

                if (iy < 0 || iy >= p->h || ix < 0 || ix >= p->w) {
                    at[i * p->edge + j] = NULL;
                    continue;
                }

                at[i * p->edge + j] = p->x[s]
                    + (((size_t) n * p->sh + (iy >> p->up)) * p->sw
                       + (ix >> p->up)) * p->c[s];
            }
        }

        for (c = 0; c < p->c[s]; c += SD_LANES) {
            if (p->edge == 4) {
                sd_winograd_lanes4(v + c, stride, at, c, p->c[s] - c);

            } else if (p->up) {
                sd_winograd_lanes(v + c, stride, at, c, p->c[s] - c, 1);

            } else {
                sd_winograd_lanes(v + c, stride, at, c, p->c[s] - c, 0);
            }
        }

        v += p->c[s];
    }
}


/* panels first .. last - 1 of all positions; m: [36], [tiles][columns] each */

static void
sd_winograd_product(const sd_winograd_t *p, const float *v, size_t vstride,
    float *m, size_t mstride, int tiles, int first, int last)
{
    int           i, panel, columns;
    size_t        ld, size;
    const float  *a, *b, *ahead;

    ld = (last - first) * SD_PANEL;

    for (i = 0; i < p->edge * p->edge; i++) {
        if (p->skip >= 0 && (i / 6 == p->skip || i % 6 == p->skip)) {
            continue;
        }

        a = v + i * vstride;

        for (panel = first; panel < last; panel++) {
            columns = sd_min(SD_PANEL, p->packed.columns - panel * SD_PANEL);

            b = p->filters + ((size_t) i * p->packed.columns + panel * SD_PANEL)
                  * p->channels;

            if (panel == first && !p->few) {
                ahead = a + SD_MR * p->channels;
                size = (size_t) tiles * p->channels;

            } else {
                ahead = panel + 1 < last ? b + p->channels * SD_PANEL
                        : b + ((size_t) p->packed.columns
                               - (panel - first) * SD_PANEL) * p->channels;
                size = (size_t) p->channels * SD_PANEL;
            }

            sd_isa(sd_gemm)(m + i * mstride + (panel - first) * SD_PANEL, ld, a,
                            p->channels, b, columns, tiles, p->channels, 0,
                            ahead, size * sizeof(float));
        }
    }
}


/* m: [36] at stride, this tile's columns; column: the first one's number */

static void
sd_winograd_out(const sd_winograd_t *p, const float *m, size_t stride, int tile,
    int column, int columns)
{
    int           i, j, c, n, y, x, rows, cols, lanes, q;
    v16           t[4][6], o[4], s[6], bias;
    size_t        at;

    if (p->edge == 4) {
        sd_winograd_out2(p, m, stride, tile, column, columns);
        return;
    }

    n = tile / (p->ty * p->tx);
    y = tile / p->tx % p->ty * 4;
    x = tile % p->tx * 4;

    rows = sd_min(4, p->h - y);
    cols = sd_min(4, p->w - x);
    q = p->skip;

    for (c = 0; c < columns; c += SD_LANES) {
        lanes = p->outputs - column - c;
        if (lanes <= 0) {
            break;
        }

        bias = v_load(p->weight + p->packed.bias + column + c);

#pragma GCC unroll 6
        for (j = 0; j < 6; j++) {
#pragma GCC unroll 6
            for (i = 0; i < 6; i++) {
                s[i] = i == q || j == q ? v_set(0)
                       : v_load(m + (i * 6 + j) * stride + c);
            }

            if (p->up) {
                sd_a(o, s[0], s[1], s[2], s[3], s[4], s[5], 1);

            } else {
                sd_a(o, s[0], s[1], s[2], s[3], s[4], s[5], 0);
            }

#pragma GCC unroll 4
            for (i = 0; i < 4; i++) {
                t[i][j] = o[i];
            }
        }

        for (i = 0; i < rows; i++) {
            if (p->up) {
                sd_a(o, t[i][0], t[i][1], t[i][2], t[i][3], t[i][4], t[i][5],
                     1);

            } else {
                sd_a(o, t[i][0], t[i][1], t[i][2], t[i][3], t[i][4], t[i][5],
                     0);
            }

            at = (((size_t) n * p->h + y + i) * p->w + x) * p->outputs + column
                 + c;

            for (j = 0; j < cols; j++) {
                o[j] = v_add(o[j], bias);

                if (p->residual != NULL) {
                    o[j] = v_add(o[j], v_loadx(p->residual + at, lanes));
                }

                v_storex(p->y + at, o[j], lanes);
                at += p->outputs;
            }
        }
    }
}


/* the same of m: [16] */

static void
sd_winograd_out2(const sd_winograd_t *p, const float *m, size_t stride,
    int tile, int column, int columns)
{
    int     i, j, c, n, y, x, lanes;
    v16     t[2][4], o[2], s[4], bias;
    size_t  at;

    n = tile / (p->ty * p->tx);
    y = tile / p->tx % p->ty * 2;
    x = tile % p->tx * 2;

    for (c = 0; c < columns; c += SD_LANES) {
        lanes = p->outputs - column - c;
        if (lanes <= 0) {
            break;
        }

        bias = v_load(p->weight + p->packed.bias + column + c);

#pragma GCC unroll 4
        for (j = 0; j < 4; j++) {
#pragma GCC unroll 4
            for (i = 0; i < 4; i++) {
                s[i] = v_load(m + (i * 4 + j) * stride + c);
            }

            t[0][j] = v_add(v_add(s[0], s[1]), s[2]);
            t[1][j] = v_sub(v_sub(s[1], s[2]), s[3]);
        }

        for (i = 0; i < sd_min(2, p->h - y); i++) {
            o[0] = v_add(v_add(t[i][0], t[i][1]), t[i][2]);
            o[1] = v_sub(v_sub(t[i][1], t[i][2]), t[i][3]);

            at = (((size_t) n * p->h + y + i) * p->w + x) * p->outputs + column
                 + c;

            for (j = 0; j < sd_min(2, p->w - x); j++) {
                o[j] = v_add(o[j], bias);

                if (p->residual != NULL) {
                    o[j] = v_add(o[j], v_loadx(p->residual + at, lanes));
                }

                v_storex(p->y + at, o[j], lanes);
                at += p->outputs;
            }
        }
    }
}


/* G g G^T of a panel of bf16 */

static void
sd_winograd_widen(void *data, int task, char *scratch)
{
    int                c, i, j, half;
    v16                g[9], t[18], m[6][3];
    float             *dst;
    size_t             depth;
    sd_winograd_t     *p = data;
    const sd_bf16_t   *src, *at;

    depth = p->packed.rows / 9;
    src = (sd_bf16_t *) (p->weight + p->packed.matrix)
          + p->packed.rows * task * SD_PANEL;

    for (i = 0; i < 6; i++) {
        for (j = 0; j < 3; j++) {
            m[i][j] = v_set((float) sd_winograd_g[p->up][i][j]);
        }
    }

    for (c = 0; c < p->channels; c++) {
        for (half = 0; half < SD_PANEL; half += SD_LANES) {

            for (i = 0; i < 9; i++) {
                at = src + sd_bf16_at(i * depth + c - c % 2, half);
                g[i] = c % 2 ? v_odd_bf16(at) : v_even_bf16(at);
            }

            for (i = 0; i < 6; i++) {
                for (j = 0; j < 3; j++) {
                    t[i * 3 + j] = v_fma(m[i][2], g[6 + j],
                                         v_fma(m[i][1], g[3 + j],
                                               v_mul(m[i][0], g[j])));
                }
            }

            dst = p->filters + (size_t) task * SD_PANEL * p->channels
                  + (size_t) c * SD_PANEL + half;

            for (i = 0; i < 36; i++) {
                v_store(dst, v_fma(m[i % 6][2], t[i / 6 * 3 + 2],
                                   v_fma(m[i % 6][1], t[i / 6 * 3 + 1],
                                         v_mul(m[i % 6][0], t[i / 6 * 3]))));

                dst += (size_t) p->packed.columns * p->channels;
            }
        }
    }
}


static void
sd_winograd_block(void *data, int task, char *scratch)
{
    int             i, first, tiles, columns;
    float          *v, *m;
    size_t          vstride, mstride;
    sd_winograd_t  *p = data;

    first = (int) ((size_t) task * p->tiles / p->groups);
    tiles = (int) ((size_t) (task + 1) * p->tiles / p->groups) - first;

    columns = p->packed.panels * SD_PANEL;

    vstride = (size_t) tiles * p->channels + SD_SKEW;
    mstride = (size_t) tiles * columns + SD_SKEW;

    v = (float *) scratch;
    m = v + sd_align(p->edge * p->edge * vstride, SD_LANES);

    for (i = 0; i < tiles; i++) {
        sd_winograd_in(p, v + (size_t) i * p->channels, vstride, first + i);
    }

    sd_winograd_product(p, v, vstride, m, mstride, tiles, 0,
                        p->packed.panels);

    for (i = 0; i < tiles; i++) {
        sd_winograd_out(p, m + (size_t) i * columns, mstride, first + i, 0,
                        columns);
    }
}


static void
sd_winograd_few_in(void *data, int task, char *scratch)
{
    sd_winograd_t  *p = data;

    sd_winograd_in(p, p->v + (size_t) task * p->channels, p->vstride, task);
}


static void
sd_winograd_few_out(void *data, int task, char *scratch)
{
    int             i, first, last, columns;
    float          *m = (float *) scratch;
    size_t          stride;
    sd_winograd_t  *p = data;

    first = task * p->packed.panels / p->groups;
    last = (task + 1) * p->packed.panels / p->groups;

    columns = (last - first) * SD_PANEL;
    stride = (size_t) p->tiles * columns + SD_SKEW;

    sd_winograd_product(p, p->v, p->vstride, m, stride, p->tiles, first, last);

    for (i = 0; i < p->tiles; i++) {
        sd_winograd_out(p, m + (size_t) i * columns, stride, i,
                        first * SD_PANEL, columns);
    }
}


int
sd_isa(sd_winograd)(sd_context_t *cx, sd_tensor_t y, const sd_conv2d_t *d)
{
    int            tiles, positions, out;
    size_t         size;
    sd_tensor_t    v, filters;
    sd_winograd_t  p;

    memset(&p, 0, sizeof(sd_winograd_t));
    memset(&v, 0, sizeof(sd_tensor_t));
    memset(&filters, 0, sizeof(sd_tensor_t));

    sd_cpu_packed(cx->device, d->w, &p.packed);

    p.edge = p.packed.winograd;
    positions = p.edge * p.edge;
    out = p.edge - 2;

    p.ty = (y.h + out - 1) / out;
    p.tx = (y.w + out - 1) / out;
    p.tiles = y.n * p.ty * p.tx;
    p.channels = d->w->c;
    p.few = (p.tiles <= SD_FEW && y.c >= SD_DEEP)
            || (p.tiles <= SD_FEWEST && y.c >= SD_SHALLOW);

    if (p.few) {
        p.vstride = (size_t) p.tiles * p.channels + SD_SKEW;
        v = sd_alloc_type(cx, SD_F32, 1, 1, positions, (int) p.vstride);
    }

    if (p.packed.bf16) {
        filters = sd_alloc_type(cx, SD_F32, 1, positions, p.channels,
                                p.packed.columns);
    }

    if (cx->plan || cx->status != SD_OK) {
        sd_free(cx, &filters);
        sd_free(cx, &v);
        return cx->status;
    }

    p.weight = d->w->data;
    p.x[0] = d->x.data;
    p.c[0] = d->x.c;

    if (!sd_empty(&d->x2)) {
        p.x[1] = d->x2.data;
        p.c[1] = d->x2.c;
    }

    p.outputs = y.c;
    p.up = d->w->upsample;
    p.sh = d->x.h;
    p.sw = d->x.w;
    p.h = y.h;
    p.w = y.w;
    p.y = y.data;
    p.residual = sd_empty(&d->residual) ? NULL : d->residual.data;

    /* a last row or column that does not exist has no twin */

    p.skip = p.edge == 6 && p.up && p.h == 2 * p.sh && p.w == 2 * p.sw ? 2
                                                                       : -1;

    p.filters = (float *) p.weight + p.packed.matrix;

    if (p.packed.bf16) {
        p.filters = filters.data;

        if (sd_pool_run(cx, sd_winograd_widen, &p, p.packed.panels) != SD_OK) {
            sd_free(cx, &filters);
            sd_free(cx, &v);
            return cx->status;
        }
    }

    if (p.few) {
        p.v = v.data;
        p.groups = sd_max((p.packed.panels + SD_GROUP - 1) / SD_GROUP,
                          sd_min(p.packed.panels, SD_GROUPS));

        (void) (sd_pool_run(cx, sd_winograd_few_in, &p, p.tiles) == SD_OK
                && sd_pool_run(cx, sd_winograd_few_out, &p, p.groups)
                   == SD_OK);

        sd_free(cx, &filters);
        sd_free(cx, &v);

        return cx->status;
    }

    /* as many tiles as scratch holds; it does hold some: see weight.c */

    size = positions * ((size_t) p.channels + p.packed.panels * SD_PANEL)
           * sizeof(float);

    tiles = (int) sd_min((SD_SCRATCH - 64 * 1024) / size, SD_TILES);

    /* and few enough for all threads to have some */

    tiles = sd_min(tiles, sd_align((p.tiles + 7) / 8, SD_MR));

    p.groups = (p.tiles + tiles - 1) / tiles;
    p.groups = sd_min(sd_align(p.groups, 2), p.tiles);

    (void) sd_pool_run(cx, sd_winograd_block, &p, p.groups);

    sd_free(cx, &filters);

    return cx->status;
}
