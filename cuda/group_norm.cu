/*
 * Group normalisation (Wu and He 2018) with SiLU, of one or two inputs and an
 * addend per channel: which of its ways.
 *
 * There are two, chosen by the shape of a sample and the chip, never by n, so
 * that a sample's bits are its own: group_norm_slab.cu, where a sample is
 * small, and group_norm_split.cu.  Both walk the sample once for its
 * statistics: the sums of x - K and of its square, where K of a group is its
 * first channel in the sample's first pixel.  K is one of the values, so that
 * what cancels when the variance is made of them is small, however far from
 * zero the mean is; and sums about the same K simply add up.
 *
 * A thread has 8 neighbouring channels.  They must be of two groups at most, or
 * it takes one: no model has groups that small.
 */

#include "group_norm.cuh"


/* room for whichever way a chip takes */

size_t
sd_cuda_group_norm_scratch(int n, int hw, int c, int groups)
{
    return (size_t) n * groups * (SD_GN_SUMS * sizeof(float2) + sizeof(float));
}


cudaError_t
sd_cuda_group_norm(cudaStream_t s, const sd_cuda_chip_t *chip,
    const sd_cuda_group_norm_t *d)
{
    int      wide;
    sd_gn_t  g = {};

    g.y = d->y;
    g.x = d->x;
    g.x2 = d->x2;
    g.gamma = d->gamma;
    g.beta = d->beta;
    g.addend = d->addend;
    g.addend_at = d->addend_at;
    g.hw = d->hw;
    g.c = d->c;
    g.c2 = d->x2 == NULL ? 0 : d->c2;
    g.groups = d->groups;
    g.cpg = (g.c + g.c2) / g.groups;
    g.inverse = (uint32_t) ((((uint64_t) 1 << 31) + g.cpg - 1) / g.cpg);
    g.share = (float) (1 / ((double) g.hw * g.cpg));
    g.eps = d->eps;
    g.silu = d->silu;
    g.partial = (float2 *) d->scratch;
    g.shift = (float *) (g.partial + (size_t) d->n * g.groups * SD_GN_SUMS);

    if (d->n <= 0 || d->hw <= 0) {
        return cudaSuccess;
    }

    wide = (g.cpg >= 6 || g.cpg == 4) && g.c % 8 == 0 && g.c2 % 8 == 0
           && sd_cuda_aligned(g.x) && sd_cuda_aligned(g.x2)
           && sd_cuda_aligned(g.y) && sd_cuda_aligned(g.gamma)
           && sd_cuda_aligned(g.beta);

    if (wide && sd_gn_slab_plan(&g, chip)) {
        return sd_gn_slab_launch(s, &g, d->n);
    }

    return sd_gn_split_launch(s, chip, &g, d->n, wide);
}
