/*
 * The memory that engines count in: its entries, and the counters.  What is
 * told of it is made in stats_json.c and stats_metrics.c.  See stats.h.
 */

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../io/utf8.h"
#include "stats_read.h"


const char  *sd_result_names[SD_RESULTS] = {
    "running", "ok", "error", "cancelled", "timeout", "rejected", "handoff"
};


const char  *sd_memory_names[SD_MEMORIES] = {
    "weights", "arenas", "pictures", "prompts"
};


/* what requests are answered with; 0: any other */

const int  sd_stats_codes[SD_STATS_CODES] = {
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


const sd_stats_bounds_t  sd_stats_bounds[SD_HISTOGRAMS] = {
    [SD_TIME_QUEUE] = { sd_stats_times, SD_STATS_BOUNDS - 1 },
    [SD_TIME_PREVIEW] = { sd_stats_times, SD_STATS_BOUNDS - 1 },
    [SD_TIME_STEP] = { sd_stats_times, SD_STATS_BOUNDS - 1 },
    [SD_TIME_REQUEST] = { sd_stats_times, SD_STATS_BOUNDS - 1 },
    [SD_STEP_PICTURES] = { sd_stats_pictures, 7 }
};


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


int
sd_stats_lives(sd_stats_engine_t *e)
{
    return atomic_load(&e->state) != SD_ENGINE_DOWN
           && sd_stats_alive(atomic_load(&e->owner));
}


sd_stats_engine_t *
sd_stats_find(sd_stats_t *s, uint64_t cycle)
{
    int                 i;
    sd_stats_engine_t  *e;

    for (i = 0; i < s->nengines; i++) {
        e = &s->engines[i];

        if (atomic_load(&e->cycle) == cycle && sd_stats_lives(e)) {
            return e;
        }
    }

    return NULL;
}


int
sd_stats_running(sd_stats_engine_t *e)
{
    int  k, n, devices;

    devices = atomic_load(&e->ndevices);

    for (k = 0, n = 0; k < devices; k++) {
        n += sd_load(&e->devices[k].running);
    }

    return n;
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

    for (i = 0; i < sd_stats_bounds[id].n; i++) {
        if (value <= sd_stats_bounds[id].at[i]) {
            break;
        }
    }

    sd_stats_add(&h->buckets[i], 1);
    sd_stats_add(&h->sum, value);
}
