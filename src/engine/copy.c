/*
 * A model on a device: it is opened, loaded and warmed; how much memory its
 * pictures take, and which sizes a card has kernels for.
 */

#include <stdlib.h>
#include <string.h>

#include "../sd/packed.h"
#include "internal.h"


/* the model is where its copy is that has come furthest */

static void
sd_copy_state_locked(sd_engine_device_t *d, size_t i, sd_model_state_t state)
{
    int                 k;
    sd_engine_t        *e;
    sd_model_state_t    s, best;

    e = d->engine;

    d->copies[i].state = state;

    best = SD_MODEL_FAILED;

    for (k = 0; k < e->ndevices; k++) {
        s = e->devices[k].copies[i].state;

        if (best == SD_MODEL_FAILED || (s != SD_MODEL_FAILED && s > best)) {
            best = s;
        }
    }

    e->models[i].state = best;

    if (best == SD_MODEL_FAILED) {
        e->models[i].error = e->devices[0].copies[i].error;
    }

    sd_status_changed_locked(e);
}


void
sd_copy_failed(sd_engine_device_t *d, size_t i, sd_error_t *err)
{
    int                 failed;
    sd_engine_t        *e;
    sd_engine_model_t  *m;

    e = d->engine;
    m = &e->models[i];

    sd_engine_log(e, SD_LOG_ERR, "model \"%s\" failed%s%s: %s%s%s%s", m->path,
                  e->ndevices > 1 ? " on " : "", e->ndevices > 1 ? d->name : "",
                  err->param[0] ? "\"" : "", err->param,
                  err->param[0] ? "\": " : "", err->message);

    pthread_mutex_lock(&e->lock);

    d->copies[i].error = *err;
    sd_copy_state_locked(d, i, SD_MODEL_FAILED);
    failed = m->state == SD_MODEL_FAILED;

    pthread_mutex_unlock(&e->lock);

    if (failed) {
        sd_queue_fail(e, m);
    }
}


void
sd_copy_open(sd_engine_device_t *d, size_t i)
{
    sd_error_t          err;
    sd_engine_copy_t   *copy;
    sd_engine_model_t  *m;

    m = &d->engine->models[i];
    copy = &d->copies[i];
    copy->unit = &d->units[m->precision];

    if (sd_unit_open(d, m->precision, &err) != SD_OK
        || sd_model_open(&copy->model, m->path, copy->unit->device, &err)
           != SD_OK
        || sd_texts_create(&copy->model->texts, 2 * d->slots, &err) != SD_OK)
    {
        sd_copy_failed(d, i, &err);
        return;
    }

    if (m->model == NULL) {
        pthread_mutex_lock(&d->engine->lock);
        m->model = copy->model;
        pthread_mutex_unlock(&d->engine->lock);

    } else if (strcmp(m->model->fingerprint, copy->model->fingerprint) != 0) {
        sd_fail(&err, "its files have changed meanwhile");
        sd_copy_failed(d, i, &err);
    }
}


/* loading */

/* a picture that nobody sees: pages are touched, and times are known */

