/*
 * The profile's functions have the backend's signatures: each calls the real
 * one between two readings of the clock.
 */

#define _GNU_SOURCE

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../ops/cpu/cpu.h"
#include "profile.h"


#define sd_elements(t)  ((double) (t).n * (t).h * (t).w * (t).c)


static void sd_profile_add(sd_profile_t *p, const char *op,
    const char *shape, double seconds, double flops, double bytes);


double
sd_now(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return ts.tv_sec + ts.tv_nsec * 1e-9;
}


static void
sd_profile_add(sd_profile_t *p, const char *op, const char *shape,
    double seconds, double flops, double bytes)
{
    size_t             i, n;
    sd_profile_row_t  *row;

    for (i = 0; i < p->nrows; i++) {
        row = &p->rows[i];

        if (strcmp(row->op, op) == 0 && strcmp(row->shape, shape) == 0) {
            break;
        }
    }

    if (i == p->nrows) {

        if (p->nrows == p->arows) {
            n = p->arows + 64;
            row = realloc(p->rows, n * sizeof(*row));

            if (row == NULL) {
                return;
            }

            p->rows = row;
            p->arows = n;
        }

        row = &p->rows[p->nrows++];
        memset(row, 0, sizeof(*row));
        row->op = op;
        snprintf(row->shape, sizeof(row->shape), "%s", shape);
    }

    row = &p->rows[i];
    row->calls++;
    row->seconds += seconds;
    row->flops += flops;
    row->bytes += bytes;
}


static sd_profile_t *
sd_profile(sd_context_t *cx)
{
    return (sd_profile_t *) cx->device->ops;
}


static int
sd_profile_conv2d(sd_context_t *cx, sd_tensor_t y, const sd_conv2d_t *d)
{
    int                 rc;
    char                shape[64];
    double              start, flops;
    sd_profile_t       *p;
    const sd_weight_t  *w;

    p = sd_profile(cx);
    w = d->w;

    start = sd_now();
    rc = p->real->conv2d(cx, y, d);
    start = sd_now() - start;

    snprintf(shape, sizeof(shape), "%d x %dx%d, %d to %d%s%s", y.n, y.h, y.w,
             w->c, w->k, w->stride == 2 ? ", stride 2" : "",
             w->upsample ? ", x2 before" : "");

    flops = 2 * sd_elements(y) * w->c * w->r * w->r;

    if (!cx->plan) {
        sd_profile_add(p, w->r == 3 ? "conv 3x3" : "conv 1x1", shape, start,
                       flops, 4 * (sd_elements(y) + sd_elements(d->x)
                                   + sd_elements(d->x2)
                                   + sd_elements(d->residual)));
    }

    return rc;
}


static int
sd_profile_linear(sd_context_t *cx, sd_tensor_t y, const sd_linear_t *d)
{
    int            rc;
    char           shape[64];
    double         start;
    sd_profile_t  *p;

    p = sd_profile(cx);

    start = sd_now();
    rc = p->real->linear(cx, y, d);
    start = sd_now() - start;

    snprintf(shape, sizeof(shape), "%d rows, %d to %d%s",
             d->x.n * d->x.h * d->x.w, d->w->c, d->w->k,
             d->act == SD_ACT_GEGLU ? ", GEGLU" : "");

    if (!cx->plan) {
        sd_profile_add(p, "linear", shape, start,
                       2 * sd_elements(d->x) * d->w->k,
                       4 * (sd_elements(y) + sd_elements(d->x)
                            + sd_elements(d->residual)));
    }

    return rc;
}


static int
sd_profile_attention(sd_context_t *cx, sd_tensor_t o, const sd_attention_t *d)
{
    int            rc, lq, lk;
    char           shape[64];
    double         start;
    sd_profile_t  *p;

    p = sd_profile(cx);
    lq = d->q.h * d->q.w;
    lk = d->k.h * d->k.w;

    start = sd_now();
    rc = p->real->attention(cx, o, d);
    start = sd_now() - start;

    snprintf(shape, sizeof(shape), "%d x %d heads of %d, %d x %d%s", d->q.n,
             d->heads, d->q.c / d->heads, lq, lk,
             d->causal ? ", causal" : "");

    if (!cx->plan) {
        sd_profile_add(p, "attention", shape, start,
                       4 * sd_elements(d->q) * lk,
                       4 * (2 * sd_elements(o) + sd_elements(d->k)
                            + sd_elements(d->v)));
    }

    return rc;
}


static int
sd_profile_group_norm(sd_context_t *cx, sd_tensor_t y,
    const sd_group_norm_t *d)
{
    int            rc;
    char           shape[64];
    double         start;
    sd_profile_t  *p;

    p = sd_profile(cx);

    start = sd_now();
    rc = p->real->group_norm(cx, y, d);
    start = sd_now() - start;

    snprintf(shape, sizeof(shape), "%d x %dx%d, %d", y.n, y.h, y.w, y.c);

    if (!cx->plan) {
        sd_profile_add(p, "group norm", shape, start, 0, 8 * sd_elements(y));
    }

    return rc;
}


