/*
 * bf16 linear and direct convolution: as isa/product.c, but that x is rounded
 * and padded first, by tasks of their own.
 *
 * 3x3: 1900 to 2300 GFLOP/s on two threads, whose fp32 FMA peak is 410; linear
 * 1000 (k of 320: memory) to 1900.
 */

#include "../finish.h"
#include "bf16_isa.h"


static void sd_bf16_gather(const sd_bf16_product_t *p, sd_bf16_t *dst, int row,
    int rows, int tap, int c0, int c);


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
    int               i, j, n, x, y, iy, ix, pad;
    size_t            at;
    const sd_bf16_t  *src;

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
            src = p->x + at * p->ld + c0;

            /* memcpy() would take longer to begin than to copy */

            for (j = 0; j < c; j += SD_BF16_K) {
                _mm512_storeu_si512(dst + j, _mm512_loadu_si512(src + j));
            }
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

    at = (size_t) row * p->outputs;

    sd_finish(p->y + at, p->residual == NULL ? NULL : p->residual + at, sums,
              ld, p->bias, rows, p->outputs, first, last, p->act);
}
