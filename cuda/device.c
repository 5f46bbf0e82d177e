/*
 * Cards and contexts, memory and transfers, recordings, and the table of
 * operations: see cuda.h.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda.h"


struct sd_recording_s {
    cudaGraphExec_t  exec;
};


static void sd_cuda_close(sd_device_t *dev);
static int sd_cuda_properties(sd_cuda_device_t *d, sd_device_t *dev,
    sd_error_t *err);
static void sd_cuda_context_free(sd_context_t *cx);


int
sd_cuda_fail(sd_error_t *err, cudaError_t rc, const char *what)
{
    return sd_fail(err, "cuda: %s: %s", what, cudaGetErrorString(rc));
}


int
sd_cuda_done(sd_context_t *cx, cudaError_t rc, const char *what)
{
    return rc == cudaSuccess ? SD_OK : sd_cuda_fail(cx->err, rc, what);
}


/* devices */

static int
sd_cuda_devices(int *n, sd_error_t *err)
{
    int          version;
    cudaError_t  rc;

    *n = 0;

    rc = cudaGetDeviceCount(n);

    if (rc == cudaErrorInsufficientDriver) {

        if (cudaDriverGetVersion(&version) != cudaSuccess || version == 0) {
            return sd_fail(err, "cuda: there is no NVIDIA driver");
        }

        return sd_fail(err, "cuda: the driver is too old: it knows CUDA "
                       "%d.%d, and %d.%d is needed", version / 1000,
                       version % 1000 / 10, CUDART_VERSION / 1000,
                       CUDART_VERSION % 1000 / 10);
    }

    if (rc == cudaErrorNoDevice || (rc == cudaSuccess && *n == 0)) {
        return sd_fail(err, "cuda: there is no card");
    }

    return rc == cudaSuccess ? SD_OK : sd_cuda_fail(err, rc, "cards");
}


static int
sd_cuda_open(sd_device_t *dev, int threads, const char *isa, sd_error_t *err)
{
    char              *end;
    int                n;
    long               ordinal;
    const char        *colon;
    sd_cuda_device_t  *d;

    if (dev->precision != SD_PRECISION_EXACT) {
        return sd_fail(err, "%s computes in fp16: bf16 is for the cpu",
                       dev->name);
    }

    if (sd_cuda_devices(&n, err) != SD_OK) {
        return SD_ERROR;
    }

    colon = strchr(dev->name, ':');
    ordinal = 0;

    if (colon) {
        ordinal = strtol(colon + 1, &end, 10);

        if (end == colon + 1 || *end || ordinal < 0 || ordinal >= n) {
            return sd_fail(err, "no device \"%s\": there are %d", dev->name,
                           n);
        }
    }

    d = calloc(1, sizeof(sd_cuda_device_t));

    if (d == NULL) {
        return sd_fail(err, "no memory for a device");
    }

    d->ordinal = (int) ordinal;
    d->tune = 1;
    pthread_mutex_init(&d->lock, NULL);

    dev->impl = d;

    if (sd_cuda_properties(d, dev, err) != SD_OK) {
        sd_cuda_close(dev);
        dev->impl = NULL;
        return SD_ERROR;
    }

    return SD_OK;
}


static int
sd_cuda_properties(sd_cuda_device_t *d, sd_device_t *dev, sd_error_t *err)
{
    int            major, minor;
    uint64_t       keep;
    cudaError_t    rc;
    cudaMemPool_t  pool;

    rc = cudaSetDevice(d->ordinal);

    if (rc == cudaSuccess) {
        rc = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor,
                                    d->ordinal);
    }

    if (rc == cudaSuccess) {
        rc = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor,
                                    d->ordinal);
    }

    if (rc == cudaSuccess) {
        rc = cudaDeviceGetAttribute(&d->chip.sms,
                                    cudaDevAttrMultiProcessorCount,
                                    d->ordinal);
    }

    if (rc == cudaSuccess) {
        rc = cudaDeviceGetAttribute(&d->chip.shared,
                                    cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                    d->ordinal);
    }

    if (rc == cudaSuccess) {
        rc = cudaStreamCreateWithFlags(&d->transfer, cudaStreamNonBlocking);
    }

    if (rc == cudaSuccess) {
        rc = cudaDeviceGetDefaultMemPool(&pool, d->ordinal);
    }

    /* what was a picture's will be another's */

    if (rc == cudaSuccess) {
        keep = UINT64_MAX;
        rc = cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold,
                                     &keep);
    }

    if (rc != cudaSuccess) {
        return sd_cuda_fail(err, rc, dev->name);
    }

    d->chip.arch = major * 10 + minor;

    if (d->chip.arch < 80) {
        return sd_fail(err, "%s has compute capability %d.%d: 8.0 is needed",
                       dev->name, major, minor);
    }

    if (cublasLtCreate(&d->lt) != CUBLAS_STATUS_SUCCESS) {
        return sd_fail(err, "%s: cublasLt does not start", dev->name);
    }

    snprintf(dev->isa, sizeof(dev->isa), "sm_%d", d->chip.arch);
    snprintf(dev->numerics, sizeof(dev->numerics),
             "cuda-fp16-sm_%d-cudnn%zu-cublas%zu-2", d->chip.arch,
             cudnnGetVersion(), cublasLtGetVersion());

    return SD_OK;
}


