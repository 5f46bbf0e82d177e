/*
 * What the two files of `sd bench` share: bench.c, which measures one picture
 * on any device, and bench_card.c, which measures a device that steps many
 * together.
 */

#ifndef SD_BENCH_H
#define SD_BENCH_H

#include "cli.h"


#define SD_BENCH_ROUNDS  20
#define SD_BENCH_DUMPS   16
#define SD_BENCH_PICTURES  16


typedef struct {
    char      name[32];
    float    *values;
    int       rank;
    int64_t   shape[8];
} sd_bench_dump_t;

typedef struct {
    const char       *path;
    const char       *name;             /* of the device */
    const char       *plans;            /* file, or NULL */
    int               threads;
    sd_precision_t    precision;
    int               rounds;
    int               pictures;         /* at a time, on a card */
    int               profile;
    int               lines;
    int               steps;
    sd_params_t       params;
    sd_buf_t          latents;

    sd_device_t      *device;
    sd_model_t       *model;
    sd_context_t      cx;
    sd_batch_t       *batch;
    sd_picture_t     *picture;
    uint8_t          *rgb;
    sd_cli_memory_t   memory;
    double            load;             /* seconds */

    sd_bench_dump_t   dumps[SD_BENCH_DUMPS];
    int               ndumps;
} sd_bench_t;


/* prints the table of a card */
int sd_bench_card(sd_bench_t *b, sd_error_t *err);


#endif
