/*
 * Group normalisation (Wu and He 2018) with SiLU, of one or two inputs and an
 * addend per channel.
 *
 * Floor: memory, 2 bytes read and 2 written an element: 64x64x320, two samples:
 * 10.5 MB, 3.5 us at 3.0 TB/s.
 * Measured: see the end of bench/RESULTS.md
 *
 * DESIGN
 *
 * Two ways, chosen by the shape of a sample and the chip, never by n, so that a
 * sample's bits are its own.
 *
 * slab: where a sample fits into the shared memory of the chip.  A slab is some
 * whole groups, of as many channels as make rows of a multiple of 16 bytes
 * (groups themselves need not: 10 channels are 20 bytes).  A cluster of K
 * blocks holds a slab of a sample, a K-th of the pixels each; it reads x once,
 * finds mean and sum of squared differences of its part in two passes over
 * shared memory, sends both to the other blocks, which combine all K in the
 * same order (Chan et al. 1979), and writes.  One exchange, nothing atomic.
 * Before sm_90 K is 1.
 *
 * split: for what is larger.  One kernel makes mean and sum of squares of each
 * chunk of pixels and group, by sums of differences from the chunk's first
 * pixel; another combines them in order, once more in every block, and
 * normalises.  The first reads chunks forwards, the second backwards, so that
 * what it reads first is still in L2.
 */

#include "common.cuh"


#define SD_GN_THREADS  512
#define SD_GN_CHUNKS   128          /* at most; partial sums of a group */
#define SD_GN_CLUSTER  8            /* blocks; more is not portable */


typedef struct {
    sd_half_t            *y;
    const sd_half_t      *x, *x2;
    const float          *gamma, *beta;
    const float *const   *addend;
    int                   addend_at;
    int                   hw, c, c2, groups, cpg;
    float                 eps;
    int                   silu;

    /* slab */
    int                   slab;     /* groups of one */
    int                   vecs;     /* 16 bytes each, of a pixel */
    int                   rows;     /* pixels that the threads take at once */
    int                   pixels;   /* of a block; split: of a chunk */

    /* split */
    int                   chunks;
    int                   parts;    /* blocks that share a chunk's output */
    float2               *partial;  /* [n, groups, chunks] mean, squares */
} sd_gn_t;


/* addends of W channels from ch on, or zeros */

