/*
 * The operations that a Stable Diffusion model is made of, and the context in
 * which they run.
 *
 * DESIGN
 *
 * A model (src/sd) is straight code over the functions below.  Each takes a
 * descriptor that says what is fused: a new fusion is a field here and a row in
 * t/unit/ops.c, never a new function.  The functions are a checking wrapper
 * (ops.c): they verify shapes once for all backends, then call the backend's
 * function of the same name.  In *plan mode* they stop there: nothing is
 * computed and no tensor has memory, but the arena goes through exactly the
 * same allocations, so its peak is what the real run will need.
 *
 * Errors are sticky.  The first failure is kept in cx->status and cx->err, and
 * from then on every operation and allocation of this context does nothing; a
 * model's function returns cx->status at its end and frees nothing: whoever
 * resets the arena does.
 *
 * Activations are NHWC, or [n, 1, rows, channels] for what has no picture
 * shape, in the backend's activation type (cpu: F32, cuda: F16).  Latents, the
 * sampler's tensors and time embeddings' tables are F32 everywhere.
 *
 * A context belongs to one thread at a time.  Weights are immutable once packed
 * and shared by all.
 */

#ifndef SD_OPS_H
#define SD_OPS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "../io/error.h"
#include "../io/safetensors.h"
#include "slot.h"


/* tensors: plain values that point into an arena, own nothing */

typedef struct {
    void       *data;           /* device memory; NULL in plan mode */
    sd_type_t   type;
    int         n, h, w, c;
    int         ld;             /* elements from one pixel to the next; == c
                                   but for views that attention reads */
    size_t      at;             /* where in the arena, also in plan mode */
} sd_tensor_t;

#define sd_empty(t)  ((t)->n == 0)


/* weights: a logical shape, and the same packed as the backend likes it */

typedef enum {
    SD_WEIGHT_CONV,             /* [k, c, r, r], bias [k] */
    SD_WEIGHT_LINEAR,           /* [k, c], bias [k] */
    SD_WEIGHT_NORM,             /* gamma [k], beta [k] in bias */
    SD_WEIGHT_TABLE             /* [k, c], rows to look up */
} sd_weight_kind_t;

typedef struct {
    sd_weight_kind_t   kind;
    int                k, c, r;
    unsigned           stride:2;     /* conv: as it will be used */
    unsigned           upsample:1;   /* conv: nearest x2 before it */
    unsigned           geglu:1;      /* linear: k = 2 x inner, value, gate */
    unsigned           has_bias:1;
    unsigned           mapped:1;     /* data is a part of somebody's file */
    int                hint;         /* conv: pixels a picture at the model's
                                        default size; a hint for the choice of
                                        algorithm, which the shape of a request
                                        must not change */
    void              *data;         /* packed; NULL in plan mode */
    size_t             size;         /* of data, also in plan mode */
} sd_weight_t;


/* the arena: first fit over one block of device memory */

typedef struct {
    size_t   offset, size;
} sd_span_t;

typedef struct {
    char       *base;           /* device memory, or NULL in plan mode */
    size_t      size;           /* SIZE_MAX in plan mode */
    size_t      peak;           /* highest byte ever used */
    sd_span_t  *used;           /* sorted by offset; host memory */
    size_t      nused, aused;
} sd_arena_t;


typedef struct sd_ops_s      sd_ops_t;
typedef struct sd_context_s  sd_context_t;


/* numbers of a backend that a run's bytes depend on, beside the inputs */

typedef enum {
    SD_PRECISION_EXACT,         /* cpu: fp32; cuda: fp16 with fp32 sums */
    SD_PRECISION_BF16           /* cpu: bf16 weights and GEMM inputs */
} sd_precision_t;


/*
 * a device: where weights and arenas live, and the threads or streams that
 * work there.  The cpu device is a pool of threads, a cuda device a card.
 */

