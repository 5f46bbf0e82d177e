/*
 * Our own kernels: what no library has, or not as well.  One file a kernel;
 * each opens with its floor (bytes, flops) and how near it gets.  Which of
 * several is for what: attention.cu, group_norm.cu, conv_sm90_choose.cu.  What
 * they share: common.cuh; on Hopper sm90.cuh and wgmma.cuh.
 *
 * A launcher enqueues on a stream and returns the launch's error.  It allocates
 * nothing and never waits, so all of them may be captured into a graph.  All
 * pointers are device memory.  Tensors are densely packed NHWC fp16 (sd_half_t)
 * where nothing else is said, sums and statistics fp32.  No launcher's result
 * depends on n: sample i of n is, bit for bit, what it is alone.
 */

#ifndef SD_CUDA_KERNELS_H
#define SD_CUDA_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include <cuda_runtime_api.h>

#include "../src/ops/slot.h"

#ifdef __cplusplus
extern "C" {
#endif


typedef uint16_t  sd_half_t;        /* the bits of an IEEE half */


/* what launchers choose by; of cudaDeviceProp */
typedef struct {
    int   arch;                     /* 80, 86, 89, 90 ... */
    int   sms;
    int   shared;                   /* bytes a block may have, opt-in */
} sd_cuda_chip_t;


/*
 * group_norm.cu: y = silu?(group_norm(x ++ x2 + addend)) * gamma + beta (the
 * affine part before the silu), see sd_group_norm() in ops.h
 * x: [n, hw, c], x2: [n, hw, c2] or NULL with c2 = 0, y: [n, hw, c + c2], may
 * be x where x2 is NULL; gamma, beta: [c + c2] F32
 * addend: NULL, or [n] pointers; sample i adds addend[i][addend_at + channel]
 * scratch: sd_cuda_group_norm_scratch() bytes, 16-byte aligned
 */
typedef struct {
    sd_half_t            *y;
    const sd_half_t      *x, *x2;
    const float          *gamma, *beta;
    const float *const   *addend;
    int                   addend_at;
    int                   n, hw, c, c2, groups;
    float                 eps;
    int                   silu;
    void                 *scratch;
} sd_cuda_group_norm_t;

size_t sd_cuda_group_norm_scratch(int n, int hw, int c, int groups);
cudaError_t sd_cuda_group_norm(cudaStream_t s, const sd_cuda_chip_t *chip,
    const sd_cuda_group_norm_t *d);


/* layer_norm.cu: over c, eps inside the root; y may be x; x: [rows, c] */
cudaError_t sd_cuda_layer_norm(cudaStream_t s, sd_half_t *y,
    const sd_half_t *x, const float *gamma, const float *beta, int rows, int c,
    float eps);


/* activation.cu */

/* y = value * gelu(gate), gelu by erf; x: [rows, 2 * inner], values first;
 * y: [rows, inner] (+ residual [rows, inner], may be y, or NULL) */
cudaError_t sd_cuda_geglu(cudaStream_t s, sd_half_t *y, const sd_half_t *x,
    const sd_half_t *residual, int rows, int inner);

/* y = act(x) + residual; act: an sd_act_t but GEGLU; residual NULL or [count];
 * y may be x or residual */
cudaError_t sd_cuda_act(cudaStream_t s, sd_half_t *y, const sd_half_t *x,
    const sd_half_t *residual, size_t count, int act);

/* y[i, j] += bias[j], F32 y: [rows, c] */
cudaError_t sd_cuda_add_bias(cudaStream_t s, float *y, const sd_half_t *bias,
    int rows, int c);


/*
 * product_sm90.cu: y = x w^T + bias, or y += that, or y = geglu(that), as one
 * x: [rows, c], w: [cols, c], bias: [cols] or NULL, y: [rows, cols].  glu: w and
 * bias have the values' cols rows, then as many of the gates'; add: y is the
 * residual, too; not with glu, nor without a bias
 * tile: sizes and clusters to choose from, which give the same bits
 */
typedef struct {
    sd_half_t            *y;
    const sd_half_t      *x, *w, *bias;
    int                   rows, cols, c, glu, add;
    int                   tile;     /* of SD_CUDA_PRODUCT_TILES, those for glu
                                       first; -1: its choice */
} sd_cuda_product_t;

#define SD_CUDA_PRODUCT_TILES  7
#define SD_CUDA_GLU_TILES      5

/* GEGLU by what all samples share, never by rows, as the bits are not another's;
 * others, whose bits are cublasLt's, where it pays */
int sd_cuda_product_sm90_takes(const sd_cuda_chip_t *chip,
    const sd_cuda_product_t *d);
cudaError_t sd_cuda_product_sm90(cudaStream_t s, const sd_cuda_chip_t *chip,
    const sd_cuda_product_t *d);


/* softmax.cu: rows of x: [rows, cols], row r at x + r * ld, in place */
cudaError_t sd_cuda_softmax(cudaStream_t s, sd_half_t *x, int rows, int cols,
    size_t ld);


/*
 * conv_direct.cu: any convolution of ops.h, for those that no library has a
 * good kernel for: few channels in (conv_in) or out (conv_out), or a number of
 * them that is no multiple of 8.
 * x: [n, h, w, c], x2: [n, h, w, c2] or NULL, y and residual: [n, oh, ow, k]
 * (residual may be y, or NULL), w: [k, r, r, c + c2], bias: [k] or NULL
 * upsample: x and x2 are read as if enlarged by nearest x2, to oh x ow; r = 1
 * or 3, padding r / 2
 */
typedef struct {
    sd_half_t            *y;
    const sd_half_t      *x, *x2, *w, *bias, *residual;
    int                   n, h, wd, c, c2, oh, ow, k, r, stride, upsample;
    int                   way;      /* conv_sm90's alone */
} sd_cuda_conv_t;

cudaError_t sd_cuda_conv_direct(cudaStream_t s, const sd_cuda_chip_t *chip,
    const sd_cuda_conv_t *d);


/*
 * conv_up.cu: a 3x3 convolution of what is enlarged to exactly twice its size,
 * by weights that sd_cuda_pack_up() has made; takes() says whether there is a
 * kernel for this chip and d, whose n does not matter
 */
int sd_cuda_conv_up_takes(const sd_cuda_chip_t *chip, const sd_cuda_conv_t *d);
cudaError_t sd_cuda_conv_up(cudaStream_t s, const sd_cuda_chip_t *chip,
    const sd_cuda_conv_t *d);


/*
 * conv_sm90.cu: a 3x3 convolution of a UNet's shapes; takes() says whether
 * there is a kernel for this chip and d, whose n does not matter
 * way: 0, its choice; else of SD_CUDA_CONV_WAYS: those that fit the shape give
 * the same bits, the others cudaErrorInvalidValue
 */
#define SD_CUDA_CONV_WAYS  16

int sd_cuda_conv_sm90_takes(const sd_cuda_chip_t *chip,
    const sd_cuda_conv_t *d);
cudaError_t sd_cuda_conv_sm90(cudaStream_t s, const sd_cuda_chip_t *chip,
    const sd_cuda_conv_t *d);


/* layout.cu */

/* y: [n, oh, ow, c] from x: [n, h, w, c]: nearest x2; oh = 2h or 2h - 1 ... */
cudaError_t sd_cuda_upsample(cudaStream_t s, sd_half_t *y, const sd_half_t *x,
    int n, int h, int w, int c, int oh, int ow);

/* y: [pixels, c + c2] = x ++ x2 */
cudaError_t sd_cuda_concat(cudaStream_t s, sd_half_t *y, const sd_half_t *x,
    const sd_half_t *x2, size_t pixels, int c, int c2);

/* a weight [k, c, r, r] F32 to [k', r, r, c'] fp16, k' >= k and c' >= c
 * multiples of what the caller likes, the rest zero; r = 1: a matrix */
cudaError_t sd_cuda_pack(cudaStream_t s, sd_half_t *y, const float *x, int k,
    int c, int r, int kpad, int cpad);

/*
 * a weight [k, c, 3, 3] F32 as it is seen through nearest x2: y[2 py + px] is
 * [k, 2, 2, c] fp16, and makes pixel (2 i + py, 2 j + px) of pixels i + py - 1,
 * i + py by j + px - 1, j + px
 */
cudaError_t sd_cuda_pack_up(cudaStream_t s, sd_half_t *y, const float *x,
    int k, int c);

cudaError_t sd_cuda_to_half(cudaStream_t s, sd_half_t *y, const float *x,
    size_t count);
cudaError_t sd_cuda_to_float(cudaStream_t s, float *y, const sd_half_t *x,
    size_t count);


/*
 * attention.cu: o = softmax(q k^T scale) v, per sample and head.
 * q: [n, lq] rows of ldq elements, k, v: [n, lk] rows of ldk, o: [n, lq] rows
 * of heads * d, packed; the heads of a row stand side by side, d elements each.
 * kv: NULL, or [n] pointers to tables of lk rows of ldk elements: sample i
 * reads k at kv[i] + k_at and v at kv[i] + v_at instead.  The tables are older
 * than what is before this in the stream, and may be read while that runs.
 * causal: query i sees keys 0 .. i; lq == lk then.  d: 1 .. 160.
 * A row's sum depends on lk and d alone.
 */
typedef struct {
    sd_half_t                 *o;
    const sd_half_t           *q, *k, *v;
    const sd_half_t *const    *kv;
    int                        k_at, v_at;
    int                        n, heads, d, lq, lk, ldq, ldk;
    float                      scale;
    int                        causal;
} sd_cuda_attention_t;

cudaError_t sd_cuda_attention(cudaStream_t s, const sd_cuda_chip_t *chip,
    const sd_cuda_attention_t *d);


/* sampler.cu: see slot.h and ops.h; F32 latents, the model's samples fp16 */

/* y: [m, h, w, c]; slots: [n]; an empty slot writes nothing */
cudaError_t sd_cuda_scale_input(cudaStream_t s, sd_half_t *y,
    const sd_slot_t *slots, int n, int hwc);

/* out: [m, h, w, c] */
cudaError_t sd_cuda_sampler_step(cudaStream_t s, const sd_half_t *out,
    const sd_slot_t *slots, int n, int hw, int c);

/* x: [hw, c] F32 = scale * noise of seed's draw, elements counted in NCHW */
cudaError_t sd_cuda_noise(cudaStream_t s, float *x, uint64_t seed,
    uint32_t draw, float scale, int hw, int c);


/* picture.cu: bytes = 127.5 v + 127.5, rounded half up, clamped, NaN: 0 */

/* x: [pixels, c] F32, c <= 16; y: [pixels, 3]; the factors come by value */
typedef struct {
    float   factors[16][3];
    float   bias[3];
} sd_cuda_rgb_t;

cudaError_t sd_cuda_preview_rgb(cudaStream_t s, uint8_t *y, const float *x,
    const sd_cuda_rgb_t *rgb, size_t pixels, int c);
cudaError_t sd_cuda_image_rgb8(cudaStream_t s, uint8_t *y, const sd_half_t *x,
    size_t count);

/* y = scale * x, from F32 or from fp16 */
cudaError_t sd_cuda_scale(cudaStream_t s, sd_half_t *y, const void *x,
    int x_is_half, float scale, size_t count);

/* embed.cu: y[i, j] = table[ids[i * l + j]] + position[j]; ids: device memory,
 * checked by the caller; y: [n, l, c] */
cudaError_t sd_cuda_embed(cudaStream_t s, sd_half_t *y, const int32_t *ids,
    const sd_half_t *table, const sd_half_t *position, int n, int l, int c);


/* random.cu: y: [count], in -1 .. 1, to time kernels on */
cudaError_t sd_cuda_random(cudaStream_t s, sd_half_t *y, size_t count);


#ifdef __cplusplus
}
#endif

#endif
