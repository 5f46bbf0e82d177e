/*
 * What is counted and told: buckets, entries and whose they are, the answers'
 * shape, and many threads at once.
 */

#define _GNU_SOURCE

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../src/engine/stats.h"
#include "tap.h"


#define THREADS  4
#define TIMES    20000


static sd_stats_t  *stats;
static sd_buf_t     text;


static void
fresh(int engines)
{
    size_t  size;

    size = sd_stats_size(engines);

    if (stats) {
        munmap(stats, 1 << 20);
    }

    stats = mmap(NULL, 1 << 20, PROT_READ|PROT_WRITE,
                 MAP_SHARED|MAP_ANONYMOUS, -1, 0);

    sd_stats_init(stats, size);
}


static const char *
metrics(void)
{
    sd_buf_free(&text);
    sd_stats_metrics(stats, &text);
    sd_buf_append(&text, "", 1);

    return text.data;
}


static const char *
status(uint64_t cycle)
{
    sd_buf_free(&text);
    sd_stats_status(stats, cycle, &text);
    sd_buf_append(&text, "", 1);

    return text.data;
}


static const char *
ready(uint64_t cycle, int expected)
{
    sd_buf_free(&text);
    is_int(sd_stats_ready(stats, cycle, 0, &text), expected, "its status");
    sd_buf_append(&text, "", 1);

    return text.data;
}


/* the number after this text at a line's beginning, or -1 */

static double
metric(const char *name)
{
    size_t       n;
    const char  *p;

    n = strlen(name);

    for (p = metrics(); p; p = strchr(p, '\n'), p = p ? p + 1 : NULL) {
        if (strncmp(p, name, n) == 0 && p[n] == ' ') {
            return atof(p + n);
        }
    }

    return -1;
}


static void
test_buckets(void)
{
    fresh(1);

    is_int(stats->nengines, 1, "room for one");

    is_int(metric("sd_step_seconds_count"), 0, "an empty histogram");
    is_int(metric("sd_step_seconds_bucket{le=\"+Inf\"}"), 0, "of no values");

    sd_stats_observe(stats, SD_TIME_STEP, 0);
    sd_stats_observe(stats, SD_TIME_STEP, 1000);
    sd_stats_observe(stats, SD_TIME_STEP, 1001);
    sd_stats_observe(stats, SD_TIME_STEP, 5000);
    sd_stats_observe(stats, SD_TIME_STEP, 600 * 1000000LL);
    sd_stats_observe(stats, SD_TIME_STEP, 600 * 1000000LL + 1);
    sd_stats_observe(stats, SD_TIME_STEP, 86400 * 1000000LL);

    is_int(metric("sd_step_seconds_bucket{le=\"0.001\"}"), 2,
           "a bound belongs to its bucket");
    is_int(metric("sd_step_seconds_bucket{le=\"0.0025\"}"), 3,
           "what is above it to the next");
    is_int(metric("sd_step_seconds_bucket{le=\"0.005\"}"), 4, "5 ms");
    is_int(metric("sd_step_seconds_bucket{le=\"300\"}"), 4, "5 minutes");
    is_int(metric("sd_step_seconds_bucket{le=\"600\"}"), 5, "10 minutes");
    is_int(metric("sd_step_seconds_bucket{le=\"+Inf\"}"), 7, "more than that");
    is_int(metric("sd_step_seconds_count"), 7, "all of them");
    ok(metric("sd_step_seconds_sum") == 86400 + 1200 + 0.007002, "their sum");
    is_int(metric("sd_queue_seconds_count"), 0, "and in no other histogram");

    sd_stats_observe(stats, SD_STEP_PICTURES, 1);
    sd_stats_observe(stats, SD_STEP_PICTURES, 3);
    sd_stats_observe(stats, SD_STEP_PICTURES, 64);
    sd_stats_observe(stats, SD_STEP_PICTURES, 65);

    is_int(metric("sd_step_pictures_bucket{le=\"1\"}"), 1, "one picture");
    is_int(metric("sd_step_pictures_bucket{le=\"2\"}"), 1, "not two");
    is_int(metric("sd_step_pictures_bucket{le=\"4\"}"), 2, "three");
    is_int(metric("sd_step_pictures_bucket{le=\"64\"}"), 3, "64");
    is_int(metric("sd_step_pictures_count"), 4, "four steps");
    is_int(metric("sd_step_pictures_sum"), 133, "of so many pictures");
}


