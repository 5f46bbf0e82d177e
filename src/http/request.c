/*
 * From a request to a job's parameters: what the fields mean together, what the
 * location allows, and which format answers.  A function from values to values;
 * encoder threads.
 */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>

#include "../io/safetensors.h"
#include "http.h"


#define SD_DEFAULT_STEPS     20
#define SD_DEFAULT_GUIDANCE  7.5
#define SD_DEFAULT_QUALITY   90

#define SD_PROMPT_TOKENS     77


static int sd_job_type(const sd_dialect_t *d, const sd_request_t *r,
    size_t size, sd_error_t *err);
static int sd_job_format(sd_job_params_t *p, const sd_field_values_t *v,
    const sd_dialect_t *d, const sd_request_t *r, sd_error_t *err);
static int sd_job_state(sd_job_params_t *p, const sd_field_values_t *v,
    const sd_model_t *model, sd_error_t *err);
static int sd_job_numbers(sd_job_params_t *p, const sd_field_values_t *v,
    const sd_model_t *model, sd_error_t *err);
static int sd_job_limits(const sd_job_params_t *p, const sd_location_t *l,
    sd_error_t *err);
static int sd_job_interim(sd_job_params_t *p, const sd_field_values_t *v,
    const sd_location_t *l, int pages, sd_error_t *err);
static void sd_job_take(sd_buf_t *dst, sd_buf_t *src);


void
sd_job_params_free(sd_job_params_t *p)
{
    sd_buf_free(&p->prompt);
    sd_buf_free(&p->negative_prompt);
    sd_buf_free(&p->latents);
}


void
sd_job_warn(sd_job_params_t *p, const sd_picture_info_t *info)
{
    int  i, n;

    for (i = 0; i < 2; i++) {
        n = i ? info->negative_tokens : info->prompt_tokens;

        if (n > SD_PROMPT_TOKENS) {
            snprintf(p->warnings[p->nwarnings++], sizeof(p->warnings[0]),
                     "the %s was cut: it has %d tokens, of which %d count",
                     i ? "negative prompt" : "prompt", n, SD_PROMPT_TOKENS);
        }
    }

    if (info->inexact) {
        snprintf(p->warnings[p->nwarnings++], sizeof(p->warnings[0]),
                 "the state was made by another kind of device: the picture "
                 "will differ slightly");
    }

    if (info->branched) {
        snprintf(p->warnings[p->nwarnings++], sizeof(p->warnings[0]),
                 "the state was made with another prompt or guidance_scale");
    }
}


int
sd_job_request(sd_job_params_t *p, const sd_dialect_t *d,
    const sd_request_t *r, const void *body, size_t size,
    const sd_model_t *model, sd_error_t *err)
{
    int                 rc, pages;
    sd_field_values_t   v;

    memset(p, 0, sizeof(sd_job_params_t));
    memset(&v, 0, sizeof(sd_field_values_t));
    memset(err, 0, sizeof(sd_error_t));

    pages = d->pages && r->location.pagination;

    rc = sd_job_type(d, r, size, err);

    if (rc == SD_OK) {
        rc = sd_fields_query(&v, r->args, err);
    }

    if (rc == SD_OK && (size || r->method == SD_METHOD_POST)) {
        rc = sd_fields_json(&v, body, size, err);
    }

    if (rc == SD_OK && !sd_given(&v, SD_FIELD_PROMPT)) {
        rc = sd_error(err, 400, "missing_field", "prompt",
                      "\"prompt\" is required");
    }

    if (rc == SD_OK) {
        sd_job_take(&p->prompt, &v.value[SD_FIELD_PROMPT].text);
        sd_job_take(&p->negative_prompt,
                    &v.value[SD_FIELD_NEGATIVE_PROMPT].text);
        sd_job_take(&p->latents, &v.value[SD_FIELD_LATENTS].text);

        p->params.prompt = p->prompt.data;
        p->params.negative_prompt = p->negative_prompt.data
                                    ? p->negative_prompt.data : "";
        p->params.latents = p->latents.len ? p->latents.data : NULL;
        p->params.latents_size = p->latents.len;
        p->resumed = p->latents.len != 0;

        rc = sd_job_format(p, &v, d, r, err);
    }

    if (rc == SD_OK) {
        rc = sd_job_numbers(p, &v, model, err);
    }

    if (rc == SD_OK) {
        rc = sd_job_limits(p, &r->location, err);
    }

    if (rc == SD_OK) {
        rc = sd_job_interim(p, &v, &r->location, pages, err);
    }

    memcpy(p->warnings, v.warnings, sizeof(v.warnings));
    p->nwarnings = v.nwarnings;

    sd_fields_free(&v);

    return rc;
}


