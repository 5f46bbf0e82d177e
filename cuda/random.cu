/*
 * Random numbers to time kernels on: zeros draw less power and run faster.
 */

#include <cuda_fp16.h>

#include "kernels.h"


/* a hash of the index (Wellons' lowbias32) */

static __device__ float
random_at(uint32_t x)
{
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    x ^= x >> 16;

    return (int32_t) x * 0x1p-31f;
}


static __global__ void
random_kernel(__half *y, size_t count)
{
    size_t  i;

    for (i = blockIdx.x * (size_t) blockDim.x + threadIdx.x; i < count;
         i += (size_t) gridDim.x * blockDim.x)
    {
        y[i] = __float2half(random_at((uint32_t) i));
    }
}


cudaError_t
sd_cuda_random(cudaStream_t s, sd_half_t *y, size_t count)
{
    random_kernel<<<1024, 256, 0, s>>>((__half *) y, count);

    return cudaGetLastError();
}
