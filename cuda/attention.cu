/*
 * Attention by mma.sync, for every shape and every chip since Ampere; Hopper
 * has attention_sm90.cu for many keys.  attention_few() is for few of them, as
 * cross-attention has, attention() for all the rest.
 *
 * Floor, as SD 1.5 calls it at n = 2: cross-attention (77 keys) is 10 MB of q
 * and o at 4096 queries (4 us at 3 TB/s, less as they are in L2) down to 0.7
 * MB at 64; 84 MB at n = 16 (28 us).  The rest is latency: launch, first bytes
 * from L2, one softmax.  Libraries take 7 to 14 us a call.
 *
 * Measured, attention_few(), H100 SXM, us at n = 2 and n = 16, and cuDNN, 77
 * keys: 8 heads of 40, 4096 queries: 7.5, 52 to 56 (14.1, 73); 5 of 64: 8.0,
 * 36 (10.8, 48); 8 of 80, 1024: 5.5, 18.8 (n = 16: 29); 10 of 64: 5.2, 25; 8
 * of 160, 256: 5.4, 11.5 (n = 16: 15.4); 20 of 64: 4.0, 12.6; 8 of 160, 64
 * queries: 4.9, 6.1.  5 of 64 at n = 16 moves 2.3 TB/s; heads of 40 start and
 * end within sectors of 32 bytes, of which 23 are of use, and a fifth of the
 * time goes into the wait for the block's keys.  attention(), 12 heads of 64,
 * causal, 77 x 77: 5.7, 6.0.
 *
 * DESIGN of attention()
 *
 * A warp owns 16 queries for good, in registers, as FlashAttention-2 does
 * (Dao 2023): S = Q K^T of a tile of keys, online softmax in base 2, P into the
 * layout of an A operand without leaving its registers, O += P V.  A block is
 * 1 to 8 such warps that share tiles of K and V in shared memory, filled by
 * cp.async in two stages.
 *
 * A row's bits must not depend on what it is computed along with.  A row of an
 * mma is independent of the other 15, so only the order of keys counts: tiles
 * have KT keys whatever the grid, and how many warps a block has is free to
 * follow n and the number of SMs.
 *
 * Heads wider than 80 are few (8x8 and 16x16 pictures), not enough warps to
 * keep a chip busy: there KS = 2 groups of warps take one half of the keys
 * each, and their sums meet in shared memory.  That changes bits, so it follows
 * from d alone.
 *
 * A row of a tile in shared memory is 8 elements longer than D: an odd number
 * of 16-byte units, so that the 8 rows that ldmatrix reads at a time lie in
 * different banks.
 */

#include <math.h>

#include "attention.h"
#include "common.cuh"


#define LOG2E     1.44269504088896340736f
#define KEYS_16(n)  (((n) + 15) & ~15)

/* keys a tile, groups of warps that share the keys: by the padded d alone */
#define KT_OF(D)  ((D) <= 80 ? 128 : 64)
#define KS_OF(D)  ((D) <= 80 ? 1 : 2)


static __device__ __forceinline__ uint32_t
shared_address(const void *p)
{
    return (uint32_t) __cvta_generic_to_shared(p);
}


/* zeroes where bytes is 0; reads nothing then */

static __device__ __forceinline__ void
copy_16(uint32_t to, const void *from, int bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(to), "l"(from), "r"(bytes) : "memory");
}


static __device__ __forceinline__ void
commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}


/* all groups of copies but the youngest n are there */

template <int n>
static __device__ __forceinline__ void
wait(void)
{
    asm volatile("cp.async.wait_group %0;" :: "n"(n) : "memory");
}


static __device__ __forceinline__ void
ldmatrix_4(uint32_t *r, uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 "
                 "{%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at)
                 : "memory");
}


static __device__ __forceinline__ void
ldmatrix_4_trans(uint32_t *r, uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 "
                 "{%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at)
                 : "memory");
}


static __device__ __forceinline__ void
ldmatrix_2_trans(uint32_t *r, uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 "
                 "{%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(at) : "memory");
}


/* c: [16, 8] += a: [16, 16], b: [16, 8] */

static __device__ __forceinline__ void
mma(float *c, const uint32_t *a, uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]),
                   "r"(b0), "r"(b1));
}


/* c: [16, 8] += a: [16, 8], b: [8, 8] */

static __device__ __forceinline__ void
mma_8(float *c, uint32_t a0, uint32_t a1, uint32_t b)
{
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(b));
}


