/*
 * The cpu device's threads.
 *
 * A job is a function and a number of tasks.  How many there are and which is
 * next is one word, the ticket; a thread takes a task by counting it up, and
 * only then looks what the job is, which stays until the task is done.  So the
 * caller, who takes part, waits for tasks and not for threads: one that comes
 * late, or that the system does not let run, delays nobody.
 *
 * Two callers may be at work beside each other, each in a lane.  Who is alone
 * has all threads.  Who is not has half of them, the caller included: each
 * worker belongs to one of the lanes, but for the last one, which belongs to
 * none, as there is one caller more; and whose lane is idle helps in the other.
 * Workers look again after each task, so that the shares are right within one.
 *
 * Idle threads spin for some microseconds, since the next operation is usually
 * about to come, then sleep.
 */

#define _GNU_SOURCE

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cores.h"
#include "cpu.h"


#define SD_POOL_STACK    (8 * 1024 * 1024)
#define SD_POOL_SPIN     4000
#define SD_POOL_THREADS  1024


#define SD_POOL_LANES    2


typedef struct {
    pthread_t   id;
    sd_pool_t  *pool;
    int         lane;                   /* SD_POOL_LANES: none */
    char       *scratch;
} sd_thread_t;


/* a caller's */

typedef struct {
    pthread_mutex_t     turn;           /* one caller at a time */
    pthread_cond_t      finished;
    char               *scratch;        /* the caller's */

    /* the job; written by the caller while no task is left */
    sd_task_pt          task;
    void               *data;
    const atomic_int   *cancel;

    _Alignas(64)
    atomic_ullong       ticket;         /* tasks, next task: 32 bits each */
    atomic_int          cancelled;
    atomic_int          done;           /* tasks */
    atomic_int          waiting;        /* the caller sleeps */

    /* who spins looks at the other lane's alone */

    _Alignas(64)
    atomic_int          busy;           /* there is a caller */
} sd_lane_t;


struct sd_pool_s {
    sd_lane_t           lanes[SD_POOL_LANES];

    int                 threads;        /* a caller included */
    int                 started;
    sd_thread_t        *thread;         /* [threads - 1] */

    cpu_set_t           cores;          /* of the device; or empty: any */

    pthread_mutex_t     mutex;

    /* of each lane's threads, and of those without one */
    pthread_cond_t      work[SD_POOL_LANES + 1];
    atomic_int          sleeping[SD_POOL_LANES + 1];

    atomic_int          quit;
};


#define sd_ticket(n)         ((unsigned long long) (n) << 32)
#define sd_ticket_tasks(t)   ((int) ((t) >> 32))
#define sd_ticket_next(t)    ((int) ((t) & 0xffffffff))
#define sd_ticket_left(t)    (sd_ticket_next(t) < sd_ticket_tasks(t))


static void *sd_pool_thread(void *data);
static sd_lane_t *sd_pool_lane(sd_pool_t *pool, int own);
static void sd_pool_task(sd_lane_t *lane, int task, char *scratch);
static int sd_pool_take(sd_pool_t *pool, sd_lane_t *lane, char *scratch);
static void sd_pool_wake(sd_pool_t *pool, int lane);
static int sd_pool_quota(void);


static inline void
sd_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}


static void
sd_pool_task(sd_lane_t *lane, int task, char *scratch)
{
    if (lane->cancel != NULL
        && atomic_load_explicit(lane->cancel, memory_order_relaxed))
    {
        atomic_store_explicit(&lane->cancelled, 1, memory_order_relaxed);
        return;
    }

    lane->task(lane->data, task, scratch);
}


/* takes a task; 0: none is left */

static int
sd_pool_take(sd_pool_t *pool, sd_lane_t *lane, char *scratch)
{
    unsigned long long  t;

    t = atomic_load_explicit(&lane->ticket, memory_order_acquire);

    do {
        if (!sd_ticket_left(t)) {
            return 0;
        }

    } while (!atomic_compare_exchange_weak_explicit(&lane->ticket, &t, t + 1,
                                                    memory_order_acq_rel,
                                                    memory_order_acquire));

    sd_pool_task(lane, sd_ticket_next(t), scratch);

    /* the caller says that it waits before it looks for the last time */

    if (atomic_fetch_add(&lane->done, 1) == sd_ticket_tasks(t) - 1
        && atomic_load(&lane->waiting))
    {
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_signal(&lane->finished);
        pthread_mutex_unlock(&pool->mutex);
    }

    return 1;
}


