/*
 * The sampler's side of a step: the model's input, a row of the sampler's
 * table, noise.
 *
 * Floor: the launch; a latent of 64x64x4 is 66 kB.
 * Measured: see the end of bench/RESULTS.md
 *
 * Compiled without contraction to FMA: noise is, byte for byte, the cpu
 * backend's, and a step differs from its by the model's rounding to fp16 only.
 */

#include "common.cuh"

#include "../src/ops/philox.h"


/* grid: elements of a latent, slots */

__global__ void
__launch_bounds__(256)
sd_scale_input(sd_half_t *y, const sd_slot_t *slots, int hwc)
{
    int               i;
    sd_half_t         v;
    const sd_slot_t  *t = &slots[blockIdx.y];

    i = blockIdx.x * 256 + threadIdx.x;

    if (i >= hwc || t->out < 0) {
        return;
    }

    v = sd_to_half(t->x[i] * t->scale_in);
    y += (size_t) t->out * hwc + i;

    y[0] = v;

    if (t->guided) {
        y[hwc] = v;
    }
}


cudaError_t
sd_cuda_scale_input(cudaStream_t s, sd_half_t *y, const sd_slot_t *slots,
    int n, int hwc)
{
    if (n <= 0 || hwc <= 0) {
        return cudaSuccess;
    }

    return sd_launch(sd_scale_input, dim3(sd_cuda_div(hwc, 256), n), dim3(256),
                     0, s, y, slots, hwc);
}


__global__ void
__launch_bounds__(128)
sd_sampler_step(const sd_half_t *out, const sd_slot_t *slots, int hw, int c)
{
    int               i, j, at, nkept, drawn;
    float             in[3 + SD_KEPT + 2], v[1 + SD_KEPT], u;
    size_t            hwc;
    uint32_t          e;
    const sd_slot_t  *t = &slots[blockIdx.y];

    at = blockIdx.x * 128 + threadIdx.x;
    hwc = (size_t) hw * c;

    if (at >= (int) hwc || t->out < 0) {
        return;
    }

    /* noise counts elements in the order NCHW */

    e = (uint32_t) (at % c) * hw + at / c;
    nkept = t->nkept;

    out += (size_t) t->out * hwc + at;
    u = sd_to_float(out[0]);

    in[0] = t->x[at];
    in[1] = t->guided ? u + t->guidance * (sd_to_float(out[hwc]) - u) : u;
    in[2] = t->a * in[0] + t->b * in[1];

    if (t->clamp > 0) {
        in[2] = fminf(fmaxf(in[2], -t->clamp), t->clamp);
    }

#pragma unroll
    for (i = 0; i < SD_KEPT; i++) {
        in[3 + i] = i < nkept ? t->kept[i * hwc + at] : 0;
    }

    /* noise that no row of the matrix reads is not drawn */

#pragma unroll
    for (j = 0; j < 2; j++) {
        drawn = 0;

#pragma unroll
        for (i = 0; i <= SD_KEPT; i++) {
            drawn |= i <= nkept && t->m[i][3 + SD_KEPT + j] != 0;
        }

        in[3 + SD_KEPT + j] = drawn
                              ? sd_philox_normal(t->seed, t->draw + j, e) : 0;
    }

#pragma unroll
    for (i = 0; i <= SD_KEPT; i++) {
        v[i] = 0;

#pragma unroll
        for (j = 0; j < 3 + SD_KEPT + 2; j++) {
            v[i] += t->m[i][j] * in[j];
        }
    }

    t->next[at] = v[0];

#pragma unroll
    for (i = 0; i < SD_KEPT; i++) {
        if (i < nkept) {
            t->kept_next[i * hwc + at] = v[1 + i];
        }
    }

    if (t->denoised != NULL) {
        t->denoised[at] = in[2];
    }
}


cudaError_t
sd_cuda_sampler_step(cudaStream_t s, const sd_half_t *out,
    const sd_slot_t *slots, int n, int hw, int c)
{
    if (n <= 0 || hw <= 0 || c <= 0) {
        return cudaSuccess;
    }

    return sd_launch(sd_sampler_step, dim3(sd_cuda_div(hw * c, 128), n),
                     dim3(128), 0, s, out, slots, hw, c);
}


__global__ void
__launch_bounds__(128)
sd_noise(float *x, uint64_t seed, uint32_t draw, float scale, int hw, int c)
{
    int  at;

    at = blockIdx.x * 128 + threadIdx.x;

    if (at < hw * c) {
        x[at] = scale * sd_philox_normal(seed, draw,
                                     (uint32_t) (at % c) * hw + at / c);
    }
}


cudaError_t
sd_cuda_noise(cudaStream_t s, float *x, uint64_t seed, uint32_t draw,
    float scale, int hw, int c)
{
    if (hw <= 0 || c <= 0) {
        return cudaSuccess;
    }

    return sd_launch(sd_noise, dim3(sd_cuda_div(hw * c, 128)), dim3(128), 0, s,
                     x, seed, draw, scale, hw, c);
}
