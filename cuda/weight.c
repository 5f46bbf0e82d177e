/*
 * Weights: from fp32 in host memory to fp16, as kernels read them, in the
 * device's.  How they lie there is said in src/ops/cuda_scratch.c.
 */

#include "cuda.h"


size_t
sd_cuda_weight_size(sd_device_t *dev, const sd_weight_t *w)
{
    sd_cuda_packed_t  p;

    sd_cuda_packed(w, &p);

    return p.size;
}


/* up: where the matrix goes as it is seen through nearest x2, or NULL */

static cudaError_t
sd_cuda_pack_part(sd_cuda_device_t *d, void *dst, void *up, const float *src,
    const sd_weight_t *w, size_t count, int matrix)
{
    int           r;
    float        *raw;
    cudaError_t   rc;

    rc = cudaMalloc((void **) &raw, count * sizeof(float));

    if (rc != cudaSuccess) {
        return rc;
    }

    r = matrix && w->kind == SD_WEIGHT_CONV ? w->r : 1;

    rc = cudaMemcpyAsync(raw, src, count * sizeof(float),
                         cudaMemcpyHostToDevice, d->transfer);

    if (rc == cudaSuccess) {
        rc = matrix ? sd_cuda_pack(d->transfer, dst, raw, w->k, w->c, r, w->k,
                                   w->c)
                    : sd_cuda_to_half(d->transfer, dst, raw, count);
    }

    if (rc == cudaSuccess && up) {
        rc = sd_cuda_pack_up(d->transfer, up, raw, w->k, w->c);
    }

    if (rc == cudaSuccess) {
        rc = cudaStreamSynchronize(d->transfer);
    }

    cudaFree(raw);

    return rc;
}


int
sd_cuda_weight_pack(sd_device_t *dev, sd_weight_t *w, const float *data,
    const float *bias, sd_error_t *err)
{
    char              *to = w->data;
    size_t             count;
    cudaError_t        rc;
    sd_cuda_packed_t   p;
    sd_cuda_device_t  *d = dev->impl;

    sd_cuda_packed(w, &p);

    /* no bias, and no beta, is one of zeros */

    rc = cudaMemsetAsync(to + p.bias, 0, p.size - p.bias, d->transfer);

    if (rc == cudaSuccess && w->kind == SD_WEIGHT_NORM) {
        rc = cudaMemcpyAsync(to, data, w->k * sizeof(float),
                             cudaMemcpyHostToDevice, d->transfer);

        if (rc == cudaSuccess && bias) {
            rc = cudaMemcpyAsync(to + p.bias, bias, w->k * sizeof(float),
                                 cudaMemcpyHostToDevice, d->transfer);
        }

        if (rc == cudaSuccess) {
            rc = cudaStreamSynchronize(d->transfer);
        }

    } else if (rc == cudaSuccess) {
        count = (size_t) w->k * w->c;

        if (w->kind == SD_WEIGHT_CONV) {
            count *= w->r * w->r;
        }

        rc = sd_cuda_pack_part(d, to, p.up ? to + p.up : NULL, data, w, count,
                               1);

        if (rc == cudaSuccess && bias) {
            rc = sd_cuda_pack_part(d, to + p.bias, NULL, bias, w, w->k, 0);
        }
    }

    return rc == cudaSuccess ? SD_OK : sd_cuda_fail(err, rc, "weights");
}
