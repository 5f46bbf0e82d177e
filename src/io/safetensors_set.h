/*
 * What an open safetensors set is made of: between safetensors.c, which opens,
 * reads and writes, and safetensors_header.c, which parses.
 */

#ifndef SD_SAFETENSORS_SET_H
#define SD_SAFETENSORS_SET_H

#include "safetensors.h"


#define SD_ST_HEADER_MAX   (100 * 1024 * 1024)
#define SD_ST_FILES_MAX    512


typedef struct {
    char           *path;       /* what errors call it */
    int             fd;         /* or -1 */
    const uint8_t  *data;       /* or NULL: the tensors' bytes */
    uint64_t        size;       /* of the whole */
    uint64_t        start;      /* of the tensors' bytes */
    char           *header;
} sd_st_file_t;


struct sd_safetensors_s {
    int              status;    /* of errors: 400 for a request's bytes */

    sd_st_file_t    *files;
    size_t           nfiles;

    sd_st_tensor_t  *tensors;   /* sorted by name once open */
    size_t           ntensors, atensors;

    sd_st_meta_t    *meta;
    size_t           nmeta;
};


#define sd_st_error(st, err, path, ...)                                       \
    sd_error(err, (st)->status, "invalid_safetensors", path, __VA_ARGS__)


/* the header of st's newest file, of len bytes in f->header: adds its tensors
 * and metadata to st; what only all tensors show is checked later */
int sd_st_parse_header(sd_safetensors_t *st, uint64_t len, sd_error_t *err);


#endif