static __device__ __forceinline__ float
exp2_fast(float x)
{
    float  y;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));

    return y;
}


/* two halves, lo in the low bits */

static __device__ __forceinline__ uint32_t
pack(float lo, float hi)
{
    uint32_t  r;

    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));

    return r;
}


/* nvcc makes four stores of an uint4's, sometimes */

static __device__ __forceinline__ void
store_16(sd_half_t *to, const uint32_t *x)
{
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                 :: "l"(to), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
                 : "memory");
}


static __device__ __forceinline__ void
store_8(sd_half_t *to, const uint32_t *x)
{
    asm volatile("st.global.v2.b32 [%0], {%1, %2};"
                 :: "l"(to), "r"(x[0]), "r"(x[1]) : "memory");
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


/*
 * to: [rows, C * 8 of P] in shared memory, zeroes beyond the have x d elements
 * of from.  thread: of threads.  vec: what is read may be read 16 bytes at a
 * time.
 */

template <int C, int P>
static __device__ __forceinline__ void
load(sd_half_t *to, const sd_half_t *from, int rows, int have, int ld, int d,
    int vec, int thread, int threads)
{
    int       i, j, row, at, in;
    uint4     v;
    uint32_t  e[8];

    for (i = thread; i < rows * C; i += threads) {
        row = i / C;
        at = (i - row * C) * 8;

        if (vec) {
            in = row < have && at < d;
            copy_16(shared_address(to + row * P + at),
                    in ? from + (size_t) row * ld + at : from, in ? 16 : 0);
            continue;
        }

        for (j = 0; j < 8; j++) {
            e[j] = row < have && at + j < d
                   ? from[(size_t) row * ld + at + j] : 0;
        }

        v.x = e[0] | e[1] << 16;
        v.y = e[2] | e[3] << 16;
        v.z = e[4] | e[5] << 16;
        v.w = e[6] | e[7] << 16;

        *(uint4 *) (to + row * P + at) = v;
    }
}


/*
 * D: d padded to what Q K^T takes, DV: to what P V takes; KT: keys of a tile;
 * KS: groups of warps, each with a part of the keys, part of them.
 * A tile has rows rows in shared memory, less than KT where there are few keys.
 */

template <int D, int DV, int KT, int KS>
static __global__ void __launch_bounds__(256)
attention(const sd_cuda_attention_t a, int part, int rows, int stages)
{
    const int  P = D + 8;           /* elements of a row in shared memory */
    const int  NK = D / 16;
    const int  NV = DV / 8;
    const int  NB = KT / 16;

    extern __shared__ __align__(16) unsigned char  shared[];

    int               i, j, k, t, lane, warp, warps, group, threads, thread,
                      row0, row, col, q0, key0, end, have, seen, blocks, steps,
                      stage, vec, kvec, ovec, sample, head;
    float             c, m[2], l[2], u[2], f[2], x, y, s[2 * NB][4], o[NV][4],
                     *shelf;
    uint32_t          q[NK][4], b[4], p[4], at;
    sd_half_t        *qs, *ks, *vs;
    const sd_half_t  *from, *kfrom, *vfrom;

    lane = threadIdx.x & 31;
    warps = blockDim.x / 32 / KS;       /* of a group */
    group = KS == 1 ? 0 : threadIdx.x / 32 / warps;
    threads = warps * 32;
    thread = threadIdx.x - group * threads;
    warp = thread / 32;

    head = blockIdx.y;
    sample = blockIdx.z;
    q0 = blockIdx.x * warps * 16;
    row0 = q0 + warp * 16;

    from = a.q + ((size_t) sample * a.lq + q0) * a.ldq + head * a.d;

    if (a.kv) {
        kfrom = a.kv[sample] + a.k_at;
        vfrom = a.kv[sample] + a.v_at;

    } else {
        kfrom = a.k + (size_t) sample * a.lk * a.ldk;
        vfrom = a.v + (size_t) sample * a.lk * a.ldk;
    }

    kfrom += head * a.d;
    vfrom += head * a.d;

    vec = ((a.d | a.ldq) & 7) == 0 && ((uintptr_t) from & 15) == 0;
    kvec = ((a.d | a.ldk) & 7) == 0
           && (((uintptr_t) kfrom | (uintptr_t) vfrom) & 15) == 0;
    ovec = (a.d & 7) == 0 && ((uintptr_t) a.o & 15) == 0;

    /* this group's keys, and how often any group has a tile of them */

    i = group * part;
    end = min(a.lk, i + part);
    kfrom += (size_t) i * a.ldk;
    vfrom += (size_t) i * a.ldk;
    have = max(end - i, 0);
    steps = (min(part, a.lk) + KT - 1) / KT;

    /*
     * shared memory: all queries of the block, then stages of
     * [group][K, V][rows][P]
     */

    qs = (sd_half_t *) shared;
    ks = qs + warps * 16 * P + group * 2 * rows * P;

    load<NK * 2, P>(qs, from, warps * 16, a.lq - q0, a.ldq, a.d, vec,
                    threadIdx.x, blockDim.x);

    /* two groups of copies a tile, K and V, also where there is none */

    for (t = 0; t < stages; t++) {
        vs = ks + t * KS * 2 * rows * P;
        i = min(KEYS_16(max(have - t * KT, 0)), KT);

        load<NK * 2, P>(vs, kfrom + (size_t) t * KT * a.ldk, i, have - t * KT,
                        a.ldk, a.d, kvec, thread, threads);
        commit();
        load<NV, P>(vs + rows * P, vfrom + (size_t) t * KT * a.ldk, i,
                    have - t * KT, a.ldk, a.d, kvec, thread, threads);
        commit();
    }

    c = a.scale * LOG2E;

    for (i = 0; i < 2; i++) {
        m[i] = -INFINITY;
        l[i] = 0;
    }

    #pragma unroll
    for (j = 0; j < NV; j++) {
        o[j][0] = o[j][1] = o[j][2] = o[j][3] = 0;
    }

    stage = 0;

    for (t = 0; t < steps; t++) {

        key0 = group * part + t * KT;
        seen = min(end - key0, KT);

        if (a.causal) {
            seen = min(seen, row0 + 16 - key0);
        }

        blocks = (max(seen, 0) + 15) / 16;

        vs = ks + stage * KS * 2 * rows * P;

        if (stages == 1) {
            wait<1>();

        } else {
            wait<3>();
        }

        __syncthreads();

        if (t == 0) {
            at = shared_address(qs + (warp * 16 + (lane & 15)) * P
                                + (lane >> 4) * 8);

            #pragma unroll
            for (k = 0; k < NK; k++) {
                ldmatrix_4(q[k], at + k * 32);
            }
        }

        /* S = Q K^T; lane: row lane / 4 (+ 8), columns 2 (lane % 4) + 0, 1 */

        at = shared_address(vs + ((lane >> 4) * 8 + (lane & 7)) * P
                            + ((lane >> 3) & 1) * 8);

        #pragma unroll
        for (j = 0; j < 2 * NB; j++) {
            s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0;
        }

        if (blocks == NB) {

            /* the usual case has no branches, for more mma in flight */

            #pragma unroll
            for (k = 0; k < NK; k++) {
                #pragma unroll
                for (j = 0; j < NB; j++) {
                    ldmatrix_4(b, at + (j * 16 * P + k * 16) * 2);
                    mma(s[2 * j], q[k], b[0], b[1]);
                    mma(s[2 * j + 1], q[k], b[2], b[3]);
                }
            }

        } else {
            #pragma unroll
            for (j = 0; j < NB; j++) {
                if (j < blocks) {
                    #pragma unroll
                    for (k = 0; k < NK; k++) {
                        ldmatrix_4(b, at + (j * 16 * P + k * 16) * 2);
                        mma(s[2 * j], q[k], b[0], b[1]);
                        mma(s[2 * j + 1], q[k], b[2], b[3]);
                    }
                }
            }
        }

        if (seen < KT || a.causal) {
            col = (lane & 3) * 2;
            row = a.causal ? row0 + (lane >> 2) - key0 : KT;

            #pragma unroll
            for (j = 0; j < 2 * NB; j++) {
                #pragma unroll
                for (i = 0; i < 2; i++) {
                    k = j * 8 + col + i;

                    if (k >= seen || k > row) {
                        s[j][i] = -INFINITY;
                    }

                    if (k >= seen || k > row + 8) {
                        s[j][2 + i] = -INFINITY;
                    }
                }
            }
        }

        /* the maximum so far; what was summed under the old one shrinks */

        #pragma unroll
        for (i = 0; i < 2; i++) {
            x = m[i];

            #pragma unroll
            for (j = 0; j < 2 * NB; j++) {
                x = fmaxf(x, fmaxf(s[j][2 * i], s[j][2 * i + 1]));
            }

            x = quad_max(x);

            /* a row that sees no key yet: anything finite */

            u[i] = x == -INFINITY ? 0 : x * c;
            f[i] = exp2_fast(m[i] * c - u[i]);
            m[i] = x;
            l[i] *= f[i];
        }

        #pragma unroll
        for (j = 0; j < NV; j++) {
            o[j][0] *= f[0];
            o[j][1] *= f[0];
            o[j][2] *= f[1];
            o[j][3] *= f[1];
        }

        if (stages == 1) {
            wait<0>();

        } else {
            wait<2>();
        }

        __syncthreads();

        /* O += P V */

        at = shared_address(vs + (rows + (lane & 15)) * P + (lane >> 4) * 8);

        #pragma unroll
        for (j = 0; j < NB; j++) {

            if (j >= blocks) {
                break;
            }

            #pragma unroll
            for (i = 0; i < 2; i++) {
                x = exp2_fast(fmaf(s[2 * j][2 * i], c, -u[i]));
                y = exp2_fast(fmaf(s[2 * j][2 * i + 1], c, -u[i]));
                p[i] = pack(x, y);
                l[i] += x + y;

                x = exp2_fast(fmaf(s[2 * j + 1][2 * i], c, -u[i]));
                y = exp2_fast(fmaf(s[2 * j + 1][2 * i + 1], c, -u[i]));
                p[2 + i] = pack(x, y);
                l[i] += x + y;
            }

            #pragma unroll
            for (k = 0; k + 1 < NV; k += 2) {
                ldmatrix_4_trans(b, at + (j * 16 * P + k * 8) * 2);
                mma(o[k], p, b[0], b[1]);
                mma(o[k + 1], p, b[2], b[3]);
            }

            if (NV % 2) {
                ldmatrix_2_trans(b, at + (j * 16 * P + (NV - 1) * 8) * 2);
                mma(o[NV - 1], p, b[0], b[1]);
            }
        }

        if (t + 1 < steps) {

            __syncthreads();

            k = (t + stages) * KT;
            i = min(KEYS_16(max(have - k, 0)), KT);

            load<NK * 2, P>(vs, kfrom + (size_t) k * a.ldk, i, have - k,
                            a.ldk, a.d, kvec, thread, threads);
            commit();
            load<NV, P>(vs + rows * P, vfrom + (size_t) k * a.ldk, i, have - k,
                        a.ldk, a.d, kvec, thread, threads);
            commit();
        }

        stage = stage + 1 == stages ? 0 : stage + 1;
    }

    l[0] = quad_sum(l[0]);
    l[1] = quad_sum(l[1]);

    if (KS == 2) {

        /* the second group's sums to the first, over the tiles */

        wait<0>();
        __syncthreads();

        shelf = (float *) (qs + warps * 16 * P) + warp * (4 * NV + 4) * 32
                + lane;

        if (group) {
            #pragma unroll
            for (j = 0; j < NV; j++) {
                #pragma unroll
                for (i = 0; i < 4; i++) {
                    shelf[(4 * j + i) * 32] = o[j][i];
                }
            }

            #pragma unroll
            for (i = 0; i < 2; i++) {
                shelf[(4 * NV + i) * 32] = m[i];
                shelf[(4 * NV + 2 + i) * 32] = l[i];
            }
        }

        __syncthreads();

        if (group) {
            return;
        }

        #pragma unroll
        for (i = 0; i < 2; i++) {
            y = shelf[(4 * NV + i) * 32];
            x = fmaxf(m[i], y);
            f[i] = exp2_fast((m[i] - x) * c);
            u[i] = exp2_fast((y - x) * c);
            l[i] = l[i] * f[i] + shelf[(4 * NV + 2 + i) * 32] * u[i];
        }

        #pragma unroll
        for (j = 0; j < NV; j++) {
            #pragma unroll
            for (i = 0; i < 4; i++) {
                o[j][i] = o[j][i] * f[i >> 1]
                          + shelf[(4 * j + i) * 32] * u[i >> 1];
            }
        }
    }

    f[0] = 1 / l[0];
    f[1] = 1 / l[1];

    /* through the warp's own part of q's memory, for longer stores */

    qs += warp * 16 * P;

    #pragma unroll
    for (j = 0; j < NV; j++) {
        i = (lane >> 2) * P + j * 8 + (lane & 3) * 2;
        *(uint32_t *) (qs + i) = pack(o[j][0] * f[0], o[j][1] * f[0]);
        *(uint32_t *) (qs + i + 8 * P) = pack(o[j][2] * f[1], o[j][3] * f[1]);
    }

    __syncwarp();

    for (i = lane; i < 16 * NV; i += 32) {
        row = i / NV;
        col = (i - row * NV) * 8;

        if (row0 + row >= a.lq || col >= a.d) {
            continue;
        }

        sd_half_t  *to = a.o + ((size_t) sample * a.lq + row0 + row)
                         * a.heads * a.d + head * a.d + col;

        if (ovec) {
            *(uint4 *) to = *(uint4 *) (qs + row * P + col);
            continue;
        }

        for (j = 0; j < 8 && col + j < a.d; j++) {
            to[j] = qs[row * P + col + j];
        }
    }
}


template <int D, int DV>
static cudaError_t
launch(cudaStream_t s, const sd_cuda_chip_t *chip, const sd_cuda_attention_t *a)
{
    const int  KT = KT_OF(D);
    const int  KS = KS_OF(D);
    const int  P = D + 8;

    int          warps, part, rows, stages;
    dim3         grid;
    size_t       size, tiles, shelf;
    cudaError_t  rc;

    part = KS == 1 ? a->lk : KEYS_16((a->lk + KS - 1) / KS);
    rows = KEYS_16(part) < KT ? KEYS_16(part) : KT;
    stages = part > KT ? 2 : 1;

    /*
     * the more queries share a tile, the less traffic; but every SM ought to
     * have a block
     */

    for (warps = KS == 1 ? 8 : 4; warps > 1; warps /= 2) {
        size = (size_t) ((a->lq + warps * 16 - 1) / (warps * 16)) * a->heads
               * a->n;

        if (4 * size >= (size_t) (warps == 8 ? 12 : 3) * chip->sms) {
            break;
        }
    }

    for ( ;; ) {
        tiles = (size_t) stages * KS * 2 * rows * P * sizeof(sd_half_t);
        shelf = KS == 1 ? 0 : (size_t) warps * (DV / 2 + 4) * 32
                              * sizeof(float);
        size = (size_t) warps * 16 * P * sizeof(sd_half_t)
               + (tiles > shelf ? tiles : shelf);

        if (size <= (size_t) chip->shared) {
            break;
        }

        if (stages > 1) {
            stages = 1;

        } else if (warps > 1) {
            warps /= 2;

        } else {
            return cudaErrorInvalidConfiguration;
        }
    }

    if (size > 48 * 1024) {
        rc = cudaFuncSetAttribute(attention<D, DV, KT, KS>,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int) size);
        if (rc != cudaSuccess) {
            return rc;
        }
    }

    grid = dim3((a->lq + warps * 16 - 1) / (warps * 16), a->heads, a->n);

    attention<D, DV, KT, KS><<<grid, warps * KS * 32, size, s>>>(*a, part,
                                                                 rows, stages);

    return cudaGetLastError();
}


