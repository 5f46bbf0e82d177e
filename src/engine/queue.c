/*
 * The jobs that wait for a device, first come, first served, and how a job is
 * cancelled wherever it is.  All of it under the engine's lock.
 */

#include <string.h>

#include "internal.h"


#define SD_MAX_RETRY_AFTER  3600


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


/* work ahead: steps of all pictures that run or wait, in ms of all devices */

static double
sd_queue_work_locked(sd_engine_t *e)
{
    int                  i, k, devices;
    double               ms;
    sd_job_t            *job;
    sd_run_t            *run;
    sd_engine_device_t  *d;

    ms = 0;
    devices = 0;

    for (k = 0; k < e->ndevices; k++) {
        d = &e->devices[k];
        devices += d->state == SD_MODEL_READY;

        for (i = 0; i < d->slots; i++) {
            run = &d->runs[i];

            if (run->job) {
                ms += (run->steps - run->step + 1)
                      * run->job->model->step_time;
            }
        }
    }

    for (job = e->waiting; job; job = job->next_waiting) {
        ms += (double) (job->params.images - job->next_image)
              * (job->report.steps + 1) * job->model->step_time;
    }

    return devices ? ms / devices : ms;
}


/*
 * room comes when one of the jobs ahead is done, so the time of all is divided
 * by their number
 */

int
sd_queue_retry_after(sd_engine_t *e)
{
    int     s, n;
    double  ms;

    pthread_mutex_lock(&e->lock);

    n = sd_queue_running_locked(e) + e->nwaiting;
    ms = sd_queue_work_locked(e) / (n ? n : 1);

    pthread_mutex_unlock(&e->lock);

    s = ms / 1000 + 1;

    return s > SD_MAX_RETRY_AFTER ? SD_MAX_RETRY_AFTER : s;
}


int
sd_queue_position_locked(const sd_job_t *job)
{
    int              n;
    const sd_job_t  *j;

    n = 0;

    for (j = job->engine->waiting; j; j = j->next_waiting) {
        n++;

        if (j == job) {
            return n;
        }
    }

    return 0;
}


static void
sd_queue_remove_locked(sd_job_t *job)
{
    sd_job_t     **p;
    sd_engine_t   *e;

    e = job->engine;

    for (p = &e->waiting; *p != job; p = &(*p)->next_waiting) { /* void */ }

    *p = job->next_waiting;

    if (*p == NULL) {
        e->last_waiting = p;
    }

    job->waiting = 0;
    e->nwaiting--;
}


int
sd_queue_add(sd_job_t *job, sd_error_t *err)
{
    int           rc, free, reason;
    sd_mail_t    *mail;
    sd_engine_t  *e;

    e = job->engine;
    rc = SD_OK;
    mail = sd_mail_new(SD_EVENT_QUEUED);

    pthread_mutex_lock(&e->lock);

    reason = atomic_load(&job->cancelled);
    free = sd_queue_slots_locked(e) - sd_queue_running_locked(e);

    if (reason) {
        sd_cancel_error(err, reason);
        rc = SD_ERROR;

    } else if (e->draining) {
        sd_cancel_error(err, SD_CANCEL_DRAIN);
        rc = SD_ERROR;

    } else if (job->model->state == SD_MODEL_FAILED) {
        rc = sd_error(err, 503, "model_failed", NULL, "%s",
                      job->model->error.message);

    } else if (e->nwaiting >= e->conf.queue + free) {
        rc = sd_error(err, 503, "queue_full", NULL,
                      "%d requests wait already; try again later",
                      e->nwaiting);

    } else {
        sd_job_ref(job);
        job->waiting = 1;
        job->next_image = 0;
        job->remaining = job->params.images;

        job->next_waiting = NULL;
        *e->last_waiting = job;
        e->last_waiting = &job->next_waiting;
        e->nwaiting++;

        /* who need not wait is told nothing, and before the model is loaded
         * the answer may yet be that it cannot be */

        if (mail && e->nwaiting > free && job->params.format->progressive
            && job->model->state == SD_MODEL_READY)
        {
            mail->event.position = e->nwaiting;
            mail->event.steps = job->report.steps;
            mail->event.seed = job->report.seed;
            sd_job_mail_locked(job, mail);
            mail = NULL;
        }

        pthread_cond_broadcast(&e->device_cond);
    }

    pthread_mutex_unlock(&e->lock);

    sd_mail_free(mail);

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


int
sd_queue_take_locked(sd_engine_device_t *d)
{
    sd_job_t     *job;
    sd_run_t     *run;
    sd_engine_t  *e;

    if (d->nrunning == d->slots) {
        return 0;
    }

    e = d->engine;

    for (job = e->waiting; job; job = job->next_waiting) {
        if (sd_queue_has_model(d, job) && !sd_queue_better_locked(d, job)) {
            break;
        }
    }

    if (job == NULL) {
        return 0;
    }

    for (run = d->runs; run->job; run++) { /* void */ }

    run->job = job;
    run->copy = &d->copies[job->model - e->models];
    run->image = job->next_image++;
    run->phase = SD_RUN_BEGIN;
    run->steps = job->report.steps;
    run->turn = ++d->turns;

    d->nrunning++;

    /* the next one may be for a device that has more room now, or for the
     * thread that it begins with */
    pthread_cond_broadcast(&e->device_cond);

    if (run->image == 0) {
        run->picture = job->picture;
        job->picture = NULL;
        job->admitted = sd_engine_now();
    }

    if (job->next_image == job->params.images) {

        /* the run inherits the queue's reference */
        sd_queue_remove_locked(job);

    } else {
        sd_job_ref(job);
    }

    return 1;
}


void
sd_cancel_error(sd_error_t *err, sd_cancel_t reason)
{
    switch (reason) {

    case SD_CANCEL_TIMEOUT:
        (void) sd_error(err, 504, "timeout", NULL,
                        "the time that this location allows has passed");
        break;

    case SD_CANCEL_DRAIN:
        (void) sd_error(err, 503, "draining", NULL,
                        "the server is going away; go on at another one");
        break;

    case SD_CANCEL_FAILED:
        (void) sd_fail(err, "the request failed");
        break;

    default:
        (void) sd_error(err, 499, "cancelled", NULL,
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
    int         none, runs;
    sd_error_t  err;

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
        return;
    }

    runs = job->next_image - (job->params.images - job->remaining);

    job->remaining = runs;
    sd_queue_remove_locked(job);

    if (runs == 0 && reason != SD_CANCEL_CLIENT && reason != SD_CANCEL_STOP) {
        sd_cancel_error(&err, reason);
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
sd_queue_fail(sd_engine_t *e, sd_engine_model_t *m)
{
    sd_job_t    *job, *next;
    sd_error_t   err;

    pthread_mutex_lock(&e->lock);

    for (job = e->waiting; job; job = next) {
        next = job->next_waiting;

        if (job->model == m) {
            sd_error(&err, 503, "model_failed", NULL, "%s", m->error.message);
            job->remaining = 0;
            sd_queue_remove_locked(job);
            sd_job_error_locked(job, &err);
            sd_job_unref(job);
        }
    }

    pthread_mutex_unlock(&e->lock);
}
