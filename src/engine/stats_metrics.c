/*
 * All that is counted, as Prometheus' text: sd_metrics.  See stats.h.
 */

#include <stdlib.h>
#include <string.h>

#include "stats_read.h"


static const struct {
    const char  *name;
    const char  *help;
    double       unit;          /* of what is observed */

} sd_metrics_histograms[SD_HISTOGRAMS] = {

    { "sd_queue_seconds",
      "From a request's arrival until its first picture has a slot.", 1e-6 },
    { "sd_first_preview_seconds",
      "From a request's arrival until its first preview, or picture.", 1e-6 },
    { "sd_step_seconds",
      "Of a device for a step of the pictures that it steps together.", 1e-6 },
    { "sd_request_seconds",
      "From a request's arrival until its answer's end, of those that end ok.",
      1e-6 },
    { "sd_step_pictures",
      "Pictures that were stepped together.", 1 }
};


/* consecutive rows of one name are one metric */

static const struct {
    const char  *name;
    const char  *labels;
    const char  *help;

} sd_stats_counters[SD_COUNTS] = {

    { "sd_pictures_total", "", "Pictures finished." },
    { "sd_steps_total", "", "Steps made, of all pictures." },
    { "sd_steps_wasted_total", "",
      "Steps of pictures that were not finished." },
    { "sd_previews_dropped_total", "",
      "Previews that a newer one replaced, as the client was slow." },
    { "sd_resumes_total", "{result=\"exact\"}",
      "Pictures gone on with from a state; exact: to the same bytes." },
    { "sd_resumes_total", "{result=\"inexact\"}", NULL },
    { "sd_resumes_total", "{result=\"refused\"}", NULL },
    { "sd_prompt_cache_total", "{result=\"hit\"}",
      "Prompts looked up among those that were encoded before." },
    { "sd_prompt_cache_total", "{result=\"miss\"}", NULL },
    { "sd_device_errors_total", "", "Failures of devices." },
    { "sd_engine_starts_total", "",
      "Engines started: the first, by reloads, after crashes." },
    { "sd_log_suppressed_total", "",
      "Warnings and errors that there were too many of for the log." }
};


static void
sd_metric(sd_buf_t *out, const char *name, const char *type, const char *help)
{
    sd_buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}


static void
sd_metric_label(sd_buf_t *out, const char *name, const char *value)
{
    sd_buf_printf(out, "%s=\"", name);

    for ( /* void */ ; *value; value++) {
        if (*value == '\n') {
            sd_buf_puts(out, "\\n");
            continue;
        }

        if (*value == '"' || *value == '\\') {
            sd_buf_puts(out, "\\");
        }

        sd_buf_append(out, value, 1);
    }

    sd_buf_puts(out, "\"");
}


static void
sd_metric_number(sd_buf_t *out, const char *name, uint64_t n)
{
    sd_buf_printf(out, "%s %llu\n", name, (unsigned long long) n);
}


/* of all results with the codes that they have had, and of each at least one,
 * so that a rate has something to begin at */

static void
sd_metrics_requests(sd_stats_t *s, sd_buf_t *out)
{
    int       i, k;
    uint64_t  n;

    static const int  usual[SD_RESULTS] = { -1, 200, 500, 499, 504, 503, 503 };

    sd_metric(out, "sd_requests_total", "counter",
              "Requests by their answer's status, and how they ended.");

    for (k = SD_RESULT_OK; k < SD_RESULTS; k++) {
        for (i = 0; i < SD_STATS_CODES; i++) {
            n = sd_load(&s->requests[i][k]);

            if (n == 0 && sd_stats_codes[i] != usual[k]) {
                continue;
            }

            sd_buf_puts(out, "sd_requests_total{code=\"");

            if (sd_stats_codes[i]) {
                sd_buf_printf(out, "%d", sd_stats_codes[i]);

            } else {
                sd_buf_puts(out, "other");
            }

            sd_buf_printf(out, "\",result=\"%s\"} %llu\n", sd_result_names[k],
                          (unsigned long long) n);
        }
    }
}


static void
sd_metrics_counters(sd_stats_t *s, sd_buf_t *out)
{
    int  i;

    for (i = 0; i < SD_COUNTS; i++) {
        if (sd_stats_counters[i].help) {
            sd_metric(out, sd_stats_counters[i].name, "counter",
                      sd_stats_counters[i].help);
        }

        sd_buf_printf(out, "%s%s %llu\n", sd_stats_counters[i].name,
                      sd_stats_counters[i].labels,
                      (unsigned long long) sd_load(&s->counts[i]));
    }
}


