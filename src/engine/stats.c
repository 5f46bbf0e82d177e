/*
 * The memory that engines count in: its entries, and the answers that are made
 * of it.  See stats.h.
 */

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../http/http.h"
#include "../io/utf8.h"
#include "stats.h"


#define SD_PID_BITS  22             /* the kernel's PID_MAX_LIMIT */
#define SD_PID_MASK  ((1 << SD_PID_BITS) - 1)


const char  *sd_result_names[SD_RESULTS] = {
    "running", "ok", "error", "cancelled", "timeout", "rejected", "handoff"
};


/* what requests are answered with; 0: any other */

static const int  sd_stats_codes[SD_STATS_CODES] = {
    0, 200, 204, 400, 404, 405, 406, 409, 413, 414, 415, 422, 429, 431, 499,
    500, 502, 503, 504, 507
};


/* upper bounds: microseconds, pictures; the last bucket, +Inf, has none */

static const uint64_t  sd_stats_times[SD_STATS_BOUNDS - 1] = {
    1000, 2500, 5000, 10000, 25000, 50000, 100000, 250000, 500000, 1000000,
    2500000, 5000000, 10000000, 20000000, 30000000, 60000000, 120000000,
    300000000, 600000000
};

static const uint64_t  sd_stats_pictures[] = { 1, 2, 4, 8, 16, 32, 64 };