/*
 * FEW keys at most, as cross-attention has.  They stay in shared memory while
 * the block's warps, each for itself, go through the sample's queries, 16 at a
 * time: all scores of a row in registers, its exact maximum, then the output by
 * 32 columns.  The next queries are on their way meanwhile.
 *
 * Sums of products may take their columns in any order.  Queries and keys take
 * them so that a lane's part of 32 columns is 16 bytes in a row, and the
 * values' columns are shuffled in shared memory so that this is so for the
 * output: all of it straight from and to device memory.
 */

#define FEW       80

/* elements of a row in shared memory: of keys, by 32, and of values */
#define FEW_K(D)  ((D) / 32 % 2 ? (D) / 32 * 32 : (D) / 32 * 32 + 32)
#define FEW_V(D)  ((D) / 8 % 2 ? (D) : (D) + 8)

/* blocks of an SM */
#define FEW_B(D)  ((D) == 160 ? 1 : 2)


/* a row's part of a lane t of a quad: 8 of each 32 columns, 4 of 16, 2 of 8 */

template <int D>
static __device__ __forceinline__ void
few_queries(uint32_t q[2][D / 8], const sd_half_t *from, int row, int rows,
    int ld, int t)
{
    const int  G = D / 32;

    int               i, j;
    uint2             y;
    uint4             x;
    const sd_half_t  *at;

    #pragma unroll
    for (i = 0; i < 2; i++, row += 8) {

        at = from + (size_t) row * ld;

        #pragma unroll
        for (j = 0; j < D / 8; j++) {
            q[i][j] = 0;
        }

        if (row >= rows) {
            continue;
        }

        #pragma unroll
        for (j = 0; j < G; j++) {
            x = *(const uint4 *) (at + 32 * j + 8 * t);
            q[i][4 * j] = x.x;
            q[i][4 * j + 1] = x.y;
            q[i][4 * j + 2] = x.z;
            q[i][4 * j + 3] = x.w;
        }

        if (D % 32 == 16) {
            y = *(const uint2 *) (at + 32 * G + 4 * t);
            q[i][4 * G] = y.x;
            q[i][4 * G + 1] = y.y;
        }

        if (D % 32 == 8) {
            q[i][4 * G] = *(const uint32_t *) (at + 32 * G + 2 * t);
        }
    }
}