static void
sd_cuda_close(sd_device_t *dev)
{
    sd_cuda_device_t  *d = dev->impl;

    cudaSetDevice(d->ordinal);

    sd_cuda_plans_free(d);

    if (d->lt) {
        cublasLtDestroy(d->lt);
    }

    if (d->transfer) {
        cudaStreamDestroy(d->transfer);
    }

    pthread_mutex_destroy(&d->lock);
    free(d);
}


/* an error that a kernel or the hardware made is every call's from then on */

static int
sd_cuda_alive(sd_device_t *dev)
{
    cudaError_t        rc;
    sd_cuda_device_t  *d = dev->impl;

    (void) cudaGetLastError();
    rc = cudaSetDevice(d->ordinal);

    if (rc == cudaSuccess) {
        rc = cudaStreamQuery(d->transfer);
    }

    return rc == cudaSuccess || rc == cudaErrorNotReady;
}


static void
sd_cuda_tune(sd_device_t *dev, int on)
{
    sd_cuda_device_t  *d = dev->impl;

    pthread_mutex_lock(&d->lock);
    d->tune = on;
    pthread_mutex_unlock(&d->lock);
}


static int
sd_cuda_memory(sd_device_t *dev, size_t *left, size_t *total)
{
    sd_cuda_device_t  *d = dev->impl;

    return cudaSetDevice(d->ordinal) == cudaSuccess
           && cudaMemGetInfo(left, total) == cudaSuccess ? SD_OK : SD_ERROR;
}


/*
 * Pictures come and go beside others that are stepped, and cudaFree() waits for
 * all of the device: so what is not big is from the driver's pool, in the order
 * of the stream of transfers, which is idle but for a moment.  Who frees has
 * waited for his own stream.
 */

static void *
sd_cuda_alloc(sd_device_t *dev, size_t size)
{
    void              *p;
    cudaError_t        rc;
    sd_cuda_device_t  *d = dev->impl;

    rc = cudaSetDevice(d->ordinal);

    if (rc == cudaSuccess && size < SD_CUDA_BIG) {
        rc = cudaMallocAsync(&p, size, d->transfer);

        if (rc == cudaSuccess) {
            rc = cudaStreamSynchronize(d->transfer);
        }

    } else if (rc == cudaSuccess) {
        rc = cudaMalloc(&p, size);
    }

    if (rc != cudaSuccess) {
        (void) cudaGetLastError();
        return NULL;
    }

    return p;
}


static void
sd_cuda_free(sd_device_t *dev, void *p, size_t size)
{
    sd_cuda_device_t  *d = dev->impl;

    if (size < SD_CUDA_BIG) {
        cudaFreeAsync(p, d->transfer);
    } else {
        cudaFree(p);
    }
}


/* contexts; cudaSetDevice() is for the calling thread, which is the one that
 * will use it */

static int
sd_cuda_context_init(sd_context_t *cx, size_t size)
{
    cudaError_t         rc;
    sd_cuda_device_t   *d = cx->device->impl;
    sd_cuda_context_t  *c;

    c = calloc(1, sizeof(sd_cuda_context_t));

    if (c == NULL) {
        return sd_fail(cx->err, "no memory for a context");
    }

    cx->impl = c;

    c->device = d;

    rc = cudaSetDevice(d->ordinal);

    if (rc == cudaSuccess && size == 0) {
        c->stream = d->transfer;
        return SD_OK;
    }

    if (rc == cudaSuccess) {
        rc = cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking);
        c->owned = rc == cudaSuccess;
    }

    if (rc == cudaSuccess) {
        rc = cudaMalloc(&c->workspace, SD_CUDA_WORKSPACE);
    }

    if (rc != cudaSuccess) {
        sd_cuda_fail(cx->err, rc, "no context");

    } else if (cudnnCreate(&c->cudnn) != CUDNN_STATUS_SUCCESS
               || cudnnSetStream(c->cudnn, c->stream)
                  != CUDNN_STATUS_SUCCESS)
    {
        sd_fail(cx->err, "cudnn does not start");

    } else {
        return SD_OK;
    }

    sd_cuda_context_free(cx);
    cx->impl = NULL;

    return SD_ERROR;
}


