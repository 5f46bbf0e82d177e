/*
 * 3x3 convolutions of a UNet's shapes, on Hopper, by wgmma and TMA.  Where
 * pixels are few, the depth is divided, so that there is work for all of the
 * card; cuDNN's kernels that do so give other bits in another batch.
 *
 * Floors, at the 755 TFLOP/s of a large GEMM, or by the bytes of the weights;
 * what it takes on an H100; and cuDNN's best that gives the same bits in any
 * batch; with a residual where channels stay as many:
 *
 *                       n = 2                     n = 16
 *                       floor    this   cuDNN     floor  this  cuDNN
 *     64x64  320 to  320  20.0    26.6    32.6       160   189    207 us
 *     64x64  640 to  320  40.0    45.0    48.4       320   406    436 us
 *     64x64  960 to  320  60.0    65.4    69.0       480   579    664 us
 *     32x32  320 to  640  10.0    20.0    19.6        80    95    106 us
 *     32x32  640 to  640  20.0    31.7    33.9       160   200    201 us
 *     32x32  960 to  640  30.0    42.1    45.8       240   287    288 us
 *     32x32 1280 to  640  40.0    52.9    57.7       320   386    390 us
 *     32x32 1920 to  640  60.0    75.2    82.9       480   576    588 us
 *     16x16  640 to 1280  10.0    20.8    18.8        80    92     99 us
 *     16x16 1280 to 1280  20.0    31.1    32.8       160   180    184 us
 *     16x16 1920 to 1280  30.0    42.3    46.5       240   299    280 us
 *     16x16 2560 to 1280  40.0    51.4    59.2       320   386    368 us
 *       8x8 1280 to 1280   9.8    19.5    23.2        40    53     50 us
 *       8x8 2560 to 1280  19.7    31.1    41.1        80    98     90 us
 *
 * Behind a group norm, as in a UNet, a step's 45 of them take 1384 us for n = 2
 * where cuDNN's take 1640, and 8.6 ms for n = 16, cuDNN's 9.0.
 *
 * DESIGN
 *
 * A product of [pixels, 9 c] and [9 c, k].  A block has a tile of 128 pixels
 * and COLS channels; a group of four warps 64 pixels of it.  Tiles are in
 * slices of 64 channels.  TMA reads a box of pixels, shifted by the tap's
 * column and two rows higher than the tile, for all three rows of taps; and
 * zeroes where it leaves the picture.  One thread asks for slices, as many as
 * there is room for, and runs ahead into the next tile while this one is
 * stored; room is free when all warps that read it have.  Where level two's
 * bandwidth is short, a pair of blocks has the same channels, and each reads
 * half of the weights for both.
 *
 * The depth is in parts, whose sums are added in their order.  Their number is
 * by the shape of one sample: see parts_of().  Either the blocks of a cluster
 * have a part each, and each adds up all parts of its share of the tile, which
 * it gets through the cluster's shared memory (SPLIT of them); or a block has
 * parts one after the other (MANY), where there are tiles enough.  What is
 * added to what is the same, and so are the bits: in a part, over columns of
 * taps, channels, rows of taps.
 *
 * Clusters need their SMs in one GPC, of which some have 16, some 18, one may
 * have 10: 132 SMs have room for 66 clusters of two, 30 of four, 15 of eight.
 * Tiles are such that two samples of 512x512 fit.
 *
 * Weights are nobody's result: the first are asked for before the kernel before
 * is over.
 */

#include <string.h>

#include "wgmma.cuh"


#define SLICE    64             /* channels */
#define ROW      128            /* bytes of a slice's pixel */
#define PIXELS   128
#define WARPS    8              /* that compute */
#define THREADS  384            /* and a group of which one thread asks */

/* a tile's box: 16 x 8 pixels, or 8 x 8 of two samples; both are read with two
 * rows more a sample */
#define BOX      (PIXELS / 4 * 5 * ROW)

#define CHUNK    80             /* columns that are stored at a time */
#define OUT      (64 * CHUNK * 2)


typedef struct {
    CUtensorMap    x, w, y, residual;
    const __half  *bias, *add;
    __half        *out;
    int            n, h, wd, k;
    int            shift, width, deep;  /* of a box: log2, pixels, samples */
    int            across, down;        /* boxes */
    int            row, group;          /* bytes between rows, and groups */
    int            slices, parts;
    int            pair;                /* blocks that share weights */
    int            sets, blocks;        /* of a pair's tiles, of channels */
} conv_t;


