/*
 * Softmax of rows in place, for attention by two GEMMs (the VAE's, one head of
 * 512).
 *
 * Floor: memory, 2 bytes read and 2 written an element: 4096 rows of 4096:
 * 67 MB, 22 us at 3.0 TB/s; less where the scores stay in L2.
 * Measured: see the end of bench/RESULTS.md
 *
 * A block a row.  A row stays in registers, up to 16384 columns; a longer one
 * is read three times, mostly from L2.
 */

#include "common.cuh"


#define SD_SOFTMAX_THREADS  256


/* over the block; red: [SD_SOFTMAX_THREADS / 32] in shared memory */

template <bool MAX>
SD_FN float
sd_softmax_reduce(float v, float *red)
{
    int  i;

    v = MAX ? sd_warp_max<32>(v) : sd_warp_sum<32>(v);

    /* whoever still reads the last result */

    __syncthreads();

    if (threadIdx.x % 32 == 0) {
        red[threadIdx.x / 32] = v;
    }

    __syncthreads();

    v = red[0];

#pragma unroll
    for (i = 1; i < SD_SOFTMAX_THREADS / 32; i++) {
        v = MAX ? fmaxf(v, red[i]) : v + red[i];
    }

    return v;
}


/* N vectors a thread */

template <int N>
__global__ void
__launch_bounds__(SD_SOFTMAX_THREADS)
sd_softmax_row(sd_half_t *x, int cols, size_t ld)
{
    int     i, j, at;
    uint4   u[N];
    float   v[8], max, sum, scale;

    __shared__ float  red[SD_SOFTMAX_THREADS / 32];

    x += blockIdx.x * ld;
    max = -INFINITY;

#pragma unroll
    for (i = 0; i < N; i++) {
        at = (i * SD_SOFTMAX_THREADS + threadIdx.x) * 8;

        /* -inf where there is nothing */

        u[i] = at < cols ? *(const uint4 *) (x + at)
                         : make_uint4(0xfc00fc00, 0xfc00fc00, 0xfc00fc00,
                                      0xfc00fc00);
    }

#pragma unroll
    for (i = 0; i < N; i++) {
        sd_unpack<8>(v, u[i]);

#pragma unroll
        for (j = 0; j < 8; j++) {
            max = fmaxf(max, v[j]);
        }
    }

    max = sd_softmax_reduce<true>(max, red) * 1.44269504f;
    sum = 0;

#pragma unroll
    for (i = 0; i < N; i++) {
        sd_unpack<8>(v, u[i]);

#pragma unroll
        for (j = 0; j < 8; j++) {
            sum += sd_exp2(v[j] * 1.44269504f - max);
        }
    }

    scale = 1 / sd_softmax_reduce<false>(sum, red);

#pragma unroll
    for (i = 0; i < N; i++) {
        at = (i * SD_SOFTMAX_THREADS + threadIdx.x) * 8;

        if (at < cols) {
            sd_unpack<8>(v, u[i]);

#pragma unroll
            for (j = 0; j < 8; j++) {
                v[j] = sd_exp2(v[j] * 1.44269504f - max) * scale;
            }

            sd_store<8>(x + at, v);
        }
    }
}


template <int W>
__global__ void
__launch_bounds__(SD_SOFTMAX_THREADS)
sd_softmax_any(sd_half_t *x, int cols, size_t ld)
{
    int    i, j;
    float  v[W], max, sum, scale;

    __shared__ float  red[SD_SOFTMAX_THREADS / 32];

    x += blockIdx.x * ld;
    max = -INFINITY;

    for (i = threadIdx.x * W; i < cols; i += SD_SOFTMAX_THREADS * W) {
        sd_load<W>(v, x + i);

#pragma unroll
        for (j = 0; j < W; j++) {
            max = fmaxf(max, v[j]);
        }
    }

    max = sd_softmax_reduce<true>(max, red) * 1.44269504f;
    sum = 0;

    for (i = threadIdx.x * W; i < cols; i += SD_SOFTMAX_THREADS * W) {
        sd_load<W>(v, x + i);

#pragma unroll
        for (j = 0; j < W; j++) {
            sum += sd_exp2(v[j] * 1.44269504f - max);
        }
    }

    scale = 1 / sd_softmax_reduce<false>(sum, red);

    for (i = threadIdx.x * W; i < cols; i += SD_SOFTMAX_THREADS * W) {
        sd_load<W>(v, x + i);

#pragma unroll
        for (j = 0; j < W; j++) {
            v[j] = sd_exp2(v[j] * 1.44269504f - max) * scale;
        }

        sd_store<W>(x + i, v);
    }
}


#define sd_softmax_launch(kernel)                                             \
    sd_launch(kernel, dim3(rows), dim3(SD_SOFTMAX_THREADS), 0, s, x, cols, ld)


cudaError_t
sd_cuda_softmax(cudaStream_t s, sd_half_t *x, int rows, int cols, size_t ld)
{
    if (rows <= 0 || cols <= 0) {
        return cudaSuccess;
    }

    if (cols % 8 != 0 || ld % 8 != 0 || !sd_cuda_aligned(x)) {
        return sd_softmax_launch(sd_softmax_any<1>);
    }

    if (cols <= SD_SOFTMAX_THREADS * 8) {
        return sd_softmax_launch(sd_softmax_row<1>);
    }

    if (cols <= SD_SOFTMAX_THREADS * 16) {
        return sd_softmax_launch(sd_softmax_row<2>);
    }

    if (cols <= SD_SOFTMAX_THREADS * 32) {
        return sd_softmax_launch(sd_softmax_row<4>);
    }

    if (cols <= SD_SOFTMAX_THREADS * 64) {
        return sd_softmax_launch(sd_softmax_row<8>);
    }

    return sd_softmax_launch(sd_softmax_any<8>);
}
