/*
 * The wire: see frame.h.  Pure functions over bytes, any thread; both ends of
 * the socket use this file, so that what one writes is what the other reads.
 */

#include <string.h>

#include "frame.h"


#define SD_MAX_STRING   65536


enum {
    SD_FRAME_URI,
    SD_FRAME_ARGS,
    SD_FRAME_ACCEPT,
    SD_FRAME_CONTENT_TYPE,
    SD_FRAME_LAST_EVENT_ID,
    SD_FRAME_ID,
    SD_FRAME_STRINGS
};


/* what a request begins with; the strings follow in the order above */

typedef struct {
    uint32_t        magic;
    uint32_t        length;             /* of the whole frame */
    uint8_t         cookie[SD_COOKIE_SIZE];
    sd_location_t   location;
    uint32_t        method;
    uint32_t        len[SD_FRAME_STRINGS];
    uint32_t        too_long;           /* 1 + the first one that was, or 0 */
    uint32_t        reserved;
    uint64_t        body_length;
} sd_frame_request_t;


static const struct {
    const char     *name;
    int             status;
} sd_frame_too_long[SD_FRAME_STRINGS] = {
    { "uri", 414 },
    { "args", 414 },
    { "Accept", 431 },
    { "Content-Type", 431 },
    { "Last-Event-ID", 431 },
    { "X-Request-Id", 431 }
};


static void
sd_frame_strings(const sd_str_t **s, const sd_request_t *r)
{
    s[SD_FRAME_URI] = &r->uri;
    s[SD_FRAME_ARGS] = &r->args;
    s[SD_FRAME_ACCEPT] = &r->accept;
    s[SD_FRAME_CONTENT_TYPE] = &r->content_type;
    s[SD_FRAME_LAST_EVENT_ID] = &r->last_event_id;
    s[SD_FRAME_ID] = &r->id;
}


int
sd_frame_request(sd_buf_t *out, const uint8_t cookie[SD_COOKIE_SIZE],
    const sd_request_t *r, sd_error_t *err)
{
    int                  i;
    const sd_str_t      *s[SD_FRAME_STRINGS];
    sd_frame_request_t   h;

    memset(&h, 0, sizeof(sd_frame_request_t));

    h.magic = SD_FRAME_MAGIC;
    h.length = sizeof(sd_frame_request_t);
    h.location = r->location;
    h.method = r->method;
    h.body_length = r->body_length;
    memcpy(h.cookie, cookie, SD_COOKIE_SIZE);

    sd_frame_strings(s, r);

    for (i = 0; i < SD_FRAME_STRINGS; i++) {
        if (s[i]->len > SD_MAX_STRING) {
            h.too_long = h.too_long ? h.too_long : 1u + i;
            continue;
        }

        h.len[i] = s[i]->len;
        h.length += s[i]->len;
    }

    sd_buf_append(out, &h, sizeof(sd_frame_request_t));

    for (i = 0; i < SD_FRAME_STRINGS; i++) {
        sd_buf_append(out, s[i]->data, h.len[i]);
    }

    if (out->failed) {
        return sd_fail(err, "no memory for a frame");
    }

    return SD_OK;
}


/* constant time: how much of a guess is right must not show */

static int
sd_frame_cookie_differs(const uint8_t *a, const uint8_t *b)
{
    int               i;
    volatile uint8_t  d;

    d = 0;

    for (i = 0; i < SD_COOKIE_SIZE; i++) {
        d |= a[i] ^ b[i];
    }

    return d;
}


ssize_t
sd_frame_parse_request(sd_request_t *r, const void *data, size_t len,
    const uint8_t cookie[SD_COOKIE_SIZE], sd_error_t *err)
{
    int                  i;
    uint64_t             length;
    const char          *p;
    sd_str_t            *s;
    const sd_str_t      *strings[SD_FRAME_STRINGS];
    sd_location_t       *l;
    sd_frame_request_t   h;

    memset(&h, 0, sizeof(sd_frame_request_t));
    memcpy(&h, data, len < sizeof(h) ? len : sizeof(h));

    if (len >= sizeof(h.magic) && h.magic != SD_FRAME_MAGIC) {
        return sd_fail(err, "a frame of another version");
    }

    if (len < sizeof(sd_frame_request_t)) {
        return 0;
    }

    if (sd_frame_cookie_differs(h.cookie, cookie)) {
        return sd_fail(err, "a request with a wrong cookie");
    }

    l = &h.location;

    if (l->dialect >= SD_DIALECTS || h.method > SD_METHOD_HEAD
        || l->preview > SD_PREVIEW_VAE || l->latent > SD_LATENT_ALL
        || l->pagination > 1 || l->priority >= SD_PRIORITIES
        || h.too_long > SD_FRAME_STRINGS)
    {
        return sd_fail(err, "a frame with a field out of range");
    }

    length = sizeof(sd_frame_request_t);

    for (i = 0; i < SD_FRAME_STRINGS; i++) {
        if (h.len[i] > SD_MAX_STRING) {
            return sd_fail(err, "a frame with a string out of range");
        }

        length += h.len[i];
    }

    if (length != h.length) {
        return sd_fail(err, "a frame with a wrong length");
    }

    if (len < length) {
        return 0;
    }

    memset(r, 0, sizeof(sd_request_t));

    r->location = h.location;
    r->method = h.method;
    r->body_length = h.body_length;

    if (h.too_long) {
        r->too_long = sd_frame_too_long[h.too_long - 1].status;
        r->too_long_name = sd_frame_too_long[h.too_long - 1].name;
    }

    sd_frame_strings(strings, r);

    p = (const char *) data + sizeof(sd_frame_request_t);

    for (i = 0; i < SD_FRAME_STRINGS; i++) {
        s = (sd_str_t *) strings[i];
        s->data = p;
        s->len = h.len[i];
        p += s->len;
    }

    return length;
}


void
sd_frame_append(sd_buf_t *out, sd_frame_type_t type, const void *data,
    size_t len)
{
    sd_frame_t  f;

    f.type = type;
    f.length = len;

    sd_buf_append(out, &f, sizeof(sd_frame_t));
    sd_buf_append(out, data, len);
}


void
sd_frame_header(sd_buf_t *out, int status, int64_t content_length,
    const char *content_type, const char *headers, size_t headers_len)
{
    sd_frame_t         f;
    sd_frame_header_t  h;

    memset(&h, 0, sizeof(sd_frame_header_t));

    h.status = status;
    h.content_type_length = strlen(content_type);
    h.headers_length = headers_len;
    h.content_length = content_length;

    f.type = SD_FRAME_HEADER;
    f.length = sizeof(sd_frame_header_t) + h.content_type_length
               + h.headers_length;

    sd_buf_append(out, &f, sizeof(sd_frame_t));
    sd_buf_append(out, &h, sizeof(sd_frame_header_t));
    sd_buf_append(out, content_type, h.content_type_length);
    sd_buf_append(out, headers, headers_len);
}
