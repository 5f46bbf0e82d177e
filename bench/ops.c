/*
 * Each operation of Stable Diffusion 1.5 at 512x512 as a share of this
 * machine's peak of fused multiply-adds, measured in the same run; and what the
 * table adds up to: a step with guidance (two samples), and the decoder.
 *
 *     ops [-t threads] [-i isa] [-b] [-c] [-n rounds] [filter]
 *
 * -b: bf16.  -c: processor time by threads, for a busy machine.  A row is timed
 * -n times, with the peak measured in between; the best of both counts, since
 * other work on the machine only takes away.
 */

#define _GNU_SOURCE

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../src/ops/cpu/cpu.h"


typedef enum {
    CONV, LINEAR, ATTEND, NORM, LAYER
} kind_t;

typedef struct {
    const char  *model;
    kind_t       kind;
    int          count;             /* in one evaluation */
    int          n, hw, c, k;       /* hw: rows and columns of the input */
    int          r, stride, up;
    int          act;
    int          heads, lk;
    int          hint;
} row_t;


#define CONV3(m, count, n, hw, c, k)                                          \
    { m, CONV, count, n, hw, c, k, 3, 1, 0, 0, 0, 0, (hw) * (hw) }
#define DOWN3(m, count, n, hw, c)                                             \
    { m, CONV, count, n, hw, c, c, 3, 2, 0, 0, 0, 0, (hw) * (hw) / 4 }
#define UP3(m, count, n, hw, c)                                               \
    { m, CONV, count, n, hw, c, c, 3, 1, 1, 0, 0, 0, 4 * (hw) * (hw) }
#define CONV1(m, count, n, hw, c, k)                                          \
    { m, CONV, count, n, hw, c, k, 1, 1, 0, 0, 0, 0, (hw) * (hw) }
#define LIN(m, count, n, hw, c, k, act)                                       \
    { m, LINEAR, count, n, hw, c, k, 0, 0, 0, act, 0, 0, 0 }
#define ATT(m, count, n, hw, c, heads, lk)                                    \
    { m, ATTEND, count, n, hw, c, c, 0, 0, 0, 0, heads, lk, 0 }
#define GN(m, count, n, hw, c)                                                \
    { m, NORM, count, n, hw, c, c, 0, 0, 0, 0, 0, 0, 0 }
#define LN(m, count, n, hw, c)                                                \
    { m, LAYER, count, n, hw, c, c, 0, 0, 0, 0, 0, 0, 0 }


