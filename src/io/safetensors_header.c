/*
 * The header of a safetensors file: parsed by hand, in place, and not into a
 * tree, since a tree of a hostile 100 MB header would take gigabytes.  Names
 * and metadata are slices of the header's buffer, which lives as long as the
 * set.
 */

#include <stdlib.h>
#include <string.h>

#include "safetensors_set.h"
#include "utf8.h"


#define SD_ST_TENSORS_MAX  65536
#define SD_ST_META_MAX     1024
#define SD_ST_RANK_MAX     8


typedef struct {
    sd_safetensors_t  *st;
    sd_st_file_t      *file;
    char              *p, *end;
    sd_error_t        *err;
} sd_st_parser_t;


static const struct {
    const char  *name;
    sd_type_t    type;
    int          bits;
} sd_st_types[] = {
    { "F32", SD_F32, 32 },
    { "F16", SD_F16, 16 },
    { "BF16", SD_BF16, 16 },
    { "U8", SD_U8, 8 },
    { "I32", SD_I32, 32 },
    { "BOOL", SD_OTHER, 8 },
    { "I8", SD_OTHER, 8 },
    { "F8_E4M3", SD_OTHER, 8 },
    { "F8_E5M2", SD_OTHER, 8 },
    { "F8_E8M0", SD_OTHER, 8 },
    { "I16", SD_OTHER, 16 },
    { "U16", SD_OTHER, 16 },
    { "U32", SD_OTHER, 32 },
    { "I64", SD_OTHER, 64 },
    { "U64", SD_OTHER, 64 },
    { "F64", SD_OTHER, 64 },
    { "C64", SD_OTHER, 64 }
};

#define SD_ST_NTYPES  (sizeof(sd_st_types) / sizeof(sd_st_types[0]))


static int
sd_st_bad(sd_st_parser_t *ps, const char *what)
{
    return sd_st_error(ps->st, ps->err, ps->file->path,
                       "%s: bad header, byte %zu: %s", ps->file->path,
                       (size_t) (ps->p - ps->file->header) + 8, what);
}


static void
sd_st_space(sd_st_parser_t *ps)
{
    while (ps->p < ps->end && (*ps->p == ' ' || *ps->p == '\t'
                               || *ps->p == '\n' || *ps->p == '\r'))
    {
        ps->p++;
    }
}


/* c, with white space before it, or SD_ERROR */

static int
sd_st_char(sd_st_parser_t *ps, char c)
{
    char  what[] = "expected ' '";

    sd_st_space(ps);

    if (ps->p == ps->end || *ps->p != c) {
        what[10] = c;
        return sd_st_bad(ps, what);
    }

    ps->p++;

    return SD_OK;
}


/* after a member: 1 where another follows, 0 at the end, or SD_ERROR */

static int
sd_st_more(sd_st_parser_t *ps, char close)
{
    sd_st_space(ps);

    if (ps->p < ps->end && *ps->p == ',') {
        ps->p++;
        return 1;
    }

    return sd_st_char(ps, close) == SD_OK ? 0 : SD_ERROR;
}


/* whether an object or an array, just opened, ends at once */

static int
sd_st_empty(sd_st_parser_t *ps, char close)
{
    sd_st_space(ps);

    if (ps->p < ps->end && *ps->p == close) {
        ps->p++;
        return 1;
    }

    return 0;
}


static int
sd_st_hex4(sd_st_parser_t *ps, uint32_t *c)
{
    int   i;
    char  d;

    if (ps->end - ps->p < 4) {
        return sd_st_bad(ps, "cut escape");
    }

    *c = 0;

    for (i = 0; i < 4; i++) {
        d = *ps->p++;

        if (d >= '0' && d <= '9') {
            d -= '0';
        } else if ((d | 32) >= 'a' && (d | 32) <= 'f') {
            d = (d | 32) - 'a' + 10;
        } else {
            return sd_st_bad(ps, "bad escape");
        }

        *c = *c << 4 | d;
    }

    return SD_OK;
}


/* a string, decoded in place and ended with '\0' over its quote or before */

