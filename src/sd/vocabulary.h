/*
 * What a tokenizer knows: merges by pair, ids of bytes, added tokens.  Made by
 * vocabulary.c out of a model's files, read by tokenizer.c, immutable.
 */

#ifndef SD_VOCABULARY_H
#define SD_VOCABULARY_H

#include <stddef.h>
#include <stdint.h>

#include "../io/error.h"
#include "tokenizer.h"


typedef struct {
    uint64_t   pair;            /* left id << 32 | right id */
    uint32_t   rank;            /* 0 merges first; UINT32_MAX: a free place */
    int32_t    id;              /* what the two become */
} sd_merge_t;


/* a token that is looked for in the text itself, before anything else */

typedef struct {
    char      *text;            /* in normal form where normalized is set */
    size_t     len;
    int32_t    id;
    int        normalized;      /* looked for in normalized text */
} sd_added_token_t;


struct sd_tokenizer_s {
    sd_merge_t        *merges;          /* [nmerges], a power of two: open
                                           addressing, by sd_merge_find() */
    size_t             nmerges;
    int32_t            byte_id[256];    /* of a byte inside a word */
    int32_t            byte_end[256];   /* and as its last, "</w>" */
    sd_added_token_t  *added;
    size_t             nadded;
    int32_t            bos, eos, unk, pad;
    int                vocab_size;      /* the highest id + 1 */
};


/* the place of a pair, or the free one where it would be */

static inline sd_merge_t *
sd_merge_find(const sd_tokenizer_t *t, uint32_t left, uint32_t right)
{
    size_t    i;
    uint64_t  pair;

    pair = (uint64_t) left << 32 | right;
    i = (pair * 0x9e3779b97f4a7c15ULL) >> 32 & (t->nmerges - 1);

    while (t->merges[i].rank != UINT32_MAX && t->merges[i].pair != pair) {
        i = (i + 1) & (t->nmerges - 1);
    }

    return &t->merges[i];
}


#endif
