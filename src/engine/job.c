/*
 * A job: one request and its one response.  Its mailbox takes events for the
 * encoders, its outbox takes frames for the I/O thread; both replace an older
 * preview, that nobody has come to yet, by a newer one where the format allows,
 * so that they stay short however slow the other side is.
 */

#include <stdlib.h>
#include <string.h>

#include "internal.h"


sd_job_t *
sd_job_new(sd_engine_t *e)
{
    sd_job_t  *job;

    job = calloc(1, sizeof(sd_job_t));
    if (job == NULL) {
        return NULL;
    }

    job->engine = e;
    job->last_mail = &job->mail;
    job->last_chunk = &job->chunks;
    job->arrived = sd_engine_now();

    atomic_init(&job->refs, 1);
    atomic_init(&job->cancelled, SD_CANCEL_NONE);

    return job;
}


void
sd_job_ref(sd_job_t *job)
{
    atomic_fetch_add(&job->refs, 1);
}


void
sd_job_unref(sd_job_t *job)
{
    sd_mail_t   *mail;
    sd_chunk_t  *chunk;

    if (atomic_fetch_sub(&job->refs, 1) != 1) {
        return;
    }

    while ((mail = job->mail) != NULL) {
        job->mail = mail->next;
        sd_mail_free(mail);
    }

    while ((chunk = job->chunks) != NULL) {
        job->chunks = chunk->next;
        sd_chunk_free(chunk);
    }

    if (job->state && job->params.format->cleanup) {
        job->params.format->cleanup(job->state);
    }

    free(job->state);
    sd_picture_destroy(job->picture);
    sd_job_params_free(&job->params);
    sd_buf_free(&job->states);
    sd_job_input_free(job);
    free(job);
}


void
sd_job_input_free(sd_job_t *job)
{
    sd_buf_free(&job->input);

    if (job->large) {
        atomic_fetch_sub(&job->engine->bodies, job->large);
        job->large = 0;

        /* others may be read now */
        sd_engine_wake_io(job->engine);
    }
}


/* the mailbox */

sd_mail_t *
sd_mail_new(sd_event_type_t type)
{
    sd_mail_t  *mail;

    mail = calloc(1, sizeof(sd_mail_t));

    if (mail) {
        mail->event.type = type;
        mail->event.rgb_scale = 1;
    }

    return mail;
}


void
sd_mail_free(sd_mail_t *mail)
{
    if (mail) {
        sd_buf_free(&mail->rgb);
        sd_buf_free(&mail->latent);
        free(mail);
    }
}


/* takes an unread preview of this image out */

static void
sd_job_unmail_locked(sd_job_t *job, int image)
{
    sd_mail_t  *mail, **p;

    for (p = &job->mail; *p; p = &(*p)->next) {
        mail = *p;

        if (!mail->request && mail->event.type == SD_EVENT_PREVIEW
            && mail->event.image == image && !mail->event.last)
        {
            *p = mail->next;

            if (*p == NULL) {
                job->last_mail = p;
            }

            sd_mail_free(mail);
            sd_stats_count(job->engine->stats, SD_COUNT_DROPPED, 1);

            return;
        }
    }
}


void
sd_job_mail_locked(sd_job_t *job, sd_mail_t *mail)
{
    sd_engine_t  *e;

    e = job->engine;

    if (job->closed) {
        sd_mail_free(mail);
        return;
    }

    if (!mail->request && mail->event.type == SD_EVENT_PREVIEW
        && job->params.format->progressive && !mail->event.last)
    {
        sd_job_unmail_locked(job, mail->event.image);
    }

    mail->next = NULL;
    *job->last_mail = mail;
    job->last_mail = &mail->next;

    if (!job->busy) {
        job->busy = 1;
        sd_job_ref(job);

        job->next_ready = NULL;
        *e->last_ready = job;
        e->last_ready = &job->next_ready;

        /* all of them: before its 2.41, glibc's pthread_cond_signal() may
         * wake nobody where several wait (its bug 25847) */
        pthread_cond_broadcast(&e->encoder_cond);
    }
}


void
sd_job_mail(sd_job_t *job, sd_mail_t *mail)
{
    pthread_mutex_lock(&job->engine->lock);
    sd_job_mail_locked(job, mail);
    pthread_mutex_unlock(&job->engine->lock);
}


void
sd_job_error_locked(sd_job_t *job, const sd_error_t *err)
{
    sd_mail_t  *mail;

    mail = sd_mail_new(SD_EVENT_ERROR);

    if (mail == NULL) {

        /* without memory for an error there is but one thing to say */
        sd_job_cut_locked(job);
        return;
    }

    mail->event.last = 1;
    mail->event.step = job->report.step;
    mail->event.steps = job->report.steps;
    mail->event.seed = job->report.seed;
    mail->event.error = *err;

    sd_job_mail_locked(job, mail);
}


