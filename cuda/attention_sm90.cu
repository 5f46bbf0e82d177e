/*
 * Self-attention of 256 tokens and more on Hopper, by wgmma and TMA.
 *
 * Floor, SD 1.5 at n = 2 (8 heads, d = 40, 4096 x 4096): 43 GFLOP of use, which
 * are 47 as the tensor cores see them (Q K^T pads d to 48, P V takes exactly
 * 40): 63 us at the 755 TFLOP/s of a large GEMM; beside them 268 M exponentials
 * at 16 a clock and SM: 64 us at 1.98 GHz.  cuDNN pads d to 64: 156 us.
 * d = 64 (5 heads): 43 GFLOP, 57 us, and 168 M exponentials, 40 us; cuDNN
 * 111 us.  d = 80 (8 heads, 1024 x 1024): 5.4 GFLOP, 7 us; cuDNN 18.6 us.
 *
 * Measured, H100 SXM, us at n = 2 and n = 16, and cuDNN: 8 heads of 40,
 * 4096 x 4096: 99, 785 (156, 1267); 5 of 64: 80, 605 (111, 780); 8 of 80,
 * 1024 x 1024: 12.5, 99 (18.6, 113); 10 of 64: 13.6, 98 (23.5, 102); 8 of 160,
 * 256 x 256: 5.7, 22 (11.0, 24.0); 20 of 64: 5.2, 27 (7.6, 21.5).
 *
 * The two floors do not overlap as they might.  In clocks of an SM at d = 40, a
 * tile of 64 x 96 is 384 of exponentials and 264 of products (measured, alone:
 * Q K^T 144, P V 120), and takes 510.  But while an SM is at P V of 40 columns,
 * exponentials come 2.1 times as slowly, at 64 columns 1.7 times, and during
 * Q K^T of 64 or 128 keys 1.3 times; conversions to half likewise, while
 * multiplications and additions are not disturbed, nor disturb.  With that, 480
 * are the least.
 *
 * Tried, slower at d = 40: sums by P V, of a column of ones (107 us), or by
 * mma.sync (141); an eighth or a 24th of the exponentials by polynomials (107);
 * three warpgroups and tiles of 128 keys (120), four and tiles of 64 (114) or
 * 80 (106); queries in registers; no turns (109), turns that end before the
 * products do (114); Q K^T two tiles ahead (156); tiles multicast to clusters
 * of two or four (151 to 255).  ex2.approx.f16x2 is two instructions, as slow
 * as those of fp32.  d = 64: four warpgroups and tiles of 64 or 80 keys are 7
 * to 12 percent faster at 1024 and 256 keys, n = 16, and slower at n = 2 (104
 * us at 4096).
 *
 * DESIGN
 *
 * A block is up to four warpgroups, of 64 queries each.  A warpgroup computes
 * S = Q K^T of a tile of KT keys into registers, its online softmax, and
 * O += P V with P from registers.
 *
 * What bounds it is not the tensor cores but all that is done to the scores, so
 * that is as little as it can be.  What is subtracted from them is the maximum
 * of the first tile; sums of later ones tell when that is too small, long
 * before a P is more than fp16 holds, and only then are there maxima, and
 * factors for what was summed so far.  With usual scores there are neither
 * comparisons nor shuffles: a multiplication, an exponential, a sum, half a
 * conversion.
 *
 * A tile's Q K^T is started along with the P V of the one before, and both are
 * done before the next warpgroup starts its own: one is at the tensor cores,
 * the others have the exponential unit.  Without turns all end up at the same.
 *
 * The tensors are seen as [n, rows, heads, d], and a box is 64 wide, the last
 * one as wide as there are columns left, in memory laid out as wgmma likes it
 * (rows of 128 bytes, their 16-byte units swizzled), of which it fills the
 * first part.  Boxes wider than the head would be filled up with zeroes, but
 * ask L2 for 2.7 times as much, d = 40; so the eight columns that Q K^T takes
 * beyond those are zeroed once.  Rows beyond a sample's last are zeroes: masked
 * as keys, not stored as queries.
 *
 * Tiles come by TMA, each with a barrier that says "full" and one, of its
 * readers, that says "empty".  The block's first thread asks for a tile some
 * tiles ahead of its own.
 *
 * A row's bits depend on lk and d: tiles of keys are the same for all, rows of
 * an mma do not mix, each row decides for itself when its maximum is too old,
 * and how many warpgroups a block has is free: so that the last SM is done
 * early, the last blocks of a head may have one less.
 */

#include <limits.h>
#include <string.h>

#include "attention_sm90_tile.cuh"


#define SPAN  1024              /* of finish()'s time */


/* maps of q, k, v: boxes of 64 columns, and the last one's; of the output */

typedef struct {
    CUtensorMap  q[2], k[2], v[2], o;
} maps_t;


/*
 * c: scale * log2(e).
 * The first whole blocks of a sample's head have GROUPS warpgroups, the others
 * one less.
 */

