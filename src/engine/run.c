/*
 * A picture on a device, from its prompt to its last byte: what is done in each
 * of its turns, and what is mailed about it.  Nothing here waits for anyone.
 *
 * A run that is handed to the device's other thread, or ended, may be gone the
 * moment after: see sd_run_t.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"


/* whether an event ends its image */

typedef enum {
    SD_GOES_ON,
    SD_ENDS,
    SD_ENDS_EARLY               /* the last one is an error or a handoff */
} sd_ends_t;


typedef struct {
    double  start;
    int     beside;             /* the device's other thread works, too */
} sd_run_clock_t;


static int sd_run_stepped(sd_engine_device_t *d, sd_run_t *run,
    sd_error_t *err);
static int sd_run_show(sd_engine_device_t *d, sd_run_t *run, sd_error_t *err);


/* hands it over, to the device's other thread maybe */

static void
sd_run_phase(sd_engine_device_t *d, sd_run_t *run, sd_phase_t phase)
{
    pthread_mutex_lock(&d->engine->lock);

    run->phase = phase;
    pthread_cond_broadcast(&d->engine->device_cond);

    pthread_mutex_unlock(&d->engine->lock);
}


/* how long work takes, for that to come */

static int
sd_run_beside_locked(const sd_engine_device_t *d, const sd_run_t *run,
    sd_cost_what_t what)
{
    return !sd_can_record(run->copy->unit->device)
           && !d->idle[what == SD_COST_EVALUATION];
}


static void
sd_run_clock(sd_engine_device_t *d, const sd_run_t *run, sd_cost_what_t what,
    sd_run_clock_t *clock)
{
    pthread_mutex_lock(&d->engine->lock);
    clock->beside = sd_run_beside_locked(d, run, what);
    pthread_mutex_unlock(&d->engine->lock);

    clock->start = sd_engine_clock();
}


/* n: of a kind.  The cpu's threads are shared evenly with what the device's
 * other thread does; what had them now and then is not worth counting */

static void
sd_run_measured(sd_engine_device_t *d, const sd_run_t *run,
    sd_cost_what_t what, const sd_run_clock_t *clock, int n)
{
    int     beside;
    double  ms;

    ms = (sd_engine_clock() - clock->start) / n;

    pthread_mutex_lock(&d->engine->lock);

    beside = sd_run_beside_locked(d, run, what);

    if (beside == clock->beside) {
        sd_cost_measured_locked(run->copy, what, run->width, run->height,
                                beside ? ms / 2 : ms);
    }

    pthread_mutex_unlock(&d->engine->lock);
}


/* events */

/* mail about this run; the caller adds what it shows */

static sd_mail_t *
sd_run_mail(sd_run_t *run, sd_event_type_t type)
{
    int64_t     now;
    sd_job_t   *job;
    sd_mail_t  *mail;

    job = run->job;
    mail = sd_mail_new(type);

    if (mail) {
        now = sd_engine_now();

        mail->event.image = run->image;
        mail->event.step = run->step;
        mail->event.steps = run->steps;
        mail->event.seed = run->seed;
        mail->event.queue_time = job->admitted - job->arrived;
        mail->event.time = now - job->arrived;
    }

    return mail;
}


/* the run leaves the device, which has room for another one; what it had is for
 * the caller to free */

static sd_picture_t *
sd_run_leave_locked(sd_engine_device_t *d, sd_run_t *run)
{
    sd_picture_t  *picture;

    picture = run->picture;

    sd_stats_add(&d->engine->entry->memory[SD_MEMORY_PICTURES],
                 -(uint64_t) run->memory);

    memset(run, 0, sizeof(sd_run_t));
    d->nrunning--;
    sd_status_changed_locked(d->engine);

    pthread_cond_broadcast(&d->engine->device_cond);

    return picture;
}


/* NULL mail: there was no memory for it, and nothing has changed.  Who hears of
 * a picture's end may come again at once: by then its slot is free */

