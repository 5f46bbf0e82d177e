/*
 * The table of samplers: see sampler.h.  Each function here turns a model's
 * noise schedule into rows, in double precision; the formulas are those of the
 * papers in the form that diffusers' schedulers have them.
 */

#include <math.h>
#include <string.h>
#include <strings.h>

#include "sampler.h"


/* columns of a row's matrix */

#define SD_X       0
#define SD_OUT     1
#define SD_D       2
#define SD_K(i)    (3 + (i))
#define SD_Z(i)    (3 + SD_KEPT + (i))


static int
sd_sampler_one_row_a_step(int steps)
{
    return steps;
}


static int
sd_sampler_check(const sd_scheduler_config_t *c, int steps, sd_error_t *err)
{
    if (steps < 1 || steps > c->num_train_timesteps) {
        return sd_error(err, 400, "invalid_value", "num_inference_steps",
                        "num_inference_steps must be 1 to %d",
                        c->num_train_timesteps);
    }

    return SD_OK;
}


/*
 * the timestep of step i, noisiest first (Lin et al. 2023, table 2).  Those of
 * linspace are not whole numbers; a steps_offset does not leave the schedule.
 */

static double
sd_sampler_timestep(const sd_scheduler_config_t *c, sd_spacing_t spacing,
    int steps, int i)
{
    int     last;
    double  t;

    last = c->num_train_timesteps - 1;

    switch (spacing) {

    case SD_SPACING_LINSPACE:
        /* from 0 upwards, as one step alone is timestep 0 */
        return steps > 1 ? (steps - 1 - i) * ((double) last / (steps - 1)) : 0;

    case SD_SPACING_TRAILING:
        t = rint(c->num_train_timesteps
                 - i * ((double) c->num_train_timesteps / steps)) - 1;
        return fmax(t, 0);

    default:
        t = (steps - 1 - i) * (c->num_train_timesteps / steps)
            + c->steps_offset;
        return fmin(t, last);
    }
}


/*
 * DDIM with eta 0 (Song et al. 2020, formula 12).  The noise is taken from the
 * model's output, not from the clipped D, and the step's target is a whole
 * stride below the timestep whatever the spacing: both as diffusers does.
 */

static int
sd_sampler_ddim(sd_sampler_row_t *rows, double *init_sigma,
    const sd_scheduler_config_t *c, int steps, sd_error_t *err)
{
    int                i, t, prev;
    double             a, b, ap, bp;
    sd_spacing_t       spacing;
    sd_sampler_row_t  *row;

    if (sd_sampler_check(c, steps, err) != SD_OK) {
        return SD_ERROR;
    }

    spacing = (int) c->spacing == -1 ? SD_SPACING_LEADING : c->spacing;
    memset(rows, 0, steps * sizeof(sd_sampler_row_t));

    for (i = 0; i < steps; i++) {
        row = &rows[i];

        t = (int) rint(sd_sampler_timestep(c, spacing, steps, i));
        prev = t - c->num_train_timesteps / steps;

        a = c->alphas_cumprod[t];

        if (prev >= 0) {
            ap = c->alphas_cumprod[prev];

        } else {
            ap = c->set_alpha_to_one ? 1 : c->alphas_cumprod[0];
        }

        b = sqrt(1 - a);
        a = sqrt(a);
        bp = sqrt(1 - ap);
        ap = sqrt(ap);

        row->timestep = t;
        row->scale_in = 1;
        row->clamp = c->clip_sample ? c->clip_range : 0;
        row->step = i;
        row->last_of_step = 1;
        row->draw = i + 1;

        /* x' = ap D + bp noise */

        row->m[0][SD_D] = ap;

        switch (c->prediction) {

        case SD_PREDICT_EPSILON:
            row->a = 1 / a;
            row->b = -b / a;
            row->m[0][SD_OUT] = bp;
            break;

        case SD_PREDICT_V:
            row->a = a;
            row->b = -b;
            row->m[0][SD_OUT] = bp * a;
            row->m[0][SD_X] = bp * b;
            break;

        case SD_PREDICT_SAMPLE:
            row->b = 1;
            row->m[0][SD_OUT] = -bp * a / b;
            row->m[0][SD_X] = bp / b;
            break;
        }
    }

    *init_sigma = 1;

    return SD_OK;
}


static double
sd_sampler_whole_sigma(const sd_scheduler_config_t *c, int t)
{
    double  a;

    a = c->alphas_cumprod[t];

    /* no SNR at all is no sigma: diffusers' stand-in */

    if (c->rescale_zero_snr && t == c->num_train_timesteps - 1) {
        a = 1.0 / (1 << 24);
    }

    return sqrt((1 - a) / a);
}


/* sigma at a timestep that need not be whole, by linear interpolation */

