/*
 * The error object: see error.h.  Any thread; touches nothing but its
 * arguments.
 */

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "error.h"


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

    return SD_ERROR;
}
