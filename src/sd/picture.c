/*
 * One picture on its way from noise, the host's part: see picture.h.
 * Parameters into rows, tokens and a place to start from; and the state back.
 */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../io/utf8.h"
#include "picture_impl.h"
#include "state.h"


void
sd_picture_to_nhwc(float *dst, const float *src, int c, size_t p)
{
    int     k;
    size_t  i;

    for (k = 0; k < c; k++) {
        for (i = 0; i < p; i++) {
            dst[i * c + k] = src[k * p + i];
        }
    }
}


void
sd_picture_to_nchw(float *dst, const float *src, int c, size_t p)
{
    int     k;
    size_t  i;

    for (k = 0; k < c; k++) {
        for (i = 0; i < p; i++) {
            dst[k * p + i] = src[i * c + k];
        }
    }
}


static sd_tensor_t
sd_picture_place(sd_picture_t *p, size_t *at, sd_type_t type, int n, int h,
    int w, int c)
{
    sd_tensor_t  t = { 0 };

    if (n == 0) {
        return t;
    }

    t.data = p->memory ? p->memory + *at : NULL;
    t.type = type;
    t.n = n;
    t.h = h;
    t.w = w;
    t.c = c;
    t.ld = c;

    *at += (size_t) n * h * w * c * sd_type_size(type);
    *at = (*at + 63) & ~(size_t) 63;

    return t;
}


void
sd_picture_layout(sd_picture_t *p, const sd_ops_t *ops)
{
    int                i;
    size_t             at;
    sd_tensor_t        t;
    const sd_model_t  *m = p->model;

    at = 0;

    for (i = 0; i < 2; i++) {
        p->x[i] = sd_picture_place(p, &at, SD_F32, 1, p->h, p->w, p->c);
        p->kept[i] = sd_picture_place(p, &at, SD_F32,
                                      p->sampler->kept ? SD_KEPT : 0, p->h,
                                      p->w, p->c);
    }

    p->denoised = sd_picture_place(p, &at, SD_F32, 1, p->h, p->w, p->c);
    p->time = sd_picture_place(p, &at, SD_F32, p->nrows, 1, 1,
                               sd_unet_time_columns(&m->unet));

    t = sd_picture_place(p, &at, SD_U8, 1, 1, 1, sd_batch_tables_size(1));
    p->tables = t.data;

    p->memory_size = at;

    p->text.type = ops->type;
    p->text.n = 1;
    p->text.h = 1;
    p->text.w = m->text_encoder.length;
    p->text.c = sd_unet_text_columns(&m->unet);
    p->text.ld = p->text.c;
}


size_t
sd_picture_text_size(const sd_picture_t *p)
{
    return (size_t) p->text.w * p->text.c * sd_type_size(p->text.type);
}


int
sd_picture_size(sd_picture_t *p, int width, int height, sd_error_t *err)
{
    int  scale = p->model->vae_scale;

    if (width < scale || width > 65536 || width % scale) {
        return sd_error(err, 400, "invalid_value", "width", "width must be a "
                        "multiple of %d, and is %d", scale, width);
    }

    if (height < scale || height > 65536 || height % scale) {
        return sd_error(err, 400, "invalid_value", "height", "height must be "
                        "a multiple of %d, and is %d", scale, height);
    }

    p->width = width;
    p->height = height;
    p->w = width / scale;
    p->h = height / scale;
    p->c = p->model->unet.in_channels;

    return SD_OK;
}


static int
sd_picture_tokens(sd_picture_t *p, const sd_params_t *params, sd_error_t *err)
{
    int                    length;
    const sd_tokenizer_t  *tokenizer = p->model->tokenizer;

    if (!sd_utf8_valid(params->prompt, strlen(params->prompt))) {
        return sd_error(err, 400, "invalid_value", "prompt",
                        "prompt is not valid UTF-8");
    }

    if (!sd_utf8_valid(params->negative_prompt,
                       strlen(params->negative_prompt)))
    {
        return sd_error(err, 400, "invalid_value", "negative_prompt",
                        "negative_prompt is not valid UTF-8");
    }

    length = p->model->text_encoder.length;

    p->ids = malloc((size_t) p->n * length * sizeof(int32_t));

    if (p->ids == NULL) {
        return sd_no_memory(err, "no memory for a picture");
    }

    if (sd_tokenizer_encode(tokenizer, params->prompt, strlen(params->prompt),
                            p->ids + (p->n - 1) * length, length,
                            &p->prompt_tokens, err)
        != SD_OK)
    {
        return SD_ERROR;
    }

    if (p->n == 1) {
        return SD_OK;
    }

    return sd_tokenizer_encode(tokenizer, params->negative_prompt,
                               strlen(params->negative_prompt), p->ids, length,
                               &p->negative_tokens, err);
}


