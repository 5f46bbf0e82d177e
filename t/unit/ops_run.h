/*
 * A row of the operations' test table on any device, or only planned.  Outputs
 * are poisoned before they are written.
 */

#ifndef OPS_RUN_H
#define OPS_RUN_H

#include "ops_reference.h"


static sd_tensor_t
upload(sd_context_t *cx, const float *src, int n, int h, int w, int c)
{
    sd_tensor_t  t;

    t = sd_alloc(cx, n, h, w, c);
    sd_upload(cx, t, src);

    return t;
}


/* host arrays [n, l, c] side by side: [n, 1, l, parts * c]; of three, the
 * second and third may be longer than the first is */

static sd_tensor_t
upload_columns(sd_context_t *cx, int n, int l, int parts, int c,
    const float *a, const float *b, const float *third)
{
    int           i, j;
    float        *all;
    const float  *part[3] = { a, b, third };
    sd_tensor_t   t;

    all = malloc((size_t) n * l * parts * c * sizeof(float));

    for (i = 0; i < n * l; i++) {
        for (j = 0; j < parts; j++) {
            memcpy(all + ((size_t) i * parts + j) * c, part[j] + (size_t) i * c,
                   c * sizeof(float));
        }
    }

    t = upload(cx, all, n, 1, l, parts * c);
    free(all);

    return t;
}


/* table i of n is sample row[i] of t */

static sd_tables_t
places(sd_context_t *cx, sd_tensor_t t, const int *row, int n)
{
    int           i;
    const void   *at[64];
    sd_tables_t   tables;
    sd_tensor_t   m;

    m = sd_alloc_type(cx, SD_U8, 1, 1, n, sizeof(void *));

    for (i = 0; i < n && t.data; i++) {
        at[i] = (char *) t.data + (size_t) row[i] * t.h * t.w * t.c
                                  * sd_type_size(t.type);
    }

    sd_put(cx, m.data, at, n * sizeof(void *));

    tables.at = m.data;
    tables.rows = t.w;
    tables.columns = t.c;

    return tables;
}


static void
poison(sd_context_t *cx, sd_tensor_t t)
{
    void    *bad;
    size_t   size;

    if (cx->plan || cx->status != SD_OK) {
        return;
    }

    size = (size_t) t.n * t.h * t.w * t.c * sd_type_size(t.type);

    bad = malloc(size);
    memset(bad, 0xff, size);
    sd_put(cx, t.data, bad, size);
    free(bad);
}


static sd_weight_t
weight(sd_context_t *cx, sd_weight_kind_t kind, int k, int c, int r,
    const row_t *t, const float *data, const float *bias)
{
    sd_weight_t  w;

    memset(&w, 0, sizeof(sd_weight_t));

    w.kind = kind;
    w.k = k;
    w.c = c;
    w.r = r;
    w.stride = t->stride;
    w.upsample = t->up;
    w.hint = t->hint;
    w.geglu = t->act == SD_ACT_GEGLU;
    w.has_bias = bias != NULL;

    if (!cx->plan
        && sd_weight_pack(cx->device, &w, data, bias, cx->err) != SD_OK)
    {
        cx->status = SD_ERROR;
    }

    return w;
}


/* the row on a device, or only planned; out may be NULL; the arena's peak */

