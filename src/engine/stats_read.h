/*
 * What the answers, stats_json.c and stats_metrics.c, read the memory with.
 */

#ifndef SD_ENGINE_STATS_READ_H
#define SD_ENGINE_STATS_READ_H

#include "stats.h"


#define SD_PID_BITS  22             /* the kernel's PID_MAX_LIMIT */
#define SD_PID_MASK  ((1 << SD_PID_BITS) - 1)       /* of an entry's owner */


#define sd_load(p)  atomic_load_explicit(p, memory_order_relaxed)


/* a histogram's buckets but the last, by their upper bounds */

typedef struct {
    const uint64_t     *at;
    int                 n;
} sd_stats_bounds_t;

extern const sd_stats_bounds_t  sd_stats_bounds[SD_HISTOGRAMS];

extern const int    sd_stats_codes[SD_STATS_CODES];     /* 0: any other */
extern const char  *sd_memory_names[SD_MEMORIES];


/* it is somebody's, whose process is there */
int sd_stats_lives(sd_stats_engine_t *e);
/* the engine of this cycle, or NULL */
sd_stats_engine_t *sd_stats_find(sd_stats_t *s, uint64_t cycle);
/* pictures, on all devices */
int sd_stats_running(sd_stats_engine_t *e);


#endif
