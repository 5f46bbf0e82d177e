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
 *   device.c          the devices.  One thread opens all of them.
 *   unit.c            a device in one precision, and memory to work in.
 *   copy.c            a model on a device.
 *   device_thread.c   a device's threads: loads its models, takes pictures from
 *                     the queue, steps them in turn.
 *   run.c             what is done with a picture in its turn, and mailed.
 *   queue.c           the jobs that wait, and cancellation.
 *   forecast.c        when they will begin, which is what they are told.
 *   cost.c            what work will take, by what such work took.
 *   job.c             a job, its mailbox and its outbox.
 *   thread.c          threads, and the clock.
 *   generation.c      engines before and after this one.
 *   log.c             lines for the log, not too many.
 *   status.c          what the engine tells about itself, in stats.h's memory.
 *
 * Mail flows device -> encoders -> I/O and never waits: whoever is slow finds a
 * newer preview in place of the one it had not yet come to.
 *
 * A job is one request and one response; a run is one of its pictures on a
 * device.  A job lives as long as someone refers to it: its connection, the
 * queue, its runs, its mail, the wake list.
 */

#ifndef SD_ENGINE_INTERNAL_H
#define SD_ENGINE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "../http/http.h"
#include "../sd/batch.h"
#include "../sd/model.h"
#include "../sd/picture.h"
#include "engine.h"


#define SD_MAX_SLOTS  64


typedef struct sd_job_s            sd_job_t;
typedef struct sd_conn_s           sd_conn_t;
typedef struct sd_mail_s           sd_mail_t;
typedef struct sd_chunk_s          sd_chunk_t;
typedef struct sd_engine_device_s  sd_engine_device_t;


/* why a job should end; in job->cancelled, which the operations look at too */

typedef enum {
    SD_CANCEL_NONE,
    SD_CANCEL_CLIENT,           /* it has closed the connection */
    SD_CANCEL_TIMEOUT,
    SD_CANCEL_DRAIN,
    SD_CANCEL_FAILED,           /* another part of the job has failed */
    SD_CANCEL_STOP
} sd_cancel_t;


/* models and devices: what others than the device's threads read is "lock" */

typedef struct {
    char                 path[4096];
    sd_precision_t       precision;

    sd_model_t          *model;         /* on the first device that has it: set
                                           before requests are parsed */

    sd_model_state_t     state;         /* lock; of the device that is ahead */
    sd_error_t           error;         /* lock; where it has failed on all */
    uint32_t             load_time;     /* lock; ms */
} sd_engine_model_t;


/* a device in one precision, and memory to work in */

typedef struct {
    sd_device_t    *device;             /* NULL: not opened */
    int             failed;
    sd_error_t      error;
    sd_context_t    steps;              /* step thread */
    size_t          steps_size;         /* of its arena; 0: no context yet */
    sd_context_t    side;               /* side thread */
    size_t          side_size;
} sd_engine_unit_t;


#define SD_KNOWN_SIZES  32
#define SD_COST_SIZES   8


/* what such work took, by the size of the picture; averages that forget */

typedef enum {
    SD_COST_EVALUATION,         /* of the model, a sample */
    SD_COST_BEGIN,
    SD_COST_FINISH,             /* and as much for each decoded preview */
    SD_COSTS
} sd_cost_what_t;

typedef struct {
    double               pixels;        /* 0: a free place, as all behind it */
    double               ms;            /* of the device */
    int                  n;             /* measurements, of which it counts the
                                           last few */
    uint64_t             when;          /* the last one was */
} sd_cost_size_t;

typedef struct {
    sd_cost_size_t       sizes[SD_COST_SIZES];
    uint64_t             when;
} sd_cost_t;


/* a model on a device */

