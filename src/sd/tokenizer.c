/*
 * CLIP's tokenizer: see tokenizer.h.
 *
 * A text goes through these, each function calling the next:
 *
 *   cut out the added tokens that are looked for in the text as it is
 *   normal form
 *   cut out the added tokens that are looked for in the normal form
 *   words: 's and the like, letters, one number, a run of anything else
 *   byte-level BPE of each word (Sennrich et al. 2016, Radford et al. 2019)
 *
 * The words are found by hand and not by a regular expression: the expression
 * is four character classes long, and this never backtracks.
 */

#include <stdlib.h>
#include <string.h>

#include "normalize.h"
#include "vocabulary.h"


/* one symbol of a word being merged: a list within an array */

typedef struct {
    int32_t    id;              /* -1: merged away */
    int32_t    prev, next;      /* -1: none */
} sd_bpe_symbol_t;


/* a merge that may be made: a heap of them, lowest rank and place first */

typedef struct {
    uint32_t   rank;
    int32_t    pos;
    int32_t    id;
} sd_bpe_merge_t;


typedef struct {
    const sd_tokenizer_t   *t;
    int32_t                *ids;
    int                     max;
    int                     count;      /* tokens so far, begin included */

    sd_bpe_symbol_t        *symbols;    /* [size] */
    sd_bpe_merge_t         *heap;       /* [3 * size] */
    size_t                  size;
    size_t                  nheap;

    sd_error_t             *err;
} sd_encoder_t;


static void
sd_encoder_put(sd_encoder_t *e, int32_t id)
{
    if (e->count < e->max - 1) {
        e->ids[e->count] = id;
    }

    e->count++;
}


static int
sd_bpe_before(const sd_bpe_merge_t *a, const sd_bpe_merge_t *b)
{
    return a->rank < b->rank || (a->rank == b->rank && a->pos < b->pos);
}


static void
sd_bpe_push(sd_encoder_t *e, int32_t left, int32_t right)
{
    size_t             i, up;
    sd_merge_t        *m;
    sd_bpe_merge_t     new;

    m = sd_merge_find(e->t, e->symbols[left].id, e->symbols[right].id);

    if (m->rank == UINT32_MAX) {
        return;
    }

    new.rank = m->rank;
    new.pos = left;
    new.id = m->id;

    for (i = e->nheap++; i; i = up) {
        up = (i - 1) / 2;

        if (!sd_bpe_before(&new, &e->heap[up])) {
            break;
        }

        e->heap[i] = e->heap[up];
    }

    e->heap[i] = new;
}


static sd_bpe_merge_t
sd_bpe_pop(sd_encoder_t *e)
{
    size_t          i, down;
    sd_bpe_merge_t  first, last;

    first = e->heap[0];
    last = e->heap[--e->nheap];

    for (i = 0; 2 * i + 1 < e->nheap; i = down) {
        down = 2 * i + 1;

        if (down + 1 < e->nheap
            && sd_bpe_before(&e->heap[down + 1], &e->heap[down]))
        {
            down++;
        }

        if (!sd_bpe_before(&e->heap[down], &last)) {
            break;
        }

        e->heap[i] = e->heap[down];
    }

    e->heap[i] = last;

    return first;
}


static int
sd_bpe_room(sd_encoder_t *e, size_t n)
{
    if (n <= e->size) {
        return SD_OK;
    }

    n = n < 64 ? 64 : n;

    free(e->symbols);
    free(e->heap);

    e->symbols = malloc(n * sizeof(sd_bpe_symbol_t));
    e->heap = malloc(3 * n * sizeof(sd_bpe_merge_t));
    e->size = n;

    if (e->symbols == NULL || e->heap == NULL) {
        e->size = 0;
        return sd_fail(e->err, "no memory for a prompt");
    }

    return SD_OK;
}


/*
 * word: n bytes.  Each merge is taken from the heap once and adds at most two,
 * so that long words take O(n log n).
 */

static int
sd_bpe(sd_encoder_t *e, const char *word, size_t n)
{
    size_t                 i;
    int32_t                right, at;
    sd_merge_t            *m;
    sd_bpe_merge_t         top;
    sd_bpe_symbol_t       *s;
    const unsigned char   *p;

    p = (const unsigned char *) word;

    if (sd_bpe_room(e, n) != SD_OK) {
        return SD_ERROR;
    }

    s = e->symbols;
    e->nheap = 0;

    for (i = 0; i < n; i++) {
        s[i].id = i + 1 < n ? e->t->byte_id[p[i]] : e->t->byte_end[p[i]];
        s[i].prev = (int32_t) i - 1;
        s[i].next = i + 1 < n ? (int32_t) i + 1 : -1;
    }

    for (i = 0; i + 1 < n; i++) {
        sd_bpe_push(e, (int32_t) i, (int32_t) i + 1);
    }

    while (e->nheap) {
        top = sd_bpe_pop(e);
        at = top.pos;

        if (s[at].id == -1 || s[at].next == -1) {
            continue;
        }

        right = s[at].next;
        m = sd_merge_find(e->t, s[at].id, s[right].id);

        /* one of the two has been merged since */

        if (m->rank == UINT32_MAX || m->id != top.id) {
            continue;
        }

        s[at].id = m->id;
        s[at].next = s[right].next;
        s[right].id = -1;

        if (s[at].next != -1) {
            s[s[at].next].prev = at;
            sd_bpe_push(e, at, s[at].next);
        }

        if (s[at].prev != -1) {
            sd_bpe_push(e, s[at].prev, at);
        }
    }

    for (at = 0; at != -1; at = s[at].next) {
        sd_encoder_put(e, s[at].id);
    }

    return SD_OK;
}