static void
test_requests(void)
{
    fresh(1);

    sd_stats_request(stats, 200, SD_RESULT_OK);
    sd_stats_request(stats, 200, SD_RESULT_OK);
    sd_stats_request(stats, 400, SD_RESULT_REJECTED);
    sd_stats_request(stats, 418, SD_RESULT_REJECTED);
    sd_stats_request(stats, -1, SD_RESULT_REJECTED);

    is_int(metric("sd_requests_total{code=\"200\",result=\"ok\"}"), 2, "ok");
    is_int(metric("sd_requests_total{code=\"400\",result=\"rejected\"}"), 1,
           "rejected");
    is_int(metric("sd_requests_total{code=\"other\",result=\"rejected\"}"), 2,
           "statuses that are not known are one");
    is_int(metric("sd_requests_total{code=\"503\",result=\"rejected\"}"), 0,
           "one of each result is there before it happens");
    is_int(metric("sd_requests_total{code=\"200\",result=\"timeout\"}"), -1,
           "but not all");
    ok(strstr(status(1), "\"requests\":{\"ok\":2,\"error\":0,\"cancelled\":0,"
              "\"timeout\":0,\"rejected\":3,\"handoff\":0}") != NULL,
       "summed in the status");
}


/* another process takes an entry, says so, and is killed where it stands */

static void
killed(uint64_t cycle)
{
    int                 fd[2];
    char                c;
    pid_t               pid;
    sd_stats_engine_t  *e;

    if (pipe(fd) == -1) {
        exit(1);
    }

    pid = fork();

    if (pid == 0) {
        e = sd_stats_take(stats, cycle);
        atomic_store(&e->waiting, 7);
        atomic_store(&e->state, SD_ENGINE_RUNNING);
        c = write(fd[1], "", 1);
        pause();
        _exit(c);
    }

    is_int(read(fd[0], &c, 1), 1, "another process has an engine");
    is_int(metric("sd_queue_requests"), 7, "which is seen");
    is_int(metric("sd_up"), 1, "as one that is up");

    kill(pid, SIGKILL);

    /* as a zombie it is dead already */

    waitid(P_PID, pid, (siginfo_t[1]) { 0 }, WEXITED|WNOWAIT);
    is_int(metric("sd_up"), 0, "one that is killed is not, before anybody "
           "has waited for it");
    waitpid(pid, NULL, 0);

    is_int(metric("sd_queue_requests"), 0, "nor later");
    ok(strstr(status(cycle), "\"status\":\"down\"") != NULL, "down");
    ok(strstr(status(cycle), "\"engines\":[]") != NULL, "none is left");

    close(fd[0]);
    close(fd[1]);
}


