/*
 * Group normalisation (Wu and He 2018) with SiLU, of one or two inputs and an
 * addend per channel.
 *
 * Floor: memory, 2 bytes read and 2 written an element: 64x64x320, two samples:
 * 10.5 MB, 3.5 us at 3.0 TB/s.  Samples that do not stay on the chip are read
 * twice: half as much again.
 *
 * Measured on an H100 SXM, launches of a CUDA graph, microseconds; cold: the
 * input comes from memory, warm: it is in L2.
 *
 *     pixels x channels    n   cold   warm  floor     n  cold  floor
 *        64 x 1280         2    3.6    3.2    0.2    16   5.7    1.7
 *       256 x 1280         2    4.8    4.2    0.9    16    15    7.0
 *       256 x 2560         2    6.2    4.9    1.7    16    27     14
 *      1024 x  320         2    5.0    4.3    0.9    16    17    7.0
 *      1024 x  640         2    7.0    5.9    1.7    16    28     14
 *      1024 x 1280         2    9.3    7.7    3.5    16    51     28
 *      1024 x 1920         2     13     11    5.2    16    72     42
 *      4096 x  320         2     11    9.8    3.5    16    53     28
 *      4096 x  640         2     15     13    7.0    16    95     56
 *      4096 x  960         2     21     15     10    16   144     84
 *      4096 x  512         1     10    9.7    2.8
 *     16384 x  512         1     21     16     11     2    42     22
 *     65536 x  256         1     38     38     22     2    80     45
 *    262144 x  128         1     77     77     45     2   159     89
 *    262144 x  256         1    153    154     89     2   316    179
 *
 * A launch alone is 0.6 us of it, and a barrier of a cluster 0.7.
 *
 * DESIGN
 *
 * Two ways, chosen by the shape of a sample and the chip, never by n, so that a
 * sample's bits are its own.  Both walk the sample once for its statistics: the
 * sums of x - K and of its square, where K of a group is its first channel in
 * the sample's first pixel.  K is one of the values, so that what cancels when
 * the variance is made of them is small, however far from zero the mean is; and
 * sums about the same K simply add up.
 *
 * slab: where a sample is small.  A slab is some whole groups, of as many
 * channels as make rows of a multiple of 16 bytes (groups themselves need not:
 * 10 channels are 20 bytes).  A cluster of blocks holds a slab of a sample,
 * each a part of the pixels: it reads them into registers, sends its sums to
 * the other blocks, which add up all in the same order, and writes.  One
 * exchange, nothing atomic.  Before sm_90 a cluster is one block.
 *
 * Slabs must not be narrow: rows of 64 or 80 bytes take about twice as long to
 * write as those of 160, as if blocks that write parts of the same 128 bytes
 * waited for each other.  And of 132 multiprocessors clusters of 8 get 120.
 * So larger samples, though they would fit into the chip's registers, are
 * better off with two kernels that take whole pixels.
 *
 * split: for those.  One kernel makes the sums of each chunk of pixels and
 * group, for the largest adds those of a cluster's chunks; another adds up all,
 * once more in every block, and normalises.  The first reads chunks forwards,
 * the second blocks of pixels backwards, and the first tells L2 what to keep
 * for the second.  The second starts early, as blocks of the first end, and has
 * read its first pixels when the sums are there.
 *
 * A thread has 8 neighbouring channels.  They must be of two groups at most, or
 * it takes one: no model has groups that small.
 */

#include "common.cuh"


#define SD_GN_SMALL    (1024 * 1280)    /* elements of a sample: slab */
#define SD_GN_VECTORS  8            /* slab: of a thread, in registers */
#define SD_GN_CLUSTER  8            /* slab: blocks; more is not portable */

