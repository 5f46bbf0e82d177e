/*
 * Group normalisation where a sample is not small: in two kernels.
 *
 * Floor: memory, 2 bytes read and 2 written an element: 64x64x320, two samples:
 * 10.5 MB, 3.5 us at 3.0 TB/s.  Samples that do not stay on the chip are read
 * twice: half as much again.
 *
 * Measured on an H100 SXM, launches of a CUDA graph, microseconds; cold: the
 * input comes from memory, warm: it is in L2.
 *
 *     pixels x channels    n   cold   warm  floor     n  cold  floor
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
 * DESIGN
 *
 * One kernel makes the sums of each chunk of pixels and group, for the largest
 * adds those of a cluster's chunks; another adds up all, once more in every
 * block, and normalises.  The first reads chunks forwards, the second blocks of
 * pixels backwards, and the first tells L2 what to keep for the second.  The
 * second starts early, as blocks of the first end, and has read its first
 * pixels when the sums are there.
 */

#include "group_norm.cuh"


#define SD_GN_STATS    512          /* threads */
#define SD_GN_APPLY    512
#define SD_GN_MANY     400000       /* vectors; for fewer, half as many sums */
#define SD_GN_LARGE    16384        /* pixels: sums are added by clusters ... */
#define SD_GN_FEW      4            /* ... of so many blocks */
#define SD_GN_WAVE     16384        /* vectors of a block: rather two blocks; a
                                       quarter of it after clusters */
#define SD_GN_L2       ((size_t) 24 << 20)      /* bytes that stay there */


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
sd_gn_split_launch(cudaStream_t s, const sd_cuda_chip_t *chip, sd_gn_t *g,
    int n, int wide)
{
    return wide ? sd_gn_launch_split<8>(s, chip, g, n)
                : sd_gn_launch_split<1>(s, chip, g, n);
}
