/*
 * multipart/mixed: every event is a part, or two where a latent comes with it.
 * And multipart/x-mixed-replace, for <img>: pictures alone, the last one stays.
 *
 * The boundary after a part is sent together with it, so that a client can tell
 * at once that the part is whole, and paint it.  The stream therefore begins
 * with a boundary, always stands right behind one between two events, and can
 * be ended there; that the closing boundary is missing means it was cut.
 */

#include <stdio.h>
#include <string.h>

#include "http.h"


#define SD_LATENT_TYPE  "application/octet-stream"


typedef struct {
    int        opened;
    sd_buf_t   picture;         /* mjpeg: the last one, for heartbeats */
} sd_multipart_t;


static void
sd_multipart_type(char *dst, size_t n, const sd_job_info_t *job)
{
    snprintf(dst, n, "multipart/mixed; boundary=%s", job->boundary);
}


static void
sd_mjpeg_type(char *dst, size_t n, const sd_job_info_t *job)
{
    snprintf(dst, n, "multipart/x-mixed-replace; boundary=%s", job->boundary);
}


static void
sd_multipart_open(sd_buf_t *out, sd_multipart_t *m, const sd_job_info_t *job)
{
    if (!m->opened) {
        m->opened = 1;
        sd_buf_printf(out, "--%s\r\n", job->boundary);
    }
}


/* one part and the boundary after it */

static void
sd_multipart_part(sd_buf_t *out, const sd_job_info_t *job,
    const sd_event_t *ev, const char *name, const char *type,
    const void *data, size_t size, int last)
{
    sd_buf_printf(out, "Content-Type: %s\r\n"
                  "Content-Length: %zu\r\n"
                  "SD-Event: %s\r\n"
                  "SD-Step: %d\r\n"
                  "SD-Steps: %d\r\n"
                  "SD-Image: %d\r\n"
                  "SD-Seed: %llu\r\n\r\n",
                  type, size, name, ev->step, ev->steps, ev->image,
                  (unsigned long long) ev->seed);

    sd_buf_append(out, data, size);
    sd_buf_printf(out, "\r\n--%s%s\r\n", job->boundary, last ? "--" : "");
}


static int
sd_multipart_event(sd_buf_t *out, void *state, const sd_job_info_t *job,
    const sd_event_t *ev, sd_error_t *err)
{
    int                 rc, latent, preview;
    sd_buf_t            b;
    sd_multipart_t     *m = state;
    sd_image_format_t   image;

    rc = SD_OK;
    memset(&b, 0, sizeof(sd_buf_t));

    sd_multipart_open(out, m, job);

    /* the state goes ahead of what ends the response */

    latent = ev->latent && (ev->type != SD_EVENT_FINAL
                            || job->params->latent != SD_LATENT_NONE);

    switch (ev->type) {

    case SD_EVENT_QUEUED:
    case SD_EVENT_HEARTBEAT:
        sd_buf_printf(&b, "{\"event\":\"%s\",",
                      ev->position ? "queued" : "heartbeat");
        sd_format_queued(&b, ev);
        sd_buf_puts(&b, "}");
        sd_multipart_part(out, job, ev,
                          ev->position ? "queued" : "heartbeat",
                          "application/json", b.data, b.len, 0);
        break;

    case SD_EVENT_START:
        sd_buf_puts(&b, "{\"event\":\"start\",");
        sd_format_start(&b, job, ev);
        sd_buf_puts(&b, "}");
        sd_multipart_part(out, job, ev, "start", "application/json",
                          b.data, b.len, 0);
        break;

    case SD_EVENT_PREVIEW:
    case SD_EVENT_FINAL:
        preview = ev->type == SD_EVENT_PREVIEW;
        image = preview ? SD_IMAGE_JPEG : job->params->image;

        if (preview && ev->rgb) {
            rc = sd_format_picture(&b, job, ev, image,
                                   sd_preview_quality(job->params), err);
            if (rc != SD_OK) {
                break;
            }

            sd_multipart_part(out, job, ev, "preview", sd_image_type(image),
                              b.data, b.len, ev->last && !latent);
        }

        if (latent) {
            sd_multipart_part(out, job, ev, "latent", SD_LATENT_TYPE,
                              ev->latent, ev->latent_size,
                              ev->last && preview);
        }

        if (!preview) {
            rc = sd_format_picture(&b, job, ev, image, job->params->quality,
                                   err);
            if (rc != SD_OK) {
                break;
            }

            sd_multipart_part(out, job, ev, "final", sd_image_type(image),
                              b.data, b.len, ev->last);
        }

        break;

    case SD_EVENT_HANDOFF:
    case SD_EVENT_ERROR:
        if (latent) {
            sd_multipart_part(out, job, ev, "latent", SD_LATENT_TYPE,
                              ev->latent, ev->latent_size, 0);
        }

        sd_buf_printf(&b, "{\"event\":\"%s\",\"step\":%d,\"resumable\":%s,",
                      ev->type == SD_EVENT_HANDOFF ? "handoff" : "error",
                      ev->step, latent ? "true" : "false");
        sd_format_error(&b, &ev->error);
        sd_buf_puts(&b, "}");
        sd_multipart_part(out, job, ev,
                          ev->type == SD_EVENT_HANDOFF ? "handoff" : "error",
                          "application/json", b.data, b.len, 1);
        break;
    }

    if (b.failed) {
        rc = sd_fail(err, "no memory for a part");
    }

    sd_buf_free(&b);

    return rc;
}


