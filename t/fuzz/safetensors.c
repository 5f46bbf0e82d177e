/*
 * A safetensors file: what is accepted must be readable to its last byte.
 */

#include <stdlib.h>
#include <string.h>

#include "../../src/io/safetensors.h"


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    float                 *f;
    size_t                 i, n;
    sd_error_t             err;
    sd_safetensors_t      *st;
    const sd_st_tensor_t  *t;

    if (sd_safetensors_parse(&st, data, size, &err) != SD_OK) {
        return 0;
    }

    n = sd_safetensors_count(st);

    for (i = 0; i < n; i++) {
        t = sd_safetensors_get(st, i);

        if (t->offset > size || t->size > size - t->offset
            || sd_safetensors_find(st, t->name) != t)
        {
            __builtin_trap();
        }

        if (sd_type_size(t->type) == 0 || t->type == SD_U8
            || t->type == SD_I32)
        {
            continue;
        }

        if (t->count > size) {
            __builtin_trap();
        }

        f = malloc(t->count * sizeof(float) + 1);

        if (f && sd_safetensors_read_f32(st, t, f, &err) != SD_OK) {
            __builtin_trap();
        }

        free(f);
    }

    (void) sd_safetensors_meta(st, "sd_version");
    sd_safetensors_close(st);

    return 0;
}
