/*
 * The cpu device's threads.
 *
 * One job at a time: a function and a number of tasks.  Threads take tasks from
 * a shared counter; the caller takes part, and returns when the last task is
 * done.  Idle threads spin for a few microseconds, since the next operation is
 * usually about to come, then sleep.  A mutex makes callers take turns, so that
 * two contexts may share a device.
 */

#define _GNU_SOURCE

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cpu.h"


#define SD_POOL_STACK    (8 * 1024 * 1024)
#define SD_POOL_SPIN     4000
#define SD_POOL_THREADS  1024


typedef struct {
    pthread_t   id;
    sd_pool_t  *pool;
    char       *scratch;
} sd_thread_t;


struct sd_pool_s {
    int                 threads;        /* the caller's included */
    int                 started;
    sd_thread_t        *thread;         /* [threads], [0] is the caller's */

    pthread_mutex_t     turn;           /* one caller at a time */
    pthread_mutex_t     mutex;
    pthread_cond_t      work, done;

    /* the job; written by the caller while nobody works */
    sd_task_pt          task;
    void               *data;
    int                 n;
    const atomic_int   *cancel;

    atomic_int          next;           /* task */
    atomic_int          cancelled;
    atomic_uint         job;            /* number of the job */
    atomic_int          busy;           /* threads that have not finished it */
    int                 quit;
};


static void *sd_pool_thread(void *data);
static void sd_pool_work(sd_pool_t *pool, char *scratch);
static int sd_pool_quota(void);


static inline void
sd_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}


static void
sd_pool_work(sd_pool_t *pool, char *scratch)
{
    int  i;

    for ( ;; ) {
        i = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (i >= pool->n) {
            return;
        }

        if (pool->cancel != NULL
            && atomic_load_explicit(pool->cancel, memory_order_relaxed))
        {
            atomic_store_explicit(&pool->cancelled, 1, memory_order_relaxed);
            return;
        }

        pool->task(pool->data, i, scratch);
    }
}


static void *
sd_pool_thread(void *data)
{
    int           i;
    unsigned      seen, job;
    sd_pool_t    *pool;
    sd_thread_t  *t = data;

    pool = t->pool;
    seen = 0;

    for ( ;; ) {
        for (i = 0; i < SD_POOL_SPIN; i++) {
            job = atomic_load_explicit(&pool->job, memory_order_acquire);
            if (job != seen) {
                break;
            }

            sd_pause();
        }

        if (i == SD_POOL_SPIN) {
            pthread_mutex_lock(&pool->mutex);

            for ( ;; ) {
                job = atomic_load_explicit(&pool->job, memory_order_acquire);
                if (job != seen) {
                    break;
                }

                pthread_cond_wait(&pool->work, &pool->mutex);
            }

            pthread_mutex_unlock(&pool->mutex);
        }

        seen = job;

        if (pool->quit) {
            return NULL;
        }

        sd_pool_work(pool, t->scratch);

        if (atomic_fetch_sub_explicit(&pool->busy, 1, memory_order_acq_rel)
            == 1)
        {
            pthread_mutex_lock(&pool->mutex);
            pthread_cond_signal(&pool->done);
            pthread_mutex_unlock(&pool->mutex);
        }
    }
}


int
sd_pool_run(sd_context_t *cx, sd_task_pt task, void *data, int n)
{
    int         i;
    sd_pool_t  *pool = ((sd_cpu_t *) cx->device->impl)->pool;

    pthread_mutex_lock(&pool->turn);

    pool->task = task;
    pool->data = data;
    pool->n = n;
    pool->cancel = cx->cancel;

    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->cancelled, 0, memory_order_relaxed);

    if (n == 1 || pool->started == 0) {
        sd_pool_work(pool, pool->thread[0].scratch);

    } else {
        atomic_store_explicit(&pool->busy, pool->started,
                              memory_order_relaxed);

        /* under the mutex, or a thread about to sleep would miss it */

        pthread_mutex_lock(&pool->mutex);
        atomic_fetch_add_explicit(&pool->job, 1, memory_order_release);
        pthread_cond_broadcast(&pool->work);
        pthread_mutex_unlock(&pool->mutex);

        sd_pool_work(pool, pool->thread[0].scratch);

        for (i = 0; i < SD_POOL_SPIN; i++) {
            if (atomic_load_explicit(&pool->busy, memory_order_acquire) == 0) {
                break;
            }

            sd_pause();
        }

        if (i == SD_POOL_SPIN) {
            pthread_mutex_lock(&pool->mutex);

            while (atomic_load_explicit(&pool->busy, memory_order_acquire)
                   != 0)
            {
                pthread_cond_wait(&pool->done, &pool->mutex);
            }

            pthread_mutex_unlock(&pool->mutex);
        }
    }

    if (atomic_load_explicit(&pool->cancelled, memory_order_relaxed)) {
        cx->status = SD_CANCELLED;
    }

    pthread_mutex_unlock(&pool->turn);

    return cx->status;
}