/* what the picture's state has to agree with, and what a state of it says */

static void
sd_picture_describe(const sd_picture_t *p, sd_state_t *s)
{
    memset(s, 0, sizeof(sd_state_t));

    s->version = SD_STATE_VERSION;
    s->step = p->step;
    s->steps = p->steps;
    s->seed = p->seed;
    snprintf(s->sampler, sizeof(s->sampler), "%s", p->sampler->name);
    memcpy(s->model, p->model->fingerprint, sizeof(s->model));
    s->width = p->width;
    s->height = p->height;
    memcpy(s->prompt, p->digest, sizeof(s->prompt));
    s->guidance = p->guidance;
    snprintf(s->numerics, sizeof(s->numerics), "%s",
             p->model->device->numerics);
    s->n = 1;
    s->c = p->c;
    s->h = p->h;
    s->w = p->w;
    s->nkept = p->sampler->kept;
}


/* the state or bare latent that a request brings */

static int
sd_picture_resume(sd_picture_t *p, const sd_params_t *params, sd_error_t *err)
{
    int               i, rc;
    float             scale, *latent;
    size_t            pixels, k;
    sd_state_t        s, mine;
    sd_state_flags_t  flags;

    if (sd_state_read(&s, params->latents, params->latents_size, err)
        != SD_OK)
    {
        return SD_ERROR;
    }

    sd_picture_describe(p, &mine);
    mine.step = params->starting_step;
    mine.n = params->images > 1 ? params->images : 1;

    rc = sd_state_check(&s, &mine, &flags, err);

    if (rc != SD_OK) {
        sd_state_free(&s);
        return rc;
    }

    if (s.version) {
        p->step = s.step;
        p->seed = s.seed;
    } else {
        p->step = params->starting_step > 0 ? params->starting_step : 0;
    }

    p->resumed = p->step > 0;
    p->branched = flags.branched;
    p->inexact = flags.inexact;

    snprintf(p->numerics, sizeof(p->numerics), "%s", s.numerics);

    /* a bare latent at the start is noise that nobody has scaled yet */

    scale = s.version == 0 && p->step == 0 ? p->init_sigma : 1;

    pixels = (size_t) p->h * p->w;
    p->initial = malloc(pixels * p->c * sizeof(float));

    for (i = 0; i < s.nkept; i++) {
        p->initial_kept[i] = malloc(pixels * p->c * sizeof(float));

        if (p->initial_kept[i]) {
            sd_picture_to_nhwc(p->initial_kept[i], s.kept[i], p->c, pixels);
        } else {
            rc = SD_ERROR;
        }
    }

    if (p->initial) {
        latent = s.latents + params->image * pixels * p->c;
        sd_picture_to_nhwc(p->initial, latent, p->c, pixels);

        for (k = 0; k < pixels * p->c; k++) {
            p->initial[k] *= scale;
        }
    }

    sd_state_free(&s);

    if (p->initial == NULL || rc != SD_OK) {
        return sd_no_memory(err, "no memory for a picture");
    }

    return SD_OK;
}


static int
sd_picture_init(sd_picture_t *p, const sd_params_t *params, sd_error_t *err)
{
    sd_model_t  *m = p->model;

    if (sd_picture_size(p, params->width, params->height, err) != SD_OK) {
        return SD_ERROR;
    }

    if (params->steps < 1 || params->steps > m->scheduler.num_train_timesteps)
    {
        return sd_error(err, 400, "invalid_value", "num_inference_steps",
                        "num_inference_steps must be from 1 to %d, and is %d",
                        m->scheduler.num_train_timesteps, params->steps);
    }

    if (!isfinite(params->guidance)) {
        return sd_error(err, 400, "invalid_value", "guidance_scale",
                        "guidance_scale must be finite");
    }

    if (params->starting_step > params->steps) {
        return sd_error(err, 400, "invalid_value", "starting_step",
                        "starting_step must be at most %d, and is %d",
                        params->steps, params->starting_step);
    }

    if (params->starting_step > 0 && params->latents == NULL) {
        return sd_error(err, 400, "invalid_value", "latents",
                        "starting_step %d needs latents",
                        params->starting_step);
    }

    p->sampler = params->sampler ? params->sampler
                                 : sd_sampler_default(&m->scheduler);
    p->steps = params->steps;
    p->guidance = params->guidance;
    p->n = params->guidance > 1 ? 2 : 1;
    p->seed = params->seed;

    p->nrows = p->sampler->rows(p->steps);
    p->rows = calloc(p->nrows, sizeof(sd_sampler_row_t));

    if (p->rows == NULL) {
        return sd_no_memory(err, "no memory for a picture");
    }

    if (p->sampler->compile(p->rows, &p->init_sigma, &m->scheduler, p->steps,
                            err) != SD_OK
        || sd_picture_tokens(p, params, err) != SD_OK)
    {
        return SD_ERROR;
    }

    sd_state_digest(p->digest, params->prompt, params->negative_prompt);

    if (params->latents && sd_picture_resume(p, params, err) != SD_OK) {
        return SD_ERROR;
    }

    while (p->row < p->nrows && p->rows[p->row].step < p->step) {
        p->row++;
    }

    return SD_OK;
}


