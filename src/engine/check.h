/*
 * What `nginx -t` and a reload check: of a model its files' headers and
 * configuration, in milliseconds, without a weight, a device or a thread; of
 * devices their names, as another host may be the one that has them.
 */

#ifndef SD_CHECK_H
#define SD_CHECK_H

#include <sys/types.h>

#include "../io/error.h"
#include "engine.h"


/* the user who will load the model; the checking process may be root */

typedef struct {
    const char   *name;
    uid_t         uid;
    gid_t         gid;
} sd_user_t;

/* as: NULL for the calling user.  For a single-threaded process: files are
 * opened under the other user's identity, which is put back after that */
int sd_check_model(const char *path, const sd_user_t *as, sd_error_t *err);

/* whether files can be written in the directory, by writing one */
int sd_check_directory(const char *path, const sd_user_t *as, sd_error_t *err);

/* "auto", "cpu", or one or more of "cuda:N" without a repetition; "cuda" is
 * "cuda:0" */
int sd_check_devices(const char *const *names, int n, sd_error_t *err);

/* "512x512": both divisible by 8, from 8 to 16384 */
int sd_check_size(const char *text, sd_size_t *size, sd_error_t *err);


#endif