static void
sd_job_take(sd_buf_t *dst, sd_buf_t *src)
{
    *dst = *src;
    memset(src, 0, sizeof(sd_buf_t));
}


/* a body must say that it is JSON, or say nothing */

static int
sd_job_type(const sd_dialect_t *d, const sd_request_t *r, size_t size,
    sd_error_t *err)
{
    size_t             n;
    const char        *s;
    static const char  json[] = "application/json";

    s = r->content_type.data;
    n = r->content_type.len;

    if (d->any_type || size == 0 || n == 0) {
        return SD_OK;
    }

    if (n >= sizeof(json) - 1 && strncasecmp(s, json, sizeof(json) - 1) == 0) {
        s += sizeof(json) - 1;
        n -= sizeof(json) - 1;

        while (n && (*s == ' ' || *s == '\t')) {
            s++;
            n--;
        }

        if (n == 0 || *s == ';') {
            return SD_OK;
        }
    }

    return sd_error(err, 415, "unsupported_media_type", "Content-Type",
                    "the body must be application/json");
}


static int
sd_job_format(sd_job_params_t *p, const sd_field_values_t *v,
    const sd_dialect_t *d, const sd_request_t *r, sd_error_t *err)
{
    const char  *s;

    if (d->any_accept) {
        p->format = d->formats[0];

    } else if (sd_given(v, SD_FIELD_FORMAT)) {
        p->format = sd_format_find(d, v->value[SD_FIELD_FORMAT].text.data);

        if (p->format == NULL) {
            return sd_error(err, 400, "invalid_value", "format",
                            "there is no such format");
        }

    } else {
        p->format = sd_format_negotiate(d, r->accept);

        if (p->format == NULL) {
            return sd_error(err, 406, "not_acceptable", "Accept",
                            "none of the acceptable types can be made here");
        }
    }

    p->image = p->format == &sd_format_png ? SD_IMAGE_PNG : SD_IMAGE_JPEG;

    if (sd_given(v, SD_FIELD_OUTPUT_FORMAT) && !p->format->single) {
        s = v->value[SD_FIELD_OUTPUT_FORMAT].text.data;

        if (strcmp(s, "png") == 0) {
            p->image = SD_IMAGE_PNG;

        } else if (strcmp(s, "jpeg") != 0) {
            return sd_error(err, 400, "invalid_value", "output_format",
                            "\"output_format\" must be \"jpeg\" or \"png\"");
        }
    }

    p->quality = sd_given(v, SD_FIELD_QUALITY)
                 ? (int) v->value[SD_FIELD_QUALITY].number
                 : SD_DEFAULT_QUALITY;

    return SD_OK;
}


static int
sd_job_integer(const sd_field_values_t *v, sd_field_id_t id, int fallback)
{
    return sd_given(v, id) ? (int) v->value[id].number : fallback;
}


