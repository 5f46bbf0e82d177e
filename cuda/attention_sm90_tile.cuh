/*
 * What a warpgroup of attention_sm90.cu does to its block's tiles of keys: asks
 * for them, Q K^T, the online softmax, P V.
 */

#ifndef SD_CUDA_ATTENTION_SM90_TILE_CUH
#define SD_CUDA_ATTENTION_SM90_TILE_CUH

#include <math.h>

#include "attention.cuh"
#include "wgmma.cuh"


#define ROW    128              /* bytes of a row of a box: 64 elements */
#define MOST   16384.0f         /* of a lane's sums */
#define AHEAD  2                /* tiles that are asked for before their turn */


#ifdef HOPPER

/*
 * warpgroups take turns: what a group does between these two it does alone;
 * barriers after those of group_sync()
 */

static __device__ __forceinline__ void
turn_wait(int group)
{
    asm volatile("bar.sync %0, 256;" :: "r"(5 + group) : "memory");
}


static __device__ __forceinline__ void
turn_pass(int to)
{
    asm volatile("bar.arrive %0, 256;" :: "r"(5 + to) : "memory");
}


static __device__ __forceinline__ void
store_zeros(uint32_t at)
{
    asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};"
                 :: "r"(at), "r"(0) : "memory");
}


/* of D columns, ROWS rows side by side from row on, to at and after it */

template <int D, int ROWS>
static __device__ __forceinline__ void
tile_load(uint32_t at, const CUtensorMap *maps, uint32_t barrier, int head,
    int row, int sample)
{
    int  i;

    #pragma unroll
    for (i = 0; i < (D + 63) / 64; i++) {
        box_load(at + i * ROWS * ROW, D - i * 64 < 64 ? &maps[1] : &maps[0],
                 barrier, i * 64, head, row, sample);
    }
}


/* s: [64, KT] = q k^T, as one group; q, k: boxes' memory */

template <int D, int KT>
static __device__ __forceinline__ void
scores(float *s, uint32_t q, uint32_t k)
{
    int  i;

    q = matrix_low(q, 16);
    k = matrix_low(k, 16);

    settled(s, KT / 2);
    wgmma_fence();

    #pragma unroll
    for (i = 0; i < (D + 15) / 16; i++) {
        wgmma<KT>(s, matrix_at(q, i / 4 * 64 * ROW + i % 4 * 32),
                  matrix_at(k, i / 4 * KT * ROW + i % 4 * 32), i != 0);
    }

    wgmma_commit();
}


/* o: [64, D] += p v, as one group; p: [KT / 16][4], v: boxes' memory */

template <int D, int KT>
static __device__ __forceinline__ void
values(float *o, uint32_t *p, uint32_t v)
{
    int  i;

    v = matrix_low(v, KT * ROW);

    settled(o, D / 2);
    settled(p, KT / 4);
    wgmma_fence();

    #pragma unroll
    for (i = 0; i < KT / 16; i++) {
        wgmma_add<D>(o, p + 4 * i, matrix_at(v, i * 16 * ROW));
    }

    wgmma_commit();
}


/* the tile's last keys are none */

template <int KT>
static __device__ __forceinline__ void
mask(float *s, int left, int lane)
{
    int  i;

    left -= (lane & 3) * 2;

    #pragma unroll
    for (i = 0; i < KT / 2; i++) {
        if (i / 4 * 8 + i % 2 >= left) {
            s[i] = -INFINITY;
        }
    }
}


/* this lane's part of the rows' maxima */

template <int KT>
static __device__ __forceinline__ void
maxima(float *m, const float *s)
{
    int    i, j;
    float  x, y;

    #pragma unroll
    for (i = 0; i < 2; i++) {
        x = s[2 * i];
        y = s[2 * i + 1];

        #pragma unroll
        for (j = 4; j < KT / 2; j += 4) {
            x = fmaxf(x, s[j + 2 * i]);
            y = fmaxf(y, s[j + 2 * i + 1]);
        }

        m[i] = fmaxf(x, y);
    }
}


/* p = 2^(s c - u) as an operand of values(), l: this lane's sums of it */

template <int KT>
static __device__ __forceinline__ void
exponentials(uint32_t *p, float *l, const float *s, const float *u, float c)
{
    int    i;
    float  x, y;

    #pragma unroll
    for (i = 0; i < KT / 4; i++) {
        x = sd_exp2(fmaf(s[2 * i], c, -u[i % 2]));
        y = sd_exp2(fmaf(s[2 * i + 1], c, -u[i % 2]));

        l[i % 2] += x + y;
        p[i] = sd_pair(x, y);
    }
}


/*
 * Sums tell when the maxima are too old, seldom: then the tile's own count, and
 * what was summed under the others shrinks.  Each row decides for itself, and
 * to the others nothing happens.  No P V is in flight.
 */

