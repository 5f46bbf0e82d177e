/*
 * Activations that no GEMM's epilogue has, and the bias of F32 rows.
 *
 * Floor: memory.  GEGLU reads 4 bytes and writes 2 an element: 8192 rows of
 * 1280: 63 MB, 21 us at 3.0 TB/s.
 *
 * Measured on an H100 SXM, launches of a CUDA graph, microseconds, input in
 * memory, input in L2, floor: 8192 rows of 1280: 24, 22, 21; 2048 of 2560: 13,
 * 8.1, 10; 512 of 5120: 7.3, 4.7, 5.2; 65536 of 1280: 173, 173, 168.
 */

#include "common.cuh"


/* as sd_act_t of ops.h has them, which is C only */

enum {
    SD_CUDA_ACT_NONE,
    SD_CUDA_ACT_SILU,
    SD_CUDA_ACT_GELU,
    SD_CUDA_ACT_QUICK_GELU,
    SD_CUDA_ACT_GELU_TANH
};


SD_FN float
sd_gelu(float x)
{
    return 0.5f * x * (1 + erff(x * 0.70710678f));
}


SD_FN float
sd_sigmoid(float x)
{
    return sd_rcp(1 + sd_exp2(fminf(x * -1.44269504f, 120)));
}


SD_FN float
sd_activate(float x, int act)
{
    switch (act) {

    case SD_CUDA_ACT_SILU:
        return x * sd_sigmoid(x);

    case SD_CUDA_ACT_GELU:
        return sd_gelu(x);

    case SD_CUDA_ACT_QUICK_GELU:
        return x * sd_sigmoid(1.702f * x);

    case SD_CUDA_ACT_GELU_TANH:
        /* 0.5 (1 + tanh(u)) is the sigmoid of 2 u */
        return x * sd_sigmoid(1.59576912f * (x + 0.044715f * x * x * x));

    default:
        return x;
    }
}


/* block: [32, 8] vectors, rows; two rows a thread */

template <int W>
__global__ void
__launch_bounds__(256)
sd_geglu(sd_half_t *y, const sd_half_t *x, const sd_half_t *residual, int rows,
    int inner)
{
    int     i, j, col, row;
    uint4   value[2], gate[2];
    float   v[W], g[W], r[W];

    col = (blockIdx.y * 32 + threadIdx.x) * W;
    row = blockIdx.x * 16 + threadIdx.y;

    sd_grid_wait();
    sd_grid_next();

    if (col >= inner) {
        return;
    }

#pragma unroll
    for (i = 0; i < 2; i++) {
        if (row + 8 * i < rows) {
            const sd_half_t  *p = x + (size_t) (row + 8 * i) * 2 * inner + col;

            value[i] = sd_load_raw<W>(p);
            gate[i] = sd_load_raw<W>(p + inner);
        }
    }

#pragma unroll
    for (i = 0; i < 2; i++) {
        if (row + 8 * i >= rows) {
            return;
        }

        sd_unpack<W>(v, value[i]);
        sd_unpack<W>(g, gate[i]);

#pragma unroll
        for (j = 0; j < W; j++) {
            v[j] *= sd_gelu(g[j]);
        }

        size_t  at = (size_t) (row + 8 * i) * inner + col;

        if (residual != NULL) {
            sd_load<W>(r, residual + at);

#pragma unroll
            for (j = 0; j < W; j++) {
                v[j] += r[j];
            }
        }

        sd_store<W>(y + at, v);
    }
}


cudaError_t
sd_cuda_geglu(cudaStream_t s, sd_half_t *y, const sd_half_t *x,
    const sd_half_t *residual, int rows, int inner)
{
    dim3  block(32, 8);

    if (rows <= 0 || inner <= 0) {
        return cudaSuccess;
    }

    if (inner % 8 == 0 && sd_cuda_aligned(x) && sd_cuda_aligned(y)
        && sd_cuda_aligned(residual))
    {
        return sd_launch_early(sd_geglu<8>, 1,
                               dim3(sd_cuda_div(rows, 16),
                                    sd_cuda_div(inner, 256)),
                               block, 0, s, y, x, residual, rows, inner);
    }

    return sd_launch_early(sd_geglu<1>, 1,
                           dim3(sd_cuda_div(rows, 16), sd_cuda_div(inner, 32)),
                           block, 0, s, y, x, residual, rows, inner);
}


template <int W>
__global__ void
__launch_bounds__(256)
sd_act(sd_half_t *y, const sd_half_t *x, const sd_half_t *residual,
    size_t count, int act)
{
    int     j;
    float   v[W], r[W];
    size_t  at;

    at = ((size_t) blockIdx.x * 256 + threadIdx.x) * W;

    if (at + W <= count) {
        sd_load<W>(v, x + at);

#pragma unroll
        for (j = 0; j < W; j++) {
            v[j] = sd_activate(v[j], act);
        }

        if (residual != NULL) {
            sd_load<W>(r, residual + at);

#pragma unroll
            for (j = 0; j < W; j++) {
                v[j] += r[j];
            }
        }

        sd_store<W>(y + at, v);
        return;
    }

    /* the last few */

    for ( /* void */ ; at < count; at++) {
        v[0] = sd_activate(sd_to_float(x[at]), act);

        if (residual != NULL) {
            v[0] += sd_to_float(residual[at]);
        }

        y[at] = sd_to_half(v[0]);
    }
}


cudaError_t
sd_cuda_act(cudaStream_t s, sd_half_t *y, const sd_half_t *x,
    const sd_half_t *residual, size_t count, int act)
{
    if (count == 0) {
        return cudaSuccess;
    }

    if (sd_cuda_aligned(x) && sd_cuda_aligned(y) && sd_cuda_aligned(residual)) {
        return sd_launch(sd_act<8>, dim3((unsigned) sd_cuda_div(count, 2048)),
                         dim3(256), 0, s, y, x, residual, count, act);
    }

    return sd_launch(sd_act<1>, dim3((unsigned) sd_cuda_div(count, 256)),
                     dim3(256), 0, s, y, x, residual, count, act);
}


/* few and small rows: tables of time embeddings */

__global__ void
__launch_bounds__(256)
sd_add_bias(float *y, const sd_half_t *bias, size_t count, int c)
{
    size_t  at;

    at = (size_t) blockIdx.x * 256 + threadIdx.x;

    if (at < count) {
        y[at] += sd_to_float(bias[at % c]);
    }
}


cudaError_t
sd_cuda_add_bias(cudaStream_t s, float *y, const sd_half_t *bias, int rows,
    int c)
{
    size_t  count = (size_t) rows * c;

    if (count == 0) {
        return cudaSuccess;
    }

    return sd_launch(sd_add_bias, dim3((unsigned) sd_cuda_div(count, 256)),
                     dim3(256), 0, s, y, bias, count, c);
}
