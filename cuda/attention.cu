/*
 * Attention: which of its kernels.  By what all samples share, never by n or
 * lq, as a row's bits would depend on them.
 */

#include "attention.cuh"


extern "C" cudaError_t
sd_cuda_attention(cudaStream_t s, const sd_cuda_chip_t *chip,
    const sd_cuda_attention_t *d)
{
    if (d->d < 1 || d->d > 160 || d->lq < 1 || d->lk < 1 || d->heads < 1
        || d->n < 1)
    {
        return cudaErrorInvalidValue;
    }

    if (sd_cuda_attention_sm90_takes(chip, d)) {
        return sd_cuda_attention_sm90(s, chip, d);
    }

    if (sd_cuda_attention_few_takes(d)) {
        return sd_cuda_attention_few(s, chip, d);
    }

    return sd_cuda_attention_any(s, chip, d);
}
