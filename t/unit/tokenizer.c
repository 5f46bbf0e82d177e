/*
 * The tokenizer against transformers' CLIPTokenizer: every id of the strings in
 * t/golden/tokenizer.txt, and every character of Unicode; then files that a
 * tokenizer must refuse.
 *
 * With two arguments, a directory and a golden file, only that comparison.
 */

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../src/io/file.h"
#include "../../src/io/utf8.h"
#include "../../src/sd/tokenizer.h"
#include "tap.h"


#define MAX_IDS  65536

static int32_t  ids[MAX_IDS];


static uint64_t
fnv(const int32_t *id, int n)
{
    int       i, k;
    uint64_t  h;

    h = 0xcbf29ce484222325ULL;

    for (i = 0; i < n; i++) {
        for (k = 0; k < 32; k += 8) {
            h = (h ^ ((uint32_t) id[i] >> k & 255)) * 0x100000001b3ULL;
        }
    }

    return h;
}


/* ranges of characters that are left out */

static struct {
    uint32_t  first, last;
} later[64];

static int  nlater;


static int
left_out(uint32_t c)
{
    int  i;

    for (i = 0; i < nlater; i++) {
        if (c >= later[i].first && c <= later[i].last) {
            return 1;
        }
    }

    return c >= 0xd800 && c < 0xe000;
}


/* what one line's text is */

static void
text_of(sd_buf_t *b, const char *text, int repeat)
{
    char         c[8];
    uint32_t     i, first;
    const char  *p;

    b->len = 0;

    if (strncmp(text, "U+", 2) == 0) {
        first = strtoul(text + 2, NULL, 16);

        for (i = first; i < first + 4096; i++) {
            if (!left_out(i)) {
                sd_buf_puts(b, b->len ? " a" : "a");
                sd_buf_append(b, c, sd_utf8_encode(c, i));
                sd_buf_puts(b, "b");
            }
        }

        return;
    }

    while (repeat--) {
        for (p = text; *p; p++) {
            if (*p == '%') {
                memcpy(c, p + 1, 2);
                c[2] = '\0';
                c[0] = (char) strtoul(c, NULL, 16);
                sd_buf_append(b, c, 1);
                p += 2;
                continue;
            }

            sd_buf_append(b, p, 1);
        }
    }
}


static int
golden(const char *dir, const char *file)
{
    int              line, repeat, count, tokens, bad, at, exact;
    char            *p, *end;
    sd_buf_t         all = { 0 }, text = { 0 };
    sd_error_t       err;
    sd_tokenizer_t  *t;
    unsigned long long  hash;

    if (!ok(sd_tokenizer_open(&t, dir, &err) == SD_OK, "open %s", dir)) {
        printf("# %s\n", err.message);
        return 0;
    }

    if (!ok(sd_file_read(&all, file, 1 << 24, &err) == SD_OK, "read %s",
            file))
    {
        return 0;
    }

    bad = exact = 0;

    for (line = 1, p = all.data; *p; p = end + 1, line++) {
        end = strchr(p, '\n');
        *end = '\0';

        if (sscanf(p, "%d %d %llx %*s %n", &repeat, &count, &hash, &at) != 3) {
            bad++;
            continue;
        }

        if (repeat == 0) {
            sscanf(p + at, "%X-%X", &later[nlater].first, &later[nlater].last);
            nlater++;
            continue;
        }

        text_of(&text, p + at, repeat);

        if (sd_tokenizer_encode(t, text.data, text.len, ids, MAX_IDS, &tokens,
                                &err) != SD_OK
            || tokens != count || fnv(ids, tokens) != hash)
        {
            printf("# line %d: %.200s\n# got %d:", line, p, tokens);

            for (at = 1; at < tokens - 1 && at < 25; at++) {
                printf("%s%x", at == 1 ? " " : ",", ids[at]);
            }

            printf("\n");
            bad++;
            continue;
        }

        exact++;
    }

    is_int(bad, 0, "no line differs");
    ok(exact >= 2000, "%d lines are equal", exact);

    sd_buf_free(&all);
    sd_buf_free(&text);
    sd_tokenizer_close(t);

    return 1;
}


