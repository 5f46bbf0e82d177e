/*
 * One picture on its way from noise: see picture.h.
 *
 * Its device memory is one block, laid out by sd_picture_layout():
 *
 *   x, kept     twice: a step works on a copy of the one that holds, and the
 *               two change roles at its end.  So a cancelled step leaves the
 *               last step's state as it was
 *   denoised    the last step's estimate, for previews
 *   text        keys and values of all cross-attention layers, the negative
 *               prompt's first
 *   time        a row of time embeddings for each row of the sampler's table
 *   slots       the sampler's rows, as the device reads them
 *   row         {i, i} for row i: which row of time both samples take
 *
 * sd_model_plan() runs the same code with the same layout in plan mode.
 */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "picture.h"
#include "state.h"


#define SD_TIME_CHUNK  64           /* rows of time embeddings at a time */


struct sd_picture_s {
    sd_model_t          *model;
    const sd_sampler_t  *sampler;

    int                  width, height;         /* pixels */
    int                  h, w, c;               /* of the latent */
    int                  n;                     /* samples a step: 1 or 2 */
    int                  steps, step;
    int                  nrows, row;            /* the next one */
    double               guidance, init_sigma;
    uint64_t             seed;
    sd_sampler_row_t    *rows;
    int32_t             *ids;                   /* [n * length] */
    float               *initial;               /* x to start from, HWC, or
                                                   NULL: noise */
    float               *initial_kept[SD_KEPT];

    char                 digest[65];
    int                  prompt_tokens, negative_tokens;
    int                  resumed, inexact, branched;

    /* device memory */
    sd_device_t         *device;
    char                *memory;
    size_t               memory_size;
    int                  now;                   /* which of the two holds */
    int                  have_denoised;
    sd_tensor_t          x[2], kept[2], denoised, text, time;
    sd_slot_t           *slots;
    int32_t             *row_index;

    sd_picture_dump_pt   dump;
    void                *dump_data;
};


/* NCHW of files and dumps, NHWC of tensors; c and p: channels and pixels */

static void
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


static void
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


/* places all tensors in p->memory; where that is NULL, finds the size only */

static void
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
    p->text = sd_picture_place(p, &at, ops->type, p->n, 1,
                               m->text_encoder.length,
                               sd_unet_text_columns(&m->unet));
    p->time = sd_picture_place(p, &at, SD_F32, p->nrows, 1, 1,
                               sd_unet_time_columns(&m->unet));

    t = sd_picture_place(p, &at, SD_U8, 1, 1, p->nrows, sizeof(sd_slot_t));
    p->slots = t.data;

    t = sd_picture_place(p, &at, SD_I32, 1, 1, p->nrows, 2);
    p->row_index = t.data;

    p->memory_size = at;
}


/* width, height and what follows from them */

static int
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
    int                   length;
    const sd_tokenizer_t  *tokenizer = p->model->tokenizer;

    length = p->model->text_encoder.length;

    p->ids = malloc((size_t) p->n * length * sizeof(int32_t));

    if (p->ids == NULL) {
        return sd_fail(err, "no memory for a picture");
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
    const sd_device_t  *dev = p->device ? p->device : p->model->device;

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
    snprintf(s->numerics, sizeof(s->numerics), "%s", dev ? dev->numerics : "");
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
    float             scale;
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
        sd_picture_to_nhwc(p->initial, s.latents, p->c, pixels);

        for (k = 0; k < pixels * p->c; k++) {
            p->initial[k] *= scale;
        }
    }

    sd_state_free(&s);

    if (p->initial == NULL || rc != SD_OK) {
        return sd_fail(err, "no memory for a picture");
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
        return sd_fail(err, "no memory for a picture");
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
        return sd_fail(err, "no memory for a picture");
    }

    p->model = m;

    rc = sd_picture_init(p, params, err);

    if (rc != SD_OK) {
        sd_picture_destroy(p);
        return rc;
    }

    /* every backend so far has tensors of four bytes or less */

    sd_picture_layout(p, m->device ? m->device->ops : &sd_ops_cpu);

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


