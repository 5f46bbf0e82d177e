/*
 * The operations on the cuda device: the table of t/unit/ops.c against naive
 * ones in double precision, and SD 1.5's, 2.1's and SDXL's own shapes, too big
 * for that, against the cpu backend.  Inputs are rounded to fp16 for both, so
 * that what is measured is the device's error.  For each row also: the outputs
 * are poisoned, a second run and a bigger batch give the same bytes.
 *
 *     ops [--quick] [word ...]    rows whose description has all the words
 */

#define _GNU_SOURCE

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../../src/ops/philox.h"
#include "../unit/ops_run.h"
#include "../unit/ops_table.h"
#include "../unit/tap.h"


static const row_t  big[] = {
#define CONV3(s, ci, ko)                                                      \
    { CONV, .n = 2, .h = s, .w = s, .c = ci, .k = ko, .r = 3, .stride = 1,    \
      .bias = 1, .hint = s * s }
#define CONV3R(s, ci, ko)                                                     \
    { CONV, .n = 2, .h = s, .w = s, .c = ci, .k = ko, .r = 3, .stride = 1,    \
      .bias = 1, .residual = 1, .inplace = 1, .hint = s * s }
#define DOWN(s, ci)                                                           \
    { CONV, .n = 2, .h = s, .w = s, .c = ci, .k = ci, .r = 3, .stride = 2,    \
      .bias = 1 }
#define UP(s, ci)                                                             \
    { CONV, .n = 2, .h = s, .w = s, .c = ci, .k = ci, .r = 3, .stride = 1,    \
      .up = 1, .bias = 1, .hint = 4 * s * s }
#define SHORT(s, ci, cj, ko)                                                  \
    { CONV, .n = 2, .h = s, .w = s, .c = ci, .c2 = cj, .k = ko, .r = 1,       \
      .stride = 1, .bias = 1 }
#define GN(s, ci, cj)                                                         \
    { NORM, .n = 2, .h = s, .w = s, .c = ci, .c2 = cj, .groups = 32,          \
      .silu = 1, .addend = cj == 0 }
#define LIN(s, ci, ko)                                                        \
    { LINEAR, .n = 2, .h = s, .w = s, .c = ci, .k = ko, .bias = 1 }
#define LINR(s, ci, ko)                                                       \
    { LINEAR, .n = 2, .h = s, .w = s, .c = ci, .k = ko, .bias = 1,            \
      .residual = 1, .inplace = 1 }
#define GEGLU(s, ci)                                                          \
    { LINEAR, .n = 2, .h = s, .w = s, .c = ci, .k = 8 * ci, .bias = 1,        \
      .act = SD_ACT_GEGLU }
#define SELF(s, hd, dd)                                                       \
    { ATTEND, .n = 2, .w = s, .heads = hd, .d = dd, .lk = s, .fused = 1 }
#define CROSS(s, hd, dd)                                                      \
    { ATTEND, .n = 2, .w = s, .heads = hd, .d = dd, .lk = 77, .rows = 2 }

    CONV3(64, 4, 320), CONV3(64, 320, 4), CONV3R(64, 320, 320),
    CONV3(64, 640, 320), CONV3(64, 960, 320), CONV3(32, 320, 640),
    CONV3R(32, 640, 640), CONV3(32, 960, 640), CONV3(32, 1280, 640),
    CONV3(32, 1920, 640), CONV3(16, 640, 1280), CONV3R(16, 1280, 1280),
    CONV3(16, 1920, 1280), CONV3(16, 2560, 1280), CONV3R(8, 1280, 1280),
    CONV3(8, 2560, 1280), DOWN(64, 320), DOWN(32, 640), DOWN(16, 1280),
    UP(32, 640), UP(16, 1280), UP(8, 1280),
    SHORT(64, 320, 320, 320), SHORT(64, 640, 320, 320), SHORT(32, 320, 0, 640),
    SHORT(32, 1280, 640, 640), SHORT(16, 1280, 1280, 1280),
    SHORT(8, 1280, 1280, 1280),
    GN(64, 320, 0), GN(64, 640, 320), GN(32, 640, 0), GN(32, 1280, 640),
    GN(16, 1280, 0), GN(16, 1280, 1280), GN(8, 1280, 0), GN(8, 1280, 1280),
    LIN(64, 320, 960), LINR(64, 320, 320), GEGLU(64, 320), LINR(64, 1280, 320),
    LIN(32, 640, 1920), LINR(32, 640, 640), GEGLU(32, 640),
    LIN(16, 1280, 3840), LINR(16, 1280, 1280), GEGLU(16, 1280),
    LINR(16, 5120, 1280), LIN(8, 1280, 3840), GEGLU(8, 1280),
    SELF(4096, 8, 40), SELF(1024, 8, 80), SELF(256, 8, 160), SELF(64, 8, 160),
    SELF(4096, 5, 64), SELF(1024, 10, 64), SELF(256, 20, 64),
    CROSS(4096, 8, 40), CROSS(1024, 8, 80), CROSS(256, 8, 160),
    CROSS(64, 8, 160), CROSS(4096, 5, 64), CROSS(1024, 10, 64),

    /* the decoder */

    { CONV, .n = 1, .h = 512, .w = 512, .c = 128, .k = 3, .r = 3, .stride = 1,
      .bias = 1, .hint = 262144 },
    { CONV, .n = 1, .h = 256, .w = 256, .c = 256, .k = 256, .r = 3,
      .stride = 1, .up = 1, .bias = 1, .hint = 262144 },
    { CONV, .n = 1, .h = 64, .w = 64, .c = 512, .k = 512, .r = 3, .stride = 1,
      .up = 1, .bias = 1, .hint = 16384 },
    { CONV, .n = 1, .h = 512, .w = 512, .c = 128, .k = 128, .r = 3,
      .stride = 1, .bias = 1, .residual = 1, .inplace = 1, .hint = 262144 },
    { CONV, .n = 1, .h = 512, .w = 512, .c = 256, .k = 128, .r = 1,
      .stride = 1, .bias = 1 },
    { NORM, .n = 1, .h = 512, .w = 512, .c = 256, .groups = 32, .silu = 1 },
    { NORM, .n = 1, .h = 512, .w = 512, .c = 128, .groups = 32, .silu = 1,
      .inplace = 1 },
    { NORM, .n = 1, .h = 256, .w = 256, .c = 512, .groups = 32, .silu = 1 },
    { ATTEND, .n = 1, .w = 4096, .heads = 1, .d = 512, .lk = 4096,
      .fused = 1 },

    /* SDXL's, and what is neither square nor even */

    { CONV, .n = 2, .h = 128, .w = 128, .c = 320, .k = 320, .r = 3,
      .stride = 1, .bias = 1, .hint = 16384 },
    CONV3(32, 2560, 1280), GEGLU(64, 640),
    { LINEAR, .n = 1, .h = 5, .w = 31, .c = 328, .k = 2608, .bias = 1,
      .act = SD_ACT_GEGLU },
    { LINEAR, .n = 2, .h = 1, .w = 77, .c = 40, .k = 336,
      .act = SD_ACT_GEGLU },
    { LINEAR, .n = 3, .h = 1, .w = 1, .c = 8, .k = 16, .bias = 1,
      .act = SD_ACT_GEGLU },
    { LINEAR, .n = 7, .h = 72, .w = 20, .c = 320, .k = 2560, .bias = 1,
      .act = SD_ACT_GEGLU },
    SELF(4096, 10, 64),
    CROSS(4096, 10, 64),
    { ATTEND, .n = 2, .w = 1024, .heads = 20, .d = 64, .lk = 1024,
      .fused = 1 },
    { CONV, .n = 2, .h = 127, .w = 72, .c = 320, .k = 320, .r = 3,
      .stride = 1, .bias = 1, .hint = 16384 },
    { CONV, .n = 2, .h = 64, .w = 36, .c = 640, .k = 640, .r = 3, .stride = 1,
      .up = 1, .odd = 1, .bias = 1, .hint = 16384 },
    { NORM, .n = 2, .h = 127, .w = 72, .c = 640, .c2 = 320, .groups = 32,
      .silu = 1 },
    { NORM, .n = 2, .h = 13, .w = 9, .c = 1280, .c2 = 640, .groups = 32,
      .silu = 1 },
    { ATTEND, .n = 2, .w = 9144, .heads = 8, .d = 40, .lk = 9144,
      .fused = 1 },
    { ATTEND, .n = 2, .w = 2286, .heads = 8, .d = 80, .lk = 2286,
      .fused = 1 },
    { LAYER, .n = 2, .h = 64, .w = 64, .c = 320 },
    { LAYER, .n = 2, .h = 16, .w = 16, .c = 1280, .inplace = 1 },
    { LAYER, .n = 2, .h = 24, .w = 1, .c = 768 },
    { ATTEND, .n = 2, .w = 77, .heads = 12, .d = 64, .lk = 77, .causal = 1,
      .fused = 1 },
};