namespace {


/* where things are in a block's shared memory, of 1024 bytes' alignment; what
 * blocks exchange is where boxes and weights were */

template <int COLS, int SPLIT>
struct layout {
    static const int  W = COLS * ROW;
    static const int  XS = SPLIT == 1 || COLS > 160 ? 3 : 4;
    static const int  WS = COLS == 128 ? 9 : SPLIT == 1 || COLS > 160 ? 6 : 7;
    static const int  WEIGHTS = XS * BOX;
    static const int  OUTS = WEIGHTS + WS * W;          /* [2][COLS / CHUNK] */
    static const int  BARRIERS = OUTS + (SPLIT > 1 ? 0
                                                   : 2 * COLS / CHUNK * OUT);
    static const int  SIZE = 1024 + BARRIERS + (XS + WS) * 16 + 16;
};


/* where a block's tile begins */

typedef struct {
    int  columns, x, y, n;
} tile_t;


#ifdef HOPPER

/* the same place in block rank's shared memory */

static __device__ __forceinline__ uint32_t
place_at(uint32_t at, int rank)
{
    uint32_t  r;

    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(r) : "r"(at), "r"(rank));

    return r;
}


static __device__ __forceinline__ void
store_there(uint32_t at, const float *x)
{
    asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};"
                 :: "r"(at), "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3])
                 : "memory");
}


static __device__ __forceinline__ float4
load_16(uint32_t at)
{
    float4  r;

    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(r.x), "=f"(r.y), "=f"(r.z), "=f"(r.w) : "r"(at)
                 : "memory");

    return r;
}


/* two halves, asked for here and not later */

static __device__ __forceinline__ uint32_t
load_pair(const __half *x)
{
    uint32_t  r;

    asm volatile("ld.global.b32 %0, [%1];" : "=r"(r) : "l"(x) : "memory");

    return r;
}


static __device__ __forceinline__ float2
halves(uint32_t x)
{
    __half2  h;

    memcpy(&h, &x, 4);

    return __half22float2(h);
}


/* step i: column of taps and slice i / 3, row of taps i % 3 */

struct taps {
    int  dx, dy, col;

    __device__ __forceinline__
    taps(int i, int slices)
    {
        dy = i % 3;
        dx = i / 3 / slices;
        col = i / 3 % slices * SLICE;
    }

    __device__ __forceinline__ void
    next(int slices)
    {
        if (++dy == 3) {
            dy = 0;
            col += SLICE;

            if (col == slices * SLICE) {
                col = 0;
                dx++;
            }
        }
    }
};


static __device__ __forceinline__ tile_t
tile_of(const conv_t *u, int t, int cols, int rank)
{
    tile_t  p;

    p.columns = t % u->blocks * cols;
    t = t / u->blocks * u->pair + rank;
    p.x = t % u->across * u->width;
    t /= u->across;
    p.y = t % u->down * 8;
    p.n = t / u->down * u->deep;

    return p;
}


/* this block's share of a step's weights, to those that need them */

template <int COLS>
static __device__ __forceinline__ void
weights_load(const conv_t *u, uint32_t to, uint32_t full, const taps *s,
    int columns, int part, int peer)
{
    barrier_expect(full, COLS * ROW);
    box_load_to(((1 << u->pair) - 1) << (part * u->pair),
                to + peer * (COLS * ROW / u->pair), &u->w, full, s->col,
                s->dy * 3 + s->dx, columns + peer * (COLS / u->pair), 0);
}


/*
 * Adds bias and residual, which is where the result goes, and stores; lane
 * 4 g + q has columns 8 j + 2 q (+ 1), rows g, g + 8
 */

