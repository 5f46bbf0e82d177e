/*
 * What the engine tells about itself, into the memory of stats.h, whenever it
 * has changed.  Under the engine's lock.
 */

#include <stdlib.h>

#include "internal.h"


#define sd_store(p, v)  atomic_store_explicit(p, v, memory_order_relaxed)


/* without room, or without a zone at all, it tells nobody */

int
sd_status_start(sd_engine_t *e, sd_error_t *err)
{
    size_t  size;

    if (e->conf.stats == NULL) {
        size = sd_stats_size(1);

        e->own_stats = calloc(1, size);
        if (e->own_stats == NULL) {
            return sd_fail(err, "no memory for the engine");
        }

        sd_stats_init(e->own_stats, size);
        e->conf.stats = e->own_stats;
    }

    e->stats = e->conf.stats;
    e->entry = sd_stats_take(e->stats, e->conf.cycle);

    if (e->entry == NULL) {
        sd_engine_log(e, SD_LOG_WARN, "%d engines live: no room in the zone "
                      "for what this one tells", e->stats->nengines);

        e->own_entry = calloc(1, sizeof(sd_stats_engine_t));
        if (e->own_entry == NULL) {
            return sd_fail(err, "no memory for the engine");
        }

        e->entry = e->own_entry;
    }

    sd_store(&e->entry->started, e->started);
    sd_store(&e->entry->limit, e->conf.queue);
    sd_store(&e->entry->work_limit_ms, e->conf.queue_time);
    sd_stats_count(e->stats, SD_COUNT_STARTS, 1);

    atomic_store(&e->entry->state, SD_ENGINE_RUNNING);

    return SD_OK;
}


void
sd_status_stop(sd_engine_t *e)
{
    if (e->entry) {
        sd_stats_give(e->entry);
    }

    free(e->own_entry);
    free(e->own_stats);
}


void
sd_status_leave(sd_engine_t *e, sd_engine_state_t state)
{
    atomic_store(&e->entry->state, state);
}


/* the devices and models that there are: all texts but those of failures */

void
sd_status_opened_locked(sd_engine_t *e)
{
    int                     i, k, ndevices, nmodels;
    sd_model_t             *model;
    sd_device_t            *device;
    sd_stats_model_t       *m;
    sd_stats_device_t      *d;

    ndevices = e->ndevices < SD_STATS_DEVICES ? e->ndevices : SD_STATS_DEVICES;
    nmodels = (int) e->nmodels;
    nmodels = nmodels < SD_STATS_MODELS ? nmodels : SD_STATS_MODELS;

    for (k = 0; k < ndevices; k++) {
        d = &e->entry->devices[k];

        sd_stats_string(d->name, sizeof(d->name), e->devices[k].name);

        for (i = 0; i < 2; i++) {
            device = e->devices[k].units[i].device;

            if (device) {
                sd_stats_string(d->isa, sizeof(d->isa), device->isa);
                sd_stats_string(d->numerics[i], sizeof(d->numerics[i]),
                                device->numerics);
                d->threads = device->threads;
            }
        }
    }

    for (i = 0; i < nmodels; i++) {
        m = &e->entry->models[i];
        model = e->models[i].model;

        sd_stats_string(m->path, sizeof(m->path), e->models[i].path);
        sd_stats_string(m->precision, sizeof(m->precision),
                        e->models[i].precision == SD_PRECISION_BF16 ? "bf16"
                                                                  : "exact");
        if (model == NULL) {
            continue;
        }

        sd_stats_string(m->name, sizeof(m->name), model->name);
        sd_stats_string(m->fingerprint, sizeof(m->fingerprint),
                        model->fingerprint);
        sd_stats_string(m->numerics, sizeof(m->numerics),
                        model->device->numerics);

        m->width = model->default_width;
        m->height = model->default_height;
        m->parameters = model->parameters;
        m->file_bytes = model->file_bytes;
        m->packed_bytes = model->packed_bytes;
    }

    sd_status_changed_locked(e);

    atomic_store(&e->entry->ndevices, ndevices);
    atomic_store(&e->entry->nmodels, nmodels);
}


/* what a device that has failed failed of: itself, or the first of its models
 * that did */

static const sd_error_t *
sd_status_device_error(const sd_engine_t *e, const sd_engine_device_t *d)
{
    int     i;
    size_t  k;

    static const sd_error_t  none;

    for (i = 0; i < 2; i++) {
        if (d->units[i].failed) {
            return &d->units[i].error;
        }
    }

    for (k = 0; k < e->nmodels; k++) {
        if (d->copies[k].state == SD_MODEL_FAILED) {
            return &d->copies[k].error;
        }
    }

    return &none;
}


/* microseconds; 0: not known yet */

static int
sd_status_step_locked(const sd_engine_t *e, const sd_engine_model_t *m)
{
    return m->model ? sd_cost_step_locked(e, m, m->model->default_width,
                                          m->model->default_height) * 1000
                    : 0;
}


void
sd_status_changed_locked(sd_engine_t *e)
{
    int                  i, k, ready;
    size_t               prompts;
    sd_stats_model_t    *m;
    sd_stats_device_t   *s;
    sd_engine_device_t  *d;

    prompts = 0;
    ready = 0;

    for (k = 0; k < e->ndevices && k < SD_STATS_DEVICES; k++) {
        d = &e->devices[k];
        s = &e->entry->devices[k];

        sd_store(&s->slots, d->slots);
        sd_store(&s->running, d->nrunning);

        for (i = 0; i < (int) e->nmodels && i < SD_STATS_MODELS; i++) {
            sd_store(&s->copies[i], d->copies[i].state);

            if (e->opened && d->copies[i].model) {
                prompts += sd_texts_memory(d->copies[i].model->texts);
            }
        }

        ready += d->state == SD_MODEL_READY;

        if (d->state == SD_MODEL_FAILED
            && atomic_load(&s->state) != SD_MODEL_FAILED)
        {
            sd_stats_error(&s->error, sd_status_device_error(e, d));
        }

        atomic_store(&s->state, d->state);
    }

    for (i = 0; i < (int) e->nmodels && i < SD_STATS_MODELS; i++) {
        m = &e->entry->models[i];

        sd_store(&m->load_ms, e->models[i].load_time);
        sd_store(&m->step_us, sd_status_step_locked(e, &e->models[i]));

        if (e->models[i].state == SD_MODEL_FAILED
            && atomic_load(&m->state) != SD_MODEL_FAILED)
        {
            sd_stats_error(&m->error, &e->models[i].error);
        }

        atomic_store(&m->state, e->models[i].state);
    }

    sd_store(&e->entry->waiting, e->nwaiting);
    sd_store(&e->entry->work_ms, ready ? e->queued / ready : e->queued);
    sd_store(&e->entry->memory[SD_MEMORY_PROMPTS], prompts);
}