static sd_device_t  *cuda, *cpu;


static void
half(float *p, size_t n)
{
    size_t  i;

    for (i = 0; i < n && p; i++) {
        p[i] = (float) (_Float16) p[i];
    }
}


static double
now(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return ts.tv_sec + ts.tv_nsec * 1e-9;
}


/* the same row with more samples, the first of which are the old ones */

static int
bigger(const row_t *t, const data_t *d, const float *out, size_t one,
    sd_error_t *err)
{
    int      same;
    row_t    more;
    float   *y;
    size_t   planned, samples;
    data_t   m;

    more = *t;
    more.n = t->n + 3;

    data_make(&m, &more);

    /* row by row: random data of one size is no part of that of another */

    samples = t->n;

    memcpy(m.x, d->x, samples * (size_t) t->h * t->w * t->c * sizeof(float));
    memcpy(m.residual, d->residual, d->count * sizeof(float));

    if (t->kind == ATTEND) {
        memcpy(m.x, d->x, d->count * sizeof(float));
        memcpy(m.x2, d->x2, (t->rows ? t->rows : t->n)
                            * (size_t) t->lk * t->heads * t->d * sizeof(float));
        memcpy(m.w, d->w, (t->rows ? t->rows : t->n)
                          * (size_t) t->lk * t->heads * t->d * sizeof(float));

    } else {
        memcpy(m.x2, d->x2, samples * (size_t) t->h * t->w * t->c2
                            * sizeof(float));
        memcpy(m.bias, d->bias, (size_t) (t->k + t->c + t->c2)
                                * sizeof(float));

        if (t->kind == NORM || t->kind == LAYER) {
            memcpy(m.w, d->w, (size_t) (t->c + t->c2) * sizeof(float));
            memcpy(m.addend, d->addend, (samples + 1)
                       * (size_t) (t->c + t->c2 + 5) * sizeof(float));

        } else {
            memcpy(m.w, d->w, (size_t) t->k * (t->c + t->c2)
                              * (t->kind == CONV ? t->r * t->r : 1)
                              * sizeof(float));
        }
    }

    y = malloc(m.count * sizeof(float));
    planned = run(&more, &m, cuda, 1, 0, NULL, err);
    same = run(&more, &m, cuda, 0, planned, y, err) != 0
           && memcmp(y, out, one * t->n * sizeof(float)) == 0;

    free(y);
    data_free(&m);

    return same;
}


