/*
 * The engine: everything between a connected unix socket and a device.  Starts
 * threads of its own, needs nothing of nginx, and is driven by these few calls
 * from the one process that elected itself to run it.
 *
 * Threads: one I/O thread owns all sockets; each device has a thread that owns
 * it and steps the running pictures in turn, and another one for what is beside
 * the steps; encoder threads own JPEG, PNG and base64.  All with every signal
 * blocked, 8 MB stacks, names "sd-io", "sd-steps0", "sd-side0", "sd-enc0", and
 * the process's full cpu affinity.
 */

#ifndef SD_ENGINE_H
#define SD_ENGINE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "../io/buf.h"
#include "../io/error.h"
#include "../ops/ops.h"
#include "frame.h"
#include "stats.h"


typedef enum {
    SD_LOG_ERR,
    SD_LOG_WARN,
    SD_LOG_NOTICE,
    SD_LOG_INFO,
    SD_LOG_DEBUG
} sd_log_level_t;


typedef struct {
    const char       *path;             /* a diffusers directory */
    sd_precision_t    precision;
} sd_model_conf_t;


typedef struct {
    int               width, height;
} sd_size_t;


/* copied by sd_engine_start(): nothing of it needs to live on */

typedef struct {
    int                      listen;        /* listening, non-blocking; stays
                                               the caller's */
    uint8_t                  cookie[SD_COOKIE_SIZE];
    const char *const       *devices;       /* "cpu", "cuda:0" ...; NULL, or
                                               "auto": all cards, or the cpu */
    int                      ndevices;
    int                      threads;       /* 0: all that we may use */
    const sd_size_t         *sizes;         /* that a card gets ready for at
                                               start, beside each model's own */
    int                      nsizes;
    const char              *cache;         /* a directory for packed weights,
                                               and what cards found out; NULL */
    const sd_model_conf_t   *models;
    size_t                   nmodels;
    int                      queue;         /* jobs that may wait */
    int64_t                  queue_time;    /* ms that their work may take, on
                                               all devices; 0: any */
    int                      slots;         /* pictures that run at a time on
                                               a device; 0: 16, on a card 8 */
    int                      encoders;      /* threads; 0: one or two */
    int                      heartbeat;     /* ms, 15000 */
    int                      loading_fails; /* requests do not wait for a model
                                               that loads: 503 "warming_up" */
    int                      generations;   /* a file that all engines of this
                                               nginx lock, the caller's; 0 or
                                               -1: none.  See generation.c */
    int                      reload_waits;  /* for those before it to end */

    sd_stats_t              *stats;         /* to count in, which outlives the
                                               engine; or NULL */
    uint64_t                 cycle;         /* by which it is found there */

    /* from the I/O thread: whether the process may send requests; NULL: any of
     * our own user may */
    int                    (*peer)(void *data, pid_t pid);
    void                    *peer_data;

    /* from any thread; message has no newline */
    void                   (*log)(void *data, sd_log_level_t level,
                                  const char *message);
    void                    *log_data;
} sd_engine_conf_t;


typedef struct sd_engine_s  sd_engine_t;


/*
 * returns at once; devices are opened, models loaded, and warm-up pictures
 * made, by the devices' threads, while requests wait.  Must be called after
 * fork(): CUDA's libraries are loaded only then, and only where they are asked
 * for.
 */
int sd_engine_start(sd_engine_t **e, const sd_engine_conf_t *conf,
    sd_error_t *err);

/* stops accepting connections; running and waiting jobs go on */
void sd_engine_quit(sd_engine_t *e);

/* how many requests have not been answered to the end */
int sd_engine_active(sd_engine_t *e);

/* others serve what comes from now on, though not those who still ask here;
 * memory that is not needed goes back at once */
void sd_engine_leave(sd_engine_t *e);

/* ends every job now with an event that carries its state (503 "draining") */
void sd_engine_drain(sd_engine_t *e);

/* cuts everything, joins all threads (well under a second) and frees e */
void sd_engine_stop(sd_engine_t *e);


#endif
