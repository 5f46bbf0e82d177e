/*
 * The formats that collect: one JSON object at the end, with all that was asked
 * for.  application/json of the native dialect, and SageMaker's answer, whole
 * or a page.
 */

#include <stdio.h>
#include <string.h>

#include "http.h"


/* of one answer, in base64; what is longer should be streamed */
#define SD_MAX_COLLECTED  (96 * 1024 * 1024)


/* the insides of JSON arrays; images by their number, as they may be finished
 * in any order */

typedef struct {
    sd_buf_t             images[SD_MAX_IMAGES];
    sd_buf_t             previews;
    int                  started;
    sd_picture_info_t    info;          /* as of START */
    const char          *numerics;
} sd_collect_t;


static void
sd_collect_type(char *dst, size_t n, const sd_job_info_t *job)
{
    snprintf(dst, n, "application/json");
}


static int
sd_collect_check(const sd_collect_t *c, const sd_buf_t *out, sd_error_t *err)
{
    int     i, failed;
    size_t  len;

    len = c->previews.len;
    failed = out->failed || c->previews.failed;

    for (i = 0; i < SD_MAX_IMAGES; i++) {
        len += c->images[i].len;
        failed |= c->images[i].failed;
    }

    if (len > SD_MAX_COLLECTED) {
        return sd_error(err, 413, "answer_too_large", NULL,
                        "the pictures are too many for one JSON object; ask "
                        "for fewer or for a format that streams");
    }

    if (failed) {
        return sd_fail(err, "no memory for the answer");
    }

    return SD_OK;
}


static void
sd_collect_cleanup(void *state)
{
    int            i;
    sd_collect_t  *c = state;

    for (i = 0; i < SD_MAX_IMAGES; i++) {
        sd_buf_free(&c->images[i]);
    }

    sd_buf_free(&c->previews);
}


static void
sd_collect_images(sd_buf_t *out, const sd_collect_t *c)
{
    int          i;
    const char  *comma;

    comma = "";
    sd_buf_puts(out, "\"images\":[");

    for (i = 0; i < SD_MAX_IMAGES; i++) {
        if (c->images[i].len) {
            sd_buf_puts(out, comma);
            sd_buf_append(out, c->images[i].data, c->images[i].len);
            comma = ",";
        }
    }

    sd_buf_puts(out, "]");
}


/* {"b64_json":...}, of images and of previews */

static int
sd_json_picture(sd_buf_t *list, const sd_job_info_t *job,
    const sd_event_t *ev, int latent, sd_error_t *err)
{
    int                 rc;
    sd_buf_t            b;
    sd_image_format_t   image;

    rc = SD_OK;
    memset(&b, 0, sizeof(sd_buf_t));

    image = ev->type == SD_EVENT_FINAL ? job->params->image : SD_IMAGE_JPEG;

    sd_buf_printf(list, "%s{\"image\":%d,\"step\":%d,\"seed\":%llu",
                  list->len ? "," : "", ev->image, ev->step,
                  (unsigned long long) ev->seed);

    if (ev->rgb) {
        rc = sd_format_picture(&b, job, ev, image,
                               ev->type == SD_EVENT_FINAL
                               ? job->params->quality
                               : sd_preview_quality(job->params), err);

        sd_buf_printf(list, ",\"content_type\":\"%s\",\"b64_json\":\"",
                      sd_image_type(image));
        sd_buf_base64(list, b.data, b.len);
        sd_buf_puts(list, "\"");
    }

    if (latent && ev->latent) {
        sd_buf_puts(list, ",\"latents\":\"");
        sd_buf_base64(list, ev->latent, ev->latent_size);
        sd_buf_puts(list, "\"");
    }

    sd_buf_puts(list, "}");
    sd_buf_free(&b);

    return rc;
}


