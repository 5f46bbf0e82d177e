/*
 * A request's frame; the cookie is right where the input has 0x5a for it.
 */

#include <string.h>

#include "../../src/engine/frame.h"


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ssize_t       n;
    size_t        i;
    uint8_t       cookie[SD_COOKIE_SIZE];
    sd_str_t     *s;
    sd_error_t    err;
    sd_request_t  r;
    volatile int  sum;

    memset(cookie, 0x5a, SD_COOKIE_SIZE);

    n = sd_frame_parse_request(&r, data, size, cookie, &err);

    if (n > (ssize_t) size) {
        __builtin_trap();
    }

    if (n > 0) {
        s = &r.uri;

        for (sum = 0, i = 0; i < s->len; i++) {
            sum += s->data[i];
        }

        s = &r.id;

        for (i = 0; i < s->len; i++) {
            sum += s->data[i];
        }
    }

    return 0;
}