static int
sd_st_string(sd_st_parser_t *ps, const char **s)
{
    static const char  from[] = "\"\\/bfnrt";
    static const char  to[] = "\"\\/\b\f\n\r\t";

    char        *d;
    size_t       len;
    uint32_t     c, low;
    const char  *e;

    if (sd_st_char(ps, '"') != SD_OK) {
        return SD_ERROR;
    }

    *s = d = ps->p;

    for ( ;; ) {
        if (ps->p == ps->end) {
            return sd_st_bad(ps, "string without an end");
        }

        if (*ps->p == '"') {
            ps->p++;
            *d = '\0';
            return SD_OK;
        }

        if (*ps->p != '\\') {
            len = sd_utf8_length(ps->p, ps->end - ps->p);

            if (len == 0 || (unsigned char) *ps->p < 0x20) {
                return sd_st_bad(ps, "not UTF-8, or a control character");
            }

            memmove(d, ps->p, len);
            d += len;
            ps->p += len;
            continue;
        }

        ps->p++;

        if (ps->p == ps->end) {
            return sd_st_bad(ps, "cut escape");
        }

        if (*ps->p != 'u') {
            e = *ps->p ? strchr(from, *ps->p) : NULL;

            if (e == NULL) {
                return sd_st_bad(ps, "bad escape");
            }

            *d++ = to[e - from];
            ps->p++;
            continue;
        }

        ps->p++;

        if (sd_st_hex4(ps, &c) != SD_OK) {
            return SD_ERROR;
        }

        if (c >= 0xd800 && c < 0xdc00) {
            if (ps->end - ps->p < 2 || ps->p[0] != '\\' || ps->p[1] != 'u') {
                return sd_st_bad(ps, "half a surrogate pair");
            }

            ps->p += 2;

            if (sd_st_hex4(ps, &low) != SD_OK) {
                return SD_ERROR;
            }

            if (low < 0xdc00 || low > 0xdfff) {
                return sd_st_bad(ps, "half a surrogate pair");
            }

            c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
        }

        len = c ? sd_utf8_encode(d, c) : 0;

        if (len == 0) {
            return sd_st_bad(ps, "bad escape");
        }

        d += len;
    }
}


/* a whole number below 2^63 */

static int
sd_st_number(sd_st_parser_t *ps, uint64_t *n)
{
    char  *start;

    sd_st_space(ps);

    *n = 0;

    for (start = ps->p; ps->p < ps->end; ps->p++) {
        if (*ps->p < '0' || *ps->p > '9') {
            break;
        }

        if (*n > (INT64_MAX - 9) / 10) {
            return sd_st_bad(ps, "number too large");
        }

        *n = *n * 10 + (*ps->p - '0');
    }

    if (ps->p == start || (*start == '0' && ps->p - start > 1)) {
        return sd_st_bad(ps, "expected a whole number");
    }

    return SD_OK;
}


static int
sd_st_numbers(sd_st_parser_t *ps, uint64_t *n, int max, int *count)
{
    int  rc;

    *count = 0;

    if (sd_st_char(ps, '[') != SD_OK) {
        return SD_ERROR;
    }

    if (sd_st_empty(ps, ']')) {
        return SD_OK;
    }

    do {
        if (*count == max) {
            return sd_st_bad(ps, "too many numbers");
        }

        if (sd_st_number(ps, &n[(*count)++]) != SD_OK) {
            return SD_ERROR;
        }

        rc = sd_st_more(ps, ']');

    } while (rc == 1);

    return rc;
}


static int
sd_st_metadata(sd_st_parser_t *ps)
{
    int                rc;
    sd_st_meta_t      *meta;
    sd_safetensors_t  *st = ps->st;

    if (sd_st_char(ps, '{') != SD_OK) {
        return SD_ERROR;
    }

    if (sd_st_empty(ps, '}')) {
        return SD_OK;
    }

    do {
        if (st->nmeta == SD_ST_META_MAX) {
            return sd_st_bad(ps, "too many metadata keys");
        }

        meta = realloc(st->meta, (st->nmeta + 1) * sizeof(sd_st_meta_t));
        if (meta == NULL) {
            return sd_fail(ps->err, "%s: no memory", ps->file->path);
        }

        st->meta = meta;
        meta += st->nmeta;

        if (sd_st_string(ps, &meta->key) != SD_OK
            || sd_st_char(ps, ':') != SD_OK
            || sd_st_string(ps, &meta->value) != SD_OK)
        {
            return SD_ERROR;
        }

        st->nmeta++;

        rc = sd_st_more(ps, '}');

    } while (rc == 1);

    return rc;
}


