/*
 * Attention to few keys, as cross-attention has, by mma.sync, for every chip
 * since Ampere.
 *
 * Floor, as SD 1.5 calls it at n = 2 (77 keys): 10 MB of q and o at 4096
 * queries (4 us at 3 TB/s, less as they are in L2) down to 0.7 MB at 64; 84 MB
 * at n = 16 (28 us).  The rest is latency: launch, first bytes from L2, one
 * softmax.  Libraries take 7 to 14 us a call.
 *
 * Measured, H100 SXM, us at n = 2 and n = 16, and cuDNN: 8 heads of 40, 4096
 * queries: 7.5, 52 to 56 (14.1, 73); 5 of 64: 8.0, 36 (10.8, 48); 8 of 80,
 * 1024: 5.5, 18.8 (n = 16: 29); 10 of 64: 5.2, 25; 8 of 160, 256: 5.4, 11.5
 * (n = 16: 15.4); 20 of 64: 4.0, 12.6; 8 of 160, 64 queries: 4.9, 6.1.  5 of 64
 * at n = 16 moves 2.3 TB/s; heads of 40 start and end within sectors of 32
 * bytes, of which 23 are of use, and a fifth of the time goes into the wait for
 * the block's keys.
 *
 * DESIGN
 *
 * FEW keys at most.  They stay in shared memory while the block's warps, each
 * for itself, go through the sample's queries, 16 at a time: all scores of a
 * row in registers, its exact maximum, then the output by 32 columns.  The next
 * queries are on their way meanwhile.
 *
 * Sums of products may take their columns in any order.  Queries and keys take
 * them so that a lane's part of 32 columns is 16 bytes in a row, and the
 * values' columns are shuffled in shared memory so that this is so for the
 * output: all of it straight from and to device memory.
 */

#include <math.h>

#include "attention.cuh"


#define FEW       80

/* elements of a row in shared memory: of keys, by 32, and of values */
#define FEW_K(D)  ((D) / 32 % 2 ? (D) / 32 * 32 : (D) / 32 * 32 + 32)
#define FEW_V(D)  ((D) / 8 % 2 ? (D) : (D) + 8)

/* blocks of an SM */
#define FEW_B(D)  ((D) == 160 ? 1 : 2)


/* c: [16, 8] += a: [16, 8], b: [8, 8] */

static __device__ __forceinline__ void
mma_8(float *c, uint32_t a0, uint32_t a1, uint32_t b)
{
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(b));
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
                x = sd_exp2(fmaf(s[j][2 * i], c, -m[i]));
                y = sd_exp2(fmaf(s[j][2 * i + 1], c, -m[i]));
                p[2 * j + i] = sd_pair(x, y);
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
                    load_matrices_trans(b, sd_address(
                        vs + (j * 16 + (lane & 15)) * VP + k * 32 + i * 8
                        + (lane >> 4) * 8));
                    mma(o[i], p + 4 * j, b[0], b[1]);
                    mma(o[i + 1], p + 4 * j, b[2], b[3]);
                }

                if (N == 1) {
                    load_two_trans(b, sd_address(
                        vs + (j * 16 + (lane & 15)) * VP + k * 32));
                    mma(o[0], p + 4 * j, b[0], b[1]);
                }
            }

            #pragma unroll
            for (i = 0; i < 2; i++) {

                #pragma unroll
                for (j = 0; j < 4; j++) {
                    b[j] = sd_pair(o[j][2 * i] * l[i],
                                   o[j][2 * i + 1] * l[i]);
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
launch(cudaStream_t s, const sd_cuda_chip_t *chip,
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


int
sd_cuda_attention_few_takes(const sd_cuda_attention_t *a)
{
    return (a->d == 40 || a->d == 64 || a->d == 80 || a->d == 160)
           && a->lk <= FEW && !a->causal && (a->ldq & 7) == 0
           && (((uintptr_t) a->q | (uintptr_t) a->o) & 15) == 0;
}


cudaError_t
sd_cuda_attention_few(cudaStream_t s, const sd_cuda_chip_t *chip,
    const sd_cuda_attention_t *a)
{
    switch (a->d) {

    case 40:
        return launch<40>(s, chip, a);

    case 64:
        return launch<64>(s, chip, a);

    case 80:
        return launch<80>(s, chip, a);

    default:
        return launch<160>(s, chip, a);
    }
}