static int
sd_job_numbers(sd_job_params_t *p, const sd_field_values_t *v,
    const sd_model_t *model, sd_error_t *err)
{
    uint32_t      random;
    const char   *name;
    sd_params_t  *s;

    s = &p->params;

    s->width = sd_job_integer(v, SD_FIELD_WIDTH, model->default_width);
    s->height = sd_job_integer(v, SD_FIELD_HEIGHT, model->default_height);
    s->steps = sd_job_integer(v, SD_FIELD_STEPS, SD_DEFAULT_STEPS);
    s->starting_step = sd_job_integer(v, SD_FIELD_STARTING_STEP, -1);
    s->guidance = sd_given(v, SD_FIELD_GUIDANCE)
                  ? v->value[SD_FIELD_GUIDANCE].number : SD_DEFAULT_GUIDANCE;

    /* rounded up: 0 is no time at all */
    p->timeout = sd_given(v, SD_FIELD_TIMEOUT)
                 ? (uint32_t) ceil(v->value[SD_FIELD_TIMEOUT].number * 1000)
                 : 0;

    p->images = sd_job_integer(v, SD_FIELD_IMAGES, 1);
    s->images = p->images;

    if (sd_given(v, SD_FIELD_SEED) && v->value[SD_FIELD_SEED].number >= 0) {
        s->seed = (uint64_t) v->value[SD_FIELD_SEED].number;

    } else {

        /* 32 bits: easy to type again, and no collision that matters */

        if (getrandom(&random, sizeof(random), 0) != sizeof(random)) {
            return sd_fail(err, "getrandom() failed");
        }

        s->seed = random;
    }

    if (sd_given(v, SD_FIELD_SAMPLER)) {
        name = v->value[SD_FIELD_SAMPLER].text.data;
        s->sampler = sd_sampler_find(name);

        if (s->sampler == NULL) {
            return sd_error(err, 400, "invalid_value", "sampler",
                            "unknown sampler");
        }
    }

    if (s->width % 8 || s->height % 8) {
        return sd_error(err, 400, "invalid_value",
                        s->width % 8 ? "width" : "height",
                        "width and height must be divisible by 8");
    }

    if (s->latents) {
        return sd_job_state(p, v, model, err);
    }

    if (s->starting_step > 0) {
        return sd_error(err, 400, "missing_field", "latents",
                        "to go on from step %d takes \"latents\"",
                        s->starting_step);
    }

    return SD_OK;
}


/* what the request leaves open, the state knows; whether the two fit together
 * is found out by sd_picture_create() */

static int
sd_job_state(sd_job_params_t *p, const sd_field_values_t *v,
    const sd_model_t *model, sd_error_t *err)
{
    long                   n;
    const char            *value;
    sd_params_t           *s;
    sd_safetensors_t      *st;
    const sd_st_tensor_t  *t;

    s = &p->params;

    if (sd_safetensors_parse(&st, s->latents, s->latents_size, err) != SD_OK) {
        err->status = 400;
        err->type = "invalid_request_error";
        err->code = "invalid_value";
        snprintf(err->param, sizeof(err->param), "latents");
        return SD_ERROR;
    }

    t = sd_safetensors_find(st, "latents");

    if (t && t->rank == 4 && t->shape[2] > 0 && t->shape[2] <= 2048
        && t->shape[3] > 0 && t->shape[3] <= 2048)
    {
        if (!sd_given(v, SD_FIELD_HEIGHT)) {
            s->height = (int) t->shape[2] * model->vae_scale;
        }

        if (!sd_given(v, SD_FIELD_WIDTH)) {
            s->width = (int) t->shape[3] * model->vae_scale;
        }
    }

    value = sd_safetensors_meta(st, "steps");

    if (value && !sd_given(v, SD_FIELD_STEPS)) {
        n = strtol(value, NULL, 10);

        if (n >= sd_fields[SD_FIELD_STEPS].min
            && n <= sd_fields[SD_FIELD_STEPS].max)
        {
            s->steps = n;
        }
    }

    value = sd_safetensors_meta(st, "sampler");

    if (value && s->sampler == NULL) {
        s->sampler = sd_sampler_find(value);
    }

    sd_safetensors_close(st);

    return SD_OK;
}


static int
sd_job_limits(const sd_job_params_t *p, const sd_location_t *l,
    sd_error_t *err)
{
    const sd_params_t  *s;

    s = &p->params;

    if (l->max_steps && s->steps > (int64_t) l->max_steps) {
        return sd_error(err, 400, "invalid_value", "num_inference_steps",
                        "at most %u steps are allowed here", l->max_steps);
    }

    if (l->max_pixels && (int64_t) s->width * s->height > l->max_pixels) {
        return sd_error(err, 400, "invalid_value",
                        s->width >= s->height ? "width" : "height",
                        "%dx%d are more than the %u pixels allowed here",
                        s->width, s->height, l->max_pixels);
    }

    if (l->max_images && p->images > (int64_t) l->max_images) {
        return sd_error(err, 400, "invalid_value", "num_images_per_prompt",
                        "at most %u pictures are allowed here", l->max_images);
    }

    if (l->timeout && p->timeout > l->timeout) {
        return sd_error(err, 400, "invalid_value", "timeout",
                        "at most %g seconds are allowed here",
                        l->timeout / 1000.0);
    }

    if (p->format->single && p->images > 1) {
        return sd_error(err, 400, "invalid_value", "num_images_per_prompt",
                        "%s holds one picture; ask for another format",
                        p->format->media_type);
    }

    if (s->starting_step > s->steps) {
        return sd_error(err, 400, "invalid_value", "starting_step",
                        "\"starting_step\" is beyond \"num_inference_steps\"");
    }

    return SD_OK;
}


