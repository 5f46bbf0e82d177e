/*
 * safetensors: an 8-byte little-endian length, a JSON header, and the tensors'
 * bytes.  Opening reads headers only, and checks every bound before it
 * allocates; data is read with pread() when asked for.  A directory's file may
 * be one file, a fp16 variant of it, or an index over shards.
 *
 * Hostile input: header at most 100 MB, at most 65536 tensors, rank at most 8,
 * sizes by overflow-checked products, offsets inside the file, no overlaps, no
 * duplicate names.  Error messages name file and tensor; their code is
 * "invalid_safetensors", their status 400 where the bytes came by parse().
 */

#ifndef SD_SAFETENSORS_H
#define SD_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "buf.h"
#include "error.h"


typedef enum {
    SD_F32,
    SD_F16,
    SD_BF16,
    SD_U8,
    SD_I32,
    SD_OTHER                    /* known to safetensors, not to us */
} sd_type_t;


typedef struct {
    const char  *name;
    sd_type_t    type;
    int          rank;
    int64_t      shape[8];
    uint64_t     count;         /* elements */
    int          file;          /* index into the set of shards */
    uint64_t     offset;        /* from the start of that file */
    uint64_t     size;          /* bytes */
} sd_st_tensor_t;


typedef struct sd_safetensors_s  sd_safetensors_t;


/* bytes; 0 for SD_OTHER */

static inline size_t
sd_type_size(sd_type_t type)
{
    switch (type) {
    case SD_F32:
    case SD_I32:
        return 4;
    case SD_F16:
    case SD_BF16:
        return 2;
    case SD_U8:
        return 1;
    default:
        return 0;
    }
}


/*
 * opens dir/base.safetensors, or dir/base.fp16.safetensors, or the shards of
 * dir/base.safetensors.index.json (also with a variant), in this order.
 * Follows links.  Reads the headers only.
 */
int sd_safetensors_open(sd_safetensors_t **st, const char *dir,
    const char *base, sd_error_t *err);

/* the same over bytes that stay the caller's and must outlive *st */
int sd_safetensors_parse(sd_safetensors_t **st, const void *data, size_t size,
    sd_error_t *err);

void sd_safetensors_close(sd_safetensors_t *st);     /* NULL is fine */

size_t sd_safetensors_count(const sd_safetensors_t *st);
const sd_st_tensor_t *sd_safetensors_get(const sd_safetensors_t *st, size_t i);
const sd_st_tensor_t *sd_safetensors_find(const sd_safetensors_t *st,
    const char *name);                               /* O(log n); or NULL */
/* the file that holds t; NULL: the first file of the set */
const char *sd_safetensors_path(const sd_safetensors_t *st,
    const sd_st_tensor_t *t);
const char *sd_safetensors_meta(const sd_safetensors_t *st, const char *key);
uint64_t sd_safetensors_bytes(const sd_safetensors_t *st);   /* on disk */
/* appends each file's size and time of change, as text: other files differ */
void sd_safetensors_stamps(const sd_safetensors_t *st, sd_buf_t *out);

/* at most max of t's bytes as they are in the file; returns how many, or
 * SD_ERROR */
ssize_t sd_safetensors_peek(sd_safetensors_t *st, const sd_st_tensor_t *t,
    void *dst, size_t max, sd_error_t *err);

/* converts t's elements (F32, F16 or BF16) to dst[t->count] */
int sd_safetensors_read_f32(sd_safetensors_t *st, const sd_st_tensor_t *t,
    float *dst, sd_error_t *err);


/* writing: one tensor of out's list, fp32, row-major */
typedef struct {
    const char   *name;
    const float  *data;
    int           rank;
    int64_t       shape[8];
} sd_st_out_t;

typedef struct {
    const char   *key;
    const char   *value;
} sd_st_meta_t;

/* appends a whole file; header padded with spaces to 8 bytes, keys in order */
int sd_safetensors_write(sd_buf_t *out, const sd_st_out_t *tensors, size_t n,
    const sd_st_meta_t *meta, size_t nmeta, sd_error_t *err);


#endif