#define SD_GN_STATS    512          /* threads */
#define SD_GN_APPLY    512
#define SD_GN_SUMS     128          /* of a group, at most; half as many ... */
#define SD_GN_MANY     400000       /* ... with fewer vectors than these */
#define SD_GN_LARGE    16384        /* pixels: sums are added by clusters ... */
#define SD_GN_FEW      4            /* ... of so many blocks */
#define SD_GN_WAVE     16384        /* vectors of a block: rather two blocks; a
                                       quarter of it after clusters */
#define SD_GN_L2       ((size_t) 24 << 20)      /* bytes that stay there */


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


/* of a slab's block, so that its vectors stay in registers */

static constexpr int
sd_gn_threads(int vectors)
{
    return vectors == 4 ? 512 : 640;
}


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


template <int W>
SD_FN void
sd_gn_write(const sd_gn_t *g, sd_half_t *y, uint4 u, const float *a,
    const float *b)
{
    float  v[W];

    sd_unpack<W>(v, u);
    sd_gn_affine<W>(g, v, a, b);
    sd_store<W>(y, v);
}


/* block: vecs, rows; grid: blocks of a cluster, slabs, samples */

template <int N, bool CLUSTER>
__global__ void
__launch_bounds__(sd_gn_threads(N), N > 4 ? 1 : 2)
sd_gn_slab(const sd_gn_t g)
{
    constexpr int     H = N > 4 ? 4 : 8;
    int               i, j, k, h, n, ch, ld, rows, row, col, self, pixels;
    int               channels, group, threads, blocks, first, left;
    uint4             u[N], w;
    float             v[8], a[H], b[H], s, q, d;
    float2            sum, other;
    sd_half_t        *y;
    const float      *addend;
    const sd_half_t  *x;

    SD_SHARED(float, offset);                       /* [channels] */
    channels = g.vecs * 8;
    threads = g.vecs * g.rows;
    blocks = CLUSTER ? gridDim.x : 1;
    float     *gamma = offset + channels;           /* [channels] */
    float     *beta = gamma + channels;             /* [channels] */
    float4    *sums = (float4 *) (beta + channels); /* [rows, vecs] */
    float4    *room = sums + threads;               /* [rows / 8, vecs] */
    float2    *part = (float2 *) (room + sd_cuda_div(g.rows, 8) * g.vecs);
                                                    /* [blocks, slab] */
    uint64_t  *barrier = (uint64_t *) (part + blocks * g.slab);

    n = blockIdx.z;
    col = threadIdx.x;
    row = threadIdx.y;
    rows = g.rows;
    self = row * g.vecs + col;

    if (CLUSTER) {
        if (self == 0) {
            sd_cluster_open(barrier, blocks * g.slab * sizeof(float2));
        }

        sd_cluster_arrive();
    }

    first = blockIdx.x * g.pixels;
    pixels = sd_cuda_min(g.pixels, g.hw - first);
    ch = (blockIdx.y * g.vecs + col) * 8;

    sd_grid_wait();

    addend = g.addend == NULL ? NULL : g.addend[n];
    x = sd_gn_source(&g, n, first, ch, &ld);

    x += (size_t) row * ld;
    ld *= rows;

#pragma unroll
    for (i = 0; i < N; i++) {
        u[i] = make_uint4(0, 0, 0, 0);

        if (i * rows + row < pixels) {
            u[i] = sd_load_raw<8>(x);
        }

        x += ld;
    }

#pragma unroll 1
    for (i = self; i < channels; i += threads) {
        k = blockIdx.y * channels + i;
        group = blockIdx.y * g.slab + sd_gn_group(&g, i);

        gamma[i] = g.gamma[k];
        beta[i] = g.beta[k];
        offset[i] = sd_gn_addend(&g, addend, k)
                    - sd_gn_shift(&g, addend, n, group);
    }

    __syncthreads();

    /* channels of the vector's first group */

    group = sd_gn_group(&g, col * 8);
    k = (group + 1) * g.cpg - col * 8;

    sum = make_float2(0, 0);
    other = make_float2(0, 0);

#pragma unroll
    for (h = 0; h < 8; h += 4) {
        sd_load_f32<4>(b, offset + col * 8 + h);

#pragma unroll
        for (j = 0; j < 4; j++) {
            s = 0;
            q = 0;

#pragma unroll
            for (i = 0; i < N; i++) {
                if (i * rows + row < pixels) {
                    sd_unpack<8>(v, u[i]);
                    d = v[h + j] + b[j];
                    s += d;
                    q += d * d;
                }

                /* or it might unpack all at once */

                if (N > 2) {
                    sd_forget(&u[i]);
                }
            }

            if (h + j < k) {
                sum.x += s;
                sum.y += q;

            } else {
                other.x += s;
                other.y += q;
            }
        }
    }

    sums[self] = make_float4(sum.x, sum.y, other.x, other.y);

    left = sd_gn_reduce(&sums, room);

    if (CLUSTER) {
        sd_cluster_wait();
    }

    /* a warp a group; all its lanes have the sums, to send one each */

#pragma unroll 1
    for (i = self / 32; i < g.slab; i += threads / 32) {
        sum = sd_gn_sum<8>(&g, sums, left, g.vecs, 0, i);
        j = self & 31;

        if (j < blocks) {
            if (CLUSTER) {
                sd_cluster_send(part + blockIdx.x * g.slab + i, barrier, j,
                                sum);
            } else {
                part[i] = sum;
            }
        }
    }

    if (CLUSTER) {
        sd_cluster_receive(barrier);

    } else {
        __syncthreads();
    }

    sd_grid_next();

    sum = make_float2(0, 0);
    other = make_float2(0, 0);
    j = sd_cuda_min(group + 1, g.slab - 1);

#pragma unroll 2
    for (i = 0; i < blocks; i++) {
        sum.x += part[i * g.slab + group].x;
        sum.y += part[i * g.slab + group].y;
        other.x += part[i * g.slab + j].x;
        other.y += part[i * g.slab + j].y;
    }

    sum = sd_gn_moments(&g, sum);
    other = sd_gn_moments(&g, other);

    ld = g.c + g.c2;
    y = g.y + ((size_t) n * g.hw + first + row) * ld + ch;
    ld *= rows;

    /* by halves, to have registers enough for their factors */

#pragma unroll
    for (h = 0; h < 8; h += H) {
        sd_load_f32<H>(a, gamma + col * 8 + h);
        sd_load_f32<H>(b, beta + col * 8 + h);

#pragma unroll
        for (j = 0; j < H; j++) {
            a[j] *= h + j < k ? sum.y : other.y;
            b[j] += (offset[col * 8 + h + j] - (h + j < k ? sum.x : other.x))
                    * a[j];
        }

#pragma unroll
        for (i = 0; i < N; i++) {
            sd_unpack<8>(v, u[i]);
            sd_gn_affine<H>(&g, v + h, a, b);
            w = sd_pack<8>(v);

            if (h == 0) {
                u[i].x = w.x;
                u[i].y = w.y;
            }

            if (h + H == 8) {
                w.x = u[i].x;
                w.y = u[i].y;

                if (i * rows + row < pixels) {
                    *(uint4 *) y = w;
                }

                y += ld;

            } else {
                sd_forget(&u[i]);
            }
        }
    }
}