static int
sd_st_tensor(sd_st_parser_t *ps, const char *name)
{
    int                rc, i, n, seen;
    size_t             k;
    uint64_t           shape[SD_ST_RANK_MAX], at[2], size;
    const char        *key, *dtype;
    sd_st_file_t      *file = ps->file;
    sd_st_tensor_t    *t;
    sd_safetensors_t  *st = ps->st;

    if (st->ntensors == SD_ST_TENSORS_MAX) {
        return sd_st_bad(ps, "too many tensors");
    }

    if (st->ntensors == st->atensors) {
        k = st->atensors ? 2 * st->atensors : 64;

        t = realloc(st->tensors, k * sizeof(sd_st_tensor_t));
        if (t == NULL) {
            return sd_fail(ps->err, "%s: no memory", file->path);
        }

        st->tensors = t;
        st->atensors = k;
    }

    t = &st->tensors[st->ntensors];
    memset(t, 0, sizeof(sd_st_tensor_t));

    t->name = name;
    t->file = file - st->files;
    dtype = NULL;
    seen = 0;

    if (sd_st_char(ps, '{') != SD_OK) {
        return SD_ERROR;
    }

    do {
        if (sd_st_string(ps, &key) != SD_OK || sd_st_char(ps, ':') != SD_OK) {
            return SD_ERROR;
        }

        if (strcmp(key, "dtype") == 0 && !(seen & 1)) {
            seen |= 1;
            rc = sd_st_string(ps, &dtype);

        } else if (strcmp(key, "shape") == 0 && !(seen & 2)) {
            seen |= 2;
            rc = sd_st_numbers(ps, shape, SD_ST_RANK_MAX, &t->rank);

        } else if (strcmp(key, "data_offsets") == 0 && !(seen & 4)) {
            seen |= 4;
            rc = sd_st_numbers(ps, at, 2, &n);

            if (rc == SD_OK && n != 2) {
                rc = sd_st_bad(ps, "expected two offsets");
            }

        } else {
            return sd_st_bad(ps, "unknown or repeated key");
        }

        if (rc != SD_OK) {
            return SD_ERROR;
        }

        rc = sd_st_more(ps, '}');

    } while (rc == 1);

    if (rc != SD_OK) {
        return SD_ERROR;
    }

    if (seen != 7) {
        return sd_st_bad(ps, "dtype, shape or data_offsets missing");
    }

    for (k = 0; k < SD_ST_NTYPES; k++) {
        if (strcmp(dtype, sd_st_types[k].name) == 0) {
            break;
        }
    }

    if (k == SD_ST_NTYPES) {
        return sd_st_error(st, ps->err, name,
                           "%s: tensor \"%s\" has the unknown dtype \"%s\"",
                           file->path, name, dtype);
    }

    t->type = sd_st_types[k].type;
    t->count = 1;
    rc = 0;

    for (i = 0; i < t->rank; i++) {
        t->shape[i] = shape[i];
        rc |= __builtin_mul_overflow(t->count, shape[i], &t->count);
    }

    rc |= __builtin_mul_overflow(t->count, sd_st_types[k].bits / 8, &size);

    if (rc || size > INT64_MAX) {
        return sd_st_error(st, ps->err, name, "%s: the shape of tensor \"%s\" "
                           "overflows", file->path, name);
    }

    /* the end first: nothing is subtracted or added before it is checked */

    if (at[1] > file->size - file->start) {
        return sd_st_error(st, ps->err, name, "%s: tensor \"%s\" ends %llu "
                           "bytes behind the end of the file: truncated?",
                           file->path, name, (unsigned long long)
                           (at[1] - (file->size - file->start)));
    }

    if (at[0] > at[1] || at[1] - at[0] != size) {
        return sd_st_error(st, ps->err, name, "%s: the offsets of tensor "
                           "\"%s\" do not fit its shape", file->path, name);
    }

    t->offset = file->start + at[0];
    t->size = size;
    st->ntensors++;

    return SD_OK;
}


static int
sd_st_members(sd_st_parser_t *ps)
{
    int          rc;
    const char  *name;

    if (sd_st_char(ps, '{') != SD_OK) {
        return SD_ERROR;
    }

    if (!sd_st_empty(ps, '}')) {
        do {
            if (sd_st_string(ps, &name) != SD_OK
                || sd_st_char(ps, ':') != SD_OK)
            {
                return SD_ERROR;
            }

            rc = strcmp(name, "__metadata__") == 0 ? sd_st_metadata(ps)
                                                   : sd_st_tensor(ps, name);
            if (rc != SD_OK) {
                return SD_ERROR;
            }

            rc = sd_st_more(ps, '}');

        } while (rc == 1);

        if (rc != SD_OK) {
            return SD_ERROR;
        }
    }

    sd_st_space(ps);

    return ps->p == ps->end ? SD_OK : sd_st_bad(ps, "bytes after the end");
}


int
sd_st_parse_header(sd_safetensors_t *st, uint64_t len, sd_error_t *err)
{
    sd_st_parser_t  ps;

    ps.st = st;
    ps.file = &st->files[st->nfiles - 1];
    ps.p = ps.file->header;
    ps.end = ps.p + len;
    ps.err = err;

    return sd_st_members(&ps);
}