size_t
sd_picture_memory(const sd_picture_t *p)
{
    return p->memory_size;
}


void
sd_picture_dump(sd_picture_t *p, sd_picture_dump_pt dump, void *data)
{
    p->dump = dump;
    p->dump_data = data;
}


/* t to the dump; images: [n, h, w, c] as [n, c, h, w], else [n, rows, c] */

static void
sd_picture_show(sd_picture_t *p, sd_context_t *cx, sd_tensor_t t, int image,
    const char *name)
{
    int      i;
    float   *v, *turned;
    size_t   pixels, size;
    int64_t  shape[4];

    if (p->dump == NULL || cx->plan || cx->status != SD_OK) {
        return;
    }

    pixels = (size_t) t.h * t.w;
    size = pixels * t.c;

    v = malloc(2 * t.n * size * sizeof(float));

    if (v == NULL) {
        cx->status = sd_fail(cx->err, "no memory for a dump");
        return;
    }

    turned = v + t.n * size;

    if (sd_download(cx, v, t) == SD_OK) {
        shape[0] = t.n;
        shape[1] = image ? t.c : (int64_t) pixels;
        shape[2] = image ? t.h : t.c;
        shape[3] = t.w;

        for (i = 0; i < t.n && image; i++) {
            sd_picture_to_nchw(turned + i * size, v + i * size, t.c, pixels);
        }

        p->dump(p->dump_data, name, image ? turned : v, image ? 4 : 3, shape);
    }

    free(v);
}


/* the tables that the model reads, from prompt and timesteps */

static void
sd_picture_tables(sd_picture_t *p, sd_context_t *cx)
{
    int                i, k, rows;
    double             timesteps[SD_TIME_CHUNK];
    sd_tensor_t        text, t;
    const sd_model_t  *m = p->model;

    text = sd_text_encoder(&m->text_encoder, cx, p->ids, p->n);
    sd_unet_text(&m->unet, cx, p->text, text);

    if (p->dump && cx->status == SD_OK && !cx->plan) {
        t = text;
        t.n = 1;

        if (p->n == 2) {
            sd_picture_show(p, cx, t, 0, "uncond");
            t.data = (char *) t.data + (size_t) t.w * t.c
                                       * sd_type_size(t.type);
        }

        sd_picture_show(p, cx, t, 0, "cond");
    }

    sd_free(cx, &text);

    for (i = 0; i < p->nrows; i += rows) {
        rows = p->nrows - i < SD_TIME_CHUNK ? p->nrows - i : SD_TIME_CHUNK;

        for (k = 0; k < rows && p->rows; k++) {
            timesteps[k] = p->rows[i + k].timestep;
        }

        t = p->time;
        t.n = rows;

        if (t.data) {
            t.data = (char *) t.data + (size_t) i * t.c * sizeof(float);
        }

        sd_unet_time(&m->unet, cx, t, timesteps);
    }
}


static void
sd_picture_slots(sd_picture_t *p, sd_context_t *cx)
{
    int                      i, j, k;
    int32_t                 *index;
    sd_slot_t               *slots, *s;
    const sd_sampler_row_t  *row;

    slots = calloc(p->nrows, sizeof(sd_slot_t));
    index = calloc(p->nrows, 2 * sizeof(int32_t));

    if (slots == NULL || index == NULL) {
        free(slots);
        free(index);
        cx->status = sd_fail(cx->err, "no memory for a picture");
        return;
    }

    for (i = 0; i < p->nrows; i++) {
        row = &p->rows[i];
        s = &slots[i];

        s->scale_in = row->scale_in;
        s->a = row->a;
        s->b = row->b;
        s->clamp = row->clamp;

        for (j = 0; j < 1 + SD_KEPT; j++) {
            for (k = 0; k < 3 + SD_KEPT + 2; k++) {
                s->m[j][k] = row->m[j][k];
            }
        }

        s->guidance = p->guidance;
        s->guided = p->n == 2;
        s->draw = row->draw;
        s->nkept = p->sampler->kept;
        s->seed = p->seed;

        index[2 * i] = index[2 * i + 1] = i;
    }

    sd_put(cx, p->slots, slots, p->nrows * sizeof(sd_slot_t));
    sd_put(cx, p->row_index, index, p->nrows * 2 * sizeof(int32_t));

    free(slots);
    free(index);
}


