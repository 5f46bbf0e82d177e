/*
 * The threads of a device.
 *
 * DESIGN
 *
 * The step thread owns the device: it loads the models, takes pictures from the
 * queue, and moves them on, a row of their samplers in each turn.  Pictures of
 * one model and size go together, as many as the device steps together, which
 * on the cpu is one.  Who is next is a matter of time, not of turns: see
 * sd_device_share_locked().  New pictures join between two turns.
 *
 * What is beside the steps, prompts and decoding, is work of a second thread,
 * the side thread, so that the pictures which run go on meanwhile: on a card in
 * a second stream, on the cpu with half of the threads while steps have the
 * other half.  A picture has one owner, which its phase names, and who hands it
 * over waits for its stream before.
 *
 * The first device's thread opens all devices and starts the others' threads.
 */

#define _GNU_SOURCE

#include <string.h>

#include "internal.h"


static void *sd_step_thread(void *data);
static void *sd_side_thread(void *data);
static int sd_device_here(sd_engine_device_t *d, sd_error_t *err);
static void sd_device_turns(sd_engine_device_t *d, int side);
static int sd_device_next(sd_engine_device_t *d, int side, sd_run_t **runs);
static int sd_device_side_locked(sd_engine_device_t *d, sd_run_t **runs);
static int sd_device_share_locked(sd_engine_device_t *d, sd_run_t **runs);
static int sd_device_group(sd_engine_device_t *d, sd_run_t *first,
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

        if (sd_engine_thread(&d->thread, sd_step_thread, d, "sd-steps", k, &err)
            == SD_OK)
        {
            d->nthread = 1;

        } else {
            sd_device_failed(d, &err);
        }
    }

    if (e->ndevices) {
        (void) sd_step_thread(&e->devices[0]);
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
        sd_status_changed_locked(d->engine);
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

    sd_device_state(d, SD_MODEL_LOADING);

    side = sd_engine_thread(&d->side, sd_side_thread, d, "sd-side", d->index,
                            &err)
           == SD_OK;

    if (!side || sd_device_here(d, &err) != SD_OK) {
        sd_device_failed(d, &err);
    }

    sd_device_load(d);
    sd_device_state(d, SD_MODEL_READY);

    sd_device_turns(d, 0);

    if (side) {
        pthread_join(d->side, NULL);
    }

    return NULL;
}


/* both of its threads, to the processors that it may use */

static int
sd_device_here(sd_engine_device_t *d, sd_error_t *err)
{
    int  i;

    for (i = 0; i < 2; i++) {
        if (d->units[i].device) {
            return sd_device_bind(d->units[i].device, err);
        }
    }

    return SD_OK;
}


static void *
sd_side_thread(void *data)
{
    sd_error_t  err;

    if (sd_device_here(data, &err) != SD_OK) {
        sd_device_failed(data, &err);
    }

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

        n = side ? sd_device_side_locked(d, runs)
                 : sd_device_share_locked(d, runs);

        if (n) {
            break;
        }

        /* an engine that leaves shares the memory with the next one */

        if (side && atomic_load(&e->leaving) && d->state == SD_MODEL_READY) {
            sd_device_trim(d);
        }

        d->idle[side] = 1;
        pthread_cond_wait(&e->device_cond, &e->lock);
        d->idle[side] = 0;
    }

    pthread_mutex_unlock(&e->lock);

    return n;
}


static int
sd_device_owns(const sd_run_t *run, int side)
{
    return run->job && (run->phase != SD_RUN_STEP) == side;
}


/* first come, first served, but beginnings go first: they are short, and steps
 * follow */

static int
sd_device_side_locked(sd_engine_device_t *d, sd_run_t **runs)
{
    int        i, begins;
    sd_run_t  *run, *next;

    next = NULL;

    for (i = 0; i < d->slots; i++) {
        run = &d->runs[i];

        if (!sd_device_owns(run, 1)) {
            continue;
        }

        begins = run->phase == SD_RUN_BEGIN;

        if (next == NULL || begins > (next->phase == SD_RUN_BEGIN)
            || (begins == (next->phase == SD_RUN_BEGIN)
                && run->turn < next->turn))
        {
            next = run;
        }
    }

    if (next == NULL) {
        return 0;
    }

    next->turn = ++d->turns;
    runs[0] = next;

    return 1;
}


