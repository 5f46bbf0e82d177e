/*
 * Small files whole.
 */

#ifndef SD_FILE_H
#define SD_FILE_H

#include "buf.h"
#include "error.h"


struct cJSON;

/* appends at most max bytes and a final '\0' that len does not count */
int sd_file_read(sd_buf_t *out, const char *path, size_t max, sd_error_t *err);
int sd_file_write(const char *path, const void *data, size_t n,
    sd_error_t *err);

/* a JSON object from a file of at most 64 MB; errors name file and line */
int sd_json_read(struct cJSON **json, const char *path, sd_error_t *err);


#endif
