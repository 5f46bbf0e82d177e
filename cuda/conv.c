/*
 * Convolutions by cuDNN's backend API, NHWC fp16 with fp32 sums.
 *
 * The graphs are those that its precompiled engines know: conv, bias; and conv,
 * residual, bias, in that order (the other order would be compiled at run time,
 * for seconds).  1x1 convolutions are matrix products.  What is enlarged by
 * nearest x2 first is that in memory, but on Hopper, where it is enlarged to
 * exactly twice its size: see conv_up.cu.  There the UNet's own are ours, too:
 * see conv_sm90.cu.
 *
 * On Hopper its engines' bits depend on the depth of a slice (32 or 64) and on
 * whether the depth is split, and on nothing else: tile, cluster and batch do
 * not matter (72 of 72 shapes on an H100).  So candidates are slices of 64
 * without a split, and of those the ones whose bits are the first one's.  Where
 * the heuristics propose none, we make some: on an H100 the best of these
 * takes 0.99 to 1.08 times as long as the best of theirs.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "conv_graph.h"
#include "cuda.h"


#define SD_CONV_TRIAL   ((size_t) 192 << 20)


typedef struct {
    sd_cuda_plan_t    plan;
    sd_conv_choice_t  choice;
    sd_desc_t         exec;
} sd_conv_plan_t;

typedef struct {
    cudnnHandle_t      cudnn;
    sd_conv_plan_t    *plan;
    sd_cuda_trial_t   *trial;
    sd_conv_key_t      key;
    size_t             x, y, w;         /* bytes */
} sd_conv_trial_t;


static void
sd_conv_free(sd_cuda_plan_t *plan)
{
    sd_conv_plan_t  *p = (sd_conv_plan_t *) plan;

    if (p->exec) {
        cudnnBackendDestroyDescriptor(p->exec);
    }

    free(p);
}


static int
sd_conv_try(void *data, cudaStream_t stream, int i)
{
    char             *m, *w;
    size_t            left;
    sd_conv_trial_t  *t = data;

    m = t->trial->memory;
    left = t->trial->size - t->x - t->y - t->w;
    w = m + t->x + t->y + (size_t) i * t->w % left / 256 * 256;

    return sd_conv_run(t->cudnn, t->plan->exec, m + t->x, m, w, m,
                       t->key.residual ? m + t->x : NULL,
                       t->trial->workspace)
           == CUDNN_STATUS_SUCCESS ? SD_OK : SD_ERROR;
}


/* the bits that a candidate gives for the same input; 0: it fails */

static uint64_t
sd_conv_bits(sd_conv_trial_t *t)
{
    char      *m;
    size_t     i, n;
    uint64_t   hash, *bits;

    m = t->trial->memory;
    n = t->y;

    bits = malloc(n);

    if (bits == NULL) {
        return 0;
    }

    hash = 0;

    /* the residual is the output's own place: it must be as it was */

    if (sd_cuda_random(t->trial->stream, (sd_half_t *) (m + t->x), t->y / 2)
            == cudaSuccess
        && sd_conv_try(t, t->trial->stream, 0) == SD_OK
        && cudaMemcpyAsync(bits, m + t->x, n, cudaMemcpyDeviceToHost,
                           t->trial->stream) == cudaSuccess
        && cudaStreamSynchronize(t->trial->stream) == cudaSuccess)
    {
        hash = 0xcbf29ce484222325;

        for (i = 0; i < n / sizeof(uint64_t); i++) {
            hash = (hash ^ bits[i]) * 0x100000001b3;
            hash ^= hash >> 29;
        }

        hash |= 1;
    }

    free(bits);
    (void) cudaGetLastError();

    return hash;
}