static void
sd_cuda_context_free(sd_context_t *cx)
{
    sd_cuda_context_t  *c = sd_cuda_of(cx);

    if (c->owned) {
        cudaStreamSynchronize(c->stream);
    }

    if (c->cudnn) {
        cudnnDestroy(c->cudnn);
    }

    if (c->owned) {
        cudaStreamDestroy(c->stream);
    }

    cudaFree(c->workspace);
    free(c);
}


/* transfers.  The driver copies what is pageable before it returns, so a
 * source may change then */

static size_t
sd_cuda_count(sd_tensor_t t)
{
    return (size_t) t.n * t.h * t.w * t.c;
}


static int
sd_cuda_wait(sd_context_t *cx)
{
    return sd_cuda_done(cx, cudaStreamSynchronize(sd_cuda_stream(cx)),
                        "the device");
}


static int
sd_cuda_put(sd_context_t *cx, void *dst, const void *src, size_t size)
{
    return sd_cuda_done(cx, cudaMemcpyAsync(dst, src, size,
                                            cudaMemcpyHostToDevice,
                                            sd_cuda_stream(cx)), "upload");
}


static int
sd_cuda_copy(sd_context_t *cx, void *dst, const void *src, size_t size)
{
    return sd_cuda_done(cx, cudaMemcpyAsync(dst, src, size,
                                            cudaMemcpyDeviceToDevice,
                                            sd_cuda_stream(cx)), "copy");
}


static int
sd_cuda_get(sd_context_t *cx, void *dst, const void *src, size_t size)
{
    if (sd_cuda_done(cx, cudaMemcpyAsync(dst, src, size,
                                         cudaMemcpyDeviceToHost,
                                         sd_cuda_stream(cx)), "download")
        != SD_OK)
    {
        return SD_ERROR;
    }

    return sd_cuda_wait(cx);
}


static int
sd_cuda_upload(sd_context_t *cx, sd_tensor_t t, const float *src)
{
    int        rc;
    size_t     i, n;
    _Float16  *half;

    n = sd_cuda_count(t);

    if (t.type == SD_F32) {
        return sd_cuda_put(cx, t.data, src, n * sizeof(float));
    }

    half = malloc(n * sizeof(_Float16));

    if (half == NULL) {
        return sd_fail(cx->err, "no memory for an upload");
    }

    for (i = 0; i < n; i++) {
        half[i] = (_Float16) src[i];
    }

    rc = sd_cuda_put(cx, t.data, half, n * sizeof(_Float16));
    free(half);

    return rc;
}


static int
sd_cuda_download(sd_context_t *cx, float *dst, sd_tensor_t t)
{
    int        rc;
    size_t     i, n;
    _Float16  *half;

    n = sd_cuda_count(t);

    if (t.type == SD_F32) {
        return sd_cuda_get(cx, dst, t.data, n * sizeof(float));
    }

    half = malloc(n * sizeof(_Float16));

    if (half == NULL) {
        return sd_fail(cx->err, "no memory for a download");
    }

    rc = sd_cuda_get(cx, half, t.data, n * sizeof(_Float16));

    for (i = 0; i < n && rc == SD_OK; i++) {
        dst[i] = half[i];
    }

    free(half);

    return rc;
}


static int
sd_cuda_download_u8(sd_context_t *cx, uint8_t *dst, sd_tensor_t t)
{
    return sd_cuda_get(cx, dst, t.data, sd_cuda_count(t));
}


/* recordings; relaxed, as choosing a plan in between allocates and waits, in
 * streams of its own */

static int
sd_cuda_record(sd_context_t *cx)
{
    return sd_cuda_done(cx,
                        cudaStreamBeginCapture(sd_cuda_stream(cx),
                                               cudaStreamCaptureModeRelaxed),
                        "recording");
}