static void
test_row(const row_t *t, int small)
{
    char         name[128];
    float       *out, *again, *exact;
    double      *expected, e, limit, start;
    size_t       i, planned, peak;
    data_t       d;
    sd_error_t   err;

    err.message[0] = '\0';

    describe(name, sizeof(name), t);
    data_make(&d, t);

    half(d.x, (size_t) t->n * (t->kind == ATTEND ? t->w * t->heads * t->d
                               : t->h * t->w * t->c));
    half(d.residual, d.count);

    if (t->kind == ATTEND) {
        i = (size_t) (t->rows ? t->rows : t->n) * t->lk * t->heads * t->d;
        half(d.x2, i);
        half(d.w, i);

    } else {
        half(d.x2, (size_t) t->n * t->h * t->w * t->c2);

        if (t->kind == CONV || t->kind == LINEAR) {
            half(d.w, (size_t) t->k * (t->c + t->c2)
                      * (t->kind == CONV ? t->r * t->r : 1));
            half(d.bias, t->k + t->c + t->c2);
        }
    }

    expected = malloc(d.count * sizeof(double));
    out = malloc(d.count * sizeof(float));
    again = malloc(d.count * sizeof(float));

    if (small) {
        reference(t, &d, expected);

    } else {
        exact = malloc(d.count * sizeof(float));
        planned = run(t, &d, cpu, 1, 0, NULL, &err);

        if (!ok(run(t, &d, cpu, 0, planned, exact, &err) > 0,
                "%s: on the cpu", name))
        {
            printf("# %s\n", err.message);
        }

        for (i = 0; i < d.count; i++) {
            expected[i] = exact[i];
        }

        free(exact);
    }

    planned = run(t, &d, cuda, 1, 0, NULL, &err);
    start = now();
    peak = run(t, &d, cuda, 0, planned, out, &err);
    start = now() - start;

    if (!ok(peak > 0 && peak == planned, "%s: runs, and takes what was planned",
            name))
    {
        printf("# %s, %zu of %zu\n", err.message, peak, planned);

    } else {
        e = nmse(out, expected, d.count);

        /* an output rounded to fp16 alone has about 3e-8; a product of two
         * inputs is rounded twice, attention's weights too */

        limit = t->kind == NORM || t->kind == LAYER ? 2e-7 : 5e-7;

        if (!ok(e < limit, "%s: error", name)) {
            printf("# nmse %g\n", e);
        }

        if (!ok(run(t, &d, cuda, 0, planned, again, &err) > 0
                && memcmp(out, again, d.count * sizeof(float)) == 0,
                "%s: the same again", name))
        {
            printf("# %s\n", err.message);
        }

        err.message[0] = '\0';

        if (!ok(bigger(t, &d, out, d.count / t->n, &err),
                "%s: the same in a bigger batch", name))
        {
            printf("# %s\n", err.message);
        }

        printf("# %s: nmse %.1e, %.2f s with its plan\n", name, e, start);
    }

    free(expected);
    free(out);
    free(again);
    data_free(&d);
}


