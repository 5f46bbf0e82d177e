/*
 * Self-attention of many tokens on Hopper, by wgmma and TMA.
 *
 * Floor, SD 1.5 at n = 2 (8 heads, d = 40, 4096 x 4096): 43 GFLOP of use, which
 * are 47 as the tensor cores see them (Q K^T pads d to 48, P V takes exactly
 * 40): 63 us at the 755 TFLOP/s of a large GEMM; beside them 268 M exponentials
 * at 16 a clock and SM: 64 us at 1.98 GHz.  cuDNN pads d to 64: 156 us.
 * d = 64 (5 heads): 43 GFLOP, 57 us, and 168 M exponentials, 40 us; cuDNN
 * 111 us.  d = 80 (8 heads, 1024 x 1024): 5.4 GFLOP, 7 us; cuDNN 18.6 us.
 *
 * Measured: not yet.
 *
 * DESIGN
 *
 * A block is up to four warpgroups, of 64 queries each.  A warpgroup computes
 * S = Q K^T of a tile of KT keys into registers, its online softmax, and
 * O += P V with P from registers.  Nothing orders the warpgroups: while some
 * wait for the tensor cores, the others keep the exponential unit busy.
 *
 * Tiles come by TMA, each with a barrier that says "full" and one, of its
 * readers, that says "empty".  The block's first thread asks for a tile two
 * tiles ahead of its own: a warp for that alone would cost as many registers as
 * a warpgroup, and the fourth would not fit.  It may have to wait for the
 * slowest warpgroup, STAGES - 2 tiles behind.
 *
 * The tensors are seen as [n, rows, heads, d], and a box is 64 wide: where d is
 * less, TMA fills the rest with zeroes, in memory laid out as wgmma likes it
 * (rows of 128 bytes, their 16-byte units swizzled), without reading them.
 * Rows beyond a sample's last are zeroes, too: masked as keys, not stored as
 * queries.  d = 80 takes two boxes side by side.
 *
 * A row's bits depend on lk and d: tiles of keys are the same for all, rows of
 * an mma do not mix, and how many warpgroups a block has is free.
 */

#include <math.h>

#include "attention.h"
#include "sm90.cuh"


#define LOG2E  1.44269504088896340736f

#define KT     128              /* keys of a tile */
#define ROW    128              /* bytes of a row of a box: 64 elements */

#ifdef HOPPER

/* s: [64, 128] = or += q: [64, 16], k: [128, 16], rows of 16 both */

static __device__ __forceinline__ void
wgmma_qk(float *s, uint64_t q, uint64_t k, int add)
{
    asm volatile("{\n"
                 ".reg .pred  add;\n"
                 "setp.ne.b32 add, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
                 "{" N16_0 ", " N16_16 ", " N16_32 ", " N16_48 "}, "
                 "%64, %65, add, 1, 1, 0, 0;\n"
                 "}"
                 : R16(s, 0), R16(s, 16), R16(s, 32), R16(s, 48)
                 : "l"(q), "l"(k), "r"(add));
}


/* o: [64, D] += p: [64, 16], v: [16, D], rows of D */

template <int D>
static __device__ __forceinline__ void
wgmma_pv(float *o, const uint32_t *p, uint64_t v)
{
    if constexpr (D == 40) {
        asm volatile("wgmma.mma_async.sync.aligned.m64n40k16.f32.f16.f16 "
                     "{" N16_0 ", %16, %17, %18, %19}, "
                     "{%20, %21, %22, %23}, %24, 1, 1, 1, 1;"
                     : R16(o, 0), R4(o, 16)
                     : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(v));

    } else if constexpr (D == 64) {
        asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
                     "{" N16_0 ", " N16_16 "}, "
                     "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
                     : R16(o, 0), R16(o, 16)
                     : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(v));

    } else {
        asm volatile("wgmma.mma_async.sync.aligned.m64n80k16.f32.f16.f16 "
                     "{" N16_0 ", " N16_16 ", "
                     "%32, %33, %34, %35, %36, %37, %38, %39}, "
                     "{%40, %41, %42, %43}, %44, 1, 1, 1, 1;"
                     : R16(o, 0), R16(o, 16), R4(o, 32), R4(o, 36)
                     : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(v));
    }
}


