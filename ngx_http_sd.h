
/*
 * Nginx's side of Stable Diffusion: what its files share.  See
 * ngx_http_sd_module.c for the whole.
 */


#ifndef _NGX_HTTP_SD_H_INCLUDED_
#define _NGX_HTTP_SD_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_event.h>
#include <ngx_http.h>

#include <pthread.h>

#include "src/engine/check.h"
#include "src/engine/engine.h"
#include "src/engine/frame.h"


#define NGX_HTTP_SD_BUFFER_SIZE   65536     /* must hold a HEADER frame */


typedef struct ngx_http_sd_log_s  ngx_http_sd_log_t;


/* the engine of a cycle: its socket is known to all of the cycle's processes,
 * the rest is used by the one that runs it */

typedef struct {
    ngx_socket_t               listen;
    struct sockaddr_un         addr;
    socklen_t                  addrlen;
    uint8_t                    cookie[SD_COOKIE_SIZE];
    uint64_t                   cycle;       /* by which it is in the zone */
    ngx_pid_t                 *pids;        /* shared: by ngx_worker */
    ngx_fd_t                   generations; /* the file that engines lock */

    sd_engine_t               *engine;
    ngx_msec_t                 drain_timeout;

    pthread_mutex_t            mutex;       /* protects log */
    ngx_http_sd_log_t         *log;
    ngx_http_sd_log_t        **last;
    ngx_connection_t          *wakeup;      /* an eventfd */

    ngx_event_t                drain;
    ngx_msec_t                 drain_start;
    ngx_msec_t                 idle_start;
    unsigned                   exiting:1;
    unsigned                   drained:1;
} ngx_http_sd_engine_t;


typedef struct {
    ngx_array_t                models;      /* sd_model_conf_t, in use */
    ngx_array_t                checked;     /* ngx_str_t, paths found good */
    ngx_uint_t                 handlers;
    ngx_msec_t                 heartbeat;
    ngx_int_t                  request_id;  /* index of $request_id */

    const char               **devices;     /* NULL: auto */
    ngx_uint_t                 ndevices;
    sd_size_t                 *sizes;
    ngx_uint_t                 nsizes;
    ngx_path_t                *cache;       /* NULL: none */
    ngx_int_t                  threads;
    ngx_int_t                  slots;
    ngx_int_t                  queue;
    ngx_msec_t                 queue_time;  /* 0: any */
    ngx_uint_t                 loading;     /* 1: fail */
    ngx_uint_t                 reload;      /* 1: wait */
    ngx_msec_t                 drain_timeout;

    ngx_shm_zone_t            *zone;        /* data: sd_stats_t */
    ngx_http_sd_engine_t      *engine;      /* NULL: none, answer 503 */
} ngx_http_sd_main_conf_t;


typedef struct {
    ngx_http_upstream_conf_t   upstream;

    ngx_uint_t                 dialect;     /* sd_dialect_id_t, or below */
    u_char                    *file;        /* where the handler is set */
    ngx_uint_t                 line;

    ngx_str_t                  model;
    ngx_uint_t                 precision;
    ngx_msec_t                 timeout;
    ngx_uint_t                 preview;
    ngx_uint_t                 latent;
    ngx_uint_t                 priority;
    ngx_flag_t                 pagination;
    ngx_flag_t                 get;
    ngx_str_t                  cors;
    ngx_int_t                  max_steps;
    ngx_int_t                  max_pixels;
    ngx_int_t                  max_images;

    ngx_uint_t                 methods;     /* from the above, by merging */
    ngx_str_t                  allow;
    sd_location_t              location;
} ngx_http_sd_loc_conf_t;


/* what answers without an engine, and is no dialect */

typedef enum {
    NGX_HTTP_SD_STATUS = SD_DIALECTS,
    NGX_HTTP_SD_METRICS,
    NGX_HTTP_SD_READY,
    NGX_HTTP_SD_LIVE
} ngx_http_sd_handler_e;


typedef enum {
    NGX_HTTP_SD_VAR_STATUS,
    NGX_HTTP_SD_VAR_STEP,
    NGX_HTTP_SD_VAR_STEPS,
    NGX_HTTP_SD_VAR_SEED,
    NGX_HTTP_SD_VAR_QUEUE_TIME,
    NGX_HTTP_SD_VAR_TIME,
    NGX_HTTP_SD_VAR_MODEL
} ngx_http_sd_variable_e;


/* ngx_http_sd_directives.c */

char *ngx_http_sd_set_handler(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
char *ngx_http_sd_set_zone(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
char *ngx_http_sd_set_model(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
char *ngx_http_sd_set_device(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
char *ngx_http_sd_set_queue(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
char *ngx_http_sd_set_sizes(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
char *ngx_http_sd_set_cors(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
char *ngx_http_sd_check_msec(ngx_conf_t *cf, void *post, void *data);

sd_user_t *ngx_http_sd_user(ngx_cycle_t *cycle, sd_user_t *user);

/* ngx_http_sd_handler.c */

ngx_int_t ngx_http_sd_handler(ngx_http_request_t *r);

/* ngx_http_sd_upstream.c */

ngx_int_t ngx_http_sd_generate(ngx_http_request_t *r);
ngx_int_t ngx_http_sd_add_header(ngx_http_request_t *r, char *name,
    ngx_str_t *value);
ngx_int_t ngx_http_sd_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);

/* ngx_http_sd_status.c */

char *ngx_http_sd_add_zone(ngx_conf_t *cf, ngx_shm_zone_t **zone,
    ngx_str_t *name, size_t size);
ngx_int_t ngx_http_sd_tell(ngx_http_request_t *r);

/* ngx_http_sd_engine.c */

ngx_int_t ngx_http_sd_init_module(ngx_cycle_t *cycle);
ngx_int_t ngx_http_sd_init_process(ngx_cycle_t *cycle);
void ngx_http_sd_exit_process(ngx_cycle_t *cycle);


extern ngx_module_t  ngx_http_sd_module;


#endif /* _NGX_HTTP_SD_H_INCLUDED_ */