template <int W>
SD_FN void
sd_gn_addend(float *v, const sd_gn_t *g, int n, int ch)
{
    int           i;
    const float  *p;

    p = g->addend == NULL ? NULL : g->addend[n];

    /* rows of a table may start anywhere: one by one */

#pragma unroll
    for (i = 0; i < W; i++) {
        v[i] = p == NULL ? 0 : p[g->addend_at + ch + i];
    }
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


/*
 * A thread has sums of 8 neighbouring channels.  NARROW (a group has fewer
 * than 8): it puts down all; otherwise the 8 are of two groups at most, and it
 * puts down two sums.
 * sums: [rows, vecs, NARROW ? 8 : 2]; first: channels of the first group
 */

template <bool NARROW>
SD_FN void
sd_gn_put(float *sums, int i, const float *v, int first)
{
    int    j;
    float  a, b;

    if (NARROW) {

#pragma unroll
        for (j = 0; j < 8; j++) {
            sums[i * 8 + j] = v[j];
        }

        return;
    }

    a = 0;
    b = 0;

#pragma unroll
    for (j = 0; j < 8; j++) {
        a += j < first ? v[j] : 0;
        b += j < first ? 0 : v[j];
    }

    ((float2 *) sums)[i] = make_float2(a, b);
}


/* of a slab's groups, the one that channel j of vector col is of */

template <bool NARROW>
SD_FN int
sd_gn_group(const sd_gn_t *g, int col, int j)
{
    int  first;

    if (NARROW) {
        return (col * 8 + j) / g->cpg;
    }

    first = col * 8 / g->cpg;

    return first + (col * 8 + j >= (first + 1) * g->cpg);
}


/* the sum of a slab's group over all threads, by one warp; all lanes get it */

template <bool NARROW>
SD_FN float
sd_gn_get(const float *sums, const sd_gn_t *g, int group)
{
    int    i, v, row, lo, n;
    float  s = 0;

    if (NARROW) {
        lo = group * g->cpg;
        n = g->cpg;

    } else {
        lo = group * g->cpg / 8;
        n = ((group + 1) * g->cpg - 1) / 8 + 1 - lo;
    }

    for (i = threadIdx.x & 31; i < g->rows * n; i += 32) {
        row = i / n;
        v = lo + i - row * n;

        if (NARROW) {
            s += sums[row * g->vecs * 8 + v];

        } else {
            s += sums[(row * g->vecs + v) * 2 + (v * 8 / g->cpg != group)];
        }
    }

    return sd_warp_sum<32>(s);
}


/* grid: blocks of a cluster, slabs, samples */

template <bool CLUSTER, bool NARROW>
__global__ void
__launch_bounds__(SD_GN_THREADS, 2)
sd_gn_slab(const sd_gn_t g)
{
    int               i, j, k, n, ch, ld, row, col, warp, warps, pixels, first;
    int               count, active, blocks, lanes;
    float             v[8], sum[8], add[8], gamma[8], beta[8], mean, s, d, q;
    sd_half_t        *y;
    const sd_half_t  *x;

    SD_SHARED(uint4, tile);                         /* [pixels, vecs] */
    float   *sums = (float *) (tile + g.pixels * g.vecs);
    float2  *part = (float2 *) (sums + g.rows * g.vecs * (NARROW ? 8 : 2));
                                                    /* [blocks, slab] */
    float2  *stat = part + gridDim.x * g.slab;      /* [slab] */

    n = blockIdx.z;
    blocks = CLUSTER ? gridDim.x : 1;

    if (CLUSTER) {
        /* whoever sends to another block must know that it has started */
        sd_cluster_arrive();
    }

    first = blockIdx.x * g.pixels;
    pixels = sd_cuda_max(sd_cuda_min(g.pixels, g.hw - first), 0);

    row = threadIdx.x / g.vecs;
    col = threadIdx.x - row * g.vecs;
    warp = threadIdx.x / 32;
    warps = blockDim.x / 32;

    active = row < g.rows;
    ch = (blockIdx.y * g.vecs + col) * 8;

    x = sd_gn_source(&g, n, first, ch, &ld);
    count = 0;

    if (active) {
        for (i = row; i < pixels; i += g.rows) {
            sd_copy_async(tile + i * g.vecs + col, x + (size_t) i * ld);
            count++;
        }
    }

    sd_copy_commit();

    sd_gn_addend<8>(add, &g, n, ch);

    /* channels of the vector's first group */

    lanes = (col * 8 / g.cpg + 1) * g.cpg - col * 8;

    /* what is read is what this thread has copied: no barrier */

    sd_copy_wait<0>();

    if (active) {

#pragma unroll
        for (j = 0; j < 8; j++) {
            sum[j] = 0;
        }

#pragma unroll 2
        for (i = row; i < pixels; i += g.rows) {
            sd_unpack<8>(v, tile[i * g.vecs + col]);

#pragma unroll
            for (j = 0; j < 8; j++) {
                sum[j] += v[j];
            }
        }

#pragma unroll
        for (j = 0; j < 8; j++) {
            sum[j] += add[j] * count;
        }

        sd_gn_put<NARROW>(sums, row * g.vecs + col, sum, lanes);
    }

    __syncthreads();

    for (i = warp; i < g.slab; i += warps) {
        s = sd_gn_get<NARROW>(sums, &g, i);

        if ((threadIdx.x & 31) == 0) {
            stat[i].x = pixels == 0 ? 0 : s / ((float) pixels * g.cpg);
        }
    }

    __syncthreads();

    if (active) {

#pragma unroll
        for (j = 0; j < 8; j++) {
            beta[j] = add[j] - stat[sd_gn_group<NARROW>(&g, col, j)].x;
            sum[j] = 0;
        }

#pragma unroll 2
        for (i = row; i < pixels; i += g.rows) {
            sd_unpack<8>(v, tile[i * g.vecs + col]);

#pragma unroll
            for (j = 0; j < 8; j++) {
                d = v[j] + beta[j];
                sum[j] += d * d;
            }
        }

        sd_gn_put<NARROW>(sums, row * g.vecs + col, sum, lanes);
    }

    __syncthreads();

    if (CLUSTER) {
        sd_cluster_wait();
    }

    sd_load_f32<8>(gamma, g.gamma + ch);
    sd_load_f32<8>(beta, g.beta + ch);

    for (i = warp; i < g.slab; i += warps) {
        s = sd_gn_get<NARROW>(sums, &g, i);
        k = threadIdx.x & 31;

        if (k < blocks) {
            if (CLUSTER) {
                sd_cluster_store(part + blockIdx.x * g.slab + i, k,
                                 make_float2(stat[i].x, s));
            } else {
                part[i] = make_float2(stat[i].x, s);
            }
        }
    }

    if (CLUSTER) {
        sd_cluster_arrive();
        sd_cluster_wait();

    } else {
        __syncthreads();
    }

    for (i = threadIdx.x; i < g.slab; i += blockDim.x) {
        s = 0;

        for (k = 0; k < blocks; k++) {
            count = sd_cuda_max(sd_cuda_min(g.pixels, g.hw - k * g.pixels), 0);
            s += part[k * g.slab + i].x * count;
        }

        mean = s / g.hw;
        q = 0;

        for (k = 0; k < blocks; k++) {
            count = sd_cuda_max(sd_cuda_min(g.pixels, g.hw - k * g.pixels), 0);
            d = part[k * g.slab + i].x - mean;
            q += part[k * g.slab + i].y + d * d * ((float) count * g.cpg);
        }

        stat[i] = make_float2(mean, 1 / sqrtf(q / ((float) g.hw * g.cpg)
                                              + g.eps));
    }

    __syncthreads();

    if (!active) {
        return;
    }

#pragma unroll
    for (j = 0; j < 8; j++) {
        i = sd_gn_group<NARROW>(&g, col, j);
        gamma[j] *= stat[i].y;
        beta[j] += (add[j] - stat[i].x) * gamma[j];
    }

    ld = g.c + g.c2;
    y = g.y + ((size_t) n * g.hw + first) * ld + ch;

#pragma unroll 2
    for (i = row; i < pixels; i += g.rows) {
        sd_unpack<8>(v, tile[i * g.vecs + col]);

#pragma unroll
        for (j = 0; j < 8; j++) {
            v[j] = v[j] * gamma[j] + beta[j];
        }

        if (g.silu) {
            sd_silu<8>(v);
        }

        sd_store<8>(y + (size_t) i * ld, v);
    }
}


/*
 * grid: chunks, samples; shared: [2, channels] and [threads, W]
 */

template <int W>
__global__ void
__launch_bounds__(SD_GN_THREADS)
sd_gn_stats(const sd_gn_t g)
{
    int               i, j, n, ch, ld, cols, tile, rows, row, col, first;
    int               pixels, channels, lane;
    float             v[W], x0[W], s[W], q[W], a, d, mean;
    const sd_half_t  *x;

    SD_SHARED(float, means);
    channels = g.c + g.c2;
    float  *squares = means + channels;
    float  *sums = squares + channels;

    n = blockIdx.y;
    first = blockIdx.x * g.pixels;
    pixels = sd_cuda_min(g.pixels, g.hw - first);

    cols = channels / W;
    tile = sd_cuda_min(cols, SD_GN_THREADS);
    rows = SD_GN_THREADS / tile;
    row = threadIdx.x / tile;

    for (col = threadIdx.x - row * tile; col - (int) threadIdx.x % tile < cols;
         col += tile)
    {
        ch = col * W;

#pragma unroll
        for (j = 0; j < W; j++) {
            s[j] = 0;
            q[j] = 0;
        }

        if (row < rows && col < cols) {
            x = sd_gn_source(&g, n, first, ch, &ld);
            sd_load<W>(x0, x);

#pragma unroll 4
            for (i = row; i < pixels; i += rows) {
                sd_load<W>(v, x + (size_t) i * ld);

#pragma unroll
                for (j = 0; j < W; j++) {
                    d = v[j] - x0[j];
                    s[j] += d;
                    q[j] += d * d;
                }
            }
        }

        /* rows put together, first sums, then squares */

        for (i = 0; i < 2; i++) {

#pragma unroll
            for (j = 0; j < W; j++) {
                sums[threadIdx.x * W + j] = i == 0 ? s[j] : q[j];
            }

            __syncthreads();

            for (lane = threadIdx.x; lane < tile * W; lane += SD_GN_THREADS) {
                ch = (col - (int) threadIdx.x % tile) * W + lane;

                if (ch < channels) {
                    a = 0;

                    for (j = 0; j < rows; j++) {
                        a += sums[j * tile * W + lane];
                    }

                    (i == 0 ? means : squares)[ch] = a;
                }
            }

            __syncthreads();
        }
    }

    /* sums to mean and squares about it, of each channel */

    for (ch = threadIdx.x; ch < channels; ch += SD_GN_THREADS) {
        x = sd_gn_source(&g, n, first, ch, &ld);
        sd_gn_addend<1>(&a, &g, n, ch);

        d = means[ch] / pixels;
        squares[ch] = fmaxf(squares[ch] - means[ch] * d, 0);
        means[ch] = sd_to_float(*x) + a + d;
    }

    __syncthreads();

    lane = threadIdx.x & 31;

    for (i = threadIdx.x / 32; i < g.groups; i += SD_GN_THREADS / 32) {
        mean = 0;

        for (ch = lane; ch < g.cpg; ch += 32) {
            mean += means[i * g.cpg + ch];
        }

        mean = sd_warp_sum<32>(mean) / g.cpg;
        a = 0;

        for (ch = lane; ch < g.cpg; ch += 32) {
            d = means[i * g.cpg + ch] - mean;
            a += squares[i * g.cpg + ch] + d * d * pixels;
        }

        a = sd_warp_sum<32>(a);

        if (lane == 0) {
            g.partial[((size_t) n * g.groups + i) * g.chunks + blockIdx.x] =
                make_float2(mean, a);
        }
    }
}


/* grid: chunks * parts, samples; shared: [2, channels] and [2, groups] */

template <int W>
__global__ void
__launch_bounds__(256, 4)
sd_gn_apply(const sd_gn_t g)
{
    int               i, j, k, n, ch, ld, cols, tile, rows, row, col, first;
    int               pixels, channels, lane, part, count;
    float             v[W], a[W], b[W], s, d, add;
    float2            p[SD_GN_CHUNKS / 32];
    sd_half_t        *y;
    const sd_half_t  *x;

    SD_SHARED(float, scale);
    channels = g.c + g.c2;
    float   *shift = scale + channels;
    float2  *stat = (float2 *) (shift + channels);

    n = blockIdx.y;
    part = blockIdx.x % g.parts;
    first = blockIdx.x / g.parts * g.pixels;
    pixels = sd_cuda_min(g.pixels, g.hw - first);
    lane = threadIdx.x & 31;

    for (i = threadIdx.x / 32; i < g.groups; i += 256 / 32) {
        s = 0;

#pragma unroll
        for (j = 0; j < SD_GN_CHUNKS / 32; j++) {
            k = j * 32 + lane;
            count = sd_cuda_min(g.pixels, g.hw - k * g.pixels);
            p[j] = make_float2(0, 0);

            if (k < g.chunks) {
                p[j] = g.partial[((size_t) n * g.groups + i) * g.chunks + k];
                s += p[j].x * count;
            }
        }

        s = sd_warp_sum<32>(s) / g.hw;
        d = 0;

#pragma unroll
        for (j = 0; j < SD_GN_CHUNKS / 32; j++) {
            k = j * 32 + lane;
            count = sd_cuda_min(g.pixels, g.hw - k * g.pixels);

            if (k < g.chunks) {
                d += p[j].y + (p[j].x - s) * (p[j].x - s)
                              * ((float) count * g.cpg);
            }
        }

        d = sd_warp_sum<32>(d) / ((float) g.hw * g.cpg);

        if (lane == 0) {
            stat[i] = make_float2(s, 1 / sqrtf(d + g.eps));
        }
    }

    __syncthreads();

    for (ch = threadIdx.x; ch < channels; ch += 256) {
        sd_gn_addend<1>(&add, &g, n, ch);

        i = ch / g.cpg;
        s = g.gamma[ch] * stat[i].y;
        scale[ch] = s;
        shift[ch] = g.beta[ch] + (add - stat[i].x) * s;
    }

    __syncthreads();

    cols = channels / W;
    tile = sd_cuda_min(cols, 256);
    rows = 256 / tile;
    row = threadIdx.x / tile;

    if (row >= rows) {
        return;
    }

    for (col = threadIdx.x - row * tile; col < cols; col += tile) {
        ch = col * W;

        x = sd_gn_source(&g, n, first, ch, &ld);
        y = g.y + ((size_t) n * g.hw + first) * channels + ch;

#pragma unroll
        for (j = 0; j < W; j++) {
            a[j] = scale[ch + j];
            b[j] = shift[ch + j];
        }

#pragma unroll 2
        for (i = pixels - 1 - part * rows - row; i >= 0; i -= g.parts * rows) {
            sd_load<W>(v, x + (size_t) i * ld);

#pragma unroll
            for (j = 0; j < W; j++) {
                v[j] = v[j] * a[j] + b[j];
            }

            if (g.silu) {
                sd_silu<W>(v);
            }

            sd_store<W>(y + (size_t) i * channels, v);
        }
    }
}


/* of a shape alone */

static int
sd_gn_chunk(int hw, int channels)
{
    return sd_cuda_max(sd_cuda_div(hw, SD_GN_CHUNKS),
                       sd_cuda_min(hw, sd_cuda_div(8192, channels)));
}


/* room for whichever way a chip takes */

size_t
sd_cuda_group_norm_scratch(int n, int hw, int c, int groups)
{
    return (size_t) n * groups * SD_GN_CHUNKS * sizeof(float2);
}


/*
 * Groups of a slab: rows of whole 32-byte sectors where that leaves 8 slabs or
 * more, otherwise as few groups as make rows of 64 bytes or more.
 */

static int
sd_gn_slab_groups(int groups, int cpg)
{
    int  m, pass, ok;

    for (pass = 0; pass < 2; pass++) {
        for (m = 1; m <= groups; m++) {
            ok = pass == 0 ? m * cpg % 16 == 0 && groups / m >= 8
                           : m * cpg % 8 == 0;

            if (groups % m == 0 && ok && m * cpg >= 32) {
                return m;
            }
        }
    }

    return groups;
}


static size_t
sd_gn_slab_shared(const sd_gn_t *g, int blocks)
{
    return (size_t) g->pixels * g->vecs * sizeof(uint4)
           + (size_t) g->rows * g->vecs * (g->cpg < 8 ? 8 : 2) * sizeof(float)
           + (size_t) (blocks + 1) * g->slab * sizeof(float2);
}


/* blocks of a cluster, or 0: does not fit; fills in g */

static int
sd_gn_plan(sd_gn_t *g, const sd_cuda_chip_t *chip)
{
    int     blocks, slabs, most, limit;
    size_t  vecs;

    g->slab = sd_gn_slab_groups(g->groups, g->cpg);
    g->vecs = g->slab * g->cpg / 8;

    if (g->vecs > SD_GN_THREADS) {
        return 0;
    }

    slabs = g->groups / g->slab;
    vecs = (size_t) g->hw * g->vecs;

    limit = chip->arch >= 90 ? chip->shared : 49152;
    most = chip->arch >= 90 ? SD_GN_CLUSTER : 1;

    /* two samples should make all of a chip busy, with 8 KB a block at least */

    blocks = 1;

    while (blocks < most && blocks * slabs < 64
           && vecs / (2 * blocks) >= 512)
    {
        blocks *= 2;
    }

    for ( ;; ) {
        g->pixels = sd_cuda_div(g->hw, blocks);
        g->rows = SD_GN_THREADS / g->vecs;
        g->rows = sd_cuda_div(g->pixels, sd_cuda_div(g->pixels, g->rows));

        if (sd_gn_slab_shared(g, blocks) <= (size_t) limit) {
            return blocks;
        }

        if (blocks == most) {
            return 0;
        }

        blocks *= 2;
    }
}


static cudaError_t
sd_gn_launch_slab(cudaStream_t s, const sd_gn_t *g, int n, int blocks)
{
    size_t               shared;
    cudaError_t          rc;
    cudaLaunchConfig_t   config = {};
    cudaLaunchAttribute  attr = {};
    void               (*kernel)(const sd_gn_t g);

    if (blocks > 1) {
        kernel = g->cpg < 8 ? sd_gn_slab<true, true> : sd_gn_slab<true, false>;
    } else {
        kernel = g->cpg < 8 ? sd_gn_slab<false, true>
                            : sd_gn_slab<false, false>;
    }

    shared = sd_gn_slab_shared(g, blocks);

    if (shared > 49152) {
        rc = cudaFuncSetAttribute((const void *) kernel,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int) shared);
        if (rc != cudaSuccess) {
            return rc;
        }
    }

    attr.id = cudaLaunchAttributeClusterDimension;
    attr.val.clusterDim.x = blocks;
    attr.val.clusterDim.y = 1;
    attr.val.clusterDim.z = 1;

    config.gridDim = dim3(blocks, g->groups / g->slab, n);
    config.blockDim = dim3(sd_cuda_div(g->rows * g->vecs, 32) * 32);
    config.dynamicSmemBytes = shared;
    config.stream = s;
    config.attrs = &attr;
    config.numAttrs = blocks > 1;

    return cudaLaunchKernelEx(&config, kernel, *g);
}