static int
sd_cuda_record_end(sd_context_t *cx, sd_recording_t **out)
{
    cudaError_t      rc;
    cudaGraph_t      graph;
    sd_recording_t  *r;

    graph = NULL;
    rc = cudaStreamEndCapture(sd_cuda_stream(cx), &graph);

    r = calloc(1, sizeof(sd_recording_t));

    if (rc == cudaSuccess && r != NULL) {
        rc = cudaGraphInstantiate(&r->exec, graph, 0);
    }

    if (rc == cudaSuccess && r != NULL) {
        rc = cudaGraphUpload(r->exec, sd_cuda_stream(cx));
    }

    if (graph) {
        cudaGraphDestroy(graph);
    }

    *out = r;

    if (r == NULL) {
        return sd_fail(cx->err, "no memory for a recording");
    }

    return sd_cuda_done(cx, rc, "recording");
}


static int
sd_cuda_replay(sd_context_t *cx, sd_recording_t *r)
{
    return sd_cuda_done(cx, cudaGraphLaunch(r->exec, sd_cuda_stream(cx)),
                        "replay");
}


static void
sd_cuda_recording_free(sd_device_t *dev, sd_recording_t *r)
{
    if (r->exec) {
        cudaGraphExecDestroy(r->exec);
    }

    free(r);
}


/* operations that are one launch */

static int
sd_cuda_norm_groups(sd_context_t *cx, sd_tensor_t y, const sd_group_norm_t *d)
{
    sd_cuda_packed_t      p;
    sd_cuda_context_t    *c = sd_cuda_of(cx);
    sd_cuda_group_norm_t  g = { 0 };

    if (cx->plan) {
        return SD_OK;
    }

    sd_cuda_packed(d->w, &p);

    g.y = y.data;
    g.x = d->x.data;
    g.x2 = d->x2.data;
    g.gamma = d->w->data;
    g.beta = (float *) ((char *) d->w->data + p.bias);
    g.addend = d->addend.columns ? (const float *const *) d->addend.at : NULL;
    g.addend_at = d->addend_at;
    g.n = y.n;
    g.hw = y.h * y.w;
    g.c = d->x.c;
    g.c2 = sd_empty(&d->x2) ? 0 : d->x2.c;
    g.groups = d->groups;
    g.eps = d->eps;
    g.silu = d->silu;
    g.scratch = c->workspace;

    if (sd_cuda_group_norm_scratch(g.n, g.hw, y.c, g.groups)
        > SD_CUDA_WORKSPACE)
    {
        return sd_fail(cx->err, "group_norm: [%d, %d, %d] is too big", g.n,
                       g.hw, y.c);
    }

    return sd_cuda_done(cx, sd_cuda_group_norm(c->stream, &c->device->chip,
                                               &g), "group_norm");
}


static int
sd_cuda_norm_layer(sd_context_t *cx, sd_tensor_t y, const sd_layer_norm_t *d)
{
    sd_cuda_packed_t  p;

    if (cx->plan) {
        return SD_OK;
    }

    sd_cuda_packed(d->w, &p);

    return sd_cuda_done(cx, sd_cuda_layer_norm(sd_cuda_stream(cx), y.data,
                                d->x.data, d->w->data,
                                (float *) ((char *) d->w->data + p.bias),
                                y.n * y.h * y.w, y.c, d->eps), "layer_norm");
}


static int
sd_cuda_embedding(sd_context_t *cx, sd_tensor_t y, const sd_embed_t *d)
{
    size_t  size;
    void   *ids;

    size = (size_t) y.n * y.w * sizeof(int32_t);
    ids = sd_cuda_of(cx)->workspace;

    if (size > SD_CUDA_WORKSPACE) {
        return sd_fail(cx->err, "embed: %d tokens are too many", y.n * y.w);
    }

    if (sd_cuda_put(cx, ids, d->ids, size) != SD_OK) {
        return SD_ERROR;
    }

    return sd_cuda_done(cx, sd_cuda_embed(sd_cuda_stream(cx), y.data, ids,
                                          d->table->data, d->position->data,
                                          y.n, y.w, y.c), "embed");
}


static int
sd_cuda_scale_slots(sd_context_t *cx, sd_tensor_t y, const sd_slot_t *slots,
    int n)
{
    if (cx->plan) {
        return SD_OK;
    }

    return sd_cuda_done(cx, sd_cuda_scale_input(sd_cuda_stream(cx), y.data,
                                                slots, n, y.h * y.w * y.c),
                        "scale_input");
}


