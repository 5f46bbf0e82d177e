/*
 * The state of a picture as a safetensors file: whoever has it can go on from
 * it, here or on another server with the same model.
 *
 * Tensors, all fp32 and of the same shape [1, c, h, w]: "latents", and where
 * the sampler keeps any, "kept_0" and so on.  Metadata, all of it text:
 *
 *   sd_version      "1"
 *   step, steps     steps done, and of how many
 *   seed            of the picture's noise, 0 .. 2^64 - 1
 *   sampler         its name in the table of samplers
 *   model           fingerprint, 64 hex digits
 *   width, height   pixels
 *   prompt          digest of prompt and negative prompt, 64 hex digits
 *   guidance        a number
 *   numerics        what computed it, see ops.h
 *
 * A change of any of this is another sd_version; an unknown one is refused.
 *
 * The state is the authority: one of another model, sampler, number of steps or
 * size does not fit, while another prompt or guidance branches the picture.
 * The seed is the state's.  A file with "latents" alone is a bare latent: it
 * fits every sampler that keeps nothing.  At the start, as initial noise, it may
 * be that of several pictures, [n, c, h, w].
 */

#ifndef SD_STATE_H
#define SD_STATE_H

#include <stddef.h>
#include <stdint.h>

#include "../io/buf.h"
#include "../io/error.h"
#include "sampler.h"


#define SD_STATE_VERSION  1


typedef struct {
    int        version;             /* 0: a bare latent, no field below is set
                                       but those of the tensors */
    int        step, steps;         /* a request's step: -1 for any */
    uint64_t   seed;
    char       sampler[32];
    char       model[65];
    int        width, height;
    char       prompt[65];
    double     guidance;
    char       numerics[96];

    int        n, c, h, w;          /* of the latent; n: a request's pictures,
                                       1 in a state */
    int        nkept;
    float     *latents;             /* [n, c, h, w]; written: the caller's, read:
                                       owned by the state */
    float     *kept[SD_KEPT];
} sd_state_t;


typedef struct {
    unsigned   branched:1;          /* another prompt or guidance */
    unsigned   inexact:1;           /* other numerics, or not known */
} sd_state_flags_t;


/* hex SHA-256 of prompt, a zero byte, and negative prompt */
void sd_state_digest(char hex[65], const char *prompt,
    const char *negative_prompt);

/* appends the file */
int sd_state_write(sd_buf_t *out, const sd_state_t *s, sd_error_t *err);

/*
 * 400 "latents" where data is no such file, its shapes differ or any of its
 * numbers is not finite; 409 where its version is unknown.  A bare latent may
 * be fp16 or bf16.
 */
int sd_state_read(sd_state_t *s, const void *data, size_t size,
    sd_error_t *err);

void sd_state_free(sd_state_t *s);                  /* what read() allocated */

/*
 * whether a picture that is described by request can go on from s.  409
 * "state_mismatch" names the field that differs; a bare latent of another shape
 * is 400 "latents".
 */
int sd_state_check(const sd_state_t *s, const sd_state_t *request,
    sd_state_flags_t *flags, sd_error_t *err);


#endif