template <int W>
static cudaError_t
sd_gn_launch_split(cudaStream_t s, const sd_cuda_chip_t *chip, sd_gn_t *g,
    int n)
{
    int          channels, most;
    size_t       stats, apply;
    cudaError_t  rc;

    channels = g->c + g->c2;

    g->pixels = sd_gn_chunk(g->hw, channels);
    g->chunks = sd_cuda_div(g->hw, g->pixels);

    stats = (2 * (size_t) channels + SD_GN_THREADS * W) * sizeof(float);
    apply = 2 * (size_t) (channels + g->groups) * sizeof(float);

    if (stats > 49152) {
        rc = cudaFuncSetAttribute((const void *) sd_gn_stats<W>,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int) stats);
        if (rc != cudaSuccess) {
            return rc;
        }
    }

    if (apply > 49152) {
        rc = cudaFuncSetAttribute((const void *) sd_gn_apply<W>,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int) apply);
        if (rc != cudaSuccess) {
            return rc;
        }
    }

    rc = sd_launch(sd_gn_stats<W>, dim3(g->chunks, n), dim3(SD_GN_THREADS),
                   stats, s, *g);
    if (rc != cudaSuccess) {
        return rc;
    }

    /* one wave of four blocks a multiprocessor, a few vectors a thread */

    most = sd_cuda_div((size_t) g->pixels * channels / W, 256 * 4);
    g->parts = sd_cuda_max(4 * chip->sms / (g->chunks * n), 1);
    g->parts = sd_cuda_min(g->parts, most);

    return sd_launch(sd_gn_apply<W>, dim3(g->chunks * g->parts, n), dim3(256),
                     apply, s, *g);
}


cudaError_t
sd_cuda_group_norm(cudaStream_t s, const sd_cuda_chip_t *chip,
    const sd_cuda_group_norm_t *d)
{
    int      blocks, wide;
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
    g.eps = d->eps;
    g.silu = d->silu;
    g.partial = (float2 *) d->scratch;

    if (d->n <= 0 || d->hw <= 0) {
        return cudaSuccess;
    }

    wide = g.c % 8 == 0 && g.c2 % 8 == 0 && sd_cuda_aligned(g.x)
           && sd_cuda_aligned(g.x2) && sd_cuda_aligned(g.y)
           && sd_cuda_aligned(g.gamma) && sd_cuda_aligned(g.beta);

    if (!wide) {
        return sd_gn_launch_split<1>(s, chip, &g, d->n);
    }

    blocks = sd_gn_plan(&g, chip);

    if (blocks > 0) {
        return sd_gn_launch_slab(s, &g, d->n, blocks);
    }

    return sd_gn_launch_split<8>(s, chip, &g, d->n);
}
