/*
 * What the engine tells about itself: sd_status and sd_ready.  I/O thread.
 */

#include <string.h>
#include <unistd.h>

#include "internal.h"


#define SD_VERSION  "0.1.0"


static const char  *sd_model_states[] = {
    "waiting", "loading", "ready", "failed"
};


static void
sd_status_string(sd_buf_t *out, const char *key, const char *s)
{
    sd_buf_printf(out, "\"%s\":\"", key);
    sd_buf_json(out, s, strlen(s));
    sd_buf_puts(out, "\",");
}


static void
sd_status_device_locked(sd_buf_t *out, const sd_engine_device_t *d)
{
    const sd_device_t       *device;
    const sd_engine_unit_t  *u;

    u = &d->units[d->units[SD_PRECISION_EXACT].device ? SD_PRECISION_EXACT
                                                      : SD_PRECISION_BF16];
    device = u->device;

    sd_buf_puts(out, "{");
    sd_status_string(out, "name", d->name);
    sd_status_string(out, "state", sd_model_states[d->state]);

    if (device) {
        sd_status_string(out, "isa", device->isa);
        sd_status_string(out, "numerics", device->numerics);

    } else {
        u = &d->units[d->units[SD_PRECISION_EXACT].failed ? SD_PRECISION_EXACT
                                                        : SD_PRECISION_BF16];
        sd_format_error(out, &u->error);
        sd_buf_puts(out, ",");
    }

    sd_buf_printf(out, "\"threads\":%d,\"slots\":%d,\"running\":%d}",
                  device ? device->threads : 0, d->slots, d->nrunning);
}


static void
sd_status_model_locked(sd_buf_t *out, const sd_engine_t *e,
    const sd_engine_model_t *m)
{
    sd_model_t  *model;

    model = m->model;

    sd_buf_puts(out, "{");
    sd_status_string(out, "name", model ? model->name : "");
    sd_status_string(out, "path", m->path);
    sd_status_string(out, "state", sd_model_states[m->state]);
    sd_status_string(out, "precision", m->precision == SD_PRECISION_BF16
                                       ? "bf16" : "exact");

    if (model) {
        sd_status_string(out, "numerics", model->device->numerics);
        sd_status_string(out, "fingerprint", model->fingerprint);

        sd_buf_printf(out, "\"width\":%d,\"height\":%d,"
                      "\"parameters\":%llu,\"file_bytes\":%llu,"
                      "\"packed_bytes\":%zu,",
                      model->default_width, model->default_height,
                      (unsigned long long) model->parameters,
                      (unsigned long long) model->file_bytes,
                      model->packed_bytes);
    }

    if (m->state == SD_MODEL_FAILED) {
        sd_format_error(out, &m->error);
        sd_buf_puts(out, ",");
    }

    sd_buf_printf(out, "\"load_ms\":%u,\"step_ms\":%.1f}", m->load_time,
                  model ? sd_cost_step_locked(e, m, model->default_width,
                                              model->default_height) : 0);
}


int
sd_engine_status(sd_engine_t *e, sd_buf_t *out)
{
    int     i;
    size_t  k;

    pthread_mutex_lock(&e->lock);

    sd_buf_printf(out, "{\"version\":\"%s\",\"pid\":%d,\"uptime\":%.1f,"
                  "\"status\":\"%s\",",
                  SD_VERSION, (int) getpid(),
                  (sd_engine_now() - e->started) / 1e3,
                  e->draining ? "draining" : e->quitting ? "quitting"
                                                         : "running");

    sd_buf_puts(out, "\"devices\":[");

    for (i = 0; i < e->ndevices; i++) {
        sd_buf_puts(out, i ? "," : "");
        sd_status_device_locked(out, &e->devices[i]);
    }

    sd_buf_printf(out, "],\"slots\":%d,\"running\":%d,"
                  "\"queue\":{\"waiting\":%d,\"limit\":%d},"
                  "\"connections\":%d,\"requests\":{",
                  sd_queue_slots_locked(e), sd_queue_running_locked(e),
                  e->nwaiting, e->conf.queue, atomic_load(&e->active));

    for (i = SD_RESULT_OK; i < SD_RESULTS; i++) {
        sd_buf_printf(out, "%s\"%s\":%llu", i > SD_RESULT_OK ? "," : "",
                      sd_result_names[i], (unsigned long long) e->results[i]);
    }

    sd_buf_printf(out, "},\"steps\":%llu,\"wasted_steps\":%llu,"
                  "\"dropped_previews\":%llu,\"models\":[",
                  (unsigned long long) e->steps,
                  (unsigned long long) e->wasted,
                  (unsigned long long) e->dropped);

    for (k = 0; k < e->nmodels; k++) {
        sd_buf_puts(out, k ? "," : "");
        sd_status_model_locked(out, e, &e->models[k]);
    }

    sd_buf_puts(out, "]}\n");

    pthread_mutex_unlock(&e->lock);

    return 200;
}


int
sd_engine_ready(sd_engine_t *e, uint32_t model, sd_buf_t *out)
{
    int                       status;
    const sd_engine_model_t  *m;

    m = &e->models[model];

    pthread_mutex_lock(&e->lock);

    status = m->state == SD_MODEL_READY && !e->draining ? 200 : 503;

    sd_buf_printf(out, "{\"status\":\"%s\"",
                  e->draining ? "draining" : sd_model_states[m->state]);

    if (m->state == SD_MODEL_FAILED) {
        sd_buf_puts(out, ",");
        sd_format_error(out, &m->error);
    }

    sd_buf_puts(out, "}\n");

    pthread_mutex_unlock(&e->lock);

    return status;
}
