/*
 * What the engine's rooms share.
 *
 * DESIGN
 *
 * One lock, e->lock, guards everything that is marked "lock" below.  It is held
 * for list surgery only, never while bytes are sent, pictures encoded or steps
 * made.  Everything else belongs to one thread.
 *
 *   io_thread.c       owns sockets and connections.  A whole request becomes
 *                     the first mail of a job.
 *   encoder_thread.c  takes a job with mail, one encoder at a time, so that a
 *                     job's events keep their order: parses its request, queues
 *                     it, later turns its events into frames, which it leaves
 *                     in the job's outbox.
 *   device_thread.c   loads the models, takes pictures from the queue, steps
 *                     them in turn, and mails what happens.
 *   queue.c           the jobs that wait, and cancellation.
 *   job.c             a job, its mailbox and its outbox.
 *   status.c          what the engine tells about itself.
 *
 * Mail flows device -> encoders -> I/O and never waits: whoever is slow finds a
 * newer preview in place of the one it had not yet come to.
 *
 * A job is one request and one response; a run is one of its pictures on the
 * device.  A job lives as long as someone refers to it: its connection, the
 * queue, its runs, its mail, the wake list.
 */

#ifndef SD_ENGINE_INTERNAL_H
#define SD_ENGINE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "../http/http.h"
#include "../sd/model.h"
#include "../sd/picture.h"
#include "engine.h"


typedef struct sd_job_s    sd_job_t;
typedef struct sd_conn_s   sd_conn_t;
typedef struct sd_mail_s   sd_mail_t;
typedef struct sd_chunk_s  sd_chunk_t;


/* why a job should end; in job->cancelled, which the operations look at too */

typedef enum {
    SD_CANCEL_NONE,
    SD_CANCEL_CLIENT,           /* it has closed the connection */
    SD_CANCEL_TIMEOUT,
    SD_CANCEL_DRAIN,
    SD_CANCEL_FAILED,           /* another part of the job has failed */
    SD_CANCEL_STOP
} sd_cancel_t;


typedef enum {
    SD_RESULT_NONE,
    SD_RESULT_OK,
    SD_RESULT_ERROR,
    SD_RESULT_CANCELLED,
    SD_RESULT_TIMEOUT,
    SD_RESULT_REJECTED,
    SD_RESULTS
} sd_result_t;

extern const char  *sd_result_names[SD_RESULTS];


/* models and devices: made by the device thread; what others read is "lock" */

typedef enum {
    SD_MODEL_WAITING,           /* for its turn to be opened and loaded */
    SD_MODEL_LOADING,
    SD_MODEL_READY,             /* and warm */
    SD_MODEL_FAILED
} sd_model_state_t;

typedef struct {
    sd_device_t    *device;
    sd_context_t    context;
    size_t          arena;      /* bytes; 0: no context yet */
} sd_engine_device_t;

typedef struct {
    char                 path[4096];
    sd_precision_t       precision;

    sd_model_t          *model;         /* set before the I/O thread accepts */
    sd_engine_device_t  *device;

    sd_model_state_t     state;         /* lock */
    sd_error_t           error;         /* lock; where it has failed */
    uint32_t             load_time;     /* lock; ms */
    double               step_time;     /* lock; ms, an average that forgets */
} sd_engine_model_t;


/* a picture on the device: device thread; the array is "lock" */

typedef enum {
    SD_RUN_BEGIN,
    SD_RUN_STEP,
    SD_RUN_FINISH
} sd_phase_t;

typedef struct {
    sd_job_t       *job;
    sd_picture_t   *picture;
    int             image;
    sd_phase_t      phase;
    int             first;              /* the step that it began at */
    int             step, steps;
    uint64_t        seed;
    int             previews;           /* made so far */
} sd_run_t;


/* an event on its way to an encoder, with what it points to */

struct sd_mail_s {
    sd_mail_t      *next;
    int             request;            /* no event, but the job's beginning */
    sd_event_t      event;
    sd_buf_t        rgb;
    sd_buf_t        latent;
};


/* whole frames on their way to the socket */

struct sd_chunk_s {
    sd_chunk_t     *next;
    sd_buf_t        bytes;
    size_t          sent;               /* I/O thread */
    int             image;              /* of a preview; -1: mandatory */
    int             end;                /* nothing follows */
    int             tick;               /* nothing that the client sees */
};


struct sd_job_s {
    atomic_int               refs;
    atomic_int               cancelled;     /* sd_cancel_t */
    sd_engine_t             *engine;

    /* I/O thread until the first mail, then immutable */
    sd_buf_t                 input;         /* the frame and the body */
    size_t                   frame;         /* bytes of the frame */
    sd_request_t             request;       /* points into input */
    sd_engine_model_t       *model;
    const sd_dialect_t      *dialect;
    int64_t                  arrived;       /* sd_engine_now() */

    /* the encoder that handles the request, then immutable */
    sd_job_params_t          params;
    sd_job_info_t            info;
    sd_picture_t            *picture;       /* image 0, until its run */

    /* encoders, one at a time */
    void                    *state;         /* the format's */
    sd_buf_t                 states;        /* JSON, where a job ends early */

    /* I/O thread */
    sd_conn_t               *conn;

