/*
 * Start and end of the engine: see engine.h for what it promises, internal.h
 * for how it is divided.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "internal.h"


static int sd_engine_init(sd_engine_t *e, const sd_engine_conf_t *conf,
    sd_error_t *err);
static int sd_engine_threads(sd_engine_t *e, sd_error_t *err);
static void sd_engine_free(sd_engine_t *e);


int
sd_engine_start(sd_engine_t **ep, const sd_engine_conf_t *conf,
    sd_error_t *err)
{
    sd_engine_t  *e;

    e = calloc(1, sizeof(sd_engine_t));
    if (e == NULL) {
        return sd_fail(err, "no memory for the engine");
    }

    e->epoll = -1;
    e->event = -1;
    e->started = sd_engine_now();
    e->last_ready = &e->ready;

    sd_queue_init(e);

    pthread_mutex_init(&e->lock, NULL);
    pthread_mutex_init(&e->log.lock, NULL);
    pthread_cond_init(&e->device_cond, NULL);
    pthread_cond_init(&e->encoder_cond, NULL);

    if (sd_engine_init(e, conf, err) != SD_OK
        || sd_status_start(e, err) != SD_OK
        || sd_engine_threads(e, err) != SD_OK)
    {
        sd_engine_stop(e);
        return SD_ERROR;
    }

    *ep = e;

    return SD_OK;
}


static int
sd_engine_init(sd_engine_t *e, const sd_engine_conf_t *conf, sd_error_t *err)
{
    int                  k;
    char               **devices;
    size_t               i;
    struct epoll_event   ev;

    e->conf = *conf;
    e->conf.models = NULL;
    e->conf.devices = NULL;
    e->conf.ndevices = 0;

    e->conf.slots = conf->slots < SD_MAX_SLOTS ? conf->slots : SD_MAX_SLOTS;
    e->conf.queue = conf->queue > 0 ? conf->queue : 0;
    e->conf.encoders = conf->encoders > 0 ? conf->encoders : 2;
    e->conf.heartbeat = conf->heartbeat > 0 ? conf->heartbeat : 15000;

    e->nmodels = conf->nmodels;
    e->models = calloc(conf->nmodels + 1, sizeof(sd_engine_model_t));
    e->encoders = calloc(e->conf.encoders, sizeof(pthread_t));

    e->conf.sizes = NULL;
    e->conf.nsizes = 0;
    e->conf.cache = conf->cache ? strdup(conf->cache) : NULL;

    if (conf->nsizes) {
        e->conf.sizes = malloc(conf->nsizes * sizeof(sd_size_t));

        if (e->conf.sizes == NULL) {
            return sd_fail(err, "no memory for the engine");
        }

        memcpy((void *) e->conf.sizes, conf->sizes,
               conf->nsizes * sizeof(sd_size_t));
        e->conf.nsizes = conf->nsizes;
    }

    devices = calloc(conf->ndevices + 1, sizeof(char *));
    e->conf.devices = (const char *const *) devices;

    if (e->models == NULL || e->encoders == NULL || devices == NULL) {
        return sd_fail(err, "no memory for the engine");
    }

    for (k = 0; k < conf->ndevices; k++) {
        devices[k] = strdup(conf->devices[k]);

        if (devices[k] == NULL) {
            return sd_fail(err, "no memory for the engine");
        }

        e->conf.ndevices++;
    }

    for (i = 0; i < e->nmodels; i++) {
        snprintf(e->models[i].path, sizeof(e->models[i].path), "%s",
                 conf->models[i].path);
        e->models[i].precision = conf->models[i].precision;
    }

    e->epoll = epoll_create1(EPOLL_CLOEXEC);
    e->event = eventfd(0, EFD_NONBLOCK|EFD_CLOEXEC);

    ev.events = EPOLLIN;
    ev.data.ptr = NULL;

    if (e->epoll == -1 || e->event == -1
        || epoll_ctl(e->epoll, EPOLL_CTL_ADD, e->event, &ev) == -1)
    {
        return sd_fail(err, "epoll or eventfd failed");
    }

    return SD_OK;
}


static int
sd_engine_threads(sd_engine_t *e, sd_error_t *err)
{
    int  i;

    if (sd_engine_thread(&e->io, sd_io_thread, e, "sd-io", -1, err) != SD_OK) {
        return SD_ERROR;
    }

    e->nio = 1;

    for (i = 0; i < e->conf.encoders; i++) {
        if (sd_engine_thread(&e->encoders[i], sd_encoder_thread, e, "sd-enc",
                             i, err)
            != SD_OK)
        {
            return SD_ERROR;
        }

        e->nencoders++;
    }

    if (sd_engine_thread(&e->device, sd_device_thread, e, "sd-steps", 0, err)
        != SD_OK)
    {
        return SD_ERROR;
    }

    e->ndevice = 1;

    return SD_OK;
}


void
sd_engine_quit(sd_engine_t *e)
{
    pthread_mutex_lock(&e->lock);
    e->quitting = 1;
    sd_engine_wake_io(e);
    pthread_mutex_unlock(&e->lock);

    sd_engine_leave(e);
}


void
sd_engine_leave(sd_engine_t *e)
{
    sd_status_leave(e, SD_ENGINE_LEAVING);

    pthread_mutex_lock(&e->lock);
    atomic_store(&e->leaving, 1);
    pthread_cond_broadcast(&e->device_cond);
    pthread_mutex_unlock(&e->lock);
}


int
sd_engine_active(sd_engine_t *e)
{
    return atomic_load(&e->active);
}


static void
sd_engine_cancel_locked(sd_engine_t *e, sd_cancel_t reason)
{
    int                  i, k;
    sd_engine_device_t  *d;

    for (k = 0; k < e->ndevices; k++) {
        d = &e->devices[k];

        for (i = 0; i < d->slots; i++) {
            if (d->runs[i].job) {
                sd_queue_cancel_locked(d->runs[i].job, reason);
            }
        }
    }
}


/* those that wait are told at once, those that run within a step */

