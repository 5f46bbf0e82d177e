/*
 * Every operation against a naive one in double precision, on every instruction
 * set that this machine has: one table of operations and shapes.  For each row
 * also: outputs are poisoned before, one and three threads give the same bytes
 * as two, AVX2 the same as AVX-512, and plan mode's peak is the real one.
 */

#define _GNU_SOURCE

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../src/ops/ops.h"
#include "../../src/ops/philox.h"
#include "ops_reference.h"
#include "tap.h"


static const row_t  table[] = {
    { CONV, .n = 1, .h = 1, .w = 1, .c = 1, .k = 1, .r = 1, .stride = 1 },
    { CONV, .n = 1, .h = 1, .w = 1, .c = 3, .k = 5, .r = 3, .stride = 1,
      .bias = 1 },
    { CONV, .n = 2, .h = 24, .w = 13, .c = 20, .k = 36, .r = 3, .stride = 1,
      .bias = 1, .hint = 4096 },
    { CONV, .n = 1, .h = 64, .w = 48, .c = 4, .k = 32, .r = 3, .stride = 1,
      .bias = 1, .hint = 4096 },
    { CONV, .n = 2, .h = 16, .w = 16, .c = 64, .k = 64, .r = 3, .stride = 1,
      .bias = 1, .residual = 1, .hint = 256 },
    { CONV, .n = 2, .h = 8, .w = 8, .c = 96, .c2 = 64, .k = 64, .r = 3,
      .stride = 1, .bias = 1, .residual = 1, .inplace = 1, .hint = 64 },
    { CONV, .n = 2, .h = 24, .w = 13, .c = 48, .c2 = 33, .k = 50, .r = 3,
      .stride = 1, .bias = 1, .residual = 1, .inplace = 1, .hint = 4096 },
    { CONV, .n = 1, .h = 9, .w = 31, .c = 150, .k = 129, .r = 3, .stride = 1,
      .hint = 4096 },
    { CONV, .n = 1, .h = 3, .w = 2, .c = 64, .k = 64, .r = 3, .stride = 1,
      .bias = 1, .hint = 4096 },
    { CONV, .n = 2, .h = 64, .w = 60, .c = 33, .k = 35, .r = 3, .stride = 1,
      .bias = 1, .residual = 1, .hint = 4096 },
    { CONV, .n = 2, .h = 24, .w = 13, .c = 40, .k = 24, .r = 3, .stride = 2,
      .bias = 1 },
    { CONV, .n = 1, .h = 7, .w = 7, .c = 32, .k = 64, .r = 3, .stride = 2,
      .bias = 1 },
    { CONV, .n = 2, .h = 12, .w = 7, .c = 40, .k = 40, .r = 3, .stride = 1,
      .up = 1, .bias = 1, .hint = 1024 },
    { CONV, .n = 1, .h = 13, .w = 9, .c = 64, .k = 64, .r = 3, .stride = 1,
      .up = 1, .odd = 1, .bias = 1, .hint = 1024 },
    { CONV, .n = 3, .h = 21, .w = 17, .c = 40, .c2 = 24, .k = 32, .r = 3,
      .stride = 1, .up = 1, .bias = 1, .residual = 1, .hint = 1024 },
    { CONV, .n = 1, .h = 1, .w = 1, .c = 64, .k = 64, .r = 3, .stride = 1,
      .up = 1, .bias = 1, .hint = 16 },
    { CONV, .n = 2, .h = 7, .w = 9, .c = 50, .c2 = 33, .k = 300, .r = 3,
      .stride = 1, .bias = 1, .residual = 1, .hint = 64 },
    { CONV, .n = 1, .h = 5, .w = 3, .c = 40, .k = 50, .r = 3, .stride = 1,
      .up = 1, .odd = 1, .bias = 1, .hint = 64 },
    { CONV, .n = 1, .h = 32, .w = 32, .c = 128, .k = 3, .r = 3, .stride = 1,
      .bias = 1, .hint = 1024 },
    { CONV, .n = 2, .h = 3, .w = 9, .c = 20, .c2 = 17, .k = 4, .r = 3,
      .stride = 1, .bias = 1, .residual = 1 },
    { CONV, .n = 1, .h = 5, .w = 6, .c = 16, .k = 1, .r = 3, .stride = 1 },
    { CONV, .n = 2, .h = 24, .w = 13, .c = 48, .c2 = 32, .k = 80, .r = 1,
      .stride = 1, .bias = 1, .residual = 1 },
    { CONV, .n = 1, .h = 40, .w = 40, .c = 16, .k = 700, .r = 1, .stride = 1 },
    { CONV, .n = 1, .h = 4, .w = 4, .c = 700, .c2 = 650, .k = 20, .r = 3,
      .stride = 1, .bias = 1, .hint = 64 },

    { NORM, .n = 1, .h = 1, .w = 1, .c = 32, .groups = 4 },
    { NORM, .n = 2, .h = 24, .w = 13, .c = 40, .groups = 4, .silu = 1 },
    { NORM, .n = 3, .h = 16, .w = 16, .c = 64, .groups = 32, .silu = 1,
      .addend = 1 },
    { NORM, .n = 2, .h = 9, .w = 7, .c = 33, .c2 = 27, .groups = 10,
      .silu = 1, .addend = 1 },
    { NORM, .n = 2, .h = 8, .w = 8, .c = 64, .groups = 32, .inplace = 1 },

    { LINEAR, .n = 1, .h = 1, .w = 1, .c = 1, .k = 1 },
    { LINEAR, .n = 1, .h = 1, .w = 1, .c = 320, .k = 1280, .bias = 1,
      .act = SD_ACT_SILU },
    { LINEAR, .n = 2, .h = 1, .w = 77, .c = 768, .k = 100, .bias = 1,
      .act = SD_ACT_QUICK_GELU },
    { LINEAR, .n = 2, .h = 24, .w = 13, .c = 40, .k = 40, .bias = 1,
      .residual = 1, .inplace = 1 },
    { LINEAR, .n = 1, .h = 32, .w = 32, .c = 64, .k = 512, .bias = 1,
      .act = SD_ACT_GEGLU },
    { LINEAR, .n = 1, .h = 3, .w = 3, .c = 20, .k = 42, .bias = 1,
      .act = SD_ACT_GEGLU, .residual = 1 },
    { LINEAR, .n = 1, .h = 5, .w = 5, .c = 1300, .k = 33, .act = SD_ACT_GELU },
    { LINEAR, .n = 1, .h = 5, .w = 41, .c = 31, .k = 17, .bias = 1,
      .act = SD_ACT_GELU_TANH },
    { LINEAR, .n = 4, .h = 16, .w = 16, .c = 96, .k = 288 },

    { LAYER, .n = 1, .h = 1, .w = 1, .c = 16 },
    { LAYER, .n = 2, .h = 24, .w = 13, .c = 40 },
    { LAYER, .n = 2, .h = 1, .w = 77, .c = 768, .inplace = 1 },
    { LAYER, .n = 1, .h = 3, .w = 1, .c = 7 },

    { ATTEND, .n = 1, .w = 1, .heads = 1, .d = 2, .lk = 1 },
    { ATTEND, .n = 2, .w = 312, .heads = 4, .d = 2, .lk = 312, .fused = 1 },
    { ATTEND, .n = 2, .w = 300, .heads = 3, .d = 40, .lk = 300, .fused = 1 },
    { ATTEND, .n = 2, .w = 65, .heads = 2, .d = 80, .lk = 77, .rows = 3 },
    { ATTEND, .n = 3, .w = 64, .heads = 2, .d = 160, .lk = 77, .rows = 2 },
    { ATTEND, .n = 2, .w = 77, .heads = 3, .d = 64, .lk = 77, .causal = 1,
      .fused = 1 },
    { ATTEND, .n = 1, .w = 300, .heads = 2, .d = 20, .lk = 300, .causal = 1 },
    { ATTEND, .n = 1, .w = 520, .heads = 1, .d = 512, .lk = 520 },
    { ATTEND, .n = 1, .w = 100, .heads = 5, .d = 15, .lk = 1000 },
};


