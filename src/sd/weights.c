/*
 * From a checkpoint's tensors to packed weights: see weights.h.
 */

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weights.h"


size_t
sd_weights_enter(sd_weights_t *l, const char *fmt, ...)
{
    size_t   mark;
    va_list  args;

    mark = strlen(l->prefix);

    va_start(args, fmt);
    vsnprintf(l->prefix + mark, sizeof(l->prefix) - mark, fmt, args);
    va_end(args);

    return mark;
}


void
sd_weights_leave(sd_weights_t *l, size_t mark)
{
    l->prefix[mark] = '\0';
}


int
sd_weights_have(const sd_weights_t *l, const char *name)
{
    char  full[400];

    snprintf(full, sizeof(full), "%s%s.weight", l->prefix, name);

    return sd_safetensors_find(l->st, full) != NULL;
}


/* NAME + suffix with exactly this shape, or an error */

static const sd_st_tensor_t *
sd_weights_find(sd_weights_t *l, const char *name, const char *suffix,
    const int *shape, int rank)
{
    int                    i, same;
    char                   full[400], want[64], got[200];
    size_t                 n;
    const sd_st_tensor_t  *t;

    if (l->status != SD_OK) {
        return NULL;
    }

    snprintf(full, sizeof(full), "%s%s", name, suffix);

    t = sd_safetensors_find(l->st, full);

    if (t == NULL) {
        l->status = sd_error(l->err, 500, "missing_tensor", full,
                             "%s: tensor \"%s\" is missing",
                             sd_safetensors_path(l->st, NULL), full);
        return NULL;
    }

    if (t->type != SD_F32 && t->type != SD_F16 && t->type != SD_BF16) {
        l->status = sd_error(l->err, 500, "unsupported_dtype", full,
                             "%s: tensor \"%s\" is neither F32 nor F16 nor "
                             "BF16", sd_safetensors_path(l->st, t), full);
        return NULL;
    }

    for (same = t->rank >= rank, i = 0; same && i < rank; i++) {
        same = t->shape[i] == shape[i];
    }

    /* old checkpoints have linear layers as 1x1 convolutions and back */

    for (i = rank; same && i < t->rank; i++) {
        same = t->shape[i] == 1 && rank > 1;
    }

    if (same) {
        return t;
    }

    for (n = 0, i = 0; i < rank; i++) {
        n += snprintf(want + n, sizeof(want) - n, i ? ", %d" : "%d", shape[i]);
    }

    for (got[0] = '\0', n = 0, i = 0; i < t->rank; i++) {
        n += snprintf(got + n, sizeof(got) - n, i ? ", %lld" : "%lld",
                      (long long) t->shape[i]);
    }

    l->status = sd_error(l->err, 500, "wrong_shape", full,
                         "%s: tensor \"%s\" has shape [%s], the config says "
                         "[%s]", sd_safetensors_path(l->st, t), full, got,
                         want);

    return NULL;
}


/*
 * the layers that make up one weight: checks, or reads them one behind the
 * other into the buffer, biases last, and packs
 */