template <int COLS>
static __device__ __forceinline__ void
store(const conv_t *u, const tile_t *p, float *d, const uint32_t *bias,
    uint32_t out, int warp, int lane)
{
    int       i, j, group;
    float    *v;
    float2    a, b;
    uint32_t  h[4], at;

    group = warp / 4;

    #pragma unroll
    for (j = 0; j < COLS / 8; j += 2) {
        v = d + j * 4;
        at = out + j / (CHUNK / 8) * OUT
             + (warp % 4 * 16 + lane % 16) * (CHUNK * 2)
             + (j % (CHUNK / 8) + lane / 16) * 16;

        if (u->add) {
            sd_load_matrices(h, at);
        }

        #pragma unroll
        for (i = 0; i < 2; i++) {
            a = halves(bias[j + i]);
            v[4 * i] += a.x;
            v[4 * i + 1] += a.y;
            v[4 * i + 2] += a.x;
            v[4 * i + 3] += a.y;

            if (u->add) {
                a = halves(h[2 * i]);
                b = halves(h[2 * i + 1]);
                v[4 * i] += a.x;
                v[4 * i + 1] += a.y;
                v[4 * i + 2] += b.x;
                v[4 * i + 3] += b.y;
            }

            h[2 * i] = sd_pair(v[4 * i], v[4 * i + 1]);
            h[2 * i + 1] = sd_pair(v[4 * i + 2], v[4 * i + 3]);
        }

        store_matrices(at, h[0], h[1], h[2], h[3]);
    }

    box_store_fence();
    group_sync(1 + group);

    if (threadIdx.x % 128 == 0) {

        #pragma unroll
        for (i = 0; i < COLS / CHUNK; i++) {
            box_store_group(&u->y, out + i * OUT, p->columns + i * CHUNK, p->x,
                            p->y + (u->deep > 1 ? 0 : group * 4),
                            p->n + (u->deep > 1 ? group : 0));
        }
    }
}


/*
 * The blocks of a cluster exchange their parts of the tile: sixteen columns in
 * turn are a block's to add up, and to store; of these sixteen pixels a warp's:
 * [part][warp][8 columns][lane]
 */

template <int COLS, int SPLIT>
static __device__ __forceinline__ void
reduce(const conv_t *u, const tile_t *p, const float *d, uint32_t base,
    int part, int peer, int warp, int lane)
{
    const int  OWN = (COLS / 16 + SPLIT - 1) / SPLIT * 2;

    /* eight parts are two sums of four: as two blocks have them */

    const int  GROUP = SPLIT == 8 ? 4 : SPLIT;

    int       i, j, k, m, n[2], col;
    size_t    to[2];
    float4    v, sub, w;
    float2    a, b;
    uint32_t  r[OWN][3], at, there;

    cluster_arrive();

    /* on the way: residuals, biases */

    #pragma unroll
    for (m = 0; m < 2; m++) {
        i = warp * 16 + m * 8 + lane / 4;
        n[m] = p->n + (i >> (u->shift + 3));
        to[m] = (((size_t) n[m] * u->h + p->y + (i >> u->shift) % 8) * u->wd
                 + p->x + (i & (u->width - 1))) * u->k;
    }

    #pragma unroll
    for (i = 0; i < OWN; i++) {
        j = (i / 2 * SPLIT + part) * 16 + i % 2 * 8;
        col = p->columns + j + lane % 4 * 2;

        #pragma unroll
        for (m = 0; m < 3; m++) {
            r[i][m] = 0;
        }

        if (j < COLS && col < u->k) {
            r[i][2] = load_pair(u->bias + col);

            #pragma unroll
            for (m = 0; m < 2; m++) {
                if (u->add && n[m] < u->n) {
                    r[i][m] = load_pair(u->add + to[m] + col);
                }
            }
        }
    }

    /* nobody reads boxes and weights any more */

    cluster_wait();

    at = base + ((part * WARPS + warp) * OWN * 32 + lane) * 16;

    #pragma unroll
    for (i = 0; i < SPLIT; i++) {
        there = place_at(at, i * u->pair + peer);

        #pragma unroll
        for (j = 0; j < OWN; j++) {
            m = (j / 2 * SPLIT + i) * 2 + j % 2;

            if (m < COLS / 8) {
                store_there(there + j * 512, d + m * 4);
            }
        }
    }

    cluster_sync();

    at = base + (warp * OWN * 32 + lane) * 16;

    #pragma unroll
    for (i = 0; i < OWN; i++) {
        j = (i / 2 * SPLIT + part) * 16 + i % 2 * 8;
        col = p->columns + j + lane % 4 * 2;

        if (j >= COLS || col >= u->k) {
            continue;
        }

        v = make_float4(0, 0, 0, 0);

        #pragma unroll
        for (m = 0; m < SPLIT; m += GROUP) {
            sub = make_float4(0, 0, 0, 0);

            #pragma unroll
            for (k = 0; k < GROUP; k++) {
                w = load_16(at + (((m + k) * WARPS * OWN + i) * 32) * 16);
                sub.x += w.x;
                sub.y += w.y;
                sub.z += w.z;
                sub.w += w.w;
            }

            v.x += sub.x;
            v.y += sub.y;
            v.z += sub.z;
            v.w += sub.w;
        }

        #pragma unroll
        for (m = 0; m < 2; m++) {
            a = halves(r[i][2]);
            a.x += m ? v.z : v.x;
            a.y += m ? v.w : v.y;

            if (u->add) {
                b = halves(r[i][m]);
                a.x += b.x;
                a.y += b.y;
            }

            if (n[m] < u->n) {
                *(uint32_t *) (u->out + to[m] + col) = sd_pair(a.x, a.y);
            }
        }
    }
}

