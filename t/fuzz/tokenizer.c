/*
 * A prompt, with the embedded model's tokenizer: every id is in the vocabulary,
 * and cutting changes none of those before the cut.  Runs in the repository's
 * root.
 */

#include <string.h>

#include "../../src/io/utf8.h"
#include "../../src/sd/tokenizer.h"


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int         i, n, cut;
    int32_t     ids[256], few[77];
    sd_error_t  err;

    static sd_tokenizer_t  *t;

    if (t == NULL
        && sd_tokenizer_open(&t, "model/tokenizer", &err) != SD_OK)
    {
        __builtin_trap();
    }

    if (sd_tokenizer_encode(t, (const char *) data, size, ids, 256, &n, &err)
        != SD_OK)
    {
        if (sd_utf8_valid((const char *) data, size)) {
            __builtin_trap();
        }

        return 0;
    }

    if (sd_tokenizer_encode(t, (const char *) data, size, few, 77, &cut, &err)
        != SD_OK || cut != n || n < 2)
    {
        __builtin_trap();
    }

    for (i = 0; i < 256; i++) {
        if (ids[i] < 0 || ids[i] >= sd_tokenizer_vocab_size(t)
            || (i < 76 && i < n && ids[i] != few[i]))
        {
            __builtin_trap();
        }
    }

    if (few[n < 77 ? n - 1 : 76] != sd_tokenizer_eos(t)) {
        __builtin_trap();
    }

    return 0;
}
