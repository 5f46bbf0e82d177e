/*
 * Devices, contexts, the arena and weights: what backends have in common.
 *
 * DESIGN
 *
 * The arena is one block, with a sorted list of the spans in use.  Allocation
 * takes the first gap that fits, which depends on nothing but the order of
 * calls: plan mode and the real run get the same offsets, hence the same peak.
 *
 * Nothing here is shared between contexts but the device and the weights, which
 * do not change; a context belongs to one thread at a time.
 */

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"


#define SD_ARENA_ALIGN   64
#define SD_MAX_ELEMENTS  ((size_t) 1 << 38)


static const sd_ops_t  *sd_backends[] = {
    &sd_ops_cpu
};


static int sd_backend_find(sd_device_t **dev, const char *name,
    sd_precision_t precision, sd_error_t *err);


/* devices */

static int
sd_backend_find(sd_device_t **dev, const char *name, sd_precision_t precision,
    sd_error_t *err)
{
    size_t        i, len;
    sd_device_t  *d;

    *dev = NULL;

    for (i = 0; i < sizeof(sd_backends) / sizeof(sd_backends[0]); i++) {
        len = strlen(sd_backends[i]->name);

        if (strncmp(name, sd_backends[i]->name, len) != 0
            || (name[len] != '\0' && name[len] != ':'))
        {
            continue;
        }

        d = calloc(1, sizeof(sd_device_t));
        if (d == NULL) {
            return sd_fail(err, "no memory for a device");
        }

        d->ops = sd_backends[i];
        d->precision = precision;
        snprintf(d->name, sizeof(d->name), "%s", name);

        *dev = d;
        return SD_OK;
    }

    return sd_fail(err, "unknown device \"%s\"", name);
}


int
sd_device_open(sd_device_t **dev, const char *name, int threads,
    sd_precision_t precision, const char *isa, sd_error_t *err)
{
    if (sd_backend_find(dev, name, precision, err) != SD_OK) {
        return SD_ERROR;
    }

    if ((*dev)->ops->open(*dev, threads, isa, err) != SD_OK) {
        free(*dev);
        *dev = NULL;
        return SD_ERROR;
    }

    return SD_OK;
}


int
sd_device_plan(sd_device_t **dev, const char *name, sd_precision_t precision,
    sd_error_t *err)
{
    if (sd_backend_find(dev, name, precision, err) != SD_OK) {
        return SD_ERROR;
    }

    snprintf((*dev)->isa, sizeof((*dev)->isa), "plan");
    snprintf((*dev)->numerics, sizeof((*dev)->numerics), "plan");

    return SD_OK;
}


void
sd_device_close(sd_device_t *dev)
{
    if (dev == NULL) {
        return;
    }

    if (dev->impl != NULL) {
        dev->ops->close(dev);
    }

    free(dev);
}


/* contexts */

int
sd_context_init(sd_context_t *cx, sd_device_t *dev, int plan, size_t size,
    sd_error_t *err)
{
    memset(cx, 0, sizeof(sd_context_t));

    cx->device = dev;
    cx->plan = plan ? 1 : 0;
    cx->err = err;

    if (plan) {
        cx->arena.size = SIZE_MAX;
        return SD_OK;
    }

    if (dev->impl == NULL) {
        cx->status = SD_ERROR;
        return sd_fail(err, "a plan device cannot compute");
    }

    if (size == 0) {
        return SD_OK;
    }

    cx->arena.base = dev->ops->alloc(dev, size);
    if (cx->arena.base == NULL) {
        cx->status = SD_ERROR;
        return sd_fail(err, "no memory for an arena of %zu bytes", size);
    }

    cx->arena.size = size;

    return SD_OK;
}


void
sd_context_free(sd_context_t *cx)
{
    if (cx->arena.base != NULL) {
        cx->device->ops->free(cx->device, cx->arena.base, cx->arena.size);
    }

    free(cx->arena.used);
    memset(&cx->arena, 0, sizeof(sd_arena_t));
}


void
sd_context_reset(sd_context_t *cx, sd_error_t *err, const atomic_int *cancel)
{
    cx->arena.nused = 0;
    cx->status = SD_OK;
    cx->err = err;
    cx->cancel = cancel;
}


int
sd_refuse(sd_context_t *cx, const char *op, const char *fmt, ...)
{
    char     text[256];
    va_list  args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);

    cx->status = SD_ERROR;
    sd_fail(cx->err, "%s: %s", op, text);

    return SD_ERROR;
}


/* memory */

sd_tensor_t
sd_alloc(sd_context_t *cx, int n, int h, int w, int c)
{
    return sd_alloc_type(cx, cx->device->ops->type, n, h, w, c);
}


