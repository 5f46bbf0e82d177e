/*
 * Threads, the clock that they go by, and how the I/O thread is woken.
 */

#define _GNU_SOURCE

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"


#define SD_STACK  (8 * 1024 * 1024)


double
sd_engine_clock(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return ts.tv_sec * 1e3 + ts.tv_nsec * 1e-6;
}


int64_t
sd_engine_now(void)
{
    return (int64_t) sd_engine_clock();
}


/* an affinity that nginx gave its worker must not hold the engine down; the
 * kernel cuts the mask to what the cgroup allows */

int
sd_engine_thread(pthread_t *t, void *(*main)(void *), void *data,
    const char *name, int n, sd_error_t *err)
{
    int             rc;
    char            buf[16];
    sigset_t        all, old;
    cpu_set_t       cpus;
    pthread_attr_t  attr;

    sigfillset(&all);
    memset(&cpus, 0xff, sizeof(cpu_set_t));

    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, SD_STACK);
    pthread_attr_setaffinity_np(&attr, sizeof(cpu_set_t), &cpus);

    /* inherited, so that there is no moment in which one could be taken */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(t, &attr, main, data);
    pthread_sigmask(SIG_SETMASK, &old, NULL);

    pthread_attr_destroy(&attr);

    if (rc != 0) {
        return sd_fail(err, "pthread_create() failed: %s", strerror(rc));
    }

    if (n < 0) {
        snprintf(buf, sizeof(buf), "%s", name);

    } else {
        snprintf(buf, sizeof(buf), "%s%d", name, n);
    }

    pthread_setname_np(*t, buf);

    return SD_OK;
}


void
sd_engine_wake_io(sd_engine_t *e)
{
    uint64_t  one;

    one = 1;

    /* cannot fail but for a counter that is full, and then it wakes as well */
    (void) !write(e->event, &one, sizeof(one));
}