static const struct {
    const char      *name;
    const char      *help;
    const uint64_t  *bounds;
    int              n;
    double           unit;

} sd_stats_histograms[SD_HISTOGRAMS] = {

#define SD_TIMES  sd_stats_times, SD_STATS_BOUNDS - 1, 1e-6

    { "sd_queue_seconds",
      "From a request's arrival until its first picture has a slot.",
      SD_TIMES },
    { "sd_first_preview_seconds",
      "From a request's arrival until its first preview, or picture.",
      SD_TIMES },
    { "sd_step_seconds",
      "Of a device for a step of the pictures that it steps together.",
      SD_TIMES },
    { "sd_request_seconds",
      "From a request's arrival until its answer's end, of those that end ok.",
      SD_TIMES },
    { "sd_step_pictures",
      "Pictures that were stepped together.",
      sd_stats_pictures, 7, 1 }
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


static const char  *sd_model_states[] = {
    "waiting", "loading", "ready", "failed"
};

static const char  *sd_engine_states[] = {
    "down", "running", "leaving", "draining"
};

static const char  *sd_memory_names[SD_MEMORIES] = {
    "weights", "arenas", "pictures", "prompts"
};


#define sd_load(p)  atomic_load_explicit(p, memory_order_relaxed)


/* entries */

size_t
sd_stats_size(int engines)
{
    return sizeof(sd_stats_t) + (size_t) engines * sizeof(sd_stats_engine_t);
}


void
sd_stats_init(sd_stats_t *s, size_t size)
{
    s->nengines = (size - sizeof(sd_stats_t)) / sizeof(sd_stats_engine_t);
}


/* a process's id, and when it began, so that no other process of the same id
 * is taken for it; 0: there is no such process, or nothing but its status */

static uint64_t
sd_stats_process(int pid)
{
    int                  fd, i;
    char                *p, buf[1024];
    ssize_t              n;
    unsigned long long   born;

    snprintf(buf, sizeof(buf), "/proc/%d/stat", pid);

    fd = open(buf, O_RDONLY|O_CLOEXEC);

    if (fd == -1) {

        /* without /proc, as in a chroot, there is but the id */

        return access("/proc/self/stat", F_OK) == -1 && kill(pid, 0) == 0 ? pid
                                                                          : 0;
    }

    n = read(fd, buf, sizeof(buf) - 1);
    close(fd);

    if (n <= 0) {
        return 0;
    }

    buf[n] = '\0';

    /* the 22nd field; the second is a name, and may have anything in it, the
     * third says zombie */

    p = strrchr(buf, ')');

    if (p && p[1] && (p[2] == 'Z' || p[2] == 'X')) {
        return 0;
    }

    for (i = 0; p && i < 20; i++) {
        p = strchr(p + 1, ' ');
    }

    born = p ? strtoull(p + 1, NULL, 10) : 0;

    return (uint64_t) born << SD_PID_BITS | (pid & SD_PID_MASK);
}


static int
sd_stats_alive(uint64_t owner)
{
    return owner && sd_stats_process(owner & SD_PID_MASK) == owner;
}


sd_stats_engine_t *
sd_stats_take(sd_stats_t *s, uint64_t cycle)
{
    int                 i;
    uint64_t            old, owner;
    sd_stats_engine_t  *e;

    owner = sd_stats_process(getpid());

    for (i = 0; i < s->nengines; i++) {
        e = &s->engines[i];
        old = atomic_load(&e->owner);

        if (sd_stats_alive(old)
            || !atomic_compare_exchange_strong(&e->owner, &old, owner))
        {
            continue;
        }

        atomic_store(&e->state, SD_ENGINE_DOWN);
        atomic_fetch_add(&e->taken, 1);

        memset(&e->cycle, 0,
               sizeof(sd_stats_engine_t) - offsetof(sd_stats_engine_t, cycle));

        atomic_store(&e->cycle, cycle);

        return e;
    }

    return NULL;
}


void
sd_stats_give(sd_stats_engine_t *e)
{
    atomic_store(&e->state, SD_ENGINE_DOWN);
    atomic_store(&e->owner, 0);
}


/* cut between two characters; what is no UTF-8 becomes question marks */

void
sd_stats_string(char *dst, size_t size, const char *src)
{
    size_t  k, len, n;

    len = strlen(src);

    for (k = 0; len; src += n, len -= n, k += n) {
        n = sd_utf8_length(src, len);

        if (k + (n ? n : 1) >= size) {
            break;
        }

        if (n) {
            memcpy(dst + k, src, n);

        } else {
            n = 1;
            dst[k] = '?';
        }
    }

    dst[k] = '\0';
}


void
sd_stats_error(sd_stats_error_t *dst, const sd_error_t *err)
{
    dst->status = err->status;
    sd_stats_string(dst->code, sizeof(dst->code), err->code ? err->code : "");
    sd_stats_string(dst->param, sizeof(dst->param), err->param);
    sd_stats_string(dst->message, sizeof(dst->message), err->message);
}


/* the engine of this cycle, or NULL */

static sd_stats_engine_t *
sd_stats_find(sd_stats_t *s, uint64_t cycle)
{
    int                 i;
    sd_stats_engine_t  *e;

    for (i = 0; i < s->nengines; i++) {
        e = &s->engines[i];

        if (atomic_load(&e->state) != SD_ENGINE_DOWN
            && atomic_load(&e->cycle) == cycle
            && sd_stats_alive(atomic_load(&e->owner)))
        {
            return e;
        }
    }

    return NULL;
}


/* counters */

void
sd_stats_request(sd_stats_t *s, int status, sd_result_t result)
{
    int  i;

    for (i = SD_STATS_CODES - 1; i > 0 && sd_stats_codes[i] != status; i--) {
        /* void */
    }

    sd_stats_add(&s->requests[i][result], 1);
}


void
sd_stats_observe(sd_stats_t *s, sd_histogram_id_t id, uint64_t value)
{
    int              i;
    sd_histogram_t  *h;

    h = &s->histograms[id];

    for (i = 0; i < sd_stats_histograms[id].n; i++) {
        if (value <= sd_stats_histograms[id].bounds[i]) {
            break;
        }
    }

    sd_stats_add(&h->buckets[i], 1);
    sd_stats_add(&h->sum, value);
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


/* JSON */

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


static int
sd_stats_running(sd_stats_engine_t *e)
{
    int  k, n, devices;

    devices = atomic_load(&e->ndevices);

    for (k = 0, n = 0; k < devices; k++) {
        n += sd_load(&e->devices[k].running);
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

    if (atomic_load(&e->state) == SD_ENGINE_DOWN || !sd_stats_alive(owner)) {
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


/* Prometheus' text */

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
    int              i;
    uint64_t         n;
    const char      *name;
    sd_histogram_t  *h;

    h = &s->histograms[id];
    name = sd_stats_histograms[id].name;

    sd_metric(out, name, "histogram", sd_stats_histograms[id].help);

    for (i = 0, n = 0; i < sd_stats_histograms[id].n; i++) {
        n += sd_load(&h->buckets[i]);

        sd_buf_printf(out, "%s_bucket{le=\"%g\"} %llu\n", name,
                      sd_stats_histograms[id].bounds[i]
                      * sd_stats_histograms[id].unit, (unsigned long long) n);
    }

    n += sd_load(&h->buckets[i]);

    sd_buf_printf(out, "%s_bucket{le=\"+Inf\"} %llu\n%s_sum %.*f\n"
                  "%s_count %llu\n", name, (unsigned long long) n, name,
                  sd_stats_histograms[id].unit < 1 ? 6 : 0,
                  sd_load(&h->sum) * sd_stats_histograms[id].unit, name,
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

        if (atomic_load(&e->state) == SD_ENGINE_DOWN
            || !sd_stats_alive(atomic_load(&e->owner)))
        {
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
