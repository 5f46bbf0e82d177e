/*
 * The threads of a device.
 *
 * DESIGN
 *
 * The step thread owns the device: it loads the models, takes pictures from the
 * queue, and moves them on, a row of their samplers in each turn.  Turns go
 * round: who waits longest is next, and with it go all others of the same model
 * and size, as many as the device steps together, which on the cpu is one.  New
 * pictures join between two turns.
 *
 * What is beside the steps, prompts and decoding, is on the cpu one more kind
 * of turn.  On a card it is work of a second thread, in a second stream, so
 * that the pictures which run go on meanwhile.  A picture has one owner, which
 * its phase names, and who hands it over waits for its stream before.
 *
 * The first device's thread opens all devices and starts the others' threads.
 */

#define _GNU_SOURCE

#include "internal.h"


static void *sd_step_thread(void *data);
static void *sd_side_thread(void *data);
static void sd_device_turns(sd_engine_device_t *d, int side);
static int sd_device_next(sd_engine_device_t *d, int side, sd_run_t **runs);
static int sd_device_pick_locked(sd_engine_device_t *d, int side,
    sd_run_t **runs);
static void sd_device_turn(sd_engine_device_t *d, sd_run_t **runs, int n);
static void sd_device_reap(sd_engine_device_t *d, int side);


void *
sd_device_thread(void *data)
{
    int                  k;
    sd_error_t           err;
    sd_engine_t         *e = data;
    sd_engine_device_t  *d;

    sd_devices_open(e);

    for (k = 1; k < e->ndevices; k++) {
        d = &e->devices[k];

        if (d->state == SD_MODEL_FAILED) {
            continue;
        }

        if (sd_engine_thread(&d->thread, sd_step_thread, d, "sd-cuda", k, &err)
            == SD_OK)
        {
            d->nthread = 1;

        } else {
            sd_device_failed(d, &err);
        }
    }

    if (e->ndevices) {
        d = &e->devices[0];

        if (d->has_side) {
            pthread_setname_np(pthread_self(), "sd-cuda0");
        }

        (void) sd_step_thread(d);
    }

    for (k = 1; k < e->ndevices; k++) {
        if (e->devices[k].nthread) {
            pthread_join(e->devices[k].thread, NULL);
        }
    }

    return NULL;
}


static void
sd_device_state(sd_engine_device_t *d, sd_model_state_t state)
{
    pthread_mutex_lock(&d->engine->lock);

    if (d->state != SD_MODEL_FAILED) {
        d->state = state;
    }

    pthread_cond_broadcast(&d->engine->device_cond);
    pthread_mutex_unlock(&d->engine->lock);
}


static void *
sd_step_thread(void *data)
{
    int                  side;
    sd_error_t           err;
    sd_engine_device_t  *d = data;

    side = 0;

    sd_device_state(d, SD_MODEL_LOADING);

    if (d->has_side) {
        side = sd_engine_thread(&d->side, sd_side_thread, d, "sd-side",
                                d->index, &err)
               == SD_OK;

        if (!side) {
            sd_device_failed(d, &err);
        }
    }

    sd_device_load(d);
    sd_device_state(d, SD_MODEL_READY);

    sd_device_turns(d, 0);

    if (side) {
        pthread_join(d->side, NULL);
    }

    return NULL;
}


static void *
sd_side_thread(void *data)
{
    sd_device_turns(data, 1);

    return NULL;
}


static void
sd_device_turns(sd_engine_device_t *d, int side)
{
    int        n;
    sd_run_t  *runs[SD_MAX_SLOTS];

    while ((n = sd_device_next(d, side, runs)) != 0) {
        sd_device_turn(d, runs, n);
        sd_device_reap(d, side);
    }
}


/* waits for work; the step thread lets pictures join.  0: the engine stops */

static int
sd_device_next(sd_engine_device_t *d, int side, sd_run_t **runs)
{
    int           n;
    sd_engine_t  *e;

    e = d->engine;
    n = 0;

    pthread_mutex_lock(&e->lock);

    while (!atomic_load(&e->stopping)) {

        while (!side && sd_queue_take_locked(d)) { /* void */ }

        n = sd_device_pick_locked(d, side, runs);

        if (n) {
            break;
        }

        pthread_cond_wait(&e->device_cond, &e->lock);
    }

    pthread_mutex_unlock(&e->lock);

    return n;
}


static int
sd_device_owns(const sd_engine_device_t *d, const sd_run_t *run, int side)
{
    return run->job
           && (!d->has_side || (run->phase != SD_RUN_STEP) == side);
}


static int
sd_device_pick_locked(sd_engine_device_t *d, int side, sd_run_t **runs)
{
    int        i, n, most;
    sd_run_t  *run, *next;

    next = NULL;

    for (i = 0; i < d->slots; i++) {
        run = &d->runs[i];

        if (sd_device_owns(d, run, side)
            && (next == NULL || run->turn < next->turn))
        {
            next = run;
        }
    }

    if (next == NULL) {
        return 0;
    }

    runs[0] = next;
    n = 1;

    most = next->phase == SD_RUN_STEP ? sd_copy_pictures(d, next->copy) : 1;

    /* those that it may be stepped with, in the order of their turns */

    while (n < most) {
        next = NULL;

        for (i = 0; i < d->slots; i++) {
            run = &d->runs[i];

            if (run->job && run->phase == SD_RUN_STEP
                && run->copy == runs[0]->copy
                && run->width == runs[0]->width
                && run->height == runs[0]->height
                && run->turn > runs[n - 1]->turn
                && (next == NULL || run->turn < next->turn))
            {
                next = run;
            }
        }

        if (next == NULL) {
            break;
        }

        runs[n++] = next;
    }

    for (i = 0; i < n; i++) {
        runs[i]->turn = ++d->turns;
    }

    return n;
}


static void
sd_device_turn(sd_engine_device_t *d, sd_run_t **runs, int n)
{
    int           i, rc;
    sd_error_t    err;
    sd_device_t  *device;

    rc = SD_OK;

    switch (runs[0]->phase) {

    case SD_RUN_BEGIN:
        rc = sd_run_begin(d, runs[0], &err);
        break;

    case SD_RUN_STEP:
        rc = sd_run_step(d, runs, n, &err);
        break;

    case SD_RUN_PREVIEW:
        rc = sd_run_preview(d, runs[0], &err);
        break;

    case SD_RUN_FINISH:
        rc = sd_run_finish(d, runs[0], &err);
        break;
    }

    if (rc != SD_ERROR) {
        return;
    }

    device = runs[0]->copy->unit->device;

    for (i = 0; i < n; i++) {
        sd_run_fail(d, runs[i], &err);
    }

    if (!sd_device_alive(device)) {
        sd_device_failed(d, &err);
    }
}


/* jobs that were cancelled leave at once, not when it would be their turn */

static void
sd_device_reap(sd_engine_device_t *d, int side)
{
    int           i;
    sd_run_t     *run;
    sd_engine_t  *e;

    e = d->engine;

    for (i = 0; i < d->slots; i++) {
        run = &d->runs[i];

        pthread_mutex_lock(&e->lock);

        if (!sd_device_owns(d, run, side)
            || !atomic_load(&run->job->cancelled))
        {
            run = NULL;
        }

        pthread_mutex_unlock(&e->lock);

        if (run) {
            sd_run_cancelled(d, run);
        }
    }
}
