/*
 * What an engine, or that there is none, looks like in JSON: sd_status and
 * sd_ready.  See stats.h.
 */

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../http/http.h"
#include "stats_read.h"


static const char  *sd_model_states[] = {
    "waiting", "loading", "ready", "failed"
};

static const char  *sd_engine_states[] = {
    "down", "running", "leaving", "draining"
};


static void
sd_status_string(sd_buf_t *out, const char *key, const char *s)
{
    sd_buf_printf(out, "\"%s\":\"", key);
    sd_buf_json(out, s, strlen(s));
    sd_buf_puts(out, "\",");
}


static void
sd_status_error(sd_buf_t *out, const sd_stats_error_t *error)
{
    sd_error_t  err;

    (void) sd_error(&err, error->status, error->code, error->param, "%s",
                    error->message);
    sd_format_error(out, &err);
}


static void
sd_status_device(sd_buf_t *out, sd_stats_device_t *d)
{
    int  i, state;

    state = atomic_load(&d->state);

    sd_buf_puts(out, "{");
    sd_status_string(out, "name", d->name);
    sd_status_string(out, "state", sd_model_states[state]);

    i = d->numerics[0][0] == '\0';

    if (d->numerics[i][0]) {
        sd_status_string(out, "isa", d->isa);
        sd_status_string(out, "numerics", d->numerics[i]);
    }

    if (state == SD_MODEL_FAILED) {
        sd_status_error(out, &d->error);
        sd_buf_puts(out, ",");
    }

    sd_buf_printf(out, "\"threads\":%d,\"slots\":%d,\"running\":%d}",
                  d->threads, sd_load(&d->slots), sd_load(&d->running));
}


static void
sd_status_model(sd_buf_t *out, sd_stats_model_t *m)
{
    int  state;

    state = atomic_load(&m->state);

    sd_buf_puts(out, "{");
    sd_status_string(out, "name", m->name);
    sd_status_string(out, "path", m->path);
    sd_status_string(out, "state", sd_model_states[state]);
    sd_status_string(out, "precision", m->precision);

    if (m->fingerprint[0]) {
        sd_status_string(out, "numerics", m->numerics);
        sd_status_string(out, "fingerprint", m->fingerprint);

        sd_buf_printf(out, "\"width\":%d,\"height\":%d,"
                      "\"parameters\":%llu,\"file_bytes\":%llu,"
                      "\"packed_bytes\":%llu,", m->width, m->height,
                      (unsigned long long) m->parameters,
                      (unsigned long long) m->file_bytes,
                      (unsigned long long) m->packed_bytes);
    }

    if (state == SD_MODEL_FAILED) {
        sd_status_error(out, &m->error);
        sd_buf_puts(out, ",");
    }

    sd_buf_printf(out, "\"load_ms\":%d,\"step_ms\":%.1f}",
                  sd_load(&m->load_ms), sd_load(&m->step_us) / 1e3);
}


static uint64_t
sd_stats_requests(sd_stats_t *s, sd_result_t result)
{
    int       i;
    uint64_t  n;

    for (i = 0, n = 0; i < SD_STATS_CODES; i++) {
        n += sd_load(&s->requests[i][result]);
    }

    return n;
}


static int
sd_stats_slots(sd_stats_engine_t *e)
{
    int  k, n, devices;

    devices = atomic_load(&e->ndevices);

    for (k = 0, n = 0; k < devices; k++) {
        if (sd_load(&e->devices[k].state) != SD_MODEL_FAILED) {
            n += sd_load(&e->devices[k].slots);
        }
    }

    return n;
}


static double
sd_stats_uptime(sd_stats_engine_t *e)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return ts.tv_sec + ts.tv_nsec * 1e-9 - sd_load(&e->started) * 1e-3;
}


/* an engine that is none of this cycle's, in short; the next one may have taken
 * its entry meanwhile, and then nothing is said of it */

static void
sd_status_engine(sd_buf_t *out, sd_stats_engine_t *e)
{
    size_t    len;
    uint64_t  owner;
    unsigned  taken;

    len = out->len;
    taken = atomic_load(&e->taken);
    owner = atomic_load(&e->owner);

    if (!sd_stats_lives(e)) {
        return;
    }

    if (len && out->data[len - 1] == '}') {
        sd_buf_puts(out, ",");
    }

    sd_buf_printf(out, "{\"pid\":%d,\"uptime\":%.1f,\"status\":\"%s\","
                  "\"running\":%d,\"waiting\":%d,\"connections\":%d}",
                  (int) (owner & SD_PID_MASK), sd_stats_uptime(e),
                  sd_engine_states[atomic_load(&e->state)],
                  sd_stats_running(e), sd_load(&e->waiting),
                  sd_load(&e->connections));

    if (atomic_load(&e->taken) != taken) {
        out->len = len;
    }
}


