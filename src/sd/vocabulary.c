/*
 * Reading a tokenizer's files: see vocabulary.h.
 *
 * The tables are in tokenizer.json, or in vocab.json and merges.txt.  Which
 * tokens are special, what pads, and which further ones a text may name (such
 * as textual inversion adds) is in tokenizer_config.json,
 * special_tokens_map.json and added_tokens.json, each of which may be missing;
 * where they disagree, the order is transformers' own.
 *
 * JSON is limited to 64 MB by sd_json_read(), the rest by the limits below.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "../io/file.h"
#include "../io/utf8.h"
#include "normalize.h"
#include "vocabulary.h"


#define SD_VOCAB_MAX        (1024 * 1024)       /* tokens, and ids */
#define SD_MERGES_MAX       (1024 * 1024)
#define SD_MERGES_SIZE      (32 * 1024 * 1024)
#define SD_ADDED_MAX        1024
#define SD_ADDED_SIZE       1024                /* bytes of one */

#define SD_WORD_END         "</w>"


/* text to id, by open addressing; texts are those of the JSON tree */

typedef struct {
    const char   *text;
    int32_t       id;
} sd_vocab_entry_t;


typedef struct {
    const char         *dir;
    sd_tokenizer_t     *t;
    sd_error_t         *err;

    cJSON              *tables;         /* vocab.json or tokenizer.json */
    cJSON              *config;         /* NULL where there is no such file */
    cJSON              *special;
    cJSON              *added;

    const char         *file;           /* the tables' file, for errors */
    sd_vocab_entry_t   *vocab;          /* [nvocab], a power of two */
    size_t              nvocab;
    size_t              rank;           /* of the next merge */
} sd_loader_t;


static int
sd_loader_error(sd_loader_t *l, const char *file, const char *why)
{
    return sd_error(l->err, 500, "invalid_model", file, "%s/%s: %s", l->dir,
                    file, why);
}


static int
sd_loader_path(sd_loader_t *l, char *dst, size_t n, const char *file)
{
    return (size_t) snprintf(dst, n, "%s/%s", l->dir, file) < n
           && access(dst, F_OK) == 0;
}


/* *json stays NULL where the file is missing */

static int
sd_loader_json(sd_loader_t *l, cJSON **json, const char *file)
{
    char  path[4096];

    if (!sd_loader_path(l, path, sizeof(path), file)) {
        return SD_OK;
    }

    return sd_json_read(json, path, l->err);
}


static sd_vocab_entry_t *
sd_loader_place(sd_loader_t *l, const char *text)
{
    size_t       i;
    uint64_t     hash;
    const char  *p;

    hash = 0xcbf29ce484222325ULL;               /* FNV-1a */

    for (p = text; *p; p++) {
        hash = (hash ^ (unsigned char) *p) * 0x100000001b3ULL;
    }

    for (i = (hash ^ hash >> 32) & (l->nvocab - 1);
         l->vocab[i].text && strcmp(l->vocab[i].text, text) != 0;
         i = (i + 1) & (l->nvocab - 1))
    {
        /* void */
    }

    return &l->vocab[i];
}


/* a token's id, or -1 */

static int32_t
sd_loader_find(sd_loader_t *l, const char *text)
{
    sd_vocab_entry_t  *v;

    v = sd_loader_place(l, text);

    return v->text ? v->id : -1;
}


static void
sd_loader_saw(sd_loader_t *l, int32_t id)
{
    if (id >= l->t->vocab_size) {
        l->t->vocab_size = id + 1;
    }
}


static int
sd_loader_vocab(sd_loader_t *l, const cJSON *vocab)
{
    size_t             n;
    const cJSON       *item;
    sd_vocab_entry_t  *v;

    if (!cJSON_IsObject(vocab)) {
        return sd_loader_error(l, l->file, "there is no vocabulary");
    }

    n = 0;

    for (item = vocab->child; item; item = item->next) {
        n++;
    }

    if (n == 0 || n > SD_VOCAB_MAX) {
        return sd_loader_error(l, l->file, "no tokens, or too many");
    }

    for (l->nvocab = 16; l->nvocab < 2 * n; l->nvocab *= 2) { /* void */ }

    l->vocab = calloc(l->nvocab, sizeof(sd_vocab_entry_t));

    if (l->vocab == NULL) {
        return sd_fail(l->err, "no memory for a vocabulary");
    }

    for (item = vocab->child; item; item = item->next) {

        if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0)
            || item->valuedouble >= SD_VOCAB_MAX
            || item->valuedouble != (int32_t) item->valuedouble)
        {
            return sd_error(l->err, 500, "invalid_model", l->file,
                            "%s/%s: the id of token \"%.40s\" is no number "
                            "from 0 to %d", l->dir, l->file, item->string,
                            SD_VOCAB_MAX - 1);
        }

        v = sd_loader_place(l, item->string);
        v->text = item->string;
        v->id = (int32_t) item->valuedouble;

        sd_loader_saw(l, v->id);
    }

    return SD_OK;
}