sd_tensor_t
sd_alloc_type(sd_context_t *cx, sd_type_t type, int n, int h, int w, int c)
{
    size_t        size, at, i, elements;
    sd_span_t    *span;
    sd_arena_t   *a;
    sd_tensor_t   t;

    memset(&t, 0, sizeof(sd_tensor_t));

    if (cx->status != SD_OK) {
        return t;
    }

    if (n <= 0 || h <= 0 || w <= 0 || c <= 0 || n > SD_MAX_DIM
        || h > SD_MAX_DIM || w > SD_MAX_DIM || c > SD_MAX_DIM)
    {
        sd_refuse(cx, "alloc", "bad shape [%d, %d, %d, %d]", n, h, w, c);
        return t;
    }

    /* two dimensions are below 2^48: no product here overflows */

    elements = (size_t) n * h;

    if (elements > SD_MAX_ELEMENTS
        || (elements *= w) > SD_MAX_ELEMENTS
        || (elements *= c) > SD_MAX_ELEMENTS)
    {
        sd_refuse(cx, "alloc", "[%d, %d, %d, %d] is too big", n, h, w, c);
        return t;
    }

    size = elements * sd_type_size(type);

    if (size == 0) {
        sd_refuse(cx, "alloc", "a type that tensors cannot have");
        return t;
    }

    size = (size + SD_ARENA_ALIGN - 1) & ~((size_t) SD_ARENA_ALIGN - 1);

    a = &cx->arena;

    if (a->nused == a->aused) {
        i = a->aused ? 2 * a->aused : 64;

        span = realloc(a->used, i * sizeof(sd_span_t));
        if (span == NULL) {
            sd_refuse(cx, "alloc", "no memory for the arena's list");
            return t;
        }

        a->used = span;
        a->aused = i;
    }

    at = 0;

    for (i = 0; i < a->nused; i++) {
        if (a->used[i].offset - at >= size) {
            break;
        }

        at = a->used[i].offset + a->used[i].size;
    }

    if (size > a->size - at) {
        sd_refuse(cx, "alloc", "[%d, %d, %d, %d] does not fit the arena of %zu "
                  "bytes", n, h, w, c, a->size);
        return t;
    }

    memmove(&a->used[i + 1], &a->used[i], (a->nused - i) * sizeof(sd_span_t));

    a->used[i].offset = at;
    a->used[i].size = size;
    a->nused++;

    if (at + size > a->peak) {
        a->peak = at + size;
    }

    t.data = cx->plan ? NULL : a->base + at;
    t.type = type;
    t.n = n;
    t.h = h;
    t.w = w;
    t.c = c;
    t.ld = c;
    t.at = at;

    return t;
}


void
sd_free(sd_context_t *cx, sd_tensor_t *t)
{
    size_t       lo, hi, mid;
    sd_arena_t  *a;

    if (sd_empty(t)) {
        return;
    }

    a = &cx->arena;
    lo = 0;
    hi = a->nused;

    while (lo < hi) {
        mid = lo + (hi - lo) / 2;

        if (a->used[mid].offset < t->at) {
            lo = mid + 1;

        } else {
            hi = mid;
        }
    }

    if (lo < a->nused && a->used[lo].offset == t->at) {
        a->nused--;
        memmove(&a->used[lo], &a->used[lo + 1],
                (a->nused - lo) * sizeof(sd_span_t));

    } else if (cx->status == SD_OK) {
        sd_refuse(cx, "free", "not a tensor of this arena");
    }

    memset(t, 0, sizeof(sd_tensor_t));
}


sd_tensor_t
sd_view(sd_tensor_t t, int c0, int c)
{
    /* of an empty tensor (after an error), or out of it: an empty one */

    if (sd_empty(&t) || c0 < 0 || c <= 0 || c > t.c - c0) {
        memset(&t, 0, sizeof(sd_tensor_t));
        return t;
    }

    if (t.data != NULL) {
        t.data = (char *) t.data + (size_t) c0 * sd_type_size(t.type);
    }

    t.c = c;

    return t;
}


/* weights */

int
sd_weight_check(const sd_weight_t *w, sd_error_t *err)
{
    if (w->k <= 0 || w->k > SD_MAX_DIM) {
        return sd_fail(err, "weight: bad number of outputs %d", w->k);
    }

    if (w->kind == SD_WEIGHT_NORM) {
        return SD_OK;
    }

    if (w->c <= 0 || w->c > SD_MAX_DIM) {
        return sd_fail(err, "weight: bad number of inputs %d", w->c);
    }

    if (w->kind == SD_WEIGHT_CONV) {
        if (w->r != 1 && w->r != 3) {
            return sd_fail(err, "conv weight: no kernel of %dx%d", w->r, w->r);
        }

        if (w->stride != 1 && w->stride != 2) {
            return sd_fail(err, "conv weight: no stride of %d",
                           (int) w->stride);
        }

        if (w->upsample && (w->stride != 1 || w->r != 3)) {
            return sd_fail(err, "conv weight: upsample goes with 3x3 and "
                           "stride 1");
        }
    }

    if (w->kind == SD_WEIGHT_LINEAR && w->geglu && w->k % 2) {
        return sd_fail(err, "linear weight: odd number of geglu outputs %d",
                       w->k);
    }

    return SD_OK;
}


size_t
sd_weight_size(sd_device_t *dev, sd_weight_t *w)
{
    w->size = sd_weight_check(w, NULL) == SD_OK
              ? dev->ops->weight_size(dev, w) : 0;

    return w->size;
}


int
sd_weight_pack(sd_device_t *dev, sd_weight_t *w, const float *data,
    const float *bias, sd_error_t *err)
{
    if (sd_weight_check(w, err) != SD_OK) {
        return SD_ERROR;
    }

    if (dev->impl == NULL) {
        return sd_fail(err, "a plan device holds no weights");
    }

    w->has_bias = bias != NULL;
    w->size = dev->ops->weight_size(dev, w);

    w->data = dev->ops->alloc(dev, w->size);
    if (w->data == NULL) {
        return sd_fail(err, "no memory for %zu bytes of weights", w->size);
    }

    if (dev->ops->weight_pack(dev, w, data, bias, err) != SD_OK) {
        sd_weight_free(dev, w);
        return SD_ERROR;
    }

    return SD_OK;
}


void
sd_weight_free(sd_device_t *dev, sd_weight_t *w)
{
    if (w->data != NULL) {
        dev->ops->free(dev, w->data, w->size);
        w->data = NULL;
    }
}
