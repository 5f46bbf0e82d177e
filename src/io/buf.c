/*
 * The growable byte buffer: see buf.h.
 */

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base64.h"
#include "buf.h"


void
sd_buf_free(sd_buf_t *b)
{
    free(b->data);
    memset(b, 0, sizeof(sd_buf_t));
}


void *
sd_buf_reserve(sd_buf_t *b, size_t n)
{
    char    *p;
    size_t   size;

    if (b->failed || n > SIZE_MAX / 2 - b->len) {
        b->failed = 1;
        return NULL;
    }

    if (b->len + n > b->size) {
        size = b->size ? b->size : 256;

        while (size < b->len + n) {
            size *= 2;
        }

        p = realloc(b->data, size);
        if (p == NULL) {
            b->failed = 1;
            return NULL;
        }

        b->data = p;
        b->size = size;
    }

    return b->data + b->len;
}


void
sd_buf_append(sd_buf_t *b, const void *data, size_t n)
{
    if (n && sd_buf_reserve(b, n)) {
        memcpy(b->data + b->len, data, n);
        b->len += n;
    }
}


void
sd_buf_puts(sd_buf_t *b, const char *s)
{
    sd_buf_append(b, s, strlen(s));
}


void
sd_buf_printf(sd_buf_t *b, const char *fmt, ...)
{
    int      n;
    va_list  args;

    va_start(args, fmt);
    n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);

    if (n < 0 || sd_buf_reserve(b, (size_t) n + 1) == NULL) {
        b->failed = 1;
        return;
    }

    va_start(args, fmt);
    vsnprintf(b->data + b->len, (size_t) n + 1, fmt, args);
    va_end(args);

    b->len += n;
}


void
sd_buf_json(sd_buf_t *b, const char *s, size_t n)
{
    size_t          i;
    unsigned char   c;

    for (i = 0; i < n; i++) {
        c = s[i];

        if (c == '"' || c == '\\') {
            sd_buf_printf(b, "\\%c", c);

        } else if (c < 0x20 || c == 0x7f) {
            sd_buf_printf(b, "\\u%04x", c);

        } else {
            sd_buf_append(b, &s[i], 1);
        }
    }
}


void
sd_buf_base64(sd_buf_t *b, const void *data, size_t n)
{
    char  *p;

    p = sd_buf_reserve(b, sd_base64_encoded_size(n));

    if (p) {
        b->len += sd_base64_encode(p, data, n);
    }
}