#endif


template <int COLS, int SPLIT, int MANY>
__global__ void
__launch_bounds__(THREADS, 1)
conv_sm90(const __grid_constant__ conv_t u)
{
#ifdef HOPPER

    typedef layout<COLS, SPLIT>  L;

    int           i, j, t, tiles, step, steps, first, last, edge, part, each,
                  done, group, dy, rank, peer, lane, warp, ahead, xlast, wlast;
    float         d[COLS / 2], sum[MANY ? COLS / 2 : 1];
    tile_t        p;
    uint32_t      base, weights, x, out, at, xfull, xempty, wfull, wempty,
                  rfull, turn, bias[SPLIT > 1 ? 1 : COLS / 8];
    ring<L::XS>   xs;
    ring<L::WS>   ws;

    extern __shared__ uint4  sd_shared_memory[];

    base = (sd_address(sd_shared_memory) + 1023) & ~1023u;
    weights = base + L::WEIGHTS;
    xfull = base + L::BARRIERS;
    xempty = xfull + L::XS * 8;
    wfull = xempty + L::XS * 8;
    wempty = wfull + L::WS * 8;
    rfull = wempty + L::WS * 8;

    rank = cluster_rank();
    part = rank / u.pair;
    peer = rank % u.pair;
    lane = threadIdx.x % 32;
    warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);

    if (threadIdx.x == 0) {
        map_prefetch(&u.x);
        map_prefetch(&u.w);

        for (i = 0; i < L::XS; i++) {
            barrier_init(xfull + i * 8, 1);
            barrier_init(xempty + i * 8, WARPS);
        }

        for (i = 0; i < L::WS; i++) {
            barrier_init(wfull + i * 8, 1);
            barrier_init(wempty + i * 8, u.pair * WARPS);
        }

        barrier_init(rfull, 1);
        barrier_init(rfull + 8, 1);

        barrier_init_fence();
    }

    cluster_sync();

    /* where blocks divide the depth, each has one tile */

    t = blockIdx.x / (SPLIT * u.pair);
    tiles = u.sets * u.blocks;
    step = gridDim.x / (SPLIT * u.pair);

    steps = 9 * u.slices;
    each = u.parts / SPLIT;
    first = steps * (part * each) / u.parts;
    last = steps * ((part + 1) * each) / u.parts;

    if (warp >= WARPS) {

        /* the one that asks */

        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");

        if (threadIdx.x == WARPS * 32) {
            taps  s(first, u.slices);

            p = tile_of(&u, t, COLS, peer);

            for (ahead = 0; ahead < L::WS && first + ahead < last; ahead++) {
                weights_load<COLS>(&u, weights + ahead * L::W,
                                   wfull + ahead * 8, &s, p.columns, part,
                                   peer);
                s.next(u.slices);
            }

            sd_grid_wait();

            for (/* void */; t < tiles; t += step) {
                p = tile_of(&u, t, COLS, peer);
                s = taps(first, u.slices);

                for (i = first; i < last; i++) {

                    if (i == first || s.dy == 0) {
                        barrier_wait(xempty + xs.at * 8, xs.parity ^ 1);
                        barrier_expect(xfull + xs.at * 8, BOX);
                        box_load(base + xs.at * BOX, &u.x, xfull + xs.at * 8,
                                 s.col, p.x + s.dx - 1, p.y - 1, p.n);
                        xs.next();
                    }

                    if (ahead > 0) {
                        ahead--;

                    } else {
                        barrier_wait(wempty + ws.at * 8, ws.parity ^ 1);
                        weights_load<COLS>(&u, weights + ws.at * L::W,
                                           wfull + ws.at * 8, &s, p.columns,
                                           part, peer);
                    }

                    ws.next();
                    s.next(u.slices);
                }
            }
        }

        __syncwarp();

        if (SPLIT > 1) {

            /* as in reduce() */

            cluster_sync();
            cluster_sync();
        }

    } else {

        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");

        sd_grid_wait();

        group = warp / 4;
        x = base + group * u.group;
        out = base + L::OUTS + group * (COLS / CHUNK * OUT);
        turn = 0;

        for (/* void */; t < tiles; t += step) {
            p = tile_of(&u, t, COLS, peer);

            if (SPLIT == 1) {

                /* the residual, to where the result goes */

                if (threadIdx.x % 128 == 0) {
                    box_groups_wait<0>();

                    if (u.add) {
                        barrier_expect(rfull + group * 8, COLS / CHUNK * OUT);

                        for (i = 0; i < COLS / CHUNK; i++) {
                            box_load(out + i * OUT, &u.residual,
                                     rfull + group * 8, p.columns + i * CHUNK,
                                     p.x, p.y + (u.deep > 1 ? 0 : group * 4),
                                     p.n + (u.deep > 1 ? group : 0));
                        }
                    }
                }

                /* so early, as it takes long */

                #pragma unroll
                for (i = 0; i < COLS / 8; i++) {
                    bias[i] = load_pair(u.bias + p.columns + i * 8
                                        + lane % 4 * 2);
                }
            }

            if (MANY) {
                #pragma unroll
                for (i = 0; i < COLS / 2; i++) {
                    sum[i] = 0;
                }
            }

            edge = first;
            done = part * each;
            dy = first % 3;
            xlast = 0;
            wlast = 0;

            for (i = first; i < last; i++) {

                if (i == first || dy == 0) {
                    barrier_wait(xfull + xs.at * 8, xs.parity);
                }

                barrier_wait(wfull + ws.at * 8, ws.parity);

                if (MANY && i == edge && i > first) {

                    /* a part is over */

                    wgmma_wait<0>();
                    settled(d, COLS / 2);

                    #pragma unroll
                    for (j = 0; j < COLS / 2; j++) {
                        sum[j] += d[j];
                    }
                }

                settled(d, COLS / 2);
                wgmma_fence();

                at = x + xs.at * BOX + dy * u.row;

                #pragma unroll
                for (j = 0; j < SLICE / 16; j++) {
                    wgmma<COLS>(d, matrix(at + j * 32, 0),
                                matrix(weights + ws.at * L::W + j * 32, 0),
                                j > 0 || i != edge);
                }

                wgmma_commit();

                if (MANY && i == edge) {
                    done++;
                    edge = steps * done / u.parts;
                }

                /* what the step before has read is free */

                wgmma_wait<1>();

                if (i > first && lane < u.pair) {
                    barrier_arrive_at(wempty + wlast * 8, rank - peer + lane);
                }

                if (i > first && dy == 0 && lane == 0) {
                    barrier_arrive(xempty + xlast * 8);
                }

                wlast = ws.at;
                xlast = xs.at;
                ws.next();

                if (++dy == 3) {
                    dy = 0;
                    xs.next();
                }
            }

            wgmma_wait<0>();
            settled(d, COLS / 2);

            if (MANY) {
                #pragma unroll
                for (j = 0; j < COLS / 2; j++) {
                    d[j] += sum[j];
                }
            }

            if (SPLIT > 1) {
                reduce<COLS, SPLIT>(&u, &p, d, base, part, peer, warp, lane);
                continue;
            }

            if (lane < u.pair) {
                barrier_arrive_at(wempty + wlast * 8, rank - peer + lane);
            }

            if (lane == 0) {
                barrier_arrive(xempty + xlast * 8);
            }

            if (u.add) {
                barrier_wait(rfull + group * 8, turn);
                turn ^= 1;
            }

            /* what was there has been stored */

            group_sync(1 + group);

            store<COLS>(&u, &p, d, bias, out, warp, lane);
        }

        if (SPLIT == 1 && threadIdx.x % 128 == 0) {
            box_groups_wait<0>();
        }

        __syncwarp();
    }

    /* other blocks may still want to write here, and to arrive */

    if (SPLIT == 1) {
        cluster_sync();
    }

