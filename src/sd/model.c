/*
 * A model: see model.h.
 */

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "../io/file.h"
#include "../io/sha256.h"
#include "config.h"
#include "model.h"


#define SD_FINGERPRINT_SAMPLES  16      /* tensors a part */
#define SD_FINGERPRINT_BYTES    256     /* of each */


/*
 * SD 1.x latents to RGB in -1 .. 1: the linear fit that keturn published in 2022
 * (discuss.huggingface.co/t/23204); models with latents of their own bring
 * latent_rgb.json
 */
static const float  sd_latent_rgb[4][3] = {
    { 0.298, 0.207, 0.208 },
    { 0.187, 0.286, 0.173 },
    { -0.158, 0.189, 0.264 },
    { -0.184, -0.271, -0.473 }
};

static const struct {
    const char  *name;
    const char  *base;
} sd_model_parts[SD_MODEL_PARTS] = {
    { "text_encoder", "model" },
    { "unet", "diffusion_pytorch_model" },
    { "vae", "diffusion_pytorch_model" }
};


/* what the pipeline is made of: classes that we know to be something else */

static int
sd_model_index(sd_model_t *m, sd_error_t *err)
{
    static const struct {
        const char  *key;
        const char  *classes[4];
    } known[] = {
        { "unet", { "UNet2DConditionModel" } },
        { "vae", { "AutoencoderKL" } },
        { "text_encoder", { "CLIPTextModel" } },
        { "tokenizer", { "CLIPTokenizer", "CLIPTokenizerFast" } },
        { "scheduler", { NULL } }
    };

    static const char *const  pipelines[] = {
        "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline",
        "LatentConsistencyModelPipeline", NULL
    };

    int          k;
    cJSON       *list;
    size_t       i;
    sd_config_t  c;
    const char  *name;

    if (sd_config_open(&c, m->path, "", "model_index.json", err) != SD_OK) {
        sd_config_close(&c);
        return SD_ERROR;
    }

    (void) sd_config_choice(&c, "_class_name", "StableDiffusionPipeline",
                            pipelines);

    for (i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        list = cJSON_GetObjectItemCaseSensitive(c.json, known[i].key);
        name = cJSON_GetStringValue(cJSON_GetArrayItem(list, 1));

        if (name == NULL) {
            sd_config_bad(&c, known[i].key, "is not [library, class]");
            break;
        }

        for (k = 0; known[i].classes[k]; k++) {
            if (strcmp(name, known[i].classes[k]) == 0) {
                break;
            }
        }

        if (known[i].classes[k] == NULL && known[i].classes[0]) {
            sd_config_refuse(&c, known[i].key);
            break;
        }
    }

    sd_config_close(&c);

    return c.status;
}


static int
sd_model_preview(sd_model_t *m, sd_error_t *err)
{
    int     i, j, rc;
    char    path[PATH_MAX];
    float  *to;
    cJSON  *json, *factors, *v;

    for (i = 0; i < 4; i++) {
        for (j = 0; j < 3; j++) {
            m->preview_factors[i][j] = sd_latent_rgb[i][j];
            m->preview_bias[j] = 0;
        }
    }

    snprintf(path, sizeof(path), "%.4000s/latent_rgb.json", m->path);

    if (access(path, F_OK) != 0) {
        return SD_OK;
    }

    if (sd_json_read(&json, path, err) != SD_OK) {
        return SD_ERROR;
    }

    rc = SD_OK;
    factors = cJSON_GetObjectItemCaseSensitive(json, "factors");

    for (i = 0; i < 5; i++) {
        to = i < 4 ? m->preview_factors[i] : m->preview_bias;
        v = i < 4 ? cJSON_GetArrayItem(factors, i)
                  : cJSON_GetObjectItemCaseSensitive(json, "bias");

        for (j = 0; j < 3; j++) {
            if (!cJSON_IsNumber(cJSON_GetArrayItem(v, j))) {
                rc = SD_ERROR;
                continue;
            }

            to[j] = cJSON_GetArrayItem(v, j)->valuedouble;
        }
    }

    cJSON_Delete(json);

    return rc == SD_OK ? SD_OK
                       : sd_error(err, 500, "unsupported_config", path, "%s: "
                                  "not \"factors\", 4 x 3 numbers, and "
                                  "\"bias\", 3", path);
}