static int
sd_conv_choose(sd_cuda_device_t *dev, sd_conv_plan_t *p,
    const sd_conv_key_t *key, sd_error_t *err)
{
    int               i, n, own, rc, strict;
    float             us;
    uint64_t          bits, first;
    sd_desc_t         configs[SD_CONV_CONFIGS + SD_CONV_OWN], graph, exec;
    sd_graph_t        g = { 0 };
    sd_conv_choice_t  choice;
    cudnnHandle_t     cudnn;
    sd_cuda_trial_t   trial;
    sd_conv_trial_t   t;

    memset(&t, 0, sizeof(t));

    t.plan = p;
    t.trial = &trial;
    t.key = *key;
    t.x = ((size_t) key->n * key->h * key->w * key->c * 2 + 255) / 256 * 256;
    t.y = ((size_t) key->n * key->oh * key->ow * key->k * 2 + 255) / 256 * 256;
    t.w = ((size_t) key->k * key->r * key->r * key->c * 2 + 255) / 256 * 256;

    memset(&trial, 0, sizeof(trial));

    if (cudnnCreate(&cudnn) != CUDNN_STATUS_SUCCESS) {
        return sd_fail(err, "cudnn does not start");
    }

    if (dev->tune) {
        if (sd_cuda_trial_begin(&trial, t.x + t.y + t.w + SD_CONV_TRIAL, err)
            != SD_OK)
        {
            cudnnDestroy(cudnn);
            return SD_ERROR;
        }

        cudnnSetStream(cudnn, trial.stream);
        t.cudnn = cudnn;
    }

    graph = sd_graph_build(&g, cudnn, key);
    n = sd_graph_configs(&g, graph, configs);
    own = dev->chip.arch == 90 ? sd_graph_own(&g, graph, configs + n) : 0;

    exec = NULL;
    first = 0;

    /* of the class; where the heuristics have none, one of our own; where that
     * fails, too, the first that works */

    for (strict = 1; strict >= 0 && exec == NULL; strict--) {

        for (i = 0; i < n + (strict ? own : 0); i++) {
            if (i == n && exec) {
                break;
            }

            if (!sd_conv_read(configs[i], &choice)
                || (strict && !sd_conv_in_class(&choice)))
            {
                continue;
            }

            p->exec = sd_conv_exec(&g, cudnn, configs[i],
                                   strict ? SD_CONV_LITTLE
                                          : (int64_t) SD_CUDA_WORKSPACE);

            if (p->exec == NULL) {
                continue;
            }

            if (!dev->tune) {
                exec = p->exec;
                p->choice = choice;
                break;
            }

            bits = sd_conv_bits(&t);

            if (bits == 0 || (first && bits != first)) {
                cudnnBackendDestroyDescriptor(p->exec);
                continue;
            }

            first = bits;
            us = sd_cuda_trial_time(&trial, sd_conv_try, &t);

            if (us > 0 && (exec == NULL || us < p->plan.us)) {
                if (exec) {
                    cudnnBackendDestroyDescriptor(exec);
                }

                exec = p->exec;
                p->choice = choice;
                p->plan.us = us;

            } else {
                cudnnBackendDestroyDescriptor(p->exec);
            }

            if (exec && !strict) {
                break;
            }
        }
    }

    p->exec = exec;
    rc = SD_OK;

    if (exec == NULL) {
        rc = sd_fail(err, "cudnn has no %dx%d convolution of [%d, %d, %d, %d] "
                     "to %d channels (%s)", key->r, key->r, key->n, key->h,
                     key->w, key->c, key->k, cudnnGetErrorString(g.status));
    }

    sd_graph_free(&g);
    cudnnDestroy(cudnn);

    if (dev->tune) {
        sd_cuda_trial_end(&trial);
    }

    return rc;
}


static sd_conv_plan_t *
sd_conv_plan(sd_cuda_device_t *dev, const sd_conv_key_t *key, sd_error_t *err)
{
    sd_conv_plan_t  *p;

    p = (sd_conv_plan_t *) sd_cuda_plan_find(dev, &sd_cuda_convs, key);

    if (p) {
        return p;
    }

    p = calloc(1, sizeof(sd_conv_plan_t));

    if (p == NULL) {
        sd_fail(err, "no memory for a plan");
        return NULL;
    }

    if (sd_conv_choose(dev, p, key, err) != SD_OK) {
        sd_conv_free(&p->plan);
        return NULL;
    }

    sd_cuda_plan_add(dev, &p->plan, &sd_cuda_convs, key);

    return p;
}


/* engine, then knob=value ... */

static void
sd_conv_save(const sd_cuda_plan_t *plan, char *text, size_t size)
{
    int                    i, n;
    const sd_conv_plan_t  *p = (const sd_conv_plan_t *) plan;

    n = snprintf(text, size, "%d", p->choice.engine);

    for (i = 0; i < p->choice.n && n < (int) size; i++) {
        n += snprintf(text + n, size - n, " %d=%d", p->choice.type[i],
                      p->choice.value[i]);
    }
}