#endif
}
}


/* how many clusters run at once */

template <int COLS, int SPLIT, int MANY>
static int
room(int pair)
{
    int                  most;
    cudaError_t          rc;
    cudaLaunchConfig_t   config = { };
    cudaLaunchAttribute  cluster;

    static int  rooms[3];

    most = __atomic_load_n(&rooms[pair], __ATOMIC_RELAXED);

    if (most) {
        return most;
    }

    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = SPLIT * pair;
    cluster.val.clusterDim.y = 1;
    cluster.val.clusterDim.z = 1;

    config.gridDim = dim3(SPLIT * pair);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = layout<COLS, SPLIT>::SIZE;
    config.attrs = &cluster;
    config.numAttrs = 1;

    rc = cudaFuncSetAttribute(conv_sm90<COLS, SPLIT, MANY>,
                              cudaFuncAttributeMaxDynamicSharedMemorySize,
                              layout<COLS, SPLIT>::SIZE);

    if (rc == cudaSuccess) {
        rc = cudaOccupancyMaxActiveClusters(&most,
                                            conv_sm90<COLS, SPLIT, MANY>,
                                            &config);
    }

    most = rc == cudaSuccess && most > 0 ? most : 1;
    __atomic_store_n(&rooms[pair], most, __ATOMIC_RELAXED);

    return most;
}