static void
test_entries(void)
{
    sd_stats_engine_t  *a, *b;

    fresh(2);

    is_int(metric("sd_up"), 0, "no engine");
    is_int(metric("sd_engines"), 0, "none at all");
    ok(strncmp(status(1), "{\"version\":\"" SD_VERSION "\",\"pid\":0,"
               "\"uptime\":0.0,\"status\":\"down\",\"devices\":[],", 50) == 0,
       "down");
    ok(strcmp(ready(1, 503), "{\"status\":\"down\"}\n") == 0, "nor ready");

    killed(1);
    killed(2);
    killed(3);

    a = sd_stats_take(stats, 1);
    ok(a != NULL && atomic_load(&a->waiting) == 0,
       "what the killed left is taken, and empty");
    is_int(metric("sd_engines"), 0, "nothing is told yet");

    atomic_store(&a->waiting, 1);
    atomic_store(&a->started, 1);
    atomic_store(&a->state, SD_ENGINE_LEAVING);

    b = sd_stats_take(stats, 2);
    ok(b != NULL && b != a, "another one");
    atomic_store(&b->waiting, 2);
    atomic_store(&b->limit, 5);
    atomic_store(&b->started, 2);
    atomic_store(&b->state, SD_ENGINE_RUNNING);

    ok(sd_stats_take(stats, 3) == NULL, "and no more");

    is_int(metric("sd_queue_requests"), 3, "gauges add up");
    is_int(metric("sd_queue_limit"), 5, "limits are the one's that runs");
    is_int(metric("sd_engines"), 2, "two engines");
    is_int(metric("sd_ready"), 0, "without models");

    ok(strstr(status(1), "\"status\":\"leaving\"") != NULL
       && strstr(status(1), "\"waiting\":1,") != NULL,
       "the status is of the own one");
    ok(strstr(status(2), "\"queue\":{\"waiting\":2,\"limit\":5,"
              "\"seconds\":0.0}") != NULL,
       "whose ever that is");
    ok(strcmp(ready(1, 503), "{\"status\":\"draining\"}\n") == 0,
       "one that leaves is not ready");
    ok(strcmp(ready(2, 503), "{\"status\":\"waiting\"}\n") == 0,
       "one that has not opened its models neither");

    sd_stats_give(a);
    is_int(metric("sd_engines"), 1, "one is given back");
    a = sd_stats_take(stats, 3);
    ok(a != NULL && atomic_load(&a->waiting) == 0, "and can be taken again");
    sd_stats_give(a);
    sd_stats_give(b);
}


static void
test_ready(void)
{
    sd_error_t          err;
    sd_stats_engine_t  *e;

    fresh(1);

    e = sd_stats_take(stats, 1);
    atomic_store(&e->state, SD_ENGINE_RUNNING);

    sd_stats_string(e->devices[0].name, 64, "cpu");
    sd_stats_string(e->devices[1].name, 64, "cuda:0");
    sd_stats_string(e->devices[0].numerics[0], 96, "n0");
    sd_stats_string(e->devices[1].numerics[0], 96, "n\"1\\");
    sd_stats_string(e->models[0].path, 1024, "/var/a");
    sd_stats_string(e->models[0].name, 64, "a");
    sd_stats_string(e->models[0].precision, 8, "exact");
    sd_stats_string(e->models[0].fingerprint, 68, "f00");
    e->models[1] = e->models[0];
    sd_stats_string(e->models[1].path, 1024, "/var/lib/a");
    atomic_store(&e->ndevices, 2);
    atomic_store(&e->nmodels, 2);

    ok(strcmp(ready(1, 503), "{\"status\":\"waiting\"}\n") == 0, "waiting");
    atomic_store(&e->models[0].state, SD_MODEL_LOADING);
    ok(strcmp(ready(1, 503), "{\"status\":\"loading\"}\n") == 0, "loading");
    atomic_store(&e->models[0].state, SD_MODEL_READY);
    ok(strcmp(ready(1, 200), "{\"status\":\"ready\"}\n") == 0, "ready");
    is_int(metric("sd_ready"), 0, "though not all that there is");
    atomic_store(&e->models[1].state, SD_MODEL_READY);
    is_int(metric("sd_ready"), 1, "now it is");

    atomic_store(&e->devices[0].copies[0], SD_MODEL_READY);
    atomic_store(&e->devices[1].copies[0], SD_MODEL_READY);
    atomic_store(&e->devices[0].copies[1], SD_MODEL_READY);

    is_int(metric("sd_model_info{name=\"a\",precision=\"exact\","
                  "fingerprint=\"f00\",device=\"cpu\",numerics=\"n0\"}"), 1,
           "a model on a device");
    is_int(metric("sd_model_info{name=\"a\",precision=\"exact\","
                  "fingerprint=\"f00\",device=\"cuda:0\","
                  "numerics=\"n\\\"1\\\\\"}"), 1, "and on another, escaped");
    ok(strstr(strstr(metrics(), "\nsd_model_ready{") + 1, "\nsd_model_ready{")
       == NULL, "one by two paths is told once");

    sd_error(&err, 500, "internal_error", NULL, "the card has \"gone\"");
    sd_stats_error(&e->devices[1].error, &err);
    atomic_store(&e->devices[1].state, SD_MODEL_FAILED);

    ok(strncmp(ready(1, 503), "{\"status\":\"device_failed\",\"error\":"
               "{\"message\":\"the card has \\\"gone\\\"\"", 60) == 0,
       "a device that fails makes it 503");
    is_int(metric("sd_device_up{device=\"cuda:0\"}"), 0, "and is down");
    is_int(metric("sd_device_up{device=\"cpu\"}"), 1, "the other is not");

    sd_error(&err, 503, "model_failed", "unet", "no such file");
    sd_stats_error(&e->models[0].error, &err);
    atomic_store(&e->models[0].state, SD_MODEL_FAILED);

    ok(strncmp(ready(1, 503), "{\"status\":\"failed\",\"error\":{\"message\":"
               "\"no such file\"", 50) == 0,
       "a model that fails does so first");
    ok(strstr(status(1), "\"name\":\"a\",\"path\":\"/var/a\",\"state\":"
              "\"failed\"") != NULL, "and stands in the status");

    sd_stats_give(e);
}


