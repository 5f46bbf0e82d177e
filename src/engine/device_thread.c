/*
 * The device thread.  It owns the devices and their memory: loads the models,
 * makes a warm-up picture with each, and then steps the pictures that run, in
 * turn, one step each.  A new picture joins between two steps.  What happens is
 * mailed to the encoders; nothing here waits for anyone.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"


static int sd_device_wait(sd_engine_t *e);
static void sd_device_reap(sd_engine_t *e);
static void sd_device_turn(sd_engine_t *e, sd_run_t *run);
static int sd_device_begin(sd_engine_t *e, sd_run_t *run, sd_error_t *err);
static int sd_device_step(sd_engine_t *e, sd_run_t *run, sd_error_t *err);
static int sd_device_finish(sd_engine_t *e, sd_run_t *run, sd_error_t *err);
static void sd_device_end_job(sd_engine_t *e, sd_job_t *job,
    const sd_error_t *err);
static void sd_device_end(sd_engine_t *e, sd_run_t *run);
static void sd_device_models(sd_engine_t *e);


void *
sd_device_thread(void *data)
{
    int           i;
    sd_engine_t  *e = data;

    sd_device_models(e);

    for (i = 0; sd_device_wait(e); i++) {

        /* the array closes up when a picture ends, so turns may shift by one */

        sd_device_turn(e, &e->running[i % e->nrunning]);
        sd_device_reap(e);
    }

    return NULL;
}


/* lets pictures join; waits while there is none.  0: the engine stops */

static int
sd_device_wait(sd_engine_t *e)
{
    pthread_mutex_lock(&e->lock);

    for ( ;; ) {
        while (sd_queue_take_locked(e, &e->running[e->nrunning])) {
            e->nrunning++;
        }

        if (e->nrunning || atomic_load(&e->stopping)) {
            break;
        }

        pthread_cond_wait(&e->device_cond, &e->lock);
    }

    pthread_mutex_unlock(&e->lock);

    return !atomic_load(&e->stopping);
}


static void
sd_device_turn(sd_engine_t *e, sd_run_t *run)
{
    int         rc;
    sd_error_t  err;
    sd_job_t   *job;

    job = run->job;
    rc = SD_OK;

    switch (run->phase) {

    case SD_RUN_BEGIN:
        rc = sd_device_begin(e, run, &err);
        break;

    case SD_RUN_STEP:
        rc = sd_device_step(e, run, &err);
        break;

    case SD_RUN_FINISH:
        rc = sd_device_finish(e, run, &err);
        break;
    }

    if (rc == SD_ERROR) {
        sd_device_end_job(e, job, &err);
    }
}


/* jobs that were cancelled leave at once, not when it would be their turn */

static void
sd_device_reap(sd_engine_t *e)
{
    int  i;

    for (i = 0; i < e->nrunning; /* void */) {

        if (atomic_load(&e->running[i].job->cancelled)) {
            sd_device_end_job(e, e->running[i].job, NULL);
            i = 0;

        } else {
            i++;
        }
    }
}


/* events */

/* mail about this run; the caller adds what it shows */

static sd_mail_t *
sd_device_mail(sd_run_t *run, sd_event_type_t type)
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


/* NULL mail: there was no memory for it */

static int
sd_device_post(sd_engine_t *e, sd_run_t *run, sd_mail_t *mail, int ends,
    sd_error_t *err)
{
    sd_job_t  *job;

    if (mail == NULL || mail->rgb.failed || mail->latent.failed) {
        sd_mail_free(mail);
        return sd_fail(err, "no memory for an event");
    }

    job = run->job;

    pthread_mutex_lock(&e->lock);

    if (run->step > (int) job->report.step) {
        job->report.step = run->step;
    }

    if (ends) {
        mail->event.ends = 1;
        mail->event.last = --job->remaining == 0;
    }

    sd_job_mail_locked(job, mail);

    pthread_mutex_unlock(&e->lock);

    return SD_OK;
}


/* the denoised estimate, small or decoded in full, into the event */

