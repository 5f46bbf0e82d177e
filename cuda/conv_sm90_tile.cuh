/*
 * A tile of conv_sm90.cu: where it is, the weights that it asks for, and its
 * way out: stored by one block, or added up by a cluster's.
 */

#ifndef SD_CUDA_CONV_SM90_TILE_CUH
#define SD_CUDA_CONV_SM90_TILE_CUH

#include <string.h>

#include "conv_sm90.cuh"
#include "wgmma.cuh"


namespace {


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

}


#endif