static void
sd_weights_read(sd_weights_t *l, sd_weight_t *w, const sd_parts_t *p)
{
    int                    i, rank, shape[4];
    float                 *data, *bias;
    uint64_t               rest;
    sd_weight_t          **list;
    const sd_st_tensor_t  *t, *b;

    if (l->status != SD_OK) {
        return;
    }

    /* known when it is loaded, and then others look at it */

    if (!l->pack) {
        w->k = p->k;
    }

    rest = w->kind == SD_WEIGHT_NORM ? 1 : (uint64_t) w->c * w->r * w->r;

    if (w->kind == SD_WEIGHT_CONV) {
        rank = 4;
    } else {
        rank = w->kind == SD_WEIGHT_NORM ? 1 : 2;
    }

    shape[1] = w->c;
    shape[2] = shape[3] = w->r;

    data = l->buf;
    bias = l->buf ? l->buf + w->k * rest : NULL;

    for (i = 0; i < p->n; i++) {
        shape[0] = p->part[i].k;

        t = sd_weights_find(l, p->part[i].name, ".weight", shape, rank);
        b = w->has_bias ? sd_weights_find(l, p->part[i].name, ".bias", shape, 1)
                        : NULL;

        if (l->status == SD_OK && l->pack) {
            l->status = sd_safetensors_read_f32(l->st, t, data, l->err);
            data += t->count;

            if (l->status == SD_OK && b) {
                l->status = sd_safetensors_read_f32(l->st, b, bias, l->err);
                bias += b->count;
            }
        }

        if (l->status != SD_OK) {
            return;
        }
    }

    rest = w->k * (rest + w->has_bias);

    if (!l->pack) {
        l->parameters += rest;
        l->packed += sd_weight_size(l->dev, w);

        if (rest * sizeof(float) > l->scratch) {
            l->scratch = rest * sizeof(float);
        }

        if (l->list->n == l->list->a) {
            l->list->a = l->list->a ? 2 * l->list->a : 64;

            list = realloc(l->list->w, l->list->a * sizeof(sd_weight_t *));
            if (list == NULL) {
                l->status = sd_fail(l->err, "no memory for a model");
                return;
            }

            l->list->w = list;
        }

        l->list->w[l->list->n++] = w;
        return;
    }

    if (l->cancel && atomic_load(l->cancel)) {
        l->status = SD_CANCELLED;
        return;
    }

    l->status = sd_weight_pack(l->dev, w, l->buf, w->has_bias
                               ? l->buf + (rest - w->k) : NULL, l->err);

    if (l->done) {
        *l->done += rest;

        if (l->progress) {
            l->progress(l->data, (double) *l->done / l->total);
        }
    }
}


static void
sd_weights_one(sd_weights_t *l, sd_weight_t *w, const char *name, int k)
{
    sd_parts_t  p = { 0 };

    (void) sd_parts_add(&p, l, name, k);
    sd_weights_read(l, w, &p);
    sd_parts_free(&p);
}


void
sd_weights_conv(sd_weights_t *l, sd_weight_t *w, const char *name, int k,
    int c, int r)
{
    w->kind = SD_WEIGHT_CONV;
    w->c = c;
    w->r = r;
    w->has_bias = 1;

    sd_weights_one(l, w, name, k);
}


void
sd_weights_linear(sd_weights_t *l, sd_weight_t *w, const char *name, int k,
    int c, int bias)
{
    w->kind = SD_WEIGHT_LINEAR;
    w->c = c;
    w->r = 1;
    w->has_bias = bias;

    sd_weights_one(l, w, name, k);
}


void
sd_weights_norm(sd_weights_t *l, sd_weight_t *w, const char *name, int k)
{
    w->kind = SD_WEIGHT_NORM;
    w->c = 1;
    w->r = 1;
    w->has_bias = 1;

    sd_weights_one(l, w, name, k);
}


void
sd_weights_table(sd_weights_t *l, sd_weight_t *w, const char *name, int k,
    int c)
{
    w->kind = SD_WEIGHT_TABLE;
    w->c = c;
    w->r = 1;

    sd_weights_one(l, w, name, k);
}


int
sd_parts_add(sd_parts_t *p, sd_weights_t *l, const char *name, int k)
{
    int   at;
    void *part;

    if (l->status != SD_OK) {
        return 0;
    }

    if (p->n == p->a) {
        p->a = p->a ? 2 * p->a : 1;

        part = realloc(p->part, p->a * sizeof(*p->part));
        if (part == NULL) {
            l->status = sd_fail(l->err, "no memory for a model");
            return 0;
        }

        p->part = part;
    }

    snprintf(p->part[p->n].name, sizeof(p->part[0].name), "%s%s", l->prefix,
             name);
    p->part[p->n++].k = k;

    at = p->k;
    p->k += k;

    return at;
}


void
sd_parts_free(sd_parts_t *p)
{
    free(p->part);
    memset(p, 0, sizeof(sd_parts_t));
}


void
sd_weights_parts(sd_weights_t *l, sd_weight_t *w, const sd_parts_t *p, int c,
    int bias)
{
    w->kind = SD_WEIGHT_LINEAR;
    w->c = c;
    w->r = 1;
    w->has_bias = bias;

    sd_weights_read(l, w, p);
}


void
sd_weight_list_free(sd_weight_list_t *list, sd_device_t *dev)
{
    size_t  i;

    for (i = 0; dev && i < list->n; i++) {
        sd_weight_free(dev, list->w[i]);
    }

    free(list->w);
    memset(list, 0, sizeof(sd_weight_list_t));
}