/* 8 elements, however they lie */

static __device__ __forceinline__ uint4
few_load(const sd_half_t *from)
{
    int       i;
    uint32_t  e[8];

    #pragma unroll
    for (i = 0; i < 8; i++) {
        e[i] = from[i];
    }

    return make_uint4(e[0] | e[1] << 16, e[2] | e[3] << 16,
                      e[4] | e[5] << 16, e[6] | e[7] << 16);
}


template <int FROM, int TO>
static __device__ __forceinline__ void
few_mask(float s[][4], int left)
{
    int  i, j;

    #pragma unroll
    for (j = FROM; j < TO; j++) {
        #pragma unroll
        for (i = 0; i < 4; i++) {
            if (j * 8 + i % 2 >= left) {
                s[j][i] = -INFINITY;
            }
        }
    }
}


template <int D>
static __global__ void __launch_bounds__(256, FEW_B(D))
attention_few(const sd_cuda_attention_t a, int warps)
{
    const int  G = D / 32;
    const int  R = D % 32;
    const int  C = D / 8;
    const int  NB = FEW / 8;
    const int  KP = FEW_K(D);
    const int  VP = FEW_V(D);
    const int  U = (2 * FEW * C + 255) / 256;

    extern __shared__ __align__(16) unsigned char  shared[];

    int               i, j, k, t, lane, row, tiles, tile, step, sample, head,
                      at, vec;
    float             c, m[2], l[2], x, y, s[NB][4], o[4][4];
    uint2             z;
    uint4             w, v[U];
    uint32_t          q[2][C], p[2 * NB], b[4];
    sd_half_t        *ks, *kr, *vs, *to;
    const sd_half_t  *from, *kfrom, *vfrom;

    lane = threadIdx.x & 31;
    t = lane & 3;
    head = blockIdx.y;
    sample = blockIdx.z;

    tiles = (a.lq + 15) / 16;
    step = gridDim.x * warps;
    tile = blockIdx.x * warps + threadIdx.x / 32;

    /* keys: columns by 32, and the rest; values.  Tables are older than this */

    if (a.kv) {
        kfrom = a.kv[sample] + a.k_at;
        vfrom = a.kv[sample] + a.v_at;

    } else {
        sd_grid_wait();

        kfrom = a.k + (size_t) sample * a.lk * a.ldk;
        vfrom = a.v + (size_t) sample * a.lk * a.ldk;
    }

    kfrom += head * D;
    vfrom += head * D;

    vec = (a.ldk & 7) == 0
          && (((uintptr_t) kfrom | (uintptr_t) vfrom) & 15) == 0;

    ks = (sd_half_t *) shared;
    kr = ks + FEW * KP;
    vs = kr + FEW * R;

    /* all on their way before the first arrives */

    #pragma unroll
    for (i = 0; i < U; i++) {
        k = threadIdx.x + i * 256;
        row = k / C;
        j = k - row * C;
        from = kfrom;

        if (row >= FEW) {
            row -= FEW;
            from = vfrom;
        }

        from += (size_t) row * a.ldk + j * 8;
        v[i] = make_uint4(0, 0, 0, 0);

        if (row < a.lk) {
            v[i] = vec ? *(const uint4 *) from : few_load(from);
        }
    }

    /* first queries */

    if (a.kv) {
        sd_grid_wait();
    }

    sd_grid_next();

    from = a.q + (size_t) sample * a.lq * a.ldq + head * D;
    few_queries<D>(q, from, tile * 16 + (lane >> 2), a.lq, a.ldq, t);

    #pragma unroll
    for (i = 0; i < U; i++) {
        k = threadIdx.x + i * 256;
        row = k / C;
        j = k - row * C;

        if (row < FEW) {
            to = j < 4 * G ? ks + row * KP + j * 8
                           : kr + row * R + (j - 4 * G) * 8;
            *(uint4 *) to = v[i];
            continue;
        }

        if (row >= 2 * FEW) {
            break;
        }

        to = vs + (row - FEW) * VP;

        if (j < 4 * G) {

            /* pair w of unit j to tile w, and there to pair j */

            to += j / 4 * 32 + j % 4 * 2;
            *(uint32_t *) to = v[i].x;
            *(uint32_t *) (to + 8) = v[i].y;
            *(uint32_t *) (to + 16) = v[i].z;
            *(uint32_t *) (to + 24) = v[i].w;

        } else if (R == 16) {
            to += 32 * G + (j - 4 * G) * 4;
            *(uint32_t *) to = v[i].x;
            *(uint32_t *) (to + 8) = v[i].y;
            *(uint32_t *) (to + 2) = v[i].z;
            *(uint32_t *) (to + 10) = v[i].w;

        } else {
            *(uint4 *) (to + 32 * G) = v[i];
        }
    }

    __syncthreads();

    if (threadIdx.x / 32 >= warps) {
        return;
    }

    c = a.scale * LOG2E;

    for ( ; tile < tiles; tile += step) {

        #pragma unroll
        for (j = 0; j < NB; j++) {
            s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0;
        }

        #pragma unroll
        for (k = 0; k < G; k++) {
            #pragma unroll
            for (j = 0; j < NB; j++) {
                w = *(uint4 *) (ks + (j * 8 + (lane >> 2)) * KP + k * 32
                                + t * 8);
                b[0] = q[0][4 * k];
                b[1] = q[1][4 * k];
                b[2] = q[0][4 * k + 1];
                b[3] = q[1][4 * k + 1];
                mma(s[j], b, w.x, w.y);
                b[0] = q[0][4 * k + 2];
                b[1] = q[1][4 * k + 2];
                b[2] = q[0][4 * k + 3];
                b[3] = q[1][4 * k + 3];
                mma(s[j], b, w.z, w.w);
            }
        }

        if (R == 16) {
            b[0] = q[0][4 * G];
            b[1] = q[1][4 * G];
            b[2] = q[0][C - 1];
            b[3] = q[1][C - 1];

            #pragma unroll
            for (j = 0; j < NB; j++) {
                z = *(uint2 *) (kr + (j * 8 + (lane >> 2)) * R + t * 4);
                mma(s[j], b, z.x, z.y);
            }
        }

        if (R == 8) {
            #pragma unroll
            for (j = 0; j < NB; j++) {
                mma_8(s[j], q[0][C - 1], q[1][C - 1],
                      *(uint32_t *) (kr + (j * 8 + (lane >> 2)) * R + t * 2));
            }
        }

        row = tile * 16 + (lane >> 2);

        if (tile + step < tiles) {
            few_queries<D>(q, from, row + step * 16, a.lq, a.ldq, t);
        }

        /* seldom more than the last few keys are none */

        if (a.lk < FEW) {
            few_mask<NB - 1, NB>(s, a.lk - t * 2);

            if (a.lk < FEW - 8) {
                few_mask<0, NB - 1>(s, a.lk - t * 2);
            }
        }

        #pragma unroll
        for (i = 0; i < 2; i++) {
            x = s[0][2 * i];
            y = s[0][2 * i + 1];

            #pragma unroll
            for (j = 1; j < NB; j++) {
                x = fmaxf(x, s[j][2 * i]);
                y = fmaxf(y, s[j][2 * i + 1]);
            }

            m[i] = quad_max(fmaxf(x, y)) * c;
            l[i] = 0;

            #pragma unroll
            for (j = 0; j < NB; j++) {
                x = exp2_fast(fmaf(s[j][2 * i], c, -m[i]));
                y = exp2_fast(fmaf(s[j][2 * i + 1], c, -m[i]));
                p[2 * j + i] = pack(x, y);
                l[i] += x + y;
            }

            l[i] = 1 / quad_sum(l[i]);
        }

        to = a.o + ((size_t) sample * a.lq + row) * a.heads * D + head * D;
        at = 8 * a.heads * D;

        #pragma unroll
        for (k = 0; k < (D + 31) / 32; k++) {

            const int  N = k < G ? 4 : R / 8;       /* tiles of 8 columns */

            #pragma unroll
            for (j = 0; j < 4; j++) {
                o[j][0] = o[j][1] = o[j][2] = o[j][3] = 0;
            }

            #pragma unroll
            for (j = 0; j < NB / 2; j++) {
                #pragma unroll
                for (i = 0; i + 1 < N; i += 2) {
                    ldmatrix_4_trans(b, shared_address(
                        vs + (j * 16 + (lane & 15)) * VP + k * 32 + i * 8
                        + (lane >> 4) * 8));
                    mma(o[i], p + 4 * j, b[0], b[1]);
                    mma(o[i + 1], p + 4 * j, b[2], b[3]);
                }

                if (N == 1) {
                    ldmatrix_2_trans(b, shared_address(
                        vs + (j * 16 + (lane & 15)) * VP + k * 32));
                    mma(o[0], p + 4 * j, b[0], b[1]);
                }
            }

            #pragma unroll
            for (i = 0; i < 2; i++) {

                #pragma unroll
                for (j = 0; j < 4; j++) {
                    b[j] = pack(o[j][2 * i] * l[i], o[j][2 * i + 1] * l[i]);
                }

                if (row + 8 * i >= a.lq) {
                    continue;
                }

                if (N == 4) {
                    store_16(to + i * at + k * 32 + t * 8, b);

                } else if (N == 2) {
                    store_8(to + i * at + k * 32 + t * 4, b);

                } else {
                    *(uint32_t *) (to + i * at + k * 32 + t * 2) = b[0];
                }
            }
        }
    }
}