/* a quad of lanes holds a row */

static __device__ __forceinline__ float
quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));

    return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}


static __device__ __forceinline__ float
quad_sum(float x)
{
    x += __shfl_xor_sync(0xffffffff, x, 1);

    return x + __shfl_xor_sync(0xffffffff, x, 2);
}


/* boxes side by side from row on, to at and after it */

template <int BOXES>
static __device__ __forceinline__ void
tile_load(uint32_t at, const CUtensorMap *map, uint32_t barrier, int head,
    int row, int sample)
{
    int  i;

    barrier_expect(barrier, BOXES * KT * ROW);

    #pragma unroll
    for (i = 0; i < BOXES; i++) {
        box_load(at + i * KT * ROW, map, barrier, i * 64, head, row, sample);
    }
}


/* s: [64, KT] = q k^T, as one group; q, k: boxes' memory */

template <int D>
static __device__ __forceinline__ void
scores(float *s, uint32_t q, uint32_t k)
{
    int  i;

    settled(s, KT / 2);
    wgmma_fence();

    #pragma unroll
    for (i = 0; i < (D + 15) / 16; i++) {
        wgmma_qk(s, matrix(q + i / 4 * 64 * ROW + i % 4 * 32, 16),
                 matrix(k + i / 4 * KT * ROW + i % 4 * 32, 16), i != 0);
    }

    wgmma_commit();
}


/* o: [64, D] += p v, as one group; p: [KT / 16][4], v: boxes' memory */

template <int D>
static __device__ __forceinline__ void
values(float *o, uint32_t *p, uint32_t v)
{
    int  i;

    settled(o, D / 2);
    settled(p, KT / 4);
    wgmma_fence();

    #pragma unroll
    for (i = 0; i < KT / 16; i++) {
        wgmma_pv<D>(o, p + 4 * i, matrix(v + i * 16 * ROW, KT * ROW));
    }

    wgmma_commit();
}


/*
 * m: the rows' maxima so far; u: in powers of two, what to subtract; f: what
 * shrinks the sums of before
 */

static __device__ __forceinline__ void
maxima(const float *s, float *m, float *u, float *f, float c)
{
    int    i, j;
    float  x, y;

    #pragma unroll
    for (i = 0; i < 2; i++) {
        x = fmaxf(m[i], s[2 * i]);
        y = s[2 * i + 1];

        #pragma unroll
        for (j = 4; j < KT / 2; j += 4) {
            x = fmaxf(x, s[j + 2 * i]);
            y = fmaxf(y, s[j + 2 * i + 1]);
        }

        x = quad_max(fmaxf(x, y));

        u[i] = x * c;
        f[i] = exp2_fast(fmaf(m[i], c, -u[i]));
        m[i] = x;
    }
}


/* p = 2^(s c - u) as an operand of values(), l: this lane's sums of it */

static __device__ __forceinline__ void
exponentials(uint32_t *p, float *l, const float *s, const float *u, float c)
{
    int    i;
    float  x, y;

    #pragma unroll
    for (i = 0; i < KT / 4; i++) {
        x = exp2_fast(fmaf(s[2 * i], c, -u[i % 2]));
        y = exp2_fast(fmaf(s[2 * i + 1], c, -u[i % 2]));
        l[i % 2] += x + y;
        p[i] = pack(x, y);
    }
}

#endif


/*
 * c: scale * log2(e); one map each of q, k, v and the output.
 * LATE: a tile's P V is started along with the next one's Q K^T, for which P
 * needs registers of its own
 */