static int
sd_run_post(sd_engine_device_t *d, sd_run_t *run, sd_mail_t *mail,
    sd_ends_t ends, sd_error_t *err)
{
    sd_job_t      *job;
    sd_picture_t  *picture;

    if (mail == NULL || mail->rgb.failed || mail->latent.failed) {
        sd_mail_free(mail);
        return sd_fail(err, "no memory for an event");
    }

    job = run->job;

    pthread_mutex_lock(&d->engine->lock);

    if (ends != SD_GOES_ON) {
        mail->event.ends = 1;
        mail->event.last = --job->remaining == 0;
    }

    if (ends == SD_ENDS_EARLY) {
        mail->event.type = !mail->event.last ? SD_EVENT_PREVIEW
                           : atomic_load(&job->cancelled) == SD_CANCEL_DRAIN
                             ? SD_EVENT_HANDOFF : SD_EVENT_ERROR;
    }

    if (mail->event.type == SD_EVENT_FINAL) {
        sd_stats_count(d->engine->stats, SD_COUNT_PICTURES, 1);
    }

    sd_job_mail_locked(job, mail);

    picture = ends != SD_GOES_ON ? sd_run_leave_locked(d, run) : NULL;

    pthread_mutex_unlock(&d->engine->lock);

    if (ends != SD_GOES_ON) {
        sd_picture_destroy(picture);
        sd_job_unref(job);
    }

    return SD_OK;
}


/* the phases */

int
sd_run_begin(sd_engine_device_t *d, sd_run_t *run, sd_error_t *err)
{
    int                 rc;
    sd_job_t           *job;
    sd_mail_t          *mail;
    sd_params_t         params;
    sd_engine_t        *e;
    sd_context_t       *cx;
    sd_size_t           size;
    sd_run_clock_t      clock;
    sd_picture_info_t   info;

    e = d->engine;
    job = run->job;

    if (run->picture == NULL) {
        params = job->params.params;
        params.seed += run->image;
        params.image = run->image;

        rc = sd_picture_create(&run->picture, run->copy->model, &params, err);
        if (rc != SD_OK) {
            return rc;
        }

    } else if (run->copy->model != job->model->model) {
        sd_picture_move(run->picture, run->copy->model);
    }

    sd_picture_info(run->picture, &info);

    run->width = info.width;
    run->height = info.height;

    rc = sd_copy_plan(d, run->copy, info.width, info.height, &run->steps_size,
                      &run->side_size, err);
    if (rc != SD_OK) {
        return rc;
    }

    size.width = info.width;
    size.height = info.height;

    rc = sd_copy_rehearse(d, run->copy, size, err);
    if (rc != SD_OK) {
        return rc;
    }

    cx = sd_unit_side(d, run->copy->unit, run->side_size, err);
    if (cx == NULL) {
        return SD_ERROR;
    }

    sd_run_clock(d, run, SD_COST_BEGIN, &clock);

    rc = sd_picture_begin(run->picture, cx, &job->cancelled, err);
    if (rc != SD_OK) {
        return rc;
    }

    sd_run_measured(d, run, SD_COST_BEGIN, &clock, 1);

    sd_picture_info(run->picture, &info);

    run->seed = info.seed;
    run->samples = info.samples;

    run->memory = sd_picture_memory(run->picture);
    sd_stats_add(&e->entry->memory[SD_MEMORY_PICTURES], run->memory);

    sd_stats_count(e->stats, SD_COUNT_PROMPT_HITS, info.text_hits);
    sd_stats_count(e->stats, SD_COUNT_PROMPT_MISSES,
                   info.samples - info.text_hits);

    if (info.resumed) {
        sd_stats_count(e->stats, info.inexact ? SD_COUNT_INEXACT
                                              : SD_COUNT_RESUMED, 1);
    }

    pthread_mutex_lock(&e->lock);

    run->first = info.step;
    run->step = info.step;
    run->steps = info.steps;
    run->evaluations = info.evaluations;

    pthread_mutex_unlock(&e->lock);

    if (run->image == 0) {
        mail = sd_run_mail(run, SD_EVENT_START);

        if (mail) {
            mail->event.info = info;
            mail->event.numerics = run->copy->unit->device->numerics;
        }

        rc = sd_run_post(d, run, mail, SD_GOES_ON, err);
        if (rc != SD_OK) {
            return rc;
        }
    }

    sd_run_phase(d, run, info.step < info.steps ? SD_RUN_STEP : SD_RUN_FINISH);

    return SD_OK;
}