/*
 * The depth's parts, by the shape of a sample: such that two samples, a guided
 * picture, are most of the card's work.  It decides the bits
 */

static int
parts_of(const sd_cuda_conv_t *d)
{
    int  blocks;

    blocks = 2 * d->h * d->wd / PIXELS * (d->k / 160);

    return blocks > 66 ? 1 : blocks > 32 ? 2 : blocks > 15 ? 4 : 8;
}


/* kernels to choose from; of those for a number of parts the bits are the
 * same */

typedef struct {
    int           cols, split, many;
    int         (*room)(int pair);
    const void   *kernel;
    int           size;
} kind_t;

#define KIND(cols, split, many)                                               \
    { cols, split, many, room<cols, split, many>,                             \
      (const void *) conv_sm90<cols, split, many>, layout<cols, split>::SIZE }

static const kind_t  kinds[] = {
    KIND(160, 1, 0), KIND(160, 1, 1), KIND(160, 2, 0), KIND(160, 2, 1),
    KIND(160, 4, 0), KIND(192, 4, 0), KIND(128, 8, 0), KIND(192, 8, 0)
};

#define KINDS  (SD_CUDA_CONV_WAYS / 2)


int
sd_cuda_conv_sm90_takes(const sd_cuda_chip_t *chip, const sd_cuda_conv_t *d)
{
    return chip->arch == 90 && !d->upsample && d->r == 3 && d->stride == 1
           && d->oh == d->h && d->ow == d->wd && d->c2 == 0 && d->bias != NULL
           && d->c % SLICE == 0 && d->k % 160 == 0
           && d->h % 8 == 0 && d->wd % 8 == 0
           && (((uintptr_t) d->x | (uintptr_t) d->y | (uintptr_t) d->w
                | (uintptr_t) d->bias | (uintptr_t) d->residual) & 15) == 0;
}


/*
 * The fastest, by waves of clusters, each of so many steps' columns and what
 * comes after; who reads all of the weights alone waits for them, too.  *most:
 * how many clusters run at once; NULL: there is none
 */

static const kind_t *
choose(const sd_cuda_conv_t *d, int tiles, int *pair, int *most)
{
    int            i, j, parts, room, sets;
    double         cost, least;
    const kind_t  *kind, *best;

    parts = parts_of(d);
    best = NULL;
    least = 0;

    for (i = 0; i < KINDS; i++) {
        kind = &kinds[i];

        /* eight parts one after the other would be two sums, and a third */

        if (kind->many ? parts == 1 || (parts == 8) != (kind->split == 2)
                       : kind->split != parts)
        {
            continue;
        }

        for (j = 1; j <= 2; j++) {

            if (kind->split * j > 8 || j > tiles
                || (d->way > 0 && d->way != 2 * i + j))
            {
                continue;
            }

            room = kind->room(j);
            sets = (tiles + j - 1) / j
                   * ((d->k + kind->cols - 1) / kind->cols);

            cost = 9. * d->c / SLICE / kind->split
                   * (kind->cols + (j == 1 ? 60 : 24))
                   + (kind->split > 1 ? 2000 : 1200);
            cost *= (sets + room - 1) / room;

            if (best == NULL || cost < least) {
                best = kind;
                least = cost;
                *pair = j;
                *most = room;
            }
        }
    }

    return best;
}


