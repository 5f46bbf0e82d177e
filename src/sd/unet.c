/*
 * The UNet: see unet.h.  This file is the network alone; what its
 * configuration means and what its weights are called is in unet_weights.c.
 *
 *   conv_in -> down blocks -> mid block -> up blocks -> norm, silu, conv_out
 *
 * The down path's tensors wait on a stack until the up path reads them, the
 * last first, beside its own.
 */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "unet.h"


#define SD_UNET_SKIPS  (1 + SD_UNET_BLOCKS * (SD_UNET_LAYERS + 1))


/*
 * sinusoidal embedding (Vaswani et al. 2017, 3.5; Ho et al. 2020) and its MLP,
 * silu(linear(silu(linear(x)))), where the last silu is the one in front of
 * every residual block's projection.  Frequencies and arguments are rounded to
 * fp32 as in training: at timestep 999 the double values would differ.
 */

int
sd_unet_time(const sd_unet_t *u, sd_context_t *cx, sd_tensor_t table,
    const double *timesteps)
{
    int          i, j, half, rows;
    float       *v, *row, freq, arg;
    sd_linear_t  linear = { 0 };
    sd_tensor_t  x, h;

    rows = table.n;
    half = u->channels[0] / 2;

    v = calloc((size_t) rows * 2 * half, sizeof(float));

    if (v == NULL) {
        if (cx->status == SD_OK) {
            cx->status = sd_fail(cx->err, "no memory for time embeddings");
        }

        return cx->status;
    }

    for (i = 0; i < rows && !cx->plan; i++) {
        row = v + (size_t) i * 2 * half;

        for (j = 0; j < half; j++) {
            freq = (float) -log(10000.0) * (float) j;
            freq = exp(freq / (float) (half - u->freq_shift));
            arg = (float) timesteps[i] * freq;

            row[u->flip_sin_to_cos ? j : j + half] = cos(arg);
            row[u->flip_sin_to_cos ? j + half : j] = sin(arg);
        }
    }

    x = sd_alloc(cx, 1, 1, rows, 2 * half);
    sd_upload(cx, x, v);
    free(v);

    h = sd_alloc(cx, 1, 1, rows, u->time_dim);

    linear.x = x;
    linear.w = &u->time1;
    linear.act = SD_ACT_SILU;
    sd_linear(cx, h, &linear);

    sd_free(cx, &x);
    x = sd_alloc(cx, 1, 1, rows, u->time_dim);

    linear.x = h;
    linear.w = &u->time2;
    sd_linear(cx, x, &linear);

    sd_free(cx, &h);

    table.n = 1;
    table.w = rows;

    linear.x = x;
    linear.w = &u->time_proj;
    linear.act = SD_ACT_NONE;
    sd_linear(cx, table, &linear);

    sd_free(cx, &x);

    return cx->status;
}


int
sd_unet_text(const sd_unet_t *u, sd_context_t *cx, sd_tensor_t table,
    sd_tensor_t text)
{
    sd_linear_t  linear = { 0 };

    linear.x = text;
    linear.w = &u->cross_kv;

    return sd_linear(cx, table, &linear);
}


/* y = w x + residual, in a tensor of its own where residual is NULL */

static sd_tensor_t
sd_unet_linear(sd_context_t *cx, const sd_weight_t *w, sd_tensor_t x,
    sd_act_t act, const sd_tensor_t *residual)
{
    sd_linear_t  linear = { 0 };
    sd_tensor_t  y;

    linear.x = x;
    linear.w = w;
    linear.act = act;

    if (residual) {
        linear.residual = y = *residual;
    } else {
        y = sd_alloc(cx, x.n, x.h, x.w, act == SD_ACT_GEGLU ? w->k / 2 : w->k);
    }

    sd_linear(cx, y, &linear);

    return y;
}


static void
sd_unet_layer_norm(sd_context_t *cx, const sd_weight_t *w, sd_tensor_t y,
    sd_tensor_t x)
{
    sd_layer_norm_t  norm = { 0 };

    norm.x = x;
    norm.w = w;
    norm.eps = 1e-5f;

    sd_layer_norm(cx, y, &norm);
}


/* h: [n, 1, rows, c], in place: self-attention, cross-attention, feed-forward,
 * each behind a layer norm and with a residual */