static int
sd_copy_warm_size(sd_engine_device_t *d, size_t i, sd_size_t size,
    sd_error_t *err)
{
    int                 rc, n;
    double              begin, steps, start;
    uint8_t            *rgb;
    sd_params_t         params;
    sd_engine_t        *e;
    sd_picture_t       *p;
    sd_context_t       *cx;
    sd_engine_copy_t   *copy;
    sd_picture_info_t   info;

    e = d->engine;
    copy = &d->copies[i];
    cx = &copy->unit->side;

    memset(&params, 0, sizeof(sd_params_t));

    params.prompt = "a";
    params.negative_prompt = "";
    params.width = size.width;
    params.height = size.height;
    params.steps = 1;
    params.guidance = 7.5;
    params.starting_step = -1;

    if (sd_batch_prepare(copy->batch, size.width, size.height, err) != SD_OK) {
        return SD_ERROR;
    }

    rc = sd_picture_create(&p, copy->model, &params, err);
    if (rc != SD_OK) {
        return rc;
    }

    sd_picture_info(p, &info);
    n = info.evaluations;

    start = sd_engine_clock();
    rc = sd_picture_begin(p, cx, &e->stopping, err);
    begin = sd_engine_clock() - start;

    start = sd_engine_clock();

    while (rc == SD_OK && info.step == 0) {
        rc = sd_batch_row(copy->batch, &p, 1, &e->stopping, err);
        sd_picture_info(p, &info);
    }

    steps = sd_engine_clock() - start;

    if (rc == SD_OK) {
        rgb = malloc((size_t) params.width * params.height * 3);

        start = sd_engine_clock();

        rc = rgb ? sd_picture_decode(p, cx, 0, rgb, NULL, &e->stopping, err)
                 : sd_fail(err, "no memory for a picture");

        free(rgb);
    }

    if (rc == SD_OK) {
        pthread_mutex_lock(&e->lock);

        sd_cost_measured_locked(copy, SD_COST_BEGIN, size.width, size.height,
                                begin);
        sd_cost_measured_locked(copy, SD_COST_EVALUATION, size.width,
                                size.height, steps / n);
        sd_cost_measured_locked(copy, SD_COST_FINISH, size.width, size.height,
                                sd_engine_clock() - start);

        pthread_mutex_unlock(&e->lock);
    }

    sd_picture_destroy(p);

    return rc;
}


/* the n sizes that are asked for, and the model's own */

static sd_size_t
sd_copy_size(const sd_engine_device_t *d, const sd_engine_copy_t *copy, int k,
    int n)
{
    return k < n ? d->engine->conf.sizes[k]
                 : (sd_size_t) { copy->model->default_width,
                                 copy->model->default_height };
}


/* of all sizes, of which the last gives the time of a step; memory for the
 * largest first, as recordings point into it */

static int
sd_copy_warm(sd_engine_device_t *d, size_t i, sd_error_t *err)
{
    int                k, rc, n;
    size_t             steps, side, most[2];
    sd_size_t          size;
    sd_engine_copy_t  *copy;

    copy = &d->copies[i];
    n = sd_can_record(copy->unit->device) ? d->engine->conf.nsizes : 0;

    most[0] = most[1] = 0;

    for (k = 0; k <= n; k++) {
        size = sd_copy_size(d, copy, k, n);

        if (sd_copy_plan(d, copy, size.width, size.height, &steps, &side, err)
            != SD_OK)
        {
            return SD_ERROR;
        }

        most[0] = steps > most[0] ? steps : most[0];
        most[1] = side > most[1] ? side : most[1];
    }

    if (sd_unit_side(d, copy->unit, most[1], err) == NULL
        || sd_copy_steps(d, copy, most[0], err) != SD_OK)
    {
        return SD_ERROR;
    }

    for (k = 0, rc = SD_OK; k <= n && rc == SD_OK; k++) {
        size = sd_copy_size(d, copy, k, n);
        rc = sd_copy_warm_size(d, i, size, err);

        if (rc == SD_OK && copy->nknown < SD_KNOWN_SIZES) {
            copy->known[copy->nknown++] = size;
        }
    }

    return rc;
}