static void
sd_model_walk(sd_model_t *m, sd_part_t part, sd_weights_t *l)
{
    l->st = m->parts[part].st;

    switch (part) {

    case SD_PART_TEXT_ENCODER:
        l->list = &m->text_encoder.weights;
        sd_text_encoder_weights(&m->text_encoder, l);
        break;

    case SD_PART_UNET:
        l->list = &m->unet.weights;
        sd_unet_weights(&m->unet, l);
        break;

    default:
        l->list = &m->vae.weights;
        sd_vae_weights(&m->vae, l, m->unet.sample_size);
        break;
    }
}


static int
sd_model_check_part(sd_model_t *m, sd_part_t part, sd_device_t *dev,
    sd_error_t *err)
{
    char              dir[PATH_MAX];
    sd_weights_t      l = { 0 };
    sd_model_part_t  *p = &m->parts[part];

    p->name = sd_model_parts[part].name;

    snprintf(dir, sizeof(dir), "%.4000s/%s", m->path, p->name);

    if (sd_safetensors_open(&p->st, dir, sd_model_parts[part].base, err)
        != SD_OK)
    {
        return SD_ERROR;
    }

    l.dev = dev;
    l.err = err;

    sd_model_walk(m, part, &l);

    p->parameters = l.parameters;
    p->packed_bytes = l.packed;
    p->file_bytes = sd_safetensors_bytes(p->st);

    m->parameters += l.parameters;
    m->packed_bytes += l.packed;
    m->file_bytes += p->file_bytes;

    if (l.scratch > m->load_bytes) {
        m->load_bytes = l.scratch;
    }

    return l.status;
}


/* parts that are each fine, and do not belong together */

static int
sd_model_check_match(sd_model_t *m, sd_error_t *err)
{
    if (m->unet.context != m->text_encoder.width) {
        return sd_error(err, 500, "unsupported_config", "cross_attention_dim",
                        "%s/unet/config.json: \"cross_attention_dim\": %d is "
                        "not the text encoder's \"hidden_size\", %d", m->path,
                        m->unet.context, m->text_encoder.width);
    }

    if (sd_tokenizer_vocab_size(m->tokenizer) > m->text_encoder.vocab) {
        return sd_error(err, 500, "unsupported_config", "vocab_size",
                        "%s/text_encoder/config.json: \"vocab_size\": %d is "
                        "less than the tokenizer's %d", m->path,
                        m->text_encoder.vocab,
                        sd_tokenizer_vocab_size(m->tokenizer));
    }

    return SD_OK;
}


static int
sd_model_fingerprint(sd_model_t *m, sd_error_t *err)
{
    static const char *const  configs[] = {
        "model_index.json", "scheduler/scheduler_config.json",
        "text_encoder/config.json", "unet/config.json", "vae/config.json"
    };

    int                    part, k;
    char                   path[PATH_MAX], bytes[SD_FINGERPRINT_BYTES];
    size_t                 i, n;
    ssize_t                len;
    sd_buf_t               b = { 0 };
    sd_sha256_t            sha;
    const sd_st_tensor_t  *t;

    sd_sha256_init(&sha);

    for (i = 0; i < sizeof(configs) / sizeof(configs[0]); i++) {
        snprintf(path, sizeof(path), "%.4000s/%s", m->path, configs[i]);
        b.len = 0;

        if (sd_file_read(&b, path, 1 << 26, err) != SD_OK) {
            sd_buf_free(&b);
            return SD_ERROR;
        }

        sd_sha256_update(&sha, b.data, b.len);
    }

    sd_buf_free(&b);

    for (part = 0; part < SD_MODEL_PARTS; part++) {
        n = sd_safetensors_count(m->parts[part].st);

        for (i = 0; i < n; i++) {
            t = sd_safetensors_get(m->parts[part].st, i);

            sd_sha256_update(&sha, t->name, strlen(t->name) + 1);
            sd_sha256_update(&sha, &t->type, sizeof(t->type));
            sd_sha256_update(&sha, t->shape, t->rank * sizeof(t->shape[0]));
        }

        for (k = 0; k < SD_FINGERPRINT_SAMPLES && n; k++) {
            t = sd_safetensors_get(m->parts[part].st,
                                   n * k / SD_FINGERPRINT_SAMPLES);
            len = sd_safetensors_peek(m->parts[part].st, t, bytes,
                                      sizeof(bytes), err);

            if (len == SD_ERROR) {
                return SD_ERROR;
            }

            sd_sha256_update(&sha, bytes, len);
        }
    }

    sd_sha256_hex(&sha, m->fingerprint);

    return SD_OK;
}


