/*
 * The jobs that wait for a device, and how a job is cancelled wherever it is.
 * All of it under the engine's lock.
 *
 * DESIGN
 *
 * Each priority has a queue, first come, first served.  Which of the queues is
 * next is a matter of weights, 4:2:1, so that nobody starves: a queue whose
 * picture is taken passes for as long as its weight is small, and the one that
 * has passed least is next (stride scheduling, Waldspurger and Weihl 1995).  One
 * that was empty has saved nothing: it begins where the others are, and between
 * equals the higher priority comes first.
 */

#include <string.h>

#include "internal.h"


/* by sd_priority_t: how much a picture that is taken counts against its queue */
static const int  sd_queue_stride[SD_PRIORITIES] = { 4, 2, 1 };


void
sd_queue_init(sd_engine_t *e)
{
    int  k;

    for (k = 0; k < SD_PRIORITIES; k++) {
        e->queues[k].last = &e->queues[k].first;
    }
}


void
sd_queue_free(sd_engine_t *e)
{
    int        k;
    sd_job_t  *job;

    for (k = 0; k < SD_PRIORITIES; k++) {
        while ((job = e->queues[k].first) != NULL) {
            e->queues[k].first = job->next_waiting;
            sd_job_unref(job);
        }
    }
}


void
sd_queue_walk_locked(sd_queue_walk_t *w, const sd_engine_t *e)
{
    int  k;

    for (k = 0; k < SD_PRIORITIES; k++) {
        w->job[k] = e->queues[k].first;
        w->image[k] = w->job[k] ? w->job[k]->next_image : 0;
        w->pass[k] = e->queues[k].pass;
    }
}


sd_job_t *
sd_queue_walk_next(sd_queue_walk_t *w, int *image)
{
    int        i, k;
    sd_job_t  *job;

    k = -1;

    for (i = SD_PRIORITIES - 1; i >= 0; i--) {
        if (w->job[i] && (k == -1 || w->pass[i] < w->pass[k])) {
            k = i;
        }
    }

    if (k == -1) {
        return NULL;
    }

    job = w->job[k];
    *image = w->image[k]++;
    w->pass[k] += sd_queue_stride[k];

    if (w->image[k] == job->params.images) {
        w->job[k] = job->next_waiting;
        w->image[k] = w->job[k] ? w->job[k]->next_image : 0;
    }

    return job;
}


int
sd_queue_running_locked(const sd_engine_t *e)
{
    int  k, n;

    for (k = 0, n = 0; k < e->ndevices; k++) {
        n += e->devices[k].nrunning;
    }

    return n;
}


int
sd_queue_slots_locked(const sd_engine_t *e)
{
    int  k, n;

    for (k = 0, n = 0; k < e->ndevices; k++) {
        if (e->devices[k].state != SD_MODEL_FAILED) {
            n += e->devices[k].slots;
        }
    }

    return n;
}


int
sd_queue_devices_locked(const sd_engine_t *e)
{
    int  k, n;

    for (k = 0, n = 0; k < e->ndevices; k++) {
        n += e->devices[k].state == SD_MODEL_READY;
    }

    return n ? n : 1;
}


void
sd_queue_weigh_locked(sd_job_t *job, double work)
{
    sd_engine_t  *e;

    e = job->engine;

    e->queued += work - job->queued;
    job->queued = work;

    if (e->nwaiting == 0) {
        e->queued = 0;
    }
}


static void
sd_queue_remove_locked(sd_job_t *job)
{
    sd_job_t    **p;
    sd_queue_t   *q;

    q = &job->engine->queues[job->priority];

    for (p = &q->first; *p != job; p = &(*p)->next_waiting) { /* void */ }

    *p = job->next_waiting;

    if (*p == NULL) {
        q->last = p;
    }

    q->n--;
    job->waiting = 0;
    job->engine->nwaiting--;
    sd_queue_weigh_locked(job, 0);
    sd_status_changed_locked(job->engine);
}


static void
sd_queue_append_locked(sd_job_t *job)
{
    sd_queue_t   *q;
    sd_engine_t  *e;

    e = job->engine;
    q = &e->queues[job->priority];

    if (q->n == 0 && q->pass < e->pass) {
        q->pass = e->pass;
    }

    sd_job_ref(job);

    job->next_waiting = NULL;
    *q->last = job;
    q->last = &job->next_waiting;

    q->n++;
    job->waiting = 1;
    e->nwaiting++;
    sd_status_changed_locked(e);
}


int
sd_queue_free_locked(const sd_engine_t *e)
{
    return sd_queue_slots_locked(e) - sd_queue_running_locked(e);
}


static int
sd_queue_loading(sd_error_t *err)
{
    return sd_error(err, 503, "warming_up", NULL,
                    "the model is being loaded; try again later");
}