typedef struct {
    const sd_ops_t   *ops;
    sd_precision_t    precision;
    char              name[64];         /* "cpu", "cpu:0-3", "cuda:0" */
    char              isa[32];          /* "avx512", "avx2", "baseline"; "sm_90"
                                           */
    char              numerics[96];     /* the numerics id, see DESIGN */
    int               threads;          /* that compute; 0 in plan mode */
    void             *impl;
} sd_device_t;

/*
 * name: "cpu", "cuda" or "cuda:N", or as "cpu:0-3,8": those processors alone.
 * For the cpu, threads: 0 for as many as this process may use (affinity, cgroup
 * quota, and the list).  The calling thread counts as
 * one of them while it computes; the others are created here with all signals
 * blocked, 8 MB stacks and names.  isa: NULL for the best, or one of "avx512",
 * "avx2", "baseline" (tests).  A cuda device must be opened after fork().
 */
int sd_device_open(sd_device_t **dev, const char *name, int threads,
    sd_precision_t precision, const char *isa, sd_error_t *err);
void sd_device_close(sd_device_t *dev);

/* the calling thread is to compute on the device, and keeps to its processors
 * where it has some of its own */
int sd_device_bind(sd_device_t *dev, sd_error_t *err);

/* 0: it failed for good, and nothing that it is asked for will be done */
int sd_device_alive(sd_device_t *dev);

/*
 * what a device has found out about itself, such as which of several kernels
 * is the fastest for a shape, from and to a file in a directory: a matter of
 * start-up time, never of results.  A file that is missing or of another device
 * is fine, and nothing is written where there is nothing new.
 */
int sd_device_plans(sd_device_t *dev, const char *dir, int save,
    sd_error_t *err);
/* on, at first: shapes that are new are tuned, which takes a while; off: what
 * the libraries think best will do */
void sd_device_tune(sd_device_t *dev, int on);

/* a device for plan mode: no threads, no memory, any machine */
int sd_device_plan(sd_device_t **dev, const char *name,
    sd_precision_t precision, sd_error_t *err);


/*
 * a context: an arena, and on a cuda device a stream: work of one context is
 * done in the order of the calls, and is done when the next transfer to the
 * host returns, or sd_wait().
 */

struct sd_context_s {
    sd_device_t        *device;
    void               *impl;       /* the backend's */
    sd_arena_t          arena;
    unsigned            plan:1;
    const atomic_int   *cancel;     /* NULL, or: non-zero ends the work soon */
    int                 status;     /* sticky: SD_OK, SD_ERROR, SD_CANCELLED */
    sd_error_t         *err;        /* the caller's; never NULL */
};

/* size: bytes of arena to allocate, ignored in plan mode */
int sd_context_init(sd_context_t *cx, sd_device_t *dev, int plan, size_t size,
    sd_error_t *err);
void sd_context_free(sd_context_t *cx);
/* all tensors gone, status back to SD_OK; err: where the next failure goes */
void sd_context_reset(sd_context_t *cx, sd_error_t *err,
    const atomic_int *cancel);

/* memory: 64-byte aligned; sd_free() zeroes *t and takes an empty one */
sd_tensor_t sd_alloc(sd_context_t *cx, int n, int h, int w, int c);
sd_tensor_t sd_alloc_type(sd_context_t *cx, sd_type_t type, int n, int h,
    int w, int c);
void sd_free(sd_context_t *cx, sd_tensor_t *t);
/* channels [c0, c0 + c) of t, as a view */
sd_tensor_t sd_view(sd_tensor_t t, int c0, int c);


/* weights: bytes that w will take packed (also sets w->size); any machine */
size_t sd_weight_size(sd_device_t *dev, sd_weight_t *w);
/*
 * packs; data: [k, c, r, r] or [k, c] or gamma [k]; bias: [k] or NULL; both
 * stay the caller's
 */
int sd_weight_pack(sd_device_t *dev, sd_weight_t *w, const float *data,
    const float *bias, sd_error_t *err);
void sd_weight_free(sd_device_t *dev, sd_weight_t *w);


