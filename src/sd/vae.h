/*
 * The decoder of AutoencoderKL: from a latent to a picture of eight times its
 * height and width.  The encoder's tensors are ignored.  Immutable after
 * loading; any number of threads, each with its own context.
 */

#ifndef SD_VAE_H
#define SD_VAE_H

#include "resnet.h"


#define SD_VAE_BLOCKS  8
#define SD_VAE_LAYERS  8


typedef struct {
    int           nresnets;
    sd_resnet_t   resnets[SD_VAE_LAYERS];
    int           has_sampler;
    sd_weight_t   sampler;
} sd_vae_block_t;


typedef struct {
    int                latent_channels;
    int                nblocks;
    int                channels[SD_VAE_BLOCKS];
    int                layers;
    int                groups;
    int                mid_attention;
    int                post_quant;
    double             scaling_factor;

    sd_weight_t        post_quant_conv, conv_in;
    sd_resnet_t        mid[2];
    sd_weight_t        norm, qkv, out;      /* the mid block's attention */
    sd_vae_block_t     up[SD_VAE_BLOCKS];
    sd_weight_t        norm_out, conv_out;

    sd_weight_list_t   weights;
} sd_vae_t;


/* reads dir/vae/config.json */
int sd_vae_config(sd_vae_t *v, const char *dir, sd_error_t *err);

/* latent: of the model's default size; names all weights, see weights.h */
void sd_vae_weights(sd_vae_t *v, sd_weights_t *l, int latent);

void sd_vae_free(sd_vae_t *v, sd_device_t *dev);

/* pixels a latent element */
#define sd_vae_scale(v)  (1 << ((v)->nblocks - 1))

/*
 * latent: [n, h, w, latent_channels] F32, scaled as the UNet has it; returns
 * [n, 8 h, 8 w, 3], about -1 .. 1
 */
sd_tensor_t sd_vae_decode(const sd_vae_t *v, sd_context_t *cx,
    sd_tensor_t latent);


#endif