static int
sd_device_preview(sd_engine_t *e, sd_run_t *run, sd_mail_t *mail,
    sd_error_t *err)
{
    int              rc, width, height, scale;
    size_t           size;
    sd_job_t        *job;
    sd_context_t    *cx;

    job = run->job;
    cx = &job->model->device->context;

    scale = job->params.preview == SD_PREVIEW_VAE
            ? 1 : job->model->model->vae_scale;

    width = job->info.info.width / scale;
    height = job->info.info.height / scale;
    size = (size_t) width * height * 3;

    if (sd_buf_reserve(&mail->rgb, size) == NULL) {
        return sd_fail(err, "no memory for a preview");
    }

    if (scale == 1) {
        rc = sd_picture_decode(run->picture, cx, 1,
                               (uint8_t *) mail->rgb.data, NULL,
                               &job->cancelled, err);
    } else {
        rc = sd_picture_preview(run->picture, cx, (uint8_t *) mail->rgb.data,
                                err);
    }

    mail->rgb.len = size;

    mail->event.rgb_width = width;
    mail->event.rgb_height = height;
    mail->event.rgb_scale = scale;
    mail->event.index = run->previews++;

    return rc;
}


/* the phases */

/* the arena grows to what the largest picture so far has needed */

static int
sd_device_arena(sd_engine_model_t *m, int width, int height, sd_error_t *err)
{
    size_t               step, prompt, decode, size;
    sd_engine_device_t  *d;

    d = m->device;

    if (sd_model_plan(m->model, d->device, width, height, &step, &prompt,
                      &decode, err)
        != SD_OK)
    {
        return SD_ERROR;
    }

    size = step > prompt ? step : prompt;
    size = size > decode ? size : decode;

    if (size <= d->arena) {
        return SD_OK;
    }

    if (d->arena) {
        sd_context_free(&d->context);
        d->arena = 0;
    }

    if (sd_context_init(&d->context, d->device, 0, size, err) != SD_OK) {
        return SD_ERROR;
    }

    d->arena = size;

    return SD_OK;
}


static int
sd_device_begin(sd_engine_t *e, sd_run_t *run, sd_error_t *err)
{
    int                 rc;
    sd_job_t           *job;
    sd_mail_t          *mail;
    sd_params_t         params;
    sd_picture_info_t   info;

    job = run->job;

    if (run->picture == NULL) {
        params = job->params.params;
        params.seed += run->image;
        params.image = run->image;

        rc = sd_picture_create(&run->picture, job->model->model, &params, err);
        if (rc != SD_OK) {
            return rc;
        }
    }

    sd_picture_info(run->picture, &info);

    rc = sd_device_arena(job->model, info.width, info.height, err);
    if (rc != SD_OK) {
        return rc;
    }

    rc = sd_picture_begin(run->picture, &job->model->device->context,
                          &job->cancelled, err);
    if (rc != SD_OK) {
        return rc;
    }

    sd_picture_info(run->picture, &info);

    pthread_mutex_lock(&e->lock);

    run->first = info.step;
    run->step = info.step;
    run->steps = info.steps;
    run->seed = info.seed;
    run->phase = run->step < run->steps ? SD_RUN_STEP : SD_RUN_FINISH;

    pthread_mutex_unlock(&e->lock);

    if (run->image != 0) {
        return SD_OK;
    }

    mail = sd_device_mail(run, SD_EVENT_START);

    if (mail) {
        mail->event.info = info;
    }

    return sd_device_post(e, run, mail, 0, err);
}


static int
sd_device_step(sd_engine_t *e, sd_run_t *run, sd_error_t *err)
{
    int                 rc, page, preview, latent;
    double              ms;
    int64_t             start;
    sd_job_t           *job;
    sd_mail_t          *mail;
    sd_engine_model_t  *m;

    job = run->job;
    m = job->model;

    start = sd_engine_now();

    rc = sd_picture_step(run->picture, &m->device->context, &job->cancelled,
                         err);
    if (rc != SD_OK) {
        return rc;
    }

    ms = sd_engine_now() - start;

    pthread_mutex_lock(&e->lock);

    run->step++;
    e->steps++;
    m->step_time = m->step_time ? m->step_time * 0.9 + ms * 0.1 : ms;

    if (run->step == run->steps) {
        run->phase = SD_RUN_FINISH;
    }

    pthread_mutex_unlock(&e->lock);

    if (run->step == run->steps) {
        return SD_OK;
    }

    page = job->params.run_steps
           && run->step - run->first >= job->params.run_steps;

    preview = sd_preview_due(&job->params, run->step, run->first, run->steps);
    latent = page
             || sd_latent_due(&job->params, run->step, run->first, run->steps);

    if (!preview && !latent) {

        pthread_mutex_lock(&e->lock);

        if (run->step > (int) job->report.step) {
            job->report.step = run->step;
        }

        pthread_mutex_unlock(&e->lock);

        return SD_OK;
    }

    mail = sd_device_mail(run, SD_EVENT_PREVIEW);

    if (mail && preview) {
        rc = sd_device_preview(e, run, mail, err);
    }

    if (mail && latent && rc == SD_OK) {
        rc = sd_picture_state(run->picture, &mail->latent, err);
    }

    if (rc != SD_OK) {
        sd_mail_free(mail);
        return rc;
    }

    rc = sd_device_post(e, run, mail, page, err);

    if (rc == SD_OK && page) {
        sd_device_end(e, run);
    }

    return rc;
}


