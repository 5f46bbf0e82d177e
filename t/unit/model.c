/*
 * Models that are wrong: each is refused when it is opened, with file, key or
 * tensor named, and what we do not implement is refused with its value.  Runs
 * in the source's root directory, on copies of a model of t/golden.
 */

#define _GNU_SOURCE

#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "../../src/io/file.h"
#include "../../src/sd/model.h"
#include "tap.h"


#define SOURCE  "t/golden/models/sd21v-plain"

static char          dir[] = "/tmp/sd-model-XXXXXX";
static sd_device_t  *dev;


static int __attribute__((format(printf, 1, 2)))
shell(const char *fmt, ...)
{
    char     cmd[1024];
    va_list  args;

    va_start(args, fmt);
    vsnprintf(cmd, sizeof(cmd), fmt, args);
    va_end(args);

    return system(cmd);
}


static void
restore(void)
{
    if (shell("rm -rf %s && cp -rL " SOURCE " %s", dir, dir) != 0) {
        ok(0, "a copy of " SOURCE);
    }
}


static const char *
file(const char *name)
{
    static char  path[256];

    snprintf(path, sizeof(path), "%s/%s", dir, name);

    return path;
}


/* value: JSON, or NULL to remove the key */

static void
edit(const char *name, const char *key, const char *value)
{
    char        *text;
    cJSON       *json;
    sd_error_t   err;

    if (sd_json_read(&json, file(name), &err) != SD_OK) {
        ok(0, "%s", err.message);
        return;
    }

    cJSON_DeleteItemFromObjectCaseSensitive(json, key);

    if (value) {
        cJSON_AddItemToObject(json, key, cJSON_Parse(value));
    }

    text = cJSON_Print(json);
    (void) sd_file_write(file(name), text, strlen(text), &err);
    cJSON_free(text);
    cJSON_Delete(json);
}


static void
is_refused(const char *param, const char *one, const char *two)
{
    sd_error_t   err = { 0 };
    sd_model_t  *m;

    if (sd_model_open(&m, dir, dev, &err) == SD_OK) {
        ok(0, "%s %s is refused", one, two);
        sd_model_close(m);
        return;
    }

    ok(m == NULL && strstr(err.message, one) && strstr(err.message, two)
       && (param == NULL || strcmp(err.param, param) == 0), "%s: %s",
       err.param, err.message);
}


