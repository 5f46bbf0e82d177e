/*
 * safetensors: see safetensors.h.  The header's parser is in
 * safetensors_header.c.  An open set belongs to one thread at a time.
 */

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "file.h"
#include "safetensors_set.h"


static int
sd_st_pread(sd_safetensors_t *st, sd_st_file_t *f, void *dst, uint64_t size,
    uint64_t offset, sd_error_t *err)
{
    ssize_t  n;

    if (f->data) {
        memcpy(dst, f->data + offset, size);
        return SD_OK;
    }

    while (size) {
        n = pread(f->fd, dst, size < 1 << 30 ? size : 1 << 30, offset);

        if (n == -1 && errno == EINTR) {
            continue;
        }

        if (n <= 0) {
            return sd_st_error(st, err, f->path, "%s: %s", f->path,
                               n ? strerror(errno) : "cut while being read");
        }

        dst = (char *) dst + n;
        offset += n;
        size -= n;
    }

    return SD_OK;
}


/* the header of st's newest file, whose fd or data and size are set */

static int
sd_st_read_header(sd_safetensors_t *st, sd_error_t *err)
{
    int            i;
    uint8_t        b[8];
    uint64_t       len;
    sd_st_file_t  *f = &st->files[st->nfiles - 1];

    if (f->size < 8) {
        return sd_st_error(st, err, f->path, "%s: only %llu bytes: truncated?",
                           f->path, (unsigned long long) f->size);
    }

    if (sd_st_pread(st, f, b, 8, 0, err) != SD_OK) {
        return SD_ERROR;
    }

    for (len = 0, i = 7; i >= 0; i--) {
        len = len << 8 | b[i];
    }

    if (len > f->size - 8 || len > SD_ST_HEADER_MAX) {
        return sd_st_error(st, err, f->path, "%s: a header of %llu bytes in "
                           "a file of %llu: not safetensors, or truncated",
                           f->path, (unsigned long long) len,
                           (unsigned long long) f->size);
    }

    f->start = 8 + len;
    f->header = malloc(len + 1);

    if (f->header == NULL) {
        return sd_fail(err, "%s: no memory for its header", f->path);
    }

    if (sd_st_pread(st, f, f->header, len, 8, err) != SD_OK) {
        return SD_ERROR;
    }

    return sd_st_parse_header(st, len, err);
}


static int
sd_st_by_name(const void *one, const void *two)
{
    const sd_st_tensor_t  *a = one, *b = two;

    return strcmp(a->name, b->name);
}


static int
sd_st_by_offset(const void *one, const void *two)
{
    const sd_st_tensor_t  *a = one, *b = two;

    return a->file != b->file ? (a->file < b->file ? -1 : 1)
           : a->offset != b->offset ? (a->offset < b->offset ? -1 : 1)
           : (a->size > b->size) - (a->size < b->size);
}


/* what no single tensor shows: overlaps and names that are there twice */

static int
sd_st_finish(sd_safetensors_t *st, sd_error_t *err)
{
    size_t           i;
    sd_st_tensor_t  *t, *last;

    if (st->ntensors == 0) {
        return SD_OK;
    }

    qsort(st->tensors, st->ntensors, sizeof(sd_st_tensor_t), sd_st_by_offset);

    for (last = st->tensors, i = 1; i < st->ntensors; i++) {
        t = &st->tensors[i];

        if (t->size == 0) {
            continue;
        }

        if (t->file == last->file && t->offset < last->offset + last->size) {
            return sd_st_error(st, err, t->name, "%s: the tensors \"%s\" and "
                               "\"%s\" overlap", st->files[t->file].path,
                               last->name, t->name);
        }

        last = t;
    }

    qsort(st->tensors, st->ntensors, sizeof(sd_st_tensor_t), sd_st_by_name);

    for (i = 1; i < st->ntensors; i++) {
        t = &st->tensors[i];

        if (strcmp(t->name, t[-1].name) == 0) {
            return sd_st_error(st, err, t->name, "%s: tensor \"%s\" is there "
                               "twice", st->files[t->file].path, t->name);
        }
    }

    return SD_OK;
}


