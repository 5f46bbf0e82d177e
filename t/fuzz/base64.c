/*
 * Base64: what is decoded is encoded to the same text, but for white space and
 * padding, and decodes to the same bytes again.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../src/io/base64.h"


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char     *text;
    size_t    i, j, len;
    ssize_t   n, again;
    uint8_t  *bytes, *copy;

    /* no byte more than promised: a sanitizer sees it */

    bytes = malloc(sd_base64_decoded_size(size) + 1);
    n = sd_base64_decode(bytes, (const char *) data, size);

    if (n >= 0) {
        if ((size_t) n > sd_base64_decoded_size(size)) {
            __builtin_trap();
        }

        len = sd_base64_encoded_size((size_t) n);
        text = malloc(len + 1);
        copy = malloc(sd_base64_decoded_size(len) + 1);

        if (sd_base64_encode(text, bytes, n) != len) {
            __builtin_trap();
        }

        for (i = j = 0; i < size && j < len; i++) {
            if (strchr(" \t\r\n", data[i]) && data[i]) {
                continue;
            }

            if (data[i] != (uint8_t) text[j++]) {
                __builtin_trap();
            }
        }

        again = sd_base64_decode(copy, text, len);

        if (again != n || memcmp(copy, bytes, n) != 0) {
            __builtin_trap();
        }

        free(text);
        free(copy);
    }

    free(bytes);

    return 0;
}