template <int D, int KT>
static __device__ __forceinline__ void
renew(float *o, uint32_t *p, float *l, float *x, const float *s, float *u,
    float c)
{
    int    i;
    float  f[2];

    if (__any_sync(0xffffffff, !(x[0] <= MOST && x[1] <= MOST))) {

        f[0] = x[0] <= MOST ? 0 : 1;
        f[1] = x[1] <= MOST ? 0 : 1;

        maxima<KT>(x, s);

        #pragma unroll
        for (i = 0; i < 2; i++) {
            x[i] = fmaxf(quad_max(x[i]) * c, u[i]);
            x[i] = quad_max(f[i]) > 0 ? x[i] : u[i];
            f[i] = sd_exp2(u[i] - x[i]);
            u[i] = x[i];
            l[i] = __fmul_rn(l[i], f[i]);
            x[i] = 0;
        }

        #pragma unroll
        for (i = 0; i < D / 2; i++) {
            o[i] *= f[i / 2 % 2];
        }

        exponentials<KT>(p, x, s, u, c);
    }

    l[0] += x[0];
    l[1] += x[1];
}


/* what a warpgroup knows of its block; qs: its own queries */

typedef struct {
    const CUtensorMap  *kmaps, *vmaps;
    uint32_t            qs, ks, vs, k_full, v_full, empty;
    int                 lk, steps, head, sample, lane, group, next;
    float               c;
} block_t;


/* the block's first thread: tile t, once its memory is free */

template <int D, int KT, int STAGES>
static __device__ __forceinline__ void
tile_ask(const block_t *b, int t)
{
    const int  BOX = (D + 63) / 64 * KT * ROW;

    int  i;

    if (threadIdx.x == 0 && t < b->steps) {
        i = t % STAGES;

        if (t >= STAGES) {
            barrier_wait(b->empty + i * 8, (t - STAGES) / STAGES & 1);
        }

        barrier_expect(b->k_full + i * 8, KT * D * 2);
        tile_load<D, KT>(b->ks + i * BOX, b->kmaps, b->k_full + i * 8, b->head,
                         t * KT, b->sample);

        barrier_expect(b->v_full + i * 8, KT * D * 2);
        tile_load<D, KT>(b->vs + i * BOX, b->vmaps, b->v_full + i * 8, b->head,
                         t * KT, b->sample);
    }

    __syncwarp();
}


/* the first tile, a whole one, says what to subtract */

template <int D, int KT>
static __device__ __forceinline__ void
first(const block_t *b, float *s, float *u)
{
    int    i;
    float  x[2];

    barrier_wait(b->k_full, 0);
    scores<D, KT>(s, b->qs, b->ks);
    wgmma_wait<0>();
    settled(s, KT / 2);

    maxima<KT>(x, s);

    #pragma unroll
    for (i = 0; i < 2; i++) {
        u[i] = quad_max(x[i]) * b->c;
    }
}


/*
 * A tile's Q K^T along with the P V of the one before, one warpgroup after the
 * other.  l: this lane's part of the rows' sums.
 */

template <int D, int KT, int STAGES>
static __device__ __forceinline__ void
all_keys(const block_t *b, float *o, float *l)
{
    const int  BOX = (D + 63) / 64 * KT * ROW;

    int       t, stage, before;
    float     s[KT / 2], u[2], x[2];
    uint32_t  p[KT / 4], phase;

    if (b->next == 0) {
        turn_pass(0);
    }

    first<D, KT>(b, s, u);
    exponentials<KT>(p, l, s, u, b->c);

    before = 0;
    stage = 1;
    phase = 0;

    for (t = 1; t < b->steps; t++) {

        barrier_wait(b->k_full + stage * 8, phase);
        turn_wait(b->group);

        scores<D, KT>(s, b->qs, b->ks + stage * BOX);
        barrier_wait(b->v_full + before * 8, phase ^ (stage == 0));
        values<D, KT>(o, p, b->vs + before * BOX);

        wgmma_wait<0>();
        settled(s, KT / 2);
        settled(o, D / 2);
        settled(p, KT / 4);

        if (b->next != 0 || t + 1 < b->steps) {
            turn_pass(b->next);
        }

        if (b->lane == 0) {
            barrier_arrive(b->empty + before * 8);
        }

        if (b->lk - t * KT < KT) {
            mask<KT>(s, b->lk - t * KT, b->lane);
        }

        x[0] = x[1] = 0;
        exponentials<KT>(p, x, s, u, b->c);
        renew<D, KT>(o, p, l, x, s, u, b->c);

        tile_ask<D, KT, STAGES>(b, t + AHEAD);

        before = stage;

        if (++stage == STAGES) {
            stage = 0;
            phase ^= 1;
        }
    }

    barrier_wait(b->v_full + before * 8, phase ^ (stage == 0));
    values<D, KT>(o, p, b->vs + before * BOX);
    wgmma_wait<0>();
    settled(o, D / 2);
    settled(p, KT / 4);
}

#endif


#endif
