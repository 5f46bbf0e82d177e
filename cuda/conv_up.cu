/*
 * A 3x3 convolution of what is enlarged by nearest x2, on Hopper, by wgmma and
 * TMA, without the enlarged tensor: an output pixel of each of the four phases
 * (row and column even or odd) sees 2x2 different pixels of the small one, with
 * weights that are sums of the 3x3's (sd_cuda_pack_up()): 4/9 of the products.
 *
 * Floors, at the 755 TFLOP/s of a large GEMM, or by the bytes of the weights;
 * what it takes on an H100; and cuDNN, beside which the enlarging stands:
 *
 *                                        floor    this   cuDNN
 *      n = 2   640 channels at 32x32        36    39.8   104.6 us
 *             1280          at 16x16        36    39.9    92.3
 *             1280          at 8x8        17.5    24.7    32.8
 *      n = 16  640          at 32x32       285     302     641
 *             1280          at 16x16       285     322     648
 *             1280          at 8x8          71      82     169
 *      n = 1   512          at 64x64        46    57.3   104.7
 *              512          at 128x128     182     186     412
 *              256          at 256x256     182     218     422
 *
 * (cuDNN cannot write every second pixel: it does so through a workspace.)
 * Weights summed before they are rounded to fp16: the error, as nmse, is 8.6e-8
 * where that of the 3x3 is 4.3e-8.
 *
 * DESIGN
 *
 * A product of [pixels, 4 c] and [4 c, k] a phase.  A block has a tile of
 * 64 GROUPS pixels and COLS channels; a group of four warps 64 pixels of it.
 * Tiles are in slices of 64 channels.  TMA reads a box of pixels, shifted by
 * the tap's column and a row higher than the tile, for both rows of taps; and
 * zeroes where it leaves the picture.
 *
 * It is the level two cache that is short of bandwidth.  So the blocks of a
 * cluster have the same channels and phase, and each reads its share of the
 * weights for all.  One warp asks for slices, as many as there is room for, and
 * runs ahead into the next tile while this one is stored; room is free when all
 * warps that read it have.
 *
 * Results go through shared memory, as boxes of the output as it is seen by one
 * phase: with rows and pixels twice as far from each other.
 *
 * An output's sum runs over columns of taps, channels, rows of taps, whatever
 * the tile.
 */

#include "wgmma.cuh"


#define SLICE    64             /* channels */
#define ROW      128            /* bytes of a slice's pixel */
#define CLUSTER  2              /* four are slower: 5 to 70 % */


/* a box of w x h pixels of n samples; how many it takes; tiles' number */

typedef struct {
    int  w, h, n;
    int  across, down, deep;
} boxes_t;

typedef struct {
    CUtensorMap   x, w, y[4];
    const __half *bias;
    boxes_t       box;
    int           row, group;   /* bytes between a box's rows, and groups */
    int           bytes;        /* of a box */
    int           sy, sn;       /* a group's pixels after the one's before */
    int           k, slices;    /* of a tap */
    int           sets, blocks; /* of a cluster's tiles, of channels */
} up_t;