/* host memory [n, h, w, c] F32 to t, and back; converts to t's type */
int sd_upload(sd_context_t *cx, sd_tensor_t t, const float *src);
int sd_download(sd_context_t *cx, float *dst, sd_tensor_t t);
/* U8 tensors to host bytes */
int sd_download_u8(sd_context_t *cx, uint8_t *dst, sd_tensor_t t);
/* size bytes, for device tables (slots, row numbers) and snapshots: host
 * memory to device memory, and between two places of device memory that do
 * not overlap */
int sd_put(sd_context_t *cx, void *dst, const void *src, size_t size);
int sd_copy(sd_context_t *cx, void *dst, const void *src, size_t size);

/* until all that was enqueued is done; its errors come to light here */
int sd_wait(sd_context_t *cx);


/*
 * recordings.  A device may be able to record what operations enqueue between
 * sd_record() and sd_record_end(), which then does not happen, and to replay it
 * later, with the same memory and whatever it holds by then.  Only operations
 * on device memory can be recorded: no transfers, no sd_embed().
 */
typedef struct sd_recording_s  sd_recording_t;

#define sd_can_record(dev)  ((dev)->ops->record != NULL)

int sd_record(sd_context_t *cx);
/* *r is NULL where anything has failed since sd_record() */
int sd_record_end(sd_context_t *cx, sd_recording_t **r);
int sd_replay(sd_context_t *cx, sd_recording_t *r);
void sd_recording_free(sd_device_t *dev, sd_recording_t *r);    /* or NULL */


/*
 * what each sample of a batch has for itself: n tables of one shape, wherever
 * in device memory they are; columns 0: none
 */
typedef struct {
    const void *const  *at;         /* [n], device memory; NULL in plan mode */
    int                 rows, columns;
} sd_tables_t;


/*
 * y = conv(x ++ x2) + bias + residual.  r = 1 or 3, padding r / 2, stride 1 or
 * 2 (as w says); w->upsample: x is enlarged by nearest x2 first, and h' or w'
 * may be one less than twice x's, for latents of an odd size: then the last row
 * or column of the enlarged x does not exist (as interpolate to a size does).
 * x: [n, h, w, c], x2: [n, h, w, c2] or empty, c + c2 = w->c
 * y: [n, h', w', k], residual: as y or empty; y may be residual itself
 */
typedef struct {
    sd_tensor_t         x, x2;
    const sd_weight_t  *w;
    sd_tensor_t         residual;
} sd_conv2d_t;

int sd_conv2d(sd_context_t *cx, sd_tensor_t y, const sd_conv2d_t *d);


/*
 * y = silu?(group_norm(x ++ x2 + addend)); statistics per sample and group over
 * h * w and the group's channels, biased variance (Wu and He 2018)
 * x: [n, h, w, c], x2: [n, h, w, c2] or empty; y: [n, h, w, c + c2], may be x
 * where x2 is empty
 * addend: rows of F32, or none; sample i adds columns addend_at .. addend_at +
 * c + c2 of its own
 */
typedef struct {
    sd_tensor_t         x, x2;
    const sd_weight_t  *w;
    int                 groups;
    float               eps;
    int                 silu;
    sd_tables_t         addend;
    int                 addend_at;
} sd_group_norm_t;

int sd_group_norm(sd_context_t *cx, sd_tensor_t y, const sd_group_norm_t *d);


typedef enum {
    SD_ACT_NONE,
    SD_ACT_SILU,
    SD_ACT_GELU,                /* exact, by erf */
    SD_ACT_QUICK_GELU,          /* x * sigmoid(1.702 x) */
    SD_ACT_GELU_TANH,           /* gelu_new, gelu_pytorch_tanh */
    SD_ACT_GEGLU                /* value * gelu(gate), w->geglu; y has k / 2 */
} sd_act_t;