int
sd_run_step(sd_engine_device_t *d, sd_run_t **runs, int n, sd_error_t *err)
{
    int                i, rc, samples;
    sd_error_t         error;
    sd_picture_t      *pictures[SD_MAX_SLOTS];
    sd_run_clock_t     clock;
    sd_engine_copy_t  *copy;

    copy = runs[0]->copy;

    if (sd_copy_steps(d, copy, runs[0]->steps_size, err) != SD_OK) {
        return SD_ERROR;
    }

    for (i = 0, samples = 0; i < n; i++) {
        pictures[i] = runs[i]->picture;
        samples += runs[i]->samples;
    }

    /* what several make is not given up for one of them: it leaves after */

    sd_run_clock(d, runs[0], SD_COST_EVALUATION, &clock);

    rc = sd_batch_row(copy->batch, pictures, n,
                      n == 1 ? &runs[0]->job->cancelled : NULL, err);
    if (rc != SD_OK) {
        return rc;
    }

    sd_stats_observe(d->engine->stats, SD_TIME_STEP,
                     (sd_engine_clock() - clock.start) * 1000);
    sd_stats_observe(d->engine->stats, SD_STEP_PICTURES, n);

    sd_run_measured(d, runs[0], SD_COST_EVALUATION, &clock, samples);

    for (i = 0; i < n; i++) {
        if (sd_run_stepped(d, runs[i], &error) == SD_ERROR) {
            sd_run_fail(d, runs[i], &error);
        }
    }

    return SD_OK;
}


/* a row has been made, which may have been the step's last */

static int
sd_run_stepped(sd_engine_device_t *d, sd_run_t *run, sd_error_t *err)
{
    int                 whole;
    sd_job_t           *job;
    sd_engine_t        *e;
    sd_picture_info_t   info;

    e = d->engine;
    job = run->job;

    sd_picture_info(run->picture, &info);

    whole = info.step != run->step;

    pthread_mutex_lock(&e->lock);

    run->step = info.step;
    run->evaluations = info.evaluations;
    sd_stats_count(e->stats, SD_COUNT_STEPS, whole);

    if (run->step > (int) job->report.step) {
        job->report.step = run->step;
    }

    pthread_mutex_unlock(&e->lock);

    if (!whole) {
        return SD_OK;
    }

    if (run->step == run->steps) {
        sd_run_phase(d, run, SD_RUN_FINISH);
        return SD_OK;
    }

    run->page = job->params.run_steps
                && run->step - run->first >= job->params.run_steps;

    run->preview = sd_preview_due(&job->params, run->step, run->first,
                                  run->steps);
    run->latent = run->page
                  || sd_latent_due(&job->params, run->step, run->first,
                                   run->steps);

    if (!run->preview && !run->latent) {
        return SD_OK;
    }

    if (run->preview && job->params.preview == SD_PREVIEW_VAE) {
        sd_run_phase(d, run, SD_RUN_PREVIEW);
        return SD_OK;
    }

    return sd_run_show(d, run, err);
}


int
sd_run_preview(sd_engine_device_t *d, sd_run_t *run, sd_error_t *err)
{
    int  rc, page;

    page = run->page;
    rc = sd_run_show(d, run, err);

    if (rc == SD_OK && !page) {
        sd_run_phase(d, run, SD_RUN_STEP);
    }

    return rc;
}


/* the denoised estimate, small or decoded in full, into the event */

static int
sd_run_picture(sd_engine_device_t *d, sd_run_t *run, sd_mail_t *mail,
    sd_error_t *err)
{
    int              rc, width, height, scale;
    size_t           size;
    sd_job_t        *job;
    sd_context_t    *cx;
    sd_run_clock_t   clock;

    job = run->job;

    scale = job->params.preview == SD_PREVIEW_VAE
            ? 1 : run->copy->model->vae_scale;

    width = run->width / scale;
    height = run->height / scale;
    size = (size_t) width * height * 3;

    if (sd_buf_reserve(&mail->rgb, size) == NULL) {
        return sd_fail(err, "no memory for a preview");
    }

    if (scale == 1) {
        cx = sd_unit_side(d, run->copy->unit, run->side_size, err);
        sd_run_clock(d, run, SD_COST_FINISH, &clock);

        rc = cx ? sd_picture_decode(run->picture, cx, 1,
                                    (uint8_t *) mail->rgb.data, NULL,
                                    &job->cancelled, err)
                : SD_ERROR;

        if (rc == SD_OK) {
            sd_run_measured(d, run, SD_COST_FINISH, &clock, 1);
        }

    } else {
        rc = sd_picture_preview(run->picture, &run->copy->unit->steps,
                                (uint8_t *) mail->rgb.data, err);
    }

    mail->rgb.len = size;

    mail->event.rgb_width = width;
    mail->event.rgb_height = height;
    mail->event.rgb_scale = scale;
    mail->event.index = run->previews++;

    return rc;
}


/* what is due after this step */

