/*
 * UTF-8: see utf8.h.
 */

#include "utf8.h"


size_t
sd_utf8_length(const char *s, size_t n)
{
    size_t          i, len;
    uint32_t        c, min;
    const uint8_t  *p = (const uint8_t *) s;

    if (n == 0) {
        return 0;
    }

    if (p[0] < 0x80) {
        return 1;
    }

    if (p[0] < 0xc2 || p[0] > 0xf4) {
        return 0;
    }

    len = p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    min = len == 2 ? 0x80 : len == 3 ? 0x800 : 0x10000;

    if (len > n) {
        return 0;
    }

    c = p[0] & (0x7f >> len);

    for (i = 1; i < len; i++) {
        if ((p[i] & 0xc0) != 0x80) {
            return 0;
        }

        c = c << 6 | (p[i] & 0x3f);
    }

    return c < min || c > 0x10ffff || (c >= 0xd800 && c < 0xe000) ? 0 : len;
}


size_t
sd_utf8_encode(char *dst, uint32_t c)
{
    if (c < 0x80) {
        dst[0] = c;
        return 1;
    }

    if (c < 0x800) {
        dst[0] = 0xc0 | c >> 6;
        dst[1] = 0x80 | (c & 0x3f);
        return 2;
    }

    if (c >= 0xd800 && c < 0xe000) {
        return 0;
    }

    if (c < 0x10000) {
        dst[0] = 0xe0 | c >> 12;
        dst[1] = 0x80 | (c >> 6 & 0x3f);
        dst[2] = 0x80 | (c & 0x3f);
        return 3;
    }

    if (c > 0x10ffff) {
        return 0;
    }

    dst[0] = 0xf0 | c >> 18;
    dst[1] = 0x80 | (c >> 12 & 0x3f);
    dst[2] = 0x80 | (c >> 6 & 0x3f);
    dst[3] = 0x80 | (c & 0x3f);

    return 4;
}


int
sd_utf8_valid(const char *s, size_t n)
{
    size_t  i, len;

    for (i = 0; i < n; i += len) {
        len = sd_utf8_length(s + i, n - i);

        if (len == 0) {
            return 0;
        }
    }

    return 1;
}
