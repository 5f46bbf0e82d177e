/*
 * The decoder: see vae.h.
 *
 *   scale -> post_quant_conv -> conv_in -> resnet, attention, resnet
 *         -> up blocks -> norm, silu, conv_out
 */

#include <math.h>
#include <string.h>

#include "config.h"
#include "vae.h"


static const char *const  sd_vae_acts[] = { "silu", "swish", NULL };
static const char *const  sd_vae_types[] = { "UpDecoderBlock2D", NULL };

static const sd_config_only_t  sd_vae_only[] = {
    { "_class_name", "\"AutoencoderKL\"" },
    { "latent_channels", "4" },
    { "out_channels", "3" },
    { "latents_mean", "null" },
    { "latents_std", "null" },
    { NULL, NULL }
};


int
sd_vae_config(sd_vae_t *v, const char *dir, sd_error_t *err)
{
    int          i, types[SD_VAE_BLOCKS];
    sd_config_t  c;

    memset(v, 0, sizeof(sd_vae_t));

    if (sd_config_open(&c, dir, "vae", "config.json", err) != SD_OK) {
        return SD_ERROR;
    }

    sd_config_only(&c, sd_vae_only);
    (void) sd_config_choice(&c, "act_fn", "silu", sd_vae_acts);

    v->latent_channels = sd_config_int(&c, "latent_channels", 4, 4, 4);
    v->nblocks = sd_config_length(&c, "block_out_channels", SD_VAE_BLOCKS);

    sd_config_ints(&c, "block_out_channels", 0, v->channels, v->nblocks, 4,
                   8192);
    sd_config_choices(&c, "up_block_types", sd_vae_types, types, v->nblocks);

    v->layers = sd_config_int(&c, "layers_per_block", 1, 1,
                              SD_VAE_LAYERS - 1);
    v->groups = sd_config_int(&c, "norm_num_groups", 32, 1, 8192);
    v->scaling_factor = sd_config_number(&c, "scaling_factor", 0.18215, 1e-6,
                                         1e6);
    v->mid_attention = sd_config_bool(&c, "mid_block_add_attention", 1);
    v->post_quant = sd_config_bool(&c, "use_post_quant_conv", 1);

    if (sd_config_number(&c, "shift_factor", 0, -1e6, 1e6) != 0) {
        sd_config_refuse(&c, "shift_factor");
    }

    for (i = 0; i < v->nblocks && c.status == SD_OK; i++) {
        if (v->channels[i] % v->groups) {
            sd_config_bad(&c, "norm_num_groups",
                          "does not divide block_out_channels");
        }
    }

    sd_config_close(&c);

    return c.status;
}


static void
sd_vae_resnet_weights(const sd_vae_t *v, sd_resnet_t *r, sd_weights_t *l,
    const char *name, int i, int in, int out, int pixels)
{
    size_t  mark;

    r->in = in;
    r->out = out;
    r->groups = v->groups;
    r->eps = 1e-6f;

    mark = sd_weights_enter(l, "%s.%d.", name, i);
    sd_resnet_weights(r, l, pixels);
    sd_weights_leave(l, mark);
}


void
sd_vae_weights(sd_vae_t *v, sd_weights_t *l, int latent)
{
    int              i, j, c, old, pixels;
    size_t           mark, inner;
    sd_parts_t       qkv = { 0 };
    sd_vae_block_t  *b;

    pixels = latent * latent;
    c = v->channels[v->nblocks - 1];

    if (v->post_quant) {
        v->post_quant_conv.stride = 1;
        v->post_quant_conv.hint = pixels;
        sd_weights_conv(l, &v->post_quant_conv, "post_quant_conv",
                        v->latent_channels, v->latent_channels, 1);
    }

    mark = sd_weights_enter(l, "decoder.");

    v->conv_in.stride = 1;
    v->conv_in.hint = pixels;
    sd_weights_conv(l, &v->conv_in, "conv_in", c, v->latent_channels, 3);

    inner = sd_weights_enter(l, "mid_block.");

    for (i = 0; i < 2; i++) {
        sd_vae_resnet_weights(v, &v->mid[i], l, "resnets", i, c, c, pixels);
    }

    sd_weights_leave(l, inner);

    if (v->mid_attention) {
        inner = sd_weights_enter(l, "mid_block.attentions.0.");
        old = sd_weights_have(l, "query");

        sd_weights_norm(l, &v->norm, "group_norm", c);

        sd_parts_add(&qkv, l, old ? "query" : "to_q", c);
        sd_parts_add(&qkv, l, old ? "key" : "to_k", c);
        sd_parts_add(&qkv, l, old ? "value" : "to_v", c);
        sd_weights_parts(l, &v->qkv, &qkv, c, 1);
        sd_parts_free(&qkv);

        sd_weights_linear(l, &v->out, old ? "proj_attn" : "to_out.0", c, c, 1);

        sd_weights_leave(l, inner);
    }

    for (i = 0; i < v->nblocks; i++) {
        b = &v->up[i];
        b->nresnets = v->layers + 1;

        inner = sd_weights_enter(l, "up_blocks.%d.", i);

        for (j = 0; j < b->nresnets; j++) {
            sd_vae_resnet_weights(v, &b->resnets[j], l, "resnets", j, c,
                                  v->channels[v->nblocks - 1 - i], pixels);
            c = v->channels[v->nblocks - 1 - i];
        }

        b->has_sampler = i != v->nblocks - 1;

        if (b->has_sampler) {
            pixels *= 4;
            b->sampler.stride = 1;
            b->sampler.upsample = 1;
            b->sampler.hint = pixels;
            sd_weights_conv(l, &b->sampler, "upsamplers.0.conv", c, c, 3);
        }

        sd_weights_leave(l, inner);
    }

    v->conv_out.stride = 1;
    v->conv_out.hint = pixels;
    sd_weights_norm(l, &v->norm_out, "conv_norm_out", c);
    sd_weights_conv(l, &v->conv_out, "conv_out", 3, c, 3);

    sd_weights_leave(l, mark);
}


