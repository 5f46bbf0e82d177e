/*
 * What a picture is made of: between picture.c, which is host work, and
 * picture_run.c, which computes.
 *
 * Its device memory is one block, laid out by sd_picture_layout():
 *
 *   x, kept     twice: a step reads the one that holds and writes the other,
 *               and the two change roles at its end.  So a cancelled step
 *               leaves the last step's state as it was
 *   denoised    the last step's estimate, for previews
 *   time        a row of time embeddings for each row of the sampler's table
 *   tables      of a batch of this picture alone: see batch.c
 *
 * Beside it are its texts, which other pictures may have, too: keys and values
 * of all cross-attention layers, of the prompt and of the negative one.
 *
 * sd_model_plan() runs the same code with the same layout in plan mode.
 */

#ifndef SD_PICTURE_IMPL_H
#define SD_PICTURE_IMPL_H

#include "picture.h"


struct sd_picture_s {
    sd_model_t          *model;
    const sd_sampler_t  *sampler;

    int                  width, height;         /* pixels */
    int                  h, w, c;               /* of the latent */
    int                  n;                     /* samples a step: 1 or 2 */
    int                  steps, step;
    int                  nrows, row;            /* the next one */
    double               guidance, init_sigma;
    uint64_t             seed;
    sd_sampler_row_t    *rows;
    int32_t             *ids;                   /* [n * length] */
    float               *initial;               /* x to start from, HWC, or
                                                   NULL: noise */
    float               *initial_kept[SD_KEPT];

    char                 digest[65];
    int                  prompt_tokens, negative_tokens;
    int                  resumed, inexact, branched;
    char                 numerics[96];          /* of the state that it goes
                                                   on from, if it says */

    /* device memory */
    sd_device_t         *device;
    char                *memory;
    size_t               memory_size;
    int                  now;                   /* which of the two holds */
    int                  have_denoised;
    sd_tensor_t          x[2], kept[2], denoised, time;
    sd_tensor_t          text;                  /* the shape of one, no data */
    sd_text_t           *texts[2];              /* [n], the negative prompt's
                                                   first */
    int                  text_hits;
    char                *tables;

    sd_picture_dump_pt   dump;
    void                *dump_data;
};


/* width, height and what follows from them */
int sd_picture_size(sd_picture_t *p, int width, int height, sd_error_t *err);

/* places all tensors in p->memory; where that is NULL, finds the size only */
void sd_picture_layout(sd_picture_t *p, const sd_ops_t *ops);

size_t sd_picture_text_size(const sd_picture_t *p);

/* batch.c; samples: of the batch; h, w: of the latents */

size_t sd_batch_tables_size(int pictures);

typedef void (*sd_batch_show_pt)(void *data, sd_context_t *cx, sd_tensor_t t,
    const char *name);

/* scale, UNet, sampler, as the tables on the device say; NULL: a plan run */
void sd_batch_model(const sd_model_t *m, sd_context_t *cx, char *device,
    int pictures, int samples, int h, int w, sd_batch_show_pt show,
    void *data);

/* the same for the next row of one picture, with its own tables */
void sd_batch_one(sd_picture_t *p, sd_context_t *cx, char *device,
    sd_batch_show_pt show, void *data);

/* the row is done; or back to the first of its step */
void sd_batch_advance(sd_picture_t *p);
void sd_batch_rewind(sd_picture_t *p);

/* NCHW of files and dumps, NHWC of tensors; c and p: channels and pixels */
void sd_picture_to_nhwc(float *dst, const float *src, int c, size_t p);
void sd_picture_to_nchw(float *dst, const float *src, int c, size_t p);


#endif
