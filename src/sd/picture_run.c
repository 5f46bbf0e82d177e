/*
 * One picture on its way from noise, the device's part: see picture.h and
 * picture_impl.h.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "picture_impl.h"


#define SD_TIME_CHUNK  64           /* rows of time embeddings at a time */


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


/* text k, one at a time: so its bytes are the same whoever computes it */

static void
sd_picture_text(sd_picture_t *p, sd_context_t *cx, int k)
{
    sd_tensor_t        text, table;
    const int32_t     *ids;
    const sd_model_t  *m = p->model;

    ids = p->ids ? p->ids + k * m->text_encoder.length : NULL;

    table = p->text;
    table.data = p->texts[k] ? p->texts[k]->data : NULL;

    text = sd_text_encoder(&m->text_encoder, cx, ids, 1);
    sd_unet_text(&m->unet, cx, table, text);

    sd_picture_show(p, cx, text, 0, k < p->n - 1 ? "uncond" : "cond");

    sd_free(cx, &text);
}


/* the tables that the model reads, from timesteps and those prompts that nobody
 * has encoded yet */

static void
sd_picture_tables(sd_picture_t *p, sd_context_t *cx, const int *hit)
{
    int                i, k, rows;
    double             timesteps[SD_TIME_CHUNK];
    sd_tensor_t        t;
    const sd_model_t  *m = p->model;

    for (k = 0; k < p->n; k++) {
        if (!hit[k]) {
            sd_picture_text(p, cx, k);
        }
    }

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
                cx->status = sd_no_memory(cx->err, "no memory for a picture");
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
    int  k, hit[2];

    sd_context_reset(cx, err, cancel);

    p->device = cx->device;

    sd_picture_layout(p, p->device->ops);
    p->memory = p->device->ops->alloc(p->device, p->memory_size);

    if (p->memory == NULL) {
        return sd_no_memory(err, "no memory for a picture: %zu bytes",
                            p->memory_size);
    }

    sd_picture_layout(p, p->device->ops);

    for (k = 0; k < p->n; k++) {
        p->texts[k] = sd_texts_get(p->model->texts, p->device,
                                   p->ids + k * p->text.w, p->text.w,
                                   sd_picture_text_size(p), &hit[k]);

        if (p->texts[k] == NULL) {
            return sd_no_memory(err, "no memory for a picture: %zu bytes",
                                sd_picture_text_size(p));
        }

        p->text_hits += hit[k];
    }

    sd_picture_tables(p, cx, hit);
    sd_picture_start(p, cx);

    /* steps may be made in another context, and texts be read by another
     * picture */

    if (sd_wait(cx) != SD_OK) {
        return cx->status;
    }

    for (k = 0; k < p->n; k++) {
        if (!hit[k]) {
            sd_texts_done(p->model->texts, p->texts[k]);
        }
    }

    return SD_OK;
}


static void
sd_picture_show_row(void *data, sd_context_t *cx, sd_tensor_t t,
    const char *name)
{
    sd_picture_show(data, cx, t, 1, name);
}


int
sd_picture_step(sd_picture_t *p, sd_context_t *cx, const atomic_int *cancel,
    sd_error_t *err)
{
    int   step;
    char  name[32];

    sd_context_reset(cx, err, cancel);

    step = p->step;

    while (p->step == step && step < p->steps) {
        sd_batch_one(p, cx, p->tables,
                     p->dump && p->row == 0 ? sd_picture_show_row : NULL, p);

        if (sd_wait(cx) != SD_OK) {
            sd_batch_rewind(p);
            return cx->status;
        }

        sd_batch_advance(p);
    }

    snprintf(name, sizeof(name), "latent_%03d", step);
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
            cx->status = sd_no_memory(cx->err, "no memory for a picture");
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
    int           rc, none[2] = { 0, 0 };
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

    sd_picture_tables(&p, &cx, none);
    sd_picture_peak(&cx, prompt);

    sd_batch_model(m, &cx, NULL, 1, p.n, p.h, p.w, NULL, NULL);
    sd_picture_peak(&cx, step);

    sd_picture_decoded(&p, &cx, p.x[0], NULL, NULL);
    sd_picture_peak(&cx, decode);

    rc = cx.status;
    sd_context_free(&cx);

    return rc;
}
