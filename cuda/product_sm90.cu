/*
 * A linear layer on Hopper: y = x w^T + bias, and a residual; or to values and
 * gates, and value * gelu(gate).
 *
 * Floor: at 755 TFLOP/s, which is what a large GEMM reaches, or the bytes at
 * 3.0 TB/s.  GEGLU of SD 1.5 at n = 2, and at n = 16 eight times the rows; in
 * us, beside what cublasLt's GEMM and a kernel for the activation take:
 *
 *     rows x columns x depth   floor  measured  two kernels    n = 16
 *     8192 x  2560 x  320       17.8      27.1         50.6    142  199  375
 *     2048 x  5120 x  640       17.8      22.8         33.3    142  195  251
 *      512 x 10240 x 1280       17.8      22.4         30.2    142  175  204
 *      128 x 10240 x 1280        9.3      12.1         15.2     36   48   51
 *
 * At n = 16 the card is at its limit of power: a run that follows another is up
 * to a tenth slower.  Others at n = 2, without and with a residual, beside
 * cublasLt's best:
 *
 *     rows x columns x depth   floor       measured    cublasLt
 *     8192 x   320 x  320      3.6   5.3   5.4   6.6   6.8   7.6
 *     8192 x   320 x 1280           10.8        12.5        14.4
 *     2048 x   640 x  640      2.2   2.9   5.3   5.8   5.8   6.5
 *      512 x  1280 x 1280      2.2   2.4   6.9   7.6   6.3   6.3
 *
 * Weights are nobody's result, so the first slices of them are asked for before
 * the kernel before is over, and the kernel after may begin as early: all of
 * this made a step of SD 1.5 of 4.45 ms one of 4.41, and one of 2.1-base of 4.36
 * one of 4.20.
 *
 * DESIGN
 *
 * A persistent block makes tiles of 128 rows and NB columns.  Its first eight
 * warps are two warpgroups of 64 rows each; the ninth asks TMA for slices of 64
 * of the depth, as far ahead as STAGES slices of shared memory allow.  A
 * slice of the weight is NB rows of values' and below them the NB rows of the
 * gates' for the same columns, one operand of 2 NB columns for wgmma: a value
 * and its gate are accumulated by the same thread.
 *
 * CLUSTER blocks make tiles below one another, and share the weight's slices:
 * each asks for a part, for all.
 *
 * Nothing orders the warpgroups but the slices that they share.  While both
 * are at a tile's activations the tensor cores are idle: with a depth of 320
 * a tile of 128 columns is 5100 cycles of products, as fast as they can be, and
 * 3100 of the rest.  To start one warpgroup some slices after the other did not
 * help: it has to be more of them than there are stages.
 *
 * An element's sum is in the order of the depth, whatever the tile and the
 * number of rows: they are free to choose.  And so it is in cublasLt's kernels.
 * What has a bias and a residual, in place, they round twice, and this does:
 * the sum with the bias, and that with the residual.  So bits are the same, and
 * either may be chosen for each number of rows.
 */

#include <string.h>

#include "wgmma.cuh"


#define ROWS   128                  /* of a tile */
#define ROW    128                  /* bytes of a slice's row: 64 elements */
#define SIDE   (ROWS * ROW)         /* of x's part of a slice */

#define THREADS  384

/* columns that go out at a time, and their row's bytes in shared memory: an odd
 * number of 16-byte units, so that 8 rows lie in different banks */
#define CHUNK_OF(NB)  ((NB) > 80 ? (NB) / 2 : (NB))
#define PITCH(CHUNK)  (((CHUNK) * 2 + 16) | 16)

/* columns of a slice of the weight */
#define WIDE_OF(NB, GLU)  ((GLU) ? 2 * (NB) : (NB))


typedef struct {
    sd_half_t        *y;
    const sd_half_t  *bias;
    int               rows, cols, slices, add;
    int               down, across;     /* tiles: of CLUSTER * ROWS, of NB */
    int               down_first;
} product_t;


#ifdef HOPPER

