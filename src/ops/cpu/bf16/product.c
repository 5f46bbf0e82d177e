/*
 * bf16 linear and direct convolution: as isa/product.c, but that x is rounded
 * and padded first, by tasks of their own.
 *
 * 3x3: 1900 to 2300 GFLOP/s on two threads, whose fp32 FMA peak is 410; linear
 * 1000 (k of 320: memory) to 1900.
 */

#include "bf16_isa.h"


static void sd_bf16_gather(const sd_bf16_product_t *p, sd_bf16_t *dst, int row,
    int rows, int tap, int c0, int c);
static void sd_bf16_end(const sd_bf16_product_t *p, const float *sums,
    size_t ld, int row, int rows, int panel);


void
sd_bf16_round(void *data, int task, char *scratch)
{
    int                 i, s, c, last;
    size_t              at;
    sd_bf16_t          *dst;
    const float        *src;
    sd_bf16_product_t  *p = data;

    last = sd_min((task + 1) * SD_BF16_CHUNK, p->in);

    for (i = task * SD_BF16_CHUNK; i < last; i++) {
        dst = p->x + i * p->ld;
        at = 0;

        for (s = 0; s < 2; s++) {
            src = p->src[s] + (size_t) i * p->c[s];

            for (c = 0; c + SD_LANES <= p->c[s]; c += SD_LANES) {
                v_store_bf16(dst + at + c, v_load(src + c));
            }

            for ( /* void */ ; c < p->c[s]; c++) {
                dst[at + c] = sd_bf16(src[c]);
            }

            at += p->c[s];
        }

        memset(dst + at, 0, (p->ld - at) * sizeof(sd_bf16_t));
    }

    /* what the last rows are padded with */

    if (last == p->in) {
        memset(p->x + p->in * p->ld, 0, (sd_align(p->in, SD_PANEL) - p->in)
                                        * p->ld * sizeof(sd_bf16_t));
    }
}


static void
sd_bf16_gather(const sd_bf16_product_t *p, sd_bf16_t *dst, int row, int rows,
    int tap, int c0, int c)
{
    int     i, n, x, y, iy, ix, pad;
    size_t  at;

    pad = p->r / 2;

    n = row / (p->oh * p->ow);
    y = row / p->ow % p->oh;
    x = row % p->ow;

    for (i = 0; i < rows; i++) {
        iy = y * p->stride + tap / p->r - pad;
        ix = x * p->stride + tap % p->r - pad;

        if (iy < 0 || iy >= p->h || ix < 0 || ix >= p->w) {
            memset(dst, 0, c * sizeof(sd_bf16_t));

        } else {
            at = ((size_t) n * p->sh + (iy >> p->up)) * p->sw + (ix >> p->up);
            memcpy(dst, p->x + at * p->ld + c0, c * sizeof(sd_bf16_t));
        }

        dst += c + SD_BF16_SKEW;

        if (++x == p->ow) {
            x = 0;

            if (++y == p->oh) {
                y = 0;
                n++;
            }
        }
    }

    memset(dst, 0, (sd_align(rows, SD_PANEL) - rows) * (c + SD_BF16_SKEW)
                   * sizeof(sd_bf16_t));
}


static void
sd_bf16_end(const sd_bf16_product_t *p, const float *sums, size_t ld, int row,
    int rows, int panel)
{
    int           i, j, n, first, width;
    v16           v, gate;
    size_t        at;
    const float  *bias;

    bias = p->bias + panel * SD_PANEL;

    width = p->act == SD_ACT_GEGLU ? SD_PANEL / 2 : SD_PANEL;
    first = panel * width;

    for (i = 0; i < rows; i++, sums += ld) {
        at = (size_t) (row + i) * p->outputs + first;

        for (j = 0; j < width; j += SD_LANES) {
            n = p->outputs - first - j;
            if (n <= 0) {
                break;
            }

            v = v_add(v_load(sums + j), v_load(bias + j));

            switch (p->act) {

            case SD_ACT_GEGLU:
                gate = v_add(v_load(sums + SD_LANES), v_load(bias + SD_LANES));
                v = v_mul(v, v_gelu(gate));
                break;

            case SD_ACT_SILU:
                v = v_swish(v, 1.0f);
                break;

            case SD_ACT_GELU:
                v = v_gelu(v);
                break;

            case SD_ACT_QUICK_GELU:
                v = v_swish(v, 1.702f);
                break;

            case SD_ACT_GELU_TANH:
                v = v_gelu_tanh(v);
                break;

            default:
                break;
            }

            if (p->residual != NULL) {
                v = v_add(v, v_loadx(p->residual + at + j, n));
            }

            v_storex(p->y + at + j, v, n);
        }
    }
}


void
sd_bf16_product(void *data, int task, char *scratch)
{
    int                 row, rows, padded, tap, c0, c, add, panel, first, last;
    float              *sums;
    size_t              ld, lda, depth, at;
    sd_bf16_t          *gathered;
    const sd_bf16_t    *a, *b, *ahead;
    sd_bf16_product_t  *p = data;

    /* tasks that run together share panels */

    row = task % p->blocks * p->block;
    rows = sd_min(p->block, p->rows - row);
    padded = sd_align(rows, SD_PANEL);

    first = task / p->blocks * p->panels / p->groups;
    last = (task / p->blocks + 1) * p->panels / p->groups;

    sums = (float *) scratch;
    ld = (last - first) * SD_PANEL + SD_LANES;
    gathered = (sd_bf16_t *) (sums + SD_BF16_ROWS
                                     * (SD_BF16_GROUP * SD_PANEL + SD_LANES));

    depth = (size_t) p->taps * p->channels;
    at = 0;
    add = 0;

    sd_bf16_enter(p->amx);

    for (tap = 0; tap < p->taps; tap++) {
        for (c0 = 0; c0 < p->channels; c0 += c) {
            c = sd_min(p->channels - c0, SD_BF16_STEP);

            if (p->gather) {
                sd_bf16_gather(p, gathered, row, rows, tap, c0, c);
                a = gathered;
                lda = c + SD_BF16_SKEW;

            } else {
                a = p->x + row * p->ld + c0;
                lda = p->ld;
            }

            for (panel = first; panel < last; panel++) {
                b = p->matrix + (panel * depth + at) * SD_PANEL;
                ahead = panel + 1 < last ? b + depth * SD_PANEL
                        : b - (panel - first) * depth * SD_PANEL + c * SD_PANEL;

                sd_bf16_gemm(p->amx, sums + (panel - first) * SD_PANEL, ld, a,
                             lda, b, padded, c, add, ahead);
            }

            at += c;
            add = 1;
        }
    }

    sd_bf16_leave(p->amx);

    for (panel = first; panel < last; panel++) {
        sd_bf16_end(p, sums + (panel - first) * SD_PANEL, ld, row, rows,
                    panel);
    }
}