/* four pixels, of every so many from i on; those before keep leave L2 first */

template <int W>
SD_FN void
sd_gn_load(uint4 *u, const sd_half_t *x, int i, int step, int ld, int pixels,
    int keep)
{
    int  j;

    x += (size_t) i * ld;

    if (i < keep) {

#pragma unroll
        for (j = 0; j < 4; j++) {
            if (i + j * step < pixels) {
                u[j] = sd_load_last<W>(x + (size_t) j * step * ld);
            }
        }

    } else {

#pragma unroll
        for (j = 0; j < 4; j++) {
            if (i + j * step < pixels) {
                u[j] = sd_load_raw<W>(x + (size_t) j * step * ld);
            }
        }
    }
}


/* block: columns, rows; grid: chunks, samples; a cluster is chunks */

template <int W, bool CLUSTER>
__global__ void
__launch_bounds__(SD_GN_STATS, 2)
sd_gn_stats(const sd_gn_t g)
{
    int               i, j, k, n, ch, ld, cols, rows, row, col, base, first;
    int               self, threads, pixels, group, blocks, left, rank;
    int               keep;
    float             v[W], off[W], s[W], q[W];
    uint4             u[4];
    float2            sum;
    float4            both, *from;
    const float      *addend;
    const sd_half_t  *x;

    SD_SHARED(float4, sums);                            /* [rows, columns] */
    threads = blockDim.x * blockDim.y;
    rows = blockDim.y;
    blocks = CLUSTER ? g.blocks : 1;
    float4    *room = sums + threads;           /* [rows / 8, columns] */
    float2    *total = (float2 *) (room + sd_cuda_div(rows, 8) * blockDim.x);
                                                        /* [groups] */
    float2    *part = total + g.groups;                 /* [blocks, groups] */
    uint64_t  *barrier = (uint64_t *) (part + blocks * g.groups);

    n = blockIdx.y;
    row = threadIdx.y;
    self = row * blockDim.x + threadIdx.x;
    first = blockIdx.x * g.pixels;
    pixels = sd_cuda_min(g.pixels, g.hw - first);
    cols = (g.c + g.c2) / W;
    rank = CLUSTER ? blockIdx.x % blocks : 0;
    keep = n < g.kept ? pixels : g.keep;

    if (CLUSTER) {
        if (self == 0) {
            sd_cluster_open(barrier, blocks * g.groups * sizeof(float2));
        }

        sd_cluster_arrive();
    }

    sd_grid_wait();
    sd_grid_next();

    addend = g.addend == NULL ? NULL : g.addend[n];

    for (base = 0; base < cols; base += blockDim.x) {
        col = base + threadIdx.x;
        both = make_float4(0, 0, 0, 0);

        if (col < cols && row < pixels) {
            ch = col * W;
            group = sd_gn_group(&g, ch);
            k = (group + 1) * g.cpg - ch;

            x = sd_gn_source(&g, n, first, ch, &ld);
            sd_gn_load<W>(u, x, row, rows, ld, pixels, keep);

            sum.x = sd_gn_shift(&g, addend, n, group);
            sum.y = sd_gn_shift(&g, addend, n,
                                sd_cuda_min(group + 1, g.groups - 1));

#pragma unroll
            for (j = 0; j < W; j++) {
                off[j] = sd_gn_addend(&g, addend, ch + j)
                         - (j < k ? sum.x : sum.y);
                s[j] = 0;
                q[j] = 0;
            }

            for (i = row; i < pixels; i += 4 * rows) {
                if (i != row) {
                    sd_gn_load<W>(u, x, i, rows, ld, pixels, keep);
                }

#pragma unroll
                for (left = 0; left < 4; left++) {
                    if (i + left * rows < pixels) {
                        sd_unpack<W>(v, u[left]);

#pragma unroll
                        for (j = 0; j < W; j++) {
                            v[j] += off[j];
                            s[j] += v[j];
                            q[j] += v[j] * v[j];
                        }
                    }
                }
            }

#pragma unroll
            for (j = 0; j < W; j++) {
                if (j < k) {
                    both.x += s[j];
                    both.y += q[j];

                } else {
                    both.z += s[j];
                    both.w += q[j];
                }
            }
        }

        sums[self] = both;
        from = sums;
        left = sd_gn_reduce(&from, room);

        for (i = self; i < g.groups; i += threads) {
            sum = make_float2(0, 0);

            if ((i + 1) * g.cpg > base * W
                && i * g.cpg < (base + (int) blockDim.x) * W)
            {
                sum = sd_gn_sum<W>(&g, from, left, blockDim.x, base, i);
            }

            if (base != 0) {
                sum.x += total[i].x;
                sum.y += total[i].y;
            }

            total[i] = sum;
        }

        __syncthreads();
    }

    for (i = self; i < g.groups && blockIdx.x == 0; i += threads) {
        g.shift[(size_t) n * g.groups + i] = sd_gn_shift(&g, addend, n, i);
    }

    if (CLUSTER) {
        sd_cluster_wait();

        for (i = self; i < g.groups; i += threads) {
            sd_cluster_send(part + rank * g.groups + i, barrier, 0, total[i]);
        }

        if (rank != 0) {
            return;
        }

        sd_cluster_receive(barrier);
    }

    for (i = self; i < g.groups; i += threads) {
        sum = total[i];

        if (CLUSTER) {
#pragma unroll 4
            for (k = 1; k < blocks; k++) {
                sum.x += part[k * g.groups + i].x;
                sum.y += part[k * g.groups + i].y;
            }
        }

        g.partial[((size_t) n * g.sums + blockIdx.x / blocks) * g.groups + i] =
            sum;
    }
}