static int
sd_loader_merges_alloc(sd_loader_t *l, const char *file, size_t n)
{
    size_t           i;
    sd_tokenizer_t  *t;

    t = l->t;

    if (n > SD_MERGES_MAX) {
        return sd_loader_error(l, file, "too many merges");
    }

    for (t->nmerges = 16; t->nmerges < 2 * n; t->nmerges *= 2) { /* void */ }

    t->merges = malloc(t->nmerges * sizeof(sd_merge_t));

    if (t->merges == NULL) {
        return sd_fail(l->err, "no memory for merges");
    }

    for (i = 0; i < t->nmerges; i++) {
        t->merges[i].rank = UINT32_MAX;
    }

    return SD_OK;
}


/* left and right are terminated; number: of the line or the element, from 1 */

static int
sd_loader_merge(sd_loader_t *l, const char *file, size_t number,
    const char *left, const char *right)
{
    char         *both;
    int32_t       a, b, ab;
    sd_merge_t   *m;

    both = malloc(strlen(left) + strlen(right) + 1);

    if (both == NULL) {
        return sd_fail(l->err, "no memory for merges");
    }

    strcpy(both, left);
    strcat(both, right);

    a = sd_loader_find(l, left);
    b = sd_loader_find(l, right);
    ab = sd_loader_find(l, both);

    free(both);

    if (a == -1 || b == -1 || ab == -1) {
        return sd_error(l->err, 500, "invalid_model", file,
                        "%s/%s: merge %zu, \"%.40s %.40s\": %s not in the "
                        "vocabulary", l->dir, file, number, left, right,
                        a == -1 ? "the left part is"
                        : b == -1 ? "the right part is" : "the result is");
    }

    /* of two that are the same the later one counts */

    m = sd_merge_find(l->t, (uint32_t) a, (uint32_t) b);
    m->pair = (uint64_t) (uint32_t) a << 32 | (uint32_t) b;
    m->rank = (uint32_t) l->rank++;
    m->id = ab;

    return SD_OK;
}


static int
sd_loader_merges_txt(sd_loader_t *l, char *text, size_t len)
{
    char    *p, *end, *right;
    size_t   i, lines;

    static const char  file[] = "merges.txt";

    if (memchr(text, '\0', len)) {
        return sd_loader_error(l, file, "has a zero byte");
    }

    lines = 1;

    for (i = 0; i < len; i++) {
        lines += text[i] == '\n';
    }

    if (sd_loader_merges_alloc(l, file, lines) != SD_OK) {
        return SD_ERROR;
    }

    for (i = 1, p = text; p; p = end, i++) {
        end = strchr(p, '\n');

        if (end) {
            *end++ = '\0';
        }

        p[strcspn(p, "\r")] = '\0';

        if (*p == '\0' || strncmp(p, "#version", 8) == 0) {
            continue;
        }

        right = strchr(p, ' ');

        if (right == NULL || strchr(right + 1, ' ')) {
            return sd_error(l->err, 500, "invalid_model", file,
                            "%s/%s: line %zu is no merge of two", l->dir, file,
                            i);
        }

        *right++ = '\0';

        if (sd_loader_merge(l, file, i, p, right) != SD_OK) {
            return SD_ERROR;
        }
    }

    return SD_OK;
}


/* ["a b", ...] or [["a", "b"], ...] */