int
sd_picture_create(sd_picture_t **out, sd_model_t *m, const sd_params_t *params,
    sd_error_t *err)
{
    int            rc;
    sd_picture_t  *p;

    *out = NULL;

    p = calloc(1, sizeof(sd_picture_t));

    if (p == NULL) {
        return sd_no_memory(err, "no memory for a picture");
    }

    p->model = m;

    rc = sd_picture_init(p, params, err);

    if (rc != SD_OK) {
        sd_picture_destroy(p);
        return rc;
    }

    sd_picture_layout(p, m->device->ops);

    *out = p;

    return SD_OK;
}


void
sd_picture_destroy(sd_picture_t *p)
{
    int  i;

    if (p == NULL) {
        return;
    }

    for (i = 0; i < 2; i++) {
        if (p->texts[i]) {
            sd_texts_put(p->model->texts, p->device, p->texts[i]);
        }
    }

    if (p->memory) {
        p->device->ops->free(p->device, p->memory, p->memory_size);
    }

    for (i = 0; i < SD_KEPT; i++) {
        free(p->initial_kept[i]);
    }

    free(p->initial);
    free(p->ids);
    free(p->rows);
    free(p);
}


void
sd_picture_move(sd_picture_t *p, sd_model_t *m)
{
    p->model = m;

    if (p->numerics[0]) {
        p->inexact = strcmp(p->numerics, m->device->numerics) != 0;
    }

    sd_picture_layout(p, m->device->ops);
}


size_t
sd_picture_memory(const sd_picture_t *p)
{
    return p->memory_size;
}


size_t
sd_picture_texts_memory(const sd_picture_t *p)
{
    return p->n * sd_picture_text_size(p);
}


int
sd_picture_state(sd_picture_t *p, sd_buf_t *out, sd_error_t *err)
{
    int           i, rc, n;
    float        *v;
    size_t        pixels, size;
    sd_state_t    s;
    sd_tensor_t   t;
    sd_context_t  cx;

    /* of its own: the caller's may stand at a cancelled step */

    if (sd_context_init(&cx, p->device, 0, 0, err) != SD_OK) {
        return SD_ERROR;
    }

    pixels = (size_t) p->h * p->w;
    size = pixels * p->c;
    n = 1 + p->sampler->kept;

    v = malloc((n + 1) * size * sizeof(float));

    if (v == NULL) {
        sd_context_free(&cx);
        return sd_fail(err, "no memory for a state");
    }

    sd_picture_describe(p, &s);

    for (i = 0; i < n; i++) {
        t = i ? p->kept[p->now] : p->x[p->now];
        t.n = 1;

        if (i) {
            t.data = (char *) t.data + (i - 1) * size * sizeof(float);
        }

        sd_download(&cx, v + n * size, t);
        sd_picture_to_nchw(v + i * size, v + n * size, p->c, pixels);

        if (i) {
            s.kept[i - 1] = v + i * size;
        } else {
            s.latents = v;
        }
    }

    rc = cx.status == SD_OK ? sd_state_write(out, &s, err) : cx.status;

    free(v);
    sd_context_free(&cx);

    return rc;
}


void
sd_picture_info(const sd_picture_t *p, sd_picture_info_t *info)
{
    info->step = p->step;
    info->steps = p->steps;
    info->width = p->width;
    info->height = p->height;
    info->samples = p->n;
    info->evaluations = (p->nrows - p->row) * p->n;
    info->seed = p->seed;
    info->sampler = p->sampler->name;
    info->prompt_tokens = p->prompt_tokens;
    info->negative_tokens = p->negative_tokens;
    info->resumed = p->resumed;
    info->inexact = p->inexact;
    info->branched = p->branched;
    info->text_hits = p->text_hits;
}
