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
#include "ops_run.h"
#include "ops_table.h"
#include "tap.h"


static sd_device_t  *devices[12];
static int           ndevices;


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

    reference(t, &d, expected);

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
    sd_slot_t     s[3];
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

    /* slots of [2, 3, 3] pixels: a guided one, and one that is not */

    x = sd_alloc_type(&cx, SD_F32, 2, 2, 3, 3);
    y = sd_alloc(&cx, 3, 2, 3, 3);
    o = sd_alloc(&cx, 3, 2, 3, 3);
    k = sd_alloc_type(&cx, SD_F32, 2 * SD_KEPT, 2, 3, 3);
    d = sd_alloc_type(&cx, SD_F32, 2, 2, 3, 3);
    st = sd_alloc_type(&cx, SD_U8, 1, 1, 1, sizeof(s));

    sd_upload(&cx, x, in);
    sd_upload(&cx, o, out);
    sd_upload(&cx, k, kept);
    poison(&cx, y);
    poison(&cx, d);

    for (i = 0; i < 2; i++) {
        s[i].x = s[i].next = (float *) x.data + i * 18;
        s[i].kept = s[i].kept_next = (float *) k.data + i * SD_KEPT * 18;
        s[i].denoised = (float *) d.data + i * 18;
    }

    /* the third is empty */

    memset(&s[2], 0, sizeof(sd_slot_t));
    s[2].out = -1;

    sd_put(&cx, st.data, s, sizeof(s));

    sd_scale_input(&cx, y, st.data, 3);
    sd_download(&cx, y1, y);

    good = 1;

    for (i = 0; i < 18; i++) {
        good = good && y1[i] == in[18 + i] * 1.5f && y1[18 + i] == in[i] * 0.5f
               && y1[36 + i] == in[i] * 0.5f;
    }

    ok(good, "scale_input: rows of guided and unguided slots");

    sd_sampler_step(&cx, o, st.data, 3);
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
    ok(sd_scale_input(&cx, y, st.data, 3) == SD_ERROR
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