static int
sd_loader_merges_json(sd_loader_t *l, const cJSON *merges)
{
    int           rc;
    char         *copy, *space;
    size_t        i;
    const cJSON  *item, *right;

    if (!cJSON_IsArray(merges)) {
        return sd_loader_error(l, l->file, "there are no merges");
    }

    i = 0;

    for (item = merges->child; item; item = item->next) {
        i++;
    }

    if (sd_loader_merges_alloc(l, l->file, i) != SD_OK) {
        return SD_ERROR;
    }

    i = 0;

    for (item = merges->child; item; item = item->next) {
        i++;

        if (cJSON_IsArray(item) && cJSON_IsString(item->child)
            && cJSON_IsString(right = item->child->next)
            && right->next == NULL)
        {
            if (sd_loader_merge(l, l->file, i, item->child->valuestring,
                                right->valuestring)
                != SD_OK)
            {
                return SD_ERROR;
            }

            continue;
        }

        if (!cJSON_IsString(item)
            || (space = strchr(item->valuestring, ' ')) == NULL
            || strchr(space + 1, ' '))
        {
            return sd_error(l->err, 500, "invalid_model", l->file,
                            "%s/%s: merge %zu is no merge of two", l->dir,
                            l->file, i);
        }

        copy = strdup(item->valuestring);

        if (copy == NULL) {
            return sd_fail(l->err, "no memory for merges");
        }

        space = copy + (space - item->valuestring);
        *space++ = '\0';

        rc = sd_loader_merge(l, l->file, i, copy, space);
        free(copy);

        if (rc != SD_OK) {
            return rc;
        }
    }

    return SD_OK;
}


static int
sd_loader_tables(sd_loader_t *l)
{
    int           rc;
    char          path[4096];
    sd_buf_t      merges = { 0 };
    const cJSON  *model, *item;

    l->file = "tokenizer.json";

    if (sd_loader_json(l, &l->tables, l->file) != SD_OK) {
        return SD_ERROR;
    }

    if (l->tables) {
        model = cJSON_GetObjectItemCaseSensitive(l->tables, "model");
        item = cJSON_GetObjectItemCaseSensitive(model, "type");

        if (item && !cJSON_IsNull(item)
            && (!cJSON_IsString(item) || strcmp(item->valuestring, "BPE")))
        {
            return sd_loader_error(l, l->file, "the model is not BPE");
        }

        item = cJSON_GetObjectItemCaseSensitive(model, "end_of_word_suffix");

        if (!cJSON_IsString(item) || strcmp(item->valuestring, SD_WORD_END)) {
            return sd_loader_error(l, l->file, "\"end_of_word_suffix\" is not "
                                   "\"" SD_WORD_END "\", as CLIP's is");
        }

        if (sd_loader_vocab(l, cJSON_GetObjectItemCaseSensitive(model,
                                                                "vocab"))
            != SD_OK)
        {
            return SD_ERROR;
        }

        return sd_loader_merges_json(l,
                       cJSON_GetObjectItemCaseSensitive(model, "merges"));
    }

    l->file = "vocab.json";

    if (snprintf(path, sizeof(path), "%s/%s", l->dir, l->file)
        >= (int) sizeof(path))
    {
        return sd_loader_error(l, l->file, "the path is too long");
    }

    if (sd_json_read(&l->tables, path, l->err) != SD_OK
        || sd_loader_vocab(l, l->tables) != SD_OK)
    {
        return SD_ERROR;
    }

    (void) sd_loader_path(l, path, sizeof(path), "merges.txt");

    rc = sd_file_read(&merges, path, SD_MERGES_SIZE, l->err);

    if (rc == SD_OK) {
        rc = sd_loader_merges_txt(l, merges.data, merges.len);
    }

    sd_buf_free(&merges);

    return rc;
}


/*
 * the alphabet of byte-level BPE: printable bytes are themselves, the others
 * characters from U+0100 on
 */

static void
sd_loader_bytes(sd_loader_t *l)
{
    int       b, next;
    char      text[4 + sizeof(SD_WORD_END)];
    size_t    n;
    int32_t   id;

    next = 0x100;

    for (b = 0; b < 256; b++) {

        if ((b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b != 0xad)) {
            n = sd_utf8_encode(text, b);

        } else {
            n = sd_utf8_encode(text, next++);
        }

        text[n] = '\0';
        id = sd_loader_find(l, text);
        l->t->byte_id[b] = id == -1 ? l->t->unk : id;

        strcpy(text + n, SD_WORD_END);
        id = sd_loader_find(l, text);
        l->t->byte_end[b] = id == -1 ? l->t->unk : id;
    }
}


