/*
 * Weights as the cpu backend's matrix products read them.
 *
 * The matrix [k, taps * c] is cut into panels of SD_PANEL outputs.  A panel is
 * stored row after row as a product walks it: for tap, for input channel, the
 * panel's outputs.  The last panel is half as wide where that is enough; what
 * is missing in it is zero.  In a geglu weight a panel is half values and half
 * the gates that belong to them.
 *
 *     bias [columns] | panel 0 [taps][c][32] | panel 1 | ... | [taps][c][16]
 *
 * A 3x3 convolution of stride 1 is packed for Winograd's algorithm, transformed
 * in double precision, where that pays at the model's own size: not where
 * channels are few.  4x4 outputs at a time, or 2x2 where pictures are so small
 * that filters four times as big take longer to read than the products to
 * compute; these are 1.8 times as big.  See isa/winograd.c for the points.
 *
 *     bias [columns] | position 0: panel 0 [c][32] | panel 1 ... | position 1
 *
 * One with very few outputs lies as it came, but for the order: see
 * isa/narrow.c.
 *
 *     bias [columns] | [k][taps][c] | 16 zeros
 *
 * Panels are packed by tasks of the pool, each of which reads its own outputs:
 * a model of SD 1.5's size has 860 million weights, most of them transformed.
 */

#include <stdlib.h>
#include <string.h>

#include "bf16.h"


#define SD_WINOGRAD_PIXELS    64        /* more than that: 4x4 outputs */
#define SD_WINOGRAD_FEW       32        /* more than that: 2x2 */
#define SD_WINOGRAD_BF16      1000      /* more than that: see isa/winograd.c */
#define SD_WINOGRAD_CHANNELS  32        /* at least */
#define SD_WINOGRAD_MOST      16384     /* c + k, as scratch holds some tiles */


/* G, for the points 0, 1, -1, 1/2, -2, infinity; 0, 1, -1, 2, -2; 0, 1, -1 */

const double  sd_winograd_g[3][6][3] = {
    {
        { 1, 0, 0 },
        { 1 / 3.0, 1 / 3.0, 1 / 3.0 },
        { -1 / 3.0, 1 / 3.0, -1 / 3.0 },
        { -16 / 15.0, -8 / 15.0, -4 / 15.0 },
        { 1 / 15.0, -2 / 15.0, 4 / 15.0 },
        { 0, 0, 1 }
    },
    {
        { 1 / 4.0, 0, 0 },
        { -1 / 6.0, -1 / 6.0, -1 / 6.0 },
        { -1 / 6.0, 1 / 6.0, -1 / 6.0 },
        { 1 / 24.0, 2 / 24.0, 4 / 24.0 },
        { 1 / 24.0, -2 / 24.0, 4 / 24.0 },
        { 0, 0, 1 }
    },
    {
        { 1, 0, 0 },
        { 1 / 2.0, 1 / 2.0, 1 / 2.0 },
        { 1 / 2.0, -1 / 2.0, 1 / 2.0 },
        { 0, 0, 1 }
    }
};


typedef struct {
    const sd_weight_t  *w;
    const float        *data;
    sd_packed_t         packed;
} sd_pack_t;


static int sd_output(const sd_weight_t *w, int column);
static void sd_narrow_pack(const sd_weight_t *w, const sd_packed_t *p,
    const float *data);
static void sd_panel_pack(void *data, int task, char *scratch);
static void sd_winograd_pack(void *data, int task, char *scratch);
static void sd_bf16_pack(void *data, int task, char *scratch);