int
sd_queue_warming(sd_job_t *job, sd_error_t *err)
{
    int           reason;
    sd_engine_t  *e;

    e = job->engine;

    pthread_mutex_lock(&e->lock);

    reason = atomic_load(&job->cancelled);

    if (reason || e->draining) {
        (void) sd_cancel_error(err, reason ? (sd_cancel_t) reason
                                           : SD_CANCEL_DRAIN);

    } else if (e->conf.loading_fails) {
        (void) sd_queue_loading(err);

    } else {
        (void) sd_error(err, 503, "queue_full", NULL, "too many requests wait "
                        "for the model already; try again later");
    }

    pthread_mutex_unlock(&e->lock);

    return SD_ERROR;
}


static int
sd_queue_full_locked(const sd_job_t *job, sd_error_t *err)
{
    const sd_engine_t  *e;

    e = job->engine;

    if (e->draining) {
        return sd_cancel_error(err, SD_CANCEL_DRAIN);
    }

    if (job->model->state == SD_MODEL_FAILED) {
        return sd_error(err, 503, "model_failed", NULL, "%s",
                        job->model->error.message);
    }

    if (job->model->state != SD_MODEL_READY && e->conf.loading_fails) {
        return sd_queue_loading(err);
    }

    if (e->nwaiting >= e->conf.queue + sd_queue_free_locked(e)) {
        return sd_error(err, 503, "queue_full", NULL,
                        "%d requests wait already; try again later",
                        e->nwaiting);
    }

    return SD_OK;
}


int
sd_queue_full(sd_job_t *job, sd_error_t *err)
{
    int  rc;

    pthread_mutex_lock(&job->engine->lock);
    rc = sd_queue_full_locked(job, err);
    pthread_mutex_unlock(&job->engine->lock);

    return rc;
}


/* the same by time; one may always wait, whatever it takes */

static int
sd_queue_long_locked(sd_job_t *job, double work, sd_error_t *err)
{
    int           devices;
    sd_engine_t  *e;

    e = job->engine;
    devices = sd_queue_devices_locked(e);

    if (e->conf.queue_time == 0 || e->nwaiting == 0
        || e->nwaiting < sd_queue_free_locked(e)
        || (e->queued + work) / devices <= e->conf.queue_time)
    {
        return SD_OK;
    }

    return sd_error(err, 503, "queue_full", NULL, "%.0f seconds of work wait "
                    "already; try again later", e->queued / devices / 1000);
}


int
sd_queue_add(sd_job_t *job, sd_error_t *err)
{
    int           rc, reason;
    double        work;
    sd_engine_t  *e;

    e = job->engine;
    rc = SD_OK;

    pthread_mutex_lock(&e->lock);

    reason = atomic_load(&job->cancelled);
    work = sd_cost_job_locked(job) * job->params.images;

    if (reason) {
        rc = sd_cancel_error(err, reason);

    } else if (sd_queue_full_locked(job, err) != SD_OK
               || sd_queue_long_locked(job, work, err) != SD_OK)
    {
        rc = SD_ERROR;

    } else {
        job->next_image = 0;
        job->remaining = job->params.images;

        sd_queue_append_locked(job);
        sd_queue_weigh_locked(job, work);

        pthread_cond_broadcast(&e->device_cond);
    }

    pthread_mutex_unlock(&e->lock);

    return rc;
}


static int
sd_queue_has_model(const sd_engine_device_t *d, const sd_job_t *job)
{
    return d->copies[job->model - d->engine->models].state == SD_MODEL_READY;
}


/* another device has more room for it, and takes it before its next turn */

static int
sd_queue_better_locked(const sd_engine_device_t *d, const sd_job_t *job)
{
    int                        k;
    const sd_engine_device_t  *o;

    for (k = 0; k < d->engine->ndevices; k++) {
        o = &d->engine->devices[k];

        if (o->state == SD_MODEL_READY && sd_queue_has_model(o, job)
            && o->slots - o->nrunning > d->slots - d->nrunning)
        {
            return 1;
        }
    }

    return 0;
}


/* of the first ones that this device can take, the one whose turn it is */

static sd_job_t *
sd_queue_next_locked(const sd_engine_device_t *d)
{
    int                k;
    sd_job_t          *job, *next;
    const sd_queue_t  *q, *queues;

    next = NULL;
    queues = d->engine->queues;

    for (k = SD_PRIORITIES - 1; k >= 0; k--) {
        q = &queues[k];

        for (job = q->first; job; job = job->next_waiting) {
            if (sd_queue_has_model(d, job) && !sd_queue_better_locked(d, job)) {
                break;
            }
        }

        if (job && (next == NULL || q->pass < queues[next->priority].pass)) {
            next = job;
        }
    }

    return next;
}