/*
 * y = act(x w^T + bias) + residual
 * x: [n, h, w, c] read as rows, y: same rows, [.., k] (k / 2 for GEGLU), of
 * the activation type, or F32 (tables of time embeddings) where act is NONE
 * and there is no residual
 */
typedef struct {
    sd_tensor_t         x;
    const sd_weight_t  *w;
    sd_act_t            act;
    sd_tensor_t         residual;       /* as y or empty; may be y itself */
} sd_linear_t;

int sd_linear(sd_context_t *cx, sd_tensor_t y, const sd_linear_t *d);


/* y = layer_norm(x) over c (Ba et al. 2016); y may be x */
typedef struct {
    sd_tensor_t         x;
    const sd_weight_t  *w;
    float               eps;
} sd_layer_norm_t;

int sd_layer_norm(sd_context_t *cx, sd_tensor_t y, const sd_layer_norm_t *d);


/*
 * o = softmax(q k^T * scale) v, per sample and head
 * q: [n, 1, lq, heads * d], k, v: [n, 1, lk, heads * d], o: as q, packed.
 * q, k, v may be views (one fused QKV tensor).  Or k and v are empty, and
 * sample i reads both in a table of its own, [lk, columns] of the activation
 * type, from the columns k_at and v_at on.  causal: lq == lk.
 */
typedef struct {
    sd_tensor_t       q, k, v;
    int               heads;
    float             scale;
    int               causal;
    sd_tables_t       kv;
    int               k_at, v_at;
} sd_attention_t;

int sd_attention(sd_context_t *cx, sd_tensor_t o, const sd_attention_t *d);


/*
 * y[i, 0, j, :] = table[ids[i * l + j], :] + position[j, :]
 * y: [n, 1, l, c]; ids: [n * l], host memory, each in [0, table->k)
 */
typedef struct {
    const int32_t      *ids;
    const sd_weight_t  *table;
    const sd_weight_t  *position;
} sd_embed_t;

int sd_embed(sd_context_t *cx, sd_tensor_t y, const sd_embed_t *d);


/*
 * the model's input: sample slots[s].out of y, and the next one where slot s is
 * guided, become slots[s].scale_in * slots[s].x; see slot.h
 * y: [m, h, w, c]; slots: [n], device memory
 */
int sd_scale_input(sd_context_t *cx, sd_tensor_t y, const sd_slot_t *slots,
    int n);

/*
 * one row of any sampler for every slot, with guidance and noise
 * out: [m, h, w, c], the model's output; slots: [n], device memory
 */
int sd_sampler_step(sd_context_t *cx, sd_tensor_t out, const sd_slot_t *slots,
    int n);

/* x[i] = scale * noise(seeds[i], draw), x: [n, h, w, c] F32; element order of
 * the noise is NCHW, as torch draws a latent */
int sd_noise(sd_context_t *cx, sd_tensor_t x, const uint64_t *seeds,
    uint32_t draw, float scale);


/*
 * latents to a small picture: y = 127.5 (x f + bias) + 127.5, rounded, clamped
 * x: [n, h, w, c] F32; factors: [c, 3], bias: [3], host; y: [n, h, w, 3] U8
 */
int sd_preview_rgb(sd_context_t *cx, sd_tensor_t y, sd_tensor_t x,
    const float *factors, const float *bias);

/* the decoder's output to bytes, in the same way; x: [n, h, w, 3] */
int sd_image_rgb8(sd_context_t *cx, sd_tensor_t y, sd_tensor_t x);

/* y = scale * x, x: F32 or the activation type, y: the activation type */
int sd_scale(sd_context_t *cx, sd_tensor_t y, sd_tensor_t x, float scale);


/*
 * what a backend provides; all of it may rely on the wrapper's checks.
 * scratch: temporary bytes that an operation takes from the arena itself (with
 * sd_alloc_type(SD_U8) and sd_free()), also in plan mode: so it is the backend
 * that allocates, and in plan mode its functions are called with cx->plan set
 * and must return after their allocations.
 */
