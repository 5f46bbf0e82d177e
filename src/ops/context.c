/*
 * Devices, contexts and weights: what backends have in common.
 *
 * Nothing here is shared between contexts but the device and the weights, which
 * do not change; a context belongs to one thread at a time.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "cuda.h"


static int sd_backend_find(sd_device_t **dev, const char *name, int plan,
    sd_precision_t precision, sd_error_t *err);


/* devices */

/* "cpu" and what follows a colon; ops: of a real device, or for plans only */

static int
sd_backend_find(sd_device_t **dev, const char *name, int plan,
    sd_precision_t precision, sd_error_t *err)
{
    size_t           len;
    sd_device_t     *d;
    const sd_ops_t  *ops;

    *dev = NULL;

    len = strcspn(name, ":");

    if (len == 3 && strncmp(name, "cpu", 3) == 0) {
        ops = &sd_ops_cpu;

    } else if (len == 4 && strncmp(name, "cuda", 4) == 0) {
        ops = &sd_ops_cuda_plan;

        if (!plan && sd_cuda_load(&ops, err) != SD_OK) {
            return SD_ERROR;
        }

    } else {
        return sd_fail(err, "unknown device \"%s\"", name);
    }

    d = calloc(1, sizeof(sd_device_t));
    if (d == NULL) {
        return sd_fail(err, "no memory for a device");
    }

    d->ops = ops;
    d->precision = precision;
    snprintf(d->name, sizeof(d->name), "%s", name);

    *dev = d;

    return SD_OK;
}


int
sd_device_open(sd_device_t **dev, const char *name, int threads,
    sd_precision_t precision, const char *isa, sd_error_t *err)
{
    if (sd_backend_find(dev, name, 0, precision, err) != SD_OK) {
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
    if (sd_backend_find(dev, name, 1, precision, err) != SD_OK) {
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


int
sd_device_bind(sd_device_t *dev, sd_error_t *err)
{
    if (dev->ops->bind && dev->ops->bind(dev) != SD_OK) {
        return sd_fail(err, "none of the processors of \"%s\" may be used",
                       dev->name);
    }

    return SD_OK;
}


int
sd_device_alive(sd_device_t *dev)
{
    return dev->ops->alive == NULL || dev->ops->alive(dev);
}


int
sd_device_plans(sd_device_t *dev, const char *dir, int save, sd_error_t *err)
{
    return dev->ops->plans ? dev->ops->plans(dev, dir, save, err) : SD_OK;
}


void
sd_device_tune(sd_device_t *dev, int on)
{
    if (dev->ops->tune) {
        dev->ops->tune(dev, on);
    }
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

    if (dev->ops->context_init && dev->ops->context_init(cx, size) != SD_OK) {
        cx->status = SD_ERROR;
        return SD_ERROR;
    }

    if (size == 0) {
        return SD_OK;
    }

    cx->arena.base = dev->ops->alloc(dev, size);
    if (cx->arena.base == NULL) {
        sd_context_free(cx);
        cx->status = SD_ERROR;
        return sd_no_memory(err, "no memory for an arena of %zu bytes",
                            size);
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

    if (cx->impl != NULL) {
        cx->device->ops->context_free(cx);
        cx->impl = NULL;
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
    if (w->data != NULL && !w->mapped) {
        dev->ops->free(dev, w->data, w->size);
    }

    w->data = NULL;
    w->mapped = 0;
}
