/*
 * What group_norm.cu and its two ways know of each other, and what their
 * kernels share: where channels are, and a block's sums.
 */

#ifndef SD_CUDA_GROUP_NORM_CUH
#define SD_CUDA_GROUP_NORM_CUH

#include "common.cuh"


#define SD_GN_SUMS  128             /* split: of a group, at most */


typedef struct {
    sd_half_t            *y;
    const sd_half_t      *x, *x2;
    const float          *gamma, *beta;
    const float *const   *addend;
    int                   addend_at;
    int                   hw, c, c2, groups, cpg;
    uint32_t              inverse;  /* of cpg */
    float                 eps;
    float                 share;    /* of an element in its group's mean */
    int                   silu;

    int                   pixels;   /* of a block; split: of a chunk */

    /* slab */
    int                   slab;     /* groups of one */
    int                   vecs;     /* 16 bytes each, of a pixel */
    int                   rows;     /* pixels that the threads take at once */
    int                   blocks;   /* of a cluster */
    int                   vectors;  /* of a thread */

    /* split */
    int                   chunks;
    int                   sums;     /* of a group */
    int                   kept;     /* first sample to keep in L2 ... */
    int                   keep;     /* ... from this pixel of a chunk on */
    int                   span;     /* pixels that a block normalises */
    float2               *partial;  /* [n, sums, groups] */
    float                *shift;    /* [n, groups] K */
} sd_gn_t;


/* group_norm_slab.cu; plan: 1: a sample fits; fills in g */
int sd_gn_slab_plan(sd_gn_t *g, const sd_cuda_chip_t *chip);
cudaError_t sd_gn_slab_launch(cudaStream_t s, const sd_gn_t *g, int n);

/* group_norm_split.cu; wide: threads take 8 channels, else one */
cudaError_t sd_gn_split_launch(cudaStream_t s, const sd_cuda_chip_t *chip,
    sd_gn_t *g, int n, int wide);


/* a / cpg, for a product of both less than 2^31 */

SD_FN int
sd_gn_group(const sd_gn_t *g, int a)
{
    return (int) ((uint64_t) (uint32_t) a * g->inverse >> 31);
}


/* where channel ch of a sample's pixel is, and how far the next pixel */

SD_FN const sd_half_t *
sd_gn_source(const sd_gn_t *g, int n, int pixel, int ch, int *ld)
{
    if (ch < g->c) {
        *ld = g->c;
        return g->x + ((size_t) n * g->hw + pixel) * g->c + ch;
    }

    *ld = g->c2;
    return g->x2 + ((size_t) n * g->hw + pixel) * g->c2 + ch - g->c;
}


/* addends: a sample's, or NULL; rows of a table may start anywhere */

SD_FN float
sd_gn_addend(const sd_gn_t *g, const float *addend, int ch)
{
    return addend == NULL ? 0 : addend[g->addend_at + ch];
}


/* K of a group */

SD_FN float
sd_gn_shift(const sd_gn_t *g, const float *addend, int n, int group)
{
    int               ld, ch;
    const sd_half_t  *x;

    ch = group * g->cpg;
    x = sd_gn_source(g, n, 0, ch, &ld);

    return sd_to_float(*x) + sd_gn_addend(g, addend, ch);
}


/*
 * Adds up rows, in a tree of eights; returns how many are left, one if there
 * are threads for it.  Each thread of the block has put down its own sums: of
 * the first group that its channels are of, and of the second.
 * sums: [rows, columns] floats of 4, to: room for an eighth of it, a row at
 * least; the result is in *sums.  No load waits for another.
 */

SD_FN int
sd_gn_reduce(float4 **sums, float4 *to)
{
    int    i, k, row, rows, left, slice, width;
    float  v[8], *from, *at;

    rows = blockDim.y;
    width = blockDim.x * 4;

    /* threads are the columns' single sums, of every so many rows */

    slice = threadIdx.y / 4;
    i = threadIdx.y % 4 * blockDim.x + threadIdx.x;

    __syncthreads();

    while (rows > 1 && blockDim.y >= 4) {
        left = sd_cuda_div(rows, 8);
        from = (float *) *sums;

        if (slice < left) {

#pragma unroll
            for (k = 0; k < 8; k++) {
                row = slice + k * left;
                v[k] = from[(row < rows ? row : slice) * width + i];
                v[k] = row < rows ? v[k] : 0;
            }

            at = (float *) to + slice * width + i;
            *at = ((v[0] + v[1]) + (v[2] + v[3]))
                  + ((v[4] + v[5]) + (v[6] + v[7]));
        }

        __syncthreads();

        *sums = to;
        to = (float4 *) from;
        rows = left;
    }

    return rows;
}


/*
 * The sums of a group, after sd_gn_reduce(); of a thread's W channels, columns
 * from base on
 */

template <int W>
SD_FN float2
sd_gn_sum(const sd_gn_t *g, const float4 *sums, int rows, int cols, int base,
    int group)
{
    int            row, col, lo, hi, second;
    float2         v, sum;
    const float2  *p;

    lo = sd_cuda_max(group * g->cpg / W - base, 0);
    hi = sd_cuda_min(((group + 1) * g->cpg - 1) / W - base + 1, cols);
    sum = make_float2(0, 0);

#pragma unroll 4
    for (col = lo; col < hi; col++) {
        second = (base + col) * W < group * g->cpg;
        p = (const float2 *) (sums + col) + second;

#pragma unroll 1
        for (row = 0; row < rows; row++) {
            v = p[row * cols * 2];
            sum.x += v.x;
            sum.y += v.y;
        }
    }

    return sum;
}


/* sums to mean (from K) and 1 / deviation */

SD_FN float2
sd_gn_moments(const sd_gn_t *g, float2 sum)
{
    float  mean;

    mean = sum.x * g->share;

    return make_float2(mean, sd_rsqrt(fmaxf(sum.y * g->share - mean * mean, 0)
                                      + g->eps));
}


template <int W>
SD_FN void
sd_gn_affine(const sd_gn_t *g, float *v, const float *a, const float *b)
{
    int  j;

#pragma unroll
    for (j = 0; j < W; j++) {
        v[j] = v[j] * a[j] + b[j];
    }

    if (g->silu) {
        sd_silu<W>(v);
    }
}


#endif