static int
sd_json_event(sd_buf_t *out, void *state, const sd_job_info_t *job,
    const sd_event_t *ev, sd_error_t *err)
{
    int            rc;
    sd_event_t     start;
    sd_collect_t  *c = state;

    rc = SD_OK;

    switch (ev->type) {

    case SD_EVENT_START:
        c->started = 1;
        c->info = ev->info;
        c->numerics = ev->numerics;
        return SD_OK;

    case SD_EVENT_PREVIEW:
        rc = sd_json_picture(&c->previews, job, ev, 1, err);
        break;

    case SD_EVENT_FINAL:
        rc = sd_json_picture(&c->images[ev->image], job, ev,
                             job->params->latent != SD_LATENT_NONE, err);
        break;

    default:
        return SD_OK;
    }

    if (rc != SD_OK || sd_collect_check(c, out, err) != SD_OK) {
        return SD_ERROR;
    }

    if (!ev->last) {
        return SD_OK;
    }

    start = *ev;
    start.info = c->started ? c->info : job->info;
    start.numerics = c->numerics ? c->numerics : "";

    sd_buf_printf(out, "{\"created\":%lld,", (long long) job->created);
    sd_format_start(out, job, &start);
    sd_buf_puts(out, ",");
    sd_collect_images(out, c);

    if (c->previews.len) {
        sd_buf_puts(out, ",\"previews\":[");
        sd_buf_append(out, c->previews.data, c->previews.len);
        sd_buf_puts(out, "]");
    }

    sd_buf_printf(out, ",\"timings\":{\"queue_ms\":%u,\"total_ms\":%u}}\n",
                  ev->queue_time, ev->time);

    return sd_collect_check(c, out, err);
}


/* SageMaker's: each picture's JPEGs in their order, and for a page the state behind them */

static int
sd_sagemaker_event(sd_buf_t *out, void *state, const sd_job_info_t *job,
    const sd_event_t *ev, sd_error_t *err)
{
    int                       rc;
    sd_buf_t                  b, *list;
    sd_collect_t             *c = state;
    const sd_job_params_t    *p;

    p = job->params;

    if (ev->type != SD_EVENT_PREVIEW && ev->type != SD_EVENT_FINAL) {
        return SD_OK;
    }

    if (ev->rgb) {
        memset(&b, 0, sizeof(sd_buf_t));
        rc = sd_format_picture(&b, job, ev, p->image, p->quality, err);

        list = &c->images[ev->image];

        sd_buf_puts(list, list->len ? ",\"" : "\"");
        sd_buf_base64(list, b.data, b.len);
        sd_buf_puts(list, "\"");

        sd_buf_free(&b);

        if (rc != SD_OK) {
            return rc;
        }
    }

    if (sd_collect_check(c, out, err) != SD_OK) {
        return SD_ERROR;
    }

    if (!ev->last) {
        return SD_OK;
    }

    sd_buf_puts(out, "{");
    sd_collect_images(out, c);

    if (p->run_steps) {
        sd_buf_puts(out, ",\"latents\":\"");
        sd_buf_base64(out, ev->latent, ev->latent_size);
        sd_buf_printf(out, "\",\"step\":%d", ev->step);
    }

    if (p->nwarnings) {
        sd_buf_puts(out, ",\"warnings\":");
        sd_format_warnings(out, p);
    }

    sd_buf_puts(out, "}\n");

    return sd_collect_check(c, out, err);
}


const sd_format_t  sd_format_json = {
    .name = "json",
    .media_type = "application/json",
    .interim = 1,
    .latents = 1,
    .latent = SD_LATENT_NONE,
    .state_size = sizeof(sd_collect_t),
    .content_type = sd_collect_type,
    .event = sd_json_event,
    .cleanup = sd_collect_cleanup,
};


const sd_format_t  sd_format_sagemaker = {
    .name = "sagemaker",
    .media_type = "application/json",
    .latent = SD_LATENT_NONE,
    .state_size = sizeof(sd_collect_t),
    .content_type = sd_collect_type,
    .event = sd_sagemaker_event,
    .cleanup = sd_collect_cleanup,
};