static __device__ __forceinline__ float2
load_8(uint32_t at)
{
    float2  r;

    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                 : "=f"(r.x), "=f"(r.y) : "r"(at));

    return r;
}


static __device__ __forceinline__ uint4
load_16(uint32_t at)
{
    uint4  r;

    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "r"(at)
                 : "memory");

    return r;
}


/*
 * value * gelu(gate).  gelu(g) = max(g, 0) - |g| Phi(-|g|), the latter as a
 * power of two of a polynomial: gelu is 1.6e-7 off at most, and its relative
 * error where g < 0 is below 2e-5
 */

static __device__ __forceinline__ float
glu(float value, float gate)
{
    float  x, p;

    x = fabsf(gate);

    p = fmaf(x, -1.64744324e-06f, 5.83248293e-05f);
    p = fmaf(x, p, -0.000909694296f);
    p = fmaf(x, p, 0.00845112652f);
    p = fmaf(x, p, -0.0539074838f);
    p = fmaf(x, p, -0.458442241f);
    p = fmaf(x, p, -1.15129793f);
    p = fmaf(x, p, -0.999984205f);

    return value * fmaf(-x, sd_exp2(p), fmaxf(gate, 0));
}


/* not to be waited for before it is used */

static __device__ __forceinline__ uint4
load_ahead(const sd_half_t *x)
{
    uint4  r;

    asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(x)
                 : "memory");

    return r;
}


static __device__ __forceinline__ void
store_16(uint32_t at, uint4 x)
{
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};"
                 :: "r"(at), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
                 : "memory");
}


static __device__ __forceinline__ float2
load_pair(uint32_t at)
{
    __half2   h;
    uint32_t  r;

    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(r) : "r"(at) : "memory");
    memcpy(&h, &r, 4);

    return __half22float2(h);
}


static __device__ __forceinline__ float
rounded(float x)
{
    return __half2float(__float2half_rn(x));
}


/* a slice of the weight, for all blocks of the cluster */

template <int NB, int GLU, int CLUSTER>
static __device__ __forceinline__ void
weight_load(uint32_t at, const CUtensorMap *map, uint32_t full, int k,
    int column, int cols, int rank)
{
    if (CLUSTER > 1) {
        box_load_to(3, at + rank * NB * ROW, map, full, k * 64,
                    rank * cols + column);
        return;
    }

    box_load(at, map, full, k * 64, column);

    if (GLU) {
        box_load(at + NB * ROW, map, full, k * 64, cols + column);
    }
}

#endif


