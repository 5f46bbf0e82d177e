/*
 * The cpu device's threads.
 *
 * One job at a time: a function and a number of tasks.  How many there are and
 * which is next is one word, the ticket; a thread takes a task by counting it
 * up, and only then looks what the job is, which stays until the task is done.
 * So the caller, who takes part, waits for tasks and not for threads: one that
 * comes late, or that the system does not let run, delays nobody.
 *
 * Idle threads spin for some microseconds, since the next operation is usually
 * about to come, then sleep.  A mutex makes callers take turns, so that two
 * contexts may share a device.
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
    pthread_cond_t      work, finished;

    /* the job; written by the caller while no task is left */
    sd_task_pt          task;
    void               *data;
    const atomic_int   *cancel;

    _Alignas(64)
    atomic_ullong       ticket;         /* tasks, next task: 32 bits each */
    atomic_int          cancelled;
    atomic_int          done;           /* tasks */

    atomic_int          sleeping;       /* threads */
    atomic_int          waiting;        /* the caller sleeps, too */
    atomic_int          quit;
};


#define sd_ticket(n)         ((unsigned long long) (n) << 32)
#define sd_ticket_tasks(t)   ((int) ((t) >> 32))
#define sd_ticket_next(t)    ((int) ((t) & 0xffffffff))
#define sd_ticket_left(t)    (sd_ticket_next(t) < sd_ticket_tasks(t))


static void *sd_pool_thread(void *data);
static void sd_pool_task(sd_pool_t *pool, int task, char *scratch);
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
sd_pool_task(sd_pool_t *pool, int task, char *scratch)
{
    if (pool->cancel != NULL
        && atomic_load_explicit(pool->cancel, memory_order_relaxed))
    {
        atomic_store_explicit(&pool->cancelled, 1, memory_order_relaxed);
        return;
    }

    pool->task(pool->data, task, scratch);
}


/* takes tasks until none is left */

static void
sd_pool_work(sd_pool_t *pool, char *scratch)
{
    unsigned long long  t;

    t = atomic_load_explicit(&pool->ticket, memory_order_acquire);

    while (sd_ticket_left(t)) {

        if (!atomic_compare_exchange_weak_explicit(&pool->ticket, &t, t + 1,
                                                   memory_order_acq_rel,
                                                   memory_order_acquire))
        {
            continue;
        }

        sd_pool_task(pool, sd_ticket_next(t), scratch);

        /* the caller says that it waits before it looks for the last time */

        if (atomic_fetch_add(&pool->done, 1) == sd_ticket_tasks(t) - 1
            && atomic_load(&pool->waiting))
        {
            pthread_mutex_lock(&pool->mutex);
            pthread_cond_signal(&pool->finished);
            pthread_mutex_unlock(&pool->mutex);
        }

        t = atomic_load_explicit(&pool->ticket, memory_order_acquire);
    }
}


static void *
sd_pool_thread(void *data)
{
    int           i;
    sd_pool_t    *pool;
    sd_thread_t  *t = data;

    pool = t->pool;

    for ( ;; ) {
        for (i = 0; i < SD_POOL_SPIN; i++) {
            if (sd_ticket_left(atomic_load_explicit(&pool->ticket,
                                                    memory_order_acquire)))
            {
                break;
            }

            sd_pause();
        }

        if (i == SD_POOL_SPIN) {
            pthread_mutex_lock(&pool->mutex);
            atomic_fetch_add(&pool->sleeping, 1);

            while (!sd_ticket_left(atomic_load(&pool->ticket))
                   && !atomic_load(&pool->quit))
            {
                pthread_cond_wait(&pool->work, &pool->mutex);
            }

            atomic_fetch_sub(&pool->sleeping, 1);
            pthread_mutex_unlock(&pool->mutex);

            if (atomic_load(&pool->quit)) {
                return NULL;
            }
        }

        sd_pool_work(pool, t->scratch);
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
    pool->cancel = cx->cancel;

    atomic_store_explicit(&pool->cancelled, 0, memory_order_relaxed);

    if (n == 1 || pool->started == 0) {
        for (i = 0; i < n; i++) {
            sd_pool_task(pool, i, pool->thread[0].scratch);
        }

    } else {
        atomic_store_explicit(&pool->done, 0, memory_order_relaxed);

        /* whoever goes to sleep says so before looking at the ticket */

        atomic_store(&pool->ticket, sd_ticket(n));

        if (atomic_load(&pool->sleeping)) {
            pthread_mutex_lock(&pool->mutex);
            pthread_cond_broadcast(&pool->work);
            pthread_mutex_unlock(&pool->mutex);
        }

        sd_pool_work(pool, pool->thread[0].scratch);

        for (i = 0; i < SD_POOL_SPIN; i++) {
            if (atomic_load_explicit(&pool->done, memory_order_acquire) == n) {
                break;
            }

            sd_pause();
        }

        if (i == SD_POOL_SPIN) {
            pthread_mutex_lock(&pool->mutex);
            atomic_store(&pool->waiting, 1);

            while (atomic_load(&pool->done) != n) {
                pthread_cond_wait(&pool->finished, &pool->mutex);
            }

            atomic_store(&pool->waiting, 0);
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

    pool = aligned_alloc(64, sizeof(sd_pool_t));
    if (pool == NULL) {
        return sd_fail(err, "no memory for the thread pool");
    }

    memset(pool, 0, sizeof(sd_pool_t));

    pool->threads = threads;

    pthread_mutex_init(&pool->turn, NULL);
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->work, NULL);
    pthread_cond_init(&pool->finished, NULL);

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
        atomic_store(&pool->quit, 1);
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
    pthread_cond_destroy(&pool->finished);

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
