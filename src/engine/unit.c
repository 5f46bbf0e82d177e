/*
 * A device in one precision, and the memory that the pictures on it work in: an
 * arena for the step thread, and one for the side thread.
 */

#include "internal.h"


#define SD_CPU_SLOTS   16
#define SD_CARD_SLOTS  8


int
sd_unit_open(sd_engine_device_t *d, sd_precision_t precision, sd_error_t *err)
{
    int                slots;
    sd_engine_t       *e;
    sd_device_t       *device;
    sd_engine_unit_t  *u;

    e = d->engine;
    u = &d->units[precision];

    if (u->device) {
        return SD_OK;
    }

    if (u->failed) {
        *err = u->error;
        return SD_ERROR;
    }

    if (sd_device_open(&device, d->name, e->conf.threads, precision, NULL, err)
        != SD_OK)
    {
        pthread_mutex_lock(&e->lock);
        u->failed = 1;
        u->error = *err;
        pthread_mutex_unlock(&e->lock);

        return SD_ERROR;
    }

    /* without what was found out before, it is found out again */

    if (e->conf.cache && sd_device_plans(device, e->conf.cache, 0, err) != SD_OK)
    {
        sd_engine_log(e, SD_LOG_WARN, "%s: %s", d->name, err->message);
    }

    slots = e->conf.slots;

    if (slots == 0) {
        slots = device->ops->pictures > 1 ? SD_CARD_SLOTS : SD_CPU_SLOTS;
    }

    pthread_mutex_lock(&e->lock);

    u->device = device;
    d->slots = slots;

    pthread_mutex_unlock(&e->lock);

    return SD_OK;
}


void
sd_unit_free(sd_engine_unit_t *u)
{
    if (u->steps_size) {
        sd_context_free(&u->steps);
    }

    if (u->side_size) {
        sd_context_free(&u->side);
    }

    sd_device_close(u->device);
}


/* arenas grow to what the largest picture so far has needed */

static int
sd_unit_grow(sd_engine_device_t *d, sd_engine_unit_t *u, sd_context_t *cx,
    size_t *have, size_t size, sd_error_t *err)
{
    sd_counter_t  *arenas;

    arenas = &d->engine->entry->memory[SD_MEMORY_ARENAS];

    if (*have) {
        sd_context_free(cx);
        sd_stats_add(arenas, -(uint64_t) *have);
        *have = 0;
    }

    if (sd_context_init(cx, u->device, 0, size, err) != SD_OK) {
        return SD_ERROR;
    }

    *have = size;
    sd_stats_add(arenas, size);

    return SD_OK;
}


/* batches of all models share the arena, and recordings point into it */

int
sd_unit_steps(sd_engine_device_t *d, sd_engine_unit_t *u, size_t size,
    sd_error_t *err)
{
    size_t  i;

    if (size <= u->steps_size) {
        return SD_OK;
    }

    for (i = 0; i < d->engine->nmodels; i++) {
        if (d->copies[i].unit == u) {
            sd_batch_destroy(d->copies[i].batch);
            d->copies[i].batch = NULL;
        }
    }

    return sd_unit_grow(d, u, &u->steps, &u->steps_size, size, err);
}


sd_context_t *
sd_unit_side(sd_engine_device_t *d, sd_engine_unit_t *u, size_t size,
    sd_error_t *err)
{
    if (size > u->side_size
        && sd_unit_grow(d, u, &u->side, &u->side_size, size, err) != SD_OK)
    {
        return NULL;
    }

    return &u->side;
}


/* a card's are not given back: that would stop whatever it does */

void
sd_device_trim(sd_engine_device_t *d)
{
    size_t             i;
    sd_engine_unit_t  *u;

    for (i = 0; i < sizeof(d->units) / sizeof(d->units[0]); i++) {
        u = &d->units[i];

        if (u->side_size && !sd_can_record(u->device)) {
            sd_context_free(&u->side);
            sd_stats_add(&d->engine->entry->memory[SD_MEMORY_ARENAS],
                         -(uint64_t) u->side_size);
            u->side_size = 0;
        }
    }
}