static int
sd_device_finish(sd_engine_t *e, sd_run_t *run, sd_error_t *err)
{
    int         rc;
    size_t      size;
    sd_job_t   *job;
    sd_mail_t  *mail;

    job = run->job;
    size = (size_t) job->info.info.width * job->info.info.height * 3;

    mail = sd_device_mail(run, SD_EVENT_FINAL);

    if (mail == NULL || sd_buf_reserve(&mail->rgb, size) == NULL) {
        sd_mail_free(mail);
        return sd_fail(err, "no memory for a picture");
    }

    rc = sd_picture_state(run->picture, &mail->latent, err);

    if (rc == SD_OK) {
        rc = sd_picture_decode(run->picture, &job->model->device->context, 0,
                               (uint8_t *) mail->rgb.data, NULL,
                               &job->cancelled, err);
    }

    if (rc != SD_OK) {
        sd_mail_free(mail);
        return rc;
    }

    mail->rgb.len = size;
    mail->event.rgb_width = job->info.info.width;
    mail->event.rgb_height = job->info.info.height;

    rc = sd_device_post(e, run, mail, 1, err);

    if (rc == SD_OK) {
        sd_device_end(e, run);
    }

    return rc;
}


/* ends */

/* the run leaves the device; the last one moves into its place */

static void
sd_device_end(sd_engine_t *e, sd_run_t *run)
{
    sd_run_t  ended;

    pthread_mutex_lock(&e->lock);

    ended = *run;
    *run = e->running[--e->nrunning];

    pthread_mutex_unlock(&e->lock);

    sd_picture_destroy(ended.picture);
    sd_job_unref(ended.job);
}


/*
 * A job that ends early, with all its pictures that run: err, or what its
 * cancellation was for.  Each picture's state goes with it; the last one is in
 * the event that ends the response.
 */

static void
sd_device_end_job(sd_engine_t *e, sd_job_t *job, const sd_error_t *err)
{
    int          i, reason, failed;
    sd_run_t    *run;
    sd_mail_t   *mail;
    sd_error_t   error, ignored;

    failed = err != NULL;
    reason = atomic_load(&job->cancelled);

    if (failed) {
        sd_engine_log(e, SD_LOG_ERR, "request %s failed: %s", job->info.id,
                      err->message);
        error = *err;
        reason = SD_CANCEL_FAILED;

    } else {
        sd_cancel_error(&error, reason);
    }

    sd_job_ref(job);

    /* takes it out of the queue, where pictures of it wait */

    sd_queue_cancel(job, reason);

    for (i = e->nrunning - 1; i >= 0; i--) {
        run = &e->running[i];

        if (run->job != job) {
            continue;
        }

        pthread_mutex_lock(&e->lock);
        e->wasted += run->step - run->first;
        pthread_mutex_unlock(&e->lock);

        if (failed || reason == SD_CANCEL_TIMEOUT
            || reason == SD_CANCEL_DRAIN)
        {
            mail = sd_device_mail(run, job->remaining > 1 ? SD_EVENT_PREVIEW
                                       : reason == SD_CANCEL_DRAIN
                                         ? SD_EVENT_HANDOFF : SD_EVENT_ERROR);

            /* a picture that has failed, or not begun, has no state to give */

            if (mail && !failed && run->phase != SD_RUN_BEGIN) {
                (void) sd_picture_state(run->picture, &mail->latent,
                                        &ignored);
            }

            if (mail) {
                mail->event.error = error;
            }

            if (sd_device_post(e, run, mail, 1, &ignored) != SD_OK) {
                sd_job_error(job, &error);
            }
        }

        sd_device_end(e, run);
    }

    sd_job_unref(job);
}


/* models */

static void
sd_device_model_failed(sd_engine_t *e, sd_engine_model_t *m, sd_error_t *err)
{
    sd_engine_log(e, SD_LOG_ERR, "model \"%s\" failed: %s%s%s%s", m->path,
                  err->param[0] ? "\"" : "", err->param,
                  err->param[0] ? "\": " : "", err->message);

    pthread_mutex_lock(&e->lock);
    m->state = SD_MODEL_FAILED;
    m->error = *err;
    pthread_mutex_unlock(&e->lock);
}