void
sd_engine_drain(sd_engine_t *e)
{
    sd_job_t  *job;

    pthread_mutex_lock(&e->lock);

    e->draining = 1;
    sd_status_leave(e, SD_ENGINE_DRAINING);

    sd_engine_cancel_locked(e, SD_CANCEL_DRAIN);
    sd_queue_cancel_all_locked(e, SD_CANCEL_DRAIN);

    /* and those that could not even be read yet */

    for (job = e->opened ? NULL : e->ready; job; job = job->next_ready) {
        sd_queue_cancel_locked(job, SD_CANCEL_DRAIN);
    }

    pthread_mutex_unlock(&e->lock);
}


void
sd_engine_stop(sd_engine_t *e)
{
    int  i;

    atomic_store(&e->stopping, 1);

    pthread_mutex_lock(&e->lock);

    sd_engine_cancel_locked(e, SD_CANCEL_STOP);

    pthread_cond_broadcast(&e->device_cond);
    pthread_cond_broadcast(&e->encoder_cond);

    pthread_mutex_unlock(&e->lock);

    if (e->event != -1) {
        sd_engine_wake_io(e);
    }

    if (e->ndevice) {
        pthread_join(e->device, NULL);
    }

    for (i = 0; i < e->nencoders; i++) {
        pthread_join(e->encoders[i], NULL);
    }

    if (e->nio) {
        pthread_join(e->io, NULL);
    }

    sd_engine_free(e);
}


/* no thread is left; jobs go before the models that their pictures are of */

static void
sd_engine_free(sd_engine_t *e)
{
    int        i, k;
    sd_job_t  *job;

    for (k = 0; k < e->ndevices; k++) {
        for (i = 0; i < e->devices[k].slots; i++) {
            if (e->devices[k].runs[i].job) {
                sd_picture_destroy(e->devices[k].runs[i].picture);
                sd_job_unref(e->devices[k].runs[i].job);
            }
        }
    }

    sd_queue_free(e);

    while ((job = e->ready) != NULL) {
        e->ready = job->next_ready;
        sd_job_unref(job);
    }

    while ((job = e->wake) != NULL) {
        e->wake = job->next_wake;
        sd_job_unref(job);
    }

    sd_devices_free(e);
    (void) sd_engine_suppressed(e, 1);
    sd_status_stop(e);

    if (e->event != -1) {
        close(e->event);
    }

    if (e->epoll != -1) {
        close(e->epoll);
    }

    /* memory is back: another engine may take its place */
    sd_generation_leave(e);

    pthread_cond_destroy(&e->device_cond);
    pthread_cond_destroy(&e->encoder_cond);
    pthread_mutex_destroy(&e->lock);
    pthread_mutex_destroy(&e->log.lock);

    for (k = 0; k < e->conf.ndevices; k++) {
        free((char *) e->conf.devices[k]);
    }

    free((void *) e->conf.sizes);
    free((char *) e->conf.cache);
    free((void *) e->conf.devices);
    free(e->encoders);
    free(e->models);
    free(e);
}
