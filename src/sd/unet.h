/*
 * UNet2DConditionModel of the Stable Diffusion 1.x and 2.x family (Rombach et
 * al. 2022, section 3.3): predicts the noise in a latent, or its velocity, given
 * the timestep and the text.
 *
 * What does not depend on the latent is computed once per picture: the keys and
 * values of all cross-attention layers from the text, and the time embedding's
 * share of every residual block for all timesteps.  Both are tables, and
 * sd_unet() is told for each sample where its own are, so that samples of
 * different pictures can share a batch.  The weights are immutable; any number of threads, each with its
 * own context.
 */

#ifndef SD_UNET_H
#define SD_UNET_H

#include "resnet.h"


#define SD_UNET_BLOCKS  8           /* levels at most */
#define SD_UNET_LAYERS  8           /* resnets of a block at most */
#define SD_UNET_DEPTH   32          /* transformer blocks of a layer at most */


typedef struct {
    sd_weight_t   norm1, qkv, out1;             /* self-attention */
    sd_weight_t   norm2, q, out2;               /* cross-attention */
    sd_weight_t   norm3, ff_in, ff_out;         /* GEGLU */
    int           kv_at;            /* column in the table of keys and values */
} sd_transformer_block_t;


typedef struct {
    int                       c, heads;
    sd_weight_t               norm, proj_in, proj_out;
    int                       nblocks;
    sd_transformer_block_t   *blocks;           /* owned */
} sd_transformer_t;


typedef struct {
    int                nresnets;
    int                attention;   /* its resnets have a transformer behind */
    sd_resnet_t        resnets[SD_UNET_LAYERS];
    sd_transformer_t   attentions[SD_UNET_LAYERS];
    int                has_sampler;
    sd_weight_t        sampler;     /* down: stride 2, up: nearest x2 */
} sd_unet_block_t;


typedef struct {
    int                in_channels, out_channels, sample_size;
    int                nblocks;
    int                channels[SD_UNET_BLOCKS];
    int                layers[SD_UNET_BLOCKS];
    int                depth[SD_UNET_BLOCKS];
    int                heads[SD_UNET_BLOCKS];
    int                down_attention[SD_UNET_BLOCKS];
    int                up_attention[SD_UNET_BLOCKS];
    int                groups;
    float              eps;
    int                context;             /* cross_attention_dim */
    int                linear_projection;
    int                flip_sin_to_cos;
    double             freq_shift;
    int                time_dim;

    sd_weight_t        time1, time2;        /* the embedding's MLP */
    sd_weight_t        time_proj;           /* all resnets' in one */
    sd_weight_t        cross_kv;            /* all cross-attentions' in one */
    sd_weight_t        conv_in, norm_out, conv_out;
    sd_unet_block_t    down[SD_UNET_BLOCKS], mid, up[SD_UNET_BLOCKS];

    sd_weight_list_t   weights;
} sd_unet_t;


/* reads dir/unet/config.json */
int sd_unet_config(sd_unet_t *u, const char *dir, sd_error_t *err);

/* names all weights: checks or packs them, as l says */
void sd_unet_weights(sd_unet_t *u, sd_weights_t *l);

void sd_unet_free(sd_unet_t *u, sd_device_t *dev);


/* columns of the two tables */
#define sd_unet_time_columns(u)  ((u)->time_proj.k)
#define sd_unet_text_columns(u)  ((u)->cross_kv.k)

/* timesteps: [rows]; table: [rows, 1, 1, time columns] F32 */
int sd_unet_time(const sd_unet_t *u, sd_context_t *cx, sd_tensor_t table,
    const double *timesteps);

/* text: [n, 1, l, context]; table: [n, 1, l, text columns] */
int sd_unet_text(const sd_unet_t *u, sd_context_t *cx, sd_tensor_t table,
    sd_tensor_t text);


/* what each sample is given: its row of the table of time embeddings, and its
 * [l, text columns] of the table of text */
typedef struct {
    sd_tables_t       time, text;
} sd_unet_given_t;

/* x: [n, h, w, in_channels], any h and w; returns [n, h, w, out_channels] */
sd_tensor_t sd_unet(const sd_unet_t *u, sd_context_t *cx, sd_tensor_t x,
    const sd_unet_given_t *given);


#endif
