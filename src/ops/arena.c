/*
 * The arena: first fit over one block of device memory.
 *
 * DESIGN
 *
 * A sorted list of the spans in use.  Allocation takes the first gap that fits,
 * which depends on nothing but the order of calls: plan mode and the real run
 * get the same offsets, hence the same peak.  Knows no backend: each links it.
 */

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"


#define SD_ARENA_ALIGN   64
#define SD_MAX_ELEMENTS  ((size_t) 1 << 38)


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