static sd_cuda_plan_t *
sd_conv_load(sd_cuda_device_t *dev, const int *key, const char *text)
{
    int               n;
    sd_graph_t        g = { 0 };
    sd_conv_key_t     k;
    cudnnHandle_t     cudnn;
    sd_conv_plan_t   *p;
    sd_conv_choice_t  c = { 0 };

    memcpy(&k, key, sizeof(k));

    if (sscanf(text, "%d%n", &c.engine, &n) != 1) {
        return NULL;
    }

    for (text += n; c.n < SD_CONV_KNOBS; c.n++, text += n) {
        if (sscanf(text, " %d=%d%n", &c.type[c.n], &c.value[c.n], &n) != 2) {
            break;
        }
    }

    p = calloc(1, sizeof(sd_conv_plan_t));

    if (p == NULL || cudnnCreate(&cudnn) != CUDNN_STATUS_SUCCESS) {
        free(p);
        return NULL;
    }

    p->choice = c;
    p->exec = sd_conv_exec(&g, cudnn,
                           sd_conv_write(&g, sd_graph_build(&g, cudnn, &k),
                                         &c),
                           (int64_t) SD_CUDA_WORKSPACE);

    sd_graph_free(&g);
    cudnnDestroy(cudnn);

    if (p->exec == NULL) {
        free(p);
        return NULL;
    }

    return &p->plan;
}


const sd_cuda_kind_t  sd_cuda_convs = {
    "conv", sizeof(sd_conv_key_t) / sizeof(int), sd_conv_free, sd_conv_save,
    sd_conv_load
};


/* d as our own kernels take it */

static void
sd_conv_own(sd_cuda_conv_t *c, sd_tensor_t y, const sd_conv2d_t *d)
{
    sd_cuda_packed_t  p;

    sd_cuda_packed(d->w, &p);

    memset(c, 0, sizeof(*c));

    c->y = y.data;
    c->x = d->x.data;
    c->x2 = d->x2.data;
    c->w = d->w->data;
    c->bias = (sd_half_t *) ((char *) d->w->data + p.bias);
    c->residual = d->residual.data;
    c->n = d->x.n;
    c->h = d->x.h;
    c->wd = d->x.w;
    c->c = d->x.c;
    c->c2 = sd_empty(&d->x2) ? 0 : d->x2.c;
    c->oh = y.h;
    c->ow = y.w;
    c->k = y.c;
    c->r = d->w->r;
    c->stride = d->w->stride;
    c->upsample = d->w->upsample;
}


/* by cuDNN */

static int
sd_conv_library(sd_context_t *cx, sd_tensor_t y, const sd_conv2d_t *d,
    const sd_tensor_t *x)
{
    cudnnStatus_t       rc;
    sd_conv_key_t       key;
    sd_conv_plan_t     *plan;
    sd_cuda_packed_t    p;
    sd_cuda_context_t  *c = sd_cuda_of(cx);

    sd_cuda_packed(d->w, &p);

    memset(&key, 0, sizeof(key));

    key.n = x->n;
    key.h = x->h;
    key.w = x->w;
    key.c = x->c;
    key.oh = y.h;
    key.ow = y.w;
    key.k = y.c;
    key.r = d->w->r;
    key.stride = d->w->stride;
    key.residual = !sd_empty(&d->residual);

    pthread_mutex_lock(&c->device->lock);
    plan = sd_conv_plan(c->device, &key, cx->err);
    pthread_mutex_unlock(&c->device->lock);

    if (plan == NULL) {
        return SD_ERROR;
    }

    rc = sd_conv_run(c->cudnn, plan->exec, y.data, x->data, d->w->data,
                     (char *) d->w->data + p.bias, d->residual.data,
                     c->workspace);

    return rc == CUDNN_STATUS_SUCCESS
           ? SD_OK : sd_fail(cx->err, "cudnn: %s", cudnnGetErrorString(rc));
}


/* y = conv(x), x one packed tensor of w's channels, as large as d sees it */

static int
sd_conv_packed(sd_context_t *cx, sd_tensor_t y, const sd_conv2d_t *d,
    const sd_tensor_t *x)
{
    sd_cuda_conv_t         c;
    const sd_cuda_chip_t  *chip;

    chip = &sd_cuda_of(cx)->device->chip;

    sd_conv_own(&c, y, d);

    c.x = x->data;
    c.x2 = NULL;
    c.h = x->h;
    c.wd = x->w;
    c.c = x->c;
    c.c2 = 0;
    c.upsample = 0;

    if (!sd_cuda_conv_sm90_takes(chip, &c)) {
        return sd_conv_library(cx, y, d, x);
    }

    return sd_cuda_done(cx, sd_cuda_conv_sm90(sd_cuda_stream(cx), chip, &c),
                        "conv_sm90");
}


