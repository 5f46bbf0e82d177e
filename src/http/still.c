/*
 * image/jpeg and image/png: the answer is the final picture and nothing else.
 */

#include <stdio.h>

#include "http.h"


static void
sd_jpeg_type(char *dst, size_t n, const sd_job_info_t *job)
{
    snprintf(dst, n, "image/jpeg");
}


static void
sd_png_type(char *dst, size_t n, const sd_job_info_t *job)
{
    snprintf(dst, n, "image/png");
}


static int
sd_still_event(sd_buf_t *out, void *state, const sd_job_info_t *job,
    const sd_event_t *ev, sd_error_t *err)
{
    if (ev->type != SD_EVENT_FINAL) {
        return SD_OK;
    }

    return sd_format_picture(out, job, ev, job->params->image,
                             job->params->quality, err);
}


const sd_format_t  sd_format_jpeg = {
    .name = "jpeg",
    .media_type = "image/jpeg",
    .alias = "image/jpg",
    .single = 1,
    .latent = SD_LATENT_NONE,
    .content_type = sd_jpeg_type,
    .event = sd_still_event,
};


const sd_format_t  sd_format_png = {
    .name = "png",
    .media_type = "image/png",
    .single = 1,
    .latent = SD_LATENT_NONE,
    .content_type = sd_png_type,
    .event = sd_still_event,
};
