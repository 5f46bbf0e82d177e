/*
 * Latents and decoded pictures to bytes, and scaled inputs of the decoder.
 *
 * Floor: memory.  512x512 pixels: 1.6 MB read, 0.8 MB written: the launch.
 * Measured: see the end of bench/RESULTS.md
 *
 * Compiled without contraction to FMA: the cpu backend's bytes.
 */

#include "common.cuh"


SD_FN uint8_t
sd_byte(float v)
{
    v = v * 127.5f + 127.5f;

    /* also what is not a number */

    if (!(v > 0)) {
        return 0;
    }

    return v >= 255 ? 255 : (uint8_t) (v + 0.5f);
}


__global__ void
__launch_bounds__(256)
sd_preview_rgb(uint8_t *y, const float *x, const sd_cuda_rgb_t rgb,
    size_t pixels, int c)
{
    int     i, j;
    float   v[3];
    size_t  p;

    p = (size_t) blockIdx.x * 256 + threadIdx.x;

    if (p >= pixels) {
        return;
    }

#pragma unroll
    for (j = 0; j < 3; j++) {
        v[j] = rgb.bias[j];
    }

    for (i = 0; i < c; i++) {

#pragma unroll
        for (j = 0; j < 3; j++) {
            v[j] += x[p * c + i] * rgb.factors[i][j];
        }
    }

#pragma unroll
    for (j = 0; j < 3; j++) {
        y[p * 3 + j] = sd_byte(v[j]);
    }
}


cudaError_t
sd_cuda_preview_rgb(cudaStream_t s, uint8_t *y, const float *x,
    const sd_cuda_rgb_t *rgb, size_t pixels, int c)
{
    if (pixels == 0) {
        return cudaSuccess;
    }

    return sd_launch(sd_preview_rgb, dim3((unsigned) sd_cuda_div(pixels, 256)),
                     dim3(256), 0, s, y, x, *rgb, pixels, c);
}


template <int W>
__global__ void
__launch_bounds__(256)
sd_image_rgb8(uint8_t *y, const sd_half_t *x, size_t count)
{
    int       i;
    float     v[W];
    size_t    at;
    uint32_t  lo, hi;

    at = ((size_t) blockIdx.x * 256 + threadIdx.x) * W;

    if (W == 8 && at + W <= count) {
        sd_load<W>(v, x + at);

        lo = 0;
        hi = 0;

#pragma unroll
        for (i = 0; i < W / 2; i++) {
            lo |= (uint32_t) sd_byte(v[i]) << (8 * i);
            hi |= (uint32_t) sd_byte(v[W / 2 + i]) << (8 * i);
        }

        *(uint2 *) (y + at) = make_uint2(lo, hi);
        return;
    }

    for (i = 0; i < W && at < count; i++, at++) {
        y[at] = sd_byte(sd_to_float(x[at]));
    }
}


cudaError_t
sd_cuda_image_rgb8(cudaStream_t s, uint8_t *y, const sd_half_t *x,
    size_t count)
{
    if (count == 0) {
        return cudaSuccess;
    }

    if (sd_cuda_aligned(x) && sd_cuda_aligned(y)) {
        return sd_launch(sd_image_rgb8<8>,
                         dim3((unsigned) sd_cuda_div(count, 2048)), dim3(256),
                         0, s, y, x, count);
    }

    return sd_launch(sd_image_rgb8<1>,
                     dim3((unsigned) sd_cuda_div(count, 256)), dim3(256), 0, s,
                     y, x, count);
}


template <bool HALF>
__global__ void
__launch_bounds__(256)
sd_scale(sd_half_t *y, const void *x, float scale, size_t count)
{
    size_t  at;

    at = (size_t) blockIdx.x * 256 + threadIdx.x;

    if (at < count) {
        y[at] = sd_to_half(scale * (HALF ? sd_to_float(((sd_half_t *) x)[at])
                                         : ((float *) x)[at]));
    }
}


cudaError_t
sd_cuda_scale(cudaStream_t s, sd_half_t *y, const void *x, int x_is_half,
    float scale, size_t count)
{
    if (count == 0) {
        return cudaSuccess;
    }

    if (x_is_half) {
        return sd_launch(sd_scale<true>,
                         dim3((unsigned) sd_cuda_div(count, 256)), dim3(256),
                         0, s, y, x, scale, count);
    }

    return sd_launch(sd_scale<false>,
                     dim3((unsigned) sd_cuda_div(count, 256)), dim3(256), 0, s,
                     y, x, scale, count);
}