/* previews and latents on the way */

static int
sd_job_interim(sd_job_params_t *p, const sd_field_values_t *v,
    const sd_location_t *l, int pages, sd_error_t *err)
{
    const char  *s;

    p->preview = l->preview;
    p->previews = -1;
    p->latent = l->latent ? (sd_latent_t) l->latent : p->format->latent;

    if (sd_given(v, SD_FIELD_PREVIEW)) {
        s = v->value[SD_FIELD_PREVIEW].text.data;

        if (strcmp(s, "rgb") == 0) {
            p->preview = SD_PREVIEW_RGB;

        } else if (strcmp(s, "vae") == 0) {
            p->preview = SD_PREVIEW_VAE;

        } else if (strcmp(s, "none") == 0) {
            p->preview = SD_PREVIEW_NONE;

        } else {
            return sd_error(err, 400, "invalid_value", "preview",
                            "\"preview\" must be \"rgb\", \"vae\" or "
                            "\"none\"");
        }
    }

    if (sd_given(v, SD_FIELD_LATENT)) {
        s = v->value[SD_FIELD_LATENT].text.data;

        if (v->value[SD_FIELD_LATENT].number > 0) {
            p->latent = SD_LATENT_LAST;
            p->latent_every = (int) v->value[SD_FIELD_LATENT].number;

        } else if (strcmp(s, "none") == 0) {
            p->latent = SD_LATENT_NONE;

        } else if (strcmp(s, "last") == 0) {
            p->latent = SD_LATENT_LAST;

        } else if (strcmp(s, "all") == 0) {
            p->latent = SD_LATENT_ALL;

        } else {
            return sd_error(err, 400, "invalid_value", "latent",
                            "\"latent\" must be \"none\", \"last\", \"all\" "
                            "or a number of steps");
        }
    }

    if (!p->format->latents) {
        p->latent = SD_LATENT_NONE;
        p->latent_every = 0;
    }

    if (pages) {

        /* a page is so many steps, with a picture of each, and the state */

        p->run_steps = sd_job_integer(v, SD_FIELD_PREVIEWS, 0);

        if (sd_given(v, SD_FIELD_PREVIEWS) && p->run_steps == 0) {
            return sd_error(err, 400, "invalid_value", "num_interim_images",
                            "\"num_interim_images\" must be above 0");
        }

        if (p->images > 1) {
            return sd_error(err, 400, "invalid_value",
                            "num_images_per_prompt",
                            "pages are of one picture");
        }

        p->run_steps = p->run_steps ? p->run_steps : p->params.steps;
        p->preview_every = 1;
        p->latent = SD_LATENT_LAST;

        if (p->preview == SD_PREVIEW_NONE) {
            p->preview = SD_PREVIEW_RGB;
        }

        return SD_OK;
    }

    if (sd_given(v, SD_FIELD_PREVIEWS)) {
        p->previews = (int) v->value[SD_FIELD_PREVIEWS].number;
    }

    if (sd_given(v, SD_FIELD_PREVIEW_EVERY)) {
        p->preview_every = (int) v->value[SD_FIELD_PREVIEW_EVERY].number;

    } else if (p->previews < 0
               && (p->format->previews || sd_given(v, SD_FIELD_PREVIEW)))
    {
        p->preview_every = 1;
    }

    if (!p->format->interim) {
        p->preview = SD_PREVIEW_NONE;
    }

    return SD_OK;
}


/* the last step shows the final picture, so no preview is due there */

int
sd_preview_due(const sd_job_params_t *p, int step, int first, int steps)
{
    int64_t  n, k;

    if (p->preview == SD_PREVIEW_NONE || step <= first || step >= steps) {
        return 0;
    }

    if (p->previews >= 0) {
        n = steps - first;
        k = p->previews + 1;
        step -= first;

        return step * k / n > (step - 1) * k / n;
    }

    return p->preview_every && step % p->preview_every == 0;
}


int
sd_latent_due(const sd_job_params_t *p, int step, int first, int steps)
{
    if (p->latent_every) {
        return step < steps && step % p->latent_every == 0;
    }

    return p->latent == SD_LATENT_ALL && sd_preview_due(p, step, first, steps);
}
