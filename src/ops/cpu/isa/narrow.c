/*
 * 3x3 convolution to few outputs, such as a picture's red, green and blue: in a
 * panel they would leave most lanes empty.  So lanes are input channels, and an
 * output is a sum over lanes at the end.
 *
 * Floor: FMA units: 9 c / 16 operations an output, and a third as much again
 * for the sum over lanes where c is 32.  Reached: half of the FMA peak with
 * four outputs, a third with three at 512x512x128 (memory), of what is
 * computed: no lane is empty.
 */

#include "isa.h"


#define SD_ROWS  4              /* of the picture, a task */


typedef struct {
    const float   *x[2];
    int            c[2];
    int            channels, outputs;
    int            n, h, w;
    const float   *weight;      /* [outputs][9][channels] */
    const float   *bias;
    float         *y;
    const float   *residual;
} sd_narrow_t;


static void sd_narrow_task(void *data, int task, char *scratch);


/* outputs and pixels are constants */

sd_inline void
sd_narrow_pixels(const sd_narrow_t *p, const float *zeros, int n, int y, int x,
    const int outputs, const int pixels)
{
    int           c, i, j, s, tap, iy, ix, lanes;
    v16           v, sums[SD_NARROW][SD_NARROW_PIXELS];
    float         sum;
    size_t        at;
    const float  *w, *src[SD_NARROW_PIXELS];

#pragma GCC unroll 4
    for (j = 0; j < outputs; j++) {
#pragma GCC unroll 4
        for (i = 0; i < pixels; i++) {
            sums[j][i] = v_set(0);
        }
    }

    for (tap = 0; tap < 9; tap++) {
        w = p->weight + tap * p->channels;

        for (s = 0; s < 2; s++) {
            iy = y + tap / 3 - 1;

            for (i = 0; i < pixels; i++) {
                ix = x + i + tap % 3 - 1;

                src[i] = iy < 0 || iy >= p->h || ix < 0 || ix >= p->w ? zeros
                         : p->x[s]
                           + (((size_t) n * p->h + iy) * p->w + ix) * p->c[s];
            }

            for (c = 0; c < p->c[s]; c += SD_LANES) {
                lanes = p->c[s] - c;

#pragma GCC unroll 4
                for (i = 0; i < pixels; i++) {
                    v = v_loadx(src[i] + c, lanes);

#pragma GCC unroll 4
                    for (j = 0; j < outputs; j++) {
                        sums[j][i] = v_fma(v, v_load(w + c + (size_t) j * 9
                                                     * p->channels),
                                           sums[j][i]);
                    }
                }
            }

            w += p->c[s];
        }
    }

    at = (((size_t) n * p->h + y) * p->w + x) * outputs;

#pragma GCC unroll 4
    for (i = 0; i < pixels; i++) {
#pragma GCC unroll 4
        for (j = 0; j < outputs; j++) {
            sum = v_sum(sums[j][i]) + p->bias[j];

            if (p->residual != NULL) {
                sum += p->residual[at];
            }

            p->y[at++] = sum;
        }
    }
}


static void
sd_narrow_task(void *data, int task, char *scratch)
{
    int           i, x, most;
    float        *zeros = (float *) scratch;
    sd_narrow_t  *p = data;

    most = sd_max(p->c[0], p->c[1]);
    memset(zeros, 0, most * sizeof(float));

    for (i = task * SD_ROWS; i < sd_min((task + 1) * SD_ROWS, p->n * p->h);
         i++)
    {
        for (x = 0; x < p->w; /* void */ ) {

#define sd_outputs(k)                                                         \
            case k:                                                           \
                if (x + SD_NARROW_PIXELS <= p->w) {                           \
                    sd_narrow_pixels(p, zeros, i / p->h, i % p->h, x, k,      \
                                     SD_NARROW_PIXELS);                       \
                    x += SD_NARROW_PIXELS;                                    \
                                                                              \
                } else {                                                      \
                    sd_narrow_pixels(p, zeros, i / p->h, i % p->h, x, k, 1);  \
                    x++;                                                      \
                }                                                             \
                break;

            switch (p->outputs) {
            sd_outputs(1)
            sd_outputs(2)
            sd_outputs(3)
            sd_outputs(4)
            }
        }
    }
}


int
sd_isa(sd_narrow)(sd_context_t *cx, sd_tensor_t y, const sd_conv2d_t *d)
{
    sd_narrow_t  p;
    sd_packed_t  packed;

    if (cx->plan) {
        return SD_OK;
    }

    memset(&p, 0, sizeof(sd_narrow_t));
    sd_cpu_packed(cx->device, d->w, &packed);

    p.x[0] = d->x.data;
    p.c[0] = d->x.c;

    if (!sd_empty(&d->x2)) {
        p.x[1] = d->x2.data;
        p.c[1] = d->x2.c;
    }

    p.channels = d->w->c;
    p.outputs = y.c;
    p.n = y.n;
    p.h = y.h;
    p.w = y.w;
    p.bias = (float *) d->w->data + packed.bias;
    p.weight = (float *) d->w->data + packed.matrix;
    p.y = y.data;
    p.residual = sd_empty(&d->residual) ? NULL : d->residual.data;

    return sd_pool_run(cx, sd_narrow_task, &p,
                       (p.n * p.h + SD_ROWS - 1) / SD_ROWS);
}