/* noise has the cpu's bytes, the sampler's step all but */

static void
test_noise(void)
{
    int           i, j;
    float        *out[2];
    size_t        n;
    uint64_t      seeds[2] = { 7, 0x123456789abcdef };
    sd_error_t    err;
    sd_device_t  *dev;
    sd_tensor_t   x;
    sd_context_t  cx;

    n = 2 * 24 * 13 * 4;

    for (i = 0; i < 2; i++) {
        dev = i ? cuda : cpu;
        out[i] = malloc(n * sizeof(float));

        sd_context_init(&cx, dev, 0, 1 << 20, &err);
        x = sd_alloc_type(&cx, SD_F32, 2, 24, 13, 4);
        sd_noise(&cx, x, seeds, 3, 14.6f);
        ok(sd_download(&cx, out[i], x) == SD_OK, "noise on %s", dev->name);
        sd_context_free(&cx);
    }

    ok(memcmp(out[0], out[1], n * sizeof(float)) == 0,
       "noise: the cpu's bytes");

    for (i = 0, j = 0; i < (int) n; i++) {
        j += out[0][i] != out[1][i];
    }

    printf("# %d of %zu differ\n", j, n);

    free(out[0]);
    free(out[1]);
}


static int
wanted(const row_t *t, int argc, char **argv)
{
    int   i;
    char  name[128];

    describe(name, sizeof(name), t);

    for (i = 1; i < argc; i++) {
        if (argv[i][0] != '-' && strstr(name, argv[i]) == NULL) {
            return 0;
        }
    }

    return 1;
}


int
main(int argc, char **argv)
{
    int         quick;
    size_t      i;
    sd_error_t  err;

    quick = argc > 1 && strcmp(argv[1], "--quick") == 0;

    if (sd_device_open(&cuda, "cuda", 0, SD_PRECISION_EXACT, NULL, &err)
        != SD_OK
        || sd_device_open(&cpu, "cpu", 0, SD_PRECISION_EXACT, NULL, &err)
           != SD_OK)
    {
        printf("Bail out! %s\n", err.message);
        return 1;
    }

    printf("# %s %s %s\n", cuda->name, cuda->isa, cuda->numerics);

    test_noise();

    for (i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        if (wanted(&table[i], argc, argv)) {
            test_row(&table[i], 1);
        }
    }

    for (i = 0; i < sizeof(big) / sizeof(big[0]) && !quick; i++) {
        if (wanted(&big[i], argc, argv)) {
            test_row(&big[i], 0);
        }
    }

    sd_device_close(cpu);
    sd_device_close(cuda);

    return done();
}