static const row_t  table[] = {
    CONV3("unet", 7, 2, 64, 320, 320),
    CONV3("unet", 2, 2, 64, 640, 320),
    CONV3("unet", 1, 2, 64, 960, 320),
    CONV3("unet", 1, 2, 32, 320, 640),
    CONV3("unet", 6, 2, 32, 640, 640),
    CONV3("unet", 1, 2, 32, 960, 640),
    CONV3("unet", 1, 2, 32, 1280, 640),
    CONV3("unet", 1, 2, 32, 1920, 640),
    CONV3("unet", 1, 2, 16, 640, 1280),
    CONV3("unet", 6, 2, 16, 1280, 1280),
    CONV3("unet", 1, 2, 16, 1920, 1280),
    CONV3("unet", 2, 2, 16, 2560, 1280),
    CONV3("unet", 11, 2, 8, 1280, 1280),
    CONV3("unet", 3, 2, 8, 2560, 1280),
    CONV3("unet", 1, 2, 64, 4, 320),
    CONV3("unet", 1, 2, 64, 320, 4),
    UP3("unet", 1, 2, 32, 640),
    UP3("unet", 1, 2, 16, 1280),
    UP3("unet", 1, 2, 8, 1280),
    DOWN3("unet", 1, 2, 64, 320),
    DOWN3("unet", 1, 2, 32, 640),
    DOWN3("unet", 1, 2, 16, 1280),
    CONV1("unet", 2, 2, 64, 640, 320),
    CONV1("unet", 1, 2, 64, 960, 320),
    CONV1("unet", 1, 2, 32, 320, 640),
    CONV1("unet", 1, 2, 32, 960, 640),
    CONV1("unet", 1, 2, 32, 1280, 640),
    CONV1("unet", 1, 2, 32, 1920, 640),
    CONV1("unet", 1, 2, 16, 640, 1280),
    CONV1("unet", 1, 2, 16, 1920, 1280),
    CONV1("unet", 2, 2, 16, 2560, 1280),
    CONV1("unet", 3, 2, 8, 2560, 1280),

    /* proj_in, proj_out, to_out, and the cross-attention's to_q and to_out */
    LIN("unet", 25, 2, 64, 320, 320, SD_ACT_NONE),
    LIN("unet", 5, 2, 64, 320, 960, SD_ACT_NONE),
    LIN("unet", 5, 2, 64, 320, 2560, SD_ACT_GEGLU),
    LIN("unet", 5, 2, 64, 1280, 320, SD_ACT_NONE),
    LIN("unet", 25, 2, 32, 640, 640, SD_ACT_NONE),
    LIN("unet", 5, 2, 32, 640, 1920, SD_ACT_NONE),
    LIN("unet", 5, 2, 32, 640, 5120, SD_ACT_GEGLU),
    LIN("unet", 5, 2, 32, 2560, 640, SD_ACT_NONE),
    LIN("unet", 25, 2, 16, 1280, 1280, SD_ACT_NONE),
    LIN("unet", 5, 2, 16, 1280, 3840, SD_ACT_NONE),
    LIN("unet", 5, 2, 16, 1280, 10240, SD_ACT_GEGLU),
    LIN("unet", 5, 2, 16, 5120, 1280, SD_ACT_NONE),
    LIN("unet", 5, 2, 8, 1280, 1280, SD_ACT_NONE),
    LIN("unet", 1, 2, 8, 1280, 3840, SD_ACT_NONE),
    LIN("unet", 1, 2, 8, 1280, 10240, SD_ACT_GEGLU),
    LIN("unet", 1, 2, 8, 5120, 1280, SD_ACT_NONE),

    ATT("unet", 5, 2, 64, 320, 8, 4096),
    ATT("unet", 5, 2, 32, 640, 8, 1024),
    ATT("unet", 5, 2, 16, 1280, 8, 256),
    ATT("unet", 1, 2, 8, 1280, 8, 64),
    ATT("unet", 5, 2, 64, 320, 8, 77),
    ATT("unet", 5, 2, 32, 640, 8, 77),
    ATT("unet", 5, 2, 16, 1280, 8, 77),

    GN("unet", 13, 2, 64, 320),
    GN("unet", 2, 2, 64, 640),
    GN("unet", 1, 2, 64, 960),
    GN("unet", 13, 2, 32, 640),
    GN("unet", 3, 2, 32, 1280),
    GN("unet", 14, 2, 16, 1280),
    GN("unet", 3, 2, 16, 2560),
    GN("unet", 14, 2, 8, 1280),
    LN("unet", 15, 2, 64, 320),
    LN("unet", 15, 2, 32, 640),
    LN("unet", 15, 2, 16, 1280),

    CONV3("vae", 1, 1, 64, 4, 512),
    CONV3("vae", 10, 1, 64, 512, 512),
    CONV3("vae", 6, 1, 128, 512, 512),
    CONV3("vae", 1, 1, 256, 512, 256),
    CONV3("vae", 5, 1, 256, 256, 256),
    CONV3("vae", 1, 1, 512, 256, 128),
    CONV3("vae", 5, 1, 512, 128, 128),
    CONV3("vae", 1, 1, 512, 128, 3),
    UP3("vae", 1, 1, 64, 512),
    UP3("vae", 1, 1, 128, 512),
    UP3("vae", 1, 1, 256, 256),
    CONV1("vae", 1, 1, 256, 512, 256),
    CONV1("vae", 1, 1, 512, 256, 128),
    LIN("vae", 2, 1, 64, 512, 1024, SD_ACT_NONE),
    ATT("vae", 1, 1, 64, 512, 1, 4096),
    GN("vae", 11, 1, 64, 512),
    GN("vae", 6, 1, 128, 512),
    GN("vae", 1, 1, 256, 512),
    GN("vae", 5, 1, 256, 256),
    GN("vae", 1, 1, 512, 256),
    GN("vae", 6, 1, 512, 128)
};


static clockid_t  source = CLOCK_MONOTONIC;
static int        divisor = 1;


static double
now(void)
{
    struct timespec  t;

    clock_gettime(source, &t);

    return (t.tv_sec + t.tv_nsec * 1e-9) / divisor;
}


typedef struct {
    const sd_kernels_t  *kernels;
    double               flops;
} peak_t;


static void
peak_task(void *data, int task, char *scratch)
{
    peak_t  *p = data;

    p->flops = p->kernels->peak(400000);
}