static void
sd_picture_start(sd_picture_t *p, sd_context_t *cx)
{
    int     i;
    size_t  one;

    if (p->initial == NULL) {
        sd_noise(cx, p->x[0], &p->seed, 0, p->init_sigma);
    } else {
        sd_upload(cx, p->x[0], p->initial);
    }

    if (p->sampler->kept == 0) {
        return;
    }

    one = (size_t) p->h * p->w * p->c;

    for (i = 0; i < SD_KEPT; i++) {
        sd_tensor_t   t = p->kept[0];
        float        *zero = NULL;

        t.n = 1;
        t.data = (char *) t.data + i * one * sizeof(float);

        if (p->initial_kept[i] == NULL) {
            zero = calloc(one, sizeof(float));

            if (zero == NULL) {
                cx->status = sd_fail(cx->err, "no memory for a picture");
                return;
            }
        }

        sd_upload(cx, t, zero ? zero : p->initial_kept[i]);
        free(zero);
    }
}


int
sd_picture_begin(sd_picture_t *p, sd_context_t *cx, const atomic_int *cancel,
    sd_error_t *err)
{
    sd_context_reset(cx, err, cancel);

    p->device = cx->device;

    sd_picture_layout(p, p->device->ops);
    p->memory = p->device->ops->alloc(p->device, p->memory_size);

    if (p->memory == NULL) {
        return sd_fail(err, "no memory for a picture: %zu bytes",
                       p->memory_size);
    }

    sd_picture_layout(p, p->device->ops);

    sd_picture_tables(p, cx);
    sd_picture_slots(p, cx);
    sd_picture_start(p, cx);

    return cx->status;
}


/* one row of the table: the model, guidance and the sampler, in place */

static void
sd_picture_row(sd_picture_t *p, sd_context_t *cx, int row, sd_tensor_t latent,
    sd_tensor_t kept)
{
    sd_tensor_t        x, out;
    sd_unet_given_t    given = { 0 };
    sd_sampler_step_t  step = { 0 };

    x = sd_alloc(cx, p->n, p->h, p->w, p->c);
    sd_scale_input(cx, x, latent, p->slots + row);

    if (row == 0) {
        sd_picture_show(p, cx, x, 1, "unet_in_000");
    }

    given.time.table = p->time;
    given.time.row = p->row_index + 2 * row;
    given.text = p->text;

    out = sd_unet(&p->model->unet, cx, x, &given);

    if (row == 0) {
        sd_picture_show(p, cx, out, 1, "unet_out_000");
    }

    step.x = latent;
    step.out = out;
    step.kept = kept;
    step.denoised = p->denoised;
    step.slots = p->slots + row;
    sd_sampler_step(cx, &step);

    sd_free(cx, &out);
    sd_free(cx, &x);
}


int
sd_picture_step(sd_picture_t *p, sd_context_t *cx, const atomic_int *cancel,
    sd_error_t *err)
{
    int     next, row;
    char    name[32];
    size_t  one;

    sd_context_reset(cx, err, cancel);

    if (p->step == p->steps) {
        return SD_OK;
    }

    next = !p->now;
    one = (size_t) p->h * p->w * p->c * sizeof(float);

    sd_copy(cx, p->x[next].data, p->x[p->now].data, one);

    if (p->sampler->kept) {
        sd_copy(cx, p->kept[next].data, p->kept[p->now].data, SD_KEPT * one);
    }

    row = p->row;

    do {
        sd_picture_row(p, cx, row, p->x[next], p->kept[next]);
    } while (!p->rows[row++].last_of_step);

    if (cx->status != SD_OK) {
        return cx->status;
    }

    p->now = next;
    p->have_denoised = 1;
    p->row = row;
    p->step++;

    snprintf(name, sizeof(name), "latent_%03d", p->step - 1);
    sd_picture_show(p, cx, p->x[p->now], 1, name);

    return cx->status;
}


