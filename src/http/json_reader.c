/*
 * The strict JSON reader: see json_reader.h.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../io/utf8.h"
#include "json_reader.h"


void
sd_json_init(sd_json_t *j, const void *data, size_t size, sd_error_t *err)
{
    j->start = data;
    j->p = data;
    j->end = j->p + size;
    j->err = err;
}


int
sd_json_fail(sd_json_t *j, const char *what)
{
    return sd_error(j->err, 400, "invalid_json", NULL,
                    "the body is not valid JSON: %s at byte %zu", what,
                    (size_t) (j->p - j->start));
}


int
sd_json_peek(sd_json_t *j)
{
    while (j->p < j->end
           && (*j->p == ' ' || *j->p == '\t' || *j->p == '\n'
               || *j->p == '\r'))
    {
        j->p++;
    }

    return j->p < j->end ? (unsigned char) *j->p : '\0';
}


int
sd_json_expect(sd_json_t *j, int c)
{
    char  what[] = "expected \"?\"";

    if (sd_json_peek(j) != c || j->p == j->end) {
        what[10] = c;
        return sd_json_fail(j, what);
    }

    j->p++;

    return SD_OK;
}


int
sd_json_end(sd_json_t *j)
{
    (void) sd_json_peek(j);

    if (j->p != j->end) {
        return sd_json_fail(j, "trailing garbage");
    }

    return SD_OK;
}


int
sd_json_word(sd_json_t *j, const char *word)
{
    size_t  n;

    n = strlen(word);

    (void) sd_json_peek(j);

    if ((size_t) (j->end - j->p) < n || memcmp(j->p, word, n) != 0) {
        return sd_json_fail(j, "unknown word");
    }

    j->p += n;

    return SD_OK;
}


/* the four digits after \u */

static int
sd_json_hex(sd_json_t *j, uint32_t *c)
{
    int  i, d;

    if (j->end - j->p < 4) {
        return sd_json_fail(j, "a cut escape");
    }

    *c = 0;

    for (i = 0; i < 4; i++) {
        d = *j->p;

        if (d >= '0' && d <= '9') {
            d -= '0';

        } else if ((d | 0x20) >= 'a' && (d | 0x20) <= 'f') {
            d = (d | 0x20) - 'a' + 10;

        } else {
            return sd_json_fail(j, "a wrong escape");
        }

        *c = *c << 4 | d;
        j->p++;
    }

    return SD_OK;
}


static int
sd_json_escape(sd_json_t *j, sd_buf_t *out)
{
    char                 utf8[4];
    uint32_t             c, low;
    const char          *at;
    static const char    from[] = "\"\\/bfnrt";
    static const char    to[] = "\"\\/\b\f\n\r\t";

    if (j->p == j->end) {
        return sd_json_fail(j, "a cut escape");
    }

    if (*j->p != 'u') {
        at = memchr(from, *j->p, sizeof(from) - 1);
        if (at == NULL) {
            return sd_json_fail(j, "a wrong escape");
        }

        j->p++;

        if (out) {
            sd_buf_append(out, &to[at - from], 1);
        }

        return SD_OK;
    }

    j->p++;

    if (sd_json_hex(j, &c) != SD_OK) {
        return SD_ERROR;
    }

    if (c == 0) {
        return sd_json_fail(j, "a NUL character in a string");
    }

    if (c >= 0xd800 && c <= 0xdfff) {
        if (c > 0xdbff || j->end - j->p < 2 || j->p[0] != '\\'
            || j->p[1] != 'u')
        {
            return sd_json_fail(j, "half a surrogate pair");
        }

        j->p += 2;

        if (sd_json_hex(j, &low) != SD_OK) {
            return SD_ERROR;
        }

        if (low < 0xdc00 || low > 0xdfff) {
            return sd_json_fail(j, "half a surrogate pair");
        }

        c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
    }

    if (out) {
        sd_buf_append(out, utf8, sd_utf8_encode(utf8, c));
    }

    return SD_OK;
}


int
sd_json_string(sd_json_t *j, sd_buf_t *out)
{
    size_t       len;
    const char  *run;

    if (sd_json_expect(j, '"') != SD_OK) {
        return SD_ERROR;
    }

    run = j->p;

    for ( ;; ) {
        if (j->p == j->end) {
            return sd_json_fail(j, "a string without end");
        }

        if (*j->p == '"' || *j->p == '\\') {
            if (out) {
                sd_buf_append(out, run, j->p - run);
            }

            if (*j->p++ == '"') {
                break;
            }

            if (sd_json_escape(j, out) != SD_OK) {
                return SD_ERROR;
            }

            run = j->p;
            continue;
        }

        if ((unsigned char) *j->p < 0x20) {
            return sd_json_fail(j, "a control character in a string");
        }

        len = sd_utf8_length(j->p, j->end - j->p);
        if (len == 0) {
            return sd_json_fail(j, "invalid UTF-8");
        }

        j->p += len;
    }

    if (out && out->failed) {
        return sd_fail(j->err, "no memory for a string");
    }

    return SD_OK;
}


/* -? (0 | [1-9][0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)? */

int
sd_json_number(sd_json_t *j, double *value)
{
    char         buf[128];
    size_t       n;
    const char  *p, *end, *digits;

    (void) sd_json_peek(j);

    p = j->p;
    end = j->end;

#define sd_digits()                                                           \
    for (digits = p; p < end && *p >= '0' && *p <= '9'; p++) { /* void */ }

    if (p < end && *p == '-') {
        p++;
    }

    sd_digits();

    if (p == digits || (*digits == '0' && p - digits > 1)) {
        return sd_json_fail(j, "not a number");
    }

    if (p < end && *p == '.') {
        p++;
        sd_digits();

        if (p == digits) {
            return sd_json_fail(j, "not a number");
        }
    }

    if (p < end && (*p == 'e' || *p == 'E')) {
        p++;

        if (p < end && (*p == '+' || *p == '-')) {
            p++;
        }

        sd_digits();

        if (p == digits) {
            return sd_json_fail(j, "not a number");
        }
    }

#undef sd_digits

    n = p - j->p;

    if (n >= sizeof(buf)) {
        return sd_json_fail(j, "a number with too many digits");
    }

    memcpy(buf, j->p, n);
    buf[n] = '\0';

    *value = strtod(buf, NULL);
    j->p = p;

    return SD_OK;
}


int
sd_json_skip(sd_json_t *j, int depth)
{
    int     c, close;
    double  ignored;

    if (depth > SD_JSON_MAX_DEPTH) {
        return sd_json_fail(j, "nested too deeply");
    }

    c = sd_json_peek(j);

    switch (c) {

    case '"':
        return sd_json_string(j, NULL);

    case 't':
        return sd_json_word(j, "true");

    case 'f':
        return sd_json_word(j, "false");

    case 'n':
        return sd_json_word(j, "null");

    case '{':
    case '[':
        break;

    default:
        return sd_json_number(j, &ignored);
    }

    close = c == '{' ? '}' : ']';
    j->p++;

    if (sd_json_peek(j) == close) {
        j->p++;
        return SD_OK;
    }

    for ( ;; ) {
        if (close == '}'
            && (sd_json_string(j, NULL) != SD_OK
                || sd_json_expect(j, ':') != SD_OK))
        {
            return SD_ERROR;
        }

        if (sd_json_skip(j, depth + 1) != SD_OK) {
            return SD_ERROR;
        }

        if (sd_json_peek(j) != ',') {
            return sd_json_expect(j, close);
        }

        j->p++;
    }
}
