/*
 * HTTP as the engine sees it: dialects turn requests into job parameters,
 * formats turn events into bytes.  Neither includes the other; both are table
 * entries.  Nothing here knows sockets, threads or devices: functions from
 * values to values, called by encoder threads.
 */

#ifndef SD_HTTP_H
#define SD_HTTP_H

#include <stddef.h>
#include <stdint.h>

#include "../engine/frame.h"
#include "../io/buf.h"
#include "../io/error.h"
#include "../sd/picture.h"
#include "fields.h"


typedef enum {
    SD_IMAGE_JPEG,
    SD_IMAGE_PNG
} sd_image_format_t;

typedef struct sd_format_s   sd_format_t;
typedef struct sd_dialect_s  sd_dialect_t;


/* what a request asks for, validated; owns its strings and the latent */

typedef struct {
    sd_buf_t             prompt;            /* terminated */
    sd_buf_t             negative_prompt;
    sd_buf_t             latents;           /* decoded safetensors, or empty */
    sd_params_t          params;            /* points into the above */

    const sd_format_t   *format;
    sd_image_format_t    image;
    int                  quality;           /* JPEG: 1 .. 100 */
    int                  images;            /* n; image i has seed + i */
    sd_preview_t         preview;
    int                  preview_every;     /* steps; 0: none */
    int                  previews;          /* instead, evenly spaced; -1 */
    int                  latent_every;      /* steps; 0: see latent */
    sd_latent_t          latent;            /* NONE, LAST, ALL */
    int                  run_steps;         /* stop after so many; 0: all */
    int                  resumed;           /* has latents */
    uint32_t             timeout;           /* ms; 0: the location's */

    char                 warnings[SD_MAX_WARNINGS + 4][160];
    int                  nwarnings;
} sd_job_params_t;

void sd_job_params_free(sd_job_params_t *p);
/* adds what is to be said of the picture that they have led to */
void sd_job_warn(sd_job_params_t *p, const sd_picture_info_t *info);


/* events: all that a job ever says */

typedef enum {
    SD_EVENT_QUEUED,            /* position */
    SD_EVENT_START,             /* info: seed, steps, sampler, warnings */
    SD_EVENT_PREVIEW,           /* step; a picture, or a latent, or both */
    SD_EVENT_FINAL,             /* a picture and its latent */
    SD_EVENT_HANDOFF,           /* error, state: go on elsewhere */
    SD_EVENT_ERROR,             /* error, state if there is one */
    SD_EVENT_HEARTBEAT          /* position where it still waits */
} sd_event_type_t;

typedef struct {
    sd_event_type_t     type;
    int                 image;          /* 0 .. n - 1 */
    int                 step, steps;
    uint64_t            seed;           /* this image's */
    int                 index;          /* of this image's previews, from 0 */
    int                 position;       /* in the queue, from 1; 0: runs */
    double              eta;            /* seconds until it begins; -1: who
                                           knows; where it waits */
    int                 ends;           /* this image's last event */
    int                 last;           /* the response's last event */
    uint32_t            queue_time;     /* ms from request to admission */
    uint32_t            time;           /* ms from request to this event */

    const uint8_t      *rgb;            /* [rgb_height, rgb_width, 3] or NULL */
    int                 rgb_width, rgb_height;
    int                 rgb_scale;      /* by how much to enlarge, 1: as is */
    const void         *latent;         /* safetensors, or NULL */
    size_t              latent_size;

    sd_picture_info_t   info;           /* START alone */
    const char         *numerics;       /* ... of the device that runs it */
    sd_error_t          error;          /* ERROR, HANDOFF */
} sd_event_t;


/* what formats may know of the job beside the event; immutable while it runs */

typedef struct {
    char                     id[64];        /* X-Request-Id */
    char                     boundary[33];  /* random, of hex digits */
    const char              *model;
    const char              *fingerprint;
    const sd_job_params_t   *params;
    sd_picture_info_t        info;          /* of image 0, as created */
    int64_t                  created;       /* Unix time */
} sd_job_info_t;