/* block: columns, rows; grid: spans, samples */

template <int W>
__global__ void
__launch_bounds__(SD_GN_APPLY, 2)
sd_gn_apply(const sd_gn_t g)
{
    int               i, j, k, n, ch, ld, cols, rows, col, first, last;
    int               self, threads, pixels, channels, group, slice, slices;
    uint4             u[4];
    float             a[W], b[W], add[W];
    float2            sum, v;
    sd_half_t        *y;
    const float      *addend;
    const sd_half_t  *x;

    SD_SHARED(float2, stat);                            /* [groups] */
    float2  *some = stat + g.groups;                    /* [slices, groups] */

    /* from the end to the start: what stays of x in L2 */

    n = gridDim.y - 1 - blockIdx.y;
    rows = blockDim.y;
    threads = blockDim.x * rows;
    self = threadIdx.y * blockDim.x + threadIdx.x;
    first = blockIdx.x * g.span;
    pixels = sd_cuda_min(g.span, g.hw - first);
    last = pixels - 1 - (int) threadIdx.y;
    channels = g.c + g.c2;
    cols = channels / W;

    slices = sd_cuda_max(threads / g.groups, 1);
    slice = slices > 1 ? self / g.groups : 0;

    /* the statistics have waited for these: they may be read already */

    addend = g.addend == NULL ? NULL : g.addend[n];

    for (col = threadIdx.x; col < cols; col += blockDim.x) {
        ch = col * W;

        x = sd_gn_source(&g, n, first, ch, &ld);
        y = g.y + ((size_t) n * g.hw + first) * channels + ch;

#pragma unroll
        for (j = 0; j < 4; j++) {
            if (last >= j * rows) {
                u[j] = sd_load_last<W>(x + (size_t) (last - j * rows) * ld);
            }
        }

#pragma unroll
        for (j = 0; j < W; j++) {
            add[j] = sd_gn_addend(&g, addend, ch + j);
        }

        sd_load_f32<W>(b, g.beta + ch);

        if (col == (int) threadIdx.x) {
            sd_grid_wait();
            sd_grid_next();

            for (i = self - slice * g.groups;
                 i < g.groups && slice < slices;
                 i += threads)
            {
                sum = make_float2(0, 0);

#pragma unroll 4
                for (k = slice; k < g.sums; k += slices) {
                    v = g.partial[((size_t) n * g.sums + k) * g.groups + i];
                    sum.x += v.x;
                    sum.y += v.y;
                }

                some[slice * g.groups + i] = sum;
            }

            sd_load_f32<W>(a, g.gamma + ch);
            __syncthreads();

            for (i = self; i < g.groups; i += threads) {
                sum = make_float2(0, 0);

#pragma unroll 8
                for (k = 0; k < slices; k++) {
                    sum.x += some[k * g.groups + i].x;
                    sum.y += some[k * g.groups + i].y;
                }

                sum = sd_gn_moments(&g, sum);
                sum.x += g.shift[(size_t) n * g.groups + i];
                stat[i] = sum;
            }

            __syncthreads();

        } else {
            sd_load_f32<W>(a, g.gamma + ch);
        }

        group = sd_gn_group(&g, ch);
        i = (group + 1) * g.cpg - ch;

#pragma unroll
        for (j = 0; j < W; j++) {
            sum = stat[j < i ? group : group + 1];
            a[j] *= sum.y;
            b[j] += (add[j] - sum.x) * a[j];
        }

        for (i = last; i >= 0; i -= 4 * rows) {
            if (i != last) {

#pragma unroll
                for (j = 0; j < 4; j++) {
                    if (i >= j * rows) {
                        u[j] = sd_load_last<W>(x + (size_t) (i - j * rows)
                                               * ld);
                    }
                }
            }

#pragma unroll
            for (j = 0; j < 4; j++) {
                if (i >= j * rows) {
                    sd_gn_write<W>(&g, y + (size_t) (i - j * rows) * channels,
                                   u[j], a, b);
                }
            }
        }
    }
}


