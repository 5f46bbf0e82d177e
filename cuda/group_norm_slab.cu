/*
 * Group normalisation where a sample is small: in one kernel, and read once.
 *
 * Floor: memory, 2 bytes read and 2 written an element: 64 x 1280, two samples:
 * 0.7 MB, 0.2 us at 3.0 TB/s.
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
 *
 * A launch alone is 0.6 us of it, and a barrier of a cluster 0.7.
 *
 * DESIGN
 *
 * A slab is some whole groups, of as many channels as make rows of a multiple
 * of 16 bytes (groups themselves need not: 10 channels are 20 bytes).  A
 * cluster of blocks holds a slab of a sample, each a part of the pixels: it
 * reads them into registers, sends its sums to the other blocks, which add up
 * all in the same order, and writes.  One exchange, nothing atomic.  Before
 * sm_90 a cluster is one block.
 *
 * Slabs must not be narrow: rows of 64 or 80 bytes take about twice as long to
 * write as those of 160, as if blocks that write parts of the same 128 bytes
 * waited for each other.  And of 132 multiprocessors clusters of 8 get 120.
 * So larger samples, though they would fit into the chip's registers, are
 * better off with two kernels that take whole pixels.
 */

#include "group_norm.cuh"


#define SD_GN_SMALL    (1024 * 1280)    /* elements of a sample */
#define SD_GN_VECTORS  8            /* of a thread, in registers */
#define SD_GN_CLUSTER  8            /* blocks; more is not portable */


/* of a slab's block, so that its vectors stay in registers */

static constexpr int
sd_gn_threads(int vectors)
{
    return vectors == 4 ? 512 : 640;
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

int
sd_gn_slab_plan(sd_gn_t *g, const sd_cuda_chip_t *chip)
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


cudaError_t
sd_gn_slab_launch(cudaStream_t s, const sd_gn_t *g, int n)
{
    switch (g->vectors) {

    case 1:
        return sd_gn_launch<1>(s, g, n);

    case 4:
        return sd_gn_launch<4>(s, g, n);
    }

    return sd_gn_launch<SD_GN_VECTORS>(s, g, n);
}