void
sd_cpu_packed(const sd_device_t *dev, const sd_weight_t *w, sd_packed_t *p)
{
    int  winograd, half = SD_PANEL / 2;

    memset(p, 0, sizeof(sd_packed_t));

    if (w->kind == SD_WEIGHT_NORM) {
        p->columns = sd_align(w->k, SD_PANEL);
        p->matrix = p->columns;
        p->size = 2 * (size_t) p->columns;
        return;
    }

    if (w->kind == SD_WEIGHT_TABLE) {
        p->size = (size_t) w->k * w->c;
        return;
    }

    p->taps = w->kind == SD_WEIGHT_CONV ? w->r * w->r : 1;
    p->rows = (size_t) p->taps * w->c;

    p->columns = w->geglu ? 2 * sd_align(w->k / 2, half) : sd_align(w->k, half);
    p->panels = (p->columns + SD_PANEL - 1) / SD_PANEL;

    winograd = w->kind == SD_WEIGHT_CONV && w->r == 3 && w->stride == 1
               && w->hint > SD_WINOGRAD_FEW
               && w->c >= SD_WINOGRAD_CHANNELS && w->k >= SD_WINOGRAD_CHANNELS
               && w->c + w->k <= SD_WINOGRAD_MOST;

    if (w->kind == SD_WEIGHT_CONV && w->r == 3 && w->stride == 1
        && !w->upsample && w->k <= SD_NARROW && w->c >= SD_PANEL / 2)
    {
        p->narrow = 1;
        p->matrix = sd_align(p->columns, SD_PANEL);
        p->size = p->matrix + p->rows * w->k + SD_PANEL / 2;
        return;
    }

    if (dev->precision == SD_PRECISION_BF16) {
        p->bf16 = 1;
        p->columns = p->panels * SD_PANEL;
        p->rows = (size_t) p->taps * sd_align(w->c, SD_BF16_K);
        p->matrix = p->columns;
        p->size = p->matrix + p->rows * p->columns / 2;
        p->winograd = winograd && w->hint > SD_WINOGRAD_BF16 ? 6 : 0;
        return;
    }

    p->matrix = sd_align(p->columns, SD_PANEL);

    if (winograd) {
        p->winograd = w->hint > SD_WINOGRAD_PIXELS ? 6 : 4;
        p->rows = p->winograd * p->winograd * (size_t) w->c;
    }

    p->size = p->matrix + p->rows * p->columns;
}


size_t
sd_cpu_weight_size(sd_device_t *dev, const sd_weight_t *w)
{
    sd_packed_t  p;

    sd_cpu_packed(dev, w, &p);

    return p.size * sizeof(float);
}


/* which output of the model's matrix is at this column; -1: none */

static int
sd_output(const sd_weight_t *w, int column)
{
    int  i, half = SD_PANEL / 2;

    if (!w->geglu) {
        return column < w->k ? column : -1;
    }

    i = column / SD_PANEL * half + column % half;

    if (i >= w->k / 2) {
        return -1;
    }

    return column % SD_PANEL < half ? i : w->k / 2 + i;
}


int
sd_cpu_weight_pack(sd_device_t *dev, sd_weight_t *w, const float *data,
    const float *bias, sd_error_t *err)
{
    int            i, k;
    float         *out;
    sd_pack_t      pack;
    sd_task_pt     task;
    sd_packed_t   *p;
    sd_context_t   cx;

    pack.w = w;
    pack.data = data;
    p = &pack.packed;

    sd_cpu_packed(dev, w, p);
    out = w->data;

    if (w->kind == SD_WEIGHT_NORM) {
        for (i = 0; i < p->columns; i++) {
            out[i] = i < w->k && bias != NULL ? bias[i] : 0;
            out[p->columns + i] = i < w->k ? data[i] : 0;
        }

        return SD_OK;
    }

    if (w->kind == SD_WEIGHT_TABLE) {
        memcpy(out, data, p->size * sizeof(float));
        return SD_OK;
    }

    for (i = 0; i < (int) p->matrix; i++) {
        k = i < p->columns ? sd_output(w, i) : -1;
        out[i] = k >= 0 && bias != NULL ? bias[k] : 0;
    }

    if (p->narrow) {
        sd_narrow_pack(w, p, data);
        return SD_OK;
    }

    task = p->bf16 ? sd_bf16_pack
                   : p->winograd ? sd_winograd_pack : sd_panel_pack;

    /* of a context the pool wants the device only; nobody cancels */

    memset(&cx, 0, sizeof(sd_context_t));
    cx.device = dev;
    cx.err = err;

    return sd_pool_run(&cx, task, &pack, p->panels);
}


/* lanes are channels here, so no panels; zeros are there already */

static void
sd_narrow_pack(const sd_weight_t *w, const sd_packed_t *p, const float *data)
{
    int     c, k, tap;
    float  *dst;

    dst = (float *) w->data + p->matrix;

    for (k = 0; k < w->k; k++) {
        for (c = 0; c < w->c; c++) {
            for (tap = 0; tap < p->taps; tap++) {
                dst[tap * w->c + c] = *data++;
            }
        }

        dst += p->rows;
    }
}