static void
cut_and_padded(void)
{
    int              i, tokens, same;
    int32_t          a[77], b[5];
    sd_error_t       err;
    sd_tokenizer_t  *t;
    char             text[1024];

    if (sd_tokenizer_open(&t, "model/tokenizer", &err) != SD_OK) {
        ok(0, "open: %s", err.message);
        return;
    }

    sd_tokenizer_encode(t, "a red house", 11, a, 77, &tokens, &err);
    is_int(tokens, 5, "three words, begin and end");
    is_int(a[4], sd_tokenizer_eos(t), "the end");

    same = 1;

    for (i = 5; i < 77; i++) {
        same &= a[i] == a[76];
    }

    ok(same, "padded");

    sd_tokenizer_encode(t, "a red house", 11, b, 5, &tokens, &err);
    ok(tokens == 5 && memcmp(a, b, sizeof(b)) == 0, "just room enough");

    sd_tokenizer_encode(t, "a red house", 11, b, 4, &tokens, &err);
    ok(tokens == 5 && memcmp(a, b, 3 * sizeof(int32_t)) == 0
       && b[3] == sd_tokenizer_eos(t), "cut, and still with an end");

    text[0] = '\0';

    for (i = 0; i < 100; i++) {
        strcat(text, "house ");
    }

    sd_tokenizer_encode(t, text, strlen(text), a, 77, &tokens, &err);
    ok(tokens == 102 && a[76] == sd_tokenizer_eos(t) && a[75] == a[1],
       "100 words are %d tokens, cut at 77", tokens);

    ok(sd_tokenizer_encode(t, "a\xff", 2, a, 77, &tokens, &err) == SD_ERROR
       && err.status == 400 && strcmp(err.param, "prompt") == 0,
       "not UTF-8: %s", err.message);
    ok(sd_tokenizer_encode(t, "\xed\xa0\x80", 3, a, 77, &tokens, &err)
       == SD_ERROR, "a surrogate");
    ok(sd_tokenizer_encode(t, "\xe6\x9d", 2, a, 77, &tokens, &err)
       == SD_ERROR, "a cut character");
    ok(sd_tokenizer_encode(t, text, 1, a, 1, &tokens, &err) == SD_ERROR,
       "no room at all");

    sd_tokenizer_close(t);
    sd_tokenizer_close(NULL);
}


static void
put(const char *dir, const char *file, const char *text)
{
    char        path[256];
    sd_error_t  err;

    snprintf(path, sizeof(path), "%s/%s", dir, file);

    if (text == NULL) {
        unlink(path);

    } else if (sd_file_write(path, text, strlen(text), &err) != SD_OK) {
        printf("# %s\n", err.message);
    }
}


#define SPECIAL  "\"<|startoftext|>\":8,\"<|endoftext|>\":9"
#define VOCAB    "{\"a\":0,\"b\":1,\"a</w>\":2,\"b</w>\":3,\"ab</w>\":4," SPECIAL "}"
#define MERGES   "#version: 0.2\na b</w>\n"
#define ANY_MODEL(v, m)                                                       \
    "\"model\":{\"type\":\"BPE\",\"end_of_word_suffix\":\"</w>\",\"vocab\":"  \
    v ",\"merges\":" m "}}"
#define MODEL(v, m)  "{" ANY_MODEL(v, m)


/* a small tokenizer of those files (NULL: no such file); what s becomes */

static int
tiny(const char *vocab, const char *merges, const char *json,
    const char *special, const char *s, char *out, size_t size,
    sd_error_t *err)
{
    int              i, n, rc;
    char             dir[] = "/tmp/sd-tokenizer-XXXXXX";
    sd_tokenizer_t  *t;

    memset(err, 0, sizeof(sd_error_t));
    out[0] = '\0';

    if (mkdtemp(dir) == NULL) {
        return SD_ERROR;
    }

    put(dir, "vocab.json", vocab);
    put(dir, "merges.txt", merges);
    put(dir, "tokenizer.json", json);
    put(dir, "special_tokens_map.json", special);

    rc = sd_tokenizer_open(&t, dir, err);

    put(dir, "vocab.json", NULL);
    put(dir, "merges.txt", NULL);
    put(dir, "tokenizer.json", NULL);
    put(dir, "special_tokens_map.json", NULL);
    rmdir(dir);

    if (rc != SD_OK) {
        return rc;
    }

    rc = sd_tokenizer_encode(t, s, strlen(s), ids, 12, &n, err);

    for (i = 0; rc == SD_OK && i < 12; i++) {
        snprintf(out + strlen(out), size - strlen(out), "%s%d", i ? " " : "",
                 ids[i]);
    }

    sd_tokenizer_close(t);

    return rc;
}