namespace {


/* where things are in a block's shared memory, of 1024 bytes' alignment */

template <int GROUPS, int COLS, int XS, int WS>
struct layout {
    static const int  PIXELS = GROUPS * 64;
    static const int  X = PIXELS / 4 * 5 * ROW;
    static const int  W = COLS * ROW;
    static const int  CHUNK = COLS % 80 == 0 ? 80 : 64;     /* columns */
    static const int  OUT = 64 * CHUNK * 2;
    static const int  WEIGHTS = XS * X;
    static const int  OUTS = WEIGHTS + WS * W;              /* [GROUPS][2] */
    static const int  BARRIERS = OUTS + GROUPS * 2 * OUT;
    static const int  SIZE = 1024 + BARRIERS + (XS + WS) * 16;
};


/* where this block's tile of a cluster's begins */

typedef struct {
    int  columns, phase, x, y, n;
} tile_t;


#ifdef HOPPER

static __device__ __forceinline__ tile_t
tile_of(const up_t *u, int t, int cols, int rank)
{
    tile_t  p;

    p.columns = t % u->blocks * cols;
    t /= u->blocks;
    p.phase = t % 4;
    t = t / 4 * CLUSTER + rank;
    p.x = t % u->box.across * u->box.w;
    t /= u->box.across;
    p.y = t % u->box.down * u->box.h;
    p.n = t / u->box.down * u->box.n;

    return p;
}

#endif


/* XS, WS: places for boxes of pixels, and for weights of a tap */

template <int GROUPS, int COLS, int XS, int WS>
__global__ void
__launch_bounds__(GROUPS * 128 + 32, 1)
conv_up(const __grid_constant__ up_t u)
{
#ifdef HOPPER

    typedef layout<GROUPS, COLS, XS, WS>  L;

    int        i, j, t, tiles, steps, group, col, columns, turn, xlast, wlast;
    float      d[COLS / 2];
    float2     bias;
    tile_t     p;
    uint32_t   base, weights, rank, lane, warp, x, out, at;
    uint32_t   xfull, xempty, wfull, wempty;
    ring<XS>   xs;
    ring<WS>   ws;

    extern __shared__ uint4  sd_shared_memory[];

    base = (sd_address(sd_shared_memory) + 1023) & ~1023u;
    weights = base + L::WEIGHTS;
    xfull = base + L::BARRIERS;
    xempty = xfull + XS * 8;
    wfull = xempty + XS * 8;
    wempty = wfull + WS * 8;

    rank = cluster_rank();
    lane = threadIdx.x % 32;
    warp = threadIdx.x / 32;

    if (threadIdx.x == 0) {
        for (i = 0; i < XS; i++) {
            barrier_init(xfull + i * 8, 1);
            barrier_init(xempty + i * 8, GROUPS * 4);
        }

        for (i = 0; i < WS; i++) {
            barrier_init(wfull + i * 8, 1);
            barrier_init(wempty + i * 8, CLUSTER * GROUPS * 4);
        }

        barrier_init_fence();
    }

    cluster_sync();

    /* step i: column of taps i / (2 slices), slice i / 2, row of taps i % 2 */

    tiles = u.sets * 4 * u.blocks;
    steps = 4 * u.slices;

    if (warp == GROUPS * 4) {

        /* the one that asks */

        for (t = blockIdx.x / CLUSTER; lane == 0 && t < tiles;
             t += gridDim.x / CLUSTER)
        {
            p = tile_of(&u, t, COLS, rank);
            j = 0;
            col = 0;

            for (i = 0; i < steps; i++) {

                if (i % 2 == 0) {
                    barrier_wait(xempty + xs.at * 8, xs.parity ^ 1);
                    barrier_expect(xfull + xs.at * 8, u.bytes);
                    box_load(base + xs.at * L::X, &u.x, xfull + xs.at * 8, col,
                             p.x + j - 1 + p.phase % 2,
                             p.y - 1 + p.phase / 2, p.n);
                    xs.next();
                }

                barrier_wait(wempty + ws.at * 8, ws.parity ^ 1);
                barrier_expect(wfull + ws.at * 8, L::W);
                box_load_to((1 << CLUSTER) - 1,
                            weights + ws.at * L::W + rank * (L::W / CLUSTER),
                            &u.w, wfull + ws.at * 8, col, i % 2 * 2 + j,
                            p.columns + rank * (COLS / CLUSTER), p.phase);
                ws.next();

                if (i % 2) {
                    col += SLICE;

                    if (col >= u.slices * SLICE) {
                        col = 0;
                        j++;
                    }
                }
            }
        }

        __syncwarp();

    } else {

        group = warp / 4;
        x = base + group * u.group;
        out = base + L::OUTS + group * 2 * L::OUT;
        turn = 0;

        for (t = blockIdx.x / CLUSTER; t < tiles; t += gridDim.x / CLUSTER) {
            xlast = 0;
            wlast = 0;

            for (i = 0; i < steps; i++) {

                if (i % 2 == 0) {
                    barrier_wait(xfull + xs.at * 8, xs.parity);
                }

                barrier_wait(wfull + ws.at * 8, ws.parity);

                settled(d, COLS / 2);
                wgmma_fence();

                at = x + xs.at * L::X + i % 2 * u.row;

                #pragma unroll
                for (j = 0; j < SLICE / 16; j++) {
                    wgmma<COLS>(d, matrix(at + j * 32, 0),
                                matrix(weights + ws.at * L::W + j * 32, 0),
                                i + j != 0);
                }

                wgmma_commit();

                /* what the step before has read is free */

                wgmma_wait<1>();

                if (i > 0 && lane < CLUSTER) {
                    barrier_arrive_at(wempty + wlast * 8, lane);
                }

                if (i > 0 && i % 2 == 0 && lane == 0) {
                    barrier_arrive(xempty + xlast * 8);
                }

                wlast = ws.at;
                ws.next();

                if (i % 2) {
                    xlast = xs.at;
                    xs.next();
                }
            }

            wgmma_wait<0>();
            settled(d, COLS / 2);

            if (lane < CLUSTER) {
                barrier_arrive_at(wempty + wlast * 8, lane);
            }

            if (lane == 0) {
                barrier_arrive(xempty + xlast * 8);
            }

            /* out; lane 4 g + q has columns 8 j + 2 q (+ 1), rows g, g + 8 */

            p = tile_of(&u, t, COLS, rank);

            #pragma unroll
            for (i = 0; i < COLS / L::CHUNK; i++) {

                if (threadIdx.x % 128 == 0) {
                    box_groups_wait<1>();
                }

                group_sync(1 + group);

                at = out + turn * L::OUT;
                turn ^= 1;
                columns = p.columns + i * L::CHUNK;

                #pragma unroll
                for (j = 0; j < L::CHUNK / 8; j += 2) {
                    float     *v = d + i * (L::CHUNK / 2) + j * 4;
                    uint32_t   h[4], row, unit;

                    #pragma unroll
                    for (int m = 0; m < 2; m++) {
                        col = columns + (j + m) * 8;
                        bias = make_float2(0, 0);

                        if (col < u.k) {
                            bias = __half22float2(*(const __half2 *)
                                                  (u.bias + col
                                                   + lane % 4 * 2));
                        }

                        h[2 * m] = sd_pair(v[4 * m] + bias.x,
                                           v[4 * m + 1] + bias.y);
                        h[2 * m + 1] = sd_pair(v[4 * m + 2] + bias.x,
                                               v[4 * m + 3] + bias.y);
                    }

                    row = warp % 4 * 16 + lane % 16;
                    unit = j + lane / 16;

                    if (L::CHUNK == 64) {
                        unit ^= row % 8;
                    }

                    store_matrices(at + row * (L::CHUNK * 2) + unit * 16,
                                   h[0], h[1], h[2], h[3]);
                }

                box_store_fence();
                group_sync(1 + group);

                if (threadIdx.x % 128 == 0) {
                    box_store_group(&u.y[p.phase], at, columns, p.x,
                                    p.y + group * u.sy, p.n + group * u.sn);
                }
            }
        }

        if (threadIdx.x % 128 == 0) {
            box_groups_wait<0>();
        }

        __syncwarp();
    }

    /* other blocks may still want to write here, and to arrive */

    cluster_sync();

#endif
}
}


