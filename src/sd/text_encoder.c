/*
 * The text encoder: see text_encoder.h.
 */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "config.h"
#include "text_encoder.h"


static const char *const  sd_text_acts[] = {
    "quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", NULL
};

static const sd_act_t  sd_text_act[] = {
    SD_ACT_QUICK_GELU, SD_ACT_GELU, SD_ACT_GELU_TANH, SD_ACT_GELU_TANH
};


int
sd_text_encoder_config(sd_text_encoder_t *t, const char *dir, sd_error_t *err)
{
    sd_config_t  c;

    memset(t, 0, sizeof(sd_text_encoder_t));

    if (sd_config_open(&c, dir, "text_encoder", "config.json", err) != SD_OK) {
        return SD_ERROR;
    }

    t->vocab = sd_config_int(&c, "vocab_size", 49408, 2, 1 << 20);
    t->length = sd_config_int(&c, "max_position_embeddings", 77, 2, 4096);
    t->width = sd_config_int(&c, "hidden_size", 512, 1, 16384);
    t->inner = sd_config_int(&c, "intermediate_size", 2048, 1, 65536);
    t->nlayers = sd_config_int(&c, "num_hidden_layers", 12, 1, 256);
    t->heads = sd_config_int(&c, "num_attention_heads", 8, 1, 1024);
    t->eps = sd_config_number(&c, "layer_norm_eps", 1e-5, 0, 1);
    t->act = sd_text_act[sd_config_choice(&c, "hidden_act", "quick_gelu",
                                          sd_text_acts)];

    if (c.status == SD_OK && t->width % t->heads) {
        sd_config_bad(&c, "num_attention_heads",
                      "does not divide hidden_size");
    }

    sd_config_close(&c);

    return c.status;
}


void
sd_text_encoder_weights(sd_text_encoder_t *t, sd_weights_t *l)
{
    int               i;
    size_t            mark, inner;
    sd_parts_t        qkv = { 0 };
    sd_text_layer_t  *layer;

    if (t->layers == NULL) {
        t->layers = calloc(t->nlayers, sizeof(sd_text_layer_t));

        if (t->layers == NULL) {
            l->status = sd_fail(l->err, "no memory for a model");
            return;
        }
    }

    /* with or without a prefix: depends on the version of transformers */

    mark = sd_weights_enter(l, "%s",
                            sd_weights_have(l, "embeddings.token_embedding")
                            ? "" : "text_model.");

    sd_weights_table(l, &t->tokens, "embeddings.token_embedding", t->vocab,
                     t->width);
    sd_weights_table(l, &t->positions, "embeddings.position_embedding",
                     t->length, t->width);

    for (i = 0; i < t->nlayers; i++) {
        layer = &t->layers[i];
        inner = sd_weights_enter(l, "encoder.layers.%d.", i);

        sd_weights_norm(l, &layer->norm1, "layer_norm1", t->width);

        sd_parts_add(&qkv, l, "self_attn.q_proj", t->width);
        sd_parts_add(&qkv, l, "self_attn.k_proj", t->width);
        sd_parts_add(&qkv, l, "self_attn.v_proj", t->width);
        sd_weights_parts(l, &layer->qkv, &qkv, t->width, 1);
        sd_parts_free(&qkv);

        sd_weights_linear(l, &layer->out, "self_attn.out_proj", t->width,
                          t->width, 1);
        sd_weights_norm(l, &layer->norm2, "layer_norm2", t->width);
        sd_weights_linear(l, &layer->fc1, "mlp.fc1", t->inner, t->width, 1);
        sd_weights_linear(l, &layer->fc2, "mlp.fc2", t->width, t->inner, 1);

        sd_weights_leave(l, inner);
    }

    sd_weights_norm(l, &t->norm, "final_layer_norm", t->width);

    sd_weights_leave(l, mark);
}


void
sd_text_encoder_free(sd_text_encoder_t *t, sd_device_t *dev)
{
    sd_weight_list_free(&t->weights, dev);
    free(t->layers);
    t->layers = NULL;
}


sd_tensor_t
sd_text_encoder(const sd_text_encoder_t *t, sd_context_t *cx,
    const int32_t *ids, int n)
{
    int                     i, c = t->width;
    sd_embed_t              embed = { 0 };
    sd_linear_t             linear = { 0 };
    sd_tensor_t             x, h, q, none = { 0 };
    sd_attention_t          attention = { 0 };
    sd_layer_norm_t         norm = { 0 };
    const sd_text_layer_t  *layer;

    x = sd_alloc(cx, n, 1, t->length, c);

    embed.ids = ids;
    embed.table = &t->tokens;
    embed.position = &t->positions;
    sd_embed(cx, x, &embed);

    h = sd_alloc(cx, n, 1, t->length, c);

    norm.x = x;
    norm.eps = t->eps;

    attention.heads = t->heads;
    attention.scale = 1 / sqrtf((float) c / t->heads);
    attention.causal = 1;

    for (i = 0; i < t->nlayers; i++) {
        layer = &t->layers[i];

        norm.w = &layer->norm1;
        sd_layer_norm(cx, h, &norm);

        q = sd_alloc(cx, n, 1, t->length, 3 * c);

        linear.x = h;
        linear.w = &layer->qkv;
        linear.act = SD_ACT_NONE;
        linear.residual = none;
        sd_linear(cx, q, &linear);

        attention.q = sd_view(q, 0, c);
        attention.k = sd_view(q, c, c);
        attention.v = sd_view(q, 2 * c, c);
        sd_attention(cx, h, &attention);

        sd_free(cx, &q);

        linear.w = &layer->out;
        linear.residual = x;
        sd_linear(cx, x, &linear);

        norm.w = &layer->norm2;
        sd_layer_norm(cx, h, &norm);

        q = sd_alloc(cx, n, 1, t->length, t->inner);

        linear.w = &layer->fc1;
        linear.act = t->act;
        linear.residual = none;
        sd_linear(cx, q, &linear);

        linear.x = q;
        linear.w = &layer->fc2;
        linear.act = SD_ACT_NONE;
        linear.residual = x;
        sd_linear(cx, x, &linear);

        sd_free(cx, &q);
    }

    norm.w = &t->norm;
    sd_layer_norm(cx, x, &norm);

    sd_free(cx, &h);

    return x;
}