static void
sd_multipart_ending(sd_buf_t *out, const sd_job_info_t *job,
    const sd_error_t *error)
{
    sd_buf_t    b;
    sd_event_t  ev;

    memset(&b, 0, sizeof(sd_buf_t));
    memset(&ev, 0, sizeof(sd_event_t));

    ev.seed = job->info.seed;
    ev.steps = job->info.steps;

    sd_buf_puts(&b, "{\"event\":\"error\",\"step\":0,\"resumable\":false,");
    sd_format_error(&b, error);
    sd_buf_puts(&b, "}");

    sd_multipart_part(out, job, &ev, "error", "application/json", b.data,
                      b.len, 1);
    sd_buf_free(&b);
}


static int
sd_mjpeg_event(sd_buf_t *out, void *state, const sd_job_info_t *job,
    const sd_event_t *ev, sd_error_t *err)
{
    int                 rc, final;
    sd_multipart_t     *m = state;
    sd_image_format_t   image;

    sd_multipart_open(out, m, job);

    final = ev->type == SD_EVENT_FINAL;
    image = final ? job->params->image : SD_IMAGE_JPEG;

    if (ev->rgb && (final || ev->type == SD_EVENT_PREVIEW)) {
        m->picture.len = 0;

        rc = sd_format_picture(&m->picture, job, ev, image,
                               final ? job->params->quality
                                     : sd_preview_quality(job->params), err);
        if (rc != SD_OK) {
            return rc;
        }

        sd_multipart_part(out, job, ev, final ? "final" : "preview",
                          sd_image_type(image), m->picture.data,
                          m->picture.len, ev->last);

    } else if (ev->type == SD_EVENT_HEARTBEAT && m->picture.len) {

        /* the same picture once more: the one thing that shows nothing new */

        sd_multipart_part(out, job, ev, "preview", "image/jpeg",
                          m->picture.data, m->picture.len, 0);
    }

    /* after an error <img> keeps what it shows; no closing boundary: a cut */

    return SD_OK;
}


static void
sd_multipart_cleanup(void *state)
{
    sd_multipart_t  *m = state;

    sd_buf_free(&m->picture);
}


const sd_format_t  sd_format_multipart = {
    .name = "multipart",
    .media_type = "multipart/mixed",
    .progressive = 1,
    .previews = 1,
    .interim = 1,
    .latents = 1,
    .latent = SD_LATENT_ALL,
    .state_size = sizeof(sd_multipart_t),
    .content_type = sd_multipart_type,
    .event = sd_multipart_event,
    .ending = sd_multipart_ending,
    .cleanup = sd_multipart_cleanup,
};


const sd_format_t  sd_format_mjpeg = {
    .name = "mjpeg",
    .media_type = "multipart/x-mixed-replace",
    .progressive = 1,
    .previews = 1,
    .interim = 1,
    .single = 1,
    .latent = SD_LATENT_NONE,
    .state_size = sizeof(sd_multipart_t),
    .content_type = sd_mjpeg_type,
    .event = sd_mjpeg_event,
    .cleanup = sd_multipart_cleanup,
};
