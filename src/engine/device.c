/*
 * Devices: which there are, their opening, loading and failing.  The first
 * device's thread opens all of them, before requests are parsed; from then on
 * each belongs to its own threads.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ops/cuda.h"
#include "internal.h"


static int sd_devices_new(sd_engine_t *e, int n);
static void sd_devices_find(sd_engine_t *e);
static void sd_devices_no_memory(sd_engine_t *e);
static sd_engine_device_t *sd_devices_add(sd_engine_t *e, const char *name);
static void sd_device_failed_open(sd_engine_device_t *d);


/* names become devices */

void
sd_devices_open(sd_engine_t *e)
{
    int                  k;
    size_t               i;
    sd_engine_device_t  *d;

    if (sd_generation_enter(e) != SD_OK) {
        return;
    }

    sd_devices_find(e);

    for (k = 0; k < e->ndevices; k++) {
        d = &e->devices[k];

        for (i = 0; i < e->nmodels; i++) {
            sd_copy_open(d, i);
        }

        if (d->slots == 0) {
            sd_device_failed_open(d);
        }
    }

    if (e->ndevices == 0) {
        sd_devices_no_memory(e);
    }

    pthread_mutex_lock(&e->lock);
    e->opened = 1;
    sd_status_opened_locked(e);
    pthread_cond_broadcast(&e->encoder_cond);
    pthread_mutex_unlock(&e->lock);
}


static int
sd_devices_new(sd_engine_t *e, int n)
{
    int                  k;
    sd_engine_device_t  *devices;

    devices = calloc(n, sizeof(sd_engine_device_t));

    if (devices == NULL) {
        return SD_ERROR;
    }

    for (k = 0; k < n; k++) {
        devices[k].engine = e;
        devices[k].index = k;
        devices[k].copies = calloc(e->nmodels + 1, sizeof(sd_engine_copy_t));
        devices[k].runs = calloc(SD_MAX_SLOTS, sizeof(sd_run_t));

        if (devices[k].copies == NULL || devices[k].runs == NULL) {

            for ( /* void */ ; k >= 0; k--) {
                free(devices[k].copies);
                free(devices[k].runs);
            }

            free(devices);

            return SD_ERROR;
        }
    }

    pthread_mutex_lock(&e->lock);
    e->devices = devices;
    e->adevices = n;
    pthread_mutex_unlock(&e->lock);

    return SD_OK;
}


/* "auto" is all cards that can be used; where there is none, the cpu, and a
 * line in the log that says why */

static void
sd_devices_find(sd_engine_t *e)
{
    int                  k, n;
    char                 name[64];
    sd_error_t           err;
    sd_engine_device_t  *d;

    if (e->conf.ndevices && strcmp(e->conf.devices[0], "auto") != 0) {

        if (sd_devices_new(e, e->conf.ndevices) != SD_OK) {
            return;
        }

        for (k = 0; k < e->conf.ndevices; k++) {
            (void) sd_devices_add(e, e->conf.devices[k]);
        }

        return;
    }

    if (sd_cuda_cards(&n, &err) != SD_OK) {
        n = 0;
    }

    if (sd_devices_new(e, n + 1) != SD_OK) {
        return;
    }

    for (k = 0; k < n; k++) {
        snprintf(name, sizeof(name), "cuda:%d", k);
        d = sd_devices_add(e, name);

        if (sd_unit_open(d, SD_PRECISION_EXACT, &err) != SD_OK) {
            sd_engine_log(e, SD_LOG_WARN, "%s is left out: %s", name,
                          err.message);

            pthread_mutex_lock(&e->lock);
            d->units[SD_PRECISION_EXACT].failed = 0;
            e->ndevices--;
            pthread_mutex_unlock(&e->lock);
        }
    }

    if (e->ndevices == 0) {
        sd_engine_log(e, SD_LOG_NOTICE, "no GPU, the cpu computes: %s",
                      err.message);
        (void) sd_devices_add(e, "cpu");
    }
}