template <int D, int KT, int GROUPS, int STAGES>
static __global__ void __launch_bounds__(GROUPS * 128, 1)
attention_sm90(const __grid_constant__ maps_t maps, int lq, int lk, float c,
    int whole)
{
#ifdef HOPPER

    const int  BOXES = (D + 63) / 64;       /* side by side */
    const int  QBOX = 64 * ROW;
    const int  KBOX = KT * ROW;

    extern __shared__ __align__(1024) unsigned char  shared[];

    int       i, j, warp, groups, row, row0;
    float     l[2], f[2], o[D / 2];
    block_t   b;
    uint32_t  q_full, at;

    /* 1024-byte aligned, as swizzling repeats after that */

    b.qs = (sd_address(shared) + 1023) & ~1023;
    b.ks = b.qs + GROUPS * BOXES * QBOX;
    b.vs = b.ks + STAGES * BOXES * KBOX;
    q_full = b.vs + STAGES * BOXES * KBOX;
    b.k_full = q_full + 8;
    b.v_full = b.k_full + STAGES * 8;
    b.empty = b.v_full + STAGES * 8;

    b.kmaps = maps.k;
    b.vmaps = maps.v;
    b.head = blockIdx.x;
    b.sample = blockIdx.z;
    b.lk = lk;
    b.steps = (lk + KT - 1) / KT;
    b.c = c;

    groups = GROUPS;
    row0 = blockIdx.y * GROUPS * 64;

    if ((int) blockIdx.y >= whole) {
        row0 -= (blockIdx.y - whole) * 64;
        groups--;
    }

    warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
    b.lane = threadIdx.x & 31;
    b.group = warp / 4;
    b.next = b.group + 1 < groups ? b.group + 1 : 0;

    if (threadIdx.x == 0) {
        for (i = D < 64; i <= (D % 64 != 0); i++) {
            map_prefetch(&maps.q[i]);
            map_prefetch(&maps.k[i]);
            map_prefetch(&maps.v[i]);
        }

        barrier_init(q_full, 1);

        for (i = 0; i < STAGES; i++) {
            barrier_init(b.k_full + i * 8, 1);
            barrier_init(b.v_full + i * 8, 1);
            barrier_init(b.empty + i * 8, groups * 4);
        }

        barrier_init_fence();
    }

    if (D % 16 != 0) {

        /* Q K^T sums over eight columns more than TMA writes */

        for (i = threadIdx.x; i < STAGES * KT; i += GROUPS * 128) {
            store_zeros(b.ks + i * ROW + ((D / 8 ^ (i & 7)) << 4));
        }

        for (i = threadIdx.x; i < GROUPS * 64; i += GROUPS * 128) {
            store_zeros(b.qs + i * ROW + ((D / 8 ^ (i & 7)) << 4));
        }

        box_store_fence();
    }

    __syncthreads();

    sd_grid_wait();
    sd_grid_next();

    if (threadIdx.x == 0) {
        barrier_expect(q_full, groups * 64 * D * 2);

        for (i = 0; i < groups; i++) {
            tile_load<D, 64>(b.qs + i * BOXES * QBOX, maps.q, q_full, b.head,
                             row0 + i * 64, b.sample);
        }
    }

    for (i = 0; i <= AHEAD; i++) {
        tile_ask<D, KT, STAGES>(&b, i);
    }

    if (b.group >= groups) {
        return;
    }

    b.qs += b.group * BOXES * QBOX;

    l[0] = l[1] = 0;

    #pragma unroll
    for (i = 0; i < D / 2; i++) {
        o[i] = 0;
    }

    /* S = Q K^T, [64, KT]; lane: row lane / 4 (+ 8) of the warp's 16 */

    barrier_wait(q_full, 0);

    all_keys<D, KT, STAGES>(&b, o, l);

    for (i = 0; i < 2; i++) {
        f[i] = 1 / quad_sum(l[i]);
    }

    /* out through the group's queries' memory, in the same layout */

    group_sync(1 + b.group);

    row = warp % 4 * 16 + b.lane / 4;

    #pragma unroll
    for (j = 0; j < D / 8; j++) {
        at = b.qs + j / 8 * QBOX + row * ROW + ((j % 8 ^ row & 7) << 4)
             + (b.lane & 3) * 4;
        store_4(at, sd_pair(o[4 * j] * f[0], o[4 * j + 1] * f[0]));
        store_4(at + 8 * ROW,
                sd_pair(o[4 * j + 2] * f[1], o[4 * j + 3] * f[1]));
    }

    box_store_fence();
    __syncwarp();

    row = warp % 4 * 16;
    row0 += b.group * 64 + row;

    if (b.lane == 0 && row0 < lq) {
        for (j = 0; j < BOXES; j++) {
            box_store(&maps.o, b.qs + j * QBOX + row * ROW, j * 64, b.head,
                      row0, b.sample);
        }

        box_store_wait();
    }

#endif
}


/* x: [n, rows, heads, d], rows of ld elements; boxes of width x height rows */

