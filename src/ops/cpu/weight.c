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
 */

#include <stdlib.h>
#include <string.h>

#include "cpu.h"


static int sd_output(const sd_weight_t *w, int column);


void
sd_cpu_packed(const sd_weight_t *w, sd_packed_t *p)
{
    int  half = SD_PANEL / 2;

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

    p->matrix = sd_align(p->columns, SD_PANEL);
    p->size = p->matrix + p->rows * p->columns;
}


size_t
sd_cpu_weight_size(sd_device_t *dev, const sd_weight_t *w)
{
    sd_packed_t  p;

    sd_cpu_packed(w, &p);

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
    int          c, i, k, tap, panel, columns;
    float       *dst, *out;
    sd_packed_t  p;

    sd_cpu_packed(w, &p);
    out = w->data;

    if (w->kind == SD_WEIGHT_NORM) {
        for (i = 0; i < p.columns; i++) {
            out[i] = i < w->k && bias != NULL ? bias[i] : 0;
            out[p.columns + i] = i < w->k ? data[i] : 0;
        }

        return SD_OK;
    }

    if (w->kind == SD_WEIGHT_TABLE) {
        memcpy(out, data, p.size * sizeof(float));
        return SD_OK;
    }

    for (i = 0; i < (int) p.matrix; i++) {
        k = i < p.columns ? sd_output(w, i) : -1;
        out[i] = k >= 0 && bias != NULL ? bias[k] : 0;
    }

    dst = out + p.matrix;

    for (panel = 0; panel < p.panels; panel++) {
        columns = sd_min(SD_PANEL, p.columns - panel * SD_PANEL);

        for (i = 0; i < columns; i++) {
            k = sd_output(w, panel * SD_PANEL + i);

            for (tap = 0; tap < p.taps; tap++) {
                for (c = 0; c < w->c; c++) {
                    dst[((size_t) tap * w->c + c) * columns + i] = k < 0 ? 0
                        : data[((size_t) k * w->c + c) * p.taps + tap];
                }
            }
        }

        dst += p.rows * columns;
    }

    return SD_OK;
}
