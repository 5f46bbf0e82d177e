/*
 * Where a model's time goes: stands between the checking wrapper and a
 * backend, and adds up time and floating-point operations for each operation
 * and shape.  For one thread's contexts.
 */

#ifndef SD_PROFILE_H
#define SD_PROFILE_H

#include <stdio.h>

#include "../ops/ops.h"


typedef struct {
    const char  *op;
    char         shape[64];
    int          calls;
    double       seconds;
    double       flops;         /* of the plain algorithm */
    double       bytes;         /* of inputs and outputs, weights not */
} sd_profile_row_t;


typedef struct {
    sd_ops_t            ops;    /* first: an operation finds the rest by it */
    const sd_ops_t     *real;
    sd_device_t        *device;
    sd_profile_row_t   *rows;   /* owned */
    size_t              nrows, arows;
} sd_profile_t;


/* all that the device computes goes through p, until sd_profile_end() */
void sd_profile_begin(sd_profile_t *p, sd_device_t *dev);
void sd_profile_end(sd_profile_t *p);

void sd_profile_clear(sd_profile_t *p);

/* sum of all rows' seconds */
double sd_profile_seconds(const sd_profile_t *p);

/* sums by operation, then the n rows that take longest; peak: FLOP/s */
void sd_profile_print(sd_profile_t *p, FILE *out, size_t n, double peak);

/* FLOP/s of independent fp32 FMAs; threads: as the cpu device was opened */
double sd_peak_flops(sd_device_t *dev, int threads);

double sd_now(void);                                /* seconds */


#endif