static void
sd_devices_no_memory(sd_engine_t *e)
{
    size_t              i;
    sd_engine_model_t  *m;

    pthread_mutex_lock(&e->lock);

    for (i = 0; i < e->nmodels; i++) {
        m = &e->models[i];
        m->state = SD_MODEL_FAILED;
        sd_fail(&m->error, "no memory for the devices");
    }

    pthread_mutex_unlock(&e->lock);

    sd_engine_log(e, SD_LOG_ERR, "no memory for the devices");
}


static sd_engine_device_t *
sd_devices_add(sd_engine_t *e, const char *name)
{
    sd_engine_device_t  *d;

    pthread_mutex_lock(&e->lock);

    d = &e->devices[e->ndevices++];

    snprintf(d->name, sizeof(d->name), "%s%s", name,
             strcmp(name, "cuda") == 0 ? ":0" : "");

    pthread_mutex_unlock(&e->lock);

    return d;
}


static void
sd_device_failed_open(sd_engine_device_t *d)
{
    int  i;

    i = d->units[SD_PRECISION_EXACT].failed ? SD_PRECISION_EXACT
                                            : SD_PRECISION_BF16;

    pthread_mutex_lock(&d->engine->lock);
    d->error = d->units[i].error;
    d->state = SD_MODEL_FAILED;
    pthread_mutex_unlock(&d->engine->lock);

    sd_stats_count(d->engine->stats, SD_COUNT_DEVICE_ERRORS, 1);
}


void
sd_device_load(sd_engine_device_t *d)
{
    size_t        i;
    sd_error_t    err;
    sd_engine_t  *e;
    sd_device_t  *device;

    e = d->engine;

    for (i = 0; i < e->nmodels && !atomic_load(&e->stopping); i++) {
        if (d->copies[i].state != SD_MODEL_FAILED) {
            sd_copy_load(d, i);
        }
    }

    /* from now on, somebody waits */

    for (i = 0; i < sizeof(d->units) / sizeof(d->units[0]); i++) {
        device = d->units[i].device;

        if (device == NULL) {
            continue;
        }

        sd_device_tune(device, 0);

        if (e->conf.cache
            && sd_device_plans(device, e->conf.cache, 1, &err) != SD_OK)
        {
            sd_engine_log(e, SD_LOG_WARN, "%s: %s", d->name, err.message);
        }
    }
}


void
sd_device_failed(sd_engine_device_t *d, sd_error_t *err)
{
    int           failed;
    size_t        i;
    sd_engine_t  *e;

    e = d->engine;

    pthread_mutex_lock(&e->lock);

    failed = d->state == SD_MODEL_FAILED;

    if (!failed) {
        d->error = *err;
        d->state = SD_MODEL_FAILED;
        sd_status_changed_locked(e);
    }

    pthread_mutex_unlock(&e->lock);

    if (!failed) {
        sd_stats_count(e->stats, SD_COUNT_DEVICE_ERRORS, 1);
    }

    /* by either of the device's threads */

    for (i = 0; i < e->nmodels; i++) {
        pthread_mutex_lock(&e->lock);
        failed = d->copies[i].state == SD_MODEL_FAILED;
        pthread_mutex_unlock(&e->lock);

        if (!failed) {
            sd_copy_failed(d, i, err);
        }
    }
}


void
sd_devices_free(sd_engine_t *e)
{
    int                  i, k;
    size_t               n;
    sd_engine_device_t  *d;

    for (k = 0; k < e->ndevices; k++) {
        d = &e->devices[k];

        for (n = 0; n < e->nmodels; n++) {
            sd_batch_destroy(d->copies[n].batch);
            sd_model_close(d->copies[n].model);
        }

        for (i = 0; i < 2; i++) {
            sd_unit_free(&d->units[i]);
        }
    }

    /* there was room for the cpu, too, where cards were looked for */

    for (k = 0; e->devices && k < e->adevices; k++) {
        free(e->devices[k].copies);
        free(e->devices[k].runs);
    }

    free(e->devices);
}