static void
sd_panel_pack(void *data, int task, char *scratch)
{
    int                 c, i, k, tap, columns;
    float              *dst;
    size_t              n;
    const float        *src[SD_PANEL];
    sd_pack_t          *pack = data;
    const sd_weight_t  *w = pack->w;
    const sd_packed_t  *p = &pack->packed;

    columns = sd_min(SD_PANEL, p->columns - task * SD_PANEL);
    n = (size_t) w->c * p->taps;

    dst = (float *) w->data + p->matrix + p->rows * task * SD_PANEL;

    for (i = 0; i < columns; i++) {
        k = sd_output(w, task * SD_PANEL + i);
        src[i] = k < 0 ? NULL : pack->data + k * n;
    }

    for (c = 0; c < w->c; c++) {
        for (tap = 0; tap < p->taps; tap++) {
            for (i = 0; i < columns; i++) {
                dst[((size_t) tap * w->c + c) * columns + i] =
                    src[i] == NULL ? 0 : src[i][(size_t) c * p->taps + tap];
            }
        }
    }
}


/* G g G^T of SD_PANEL / 2 filters at a time, side by side */

static void
sd_winograd_pack(void *data, int task, char *scratch)
{
    int                 c, i, j, l, k, column, columns, edge;
    float              *dst;
    double              g[9][SD_PANEL / 2], t[18][SD_PANEL / 2], s;
    sd_pack_t          *pack = data;
    const sd_weight_t  *w = pack->w;
    const sd_packed_t  *p = &pack->packed;
    const double      (*m)[3];

    columns = sd_min(SD_PANEL, p->columns - task * SD_PANEL);
    edge = p->winograd;
    m = sd_winograd_g[edge == 4 ? 2 : w->upsample];

    for (column = task * SD_PANEL; column < task * SD_PANEL + columns;
         column += SD_PANEL / 2)
    {
        for (c = 0; c < w->c; c++) {

            for (l = 0; l < SD_PANEL / 2; l++) {
                k = column + l;

                for (i = 0; i < 9; i++) {
                    g[i][l] = k >= w->k ? 0
                              : pack->data[((size_t) k * w->c + c) * 9 + i];
                }
            }

            for (i = 0; i < edge; i++) {
                for (j = 0; j < 3; j++) {
                    for (l = 0; l < SD_PANEL / 2; l++) {
                        t[i * 3 + j][l] = m[i][0] * g[j][l]
                                          + m[i][1] * g[3 + j][l]
                                          + m[i][2] * g[6 + j][l];
                    }
                }
            }

            /* position, panel, channel, column in the panel */

            dst = (float *) w->data + p->matrix
                  + (size_t) task * SD_PANEL * w->c
                  + (size_t) c * columns + column % SD_PANEL;

            for (i = 0; i < edge * edge; i++) {
                for (l = 0; l < SD_PANEL / 2; l++) {
                    s = t[i / edge * 3][l] * m[i % edge][0]
                        + t[i / edge * 3 + 1][l] * m[i % edge][1]
                        + t[i / edge * 3 + 2][l] * m[i % edge][2];

                    dst[l] = (float) s;
                }

                dst += (size_t) p->columns * w->c;
            }
        }
    }
}


/* the kernel's memory comes zeroed: what is padding stays as it is */

static void
sd_bf16_pack(void *data, int task, char *scratch)
{
    int                 c, i, k, tap;
    size_t              depth, at;
    sd_bf16_t          *panel;
    const float        *src[SD_PANEL];
    sd_pack_t          *pack = data;
    const sd_weight_t  *w = pack->w;
    const sd_packed_t  *p = &pack->packed;

    depth = sd_align(w->c, SD_BF16_K);

    panel = (sd_bf16_t *) ((float *) w->data + p->matrix)
            + p->rows * task * SD_PANEL;

    for (i = 0; i < SD_PANEL; i++) {
        k = sd_output(w, task * SD_PANEL + i);
        src[i] = k < 0 ? NULL : pack->data + (size_t) k * w->c * p->taps;
    }

    for (c = 0; c < w->c; c++) {
        for (tap = 0; tap < p->taps; tap++) {
            at = sd_bf16_at(tap * depth + c, 0);

            for (i = 0; i < SD_PANEL; i++) {
                if (src[i] != NULL) {
                    panel[at + sd_bf16_at(0, i)] =
                        sd_bf16(src[i][(size_t) c * p->taps + tap]);
                }
            }
        }
    }
}
