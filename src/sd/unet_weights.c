/*
 * What the UNet's configuration means, and what its weights are called, as in
 * diffusers.  The order here is diffusers' order of modules.
 */

#include <stdlib.h>
#include <string.h>

#include "config.h"
#include "unet.h"


static const char *const  sd_unet_down_types[] = {
    "DownBlock2D", "CrossAttnDownBlock2D", NULL
};

static const char *const  sd_unet_up_types[] = {
    "UpBlock2D", "CrossAttnUpBlock2D", NULL
};

static const char *const  sd_unet_acts[] = { "silu", "swish", NULL };

static const sd_config_only_t  sd_unet_only[] = {
    { "_class_name", "\"UNet2DConditionModel\"" },
    { "in_channels", "4" },
    { "out_channels", "4" },
    { "center_input_sample", "false" },
    { "mid_block_type", "\"UNetMidBlock2DCrossAttn\"" },
    { "only_cross_attention", "false" },
    { "mid_block_only_cross_attention", "false" },
    { "downsample_padding", "1" },
    { "mid_block_scale_factor", "1" },
    { "reverse_transformer_layers_per_block", "null" },
    { "encoder_hid_dim", "null" },
    { "encoder_hid_dim_type", "null" },
    { "num_attention_heads", "null" },
    { "dual_cross_attention", "false" },
    { "class_embed_type", "null" },
    { "addition_embed_type", "null" },
    { "num_class_embeds", "null" },
    { "resnet_time_scale_shift", "\"default\"" },
    { "resnet_skip_time_act", "false" },
    { "resnet_out_scale_factor", "1" },
    { "time_embedding_type", "\"positional\"" },
    { "time_embedding_act_fn", "null" },
    { "timestep_post_act", "null" },
    { "time_cond_proj_dim", "null" },
    { "conv_in_kernel", "3" },
    { "conv_out_kernel", "3" },
    { "attention_type", "\"default\"" },
    { "class_embeddings_concat", "false" },
    { "cross_attention_norm", "null" },
    { NULL, NULL }
};


int
sd_unet_config(sd_unet_t *u, const char *dir, sd_error_t *err)
{
    int          i, n, size[2], context[SD_UNET_BLOCKS];
    sd_config_t  c;

    memset(u, 0, sizeof(sd_unet_t));

    if (sd_config_open(&c, dir, "unet", "config.json", err) != SD_OK) {
        return SD_ERROR;
    }

    sd_config_only(&c, sd_unet_only);
    sd_config_not_null(&c, "mid_block_type");
    sd_config_not_null(&c, "norm_num_groups");
    (void) sd_config_choice(&c, "act_fn", "silu", sd_unet_acts);

    u->in_channels = sd_config_int(&c, "in_channels", 4, 4, 4);
    u->out_channels = sd_config_int(&c, "out_channels", 4, 4, 4);

    n = u->nblocks = sd_config_length(&c, "block_out_channels",
                                      SD_UNET_BLOCKS);

    sd_config_ints(&c, "block_out_channels", 0, u->channels, n, 4, 8192);
    sd_config_choices(&c, "down_block_types", sd_unet_down_types,
                      u->down_attention, n);
    sd_config_choices(&c, "up_block_types", sd_unet_up_types,
                      u->up_attention, n);
    sd_config_ints(&c, "layers_per_block", 2, u->layers, n, 1,
                   SD_UNET_LAYERS - 1);
    sd_config_ints(&c, "transformer_layers_per_block", 1, u->depth, n, 1,
                   SD_UNET_DEPTH);

    /* the number of heads, in spite of its name (diffusers issue 2011) */

    sd_config_ints(&c, "attention_head_dim", 8, u->heads, n, 1, 1024);

    sd_config_ints(&c, "cross_attention_dim", 1280, context, n, 1, 16384);
    u->context = context[0];

    u->groups = sd_config_int(&c, "norm_num_groups", 32, 1, 8192);
    u->eps = sd_config_number(&c, "norm_eps", 1e-5, 0, 1);
    u->linear_projection = sd_config_bool(&c, "use_linear_projection", 0);
    u->flip_sin_to_cos = sd_config_bool(&c, "flip_sin_to_cos", 1);
    u->freq_shift = sd_config_number(&c, "freq_shift", 0, 0, 1);

    sd_config_ints(&c, "sample_size", 64, size, 2, 1, 4096);
    u->sample_size = size[0];

    u->time_dim = sd_config_int(&c, "time_embedding_dim",
                                4 * u->channels[0], 1, 65536);

    for (i = 0; i < n && c.status == SD_OK; i++) {
        if (context[i] != u->context) {
            sd_config_refuse(&c, "cross_attention_dim");
        }

        if (u->channels[i] % u->groups) {
            sd_config_bad(&c, "norm_num_groups",
                          "does not divide block_out_channels");
        }

        if (u->channels[i] % u->heads[i]) {
            sd_config_bad(&c, "attention_head_dim",
                          "does not divide block_out_channels");
        }
    }

    if (c.status == SD_OK && u->channels[0] % 2) {
        sd_config_bad(&c, "block_out_channels", "is odd");
    }

    sd_config_close(&c);

    return c.status;
}