static double
sd_sampler_sigma(const sd_scheduler_config_t *c, double t)
{
    int     i;
    double  s;

    i = (int) t;
    s = sd_sampler_whole_sigma(c, i);

    if (i + 1 < c->num_train_timesteps) {
        s += (sd_sampler_whole_sigma(c, i + 1) - s) * (t - i);
    }

    return s;
}


/*
 * what Euler's samplers share (Karras et al. 2022, in k-diffusion's variables):
 * timesteps, the scaling of the input, and D; sigma[steps] is 0
 */

static int
sd_sampler_sigmas(sd_sampler_row_t *row, double *sigma, double *next,
    const sd_scheduler_config_t *c, int steps, int i)
{
    double        t, s;
    sd_spacing_t  spacing;

    spacing = (int) c->spacing == -1 ? SD_SPACING_LINSPACE : c->spacing;

    t = sd_sampler_timestep(c, spacing, steps, i);
    s = sd_sampler_sigma(c, t);

    *sigma = s;
    *next = 0;

    if (i + 1 < steps) {
        *next = sd_sampler_sigma(c, sd_sampler_timestep(c, spacing, steps,
                                                        i + 1));
    }

    row->timestep = t;
    row->scale_in = 1 / sqrt(s * s + 1);
    row->step = i;
    row->last_of_step = 1;
    row->draw = i + 1;

    switch (c->prediction) {

    case SD_PREDICT_EPSILON:
        row->a = 1;
        row->b = -s;
        break;

    case SD_PREDICT_V:
        row->a = 1 / (s * s + 1);
        row->b = -s / sqrt(s * s + 1);
        break;

    case SD_PREDICT_SAMPLE:
        row->b = 1;
        break;
    }

    return spacing == SD_SPACING_LEADING;
}


/* x' = x + (x - D) / sigma * (to - sigma) */

static void
sd_sampler_euler_step(sd_sampler_row_t *row, double sigma, double to)
{
    row->m[0][SD_X] = to / sigma;
    row->m[0][SD_D] = 1 - to / sigma;
}


static int
sd_sampler_euler(sd_sampler_row_t *rows, double *init_sigma,
    const sd_scheduler_config_t *c, int steps, sd_error_t *err)
{
    int     i, leading;
    double  sigma, next;

    if (sd_sampler_check(c, steps, err) != SD_OK) {
        return SD_ERROR;
    }

    memset(rows, 0, steps * sizeof(sd_sampler_row_t));

    for (i = 0; i < steps; i++) {
        leading = sd_sampler_sigmas(&rows[i], &sigma, &next, c, steps, i);
        sd_sampler_euler_step(&rows[i], sigma, next);

        if (i == 0) {
            *init_sigma = leading ? sqrt(sigma * sigma + 1) : sigma;
        }
    }

    return SD_OK;
}


/* Euler down to sigma_down, then noise of sigma_up on top */

static int
sd_sampler_euler_ancestral(sd_sampler_row_t *rows, double *init_sigma,
    const sd_scheduler_config_t *c, int steps, sd_error_t *err)
{
    int     i, leading;
    double  sigma, next, up, down;

    if (sd_sampler_check(c, steps, err) != SD_OK) {
        return SD_ERROR;
    }

    memset(rows, 0, steps * sizeof(sd_sampler_row_t));

    for (i = 0; i < steps; i++) {
        leading = sd_sampler_sigmas(&rows[i], &sigma, &next, c, steps, i);

        up = next * sqrt(fmax(sigma * sigma - next * next, 0)) / sigma;
        down = sqrt(fmax(next * next - up * up, 0));

        sd_sampler_euler_step(&rows[i], sigma, down);

        if (up > 0) {
            rows[i].noise = 1;
            rows[i].m[0][SD_Z(0)] = up;
        }

        if (i == 0) {
            *init_sigma = leading ? sqrt(sigma * sigma + 1) : sigma;
        }
    }

    return SD_OK;
}


const sd_sampler_t  sd_samplers[] = {
    { "ddim", "DDIMScheduler", 0, 0,
      sd_sampler_one_row_a_step, sd_sampler_ddim },

    { "euler", "EulerDiscreteScheduler", 0, 0,
      sd_sampler_one_row_a_step, sd_sampler_euler },

    { "euler_a", "EulerAncestralDiscreteScheduler", 0, 1,
      sd_sampler_one_row_a_step, sd_sampler_euler_ancestral },

    { NULL, NULL, 0, 0, NULL, NULL }
};


const sd_sampler_t *
sd_sampler_find(const char *name)
{
    const sd_sampler_t  *s;

    for (s = sd_samplers; s->name; s++) {
        if (strcasecmp(name, s->name) == 0
            || strcasecmp(name, s->class_name) == 0)
        {
            return s;
        }
    }

    return NULL;
}


const sd_sampler_t *
sd_sampler_default(const sd_scheduler_config_t *c)
{
    const sd_sampler_t  *s;

    s = sd_sampler_find(c->class_name);

    return s ? s : &sd_samplers[0];
}
