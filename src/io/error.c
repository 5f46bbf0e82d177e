/*
 * The error object: see error.h.  Any thread; touches nothing but its
 * arguments.
 */

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "utf8.h"


/* names from files and requests may hold anything, and cutting may split */

static void
sd_error_clean(char *s)
{
    size_t  n, len;

    for (n = strlen(s); n; s += len, n -= len) {
        len = sd_utf8_length(s, n);

        if (len == 0 || (unsigned char) *s < 0x20 || *s == 0x7f) {
            *s = '?';
            len = 1;
        }
    }
}


int
sd_error(sd_error_t *err, int status, const char *code, const char *param,
    const char *fmt, ...)
{
    va_list  args;

    if (err == NULL) {
        return SD_ERROR;
    }

    err->status = status;
    err->type = status < 500 ? "invalid_request_error" : "server_error";
    err->code = code;

    snprintf(err->param, sizeof(err->param), "%s", param ? param : "");

    va_start(args, fmt);
    vsnprintf(err->message, sizeof(err->message), fmt, args);
    va_end(args);

    sd_error_clean(err->param);
    sd_error_clean(err->message);

    return SD_ERROR;
}
