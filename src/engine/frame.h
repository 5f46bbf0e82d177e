/*
 * The wire between nginx's side and the engine: one connection of an abstract
 * unix socket is one HTTP request.  No nginx type and no tensor here.
 *
 * nginx's side sends one request frame, then the request's body, and nothing
 * more.  It closes the connection when the client has gone: that is the cancel
 * signal.  The engine answers with frames {u32 type, u32 length, payload} in
 * the machine's byte order (both ends are the same machine and, by the version,
 * the same build): exactly one HEADER, before it any number of TICKs and INFOs,
 * after it DATA, INFO and ENDING, and at last END.  An INFO also re-arms the
 * timer.  Each DATA frame ends where the format could go on or end: a part, an
 * event.  A connection that closes without END
 * was cut; nginx's side then sends the last ENDING's bytes, if there are any,
 * so that the client sees an orderly error.
 */

#ifndef SD_FRAME_H
#define SD_FRAME_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "../io/buf.h"
#include "../io/error.h"


#define SD_FRAME_MAGIC     0x32464453      /* "SDF2" */
#define SD_COOKIE_SIZE     32
#define SD_MAX_BODY        (64 * 1024 * 1024)
#define SD_MAX_FRAME       (128 * 1024 * 1024)
#define SD_MAX_REQUEST     (512 * 1024)   /* its frame, without the body */


typedef enum {
    SD_FRAME_HEADER = 1,        /* sd_frame_header_t, content type, headers */
    SD_FRAME_DATA,              /* bytes of the response's body */
    SD_FRAME_TICK,              /* nothing; re-arms nginx's read timer */
    SD_FRAME_INFO,              /* sd_frame_info_t, for the log's variables */
    SD_FRAME_ENDING,            /* replaces the ready-made ending */
    SD_FRAME_END                /* nothing */
} sd_frame_type_t;

typedef struct {
    uint32_t   type;
    uint32_t   length;
} sd_frame_t;


typedef enum {
    SD_DIALECT_NATIVE,
    SD_DIALECT_SAGEMAKER,
    SD_DIALECTS
} sd_dialect_id_t;

typedef enum {
    SD_METHOD_GET,
    SD_METHOD_POST,
    SD_METHOD_HEAD
} sd_method_t;

typedef enum {
    SD_PREVIEW_NONE,
    SD_PREVIEW_RGB,
    SD_PREVIEW_VAE
} sd_preview_t;

typedef enum {
    SD_LATENT_DEFAULT,          /* as the format has it: multipart with every
                                   preview, the others none */
    SD_LATENT_NONE,
    SD_LATENT_LAST,
    SD_LATENT_ALL
} sd_latent_t;


typedef enum {
    SD_PRIORITY_LOW,
    SD_PRIORITY_NORMAL,
    SD_PRIORITY_HIGH,
    SD_PRIORITIES
} sd_priority_t;


/* what a location's configuration allows and defaults to */

typedef struct {
    uint32_t   model;           /* index into the engine's models */
    uint32_t   dialect;         /* sd_dialect_id_t */
    uint32_t   timeout;         /* ms for the whole job; 0: none */
    uint32_t   max_steps;
    uint32_t   max_pixels;
    uint32_t   max_images;
    uint32_t   preview;         /* sd_preview_t, default of the field */
    uint32_t   latent;          /* sd_latent_t */
    uint32_t   pagination;      /* sagemaker: 0, 1 */
    uint32_t   priority;        /* sd_priority_t */
} sd_location_t;


/* a request, decoded: strings point into the frame's bytes, which the caller
 * keeps, and are not terminated */

typedef struct {
    const char   *data;
    size_t        len;
} sd_str_t;

typedef struct {
    sd_location_t   location;
    sd_method_t     method;
    sd_str_t        uri;
    sd_str_t        args;           /* the query, still escaped */
    sd_str_t        accept;
    sd_str_t        content_type;
    sd_str_t        last_event_id;
    sd_str_t        id;             /* X-Request-Id: 32 hex digits */
    uint64_t        body_length;    /* bytes that follow the frame */
    int             too_long;       /* status to answer where a string was
                                       longer than 64 kB, or 0; set by parse */
    const char     *too_long_name;
} sd_request_t;

/* appends the frame; of strings longer than 64 kB only that they were */
int sd_frame_request(sd_buf_t *out, const uint8_t cookie[SD_COOKIE_SIZE],
    const sd_request_t *r, sd_error_t *err);

/*
 * parses the frame at data.  Returns the bytes that it takes, 0 where more are
 * needed, SD_ERROR where it is no frame of ours or the cookie (compared in
 * constant time) is wrong.
 */
ssize_t sd_frame_parse_request(sd_request_t *r, const void *data, size_t len,
    const uint8_t cookie[SD_COOKIE_SIZE], sd_error_t *err);


/* HEADER's payload begins with this; then content_type_length bytes, then
 * headers_length bytes of "Name: value\r\n" lines */

typedef struct {
    uint32_t   status;
    uint32_t   content_type_length;
    uint32_t   headers_length;
    uint32_t   reserved;
    int64_t    content_length;      /* -1: chunked */
} sd_frame_header_t;

typedef struct {
    char       status[16];          /* ok, error, cancelled, timeout, rejected,
                                       handoff, running, queued */
    char       model[64];
    uint32_t   step, steps;
    uint64_t   seed;
    uint32_t   queue_time;          /* ms from request to admission */
    uint32_t   time;                /* ms from request until now */
} sd_frame_info_t;


/* the engine's end: both append one frame to out */

void sd_frame_append(sd_buf_t *out, sd_frame_type_t type, const void *data,
    size_t len);
/* content_type: "" for none; headers: "Name: value\r\n" lines */
void sd_frame_header(sd_buf_t *out, int status, int64_t content_length,
    const char *content_type, const char *headers, size_t headers_len);


#endif
