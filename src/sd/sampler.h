/*
 * Samplers as tables.  A picture's way from noise is a list of rows, compiled
 * once per picture in double precision; whoever executes a row knows no sampler
 * by name.  Every row is one evaluation of the model.
 *
 * With x the latent, out the guided output of the model and z counter-based
 * noise, a row computes D = clamp(a x + b out), the denoised picture, and
 * {x', k0'..k3'} = m {x, out, D, k0..k3, z0, z1} where k are tensors that the
 * sampler keeps from row to row (zero at the start).  A step may take several
 * rows; a picture pauses, previews and hands over at the ends of steps only.
 */

#ifndef SD_SAMPLER_H
#define SD_SAMPLER_H

#include <stddef.h>
#include <stdint.h>

#include "../io/error.h"
#include "../ops/ops.h"


#define SD_MAX_TRAIN_STEPS  10000


typedef struct {
    double       timestep;      /* what the unet is told; not always whole */
    double       scale_in;      /* the unet's input is scale_in * x */
    double       a, b, clamp;
    double       m[1 + SD_KEPT][3 + SD_KEPT + 2];
    int          step;          /* from 0 */
    int          last_of_step;
    int          noise;         /* how many z this row draws: 0, 1, 2 */
    uint32_t     draw;          /* number of z0's draw; the initial noise is
                                   draw 0, so rows start at 1 */
} sd_sampler_row_t;


typedef enum {
    SD_PREDICT_EPSILON,
    SD_PREDICT_V,
    SD_PREDICT_SAMPLE
} sd_prediction_t;

typedef enum {
    SD_SPACING_LEADING,
    SD_SPACING_LINSPACE,
    SD_SPACING_TRAILING
} sd_spacing_t;


/*
 * scheduler_config.json, with the defaults of the scheduler's own class for
 * keys that are missing (a missing clip_sample means true for DDIM).  Keys that
 * we do not know are ignored, values that we know and do not implement are
 * refused: dynamic thresholding, learned variance, epsilon prediction at zero
 * terminal SNR, and for Euler's own class the other sigma schedules.
 *
 * alphas_cumprod is the model's own: computed in fp32, with products in double,
 * as in training, so that no difference comes from a better table.
 */

typedef struct {
    char              class_name[64];
    int               num_train_timesteps;
    sd_prediction_t   prediction;
    sd_spacing_t      spacing;          /* -1: the sampler's own default */
    int               steps_offset;     /* for leading */
    int               set_alpha_to_one; /* DDIM's last step, else alpha 0 */
    int               clip_sample;      /* DDIM alone clips */
    double            clip_range;
    int               rescale_zero_snr;
    double           *alphas_cumprod;   /* [num_train_timesteps], owned */
} sd_scheduler_config_t;

int sd_scheduler_config_read(sd_scheduler_config_t *c, const char *path,
    sd_error_t *err);
void sd_scheduler_config_free(sd_scheduler_config_t *c);


/* one row of the table of samplers */

typedef struct {
    const char   *name;             /* "ddim", "euler", "euler_a": what
                                       requests and states say */
    const char   *class_name;       /* diffusers' scheduler class */
    int           kept;             /* tensors that it keeps */
    int           stochastic;
    int         (*rows)(int steps); /* model evaluations */
    /* returns SD_OK with init_sigma, the factor of the initial noise, set;
     * steps over num_train_timesteps are a 400 "num_inference_steps" */
    int         (*compile)(sd_sampler_row_t *rows, double *init_sigma,
                           const sd_scheduler_config_t *c, int steps,
                           sd_error_t *err);
} sd_sampler_t;

extern const sd_sampler_t  sd_samplers[];           /* ends with name NULL */

/* by name or class name, letters' case ignored; or NULL */
const sd_sampler_t *sd_sampler_find(const char *name);
/*
 * the one for the model's own scheduler; DDIM on the same betas where we have
 * no such (PNDM, DPMSolverMultistep ...)
 */
const sd_sampler_t *sd_sampler_default(const sd_scheduler_config_t *c);


#endif