/* configurations and headers: milliseconds */

static int
sd_device_open_model(sd_engine_t *e, sd_engine_model_t *m, sd_error_t *err)
{
    sd_engine_device_t  *d;

    d = &e->devices[m->precision];

    if (d->device == NULL
        && sd_device_open(&d->device, e->conf.device, e->conf.threads,
                                m->precision, NULL, err)
           != SD_OK)
    {
        return SD_ERROR;
    }

    m->device = d;

    return sd_model_open(&m->model, m->path, d->device, err);
}


/* a picture that nobody sees: pages are touched, and a step's time is known */

static int
sd_device_warm(sd_engine_t *e, sd_engine_model_t *m, sd_error_t *err)
{
    int            rc;
    int64_t        start;
    uint8_t       *rgb;
    sd_params_t    params;
    sd_picture_t  *p;
    sd_context_t  *cx;

    memset(&params, 0, sizeof(sd_params_t));

    params.prompt = "a";
    params.negative_prompt = "";
    params.width = m->model->default_width;
    params.height = m->model->default_height;
    params.steps = 1;
    params.guidance = 7.5;
    params.starting_step = -1;

    rc = sd_device_arena(m, params.width, params.height, err);
    if (rc != SD_OK) {
        return rc;
    }

    rc = sd_picture_create(&p, m->model, &params, err);
    if (rc != SD_OK) {
        return rc;
    }

    cx = &m->device->context;
    start = 0;

    rc = sd_picture_begin(p, cx, &e->stopping, err);

    if (rc == SD_OK) {
        start = sd_engine_now();
        rc = sd_picture_step(p, cx, &e->stopping, err);
    }

    if (rc == SD_OK) {
        pthread_mutex_lock(&e->lock);
        m->step_time = sd_engine_now() - start;
        pthread_mutex_unlock(&e->lock);

        rgb = malloc((size_t) params.width * params.height * 3);

        rc = rgb ? sd_picture_decode(p, cx, 0, rgb, NULL, &e->stopping, err)
                 : sd_fail(err, "no memory for a picture");

        free(rgb);
    }

    sd_picture_destroy(p);

    return rc;
}


static void
sd_device_load(sd_engine_t *e, sd_engine_model_t *m)
{
    int           rc;
    int64_t       start, loaded;
    sd_error_t    err;
    sd_device_t  *d;

    d = m->device->device;
    start = sd_engine_now();

    pthread_mutex_lock(&e->lock);
    m->state = SD_MODEL_LOADING;
    pthread_mutex_unlock(&e->lock);

    rc = sd_model_load(m->model, d, NULL, NULL, &e->stopping, &err);

    loaded = sd_engine_now();

    if (rc == SD_OK) {
        rc = sd_device_warm(e, m, &err);
    }

    if (rc == SD_CANCELLED) {
        return;
    }

    if (rc != SD_OK) {
        sd_device_model_failed(e, m, &err);
        sd_queue_fail(e, m);
        return;
    }

    pthread_mutex_lock(&e->lock);
    m->state = SD_MODEL_READY;
    m->load_time = sd_engine_now() - start;
    pthread_mutex_unlock(&e->lock);

    sd_engine_log(e, SD_LOG_NOTICE, "model \"%s\" is ready: %.1f MB packed, "
                  "loaded in %.2fs, warm in %.2fs, %.0f ms a step, %s %s, %s",
                  m->path, m->model->packed_bytes / 1e6,
                  (loaded - start) / 1e3, (sd_engine_now() - loaded) / 1e3,
                  m->step_time, d->name, d->isa, d->numerics);
}


/* all are opened before requests are read, then loaded while they wait */

static void
sd_device_models(sd_engine_t *e)
{
    size_t              i;
    sd_error_t          err;
    sd_engine_model_t  *m;

    for (i = 0; i < e->nmodels; i++) {
        m = &e->models[i];

        if (sd_device_open_model(e, m, &err) != SD_OK) {
            sd_device_model_failed(e, m, &err);
        }
    }

    pthread_mutex_lock(&e->lock);
    e->opened = 1;
    sd_engine_wake_io(e);
    pthread_mutex_unlock(&e->lock);

    for (i = 0; i < e->nmodels && !atomic_load(&e->stopping); i++) {
        m = &e->models[i];

        if (m->model) {
            sd_device_load(e, m);
        }
    }
}