/*
 * The fewest boxes of so many pixels.  Eight rows of 128 bytes are what
 * swizzles repeat after, so a row has at least eight pixels; four rows, as one
 * more is read; and a group's 64 pixels are of one sample.
 */

static boxes_t
boxes(const sd_cuda_conv_t *d, int pixels)
{
    int      w, h, least;
    boxes_t  b, best = { 0 };

    least = 0;

    for (w = 32; w >= 8; w /= 2) {
        for (h = pixels / w; h >= 4 && w * h >= 64; h /= 2) {
            b.w = w;
            b.h = h;
            b.n = pixels / w / h;
            b.across = (d->wd + w - 1) / w;
            b.down = (d->h + h - 1) / h;
            b.deep = (d->n + b.n - 1) / b.n;

            if (least == 0 || b.across * b.down * b.deep < least) {
                least = b.across * b.down * b.deep;
                best = b;
            }
        }
    }

    return best;
}


template <int GROUPS, int COLS, int XS, int WS>
static cudaError_t
launch(cudaStream_t s, const sd_cuda_conv_t *d, encode_pt encode)
{
    typedef layout<GROUPS, COLS, XS, WS>  L;

    int                  i, tiles, most, ok;
    up_t                 u;
    size_t               row, image;
    cudaError_t          rc;
    cudaLaunchConfig_t   config = { };
    cudaLaunchAttribute  cluster;

    static int  active;

    u.bias = (const __half *) d->bias;
    u.k = d->k;
    u.slices = (d->c + SLICE - 1) / SLICE;
    u.box = boxes(d, L::PIXELS);
    u.row = u.box.w * ROW;
    u.group = u.box.n > 1 ? (u.box.h + 1) * u.row : 64 * ROW;
    u.bytes = (u.box.h + 1) * u.row * u.box.n;
    u.sets = (u.box.across * u.box.down * u.box.deep + CLUSTER - 1) / CLUSTER;
    u.blocks = (d->k + COLS - 1) / COLS;
    u.sy = u.box.n > 1 ? 0 : u.box.h / GROUPS;
    u.sn = u.box.n > 1;

    row = (size_t) d->wd * d->c;
    image = row * d->h;

    const int     xdims[4] = { d->c, d->wd, d->h, d->n };
    const size_t  xsteps[3] = { (size_t) d->c, row, image };
    const int     xbox[4] = { SLICE, u.box.w, u.box.h + 1, u.box.n };

    const int     wdims[4] = { d->c, 4, d->k, 4 };
    const size_t  wsteps[3] = { (size_t) d->c, (size_t) 4 * d->c,
                                (size_t) 4 * d->c * d->k };
    const int     wbox[4] = { SLICE, 1, COLS / CLUSTER, 1 };

    row = (size_t) d->wd * 4 * d->k;
    image = row * d->h;

    const int     ydims[4] = { d->k, d->wd, d->h, d->n };
    const size_t  ysteps[3] = { (size_t) 2 * d->k, row, image };
    const int     ybox[4] = { L::CHUNK, u.box.w, 64 / u.box.w, 1 };

    ok = map_boxes(&u.x, encode, d->x, xdims, xsteps, xbox, 1)
         && map_boxes(&u.w, encode, d->w, wdims, wsteps, wbox, 1);

    for (i = 0; i < 4 && ok; i++) {
        ok = map_boxes(&u.y[i], encode,
                 d->y + (size_t) i / 2 * d->wd * 2 * d->k + i % 2 * d->k,
                 ydims, ysteps, ybox, L::CHUNK == 64);
    }

    if (!ok) {
        return cudaErrorInvalidValue;
    }

    rc = cudaFuncSetAttribute(conv_up<GROUPS, COLS, XS, WS>,
                              cudaFuncAttributeMaxDynamicSharedMemorySize,
                              L::SIZE);

    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = CLUSTER;
    cluster.val.clusterDim.y = 1;
    cluster.val.clusterDim.z = 1;

    config.gridDim = dim3(CLUSTER);
    config.blockDim = dim3(GROUPS * 128 + 32);
    config.dynamicSmemBytes = L::SIZE;
    config.stream = s;
    config.attrs = &cluster;
    config.numAttrs = 1;

    /* as many clusters as run at once: not every SM finds another */

    most = __atomic_load_n(&active, __ATOMIC_RELAXED);

    if (rc == cudaSuccess && most == 0) {
        rc = cudaOccupancyMaxActiveClusters(&most,
                                            conv_up<GROUPS, COLS, XS,
                                                    WS>, &config);
        most = most > 0 ? most : 1;
        __atomic_store_n(&active, most, __ATOMIC_RELAXED);
    }

    if (rc != cudaSuccess) {
        return rc;
    }

    tiles = u.sets * 4 * u.blocks;
    config.gridDim = dim3(CLUSTER * (tiles < most ? tiles : most));

    return cudaLaunchKernelEx(&config, conv_up<GROUPS, COLS, XS, WS>,
                              u);
}


