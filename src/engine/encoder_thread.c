/*
 * Encoder threads.  Each takes a job that has mail, handles one mail, and gives
 * the job back: so a job's events keep their order, and jobs share the threads
 * evenly.  A job's first mail is its request; what it comes to is an answer at
 * once, or a place in the queue.  All others are events, which become frames.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "internal.h"


static sd_job_t *sd_encoder_next(sd_engine_t *e, sd_mail_t **mail);
static void sd_encoder_done(sd_job_t *job);
static void sd_encoder_request(sd_job_t *job);
static void sd_encoder_event(sd_job_t *job, sd_mail_t *mail);


void *
sd_encoder_thread(void *data)
{
    sd_job_t     *job;
    sd_mail_t    *mail;
    sd_engine_t  *e = data;

    while ((job = sd_encoder_next(e, &mail)) != NULL) {

        if (mail && mail->request) {
            sd_encoder_request(job);

        } else if (mail) {
            sd_encoder_event(job, mail);
        }

        sd_mail_free(mail);
        sd_encoder_done(job);
    }

    return NULL;
}


/*
 * Where the next job is that has mail.  Requests wait until models are opened,
 * as it is by them that they are read, as many as the queue would hold; but for
 * those that are answered anyway.
 */

static sd_job_t **
sd_encoder_ready_locked(sd_engine_t *e)
{
    int        n;
    sd_job_t  *job, **p;

    for (p = &e->ready, n = 0; *p; p = &(*p)->next_ready, n++) {
        job = *p;

        if (e->opened || e->draining || e->conf.loading_fails
            || n > e->conf.queue || job->mail == NULL || !job->mail->request
            || atomic_load(&job->cancelled))
        {
            return p;
        }
    }

    return NULL;
}


/* waits; NULL where the engine stops */

static sd_job_t *
sd_encoder_next(sd_engine_t *e, sd_mail_t **mail)
{
    sd_job_t  *job, **p;

    job = NULL;
    p = NULL;

    pthread_mutex_lock(&e->lock);

    while (!atomic_load(&e->stopping)
           && (p = sd_encoder_ready_locked(e)) == NULL)
    {
        pthread_cond_wait(&e->encoder_cond, &e->lock);
    }

    if (!atomic_load(&e->stopping)) {
        job = *p;
        *p = job->next_ready;

        if (*p == NULL) {
            e->last_ready = p;
        }

        *mail = job->mail;

        if (job->mail) {
            job->mail = job->mail->next;

            if (job->mail == NULL) {
                job->last_mail = &job->mail;
            }
        }
    }

    pthread_mutex_unlock(&e->lock);

    return job;
}


static void
sd_encoder_done(sd_job_t *job)
{
    sd_engine_t  *e;

    e = job->engine;

    pthread_mutex_lock(&e->lock);

    if (job->mail) {
        job->next_ready = NULL;
        *e->last_ready = job;
        e->last_ready = &job->next_ready;

        /* no signal: this thread looks next */
        job = NULL;

    } else {
        job->busy = 0;
    }

    pthread_mutex_unlock(&e->lock);

    if (job) {
        sd_job_unref(job);
    }
}


/* a header's value, of whatever a request or a directory is called */

static void
sd_encoder_header(sd_buf_t *out, const char *name, const char *value)
{
    size_t  k;

    sd_buf_printf(out, "%s: ", name);

    k = out->len;
    sd_buf_puts(out, value);

    for ( /* void */ ; k < out->len && !out->failed; k++) {
        if (out->data[k] < 0x20 || out->data[k] > 0x7e) {
            out->data[k] = '?';
        }
    }

    sd_buf_puts(out, "\r\n");
}


/* headers that every response has; seed: also those that need a picture */

static void
sd_encoder_headers(sd_job_t *job, sd_buf_t *out, int seed)
{
    int             i;
    sd_job_info_t  *info;

    info = &job->info;

    sd_buf_puts(out, "Cache-Control: no-store, no-transform\r\n"
                     "X-Accel-Buffering: no\r\n"
                     "X-Content-Type-Options: nosniff\r\n");

    if (info->id[0]) {
        sd_encoder_header(out, "X-Request-Id", info->id);
    }

    if (!seed) {
        return;
    }

    sd_buf_printf(out, "SD-Seed: %llu\r\nSD-Steps: %d\r\n",
                  (unsigned long long) info->info.seed, info->info.steps);

    sd_encoder_header(out, "SD-Model", info->model);

    for (i = 0; i < job->params.nwarnings; i++) {
        sd_encoder_header(out, "SD-Warning", job->params.warnings[i]);
    }
}


