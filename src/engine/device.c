/*
 * Devices, and what the engine keeps on them: models, arenas, batches.  The
 * first device's thread opens all of them, before requests are parsed; from then
 * on each belongs to its own threads.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ops/cuda.h"
#include "../sd/packed.h"
#include "internal.h"


#define SD_CPU_SLOTS   16
#define SD_CARD_SLOTS  8


static int sd_devices_new(sd_engine_t *e, int n);
static void sd_devices_find(sd_engine_t *e);
static void sd_devices_no_memory(sd_engine_t *e);
static sd_engine_device_t *sd_devices_add(sd_engine_t *e, const char *name);
static void sd_device_failed_open(sd_engine_device_t *d);
static int sd_unit_open(sd_engine_device_t *d, sd_precision_t precision,
    sd_error_t *err);
static void sd_copy_open(sd_engine_device_t *d, size_t i);
static void sd_copy_failed(sd_engine_device_t *d, size_t i, sd_error_t *err);


/* names become devices */

void
sd_devices_open(sd_engine_t *e)
{
    int                  k;
    size_t               i;
    sd_engine_device_t  *d;

    if (sd_generation_enter(e) != SD_OK) {
        return;
    }

    sd_devices_find(e);

    for (k = 0; k < e->ndevices; k++) {
        d = &e->devices[k];

        for (i = 0; i < e->nmodels; i++) {
            sd_copy_open(d, i);
        }

        if (d->slots == 0) {
            sd_device_failed_open(d);
        }
    }

    if (e->ndevices == 0) {
        sd_devices_no_memory(e);
    }

    pthread_mutex_lock(&e->lock);
    e->opened = 1;
    sd_status_opened_locked(e);
    pthread_cond_broadcast(&e->encoder_cond);
    pthread_mutex_unlock(&e->lock);
}


static int
sd_devices_new(sd_engine_t *e, int n)
{
    int                  k;
    sd_engine_device_t  *devices;

    devices = calloc(n, sizeof(sd_engine_device_t));

    if (devices == NULL) {
        return SD_ERROR;
    }

    for (k = 0; k < n; k++) {
        devices[k].engine = e;
        devices[k].index = k;
        devices[k].copies = calloc(e->nmodels + 1, sizeof(sd_engine_copy_t));
        devices[k].runs = calloc(SD_MAX_SLOTS, sizeof(sd_run_t));

        if (devices[k].copies == NULL || devices[k].runs == NULL) {

            for ( /* void */ ; k >= 0; k--) {
                free(devices[k].copies);
                free(devices[k].runs);
            }

            free(devices);

            return SD_ERROR;
        }
    }

    pthread_mutex_lock(&e->lock);
    e->devices = devices;
    e->adevices = n;
    pthread_mutex_unlock(&e->lock);

    return SD_OK;
}


/* "auto" is all cards that can be used; where there is none, the cpu, and a
 * line in the log that says why */

static void
sd_devices_find(sd_engine_t *e)
{
    int                  k, n;
    char                 name[64];
    sd_error_t           err;
    sd_engine_device_t  *d;

    if (e->conf.ndevices && strcmp(e->conf.devices[0], "auto") != 0) {

        if (sd_devices_new(e, e->conf.ndevices) != SD_OK) {
            return;
        }

        for (k = 0; k < e->conf.ndevices; k++) {
            (void) sd_devices_add(e, e->conf.devices[k]);
        }

        return;
    }

    if (sd_cuda_cards(&n, &err) != SD_OK) {
        n = 0;
    }

    if (sd_devices_new(e, n + 1) != SD_OK) {
        return;
    }

    for (k = 0; k < n; k++) {
        snprintf(name, sizeof(name), "cuda:%d", k);
        d = sd_devices_add(e, name);

        if (sd_unit_open(d, SD_PRECISION_EXACT, &err) != SD_OK) {
            sd_engine_log(e, SD_LOG_WARN, "%s is left out: %s", name,
                          err.message);

            pthread_mutex_lock(&e->lock);
            d->units[SD_PRECISION_EXACT].failed = 0;
            e->ndevices--;
            pthread_mutex_unlock(&e->lock);
        }
    }

    if (e->ndevices == 0) {
        sd_engine_log(e, SD_LOG_NOTICE, "no GPU, the cpu computes: %s",
                      err.message);
        (void) sd_devices_add(e, "cpu");
    }
}


static void
sd_devices_no_memory(sd_engine_t *e)
{
    size_t              i;
    sd_engine_model_t  *m;

    pthread_mutex_lock(&e->lock);

    for (i = 0; i < e->nmodels; i++) {
        m = &e->models[i];
        m->state = SD_MODEL_FAILED;
        sd_fail(&m->error, "no memory for the devices");
    }

    pthread_mutex_unlock(&e->lock);

    sd_engine_log(e, SD_LOG_ERR, "no memory for the devices");
}


static sd_engine_device_t *
sd_devices_add(sd_engine_t *e, const char *name)
{
    sd_engine_device_t  *d;

    pthread_mutex_lock(&e->lock);

    d = &e->devices[e->ndevices++];

    snprintf(d->name, sizeof(d->name), "%s%s", name,
             strcmp(name, "cuda") == 0 ? ":0" : "");

    pthread_mutex_unlock(&e->lock);

    return d;
}


