/*
 * Hostile JSON (RFC 8259) to cJSON's tree.  cJSON parses; the guard before it
 * refuses what cJSON would let pass or pay too much for: invalid UTF-8, NUL
 * characters, raw control characters in strings, deep nesting, and more values
 * than any request of ours has, each of which would cost an allocation.
 */

#ifndef SD_JSON_H
#define SD_JSON_H

#include <stddef.h>
#include <cjson/cJSON.h>

#include "../io/error.h"


#define SD_JSON_MAX_DEPTH   32
#define SD_JSON_MAX_VALUES  1024


/*
 * *json is the caller's to delete.  Errors are 400 "invalid_json"; param names
 * the member where that is known.  Any thread.
 */
int sd_json_parse(cJSON **json, const char *data, size_t size,
    sd_error_t *err);


#endif
