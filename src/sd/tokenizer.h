/*
 * CLIP's tokenizer: byte-level BPE over lower-cased, NFC, whitespace-cleaned
 * text, equal to transformers' CLIPTokenizer (fast).  Immutable after opening,
 * any thread.
 */

#ifndef SD_TOKENIZER_H
#define SD_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#include "../io/error.h"


typedef struct sd_tokenizer_s  sd_tokenizer_t;

/* dir: holds vocab.json and merges.txt, or tokenizer.json */
int sd_tokenizer_open(sd_tokenizer_t **t, const char *dir, sd_error_t *err);
void sd_tokenizer_close(sd_tokenizer_t *t);

/*
 * text: valid UTF-8 of len bytes.  ids: [max], filled with begin, the tokens,
 * end, and padding up to max (77).  *tokens: how many the text would have
 * needed, begin and end included, so that *tokens > max means it was cut.
 */
int sd_tokenizer_encode(const sd_tokenizer_t *t, const char *text, size_t len,
    int32_t *ids, int max, int *tokens, sd_error_t *err);

int sd_tokenizer_vocab_size(const sd_tokenizer_t *t);
int sd_tokenizer_eos(const sd_tokenizer_t *t);


#endif
