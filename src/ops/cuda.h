/*
 * The cuda backend as the rest sees it: a shared object, sd_cuda.so, that is
 * loaded when a device is opened, which must be after fork() (a CUDA context
 * does not survive it).  Hosts without CUDA, and `nginx -t`, never load it:
 * what plans need, sizes of weights and of temporary memory, is here in plain C
 * and linked into both.
 */

#ifndef SD_OPS_CUDA_H
#define SD_OPS_CUDA_H

#include "ops.h"


/* bumped with ops.h: a sd_cuda.so of another build is refused */
#define SD_CUDA_ABI  3

typedef struct {
    int              abi;
    size_t           context, ops;      /* sizeof, as a second look */
    const sd_ops_t  *table;
    int            (*cards)(int *n, sd_error_t *err);
} sd_cuda_entry_t;

#define SD_CUDA_ENTRY  "sd_cuda_entry"


/* loads sd_cuda.so from the directory of the file that this code is in, once a
 * process; any thread */
int sd_cuda_load(const sd_ops_t **ops, sd_error_t *err);

/* how many cards there are, at least one; or what is missing, in words: a
 * library, the driver, a card.  Loads sd_cuda.so */
int sd_cuda_cards(int *n, sd_error_t *err);

/* plans without a device */
extern const sd_ops_t  sd_ops_cuda_plan;


/* cuda_scratch.c: how weights lie in device memory; offsets in bytes */

typedef struct {
    size_t   matrix;        /* conv: [k, r, r, c], linear and table: [k, c],
                               F16; norm: gamma [k], F32 */
    size_t   bias;          /* [k] F16; norm: beta [k], F32 */
    size_t   up;            /* conv after nearest x2: [4, k, 2, 2, c] F16, see
                               sd_cuda_pack_up(), or 0; 16/9 of the matrix,
                               which odd sizes and older chips still need */
    size_t   size;
} sd_cuda_packed_t;

void sd_cuda_packed(const sd_weight_t *w, sd_cuda_packed_t *p);

/* convolutions that the library's kernels are not for: see conv_direct.cu */
int sd_cuda_is_direct(const sd_conv2d_t *d);

/* temporary memory of operations, from the arena; empty where none is needed */
sd_tensor_t sd_cuda_conv_scratch(sd_context_t *cx, const sd_tensor_t *y,
    const sd_conv2d_t *d);
sd_tensor_t sd_cuda_linear_scratch(sd_context_t *cx, const sd_linear_t *d);
sd_tensor_t sd_cuda_attention_scratch(sd_context_t *cx,
    const sd_attention_t *d);

#define SD_CUDA_HEAD  160       /* wider ones are computed by matrix products */


#endif