/* room for whichever way a chip takes */

size_t
sd_cuda_group_norm_scratch(int n, int hw, int c, int groups)
{
    return (size_t) n * groups * (SD_GN_SUMS * sizeof(float2) + sizeof(float));
}


static size_t
sd_gn_slab_shared(const sd_gn_t *g)
{
    return (size_t) g->vecs * 8 * 3 * sizeof(float)
           + (size_t) (g->rows + sd_cuda_div(g->rows, 8)) * g->vecs
             * sizeof(float4)
           + (size_t) g->blocks * g->slab * sizeof(float2) + sizeof(uint64_t);
}


/*
 * Fills in how so many blocks of a cluster hold slabs of so many groups; 0:
 * they cannot
 */

static int
sd_gn_fit(sd_gn_t *g, int slab, int blocks, int least)
{
    int  i, step;

    static const int  vectors[] = { 1, 4, SD_GN_VECTORS };

    g->slab = slab;
    g->vecs = slab * g->cpg / 8;
    g->blocks = blocks;
    g->pixels = sd_cuda_div(g->hw, blocks);

    /* rows that make whole warps */

    for (step = 1; step * g->vecs % 32 != 0; step *= 2) { /* void */ }

    for (i = 0; i < (int) (sizeof(vectors) / sizeof(vectors[0])); i++) {
        if (vectors[i] < least) {
            continue;
        }

        g->vectors = vectors[i];
        g->rows = sd_cuda_div(sd_cuda_div(g->pixels, g->vectors), step) * step;

        if (g->rows * g->vecs <= sd_gn_threads(g->vectors)) {
            return 1;
        }
    }

    return 0;
}