/* FLOP/s of all threads */

static double
peak(sd_context_t *cx, int threads)
{
    int     i;
    double  t, best;
    peak_t  p = { sd_cpu_kernels(cx->device), 0 };

    /* by processor time: of this thread, as many times */

    if (source != CLOCK_MONOTONIC) {
        best = 0;

        for (i = 0; i < 3; i++) {
            t = now();
            peak_task(&p, 0, NULL);
            t = p.flops / (now() - t);
            best = t > best ? t : best;
        }

        return best;
    }

    best = 0;

    for (i = 0; i < 3; i++) {
        t = now();
        sd_pool_run(cx, peak_task, &p, threads);
        t = p.flops * threads / (now() - t);
        best = t > best ? t : best;
    }

    return best;
}


static sd_weight_t
weight(sd_context_t *cx, sd_weight_kind_t kind, const row_t *t)
{
    float        *data;
    size_t        i, n;
    sd_weight_t   w;

    memset(&w, 0, sizeof(w));
    w.kind = kind;
    w.k = t->k;
    w.c = t->c;
    w.r = t->r;
    w.stride = t->stride;
    w.upsample = t->up;
    w.geglu = t->act == SD_ACT_GEGLU;
    w.hint = t->hint;

    n = (size_t) t->k * t->c * (t->r ? t->r * t->r : 1);
    data = malloc(n * sizeof(float));

    for (i = 0; i < n; i++) {
        data[i] = (float) (i * 7919 % 1000) * 1e-3f - 0.5f;
    }

    if (sd_weight_pack(cx->device, &w, data, data, cx->err) != SD_OK) {
        cx->status = SD_ERROR;
    }

    free(data);

    return w;
}


static sd_tensor_t
input(sd_context_t *cx, int n, int h, int w, int c)
{
    size_t        i, count;
    float        *p;
    sd_tensor_t   t;

    count = (size_t) n * h * w * c;
    p = malloc(count * sizeof(float));

    for (i = 0; i < count; i++) {
        p[i] = (float) (i * 104729 % 2000) * 1e-3f - 1;
    }

    t = sd_alloc(cx, n, h, w, c);
    sd_upload(cx, t, p);
    free(p);

    return t;
}


static double
flops(const row_t *t)
{
    double  rows = (double) t->n * t->hw * t->hw;

    switch (t->kind) {

    case CONV:
        return 2 * rows * t->c * t->k * t->r * t->r * (t->up ? 4 : 1)
               / (t->stride * t->stride);

    case LINEAR:
        return 2 * rows * t->c * t->k;

    case ATTEND:
        return 4 * rows * t->c * t->lk;

    default:
        return 0;
    }
}


/* seconds, the least of n */

static double
measure(sd_context_t *cx, const row_t *t, int n)
{
    int          i, o;
    double       s, best;
    sd_weight_t  w;
    sd_tensor_t  x, y, k, v;

    memset(&w, 0, sizeof(w));
    best = 1e9;

    switch (t->kind) {

    case CONV:
        w = weight(cx, SD_WEIGHT_CONV, t);
        x = input(cx, t->n, t->hw, t->hw, t->c);
        o = t->hw * (t->up ? 2 : 1) / t->stride;
        y = sd_alloc(cx, t->n, o, o, t->k);
        break;

    case LINEAR:
        w = weight(cx, SD_WEIGHT_LINEAR, t);
        x = input(cx, t->n, t->hw, t->hw, t->c);
        y = sd_alloc(cx, t->n, t->hw, t->hw,
                     t->act == SD_ACT_GEGLU ? t->k / 2 : t->k);
        break;

    case ATTEND:
        x = input(cx, t->n, 1, t->hw * t->hw, t->c);
        k = input(cx, t->n, 1, t->lk, t->c);
        v = input(cx, t->n, 1, t->lk, t->c);
        y = sd_alloc(cx, t->n, 1, t->hw * t->hw, t->c);
        break;

    default:
        w = weight(cx, SD_WEIGHT_NORM, t);
        x = input(cx, t->n, t->hw, t->hw, t->c);
        y = sd_alloc(cx, t->n, t->hw, t->hw, t->c);
        break;
    }

    for (i = 0; i < n && cx->status == SD_OK; i++) {
        s = now();

        switch (t->kind) {

        case CONV:
            sd_conv2d(cx, y, &(sd_conv2d_t) { .x = x, .w = &w });
            break;

        case LINEAR:
            sd_linear(cx, y, &(sd_linear_t) { .x = x, .w = &w,
                                              .act = t->act });
            break;

        case ATTEND:
            sd_attention(cx, y, &(sd_attention_t) { .q = x, .k = k, .v = v,
                                                    .heads = t->heads,
                                                    .scale = 0.1f });
            break;

        case NORM:
            sd_group_norm(cx, y, &(sd_group_norm_t) { .x = x, .w = &w,
                                                      .groups = 32,
                                                      .eps = 1e-5f,
                                                      .silu = 1 });
            break;

        case LAYER:
            sd_layer_norm(cx, y, &(sd_layer_norm_t) { .x = x, .w = &w,
                                                      .eps = 1e-5f });
            break;
        }

        s = now() - s;
        best = s < best ? s : best;
    }

    sd_weight_free(cx->device, &w);

    return best;
}


