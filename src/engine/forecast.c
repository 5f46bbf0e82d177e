/*
 * When those that wait will begin, which is what they are told, and where they
 * stand: the queue as it will be taken, on the devices as they will be free.
 */

#include <string.h>

#include "internal.h"


#define SD_MAX_RETRY_AFTER  3600
#define SD_FORECAST_TELL    1000        /* ms between two positions */
#define SD_FORECAST_LOOK    4096        /* pictures that are looked at */
#define SD_FORECAST_PLACES  512


/* where pictures will be taken, and what is left of those that are there: ms of
 * a device */

typedef struct {
    double      left[SD_FORECAST_PLACES];
    int         n, devices;
    double      done;                   /* by each place, so far */
    double      ms;                     /* in which it was */
} sd_places_t;


/* the slots of all devices, as far as these take pictures */

static void
sd_places_locked(sd_places_t *p, const sd_engine_t *e)
{
    int                        i, k;
    const sd_run_t            *run;
    const sd_engine_device_t  *d;

    memset(p, 0, sizeof(sd_places_t));

    for (k = 0; k < e->ndevices; k++) {
        d = &e->devices[k];

        if (d->state != SD_MODEL_READY) {
            continue;
        }

        p->devices++;

        for (i = 0; i < d->slots && p->n < SD_FORECAST_PLACES; i++) {
            run = &d->runs[i];
            p->left[p->n++] = run->job ? sd_cost_run_locked(run) : 0;
        }
    }
}


static void
sd_places_sift(sd_places_t *p, int i)
{
    int     k;
    double  left;

    left = p->left[i];

    for (k = 2 * i + 1; k < p->n; k = 2 * i + 1) {
        k += k + 1 < p->n && p->left[k + 1] < p->left[k];

        if (left <= p->left[k]) {
            break;
        }

        p->left[i] = p->left[k];
        i = k;
    }

    p->left[i] = left;
}


/* a heap, so that who is done first is the first */

static void
sd_places_sort(sd_places_t *p)
{
    int  i;

    for (i = p->n / 2 - 1; i >= 0; i--) {
        sd_places_sift(p, i);
    }
}


/* the next picture begins; ms from now.  All that run share the devices */

static double
sd_places_next(sd_places_t *p, double work)
{
    if (p->n == 0) {
        return 0;
    }

    p->ms += (p->left[0] - p->done) * p->n / p->devices;
    p->done = p->left[0];

    p->left[0] += work;
    sd_places_sift(p, 0);

    return p->ms;
}


/* when those that wait will begin, and how many before them */

static void
sd_forecast_locked(sd_engine_t *e)
{
    int                 n, position, image;
    double              work, ms;
    int64_t             now;
    sd_job_t           *job;
    sd_queue_walk_t     walk;
    sd_places_t   places;

    now = sd_engine_now();
    position = 0;

    sd_queue_walk_locked(&walk, e);
    sd_places_locked(&places, e);
    sd_places_sort(&places);

    for (n = 0; n < SD_FORECAST_LOOK; n++) {
        job = sd_queue_walk_next(&walk, &image);

        if (job == NULL) {
            break;
        }

        work = sd_cost_job_locked(job);
        ms = sd_places_next(&places, work);

        if (image == job->next_image) {
            sd_queue_weigh_locked(job, work * (job->params.images - image));
        }

        if (image == 0) {
            job->position = ++position;
            job->begins = places.n && work ? now + (int64_t) ms : 0;
        }
    }

    sd_status_changed_locked(e);
}


/*
 * Room comes when the next one begins, which is when the first of those that
 * run is done; and where the time is bounded, when enough of it has passed.
 */

int
sd_forecast_retry_after(sd_job_t *job)
{
    int                 i, s;
    double              ms, first, over;
    sd_engine_t        *e;
    sd_places_t   p;

    e = job->engine;
    ms = 0;

    pthread_mutex_lock(&e->lock);

    sd_places_locked(&p, e);

    if (p.n) {
        first = p.left[0];

        for (i = 1; i < p.n; i++) {
            first = p.left[i] < first ? p.left[i] : first;
        }

        ms = first * p.n / p.devices;
    }

    if (e->conf.queue_time && p.devices) {
        over = (e->queued + sd_cost_job_locked(job) * job->params.images)
               / p.devices - e->conf.queue_time;
        ms = over > ms ? over : ms;
    }

    pthread_mutex_unlock(&e->lock);

    s = ms / 1000 < SD_MAX_RETRY_AFTER ? ms / 1000 + 1 : SD_MAX_RETRY_AFTER;

    return s;
}


void
sd_forecast_place_locked(const sd_job_t *job, sd_event_t *ev)
{
    int64_t  left;

    ev->position = 0;
    ev->eta = -1;

    if (!job->waiting || job->next_image) {
        return;
    }

    ev->position = job->position;

    if (job->begins) {
        left = job->begins - sd_engine_now();
        ev->eta = left > 0 ? left / 1e3 : 0;
    }
}


/* where it stands, unless somebody has yet to come to what was told before */

static void
sd_forecast_mail_locked(sd_job_t *job)
{
    sd_mail_t  *mail;

    if (job->mail || job->chunks || !job->params.format->progressive
        || job->model->state != SD_MODEL_READY)
    {
        return;
    }

    mail = sd_mail_new(SD_EVENT_QUEUED);
    if (mail == NULL) {
        return;
    }

    sd_forecast_place_locked(job, &mail->event);

    job->told = mail->event.position;
    job->told_at = sd_engine_now();

    mail->event.steps = job->report.steps;
    mail->event.seed = job->report.seed;

    sd_job_mail_locked(job, mail);
}


void
sd_forecast_added(sd_job_t *job)
{
    sd_engine_t  *e;

    e = job->engine;

    pthread_mutex_lock(&e->lock);

    if (job->waiting && job->next_image == 0
        && e->nwaiting > sd_queue_free_locked(e))
    {
        job->position = e->nwaiting;
        sd_forecast_locked(e);
        sd_forecast_mail_locked(job);
    }

    pthread_mutex_unlock(&e->lock);
}


void
sd_forecast_tell(sd_engine_t *e)
{
    int        k;
    int64_t    now;
    sd_job_t  *job;

    pthread_mutex_lock(&e->lock);

    if (e->nwaiting) {
        sd_forecast_locked(e);
    }

    now = sd_engine_now();

    for (k = 0; k < SD_PRIORITIES; k++) {
        for (job = e->queues[k].first; job; job = job->next_waiting) {

            if (job->next_image == 0 && job->position != job->told
                && now - job->told_at >= SD_FORECAST_TELL)
            {
                sd_forecast_mail_locked(job);
            }
        }
    }

    pthread_mutex_unlock(&e->lock);
}