static void
sd_transformer_block(sd_context_t *cx, const sd_transformer_block_t *b,
    int heads, sd_tensor_t h, const sd_unet_given_t *given)
{
    int             c = h.c;
    sd_tensor_t     t, q, f;
    sd_attention_t  attention = { 0 };

    attention.heads = heads;
    attention.scale = 1 / sqrtf((float) c / heads);

    t = sd_alloc(cx, h.n, h.h, h.w, c);

    sd_unet_layer_norm(cx, &b->norm1, t, h);
    q = sd_unet_linear(cx, &b->qkv, t, SD_ACT_NONE, NULL);

    attention.q = sd_view(q, 0, c);
    attention.k = sd_view(q, c, c);
    attention.v = sd_view(q, 2 * c, c);
    sd_attention(cx, t, &attention);

    sd_free(cx, &q);
    sd_unet_linear(cx, &b->out1, t, SD_ACT_NONE, &h);

    sd_unet_layer_norm(cx, &b->norm2, t, h);
    q = sd_unet_linear(cx, &b->q, t, SD_ACT_NONE, NULL);

    memset(&attention.k, 0, sizeof(sd_tensor_t));
    memset(&attention.v, 0, sizeof(sd_tensor_t));

    attention.q = q;
    attention.kv = given->text;
    attention.k_at = b->kv_at;
    attention.v_at = b->kv_at + c;
    sd_attention(cx, t, &attention);

    sd_free(cx, &q);
    sd_unet_linear(cx, &b->out2, t, SD_ACT_NONE, &h);

    sd_unet_layer_norm(cx, &b->norm3, t, h);
    f = sd_unet_linear(cx, &b->ff_in, t, SD_ACT_GEGLU, NULL);

    sd_free(cx, &t);
    sd_unet_linear(cx, &b->ff_out, f, SD_ACT_NONE, &h);

    sd_free(cx, &f);
}


/* x: [n, h, w, c], in place: the blocks over its pixels as rows */

static void
sd_transformer(const sd_unet_t *u, sd_context_t *cx, const sd_transformer_t *t,
    sd_tensor_t x, const sd_unet_given_t *given)
{
    int              i;
    sd_tensor_t      g, h;
    sd_group_norm_t  norm = { 0 };

    /* a 1x1 convolution of pixels is a linear layer of rows */

    x.w *= x.h;
    x.h = 1;

    g = sd_alloc(cx, x.n, 1, x.w, x.c);

    norm.x = x;
    norm.w = &t->norm;
    norm.groups = u->groups;
    norm.eps = 1e-6f;
    sd_group_norm(cx, g, &norm);

    h = sd_unet_linear(cx, &t->proj_in, g, SD_ACT_NONE, NULL);

    sd_free(cx, &g);

    for (i = 0; i < t->nblocks; i++) {
        sd_transformer_block(cx, &t->blocks[i], t->heads, h, given);
    }

    sd_unet_linear(cx, &t->proj_out, h, SD_ACT_NONE, &x);

    sd_free(cx, &h);
}


/* y = conv(x) to height h and width w */

static sd_tensor_t
sd_unet_conv(sd_context_t *cx, const sd_weight_t *weight, sd_tensor_t x, int h,
    int w)
{
    sd_conv2d_t  conv = { 0 };
    sd_tensor_t  y;

    y = sd_alloc(cx, x.n, h, w, weight->k);

    conv.x = x;
    conv.w = weight;
    sd_conv2d(cx, y, &conv);

    return y;
}


sd_tensor_t
sd_unet(const sd_unet_t *u, sd_context_t *cx, sd_tensor_t x,
    const sd_unet_given_t *given)
{
    int                     i, j, n;
    sd_tensor_t             skips[SD_UNET_SKIPS], h, y, none = { 0 };
    sd_group_norm_t         norm = { 0 };
    const sd_unet_block_t  *b;

    n = 0;
    skips[n++] = sd_unet_conv(cx, &u->conv_in, x, x.h, x.w);

    /* down: everything stays for the way up */

    for (i = 0; i < u->nblocks; i++) {
        b = &u->down[i];

        for (j = 0; j < b->nresnets; j++) {
            h = sd_resnet(cx, &b->resnets[j], &skips[n - 1], &none, 1,
                          &given->time);

            if (b->attention) {
                sd_transformer(u, cx, &b->attentions[j], h, given);
            }

            skips[n++] = h;
        }

        if (b->has_sampler) {
            h = skips[n - 1];
            skips[n++] = sd_unet_conv(cx, &b->sampler, h, (h.h + 1) / 2,
                                      (h.w + 1) / 2);
        }
    }

    /* mid */

    b = &u->mid;

    h = sd_resnet(cx, &b->resnets[0], &skips[n - 1], &none, 1, &given->time);
    sd_transformer(u, cx, &b->attentions[0], h, given);
    h = sd_resnet(cx, &b->resnets[1], &h, &none, 0, &given->time);

    /* up: each resnet reads what the down path left, the last first */

    for (i = 0; i < u->nblocks; i++) {
        b = &u->up[i];

        for (j = 0; j < b->nresnets; j++) {
            h = sd_resnet(cx, &b->resnets[j], &h, &skips[--n], 0,
                          &given->time);

            if (b->attention) {
                sd_transformer(u, cx, &b->attentions[j], h, given);
            }
        }

        /* to the size that the down path had, which may be odd */

        if (b->has_sampler) {
            y = sd_unet_conv(cx, &b->sampler, h, skips[n - 1].h,
                             skips[n - 1].w);
            sd_free(cx, &h);
            h = y;
        }
    }

    norm.x = h;
    norm.w = &u->norm_out;
    norm.groups = u->groups;
    norm.eps = u->eps;
    norm.silu = 1;
    sd_group_norm(cx, h, &norm);

    y = sd_unet_conv(cx, &u->conv_out, h, h.h, h.w);

    sd_free(cx, &h);

    return y;
}
