/*
 * What attention.cu and its kernels know of each other: launchers, which take
 * what their takes() say, and the instructions that more than one kernel needs.
 */

#ifndef SD_CUDA_ATTENTION_CUH
#define SD_CUDA_ATTENTION_CUH

#include "common.cuh"


#define LOG2E  1.44269504088896340736f


/* 256 keys and more on Hopper */
int sd_cuda_attention_sm90_takes(const sd_cuda_chip_t *chip,
    const sd_cuda_attention_t *a);
cudaError_t sd_cuda_attention_sm90(cudaStream_t s, const sd_cuda_chip_t *chip,
    const sd_cuda_attention_t *a);

/* 80 keys and fewer */
int sd_cuda_attention_few_takes(const sd_cuda_attention_t *a);
cudaError_t sd_cuda_attention_few(cudaStream_t s, const sd_cuda_chip_t *chip,
    const sd_cuda_attention_t *a);

/* all the rest */
cudaError_t sd_cuda_attention_any(cudaStream_t s, const sd_cuda_chip_t *chip,
    const sd_cuda_attention_t *a);


SD_FN void
load_matrices_trans(uint32_t *r, uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 "
                 "{%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at)
                 : "memory");
}


SD_FN void
load_two_trans(uint32_t *r, uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 "
                 "{%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(at) : "memory");
}


/* c: [16, 8] += a: [16, 16], b: [16, 8] */

SD_FN void
mma(float *c, const uint32_t *a, uint32_t b0, uint32_t b1)
{
    const uint32_t  b[2] = { b0, b1 };

    sd_mma(c, a, b);
}


/* a quad of lanes holds a row; not sd_warp_sum()'s order, nor its bits */

SD_FN float
quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));

    return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}


SD_FN float
quad_sum(float x)
{
    x += __shfl_xor_sync(0xffffffff, x, 1);

    return x + __shfl_xor_sync(0xffffffff, x, 2);
}


#endif