static sd_added_token_t *
sd_loader_added_find(sd_loader_t *l, const char *text)
{
    size_t  i;

    for (i = 0; i < l->t->nadded; i++) {
        if (strcmp(l->t->added[i].text, text) == 0) {
            return &l->t->added[i];
        }
    }

    return NULL;
}


/* id: -1 for none; a token of the vocabulary keeps the id that it has there */

static int
sd_loader_add(sd_loader_t *l, const char *file, const char *text, double id,
    int normalized)
{
    int32_t            known;
    sd_tokenizer_t    *t;
    sd_added_token_t  *a;

    t = l->t;

    if (*text == '\0') {
        return SD_OK;
    }

    a = sd_loader_added_find(l, text);

    if (a) {
        a->normalized = normalized;
        return SD_OK;
    }

    if (strlen(text) > SD_ADDED_SIZE || t->nadded == SD_ADDED_MAX) {
        return sd_loader_error(l, file, "an added token is too long, or there "
                               "are too many");
    }

    known = sd_loader_find(l, text);

    if (known == -1) {
        if (!(id >= 0 && id < SD_VOCAB_MAX && id == (int32_t) id)) {
            return sd_error(l->err, 500, "invalid_model", file,
                            "%s/%s: token \"%.40s\" is not in the vocabulary",
                            l->dir, file, text);
        }

        known = (int32_t) id;
    }

    if (t->added == NULL) {
        t->added = calloc(SD_ADDED_MAX, sizeof(sd_added_token_t));
    }

    if (t->added == NULL) {
        return sd_fail(l->err, "no memory for tokens");
    }

    a = &t->added[t->nadded];
    a->text = strdup(text);

    if (a->text == NULL) {
        return sd_fail(l->err, "no memory for tokens");
    }

    a->id = known;
    a->normalized = normalized;
    t->nadded++;

    sd_loader_saw(l, known);

    return SD_OK;
}


/* a token as a string, or as an object with "content"; id: as for add() */

static int
sd_loader_add_json(sd_loader_t *l, const char *file, const cJSON *token,
    double id)
{
    const cJSON  *content;

    if (cJSON_IsString(token)) {
        return sd_loader_add(l, file, token->valuestring, id, 0);
    }

    content = cJSON_GetObjectItemCaseSensitive(token, "content");

    if (!cJSON_IsString(content)) {
        return sd_loader_error(l, file, "an added token has no \"content\"");
    }

    if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(token, "single_word"))) {
        return sd_loader_error(l, file, "\"single_word\": true is not "
                               "implemented");
    }

    /* lstrip and rstrip take white space, which is no token anyway */

    return sd_loader_add(l, file, content->valuestring, id,
              cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(token,
                                                            "normalized")));
}


static int
sd_loader_add_all(sd_loader_t *l)
{
    double        id;
    const cJSON  *item, *list;

    static const char *const  config = "tokenizer_config.json";

    list = cJSON_GetObjectItemCaseSensitive(l->config, "added_tokens_decoder");

    if (cJSON_IsObject(list)) {
        for (item = list->child; item; item = item->next) {
            id = strtod(item->string, NULL);

            if (sd_loader_add_json(l, config, item, id) != SD_OK) {
                return SD_ERROR;
            }
        }

        return SD_OK;
    }

    if (l->added) {
        for (item = l->added->child; item; item = item->next) {
            if (sd_loader_add(l, "added_tokens.json", item->string,
                              cJSON_IsNumber(item) ? item->valuedouble : -1, 1)
                != SD_OK)
            {
                return SD_ERROR;
            }
        }
    }

    list = cJSON_GetObjectItemCaseSensitive(l->tables, "added_tokens");

    if (strcmp(l->file, "tokenizer.json") == 0 && cJSON_IsArray(list)) {
        for (item = list->child; item; item = item->next) {
            id = -1;

            if (cJSON_IsNumber(cJSON_GetObjectItemCaseSensitive(item, "id"))) {
                id = cJSON_GetObjectItemCaseSensitive(item, "id")->valuedouble;
            }

            if (sd_loader_add_json(l, l->file, item, id) != SD_OK) {
                return SD_ERROR;
            }
        }
    }

    return SD_OK;
}


/*
 * the named tokens.  Each of them is one that a text may contain, too; of
 * several that are the same the last one says how it is looked for, but what
 * the lists above say stays.
 */