typedef struct {
    sd_model_t          *model;         /* NULL: it could not be opened */
    sd_engine_unit_t    *unit;
    sd_batch_t          *batch;         /* step thread; NULL: none yet */

    int                  width, height; /* the last ones that were planned for,
                                           by whom pictures begin */
    size_t               steps_size, side_size;
    sd_size_t            known[SD_KNOWN_SIZES];     /* the device has kernels
                                                       for; the same thread */
    int                  nknown;

    sd_model_state_t     state;         /* lock */
    sd_error_t           error;         /* lock */
    sd_cost_t            costs[SD_COSTS];       /* lock */
} sd_engine_copy_t;


/*
 * A picture on a device.  Its phase says whose it is: the step thread's in
 * SD_RUN_STEP, the side thread's in all others.  Who has it changes the phase,
 * as the last thing, and does not look back.
 */

typedef enum {
    SD_RUN_BEGIN,
    SD_RUN_STEP,
    SD_RUN_PREVIEW,             /* one to be decoded */
    SD_RUN_FINISH
} sd_phase_t;

typedef struct {
    sd_job_t            *job;           /* lock; NULL: a free slot */
    sd_phase_t           phase;         /* lock */
    uint64_t             turn;          /* lock; lower ones come first */
    double               owed;          /* lock; ms of the device, for steps */
    int                  step, steps;   /* lock */
    int                  evaluations;   /* lock; that are left */

    sd_engine_copy_t    *copy;
    sd_picture_t        *picture;
    int                  image;
    int                  width, height;
    size_t               steps_size;    /* of arenas that it needs */
    size_t               side_size;
    int                  first;         /* the step that it began at */
    uint64_t             seed;
    int                  previews;      /* made so far */
    int                  samples;       /* of a row */
    size_t               memory;        /* the picture's own */
    unsigned             preview:1;     /* due at this step */
    unsigned             latent:1;
    unsigned             page:1;        /* and that is the end of it */
} sd_run_t;


struct sd_engine_device_s {
    sd_engine_t             *engine;
    int                      index;
    char                     name[64];
    sd_engine_unit_t         units[2];      /* by sd_precision_t */
    sd_engine_copy_t        *copies;        /* [nmodels] */
    int                      slots;

    pthread_t                thread;
    pthread_t                side;
    int                      nthread;       /* thread was started */

    /* lock */
    sd_model_state_t         state;
    sd_error_t               error;         /* why it has failed */
    sd_run_t                *runs;          /* [slots] */
    int                      nrunning;
    uint64_t                 turns;
    int                      idle[2];       /* the step thread, the side thread:
                                               it waits for work */
};


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
    _Atomic int64_t          deadline;      /* a time, or 0 */
    sd_engine_t             *engine;

    /* I/O thread until the first mail, then immutable */
    sd_buf_t                 input;         /* the frame and the body */
    size_t                   frame;         /* bytes of the frame */
    size_t                   large;         /* ... of a body, in e->bodies */
    sd_request_t             request;       /* points into input */
    sd_engine_model_t       *model;
    const sd_dialect_t      *dialect;
    sd_priority_t            priority;
    int64_t                  arrived;       /* sd_engine_now() */

    /* the encoder that handles the request, then immutable */
    sd_job_params_t          params;
    sd_job_info_t            info;
    int                      decodes;       /* previews of a picture that are */
    sd_picture_t            *picture;       /* image 0, until its run */

    /* encoders, one at a time */
    void                    *state;         /* the format's */
    sd_buf_t                 states;        /* JSON, where a job ends early */

    /* I/O thread */
    sd_conn_t               *conn;

    /* lock */
    sd_error_t               error;         /* why it has failed */
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
    unsigned                 previewed:1;   /* a picture is on its way */
    int                      next_image;    /* the next one to run */
    int                      remaining;     /* images that have not ended */
    int64_t                  admitted;
    double                   queued;        /* work of its pictures that wait:
                                               ms of a device */
    int                      position, told;    /* in the queue, from 1; the
                                                   one that it knows of */
    int64_t                  begins;        /* so it seems; 0: who knows */
    int64_t                  told_at;
    sd_result_t              result;
    sd_frame_info_t          report;        /* for INFO frames */
    sd_mail_t               *mail, **last_mail;
    sd_chunk_t              *chunks, **last_chunk;
};