static sd_device_t  *devices[12];
static int           ndevices;


/* runs */

static sd_tensor_t
upload(sd_context_t *cx, const float *src, int n, int h, int w, int c)
{
    sd_tensor_t  t;

    t = sd_alloc(cx, n, h, w, c);
    sd_upload(cx, t, src);

    return t;
}


/* several host arrays side by side as one tensor */

static void
upload_columns(sd_context_t *cx, sd_tensor_t t, const float *src, int at, int c)
{
    int  i;

    for (i = 0; i < t.n * t.w && !cx->plan && cx->status == SD_OK; i++) {
        memcpy((float *) t.data + (size_t) i * t.ld + at, src + (size_t) i * c,
               c * sizeof(float));
    }
}


static void
poison(sd_context_t *cx, sd_tensor_t t)
{
    if (!cx->plan && cx->status == SD_OK) {
        memset(t.data, 0xff, (size_t) t.n * t.h * t.w * t.c * sizeof(float));
    }
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
    int32_t          rows[8];
    sd_weight_t      wt;
    sd_tensor_t      x, x2, y, r, a, rt;
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

        rt = sd_alloc_type(&cx, SD_I32, t->n, 1, 1, 1);

        if (t->addend) {
            a = sd_alloc_type(&cx, SD_F32, t->n + 1, 1, 1, m + 5);
            sd_upload(&cx, a, d->addend);

            for (i = 0; i < t->n; i++) {
                rows[i] = i + 1;
            }

            sd_put(&cx, rt.data, rows, t->n * sizeof(int32_t));
        }

        if (t->inplace) {
            y = x;

        } else {
            y = sd_alloc(&cx, t->n, t->h, t->w, m);
            poison(&cx, y);
        }

        sd_group_norm(&cx, y, &(sd_group_norm_t) { .x = x, .x2 = x2, .w = &wt,
                          .groups = t->groups, .eps = 1e-5f, .silu = t->silu,
                          .addend = a, .addend_at = 3, .addend_row = rt.data });
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

        rt = sd_alloc_type(&cx, SD_I32, t->n, 1, 1, 1);

        for (i = 0; i < t->n; i++) {
            rows[i] = attend_row(t, i);
        }

        sd_put(&cx, rt.data, rows, t->n * sizeof(int32_t));

        if (t->fused) {
            a = sd_alloc(&cx, t->n, 1, t->w, 3 * ld);
            upload_columns(&cx, a, d->x, 0, ld);
            upload_columns(&cx, a, d->x2, ld, ld);
            upload_columns(&cx, a, d->w, 2 * ld, ld);
            x = sd_view(a, 0, ld);
            x2 = sd_view(a, ld, ld);
            r = sd_view(a, 2 * ld, ld);

        } else {
            x = upload(&cx, d->x, t->n, 1, t->w, ld);
            x2 = upload(&cx, d->x2, m, 1, t->lk, ld);
            r = upload(&cx, d->w, m, 1, t->lk, ld);
        }

        y = sd_alloc(&cx, t->n, 1, t->w, ld);
        poison(&cx, y);

        sd_attention(&cx, y, &(sd_attention_t) { .q = x, .k = x2, .v = r,
                         .heads = t->heads, .scale = 3 / sqrtf(t->d),
                         .causal = t->causal,
                         .kv_row = t->rows ? rt.data : NULL });
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


static void
test_row(const row_t *t, sd_device_t *const planners[2])
{
    int          i, same, bf16;
    char         name[128];
    float       *out, *first;
    size_t       planned[2], peak;
    double      *expected, e, limit;
    data_t       d;
    sd_error_t   err;

    err.message[0] = '\0';

    describe(name, sizeof(name), t);
    data_make(&d, t);

    expected = malloc(d.count * sizeof(double));
    out = malloc(d.count * sizeof(float));
    first = malloc(d.count * sizeof(float));

    switch (t->kind) {

    case CONV:
        conv_reference(t, &d, expected);
        break;

    case LINEAR:
        linear_reference(t, &d, expected);
        break;

    case NORM:
        norm_reference(t, &d, expected);
        break;

    case LAYER:
        layer_reference(t, &d, expected);
        break;

    case ATTEND:
        attend_reference(t, &d, expected);
        break;
    }

    for (i = 0; i < 2; i++) {
        planned[i] = run(t, &d, planners[i], 1, 0, NULL, &err);
        ok(planned[i] > 0, "%s: planned", name);
    }

    same = 1;

    for (i = 0; i < ndevices; i++) {
        bf16 = devices[i]->precision == SD_PRECISION_BF16;
        peak = run(t, &d, devices[i], 0, planned[bf16], out, &err);

        if (peak == 0) {
            ok(0, "%s: %s", name, err.message);
            continue;
        }

        ok(peak == planned[bf16], "%s: peak on %s", name, devices[i]->isa);

        /* devices of the same numerics id give the same bytes */

        if (i > 0
            && strcmp(devices[i]->numerics, devices[i - 1]->numerics) == 0)
        {
            same = memcmp(out, first, d.count * sizeof(float)) == 0;
            ok(same, "%s: %s, same bytes", name, devices[i]->isa);
            continue;
        }

        memcpy(first, out, d.count * sizeof(float));

        /* Winograd's error is the largest: about 2e-6 relative */

        e = nmse(out, expected, d.count);

        limit = t->kind == CONV ? 4e-11 : 1e-12;

        if (bf16 && t->kind != NORM && t->kind != LAYER) {
            limit = 3e-5;
        }

        if (!ok(e < limit, "%s: %s, error", name, devices[i]->numerics))
        {
            printf("# nmse %g\n", e);
        }
    }

    free(first);
    free(out);
    free(expected);
    data_free(&d);
}


static void
test_sampler(sd_device_t *dev)
{
    int           i, j, c, p, good, exact;
    float         in[2 * 6 * 3], out[3 * 6 * 3], kept[2 * SD_KEPT * 18];
    float         x1[36], d1[36], k1[2 * SD_KEPT * 18], y1[54], x2[18], z[18];
    double        v, u, dd;
    uint64_t      seeds[2] = { 11, 12 };
    sd_slot_t     s[2];
    sd_error_t    err;
    sd_tensor_t   x, y, o, k, d, st, alone;
    sd_context_t  cx;

    err.message[0] = '\0';
    sd_context_init(&cx, dev, 0, 1 << 20, &err);

    for (i = 0; i < 36; i++) {
        in[i] = 0.1f * i - 1;
    }

    for (i = 0; i < 54; i++) {
        out[i] = 0.05f * i - 1;
    }

    for (i = 0; i < 2 * SD_KEPT * 18; i++) {
        kept[i] = 0.01f * i;
    }

    memset(s, 0, sizeof(s));

    for (i = 0; i < 2; i++) {
        s[i].scale_in = 0.5f + i;
        s[i].a = 0.9f;
        s[i].b = -0.3f;
        s[i].clamp = i ? 1.0f : 0;
        s[i].guidance = 7.5f;
        s[i].guided = i == 0;
        s[i].out = i ? 0 : 1;
        s[i].draw = 3;
        s[i].nkept = 2;
        s[i].seed = seeds[i];

        for (j = 0; j < 3; j++) {
            for (c = 0; c < 3 + SD_KEPT + 2; c++) {
                s[i].m[j][c] = 0.1f * (j + 1) - 0.03f * c;
            }

            /* kept tensors beyond nkept count as zero */
            s[i].m[j][5] = 100;
        }
    }

    /* 2 slots of [2, 3, 3] pixels: a guided one, and one that is not */

    x = sd_alloc_type(&cx, SD_F32, 2, 2, 3, 3);
    y = sd_alloc(&cx, 3, 2, 3, 3);
    o = sd_alloc(&cx, 3, 2, 3, 3);
    k = sd_alloc_type(&cx, SD_F32, 2 * SD_KEPT, 2, 3, 3);
    d = sd_alloc_type(&cx, SD_F32, 2, 2, 3, 3);
    st = sd_alloc_type(&cx, SD_U8, 1, 1, 1, sizeof(s));

    sd_upload(&cx, x, in);
    sd_upload(&cx, o, out);
    sd_upload(&cx, k, kept);
    sd_put(&cx, st.data, s, sizeof(s));
    poison(&cx, y);
    poison(&cx, d);

    sd_scale_input(&cx, y, x, st.data);
    sd_download(&cx, y1, y);

    good = 1;

    for (i = 0; i < 18; i++) {
        good = good && y1[i] == in[18 + i] * 1.5f && y1[18 + i] == in[i] * 0.5f
               && y1[36 + i] == in[i] * 0.5f;
    }

    ok(good, "scale_input: rows of guided and unguided slots");

    sd_sampler_step(&cx, &(sd_sampler_step_t) { .x = x, .out = o, .kept = k,
                                                .denoised = d,
                                                .slots = st.data });
    sd_download(&cx, x1, x);
    sd_download(&cx, d1, d);
    sd_download(&cx, k1, k);

    good = cx.status == SD_OK;

    for (i = 0; i < 2 && good; i++) {
        for (p = 0; p < 18; p++) {

            /* element p in NHWC is in NCHW: */
            c = p % 3 * 6 + p / 3;

            u = i ? out[p] : out[18 + p] + 7.5 * (out[36 + p] - out[18 + p]);
            dd = 0.9f * in[i * 18 + p] - 0.3f * u;

            if (i) {
                dd = dd > 1 ? 1 : dd < -1 ? -1 : dd;
            }

            good = good && fabs(d1[i * 18 + p] - dd) < 1e-5;

            for (j = 0; j < 3; j++) {
                v = s[i].m[j][0] * in[i * 18 + p] + s[i].m[j][1] * u
                    + s[i].m[j][2] * dd
                    + s[i].m[j][3] * kept[(i * SD_KEPT) * 18 + p]
                    + s[i].m[j][4] * kept[(i * SD_KEPT + 1) * 18 + p]
                    + s[i].m[j][7] * sd_philox_normal(seeds[i], 3, c)
                    + s[i].m[j][8] * sd_philox_normal(seeds[i], 4, c);

                good = good && fabs(v - (j ? k1[(i * SD_KEPT + j - 1) * 18 + p]
                                           : x1[i * 18 + p])) < 1e-5;
            }

            good = good && k1[(i * SD_KEPT + 2) * 18 + p]
                           == kept[(i * SD_KEPT + 2) * 18 + p];
        }
    }

    ok(good, "sampler_step: guidance, clamp, matrix, noise");

    sd_noise(&cx, x, seeds, 5, 2.0f);
    sd_download(&cx, x1, x);

    alone = sd_alloc_type(&cx, SD_F32, 1, 2, 3, 3);
    sd_noise(&cx, alone, seeds + 1, 5, 2.0f);
    sd_download(&cx, x2, alone);

    good = 1;

    for (p = 0; p < 18; p++) {
        z[p] = 2.0f * sd_philox_normal(11, 5, p % 3 * 6 + p / 3);
    }

    good = memcmp(z, x1, sizeof(z)) == 0;
    exact = memcmp(x2, x1 + 18, sizeof(x2)) == 0;

    ok(good, "noise: in the order NCHW");
    ok(exact, "noise: a picture alone is as together");

    s[0].out = 2;
    sd_put(&cx, st.data, s, sizeof(s));
    ok(sd_scale_input(&cx, y, x, st.data) == SD_ERROR
       && strstr(err.message, "slot 0") != NULL,
       "scale_input: a slot out of range is refused");

    sd_context_free(&cx);
}


static void
test_pictures(sd_device_t *dev)
{
    float         in[4] = { -2, -1, 0.25f, 9 }, f[12], bias[3] = { 0, -1, NAN };
    float         pic[3] = { 1, -0.5f, NAN }, table[6 * 4], pos[3 * 4], e[24];
    int           i, good;
    int32_t       ids[6] = { 5, 0, 1, 2, 2, 4 };
    uint8_t       out[3];
    sd_error_t    err;
    sd_weight_t   wt, wp;
    sd_tensor_t   x, y, b;
    sd_context_t  cx;

    err.message[0] = '\0';
    sd_context_init(&cx, dev, 0, 1 << 20, &err);

    for (i = 0; i < 12; i++) {
        f[i] = 0.1f * (i % 5) - 0.2f;
    }

    x = sd_alloc_type(&cx, SD_F32, 1, 1, 1, 4);
    y = sd_alloc_type(&cx, SD_U8, 1, 1, 1, 3);
    sd_upload(&cx, x, in);
    sd_preview_rgb(&cx, y, x, f, bias);
    sd_download_u8(&cx, out, y);

    /* -2 f0 - f3 + 0.25 f6 + 9 f9 */
    ok(out[0] == 255 && out[1] == 0 && out[2] == 0, "preview_rgb clamps");

    bias[1] = 2;
    sd_preview_rgb(&cx, y, x, f, bias);
    sd_download_u8(&cx, out, y);
    ok(out[1] == (uint8_t) ((2 + -2 * f[1] - f[4] + 0.25 * f[7] + 9 * f[10])
                            * 127.5 + 128), "preview_rgb rounds");

    b = sd_alloc(&cx, 1, 1, 1, 3);
    sd_upload(&cx, b, pic);
    sd_image_rgb8(&cx, y, b);
    sd_download_u8(&cx, out, y);
    ok(out[0] == 255 && out[1] == 64 && out[2] == 0, "image_rgb8");

    sd_scale(&cx, b, b, 3);
    sd_download(&cx, e, b);
    ok(e[0] == 3 && e[1] == -1.5f, "scale, in place");

    for (i = 0; i < 24; i++) {
        table[i] = i;
    }

    for (i = 0; i < 12; i++) {
        pos[i] = 100 * i;
    }

    memset(&wt, 0, sizeof(wt));
    wt.kind = SD_WEIGHT_TABLE;
    wt.k = 6;
    wt.c = 4;
    wp = wt;
    wp.k = 3;

    sd_weight_pack(dev, &wt, table, NULL, &err);
    sd_weight_pack(dev, &wp, pos, NULL, &err);

    y = sd_alloc(&cx, 2, 1, 3, 4);
    poison(&cx, y);
    sd_embed(&cx, y, &(sd_embed_t) { .ids = ids, .table = &wt,
                                     .position = &wp });
    sd_download(&cx, e, y);

    good = cx.status == SD_OK;

    for (i = 0; i < 24; i++) {
        good = good && e[i] == table[ids[i / 4] * 4 + i % 4]
                               + pos[i / 4 % 3 * 4 + i % 4];
    }

    ok(good, "embed");

    ids[3] = 6;
    ok(sd_embed(&cx, y, &(sd_embed_t) { .ids = ids, .table = &wt,
                                        .position = &wp }) == SD_ERROR
       && strstr(err.message, "id 6") != NULL, "embed refuses an id");

    sd_weight_free(dev, &wt);
    sd_weight_free(dev, &wp);
    sd_context_free(&cx);
}


static void
test_context(sd_device_t *dev, sd_device_t *planner)
{
    atomic_int    cancel;
    sd_error_t    err;
    sd_tensor_t   a, b, c, d;
    sd_device_t  *none;
    sd_weight_t   w;
    sd_context_t  cx;

    memset(&err, 0, sizeof(err));

    sd_context_init(&cx, dev, 0, 4096, &err);

    a = sd_alloc(&cx, 1, 1, 1, 256);
    b = sd_alloc(&cx, 1, 1, 1, 256);
    c = sd_alloc(&cx, 1, 1, 1, 1);
    ok(b.at == 1024 && c.at == 2048 && (uintptr_t) c.data % 64 == 0,
       "arena: in order, aligned");

    sd_free(&cx, &b);
    ok(sd_empty(&b), "arena: a freed tensor is empty");

    b = sd_alloc(&cx, 1, 1, 1, 100);
    d = sd_alloc(&cx, 1, 1, 1, 100);
    ok(b.at == 1024 && d.at == 1024 + 448, "arena: first fit");
    ok(cx.arena.peak == 2048 + 64, "arena: peak");

    sd_free(&cx, &a);
    sd_free(&cx, &a);
    ok(cx.status == SD_OK, "arena: freeing an empty tensor is fine");

    a = sd_alloc(&cx, 2, 2, 2, 1000);
    ok(sd_empty(&a) && cx.status == SD_ERROR
       && strstr(err.message, "does not fit") != NULL, "arena: full");

    err.message[0] = '\0';
    a = sd_alloc(&cx, 1, 1, 1, 1);
    ok(sd_empty(&a) && err.message[0] == '\0', "errors are sticky");

    sd_context_reset(&cx, &err, NULL);
    a = sd_alloc(&cx, 1, 1, 1, 1024);
    ok(a.at == 0 && cx.status == SD_OK, "reset");

    sd_context_reset(&cx, &err, NULL);
    a = sd_alloc(&cx, 1 << 24, 1 << 24, 1 << 24, 1 << 24);
    ok(sd_empty(&a) && strstr(err.message, "too big") != NULL,
       "a shape that overflows is refused");

    sd_context_reset(&cx, &err, NULL);
    a = sd_alloc(&cx, 1, -1, 1, 1);
    ok(sd_empty(&a) && cx.status == SD_ERROR, "a bad shape is refused");

    atomic_init(&cancel, 1);
    sd_context_reset(&cx, &err, &cancel);
    a = sd_alloc(&cx, 1, 1, 1, 16);
    ok(sd_scale(&cx, a, a, 1) == SD_CANCELLED && cx.status == SD_CANCELLED,
       "cancelled");

    sd_context_free(&cx);

    sd_context_init(&cx, planner, 1, 0, &err);
    a = sd_alloc(&cx, 1, 4, 4, 8);
    b = sd_alloc(&cx, 1, 4, 4, 16);
    c = sd_alloc(&cx, 1, 4, 4, 16);
    ok(a.data == NULL && b.at == 512, "plan mode has no memory");

    memset(&w, 0, sizeof(w));
    w.kind = SD_WEIGHT_CONV;
    w.k = 16;
    w.c = 9;
    w.r = 3;
    w.stride = 1;

    ok(sd_conv2d(&cx, b, &(sd_conv2d_t) { .x = a, .w = &w }) == SD_ERROR
       && strstr(err.message, "8 + 0 channels, the weight 9") != NULL,
       "conv2d: channels are checked");

    sd_context_reset(&cx, &err, NULL);
    a = sd_alloc(&cx, 1, 4, 4, 9);
    b = sd_alloc(&cx, 1, 4, 3, 16);
    ok(sd_conv2d(&cx, b, &(sd_conv2d_t) { .x = a, .w = &w }) == SD_ERROR
       && strstr(err.message, "y is [1, 4, 3, 16], must be [1, 4, 4, 16]"),
       "conv2d: y's shape is checked");

    sd_context_reset(&cx, &err, NULL);
    a = sd_alloc(&cx, 1, 4, 4, 9);
    c = sd_alloc(&cx, 1, 4, 4, 16);
    w.r = 5;
    ok(sd_conv2d(&cx, c, &(sd_conv2d_t) { .x = a, .w = &w }) == SD_ERROR
       && strstr(err.message, "5x5") != NULL, "conv2d: the weight is checked");

    sd_context_reset(&cx, &err, NULL);
    a = sd_view(sd_alloc(&cx, 1, 1, 4, 96), 0, 30);
    c = sd_alloc(&cx, 1, 1, 4, 30);
    ok(sd_attention(&cx, c, &(sd_attention_t) { .q = a, .k = a, .v = a,
                                                .heads = 4 }) == SD_ERROR
       && strstr(err.message, "30 channels in 4 heads"),
       "attention: heads are checked");

    sd_context_reset(&cx, &err, NULL);
    a = sd_alloc(&cx, 1, 1, 256 * 256, 512);
    c = sd_alloc(&cx, 1, 1, 256 * 256, 512);
    ok(sd_attention(&cx, c, &(sd_attention_t) { .q = a, .k = a, .v = a,
                                                .heads = 1, .scale = 1 })
       == SD_OK, "attention over a picture of 2048x2048");

    sd_context_free(&cx);

    ok(sd_context_init(&cx, planner, 0, 1, &err) == SD_ERROR,
       "a plan device cannot compute");
    ok(sd_device_open(&none, "gpu", 0, SD_PRECISION_EXACT, NULL, &err)
       == SD_ERROR && strstr(err.message, "\"gpu\"") != NULL,
       "an unknown device is refused");
    ok(sd_device_open(&none, "cpu", 0, SD_PRECISION_EXACT, "vax", &err)
       == SD_ERROR && strstr(err.message, "\"vax\"") != NULL,
       "an unknown instruction set is refused");
    ok(sd_device_open(&none, "cpu", 0, SD_PRECISION_BF16, "baseline", &err)
       == SD_ERROR && strstr(err.message, "AVX512_BF16") != NULL,
       "bf16 without its instructions is refused");
}


int
main(void)
{
    int           n;
    size_t        i;
    sd_error_t    err;
    sd_device_t  *planners[2];

    /* in the order of numerics ids: equal ones are next to each other */

    static const struct {
        const char  *isa;
        int          threads;
        int          bf16;
    } kinds[] = {
        { NULL, 2, 0 }, { NULL, 1, 0 }, { NULL, 3, 0 }, { "avx2", 2, 0 },
        { "baseline", 2, 0 }, { "baseline", 1, 0 }, { NULL, 2, 1 },
        { NULL, 1, 1 }, { "avx512", 2, 1 }, { "avx512", 3, 1 }
    };

    if (!ok(sd_device_plan(&planners[0], "cpu", SD_PRECISION_EXACT, &err)
            == SD_OK
            && sd_device_plan(&planners[1], "cpu", SD_PRECISION_BF16, &err)
            == SD_OK, "plan devices"))
    {
        return done();
    }

    for (n = 0; n < (int) (sizeof(kinds) / sizeof(kinds[0])); n++) {
        if (sd_device_open(&devices[ndevices], "cpu", kinds[n].threads,
                           kinds[n].bf16 ? SD_PRECISION_BF16
                                         : SD_PRECISION_EXACT,
                           kinds[n].isa, &err)
            != SD_OK)
        {
            ok(kinds[n].bf16 || (kinds[n].isa != NULL
                                 && strcmp(kinds[n].isa, "baseline") != 0),
               "%s is not here: %s", kinds[n].isa ? kinds[n].isa : "cpu",
               err.message);
            continue;
        }

        printf("# %s: %d threads, %s, %s\n", devices[ndevices]->name,
               kinds[n].threads, devices[ndevices]->isa,
               devices[ndevices]->numerics);

        ndevices++;
    }

    for (i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        test_row(&table[i], planners);
    }

    test_sampler(devices[0]);
    test_pictures(devices[0]);
    test_context(devices[0], planners[0]);

    for (n = 0; n < ndevices; n++) {
        sd_device_close(devices[n]);
    }

    sd_device_close(planners[0]);
    sd_device_close(planners[1]);

    return done();
}