int
main(int argc, char **argv)
{
    int              opt, threads, rounds, bf16;
    char             name[64];
    size_t           i;
    double           s, f, p, total[2], work[2];
    sd_error_t       err;
    const row_t     *t;
    const char      *isa, *filter;
    sd_device_t     *dev;
    sd_context_t     cx;

    static const char  *kinds[] = {
        "conv", "linear", "attention", "group_norm", "layer_norm"
    };

    threads = 2;
    rounds = 5;
    bf16 = 0;
    isa = NULL;

    while ((opt = getopt(argc, argv, "t:i:n:bc")) != -1) {
        switch (opt) {
        case 't':
            threads = atoi(optarg);
            break;
        case 'i':
            isa = optarg;
            break;
        case 'n':
            rounds = atoi(optarg);
            break;
        case 'b':
            bf16 = 1;
            break;
        case 'c':
            source = CLOCK_PROCESS_CPUTIME_ID;
            break;
        default:
            return 2;
        }
    }

    filter = argv[optind];

    if (source != CLOCK_MONOTONIC) {
        divisor = threads;
    }

    if (sd_device_open(&dev, "cpu", threads,
                       bf16 ? SD_PRECISION_BF16 : SD_PRECISION_EXACT, isa, &err)
        != SD_OK
        || sd_context_init(&cx, dev, 0, (size_t) 3 << 30, &err) != SD_OK)
    {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }

    p = peak(&cx, threads);
    memset(total, 0, sizeof(total));
    memset(work, 0, sizeof(work));

    printf("%s, %s, %d threads, peak %.0f GFLOP/s (fp32 FMA)\n", dev->isa,
           dev->numerics, threads, p * 1e-9);

    for (i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        t = &table[i];

        snprintf(name, sizeof(name), "%s %s%s%s %dx%d %d-%d%s", t->model,
                 kinds[t->kind],
                 t->kind == CONV ? (t->r == 3 ? "3" : "1") : "",
                 t->up ? "u" : t->stride == 2 ? "s" : "", t->hw, t->hw, t->c,
                 t->k, t->kind == ATTEND && t->lk == 77 ? " cross" : "");

        if (filter != NULL && strstr(name, filter) == NULL) {
            continue;
        }

        sd_context_reset(&cx, &err, NULL);
        s = measure(&cx, t, rounds);

        if (cx.status != SD_OK) {
            fprintf(stderr, "%s: %s\n", name, err.message);
            return 1;
        }

        f = peak(&cx, threads);
        p = f > p ? f : p;
        f = flops(t);

        total[t->model[0] == 'v'] += s * t->count;
        work[t->model[0] == 'v'] += f * t->count;

        printf("%-34s %9.3f ms x %2d = %8.1f ms", name, s * 1e3, t->count,
               s * t->count * 1e3);

        if (f > 0) {
            printf("  %7.1f GFLOP/s  %4.2f of peak", f / s * 1e-9, f / s / p);
        }

        printf("\n");
        fflush(stdout);
    }

    for (i = 0; i < 2; i++) {
        if (total[i] > 0) {
            printf("%s: %.3f s, %.0f GFLOP, %.0f GFLOP/s, %.2f of peak %.0f\n",
                   i ? "decoder" : "step with guidance", total[i],
                   work[i] * 1e-9, work[i] / total[i] * 1e-9,
                   work[i] / total[i] / p, p * 1e-9);
        }
    }

    sd_context_free(&cx);
    sd_device_close(dev);

    return 0;
}