/* the jobs of one priority that wait, in the order in which they came */

typedef struct {
    sd_job_t   *first, **last;
    int         n;
    int64_t     pass;               /* when it is its turn: see queue.c */
} sd_queue_t;

typedef struct {
    sd_job_t   *job[SD_PRIORITIES];
    int         image[SD_PRIORITIES];
    int64_t     pass[SD_PRIORITIES];
} sd_queue_walk_t;


struct sd_engine_s {
    sd_engine_conf_t         conf;
    sd_engine_model_t       *models;
    size_t                   nmodels;
    sd_engine_device_t      *devices;       /* lock, until all are opened */
    int                      ndevices, adevices;
    int64_t                  started;       /* sd_engine_now() */

    sd_stats_t              *stats;         /* what is counted */
    sd_stats_engine_t       *entry;         /* what is told; lock, for writers */
    sd_stats_t              *own_stats;     /* where nobody gave any, or NULL */
    sd_stats_engine_t       *own_entry;     /* where there was no room */

    struct {
        pthread_mutex_t      lock;
        int64_t              since;         /* the first of its lines */
        int                  lines;
        unsigned             suppressed;
    }                        log;

    pthread_t                io;
    pthread_t                device;        /* opens all; the first one's */
    pthread_t               *encoders;
    int                      nio, ndevice, nencoders;   /* that run */

    atomic_int               stopping;
    atomic_int               leaving;
    atomic_int               active;        /* connections */
    atomic_size_t            bodies;        /* bytes of large ones that are read
                                               or were not parsed yet */

    /* I/O thread */
    int                      epoll;
    int                      accepting;     /* the listener is in epoll */
    int64_t                  accept_after;  /* a time, or 0 */
    int64_t                  told;          /* when the queue was last */
    sd_conn_t               *conns;
    int                      parked;        /* those that wait for e->bodies */
    int                      strangers;     /* not logged yet */
    int64_t                  stranger_after;        /* when to log the next */

    int                      event;         /* eventfd: wakes the I/O thread */

    pthread_mutex_t          lock;
    pthread_cond_t           device_cond;   /* work for a device's threads */
    pthread_cond_t           encoder_cond;  /* ... for an encoder */

    /* lock */
    int                      opened;        /* all models: requests may be
                                               parsed */
    int                      quitting;
    int                      draining;
    sd_queue_t               queues[SD_PRIORITIES];
    int                      nwaiting;
    double                   queued;        /* their work, ms of a device */
    int64_t                  pass;          /* what the furthest one had when
                                               its turn came */
    sd_job_t                *ready, **last_ready;       /* with mail */
    sd_job_t                *wake;                      /* with chunks */
};


/* thread.c */

int64_t sd_engine_now(void);                /* ms, monotonic */
double sd_engine_clock(void);               /* the same with fractions */
int sd_engine_thread(pthread_t *t, void *(*main)(void *), void *data,
    const char *name, int n, sd_error_t *err);
void sd_engine_wake_io(sd_engine_t *e);


/* their mains */

void *sd_io_thread(void *data);
void *sd_encoder_thread(void *data);
void *sd_device_thread(void *data);         /* the first one */


/* generation.c; enter: SD_ERROR where the engine stops meanwhile */
int sd_generation_enter(sd_engine_t *e);
void sd_generation_leave(sd_engine_t *e);


/* log.c */

