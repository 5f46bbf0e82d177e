/*
 * A picture's state: what is accepted is written as a file that reads back to
 * the same, and fits itself.
 */

#include <stdlib.h>
#include <string.h>

#include "../../src/sd/state.h"


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sd_buf_t          b = { 0 };
    sd_state_t        s, back;
    sd_error_t        err;
    sd_state_flags_t  flags;

    if (sd_state_read(&s, data, size, &err) != SD_OK) {
        if (err.status != 400 && err.status != 409 && err.status != 500) {
            __builtin_trap();
        }

        return 0;
    }

    if (sd_state_check(&s, &s, &flags, &err) != SD_OK) {
        __builtin_trap();
    }

    if (s.version) {
        if (sd_state_write(&b, &s, &err) != SD_OK
            || sd_state_read(&back, b.data, b.len, &err) != SD_OK
            || sd_state_check(&back, &s, &flags, &err) != SD_OK
            || flags.branched || flags.inexact || back.seed != s.seed
            || memcmp(back.latents, s.latents,
                      sizeof(float) * s.c * s.h * s.w) != 0)
        {
            __builtin_trap();
        }

        sd_state_free(&back);
        sd_buf_free(&b);
    }

    sd_state_free(&s);

    return 0;
}