static void
sd_metrics_histogram(sd_stats_t *s, sd_buf_t *out, int id)
{
    int                       i;
    double                    unit;
    uint64_t                  n;
    const char               *name;
    sd_histogram_t           *h;
    const sd_stats_bounds_t  *b;

    h = &s->histograms[id];
    b = &sd_stats_bounds[id];
    name = sd_metrics_histograms[id].name;
    unit = sd_metrics_histograms[id].unit;

    sd_metric(out, name, "histogram", sd_metrics_histograms[id].help);

    for (i = 0, n = 0; i < b->n; i++) {
        n += sd_load(&h->buckets[i]);

        sd_buf_printf(out, "%s_bucket{le=\"%g\"} %llu\n", name,
                      b->at[i] * unit, (unsigned long long) n);
    }

    n += sd_load(&h->buckets[i]);

    sd_buf_printf(out, "%s_bucket{le=\"+Inf\"} %llu\n%s_sum %.*f\n"
                  "%s_count %llu\n", name, (unsigned long long) n, name,
                  unit < 1 ? 6 : 0, sd_load(&h->sum) * unit, name,
                  (unsigned long long) n);
}


static void
sd_metrics_device(sd_buf_t *out, const char *name, sd_stats_device_t *d, int n)
{
    sd_buf_printf(out, "%s{", name);
    sd_metric_label(out, "device", d->name);
    sd_buf_printf(out, "} %d\n", n);
}


static void
sd_metrics_devices(sd_stats_engine_t *e, sd_buf_t *out)
{
    int                 k, n;
    sd_stats_device_t  *d;

    n = e ? atomic_load(&e->ndevices) : 0;
    d = e ? e->devices : NULL;

    sd_metric(out, "sd_device_up", "gauge",
              "Whether the device has not failed.");

    for (k = 0; k < n; k++) {
        sd_metrics_device(out, "sd_device_up", &d[k],
                          atomic_load(&d[k].state) != SD_MODEL_FAILED);
    }

    sd_metric(out, "sd_device_slots", "gauge",
              "Pictures that can run on the device at a time.");

    for (k = 0; k < n; k++) {
        sd_metrics_device(out, "sd_device_slots", &d[k], sd_load(&d[k].slots));
    }

    sd_metric(out, "sd_device_running", "gauge",
              "Pictures that run on the device.");

    for (k = 0; k < n; k++) {
        sd_metrics_device(out, "sd_device_running", &d[k],
                          sd_load(&d[k].running));
    }
}


/* a line with a model's labels, but not twice: one that is configured by two
 * paths is two to the engine, and one to Prometheus */

static void
sd_metrics_model(sd_buf_t *out, size_t from, const char *name,
    const sd_stats_model_t *m, const sd_stats_device_t *d, double value)
{
    int         bf16;
    size_t      k;
    sd_buf_t    line;
    const char *p;

    memset(&line, 0, sizeof(sd_buf_t));

    p = strrchr(m->path, '/');
    p = p ? p + 1 : m->path;
    bf16 = strcmp(m->precision, "bf16") == 0;

    sd_buf_printf(&line, "%s{", name);
    sd_metric_label(&line, "name", m->name[0] ? m->name : p);
    sd_buf_puts(&line, ",");
    sd_metric_label(&line, "precision", m->precision);
    sd_buf_puts(&line, ",");
    sd_metric_label(&line, "fingerprint", m->fingerprint);

    if (d) {
        sd_buf_puts(&line, ",");
        sd_metric_label(&line, "device", d->name);
        sd_buf_puts(&line, ",");
        sd_metric_label(&line, "numerics", d->numerics[bf16]);
    }

    sd_buf_puts(&line, "} ");

    for (k = from; !line.failed && k + line.len <= out->len; k++) {
        if (memcmp(out->data + k, line.data, line.len) == 0) {
            sd_buf_free(&line);
            return;
        }
    }

    sd_buf_append(out, line.data, line.len);
    sd_buf_printf(out, "%.9g\n", value);
    out->failed |= line.failed;

    sd_buf_free(&line);
}


static void
sd_metrics_models(sd_stats_engine_t *e, sd_buf_t *out)
{
    int                 i, k, n, devices;
    size_t              from;
    sd_stats_model_t   *m;
    sd_stats_device_t  *d;

    n = e ? atomic_load(&e->nmodels) : 0;
    m = e ? e->models : NULL;

    sd_metric(out, "sd_model_info", "gauge",
              "A model on a device, while it is ready there.");
    from = out->len;

    for (i = 0; i < n; i++) {
        devices = atomic_load(&e->ndevices);

        for (k = 0; k < devices; k++) {
            d = &e->devices[k];

            if (atomic_load(&d->copies[i]) == SD_MODEL_READY) {
                sd_metrics_model(out, from, "sd_model_info", &m[i], d, 1);
            }
        }
    }

    sd_metric(out, "sd_model_ready", "gauge",
              "Whether the model is loaded and warm on some device.");
    from = out->len;

    for (i = 0; i < n; i++) {
        sd_metrics_model(out, from, "sd_model_ready", &m[i], NULL,
                         atomic_load(&m[i].state) == SD_MODEL_READY);
    }

    sd_metric(out, "sd_model_load_seconds", "gauge",
              "What loading and warming the model took.");
    from = out->len;

    for (i = 0; i < n; i++) {
        sd_metrics_model(out, from, "sd_model_load_seconds", &m[i], NULL,
                         sd_load(&m[i].load_ms) * 1e-3);
    }

    sd_metric(out, "sd_model_step_seconds", "gauge",
              "Of a device for a step of one picture of the model, lately.");
    from = out->len;

    for (i = 0; i < n; i++) {
        sd_metrics_model(out, from, "sd_model_step_seconds", &m[i], NULL,
                         sd_load(&m[i].step_us) * 1e-6);
    }
}