template <int D, int GROUPS, int STAGES, int LATE>
static __global__ void __launch_bounds__(GROUPS * 128, 1)
attention_sm90(const __grid_constant__ CUtensorMap qmap,
    const __grid_constant__ CUtensorMap kmap,
    const __grid_constant__ CUtensorMap vmap,
    const __grid_constant__ CUtensorMap omap, int lq, int lk, float c)
{
#ifdef HOPPER

    const int  BOXES = (D + 63) / 64;       /* side by side */
    const int  QBOX = 64 * ROW;
    const int  KBOX = KT * ROW;

    extern __shared__ __align__(1024) unsigned char  shared[];

    int       i, j, t, lane, warp, group, head, sample, row, row0, left, steps,
              stage, before;
    float     m[2], l[2], u[2], f[2], s[KT / 2], o[D / 2];
    uint32_t  p[KT / 4], qs, ks, vs, q_full, k_full, v_full, empty, phase, at;

    /* 1024-byte aligned, as swizzling repeats after that */

    qs = (shared_address(shared) + 1023) & ~1023;
    ks = qs + GROUPS * BOXES * QBOX;
    vs = ks + STAGES * BOXES * KBOX;
    q_full = vs + STAGES * BOXES * KBOX;
    k_full = q_full + 8;
    v_full = k_full + STAGES * 8;
    empty = v_full + STAGES * 8;

    lane = threadIdx.x & 31;
    warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
    group = warp / 4;

    head = blockIdx.y;
    sample = blockIdx.z;
    row0 = blockIdx.x * GROUPS * 64;
    steps = (lk + KT - 1) / KT;

    if (threadIdx.x == 0) {
        barrier_init(q_full, 1);

        for (i = 0; i < STAGES; i++) {
            barrier_init(k_full + i * 8, 1);
            barrier_init(v_full + i * 8, 1);
            barrier_init(empty + i * 8, GROUPS * 4);
        }

        barrier_init_fence();
    }

    __syncthreads();

    if (threadIdx.x == 0) {
        barrier_expect(q_full, GROUPS * BOXES * QBOX);

        for (i = 0; i < GROUPS; i++) {
            for (j = 0; j < BOXES; j++) {
                box_load(qs + (i * BOXES + j) * QBOX, &qmap, q_full, j * 64,
                         head, row0 + i * 64, sample);
            }
        }

        for (t = 0; t < 2 + LATE && t < steps; t++) {
            tile_load<BOXES>(ks + t * BOXES * KBOX, &kmap, k_full + t * 8,
                             head, t * KT, sample);
            tile_load<BOXES>(vs + t * BOXES * KBOX, &vmap, v_full + t * 8,
                             head, t * KT, sample);
        }
    }

    __syncwarp();

    qs += group * BOXES * QBOX;

    #pragma unroll
    for (i = 0; i < D / 2; i++) {
        o[i] = 0;
    }

    for (i = 0; i < 2; i++) {
        m[i] = -INFINITY;
        l[i] = 0;
    }

    barrier_wait(q_full, 0);

    /* S = Q K^T, [64, KT]; lane: row lane / 4 (+ 8) of the warp's 16 */

    if (LATE) {

        /* the first tile, a whole one, has no P V to start along */

        barrier_wait(k_full, 0);
        scores<D>(s, qs, ks);
        wgmma_wait<0>();
        settled(s, KT / 2);
        maxima(s, m, u, f, c);
        exponentials(p, l, s, u, c);
    }

    before = 0;
    stage = LATE;
    phase = 0;

    for (t = LATE; t < steps; t++) {

        barrier_wait(k_full + stage * 8, phase);
        scores<D>(s, qs, ks + stage * BOXES * KBOX);

        if (LATE) {
            barrier_wait(v_full + before * 8, phase ^ (stage == 0));
            values<D>(o, p, vs + before * BOXES * KBOX);
            wgmma_wait<1>();

        } else {
            wgmma_wait<0>();
        }

        settled(s, KT / 2);

        left = lk - t * KT;

        if (left < KT) {
            left -= (lane & 3) * 2;

            #pragma unroll
            for (i = 0; i < KT / 2; i++) {
                if (i / 4 * 8 + i % 2 >= left) {
                    s[i] = -INFINITY;
                }
            }
        }

        maxima(s, m, u, f, c);

        if (LATE) {
            wgmma_wait<0>();
            settled(o, D / 2);
            settled(p, KT / 4);

            if (lane == 0) {
                barrier_arrive(empty + before * 8);
            }
        }

        /* never as part of an fma: the variants' bits are the same */

        l[0] = __fmul_rn(l[0], f[0]);
        l[1] = __fmul_rn(l[1], f[1]);

        #pragma unroll
        for (i = 0; i < D / 2; i++) {
            o[i] *= f[i / 2 % 2];
        }

        exponentials(p, l, s, u, c);

        if (!LATE) {
            barrier_wait(v_full + stage * 8, phase);
            values<D>(o, p, vs + stage * BOXES * KBOX);
            wgmma_wait<0>();
            settled(o, D / 2);
            settled(p, KT / 4);

            if (lane == 0) {
                barrier_arrive(empty + stage * 8);
            }
        }

        if (threadIdx.x == 0 && t + 2 < steps) {
            i = (t + 2) % STAGES;

            if (t + 2 >= STAGES) {
                barrier_wait(empty + i * 8, (t + 2 - STAGES) / STAGES & 1);
            }

            tile_load<BOXES>(ks + i * BOXES * KBOX, &kmap, k_full + i * 8,
                             head, (t + 2) * KT, sample);
            tile_load<BOXES>(vs + i * BOXES * KBOX, &vmap, v_full + i * 8,
                             head, (t + 2) * KT, sample);
        }

        __syncwarp();

        before = stage;

        if (++stage == STAGES) {
            stage = 0;
            phase ^= 1;
        }
    }

    if (LATE) {
        barrier_wait(v_full + before * 8, phase ^ (stage == 0));
        values<D>(o, p, vs + before * BOXES * KBOX);
        wgmma_wait<0>();
        settled(o, D / 2);
        settled(p, KT / 4);
    }

    for (i = 0; i < 2; i++) {
        f[i] = 1 / quad_sum(l[i]);
    }

    /* out through the group's queries' memory, in the same layout */

    group_sync(1 + group);

    row = warp % 4 * 16 + lane / 4;

    #pragma unroll
    for (j = 0; j < D / 8; j++) {
        at = qs + j / 8 * QBOX + row * ROW + ((j % 8 ^ row & 7) << 4)
             + (lane & 3) * 4;
        store_4(at, pack(o[4 * j] * f[0], o[4 * j + 1] * f[0]));
        store_4(at + 8 * ROW, pack(o[4 * j + 2] * f[1], o[4 * j + 3] * f[1]));
    }

    box_store_fence();
    __syncwarp();

    row = warp % 4 * 16;
    row0 += group * 64 + row;

    if (lane == 0 && row0 < lq) {
        for (j = 0; j < BOXES; j++) {
            box_store(&omap, qs + j * QBOX + row * ROW, j * 64, head, row0,
                      sample);
        }

        box_store_wait();
    }

#endif
}


