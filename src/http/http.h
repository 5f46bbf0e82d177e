/*
 * HTTP as the engine sees it: dialects turn requests into job parameters,
 * formats turn events into bytes.  Neither includes the other; both are table
 * entries.  Nothing here knows sockets, threads or devices: functions from
 * values to values, called by the I/O thread (dialects) and by encoder threads
 * (formats).
 */

#ifndef SD_HTTP_H
#define SD_HTTP_H

#include <stddef.h>
#include <stdint.h>

#include "../engine/frame.h"
#include "../io/buf.h"
#include "../io/error.h"
#include "../sd/picture.h"


typedef enum {
    SD_IMAGE_JPEG,
    SD_IMAGE_PNG
} sd_image_format_t;

typedef struct sd_format_s  sd_format_t;


/* what a request asks for, validated; owns its strings and the latent */

typedef struct {
    char                *prompt;
    char                *negative_prompt;
    void                *latents;           /* decoded safetensors, or NULL */
    size_t               latents_size;
    sd_params_t          params;            /* points into the above */

    const sd_format_t   *format;
    sd_image_format_t    image;
    int                  quality;           /* JPEG: 1 .. 100 */
    int                  images;            /* n; image i has seed + i */
    sd_preview_t         preview;
    int                  preview_every;     /* steps; 0: none */
    int                  previews;          /* or so many, evenly spaced; -1 */
    int                  latent_every;      /* with previews; 0: none,
                                               -1: with the last event only */
    int                  run_steps;         /* stop after so many; 0: all */
    int                  seed_given;
    uint32_t             timeout;           /* ms, 0: none */

    char                 warnings[8][160];  /* "unknown field \"foo\"" ... */
    int                  nwarnings;
} sd_job_params_t;

void sd_job_params_free(sd_job_params_t *p);


/* events: all that a job ever says */

typedef enum {
    SD_EVENT_QUEUED,            /* position */
    SD_EVENT_START,             /* seed, steps, model, numerics, warnings */
    SD_EVENT_PREVIEW,           /* step, picture, latent if asked for */
    SD_EVENT_FINAL,             /* picture, latent if asked for */
    SD_EVENT_HANDOFF,           /* state: go on elsewhere */
    SD_EVENT_ERROR,             /* error, state if there is one */
    SD_EVENT_HEARTBEAT
} sd_event_type_t;

typedef struct {
    sd_event_type_t     type;
    int                 image;          /* 0 .. n - 1 */
    int                 step, steps;
    int                 index;          /* of this image's previews, from 0 */
    int                 position;       /* in the queue, from 1 */
    int                 last;           /* the response's last event */

    const uint8_t      *rgb;            /* [height, width, 3], or NULL */
    int                 rgb_width, rgb_height, rgb_scale;   /* preview: as it
                                           is and by how much to enlarge */
    const void         *latent;         /* safetensors, or NULL */
    size_t              latent_size;

    const sd_error_t   *error;
} sd_event_t;


/* what formats may know of the job beside the event; immutable while it runs */

typedef struct {
    const char              *id;        /* X-Request-Id */
    const char              *model;
    const char              *fingerprint;
    const char              *numerics;
    const sd_job_params_t   *params;
    sd_picture_info_t        info;      /* of image 0 */
    int64_t                  created;   /* Unix time */
    void                    *state;     /* the format's own, see size */
} sd_job_info_t;


struct sd_format_s {
    const char   *name;             /* for the field "format" */
    const char   *media_type;       /* for Accept */
    unsigned      progressive:1;    /* sends before the end: gets heartbeats,
                                       queued, start and preview events */
    unsigned      replaceable:1;    /* a newer preview may replace an unsent
                                       one; a collecting format keeps all */
    unsigned      previews:1;       /* wants preview events at all */
    size_t        state_size;       /* zeroed for each job */

    /* Content-Type and Content-Length (-1) of the answer, once the first bytes
     * are known; extra headers are the engine's business */
    void        (*content_type)(char *dst, size_t n,
                                const sd_job_info_t *job);
    /* appends the event's bytes, pictures encoded; order is that of events */
    int         (*event)(sd_buf_t *out, const sd_job_info_t *job,
                         const sd_event_t *ev, sd_error_t *err);
    /* appends the ready-made ending for a connection that is cut from here */
    void        (*ending)(sd_buf_t *out, const sd_job_info_t *job);
};


typedef struct {
    const char          *name;              /* "native", "sagemaker" */
    const sd_format_t   *formats[6];        /* the first is the default */
    /* body: the whole; model: for the default size and sampler */
    int                (*request)(sd_job_params_t *p, const sd_request_t *r,
                                  const void *body, size_t size,
                                  const sd_model_t *model, sd_error_t *err);
    /* appends the body of an error answer; *content_type, headers: appended
     * "Name: value\r\n" lines */
    void               (*error)(sd_buf_t *out, const char **content_type,
                                sd_buf_t *headers, const sd_error_t *err);
} sd_dialect_t;

extern const sd_dialect_t  *sd_dialects[];      /* by sd_dialect_id_t */

/* the format for Accept (RFC 9110, q-values) out of a dialect's; NULL: 406 */
const sd_format_t *sd_format_negotiate(const sd_dialect_t *d, sd_str_t accept);
const sd_format_t *sd_format_find(const sd_dialect_t *d, const char *name);


#endif