static int
sd_loader_special(sd_loader_t *l)
{
    size_t              i, listed;
    const char         *text, *file;
    const cJSON        *item, *v;
    sd_added_token_t   *a;

    const struct {
        const char  *key;
        const char  *value;
        int32_t     *id;
    } names[] = {
        { "bos_token", "<|startoftext|>", &l->t->bos },
        { "eos_token", "<|endoftext|>", &l->t->eos },
        { "unk_token", "<|endoftext|>", &l->t->unk },
        { "pad_token", "<|endoftext|>", &l->t->pad }
    };

    listed = l->t->nadded;

    for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        file = "tokenizer_config.json";
        item = cJSON_GetObjectItemCaseSensitive(l->config, names[i].key);

        v = cJSON_GetObjectItemCaseSensitive(l->special, names[i].key);

        if (v && cJSON_GetObjectItemCaseSensitive(l->config,
                                                  "added_tokens_decoder")
                 == NULL)
        {
            file = "special_tokens_map.json";
            item = v;
        }

        v = cJSON_IsObject(item)
            ? cJSON_GetObjectItemCaseSensitive(item, "content") : item;

        text = names[i].value;

        if (cJSON_IsString(v)) {
            text = v->valuestring;

        } else {
            file = l->file;
        }

        a = sd_loader_added_find(l, text);

        if (a == NULL || a >= l->t->added + listed) {
            if (cJSON_IsString(v)
                ? sd_loader_add_json(l, file, item, -1) != SD_OK
                : sd_loader_add(l, file, text, -1, 0) != SD_OK)
            {
                return SD_ERROR;
            }

            a = sd_loader_added_find(l, text);
        }

        if (a == NULL) {
            return sd_error(l->err, 500, "invalid_model", file,
                            "%s/%s: \"%s\" is empty", l->dir, file,
                            names[i].key);
        }

        *names[i].id = a->id;
    }

    return SD_OK;
}


/* those that are looked for in normalized text, normalized themselves */

static int
sd_loader_normalize(sd_loader_t *l)
{
    size_t             i;
    sd_buf_t           b;
    sd_added_token_t  *a;

    for (i = 0; i < l->t->nadded; i++) {
        a = &l->t->added[i];

        if (a->normalized) {
            memset(&b, 0, sizeof(sd_buf_t));

            if (sd_normalize(&b, a->text, strlen(a->text), l->err) != SD_OK) {
                sd_buf_free(&b);
                return sd_loader_error(l, l->file,
                                       "an added token is not UTF-8");
            }

            sd_buf_append(&b, "", 1);

            if (b.failed) {
                sd_buf_free(&b);
                return sd_fail(l->err, "no memory for tokens");
            }

            free(a->text);
            a->text = b.data;
        }

        a->len = strlen(a->text);
    }

    return SD_OK;
}


int
sd_tokenizer_open(sd_tokenizer_t **t, const char *dir, sd_error_t *err)
{
    int          rc;
    sd_loader_t  l;

    memset(&l, 0, sizeof(sd_loader_t));

    l.dir = dir;
    l.err = err;
    l.t = calloc(1, sizeof(sd_tokenizer_t));

    *t = NULL;

    if (l.t == NULL) {
        return sd_fail(err, "no memory for a tokenizer");
    }

    rc = SD_ERROR;

    if (sd_loader_json(&l, &l.config, "tokenizer_config.json") != SD_OK
        || sd_loader_json(&l, &l.special, "special_tokens_map.json") != SD_OK
        || sd_loader_json(&l, &l.added, "added_tokens.json") != SD_OK
        || sd_loader_tables(&l) != SD_OK
        || sd_loader_add_all(&l) != SD_OK
        || sd_loader_special(&l) != SD_OK
        || sd_loader_normalize(&l) != SD_OK)
    {
        goto done;
    }

    sd_loader_bytes(&l);
    rc = SD_OK;

done:

    cJSON_Delete(l.tables);
    cJSON_Delete(l.config);
    cJSON_Delete(l.special);
    cJSON_Delete(l.added);
    free(l.vocab);

    if (rc != SD_OK) {
        sd_tokenizer_close(l.t);
        return rc;
    }

    *t = l.t;

    return SD_OK;
}


void
sd_tokenizer_close(sd_tokenizer_t *t)
{
    size_t  i;

    if (t == NULL) {
        return;
    }

    for (i = 0; i < t->nadded; i++) {
        free(t->added[i].text);
    }

    free(t->added);
    free(t->merges);
    free(t);
}
