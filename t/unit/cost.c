/*
 * Predicted times: what is measured, what is made of sizes that were not, and
 * what a picture is expected to take.
 */

#include "../../src/engine/internal.h"
#include "tap.h"


static sd_engine_t         e;
static sd_engine_model_t   models[2];
static sd_engine_device_t  devices[2];
static sd_engine_copy_t    copies[2][2];


static int
near(double a, double b)
{
    printf("# %g, %g\n", a, b);

    return a > b * 0.999 && a < b * 1.001;
}


static void
test_sizes(void)
{
    int                i;
    sd_engine_copy_t  *copy = &copies[0][0];

    ok(sd_cost_step_locked(&e, models, 64, 64) == 0, "nothing is known");

    sd_cost_measured_locked(copy, SD_COST_EVALUATION, 64, 64, 100);
    ok(near(sd_cost_step_locked(&e, models, 64, 64), 200),
       "a guided step is two evaluations");
    ok(near(sd_cost_step_locked(&e, models, 128, 64), 400),
       "twice the pixels, twice the time");

    sd_cost_measured_locked(copy, SD_COST_EVALUATION, 64, 64, 10);
    ok(near(sd_cost_step_locked(&e, models, 64, 64), 20),
       "the first one does not count");

    for (i = 0; i < 60; i++) {
        sd_cost_measured_locked(copy, SD_COST_EVALUATION, 64, 64, 20);
    }

    ok(near(sd_cost_step_locked(&e, models, 64, 64), 40), "it forgets");

    sd_cost_measured_locked(copy, SD_COST_EVALUATION, 256, 256, 1000);
    ok(near(sd_cost_step_locked(&e, models, 256, 256), 2000),
       "a size of its own");
    ok(near(sd_cost_step_locked(&e, models, 256, 224), 1750),
       "the nearest size decides");
    ok(near(sd_cost_step_locked(&e, models, 64, 96), 60), "from either side");

    ok(near(sd_cost_row_locked(copy, 64, 64, 3), 60), "a row of three samples");
    ok(near(sd_cost_step_locked(&e, models, 64, 32), 20), "half the pixels");

    /* more sizes than there is room for: those that are in use stay */

    for (i = 1; i <= 3 * SD_COST_SIZES; i++) {
        sd_cost_measured_locked(copy, SD_COST_EVALUATION, 8, 8 * i, 1);
        sd_cost_measured_locked(copy, SD_COST_EVALUATION, 64, 64, 20);
    }

    ok(near(sd_cost_step_locked(&e, models, 64, 64), 40), "what is in use");
    ok(near(sd_cost_row_locked(copy, 8, 8 * (i - 1), 1), 1), "what is new");
}


static void
test_picture(void)
{
    sd_run_t  run;
    sd_job_t  job;

    sd_cost_measured_locked(&copies[0][1], SD_COST_EVALUATION, 64, 64, 10);
    sd_cost_measured_locked(&copies[0][1], SD_COST_BEGIN, 64, 64, 3);
    sd_cost_measured_locked(&copies[0][1], SD_COST_FINISH, 64, 64, 50);

    ok(near(sd_cost_picture_locked(&e, &models[1], 64, 64, 10),
            3 + 10 * 20 + 50),
       "a picture");
    ok(near(sd_cost_picture_locked(&e, &models[1], 64, 128, 10),
            3 + 10 * 40 + 100),
       "a larger one has the same prompt");

    memset(&job, 0, sizeof(job));
    memset(&run, 0, sizeof(run));

    job.engine = &e;
    job.model = &models[1];
    job.info.info.width = 64;
    job.info.info.height = 64;
    job.info.info.steps = 20;
    job.info.info.evaluations = 20;
    job.decodes = 4;

    ok(near(sd_cost_job_locked(&job), 3 + 20 * 10 + 5 * 50),
       "unguided, with decoded previews");

    run.job = &job;
    run.phase = SD_RUN_STEP;
    run.step = 10;
    run.steps = 20;
    run.evaluations = 10;

    ok(near(sd_cost_run_locked(&run), 10 * 10 + 3 * 50), "half-way");

    run.step = 20;
    run.evaluations = 0;
    run.phase = SD_RUN_FINISH;

    ok(near(sd_cost_run_locked(&run), 50), "to be decoded yet");

    job.info.info.step = 10;
    job.info.info.evaluations = 10;
    job.params.run_steps = 5;
    job.decodes = 0;

    ok(near(sd_cost_job_locked(&job), 3 + 5 * 10), "a page");

    /* another device takes twice as long, one has failed */

    sd_cost_measured_locked(&copies[1][1], SD_COST_EVALUATION, 64, 64, 20);
    ok(near(sd_cost_step_locked(&e, &models[1], 64, 64), 30),
       "the mean of two devices");

    copies[1][1].state = SD_MODEL_FAILED;
    ok(near(sd_cost_step_locked(&e, &models[1], 64, 64), 20),
       "one that failed does not count");
}


int
main(void)
{
    e.models = models;
    e.nmodels = 2;
    e.devices = devices;
    e.ndevices = 2;

    devices[0].copies = copies[0];
    devices[1].copies = copies[1];

    copies[0][0].state = SD_MODEL_READY;
    copies[0][1].state = SD_MODEL_READY;
    copies[1][1].state = SD_MODEL_READY;

    test_sizes();
    test_picture();

    return done();
}