void
sd_job_answer(sd_job_t *job, int status, const char *content_type,
    sd_buf_t *headers, const sd_buf_t *body)
{
    int          head;
    sd_chunk_t  *chunk;

    head = job->request.method == SD_METHOD_HEAD;

    chunk = sd_chunk_new();

    pthread_mutex_lock(&job->engine->lock);

    if (chunk == NULL || headers->failed || body->failed) {
        sd_job_cut_locked(job);

    } else {
        sd_frame_header(&chunk->bytes, status,
                        body->len ? (int64_t) body->len : -1,
                        content_type, headers->data, headers->len);

        sd_job_report_locked(job, &chunk->bytes);

        if (body->len && !head) {
            sd_frame_append(&chunk->bytes, SD_FRAME_DATA, body->data,
                            body->len);
        }

        sd_frame_append(&chunk->bytes, SD_FRAME_END, NULL, 0);

        chunk->end = 1;
        job->header = 1;
        sd_job_send_locked(job, chunk);
        chunk = NULL;
    }

    pthread_mutex_unlock(&job->engine->lock);

    sd_chunk_free(chunk);
}


/* how a request ends that does not end well; one that others are to go on with
 * has not failed */

static sd_result_t
sd_encoder_result_locked(const sd_job_t *job, const sd_error_t *err)
{
    if (err->status == 504) {
        return SD_RESULT_TIMEOUT;
    }

    if (job->admitted == 0) {
        return SD_RESULT_REJECTED;
    }

    return strcmp(err->code, "draining") == 0 ? SD_RESULT_HANDOFF
                                              : SD_RESULT_ERROR;
}


/* an error before the header: the dialect's JSON */

static void
sd_encoder_refuse(sd_job_t *job, const sd_error_t *err)
{
    sd_buf_t  body, headers;

    memset(&body, 0, sizeof(sd_buf_t));
    memset(&headers, 0, sizeof(sd_buf_t));

    sd_encoder_headers(job, &headers, 0);
    job->dialect->error(&body, &headers, err, &job->states);

    if (err->status == 503) {
        sd_buf_printf(&headers, "Retry-After: %d\r\n",
                      sd_forecast_retry_after(job));
    }

    pthread_mutex_lock(&job->engine->lock);
    sd_job_result_locked(job, err->status, sd_encoder_result_locked(job, err));
    pthread_mutex_unlock(&job->engine->lock);

    sd_job_answer(job, err->status, "application/json", &headers, &body);

    sd_buf_free(&headers);
    sd_buf_free(&body);
}


/* the request */

static int
sd_encoder_info(sd_job_t *job, sd_error_t *err)
{
    int               i;
    uint8_t           r[16];
    sd_job_info_t    *info;
    sd_picture_info_t pi;

    info = &job->info;

    if (getrandom(r, sizeof(r), 0) != sizeof(r)) {
        return sd_fail(err, "getrandom() failed");
    }

    for (i = 0; i < 16; i++) {
        sprintf(info->boundary + 2 * i, "%02x", r[i]);
    }

    sd_picture_info(job->picture, &pi);

    info->model = job->model->model->name;
    info->fingerprint = job->model->model->fingerprint;
    info->params = &job->params;
    info->info = pi;
    info->created = time(NULL);

    for (i = pi.step + 1; i < pi.steps; i++) {
        job->decodes += job->params.preview == SD_PREVIEW_VAE
                        && sd_preview_due(&job->params, i, pi.step, pi.steps);
    }

    sd_job_warn(&job->params, &pi);

    if (job->params.format->state_size) {
        job->state = calloc(1, job->params.format->state_size);
        if (job->state == NULL) {
            return sd_fail(err, "no memory for a job");
        }
    }

    pthread_mutex_lock(&job->engine->lock);

    job->report.step = pi.step;
    job->report.steps = pi.steps;
    job->report.seed = pi.seed;

    pthread_mutex_unlock(&job->engine->lock);

    return SD_OK;
}


