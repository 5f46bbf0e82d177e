/*
 * Hostile JSON: see json.h.
 */

#include <string.h>

#include "../io/utf8.h"
#include "json.h"


/* where the guard is; key: the last member's name, as it is written */

typedef struct {
    const char   *start, *p, *end;
    const char   *key, *string;
    size_t        key_len, string_len;
} sd_json_guard_t;


static int
sd_json_fail(const sd_json_guard_t *g, const char *what, sd_error_t *err)
{
    char    param[64];
    size_t  n;

    n = g->key_len < sizeof(param) ? g->key_len : 0;

    if (n) {
        memcpy(param, g->key, n);
    }

    param[n] = '\0';

    return sd_error(err, 400, "invalid_json", param,
                    "the body is not valid JSON: %s at byte %zu", what,
                    (size_t) (g->p - g->start));
}


/* p stands behind the opening quote, and then behind the closing one */

static int
sd_json_guard_string(sd_json_guard_t *g, sd_error_t *err)
{
    size_t  n;

    g->string = g->p;

    while (g->p < g->end && *g->p != '"') {

        n = sd_utf8_length(g->p, g->end - g->p);

        if (n == 0) {
            return sd_json_fail(g, "invalid UTF-8", err);
        }

        if ((unsigned char) *g->p < 0x20) {
            return sd_json_fail(g, "a control character in a string", err);
        }

        if (*g->p == '\\') {

            if (g->end - g->p >= 6 && memcmp(g->p, "\\u0000", 6) == 0) {
                return sd_json_fail(g, "a NUL character", err);
            }

            /* the escaped character is no quote; cJSON knows the rest */
            n = g->end - g->p > 1 && (g->p[1] == '"' || g->p[1] == '\\')
                ? 2 : 1;
        }

        g->p += n;
    }

    if (g->p == g->end) {
        return sd_json_fail(g, "a string without an end", err);
    }

    g->string_len = g->p++ - g->string;

    return SD_OK;
}


static int
sd_json_guard(sd_json_guard_t *g, sd_error_t *err)
{
    int  depth, values;

    depth = 0;
    values = 0;

    while (g->p < g->end) {

        switch (*g->p++) {

        case '"':
            if (sd_json_guard_string(g, err) != SD_OK) {
                return SD_ERROR;
            }

            continue;

        case ':':
            g->key = g->string;
            g->key_len = g->string_len;
            continue;

        case '{':
        case '[':
            if (++depth > SD_JSON_MAX_DEPTH) {
                return sd_json_fail(g, "too deep a nesting", err);
            }

            break;

        case '}':
        case ']':
            depth--;
            g->key_len = 0;
            continue;

        case ',':
            g->key_len = 0;
            break;

        case '\0':
            return sd_json_fail(g, "a NUL character", err);

        default:
            continue;
        }

        if (++values > SD_JSON_MAX_VALUES) {
            return sd_json_fail(g, "too many values", err);
        }
    }

    return SD_OK;
}


int
sd_json_parse(cJSON **json, const char *data, size_t size, sd_error_t *err)
{
    const char       *p;
    sd_json_guard_t   g = { data, data, data + size, NULL, NULL, 0, 0 };

    *json = NULL;

    if (size == 0) {
        return sd_json_fail(&g, "nothing", err);
    }

    if (sd_json_guard(&g, err) != SD_OK) {
        return SD_ERROR;
    }

    p = data;

    *json = cJSON_ParseWithLengthOpts(data, size, &p, 0);

    /* nothing but white space may follow */

    while (*json && p < g.end && strchr(" \t\r\n", *p)) {
        p++;
    }

    if (*json && p == g.end) {
        return SD_OK;
    }

    cJSON_Delete(*json);
    *json = NULL;

    /* once more up to there, for the member's name */

    g.p = data;
    g.end = p;
    (void) sd_json_guard(&g, NULL);

    g.p = p;

    return sd_json_fail(&g, "an unexpected character", err);
}
