/*
 * The cuda backend's face in libsd.a: see cuda.h.
 */

#define _GNU_SOURCE

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cuda.h"


#ifndef SD_CUDA_DIR
#define SD_CUDA_DIR  "/usr/lib/nginx/modules"
#endif


static struct {
    pthread_once_t           once;
    const sd_cuda_entry_t   *entry;
    sd_error_t               err;
} sd_cuda = { PTHREAD_ONCE_INIT, NULL, { 0 } };


static const char *
sd_cuda_name(const char *path)
{
    const char  *slash;

    slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}


/* Beside the file that this code is in.  If that is the program itself, which
 * may know no more of its path than its name, also where make install puts it:
 * beside the module */

static void
sd_cuda_path(const char *file, char *path, size_t size)
{
    int      program;
    char     exe[PATH_MAX];
    ssize_t  n;

    n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
    exe[n > 0 ? n : 0] = '\0';

    program = strcmp(sd_cuda_name(file), sd_cuda_name(exe)) == 0;

    if (program) {
        file = exe;
    }

    snprintf(path, size, "%.*ssd_cuda.so", (int) (sd_cuda_name(file) - file),
             file);

    if (program && access(path, F_OK) != 0) {
        snprintf(path, size, "%s", SD_CUDA_DIR "/sd_cuda.so");
    }
}


/*
 * A library that is missing is named in dlerror(); it stays loaded, as CUDA's
 * own threads and handlers do.  The driver's is looked for before: without it
 * CUDA's libraries would take 150 MB of a process for nothing.
 */

static void
sd_cuda_open(void)
{
    char                    path[PATH_MAX];
    void                   *so;
    Dl_info                 info;
    const sd_cuda_entry_t  *entry;

    if (dladdr((void *) sd_cuda_open, &info) == 0 || info.dli_fname == NULL) {
        sd_fail(&sd_cuda.err, "cannot tell where sd_cuda.so would be");
        return;
    }

    sd_cuda_path(info.dli_fname, path, sizeof(path));

    if (access(path, F_OK) == 0
        && dlopen("libcuda.so.1", RTLD_NOW|RTLD_LOCAL) == NULL)
    {
        sd_fail(&sd_cuda.err, "%s: there is no NVIDIA driver: %s", path,
                dlerror());
        return;
    }

    so = dlopen(path, RTLD_NOW|RTLD_LOCAL);

    if (so == NULL) {
        sd_fail(&sd_cuda.err, "%s", dlerror());
        return;
    }

    entry = dlsym(so, SD_CUDA_ENTRY);

    if (entry == NULL || entry->abi != SD_CUDA_ABI
        || entry->context != sizeof(sd_context_t)
        || entry->ops != sizeof(sd_ops_t))
    {
        sd_fail(&sd_cuda.err, "%s is of another build", path);
        return;
    }

    sd_cuda.entry = entry;
}


static int
sd_cuda_loaded(sd_error_t *err)
{
    pthread_once(&sd_cuda.once, sd_cuda_open);

    if (sd_cuda.entry == NULL) {
        *err = sd_cuda.err;
        return SD_ERROR;
    }

    return SD_OK;
}


int
sd_cuda_load(const sd_ops_t **ops, sd_error_t *err)
{
    if (sd_cuda_loaded(err) != SD_OK) {
        return SD_ERROR;
    }

    *ops = sd_cuda.entry->table;

    return SD_OK;
}


int
sd_cuda_cards(int *n, sd_error_t *err)
{
    return sd_cuda_loaded(err) == SD_OK ? sd_cuda.entry->cards(n, err)
                                        : SD_ERROR;
}


/* plans: what operations take from the arena, and nothing else */

static size_t
sd_cuda_plan_weight_size(sd_device_t *dev, const sd_weight_t *w)
{
    sd_cuda_packed_t  p;

    sd_cuda_packed(w, &p);

    return p.size;
}


static int
sd_cuda_plan_conv2d(sd_context_t *cx, sd_tensor_t y, const sd_conv2d_t *d)
{
    sd_tensor_t  t;

    t = sd_cuda_conv_scratch(cx, &y, d);
    sd_free(cx, &t);

    return cx->status;
}


static int
sd_cuda_plan_linear(sd_context_t *cx, sd_tensor_t y, const sd_linear_t *d)
{
    sd_tensor_t  t;

    t = sd_cuda_linear_scratch(cx, d);
    sd_free(cx, &t);

    return cx->status;
}


static int
sd_cuda_plan_attention(sd_context_t *cx, sd_tensor_t o,
    const sd_attention_t *d)
{
    sd_tensor_t  t;

    t = sd_cuda_attention_scratch(cx, d);
    sd_free(cx, &t);

    return cx->status;
}


static int
sd_cuda_plan_group_norm(sd_context_t *cx, sd_tensor_t y,
    const sd_group_norm_t *d)
{
    return SD_OK;
}


static int
sd_cuda_plan_layer_norm(sd_context_t *cx, sd_tensor_t y,
    const sd_layer_norm_t *d)
{
    return SD_OK;
}


static int
sd_cuda_plan_slots(sd_context_t *cx, sd_tensor_t y, const sd_slot_t *slots,
    int n)
{
    return SD_OK;
}


static int
sd_cuda_plan_noise(sd_context_t *cx, sd_tensor_t x, const uint64_t *seeds,
    uint32_t draw, float scale)
{
    return SD_OK;
}


static int
sd_cuda_plan_preview(sd_context_t *cx, sd_tensor_t y, sd_tensor_t x,
    const float *factors, const float *bias)
{
    return SD_OK;
}


static int
sd_cuda_plan_image(sd_context_t *cx, sd_tensor_t y, sd_tensor_t x)
{
    return SD_OK;
}


static int
sd_cuda_plan_scale(sd_context_t *cx, sd_tensor_t y, sd_tensor_t x,
    float scale)
{
    return SD_OK;
}


const sd_ops_t  sd_ops_cuda_plan = {
    .name = "cuda",
    .type = SD_F16,
    .pictures = 16,

    .weight_size = sd_cuda_plan_weight_size,

    .conv2d = sd_cuda_plan_conv2d,
    .group_norm = sd_cuda_plan_group_norm,
    .linear = sd_cuda_plan_linear,
    .layer_norm = sd_cuda_plan_layer_norm,
    .attention = sd_cuda_plan_attention,
    .scale_input = sd_cuda_plan_slots,
    .sampler_step = sd_cuda_plan_slots,
    .noise = sd_cuda_plan_noise,
    .preview_rgb = sd_cuda_plan_preview,
    .image_rgb8 = sd_cuda_plan_image,
    .scale = sd_cuda_plan_scale
};