static void
sd_encoder_empty(sd_job_t *job, int status, const char *content_type)
{
    sd_buf_t  headers, body;

    memset(&headers, 0, sizeof(sd_buf_t));
    memset(&body, 0, sizeof(sd_buf_t));

    sd_encoder_headers(job, &headers, job->picture != NULL);

    pthread_mutex_lock(&job->engine->lock);
    sd_job_result_locked(job, status, SD_RESULT_OK);
    pthread_mutex_unlock(&job->engine->lock);

    sd_job_answer(job, status, content_type, &headers, &body);

    sd_buf_free(&headers);
}


/* what a prompt is worth is found out here, before it takes a place */

static void
sd_encoder_request(sd_job_t *job)
{
    int                 rc, opened;
    char                type[128];
    sd_error_t          err;
    const sd_request_t *r;
    sd_engine_model_t  *m;

    r = &job->request;
    m = job->model;

    memset(&err, 0, sizeof(sd_error_t));

    pthread_mutex_lock(&job->engine->lock);
    opened = job->engine->opened;
    pthread_mutex_unlock(&job->engine->lock);

    if (!opened) {
        rc = sd_queue_warming(job, &err);

    } else if (m->model == NULL) {
        /* its error is written before models are opened, and stays */
        rc = sd_error(&err, 503, "model_failed", NULL, "%s",
                      m->error.message);

    } else if (sd_queue_full(job, &err) != SD_OK) {

        /* some try again at once, and states are long */
        rc = SD_ERROR;

    } else {
        pthread_mutex_lock(&job->engine->lock);
        memcpy(job->report.model, m->model->name, sizeof(job->report.model));
        pthread_mutex_unlock(&job->engine->lock);

        rc = sd_job_request(&job->params, job->dialect, r,
                            job->input.data + job->frame,
                            job->input.len - job->frame, m->model, &err);
    }

    /* all that is needed of it has been copied, and a body may be large */
    sd_job_input_free(job);

    if (rc == SD_OK && job->params.format->reconnects && r->last_event_id.len)
    {
        /* EventSource reconnects whenever a stream ends, and must not run the
         * job again; 204 tells it to stop */

        sd_encoder_empty(job, 204, "");
        return;
    }

    if (rc == SD_OK) {
        rc = sd_picture_create(&job->picture, m->model, &job->params.params,
                               &err);
    }

    if (rc == SD_OK && job->params.images == 1) {

        /* the picture has its own copy */
        sd_buf_free(&job->params.latents);
        job->params.params.latents = NULL;
        job->params.params.latents_size = 0;
    }

    if (rc == SD_OK) {
        rc = sd_encoder_info(job, &err);
    }

    if (rc == SD_OK && job->params.timeout) {
        atomic_store(&job->deadline, job->arrived + job->params.timeout);
    }

    if (rc == SD_OK && r->method == SD_METHOD_HEAD) {
        job->params.format->content_type(type, sizeof(type), &job->info);
        sd_encoder_empty(job, 200, type);
        return;
    }

    if (rc == SD_OK) {
        rc = sd_queue_add(job, &err);

        if (rc == SD_OK) {
            sd_forecast_added(job);
        }
    }

    if (rc != SD_OK && (err.status == 409
                        || strcmp(err.param, "latents") == 0))
    {
        sd_stats_count(job->engine->stats, SD_COUNT_REFUSED, 1);
    }

    if (rc != SD_OK && atomic_load(&job->cancelled) != SD_CANCEL_CLIENT) {
        sd_encoder_refuse(job, &err);
    }
}


/* events */

static void
sd_encoder_ending(sd_job_t *job, sd_buf_t *out)
{
    sd_error_t  err;

    sd_error(&err, 500, "engine_failed", NULL,
             "the engine ended before the picture was finished");

    job->params.format->ending(out, &job->info, &err);
}


/*
 * Where there is nothing to send yet, the event was collected, and out is left
 * empty.  A response that begins here begins with HEADER.
 */

