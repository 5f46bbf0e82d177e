/*
 * Prompts that pictures share: the keys and values that a model's UNet reads of
 * a text, in device memory.  Who begins with a text that another picture has
 * begun with, or has lately, takes those and skips the text encoder; the empty
 * negative prompt is one of them.  A picture's bytes are the same either way, as
 * texts are encoded one at a time.
 *
 * Belongs to one model on one device, so the tokens are the whole key.  Those in
 * use are counted and stay; of the others, the ones used last are kept, as many
 * as there is room for.  Any thread; the lock is its own, and held while nothing
 * is computed.
 */

#ifndef SD_TEXTS_H
#define SD_TEXTS_H

#include <stddef.h>
#include <stdint.h>

#include "../io/error.h"
#include "../ops/ops.h"


typedef struct sd_texts_s  sd_texts_t;
typedef struct sd_text_s   sd_text_t;

struct sd_text_s {
    sd_text_t   *next;
    void        *data;          /* device memory */
    size_t       size;
    int          refs;
    int          shared;        /* it is in the list */
    int          length;
    int32_t      ids[];         /* [length] */
};


/* most: texts that are kept, those in use among them; twice as many as there
 * are pictures at a time is what these would take without sharing */
int sd_texts_create(sd_texts_t **t, int most, sd_error_t *err);
/* nobody uses one; NULL is fine */
void sd_texts_destroy(sd_texts_t *t, sd_device_t *dev);

/*
 * one for these tokens, to be given back.  *hit: it is computed already; if it
 * is not, size bytes of it are the caller's to fill, and then sd_texts_done()
 * lets others see it.  t: NULL where nothing is shared.  NULL: no memory
 */
sd_text_t *sd_texts_get(sd_texts_t *t, sd_device_t *dev, const int32_t *ids,
    int length, size_t size, int *hit);
void sd_texts_done(sd_texts_t *t, sd_text_t *text);
void sd_texts_put(sd_texts_t *t, sd_device_t *dev, sd_text_t *text);

/* device memory of those that are kept; t: may be NULL */
size_t sd_texts_memory(sd_texts_t *t);


#endif