/* how long the busiest cluster works, in tiles' columns */

static int
cost(const sd_cuda_chip_t *chip, const sd_cuda_conv_t *d, int groups,
    int cols)
{
    int      sets, tiles, most;
    boxes_t  b;

    b = boxes(d, groups * 64);
    sets = (b.across * b.down * b.deep + CLUSTER - 1) / CLUSTER;
    tiles = sets * 4 * ((d->k + cols - 1) / cols);
    most = chip->sms / CLUSTER;

    /* small tiles read more for what they compute */

    return (tiles + most - 1) / most * groups * (cols + 24);
}


int
sd_cuda_conv_up_takes(const sd_cuda_chip_t *chip, const sd_cuda_conv_t *d)
{
    return chip->arch == 90 && d->upsample && d->r == 3 && d->stride == 1
           && d->oh == 2 * d->h && d->ow == 2 * d->wd && d->c2 == 0
           && d->residual == NULL && d->bias != NULL
           && d->c % 8 == 0 && d->k % 8 == 0
           && (((uintptr_t) d->x | (uintptr_t) d->y | (uintptr_t) d->w
                | (uintptr_t) d->bias) & 15) == 0;
}


cudaError_t
sd_cuda_conv_up(cudaStream_t s, const sd_cuda_chip_t *chip,
    const sd_cuda_conv_t *d)
{
    int          small, wide, large;
    encode_pt    encode;
    cudaError_t  rc;

    rc = tensor_map_encoder(&encode);

    if (rc != cudaSuccess) {
        return rc;
    }

    large = cost(chip, d, 2, 256);
    wide = cost(chip, d, 2, 160);
    small = cost(chip, d, 1, 80);

    if (large <= wide && large <= small) {
        return launch<2, 256, 3, 4>(s, d, encode);
    }

    if (wide <= small) {
        return launch<2, 160, 3, 6>(s, d, encode);
    }

    return launch<1, 80, 5, 10>(s, d, encode);
}