struct sd_format_s {
    const char   *name;             /* for the field "format" */
    const char   *media_type;       /* for Accept */
    const char   *alias;            /* another one that Accept may ask for */
    unsigned      progressive:1;    /* sends before the end: gets heartbeats;
                                       a newer preview replaces an unsent one */
    unsigned      previews:1;       /* wants previews without being asked */
    unsigned      interim:1;        /* can carry previews at all */
    unsigned      latents:1;        /* can carry latents at all */
    unsigned      single:1;         /* holds one picture */
    unsigned      reconnects:1;     /* clients reconnect by themselves: with a
                                       Last-Event-ID they get 204 */
    sd_latent_t   latent;           /* by default */
    size_t        state_size;       /* zeroed for each job */

    void        (*content_type)(char *dst, size_t n,
                                const sd_job_info_t *job);
    /*
     * appends the event's bytes, pictures encoded; order is that of events.
     * What one call appends is sent whole or, for a preview, not at all.
     */
    int         (*event)(sd_buf_t *out, void *state, const sd_job_info_t *job,
                         const sd_event_t *ev, sd_error_t *err);
    /* appends the ready-made ending for a connection that is cut from here;
     * NULL: there is none */
    void        (*ending)(sd_buf_t *out, const sd_job_info_t *job,
                          const sd_error_t *error);
    void        (*cleanup)(void *state);    /* or NULL */
};

extern const sd_format_t  sd_format_jpeg;
extern const sd_format_t  sd_format_png;
extern const sd_format_t  sd_format_multipart;
extern const sd_format_t  sd_format_sse;
extern const sd_format_t  sd_format_mjpeg;
extern const sd_format_t  sd_format_json;
extern const sd_format_t  sd_format_sagemaker;


struct sd_dialect_s {
    const char          *name;          /* "native", "sagemaker" */
    unsigned             any_type:1;    /* the body is JSON whatever its
                                           Content-Type */
    unsigned             any_accept:1;  /* so is the answer */
    unsigned             pages:1;       /* knows sd_pagination */
    const sd_format_t   *formats[8];    /* the first is the default */

    /* appends the body of an error answer, and of its headers "Name: value\r\n"
     * lines; states: NULL, or the inside of a JSON array of states */
    void               (*error)(sd_buf_t *out, sd_buf_t *headers,
                                const sd_error_t *err, const sd_buf_t *states);
};

/* by sd_dialect_id_t */
const sd_dialect_t *sd_dialect(uint32_t id);

/* the format for Accept (RFC 9110, q-values) out of a dialect's; NULL: 406 */
const sd_format_t *sd_format_negotiate(const sd_dialect_t *d, sd_str_t accept);
const sd_format_t *sd_format_find(const sd_dialect_t *d, const char *name);

/*
 * a whole request to job parameters; *p is to be freed in any case.  model:
 * for the default size and sampler
 */
int sd_job_request(sd_job_params_t *p, const sd_dialect_t *d,
    const sd_request_t *r, const void *body, size_t size,
    const sd_model_t *model, sd_error_t *err);

/* whether a picture that began at first shows itself after this step */
int sd_preview_due(const sd_job_params_t *p, int step, int first, int steps);
/* ... and its latent, before the last step */
int sd_latent_due(const sd_job_params_t *p, int step, int first, int steps);


/* for formats and dialects; format.c */

/* the event's picture as JPEG or PNG, enlarged first where it is to be */
int sd_format_picture(sd_buf_t *out, const sd_job_info_t *job,
    const sd_event_t *ev, sd_image_format_t image, int quality,
    sd_error_t *err);
const char *sd_image_type(sd_image_format_t image);     /* "image/jpeg" */
/* of previews: they are seen for a moment, and there are many of them */
int sd_preview_quality(const sd_job_params_t *p);
/* "error":{...}, as OpenAI has it */
void sd_format_error(sd_buf_t *out, const sd_error_t *err);
/* "id":...,"seed":..., what a client needs to know at the start; no braces */
void sd_format_start(sd_buf_t *out, const sd_job_info_t *job,
    const sd_event_t *ev);
/* ["...", ...] */
void sd_format_warnings(sd_buf_t *out, const sd_job_params_t *p);
/* "position":1,"eta":2.5; no braces */
void sd_format_queued(sd_buf_t *out, const sd_event_t *ev);
/* one element of a dialect's states */
void sd_format_state(sd_buf_t *out, const sd_event_t *ev);
void sd_job_text(sd_buf_t *out, const sd_job_info_t *job,
    const sd_event_t *ev);                              /* A1111's parameters */


#endif
