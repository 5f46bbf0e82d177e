/*
 * What the formats share: pictures to bytes, and the JSON that says the same
 * thing wherever it stands.  Encoder threads.
 */

#include <stdlib.h>
#include <string.h>

#include "../io/image.h"
#include "http.h"


#define SD_PREVIEW_QUALITY  80


const char *
sd_image_type(sd_image_format_t image)
{
    return image == SD_IMAGE_PNG ? "image/png" : "image/jpeg";
}


int
sd_preview_quality(const sd_job_params_t *p)
{
    return p->quality < SD_PREVIEW_QUALITY ? p->quality : SD_PREVIEW_QUALITY;
}


int
sd_format_picture(sd_buf_t *out, const sd_job_info_t *job,
    const sd_event_t *ev, sd_image_format_t image, int quality,
    sd_error_t *err)
{
    int             rc, width, height;
    uint8_t        *large;
    sd_buf_t        text;
    const uint8_t  *rgb;

    rgb = ev->rgb;
    large = NULL;
    width = ev->rgb_width;
    height = ev->rgb_height;

    if (ev->rgb_scale > 1) {
        width *= ev->rgb_scale;
        height *= ev->rgb_scale;

        large = malloc((size_t) width * height * 3);
        if (large == NULL) {
            return sd_fail(err, "no memory for a picture");
        }

        sd_image_upscale(large, rgb, ev->rgb_width, ev->rgb_height,
                         ev->rgb_scale);
        rgb = large;
    }

    if (image == SD_IMAGE_PNG) {
        memset(&text, 0, sizeof(sd_buf_t));
        sd_job_text(&text, job, ev);

        rc = sd_png_encode(out, rgb, width, height, text.data, err);

        sd_buf_free(&text);

    } else {
        rc = sd_jpeg_encode(out, rgb, width, height, quality, err);
    }

    free(large);

    if (rc == SD_OK && out->failed) {
        rc = sd_fail(err, "no memory for a picture");
    }

    return rc;
}


/* as A1111 writes it, so that its readers find seed and prompt again */

void
sd_job_text(sd_buf_t *out, const sd_job_info_t *job, const sd_event_t *ev)
{
    const sd_params_t  *p;

    p = &job->params->params;

    sd_buf_printf(out, "%s\n", p->prompt);

    if (p->negative_prompt[0]) {
        sd_buf_printf(out, "Negative prompt: %s\n", p->negative_prompt);
    }

    sd_buf_printf(out, "Steps: %d, Sampler: %s, CFG scale: %g, Seed: %llu, "
                  "Size: %dx%d, Model: %s",
                  ev->steps, job->info.sampler, p->guidance,
                  (unsigned long long) ev->seed, job->info.width,
                  job->info.height, job->model);

    /* a C string for whoever takes it */
    sd_buf_append(out, "", 1);
}


static void
sd_format_string(sd_buf_t *out, const char *s)
{
    if (s == NULL || *s == '\0') {
        sd_buf_puts(out, "null");
        return;
    }

    sd_buf_puts(out, "\"");
    sd_buf_json(out, s, strlen(s));
    sd_buf_puts(out, "\"");
}


void
sd_format_error(sd_buf_t *out, const sd_error_t *err)
{
    sd_buf_puts(out, "\"error\":{\"message\":\"");
    sd_buf_json(out, err->message, strlen(err->message));
    sd_buf_printf(out, "\",\"type\":\"%s\",\"param\":",
                  err->type ? err->type : "server_error");
    sd_format_string(out, err->param);
    sd_buf_puts(out, ",\"code\":");
    sd_format_string(out, err->code);
    sd_buf_puts(out, "}");
}


void
sd_format_warnings(sd_buf_t *out, const sd_job_params_t *p)
{
    int  i;

    sd_buf_puts(out, "[");

    for (i = 0; i < p->nwarnings; i++) {
        sd_buf_puts(out, i ? ",\"" : "\"");
        sd_buf_json(out, p->warnings[i], strlen(p->warnings[i]));
        sd_buf_puts(out, "\"");
    }

    sd_buf_puts(out, "]");
}


void
sd_format_start(sd_buf_t *out, const sd_job_info_t *job, const sd_event_t *ev)
{
    const sd_picture_info_t  *i;

    i = &ev->info;

    sd_buf_puts(out, "\"id\":\"");
    sd_buf_json(out, job->id, strlen(job->id));
    sd_buf_printf(out, "\",\"seed\":%llu,\"step\":%d,\"steps\":%d,"
                  "\"images\":%d,\"width\":%d,\"height\":%d,"
                  "\"sampler\":\"%s\",\"model\":\"",
                  (unsigned long long) i->seed, i->step, i->steps,
                  job->params->images, i->width, i->height, i->sampler);
    sd_buf_json(out, job->model, strlen(job->model));
    sd_buf_printf(out, "\",\"fingerprint\":\"%s\",\"numerics\":\"%s\","
                  "\"resumed\":%s,\"inexact\":%s,\"branched\":%s,"
                  "\"warnings\":",
                  job->fingerprint, ev->numerics,
                  i->resumed ? "true" : "false",
                  i->inexact ? "true" : "false",
                  i->branched ? "true" : "false");
    sd_format_warnings(out, job->params);
}


void
sd_format_queued(sd_buf_t *out, const sd_event_t *ev)
{
    sd_buf_printf(out, "\"position\":%d", ev->position);

    if (ev->position && ev->eta >= 0) {
        sd_buf_printf(out, ",\"eta\":%.1f", ev->eta);
    }
}


void
sd_format_state(sd_buf_t *out, const sd_event_t *ev)
{
    sd_buf_printf(out, "{\"image\":%d,\"step\":%d,\"steps\":%d,"
                  "\"seed\":%llu,\"latents\":\"",
                  ev->image, ev->step, ev->steps,
                  (unsigned long long) ev->seed);
    sd_buf_base64(out, ev->latent, ev->latent_size);
    sd_buf_puts(out, "\"}");
}
