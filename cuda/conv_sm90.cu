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
 * by the shape of one sample: see parts_of() in conv_sm90_choose.cu.  Either
 * the blocks of a cluster have a part each, and each adds up all parts of its
 * share of the tile, which it gets through the cluster's shared memory (SPLIT
 * of them); or a block has parts one after the other (MANY), where there are
 * tiles enough.  What is added to what is the same, and so are the bits: in a
 * part, over columns of taps, channels, rows of taps.
 *
 * Clusters need their SMs in one GPC, of which some have 16, some 18, one may
 * have 10: 132 SMs have room for 66 clusters of two, 30 of four, 15 of eight.
 * Tiles are such that two samples of 512x512 fit.
 *
 * Weights are nobody's result: the first are asked for before the kernel before
 * is over.
 */

#include "conv_sm90_tile.cuh"


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


#define KIND(cols, split, many)                                               \
    { cols, split, many, room<cols, split, many>,                             \
      (const void *) conv_sm90<cols, split, many>, layout<cols, split>::SIZE }

const conv_kind_t  conv_sm90_kinds[] = {
    KIND(160, 1, 0), KIND(160, 1, 1), KIND(160, 2, 0), KIND(160, 2, 1),
    KIND(160, 4, 0), KIND(192, 4, 0), KIND(128, 8, 0), KIND(192, 8, 0)
};
