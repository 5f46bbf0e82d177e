/*
 * Rows of the operations' test table, their data and what ought to come out:
 * each operation as naively as it can be said, in double precision.
 */

#ifndef OPS_REFERENCE_H
#define OPS_REFERENCE_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../src/ops/ops.h"


typedef enum {
    CONV, NORM, LINEAR, LAYER, ATTEND
} kind_t;

typedef struct {
    kind_t  kind;
    int     n, h, w, c, c2, k;      /* linear, layer: n * h * w rows */
    int     r, stride, up, odd;     /* conv; odd: h' = 2 h - 1, so w' */
    int     hint;
    int     residual, inplace, bias;
    int     groups, silu, addend;
    int     act;
    int     heads, d, lk, causal, rows, fused;
} row_t;


/* [-1, 1), always the same for a seed */

static float *
randoms(size_t n, unsigned seed)
{
    float     *p;
    size_t     i;
    uint64_t   s = seed * 0x9e3779b97f4a7c15 + 1;

    p = malloc((n + 1) * sizeof(float));

    for (i = 0; i < n; i++) {
        s = s * 6364136223846793005 + 1442695040888963407;
        p[i] = (float) ((int32_t) (s >> 32) * 0x1p-31);
    }

    return p;
}


static double
silu(double x)
{
    return x / (1 + exp(-x));
}


static double
gelu(double x)
{
    return 0.5 * x * (1 + erf(x * 0.70710678118654752440));
}


static double
activate(double x, int act)
{
    switch (act) {

    case SD_ACT_SILU:
        return silu(x);

    case SD_ACT_GELU:
        return gelu(x);

    case SD_ACT_QUICK_GELU:
        return x / (1 + exp(-1.702 * x));

    case SD_ACT_GELU_TANH:
        return 0.5 * x * (1 + tanh(0.79788456080286535588
                                   * (x + 0.044715 * x * x * x)));

    default:
        return x;
    }
}


static void
conv_shape(const row_t *t, int *h, int *w)
{
    if (t->up) {
        *h = 2 * t->h - t->odd;
        *w = 2 * t->w - t->odd;

    } else {
        *h = (t->h - 1) / t->stride + 1;
        *w = (t->w - 1) / t->stride + 1;
    }
}


/* host data of a row; which is what depends on the operation */

typedef struct {
    float   *x, *x2, *w, *bias, *residual, *addend;
    size_t   count;                 /* of the output */
} data_t;


static void
data_make(data_t *d, const row_t *t)
{
    int     h, w, k;
    size_t  x;

    memset(d, 0, sizeof(data_t));

    x = (size_t) t->n * t->h * t->w;

    switch (t->kind) {

    case CONV:
        conv_shape(t, &h, &w);
        d->count = (size_t) t->n * h * w * t->k;
        d->x = randoms(x * t->c, 1);
        d->x2 = randoms(x * t->c2, 2);
        d->w = randoms((size_t) t->k * (t->c + t->c2) * t->r * t->r, 3);
        break;

    case LINEAR:
        k = t->act == SD_ACT_GEGLU ? t->k / 2 : t->k;
        d->count = x * k;
        d->x = randoms(x * t->c, 1);
        d->w = randoms((size_t) t->k * t->c, 3);
        break;

    case NORM:
    case LAYER:
        d->count = x * (t->c + t->c2);
        d->x = randoms(x * t->c, 1);
        d->x2 = randoms(x * t->c2, 2);
        d->w = randoms(t->c + t->c2, 3);
        d->addend = randoms((size_t) (t->n + 1) * (t->c + t->c2 + 5), 6);
        break;

    case ATTEND:
        d->count = (size_t) t->n * t->w * t->heads * t->d;
        d->x = randoms(d->count, 1);
        d->x2 = randoms((size_t) (t->rows ? t->rows : t->n) * t->lk * t->heads
                        * t->d, 2);
        d->w = randoms((size_t) (t->rows ? t->rows : t->n) * t->lk * t->heads
                       * t->d, 3);
        break;
    }

    d->bias = randoms(t->k + t->c + t->c2, 4);
    d->residual = randoms(d->count, 5);
}


