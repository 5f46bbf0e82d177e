/*
 * Linear and direct convolution: products of rows with packed panels.
 *
 * A task is a block of rows by a group of panels.  It walks k in steps of one
 * tap and at most SD_STEP channels: small enough for the step's panels and rows
 * to stay in the second-level cache, with the block's sums in scratch.  Where
 * the rows of a step do not lie in memory at a constant distance (3x3, stride,
 * enlargement) they are gathered first, zeros for what is outside; that costs
 * one copy for a whole group of panels.  Of few channels all taps are gathered
 * side by side: a product as deep as that is one step.
 *
 * Weights in bf16 become fp32 a panel's step at a time, for a whole block of
 * rows, and x is not rounded; see bf16.h for when this is the way.
 *
 * Floor: FMA units.  On one thread linear reaches 0.9 to 0.97 of the FMA peak,
 * 320-960 at 64x64 0.83: what is missing is reading and writing rows.  On two
 * threads, measured before rows were written in order, 0.71 to 0.83.
 */

#include "../bf16.h"
#include "../finish.h"
#include "isa.h"


#define SD_BLOCK   264          /* rows of a task, at most */
#define SD_STEP    640
#define SD_GROUP   10           /* panels of a task, at most */


typedef struct {
    const float   *x[2];
    int            c[2];
    size_t         ld[2];

    int            h, w;        /* of the picture that the kernel sees */
    int            sh, sw;      /* as it is stored */
    int            oh, ow;
    int            r, stride, up;
    int            gather;

    sd_packed_t    packed;
    const float   *weight;
    size_t         depth;       /* of a panel, a tap */
    int            span;        /* taps of a step */

    int            rows;        /* of y in all */
    int            block, blocks;       /* of a task, and how many */
    int            groups;      /* of panels */
    int            outputs;
    sd_act_t       act;
    float         *y;
    const float   *residual;
} sd_product_t;


static void sd_product_task(void *data, int task, char *scratch);
static void sd_product_gather(const sd_product_t *p, float *dst, size_t ld,
    int row, int rows, int tap, int source, int c0, int c);
static void sd_product_widen(float *dst, const sd_bf16_t *src, size_t k, int c);
static int sd_product_run(sd_context_t *cx, sd_product_t *p);


static void
sd_product_gather(const sd_product_t *p, float *dst, size_t ld, int row,
    int rows, int tap, int source, int c0, int c)
{
    int           i, j, n, x, y, iy, ix, pad;
    const float  *src;

    pad = p->r / 2;

    n = row / (p->oh * p->ow);
    y = row / p->ow % p->oh;
    x = row % p->ow;

    for (i = 0; i < rows; i++) {
        iy = y * p->stride + tap / p->r - pad;
        ix = x * p->stride + tap % p->r - pad;

        if (iy < 0 || iy >= p->h || ix < 0 || ix >= p->w) {
            memset(dst, 0, c * sizeof(float));

        } else {
            src = p->x[source]
                  + (((size_t) n * p->sh + (iy >> p->up)) * p->sw
                     + (ix >> p->up)) * p->ld[source] + c0;

            /* memcpy() would take longer to begin than to copy */

            for (j = 0; j + SD_LANES <= c; j += SD_LANES) {
                v_store(dst + j, v_load(src + j));
            }

            for ( /* void */ ; j < c; j++) {
                dst[j] = src[j];
            }
        }

        dst += ld;

        if (++x == p->ow) {
            x = 0;

            if (++y == p->oh) {
                y = 0;
                n++;
            }
        }
    }
}


/* rows k .. k + c - 1 of a bf16 panel, k even, to fp32 */

static void
sd_product_widen(float *dst, const sd_bf16_t *src, size_t k, int c)
{
    int               i;
    const sd_bf16_t  *p;

    for ( /* void */ ; c > 0; c -= 2) {
        for (i = 0; i < SD_PANEL; i += SD_LANES) {
            p = src + sd_bf16_at(k, i);
            v_store(dst + i, v_even_bf16(p));
            v_store(dst + SD_PANEL + i, v_odd_bf16(p));
        }

        k += 2;
        dst += 2 * SD_PANEL;
    }
}