static size_t
run(const row_t *t, const data_t *d, sd_device_t *dev, int plan, size_t size,
    float *out, sd_error_t *err)
{
    int              i, h, w, ld, m;
    int              rows[64];
    sd_tables_t      tables = { 0 };
    sd_weight_t      wt;
    sd_tensor_t      x, x2, y, r, a;
    sd_context_t     cx;

    memset(&x2, 0, sizeof(x2));
    memset(&r, 0, sizeof(r));
    memset(&a, 0, sizeof(a));
    memset(&wt, 0, sizeof(wt));

    if (sd_context_init(&cx, dev, plan, size, err) != SD_OK) {
        return 0;
    }

    switch (t->kind) {

    case CONV:
        conv_shape(t, &h, &w);

        wt = weight(&cx, SD_WEIGHT_CONV, t->k, t->c + t->c2, t->r, t, d->w,
                    t->bias ? d->bias : NULL);
        x = upload(&cx, d->x, t->n, t->h, t->w, t->c);

        if (t->c2) {
            x2 = upload(&cx, d->x2, t->n, t->h, t->w, t->c2);
        }

        if (t->residual) {
            r = upload(&cx, d->residual, t->n, h, w, t->k);
        }

        if (t->inplace) {
            y = r;

        } else {
            y = sd_alloc(&cx, t->n, h, w, t->k);
            poison(&cx, y);
        }

        sd_conv2d(&cx, y, &(sd_conv2d_t) { .x = x, .x2 = x2, .w = &wt,
                                           .residual = r });
        break;

    case LINEAR:
        wt = weight(&cx, SD_WEIGHT_LINEAR, t->k, t->c, 1, t, d->w,
                    t->bias ? d->bias : NULL);
        x = upload(&cx, d->x, t->n, t->h, t->w, t->c);

        m = t->act == SD_ACT_GEGLU ? t->k / 2 : t->k;

        if (t->residual) {
            r = upload(&cx, d->residual, t->n, t->h, t->w, m);
        }

        if (t->inplace) {
            y = r;

        } else {
            y = sd_alloc(&cx, t->n, t->h, t->w, m);
            poison(&cx, y);
        }

        sd_linear(&cx, y, &(sd_linear_t) { .x = x, .w = &wt, .act = t->act,
                                           .residual = r });
        break;

    case NORM:
        m = t->c + t->c2;

        wt = weight(&cx, SD_WEIGHT_NORM, m, 0, 0, t, d->w, d->bias);
        x = upload(&cx, d->x, t->n, t->h, t->w, t->c);

        if (t->c2) {
            x2 = upload(&cx, d->x2, t->n, t->h, t->w, t->c2);
        }

        if (t->addend) {
            a = sd_alloc_type(&cx, SD_F32, t->n + 1, 1, 1, m + 5);
            sd_upload(&cx, a, d->addend);

            for (i = 0; i < t->n; i++) {
                rows[i] = i + 1;
            }

            tables = places(&cx, a, rows, t->n);
        }

        if (t->inplace) {
            y = x;

        } else {
            y = sd_alloc(&cx, t->n, t->h, t->w, m);
            poison(&cx, y);
        }

        sd_group_norm(&cx, y, &(sd_group_norm_t) { .x = x, .x2 = x2, .w = &wt,
                          .groups = t->groups, .eps = 1e-5f, .silu = t->silu,
                          .addend = tables, .addend_at = 3 });
        break;

    case LAYER:
        wt = weight(&cx, SD_WEIGHT_NORM, t->c, 0, 0, t, d->w, d->bias);
        x = upload(&cx, d->x, t->n, t->h, t->w, t->c);

        if (t->inplace) {
            y = x;

        } else {
            y = sd_alloc(&cx, t->n, t->h, t->w, t->c);
            poison(&cx, y);
        }

        sd_layer_norm(&cx, y, &(sd_layer_norm_t) { .x = x, .w = &wt,
                                                   .eps = 1e-5f });
        break;

    default: /* ATTEND */
        ld = t->heads * t->d;
        m = t->rows ? t->rows : t->n;

        memset(&x2, 0, sizeof(x2));

        if (t->fused) {
            a = upload_columns(&cx, t->n, t->w, 3, ld, d->x, d->x2, d->w);
            x = sd_view(a, 0, ld);
            x2 = sd_view(a, ld, ld);
            r = sd_view(a, 2 * ld, ld);

        } else {
            x = upload(&cx, d->x, t->n, 1, t->w, ld);
        }

        if (t->rows) {
            for (i = 0; i < t->n; i++) {
                rows[i] = attend_row(t, i);
            }

            a = upload_columns(&cx, m, t->lk, 2, ld, d->x2, d->w, NULL);
            tables = places(&cx, a, rows, t->n);

        } else if (!t->fused) {
            x2 = upload(&cx, d->x2, m, 1, t->lk, ld);
            r = upload(&cx, d->w, m, 1, t->lk, ld);
        }

        y = sd_alloc(&cx, t->n, 1, t->w, ld);
        poison(&cx, y);

        sd_attention(&cx, y, &(sd_attention_t) { .q = x, .k = x2, .v = r,
                         .heads = t->heads, .scale = 3 / sqrtf(t->d),
                         .causal = t->causal, .kv = tables, .v_at = ld });
        break;
    }

    if (out != NULL) {
        memset(out, 0xff, d->count * sizeof(float));
        sd_download(&cx, out, y);
    }

    sd_weight_free(dev, &wt);

    size = cx.status == SD_OK ? cx.arena.peak : 0;
    sd_context_free(&cx);

    return size;
}


#endif
