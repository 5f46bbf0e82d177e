/*
 * Who has the device, and for how long: the choice itself, on a clock of its
 * own, where a row takes what it is expected to take.
 */

#define _GNU_SOURCE

#include <stdlib.h>

/* its own device_thread.c: what it chooses with is nobody else's to call */

#include "../../src/engine/device_thread.c"

#include "tap.h"


#define RUNS  32


typedef struct {
    double   got;                       /* ms of the device */
    double   done;                      /* when */
    int      left;                      /* rows */
} served_t;


static sd_engine_t         e;
static sd_engine_model_t   model;
static sd_engine_device_t  d;
static sd_engine_copy_t    copy;
static sd_engine_unit_t    unit;
static sd_device_t         device;
static sd_ops_t            ops;
static sd_run_t            runs[RUNS];
static sd_job_t            jobs[RUNS];
static served_t            served[RUNS];
static double              now;


static void
init(int pictures)
{
    memset(runs, 0, sizeof(runs));
    memset(jobs, 0, sizeof(jobs));
    memset(served, 0, sizeof(served));
    memset(&copy, 0, sizeof(copy));
    memset(&d, 0, sizeof(d));

    ops.pictures = pictures;
    device.ops = &ops;
    unit.device = &device;
    copy.unit = &unit;
    copy.state = SD_MODEL_READY;
    e.models = &model;
    e.nmodels = 1;
    e.devices = &d;
    e.ndevices = 1;
    d.engine = &e;
    d.copies = &copy;
    d.runs = runs;
    d.slots = RUNS;
    now = 0;

    /* a sample's evaluation: 1 ms at 64x64, and as many more as pixels */

    sd_cost_measured_locked(&copy, SD_COST_EVALUATION, 64, 64, 1);
}


static void
come(int i, int size, int rows, int samples, sd_priority_t priority)
{
    sd_run_t  *run = &runs[i];

    memset(run, 0, sizeof(sd_run_t));
    memset(&served[i], 0, sizeof(served_t));

    jobs[i].priority = priority;
    run->job = &jobs[i];
    run->phase = SD_RUN_STEP;
    run->copy = &copy;
    run->width = size;
    run->height = size;
    run->samples = samples;
    run->turn = ++d.turns;
    served[i].left = rows;
}


static double
row(int i)
{
    return runs[i].samples * runs[i].width * runs[i].height / 4096.0;
}


/* a turn; who has made all rows leaves.  The number of those who had it */

static int
turn(void)
{
    int        i, k, n;
    sd_run_t  *had[SD_MAX_SLOTS];

    n = sd_device_share_locked(&d, had);

    for (k = 0; k < n; k++) {
        now += row(had[k] - runs);
    }

    for (k = 0; k < n; k++) {
        i = had[k] - runs;
        served[i].got += row(i);

        if (--served[i].left == 0) {
            served[i].done = now;
            had[k]->job = NULL;
        }
    }

    return n;
}


static int
near(double a, double b, double by)
{
    printf("# %g, %g\n", a, b);

    return a > b - by && a < b + by;
}


/* Jain, Chiu and Hawe 1984: (sum x)^2 / (n sum x^2), 1 where all are equal */

static double
jain(const double *x, int n)
{
    int     i;
    double  sum, squares;

    for (i = 0, sum = 0, squares = 0; i < n; i++) {
        sum += x[i];
        squares += x[i] * x[i];
    }

    return sum * sum / (n * squares);
}


static void
test_equal(void)
{
    int     i;
    double  done[16], most;

    init(1);

    for (i = 0; i < 16; i++) {
        come(i, 64, 20, 2, SD_PRIORITY_NORMAL);
    }

    for (i = 0, most = 0; turn(); i++) {
        if (i == 15) {
            most = now;
        }
    }

    for (i = 0; i < 16; i++) {
        done[i] = served[i].done;
    }

    ok(near(most, 32, 1e-6), "each has had a step before one has two");
    ok(jain(done, 16) >= 0.95, "equal jobs end at about the same time");
    printf("# %.5f\n", jain(done, 16));

    /* nothing is lost: the last one ends when all work is done */

    ok(near(now, 16 * 20 * 2, 1e-6), "and none later than without");
}


