/*
 * Several pictures of one model and one size, stepped together: one batch of
 * the UNet, in which each sample has its own time and text, and one operation
 * that moves all latents on, each by its own row of its own sampler.  A
 * picture's bytes do not depend on what else is in the batch.
 *
 * Where the device can record, the whole work of a step is recorded once for a
 * size and a number of samples, and replayed from then on: what changes from
 * step to step is the table of slots alone (see slot.h), and the places that it
 * names.  Numbers of samples are rounded up to few, and what is too many is
 * computed and read by nobody.
 *
 * A batch works in a context of the caller's, which must outlive it and not be
 * used for anything else meanwhile; recordings hold addresses in its arena.
 * One thread at a time.
 */

#ifndef SD_BATCH_H
#define SD_BATCH_H

#include "picture.h"


typedef struct sd_batch_s  sd_batch_t;


/* pictures: at most, at a time; cx: its arena holds what
 * sd_batch_plan() says for the sizes to come */
int sd_batch_create(sd_batch_t **b, sd_model_t *m, sd_context_t *cx,
    int pictures, sd_error_t *err);
void sd_batch_destroy(sd_batch_t *b);           /* NULL is fine */

/* arena bytes of a step of so many guided pictures */
int sd_batch_plan(sd_model_t *m, sd_device_t *dev, int width, int height,
    int pictures, size_t *size, sd_error_t *err);

/* makes all recordings for this size, so that no step has to wait for one */
int sd_batch_prepare(sd_batch_t *b, int width, int height, sd_error_t *err);

/*
 * makes them in another context, whose arena is at least as big, and forgets
 * them: the device then knows all shapes of this size, and the batch's own
 * recordings are made quickly.  For a thread beside the one that steps.
 */
int sd_batch_rehearse(sd_model_t *m, sd_context_t *cx, int pictures, int width,
    int height, sd_error_t *err);

/*
 * moves each picture on by one row of its table, which ends a step for most
 * samplers: sd_picture_info() tells.  p: [n], begun, of one size, not at their
 * ends, n at most what create was told.  Returns when the work is done.  After
 * an error, SD_CANCELLED included, the pictures stand at their last step's end.
 */
int sd_batch_row(sd_batch_t *b, sd_picture_t **p, int n,
    const atomic_int *cancel, sd_error_t *err);

/* does the next row of each picture so many times, without moving them on or
 * waiting in between: for benchmarks, what the device itself takes */
int sd_batch_repeat(sd_batch_t *b, sd_picture_t **p, int n, int times,
    sd_error_t *err);


#endif