static int
sd_profile_layer_norm(sd_context_t *cx, sd_tensor_t y,
    const sd_layer_norm_t *d)
{
    int            rc;
    char           shape[64];
    double         start;
    sd_profile_t  *p;

    p = sd_profile(cx);

    start = sd_now();
    rc = p->real->layer_norm(cx, y, d);
    start = sd_now() - start;

    snprintf(shape, sizeof(shape), "%d rows of %d", y.n * y.h * y.w, y.c);

    if (!cx->plan) {
        sd_profile_add(p, "layer norm", shape, start, 0, 8 * sd_elements(y));
    }

    return rc;
}


void
sd_profile_begin(sd_profile_t *p, sd_device_t *dev)
{
    memset(p, 0, sizeof(*p));

    p->device = dev;
    p->real = dev->ops;
    p->ops = *dev->ops;
    p->ops.conv2d = sd_profile_conv2d;
    p->ops.linear = sd_profile_linear;
    p->ops.attention = sd_profile_attention;
    p->ops.group_norm = sd_profile_group_norm;
    p->ops.layer_norm = sd_profile_layer_norm;

    dev->ops = &p->ops;
}


void
sd_profile_end(sd_profile_t *p)
{
    p->device->ops = p->real;
    free(p->rows);
    memset(p, 0, sizeof(*p));
}


void
sd_profile_clear(sd_profile_t *p)
{
    p->nrows = 0;
}


double
sd_profile_seconds(const sd_profile_t *p)
{
    size_t  i;
    double  sum;

    sum = 0;

    for (i = 0; i < p->nrows; i++) {
        sum += p->rows[i].seconds;
    }

    return sum;
}


static int
sd_profile_longer(const void *one, const void *two)
{
    const sd_profile_row_t  *a, *b;

    a = one;
    b = two;

    return (a->seconds < b->seconds) - (a->seconds > b->seconds);
}


static void
sd_profile_print_row(FILE *out, const char *name, const sd_profile_row_t *row,
    double total, double peak)
{
    fprintf(out, "%-48s %5d %9.1f %6.1f", name, row->calls,
            row->seconds * 1000, 100 * row->seconds / total);

    if (row->flops == 0) {
        fprintf(out, " %9s %8.1f %7s\n", "-",
                row->bytes / row->seconds / 1e9, "-");
        return;
    }

    fprintf(out, " %9.1f %8.1f %6.0f%%\n", row->flops / row->seconds / 1e9,
            row->bytes / row->seconds / 1e9,
            100 * row->flops / row->seconds / peak);
}


void
sd_profile_print(sd_profile_t *p, FILE *out, size_t n, double peak)
{
    char               name[128];
    size_t             i, j;
    double             total;
    sd_profile_t       sums;
    sd_profile_row_t  *row, *sum;

    memset(&sums, 0, sizeof(sums));
    total = sd_profile_seconds(p);
    qsort(p->rows, p->nrows, sizeof(p->rows[0]), sd_profile_longer);

    for (i = 0; i < p->nrows; i++) {
        row = &p->rows[i];
        sd_profile_add(&sums, row->op, "", row->seconds, row->flops,
                       row->bytes);

        for (j = 0; j < sums.nrows; j++) {
            sum = &sums.rows[j];

            if (strcmp(sum->op, row->op) == 0) {
                sum->calls += row->calls - 1;
            }
        }
    }

    qsort(sums.rows, sums.nrows, sizeof(sums.rows[0]), sd_profile_longer);

    fprintf(out, "%-48s %5s %9s %6s %9s %8s %7s\n", "operation", "calls", "ms",
            "%", "GFLOP/s", "GB/s", "of peak");

    for (i = 0; i < sums.nrows; i++) {
        sd_profile_print_row(out, sums.rows[i].op, &sums.rows[i], total, peak);
    }

    fprintf(out, "\n");

    for (i = 0; i < p->nrows && i < n; i++) {
        row = &p->rows[i];
        snprintf(name, sizeof(name), "%s: %s", row->op, row->shape);
        sd_profile_print_row(out, name, row, total, peak);
    }

    free(sums.rows);
}


/* rounds that take some milliseconds */
#define SD_PEAK_ROUNDS  (4L << 20)

typedef struct {
    const sd_kernels_t   *kernels;
    double               *flops;        /* [task] */
} sd_peak_t;


static void
sd_peak_task(void *data, int task, char *scratch)
{
    sd_peak_t  *peak;

    peak = data;
    peak->flops[task] = peak->kernels->peak(SD_PEAK_ROUNDS);
}


double
sd_peak_flops(sd_device_t *dev, int threads)
{
    int            i, round;
    double         best, start, flops[64];
    sd_cpu_t      *cpu;
    sd_peak_t      peak;
    sd_error_t     err;
    sd_context_t   cx;

    cpu = dev->impl;
    threads = sd_min(threads > 0 ? threads : sd_pool_default_threads(), 64);
    peak.kernels = cpu->kernels;
    peak.flops = flops;
    best = 0;

    if (sd_context_init(&cx, dev, 0, 64, &err) != SD_OK) {
        return 0;
    }

    for (round = 0; round < 5; round++) {
        start = sd_now();

        if (sd_pool_run(&cx, sd_peak_task, &peak, threads) != SD_OK) {
            break;
        }

        start = sd_now() - start;

        for (i = 1; i < threads; i++) {
            flops[0] += flops[i];
        }

        best = sd_max(best, flops[0] / start);
    }

    sd_context_free(&cx);

    return best;
}