void
sd_stats_status(sd_stats_t *s, uint64_t cycle, sd_buf_t *out)
{
    int                 i, n;
    sd_stats_engine_t  *e, *none;

    none = NULL;
    e = sd_stats_find(s, cycle);

    if (e == NULL) {
        none = calloc(1, sizeof(sd_stats_engine_t));
        e = none;
    }

    if (e == NULL) {
        out->failed = 1;
        return;
    }

    sd_buf_printf(out, "{\"version\":\"%s\",\"pid\":%d,\"uptime\":%.1f,"
                  "\"status\":\"%s\",\"devices\":[", SD_VERSION,
                  (int) (atomic_load(&e->owner) & SD_PID_MASK),
                  none ? 0 : sd_stats_uptime(e),
                  sd_engine_states[atomic_load(&e->state)]);

    n = atomic_load(&e->ndevices);

    for (i = 0; i < n; i++) {
        sd_buf_puts(out, i ? "," : "");
        sd_status_device(out, &e->devices[i]);
    }

    sd_buf_printf(out, "],\"slots\":%d,\"running\":%d,"
                  "\"queue\":{\"waiting\":%d,\"limit\":%d,\"seconds\":%.1f},"
                  "\"connections\":%d,\"requests\":{",
                  sd_stats_slots(e), sd_stats_running(e), sd_load(&e->waiting),
                  sd_load(&e->limit), sd_load(&e->work_ms) / 1e3,
                  sd_load(&e->connections));

    for (i = SD_RESULT_OK; i < SD_RESULTS; i++) {
        sd_buf_printf(out, "%s\"%s\":%llu", i > SD_RESULT_OK ? "," : "",
                      sd_result_names[i],
                      (unsigned long long) sd_stats_requests(s, i));
    }

    sd_buf_printf(out, "},\"pictures\":%llu,\"steps\":%llu,"
                  "\"wasted_steps\":%llu,\"dropped_previews\":%llu,"
                  "\"memory\":{",
                  (unsigned long long) sd_load(&s->counts[SD_COUNT_PICTURES]),
                  (unsigned long long) sd_load(&s->counts[SD_COUNT_STEPS]),
                  (unsigned long long) sd_load(&s->counts[SD_COUNT_WASTED]),
                  (unsigned long long) sd_load(&s->counts[SD_COUNT_DROPPED]));

    for (i = 0; i < SD_MEMORIES; i++) {
        sd_buf_printf(out, "%s\"%s\":%llu", i ? "," : "", sd_memory_names[i],
                      (unsigned long long) sd_load(&e->memory[i]));
    }

    sd_buf_puts(out, "},\"models\":[");

    n = atomic_load(&e->nmodels);

    for (i = 0; i < n; i++) {
        sd_buf_puts(out, i ? "," : "");
        sd_status_model(out, &e->models[i]);
    }

    sd_buf_puts(out, "],\"engines\":[");

    for (i = 0; i < s->nengines; i++) {
        sd_status_engine(out, &s->engines[i]);
    }

    sd_buf_puts(out, "]}\n");

    free(none);
}


/*
 * a device that has failed makes it 503, too, although others may go on: the
 * server has not all that it was given, and needs somebody
 */

int
sd_stats_ready(sd_stats_t *s, uint64_t cycle, uint32_t model, sd_buf_t *out)
{
    int                 i, n, state;
    const char         *status;
    sd_stats_error_t   *error;
    sd_stats_engine_t  *e;

    e = sd_stats_find(s, cycle);
    error = NULL;

    if (e == NULL) {
        status = "down";

    } else if (atomic_load(&e->state) != SD_ENGINE_RUNNING) {
        status = "draining";

    } else if (model >= (uint32_t) atomic_load(&e->nmodels)) {
        status = sd_model_states[SD_MODEL_WAITING];

    } else {
        state = atomic_load(&e->models[model].state);
        status = sd_model_states[state];

        if (state == SD_MODEL_FAILED) {
            error = &e->models[model].error;
        }

        n = atomic_load(&e->ndevices);

        for (i = 0; i < n && error == NULL; i++) {
            if (atomic_load(&e->devices[i].state) == SD_MODEL_FAILED) {
                status = "device_failed";
                error = &e->devices[i].error;
            }
        }
    }

    sd_buf_printf(out, "{\"status\":\"%s\"", status);

    if (error) {
        sd_buf_puts(out, ",");
        sd_status_error(out, error);
    }

    sd_buf_puts(out, "}\n");

    return status == sd_model_states[SD_MODEL_READY] ? 200 : 503;
}
