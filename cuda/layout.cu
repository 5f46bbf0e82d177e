/*
 * Copies that change the layout or the type.
 *
 * Floor: memory.  Nearest x2 of 128x128x256: 8.4 MB read, 33.6 MB written,
 * 14 us at 3.0 TB/s.  Packing happens once, at load.
 * Measured: see the end of bench/RESULTS.md
 */

#include "common.cuh"


/* grid: vectors of an output row, output rows of all samples */

template <int W>
__global__ void
__launch_bounds__(256)
sd_upsample(sd_half_t *y, const sd_half_t *x, int h, int w, int c, int oh,
    int ow)
{
    int     n, i, ox, oy, cols;

    cols = c / W;
    i = blockIdx.y * 256 + threadIdx.x;

    if (i >= cols * ow) {
        return;
    }

    ox = i / cols;
    i -= ox * cols;
    n = blockIdx.x / oh;
    oy = blockIdx.x - n * oh;

    x += (((size_t) n * h + oy / 2) * w + ox / 2) * c + i * W;
    y += ((size_t) blockIdx.x * ow + ox) * c + i * W;

    if constexpr (W == 8) {
        *(uint4 *) y = *(const uint4 *) x;
    } else {
        *y = *x;
    }
}


cudaError_t
sd_cuda_upsample(cudaStream_t s, sd_half_t *y, const sd_half_t *x, int n,
    int h, int w, int c, int oh, int ow)
{
    int  vecs;

    if (n <= 0 || oh <= 0 || ow <= 0 || c <= 0) {
        return cudaSuccess;
    }

    if (c % 8 == 0 && sd_cuda_aligned(x) && sd_cuda_aligned(y)) {
        vecs = c / 8 * ow;
        return sd_launch(sd_upsample<8>, dim3(n * oh, sd_cuda_div(vecs, 256)),
                         dim3(256), 0, s, y, x, h, w, c, oh, ow);
    }

    vecs = c * ow;
    return sd_launch(sd_upsample<1>, dim3(n * oh, sd_cuda_div(vecs, 256)),
                     dim3(256), 0, s, y, x, h, w, c, oh, ow);
}


template <int W>
__global__ void
__launch_bounds__(256)
sd_concat(sd_half_t *y, const sd_half_t *x, const sd_half_t *x2, size_t count,
    int c, int c2)
{
    int     i, cols;
    size_t  at, pixel;

    at = (size_t) blockIdx.x * 256 + threadIdx.x;

    if (at >= count) {
        return;
    }

    cols = (c + c2) / W;
    pixel = at / cols;
    i = (int) (at - pixel * cols) * W;

    x = i < c ? x + pixel * c + i : x2 + pixel * c2 + i - c;
    y += at * W;

    if constexpr (W == 8) {
        *(uint4 *) y = *(const uint4 *) x;
    } else {
        *y = *x;
    }
}


cudaError_t
sd_cuda_concat(cudaStream_t s, sd_half_t *y, const sd_half_t *x,
    const sd_half_t *x2, size_t pixels, int c, int c2)
{
    size_t  count;

    count = pixels * (c + c2);

    if (count == 0) {
        return cudaSuccess;
    }

    if (c % 8 == 0 && c2 % 8 == 0 && sd_cuda_aligned(x) && sd_cuda_aligned(x2)
        && sd_cuda_aligned(y))
    {
        count /= 8;
        return sd_launch(sd_concat<8>, dim3((unsigned) sd_cuda_div(count, 256)),
                         dim3(256), 0, s, y, x, x2, count, c, c2);
    }

    return sd_launch(sd_concat<1>, dim3((unsigned) sd_cuda_div(count, 256)),
                     dim3(256), 0, s, y, x, x2, count, c, c2);
}


__global__ void
__launch_bounds__(256)
sd_pack(sd_half_t *y, const float *x, size_t count, int k, int c, int taps,
    int cpad)
{
    int     i, t;
    size_t  at, row;

    at = (size_t) blockIdx.x * 256 + threadIdx.x;

    if (at >= count) {
        return;
    }

    i = (int) (at % cpad);
    row = at / cpad;
    t = (int) (row % taps);
    row /= taps;

    y[at] = row < (size_t) k && i < c
            ? sd_to_half(x[(row * c + i) * taps + t]) : 0;
}


cudaError_t
sd_cuda_pack(cudaStream_t s, sd_half_t *y, const float *x, int k, int c, int r,
    int kpad, int cpad)
{
    size_t  count;

    count = (size_t) kpad * r * r * cpad;

    if (count == 0) {
        return cudaSuccess;
    }

    return sd_launch(sd_pack, dim3((unsigned) sd_cuda_div(count, 256)),
                     dim3(256), 0, s, y, x, count, k, c, r * r, cpad);
}


/* of three taps a phase sees the first two in one pixel, or the last two */

__global__ void
__launch_bounds__(256)
sd_pack_up(sd_half_t *y, const float *x, size_t count, int k, int c)
{
    int     i, j, ch, tap, phase, i0, i1, j0, j1;
    float   sum;
    size_t  at, row;

    at = (size_t) blockIdx.x * 256 + threadIdx.x;

    if (at >= count) {
        return;
    }

    ch = (int) (at % c);
    row = at / c;
    tap = (int) (row % 4);
    row /= 4;
    phase = (int) (row / k);
    x += (row % k * c + ch) * 9;

    i0 = tap / 2 == 0 ? 0 : 1 + phase / 2;
    i1 = tap / 2 == 0 ? phase / 2 : 2;
    j0 = tap % 2 == 0 ? 0 : 1 + phase % 2;
    j1 = tap % 2 == 0 ? phase % 2 : 2;

    sum = 0;

    for (i = i0; i <= i1; i++) {
        for (j = j0; j <= j1; j++) {
            sum += x[i * 3 + j];
        }
    }

    y[at] = sd_to_half(sum);
}


cudaError_t
sd_cuda_pack_up(cudaStream_t s, sd_half_t *y, const float *x, int k, int c)
{
    size_t  count;

    count = (size_t) 16 * k * c;

    if (count == 0) {
        return cudaSuccess;
    }

    return sd_launch(sd_pack_up, dim3((unsigned) sd_cuda_div(count, 256)),
                     dim3(256), 0, s, y, x, count, k, c);
}


__global__ void
__launch_bounds__(256)
sd_convert_to_half(sd_half_t *y, const float *x, size_t count)
{
    size_t  at;

    at = (size_t) blockIdx.x * 256 + threadIdx.x;

    if (at < count) {
        y[at] = sd_to_half(x[at]);
    }
}


cudaError_t
sd_cuda_to_half(cudaStream_t s, sd_half_t *y, const float *x, size_t count)
{
    if (count == 0) {
        return cudaSuccess;
    }

    return sd_launch(sd_convert_to_half,
                     dim3((unsigned) sd_cuda_div(count, 256)), dim3(256), 0, s,
                     y, x, count);
}


__global__ void
__launch_bounds__(256)
sd_convert_to_float(float *y, const sd_half_t *x, size_t count)
{
    size_t  at;

    at = (size_t) blockIdx.x * 256 + threadIdx.x;

    if (at < count) {
        y[at] = sd_to_float(x[at]);
    }
}


cudaError_t
sd_cuda_to_float(cudaStream_t s, float *y, const sd_half_t *x, size_t count)
{
    if (count == 0) {
        return cudaSuccess;
    }

    return sd_launch(sd_convert_to_float,
                     dim3((unsigned) sd_cuda_div(count, 256)), dim3(256), 0, s,
                     y, x, count);
}