struct sd_ops_s {
    const char   *name;
    sd_type_t     type;                 /* of activations */
    int           pictures;             /* that are best stepped together */
    const char   *packing;              /* how weights lie in host memory: other
                                           bytes, another name; NULL: they are
                                           not there */

    int         (*open)(sd_device_t *dev, int threads, const char *isa,
                        sd_error_t *err);
    void        (*close)(sd_device_t *dev);
    /* NULL where it does not matter; see sd_device_bind() */
    int         (*bind)(sd_device_t *dev);
    /* NULL, or load and save; see sd_device_plans(), sd_device_tune() */
    int         (*plans)(sd_device_t *dev, const char *dir, int save,
                         sd_error_t *err);

    void        (*tune)(sd_device_t *dev, int on);

    /* NULL where it cannot die alone */
    int         (*alive)(sd_device_t *dev);

    /* NULL where memory is the host's; bytes of the whole device */
    int         (*memory)(sd_device_t *dev, size_t *left, size_t *total);
    void       *(*alloc)(sd_device_t *dev, size_t size);
    void        (*free)(sd_device_t *dev, void *p, size_t size);

    /* NULL, or what a context needs beside its arena, into cx->impl; size: the
       arena's, 0 where it is for transfers only */
    int         (*context_init)(sd_context_t *cx, size_t size);
    void        (*context_free)(sd_context_t *cx);

    size_t      (*weight_size)(sd_device_t *dev, const sd_weight_t *w);
    int         (*weight_pack)(sd_device_t *dev, sd_weight_t *w,
                               const float *data, const float *bias,
                               sd_error_t *err);

    int         (*upload)(sd_context_t *cx, sd_tensor_t t, const float *src);
    int         (*download)(sd_context_t *cx, float *dst, sd_tensor_t t);
    int         (*download_u8)(sd_context_t *cx, uint8_t *dst, sd_tensor_t t);
    int         (*put)(sd_context_t *cx, void *dst, const void *src,
                       size_t size);
    int         (*copy)(sd_context_t *cx, void *dst, const void *src,
                        size_t size);

    /* all NULL where what is enqueued is done at once */
    int         (*wait)(sd_context_t *cx);
    int         (*record)(sd_context_t *cx);
    int         (*record_end)(sd_context_t *cx, sd_recording_t **r);
    int         (*replay)(sd_context_t *cx, sd_recording_t *r);
    void        (*recording_free)(sd_device_t *dev, sd_recording_t *r);

    int         (*conv2d)(sd_context_t *cx, sd_tensor_t y,
                          const sd_conv2d_t *d);
    int         (*group_norm)(sd_context_t *cx, sd_tensor_t y,
                              const sd_group_norm_t *d);
    int         (*linear)(sd_context_t *cx, sd_tensor_t y,
                          const sd_linear_t *d);
    int         (*layer_norm)(sd_context_t *cx, sd_tensor_t y,
                              const sd_layer_norm_t *d);
    int         (*attention)(sd_context_t *cx, sd_tensor_t o,
                             const sd_attention_t *d);
    int         (*embed)(sd_context_t *cx, sd_tensor_t y,
                         const sd_embed_t *d);
    int         (*scale_input)(sd_context_t *cx, sd_tensor_t y,
                               const sd_slot_t *slots, int n);
    int         (*sampler_step)(sd_context_t *cx, sd_tensor_t out,
                                const sd_slot_t *slots, int n);
    int         (*noise)(sd_context_t *cx, sd_tensor_t x,
                         const uint64_t *seeds, uint32_t draw, float scale);
    int         (*preview_rgb)(sd_context_t *cx, sd_tensor_t y,
                               sd_tensor_t x, const float *factors,
                               const float *bias);
    int         (*image_rgb8)(sd_context_t *cx, sd_tensor_t y,
                              sd_tensor_t x);
    int         (*scale)(sd_context_t *cx, sd_tensor_t y, sd_tensor_t x,
                         float scale);
};


extern const sd_ops_t  sd_ops_cpu;


#endif