static int
sd_run_show(sd_engine_device_t *d, sd_run_t *run, sd_error_t *err)
{
    int         rc;
    sd_mail_t  *mail;

    rc = SD_OK;
    mail = sd_run_mail(run, SD_EVENT_PREVIEW);

    if (mail && run->preview) {
        rc = sd_run_picture(d, run, mail, err);
    }

    if (mail && run->latent && rc == SD_OK) {
        rc = sd_picture_state(run->picture, &mail->latent, err);
    }

    if (rc != SD_OK) {
        sd_mail_free(mail);
        return rc;
    }

    return sd_run_post(d, run, mail, run->page ? SD_ENDS : SD_GOES_ON, err);
}


int
sd_run_finish(sd_engine_device_t *d, sd_run_t *run, sd_error_t *err)
{
    int              rc;
    size_t           size;
    sd_job_t        *job;
    sd_mail_t       *mail;
    sd_context_t    *cx;
    sd_run_clock_t   clock;

    job = run->job;
    size = (size_t) run->width * run->height * 3;

    cx = sd_unit_side(d, run->copy->unit, run->side_size, err);
    if (cx == NULL) {
        return SD_ERROR;
    }

    mail = sd_run_mail(run, SD_EVENT_FINAL);

    if (mail == NULL || sd_buf_reserve(&mail->rgb, size) == NULL) {
        sd_mail_free(mail);
        return sd_fail(err, "no memory for a picture");
    }

    rc = sd_picture_state(run->picture, &mail->latent, err);

    if (rc == SD_OK) {
        sd_run_clock(d, run, SD_COST_FINISH, &clock);

        rc = sd_picture_decode(run->picture, cx, 0, (uint8_t *) mail->rgb.data,
                               NULL, &job->cancelled, err);
    }

    if (rc != SD_OK) {
        sd_mail_free(mail);
        return rc;
    }

    sd_run_measured(d, run, SD_COST_FINISH, &clock, 1);

    mail->rgb.len = size;
    mail->event.rgb_width = run->width;
    mail->event.rgb_height = run->height;

    return sd_run_post(d, run, mail, SD_ENDS, err);
}


/* ends */

static void
sd_run_end(sd_engine_device_t *d, sd_run_t *run)
{
    sd_job_t      *job;
    sd_picture_t  *picture;

    pthread_mutex_lock(&d->engine->lock);
    job = run->job;
    picture = sd_run_leave_locked(d, run);
    pthread_mutex_unlock(&d->engine->lock);

    sd_picture_destroy(picture);
    sd_job_unref(job);
}


void
sd_run_fail(sd_engine_device_t *d, sd_run_t *run, const sd_error_t *err)
{
    int           first;
    sd_job_t     *job;
    sd_engine_t  *e;

    e = d->engine;
    job = run->job;

    pthread_mutex_lock(&e->lock);

    first = atomic_load(&job->cancelled) == SD_CANCEL_NONE;

    if (first) {
        job->error = *err;

        /* takes it out of the queue, where pictures of it wait */
        sd_queue_cancel_locked(job, SD_CANCEL_FAILED);
    }

    pthread_mutex_unlock(&e->lock);

    if (first) {
        sd_engine_complain(e, SD_LOG_ERR, "request %s failed: %s",
                           job->info.id, err->message);
    }

    sd_run_cancelled(d, run);
}


/*
 * A picture that ends early takes its state with it; that of the job's last one
 * is in the event that ends the response.
 */

void
sd_run_cancelled(sd_engine_device_t *d, sd_run_t *run)
{
    int           reason;
    sd_job_t     *job;
    sd_mail_t    *mail;
    sd_error_t    error, ignored;
    sd_engine_t  *e;

    e = d->engine;
    job = run->job;

    sd_stats_count(e->stats, SD_COUNT_WASTED, run->step - run->first);

    pthread_mutex_lock(&e->lock);

    reason = atomic_load(&job->cancelled);

    if (reason == SD_CANCEL_FAILED) {
        error = job->error;

    } else {
        sd_cancel_error(&error, reason);
    }

    pthread_mutex_unlock(&e->lock);

    if (reason == SD_CANCEL_FAILED || reason == SD_CANCEL_TIMEOUT
        || reason == SD_CANCEL_DRAIN)
    {
        mail = sd_run_mail(run, SD_EVENT_ERROR);

        /* a picture that has not begun has no state to give, and one that has
         * failed may have none */

        if (mail && run->phase != SD_RUN_BEGIN
            && sd_picture_state(run->picture, &mail->latent, &ignored)
               != SD_OK)
        {
            mail->latent.len = 0;
        }

        if (mail) {
            mail->event.error = error;
        }

        if (sd_run_post(d, run, mail, SD_ENDS_EARLY, &ignored) == SD_OK) {
            return;
        }

        sd_job_error(job, &error);
    }

    sd_run_end(d, run);
}