/* the engine that takes what comes now: the youngest, where there are more */

static sd_stats_engine_t *
sd_stats_current(sd_stats_engine_t **engines, int n)
{
    int                 i;
    sd_stats_engine_t  *e;

    for (i = 0, e = NULL; i < n; i++) {
        if (atomic_load(&engines[i]->state) == SD_ENGINE_RUNNING
            && (e == NULL
                || sd_load(&engines[i]->started) > sd_load(&e->started)))
        {
            e = engines[i];
        }
    }

    return e;
}


static int
sd_stats_all_ready(sd_stats_engine_t *e)
{
    int  i, n;

    n = e ? atomic_load(&e->nmodels) : 0;

    for (i = 0; i < n; i++) {
        if (atomic_load(&e->models[i].state) != SD_MODEL_READY) {
            return 0;
        }
    }

    return n > 0;
}


void
sd_stats_metrics(sd_stats_t *s, sd_buf_t *out)
{
    int                 i, k, n, waiting, connections, running;
    uint64_t            work, memory[SD_MEMORIES];
    sd_stats_engine_t  *e, **engines;

    engines = calloc(s->nengines + 1, sizeof(sd_stats_engine_t *));
    if (engines == NULL) {
        out->failed = 1;
        return;
    }

    n = waiting = connections = running = 0;
    work = 0;
    memset(memory, 0, sizeof(memory));

    for (i = 0; i < s->nengines; i++) {
        e = &s->engines[i];

        if (!sd_stats_lives(e)) {
            continue;
        }

        engines[n++] = e;

        running += sd_stats_running(e);
        waiting += sd_load(&e->waiting);
        work += sd_load(&e->work_ms);
        connections += sd_load(&e->connections);

        for (k = 0; k < SD_MEMORIES; k++) {
            memory[k] += sd_load(&e->memory[k]);
        }
    }

    e = sd_stats_current(engines, n);

    sd_metric(out, "sd_build_info", "gauge", "The module's version.");
    sd_buf_puts(out, "sd_build_info{version=\"" SD_VERSION "\"} 1\n");

    sd_metric(out, "sd_up", "gauge", "Whether an engine takes requests.");
    sd_metric_number(out, "sd_up", e != NULL);

    sd_metric(out, "sd_ready", "gauge",
              "Whether all its models are loaded and warm.");
    sd_metric_number(out, "sd_ready", sd_stats_all_ready(e));

    sd_metric(out, "sd_engines", "gauge",
              "Engines that live; after a reload, until the old one is done, "
              "two.");
    sd_metric_number(out, "sd_engines", n);

    sd_metrics_requests(s, out);
    sd_metrics_counters(s, out);

    for (i = 0; i < SD_HISTOGRAMS; i++) {
        sd_metrics_histogram(s, out, i);
    }

    sd_metric(out, "sd_queue_requests", "gauge", "Requests that wait.");
    sd_metric_number(out, "sd_queue_requests", waiting);

    sd_metric(out, "sd_queue_limit", "gauge",
              "How many may wait, by sd_queue.");
    sd_metric_number(out, "sd_queue_limit", e ? sd_load(&e->limit) : 0);

    sd_metric(out, "sd_queue_work_seconds", "gauge",
              "What they should take all devices.");
    sd_buf_printf(out, "sd_queue_work_seconds %.3f\n", work * 1e-3);

    sd_metric(out, "sd_queue_work_limit_seconds", "gauge",
              "How much that may be, by sd_queue; 0: as it comes.");
    sd_buf_printf(out, "sd_queue_work_limit_seconds %.3f\n",
                  e ? sd_load(&e->work_limit_ms) * 1e-3 : 0);

    sd_metric(out, "sd_connections", "gauge",
              "Requests that have not been answered to the end.");
    sd_metric_number(out, "sd_connections", connections);

    sd_metric(out, "sd_running_pictures", "gauge",
              "Pictures that run, of all engines.");
    sd_metric_number(out, "sd_running_pictures", running);

    sd_metric(out, "sd_memory_bytes", "gauge",
              "Of all engines, on a card its own; shared weights count twice.");

    for (k = 0; k < SD_MEMORIES; k++) {
        sd_buf_printf(out, "sd_memory_bytes{kind=\"%s\"} %llu\n",
                      sd_memory_names[k], (unsigned long long) memory[k]);
    }

    sd_metrics_devices(e, out);
    sd_metrics_models(e, out);

    free(engines);
}
