/*
 * safetensors: what is right is read, what is wrong is refused, from memory and
 * from files: hostile headers, truncation, shards, variants, conversions.
 */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../src/io/file.h"
#include "../../src/io/safetensors.h"
#include "tap.h"


static char  dir[] = "/tmp/sd-safetensors-XXXXXX";


/* a file's bytes: length, header, n bytes of data (0, 1, 2 ...) */

static void
make(sd_buf_t *b, const char *header, size_t n)
{
    size_t   i, len;
    uint8_t  c;

    b->len = 0;

    for (len = strlen(header), i = 0; i < 8; i++, len >>= 8) {
        c = len;
        sd_buf_append(b, &c, 1);
    }

    sd_buf_puts(b, header);

    for (i = 0; i < n; i++) {
        c = i;
        sd_buf_append(b, &c, 1);
    }
}


static void
test_good(void)
{
    float                  v[6];
    sd_buf_t               b = { 0 };
    sd_error_t             err;
    sd_safetensors_t      *st;
    const sd_st_tensor_t  *t;

    make(&b, " {\"__metadata__\":{\"a\":\"\\u00e9\\n\",\"b\":\"\"},"
         "\"y\" : {\"shape\":[2,3],\"dtype\":\"F32\","
         "\"data_offsets\":[2,26]},\n"
         "\"x\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[0,2]},"
         "\"e\":{\"dtype\":\"I64\",\"shape\":[0,4],\"data_offsets\":[9,9]},"
         "\"\\ud83d\\ude00\":{\"dtype\":\"U8\",\"shape\":[1],"
         "\"data_offsets\":[26,27]}}   ", 27);

    is_int(sd_safetensors_parse(&st, b.data, b.len, &err), SD_OK, "parses");
    is_int(sd_safetensors_count(st), 4, "four tensors");
    ok(strcmp(sd_safetensors_get(st, 0)->name, "e") == 0, "sorted by name");
    ok(strcmp(sd_safetensors_meta(st, "a"), "\xc3\xa9\n") == 0,
       "metadata, escapes decoded");
    ok(sd_safetensors_meta(st, "c") == NULL, "no such metadata");
    ok(sd_safetensors_find(st, "z") == NULL, "no such tensor");
    ok(sd_safetensors_find(st, "\xf0\x9f\x98\x80") != NULL,
       "a name in a surrogate pair");

    t = sd_safetensors_find(st, "x");
    ok(t && t->rank == 0 && t->count == 1, "a scalar");
    is_int(sd_safetensors_read_f32(st, t, v, &err), SD_OK, "read");
    ok(v[0] == 0x1.00p-125f, "bf16 0x0100 is 2^-125");

    t = sd_safetensors_find(st, "e");
    ok(t && t->count == 0 && t->type == SD_OTHER, "an empty I64");
    is_int(sd_safetensors_read_f32(st, t, v, &err), SD_ERROR,
           "which cannot be read as floats");

    t = sd_safetensors_find(st, "y");
    ok(t && t->rank == 2 && t->shape[0] == 2 && t->shape[1] == 3, "a matrix");
    is_int(sd_safetensors_read_f32(st, t, v, &err), SD_OK, "read");
    ok(memcmp(v, b.data + b.len - 25, 24) == 0, "its bytes");

    sd_safetensors_close(st);
    sd_buf_free(&b);
}