static void
sd_transformer_weights(const sd_unet_t *u, sd_transformer_t *t,
    sd_weights_t *l, sd_parts_t *cross, int c, int level)
{
    int                      i;
    size_t                   mark;
    sd_parts_t               qkv = { 0 };
    sd_transformer_block_t  *b;

    t->c = c;
    t->heads = u->heads[level];
    t->nblocks = u->depth[level];

    if (t->blocks == NULL) {
        t->blocks = calloc(t->nblocks, sizeof(sd_transformer_block_t));

        if (t->blocks == NULL) {
            l->status = sd_fail(l->err, "no memory for a model");
            return;
        }
    }

    sd_weights_norm(l, &t->norm, "norm", c);
    sd_weights_linear(l, &t->proj_in, "proj_in", c, c, 1);

    for (i = 0; i < t->nblocks; i++) {
        b = &t->blocks[i];
        mark = sd_weights_enter(l, "transformer_blocks.%d.", i);

        sd_weights_norm(l, &b->norm1, "norm1", c);

        sd_parts_add(&qkv, l, "attn1.to_q", c);
        sd_parts_add(&qkv, l, "attn1.to_k", c);
        sd_parts_add(&qkv, l, "attn1.to_v", c);
        sd_weights_parts(l, &b->qkv, &qkv, c, 0);
        sd_parts_free(&qkv);

        sd_weights_linear(l, &b->out1, "attn1.to_out.0", c, c, 1);

        sd_weights_norm(l, &b->norm2, "norm2", c);
        sd_weights_linear(l, &b->q, "attn2.to_q", c, c, 0);

        b->kv_at = sd_parts_add(cross, l, "attn2.to_k", c);
        sd_parts_add(cross, l, "attn2.to_v", c);

        sd_weights_linear(l, &b->out2, "attn2.to_out.0", c, c, 1);

        sd_weights_norm(l, &b->norm3, "norm3", c);

        b->ff_in.geglu = 1;
        sd_weights_linear(l, &b->ff_in, "ff.net.0.proj", 8 * c, c, 1);
        sd_weights_linear(l, &b->ff_out, "ff.net.2", c, 4 * c, 1);

        sd_weights_leave(l, mark);
    }

    sd_weights_linear(l, &t->proj_out, "proj_out", c, c, 1);
}


static void
sd_unet_resnet_weights(const sd_unet_t *u, sd_resnet_t *r, sd_weights_t *l,
    sd_parts_t *time, int in, int out, int pixels)
{
    r->in = in;
    r->out = out;
    r->groups = u->groups;
    r->eps = u->eps;

    sd_resnet_weights(r, l, pixels);
    r->addend_at = sd_parts_add(time, l, "time_emb_proj", out);
}