/* 1: fits; fills in g */

static int
sd_gn_plan(sd_gn_t *g, const sd_cuda_chip_t *chip)
{
    int  m, vecs, blocks, most;

    if ((size_t) g->hw * g->groups * g->cpg > SD_GN_SMALL) {
        return 0;
    }

    most = chip->arch >= 90 ? SD_GN_CLUSTER : 1;

    /* rows of five sectors or more */

    for (m = 1; m * g->cpg % 8 != 0 || m * g->cpg < 80; m++) {
        if (m >= g->groups) {
            break;
        }
    }

    if (m * g->cpg % 8 != 0 || g->groups % m != 0) {
        return 0;
    }

    vecs = g->hw * (m * g->cpg / 8);
    blocks = 1;

    while (blocks < most
           && (vecs > 1920 * blocks
               || (vecs > 640 * blocks && g->groups / m * blocks < 32)))
    {
        blocks *= 2;
    }

    if (most > 1 && vecs > 1920 * blocks) {
        return 0;
    }

    return sd_gn_fit(g, m, blocks, vecs > 160 * blocks ? 4 : 1);
}


template <int N>
static cudaError_t
sd_gn_launch(cudaStream_t s, const sd_gn_t *g, int n)
{
    return sd_launch_early(g->blocks > 1 ? sd_gn_slab<N, true>
                                         : sd_gn_slab<N, false>,
                           g->blocks, dim3(g->blocks, g->groups / g->slab, n),
                           dim3(g->vecs, g->rows), sd_gn_slab_shared(g), s,
                           *g);
}