static void
test_bad(void)
{
    static const struct {
        const char  *header;
        size_t       data;
        const char  *message;
    } bad[] = {
#define T(shape, at)  "{\"dtype\":\"F32\",\"shape\":" shape                  \
                      ",\"data_offsets\":" at "}"
        { "{", 0, "expected '\"'" },
        { "", 0, "expected '{'" },
        { "{}x", 0, "bytes after the end" },
        { "{\"a\":1}", 0, "expected '{'" },
        { "[]", 0, "expected '{'" },
        { "{\"a\":" T("[1]", "[0,4]") ",}", 4, "expected '\"'" },
        { "{\"a\":" T("[2]", "[0,4]") "}", 8, "do not fit" },
        { "{\"a\":" T("[1]", "[0,4]") "}", 3, "truncated" },
        { "{\"a\":" T("[1]", "[4,0]") "}", 8, "do not fit" },
        { "{\"a\":" T("[1]", "[4,8,9]") "}", 8, "too many numbers" },
        { "{\"a\":" T("[1]", "[4]") "}", 8, "two offsets" },
        { "{\"a\":" T("[-1]", "[0,4]") "}", 8, "whole number" },
        { "{\"a\":" T("[1.0]", "[0,4]") "}", 8, "expected ']'" },
        { "{\"a\":" T("[01]", "[0,4]") "}", 8, "whole number" },
        { "{\"a\":" T("[99999999999999999999]", "[0,4]") "}", 8,
          "too large" },
        { "{\"a\":" T("[4294967296,4294967296]", "[0,0]") "}", 8,
          "overflows" },
        { "{\"a\":" T("[4611686018427387904,2,2]", "[0,0]") "}", 8,
          "overflows" },
        { "{\"a\":" T("[4611686018427387904]", "[0,0]") "}", 8,
          "overflows" },
        { "{\"a\":" T("[1]", "[9223372036854775800,9223372036854775804]")
          "}", 8, "too large" },
        { "{\"a\":" T("[1]", "[922337203685477570,922337203685477574]")
          "}", 8, "truncated" },
        { "{\"a\":" T("[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", 8,
          "too many numbers" },
        { "{\"a\":" T("[1]", "[0,4]") ",\"b\":" T("[1]", "[2,6]") "}", 8,
          "overlap" },
        { "{\"a\":" T("[1]", "[0,4]") ",\"a\":" T("[1]", "[4,8]") "}", 8,
          "twice" },
        { "{\"a\":" T("[1]", "[0,4]") ",\"\\u0061\":" T("[1]", "[4,8]") "}",
          8, "twice" },
        { "{\"a\":{\"dtype\":\"F33\",\"shape\":[],\"data_offsets\":[0,4]}}",
          4, "unknown dtype" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[]}}", 4, "missing" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"shape\":[],"
          "\"data_offsets\":[0,4]}}", 4, "repeated" },
        { "{\"a\":{\"x\":\"F32\"}}", 4, "unknown or repeated" },
        { "{\"a\\u0000\":" T("[1]", "[0,4]") "}", 4, "bad escape" },
        { "{\"a\\ud800\":" T("[1]", "[0,4]") "}", 4, "surrogate" },
        { "{\"a\\q\":" T("[1]", "[0,4]") "}", 4, "bad escape" },
        { "{\"a\xff\":" T("[1]", "[0,4]") "}", 4, "UTF-8" },
        { "{\"a\n\":" T("[1]", "[0,4]") "}", 4, "control" },
        { "{\"a", 4, "without an end" },
        { "{\"a\\", 4, "cut escape" },
        { "{\"a\\u12", 4, "cut escape" },
        { "{\"__metadata__\":{\"a\":1}}", 0, "expected '\"'" }
#undef T
    };

    int                rc;
    size_t             i;
    sd_buf_t           b = { 0 };
    sd_error_t         err;
    sd_safetensors_t  *st;

    for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        make(&b, bad[i].header, bad[i].data);

        /* an exact copy, so that a sanitizer sees what is read behind it */

        char  *copy = malloc(b.len);

        memcpy(copy, b.data, b.len);
        memset(&err, 0, sizeof(err));

        rc = sd_safetensors_parse(&st, copy, b.len, &err);

        ok(rc == SD_ERROR && st == NULL && err.status == 400
           && strstr(err.message, bad[i].message), "%s: %s",
           bad[i].message, err.message);
        free(copy);
    }

    sd_buf_free(&b);
}