void
sd_copy_load(sd_engine_device_t *d, size_t i)
{
    int                 rc;
    double              step;
    int64_t             start, loaded;
    sd_error_t          err, note;
    sd_engine_t        *e;
    sd_device_t        *device;
    sd_packed_how_t     how;
    sd_engine_copy_t   *copy;
    sd_engine_model_t  *m;

    static const char *const  hows[] = {
        "packed", "packed into a file", "found in a file"
    };

    e = d->engine;
    m = &e->models[i];
    copy = &d->copies[i];
    device = copy->unit->device;

    start = sd_engine_now();

    pthread_mutex_lock(&e->lock);
    sd_copy_state_locked(d, i, SD_MODEL_LOADING);
    pthread_mutex_unlock(&e->lock);

    rc = sd_packed_load(copy->model, device, e->conf.cache, &e->stopping, &how,
                        &note, &err);

    loaded = sd_engine_now();

    if (rc == SD_OK) {
        if (note.status) {
            sd_engine_log(e, SD_LOG_WARN, "packed weights: %s%s", note.message,
                          how == SD_PACKED_NONE ? "" : "; made anew");
        }

        rc = sd_copy_warm(d, i, &err);
    }

    if (rc == SD_CANCELLED) {
        return;
    }

    if (rc != SD_OK) {
        sd_copy_failed(d, i, &err);
        return;
    }

    pthread_mutex_lock(&e->lock);
    m->load_time = sd_engine_now() - start;
    sd_stats_add(&e->entry->memory[SD_MEMORY_WEIGHTS],
                 copy->model->packed_bytes);
    sd_copy_state_locked(d, i, SD_MODEL_READY);
    step = sd_cost_step_locked(e, m, copy->model->default_width,
                               copy->model->default_height);
    pthread_mutex_unlock(&e->lock);

    sd_engine_log(e, SD_LOG_NOTICE, "model \"%s\" is ready: %.1f MB %s, "
                  "loaded in %.2fs, warm in %.2fs, %.0f ms a step, %s %s, %s",
                  m->path, copy->model->packed_bytes / 1e6, hows[how],
                  (loaded - start) / 1e3, (sd_engine_now() - loaded) / 1e3,
                  step, device->name, device->isa, device->numerics);
}


/* pictures */

int
sd_copy_pictures(sd_engine_device_t *d, const sd_engine_copy_t *copy)
{
    int  n;

    n = copy->unit->device->ops->pictures;

    return n < d->slots ? n : d->slots;
}


/* a walk through the model, and most pictures are of one size */

int
sd_copy_plan(sd_engine_device_t *d, sd_engine_copy_t *copy, int width,
    int height, size_t *steps, size_t *side, sd_error_t *err)
{
    size_t        prompt, decode;
    sd_device_t  *device;

    if (width != copy->width || height != copy->height) {

        device = copy->unit->device;
        copy->width = 0;

        if (sd_batch_plan(copy->model, device, width, height,
                          sd_copy_pictures(d, copy), steps, err)
            != SD_OK
            || sd_model_plan(copy->model, device, width, height, NULL, &prompt,
                             &decode, err)
               != SD_OK)
        {
            return SD_ERROR;
        }

        copy->width = width;
        copy->height = height;
        copy->steps_size = *steps;
        copy->side_size = prompt > decode ? prompt : decode;
    }

    *steps = copy->steps_size;
    *side = copy->side_size;

    return SD_OK;
}


int
sd_copy_steps(sd_engine_device_t *d, sd_engine_copy_t *copy, size_t size,
    sd_error_t *err)
{
    sd_engine_unit_t  *u;

    u = copy->unit;

    if (sd_unit_steps(d, u, size, err) != SD_OK) {
        return SD_ERROR;
    }

    return copy->batch ? SD_OK
                       : sd_batch_create(&copy->batch, copy->model, &u->steps,
                                         sd_copy_pictures(d, copy), err);
}


int
sd_copy_rehearse(sd_engine_device_t *d, sd_engine_copy_t *copy, sd_size_t size,
    sd_error_t *err)
{
    int            k;
    sd_context_t  *cx;

    if (!sd_can_record(copy->unit->device)) {
        return SD_OK;
    }

    for (k = 0; k < copy->nknown && k < SD_KNOWN_SIZES; k++) {
        if (copy->known[k].width == size.width
            && copy->known[k].height == size.height)
        {
            return SD_OK;
        }
    }

    cx = sd_unit_side(d, copy->unit, copy->steps_size, err);

    if (cx == NULL
        || sd_batch_rehearse(copy->model, cx, sd_copy_pictures(d, copy),
                             size.width, size.height, err)
           != SD_OK)
    {
        return SD_ERROR;
    }

    copy->known[copy->nknown++ % SD_KNOWN_SIZES] = size;

    return SD_OK;
}