void
sd_devices_free(sd_engine_t *e)
{
    int                  i, k;
    size_t               n;
    sd_engine_unit_t    *u;
    sd_engine_device_t  *d;

    for (k = 0; k < e->ndevices; k++) {
        d = &e->devices[k];

        for (n = 0; n < e->nmodels; n++) {
            sd_batch_destroy(d->copies[n].batch);
            sd_model_close(d->copies[n].model);
        }

        for (i = 0; i < 2; i++) {
            u = &d->units[i];

            if (u->steps_size) {
                sd_context_free(&u->steps);
            }

            if (u->side_size) {
                sd_context_free(&u->side);
            }

            sd_device_close(u->device);
        }
    }

    /* there was room for the cpu, too, where cards were looked for */

    for (k = 0; e->devices && k < e->adevices; k++) {
        free(e->devices[k].copies);
        free(e->devices[k].runs);
    }

    free(e->devices);
}


static void
sd_device_failed_open(sd_engine_device_t *d)
{
    int  i;

    i = d->units[SD_PRECISION_EXACT].failed ? SD_PRECISION_EXACT
                                            : SD_PRECISION_BF16;

    pthread_mutex_lock(&d->engine->lock);
    d->error = d->units[i].error;
    d->state = SD_MODEL_FAILED;
    pthread_mutex_unlock(&d->engine->lock);

    sd_stats_count(d->engine->stats, SD_COUNT_DEVICE_ERRORS, 1);
}


/* opened once a precision that a model wants; an error is kept */

static int
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


/* models */

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


static void
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


/* configurations and headers: milliseconds */

static void
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


void
sd_device_failed(sd_engine_device_t *d, sd_error_t *err)
{
    int           failed;
    size_t        i;
    sd_engine_t  *e;

    e = d->engine;

    pthread_mutex_lock(&e->lock);

    failed = d->state == SD_MODEL_FAILED;

    if (!failed) {
        d->error = *err;
        d->state = SD_MODEL_FAILED;
        sd_status_changed_locked(e);
    }

    pthread_mutex_unlock(&e->lock);

    if (!failed) {
        sd_stats_count(e->stats, SD_COUNT_DEVICE_ERRORS, 1);
    }

    /* by either of the device's threads */

    for (i = 0; i < e->nmodels; i++) {
        pthread_mutex_lock(&e->lock);
        failed = d->copies[i].state == SD_MODEL_FAILED;
        pthread_mutex_unlock(&e->lock);

        if (!failed) {
            sd_copy_failed(d, i, err);
        }
    }
}


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


/* the sizes that are asked for, and the model's own, which gives the time of a
 * step; memory for the largest first, as recordings point into it */

static int
sd_copy_warm(sd_engine_device_t *d, size_t i, sd_error_t *err)
{
    int                k, rc, n;
    size_t             steps, side, most[2];
    sd_size_t          size;
    sd_engine_t       *e;
    sd_engine_copy_t  *copy;

    e = d->engine;
    copy = &d->copies[i];
    n = sd_can_record(copy->unit->device) ? e->conf.nsizes : 0;

    most[0] = most[1] = 0;

    for (k = 0; k <= n; k++) {
        if (k < n) {
            size = e->conf.sizes[k];
        } else {
            size.width = copy->model->default_width;
            size.height = copy->model->default_height;
        }

        if (sd_copy_plan(d, copy, size.width, size.height, &steps, &side, err)
            != SD_OK)
        {
            return SD_ERROR;
        }

        most[0] = steps > most[0] ? steps : most[0];
        most[1] = side > most[1] ? side : most[1];
    }

    if (sd_copy_side(d, copy, most[1], err) == NULL
        || sd_copy_steps(d, copy, most[0], err) != SD_OK)
    {
        return SD_ERROR;
    }

    for (k = 0, rc = SD_OK; k <= n && rc == SD_OK; k++) {
        if (k < n) {
            size = e->conf.sizes[k];
        } else {
            size.width = copy->model->default_width;
            size.height = copy->model->default_height;
        }

        rc = sd_copy_warm_size(d, i, size, err);

        if (rc == SD_OK && copy->nknown < SD_KNOWN_SIZES) {
            copy->known[copy->nknown++] = size;
        }
    }

    return rc;
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

    cx = sd_copy_side(d, copy, copy->steps_size, err);

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


static void
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


void
sd_device_load(sd_engine_device_t *d)
{
    size_t        i;
    sd_error_t    err;
    sd_engine_t  *e;
    sd_device_t  *device;

    e = d->engine;

    for (i = 0; i < e->nmodels && !atomic_load(&e->stopping); i++) {
        if (d->copies[i].state != SD_MODEL_FAILED) {
            sd_copy_load(d, i);
        }
    }

    /* from now on, somebody waits */

    for (i = 0; i < sizeof(d->units) / sizeof(d->units[0]); i++) {
        device = d->units[i].device;

        if (device == NULL) {
            continue;
        }

        sd_device_tune(device, 0);

        if (e->conf.cache
            && sd_device_plans(device, e->conf.cache, 1, &err) != SD_OK)
        {
            sd_engine_log(e, SD_LOG_WARN, "%s: %s", d->name, err.message);
        }
    }
}


/* memory */

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

static int
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


sd_context_t *
sd_copy_side(sd_engine_device_t *d, sd_engine_copy_t *copy, size_t size,
    sd_error_t *err)
{
    sd_engine_unit_t  *u;

    u = copy->unit;

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