static void
sd_product_task(void *data, int task, char *scratch)
{
    int                  i, row, rows, tap, source, c0, c, add, panel, first;
    int                  last, columns;
    float               *sums, *gathered, *wide, *s;
    size_t               ld, lda, at, next, size;
    const void          *ahead;
    const float         *a, *b;
    const sd_bf16_t     *half;
    const sd_product_t  *p = data;

    /* tasks that run together share panels, which come from memory */

    row = task % p->blocks * p->block;
    rows = sd_min(p->block, p->rows - row);

    first = task / p->blocks * p->packed.panels / p->groups;
    last = (task / p->blocks + 1) * p->packed.panels / p->groups;

    sums = (float *) scratch;
    ld = (last - first) * SD_PANEL;
    gathered = sums + SD_BLOCK * SD_GROUP * SD_PANEL;
    wide = gathered + SD_BLOCK * SD_STEP;

    add = 0;

    for (tap = 0; tap < p->packed.taps; tap += p->span) {
        at = tap * p->depth;

        for (source = 0; source < 2; source++) {
            for (c0 = 0; c0 < p->c[source]; c0 += c) {
                c = sd_min(p->c[source] - c0, SD_STEP);

                if (p->gather) {
                    for (i = 0; i < p->span; i++) {
                        sd_product_gather(p, gathered + i * c, p->span * c, row,
                                          rows, tap + i, source, c0, c);
                    }

                    c *= p->span;
                    a = gathered;
                    lda = c;

                } else {
                    a = p->x[source] + row * p->ld[source] + c0;
                    lda = p->ld[source];
                }

                for (panel = first; panel < last; panel++) {
                    columns = sd_min(SD_PANEL, p->packed.columns
                                               - panel * SD_PANEL);
                    next = panel + 1 < last ? p->packed.rows * SD_PANEL
                                            : (size_t) c * columns;
                    size = (size_t) c * columns * sizeof(float);

                    if (p->packed.bf16) {
                        half = (sd_bf16_t *) (p->weight + p->packed.matrix)
                               + p->packed.rows * panel * SD_PANEL;
                        sd_product_widen(wide, half, at - at % 2, c + at % 2);

                        b = wide + at % 2 * SD_PANEL;
                        ahead = half + at * SD_PANEL + next;
                        size /= 2;

                    } else {
                        b = p->weight + p->packed.matrix
                            + p->packed.rows * panel * SD_PANEL + at * columns;
                        ahead = b + next;
                    }

                    /* the first panel fetches rows, the others the panel that
                     * comes next */

                    if (panel == first && !p->gather) {
                        ahead = a + SD_MR * lda;
                        size = rows * lda * sizeof(float);
                    }

                    s = sums + (panel - first) * SD_PANEL;

                    sd_isa(sd_gemm)(s, ld, a, lda, b, columns, rows, c, add,
                                    ahead, size);
                }

                at += c;
                add = 1;
            }
        }
    }

    at = (size_t) row * p->outputs;

    sd_finish(p->y + at, p->residual == NULL ? NULL : p->residual + at, sums,
              ld, p->weight + p->packed.bias, rows, p->outputs, first, last,
              p->act);
}


static int
sd_product_run(sd_context_t *cx, sd_product_t *p)
{
    int  n;

    p->depth = p->packed.rows / p->packed.taps;

    /* few channels: a row of all taps at once */

    p->span = p->gather && p->c[1] == 0 && p->depth == (size_t) p->c[0]
              && p->packed.rows <= SD_STEP ? p->packed.taps : 1;

    /* how the work is cut changes no sum */

    n = (p->rows + SD_BLOCK - 1) / SD_BLOCK;
    p->block = sd_align((p->rows + n - 1) / n, SD_MR);
    p->blocks = (p->rows + p->block - 1) / p->block;

    p->groups = (p->packed.panels + SD_GROUP - 1) / SD_GROUP;

    if (p->blocks * p->groups < 8) {
        p->groups = sd_min(p->packed.panels, (8 + p->blocks - 1) / p->blocks);
    }

    return sd_pool_run(cx, sd_product_task, p, p->blocks * p->groups);
}


int
sd_isa(sd_linear)(sd_context_t *cx, sd_tensor_t y, const sd_linear_t *d)
{
    sd_product_t  p;

    if (cx->plan) {
        return SD_OK;
    }

    memset(&p, 0, sizeof(sd_product_t));

    sd_cpu_packed(cx->device, d->w, &p.packed);

    p.weight = d->w->data;
    p.x[0] = d->x.data;
    p.c[0] = d->x.c;
    p.ld[0] = d->x.ld;
    p.rows = y.n * y.h * y.w;
    p.outputs = y.c;
    p.act = d->act;
    p.y = y.data;
    p.residual = sd_empty(&d->residual) ? NULL : d->residual.data;

    return sd_product_run(cx, &p);
}


int
sd_isa(sd_conv2d)(sd_context_t *cx, sd_tensor_t y, const sd_conv2d_t *d)
{
    sd_product_t  p;

    memset(&p, 0, sizeof(sd_product_t));

    sd_cpu_packed(cx->device, d->w, &p.packed);

    if (p.packed.winograd) {
        return sd_isa(sd_winograd)(cx, y, d);
    }

    if (p.packed.narrow) {
        return sd_isa(sd_narrow)(cx, y, d);
    }

    if (cx->plan) {
        return SD_OK;
    }

    p.weight = d->w->data;
    p.x[0] = d->x.data;
    p.c[0] = d->x.c;
    p.ld[0] = d->x.ld;

    if (!sd_empty(&d->x2)) {
        p.x[1] = d->x2.data;
        p.c[1] = d->x2.c;
        p.ld[1] = d->x2.ld;
    }

    p.up = d->w->upsample;

    /* enlarged, it may be one less than twice as high or wide: see ops.h */

    p.h = p.up ? y.h : d->x.h;
    p.w = p.up ? y.w : d->x.w;
    p.sh = d->x.h;
    p.sw = d->x.w;

    p.oh = y.h;
    p.ow = y.w;
    p.r = d->w->r;
    p.stride = d->w->stride;
    p.gather = p.r > 1 || p.stride > 1;
    p.rows = y.n * y.h * y.w;
    p.outputs = y.c;
    p.act = SD_ACT_NONE;
    p.y = y.data;
    p.residual = sd_empty(&d->residual) ? NULL : d->residual.data;

    return sd_product_run(cx, &p);
}
