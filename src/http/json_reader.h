/*
 * A strict reader of hostile JSON (RFC 8259).  A cursor over bytes: whoever
 * knows what to expect asks for it, and skips the rest.  Nothing is allocated
 * but the strings that are asked for, so that a body cannot cost more memory
 * than its own size; depth is bounded, UTF-8 is checked, and a NUL character,
 * also an escaped one, is refused.
 *
 * All functions return SD_OK, or SD_ERROR with a 400 "invalid_json" whose
 * message tells the byte; param is the caller's to fill.  Any thread.
 */

#ifndef SD_JSON_READER_H
#define SD_JSON_READER_H

#include <stddef.h>

#include "../io/buf.h"
#include "../io/error.h"


#define SD_JSON_MAX_DEPTH  32


typedef struct {
    const char   *start, *p, *end;
    sd_error_t   *err;
} sd_json_t;


void sd_json_init(sd_json_t *j, const void *data, size_t size,
    sd_error_t *err);

/* the next character that is not white space, not consumed; '\0' at the end */
int sd_json_peek(sd_json_t *j);

/* consumes c after white space, or fails */
int sd_json_expect(sd_json_t *j, int c);

/* a string, decoded and appended to out; out: NULL just checks it */
int sd_json_string(sd_json_t *j, sd_buf_t *out);

/* a number, which may be too large for a double: then it is infinite */
int sd_json_number(sd_json_t *j, double *value);

/* "true", "false" or "null" */
int sd_json_word(sd_json_t *j, const char *word);

/* any value */
int sd_json_skip(sd_json_t *j, int depth);

/* nothing but white space may follow */
int sd_json_end(sd_json_t *j);

int sd_json_fail(sd_json_t *j, const char *what);


#endif