void
sd_unet_weights(sd_unet_t *u, sd_weights_t *l)
{
    int               i, j, c, level, nskips, in, size;
    int               skips[1 + SD_UNET_BLOCKS * (SD_UNET_LAYERS + 1)];
    size_t            mark, inner;
    sd_parts_t        time = { 0 }, cross = { 0 };
    sd_unet_block_t  *b;

    size = u->sample_size;
    c = u->channels[0];
    nskips = 0;

    u->conv_in.stride = 1;
    u->conv_in.hint = size * size;
    sd_weights_conv(l, &u->conv_in, "conv_in", c, u->in_channels, 3);

    sd_weights_linear(l, &u->time1, "time_embedding.linear_1", u->time_dim, c,
                      1);
    sd_weights_linear(l, &u->time2, "time_embedding.linear_2", u->time_dim,
                      u->time_dim, 1);

    skips[nskips++] = c;

    for (i = 0; i < u->nblocks; i++) {
        b = &u->down[i];
        b->nresnets = u->layers[i];
        b->attention = u->down_attention[i];

        mark = sd_weights_enter(l, "down_blocks.%d.", i);

        for (j = 0; j < b->nresnets; j++) {
            if (b->attention) {
                inner = sd_weights_enter(l, "attentions.%d.", j);
                sd_transformer_weights(u, &b->attentions[j], l, &cross,
                                       u->channels[i], i);
                sd_weights_leave(l, inner);
            }

            inner = sd_weights_enter(l, "resnets.%d.", j);
            sd_unet_resnet_weights(u, &b->resnets[j], l, &time, c,
                                   u->channels[i], size * size);
            sd_weights_leave(l, inner);

            c = u->channels[i];
            skips[nskips++] = c;
        }

        b->has_sampler = i != u->nblocks - 1;

        if (b->has_sampler) {
            size = (size + 1) / 2;
            b->sampler.stride = 2;
            b->sampler.hint = size * size;
            sd_weights_conv(l, &b->sampler, "downsamplers.0.conv", c, c, 3);
            skips[nskips++] = c;
        }

        sd_weights_leave(l, mark);
    }

    for (i = 0; i < u->nblocks; i++) {
        b = &u->up[i];
        level = u->nblocks - 1 - i;
        b->nresnets = u->layers[level] + 1;
        b->attention = u->up_attention[i];

        mark = sd_weights_enter(l, "up_blocks.%d.", i);

        for (j = 0; j < b->nresnets; j++) {
            in = c + skips[--nskips];

            /* an identity shortcut over two tensors is nothing that we have */

            if (in == u->channels[level] && l->status == SD_OK) {
                l->status = sd_error(l->err, 500, "unsupported_config",
                                     "block_out_channels", "unet: "
                                     "\"block_out_channels\": up block %d "
                                     "with %d channels on both sides is not "
                                     "implemented", i, in);
            }

            c = u->channels[level];

            if (b->attention) {
                inner = sd_weights_enter(l, "attentions.%d.", j);
                sd_transformer_weights(u, &b->attentions[j], l, &cross, c,
                                       level);
                sd_weights_leave(l, inner);
            }

            inner = sd_weights_enter(l, "resnets.%d.", j);
            sd_unet_resnet_weights(u, &b->resnets[j], l, &time, in, c,
                                   size * size);
            sd_weights_leave(l, inner);
        }

        b->has_sampler = i != u->nblocks - 1;

        if (b->has_sampler) {
            size *= 2;
            b->sampler.stride = 1;
            b->sampler.upsample = 1;
            b->sampler.hint = size * size;
            sd_weights_conv(l, &b->sampler, "upsamplers.0.conv", c, c, 3);
        }

        sd_weights_leave(l, mark);
    }

    /* the mid block is between the two, but stands behind them in the file */

    b = &u->mid;
    level = u->nblocks - 1;
    c = u->channels[level];
    size = u->sample_size >> level;

    b->nresnets = 2;
    b->attention = 1;

    mark = sd_weights_enter(l, "mid_block.");

    inner = sd_weights_enter(l, "attentions.0.");
    sd_transformer_weights(u, &b->attentions[0], l, &cross, c, level);
    sd_weights_leave(l, inner);

    for (j = 0; j < 2; j++) {
        inner = sd_weights_enter(l, "resnets.%d.", j);
        sd_unet_resnet_weights(u, &b->resnets[j], l, &time, c, c,
                               size * size);
        sd_weights_leave(l, inner);
    }

    sd_weights_leave(l, mark);

    u->conv_out.stride = 1;
    u->conv_out.hint = u->sample_size * u->sample_size;

    sd_weights_norm(l, &u->norm_out, "conv_norm_out", u->channels[0]);
    sd_weights_conv(l, &u->conv_out, "conv_out", u->out_channels,
                    u->channels[0], 3);

    sd_weights_parts(l, &u->time_proj, &time, u->time_dim, 1);
    sd_weights_parts(l, &u->cross_kv, &cross, u->context, 0);

    sd_parts_free(&time);
    sd_parts_free(&cross);
}


static void
sd_unet_block_free(sd_unet_block_t *b)
{
    int  j;

    for (j = 0; j < SD_UNET_LAYERS; j++) {
        free(b->attentions[j].blocks);
    }
}


void
sd_unet_free(sd_unet_t *u, sd_device_t *dev)
{
    int  i;

    sd_weight_list_free(&u->weights, dev);

    for (i = 0; i < SD_UNET_BLOCKS; i++) {
        sd_unet_block_free(&u->down[i]);
        sd_unet_block_free(&u->up[i]);
    }

    sd_unet_block_free(&u->mid);
}
