/*
 * Attention by mma.sync, for every shape and every chip since Ampere: where no
 * other kernel is better.
 *
 * Floor: on Hopper what is left for it is small, and all latency: launch, first
 * bytes from L2, one tile.  Measured, H100 SXM, 12 heads of 64, causal,
 * 77 x 77, us at n = 2 and n = 16: 5.7, 6.0.
 *
 * DESIGN
 *
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

#include "attention.cuh"


#define KEYS_16(n)  (((n) + 15) & ~15)

/* keys a tile, groups of warps that share the keys: by the padded d alone */
#define KT_OF(D)  ((D) <= 80 ? 128 : 64)
#define KS_OF(D)  ((D) <= 80 ? 1 : 2)


/* zeroes where bytes is 0; reads nothing then */

static __device__ __forceinline__ void
copy_16(uint32_t to, const void *from, int bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(to), "l"(from), "r"(bytes) : "memory");
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
            copy_16(sd_address(to + row * P + at),
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
        sd_copy_commit();
        load<NV, P>(vs + rows * P, vfrom + (size_t) t * KT * a.ldk, i,
                    have - t * KT, a.ldk, a.d, kvec, thread, threads);
        sd_copy_commit();
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
            sd_copy_wait<1>();

        } else {
            sd_copy_wait<3>();
        }

        __syncthreads();

        if (t == 0) {
            at = sd_address(qs + (warp * 16 + (lane & 15)) * P
                                + (lane >> 4) * 8);

            #pragma unroll
            for (k = 0; k < NK; k++) {
                sd_load_matrices(q[k], at + k * 32);
            }
        }

        /* S = Q K^T; lane: row lane / 4 (+ 8), columns 2 (lane % 4) + 0, 1 */

        at = sd_address(vs + ((lane >> 4) * 8 + (lane & 7)) * P
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
                    sd_load_matrices(b, at + (j * 16 * P + k * 16) * 2);
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
                        sd_load_matrices(b, at + (j * 16 * P + k * 16) * 2);
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
            f[i] = sd_exp2(m[i] * c - u[i]);
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
            sd_copy_wait<0>();

        } else {
            sd_copy_wait<2>();
        }

        __syncthreads();

        /* O += P V */

        at = sd_address(vs + (rows + (lane & 15)) * P + (lane >> 4) * 8);

        #pragma unroll
        for (j = 0; j < NB; j++) {

            if (j >= blocks) {
                break;
            }

            #pragma unroll
            for (i = 0; i < 2; i++) {
                x = sd_exp2(fmaf(s[2 * j][2 * i], c, -u[i]));
                y = sd_exp2(fmaf(s[2 * j][2 * i + 1], c, -u[i]));
                p[i] = sd_pair(x, y);
                l[i] += x + y;

                x = sd_exp2(fmaf(s[2 * j + 1][2 * i], c, -u[i]));
                y = sd_exp2(fmaf(s[2 * j + 1][2 * i + 1], c, -u[i]));
                p[2 + i] = sd_pair(x, y);
                l[i] += x + y;
            }

            #pragma unroll
            for (k = 0; k + 1 < NV; k += 2) {
                load_matrices_trans(b, at + (j * 16 * P + k * 8) * 2);
                mma(o[k], p, b[0], b[1]);
                mma(o[k + 1], p, b[2], b[3]);
            }

            if (NV % 2) {
                load_two_trans(b, at + (j * 16 * P + (NV - 1) * 8) * 2);
                mma(o[NV - 1], p, b[0], b[1]);
            }
        }

        if (t + 1 < steps) {

            __syncthreads();

            k = (t + stages) * KT;
            i = min(KEYS_16(max(have - k, 0)), KT);

            load<NK * 2, P>(vs, kfrom + (size_t) k * a.ldk, i, have - k,
                            a.ldk, a.d, kvec, thread, threads);
            sd_copy_commit();
            load<NV, P>(vs + rows * P, vfrom + (size_t) k * a.ldk, i, have - k,
                        a.ldk, a.d, kvec, thread, threads);
            sd_copy_commit();
        }

        stage = stage + 1 == stages ? 0 : stage + 1;
    }

    l[0] = quad_sum(l[0]);
    l[1] = quad_sum(l[1]);

    if (KS == 2) {

        /* the second group's sums to the first, over the tiles */

        sd_copy_wait<0>();
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
            f[i] = sd_exp2((m[i] - x) * c);
            u[i] = sd_exp2((y - x) * c);
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
        *(uint32_t *) (qs + i) = sd_pair(o[j][0] * f[0], o[j][1] * f[0]);
        *(uint32_t *) (qs + i + 8 * P) =
            sd_pair(o[j][2] * f[1], o[j][3] * f[1]);
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


cudaError_t
sd_cuda_attention_any(cudaStream_t s, const sd_cuda_chip_t *chip,
    const sd_cuda_attention_t *a)
{
    if (a->d <= 16) {
        return launch<16, 16>(s, chip, a);
    }

    if (a->d <= 32) {
        return launch<32, 32>(s, chip, a);
    }

    if (a->d <= 40) {
        return launch<48, 40>(s, chip, a);
    }

    if (a->d <= 48) {
        return launch<48, 48>(s, chip, a);
    }

    if (a->d <= 64) {
        return launch<64, 64>(s, chip, a);
    }

    if (a->d <= 80) {
        return launch<80, 80>(s, chip, a);
    }

    if (a->d <= 96) {
        return launch<96, 96>(s, chip, a);
    }

    if (a->d <= 128) {
        return launch<128, 128>(s, chip, a);
    }

    return launch<160, 160>(s, chip, a);
}
