/*
 * From a checkpoint's tensors to packed weights.  A part of the model is walked
 * once and twice in the same way: by sd_model_open(), which only checks names
 * and shapes against the headers and adds up sizes, and by sd_model_load(),
 * which reads and packs.  So each part has one function that names all its
 * weights, and nothing else to keep in step with it.
 *
 * Names are relative to a prefix, which sd_weights_enter() extends and
 * sd_weights_leave() cuts again.  The first error sticks, as in ops.h.  Tensors
 * that nobody asks for are ignored.
 */

#ifndef SD_WEIGHTS_H
#define SD_WEIGHTS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "../io/error.h"
#include "../io/safetensors.h"
#include "../ops/ops.h"


/* the weights of a part, in the order of the walk: who frees them needs no
 * second list */
typedef struct {
    sd_weight_t  **w;
    size_t         n, a;
} sd_weight_list_t;


/* several linear layers over one input, packed as one */
typedef struct {
    struct {
        char   name[200];       /* whole, without ".weight" */
        int    k;
    }         *part;
    int        n, a;
    int        k;               /* sum of all k */
} sd_parts_t;


typedef struct {
    sd_safetensors_t  *st;
    sd_device_t       *dev;
    int                pack;        /* 0: check only */
    sd_weight_list_t  *list;        /* filled while checking */

    char               prefix[120];

    uint64_t           parameters;
    size_t             packed;      /* bytes */
    size_t             scratch;     /* the largest tensor as fp32, bytes */

    /* packing */
    float             *buf;         /* scratch bytes, the caller's */
    uint64_t          *done;        /* parameters packed so far, or NULL */
    uint64_t           total;
    void             (*progress)(void *data, double done);
    void              *data;
    const atomic_int  *cancel;

    int                status;      /* sticky */
    sd_error_t        *err;
} sd_weights_t;


/* "name." more; returns what leave() takes */
size_t sd_weights_enter(sd_weights_t *l, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void sd_weights_leave(sd_weights_t *l, size_t mark);

/* whether the tensor "NAME.weight" is there, for old and new names */
int sd_weights_have(const sd_weights_t *l, const char *name);

/* w->stride, upsample and hint are set by the caller before */
void sd_weights_conv(sd_weights_t *l, sd_weight_t *w, const char *name, int k,
    int c, int r);
void sd_weights_linear(sd_weights_t *l, sd_weight_t *w, const char *name,
    int k, int c, int bias);
void sd_weights_norm(sd_weights_t *l, sd_weight_t *w, const char *name, int k);
void sd_weights_table(sd_weights_t *l, sd_weight_t *w, const char *name,
    int k, int c);

/* adds a layer of k outputs; returns where its outputs begin */
int sd_parts_add(sd_parts_t *p, sd_weights_t *l, const char *name, int k);
void sd_parts_free(sd_parts_t *p);
void sd_weights_parts(sd_weights_t *l, sd_weight_t *w, const sd_parts_t *p,
    int c, int bias);

void sd_weight_list_free(sd_weight_list_t *list, sd_device_t *dev);


#endif
