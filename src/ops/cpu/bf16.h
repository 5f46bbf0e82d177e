/*
 * bf16: what its two sides share.  bf16.c is compiled for any machine: it
 * allocates, cuts the work into tasks and knows layouts, so that plan mode runs
 * anywhere.  bf16/ is compiled for AVX512_BF16 and AMX: the tasks.
 *
 * Activations stay F32 between operations; an operation rounds its input to
 * bf16 once, multiplies with weights that were rounded at load, and adds up in
 * fp32.  Norms, softmax, residuals and biases are fp32.
 *
 * Where neither AMX nor fast dot products are there, only weights are bf16: the
 * fp32 kernels make fp32 of them on the way, and all else is theirs.
 *
 * A panel is 32 columns; k is padded with zeros to steps of 32.  One step of a
 * panel is what two AMX tiles hold: [2 halves][16 pairs of k][16 columns][2].
 * vdpbf16ps reads the same layout.  Rows are padded to 32.
 */

#ifndef SD_CPU_BF16_H
#define SD_CPU_BF16_H

#include <string.h>

#include "cpu.h"


#define SD_BF16_K        32         /* of a step */
#define SD_BF16_ROWS     256        /* of a task */
#define SD_BF16_GROUP    20         /* panels of a task */
#define SD_BF16_STEP     640        /* channels at a time */
#define SD_BF16_QUERIES  128
#define SD_BF16_KEYS     128
#define SD_BF16_SKEW     32         /* between rows, for the cache's sets */
#define SD_BF16_CHUNK    64         /* rows that a task rounds */


typedef uint16_t  sd_bf16_t;


typedef struct {
    const float      *src[2];
    int               c[2];
    sd_bf16_t        *x;            /* [rows][ld], rows padded */
    size_t            ld;           /* not a power of two, for the cache */
    int               channels;     /* padded */
    int               in;           /* rows there are */

    int               sh, sw;       /* picture as stored, as the kernel sees */
    int               h, w;         /* it, and y's */
    int               oh, ow;
    int               r, taps, stride, up, gather;

    const float      *bias;
    const sd_bf16_t  *matrix;       /* [panel][taps][ld][32] in steps */
    int               panels, outputs, rows, block, blocks, groups;
    sd_act_t          act;
    float            *y;
    const float      *residual;
    int               amx;
} sd_bf16_product_t;


typedef struct {
    sd_tensor_t       q, k, v, o;
    int               heads, d;
    int               dk;           /* d, padded */
    size_t            ksize, vsize; /* of a head */
    sd_bf16_t        *kpack;        /* [keys, padded][dk] */
    sd_bf16_t        *vpack;        /* [kblocks][dk][SD_BF16_KEYS] */
    float             scale;
    int               causal;
    sd_tables_t       kv;
    int               k_at, v_at;
    int               lk;
    int               blocks;       /* of queries */
    int               kblocks;      /* of keys */
    int               amx;
} sd_bf16_attend_t;


/* the tasks, in bf16/ */
void sd_bf16_round(void *data, int task, char *scratch);
void sd_bf16_product(void *data, int task, char *scratch);
void sd_bf16_attend_pack(void *data, int task, char *scratch);
void sd_bf16_attend(void *data, int task, char *scratch);


/* to nearest, ties to even; what is not a number stays that */

static inline sd_bf16_t
sd_bf16(float f)
{
    uint32_t  u;

    memcpy(&u, &f, sizeof(u));

    if ((u & 0x7fffffff) > 0x7f800000) {
        return (sd_bf16_t) (u >> 16 | 0x40);
    }

    return (sd_bf16_t) ((u + 0x7fff + (u >> 16 & 1)) >> 16);
}


/* index of (k, column) in a panel */

static inline size_t
sd_bf16_at(size_t k, int column)
{
    return k / SD_BF16_K * SD_BF16_K * SD_PANEL
           + column / 16 * 16 * SD_BF16_K
           + k % SD_BF16_K / 2 * 32 + column % 16 * 2 + k % 2;
}


#endif
