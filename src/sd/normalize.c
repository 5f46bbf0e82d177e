/*
 * Text as CLIP's tokenizer wants it: see normalize.h.
 */

#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "../io/utf8.h"
#include "normalize.h"


/* no character has a longer canonical decomposition */

#define SD_DECOMPOSED_MAX  4


sd_char_class_t
sd_char_class(uint32_t c)
{
    if ((c >= 0x09 && c <= 0x0d) || c == 0x85) {
        return SD_CHAR_SPACE;
    }

    switch (utf8proc_category((utf8proc_int32_t) c)) {

    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
        return SD_CHAR_SPACE;

    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
        return SD_CHAR_LETTER;

    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
        return SD_CHAR_NUMBER;

    default:
        return SD_CHAR_OTHER;
    }
}


uint32_t
sd_char_next(const char *s, size_t *n)
{
    const unsigned char  *p;

    p = (const unsigned char *) s;

    if (p[0] < 0x80) {
        *n = 1;
        return p[0];
    }

    if (p[0] < 0xe0) {
        *n = 2;
        return (p[0] & 0x1f) << 6 | (p[1] & 0x3f);
    }

    if (p[0] < 0xf0) {
        *n = 3;
        return (p[0] & 0x0f) << 12 | (p[1] & 0x3f) << 6 | (p[2] & 0x3f);
    }

    *n = 4;
    return (p[0] & 0x07) << 18 | (p[1] & 0x3f) << 12 | (p[2] & 0x3f) << 6
           | (p[3] & 0x3f);
}


/*
 * canonical order: a run of combining marks sorted by class, in the order that
 * they came within each.  A counting sort, as a run may be a whole prompt.
 */

static void
sd_normalize_order(utf8proc_int32_t *c, utf8proc_int32_t *tmp, size_t n)
{
    size_t  i, at, start[256], count;

    memset(start, 0, sizeof(start));

    for (i = 0; i < n; i++) {
        start[utf8proc_get_property(c[i])->combining_class & 255]++;
    }

    at = 0;

    for (i = 0; i < 256; i++) {
        count = start[i];
        start[i] = at;
        at += count;
    }

    for (i = 0; i < n; i++) {
        tmp[start[utf8proc_get_property(c[i])->combining_class & 255]++]
            = c[i];
    }

    memcpy(c, tmp, n * sizeof(utf8proc_int32_t));
}


/* c: [n] in, the composed text out; tmp: [n].  Returns its length */

static size_t
sd_normalize_compose(utf8proc_int32_t *c, utf8proc_int32_t *tmp, size_t n)
{
    size_t              i, run;
    utf8proc_ssize_t    len;

    for (i = 0; i < n; i += run + 1) {

        for (run = 0; i + run < n; run++) {
            if (utf8proc_get_property(c[i + run])->combining_class == 0) {
                break;
            }
        }

        if (run > 1) {
            sd_normalize_order(c + i, tmp, run);
        }
    }

    len = utf8proc_normalize_utf32(c, n, UTF8PROC_COMPOSE|UTF8PROC_STABLE);

    return len < 0 ? n : (size_t) len;
}


/* appends c in lower case; white space becomes one space, once a run */

static void
sd_normalize_put(sd_buf_t *out, uint32_t c, int *space)
{
    char  s[4];

    if (sd_char_class(c) == SD_CHAR_SPACE) {
        if (!*space) {
            sd_buf_append(out, " ", 1);
        }

        *space = 1;
        return;
    }

    *space = 0;

    /* the only lower case of several characters */

    if (c == 0x130) {
        sd_buf_append(out, "i\xcc\x87", 3);
        return;
    }

    c = (uint32_t) utf8proc_tolower((utf8proc_int32_t) c);
    sd_buf_append(out, s, sd_utf8_encode(s, c));
}


int
sd_normalize(sd_buf_t *out, const char *text, size_t len, sd_error_t *err)
{
    int                  space, boundary;
    size_t               i, n, used;
    utf8proc_int32_t    *c, *tmp;
    utf8proc_ssize_t     rc;

    if (len > SD_TEXT_MAX) {
        return sd_error(err, 400, "invalid_value", "prompt",
                        "a prompt has at most %d bytes", SD_TEXT_MAX);
    }

    if (!sd_utf8_valid(text, len)) {
        return sd_error(err, 400, "invalid_value", "prompt",
                        "a prompt must be valid UTF-8");
    }

    space = 0;

    for (i = 0; i < len && (unsigned char) text[i] < 0x80; i++) { /* void */ }

    if (i == len) {
        for (i = 0; i < len; i++) {
            sd_normalize_put(out, (unsigned char) text[i], &space);
        }

        goto done;
    }

    n = 0;

    for (i = 0; i < len; i++) {
        n += ((unsigned char) text[i] & 0xc0) != 0x80;
    }

    n *= SD_DECOMPOSED_MAX;

    c = malloc(n * sizeof(utf8proc_int32_t));
    tmp = malloc(n * sizeof(utf8proc_int32_t));

    if (c == NULL || tmp == NULL) {
        free(c);
        free(tmp);
        return sd_fail(err, "no memory for a prompt");
    }

    used = 0;

    while (len) {
        rc = utf8proc_decompose_char((utf8proc_int32_t) sd_char_next(text, &i),
                                     c + used, n - used,
                                     UTF8PROC_DECOMPOSE|UTF8PROC_STABLE,
                                     &boundary);

        if (rc < 0 || (size_t) rc > n - used) {
            free(c);
            free(tmp);
            return sd_fail(err, "a prompt cannot be decomposed");
        }

        used += rc;
        text += i;
        len -= i;
    }

    used = sd_normalize_compose(c, tmp, used);

    for (i = 0; i < used; i++) {
        sd_normalize_put(out, (uint32_t) c[i], &space);
    }

    free(c);
    free(tmp);

done:

    return out->failed ? sd_fail(err, "no memory for a prompt") : SD_OK;
}