static void
data_free(data_t *d)
{
    free(d->x);
    free(d->x2);
    free(d->w);
    free(d->bias);
    free(d->residual);
    free(d->addend);
}


/* references */

static void
conv_reference(const row_t *t, const data_t *d, double *out)
{
    int     n, y, x, k, i, j, c, iy, ix, h, w, sh, sw, ctotal;
    double  s, v;

    conv_shape(t, &h, &w);
    ctotal = t->c + t->c2;
    sh = t->up ? h : t->h;
    sw = t->up ? w : t->w;

    for (n = 0; n < t->n; n++) {
        for (y = 0; y < h; y++) {
            for (x = 0; x < w; x++) {
                for (k = 0; k < t->k; k++) {
                    s = t->bias ? d->bias[k] : 0;

                    for (i = 0; i < t->r; i++) {
                        for (j = 0; j < t->r; j++) {
                            iy = y * t->stride + i - t->r / 2;
                            ix = x * t->stride + j - t->r / 2;

                            if (iy < 0 || iy >= sh || ix < 0 || ix >= sw) {
                                continue;
                            }

                            iy >>= t->up;
                            ix >>= t->up;

                            for (c = 0; c < ctotal; c++) {
                                v = c < t->c
                                    ? d->x[((n * t->h + iy) * t->w + ix) * t->c
                                           + c]
                                    : d->x2[((n * t->h + iy) * t->w + ix)
                                            * t->c2 + c - t->c];
                                s += v * d->w[((k * ctotal + c) * t->r + i)
                                              * t->r + j];
                            }
                        }
                    }

                    if (t->residual) {
                        s += d->residual[((n * h + y) * w + x) * t->k + k];
                    }

                    *out++ = s;
                }
            }
        }
    }
}


static void
linear_reference(const row_t *t, const data_t *d, double *out)
{
    int     i, j, c, k, outs, half;
    double  s[2];

    outs = t->act == SD_ACT_GEGLU ? t->k / 2 : t->k;

    for (i = 0; i < t->n * t->h * t->w; i++) {
        for (j = 0; j < outs; j++) {
            for (half = 0; half < 2; half++) {
                k = j + half * outs;
                s[half] = 0;

                if (k >= t->k) {
                    continue;
                }

                for (c = 0; c < t->c; c++) {
                    s[half] += (double) d->x[i * t->c + c] * d->w[k * t->c + c];
                }

                s[half] += t->bias ? d->bias[k] : 0;
            }

            *out = t->act == SD_ACT_GEGLU ? s[0] * gelu(s[1])
                                          : activate(s[0], t->act);
            *out += t->residual ? d->residual[i * outs + j] : 0;
            out++;
        }
    }
}


static void
norm_reference(const row_t *t, const data_t *d, double *out)
{
    int     n, g, p, c, cpg, ctotal, pixels, pass;
    double  v, mean, var;

    ctotal = t->c + t->c2;
    pixels = t->h * t->w;
    cpg = ctotal / t->groups;

    for (n = 0; n < t->n; n++) {
        for (g = 0; g < t->groups; g++) {
            mean = 0;
            var = 0;

            for (pass = 0; pass < 3; pass++) {
                for (p = 0; p < pixels; p++) {
                    for (c = g * cpg; c < (g + 1) * cpg; c++) {
                        v = c < t->c ? d->x[(n * pixels + p) * t->c + c]
                            : d->x2[(n * pixels + p) * t->c2 + c - t->c];

                        /* sample n reads row n + 1, from column 3 */
                        v += t->addend ? d->addend[(n + 1) * (ctotal + 5) + 3
                                                   + c] : 0;

                        if (pass == 0) {
                            mean += v / ((double) pixels * cpg);

                        } else if (pass == 1) {
                            var += (v - mean) * (v - mean)
                                   / ((double) pixels * cpg);

                        } else {
                            v = (v - mean) / sqrt(var + 1e-5) * d->w[c]
                                + d->bias[c];
                            out[(n * pixels + p) * ctotal + c] =
                                t->silu ? silu(v) : v;
                        }
                    }
                }
            }
        }
    }
}