static void
test_configs(void)
{
    static const struct {
        const char  *name, *key, *value, *why;
    } tests[] = {
#define U  "unet/config.json"
#define V  "vae/config.json"
#define T  "text_encoder/config.json"
#define I  "model_index.json"
        { U, "class_embed_type", "\"timestep\"", "not implemented" },
        { U, "num_class_embeds", "1000", "not implemented" },
        { U, "in_channels", "9", "not implemented" },
        { U, "center_input_sample", "true", "not implemented" },
        { U, "only_cross_attention", "true", "not implemented" },
        { U, "only_cross_attention", "[true,false]", "not implemented" },
        { U, "dual_cross_attention", "true", "not implemented" },
        { U, "mid_block_type", "\"UNetMidBlock2D\"", "not implemented" },
        { U, "mid_block_type", "null", "not implemented" },
        { U, "norm_num_groups", "null", "not implemented" },
        { U, "resnet_time_scale_shift", "\"scale_shift\"",
          "not implemented" },
        { U, "act_fn", "\"gelu\"", "not implemented" },
        { U, "addition_embed_type", "\"text_time\"", "not implemented" },
        { U, "encoder_hid_dim", "768", "not implemented" },
        { U, "conv_in_kernel", "5", "not implemented" },
        { U, "mid_block_scale_factor", "1.5", "not implemented" },
        { U, "num_attention_heads", "8", "not implemented" },
        { U, "_class_name", "\"UNet3DConditionModel\"", "not implemented" },
        { U, "cross_attention_dim", "[32,32,64]", "not implemented" },
        { U, "down_block_types", "[\"DownBlock2D\",\"DownBlock2D\","
          "\"AttnDownBlock2D\"]", "not implemented" },
        { U, "up_block_types", "[\"UpBlock2D\"]", "not a list of 3" },
        { U, "attention_head_dim", "[2,4]", "not a list of 3" },
        { U, "attention_head_dim", "3", "does not divide" },
        { U, "attention_head_dim", "0", "not a whole number" },
        { U, "attention_head_dim", "1e300", "not a whole number" },
        { U, "attention_head_dim", "2.5", "not a whole number" },
        { U, "norm_num_groups", "3", "does not divide" },
        { U, "norm_num_groups", "\"8\"", "not a whole number" },
        { U, "norm_eps", "-1", "not a number" },
        { U, "use_linear_projection", "1", "not true or false" },
        { U, "block_out_channels", "[]", "not a list of 1 to 8" },
        { U, "block_out_channels", NULL, "missing" },
        { U, "block_out_channels", "[1,2,3,4,5,6,7,8,9]",
          "not a list of 1 to 8" },
        { U, "layers_per_block", "100", "not a whole number from 1 to 7" },
        { V, "_class_name", "\"AutoencoderTiny\"", "not implemented" },
        { V, "latent_channels", "16", "not implemented" },
        { V, "shift_factor", "0.1", "not implemented" },
        { V, "latents_mean", "[0,0,0,0]", "not implemented" },
        { V, "act_fn", "\"relu\"", "not implemented" },
        { V, "up_block_types", "[\"UpDecoderBlock2D\",\"UpDecoderBlock2D\","
          "\"UpDecoderBlock2D\",\"AttnUpDecoderBlock2D\"]",
          "not implemented" },
        { V, "scaling_factor", "0", "not a number" },
        { T, "hidden_act", "\"relu\"", "not implemented" },
        { T, "num_attention_heads", "5", "does not divide" },
        { I, "_class_name", "\"StableDiffusionXLPipeline\"",
          "not implemented" },
        { I, "unet", "[\"diffusers\",\"UNetMotionModel\"]",
          "not implemented" },
        { I, "vae", "[\"diffusers\",\"AutoencoderTiny\"]",
          "not implemented" },
        { I, "text_encoder", "[\"transformers\",\"T5EncoderModel\"]",
          "not implemented" },
        { I, "text_encoder", "[null,null]", "not [library, class]" },
        { I, "scheduler", NULL, "missing" }
    };

    char    name[128];
    size_t  i;

    for (i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
        snprintf(name, sizeof(name), "%s: \"%s\": ", tests[i].name,
                 tests[i].key);

        edit(tests[i].name, tests[i].key, tests[i].value);
        is_refused(tests[i].key, name, tests[i].why);

        if (shell("cp " SOURCE "/%s %s/%s", tests[i].name, dir, tests[i].name)
            != 0)
        {
            ok(0, "restored");
        }
    }
}


/* renames a tensor, or changes its header in another way of the same length */

static void
patch(const char *name, const char *from, const char *to)
{
    char        *p;
    sd_buf_t     b = { 0 };
    sd_error_t   err;

    (void) sd_file_read(&b, file(name), 1 << 24, &err);

    p = b.len ? memmem(b.data, b.len, from, strlen(from)) : NULL;

    if (p == NULL || strlen(from) != strlen(to)) {
        ok(0, "%s has %s", name, from);

    } else {
        memcpy(p, to, strlen(to));
        (void) sd_file_write(file(name), b.data, b.len, &err);
    }

    sd_buf_free(&b);
}