/* where a thread of this lane is to work now, or NULL */

static sd_lane_t *
sd_pool_lane(sd_pool_t *pool, int own)
{
    int         i;
    sd_lane_t  *lane, *other;

    for (i = 0; i < SD_POOL_LANES; i++) {
        lane = &pool->lanes[i];
        other = &pool->lanes[!i];

        if (sd_ticket_left(atomic_load(&lane->ticket))
            && (i == own || !atomic_load(&other->busy)))
        {
            return lane;
        }
    }

    return NULL;
}


static void *
sd_pool_thread(void *data)
{
    int           i;
    sd_lane_t    *lane;
    sd_pool_t    *pool;
    sd_thread_t  *t = data;

    pool = t->pool;

    for ( ;; ) {
        lane = NULL;

        for (i = 0; i < SD_POOL_SPIN; i++) {
            lane = sd_pool_lane(pool, t->lane);

            if (lane) {
                break;
            }

            sd_pause();
        }

        if (lane == NULL) {
            pthread_mutex_lock(&pool->mutex);
            atomic_fetch_add(&pool->sleeping[t->lane], 1);

            while (!atomic_load(&pool->quit)
                   && (lane = sd_pool_lane(pool, t->lane)) == NULL)
            {
                pthread_cond_wait(&pool->work[t->lane], &pool->mutex);
            }

            atomic_fetch_sub(&pool->sleeping[t->lane], 1);
            pthread_mutex_unlock(&pool->mutex);

            if (lane == NULL) {
                return NULL;
            }
        }

        (void) sd_pool_take(pool, lane, t->scratch);
    }
}


/* whoever goes to sleep says so before looking at the tickets */

static void
sd_pool_wake(sd_pool_t *pool, int lane)
{
    int  i, alone;

    alone = !atomic_load(&pool->lanes[!lane].busy);

    for (i = 0; i <= SD_POOL_LANES; i++) {
        if ((i == lane || alone) && atomic_load(&pool->sleeping[i])) {
            pthread_mutex_lock(&pool->mutex);
            pthread_cond_broadcast(&pool->work[i]);
            pthread_mutex_unlock(&pool->mutex);
        }
    }
}


int
sd_pool_run(sd_context_t *cx, sd_task_pt task, void *data, int n)
{
    int         i;
    sd_lane_t  *lane;
    sd_pool_t  *pool = ((sd_cpu_t *) cx->device->impl)->pool;

    lane = &pool->lanes[0];

    if (pthread_mutex_trylock(&lane->turn) != 0) {
        lane = &pool->lanes[1];
        pthread_mutex_lock(&lane->turn);
    }

    atomic_store(&lane->busy, 1);

    lane->task = task;
    lane->data = data;
    lane->cancel = cx->cancel;

    atomic_store_explicit(&lane->cancelled, 0, memory_order_relaxed);

    if (n == 1 || pool->started == 0) {
        for (i = 0; i < n; i++) {
            sd_pool_task(lane, i, lane->scratch);
        }

    } else {
        atomic_store_explicit(&lane->done, 0, memory_order_relaxed);
        atomic_store(&lane->ticket, sd_ticket(n));

        sd_pool_wake(pool, lane - pool->lanes);

        while (sd_pool_take(pool, lane, lane->scratch)) { /* void */ }

        for (i = 0; i < SD_POOL_SPIN; i++) {
            if (atomic_load_explicit(&lane->done, memory_order_acquire) == n) {
                break;
            }

            sd_pause();
        }

        if (i == SD_POOL_SPIN) {
            pthread_mutex_lock(&pool->mutex);
            atomic_store(&lane->waiting, 1);

            while (atomic_load(&lane->done) != n) {
                pthread_cond_wait(&lane->finished, &pool->mutex);
            }

            atomic_store(&lane->waiting, 0);
            pthread_mutex_unlock(&pool->mutex);
        }
    }

    if (atomic_load_explicit(&lane->cancelled, memory_order_relaxed)) {
        cx->status = SD_CANCELLED;
    }

    atomic_store(&lane->busy, 0);
    pthread_mutex_unlock(&lane->turn);

    return cx->status;
}


/* mapped, so that what no task uses costs no memory */

static char *
sd_pool_scratch(void)
{
    char  *p;

    p = mmap(NULL, SD_SCRATCH, PROT_READ|PROT_WRITE,
             MAP_PRIVATE|MAP_ANONYMOUS, -1, 0);

    return p == MAP_FAILED ? NULL : p;
}


