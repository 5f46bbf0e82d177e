/*
 * One picture on its way from noise: the state of a job's one image, and the
 * work that moves it on.  Used by one thread at a time; the model is shared.
 *
 * The calls, in order: create (host work only, any thread: validates, compiles
 * the sampler's rows), begin (device thread: text encoder, cross-attention keys
 * and values, time embeddings, initial noise), step (once for each step),
 * preview or state between steps, decode at the end.  A call that fails leaves
 * the picture fit for destroy alone, except SD_CANCELLED from a step, after
 * which sd_picture_state() still gives the state at the last step's end.  Each
 * call returns when its work is done, so the next one may use another context.
 */

#ifndef SD_PICTURE_H
#define SD_PICTURE_H

#include <stddef.h>
#include <stdint.h>

#include "../io/buf.h"
#include "../io/error.h"
#include "model.h"
#include "sampler.h"


typedef struct {
    const char           *prompt;           /* valid UTF-8 */
    const char           *negative_prompt;  /* "" for none */
    int                   width, height;    /* multiples of 8 */
    int                   steps;
    double                guidance;         /* unguided where <= 1 */
    uint64_t              seed;
    const sd_sampler_t   *sampler;          /* NULL: the model's own */

    /* NULL, or a safetensors file: a state of ours, or a bare tensor "latents"
     * [images, 4, h / 8, w / 8]; stays the caller's, is not needed after
     * create */
    const void           *latents;
    size_t                latents_size;
    int                   starting_step;    /* -1: as the state says, or 0; a
                                               bare latent at 0 is the initial
                                               noise, not yet scaled */
    int                   image, images;    /* which one of how many is the
                                               picture's; 0, 0: the only one */
} sd_params_t;


typedef struct sd_picture_s  sd_picture_t;


/* errors name the request's field: "width", "latents", "starting_step" ...;
 * 400, or 409 "state_mismatch" where a state belongs to other parameters */
int sd_picture_create(sd_picture_t **p, sd_model_t *m,
    const sd_params_t *params, sd_error_t *err);
void sd_picture_destroy(sd_picture_t *p);

/* before begin: m is the same model on another device; what is said of the
 * numerics of a state that the picture goes on from is said anew */
void sd_picture_move(sd_picture_t *p, sd_model_t *m);

/* what the picture's own device memory takes: latents, time embeddings; from
 * begin to destroy.  And its prompts' K/V, which others may share */
size_t sd_picture_memory(const sd_picture_t *p);
size_t sd_picture_texts_memory(const sd_picture_t *p);

/*
 * cx: a context whose arena holds at least what sd_model_plan() says; it is
 * reset by each call, and nothing of the picture stays in it
 */
int sd_picture_begin(sd_picture_t *p, sd_context_t *cx,
    const atomic_int *cancel, sd_error_t *err);
int sd_picture_step(sd_picture_t *p, sd_context_t *cx,
    const atomic_int *cancel, sd_error_t *err);

/* the denoised estimate after the last step, [h / 8, w / 8, 3] bytes; after
 * decode of a finished picture's x, or before any step: of the latent itself */
int sd_picture_preview(sd_picture_t *p, sd_context_t *cx, uint8_t *rgb,
    sd_error_t *err);

/* decodes the latent (denoised: the estimate instead) to rgb [h, w, 3]; image:
 * NULL, or [3, h, w] floats before rounding */
int sd_picture_decode(sd_picture_t *p, sd_context_t *cx, int denoised,
    uint8_t *rgb, float *image, const atomic_int *cancel, sd_error_t *err);

/* appends the state as a safetensors file: see state.h */
int sd_picture_state(sd_picture_t *p, sd_buf_t *out, sd_error_t *err);

/* where it stands */
typedef struct {
    int           step, steps;          /* step: done, 0 .. steps */
    int           width, height;
    int           samples;              /* 2: guided */
    int           evaluations;          /* of the model, one for a sample, that
                                           the steps left will take */
    uint64_t      seed;
    const char   *sampler;
    int           prompt_tokens;        /* > 77: it was cut */
    int           negative_tokens;
    int           resumed;              /* went on from a latent */
    int           inexact;              /* ... of another numerics id */
    int           branched;             /* ... of another prompt or guidance */
    int           text_hits;            /* of samples, those whose prompt was
                                           found encoded already */
} sd_picture_info_t;

void sd_picture_info(const sd_picture_t *p, sd_picture_info_t *info);

/* for `sd generate --dump` and the golden tests: called with each intermediate
 * tensor, fp32, [n, c, h, w] or [n, rows, c]; set before begin */
typedef void (*sd_picture_dump_pt)(void *data, const char *name,
    const float *values, int rank, const int64_t *shape);
void sd_picture_dump(sd_picture_t *p, sd_picture_dump_pt dump, void *data);


#endif