static void
test_strings(void)
{
    char  s[8];

    sd_stats_string(s, sizeof(s), "short");
    is_str(s, "short", "a short text");
    sd_stats_string(s, sizeof(s), "too long a text");
    is_str(s, "too lon", "a long one is cut");
    sd_stats_string(s, sizeof(s), "abcdef\xc3\xa9");
    is_str(s, "abcdef", "between two characters");
    sd_stats_string(s, sizeof(s), "a\xff\xc3");
    is_str(s, "a??", "and is UTF-8 in any case");
    sd_stats_string(s, sizeof(s), "");
    is_str(s, "", "nothing");
}


static void *
count(void *data)
{
    int                 i;
    sd_buf_t            b;
    sd_stats_engine_t  *e = data;

    memset(&b, 0, sizeof(sd_buf_t));

    for (i = 0; i < TIMES; i++) {
        sd_stats_count(stats, SD_COUNT_STEPS, 1);
        sd_stats_observe(stats, SD_TIME_STEP, i);
        sd_stats_request(stats, 200, SD_RESULT_OK);
        sd_stats_add(&e->memory[0], 3);
        sd_stats_add(&e->memory[0], -(uint64_t) 2);

        if (i % 1000 == 0) {
            sd_stats_metrics(stats, &b);
            sd_stats_status(stats, 1, &b);
            b.len = 0;
        }
    }

    sd_buf_free(&b);

    return NULL;
}


static void
test_threads(void)
{
    int                 i;
    pthread_t           t[THREADS];
    sd_stats_engine_t  *e;

    fresh(1);

    e = sd_stats_take(stats, 1);
    atomic_store(&e->state, SD_ENGINE_RUNNING);

    for (i = 0; i < THREADS; i++) {
        pthread_create(&t[i], NULL, count, e);
    }

    for (i = 0; i < THREADS; i++) {
        pthread_join(t[i], NULL);
    }

    is_int(metric("sd_steps_total"), THREADS * TIMES, "none is lost");
    is_int(metric("sd_step_seconds_count"), THREADS * TIMES, "nor of these");
    is_int(metric("sd_requests_total{code=\"200\",result=\"ok\"}"),
           THREADS * TIMES, "nor of those");
    is_int(metric("sd_memory_bytes{kind=\"weights\"}"), THREADS * TIMES,
           "what is taken back is not there");

    sd_stats_give(e);
    sd_buf_free(&text);
}


int
main(void)
{
    test_buckets();
    test_requests();
    test_entries();
    test_ready();
    test_strings();
    test_threads();

    return done();
}
