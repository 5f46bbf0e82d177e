/*
 * The cuda backend's sizes: see cuda.h.  Linked into libsd.a for plans, and
 * into sd_cuda.so, which allocates by the same rules.
 */

#include <string.h>

#include "cuda.h"


#define SD_CUDA_ALIGN   256
#define SD_CUDA_SCORES  ((size_t) 64 << 20)     /* bytes at a time */


static size_t
sd_cuda_align(size_t size)
{
    return (size + SD_CUDA_ALIGN - 1) & ~(size_t) (SD_CUDA_ALIGN - 1);
}


void
sd_cuda_packed(const sd_weight_t *w, sd_cuda_packed_t *p)
{
    size_t  matrix, bias;

    bias = (size_t) w->k * 2;

    switch (w->kind) {

    case SD_WEIGHT_NORM:
        matrix = (size_t) w->k * sizeof(float);
        bias = matrix;
        break;

    case SD_WEIGHT_CONV:
        matrix = (size_t) w->k * w->c * w->r * w->r * 2;
        break;

    case SD_WEIGHT_TABLE:
        matrix = (size_t) w->k * w->c * 2;
        bias = 0;
        break;

    default:
        matrix = (size_t) w->k * w->c * 2;
    }

    p->matrix = 0;
    p->bias = sd_cuda_align(matrix);
    p->size = p->bias + sd_cuda_align(bias);
    p->up = 0;

    if (w->kind == SD_WEIGHT_CONV && w->upsample && w->c % 8 == 0
        && w->k % 8 == 0)
    {
        p->up = p->size;
        p->size += sd_cuda_align((size_t) 16 * w->k * w->c * 2);
    }
}


int
sd_cuda_is_direct(const sd_conv2d_t *d)
{
    return d->w->c % 8 != 0 || d->w->k % 8 != 0
           || (d->w->upsample && !sd_empty(&d->x2));
}


/* what is enlarged, and what is two tensors, becomes one first */

sd_tensor_t
sd_cuda_conv_scratch(sd_context_t *cx, const sd_tensor_t *y,
    const sd_conv2d_t *d)
{
    sd_tensor_t  none = { 0 };

    if (sd_cuda_is_direct(d)) {
        return none;
    }

    if (d->w->upsample) {
        return sd_alloc(cx, y->n, y->h, y->w, d->w->c);
    }

    if (d->w->r == 3 && !sd_empty(&d->x2)) {
        return sd_alloc(cx, d->x.n, d->x.h, d->x.w, d->w->c);
    }

    return none;
}


/* values and gates before they meet; what goes through an activation before a
 * residual is added */

sd_tensor_t
sd_cuda_linear_scratch(sd_context_t *cx, const sd_linear_t *d)
{
    sd_tensor_t  none = { 0 };

    if (d->act == SD_ACT_GEGLU
        || (d->act != SD_ACT_NONE && !sd_empty(&d->residual)))
    {
        return sd_alloc(cx, d->x.n, d->x.h, d->x.w, d->w->k);
    }

    return none;
}


/* scores of some queries with all keys, of one sample and head at a time */

sd_tensor_t
sd_cuda_attention_scratch(sd_context_t *cx, const sd_attention_t *d)
{
    int          rows, lk;
    sd_tensor_t  none = { 0 };

    if (d->q.c / d->heads <= SD_CUDA_HEAD) {
        return none;
    }

    lk = d->kv.columns ? d->kv.rows : d->k.w;
    rows = d->q.w;

    if ((size_t) rows * lk * 2 > SD_CUDA_SCORES) {
        rows = (int) (SD_CUDA_SCORES / 2 / lk);
        rows = rows < 128 ? 128 : rows / 128 * 128;
        rows = rows < d->q.w ? rows : d->q.w;
    }

    return sd_alloc(cx, 1, 1, rows, (lk + 7) / 8 * 8);
}