static void
layer_reference(const row_t *t, const data_t *d, double *out)
{
    int     i, c;
    double  mean, var, v;

    for (i = 0; i < t->n * t->h * t->w; i++) {
        mean = 0;
        var = 0;

        for (c = 0; c < t->c; c++) {
            mean += d->x[i * t->c + c] / (double) t->c;
        }

        for (c = 0; c < t->c; c++) {
            v = d->x[i * t->c + c] - mean;
            var += v * v / t->c;
        }

        for (c = 0; c < t->c; c++) {
            out[i * t->c + c] = (d->x[i * t->c + c] - mean) / sqrt(var + 1e-5)
                                * d->w[c] + d->bias[c];
        }
    }
}


static int
attend_row(const row_t *t, int n)
{
    return t->rows ? (2 * n + 1) % t->rows : n;
}


static void
attend_reference(const row_t *t, const data_t *d, double *out)
{
    int           n, h, i, j, c, ld, last;
    double       *p, sum, max;
    const float  *q, *k, *v;

    ld = t->heads * t->d;
    p = malloc(t->lk * sizeof(double));

    for (n = 0; n < t->n; n++) {
        for (h = 0; h < t->heads; h++) {
            k = d->x2 + attend_row(t, n) * t->lk * ld + h * t->d;
            v = d->w + attend_row(t, n) * t->lk * ld + h * t->d;

            for (i = 0; i < t->w; i++) {
                q = d->x + (n * t->w + i) * ld + h * t->d;
                last = t->causal ? i + 1 : t->lk;
                max = -1e30;
                sum = 0;

                for (j = 0; j < last; j++) {
                    p[j] = 0;

                    for (c = 0; c < t->d; c++) {
                        p[j] += (double) q[c] * k[j * ld + c];
                    }

                    p[j] *= 3.0 / sqrt(t->d);
                    max = p[j] > max ? p[j] : max;
                }

                for (j = 0; j < last; j++) {
                    p[j] = exp(p[j] - max);
                    sum += p[j];
                }

                for (c = 0; c < t->d; c++) {
                    double  s = 0;

                    for (j = 0; j < last; j++) {
                        s += p[j] / sum * v[j * ld + c];
                    }

                    out[(n * t->w + i) * ld + h * t->d + c] = s;
                }
            }
        }
    }

    free(p);
}


static void
reference(const row_t *t, const data_t *d, double *out)
{
    switch (t->kind) {

    case CONV:
        conv_reference(t, d, out);
        break;

    case LINEAR:
        linear_reference(t, d, out);
        break;

    case NORM:
        norm_reference(t, d, out);
        break;

    case LAYER:
        layer_reference(t, d, out);
        break;

    case ATTEND:
        attend_reference(t, d, out);
        break;
    }
}


/* what to say about results */

static double
nmse(const float *got, const double *expected, size_t n)
{
    size_t  i;
    double  e, s;

    e = 0;
    s = 1e-30;

    for (i = 0; i < n; i++) {
        e += (got[i] - expected[i]) * (got[i] - expected[i]);
        s += expected[i] * expected[i];
    }

    return e / s;
}


static void
describe(char *text, size_t size, const row_t *t)
{
    static const char  *names[] = {
        "conv2d", "group_norm", "linear", "layer_norm", "attention"
    };

    if (t->kind == ATTEND) {
        snprintf(text, size, "attention n=%d lq=%d lk=%d %dx%d%s%s", t->n, t->w,
                 t->lk, t->heads, t->d, t->causal ? " causal" : "",
                 t->rows ? " tables" : "");
        return;
    }

    snprintf(text, size, "%s [%d, %d, %d, %d+%d] k=%d r=%d%s%s%s%s%s%s act=%d",
             names[t->kind], t->n, t->h, t->w, t->c, t->c2, t->k, t->r,
             t->stride == 2 ? " stride 2" : "", t->up ? " up" : "",
             t->odd ? " odd" : "", t->residual ? " residual" : "",
             t->inplace ? " in place" : "", t->addend ? " addend" : "", t->act);
}


#endif