void
sd_job_error(sd_job_t *job, const sd_error_t *err)
{
    pthread_mutex_lock(&job->engine->lock);
    sd_job_error_locked(job, err);
    pthread_mutex_unlock(&job->engine->lock);
}


/* the outbox */

sd_chunk_t *
sd_chunk_new(void)
{
    sd_chunk_t  *chunk;

    chunk = calloc(1, sizeof(sd_chunk_t));

    if (chunk) {
        chunk->image = -1;
    }

    return chunk;
}


void
sd_chunk_free(sd_chunk_t *chunk)
{
    if (chunk) {
        sd_buf_free(&chunk->bytes);
        free(chunk);
    }
}


static void
sd_job_unsend_locked(sd_job_t *job, int image)
{
    sd_chunk_t  *chunk, **p;

    for (p = &job->chunks; *p; p = &(*p)->next) {
        chunk = *p;

        if (chunk->image == image) {
            *p = chunk->next;

            if (*p == NULL) {
                job->last_chunk = p;
            }

            sd_chunk_free(chunk);
            sd_stats_count(job->engine->stats, SD_COUNT_DROPPED, 1);

            return;
        }
    }
}


static void
sd_job_wake_locked(sd_job_t *job)
{
    sd_engine_t  *e;

    e = job->engine;

    if (!job->wake) {
        job->wake = 1;
        sd_job_ref(job);

        job->next_wake = e->wake;
        e->wake = job;

        sd_engine_wake_io(e);
    }
}


void
sd_job_send_locked(sd_job_t *job, sd_chunk_t *chunk)
{
    if (job->closed || job->ended) {
        sd_chunk_free(chunk);
        return;
    }

    if (chunk->image >= 0) {
        sd_job_unsend_locked(job, chunk->image);
    }

    job->ended = chunk->end;

    *job->last_chunk = chunk;
    job->last_chunk = &chunk->next;

    sd_job_wake_locked(job);
}


void
sd_job_cut_locked(sd_job_t *job)
{
    job->ended = 1;
    sd_job_wake_locked(job);
}


void
sd_job_send(sd_job_t *job, sd_chunk_t *chunk)
{
    pthread_mutex_lock(&job->engine->lock);
    sd_job_send_locked(job, chunk);
    pthread_mutex_unlock(&job->engine->lock);
}


sd_chunk_t *
sd_job_chunk(sd_job_t *job)
{
    sd_chunk_t  *chunk;

    pthread_mutex_lock(&job->engine->lock);

    chunk = job->chunks;

    if (chunk) {
        job->chunks = chunk->next;

        if (job->chunks == NULL) {
            job->last_chunk = &job->chunks;
        }
    }

    pthread_mutex_unlock(&job->engine->lock);

    return chunk;
}


void
sd_job_close(sd_job_t *job)
{
    sd_mail_t   *mail, *mails;
    sd_chunk_t  *chunk, *chunks;

    pthread_mutex_lock(&job->engine->lock);

    job->closed = 1;

    chunks = job->chunks;
    job->chunks = NULL;
    job->last_chunk = &job->chunks;

    mails = job->mail;
    job->mail = NULL;
    job->last_mail = &job->mail;

    pthread_mutex_unlock(&job->engine->lock);

    while ((chunk = chunks) != NULL) {
        chunks = chunk->next;
        sd_chunk_free(chunk);
    }

    while ((mail = mails) != NULL) {
        mails = mail->next;
        sd_mail_free(mail);
    }
}


/* what is told about it */

void
sd_job_result_locked(sd_job_t *job, int status, sd_result_t result)
{
    if (job->result != SD_RESULT_NONE) {
        return;
    }

    job->result = result;
    sd_stats_request(job->engine->stats, status, result);

    if (result == SD_RESULT_OK) {
        sd_stats_observe(job->engine->stats, SD_TIME_REQUEST,
                         (sd_engine_now() - job->arrived) * 1000);
    }
}


void
sd_job_report_locked(sd_job_t *job, sd_buf_t *out)
{
    int64_t           now;
    const char       *status;
    sd_frame_info_t  *r;

    r = &job->report;
    now = sd_engine_now();

    status = sd_result_names[job->result];

    if (job->result == SD_RESULT_NONE && job->admitted == 0) {
        status = "queued";
    }

    memset(r->status, 0, sizeof(r->status));
    memcpy(r->status, status, strlen(status));

    r->queue_time = (job->admitted ? job->admitted : now) - job->arrived;
    r->time = now - job->arrived;

    sd_frame_append(out, SD_FRAME_INFO, r, sizeof(sd_frame_info_t));
}