static void
test_sizes(void)
{
    int     i, bad;
    double  gap, last, before;

    init(1);

    /* a row of 128x128 takes as long as four of 64x64, and is guided */

    come(0, 64, 1000, 2, SD_PRIORITY_NORMAL);
    come(1, 128, 1000, 2, SD_PRIORITY_NORMAL);
    come(2, 64, 1000, 1, SD_PRIORITY_NORMAL);

    gap = last = 0;

    for (i = 0, bad = 0; i < 300; i++) {
        before = served[0].got;
        turn();

        if (served[0].got > before) {
            gap = now - last > gap ? now - last : gap;
            last = now;
        }

        bad += served[0].got - served[1].got > 8 + 2
               || served[1].got - served[0].got > 8 + 2
               || served[0].got - served[2].got > 2 + 1
               || served[2].got - served[0].got > 2 + 1;
    }

    is_int(bad, 0, "equal shares of time, give or take a row of each");
    ok(gap <= 8 + 2 + 1 + 2 + 1, "a small one waits for one large row at most");
    printf("# %g %g %g, gap %g\n", served[0].got, served[1].got, served[2].got,
           gap);
}


/* short ones come without end, three at a time, and a long one is among them */

static void
test_long(void)
{
    int     i, short_ones;
    double  alone, shared;

    init(1);
    come(0, 128, 50, 2, SD_PRIORITY_NORMAL);
    alone = 50 * row(0);

    short_ones = 0;

    while (runs[0].job) {
        for (i = 1; i < 4; i++) {
            if (runs[i].job == NULL) {
                come(i, 64, 3, 2, SD_PRIORITY_NORMAL);
                short_ones++;
            }
        }

        turn();
    }

    shared = now;
    ok(shared <= alone * 4 * 1.02, "a long one has its share: it takes at most "
       "as many times as long as there are");
    ok(short_ones > 100, "and they have theirs");
    printf("# %g alone, %g, %d short ones\n", alone, shared, short_ones);
}


static void
test_priorities(void)
{
    int  i;

    init(1);
    come(0, 64, 10000, 2, SD_PRIORITY_HIGH);
    come(1, 128, 10000, 2, SD_PRIORITY_NORMAL);
    come(2, 64, 10000, 1, SD_PRIORITY_LOW);

    for (i = 0; i < 2000; i++) {
        turn();
    }

    ok(near(served[0].got / now, 4 / 7.0, 0.01), "high: four of seven");
    ok(near(served[1].got / now, 2 / 7.0, 0.01), "normal: two");
    ok(near(served[2].got / now, 1 / 7.0, 0.01), "low: one");
}


static void
test_groups(void)
{
    int     i, n, most;
    double  small;

    init(4);

    for (i = 0; i < 6; i++) {
        come(i, 64, 10000, 2 - i % 2, SD_PRIORITY_NORMAL);
    }

    come(6, 128, 10000, 2, SD_PRIORITY_NORMAL);
    come(7, 128, 10000, 2, SD_PRIORITY_NORMAL);

    for (i = 0, most = 0; i < 1000; i++) {
        n = turn();
        most = n > most ? n : most;
    }

    is_int(most, 4, "as many together as the device takes");

    for (i = 0, small = 0; i < 6; i++) {
        small += served[i].got;
    }

    ok(near(small / now, 6 / 8.0, 0.02), "a group has what its pictures have");
    ok(near(served[0].got, served[2].got, 8)
       && near(served[1].got, served[3].got, 8),
       "within it pictures go round");
}


/* they come and go, of all kinds */

static void
test_random(int pictures, unsigned seed)
{
    int       i, k, bad;
    double    since[RUNS], mine[RUNS], ahead, most;
    unsigned  s = seed;

    init(pictures);

    for (i = 0, bad = 0, most = 0; i < 20000; i++) {

        k = rand_r(&s) % 12;

        if (runs[k].job == NULL && rand_r(&s) % 4 == 0) {
            come(k, 64 << rand_r(&s) % 3, 1 + rand_r(&s) % 60,
                 1 + rand_r(&s) % 2, SD_PRIORITY_NORMAL);
            since[k] = now;
            mine[k] = 0;

        } else if (runs[k].job && rand_r(&s) % 40 == 0) {
            runs[k].job = NULL;
        }

        turn();

        /* a twelfth at least: there are no more of them.  In a group it is the
         * group that has its pictures' shares, whose rows are whole or half */

        for (k = 0; k < 12; k++) {
            if (runs[k].job) {
                mine[k] = served[k].got;
                ahead = (now - since[k]) / (pictures > 1 ? 24 : 12) - mine[k];
                most = ahead > most ? ahead : most;
                bad += ahead > 2 * 32 + row(k);
            }
        }
    }

    printf("# seed %u, behind by %g ms at most\n", seed, most);
    is_int(bad, 0, "nobody starves, whoever comes and goes");
}


int
main(void)
{
    test_equal();
    test_sizes();
    test_long();
    test_priorities();
    test_groups();
    test_random(1, 1);
    test_random(1, 2);
    test_random(4, 3);

    return done();
}