static void
files(void)
{
    char        out[256];
    size_t      i;
    sd_error_t  err;

    static const struct {
        const char  *vocab, *merges, *json, *special;
        const char  *says;
    } bad[] = {
        { NULL, NULL, NULL, NULL, "vocab.json" },
        { VOCAB, NULL, NULL, NULL, "merges.txt" },
        { "", MERGES, NULL, NULL, "vocab.json" },
        { "[]", MERGES, NULL, NULL, "vocab.json" },
        { "{}", "", NULL, NULL, "no tokens" },
        { "{\"a\":-1}", "", NULL, NULL, "\"a\"" },
        { "{\"a\":1.5}", "", NULL, NULL, "\"a\"" },
        { "{\"a\":1e9}", "", NULL, NULL, "\"a\"" },
        { "{\"a\":\"1\"}", "", NULL, NULL, "\"a\"" },
        { "{\"a\":[1]}", "", NULL, NULL, "\"a\"" },
        { "{\"a\":0}", "", NULL, NULL, "<|startoftext|>" },
        { VOCAB, "a b</w> c\n", NULL, NULL, "line 1" },
        { VOCAB, MERGES "ab</w>\n", NULL, NULL, "line 3" },
        { VOCAB, MERGES "a c\n", NULL, NULL, "right part" },
        { VOCAB, MERGES "c a\n", NULL, NULL, "left part" },
        { VOCAB, MERGES "b a\n", NULL, NULL, "result" },
        { NULL, NULL, "{}", NULL, "end_of_word_suffix" },
        { NULL, NULL, "{\"model\":{\"type\":\"WordPiece\"}}", NULL, "BPE" },
        { NULL, NULL, MODEL(VOCAB, "{}"), NULL, "merges" },
        { NULL, NULL, MODEL(VOCAB, "[1]"), NULL, "merge 1" },
        { NULL, NULL, MODEL(VOCAB, "[[\"a\"]]"), NULL, "merge 1" },
        { NULL, NULL, MODEL(VOCAB, "[[\"a\",\"b\",\"c\"]]"), NULL,
          "merge 1" },
        { NULL, NULL, MODEL(VOCAB, "[\"a b</w>\",\"ab\"]"), NULL, "merge 2" },
        { NULL, NULL, MODEL("[]", "[]"), NULL, "vocabulary" },
        { VOCAB, MERGES, NULL, "{\"pad_token\":\"none\"}", "\"none\"" },
        { VOCAB, MERGES, NULL, "{\"pad_token\":\"\"}", "pad_token" },
        { VOCAB, MERGES, NULL, "{\"bos_token\":{\"content\":\"a\","
          "\"single_word\":true}}", "single_word" },
        { VOCAB, MERGES, NULL, "nonsense", "special_tokens_map.json" }
    };

    is_int(tiny(VOCAB, MERGES, NULL, NULL, "ab ba c", out, sizeof(out), &err),
           SD_OK, "a small tokenizer");
    is_str(out, "8 4 1 2 9 9 9 9 9 9 9 9",
           "merges, bytes, an unknown one, padding");

    tiny(VOCAB, "a b</w>\r\n\r\n", NULL, "{\"pad_token\":\"a</w>\"}", "ab",
         out, sizeof(out), &err);
    is_str(out, "8 4 9 2 2 2 2 2 2 2 2 2", "another padding, carriage returns");

    tiny(NULL, NULL, MODEL(VOCAB, "[\"a b</w>\"]"), NULL, "ab", out,
         sizeof(out), &err);
    is_str(out, "8 4 9 9 9 9 9 9 9 9 9 9", "tokenizer.json");

    tiny(NULL, NULL, MODEL(VOCAB, "[[\"a\",\"b</w>\"]]"), NULL, "ab", out,
         sizeof(out), &err);
    is_str(out, "8 4 9 9 9 9 9 9 9 9 9 9", "and with pairs");

    tiny(NULL, NULL, "{\"added_tokens\":[{\"id\":11,\"content\":\"Ab a\","
         "\"normalized\":true}]," ANY_MODEL(VOCAB, "[]"), NULL, "xaB  aba",
         out, sizeof(out), &err);
    is_str(out, "8 9 11 1 2 9 9 9 9 9 9 9", "an added token, normalized");

    for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        if (!ok(tiny(bad[i].vocab, bad[i].merges, bad[i].json, bad[i].special,
                     "ab", out, sizeof(out), &err) == SD_ERROR
                && strstr(err.message, bad[i].says)
                && strstr(err.message, "/tmp/sd-tokenizer-"),
                "refused: %s", err.message))
        {
            printf("# wanted \"%s\"\n", bad[i].says);
        }
    }
}


int
main(int argc, char **argv)
{
    if (argc == 3) {
        golden(argv[1], argv[2]);
        return done();
    }

    golden("model/tokenizer", "t/golden/tokenizer.txt");
    cut_and_padded();
    files();

    return done();
}