template <int NB, int GLU, int STAGES, int CLUSTER>
static __global__ void __launch_bounds__(THREADS, 1)
product_sm90(const __grid_constant__ CUtensorMap xmap,
    const __grid_constant__ CUtensorMap wmap, const product_t g)
{
#ifdef HOPPER

    static_assert(CLUSTER == 1 || (CLUSTER == 2 && GLU),
                  "values are one block's share, gates the other's");

    const int  WIDE = WIDE_OF(NB, GLU);
    const int  SLICE = SIDE + WIDE * ROW;
    const int  CHUNK = CHUNK_OF(NB);

    /* 16 bytes of a row each; a warp's turns to store 16 rows; eights of
     * columns that are computed together, for the latencies' sake */

    const int  UNITS = CHUNK / 8;
    const int  TURNS = (16 * UNITS + 31) / 32;
    const int  AT_ONCE = UNITS % 4 ? 5 : 4;

    extern __shared__ __align__(1024) unsigned char  shared[];

    int       i, j, k, u, lane, warp, group, rank, row, column, stage, before,
              odd, r, c, ahead;
    float     s[WIDE / 2], *p, *q;
    uint16_t  b[(WIDE + 127) / 128];
    uint4     t[TURNS], old[GLU ? 1 : NB / CHUNK][TURNS];
    float2    v[AT_ONCE], w[AT_ONCE], lo, hi;
    uint32_t  h[2 * AT_ONCE], ring, out, biases, full, empty, phase, at, to;

    ring = (sd_address(shared) + 1023) & ~1023;
    out = ring + STAGES * SLICE;
    biases = out + 8 * 16 * PITCH(CHUNK);
    full = biases + 2 * 2 * WIDE * 4;
    empty = full + STAGES * 8;

    lane = threadIdx.x & 31;
    warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
    group = warp / 4;
    rank = blockIdx.x % CLUSTER;

    if (threadIdx.x == 0) {
        map_prefetch(&xmap);
        map_prefetch(&wmap);

        for (i = 0; i < STAGES; i++) {
            barrier_init(full + i * 8, 1);
            barrier_init(empty + i * 8, 8 * CLUSTER);
        }

        barrier_init_fence();
    }

    if (CLUSTER > 1) {
        cluster_sync();
    } else {
        __syncthreads();
    }

    stage = 0;
    phase = 0;
    u = blockIdx.x / CLUSTER;

    if (group == 2) {

        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");

        if (threadIdx.x == 256) {

            /* weights are nobody's result */

            column = (g.down_first ? u / g.down : u % g.across) * NB;

            for (ahead = 0; ahead < STAGES && ahead < g.slices; ahead++) {
                barrier_expect(full + ahead * 8, SLICE);
                weight_load<NB, GLU, CLUSTER>(ring + ahead * SLICE + SIDE,
                                              &wmap, full + ahead * 8, ahead,
                                              column, g.cols, rank);
            }

            sd_grid_wait();

            for (/* void */; u < g.down * g.across; u += gridDim.x / CLUSTER) {
                row = g.down_first ? u % g.down : u / g.across;
                column = g.down_first ? u / g.down : u % g.across;
                row = (row * CLUSTER + rank) * ROWS;
                column *= NB;

                for (k = 0; k < g.slices; k++) {
                    at = ring + stage * SLICE;

                    if (ahead > 0) {
                        ahead--;

                    } else {
                        barrier_wait(empty + stage * 8, phase ^ 1);
                        barrier_expect(full + stage * 8, SLICE);
                        weight_load<NB, GLU, CLUSTER>(at + SIDE, &wmap,
                                                      full + stage * 8, k,
                                                      column, g.cols, rank);
                    }

                    box_load(at, &xmap, full + stage * 8, k * 64, row);

                    if (++stage == STAGES) {
                        stage = 0;
                        phase ^= 1;
                    }
                }
            }
        }

        __syncwarp();

    } else {

        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");

        odd = 0;

        biases += group * 2 * WIDE * 4;
        out += warp * 16 * PITCH(CHUNK);

        sd_grid_wait();

        for (/* void */; u < g.down * g.across; u += gridDim.x / CLUSTER) {
            row = g.down_first ? u % g.down : u / g.across;
            column = g.down_first ? u / g.down : u % g.across;
            row = (row * CLUSTER + rank) * ROWS + warp * 16;
            column *= NB;

            #pragma unroll
            for (i = 0; i < (WIDE + 127) / 128; i++) {
                j = (threadIdx.x & 127) + i * 128;
                k = column + (j < NB ? j : j - NB);

                b[i] = 0;

                if (g.bias && j < WIDE && k < g.cols) {
                    asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(b[i])
                                 : "l"(g.bias + (j < NB ? k : g.cols + k)));
                }
            }

            if (!GLU && g.add) {

                #pragma unroll
                for (i = 0; i < NB / CHUNK; i++) {

                    #pragma unroll
                    for (j = 0; j < TURNS; j++) {
                        k = j * 32 + lane;
                        r = row + k / UNITS;
                        c = column + i * CHUNK + k % UNITS * 8;

                        if (k < 16 * UNITS && r < g.rows && c < g.cols) {
                            old[i][j] = load_ahead(g.y
                                                   + (size_t) r * g.cols + c);
                        }
                    }
                }
            }

            before = 0;

            for (k = 0; k < g.slices; k++) {
                at = ring + stage * SLICE;

                barrier_wait(full + stage * 8, phase);
                wgmma_fence();

                #pragma unroll
                for (i = 0; i < 4; i++) {
                    wgmma<WIDE>(s, matrix(at + group * 64 * ROW + i * 32, 16),
                                matrix(at + SIDE + i * 32, 16), k | i);
                }

                wgmma_commit();

                if (k) {
                    wgmma_wait<1>();

                    if (lane < CLUSTER) {
                        if (CLUSTER > 1) {
                            barrier_arrive_at(empty + before * 8, lane);
                        } else {
                            barrier_arrive(empty + before * 8);
                        }
                    }
                }

                before = stage;

                if (++stage == STAGES) {
                    stage = 0;
                    phase ^= 1;
                }
            }

            wgmma_wait<0>();
            settled(s, WIDE / 2);

            if (lane < CLUSTER) {
                if (CLUSTER > 1) {
                    barrier_arrive_at(empty + before * 8, lane);
                } else {
                    barrier_arrive(empty + before * 8);
                }
            }

            if (u + gridDim.x / CLUSTER >= g.down * g.across) {
                sd_grid_next();
            }

            /* two tiles' biases: other warps may not be through with one */

            at = biases + odd * WIDE * 4;
            odd ^= 1;

            #pragma unroll
            for (i = 0; i < (WIDE + 127) / 128; i++) {
                j = (threadIdx.x & 127) + i * 128;

                /* not earlier: it would be waited for */

                asm volatile("" : "+h"(b[i]) :: "memory");

                if (j < WIDE) {
                    store_4(at + j * 4, __float_as_uint(
                                __half2float(__ushort_as_half(b[i]))));
                }
            }

            group_sync(1 + group);

            at += (lane & 3) * 8;
            to = out + lane / 4 * PITCH(CHUNK) + (lane & 3) * 4;

            #pragma unroll
            for (i = 0; i < NB / CHUNK; i++) {

                if (!GLU && g.add) {

                    #pragma unroll
                    for (j = 0; j < TURNS; j++) {
                        k = j * 32 + lane;

                        if (k < 16 * UNITS) {
                            store_16(out + k / UNITS * PITCH(CHUNK)
                                     + k % UNITS * 16, old[i][j]);
                        }
                    }

                    __syncwarp();
                }

                #pragma unroll
                for (j = 0; j < CHUNK / 8; j += AT_ONCE) {

                    #pragma unroll
                    for (k = 0; k < AT_ONCE; k++) {
                        v[k] = load_8(at + (i * CHUNK / 8 + j + k) * 32);

                        if (GLU) {
                            w[k] = load_8(at + (i * CHUNK / 8 + j + k) * 32
                                          + NB * 4);
                        }
                    }

                    #pragma unroll
                    for (k = 0; k < AT_ONCE; k++) {
                        p = s + (i * CHUNK / 8 + j + k) * 4;

                        if (GLU) {
                            q = p + NB / 2;

                            p[0] = glu(p[0] + v[k].x, q[0] + w[k].x);
                            p[1] = glu(p[1] + v[k].y, q[1] + w[k].y);
                            p[2] = glu(p[2] + v[k].x, q[2] + w[k].x);
                            p[3] = glu(p[3] + v[k].y, q[3] + w[k].y);

                        } else {
                            p[0] += v[k].x;
                            p[1] += v[k].y;
                            p[2] += v[k].x;
                            p[3] += v[k].y;

                            if (g.add) {
                                lo = load_pair(to + (j + k) * 16);
                                hi = load_pair(to + 8 * PITCH(CHUNK)
                                               + (j + k) * 16);

                                p[0] = rounded(p[0]) + lo.x;
                                p[1] = rounded(p[1]) + lo.y;
                                p[2] = rounded(p[2]) + hi.x;
                                p[3] = rounded(p[3]) + hi.y;
                            }
                        }

                        h[2 * k] = sd_pair(p[0], p[1]);
                        h[2 * k + 1] = sd_pair(p[2], p[3]);
                    }

                    #pragma unroll
                    for (k = 0; k < AT_ONCE; k++) {
                        store_4(to + (j + k) * 16, h[2 * k]);
                        store_4(to + 8 * PITCH(CHUNK) + (j + k) * 16,
                                h[2 * k + 1]);
                    }
                }

                __syncwarp();

                #pragma unroll
                for (j = 0; j < TURNS; j++) {
                    k = j * 32 + lane;
                    t[j] = load_16(out + (k < 16 * UNITS
                                          ? k / UNITS * PITCH(CHUNK)
                                            + k % UNITS * 16 : 0));
                }

                #pragma unroll
                for (j = 0; j < TURNS; j++) {
                    k = j * 32 + lane;
                    r = row + k / UNITS;
                    c = column + i * CHUNK + k % UNITS * 8;

                    if (k < 16 * UNITS && r < g.rows && c < g.cols) {
                        *(uint4 *) (g.y + (size_t) r * g.cols + c) = t[j];
                    }
                }

                __syncwarp();
            }
        }
    }

    /* no block leaves while another may reach for its memory */

    if (CLUSTER > 1) {
        cluster_sync();
    }