    /* lock */
    sd_job_t                *next_waiting;
    sd_job_t                *next_ready;
    sd_job_t                *next_wake;
    unsigned                 waiting:1;     /* in the queue */
    unsigned                 busy:1;        /* has mail, or an encoder */
    unsigned                 wake:1;        /* in the wake list */
    unsigned                 closed:1;      /* nobody reads any more */
    unsigned                 header:1;      /* HEADER is in the outbox */
    unsigned                 ended:1;       /* END is in the outbox */
    unsigned                 heartbeat:1;   /* there is one in the mail */
    int                      next_image;    /* the next one to run */
    int                      remaining;     /* images that have not ended */
    int64_t                  admitted;
    sd_result_t              result;
    sd_frame_info_t          report;        /* for INFO frames */
    sd_mail_t               *mail, **last_mail;
    sd_chunk_t              *chunks, **last_chunk;
};


struct sd_engine_s {
    sd_engine_conf_t         conf;
    sd_engine_model_t       *models;
    size_t                   nmodels;
    sd_engine_device_t       devices[2];    /* by sd_precision_t */
    int64_t                  started;       /* sd_engine_now() */

    pthread_t                io;
    pthread_t                device;
    pthread_t               *encoders;
    int                      nio, ndevice, nencoders;   /* that run */

    atomic_int               stopping;
    atomic_int               active;        /* connections */

    /* I/O thread */
    int                      epoll;
    int                      accepting;     /* the listener is in epoll */
    int64_t                  accept_after;  /* a time, or 0 */
    sd_conn_t               *conns;

    int                      event;         /* eventfd: wakes the I/O thread */

    pthread_mutex_t          lock;
    pthread_cond_t           device_cond;   /* work for the device thread */
    pthread_cond_t           encoder_cond;  /* ... for an encoder */

    /* lock */
    int                      opened;        /* all models; accept may begin */
    int                      quitting;
    int                      draining;
    sd_run_t                *running;       /* [conf.slots] */
    int                      nrunning;
    sd_job_t                *waiting, **last_waiting;
    int                      nwaiting;
    sd_job_t                *ready, **last_ready;       /* with mail */
    sd_job_t                *wake;                      /* with chunks */
    uint64_t                 results[SD_RESULTS];
    uint64_t                 steps;
    uint64_t                 wasted;        /* of jobs that were cancelled */
    uint64_t                 dropped;       /* previews */
};


/* engine.c */

int64_t sd_engine_now(void);                /* ms, monotonic */
void sd_engine_log(sd_engine_t *e, sd_log_level_t level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
int sd_engine_thread(pthread_t *t, void *(*main)(void *), sd_engine_t *e,
    const char *name, int n, sd_error_t *err);
void sd_engine_wake_io(sd_engine_t *e);

void *sd_io_thread(void *data);
void *sd_encoder_thread(void *data);
void *sd_device_thread(void *data);


/* job.c: functions with "locked" are called with the lock held */

sd_job_t *sd_job_new(sd_engine_t *e);
void sd_job_ref(sd_job_t *job);
void sd_job_unref(sd_job_t *job);

sd_mail_t *sd_mail_new(sd_event_type_t type);
void sd_mail_free(sd_mail_t *mail);
/* takes mail; a preview replaces one of the same image where the format says */
void sd_job_mail_locked(sd_job_t *job, sd_mail_t *mail);
void sd_job_mail(sd_job_t *job, sd_mail_t *mail);
/* the same with an ERROR or HANDOFF that ends the response */
void sd_job_error_locked(sd_job_t *job, const sd_error_t *err);
void sd_job_error(sd_job_t *job, const sd_error_t *err);

sd_chunk_t *sd_chunk_new(void);
void sd_chunk_free(sd_chunk_t *chunk);
void sd_job_send(sd_job_t *job, sd_chunk_t *chunk);     /* takes chunk */
void sd_job_send_locked(sd_job_t *job, sd_chunk_t *chunk);
/* the connection is closed without END: what is in the outbox is sent yet */
void sd_job_cut_locked(sd_job_t *job);
sd_chunk_t *sd_job_chunk(sd_job_t *job);    /* the outbox's first, or NULL */
/* nobody reads any more: empties the outbox */
void sd_job_close(sd_job_t *job);

void sd_job_result_locked(sd_job_t *job, sd_result_t result);
/* an INFO frame */
void sd_job_report_locked(sd_job_t *job, sd_buf_t *out);


/* queue.c */

/* SD_OK, or 503 with the reason; mails QUEUED where it has to wait */
int sd_queue_add(sd_job_t *job, sd_error_t *err);
void sd_queue_cancel(sd_job_t *job, sd_cancel_t reason);
void sd_queue_cancel_locked(sd_job_t *job, sd_cancel_t reason);
/* the next picture to run, or 0; the run holds a reference */
int sd_queue_take_locked(sd_engine_t *e, sd_run_t *run);
/* jobs of a model that could not be loaded */
void sd_queue_fail(sd_engine_t *e, sd_engine_model_t *m);
int sd_queue_position_locked(const sd_job_t *job);
/* seconds until the queue should have room again */
int sd_queue_retry_after(sd_engine_t *e);
/* what a job that is cancelled for this reason is told */
void sd_cancel_error(sd_error_t *err, sd_cancel_t reason);


/* status.c */

/* appends the JSON; returns the HTTP status */
int sd_engine_status(sd_engine_t *e, sd_buf_t *out);
int sd_engine_ready(sd_engine_t *e, uint32_t model, sd_buf_t *out);


/* encoder_thread.c; a whole answer: HEADER, INFO, DATA, END */

void sd_job_answer(sd_job_t *job, int status, const char *content_type,
    sd_buf_t *headers, const sd_buf_t *body);


#endif
