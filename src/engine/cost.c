/*
 * What work will take, from what such work took: milliseconds of a device for
 * evaluating the model, for a prompt, for decoding a picture.  Each device
 * measures its own copies of the models, size by size; a size that is new is
 * taken for the nearest known one, by pixels.  Averages forget, so that what
 * slows a machine down is noticed.  Under the engine's lock.
 *
 * A step is counted in evaluations, one for a sample: a guided picture has two
 * in each row of its sampler's table, and a step may have more than one row.
 */

#include "internal.h"


#define SD_COST_MEMORY  10          /* measurements, of an average */


static double sd_cost_pixels(sd_cost_what_t what, int width, int height);
static double sd_cost_copy(const sd_engine_copy_t *copy, sd_cost_what_t what,
    int width, int height);


/* a prompt's takes the same time, whatever the picture's size */

static double
sd_cost_pixels(sd_cost_what_t what, int width, int height)
{
    return what == SD_COST_BEGIN ? 1 : (double) width * height;
}


void
sd_cost_measured_locked(sd_engine_copy_t *copy, sd_cost_what_t what, int width,
    int height, double ms)
{
    int               i;
    double            pixels;
    sd_cost_t        *cost;
    sd_cost_size_t   *s, *old;

    cost = &copy->costs[what];
    pixels = sd_cost_pixels(what, width, height);
    old = &cost->sizes[0];

    for (i = 0; i < SD_COST_SIZES; i++) {
        s = &cost->sizes[i];

        if (s->pixels == pixels) {

            /* the first one warmed caches, and had its share of page faults:
             * the second one replaces it */

            s->ms += (ms - s->ms) / ++s->n;
            s->n -= s->n == SD_COST_MEMORY;
            s->when = ++cost->when;

            return;
        }

        if (s->when < old->when) {
            old = s;
        }
    }

    old->pixels = pixels;
    old->ms = ms;
    old->n = 0;
    old->when = ++cost->when;
}


/* 0: nothing is known yet */

static double
sd_cost_copy(const sd_engine_copy_t *copy, sd_cost_what_t what, int width,
    int height)
{
    int                    i;
    double                 pixels, ratio, best, ms;
    const sd_cost_size_t  *s;

    pixels = sd_cost_pixels(what, width, height);
    best = 0;
    ms = 0;

    for (i = 0; i < SD_COST_SIZES; i++) {
        s = &copy->costs[what].sizes[i];

        if (s->pixels == 0) {
            break;
        }

        ratio = pixels < s->pixels ? pixels / s->pixels : s->pixels / pixels;

        if (ratio > best) {
            best = ratio;
            ms = s->ms * pixels / s->pixels;
        }
    }

    return ms;
}


double
sd_cost_row_locked(const sd_engine_copy_t *copy, int width, int height,
    int samples)
{
    return samples * sd_cost_copy(copy, SD_COST_EVALUATION, width, height);
}


/* the devices' mean: the queue's pictures are divided among all */

double
sd_cost_locked(const sd_engine_t *e, const sd_engine_model_t *m,
    sd_cost_what_t what, int width, int height)
{
    int                      k, n;
    double                   one, ms;
    const sd_engine_copy_t  *copy;

    n = 0;
    ms = 0;

    for (k = 0; k < e->ndevices; k++) {
        copy = &e->devices[k].copies[m - e->models];

        one = sd_cost_copy(copy, what, width, height);

        if (copy->state == SD_MODEL_READY && one) {
            ms += one;
            n++;
        }
    }

    return n ? ms / n : 0;
}


double
sd_cost_step_locked(const sd_engine_t *e, const sd_engine_model_t *m,
    int width, int height)
{
    return 2 * sd_cost_locked(e, m, SD_COST_EVALUATION, width, height);
}


double
sd_cost_picture_locked(const sd_engine_t *e, const sd_engine_model_t *m,
    int width, int height, int steps)
{
    return sd_cost_locked(e, m, SD_COST_BEGIN, width, height)
           + sd_cost_step_locked(e, m, width, height) * steps
           + sd_cost_locked(e, m, SD_COST_FINISH, width, height);
}


/* what is left of a picture that stands at this step: decoded previews count
 * like the last one */

static double
sd_cost_left_locked(const sd_job_t *job, int step, int evaluations, int begun)
{
    int                       decodes, end, left;
    double                    ms;
    const sd_engine_t        *e;
    const sd_picture_info_t  *info;

    e = job->engine;
    info = &job->info.info;

    end = info->steps;
    left = info->steps - step;

    if (job->params.run_steps && info->step + job->params.run_steps < end) {

        /* a page: it ends early, and without a picture */

        end = info->step + job->params.run_steps;
        evaluations = left > 0
                      ? (int64_t) evaluations * (end - step) / left : 0;
    }

    decodes = end == info->steps;

    if (end > info->step) {
        decodes += (int64_t) job->decodes * (end - step) / (end - info->step);
    }

    ms = evaluations * sd_cost_locked(e, job->model, SD_COST_EVALUATION,
                                      info->width, info->height)
         + decodes * sd_cost_locked(e, job->model, SD_COST_FINISH, info->width,
                                    info->height);

    return begun ? ms : ms + sd_cost_locked(e, job->model, SD_COST_BEGIN, 0, 0);
}


double
sd_cost_job_locked(const sd_job_t *job)
{
    return sd_cost_left_locked(job, job->info.info.step,
                               job->info.info.evaluations, 0);
}


double
sd_cost_run_locked(const sd_run_t *run)
{
    return sd_cost_left_locked(run->job, run->step, run->evaluations,
                               run->phase != SD_RUN_BEGIN);
}