static sd_st_file_t *
sd_st_add_file(sd_safetensors_t *st, const char *path, sd_error_t *err)
{
    sd_st_file_t  *f;

    if (st->nfiles == SD_ST_FILES_MAX) {
        (void) sd_st_error(st, err, path, "%s: too many files", path);
        return NULL;
    }

    f = realloc(st->files, (st->nfiles + 1) * sizeof(sd_st_file_t));

    if (f) {
        st->files = f;
        f += st->nfiles;

        memset(f, 0, sizeof(sd_st_file_t));
        f->fd = -1;
        f->path = strdup(path);

        if (f->path) {
            st->nfiles++;
            return f;
        }
    }

    (void) sd_fail(err, "%s: no memory", path);

    return NULL;
}


static int
sd_st_open_file(sd_safetensors_t *st, const char *path, sd_error_t *err)
{
    struct stat    sb;
    sd_st_file_t  *f;

    f = sd_st_add_file(st, path, err);
    if (f == NULL) {
        return SD_ERROR;
    }

    f->fd = open(path, O_RDONLY|O_CLOEXEC|O_NONBLOCK);

    if (f->fd == -1 || fstat(f->fd, &sb) == -1) {
        return sd_st_error(st, err, path, "%s: %s", path, strerror(errno));
    }

    if (!S_ISREG(sb.st_mode)) {
        return sd_st_error(st, err, path, "%s: not a file", path);
    }

    f->size = sb.st_size;

    return sd_st_read_header(st, err);
}


/* the shards of an index; each of its tensors must be where it says */

static int
sd_st_open_index(sd_safetensors_t *st, const char *dir, const char *path,
    sd_error_t *err)
{
    int                    rc;
    char                   shard[PATH_MAX];
    size_t                 i;
    cJSON                 *json, *map, *m;
    const char            *base;
    const sd_st_tensor_t  *t;

    if (sd_json_read(&json, path, err) != SD_OK) {
        return SD_ERROR;
    }

    rc = SD_ERROR;
    map = cJSON_GetObjectItemCaseSensitive(json, "weight_map");

    if (!cJSON_IsObject(map)) {
        (void) sd_st_error(st, err, path, "%s: no \"weight_map\"", path);
        goto done;
    }

    cJSON_ArrayForEach(m, map) {
        if (!cJSON_IsString(m) || strchr(m->valuestring, '/')
            || m->valuestring[0] == '.'
            || (size_t) snprintf(shard, sizeof(shard), "%s/%s", dir,
                                 m->valuestring) >= sizeof(shard))
        {
            (void) sd_st_error(st, err, path, "%s: \"%s\" is not in a file "
                               "of this directory", path, m->string);
            goto done;
        }

        for (i = 0; i < st->nfiles; i++) {
            if (strcmp(st->files[i].path, shard) == 0) {
                break;
            }
        }

        if (i == st->nfiles && sd_st_open_file(st, shard, err) != SD_OK) {
            goto done;
        }
    }

    if (sd_st_finish(st, err) != SD_OK) {
        goto done;
    }

    cJSON_ArrayForEach(m, map) {
        t = sd_safetensors_find(st, m->string);
        base = t ? strrchr(st->files[t->file].path, '/') + 1 : NULL;

        if (t == NULL || strcmp(base, m->valuestring) != 0) {
            (void) sd_st_error(st, err, m->string, "%s: tensor \"%s\" is not "
                               "in %s", path, m->string, m->valuestring);
            goto done;
        }
    }

    rc = SD_OK;

done:

    cJSON_Delete(json);

    return rc;
}


int
sd_safetensors_open(sd_safetensors_t **out, const char *dir, const char *base,
    sd_error_t *err)
{
    static const struct {
        const char  *suffix;
        int          index;
    } names[] = {
        { "safetensors", 0 },
        { "fp16.safetensors", 0 },
        { "safetensors.index.json", 1 },
        { "safetensors.index.fp16.json", 1 },
        { "fp16.safetensors.index.json", 1 }
    };

    int                rc;
    char               path[PATH_MAX];
    size_t             i;
    sd_safetensors_t  *st;

    *out = NULL;

    st = calloc(1, sizeof(sd_safetensors_t));
    if (st == NULL) {
        return sd_fail(err, "%s: no memory", dir);
    }

    st->status = 500;
    rc = SD_AGAIN;

    for (i = 0; rc == SD_AGAIN && i < sizeof(names) / sizeof(names[0]); i++) {
        if ((size_t) snprintf(path, sizeof(path), "%s/%s.%s", dir, base,
                              names[i].suffix) >= sizeof(path))
        {
            rc = sd_st_error(st, err, dir, "%s: path too long", dir);

        } else if (access(path, F_OK) == 0) {
            rc = names[i].index ? sd_st_open_index(st, dir, path, err)
                                : sd_st_open_file(st, path, err);

            if (rc == SD_OK && !names[i].index) {
                rc = sd_st_finish(st, err);
            }
        }
    }

    if (rc == SD_AGAIN) {
        rc = sd_st_error(st, err, dir, "%s/%s.safetensors: %s, and no fp16 "
                         "variant or index either", dir, base,
                         strerror(ENOENT));
    }

    if (rc != SD_OK) {
        sd_safetensors_close(st);
        return SD_ERROR;
    }

    *out = st;

    return SD_OK;
}