int
sd_picture_preview(sd_picture_t *p, sd_context_t *cx, uint8_t *rgb,
    sd_error_t *err)
{
    sd_tensor_t  y;

    sd_context_reset(cx, err, NULL);

    y = sd_alloc_type(cx, SD_U8, 1, p->h, p->w, 3);

    sd_preview_rgb(cx, y, p->have_denoised ? p->denoised : p->x[p->now],
                   p->model->preview_factors[0], p->model->preview_bias);
    sd_download_u8(cx, rgb, y);

    return cx->status;
}


static void
sd_picture_decoded(sd_picture_t *p, sd_context_t *cx, sd_tensor_t latent,
    uint8_t *rgb, float *image)
{
    float        *v;
    size_t        pixels;
    sd_tensor_t   x, y;

    x = sd_vae_decode(&p->model->vae, cx, latent);

    sd_picture_show(p, cx, x, 1, "image");

    if (image && cx->status == SD_OK) {
        pixels = (size_t) p->width * p->height;
        v = malloc(pixels * 3 * sizeof(float));

        if (v == NULL) {
            cx->status = sd_fail(cx->err, "no memory for a picture");
            return;
        }

        sd_download(cx, v, x);
        sd_picture_to_nchw(image, v, 3, pixels);
        free(v);
    }

    y = sd_alloc_type(cx, SD_U8, 1, p->height, p->width, 3);

    sd_image_rgb8(cx, y, x);
    sd_free(cx, &x);
    sd_download_u8(cx, rgb, y);
    sd_free(cx, &y);
}


int
sd_picture_decode(sd_picture_t *p, sd_context_t *cx, int denoised,
    uint8_t *rgb, float *image, const atomic_int *cancel, sd_error_t *err)
{
    sd_context_reset(cx, err, cancel);

    sd_picture_decoded(p, cx, denoised && p->have_denoised
                       ? p->denoised : p->x[p->now], rgb, image);

    return cx->status;
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
    info->seed = p->seed;
    info->sampler = p->sampler->name;
    info->prompt_tokens = p->prompt_tokens;
    info->negative_tokens = p->negative_tokens;
    info->resumed = p->resumed;
    info->inexact = p->inexact;
    info->branched = p->branched;
}


static void
sd_picture_peak(sd_context_t *cx, size_t *peak)
{
    if (peak) {
        *peak = cx->arena.peak;
    }

    cx->arena.peak = 0;
}


int
sd_model_plan(sd_model_t *m, sd_device_t *dev, int width, int height,
    size_t *step, size_t *prompt, size_t *decode, sd_error_t *err)
{
    int           rc;
    sd_picture_t  p;
    sd_context_t  cx;

    memset(&p, 0, sizeof(p));

    p.model = m;

    if (sd_picture_size(&p, width, height, err) != SD_OK) {
        return SD_ERROR;
    }

    p.sampler = &sd_samplers[0];
    p.n = 2;
    p.nrows = SD_TIME_CHUNK;

    sd_picture_layout(&p, dev->ops);

    if (sd_context_init(&cx, dev, 1, 0, err) != SD_OK) {
        return SD_ERROR;
    }

    /* each frees what it takes, and the first error sticks */

    sd_picture_tables(&p, &cx);
    sd_picture_peak(&cx, prompt);

    sd_picture_row(&p, &cx, 0, p.x[0], p.kept[0]);
    sd_picture_peak(&cx, step);

    sd_picture_decoded(&p, &cx, p.x[0], NULL, NULL);
    sd_picture_peak(&cx, decode);

    rc = cx.status;
    sd_context_free(&cx);

    return rc;
}
