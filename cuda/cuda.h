/*
 * The cuda backend's inside.
 *
 * DESIGN
 *
 * device.c is cards and contexts, memory and transfers, recordings, and the
 * table of operations.  An operation picks its kernel: convolutions are
 * cuDNN's (conv.c), matrix products cublasLt's (gemm.c), but for the UNet's 3x3
 * and GEGLU's on Hopper, which are ours; attention is ours, or two products
 * with a softmax between for wide heads (attend.c), everything else is ours
 * (kernels.h).
 *
 * What a library computes is a *plan*: an algorithm for one shape, chosen once
 * a device by timing (tune.c) and kept.  Algorithms sum in different orders, so
 * the choice is confined to those that give the same bits whatever the batch:
 * no split over the depth, and for convolutions one size of its slices.
 *
 * A context has a stream and a workspace that its operations share, which its
 * stream's order makes safe.  Nothing allocates, waits or tunes while a
 * recording is replayed.  Plans belong to the device, under its lock.
 */

#ifndef SD_CUDA_H
#define SD_CUDA_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <cudnn.h>

#include "../src/ops/check.h"
#include "../src/ops/cuda.h"
#include "kernels.h"


#define SD_CUDA_WORKSPACE  ((size_t) 32 << 20)
#define SD_CUDA_BUCKETS    512
#define SD_CUDA_BIG        ((size_t) 64 << 20)


typedef struct sd_cuda_plan_s    sd_cuda_plan_t;
typedef struct sd_cuda_device_s  sd_cuda_device_t;


/*
 * tune.c: plans by key, and the file that keeps them from one start to the
 * next.  A key is a number of ints, zeroed before it is filled.
 */

#define SD_CUDA_KEY  16             /* ints at most */

typedef struct {
    const char        *name;        /* in the file; no spaces */
    size_t             ints;        /* of a key */
    void             (*free)(sd_cuda_plan_t *p);
    /* the choice in words, without newlines; and back, NULL where it does not
     * fit this device */
    void             (*save)(const sd_cuda_plan_t *p, char *text, size_t size);
    sd_cuda_plan_t  *(*load)(sd_cuda_device_t *dev, const int *key,
                             const char *text);
} sd_cuda_kind_t;

extern const sd_cuda_kind_t  sd_cuda_gemms, sd_cuda_convs;

struct sd_cuda_plan_s {
    const sd_cuda_kind_t  *kind;
    sd_cuda_plan_t        *next;
    int                    key[SD_CUDA_KEY];
    float                  us;      /* measured; 0: not */
};


struct sd_cuda_device_s {
    int                ordinal;
    sd_cuda_chip_t     chip;
    cublasLtHandle_t   lt;
    cudaStream_t       transfer;    /* of contexts without an arena */
    int                tune;        /* 0: the library's first choice */

    pthread_mutex_t    lock;        /* of what follows */
    sd_cuda_plan_t    *plans[SD_CUDA_BUCKETS];
    int                fresh;       /* plans that no file has yet */
};


typedef struct {
    sd_cuda_device_t  *device;
    cudaStream_t       stream;
    int                owned;       /* the stream is */
    cudnnHandle_t      cudnn;       /* NULL in a context without an arena */
    void              *workspace;   /* SD_CUDA_WORKSPACE */
} sd_cuda_context_t;


#define sd_cuda_of(cx)      ((sd_cuda_context_t *) (cx)->impl)
#define sd_cuda_stream(cx)  (sd_cuda_of(cx)->stream)


/* SD_OK, or the error in words */
int sd_cuda_done(sd_context_t *cx, cudaError_t rc, const char *what);
int sd_cuda_fail(sd_error_t *err, cudaError_t rc, const char *what);


/* tune.c; all under the device's lock */

sd_cuda_plan_t *sd_cuda_plan_find(sd_cuda_device_t *dev,
    const sd_cuda_kind_t *kind, const void *key);
void sd_cuda_plan_add(sd_cuda_device_t *dev, sd_cuda_plan_t *plan,
    const sd_cuda_kind_t *kind, const void *key);
void sd_cuda_plans_free(sd_cuda_device_t *dev);

/* as in sd_ops_t */
int sd_cuda_plans(sd_device_t *device, const char *dir, int save,
    sd_error_t *err);


/*
 * a trial: a stream and memory of random numbers to time candidates on
 */
typedef struct {
    cudaStream_t   stream;
    char          *memory;
    size_t         size;
    void          *workspace;
} sd_cuda_trial_t;

int sd_cuda_trial_begin(sd_cuda_trial_t *t, size_t size, sd_error_t *err);
void sd_cuda_trial_end(sd_cuda_trial_t *t);

/* microseconds a launch, by replays of a graph; run() enqueues launch i; < 0
 * where it failed */
float sd_cuda_trial_time(sd_cuda_trial_t *t,
    int (*run)(void *data, cudaStream_t stream, int i), void *data);


/*
 * gemm.c: y = alpha x w^T + bias + residual
 * x: [rows, depth], rows ldx apart; w: [cols, depth], ldw apart, or where
 * w_by_depth [depth, cols]; y, residual: [rows, cols], ldy apart; bias: [cols]
 */
typedef struct {
    void              *y;           /* fp16, or F32 where y_is_float */
    const sd_half_t   *x, *w, *bias, *residual;
    int                rows, cols, depth, ldx, ldw, ldy;
    int                w_by_depth, y_is_float;
    float              alpha;
} sd_cuda_gemm_t;

int sd_cuda_gemm(sd_context_t *cx, const sd_cuda_gemm_t *g);


/* weight.c, as in sd_ops_t */

size_t sd_cuda_weight_size(sd_device_t *dev, const sd_weight_t *w);
int sd_cuda_weight_pack(sd_device_t *dev, sd_weight_t *w, const float *data,
    const float *bias, sd_error_t *err);


/* operations, as in sd_ops_t */

int sd_cuda_conv2d(sd_context_t *cx, sd_tensor_t y, const sd_conv2d_t *d);
int sd_cuda_linear(sd_context_t *cx, sd_tensor_t y, const sd_linear_t *d);
int sd_cuda_attend(sd_context_t *cx, sd_tensor_t o, const sd_attention_t *d);


#endif