void
sd_vae_free(sd_vae_t *v, sd_device_t *dev)
{
    sd_weight_list_free(&v->weights, dev);
}


static sd_tensor_t
sd_vae_conv(sd_context_t *cx, const sd_weight_t *w, sd_tensor_t *x, int scale)
{
    sd_conv2d_t  conv = { 0 };
    sd_tensor_t  y;

    y = sd_alloc(cx, x->n, scale * x->h, scale * x->w, w->k);

    conv.x = *x;
    conv.w = w;
    sd_conv2d(cx, y, &conv);

    sd_free(cx, x);

    return y;
}


/* x: [n, h, w, c], in place: each pixel looks at all others, with one head */

static void
sd_vae_attention(const sd_vae_t *v, sd_context_t *cx, sd_tensor_t x)
{
    sd_linear_t      linear = { 0 };
    sd_tensor_t      t, q;
    sd_attention_t   attention = { 0 };
    sd_group_norm_t  norm = { 0 };

    x.w *= x.h;
    x.h = 1;

    t = sd_alloc(cx, x.n, 1, x.w, x.c);

    norm.x = x;
    norm.w = &v->norm;
    norm.groups = v->groups;
    norm.eps = 1e-6f;
    sd_group_norm(cx, t, &norm);

    q = sd_alloc(cx, x.n, 1, x.w, 3 * x.c);

    linear.x = t;
    linear.w = &v->qkv;
    sd_linear(cx, q, &linear);

    attention.q = sd_view(q, 0, x.c);
    attention.k = sd_view(q, x.c, x.c);
    attention.v = sd_view(q, 2 * x.c, x.c);
    attention.heads = 1;
    attention.scale = 1 / sqrtf(x.c);
    sd_attention(cx, t, &attention);

    sd_free(cx, &q);

    linear.x = t;
    linear.w = &v->out;
    linear.residual = x;
    sd_linear(cx, x, &linear);

    sd_free(cx, &t);
}


sd_tensor_t
sd_vae_decode(const sd_vae_t *v, sd_context_t *cx, sd_tensor_t latent)
{
    int                    i, j;
    sd_tensor_t            x, none = { 0 };
    sd_group_norm_t        norm = { 0 };
    const sd_vae_block_t  *b;

    x = sd_alloc(cx, latent.n, latent.h, latent.w, latent.c);
    sd_scale(cx, x, latent, 1 / v->scaling_factor);

    if (v->post_quant) {
        x = sd_vae_conv(cx, &v->post_quant_conv, &x, 1);
    }

    x = sd_vae_conv(cx, &v->conv_in, &x, 1);

    x = sd_resnet(cx, &v->mid[0], &x, &none, 0, NULL);

    if (v->mid_attention) {
        sd_vae_attention(v, cx, x);
    }

    x = sd_resnet(cx, &v->mid[1], &x, &none, 0, NULL);

    for (i = 0; i < v->nblocks; i++) {
        b = &v->up[i];

        for (j = 0; j < b->nresnets; j++) {
            x = sd_resnet(cx, &b->resnets[j], &x, &none, 0, NULL);
        }

        if (b->has_sampler) {
            x = sd_vae_conv(cx, &b->sampler, &x, 2);
        }
    }

    norm.x = x;
    norm.w = &v->norm_out;
    norm.groups = v->groups;
    norm.eps = 1e-6f;
    norm.silu = 1;
    sd_group_norm(cx, x, &norm);

    return sd_vae_conv(cx, &v->conv_out, &x, 1);
}
