/*
 * What the checking wrapper's two files share; no backend includes it.
 */

#ifndef SD_CHECK_H
#define SD_CHECK_H

#include "ops.h"


#define SD_MAX_DIM  (1 << 24)


/* keeps the first failure in cx and returns SD_ERROR */
int sd_refuse(sd_context_t *cx, const char *op, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

int sd_weight_check(const sd_weight_t *w, sd_error_t *err);


#endif