static void
test_lengths(void)
{
    size_t             i, refused;
    uint8_t            huge[16];
    sd_buf_t           b = { 0 };
    sd_error_t         err;
    sd_safetensors_t  *st;

    for (i = 0; i < 8; i++) {
        refused = sd_safetensors_parse(&st, "\0\0\0\0\0\0\0\0", i, &err);
        ok((int) refused == SD_ERROR, "a file of %zu bytes", i);
    }

    memset(huge, 0xff, sizeof(huge));
    is_int(sd_safetensors_parse(&st, huge, 16, &err), SD_ERROR,
           "a header of 2^64 - 1 bytes");
    huge[7] = 0x7f;
    is_int(sd_safetensors_parse(&st, huge, 16, &err), SD_ERROR,
           "a header of 2^63 - 1 bytes");
    memcpy(huge, "\x09\0\0\0\0\0\0\0", 8);
    is_int(sd_safetensors_parse(&st, huge, 16, &err), SD_ERROR,
           "a header one byte longer than the file");

    /* every prefix of a good file is refused, and reads nothing behind it */

    make(&b, "{\"__metadata__\":{\"k\":\"v\"},\"a\":{\"dtype\":\"F32\","
         "\"shape\":[1],\"data_offsets\":[0,4]}}", 4);

    for (refused = 0, i = 0; i < b.len; i++) {
        char  *copy = malloc(i + 1);

        memcpy(copy, b.data, i);
        refused += sd_safetensors_parse(&st, copy, i, &err) == SD_ERROR;
        free(copy);
    }

    is_int(refused, b.len, "every prefix is refused");

    sd_buf_free(&b);
}


static void
test_convert(void)
{
    int                    i, wrong;
    float                 *v;
    double                 want;
    uint16_t              *bits;
    sd_buf_t               b = { 0 };
    sd_error_t             err;
    sd_safetensors_t      *st;

    make(&b, "{\"h\":{\"dtype\":\"F16\",\"shape\":[65536],"
         "\"data_offsets\":[0,131072]},\"b\":{\"dtype\":\"BF16\","
         "\"shape\":[65536],\"data_offsets\":[131072,262144]}}", 262144);

    bits = malloc(262144);
    v = malloc(65536 * sizeof(float));

    for (i = 0; i < 65536; i++) {
        bits[i] = bits[65536 + i] = i;
    }

    memcpy(b.data + b.len - 262144, bits, 262144);

    is_int(sd_safetensors_parse(&st, b.data, b.len, &err), SD_OK, "parses");

    (void) sd_safetensors_read_f32(st, sd_safetensors_find(st, "h"), v, &err);

    for (wrong = 0, i = 0; i < 65536; i++) {
        if ((i & 0x7c00) == 0x7c00) {
            wrong += i & 0x3ff ? !isnan(v[i]) : !isinf(v[i]);
            wrong += signbit(v[i]) != 0 && !(i & 0x8000);
            continue;
        }

        want = i & 0x7c00 ? ldexp(1024 + (i & 0x3ff), (i >> 10 & 31) - 25)
                          : ldexp(i & 0x3ff, -24);
        wrong += v[i] != (i & 0x8000 ? -want : want);
        wrong += !!signbit(v[i]) != i >> 15;
    }

    is_int(wrong, 0, "all 65536 values of fp16");

    (void) sd_safetensors_read_f32(st, sd_safetensors_find(st, "b"), v, &err);

    for (wrong = 0, i = 0; i < 65536; i++) {
        uint32_t  u;

        memcpy(&u, &v[i], 4);
        wrong += u != (uint32_t) i << 16;
    }

    is_int(wrong, 0, "all 65536 values of bf16");

    sd_safetensors_close(st);
    sd_buf_free(&b);
    free(bits);
    free(v);
}


static void
put(const char *name, const char *tensor, float value)
{
    char           path[256];
    sd_buf_t       b = { 0 };
    sd_error_t     err;
    sd_st_out_t    t = { tensor, &value, 1, { 1 } };
    sd_st_meta_t   m = { "note \"1\"", "\xc3\xa9\\\n" };

    snprintf(path, sizeof(path), "%s/%s", dir, name);

    if (tensor) {
        (void) sd_safetensors_write(&b, &t, 1, &m, 1, &err);
        (void) sd_file_write(path, b.data, b.len, &err);
        sd_buf_free(&b);

    } else {
        unlink(path);
    }
}