/*
 * Whose row is next: deficit round robin by predicted time (Shreedhar and
 * Varghese 1996, "Efficient fair queuing using deficit round-robin").  A flow
 * is what steps together, and its deficit, the device's time that it is owed,
 * the sum of its pictures'.  In each round a flow is given a quantum times the
 * weights of its pictures; once it has what a row of it takes, it has its turn,
 * and pays.
 *
 * Rounds are as short as it takes for one flow to have enough: so there is
 * nothing to go round for, and who needs least is next.  As long as flows want
 * turns, what they get is in the proportion of their weights, give or take a
 * row of each, whatever a row takes.  A picture that comes is owed nothing.
 */

static int
sd_device_share_locked(sd_engine_device_t *d, sd_run_t **runs)
{
    int        i, k, n, best, most, samples;
    double     owed, weight, need, least;
    sd_run_t  *run, *group[SD_MAX_SLOTS];

    static const double  weights[SD_PRIORITIES] = { 1, 2, 4 };

    best = 0;
    least = 0;

    for (i = 0; i < d->slots; i++) {
        n = sd_device_group(d, &d->runs[i], group);

        if (n == 0) {
            continue;
        }

        most = sd_copy_pictures(d, group[0]->copy);
        samples = 0;
        weight = 0;
        owed = 0;

        for (k = 0; k < n; k++) {
            samples += k < most ? group[k]->samples : 0;
            weight += weights[group[k]->job->priority];
            owed += group[k]->owed;
        }

        need = (sd_cost_row_locked(group[0]->copy, group[0]->width,
                                   group[0]->height, samples)
                - owed) / weight;

        if (best == 0 || need < least
            || (need == least && group[0]->turn < runs[0]->turn))
        {
            memcpy(runs, group, n * sizeof(sd_run_t *));
            least = need;
            best = n;
        }
    }

    if (best == 0) {
        return 0;
    }

    for (i = 0; i < d->slots && least > 0; i++) {
        run = &d->runs[i];

        if (sd_device_owns(run, 0)) {
            run->owed += least * weights[run->job->priority];
        }
    }

    /* it pays all that it has, but for what it had before and did not need */

    for (k = 0; k < best; k++) {
        runs[k]->owed = least < 0
                        ? -least * weights[runs[k]->job->priority] : 0;
    }

    most = sd_copy_pictures(d, runs[0]->copy);
    n = best < most ? best : most;

    for (k = 0; k < n; k++) {
        runs[k]->turn = ++d->turns;
    }

    return n;
}


/* those that are stepped together with this one, in the order of their turns;
 * 0 where another one of them comes before it in the table */

static int
sd_device_group(sd_engine_device_t *d, sd_run_t *first, sd_run_t **runs)
{
    int        i, k, n;
    sd_run_t  *run;

    if (!sd_device_owns(first, 0)) {
        return 0;
    }

    if (sd_copy_pictures(d, first->copy) == 1) {
        runs[0] = first;
        return 1;
    }

    for (i = 0, n = 0; i < d->slots; i++) {
        run = &d->runs[i];

        if (!sd_device_owns(run, 0) || run->copy != first->copy
            || run->width != first->width || run->height != first->height)
        {
            continue;
        }

        if (run < first) {
            return 0;
        }

        for (k = n++; k && runs[k - 1]->turn > run->turn; k--) {
            runs[k] = runs[k - 1];
        }

        runs[k] = run;
    }

    return n;
}


static void
sd_device_turn(sd_engine_device_t *d, sd_run_t **runs, int n)
{
    int           i, rc;
    sd_error_t    err, reason;
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

    /* whoever is told may ask again at once, which is not for this device */

    if (!sd_device_alive(device)) {
        sd_device_failed(d, &err);

        reason = err;
        sd_error(&err, 503, "device_failed", NULL, "the device failed: %s",
                 reason.message);
    }

    for (i = 0; i < n; i++) {
        sd_run_fail(d, runs[i], &err);
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

        if (!sd_device_owns(run, side)
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
