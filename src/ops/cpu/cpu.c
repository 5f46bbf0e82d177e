/*
 * The cpu backend: its device, its memory, and the operations that touch so few
 * bytes that plain C does.  Those compute in basic operations only, without
 * FMA, so their bytes are the same on any machine.
 */

#define _GNU_SOURCE

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "../philox.h"
#include "cpu.h"


static const sd_kernels_t *sd_cpu_choose(const char *isa);
static int sd_cpu_amx(void);
static int sd_cpu_amx_ask(void);
static int sd_cpu_dots(void);


/* NULL: the best that the machine has; or the named one, if it has that */

static const sd_kernels_t *
sd_cpu_choose(const char *isa)
{
#if defined(__x86_64__)
    __builtin_cpu_init();

    if ((isa == NULL || strcmp(isa, "avx512") == 0)
        && __builtin_cpu_supports("avx512f")
        && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl")
        && __builtin_cpu_supports("fma"))
    {
        return &sd_kernels_avx512;
    }

    if ((isa == NULL || strcmp(isa, "avx2") == 0)
        && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    {
        return &sd_kernels_avx2;
    }
#endif

    if (isa == NULL || strcmp(isa, "baseline") == 0) {
        return &sd_kernels_baseline;
    }

    return NULL;
}


const sd_kernels_t *
sd_cpu_kernels(const sd_device_t *dev)
{
    if (dev->impl != NULL) {
        return ((sd_cpu_t *) dev->impl)->kernels;
    }

#if defined(__x86_64__)
    if (dev->precision == SD_PRECISION_BF16 && sd_cpu_dots()) {
        return &sd_kernels_bf16;
    }
#endif

    return &sd_kernels_baseline;
}


/* 1: has AMX's tiles of bf16; cpuid is slow in a virtual machine */

static int
sd_cpu_amx(void)
{
#if defined(__x86_64__)
    int                n;
    unsigned           a, b, c, d;
    static atomic_int  known = -1;

    n = atomic_load_explicit(&known, memory_order_relaxed);

    if (n == -1) {

        /* leaf 7: amx_bf16 and amx_tile */

        n = __get_cpuid_count(7, 0, &a, &b, &c, &d)
            && (d & (1u << 22)) && (d & (1u << 24));

        atomic_store_explicit(&known, n, memory_order_relaxed);
    }

    return n;
#else
    return 0;
#endif
}


/* asks the kernel for them, which a process must; 1: may be used */

static int
sd_cpu_amx_ask(void)
{
#if defined(__x86_64__)
    /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */

    return sd_cpu_amx() && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
    return 0;
#endif
}


/*
 * 1: bf16 products pay.  AMX's do.  With vdpbf16ps AMD's processors do twice
 * what they do with FMAs, but Intel's half of it: it takes two cycles.  Those
 * have AMX instead, where it is not hidden from a virtual machine.  Plan mode
 * asks here, too: what the kernel allows afterwards changes no size.
 */

static int
sd_cpu_dots(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();

    return sd_cpu_amx() || !__builtin_cpu_is("intel");
#else
    return 0;
#endif
}


static int
sd_cpu_open(sd_device_t *dev, int threads, const char *isa, sd_error_t *err)
{
    sd_cpu_t    *cpu;
    const char  *bf16;

    bf16 = NULL;

    cpu = calloc(1, sizeof(sd_cpu_t));
    if (cpu == NULL) {
        return sd_fail(err, "no memory for a device");
    }

    cpu->kernels = sd_cpu_choose(isa);

    if (cpu->kernels == NULL) {
        free(cpu);
        return sd_fail(err, "this cpu has no \"%s\"", isa);
    }

#if defined(__x86_64__)
    if (dev->precision == SD_PRECISION_BF16
        && cpu->kernels == &sd_kernels_avx512
        && __builtin_cpu_supports("avx512bf16"))
    {
        bf16 = "fma";

        if (sd_cpu_dots()) {
            cpu->kernels = &sd_kernels_bf16;

            /* before any thread is there; "avx512" asks for doing without */

            cpu->amx = isa == NULL && sd_cpu_amx_ask();
            bf16 = cpu->amx ? "amx" : "dot";
        }
    }
#endif

    if (dev->precision == SD_PRECISION_BF16 && bf16 == NULL) {
        free(cpu);
        return sd_fail(err, "bf16 needs AVX512_BF16, which %s has not",
                       isa == NULL ? "this cpu" : isa);
    }

    if (sd_pool_create(&cpu->pool, threads, dev->name, err) != SD_OK) {
        free(cpu);
        return SD_ERROR;
    }

    snprintf(dev->isa, sizeof(dev->isa), "%s", cpu->kernels->isa);
    snprintf(dev->numerics, sizeof(dev->numerics), "%s",
             cpu->kernels->numerics);

    if (dev->precision == SD_PRECISION_BF16) {
        snprintf(dev->isa, sizeof(dev->isa), "%s",
                 cpu->amx ? "avx512+amx" : "avx512");
        snprintf(dev->numerics, sizeof(dev->numerics), "cpu-bf16-%s-2", bf16);
    }

    dev->threads = sd_pool_threads(cpu->pool);
    dev->impl = cpu;

    return SD_OK;
}


static void
sd_cpu_close(sd_device_t *dev)
{
    sd_cpu_t  *cpu = dev->impl;

    sd_pool_destroy(cpu->pool);
    free(cpu);
}


static int
sd_cpu_bind(sd_device_t *dev)
{
    return sd_pool_bind(((sd_cpu_t *) dev->impl)->pool);
}


static void *
sd_cpu_alloc(sd_device_t *dev, size_t size)
{
    void  *p;

    p = mmap(NULL, size, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1,
             0);
    if (p == MAP_FAILED) {
        return NULL;
    }

    if (size >= (size_t) 4 << 20) {
        (void) madvise(p, size, MADV_HUGEPAGE);
    }

    return p;
}


static void
sd_cpu_free(sd_device_t *dev, void *p, size_t size)
{
    munmap(p, size);
}


/* transfers; the activation type is F32 */

static size_t
sd_cpu_count(sd_tensor_t t)
{
    return (size_t) t.n * t.h * t.w * t.c;
}


static int
sd_cpu_upload(sd_context_t *cx, sd_tensor_t t, const float *src)
{
    if (t.type != SD_F32) {
        return sd_fail(cx->err, "upload: not F32");
    }

    memcpy(t.data, src, sd_cpu_count(t) * sizeof(float));
    return SD_OK;
}


static int
sd_cpu_download(sd_context_t *cx, float *dst, sd_tensor_t t)
{
    if (t.type != SD_F32) {
        return sd_fail(cx->err, "download: not F32");
    }

    memcpy(dst, t.data, sd_cpu_count(t) * sizeof(float));
    return SD_OK;
}


static int
sd_cpu_download_u8(sd_context_t *cx, uint8_t *dst, sd_tensor_t t)
{
    memcpy(dst, t.data, sd_cpu_count(t));
    return SD_OK;
}


static int
sd_cpu_copy(sd_context_t *cx, void *dst, const void *src, size_t size)
{
    memcpy(dst, src, size);
    return SD_OK;
}


/* what the kernels of the chosen instruction set do */

static int
sd_cpu_conv2d(sd_context_t *cx, sd_tensor_t y, const sd_conv2d_t *d)
{
    return sd_cpu_kernels(cx->device)->conv2d(cx, y, d);
}


static int
sd_cpu_group_norm(sd_context_t *cx, sd_tensor_t y, const sd_group_norm_t *d)
{
    return sd_cpu_kernels(cx->device)->group_norm(cx, y, d);
}


static int
sd_cpu_linear(sd_context_t *cx, sd_tensor_t y, const sd_linear_t *d)
{
    return sd_cpu_kernels(cx->device)->linear(cx, y, d);
}


static int
sd_cpu_layer_norm(sd_context_t *cx, sd_tensor_t y, const sd_layer_norm_t *d)
{
    return sd_cpu_kernels(cx->device)->layer_norm(cx, y, d);
}


static int
sd_cpu_attention(sd_context_t *cx, sd_tensor_t o, const sd_attention_t *d)
{
    return sd_cpu_kernels(cx->device)->attention(cx, o, d);
}


/* the small ones */

static int
sd_cpu_embed(sd_context_t *cx, sd_tensor_t y, const sd_embed_t *d)
{
    int           i, j;
    float        *out;
    const float  *row, *position;

    for (i = 0; i < y.n * y.w; i++) {
        row = (float *) d->table->data + (size_t) d->ids[i] * y.c;
        position = (float *) d->position->data + (size_t) (i % y.w) * y.c;
        out = (float *) y.data + (size_t) i * y.c;

        for (j = 0; j < y.c; j++) {
            out[j] = row[j] + position[j];
        }
    }

    return SD_OK;
}


static int
sd_cpu_scale(sd_context_t *cx, sd_tensor_t y, sd_tensor_t x, float scale)
{
    float        *out = y.data;
    size_t        i, n;
    const float  *in = x.data;

    if (cx->plan) {
        return SD_OK;
    }

    n = sd_cpu_count(x);

    for (i = 0; i < n; i++) {
        out[i] = in[i] * scale;
    }

    return SD_OK;
}


/* whether a slot's samples are in a batch of m; an empty one has none */

static int
sd_cpu_slot(sd_context_t *cx, const sd_slot_t *t, int slot, int m, int *rows)
{
    *rows = t->out < 0 ? 0 : t->guided ? 2 : 1;

    if (t->out > m - *rows || t->nkept < 0 || t->nkept > SD_KEPT) {
        return sd_fail(cx->err, "slot %d has samples %d..%d of %d and %d kept "
                       "tensors", slot, (int) t->out, (int) t->out + *rows, m,
                       (int) t->nkept);
    }

    return SD_OK;
}


static int
sd_cpu_scale_input(sd_context_t *cx, sd_tensor_t y, const sd_slot_t *slots,
    int n)
{
    int      s, row, rows;
    float   *out;
    size_t   i, size;

    if (cx->plan) {
        return SD_OK;
    }

    size = (size_t) y.h * y.w * y.c;

    for (s = 0; s < n; s++) {
        if (sd_cpu_slot(cx, &slots[s], s, y.n, &rows) != SD_OK) {
            return SD_ERROR;
        }

        for (row = 0; row < rows; row++) {
            out = (float *) y.data + (slots[s].out + row) * size;

            for (i = 0; i < size; i++) {
                out[i] = slots[s].x[i] * slots[s].scale_in;
            }
        }
    }

    return SD_OK;
}


/* NHWC index of element i of a picture in the order NCHW */

static inline size_t
sd_cpu_nhwc(size_t i, size_t hw, int c)
{
    return i % hw * c + i / hw;
}


static int
sd_cpu_sampler_step(sd_context_t *cx, sd_tensor_t y, const sd_slot_t *slots,
    int n)
{
    int               s, i, j, nin, rows;
    float             in[3 + SD_KEPT + 2], v[1 + SD_KEPT];
    size_t            e, at, size, hw;
    const float      *out, *cond;
    const sd_slot_t  *t;

    if (cx->plan) {
        return SD_OK;
    }

    hw = (size_t) y.h * y.w;
    size = hw * y.c;
    nin = 3 + SD_KEPT + 2;

    for (s = 0; s < n; s++) {
        t = &slots[s];

        if (sd_cpu_slot(cx, t, s, y.n, &rows) != SD_OK) {
            return SD_ERROR;
        }

        if (rows == 0) {
            continue;
        }

        out = (float *) y.data + t->out * size;
        cond = out + size;

        for (e = 0; e < size; e++) {
            at = sd_cpu_nhwc(e, hw, y.c);

            memset(in, 0, sizeof(in));

            in[0] = t->x[at];
            in[1] = t->guided ? out[at] + t->guidance * (cond[at] - out[at])
                              : out[at];
            in[2] = t->a * in[0] + t->b * in[1];

            if (t->clamp > 0) {
                in[2] = sd_min(sd_max(in[2], -t->clamp), t->clamp);
            }

            for (i = 0; i < t->nkept; i++) {
                in[3 + i] = t->kept[i * size + at];
            }

            /* noise that no row of the matrix reads is not drawn */

            for (j = 0; j < 2; j++) {
                for (i = 0; i <= t->nkept; i++) {
                    if (t->m[i][3 + SD_KEPT + j] != 0) {
                        in[3 + SD_KEPT + j] = sd_philox_normal(t->seed,
                                                 t->draw + j, (uint32_t) e);
                        break;
                    }
                }
            }

            for (i = 0; i <= t->nkept; i++) {
                v[i] = 0;

                for (j = 0; j < nin; j++) {
                    v[i] += t->m[i][j] * in[j];
                }
            }

            t->next[at] = v[0];

            for (i = 0; i < t->nkept; i++) {
                t->kept_next[i * size + at] = v[1 + i];
            }

            t->denoised[at] = in[2];
        }
    }

    return SD_OK;
}


static int
sd_cpu_noise(sd_context_t *cx, sd_tensor_t x, const uint64_t *seeds,
    uint32_t draw, float scale)
{
    int      s;
    float   *out;
    size_t   e, n, hw;

    if (cx->plan) {
        return SD_OK;
    }

    hw = (size_t) x.h * x.w;
    n = hw * x.c;

    for (s = 0; s < x.n; s++) {
        out = (float *) x.data + s * n;

        for (e = 0; e < n; e++) {
            out[sd_cpu_nhwc(e, hw, x.c)] =
                scale * sd_philox_normal(seeds[s], draw, (uint32_t) e);
        }
    }

    return SD_OK;
}


static inline uint8_t
sd_cpu_byte(float v)
{
    v = v * 127.5f + 127.5f;

    /* also what is not a number */

    if (!(v > 0)) {
        return 0;
    }

    return v >= 255 ? 255 : (uint8_t) (v + 0.5f);
}


static int
sd_cpu_preview_rgb(sd_context_t *cx, sd_tensor_t y, sd_tensor_t x,
    const float *factors, const float *bias)
{
    int           i, j;
    float         v;
    size_t        p, n;
    uint8_t      *out = y.data;
    const float  *in = x.data;

    if (cx->plan) {
        return SD_OK;
    }

    n = (size_t) x.n * x.h * x.w;

    for (p = 0; p < n; p++) {
        for (j = 0; j < 3; j++) {
            v = bias[j];

            for (i = 0; i < x.c; i++) {
                v += in[i] * factors[i * 3 + j];
            }

            *out++ = sd_cpu_byte(v);
        }

        in += x.c;
    }

    return SD_OK;
}


static int
sd_cpu_image_rgb8(sd_context_t *cx, sd_tensor_t y, sd_tensor_t x)
{
    size_t        i, n;
    uint8_t      *out = y.data;
    const float  *in = x.data;

    if (cx->plan) {
        return SD_OK;
    }

    n = sd_cpu_count(x);

    for (i = 0; i < n; i++) {
        out[i] = sd_cpu_byte(in[i]);
    }

    return SD_OK;
}


const sd_ops_t  sd_ops_cpu = {
    .name = "cpu",
    .type = SD_F32,
    .pictures = 1,
    .packing = SD_CPU_PACKING,

    .open = sd_cpu_open,
    .close = sd_cpu_close,
    .bind = sd_cpu_bind,
    .alloc = sd_cpu_alloc,
    .free = sd_cpu_free,

    .weight_size = sd_cpu_weight_size,
    .weight_pack = sd_cpu_weight_pack,

    .upload = sd_cpu_upload,
    .download = sd_cpu_download,
    .download_u8 = sd_cpu_download_u8,
    .put = sd_cpu_copy,
    .copy = sd_cpu_copy,

    .conv2d = sd_cpu_conv2d,
    .group_norm = sd_cpu_group_norm,
    .linear = sd_cpu_linear,
    .layer_norm = sd_cpu_layer_norm,
    .attention = sd_cpu_attention,
    .embed = sd_cpu_embed,
    .scale_input = sd_cpu_scale_input,
    .sampler_step = sd_cpu_sampler_step,
    .noise = sd_cpu_noise,
    .preview_rgb = sd_cpu_preview_rgb,
    .image_rgb8 = sd_cpu_image_rgb8,
    .scale = sd_cpu_scale
};