void sd_engine_log(sd_engine_t *e, sd_log_level_t level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* of what can be caused without end: no more than so many lines in a while */
void sd_engine_complain(sd_engine_t *e, sd_log_level_t level, const char *fmt,
    ...) __attribute__((format(printf, 3, 4)));
/* says how many were left out, once the while is over, or at the end; whether
 * there is something to be said later */
int sd_engine_suppressed(sd_engine_t *e, int end);


/* device.c */

/* all devices, and all models on each, from configurations and headers */
void sd_devices_open(sd_engine_t *e);
void sd_devices_free(sd_engine_t *e);       /* no thread is left */
/* the models, one after the other, until they are ready; the step thread */
void sd_device_load(sd_engine_device_t *d);
/* none of its models will be ready */
void sd_device_failed(sd_engine_device_t *d, sd_error_t *err);


/* unit.c */

/* once a precision that a model wants; an error is kept */
int sd_unit_open(sd_engine_device_t *d, sd_precision_t precision,
    sd_error_t *err);
void sd_unit_free(sd_engine_unit_t *u);
/* arenas of this size, at least: for steps, and for all else */
int sd_unit_steps(sd_engine_device_t *d, sd_engine_unit_t *u, size_t size,
    sd_error_t *err);
sd_context_t *sd_unit_side(sd_engine_device_t *d, sd_engine_unit_t *u,
    size_t size, sd_error_t *err);
/* the latter's go, until they are wanted again; the side thread */
void sd_device_trim(sd_engine_device_t *d);


/* copy.c */

/* model i, by its configuration and headers: milliseconds */
void sd_copy_open(sd_engine_device_t *d, size_t i);
void sd_copy_load(sd_engine_device_t *d, size_t i);
void sd_copy_failed(sd_engine_device_t *d, size_t i, sd_error_t *err);

/* the arenas' sizes for a picture */
int sd_copy_plan(sd_engine_device_t *d, sd_engine_copy_t *copy, int width,
    int height, size_t *steps, size_t *side, sd_error_t *err);
/* an arena for steps of this size, at least, and a batch in it */
int sd_copy_steps(sd_engine_device_t *d, sd_engine_copy_t *copy, size_t size,
    sd_error_t *err);
/* how many are stepped together */
int sd_copy_pictures(sd_engine_device_t *d, const sd_engine_copy_t *copy);
/* so that a card knows the kernels for pictures of this size before they step;
 * by whom pictures begin */
int sd_copy_rehearse(sd_engine_device_t *d, sd_engine_copy_t *copy,
    sd_size_t size, sd_error_t *err);


/* run.c: what is done in a turn; SD_ERROR is for sd_run_fail() */

int sd_run_begin(sd_engine_device_t *d, sd_run_t *run, sd_error_t *err);
/* one row of each, of one copy and one size */
int sd_run_step(sd_engine_device_t *d, sd_run_t **runs, int n,
    sd_error_t *err);
int sd_run_preview(sd_engine_device_t *d, sd_run_t *run, sd_error_t *err);
int sd_run_finish(sd_engine_device_t *d, sd_run_t *run, sd_error_t *err);

/* the job fails, which ends this run, and others when their owners see it */
void sd_run_fail(sd_engine_device_t *d, sd_run_t *run, const sd_error_t *err);
/* of a job that was cancelled */
void sd_run_cancelled(sd_engine_device_t *d, sd_run_t *run);


/* job.c: functions with "locked" are called with the lock held */

sd_job_t *sd_job_new(sd_engine_t *e);
void sd_job_ref(sd_job_t *job);
void sd_job_unref(sd_job_t *job);
void sd_job_input_free(sd_job_t *job);      /* all of it has been parsed */

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

/* status: the HTTP one that it was answered with */
void sd_job_result_locked(sd_job_t *job, int status, sd_result_t result);
/* an INFO frame */
void sd_job_report_locked(sd_job_t *job, sd_buf_t *out);


/* queue.c */

void sd_queue_init(sd_engine_t *e);
void sd_queue_free(sd_engine_t *e);         /* no thread is left */
/* 503, whatever it asks for, which need not be read then */
int sd_queue_full(sd_job_t *job, sd_error_t *err);
/* SD_OK, or 503 with the reason */
int sd_queue_add(sd_job_t *job, sd_error_t *err);
/* SD_ERROR: why a job is refused whose model is not there yet */
int sd_queue_warming(sd_job_t *job, sd_error_t *err);
void sd_queue_cancel(sd_job_t *job, sd_cancel_t reason);
void sd_queue_cancel_locked(sd_job_t *job, sd_cancel_t reason);
/* the next picture for this device into one of its slots, or 0; the run holds a
 * reference */
int sd_queue_take_locked(sd_engine_device_t *d);
/* all that wait, for this reason */
void sd_queue_cancel_all_locked(sd_engine_t *e, sd_cancel_t reason);
/* jobs of a model that could not be loaded */
void sd_queue_fail(sd_engine_t *e, sd_engine_model_t *m);
int sd_queue_running_locked(const sd_engine_t *e);
/* slots of all devices that have not failed; those that nobody has; devices
 * that take pictures, one at least, to divide by */
int sd_queue_slots_locked(const sd_engine_t *e);
int sd_queue_free_locked(const sd_engine_t *e);
int sd_queue_devices_locked(const sd_engine_t *e);
/* the pictures that wait, in the order in which they will be taken: the next
 * one's job, and which one of it; NULL: that was all */
void sd_queue_walk_locked(sd_queue_walk_t *w, const sd_engine_t *e);
sd_job_t *sd_queue_walk_next(sd_queue_walk_t *w, int *image);
/* what the pictures of a job that wait will take is asked for anew now and
 * then, as one learns */
void sd_queue_weigh_locked(sd_job_t *job, double work);
/* what a job that is cancelled for this reason is told */
int sd_cancel_error(sd_error_t *err, sd_cancel_t reason);


/* forecast.c */

/* a job has been queued: it is told where it stands, unless it need not wait */
void sd_forecast_added(sd_job_t *job);
/* those that wait where they stand, if that has changed; once a second */
void sd_forecast_tell(sd_engine_t *e);
/* where it stands in the queue, if it does, into the event */
void sd_forecast_place_locked(const sd_job_t *job, sd_event_t *ev);
/* seconds until the queue should have room for it */
int sd_forecast_retry_after(sd_job_t *job);


/* cost.c: 0 where nothing is known yet, as no device has the model ready */

void sd_cost_measured_locked(sd_engine_copy_t *copy, sd_cost_what_t what,
    int width, int height, double ms);
/* ms of a device, any of those that have the model */
double sd_cost_locked(const sd_engine_t *e, const sd_engine_model_t *m,
    sd_cost_what_t what, int width, int height);
/* a guided step of a picture, and a whole picture with so many */
double sd_cost_step_locked(const sd_engine_t *e, const sd_engine_model_t *m,
    int width, int height);
double sd_cost_picture_locked(const sd_engine_t *e, const sd_engine_model_t *m,
    int width, int height, int steps);
/* a picture of a job that waits, from its own beginning; what is left of one
 * that runs */
double sd_cost_job_locked(const sd_job_t *job);
double sd_cost_run_locked(const sd_run_t *run);
/* a row of the sampler's table on one device, with so many samples */
double sd_cost_row_locked(const sd_engine_copy_t *copy, int width, int height,
    int samples);


/* status.c */

/* an entry to tell in */
int sd_status_start(sd_engine_t *e, sd_error_t *err);
void sd_status_stop(sd_engine_t *e);
void sd_status_leave(sd_engine_t *e, sd_engine_state_t state);
/* devices and models, once they are known */
void sd_status_opened_locked(sd_engine_t *e);
/* the queue, what runs, or the state of a device or a model, has changed */
void sd_status_changed_locked(sd_engine_t *e);


/* encoder_thread.c; a whole answer: HEADER, INFO, DATA, END */

void sd_job_answer(sd_job_t *job, int status, const char *content_type,
    sd_buf_t *headers, const sd_buf_t *body);


#endif