/* the length of the first of names that s begins with, or 0 */

static size_t
sd_word_prefix(const char *s, size_t n, const char *const *names)
{
    size_t  len;

    for ( ; *names; names++) {
        len = strlen(*names);

        if (len <= n && memcmp(s, *names, len) == 0) {
            return len;
        }
    }

    return 0;
}


/* s: n bytes in normal form, at a character that is no space; a word's length */

static size_t
sd_word(const char *s, size_t n)
{
    size_t           i, len;
    sd_char_class_t  class;

    static const char *const  endings[] = {
        "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", NULL
    };

    len = sd_word_prefix(s, n, endings);

    if (len) {
        return len;
    }

    class = sd_char_class(sd_char_next(s, &len));

    if (class == SD_CHAR_NUMBER) {
        return len;
    }

    for (i = len; i < n; i += len) {
        if (sd_char_class(sd_char_next(s + i, &len)) != class) {
            break;
        }
    }

    return i;
}


static int
sd_encode_words(sd_encoder_t *e, const char *s, size_t n)
{
    size_t  i, end, len;

    /* names that CLIP's expression knows; what it takes for one word is then
     * split again, by GPT-2's, which does not */

    static const char *const  names[] = {
        "<|startoftext|>", "<|endoftext|>", NULL
    };

    for (i = 0; i < n; i = end) {

        if (s[i] == ' ') {
            end = i + 1;
            continue;
        }

        end = i + sd_word_prefix(s + i, n - i, names);

        if (end == i) {
            end = i + sd_word(s + i, n - i);
        }

        for ( ; i < end; i += len) {
            len = sd_word(s + i, end - i);

            if (sd_bpe(e, s + i, len) != SD_OK) {
                return SD_ERROR;
            }
        }
    }

    return SD_OK;
}


/* the longest added token at s, of this kind; or NULL */

static const sd_added_token_t *
sd_encode_added(const sd_tokenizer_t *t, const char *s, size_t n,
    int normalized)
{
    size_t                   i;
    const sd_added_token_t  *a, *longest;

    longest = NULL;

    for (i = 0; i < t->nadded; i++) {
        a = &t->added[i];

        if (a->text[0] == s[0] && a->normalized == normalized && a->len <= n
            && (longest == NULL || a->len > longest->len)
            && memcmp(a->text, s, a->len) == 0)
        {
            longest = a;
        }
    }

    return longest;
}


/*
 * s: n bytes; normalized: of the normal form.  What lies between added tokens
 * goes on by itself.
 */

static int
sd_encode_text(sd_encoder_t *e, const char *s, size_t n, int normalized)
{
    int                      rc;
    size_t                   i, from;
    sd_buf_t                 b;
    const sd_added_token_t  *a;

    for (i = from = 0; i <= n; i++) {
        a = i < n ? sd_encode_added(e->t, s + i, n - i, normalized) : NULL;

        if (a == NULL && i < n) {
            continue;
        }

        rc = SD_OK;

        if (normalized) {
            rc = sd_encode_words(e, s + from, i - from);

        } else if (i > from) {
            memset(&b, 0, sizeof(sd_buf_t));
            rc = sd_normalize(&b, s + from, i - from, e->err);

            if (rc == SD_OK) {
                rc = sd_encode_text(e, b.data, b.len, 1);
            }

            sd_buf_free(&b);
        }

        if (rc != SD_OK) {
            return rc;
        }

        if (a) {
            sd_encoder_put(e, a->id);
            i += a->len - 1;
            from = i + 1;
        }
    }

    return SD_OK;
}


int
sd_tokenizer_encode(const sd_tokenizer_t *t, const char *text, size_t len,
    int32_t *ids, int max, int *tokens, sd_error_t *err)
{
    int           i, rc;
    sd_encoder_t  e;

    if (max < 2) {
        return sd_fail(err, "no room for tokens");
    }

    if (len > SD_TEXT_MAX) {
        return sd_error(err, 400, "invalid_value", "prompt",
                        "a prompt has at most %d bytes", SD_TEXT_MAX);
    }

    memset(&e, 0, sizeof(sd_encoder_t));

    e.t = t;
    e.ids = ids;
    e.max = max;
    e.err = err;

    sd_encoder_put(&e, t->bos);
    rc = sd_encode_text(&e, text, len, 0);

    free(e.symbols);
    free(e.heap);

    if (rc != SD_OK) {
        return rc;
    }

    i = e.count < max - 1 ? e.count : max - 1;
    ids[i++] = t->eos;

    for ( ; i < max; i++) {
        ids[i] = t->pad;
    }

    *tokens = e.count + 1;

    return SD_OK;
}


int
sd_tokenizer_vocab_size(const sd_tokenizer_t *t)
{
    return t->vocab_size;
}


int
sd_tokenizer_eos(const sd_tokenizer_t *t)
{
    return t->eos;
}