int
sd_pool_create(sd_pool_t **out, int threads, const char *name,
    sd_error_t *err)
{
    int              i, n, rc, scratch;
    char             title[16];
    sigset_t         all, old;
    sd_pool_t       *pool;
    sd_thread_t     *t;
    cpu_set_t        cores;
    pthread_attr_t   attr;

    if (sd_cpu_cores(name, &cores, err) != SD_OK) {
        return SD_ERROR;
    }

    n = CPU_COUNT(&cores);

    if (threads <= 0) {
        threads = sd_pool_default_threads();
        threads = n && n < threads ? n : threads;
    }

    threads = sd_min(threads, SD_POOL_THREADS);

    pool = aligned_alloc(64, sizeof(sd_pool_t));
    if (pool == NULL) {
        return sd_fail(err, "no memory for the thread pool");
    }

    memset(pool, 0, sizeof(sd_pool_t));

    pool->threads = threads;
    pool->cores = cores;

    pthread_mutex_init(&pool->mutex, NULL);

    for (i = 0; i <= SD_POOL_LANES; i++) {
        pthread_cond_init(&pool->work[i], NULL);
    }

    pool->thread = calloc(threads, sizeof(sd_thread_t));
    scratch = pool->thread != NULL;

    for (i = 0; i < SD_POOL_LANES; i++) {
        pthread_mutex_init(&pool->lanes[i].turn, NULL);
        pthread_cond_init(&pool->lanes[i].finished, NULL);

        pool->lanes[i].scratch = sd_pool_scratch();
        scratch = scratch && pool->lanes[i].scratch;
    }

    for (i = 0; scratch && i < threads - 1; i++) {
        t = &pool->thread[i];
        t->pool = pool;

        /* the callers are one of each half, and the last one is too many */

        t->lane = i < (threads - 1) / 2 ? 0
                  : i < threads - 2 ? 1 : SD_POOL_LANES;

        t->scratch = sd_pool_scratch();
        scratch = t->scratch != NULL;
    }

    if (!scratch) {
        sd_pool_destroy(pool);
        return sd_fail(err, "no memory for the thread pool");
    }

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);

    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, SD_POOL_STACK);

    if (n) {
        pthread_attr_setaffinity_np(&attr, sizeof(cpu_set_t), &cores);
    }

    rc = 0;

    for (i = 0; i < threads - 1; i++) {
        t = &pool->thread[i];

        rc = pthread_create(&t->id, &attr, sd_pool_thread, t);
        if (rc != 0) {
            break;
        }

        pool->started++;

        snprintf(title, sizeof(title), "sd-pool%d", i + 1);
        pthread_setname_np(t->id, title);
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
    int         i;
    sd_lane_t  *lane;

    if (pool->started) {
        pthread_mutex_lock(&pool->mutex);
        atomic_store(&pool->quit, 1);

        for (i = 0; i <= SD_POOL_LANES; i++) {
            pthread_cond_broadcast(&pool->work[i]);
        }

        pthread_mutex_unlock(&pool->mutex);

        for (i = 0; i < pool->started; i++) {
            pthread_join(pool->thread[i].id, NULL);
        }
    }

    for (i = 0; pool->thread && i < pool->threads - 1; i++) {
        if (pool->thread[i].scratch != NULL) {
            munmap(pool->thread[i].scratch, SD_SCRATCH);
        }
    }

    for (i = 0; i < SD_POOL_LANES; i++) {
        lane = &pool->lanes[i];

        if (lane->scratch != NULL) {
            munmap(lane->scratch, SD_SCRATCH);
        }

        pthread_mutex_destroy(&lane->turn);
        pthread_cond_destroy(&lane->finished);
    }

    for (i = 0; i <= SD_POOL_LANES; i++) {
        pthread_cond_destroy(&pool->work[i]);
    }

    pthread_mutex_destroy(&pool->mutex);

    free(pool->thread);
    free(pool);
}


int
sd_pool_threads(const sd_pool_t *pool)
{
    return pool->threads;
}


int
sd_pool_bind(const sd_pool_t *pool)
{
    if (CPU_COUNT(&pool->cores) == 0) {
        return SD_OK;
    }

    return sched_setaffinity(0, sizeof(cpu_set_t), &pool->cores) == 0
           ? SD_OK : SD_ERROR;
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