static void
put_text(const char *name, const char *text)
{
    char        path[256];
    sd_error_t  err;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    (void) sd_file_write(path, text, strlen(text), &err);
}


static void
is_value(const char *tensor, float want, const char *what)
{
    float                  v = NAN;
    sd_error_t             err;
    sd_safetensors_t      *st;
    const sd_st_tensor_t  *t;

    if (sd_safetensors_open(&st, dir, "m", &err) == SD_OK) {
        t = sd_safetensors_find(st, tensor);

        if (t) {
            (void) sd_safetensors_read_f32(st, t, &v, &err);
        }

        ok(strcmp(sd_safetensors_meta(st, "note \"1\""), "\xc3\xa9\\\n") == 0,
           "metadata, written and read");
        sd_safetensors_close(st);
    }

    ok(v == want, "%s", what);
}


static void
is_refused(const char *text, const char *what)
{
    sd_error_t         err;
    sd_safetensors_t  *st;

    memset(&err, 0, sizeof(err));

    ok(sd_safetensors_open(&st, dir, "m", &err) == SD_ERROR && st == NULL
       && err.status == 500 && strstr(err.message, text), "%s: %s", what,
       err.message);
}


static void
test_files(void)
{
    char                   path[256], cmd[300];
    float                  v;
    sd_error_t             err;
    sd_safetensors_t      *st;
    const sd_st_tensor_t  *t;

    if (mkdtemp(dir) == NULL) {
        ok(0, "mkdtemp");
        return;
    }

    is_refused("No such file", "an empty directory");

    put_text("m.safetensors.index.json", "{\"weight_map\":{\"a\":"
             "\"m-1.safetensors\",\"b\":\"m-2.safetensors\"}}");
    is_refused("m-1.safetensors: No such file", "an index without shards");

    put("m-1.safetensors", "a", 1);
    put("m-2.safetensors", "c", 2);
    is_refused("tensor \"b\" is not in m-2.safetensors",
               "a tensor that is not in its shard");

    put("m-2.safetensors", "a", 2);
    is_refused("twice", "a tensor in two shards");

    put("m-2.safetensors", "b", 2);
    is_value("a", 1, "the first shard");
    is_value("b", 2, "the second shard");

    put_text("m.safetensors.index.json",
             "{\"weight_map\":{\"a\":\"../m-1.safetensors\"}}");
    is_refused("not in a file of this directory", "a shard elsewhere");
    put_text("m.safetensors.index.json", "{\"weight_map\":[1]}");
    is_refused("weight_map", "an index without a map");
    put_text("m.safetensors.index.json", "{\"weight_map\":\n{]");
    is_refused("line 2", "an index that is not JSON");

    put("m.fp16.safetensors", "a", 3);
    is_value("a", 3, "the fp16 variant goes before an index");
    put("m.safetensors", "a", 4);
    is_value("a", 4, "and the plain file before the variant");

    /* a file that shrinks once it is open is an error, not a signal */

    snprintf(path, sizeof(path), "%s/m.safetensors", dir);
    (void) sd_safetensors_open(&st, dir, "m", &err);
    t = sd_safetensors_find(st, "a");
    is_int(truncate(path, 40), 0, "the file shrinks");
    ok(sd_safetensors_read_f32(st, t, &v, &err) == SD_ERROR
       && strstr(err.message, path), "which is an error: %s", err.message);
    sd_safetensors_close(st);

    is_refused("truncated", "a truncated file");

    snprintf(cmd, sizeof(cmd), "rm -r %s", dir);
    is_int(system(cmd), 0, "cleaned up");
}


int
main(void)
{
    test_good();
    test_bad();
    test_lengths();
    test_convert();
    test_files();

    return done();
}
