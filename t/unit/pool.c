/*
 * The cpu's threads: who is alone has all of them, and two callers half each.
 * Tasks here wait for each other, so that what is counted is no matter of time.
 */

#define _GNU_SOURCE

#include <pthread.h>
#include <time.h>

#include "../../src/ops/cpu/cpu.h"
#include "tap.h"


#define THREADS  5


typedef struct {
    atomic_int     in;                  /* tasks that run */
    atomic_int     most;                /* of them, since it was set to 0 */
    atomic_int     want;                /* so many at a time let all go on */
    atomic_int     free;
    atomic_int     made;
    int            n;
    sd_context_t   cx;
    sd_device_t    device;
    sd_cpu_t       cpu;
    pthread_t      id;
} caller_t;


static caller_t     callers[2];
static atomic_int   stop;


static void
nap(void)
{
    struct timespec  ts = { 0, 200000 };

    nanosleep(&ts, NULL);
}


/* 10 s, on a machine that does something else */

static int
until(atomic_int *value, int n)
{
    int  i;

    for (i = 0; i < 50000; i++) {
        if (atomic_load(value) >= n) {
            return 1;
        }

        nap();
    }

    return 0;
}


static void
task(void *data, int i, char *scratch)
{
    int        in, most;
    caller_t  *c = data;

    in = atomic_fetch_add(&c->in, 1) + 1;
    most = atomic_load(&c->most);

    while (in > most && !atomic_compare_exchange_weak(&c->most, &most, in)) { }

    scratch[i % 1000] = i;

    if (atomic_load(&c->want)) {
        (void) until(&c->most, atomic_load(&c->want));

    } else {
        nap();
    }

    atomic_fetch_sub(&c->in, 1);
    atomic_fetch_add(&c->made, 1);
}


static void *
work(void *data)
{
    caller_t  *c = data;

    while (!atomic_load(&stop)) {
        (void) sd_pool_run(&c->cx, task, c, 40);
    }

    return NULL;
}


static void
init(caller_t *c, sd_pool_t *pool)
{
    memset(c, 0, sizeof(caller_t));

    c->cpu.pool = pool;
    c->device.impl = &c->cpu;
    c->cx.device = &c->device;
}


static void
test(int threads)
{
    int          i, most, half, made[2];
    sd_pool_t   *pool;
    sd_error_t   err;
    caller_t    *a = &callers[0], *b = &callers[1];

    printf("# %d threads\n", threads);
    ok(sd_pool_create(&pool, threads, "cpu", &err) == SD_OK, "a pool");

    init(a, pool);
    init(b, pool);
    atomic_store(&stop, 0);

    /* all of them, or it takes until() gives up */

    a->want = threads;
    is_int(sd_pool_run(&a->cx, task, a, 3 * threads), SD_OK, "a job");
    is_int(a->made, 3 * threads, "all of its tasks");
    is_int(a->most, threads, "who is alone has all threads");

    a->want = b->want = 0;
    pthread_create(&a->id, NULL, work, a);
    pthread_create(&b->id, NULL, work, b);

    /* both are at work, and who had more threads has given them back */

    made[0] = a->made + 200;
    made[1] = b->made + 200;
    ok(until(&a->made, made[0]) && until(&b->made, made[1]),
       "two callers beside each other");

    /* a lane is idle for a moment between two jobs, when another one may have
     * its threads: but that is no rule */

    most = half = 1000;

    for (i = 0; i < 50; i++) {
        a->most = b->most = 0;
        made[0] = a->made + 10;
        made[1] = b->made + 10;
        (void) (until(&a->made, made[0]) && until(&b->made, made[1]));
        most = sd_min(most, a->most + b->most);
        half = sd_min(half, sd_max(a->most, b->most));
    }

    ok(most <= sd_max(threads, 2), "no more threads than there are");
    ok(half <= (threads + 1) / 2, "half of them each");
    printf("# %d, %d\n", most, half);

    atomic_store(&stop, 1);
    pthread_join(b->id, NULL);
    pthread_join(a->id, NULL);

    a->most = 0;
    a->want = threads;
    (void) sd_pool_run(&a->cx, task, a, 3 * threads);
    is_int(a->most, threads, "alone again");

    sd_pool_destroy(pool);
}


int
main(void)
{
    int  i;

    for (i = 1; i <= THREADS; i++) {
        test(i);
    }

    return done();
}
