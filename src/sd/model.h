/*
 * A model: a diffusers directory, checked, and then loaded to a device.
 *
 * sd_model_open() reads the configuration files and the safetensors headers,
 * and walks through text encoder, UNet and decoder in plan mode: whatever is
 * missing, misshapen or not implemented is an error here, with file, key or
 * tensor named, in milliseconds and without reading the weights (but for a few
 * kilobytes that tell two models of one shape apart).  That is what `nginx -t`
 * and `sd check` run.  sd_model_load() then reads and packs.  After that the
 * model is immutable, but for the texts that its pictures share, and shared by
 * all threads.
 */

#ifndef SD_MODEL_H
#define SD_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "../io/error.h"
#include "../ops/ops.h"
#include "sampler.h"
#include "text_encoder.h"
#include "texts.h"
#include "tokenizer.h"
#include "unet.h"
#include "vae.h"


typedef enum {
    SD_PART_TEXT_ENCODER,
    SD_PART_UNET,
    SD_PART_VAE,                /* the decoder */
    SD_MODEL_PARTS
} sd_part_t;


typedef struct {
    const char            *name;            /* its directory */
    sd_safetensors_t      *st;              /* open until loaded */
    uint64_t               parameters;
    uint64_t               file_bytes;
    size_t                 packed_bytes;
} sd_model_part_t;


typedef struct sd_model_s {
    char                   path[4096];
    char                   name[64];        /* the directory's last part */
    char                   fingerprint[65]; /* hex SHA-256 over configs, the
                                               sorted tensors' names, types and
                                               shapes, and samples of their
                                               bytes */
    sd_device_t           *device;          /* of open, or of load; not owned */
    int                    loaded;
    void                  *mapped;          /* packed weights in a file, see
                                               packed.h; or NULL */
    size_t                 mapped_bytes;

    sd_texts_t            *texts;           /* owned: NULL, or where pictures
                                               share their prompts; set before
                                               the first one begins */
    sd_tokenizer_t        *tokenizer;
    sd_text_encoder_t      text_encoder;
    sd_unet_t              unet;
    sd_vae_t               vae;
    sd_scheduler_config_t  scheduler;       /* from scheduler_config.json */

    float                  preview_factors[4][3];   /* latent to RGB */
    float                  preview_bias[3];

    int                    vae_scale;       /* pixels a latent element: 8 */
    int                    default_width;   /* sample_size * vae_scale */
    int                    default_height;

    sd_model_part_t        parts[SD_MODEL_PARTS];
    uint64_t               parameters;      /* sums over the parts */
    uint64_t               file_bytes;
    size_t                 packed_bytes;    /* weights as the device keeps them */
    size_t                 load_bytes;      /* needed beside while loading */
} sd_model_t;


/* dev: for the packed sizes; a plan device will do */
int sd_model_open(sd_model_t **m, const char *path, sd_device_t *dev,
    sd_error_t *err);

/* progress: may be NULL; called now and then with 0 .. 1, from this thread.
 * cancel: may be NULL; non-zero ends it with SD_CANCELLED */
int sd_model_load(sd_model_t *m, sd_device_t *dev,
    void (*progress)(void *data, double done), void *data,
    const atomic_int *cancel, sd_error_t *err);

/* for packed.h: the weights are there, without it */
void sd_model_loaded(sd_model_t *m, sd_device_t *dev);

void sd_model_close(sd_model_t *m);                 /* NULL is fine */

/*
 * arena bytes that one picture of this size needs: for its steps (guided), its
 * prompt and its decoding, each by a plan run; any of them may be NULL.  400
 * "width" or "height" where the model has no such size.
 */
int sd_model_plan(sd_model_t *m, sd_device_t *dev, int width, int height,
    size_t *step, size_t *prompt, size_t *decode, sd_error_t *err);


#endif
