/*
 * The dialects that a location may speak, and how Accept chooses a format.  A
 * new dialect is a row of this table, its formats and the shape of its errors.
 */

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "http.h"


static void sd_native_error(sd_buf_t *out, sd_buf_t *headers,
    const sd_error_t *err, const sd_buf_t *states);
static void sd_sagemaker_error(sd_buf_t *out, sd_buf_t *headers,
    const sd_error_t *err, const sd_buf_t *states);


static const sd_dialect_t  sd_native = {
    .name = "native",
    .formats = { &sd_format_jpeg, &sd_format_png, &sd_format_multipart,
                 &sd_format_sse, &sd_format_mjpeg, &sd_format_json, NULL },
    .error = sd_native_error,
};

static const sd_dialect_t  sd_sagemaker = {
    .name = "sagemaker",
    .any_type = 1,
    .any_accept = 1,
    .pages = 1,
    .formats = { &sd_format_sagemaker, NULL },
    .error = sd_sagemaker_error,
};


const sd_dialect_t *
sd_dialect(uint32_t id)
{
    switch (id) {

    case SD_DIALECT_NATIVE:
        return &sd_native;

    case SD_DIALECT_SAGEMAKER:
        return &sd_sagemaker;

    default:
        return NULL;
    }
}


static void
sd_dialect_states(sd_buf_t *out, const sd_buf_t *states)
{
    if (states && states->len) {
        sd_buf_puts(out, ",\"states\":[");
        sd_buf_append(out, states->data, states->len);
        sd_buf_puts(out, "]");
    }
}


static void
sd_native_error(sd_buf_t *out, sd_buf_t *headers, const sd_error_t *err,
    const sd_buf_t *states)
{
    sd_buf_puts(out, "{");
    sd_format_error(out, err);
    sd_dialect_states(out, states);
    sd_buf_puts(out, "}\n");
}


static void
sd_sagemaker_error(sd_buf_t *out, sd_buf_t *headers, const sd_error_t *err,
    const sd_buf_t *states)
{
    sd_buf_puts(out, "{\"message\":\"");
    sd_buf_json(out, err->message, strlen(err->message));
    sd_buf_puts(out, "\",");
    sd_format_error(out, err);
    sd_dialect_states(out, states);
    sd_buf_puts(out, "}\n");

    sd_buf_printf(headers, "x-amzn-ErrorType: %s\r\n",
                  err->status < 500 ? "ValidationError"
                  : err->status == 503 ? "ServiceUnavailable"
                  : "InternalFailure");
}


const sd_format_t *
sd_format_find(const sd_dialect_t *d, const char *name)
{
    const sd_format_t  *const *f;

    for (f = d->formats; *f; f++) {
        if (strcmp((*f)->name, name) == 0
            || strcmp((*f)->media_type, name) == 0)
        {
            return *f;
        }
    }

    return NULL;
}


/* Accept */

typedef struct {
    const char  *type;          /* the range up to its parameters */
    size_t       len;
    int          q;             /* in thousandths */
} sd_range_t;


/* optional white space, and one element up to a comma; 0 at the end */

static int
sd_accept_next(sd_range_t *r, const char **pp, const char *end)
{
    int          scale;
    const char  *p, *last;

    p = *pp;

    while (p < end && (*p == ' ' || *p == '\t' || *p == ',')) {
        p++;
    }

    if (p == end) {
        return 0;
    }

    r->type = p;
    r->q = 1000;

    while (p < end && *p != ',' && *p != ';') {
        p++;
    }

    for (last = p; last > r->type && (last[-1] == ' ' || last[-1] == '\t');
         last--)
    {
        /* void */
    }

    r->len = last - r->type;

    while (p < end && *p == ';') {
        p++;

        while (p < end && (*p == ' ' || *p == '\t')) {
            p++;
        }

        if (end - p >= 3 && (*p | 0x20) == 'q' && p[1] == '=') {
            p += 2;
            r->q = *p == '1' ? 1000 : 0;

            if (++p < end && *p == '.' && r->q == 0) {
                p++;
                scale = 100;

                while (p < end && *p >= '0' && *p <= '9') {
                    r->q += (*p - '0') * scale;
                    scale /= 10;
                    p++;
                }
            }
        }

        while (p < end && *p != ',' && *p != ';') {

            /* a comma within quotes is none */
            if (*p == '"') {
                do {
                    p++;
                } while (p < end && *p != '"');

                if (p == end) {
                    break;
                }
            }

            p++;
        }
    }

    *pp = p;

    return 1;
}


/* 0: no match, 1: by "*" "/" "*", 2: by its type alone, 3: whole */

static int
sd_range_match(const sd_range_t *r, const char *type)
{
    size_t  n;

    if (type == NULL) {
        return 0;
    }

    if (r->len == strlen(type) && strncasecmp(r->type, type, r->len) == 0) {
        return 3;
    }

    if (r->len == 3 && memcmp(r->type, "*/*", 3) == 0) {
        return 1;
    }

    n = strcspn(type, "/") + 1;

    if (r->len == n + 1 && r->type[n] == '*'
        && strncasecmp(r->type, type, n) == 0)
    {
        return 2;
    }

    return 0;
}


/*
 * RFC 9110, 12.5.1: of the ranges that match a type the most specific one gives
 * its quality.  Between equal qualities a type that was named wins over one
 * that a wildcard let in, and then the order of the dialect's table.
 */

const sd_format_t *
sd_format_negotiate(const sd_dialect_t *d, sd_str_t accept)
{
    int                 m, a, match, q, best_match, best_q;
    sd_range_t          r;
    const char         *p;
    const sd_format_t  *best, *const *f;

    if (accept.len == 0) {
        return d->formats[0];
    }

    best = NULL;
    best_q = 0;
    best_match = 0;

    for (f = d->formats; *f; f++) {
        match = 0;
        q = 0;
        p = accept.data;

        while (sd_accept_next(&r, &p, accept.data + accept.len)) {
            m = sd_range_match(&r, (*f)->media_type);
            a = sd_range_match(&r, (*f)->alias);
            m = m > a ? m : a;

            if (m > match) {
                match = m;
                q = r.q;
            }
        }

        if (match && (q > best_q
                      || (q == best_q && q && match == 3 && best_match < 3)))
        {
            best = *f;
            best_q = q;
            best_match = match;
        }
    }

    return best;
}