template <int D>
static cudaError_t
launch_few(cudaStream_t s, const sd_cuda_chip_t *chip,
    const sd_cuda_attention_t *a)
{
    const int  SIZE = FEW * (FEW_K(D) + D % 32 + FEW_V(D)) * sizeof(sd_half_t);

    int  warps, tiles, pairs, blocks, most;

    tiles = (a->lq + 15) / 16;
    pairs = a->heads * a->n;

    /*
     * All warps of a block load, and few of them compute where that keeps more
     * SMs busy.  Beyond FEW_B blocks of an SM, warps have several tiles.
     */

    most = FEW_B(D) * chip->sms;

    for (warps = 8; warps > 1; warps /= 2) {
        if ((size_t) (2 * tiles + warps - 1) / warps * pairs > (size_t) most) {
            break;
        }
    }

    blocks = (tiles + warps - 1) / warps;

    if (warps == 8 && (size_t) blocks * pairs > (size_t) most) {
        blocks = most > pairs ? most / pairs : 1;
    }

    return sd_launch_early(attention_few<D>, 1, dim3(blocks, a->heads, a->n),
                           256, SIZE, s, *a, warps);
}


extern "C" cudaError_t
sd_cuda_attention(cudaStream_t s, const sd_cuda_chip_t *chip,
    const sd_cuda_attention_t *d)
{
    if (d->d < 1 || d->d > 160 || d->lq < 1 || d->lk < 1 || d->heads < 1
        || d->n < 1)
    {
        return cudaErrorInvalidValue;
    }

    if (sd_cuda_attention_sm90_takes(chip, d)) {
        return sd_cuda_attention_sm90(s, chip, d);
    }

    if (d->lk <= FEW && !d->causal && (d->ldq & 7) == 0
        && (((uintptr_t) d->q | (uintptr_t) d->o) & 15) == 0)
    {
        switch (d->d) {

        case 40:
            return launch_few<40>(s, chip, d);

        case 64:
            return launch_few<64>(s, chip, d);

        case 80:
            return launch_few<80>(s, chip, d);

        case 160:
            return launch_few<160>(s, chip, d);
        }
    }

    if (d->d <= 16) {
        return launch<16, 16>(s, chip, d);
    }

    if (d->d <= 32) {
        return launch<32, 32>(s, chip, d);
    }

    if (d->d <= 40) {
        return launch<48, 40>(s, chip, d);
    }

    if (d->d <= 48) {
        return launch<48, 48>(s, chip, d);
    }

    if (d->d <= 64) {
        return launch<64, 64>(s, chip, d);
    }

    if (d->d <= 80) {
        return launch<80, 80>(s, chip, d);
    }

    if (d->d <= 96) {
        return launch<96, 96>(s, chip, d);
    }

    if (d->d <= 128) {
        return launch<128, 128>(s, chip, d);
    }

    return launch<160, 160>(s, chip, d);
}