static int
sd_model_read(sd_model_t *m, sd_device_t *dev, sd_error_t *err)
{
    int     part;
    char    path[PATH_MAX];
    size_t  step, prompt, decode;

    if (sd_model_index(m, err) != SD_OK
        || sd_text_encoder_config(&m->text_encoder, m->path, err) != SD_OK
        || sd_unet_config(&m->unet, m->path, err) != SD_OK
        || sd_vae_config(&m->vae, m->path, err) != SD_OK)
    {
        return SD_ERROR;
    }

    m->vae_scale = sd_vae_scale(&m->vae);
    m->default_width = m->unet.sample_size * m->vae_scale;
    m->default_height = m->default_width;

    snprintf(path, sizeof(path), "%.4000s/scheduler/scheduler_config.json",
             m->path);

    if (sd_scheduler_config_read(&m->scheduler, path, err) != SD_OK) {
        return SD_ERROR;
    }

    snprintf(path, sizeof(path), "%.4000s/tokenizer", m->path);

    if (sd_tokenizer_open(&m->tokenizer, path, err) != SD_OK
        || sd_model_preview(m, err) != SD_OK)
    {
        return SD_ERROR;
    }

    for (part = 0; part < SD_MODEL_PARTS; part++) {
        if (sd_model_check_part(m, part, dev, err) != SD_OK) {
            return SD_ERROR;
        }
    }

    if (sd_model_check_match(m, err) != SD_OK
        || sd_model_fingerprint(m, err) != SD_OK)
    {
        return SD_ERROR;
    }

    /* whatever the operations would refuse, at the size that is the default */

    return sd_model_plan(m, dev, m->default_width, m->default_height, &step,
                         &prompt, &decode, err);
}


int
sd_model_open(sd_model_t **out, const char *path, sd_device_t *dev,
    sd_error_t *err)
{
    char        *real;
    sd_model_t  *m;

    *out = NULL;

    real = realpath(path, NULL);

    if (real == NULL || strlen(real) >= sizeof(m->path) - 96) {
        free(real);
        return sd_error(err, 500, "file_error", path,
                        "%s: no such directory", path);
    }

    m = calloc(1, sizeof(sd_model_t));

    if (m == NULL) {
        free(real);
        return sd_fail(err, "no memory for a model");
    }

    strcpy(m->path, real);
    snprintf(m->name, sizeof(m->name), "%.60s", strrchr(real, '/') + 1);
    free(real);

    m->device = dev;

    if (sd_model_read(m, dev, err) != SD_OK) {
        sd_model_close(m);
        return SD_ERROR;
    }

    *out = m;

    return SD_OK;
}


void
sd_model_loaded(sd_model_t *m, sd_device_t *dev)
{
    int  part;

    /* pictures may be created meanwhile, by other threads */

    if (m->device != dev) {
        m->device = dev;
    }

    for (part = 0; part < SD_MODEL_PARTS; part++) {
        sd_safetensors_close(m->parts[part].st);
        m->parts[part].st = NULL;
    }

    m->loaded = 1;
}


int
sd_model_load(sd_model_t *m, sd_device_t *dev,
    void (*progress)(void *data, double done), void *data,
    const atomic_int *cancel, sd_error_t *err)
{
    int           part;
    uint64_t      done;
    sd_weights_t  l = { 0 };

    /* pictures may be created meanwhile, by other threads */

    if (m->device != dev) {
        m->device = dev;
    }

    done = 0;

    l.dev = dev;
    l.pack = 1;
    l.done = &done;
    l.total = m->parameters;
    l.progress = progress;
    l.data = data;
    l.cancel = cancel;
    l.err = err;

    /* one buffer for all, so that it goes back to the system as a whole */

    l.buf = malloc(m->load_bytes);

    if (l.buf == NULL) {
        return sd_fail(err, "%s: no memory to load it", m->path);
    }

    for (part = 0; part < SD_MODEL_PARTS && l.status == SD_OK; part++) {
        sd_model_walk(m, part, &l);
    }

    free(l.buf);

    if (l.status == SD_OK) {
        sd_model_loaded(m, dev);
    }

    return l.status;
}


void
sd_model_close(sd_model_t *m)
{
    int  part;

    if (m == NULL) {
        return;
    }

    for (part = 0; part < SD_MODEL_PARTS; part++) {
        sd_safetensors_close(m->parts[part].st);
    }

    sd_texts_destroy(m->texts, m->device);
    sd_text_encoder_free(&m->text_encoder, m->device);
    sd_unet_free(&m->unet, m->device);
    sd_vae_free(&m->vae, m->device);
    sd_scheduler_config_free(&m->scheduler);
    sd_tokenizer_close(m->tokenizer);

    if (m->mapped) {
        munmap(m->mapped, m->mapped_bytes);
    }

    free(m);
}
