/*
 * The residual block that UNet and decoder share (diffusers' ResnetBlock2D):
 *
 *   y = shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))) + time)))
 *
 * where x may be two tensors read as one, time is the UNet's alone, and the
 * shortcut is the identity where input and output have the same channels.
 */

#ifndef SD_RESNET_H
#define SD_RESNET_H

#include "../ops/ops.h"
#include "weights.h"


typedef struct {
    int           in, out;          /* channels */
    int           groups;
    float         eps;
    int           addend_at;        /* column in the table of time embeddings */
    int           has_shortcut;
    sd_weight_t   norm1, conv1, norm2, conv2, shortcut;
} sd_resnet_t;


/* in, out, groups, eps and addend_at are set before; pixels: see sd_weight_t */
void sd_resnet_weights(sd_resnet_t *r, sd_weights_t *l, int pixels);

/*
 * x: [n, h, w, c], x2: [n, h, w, in - c] or empty; returns [n, h, w, out].
 * Frees *x2, and *x too where keep is 0 (it may become the result).
 * time: each sample's row of time embeddings, or NULL.
 */
sd_tensor_t sd_resnet(sd_context_t *cx, const sd_resnet_t *r, sd_tensor_t *x,
    sd_tensor_t *x2, int keep, const sd_tables_t *time);


#endif