static cudaError_t
sd_gn_launch_slab(cudaStream_t s, const sd_gn_t *g, int n)
{
    switch (g->vectors) {

    case 1:
        return sd_gn_launch<1>(s, g, n);

    case 4:
        return sd_gn_launch<4>(s, g, n);
    }

    return sd_gn_launch<SD_GN_VECTORS>(s, g, n);
}


template <int W>
static cudaError_t
sd_gn_launch_split(cudaStream_t s, const sd_cuda_chip_t *chip, sd_gn_t *g,
    int n)
{
    int          cols, channels, most, tile, rows, waves;
    size_t       vecs, shared, bytes;
    cudaError_t  rc;

    channels = g->c + g->c2;
    cols = channels / W;
    vecs = (size_t) g->hw * cols;
    bytes = (size_t) g->hw * channels * sizeof(sd_half_t);

    /* of a shape and the chip alone */

    g->blocks = chip->arch >= 90 && W > 1 && g->hw >= SD_GN_LARGE
                ? SD_GN_FEW : 1;
    most = vecs >= SD_GN_MANY ? SD_GN_SUMS : SD_GN_SUMS / 2;
    most = (int) sd_cuda_min((size_t) most, sd_cuda_div(vecs, 1280));

    g->pixels = sd_cuda_div(g->hw, most);
    g->chunks = sd_cuda_div(g->hw, g->pixels);
    g->sums = sd_cuda_div(g->chunks, g->blocks);

    /* what is read first after it was read last */

    g->kept = n - (int) sd_cuda_min(SD_GN_L2 / bytes, (size_t) n);
    g->keep = 0;

    if (bytes > SD_GN_L2) {
        g->kept = n - 1;
        g->keep = (int) (g->pixels * (1 - (double) SD_GN_L2 / bytes));
    }

    tile = sd_cuda_min(cols, SD_GN_STATS);
    rows = SD_GN_STATS / tile;
    shared = (size_t) tile * (rows + sd_cuda_div(rows, 8)) * sizeof(float4)
             + (size_t) (1 + g->blocks) * g->groups * sizeof(float2)
             + sizeof(uint64_t);

    rc = sd_launch_early(g->blocks > 1 ? sd_gn_stats<W, (W > 1)>
                                       : sd_gn_stats<W, false>,
                         g->blocks, dim3(g->sums * g->blocks, n),
                         dim3(tile, rows), shared, s, *g);
    if (rc != cudaSuccess) {
        return rc;
    }

    /* two blocks a multiprocessor, twice as many where each has much to do */

    tile = sd_cuda_min(cols, SD_GN_APPLY);
    rows = SD_GN_APPLY / tile;

    waves = vecs * n / (2 * chip->sms) > (g->blocks > 1 ? SD_GN_WAVE / 4
                                                        : SD_GN_WAVE) ? 2 : 1;
    most = sd_cuda_max(waves * 2 * chip->sms / n, 1);
    g->span = sd_cuda_max(sd_cuda_div(g->hw, most), sd_cuda_min(g->hw, rows));
    shared = sizeof(float2)
             * (g->groups + sd_cuda_max(tile * rows, g->groups));

    return sd_launch_early(sd_gn_apply<W>, 1,
                           dim3(sd_cuda_div(g->hw, g->span), n),
                           dim3(tile, rows), shared, s, *g);
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

    if (!wide) {
        return sd_gn_launch_split<1>(s, chip, &g, d->n);
    }

    if (sd_gn_plan(&g, chip)) {
        return sd_gn_launch_slab(s, &g, d->n);
    }

    return sd_gn_launch_split<8>(s, chip, &g, d->n);
}