static int
sd_cuda_step_slots(sd_context_t *cx, sd_tensor_t out, const sd_slot_t *slots,
    int n)
{
    if (cx->plan) {
        return SD_OK;
    }

    return sd_cuda_done(cx, sd_cuda_sampler_step(sd_cuda_stream(cx), out.data,
                                                 slots, n, out.h * out.w,
                                                 out.c),
                        "sampler_step");
}


static int
sd_cuda_noises(sd_context_t *cx, sd_tensor_t x, const uint64_t *seeds,
    uint32_t draw, float scale)
{
    int     i, rc;
    float  *to = x.data;

    if (cx->plan) {
        return SD_OK;
    }

    for (i = 0, rc = SD_OK; i < x.n && rc == SD_OK; i++) {
        rc = sd_cuda_done(cx, sd_cuda_noise(sd_cuda_stream(cx),
                                to + (size_t) i * x.h * x.w * x.c, seeds[i],
                                draw, scale, x.h * x.w, x.c), "noise");
    }

    return rc;
}


static int
sd_cuda_preview(sd_context_t *cx, sd_tensor_t y, sd_tensor_t x,
    const float *factors, const float *bias)
{
    int            i, j;
    sd_cuda_rgb_t  rgb = { 0 };

    if (cx->plan) {
        return SD_OK;
    }

    if (x.c > 16) {
        return sd_fail(cx->err, "preview_rgb: %d channels are too many", x.c);
    }

    for (j = 0; j < 3; j++) {
        for (i = 0; i < x.c; i++) {
            rgb.factors[i][j] = factors[i * 3 + j];
        }

        rgb.bias[j] = bias[j];
    }

    return sd_cuda_done(cx, sd_cuda_preview_rgb(sd_cuda_stream(cx), y.data,
                                x.data, &rgb, (size_t) x.n * x.h * x.w, x.c),
                        "preview_rgb");
}


static int
sd_cuda_image(sd_context_t *cx, sd_tensor_t y, sd_tensor_t x)
{
    if (cx->plan) {
        return SD_OK;
    }

    return sd_cuda_done(cx, sd_cuda_image_rgb8(sd_cuda_stream(cx), y.data,
                                               x.data, sd_cuda_count(x)),
                        "image_rgb8");
}


static int
sd_cuda_scaled(sd_context_t *cx, sd_tensor_t y, sd_tensor_t x, float scale)
{
    if (cx->plan) {
        return SD_OK;
    }

    return sd_cuda_done(cx, sd_cuda_scale(sd_cuda_stream(cx), y.data, x.data,
                                          x.type == SD_F16, scale,
                                          sd_cuda_count(x)), "scale");
}


static const sd_ops_t  sd_ops_cuda = {
    .name = "cuda",
    .type = SD_F16,
    .pictures = 16,

    .open = sd_cuda_open,
    .close = sd_cuda_close,
    .memory = sd_cuda_memory,
    .alive = sd_cuda_alive,
    .plans = sd_cuda_plans,
    .tune = sd_cuda_tune,
    .alloc = sd_cuda_alloc,
    .free = sd_cuda_free,

    .context_init = sd_cuda_context_init,
    .context_free = sd_cuda_context_free,

    .weight_size = sd_cuda_weight_size,
    .weight_pack = sd_cuda_weight_pack,

    .upload = sd_cuda_upload,
    .download = sd_cuda_download,
    .download_u8 = sd_cuda_download_u8,
    .put = sd_cuda_put,
    .copy = sd_cuda_copy,

    .wait = sd_cuda_wait,
    .record = sd_cuda_record,
    .record_end = sd_cuda_record_end,
    .replay = sd_cuda_replay,
    .recording_free = sd_cuda_recording_free,

    .conv2d = sd_cuda_conv2d,
    .group_norm = sd_cuda_norm_groups,
    .linear = sd_cuda_linear,
    .layer_norm = sd_cuda_norm_layer,
    .attention = sd_cuda_attend,
    .embed = sd_cuda_embedding,
    .scale_input = sd_cuda_scale_slots,
    .sampler_step = sd_cuda_step_slots,
    .noise = sd_cuda_noises,
    .preview_rgb = sd_cuda_preview,
    .image_rgb8 = sd_cuda_image,
    .scale = sd_cuda_scaled
};


__attribute__((visibility("default")))
const sd_cuda_entry_t  sd_cuda_entry = {
    SD_CUDA_ABI, sizeof(sd_context_t), sizeof(sd_ops_t), &sd_ops_cuda,
    sd_cuda_devices
};