static int
sd_encoder_frames(sd_job_t *job, const sd_event_t *ev, sd_chunk_t *chunk,
    sd_error_t *err)
{
    int                 rc, first;
    char                type[128];
    sd_buf_t            body, headers, ending;
    const sd_format_t  *f;

    f = job->params.format;

    memset(&body, 0, sizeof(sd_buf_t));
    memset(&headers, 0, sizeof(sd_buf_t));
    memset(&ending, 0, sizeof(sd_buf_t));

    rc = f->event(&body, job->state, &job->info, ev, err);

    if (rc == SD_OK && body.failed) {
        rc = sd_fail(err, "no memory for the answer");
    }

    if (rc != SD_OK || (body.len == 0 && !ev->last)) {
        sd_buf_free(&body);
        return rc;
    }

    pthread_mutex_lock(&job->engine->lock);

    first = !job->header;

    if (ev->last) {
        sd_job_result_locked(job, 200,
                             ev->type != SD_EVENT_ERROR
                             && ev->type != SD_EVENT_HANDOFF
                             ? SD_RESULT_OK
                             : sd_encoder_result_locked(job, &ev->error));
    }

    if (first) {
        f->content_type(type, sizeof(type), &job->info);
        sd_encoder_headers(job, &headers, 1);
        sd_frame_header(&chunk->bytes, 200,
                        ev->last && !f->progressive ? (int64_t) body.len : -1,
                        type, headers.data, headers.len);
    }

    sd_job_report_locked(job, &chunk->bytes);

    pthread_mutex_unlock(&job->engine->lock);

    if (body.len) {
        sd_frame_append(&chunk->bytes, SD_FRAME_DATA, body.data, body.len);
    }

    if (ev->last) {
        sd_frame_append(&chunk->bytes, SD_FRAME_END, NULL, 0);
        chunk->end = 1;

    } else if (first && f->ending) {
        sd_encoder_ending(job, &ending);
        sd_frame_append(&chunk->bytes, SD_FRAME_ENDING, ending.data,
                        ending.len);
    }

    if (ev->type == SD_EVENT_PREVIEW && !first && !ev->last) {
        chunk->image = ev->image;
    }

    sd_buf_free(&headers);
    sd_buf_free(&ending);
    sd_buf_free(&body);

    if (chunk->bytes.failed) {
        rc = sd_fail(err, "no memory for the answer");
    }

    return rc;
}


static void
sd_encoder_event(sd_job_t *job, sd_mail_t *mail)
{
    int          rc, header;
    sd_chunk_t  *chunk;
    sd_error_t   err;
    sd_event_t  *ev;

    ev = &mail->event;
    ev->rgb = mail->rgb.len ? (uint8_t *) mail->rgb.data : NULL;
    ev->latent = mail->latent.len ? mail->latent.data : NULL;
    ev->latent_size = mail->latent.len;

    pthread_mutex_lock(&job->engine->lock);

    header = job->header;

    if (ev->type == SD_EVENT_HEARTBEAT) {
        job->heartbeat = 0;
        sd_forecast_place_locked(job, ev);
    }

    if (job->closed || job->ended) {
        header = -1;
    }

    pthread_mutex_unlock(&job->engine->lock);

    if (header == -1) {
        return;
    }

    if (!header && ev->latent && (ev->type == SD_EVENT_ERROR
                                  || ev->type == SD_EVENT_HANDOFF
                                  || (ev->ends && job->params.images > 1)))
    {
        /* should the job end early, this is what is given back of it */
        sd_buf_puts(&job->states, job->states.len ? "," : "");
        sd_format_state(&job->states, ev);
    }

    if (!header && (ev->type == SD_EVENT_ERROR
                    || ev->type == SD_EVENT_HANDOFF))
    {
        sd_encoder_refuse(job, &ev->error);
        return;
    }

    chunk = sd_chunk_new();

    rc = chunk ? sd_encoder_frames(job, ev, chunk, &err)
               : sd_fail(&err, "no memory for the answer");

    if (rc != SD_OK) {

        /* the job has failed here: tell the device thread, and the client */

        sd_chunk_free(chunk);
        sd_queue_cancel(job, SD_CANCEL_FAILED);

        if (ev->type == SD_EVENT_ERROR || ev->type == SD_EVENT_HANDOFF) {
            pthread_mutex_lock(&job->engine->lock);
            sd_job_cut_locked(job);
            pthread_mutex_unlock(&job->engine->lock);
            return;
        }

        sd_job_error(job, &err);
        return;
    }

    pthread_mutex_lock(&job->engine->lock);

    if (chunk->bytes.len == 0) {

        /* it was collected: the log may know how far the job has come */

        sd_job_report_locked(job, &chunk->bytes);
        chunk->image = ev->image;

    } else {
        job->header = 1;

        if (ev->rgb && !job->previewed) {
            job->previewed = 1;
            sd_stats_observe(job->engine->stats, SD_TIME_PREVIEW,
                             (sd_engine_now() - job->arrived) * 1000);
        }
    }

    sd_job_send_locked(job, chunk);

    pthread_mutex_unlock(&job->engine->lock);
}