static int
map(CUtensorMap *m, encode_pt encode, const sd_half_t *x, int n, int rows,
    int heads, int d, int ld, int width, int height)
{
    cuuint64_t  dims[4], strides[3];

    static const cuuint32_t  steps[4] = { 1, 1, 1, 1 };

    cuuint32_t  box[4] = { (cuuint32_t) width, 1, (cuuint32_t) height, 1 };

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


/* boxes of all 64 columns, and of what is left of them in the last */

static int
map_both(CUtensorMap *m, encode_pt encode, const sd_half_t *x, int n, int rows,
    int heads, int d, int ld, int height)
{
    return (d < 64
            || map(&m[0], encode, x, n, rows, heads, d, ld, 64, height))
           && (d % 64 == 0
               || map(&m[1], encode, x, n, rows, heads, d, ld, d % 64,
                      height));
}


/*
 * When the last SM is done with blocks of groups warpgroups, whole of each
 * head, and others of one less, each going to the first SM that is free: in
 * quarters of what a warpgroup takes where there are enough of them
 */

static int
finish(const sd_cuda_chip_t *chip, const sd_cuda_attention_t *a, int groups,
    int whole, int rest)
{
    int  i, t, k, m, cost, last, free[SPAN + 16];

    memset(free, 0, sizeof(free));

    free[0] = chip->sms;
    t = last = 0;

    for (i = 0; i < 2 * a->n; i++) {
        cost = i % 2 ? groups - 1 : groups;
        cost = 4 * cost + 3 - cost;
        k = (i % 2 ? rest : whole) * a->heads;

        while (k > 0) {
            while (free[t] == 0) {
                t++;
            }

            if (t >= SPAN) {
                return INT_MAX;
            }

            m = k < free[t] ? k : free[t];
            free[t] -= m;
            free[t + cost] += m;
            k -= m;

            if (t + cost > last) {
                last = t + cost;
            }
        }
    }

    return last;
}


/* how many blocks of each head have all warpgroups, and how many there are */

static int
whole_blocks(const sd_cuda_chip_t *chip, const sd_cuda_attention_t *a,
    int groups, int *blocks)
{
    int  units, i, t, rest, whole, least;

    units = (a->lq + 63) / 64;
    whole = (units + groups - 1) / groups;
    least = INT_MAX;
    *blocks = whole;

    for (i = units / groups; i >= 0; i--) {

        rest = (units - i * groups + groups - 2) / (groups - 1);
        t = finish(chip, a, groups, i, rest);

        if (t < least) {
            least = t;
            whole = i;
            *blocks = i + rest;
        }
    }

    return whole;
}


template <int D, int KT, int GROUPS, int STAGES>
static cudaError_t
launch(cudaStream_t s, const sd_cuda_chip_t *chip,
    const sd_cuda_attention_t *a, encode_pt encode)
{
    const int  BOXES = (D + 63) / 64;
    const int  SIZE = 1024 + GROUPS * BOXES * 64 * ROW
                      + STAGES * 2 * BOXES * KT * ROW + 8 + STAGES * 24;

    int          whole, blocks;
    dim3         grid;
    maps_t       maps;

    memset(&maps, 0, sizeof(maps));

    if (!map_both(maps.q, encode, a->q, a->n, a->lq, a->heads, D, a->ldq, 64)
        || !map_both(maps.k, encode, a->k, a->n, a->lk, a->heads, D, a->ldk,
                     KT)
        || !map_both(maps.v, encode, a->v, a->n, a->lk, a->heads, D, a->ldk,
                     KT)
        || !map(&maps.o, encode, a->o, a->n, a->lq, a->heads, D, a->heads * D,
                D < 64 ? D : 64, 16))
    {
        return cudaErrorInvalidValue;
    }

    whole = whole_blocks(chip, a, GROUPS, &blocks);
    grid = dim3(a->heads, blocks, a->n);

    return sd_launch_early(attention_sm90<D, KT, GROUPS, STAGES>, 1, grid,
                           GROUPS * 128, SIZE, s, maps, a->lq, a->lk,
                           a->scale * LOG2E, whole);
}


int
sd_cuda_attention_sm90_takes(const sd_cuda_chip_t *chip,
    const sd_cuda_attention_t *a)
{
    return chip->arch == 90
           && (a->d == 40 || a->d == 64 || a->d == 80 || a->d == 160)
           && a->lk >= 256 && a->kv == NULL && !a->causal

           /* what a tensor map wants of strides and addresses */
           && a->ldq % a->d == 0 && a->ldk % a->d == 0
           && (((uintptr_t) a->q | (uintptr_t) a->k | (uintptr_t) a->v
                | (uintptr_t) a->o) & 15) == 0;
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
        return launch<40, 96, 4, 4>(s, chip, a, encode);

    case 64:
        return launch<64, 128, 3, 4>(s, chip, a, encode);

    case 80:
        return launch<80, 128, 2, 3>(s, chip, a, encode);

    default:
        return launch<160, 64, 2, 3>(s, chip, a, encode);
    }
}