cudaError_t
sd_cuda_conv_sm90(cudaStream_t s, const sd_cuda_chip_t *chip,
    const sd_cuda_conv_t *d)
{
    int                  ok, tiles, most;
    void                *args[1];
    conv_t               u;
    size_t               row, image;
    encode_pt            encode;
    cudaError_t          rc;
    const kind_t        *kind;
    cudaLaunchConfig_t   config = { };
    cudaLaunchAttribute  attrs[2];

    rc = tensor_map_encoder(&encode);

    if (rc != cudaSuccess) {
        return rc;
    }

    u.bias = (const __half *) d->bias;
    u.add = (const __half *) d->residual;
    u.out = (__half *) d->y;
    u.n = d->n;
    u.h = d->h;
    u.wd = d->wd;
    u.k = d->k;
    u.shift = d->wd % 16 == 0 ? 4 : 3;
    u.width = 1 << u.shift;
    u.deep = 16 / u.width;
    u.across = d->wd / u.width;
    u.down = d->h / 8;
    u.row = u.width * ROW;
    u.group = u.deep > 1 ? 10 * u.row : 64 * ROW;
    u.slices = d->c / SLICE;
    u.parts = parts_of(d);

    tiles = u.across * u.down * ((d->n + u.deep - 1) / u.deep);

    kind = choose(d, tiles, &u.pair, &most);

    if (kind == NULL) {
        return cudaErrorInvalidValue;
    }

    u.sets = (tiles + u.pair - 1) / u.pair;
    u.blocks = (d->k + kind->cols - 1) / kind->cols;

    row = (size_t) d->wd * d->c;
    image = row * d->h;

    const int     xdims[4] = { d->c, d->wd, d->h, d->n };
    const size_t  xsteps[3] = { (size_t) d->c, row, image };
    const int     xbox[4] = { SLICE, u.width, 10, u.deep };

    const int     wdims[4] = { d->c, 9, d->k, 1 };
    const size_t  wsteps[3] = { (size_t) d->c, (size_t) 9 * d->c,
                                (size_t) 9 * d->c * d->k };
    const int     wbox[4] = { SLICE, 1, kind->cols / u.pair, 1 };

    row = (size_t) d->wd * d->k;
    image = row * d->h;

    const int     ydims[4] = { d->k, d->wd, d->h, d->n };
    const size_t  ysteps[3] = { (size_t) d->k, row, image };
    const int     ybox[4] = { CHUNK, u.width, 64 / u.width, 1 };

    ok = map_boxes(&u.x, encode, d->x, xdims, xsteps, xbox, 1)
         && map_boxes(&u.w, encode, d->w, wdims, wsteps, wbox, 1)
         && map_boxes(&u.y, encode, d->y, ydims, ysteps, ybox, 0)
         && map_boxes(&u.residual, encode, d->residual ? d->residual : d->y,
                      ydims, ysteps, ybox, 0);

    if (!ok) {
        return cudaErrorInvalidValue;
    }

    rc = cudaFuncSetAttribute(kind->kernel,
                              cudaFuncAttributeMaxDynamicSharedMemorySize,
                              kind->size);

    if (rc != cudaSuccess) {
        return rc;
    }

    attrs[0].id = cudaLaunchAttributeClusterDimension;
    attrs[0].val.clusterDim.x = kind->split * u.pair;
    attrs[0].val.clusterDim.y = 1;
    attrs[0].val.clusterDim.z = 1;
    attrs[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attrs[1].val.programmaticStreamSerializationAllowed = 1;

    /* clusters that divide the depth have one tile, others go on to more */

    tiles = u.sets * u.blocks;

    if (kind->split == 1 && tiles > most) {
        tiles = most;
    }

    config.gridDim = dim3(tiles * kind->split * u.pair);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = kind->size;
    config.stream = s;
    config.attrs = attrs;
    config.numAttrs = 2;

    args[0] = &u;

    return cudaLaunchKernelExC(&config, kind->kernel, args);
}
