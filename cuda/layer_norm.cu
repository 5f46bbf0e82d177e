/*
 * Layer normalisation (Ba et al. 2016): a row's mean and variance over its
 * channels.
 *
 * Floor: memory, 2 bytes read and 2 written an element: 8192 rows of 320:
 * 10.5 MB, 3.5 us at 3.0 TB/s.
 *
 * Measured on an H100 SXM, launches of a CUDA graph, microseconds, input in
 * memory, input in L2, floor: 8192 rows of 320: 6.5, 3.9, 3.5; 2048 of 640:
 * 4.4, 3.1, 1.7; 512 of 1280: 3.3, 2.8, 0.9; 65536 of 320: 31, 31, 28.
 *
 * A row is read once, into the registers of L lanes, N vectors each: 8 lanes
 * of 5 for 320 channels, 16 for 640, a warp for 1280.  Mean first, then the
 * squares about it.
 */

#include "common.cuh"


#define SD_LN_THREADS  128


template <int L, int N>
__global__ void
__launch_bounds__(SD_LN_THREADS)
sd_ln_rows(sd_half_t *y, const sd_half_t *x, const float *gamma,
    const float *beta, int rows, int c, float eps)
{
    int     i, j, row, lane, at;
    uint4   u[N];
    float   v[8], a[8], b[8], sum, mean, rstd;

    lane = threadIdx.x % L;
    row = blockIdx.x * (SD_LN_THREADS / L) + threadIdx.x / L;

    sd_grid_wait();

    /* all lanes of a warp go on, for the sums */

    x += (size_t) sd_cuda_min(row, rows - 1) * c;

#pragma unroll
    for (i = 0; i < N; i++) {
        at = (i * L + lane) * 8;
        u[i] = at < c ? *(const uint4 *) (x + at) : make_uint4(0, 0, 0, 0);
    }

    sum = 0;

#pragma unroll
    for (i = 0; i < N; i++) {
        sd_unpack<8>(v, u[i]);

#pragma unroll
        for (j = 0; j < 8; j++) {
            sum += v[j];
        }
    }

    mean = sd_warp_sum<L>(sum) / c;
    sum = 0;

#pragma unroll
    for (i = 0; i < N; i++) {
        sd_unpack<8>(v, u[i]);

        if ((i * L + lane) * 8 < c) {

#pragma unroll
            for (j = 0; j < 8; j++) {
                sum += (v[j] - mean) * (v[j] - mean);
            }
        }
    }

    rstd = 1 / sqrtf(sd_warp_sum<L>(sum) / c + eps);

    sd_grid_next();

    if (row >= rows) {
        return;
    }

    y += (size_t) row * c;

#pragma unroll
    for (i = 0; i < N; i++) {
        at = (i * L + lane) * 8;

        if (at < c) {
            sd_unpack<8>(v, u[i]);
            sd_load_f32<8>(a, gamma + at);
            sd_load_f32<8>(b, beta + at);

#pragma unroll
            for (j = 0; j < 8; j++) {
                v[j] = (v[j] - mean) * rstd * a[j] + b[j];
            }

            sd_store<8>(y + at, v);
        }
    }
}


/* any number of channels: a warp a row, which it reads three times */

__global__ void
__launch_bounds__(SD_LN_THREADS)
sd_ln_any(sd_half_t *y, const sd_half_t *x, const float *gamma,
    const float *beta, int rows, int c, float eps)
{
    int    i, row, lane;
    float  v, sum, mean, rstd;

    lane = threadIdx.x % 32;
    row = blockIdx.x * (SD_LN_THREADS / 32) + threadIdx.x / 32;

    sd_grid_wait();

    if (row >= rows) {
        return;
    }

    x += (size_t) row * c;
    y += (size_t) row * c;

    sum = 0;

    for (i = lane; i < c; i += 32) {
        sum += sd_to_float(x[i]);
    }

    mean = sd_warp_sum<32>(sum) / c;
    sum = 0;

    for (i = lane; i < c; i += 32) {
        v = sd_to_float(x[i]) - mean;
        sum += v * v;
    }

    rstd = 1 / sqrtf(sd_warp_sum<32>(sum) / c + eps);

    for (i = lane; i < c; i += 32) {
        v = (sd_to_float(x[i]) - mean) * rstd;
        y[i] = sd_to_half(v * gamma[i] + beta[i]);
    }
}


#define sd_ln_launch(L, N)                                                    \
    sd_launch_early(sd_ln_rows<L, N>, 1,                                      \
                    dim3(sd_cuda_div(rows, SD_LN_THREADS / L)),               \
                    dim3(SD_LN_THREADS), 0, s, y, x, gamma, beta, rows, c, eps)


cudaError_t
sd_cuda_layer_norm(cudaStream_t s, sd_half_t *y, const sd_half_t *x,
    const float *gamma, const float *beta, int rows, int c, float eps)
{
    if (rows <= 0) {
        return cudaSuccess;
    }

    if (c % 8 == 0 && sd_cuda_aligned(x) && sd_cuda_aligned(y)
        && sd_cuda_aligned(gamma) && sd_cuda_aligned(beta))
    {
        if (c <= 320) {
            return sd_ln_launch(8, 5);
        }

        if (c <= 640) {
            return sd_ln_launch(16, 5);
        }

        if (c <= 768) {
            return sd_ln_launch(32, 3);
        }

        if (c <= 1024) {
            return sd_ln_launch(32, 4);
        }

        if (c <= 1280) {
            return sd_ln_launch(32, 5);
        }

        if (c <= 2560) {
            return sd_ln_launch(32, 10);
        }
    }

    return sd_launch_early(sd_ln_any, 1,
                           dim3(sd_cuda_div(rows, SD_LN_THREADS / 32)),
                           dim3(SD_LN_THREADS), 0, s, y, x, gamma, beta, rows,
                           c, eps);
}
