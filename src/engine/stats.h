/*
 * What the engine counts, and what it tells about itself, in memory that all
 * of nginx's processes share.
 *
 * DESIGN
 *
 * The memory outlives engines: a reload's next one goes on counting, and so
 * does the one after a kill -9.  So counters are the zone's, and what an engine
 * has at the moment, such as a queue, is in an entry of its own, which it takes
 * at its start and gives back at its end.  An entry whose process is gone is
 * nobody's, and may be taken.
 *
 * Engines write, any process reads at any time, nobody locks: numbers are
 * atomics, stored and added to relaxed; texts are written once, before the
 * number that says that they are there.  No pointers.  Another build of the
 * module has another zone, as nginx knows a zone by the address of its module.
 *
 * The answers, JSON (stats_json.c) and Prometheus' text (stats_metrics.c), are
 * made from that memory alone, by whoever is asked: no engine needs to be alive
 * for it.
 */

#ifndef SD_STATS_H
#define SD_STATS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "../io/buf.h"
#include "../io/error.h"


#define SD_VERSION        "0.1.0"

#define SD_STATS_DEVICES  32            /* of an engine, at most */
#define SD_STATS_MODELS   32
#define SD_STATS_CODES    20
#define SD_STATS_BOUNDS   20
#define SD_STATS_ENGINES  16            /* by default: old ones that work yet */


typedef atomic_uint_least64_t  sd_counter_t;


/* how a request has ended */

typedef enum {
    SD_RESULT_NONE,
    SD_RESULT_OK,
    SD_RESULT_ERROR,
    SD_RESULT_CANCELLED,
    SD_RESULT_TIMEOUT,
    SD_RESULT_REJECTED,
    SD_RESULT_HANDOFF,          /* with its state, as the server goes away */
    SD_RESULTS
} sd_result_t;

extern const char  *sd_result_names[SD_RESULTS];


typedef enum {
    SD_COUNT_PICTURES,
    SD_COUNT_STEPS,
    SD_COUNT_WASTED,
    SD_COUNT_DROPPED,
    SD_COUNT_RESUMED,
    SD_COUNT_INEXACT,
    SD_COUNT_REFUSED,
    SD_COUNT_PROMPT_HITS,
    SD_COUNT_PROMPT_MISSES,
    SD_COUNT_DEVICE_ERRORS,
    SD_COUNT_STARTS,
    SD_COUNT_SUPPRESSED,
    SD_COUNTS
} sd_count_t;


/* histograms: of microseconds, the last one of pictures */

typedef enum {
    SD_TIME_QUEUE,
    SD_TIME_PREVIEW,
    SD_TIME_STEP,
    SD_TIME_REQUEST,
    SD_STEP_PICTURES,
    SD_HISTOGRAMS
} sd_histogram_id_t;

typedef struct {
    sd_counter_t        buckets[SD_STATS_BOUNDS];   /* the last: +Inf */
    sd_counter_t        sum;
} sd_histogram_t;


typedef enum {
    SD_MEMORY_WEIGHTS,
    SD_MEMORY_ARENAS,
    SD_MEMORY_PICTURES,
    SD_MEMORY_PROMPTS,          /* that pictures share */
    SD_MEMORIES
} sd_memory_t;


/* models, and devices, which are ready when all of theirs are */

typedef enum {
    SD_MODEL_WAITING,           /* for its turn to be opened and loaded */
    SD_MODEL_LOADING,
    SD_MODEL_READY,             /* and warm */
    SD_MODEL_FAILED
} sd_model_state_t;


typedef enum {
    SD_ENGINE_DOWN,
    SD_ENGINE_RUNNING,
    SD_ENGINE_LEAVING,          /* others serve what comes now */
    SD_ENGINE_DRAINING
} sd_engine_state_t;


/* an sd_error_t without pointers; written before the state that tells of it */

typedef struct {
    int                 status;
    char                code[32];
    char                param[64];
    char                message[512];
} sd_stats_error_t;

typedef struct {
    char                name[64];
    char                isa[32];
    char                numerics[2][96];    /* by sd_precision_t; or "" */
    int                 threads;
    sd_stats_error_t    error;
    atomic_int          state;          /* sd_model_state_t */
    atomic_int          slots;
    atomic_int          running;
    atomic_int          copies[SD_STATS_MODELS];    /* sd_model_state_t */
} sd_stats_device_t;

typedef struct {
    char                path[1024];
    char                name[64];       /* "": it could not be opened */
    char                precision[8];
    char                numerics[96];
    char                fingerprint[68];
    int                 width, height;
    uint64_t            parameters;
    uint64_t            file_bytes;
    uint64_t            packed_bytes;
    sd_stats_error_t    error;
    atomic_int          state;          /* sd_model_state_t */
    atomic_int          load_ms;
    atomic_int          step_us;
} sd_stats_model_t;

typedef struct {
    sd_counter_t        owner;          /* a process and when it began, or 0 */
    atomic_uint         taken;          /* how often: has changed under a
                                           reader who began before */
    sd_counter_t        cycle;          /* whose engine it is */
    atomic_int          state;          /* sd_engine_state_t */
    sd_counter_t        started;        /* ms, monotonic */

    atomic_int          waiting;
    atomic_int          limit;
    sd_counter_t        work_ms;        /* of all devices, for what waits */
    sd_counter_t        work_limit_ms;  /* 0: none */
    atomic_int          connections;
    sd_counter_t        memory[SD_MEMORIES];

    atomic_int          ndevices;       /* texts before are written */
    atomic_int          nmodels;
    sd_stats_device_t   devices[SD_STATS_DEVICES];
    sd_stats_model_t    models[SD_STATS_MODELS];
} sd_stats_engine_t;

typedef struct {
    int                 nengines;
    sd_counter_t        requests[SD_STATS_CODES][SD_RESULTS];
    sd_counter_t        counts[SD_COUNTS];
    sd_histogram_t      histograms[SD_HISTOGRAMS];
    sd_stats_engine_t   engines[];
} sd_stats_t;


/* bytes for so many engines */
size_t sd_stats_size(int engines);
/* of zeroed memory, with as many as there is room for, which is one at least */
void sd_stats_init(sd_stats_t *s, size_t size);

/* an entry, all zero but for the calling process and the cycle; NULL: there is
 * none left */
sd_stats_engine_t *sd_stats_take(sd_stats_t *s, uint64_t cycle);
void sd_stats_give(sd_stats_engine_t *e);

void sd_stats_string(char *dst, size_t size, const char *src);
void sd_stats_error(sd_stats_error_t *dst, const sd_error_t *err);

void sd_stats_request(sd_stats_t *s, int status, sd_result_t result);
void sd_stats_observe(sd_stats_t *s, sd_histogram_id_t id, uint64_t value);

static inline void
sd_stats_add(sd_counter_t *c, uint64_t n)
{
    atomic_fetch_add_explicit(c, n, memory_order_relaxed);
}

static inline void
sd_stats_count(sd_stats_t *s, sd_count_t id, uint64_t n)
{
    sd_stats_add(&s->counts[id], n);
}


/*
 * answers; cycle: whose engine is meant where there are several.  They append;
 * ready returns the HTTP status
 */
void sd_stats_status(sd_stats_t *s, uint64_t cycle, sd_buf_t *out);
void sd_stats_metrics(sd_stats_t *s, sd_buf_t *out);
int sd_stats_ready(sd_stats_t *s, uint64_t cycle, uint32_t model,
    sd_buf_t *out);


#endif
