/*
 * What attention.cu knows of attention_sm90.cu.
 */

#ifndef SD_CUDA_ATTENTION_H
#define SD_CUDA_ATTENTION_H

#include "kernels.h"


/*
 * whether that kernel takes a: by what all samples share, never by n or lq, as
 * a row's bits would depend on them
 */
int sd_cuda_attention_sm90_takes(const sd_cuda_chip_t *chip,
    const sd_cuda_attention_t *a);
cudaError_t sd_cuda_attention_sm90(cudaStream_t s, const sd_cuda_chip_t *chip,
    const sd_cuda_attention_t *a);


#endif