#endif
}


/* x: [rows, c]; boxes of 64 x height rows */

static int
map(CUtensorMap *m, encode_pt encode, const sd_half_t *x, int rows, int c,
    int height)
{
    cuuint64_t  dims[2], stride;

    static const cuuint32_t  steps[2] = { 1, 1 };

    cuuint32_t  box[2] = { 64, (cuuint32_t) height };

    dims[0] = c;
    dims[1] = rows;
    stride = (cuuint64_t) c * sizeof(sd_half_t);

    return encode(m, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, (void *) x, dims,
                  &stride, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                  CU_TENSOR_MAP_SWIZZLE_128B,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
           == CUDA_SUCCESS;
}


template <int NB, int GLU, int STAGES, int CLUSTER>
static cudaError_t
launch(cudaStream_t s, const sd_cuda_chip_t *chip, encode_pt encode,
    const sd_cuda_product_t *d)
{
    const int  CHUNK = CHUNK_OF(NB);
    const int  WIDE = WIDE_OF(NB, GLU);
    const int  SIZE = 1024 + STAGES * (SIDE + WIDE * ROW + 16)
                      + 8 * 16 * PITCH(CHUNK) + 2 * 2 * WIDE * 4;

    int                  blocks;
    product_t            g;
    CUtensorMap          x, w;
    cudaError_t          rc;
    cudaLaunchConfig_t   config;
    cudaLaunchAttribute  attrs[2];

    if (!map(&x, encode, d->x, d->rows, d->c, ROWS)
        || !map(&w, encode, d->w, GLU ? 2 * d->cols : d->cols, d->c, NB))
    {
        return cudaErrorInvalidValue;
    }

    rc = cudaFuncSetAttribute(product_sm90<NB, GLU, STAGES, CLUSTER>,
                              cudaFuncAttributeMaxDynamicSharedMemorySize,
                              SIZE);
    if (rc != cudaSuccess) {
        return rc;
    }

    g.y = d->y;
    g.bias = d->bias;
    g.add = d->add;
    g.rows = d->rows;
    g.cols = d->cols;
    g.slices = (d->c + 63) / 64;
    g.down = (d->rows + ROWS * CLUSTER - 1) / (ROWS * CLUSTER);
    g.across = (d->cols + NB - 1) / NB;

    /* the smaller operand is the one to be read again */

    g.down_first = d->rows < WIDE / NB * d->cols;

    blocks = g.down * g.across;
    blocks = blocks < chip->sms / CLUSTER ? blocks : chip->sms / CLUSTER;

    memset(&config, 0, sizeof(config));
    memset(attrs, 0, sizeof(attrs));

    config.gridDim = dim3(blocks * CLUSTER);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = SIZE;
    config.stream = s;

    attrs[0].id = cudaLaunchAttributeClusterDimension;
    attrs[0].val.clusterDim.x = CLUSTER;
    attrs[0].val.clusterDim.y = 1;
    attrs[0].val.clusterDim.z = 1;
    attrs[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attrs[1].val.programmaticStreamSerializationAllowed = 1;

    config.attrs = attrs;
    config.numAttrs = 2;

    return cudaLaunchKernelEx(&config, product_sm90<NB, GLU, STAGES, CLUSTER>,
                              x, w, g);
}


/* what there is to choose from: bits are the same */

static const struct {
    int           glu, nb, cluster;
    cudaError_t (*launch)(cudaStream_t s, const sd_cuda_chip_t *chip,
                          encode_pt encode, const sd_cuda_product_t *d);
} tiles[SD_CUDA_PRODUCT_TILES] = {
    { 1, 128, 1, launch<128, 1, 4, 1> },
    { 1,  80, 1, launch<80, 1, 5, 1> },
    { 1,  80, 2, launch<80, 1, 5, 2> },
    { 1,  64, 1, launch<64, 1, 6, 1> },
    { 1,  40, 1, launch<40, 1, 8, 1> },
    { 0, 160, 1, launch<160, 0, 5, 1> },
    { 0,  80, 1, launch<80, 0, 7, 1> }
};


/*
 * by waves of blocks, in cycles: products, activations, what comes between; to
 * share loads pays where there are many
 */

static int
choose(const sd_cuda_chip_t *chip, const sd_cuda_product_t *d)
{
    int     i, best, rows, products, rest;
    size_t  cost, least;

    best = -1;
    least = 0;

    for (i = 0; i < SD_CUDA_PRODUCT_TILES; i++) {

        if (tiles[i].glu != d->glu) {
            continue;
        }

        rows = ROWS * tiles[i].cluster;
        products = (d->c + 63) / 64 * 4 * WIDE_OF(tiles[i].nb, d->glu);
        rest = (d->glu ? 20 : 8) * tiles[i].nb + 800;

        if (tiles[i].cluster > 1) {
            products -= products / 16;
            rest += 600;
        }

        cost = (size_t) ((d->rows + rows - 1) / rows) * tiles[i].cluster
               * ((d->cols + tiles[i].nb - 1) / tiles[i].nb);
        cost = (cost + chip->sms - 1) / chip->sms * (products + rest);

        if (best < 0 || cost < least) {
            least = cost;
            best = i;
        }
    }

    return best;
}


/*
 * By starting early, and by what a residual costs cublasLt, plain products pay
 * where there is one wave of blocks of a moderate depth; in more of them
 * cublasLt's clusters, which read less, are ahead
 */

static int
pays(const sd_cuda_chip_t *chip, const sd_cuda_product_t *d)
{
    int  nb, blocks;

    nb = tiles[choose(chip, d)].nb;
    blocks = (d->rows + ROWS - 1) / ROWS * ((d->cols + nb - 1) / nb);

    return blocks <= chip->sms && 3 * blocks >= chip->sms && d->c <= 1280
           && d->cols <= 1280;
}


int
sd_cuda_product_sm90_takes(const sd_cuda_chip_t *chip,
    const sd_cuda_product_t *d)
{
    return chip->arch == 90 && d->c % 8 == 0 && d->cols % 8 == 0
           && !(d->add && (d->glu || d->bias == NULL))
           && (((uintptr_t) d->x | (uintptr_t) d->w | (uintptr_t) d->y) & 15)
              == 0
           && (d->glu || pays(chip, d));
}


cudaError_t
sd_cuda_product_sm90(cudaStream_t s, const sd_cuda_chip_t *chip,
    const sd_cuda_product_t *d)
{
    encode_pt    encode;
    cudaError_t  rc;

    if (d->rows <= 0) {
        return cudaSuccess;
    }

    rc = tensor_map_encoder(&encode);

    if (rc != cudaSuccess) {
        return rc;
    }

    return tiles[d->tile < 0 ? choose(chip, d) : d->tile].launch(s, chip,
                                                                encode, d);
}
