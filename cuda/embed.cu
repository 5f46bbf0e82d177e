/*
 * Rows of a table by number, plus a position's.
 *
 * Floor: the launch; 77 rows of 768 are 0.1 MB.
 * Measured: see the end of bench/RESULTS.md
 */

#include "common.cuh"


/* grid: tokens of all samples */

__global__ void
__launch_bounds__(256)
sd_embed(sd_half_t *y, const int32_t *ids, const sd_half_t *table,
    const sd_half_t *position, int l, int c)
{
    int  i;

    table += (size_t) ids[blockIdx.x] * c;
    position += (size_t) (blockIdx.x % l) * c;
    y += (size_t) blockIdx.x * c;

    for (i = threadIdx.x; i < c; i += 256) {
        y[i] = sd_to_half(sd_to_float(table[i]) + sd_to_float(position[i]));
    }
}


cudaError_t
sd_cuda_embed(cudaStream_t s, sd_half_t *y, const int32_t *ids,
    const sd_half_t *table, const sd_half_t *position, int n, int l, int c)
{
    if (n <= 0 || l <= 0 || c <= 0) {
        return cudaSuccess;
    }

    return sd_launch(sd_embed, dim3(n * l), dim3(256), 0, s, y, ids, table,
                     position, l, c);
}