/* 1x1: a product, or two where there are two inputs */

static int
sd_conv_product(sd_context_t *cx, sd_tensor_t y, const sd_conv2d_t *d)
{
    sd_cuda_gemm_t    g = { 0 };
    sd_cuda_packed_t  p;

    sd_cuda_packed(d->w, &p);

    g.y = y.data;
    g.x = d->x.data;
    g.w = d->w->data;
    g.bias = (sd_half_t *) ((char *) d->w->data + p.bias);
    g.residual = d->residual.data;
    g.rows = y.n * y.h * y.w;
    g.cols = y.c;
    g.depth = d->x.c;
    g.ldx = d->x.c;
    g.ldw = d->w->c;
    g.ldy = y.c;
    g.alpha = 1;

    if (sd_cuda_gemm(cx, &g) != SD_OK || sd_empty(&d->x2)) {
        return cx->status;
    }

    g.x = d->x2.data;
    g.w += d->x.c;
    g.bias = NULL;
    g.residual = y.data;
    g.depth = d->x2.c;
    g.ldx = d->x2.c;

    return sd_cuda_gemm(cx, &g);
}


static int
sd_conv_direct(sd_context_t *cx, sd_tensor_t y, const sd_conv2d_t *d)
{
    sd_cuda_conv_t  c;

    sd_conv_own(&c, y, d);

    return sd_cuda_done(cx, sd_cuda_conv_direct(sd_cuda_stream(cx),
                                &sd_cuda_of(cx)->device->chip, &c),
                        "conv_direct");
}


/* without the enlarged tensor, where there is a kernel for that; else *done
 * stays 0 */

static int
sd_conv_up(sd_context_t *cx, sd_tensor_t y, const sd_conv2d_t *d, int *done)
{
    sd_cuda_conv_t         c;
    sd_cuda_packed_t       p;
    const sd_cuda_chip_t  *chip;

    chip = &sd_cuda_of(cx)->device->chip;

    sd_cuda_packed(d->w, &p);
    sd_conv_own(&c, y, d);

    c.w = (sd_half_t *) ((char *) d->w->data + p.up);

    if (p.up == 0 || !sd_cuda_conv_up_takes(chip, &c)) {
        return SD_OK;
    }

    *done = 1;

    return sd_cuda_done(cx, sd_cuda_conv_up(sd_cuda_stream(cx), chip, &c),
                        "conv_up");
}


int
sd_cuda_conv2d(sd_context_t *cx, sd_tensor_t y, const sd_conv2d_t *d)
{
    int           rc, done;
    cudaError_t   e;
    sd_tensor_t   t;
    cudaStream_t  s;

    t = sd_cuda_conv_scratch(cx, &y, d);

    if (cx->plan || cx->status != SD_OK) {
        sd_free(cx, &t);
        return cx->status;
    }

    if (sd_cuda_is_direct(d)) {
        return sd_conv_direct(cx, y, d);
    }

    if (d->w->r == 1 && d->w->stride == 1
        && (sd_empty(&d->x2) || d->x.c % 8 == 0))
    {
        return sd_conv_product(cx, y, d);
    }

    if (sd_empty(&t)) {
        return sd_conv_packed(cx, y, d, &d->x);
    }

    done = 0;

    if (d->w->upsample) {
        rc = sd_conv_up(cx, y, d, &done);

        if (done) {
            sd_free(cx, &t);
            return rc;
        }
    }

    s = sd_cuda_stream(cx);

    e = d->w->upsample
        ? sd_cuda_upsample(s, t.data, d->x.data, d->x.n, d->x.h, d->x.w,
                           d->x.c, t.h, t.w)
        : sd_cuda_concat(s, t.data, d->x.data, d->x2.data,
                         (size_t) t.n * t.h * t.w, d->x.c, d->x2.c);

    rc = sd_cuda_done(cx, e, "upsample or concat");

    if (rc == SD_OK) {
        rc = sd_conv_packed(cx, y, d, &t);
    }

    sd_free(cx, &t);

    return rc;
}
