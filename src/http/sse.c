/*
 * text/event-stream: OpenAI's two events of a streamed picture, with step,
 * steps, image and seed added, and named events for the rest.  An event is one
 * data line; many clients' readers stop at 64 kB, so previews are made to stay
 * well below that.
 */

#include <stdio.h>
#include <string.h>

#include "http.h"


#define SD_SSE_PREVIEW  (45 * 1024)


typedef struct {
    unsigned   id;
} sd_sse_t;


static void
sd_sse_type(char *dst, size_t n, const sd_job_info_t *job)
{
    snprintf(dst, n, "text/event-stream; charset=utf-8");
}


static void
sd_sse_begin(sd_buf_t *out, sd_sse_t *s, const char *name)
{
    sd_buf_printf(out, "id: %u\nevent: %s\ndata: {\"type\":\"%s\"", ++s->id,
                  name, name);
}


static void
sd_sse_end(sd_buf_t *out)
{
    sd_buf_puts(out, "}\n\n");
}


/* the fields that OpenAI's events have in common, and ours; the picture last */

static void
sd_sse_picture(sd_buf_t *out, const sd_job_info_t *job, const sd_event_t *ev,
    sd_image_format_t image, const sd_buf_t *b)
{
    int  q;

    q = job->params->quality;

    sd_buf_printf(out, ",\"created_at\":%lld,\"size\":\"%dx%d\","
                  "\"quality\":\"%s\",\"background\":\"opaque\","
                  "\"output_format\":\"%s\",\"step\":%d,\"steps\":%d,"
                  "\"image\":%d,\"seed\":%llu",
                  (long long) job->created, job->info.width,
                  job->info.height,
                  q >= 85 ? "high" : q >= 60 ? "medium" : "low",
                  image == SD_IMAGE_PNG ? "png" : "jpeg",
                  ev->step, ev->steps, ev->image,
                  (unsigned long long) ev->seed);

    if (ev->type == SD_EVENT_PREVIEW) {
        sd_buf_printf(out, ",\"partial_image_index\":%d", ev->index);
    }

    sd_buf_puts(out, ",\"b64_json\":\"");
    sd_buf_base64(out, b->data, b->len);
    sd_buf_puts(out, "\"");
}


/* tokens of the text, and for the picture elements of the latent */

static void
sd_sse_usage(sd_buf_t *out, const sd_job_info_t *job)
{
    int  in, pixels;

    in = job->info.prompt_tokens + job->info.negative_tokens;
    pixels = (job->info.width / 8) * (job->info.height / 8);

    sd_buf_printf(out, ",\"usage\":{\"total_tokens\":%d,\"input_tokens\":%d,"
                  "\"output_tokens\":%d,\"input_tokens_details\":"
                  "{\"text_tokens\":%d,\"image_tokens\":0}}",
                  in + pixels, in, pixels, in);
}


static void
sd_sse_latent(sd_buf_t *out, sd_sse_t *s, const sd_event_t *ev)
{
    sd_sse_begin(out, s, "latent");
    sd_buf_printf(out, ",\"step\":%d,\"steps\":%d,\"image\":%d,"
                  "\"seed\":%llu,\"latents\":\"",
                  ev->step, ev->steps, ev->image,
                  (unsigned long long) ev->seed);
    sd_buf_base64(out, ev->latent, ev->latent_size);
    sd_buf_puts(out, "\"");
    sd_sse_end(out);
}


static int
sd_sse_event(sd_buf_t *out, void *state, const sd_job_info_t *job,
    const sd_event_t *ev, sd_error_t *err)
{
    int        rc, quality;
    sd_buf_t   b;
    sd_sse_t  *s = state;

    rc = SD_OK;
    memset(&b, 0, sizeof(sd_buf_t));

    switch (ev->type) {

    case SD_EVENT_QUEUED:
        sd_sse_begin(out, s, "queued");
        sd_buf_puts(out, ",");
        sd_format_queued(out, ev);
        sd_sse_end(out);
        break;

    case SD_EVENT_HEARTBEAT:
        sd_buf_puts(out, ": still here\n\n");
        break;

    case SD_EVENT_START:
        sd_sse_begin(out, s, "start");
        sd_buf_puts(out, ",");
        sd_format_start(out, job, ev);
        sd_sse_end(out);
        break;

    case SD_EVENT_PREVIEW:
        quality = sd_preview_quality(job->params);

        while (ev->rgb) {
            b.len = 0;
            rc = sd_format_picture(&b, job, ev, SD_IMAGE_JPEG, quality, err);

            if (rc != SD_OK || b.len <= SD_SSE_PREVIEW || quality <= 10) {
                break;
            }

            quality = quality > 70 ? 70 : quality - 20;
            quality = quality < 10 ? 10 : quality;
        }

        if (ev->rgb && rc == SD_OK) {
            sd_sse_begin(out, s, "image_generation.partial_image");
            sd_sse_picture(out, job, ev, SD_IMAGE_JPEG, &b);
            sd_sse_end(out);
        }

        if (ev->latent && rc == SD_OK) {
            sd_sse_latent(out, s, ev);
        }

        break;

    case SD_EVENT_FINAL:
        if (ev->latent && job->params->latent != SD_LATENT_NONE) {
            sd_sse_latent(out, s, ev);
        }

        rc = sd_format_picture(&b, job, ev, job->params->image,
                               job->params->quality, err);

        if (rc == SD_OK) {
            sd_sse_begin(out, s, "image_generation.completed");
            sd_sse_picture(out, job, ev, job->params->image, &b);
            sd_sse_usage(out, job);
            sd_sse_end(out);
        }

        break;

    case SD_EVENT_HANDOFF:
    case SD_EVENT_ERROR:
        if (ev->latent) {
            sd_sse_latent(out, s, ev);
        }

        sd_sse_begin(out, s, ev->type == SD_EVENT_HANDOFF ? "handoff"
                                                          : "error");
        sd_buf_printf(out, ",\"step\":%d,\"resumable\":%s,", ev->step,
                      ev->latent ? "true" : "false");
        sd_format_error(out, &ev->error);
        sd_sse_end(out);
        break;
    }

    sd_buf_free(&b);

    return rc;
}


static void
sd_sse_ending(sd_buf_t *out, const sd_job_info_t *job,
    const sd_error_t *error)
{
    sd_buf_puts(out, "event: error\ndata: {\"type\":\"error\",\"step\":0,"
                "\"resumable\":false,");
    sd_format_error(out, error);
    sd_buf_puts(out, "}\n\n");
}


const sd_format_t  sd_format_sse = {
    .name = "sse",
    .media_type = "text/event-stream",
    .progressive = 1,
    .previews = 1,
    .interim = 1,
    .latents = 1,
    .reconnects = 1,
    .latent = SD_LATENT_NONE,
    .state_size = sizeof(sd_sse_t),
    .content_type = sd_sse_type,
    .event = sd_sse_event,
    .ending = sd_sse_ending,
};