int
sd_safetensors_parse(sd_safetensors_t **out, const void *data, size_t size,
    sd_error_t *err)
{
    sd_st_file_t      *f;
    sd_safetensors_t  *st;

    *out = NULL;

    st = calloc(1, sizeof(sd_safetensors_t));
    if (st == NULL) {
        return sd_fail(err, "no memory");
    }

    st->status = 400;

    f = sd_st_add_file(st, "safetensors", err);

    if (f) {
        f->data = data;
        f->size = size;

        if (sd_st_read_header(st, err) == SD_OK
            && sd_st_finish(st, err) == SD_OK)
        {
            *out = st;
            return SD_OK;
        }
    }

    sd_safetensors_close(st);

    return SD_ERROR;
}


void
sd_safetensors_close(sd_safetensors_t *st)
{
    size_t  i;

    if (st == NULL) {
        return;
    }

    for (i = 0; i < st->nfiles; i++) {
        if (st->files[i].fd != -1) {
            close(st->files[i].fd);
        }

        free(st->files[i].header);
        free(st->files[i].path);
    }

    free(st->files);
    free(st->tensors);
    free(st->meta);
    free(st);
}


size_t
sd_safetensors_count(const sd_safetensors_t *st)
{
    return st->ntensors;
}


const sd_st_tensor_t *
sd_safetensors_get(const sd_safetensors_t *st, size_t i)
{
    return &st->tensors[i];
}


const sd_st_tensor_t *
sd_safetensors_find(const sd_safetensors_t *st, const char *name)
{
    sd_st_tensor_t  key;

    key.name = name;

    return st->ntensors ? bsearch(&key, st->tensors, st->ntensors,
                                  sizeof(sd_st_tensor_t), sd_st_by_name)
                        : NULL;
}


const char *
sd_safetensors_path(const sd_safetensors_t *st, const sd_st_tensor_t *t)
{
    return st->files[t ? t->file : 0].path;
}


const char *
sd_safetensors_meta(const sd_safetensors_t *st, const char *key)
{
    size_t  i;

    for (i = 0; i < st->nmeta; i++) {
        if (strcmp(st->meta[i].key, key) == 0) {
            return st->meta[i].value;
        }
    }

    return NULL;
}


uint64_t
sd_safetensors_bytes(const sd_safetensors_t *st)
{
    size_t    i;
    uint64_t  bytes;

    for (bytes = 0, i = 0; i < st->nfiles; i++) {
        bytes += st->files[i].size;
    }

    return bytes;
}


void
sd_safetensors_stamps(const sd_safetensors_t *st, sd_buf_t *out)
{
    size_t       i;
    struct stat  sb;

    for (i = 0; i < st->nfiles; i++) {

        if (fstat(st->files[i].fd, &sb) == -1) {
            memset(&sb, 0, sizeof(struct stat));
        }

        sd_buf_printf(out, "%lld %lld.%09ld\n", (long long) sb.st_size,
                      (long long) sb.st_mtim.tv_sec, sb.st_mtim.tv_nsec);
    }
}


ssize_t
sd_safetensors_peek(sd_safetensors_t *st, const sd_st_tensor_t *t, void *dst,
    size_t max, sd_error_t *err)
{
    if (max > t->size) {
        max = t->size;
    }

    if (sd_st_pread(st, &st->files[t->file], dst, max, t->offset, err)
        != SD_OK)
    {
        return SD_ERROR;
    }

    return max;
}


/*
 * n numbers of 16 bits to fp32, exactly: subnormals, infinities and NaN
 * included.  In blocks of a fixed size and without branches, so that the
 * compiler makes vectors of it.
 */

#define SD_ST_BLOCK  64