int
sd_pool_create(sd_pool_t **out, int threads, sd_error_t *err)
{
    int              i, rc;
    char             name[16];
    sigset_t         all, old;
    sd_pool_t       *pool;
    sd_thread_t     *t;
    pthread_attr_t   attr;

    if (threads <= 0) {
        threads = sd_pool_default_threads();
    }

    threads = sd_min(threads, SD_POOL_THREADS);

    pool = calloc(1, sizeof(sd_pool_t));
    if (pool == NULL) {
        return sd_fail(err, "no memory for the thread pool");
    }

    pool->threads = threads;

    pthread_mutex_init(&pool->turn, NULL);
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->work, NULL);
    pthread_cond_init(&pool->done, NULL);

    pool->thread = calloc(threads, sizeof(sd_thread_t));
    if (pool->thread == NULL) {
        sd_pool_destroy(pool);
        return sd_fail(err, "no memory for the thread pool");
    }

    for (i = 0; i < threads; i++) {
        t = &pool->thread[i];
        t->pool = pool;

        /* mapped, so that what no task uses costs no memory */

        t->scratch = mmap(NULL, SD_SCRATCH, PROT_READ|PROT_WRITE,
                          MAP_PRIVATE|MAP_ANONYMOUS, -1, 0);

        if (t->scratch == MAP_FAILED) {
            t->scratch = NULL;
            sd_pool_destroy(pool);
            return sd_fail(err, "no memory for the threads' scratch");
        }
    }

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);

    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, SD_POOL_STACK);

    rc = 0;

    for (i = 1; i < threads; i++) {
        t = &pool->thread[i];

        rc = pthread_create(&t->id, &attr, sd_pool_thread, t);
        if (rc != 0) {
            break;
        }

        pool->started++;

        snprintf(name, sizeof(name), "sd-cpu%d", i);
        pthread_setname_np(t->id, name);
    }

    pthread_attr_destroy(&attr);
    pthread_sigmask(SIG_SETMASK, &old, NULL);

    if (rc != 0) {
        sd_pool_destroy(pool);
        return sd_fail(err, "cannot start %d threads: %s", threads,
                       strerror(rc));
    }

    *out = pool;

    return SD_OK;
}


void
sd_pool_destroy(sd_pool_t *pool)
{
    int  i;

    if (pool->started) {
        pthread_mutex_lock(&pool->mutex);
        pool->quit = 1;
        atomic_fetch_add_explicit(&pool->job, 1, memory_order_release);
        pthread_cond_broadcast(&pool->work);
        pthread_mutex_unlock(&pool->mutex);

        for (i = 1; i <= pool->started; i++) {
            pthread_join(pool->thread[i].id, NULL);
        }
    }

    if (pool->thread != NULL) {
        for (i = 0; i < pool->threads; i++) {
            if (pool->thread[i].scratch != NULL) {
                munmap(pool->thread[i].scratch, SD_SCRATCH);
            }
        }
    }

    pthread_mutex_destroy(&pool->turn);
    pthread_mutex_destroy(&pool->mutex);
    pthread_cond_destroy(&pool->work);
    pthread_cond_destroy(&pool->done);

    free(pool->thread);
    free(pool);
}


/* cpus by the cgroup's quota, rounded up; 0 for no limit or none readable */

static int
sd_pool_quota(void)
{
    int        n;
    FILE      *f;
    char       line[4096], path[4200], *p, *dir;
    double     quota, period, limit;

    limit = 0;

    f = fopen("/proc/self/cgroup", "r");
    if (f == NULL) {
        return 0;
    }

    while (fgets(line, sizeof(line), f) != NULL) {
        line[strcspn(line, "\n")] = '\0';

        p = strchr(line, ':');
        dir = p ? strchr(p + 1, ':') : NULL;
        if (dir == NULL) {
            continue;
        }

        *dir++ = '\0';
        p++;

        /* every ancestor's limit counts; in a container the path may not
         * exist, and the root is the container's own */

        for ( ;; ) {
            FILE  *q;

            quota = 0;
            period = 0;
            n = 0;

            if (*p == '\0') {
                snprintf(path, sizeof(path), "/sys/fs/cgroup%s/cpu.max", dir);

                q = fopen(path, "r");
                if (q != NULL) {
                    n = fscanf(q, "%lf %lf", &quota, &period);
                    fclose(q);
                }

            } else if (strcmp(p, "cpu") == 0 || strncmp(p, "cpu,", 4) == 0
                       || strstr(p, ",cpu") != NULL)
            {
                snprintf(path, sizeof(path),
                         "/sys/fs/cgroup/cpu%s/cpu.cfs_quota_us", dir);

                q = fopen(path, "r");
                if (q != NULL) {
                    n = fscanf(q, "%lf", &quota);
                    fclose(q);
                }

                snprintf(path, sizeof(path),
                         "/sys/fs/cgroup/cpu%s/cpu.cfs_period_us", dir);

                q = fopen(path, "r");
                if (q != NULL) {
                    n += fscanf(q, "%lf", &period);
                    fclose(q);
                }
            }

            if (n == 2 && quota > 0 && period > 0
                && (limit == 0 || quota / period < limit))
            {
                limit = quota / period;
            }

            if (dir[0] == '\0') {
                break;
            }

            *strrchr(dir, '/') = '\0';
        }
    }

    fclose(f);

    if (limit == 0 || limit > SD_POOL_THREADS) {
        return 0;
    }

    n = (int) limit;

    return n < limit ? n + 1 : n;
}


int
sd_pool_default_threads(void)
{
    int        n, quota;
    cpu_set_t  set;

    n = 1;

    CPU_ZERO(&set);

    if (sched_getaffinity(0, sizeof(set), &set) == 0) {
        n = CPU_COUNT(&set);
    }

    quota = sd_pool_quota();

    if (quota > 0 && quota < n) {
        n = quota;
    }

    return sd_max(n, 1);
}
