/*
 * Base64: see base64.h.
 */

#include <stdint.h>

#include "base64.h"
#include "error.h"


size_t
sd_base64_encode(char *dst, const void *src, size_t n)
{
    static const char  set[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                               "abcdefghijklmnopqrstuvwxyz0123456789+/";

    char           *d = dst;
    uint32_t        v;
    const uint8_t  *s = src;

    for ( ; n >= 3; n -= 3, s += 3) {
        v = s[0] << 16 | s[1] << 8 | s[2];
        *d++ = set[v >> 18];
        *d++ = set[v >> 12 & 63];
        *d++ = set[v >> 6 & 63];
        *d++ = set[v & 63];
    }

    if (n) {
        v = s[0] << 16 | (n == 2 ? s[1] << 8 : 0);
        *d++ = set[v >> 18];
        *d++ = set[v >> 12 & 63];
        *d++ = n == 2 ? set[v >> 6 & 63] : '=';
        *d++ = '=';
    }

    return d - dst;
}


/* the value of a character, 64 for white space, 65 for '=', 66 for none */

static unsigned
sd_base64_value(unsigned char c)
{
    if (c >= 'A' && c <= 'Z') {
        return c - 'A';
    }

    if (c >= 'a' && c <= 'z') {
        return c - 'a' + 26;
    }

    if (c >= '0' && c <= '9') {
        return c - '0' + 52;
    }

    switch (c) {
    case '+':
        return 62;
    case '/':
        return 63;
    case ' ':
    case '\t':
    case '\r':
    case '\n':
        return 64;
    case '=':
        return 65;
    default:
        return 66;
    }
}


ssize_t
sd_base64_decode(void *dst, const char *src, size_t n)
{
    size_t     i;
    uint8_t   *d = dst;
    uint32_t   v = 0;
    unsigned   c, have = 0, pad = 0;

    for (i = 0; i < n; i++) {
        c = sd_base64_value(src[i]);

        if (c == 64) {
            continue;
        }

        if (c == 65) {
            pad++;
            continue;
        }

        if (c == 66 || pad) {
            return SD_ERROR;
        }

        v = v << 6 | c;

        if (++have == 4) {
            *d++ = v >> 16;
            *d++ = v >> 8;
            *d++ = v;
            have = 0;
        }
    }

    /* what is left must be whole bytes, and its spare bits zero */

    if ((pad && (have < 2 || have + pad != 4)) || have == 1) {
        return SD_ERROR;
    }

    if (have == 2) {
        if (v & 15) {
            return SD_ERROR;
        }

        *d++ = v >> 4;

    } else if (have == 3) {
        if (v & 3) {
            return SD_ERROR;
        }

        *d++ = v >> 10;
        *d++ = v >> 2;
    }

    return d - (uint8_t *) dst;
}
