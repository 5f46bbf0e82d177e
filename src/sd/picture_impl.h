/*
 * What a picture is made of: between picture.c, which is host work, and
 * picture_run.c, which computes.
 *
 * Its device memory is one block, laid out by sd_picture_layout():
 *
 *   x, kept     twice: a step works on a copy of the one that holds, and the
 *               two change roles at its end.  So a cancelled step leaves the
 *               last step's state as it was
 *   denoised    the last step's estimate, for previews
 *   text        keys and values of all cross-attention layers, the negative
 *               prompt's first
 *   time        a row of time embeddings for each row of the sampler's table
 *   slots       the sampler's rows, as the device reads them
 *   row         {i, i} for row i: which row of time both samples take
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

    /* device memory */
    sd_device_t         *device;
    char                *memory;
    size_t               memory_size;
    int                  now;                   /* which of the two holds */
    int                  have_denoised;
    sd_tensor_t          x[2], kept[2], denoised, text, time;
    sd_slot_t           *slots;
    int32_t             *row_index;

    sd_picture_dump_pt   dump;
    void                *dump_data;
};


/* width, height and what follows from them */
int sd_picture_size(sd_picture_t *p, int width, int height, sd_error_t *err);

/* places all tensors in p->memory; where that is NULL, finds the size only */
void sd_picture_layout(sd_picture_t *p, const sd_ops_t *ops);

/* NCHW of files and dumps, NHWC of tensors; c and p: channels and pixels */
void sd_picture_to_nhwc(float *dst, const float *src, int c, size_t p);
void sd_picture_to_nchw(float *dst, const float *src, int c, size_t p);


#endif