static inline void
sd_st_convert(float *dst, const char *src, size_t n, sd_type_t type)
{
    float     f;
    size_t    i;
    uint16_t  h[SD_ST_BLOCK] = { 0 };
    uint32_t  u[SD_ST_BLOCK];

    memcpy(h, src, n * sizeof(uint16_t));

    if (type == SD_BF16) {
        for (i = 0; i < SD_ST_BLOCK; i++) {
            u[i] = (uint32_t) h[i] << 16;
        }

    } else {
        for (i = 0; i < SD_ST_BLOCK; i++) {
            u[i] = (uint32_t) (h[i] & 0x7fff) << 13;
            memcpy(&f, &u[i], 4);

            /* to fp32's bias of the exponent, which makes subnormals normal */

            f *= 0x1p112f;
            memcpy(&u[i], &f, 4);

            u[i] |= (h[i] & 0x7c00) == 0x7c00 ? 0x7f800000 : 0;
            u[i] |= (uint32_t) (h[i] & 0x8000) << 16;
        }
    }

    memcpy(dst, u, n * sizeof(float));
}


int
sd_safetensors_read_f32(sd_safetensors_t *st, const sd_st_tensor_t *t,
    float *dst, sd_error_t *err)
{
    size_t         i, n;
    const char    *src;
    sd_st_file_t  *f = &st->files[t->file];

    if (t->type == SD_F32) {
        return sd_st_pread(st, f, dst, t->size, t->offset, err);
    }

    if (t->type != SD_F16 && t->type != SD_BF16) {
        return sd_st_error(st, err, t->name, "%s: tensor \"%s\" is neither "
                           "F32 nor F16 nor BF16", f->path, t->name);
    }

    /* into dst's upper half: the conversion reads ahead of what it writes */

    src = (char *) dst + t->size;

    if (sd_st_pread(st, f, (char *) dst + t->size, t->size, t->offset, err)
        != SD_OK)
    {
        return SD_ERROR;
    }

    for (i = 0; i < t->count; i += n) {
        n = t->count - i < SD_ST_BLOCK ? t->count - i : SD_ST_BLOCK;
        sd_st_convert(dst + i, src + 2 * i, n, t->type);
    }

    return SD_OK;
}


static void
sd_st_put_string(sd_buf_t *b, const char *s)
{
    sd_buf_append(b, "\"", 1);
    sd_buf_json(b, s, strlen(s));
    sd_buf_append(b, "\"", 1);
}


int
sd_safetensors_write(sd_buf_t *out, const sd_st_out_t *tensors, size_t n,
    const sd_st_meta_t *meta, size_t nmeta, sd_error_t *err)
{
    int        k;
    size_t     i, len, count;
    uint8_t    b[8];
    uint64_t   at;
    sd_buf_t   h = { 0 };

    sd_buf_puts(&h, "{");

    for (i = 0; i < nmeta; i++) {
        sd_buf_puts(&h, i ? "," : "\"__metadata__\":{");
        sd_st_put_string(&h, meta[i].key);
        sd_buf_puts(&h, ":");
        sd_st_put_string(&h, meta[i].value);
    }

    sd_buf_puts(&h, nmeta ? n ? "}," : "}" : "");

    for (at = 0, i = 0; i < n; i++) {
        sd_st_put_string(&h, tensors[i].name);
        sd_buf_puts(&h, ":{\"dtype\":\"F32\",\"shape\":[");

        for (count = 1, k = 0; k < tensors[i].rank; k++) {
            sd_buf_printf(&h, k ? ",%lld" : "%lld",
                          (long long) tensors[i].shape[k]);
            count *= tensors[i].shape[k];
        }

        sd_buf_printf(&h, "],\"data_offsets\":[%llu,%llu]}%s",
                      (unsigned long long) at,
                      (unsigned long long) (at + count * 4),
                      i + 1 < n ? "," : "");
        at += count * 4;
    }

    sd_buf_puts(&h, "}");

    while (!h.failed && h.len % 8) {
        sd_buf_puts(&h, " ");
    }

    for (len = h.len, i = 0; i < 8; i++, len >>= 8) {
        b[i] = len;
    }

    /* at once: the buffer's growth by doubling would double a large one */

    (void) sd_buf_reserve(out, 8 + h.len + at);

    sd_buf_append(out, b, 8);
    sd_buf_append(out, h.data, h.len);

    for (i = 0; i < n; i++) {
        for (count = 1, k = 0; k < tensors[i].rank; k++) {
            count *= tensors[i].shape[k];
        }

        sd_buf_append(out, tensors[i].data, count * 4);
    }

    k = h.failed || out->failed;
    sd_buf_free(&h);

    return k ? sd_fail(err, "no memory for a safetensors file") : SD_OK;
}