int
sd_queue_take_locked(sd_engine_device_t *d)
{
    sd_job_t     *job;
    sd_run_t     *run;
    sd_queue_t   *q;
    sd_engine_t  *e;

    if (d->nrunning == d->slots) {
        return 0;
    }

    e = d->engine;
    job = sd_queue_next_locked(d);

    if (job == NULL) {
        return 0;
    }

    q = &e->queues[job->priority];

    e->pass = q->pass > e->pass ? q->pass : e->pass;
    q->pass += sd_queue_stride[job->priority];

    for (run = d->runs; run->job; run++) { /* void */ }

    run->job = job;
    run->copy = &d->copies[job->model - e->models];
    run->image = job->next_image++;
    run->phase = SD_RUN_BEGIN;
    run->first = job->info.info.step;
    run->step = job->info.info.step;
    run->steps = job->info.info.steps;
    run->evaluations = job->info.info.evaluations;
    run->turn = ++d->turns;

    d->nrunning++;
    sd_status_changed_locked(e);

    /* the next one may be for a device that has more room now, or for the
     * thread that it begins with */
    pthread_cond_broadcast(&e->device_cond);

    if (run->image == 0) {
        run->picture = job->picture;
        job->picture = NULL;
        job->admitted = sd_engine_now();
        sd_stats_observe(e->stats, SD_TIME_QUEUE,
                         (job->admitted - job->arrived) * 1000);
    }

    if (job->next_image == job->params.images) {

        /* the run inherits the queue's reference */
        sd_queue_remove_locked(job);

    } else {
        sd_queue_weigh_locked(job, job->queued - job->queued
                              / (job->params.images - run->image));
        sd_job_ref(job);
    }

    return 1;
}


int
sd_cancel_error(sd_error_t *err, sd_cancel_t reason)
{
    switch (reason) {

    case SD_CANCEL_TIMEOUT:
        return sd_error(err, 504, "timeout", NULL,
                        "the time that it may take has passed");

    case SD_CANCEL_DRAIN:
        return sd_error(err, 503, "draining", NULL,
                        "the server is going away; go on at another one");

    case SD_CANCEL_FAILED:
        return sd_fail(err, "the request failed");

    default:
        return sd_error(err, 499, "cancelled", NULL,
                        "the request was cancelled");
    }
}


/*
 * A job that has runs is ended by those who have them, within a step: the
 * operations look at job->cancelled.  One that merely waits ends here.
 */

void
sd_queue_cancel_locked(sd_job_t *job, sd_cancel_t reason)
{
    int           none, runs;
    sd_error_t    err;
    sd_engine_t  *e;

    e = job->engine;
    none = SD_CANCEL_NONE;

    if (reason != SD_CANCEL_CLIENT && reason != SD_CANCEL_STOP
        && job->report.steps && !job->waiting && job->remaining == 0)
    {
        /* all done but for the sending */
        return;
    }

    if (!atomic_compare_exchange_strong(&job->cancelled, &none, reason)) {
        if (reason == SD_CANCEL_CLIENT || reason == SD_CANCEL_STOP) {
            atomic_store(&job->cancelled, reason);
        }

        return;
    }

    if (!job->waiting) {

        if (!e->opened) {
            pthread_cond_broadcast(&e->encoder_cond);
        }

        return;
    }

    runs = job->next_image - (job->params.images - job->remaining);

    job->remaining = runs;
    sd_queue_remove_locked(job);

    if (runs == 0 && reason != SD_CANCEL_CLIENT && reason != SD_CANCEL_STOP) {
        (void) sd_cancel_error(&err, reason);
        sd_job_error_locked(job, &err);
    }

    /* the caller holds another reference */
    sd_job_unref(job);
}


void
sd_queue_cancel(sd_job_t *job, sd_cancel_t reason)
{
    pthread_mutex_lock(&job->engine->lock);
    sd_queue_cancel_locked(job, reason);
    pthread_mutex_unlock(&job->engine->lock);
}


void
sd_queue_cancel_all_locked(sd_engine_t *e, sd_cancel_t reason)
{
    int        k;
    sd_job_t  *job, *next;

    for (k = 0; k < SD_PRIORITIES; k++) {
        for (job = e->queues[k].first; job; job = next) {
            next = job->next_waiting;

            sd_job_ref(job);
            sd_queue_cancel_locked(job, reason);
            sd_job_unref(job);
        }
    }
}


void
sd_queue_fail(sd_engine_t *e, sd_engine_model_t *m)
{
    int          k;
    sd_job_t    *job, *next;
    sd_error_t   err;

    pthread_mutex_lock(&e->lock);

    for (k = 0; k < SD_PRIORITIES; k++) {
        for (job = e->queues[k].first; job; job = next) {
            next = job->next_waiting;

            if (job->model != m) {
                continue;
            }

            sd_error(&err, 503, "model_failed", NULL, "%s", m->error.message);
            job->remaining = 0;
            sd_queue_remove_locked(job);
            sd_job_error_locked(job, &err);
            sd_job_unref(job);
        }
    }

    pthread_mutex_unlock(&e->lock);
}