/* x: [n, rows, heads, d], rows of ld elements; boxes of 64 x height rows */

static int
map(CUtensorMap *m, encode_pt encode, const sd_half_t *x, int n, int rows,
    int heads, int d, int ld, int height)
{
    cuuint64_t  dims[4], strides[3];

    static const cuuint32_t  steps[4] = { 1, 1, 1, 1 };

    cuuint32_t  box[4] = { 64, 1, (cuuint32_t) height, 1 };

    dims[0] = d;
    dims[1] = heads;
    dims[2] = rows;
    dims[3] = n;

    strides[0] = (cuuint64_t) d * sizeof(sd_half_t);
    strides[1] = (cuuint64_t) ld * sizeof(sd_half_t);
    strides[2] = strides[1] * rows;

    return encode(m, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4, (void *) x, dims,
                  strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                  CU_TENSOR_MAP_SWIZZLE_128B,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
           == CUDA_SUCCESS;
}


template <int D, int GROUPS, int STAGES, int LATE>
static cudaError_t
launch(cudaStream_t s, const sd_cuda_attention_t *a, encode_pt encode)
{
    const int  BOXES = (D + 63) / 64;
    const int  SIZE = 1024 + GROUPS * BOXES * 64 * ROW
                      + STAGES * 2 * BOXES * KT * ROW + 8 + STAGES * 24;

    dim3         grid;
    CUtensorMap  q, k, v, o;
    cudaError_t  rc;

    if (!map(&q, encode, a->q, a->n, a->lq, a->heads, D, a->ldq, 64)
        || !map(&k, encode, a->k, a->n, a->lk, a->heads, D, a->ldk, KT)
        || !map(&v, encode, a->v, a->n, a->lk, a->heads, D, a->ldk, KT)
        || !map(&o, encode, a->o, a->n, a->lq, a->heads, D, a->heads * D, 16))
    {
        return cudaErrorInvalidValue;
    }

    rc = cudaFuncSetAttribute(attention_sm90<D, GROUPS, STAGES, LATE>,
                              cudaFuncAttributeMaxDynamicSharedMemorySize,
                              SIZE);
    if (rc != cudaSuccess) {
        return rc;
    }

    grid = dim3((a->lq + GROUPS * 64 - 1) / (GROUPS * 64), a->heads, a->n);

    attention_sm90<D, GROUPS, STAGES, LATE><<<grid, GROUPS * 128, SIZE, s>>>(
        q, k, v, o, a->lq, a->lk, a->scale * LOG2E);

    return cudaGetLastError();
}


int
sd_cuda_attention_sm90_takes(const sd_cuda_chip_t *chip,
    const sd_cuda_attention_t *a)
{
    return chip->arch == 90 && (a->d == 40 || a->d == 64 || a->d == 80)
           && a->lk >= 512 && a->kv == NULL && !a->causal

           /* what a tensor map wants of strides and addresses */
           && a->ldq % a->d == 0 && a->ldk % a->d == 0
           && (((uintptr_t) a->q | (uintptr_t) a->k | (uintptr_t) a->v
                | (uintptr_t) a->o) & 15) == 0;
}


/* warpgroups of a block: so that the last blocks leave few SMs idle */

static int
groups(const sd_cuda_chip_t *chip, const sd_cuda_attention_t *a, int most)
{
    int     i, best;
    size_t  blocks, cost, least;

    best = most;
    least = 0;

    for (i = most; i > 1; i--) {
        blocks = (size_t) ((a->lq + i * 64 - 1) / (i * 64)) * a->heads * a->n;
        cost = (blocks + chip->sms - 1) / chip->sms * i;

        if (i == most || cost < least) {
            least = cost;
            best = i;
        }
    }

    return best;
}


cudaError_t
sd_cuda_attention_sm90(cudaStream_t s, const sd_cuda_chip_t *chip,
    const sd_cuda_attention_t *a)
{
    encode_pt    encode;
    cudaError_t  rc;

    rc = tensor_map_encoder(&encode);

    if (rc != cudaSuccess) {
        return rc;
    }

    switch (a->d) {

    case 40:

        switch (groups(chip, a, 4)) {
        case 2:
            return launch<40, 2, 4, 1>(s, a, encode);

        case 3:
            return launch<40, 3, 4, 1>(s, a, encode);

        default:
            return launch<40, 4, 4, 0>(s, a, encode);
        }

    case 64:
        return groups(chip, a, 3) == 2 ? launch<64, 2, 4, 1>(s, a, encode)
                                       : launch<64, 3, 4, 1>(s, a, encode);

    default:
        return launch<80, 2, 3, 1>(s, a, encode);
    }
}
