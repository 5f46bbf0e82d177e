/*
 * The index of a checkpoint in shards; two shards of a tensor each are there.
 * What is opened has every tensor that it should, readable.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../src/io/file.h"
#include "../../src/io/safetensors.h"


static char  dir[64];


static void
clean(void)
{
    char  command[128];

    snprintf(command, sizeof(command), "rm -r %s", dir);

    if (system(command) != 0) {
        fprintf(stderr, "%s stays\n", dir);
    }
}


static void
prepare(void)
{
    int          i;
    char         path[128];
    sd_buf_t     b;
    sd_error_t   err;
    sd_st_out_t  out;

    static const float         values[] = { 1, 2, 3, 4 };
    static const char *const   names[] = { "a", "b" };

    snprintf(dir, sizeof(dir), "/dev/shm/sd-fuzz-XXXXXX");

    if (mkdtemp(dir) == NULL) {
        __builtin_trap();
    }

    atexit(clean);

    for (i = 0; i < 2; i++) {
        memset(&b, 0, sizeof(sd_buf_t));
        memset(&out, 0, sizeof(sd_st_out_t));

        out.name = names[i];
        out.data = values;
        out.rank = 1;
        out.shape[0] = 4;

        snprintf(path, sizeof(path), "%s/%d.safetensors", dir, i);

        if (sd_safetensors_write(&b, &out, 1, NULL, 0, &err) != SD_OK
            || sd_file_write(path, b.data, b.len, &err) != SD_OK)
        {
            __builtin_trap();
        }

        sd_buf_free(&b);
    }
}


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char                   path[128];
    float                  f[4];
    size_t                 i;
    sd_error_t             err;
    sd_safetensors_t      *st;
    const sd_st_tensor_t  *t;

    if (dir[0] == '\0') {
        prepare();
    }

    snprintf(path, sizeof(path), "%s/x.safetensors.index.json", dir);

    if (sd_file_write(path, data, size, &err) != SD_OK) {
        __builtin_trap();
    }

    if (sd_safetensors_open(&st, dir, "x", &err) != SD_OK) {
        if (err.message[0] == '\0') {
            __builtin_trap();
        }

        return 0;
    }

    for (i = 0; i < sd_safetensors_count(st); i++) {
        t = sd_safetensors_get(st, i);

        if (t->count != 4
            || sd_safetensors_read_f32(st, t, f, &err) != SD_OK)
        {
            __builtin_trap();
        }
    }

    sd_safetensors_close(st);

    return 0;
}