static void
test_weights(void)
{
    static const char  unet[] = "unet/diffusion_pytorch_model.safetensors";
    static const char  vae[] = "vae/diffusion_pytorch_model.safetensors";
    static const char  text[] = "text_encoder/model.safetensors";

    patch(unet, "\"mid_block.resnets.1.conv2.weight\"",
          "\"mid_block.resnets.1.conv2.weighs\"");
    is_refused("mid_block.resnets.1.conv2.weight", unet,
               "tensor \"mid_block.resnets.1.conv2.weight\" is missing");
    restore();

    patch(vae, "\"decoder.conv_out.bias\"", "\"decoder.conv_out.bios\"");
    is_refused("decoder.conv_out.bias", vae, "is missing");
    restore();

    patch(text, "\"encoder.layers.1.self_attn.k_proj.weight\"",
          "\"encoder.layers.7.self_attn.k_proj.weight\"");
    is_refused("encoder.layers.1.self_attn.k_proj.weight",
               text, "is missing");
    restore();

    edit("unet/config.json", "cross_attention_dim", "48");
    is_refused(NULL, "attn2.to_k.weight\" has shape [8, 32]",
               "the config says [8, 48]");
    restore();

    edit("unet/config.json", "layers_per_block", "2");
    is_refused(NULL, unet, "is missing");
    restore();

    edit("text_encoder/config.json", "vocab_size", "579");
    is_refused("embeddings.token_embedding.weight", "has shape [",
               "the config says [579, 32]");
    restore();

    edit("vae/config.json", "layers_per_block", "3");
    is_refused(NULL, vae, "is missing");
    restore();

    is_int(truncate(file(unet), 100000), 0, "the file is cut");
    is_refused(NULL, unet, "truncated");
    is_int(truncate(file(unet), 1000), 0, "in its header");
    is_refused(file(unet), unet, "truncated");
    is_int(truncate(file(unet), 0), 0, "to nothing");
    is_refused(file(unet), unet, "truncated");
    unlink(file(unet));
    is_refused(NULL, unet, "No such file");
    restore();

    (void) shell("echo '{' > %s", file("unet/config.json"));
    is_refused(NULL, "unet/config.json", "not JSON, line");
    unlink(file("unet/config.json"));
    is_refused(NULL, "unet/config.json", "No such file");
    restore();

    (void) shell("rm %s", file("tokenizer/vocab.json"));
    is_refused(NULL, "vocab.json", "No such file");
    restore();

    (void) shell("rm %s", file("scheduler/scheduler_config.json"));
    is_refused(NULL, "scheduler_config.json", "No such file");
    restore();

    (void) sd_file_write(file("latent_rgb.json"), "{\"factors\":[1]}", 15,
                         NULL);
    is_refused(NULL, "latent_rgb.json", "4 x 3 numbers");
    restore();

    (void) shell("rm -r %s", dir);
    is_refused(NULL, dir, "no such directory");
    restore();
}


/* the fingerprint is the model's, whatever it is called and where it is */

static void
test_fingerprint(void)
{
    char         before[65];
    sd_buf_t     b = { 0 };
    sd_error_t   err = { 0 };
    sd_model_t  *m;

    if (sd_model_open(&m, SOURCE, dev, &err) != SD_OK) {
        ok(0, "%s", err.message);
        return;
    }

    strcpy(before, m->fingerprint);
    is_str(m->name, "sd21v-plain", "its name");
    is_int(m->default_width, 128, "its width");
    is_int(m->vae_scale, 8, "pixels a latent element");
    sd_model_close(m);

    if (sd_model_open(&m, dir, dev, &err) != SD_OK) {
        ok(0, "%s", err.message);
        return;
    }

    is_str(m->fingerprint, before, "a copy has the same fingerprint");
    sd_model_close(m);

    /* the first bytes of the first tensor by name */

    (void) sd_file_read(&b, file("unet/diffusion_pytorch_model.safetensors"),
                        1 << 24, &err);
    b.data[8 + *(uint64_t *) b.data] ^= 1;
    (void) sd_file_write(file("unet/diffusion_pytorch_model.safetensors"),
                         b.data, b.len, &err);
    sd_buf_free(&b);

    if (sd_model_open(&m, dir, dev, &err) != SD_OK) {
        ok(0, "%s", err.message);
        return;
    }

    ok(strcmp(m->fingerprint, before) != 0,
       "other weights of the same shapes have another");
    sd_model_close(m);
}


int
main(void)
{
    sd_error_t  err;

    if (mkdtemp(dir) == NULL
        || sd_device_plan(&dev, "cpu", SD_PRECISION_EXACT, &err) != SD_OK)
    {
        ok(0, "set up");
        return done();
    }

    restore();

    test_configs();
    test_weights();
    test_fingerprint();

    sd_device_close(dev);
    (void) shell("rm -r %s", dir);

    return done();
}
