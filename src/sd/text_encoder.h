/*
 * CLIPTextModel (Radford et al. 2021): token numbers to one vector a token.
 * Stable Diffusion reads the last hidden state behind the final layer norm; the
 * pooled output is not computed, so the end token's number does not matter.
 * Immutable after loading; any number of threads, each with its own context.
 */

#ifndef SD_TEXT_ENCODER_H
#define SD_TEXT_ENCODER_H

#include "../ops/ops.h"
#include "weights.h"


typedef struct {
    sd_weight_t   norm1, qkv, out, norm2, fc1, fc2;
} sd_text_layer_t;


typedef struct {
    int                vocab, length;       /* tokens known, and of a prompt */
    int                width, inner, heads, nlayers;
    sd_act_t           act;
    float              eps;

    sd_weight_t        tokens, positions;
    sd_text_layer_t   *layers;              /* [nlayers], owned */
    sd_weight_t        norm;

    sd_weight_list_t   weights;
} sd_text_encoder_t;


/* reads dir/text_encoder/config.json */
int sd_text_encoder_config(sd_text_encoder_t *t, const char *dir,
    sd_error_t *err);

void sd_text_encoder_weights(sd_text_encoder_t *t, sd_weights_t *l);

void sd_text_encoder_free(sd_text_encoder_t *t, sd_device_t *dev);

/* ids: [n * length], host; returns [n, 1, length, width] */
sd_tensor_t sd_text_encoder(const sd_text_encoder_t *t, sd_context_t *cx,
    const int32_t *ids, int n);


#endif
