
/*
 * nginx's side of Stable Diffusion.
 *
 * DESIGN
 *
 * This is an upstream module, as memcached's is.  Its peer is the engine
 * (src/engine), a set of threads that live in one worker process and listen on
 * an abstract unix socket.  Every worker, the engine's own included, connects
 * to that socket; one connection is one request, in the frames of
 * src/engine/frame.h.  Reading the request's body, back-pressure, HTTP/2,
 * timeouts and the noticing of a client that has gone are nginx's own; closing
 * the connection is what cancels a picture.  No thread ever touches nginx's
 * memory, and nothing here knows what a tensor is.
 *
 * The socket belongs to a configuration cycle.  The master makes it in
 * init_module, with a random name and a random cookie that each request
 * presents, and the workers inherit it.  So after a reload the old workers go
 * on with the old engine, and the new ones have theirs.
 *
 * The parts, in this order: directives; the request's way; the answer's way;
 * variables; configuration; the engine's life.
 */


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_event.h>
#include <ngx_http.h>

#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "src/engine/check.h"
#include "src/engine/engine.h"
#include "src/engine/frame.h"


#define NGX_HTTP_SD_BUFFER_SIZE   65536     /* must hold a HEADER frame */
#define NGX_HTTP_SD_ENDING_SIZE   65536     /* the longest ENDING we keep */
#define NGX_HTTP_SD_HEARTBEAT     15000     /* ms, at most */
#define NGX_HTTP_SD_DRAIN_POLL    50        /* ms */
#define NGX_HTTP_SD_DRAIN_IDLE    10000     /* ms that an idle engine waits
                                               for requests of old workers */

#define NGX_HTTP_SD_EXPOSE                                                    \
    "SD-Seed, SD-Model, SD-Steps, X-Request-Id, Retry-After"


/* a line for the error log, on its way from an engine's thread to the loop */

typedef struct ngx_http_sd_log_s  ngx_http_sd_log_t;

struct ngx_http_sd_log_s {
    ngx_http_sd_log_t         *next;
    ngx_uint_t                 level;
    u_char                     text[1];
};


/* the engine of a cycle: its socket is known to all of the cycle's processes,
 * the rest is used by the one that runs it */

typedef struct {
    ngx_socket_t               listen;
    struct sockaddr_un         addr;
    socklen_t                  addrlen;
    uint8_t                    cookie[SD_COOKIE_SIZE];
    ngx_pid_t                 *pids;        /* shared: by ngx_worker */

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

    ngx_uint_t                 device;
    ngx_int_t                  threads;
    ngx_int_t                  slots;
    ngx_int_t                  queue;
    ngx_msec_t                 drain_timeout;

    ngx_http_sd_engine_t      *engine;      /* NULL: none, answer 503 */
} ngx_http_sd_main_conf_t;


typedef struct {
    ngx_http_upstream_conf_t   upstream;

    ngx_uint_t                 dialect;     /* sd_dialect_id_t */
    u_char                    *file;        /* where the handler is set */
    ngx_uint_t                 line;

    ngx_str_t                  model;
    ngx_uint_t                 precision;
    ngx_msec_t                 timeout;
    ngx_uint_t                 preview;
    ngx_uint_t                 latent;
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


typedef struct {
    ngx_http_request_t        *request;
    ngx_msec_t                 start;

    sd_frame_t                 frame;       /* the one that is being read, */
    size_t                     nframe;      /* so much of its head is there, */
    size_t                     rest;        /* so much of its payload not */

    sd_frame_info_t            info;        /* the last whole one */
    sd_frame_info_t            next_info;
    u_char                    *ending;
    size_t                     ending_len;
    size_t                     ending_size;

    unsigned                   has_info:1;
    unsigned                   done:1;      /* END has come */
} ngx_http_sd_ctx_t;


typedef enum {
    NGX_HTTP_SD_VAR_STATUS,
    NGX_HTTP_SD_VAR_STEP,
    NGX_HTTP_SD_VAR_STEPS,
    NGX_HTTP_SD_VAR_SEED,
    NGX_HTTP_SD_VAR_QUEUE_TIME,
    NGX_HTTP_SD_VAR_TIME,
    NGX_HTTP_SD_VAR_MODEL
} ngx_http_sd_variable_e;


static ngx_int_t ngx_http_sd_handler(ngx_http_request_t *r);
static ngx_int_t ngx_http_sd_cors(ngx_http_request_t *r,
    ngx_http_sd_loc_conf_t *slcf);
static ngx_int_t ngx_http_sd_preflight(ngx_http_request_t *r,
    ngx_http_sd_loc_conf_t *slcf);
static ngx_int_t ngx_http_sd_add_header(ngx_http_request_t *r, char *name,
    ngx_str_t *value);
static ngx_int_t ngx_http_sd_create_request(ngx_http_request_t *r);
static sd_str_t ngx_http_sd_header_in(ngx_http_request_t *r, char *name);

static ngx_int_t ngx_http_sd_reinit_request(ngx_http_request_t *r);
static ngx_int_t ngx_http_sd_process_header(ngx_http_request_t *r);
static ngx_int_t ngx_http_sd_parse_header(ngx_http_request_t *r, u_char *p,
    size_t len);
static ngx_int_t ngx_http_sd_filter_init(void *data);
static ngx_int_t ngx_http_sd_filter(void *data, ssize_t bytes);
static ngx_int_t ngx_http_sd_frame(ngx_http_sd_ctx_t *ctx, u_char *p,
    size_t n, ngx_chain_t ***ll);
static ngx_int_t ngx_http_sd_ending_append(ngx_http_sd_ctx_t *ctx, u_char *p,
    size_t n);
static void ngx_http_sd_abort_request(ngx_http_request_t *r);
static void ngx_http_sd_finalize_request(ngx_http_request_t *r, ngx_int_t rc);
static ngx_int_t ngx_http_sd_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);

static ngx_int_t ngx_http_sd_add_variables(ngx_conf_t *cf);
static ngx_int_t ngx_http_sd_postconfiguration(ngx_conf_t *cf);
static void *ngx_http_sd_create_main_conf(ngx_conf_t *cf);
static char *ngx_http_sd_init_main_conf(ngx_conf_t *cf, void *conf);
static void *ngx_http_sd_create_loc_conf(ngx_conf_t *cf);
static char *ngx_http_sd_merge_loc_conf(ngx_conf_t *cf, void *parent,
    void *child);
static char *ngx_http_sd_merge_handler(ngx_conf_t *cf,
    ngx_http_sd_loc_conf_t *conf);
static ngx_int_t ngx_http_sd_model_index(ngx_conf_t *cf, ngx_str_t *path,
    ngx_uint_t precision);
static char *ngx_http_sd_set_handler(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_sd_set_model(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_sd_set_cors(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_sd_check_msec(ngx_conf_t *cf, void *post, void *data);

static ngx_int_t ngx_http_sd_init_module(ngx_cycle_t *cycle);
static ngx_http_sd_engine_t *ngx_http_sd_create_engine(ngx_cycle_t *cycle);
static void ngx_http_sd_close_engine(void *data);
static ngx_int_t ngx_http_sd_init_process(ngx_cycle_t *cycle);
static ngx_int_t ngx_http_sd_start_engine(ngx_cycle_t *cycle,
    ngx_http_sd_main_conf_t *smcf);
static void ngx_http_sd_exit_process(ngx_cycle_t *cycle);
static void ngx_http_sd_stop_engine(ngx_http_sd_engine_t *e);
static void ngx_http_sd_log(void *data, sd_log_level_t level,
    const char *message);
static void ngx_http_sd_print_log(ngx_http_sd_engine_t *e);
static void ngx_http_sd_wakeup_handler(ngx_event_t *ev);
static void ngx_http_sd_drain_handler(ngx_event_t *ev);
static ngx_uint_t ngx_http_sd_alone(ngx_http_sd_engine_t *e);


/* the engine of this process; needed where no request says which */

static ngx_http_sd_engine_t  *ngx_http_sd_running;


static ngx_conf_enum_t  ngx_http_sd_dialects[] = {
    { ngx_string("native"), SD_DIALECT_NATIVE },
    { ngx_string("sagemaker"), SD_DIALECT_SAGEMAKER },
    { ngx_null_string, 0 }
};

static ngx_uint_t  ngx_http_sd_status = SD_DIALECT_STATUS;
static ngx_uint_t  ngx_http_sd_ready = SD_DIALECT_READY;


static ngx_conf_enum_t  ngx_http_sd_devices[] = {
    { ngx_string("auto"), 0 },
    { ngx_string("cpu"), 1 },
    { ngx_null_string, 0 }
};

static const char  *ngx_http_sd_device_names[] = { "auto", "cpu" };


static ngx_conf_enum_t  ngx_http_sd_precisions[] = {
    { ngx_string("exact"), SD_PRECISION_EXACT },
    { ngx_string("bf16"), SD_PRECISION_BF16 },
    { ngx_null_string, 0 }
};

static ngx_conf_enum_t  ngx_http_sd_previews[] = {
    { ngx_string("none"), SD_PREVIEW_NONE },
    { ngx_string("rgb"), SD_PREVIEW_RGB },
    { ngx_string("vae"), SD_PREVIEW_VAE },
    { ngx_null_string, 0 }
};

static ngx_conf_enum_t  ngx_http_sd_latents[] = {
    { ngx_string("auto"), SD_LATENT_DEFAULT },
    { ngx_string("none"), SD_LATENT_NONE },
    { ngx_string("last"), SD_LATENT_LAST },
    { ngx_string("all"), SD_LATENT_ALL },
    { ngx_null_string, 0 }
};


static ngx_conf_num_bounds_t  ngx_http_sd_threads_bounds = {
    ngx_conf_check_num_bounds, 1, 1024
};

static ngx_conf_num_bounds_t  ngx_http_sd_slots_bounds = {
    ngx_conf_check_num_bounds, 1, 64
};

static ngx_conf_num_bounds_t  ngx_http_sd_queue_bounds = {
    ngx_conf_check_num_bounds, 0, 65535
};

static ngx_conf_num_bounds_t  ngx_http_sd_steps_bounds = {
    ngx_conf_check_num_bounds, 1, 1000
};

static ngx_conf_num_bounds_t  ngx_http_sd_pixels_bounds = {
    ngx_conf_check_num_bounds, 64, 64 * 1024 * 1024
};

static ngx_conf_num_bounds_t  ngx_http_sd_images_bounds = {
    ngx_conf_check_num_bounds, 1, 64
};

static ngx_conf_post_t  ngx_http_sd_msec_post = { ngx_http_sd_check_msec };


static ngx_command_t  ngx_http_sd_commands[] = {

    { ngx_string("sd_generate"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS|NGX_CONF_TAKE1,
      ngx_http_sd_set_handler,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("sd_status"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS,
      ngx_http_sd_set_handler,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      &ngx_http_sd_status },

    { ngx_string("sd_ready"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS,
      ngx_http_sd_set_handler,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      &ngx_http_sd_ready },

    { ngx_string("sd_model"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_sd_set_model,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("sd_precision"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_enum_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_sd_loc_conf_t, precision),
      &ngx_http_sd_precisions },

    { ngx_string("sd_device"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_enum_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_sd_main_conf_t, device),
      &ngx_http_sd_devices },

    { ngx_string("sd_threads"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_num_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_sd_main_conf_t, threads),
      &ngx_http_sd_threads_bounds },

    { ngx_string("sd_slots"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_num_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_sd_main_conf_t, slots),
      &ngx_http_sd_slots_bounds },

    { ngx_string("sd_queue"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_num_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_sd_main_conf_t, queue),
      &ngx_http_sd_queue_bounds },

    { ngx_string("sd_drain_timeout"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_sd_main_conf_t, drain_timeout),
      NULL },

    { ngx_string("sd_timeout"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_sd_loc_conf_t, timeout),
      NULL },

    { ngx_string("sd_read_timeout"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_sd_loc_conf_t, upstream.read_timeout),
      &ngx_http_sd_msec_post },

    { ngx_string("sd_intercept_errors"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_FLAG,
      ngx_conf_set_flag_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_sd_loc_conf_t, upstream.intercept_errors),
      NULL },

    { ngx_string("sd_preview"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_enum_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_sd_loc_conf_t, preview),
      &ngx_http_sd_previews },

    { ngx_string("sd_latent"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_enum_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_sd_loc_conf_t, latent),
      &ngx_http_sd_latents },

    { ngx_string("sd_pagination"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_FLAG,
      ngx_conf_set_flag_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_sd_loc_conf_t, pagination),
      NULL },

    { ngx_string("sd_get"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_FLAG,
      ngx_conf_set_flag_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_sd_loc_conf_t, get),
      NULL },

    { ngx_string("sd_cors"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_sd_set_cors,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("sd_max_steps"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_num_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_sd_loc_conf_t, max_steps),
      &ngx_http_sd_steps_bounds },

    { ngx_string("sd_max_pixels"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_num_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_sd_loc_conf_t, max_pixels),
      &ngx_http_sd_pixels_bounds },

    { ngx_string("sd_max_images"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_num_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_sd_loc_conf_t, max_images),
      &ngx_http_sd_images_bounds },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_sd_module_ctx = {
    ngx_http_sd_add_variables,             /* preconfiguration */
    ngx_http_sd_postconfiguration,         /* postconfiguration */

    ngx_http_sd_create_main_conf,          /* create main configuration */
    ngx_http_sd_init_main_conf,            /* init main configuration */

    NULL,                                  /* create server configuration */
    NULL,                                  /* merge server configuration */

    ngx_http_sd_create_loc_conf,           /* create location configuration */
    ngx_http_sd_merge_loc_conf             /* merge location configuration */
};


ngx_module_t  ngx_http_sd_module = {
    NGX_MODULE_V1,
    &ngx_http_sd_module_ctx,               /* module context */
    ngx_http_sd_commands,                  /* module directives */
    NGX_HTTP_MODULE,                       /* module type */
    NULL,                                  /* init master */
    ngx_http_sd_init_module,               /* init module */
    ngx_http_sd_init_process,              /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    ngx_http_sd_exit_process,              /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


static ngx_http_variable_t  ngx_http_sd_variables[] = {

    { ngx_string("sd_status"), NULL, ngx_http_sd_variable,
      NGX_HTTP_SD_VAR_STATUS, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("sd_step"), NULL, ngx_http_sd_variable,
      NGX_HTTP_SD_VAR_STEP, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("sd_steps"), NULL, ngx_http_sd_variable,
      NGX_HTTP_SD_VAR_STEPS, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("sd_seed"), NULL, ngx_http_sd_variable,
      NGX_HTTP_SD_VAR_SEED, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("sd_queue_time"), NULL, ngx_http_sd_variable,
      NGX_HTTP_SD_VAR_QUEUE_TIME, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("sd_time"), NULL, ngx_http_sd_variable,
      NGX_HTTP_SD_VAR_TIME, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("sd_model"), NULL, ngx_http_sd_variable,
      NGX_HTTP_SD_VAR_MODEL, NGX_HTTP_VAR_NOCACHEABLE, 0 },

      ngx_http_null_variable
};


/* the request's way: from the client to the engine */

static ngx_int_t
ngx_http_sd_handler(ngx_http_request_t *r)
{
    ngx_int_t                 rc;
    ngx_http_upstream_t      *u;
    ngx_http_sd_ctx_t        *ctx;
    ngx_http_sd_loc_conf_t   *slcf;
    ngx_http_sd_main_conf_t  *smcf;

    slcf = ngx_http_get_module_loc_conf(r, ngx_http_sd_module);
    smcf = ngx_http_get_module_main_conf(r, ngx_http_sd_module);

    if (slcf->cors.len && ngx_http_sd_cors(r, slcf) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (!(r->method & slcf->methods)) {
        if (ngx_http_sd_add_header(r, "Allow", &slcf->allow) != NGX_OK) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        return NGX_HTTP_NOT_ALLOWED;
    }

    if (r->method == NGX_HTTP_OPTIONS) {
        return ngx_http_sd_preflight(r, slcf);
    }

    if (smcf->engine == NULL) {
        return NGX_HTTP_SERVICE_UNAVAILABLE;
    }

    ctx = ngx_pcalloc(r->pool, sizeof(ngx_http_sd_ctx_t));
    if (ctx == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ctx->request = r;
    ctx->start = ngx_current_msec;

    ngx_http_set_ctx(r, ctx, ngx_http_sd_module);

    if (ngx_http_upstream_create(r) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    u = r->upstream;

    u->resolved = ngx_pcalloc(r->pool, sizeof(ngx_http_upstream_resolved_t));
    if (u->resolved == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    u->resolved->sockaddr = (struct sockaddr *) &smcf->engine->addr;
    u->resolved->socklen = smcf->engine->addrlen;
    u->resolved->naddrs = 1;
    ngx_str_set(&u->resolved->host, "sd engine");

    ngx_str_set(&u->schema, "sd://");
    u->output.tag = (ngx_buf_tag_t) &ngx_http_sd_module;

    u->conf = &slcf->upstream;

    u->create_request = ngx_http_sd_create_request;
    u->reinit_request = ngx_http_sd_reinit_request;
    u->process_header = ngx_http_sd_process_header;
    u->abort_request = ngx_http_sd_abort_request;
    u->finalize_request = ngx_http_sd_finalize_request;

    u->input_filter_init = ngx_http_sd_filter_init;
    u->input_filter = ngx_http_sd_filter;
    u->input_filter_ctx = ctx;

    rc = ngx_http_read_client_request_body(r, ngx_http_upstream_init);

    if (rc >= NGX_HTTP_SPECIAL_RESPONSE) {
        return rc;
    }

    return NGX_DONE;
}


static ngx_int_t
ngx_http_sd_cors(ngx_http_request_t *r, ngx_http_sd_loc_conf_t *slcf)
{
    ngx_str_t  value;

    if (ngx_http_sd_add_header(r, "Access-Control-Allow-Origin", &slcf->cors)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    ngx_str_set(&value, NGX_HTTP_SD_EXPOSE);

    return ngx_http_sd_add_header(r, "Access-Control-Expose-Headers", &value);
}


static ngx_int_t
ngx_http_sd_preflight(ngx_http_request_t *r, ngx_http_sd_loc_conf_t *slcf)
{
    ngx_int_t  rc;
    ngx_str_t  value;

    rc = ngx_http_discard_request_body(r);

    if (rc != NGX_OK) {
        return rc;
    }

    if (ngx_http_sd_add_header(r, "Access-Control-Allow-Methods", &slcf->allow)
        != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_str_set(&value, "Accept, Authorization, Content-Type, Last-Event-ID");

    if (ngx_http_sd_add_header(r, "Access-Control-Allow-Headers", &value)
        != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_str_set(&value, "86400");

    if (ngx_http_sd_add_header(r, "Access-Control-Max-Age", &value)
        != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    r->headers_out.status = NGX_HTTP_NO_CONTENT;

    return ngx_http_send_header(r);
}


static ngx_int_t
ngx_http_sd_add_header(ngx_http_request_t *r, char *name, ngx_str_t *value)
{
    ngx_table_elt_t  *h;

    h = ngx_list_push(&r->headers_out.headers);
    if (h == NULL) {
        return NGX_ERROR;
    }

    ngx_memzero(h, sizeof(ngx_table_elt_t));

    h->hash = 1;
    h->key.len = ngx_strlen(name);
    h->key.data = (u_char *) name;
    h->value = *value;

    return NGX_OK;
}


static ngx_int_t
ngx_http_sd_create_request(ngx_http_request_t *r)
{
    int                         rc;
    off_t                       length;
    ngx_buf_t                  *b;
    sd_buf_t                    frame;
    sd_error_t                  err;
    ngx_chain_t                *cl, *body, **ll;
    sd_request_t                request;
    ngx_http_upstream_t        *u;
    ngx_http_sd_loc_conf_t     *slcf;
    ngx_http_sd_main_conf_t    *smcf;
    ngx_http_variable_value_t  *id;

    slcf = ngx_http_get_module_loc_conf(r, ngx_http_sd_module);
    smcf = ngx_http_get_module_main_conf(r, ngx_http_sd_module);

    u = r->upstream;

    /* the body as nginx has read it: in memory, in a file, or both */

    cl = ngx_alloc_chain_link(r->pool);
    if (cl == NULL) {
        return NGX_ERROR;
    }

    length = 0;
    ll = &cl->next;

    for (body = u->request_bufs; body; body = body->next) {

        length += ngx_buf_size(body->buf);

        b = ngx_alloc_buf(r->pool);
        if (b == NULL) {
            return NGX_ERROR;
        }

        *b = *body->buf;

        *ll = ngx_alloc_chain_link(r->pool);
        if (*ll == NULL) {
            return NGX_ERROR;
        }

        (*ll)->buf = b;
        ll = &(*ll)->next;
    }

    *ll = NULL;

    ngx_memzero(&request, sizeof(sd_request_t));

    request.location = slcf->location;

    request.method = r->method == NGX_HTTP_POST ? SD_METHOD_POST
                     : r->method == NGX_HTTP_HEAD ? SD_METHOD_HEAD
                     : SD_METHOD_GET;

    request.uri.data = (char *) r->uri.data;
    request.uri.len = r->uri.len;
    request.args.data = (char *) r->args.data;
    request.args.len = r->args.len;

    request.accept = ngx_http_sd_header_in(r, "Accept");
    request.content_type = ngx_http_sd_header_in(r, "Content-Type");
    request.last_event_id = ngx_http_sd_header_in(r, "Last-Event-ID");

    id = ngx_http_get_indexed_variable(r, smcf->request_id);

    if (id && !id->not_found) {
        request.id.data = (char *) id->data;
        request.id.len = id->len;
    }

    request.body_length = length;

    ngx_memzero(&frame, sizeof(sd_buf_t));

    rc = sd_frame_request(&frame, smcf->engine->cookie, &request, &err);

    if (rc != SD_OK) {
        ngx_log_error(NGX_LOG_ERR, r->connection->log, 0, "sd: %s",
                      err.message);
        sd_buf_free(&frame);
        return NGX_ERROR;
    }

    b = ngx_create_temp_buf(r->pool, frame.len);

    if (b) {
        b->last = ngx_cpymem(b->last, frame.data, frame.len);
    }

    sd_buf_free(&frame);

    if (b == NULL) {
        return NGX_ERROR;
    }

    b->flush = 1;

    cl->buf = b;
    u->request_bufs = cl;

    return NGX_OK;
}


static sd_str_t
ngx_http_sd_header_in(ngx_http_request_t *r, char *name)
{
    size_t            len;
    sd_str_t          value;
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    len = ngx_strlen(name);

    for (part = &r->headers_in.headers.part; part; part = part->next) {
        h = part->elts;

        for (i = 0; i < part->nelts; i++) {

            if (h[i].key.len == len
                && ngx_strncasecmp(h[i].key.data, (u_char *) name, len) == 0)
            {
                value.data = (char *) h[i].value.data;
                value.len = h[i].value.len;
                return value;
            }
        }
    }

    value.data = "";
    value.len = 0;

    return value;
}


/* the answer's way: from the engine to the client */

static ngx_int_t
ngx_http_sd_reinit_request(ngx_http_request_t *r)
{
    return NGX_OK;
}


/*
 * u->buffer holds whole frames up to and with HEADER here, since all that may
 * come before it is short; what follows HEADER is left to the filter
 */

static ngx_int_t
ngx_http_sd_process_header(ngx_http_request_t *r)
{
    u_char               *p;
    size_t                n;
    ngx_buf_t            *b;
    sd_frame_t            frame;
    ngx_connection_t     *c;
    ngx_http_sd_ctx_t    *ctx;
    ngx_http_upstream_t  *u;

    u = r->upstream;
    b = &u->buffer;

    for ( ;; ) {
        n = b->last - b->pos;

        if (n < sizeof(sd_frame_t)) {
            break;
        }

        ngx_memcpy(&frame, b->pos, sizeof(sd_frame_t));

        if (frame.length > NGX_HTTP_SD_BUFFER_SIZE - sizeof(sd_frame_t)) {
            goto invalid;
        }

        if (n - sizeof(sd_frame_t) < frame.length) {
            break;
        }

        p = b->pos + sizeof(sd_frame_t);
        b->pos = p + frame.length;

        switch (frame.type) {

        case SD_FRAME_HEADER:
            return ngx_http_sd_parse_header(r, p, frame.length);

        case SD_FRAME_INFO:

            if (frame.length != sizeof(sd_frame_info_t)) {
                goto invalid;
            }

            ctx = ngx_http_get_module_ctx(r, ngx_http_sd_module);

            ngx_memcpy(&ctx->info, p, sizeof(sd_frame_info_t));
            ctx->has_info = 1;

            break;

        case SD_FRAME_TICK:
            break;

        default:
            goto invalid;
        }
    }

    n = b->last - b->pos;
    ngx_memmove(b->start, b->pos, n);
    b->pos = b->start;
    b->last = b->start + n;

    /* core re-arms this timer only once the header is there */

    c = u->peer.connection;
    ngx_add_timer(c->read, u->conf->read_timeout);

    return NGX_AGAIN;

invalid:

    ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                  "sd engine sent invalid frame %uD of %uD bytes",
                  frame.type, frame.length);

    return NGX_HTTP_UPSTREAM_INVALID_HEADER;
}


static ngx_int_t
ngx_http_sd_parse_header(ngx_http_request_t *r, u_char *p, size_t len)
{
    u_char               *last, *colon, *end;
    ngx_str_t             value;
    sd_frame_header_t     header;
    ngx_http_upstream_t  *u;

    if (len < sizeof(sd_frame_header_t)) {
        goto invalid;
    }

    ngx_memcpy(&header, p, sizeof(sd_frame_header_t));

    len -= sizeof(sd_frame_header_t);

    if (header.content_type_length > len
        || header.headers_length != len - header.content_type_length
        || header.status < 200 || header.status > 599)
    {
        goto invalid;
    }

    /* the upstream's buffer is going to be reused */

    p = ngx_pstrdup(r->pool, &(ngx_str_t) { len,
                                            p + sizeof(sd_frame_header_t) });
    if (p == NULL) {
        return NGX_ERROR;
    }

    u = r->upstream;

    u->headers_in.status_n = header.status;
    u->state->status = header.status;
    u->headers_in.content_length_n = header.content_length;

    if (header.content_type_length) {
        last = p + header.content_type_length;
        end = ngx_strlchr(p, last, ';');

        r->headers_out.content_type.data = p;
        r->headers_out.content_type.len = header.content_type_length;
        r->headers_out.content_type_len = (end ? end : last) - p;

        p = last;
    }

    last = p + header.headers_length;

    while (p < last) {

        colon = ngx_strlchr(p, last, ':');
        end = ngx_strlchr(p, last, CR);

        if (colon == NULL || end == NULL || colon > end || end + 1 == last) {
            goto invalid;
        }

        *colon = '\0';

        value.data = colon + 1;
        while (value.data < end && *value.data == ' ') {
            value.data++;
        }

        value.len = end - value.data;

        if (ngx_http_sd_add_header(r, (char *) p, &value) != NGX_OK) {
            return NGX_ERROR;
        }

        p = end + 2;
    }

    return NGX_OK;

invalid:

    ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                  "sd engine sent invalid header");

    return NGX_HTTP_UPSTREAM_INVALID_HEADER;
}


static ngx_int_t
ngx_http_sd_filter_init(void *data)
{
    ngx_http_sd_ctx_t  *ctx = data;

    /* 0 once END has come; a connection that closes before is an error */

    ctx->request->upstream->length = 1;

    return NGX_OK;
}


static ngx_int_t
ngx_http_sd_filter(void *data, ssize_t bytes)
{
    ngx_http_sd_ctx_t  *ctx = data;

    size_t                n;
    u_char               *p, *last;
    ngx_buf_t            *b;
    ngx_chain_t         **ll;
    ngx_http_upstream_t  *u;

    u = ctx->request->upstream;

    b = &u->buffer;
    p = b->last;
    last = p + bytes;
    b->last = last;

    for (ll = &u->out_bufs; *ll; ll = &(*ll)->next) { /* void */ }

    while (p < last && !ctx->done) {

        if (ctx->nframe < sizeof(sd_frame_t)) {
            n = ngx_min(sizeof(sd_frame_t) - ctx->nframe, (size_t) (last - p));

            ngx_memcpy((u_char *) &ctx->frame + ctx->nframe, p, n);

            ctx->nframe += n;
            p += n;

            if (ctx->nframe < sizeof(sd_frame_t)) {
                break;
            }

            ctx->rest = ctx->frame.length;

            if (ctx->frame.type == SD_FRAME_ENDING) {
                ctx->ending_len = 0;
            }
        }

        n = ngx_min(ctx->rest, (size_t) (last - p));

        if (ngx_http_sd_frame(ctx, p, n, &ll) != NGX_OK) {
            return NGX_ERROR;
        }

        p += n;
        ctx->rest -= n;

        if (ctx->rest == 0) {
            ctx->nframe = 0;
        }
    }

    if (ctx->done) {
        u->length = 0;
    }

    return NGX_OK;
}


/* n bytes at p are the next of the current frame's payload; ctx->rest still
 * counts them, and n == ctx->rest where they are the last */

static ngx_int_t
ngx_http_sd_frame(ngx_http_sd_ctx_t *ctx, u_char *p, size_t n,
    ngx_chain_t ***ll)
{
    size_t                offset;
    ngx_chain_t          *cl;
    ngx_http_upstream_t  *u;

    switch (ctx->frame.type) {

    case SD_FRAME_DATA:

        if (n == 0) {
            return NGX_OK;
        }

        u = ctx->request->upstream;

        cl = ngx_chain_get_free_buf(ctx->request->pool, &u->free_bufs);
        if (cl == NULL) {
            return NGX_ERROR;
        }

        cl->buf->flush = 1;
        cl->buf->memory = 1;
        cl->buf->pos = p;
        cl->buf->last = p + n;
        cl->buf->tag = u->output.tag;

        **ll = cl;
        *ll = &cl->next;

        return NGX_OK;

    case SD_FRAME_INFO:

        if (ctx->frame.length != sizeof(sd_frame_info_t)) {
            break;
        }

        offset = ctx->frame.length - ctx->rest;
        ngx_memcpy((u_char *) &ctx->next_info + offset, p, n);

        if (n == ctx->rest) {
            ctx->info = ctx->next_info;
            ctx->has_info = 1;
        }

        return NGX_OK;

    case SD_FRAME_ENDING:

        if (ctx->frame.length > NGX_HTTP_SD_ENDING_SIZE) {
            break;
        }

        return ngx_http_sd_ending_append(ctx, p, n);

    case SD_FRAME_TICK:
        return NGX_OK;

    case SD_FRAME_END:
        ctx->done = 1;
        return NGX_OK;
    }

    ngx_log_error(NGX_LOG_ERR, ctx->request->connection->log, 0,
                  "sd engine sent invalid frame %uD of %uD bytes",
                  ctx->frame.type, ctx->frame.length);

    return NGX_ERROR;
}


static ngx_int_t
ngx_http_sd_ending_append(ngx_http_sd_ctx_t *ctx, u_char *p, size_t n)
{
    if (ctx->ending_size < ctx->frame.length) {

        /* only at a frame's beginning, so that nothing is to be copied */

        ctx->ending = ngx_pnalloc(ctx->request->pool, ctx->frame.length * 2);
        if (ctx->ending == NULL) {
            return NGX_ERROR;
        }

        ctx->ending_size = ctx->frame.length * 2;
    }

    ngx_memcpy(ctx->ending + ctx->ending_len, p, n);
    ctx->ending_len += n;

    return NGX_OK;
}


static void
ngx_http_sd_abort_request(ngx_http_request_t *r)
{
    /* closing the connection is enough */
}


static void
ngx_http_sd_finalize_request(ngx_http_request_t *r, ngx_int_t rc)
{
    char               *status;
    ngx_buf_t          *b;
    ngx_chain_t         out;
    ngx_http_sd_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_sd_module);

    if (ctx == NULL || ctx->done || r->header_only) {
        return;
    }

    /* the engine's last word is not its final one: say what happened */

    if (rc == NGX_DONE || rc == NGX_HTTP_CLIENT_CLOSED_REQUEST
        || rc == NGX_HTTP_REQUEST_TIME_OUT || r->connection->error)
    {
        status = "cancelled";

    } else if (rc == NGX_HTTP_GATEWAY_TIME_OUT) {
        status = "timeout";

    } else {
        status = "error";
    }

    ngx_cpystrn((u_char *) ctx->info.status, (u_char *) status,
                sizeof(ctx->info.status));
    ctx->info.time = (uint32_t) (ngx_current_msec - ctx->start);

    /* cut between two parts: an orderly ending, if the client is there */

    if (!r->upstream->header_sent || ctx->ending_len == 0 || ctx->nframe
        || (rc != NGX_ERROR && rc < NGX_HTTP_INTERNAL_SERVER_ERROR)
        || r->connection->error)
    {
        return;
    }

    b = ngx_calloc_buf(r->pool);
    if (b == NULL) {
        return;
    }

    b->memory = 1;
    b->flush = 1;
    b->pos = ctx->ending;
    b->last = ctx->ending + ctx->ending_len;

    out.buf = b;
    out.next = NULL;

    (void) ngx_http_output_filter(r, &out);
}


/* variables */

static ngx_int_t
ngx_http_sd_variable(ngx_http_request_t *r, ngx_http_variable_value_t *v,
    uintptr_t data)
{
    u_char             *p;
    sd_frame_info_t    *info;
    ngx_http_sd_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_sd_module);

    if (ctx == NULL || (!ctx->has_info && ctx->info.status[0] == '\0')
        || (data != NGX_HTTP_SD_VAR_STATUS && !ctx->has_info))
    {
        v->not_found = 1;
        return NGX_OK;
    }

    info = &ctx->info;

    p = ngx_pnalloc(r->pool, sizeof(info->model));
    if (p == NULL) {
        return NGX_ERROR;
    }

    v->data = p;

    switch (data) {

    case NGX_HTTP_SD_VAR_STATUS:
        p = ngx_cpystrn(p, (u_char *) info->status, sizeof(info->status));
        break;

    case NGX_HTTP_SD_VAR_STEP:
        p = ngx_sprintf(p, "%uD", info->step);
        break;

    case NGX_HTTP_SD_VAR_STEPS:
        p = ngx_sprintf(p, "%uD", info->steps);
        break;

    case NGX_HTTP_SD_VAR_SEED:
        p = ngx_sprintf(p, "%uL", info->seed);
        break;

    case NGX_HTTP_SD_VAR_QUEUE_TIME:
        p = ngx_sprintf(p, "%uD.%03uD", info->queue_time / 1000,
                        info->queue_time % 1000);
        break;

    case NGX_HTTP_SD_VAR_TIME:
        p = ngx_sprintf(p, "%uD.%03uD", info->time / 1000, info->time % 1000);
        break;

    default: /* NGX_HTTP_SD_VAR_MODEL */
        p = ngx_cpystrn(p, (u_char *) info->model, sizeof(info->model));
        break;
    }

    v->len = p - v->data;
    v->valid = 1;
    v->no_cacheable = 0;
    v->not_found = 0;

    return NGX_OK;
}


/* configuration */

static ngx_int_t
ngx_http_sd_add_variables(ngx_conf_t *cf)
{
    ngx_http_variable_t  *var, *v;

    for (v = ngx_http_sd_variables; v->name.len; v++) {

        var = ngx_http_add_variable(cf, &v->name, v->flags);
        if (var == NULL) {
            return NGX_ERROR;
        }

        var->get_handler = v->get_handler;
        var->data = v->data;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_sd_postconfiguration(ngx_conf_t *cf)
{
    ngx_str_t                 name;
    ngx_http_sd_main_conf_t  *smcf;

    smcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_sd_module);

    if (smcf->handlers && smcf->models.nelts == 0) {
        ngx_log_error(NGX_LOG_EMERG, cf->log, 0,
                      "\"sd_status\" or \"sd_ready\" without \"sd_generate\"");
        return NGX_ERROR;
    }

    ngx_str_set(&name, "request_id");

    smcf->request_id = ngx_http_get_variable_index(cf, &name);

    return smcf->request_id == NGX_ERROR ? NGX_ERROR : NGX_OK;
}


static void *
ngx_http_sd_create_main_conf(ngx_conf_t *cf)
{
    ngx_http_sd_main_conf_t  *smcf;

    smcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_sd_main_conf_t));
    if (smcf == NULL) {
        return NULL;
    }

    /*
     * set by ngx_pcalloc():
     *
     *     smcf->handlers = 0;
     *     smcf->engine = NULL;
     */

    if (ngx_array_init(&smcf->models, cf->pool, 4, sizeof(sd_model_conf_t))
        != NGX_OK
        || ngx_array_init(&smcf->checked, cf->pool, 4, sizeof(ngx_str_t))
           != NGX_OK)
    {
        return NULL;
    }

    smcf->heartbeat = NGX_HTTP_SD_HEARTBEAT;

    smcf->device = NGX_CONF_UNSET_UINT;
    smcf->threads = NGX_CONF_UNSET;
    smcf->slots = NGX_CONF_UNSET;
    smcf->queue = NGX_CONF_UNSET;
    smcf->drain_timeout = NGX_CONF_UNSET_MSEC;

    return smcf;
}


static char *
ngx_http_sd_init_main_conf(ngx_conf_t *cf, void *conf)
{
    ngx_http_sd_main_conf_t *smcf = conf;

    ngx_conf_init_uint_value(smcf->device, 0);
    ngx_conf_init_value(smcf->threads, 0);
    ngx_conf_init_value(smcf->slots, 4);
    ngx_conf_init_value(smcf->queue, 64);
    ngx_conf_init_msec_value(smcf->drain_timeout, 300000);

    return NGX_CONF_OK;
}


static void *
ngx_http_sd_create_loc_conf(ngx_conf_t *cf)
{
    ngx_http_sd_loc_conf_t  *conf;

    conf = ngx_pcalloc(cf->pool, sizeof(ngx_http_sd_loc_conf_t));
    if (conf == NULL) {
        return NULL;
    }

    /*
     * set by ngx_pcalloc(), in upstream among all that we do not use:
     *
     *     conf->upstream.buffering = 0;
     *     conf->upstream.ignore_client_abort = 0;
     *
     *     conf->model = { 0, NULL };
     *     conf->cors = { 0, NULL };
     */

    conf->upstream.read_timeout = NGX_CONF_UNSET_MSEC;
    conf->upstream.intercept_errors = NGX_CONF_UNSET;

    /* the hardcoded values; a job must not be started twice */
    conf->upstream.connect_timeout = 5000;
    conf->upstream.send_timeout = 60000;
    conf->upstream.buffer_size = NGX_HTTP_SD_BUFFER_SIZE;
    conf->upstream.request_buffering = 1;
    conf->upstream.next_upstream = NGX_HTTP_UPSTREAM_FT_OFF;

    conf->dialect = NGX_CONF_UNSET_UINT;
    conf->precision = NGX_CONF_UNSET_UINT;
    conf->timeout = NGX_CONF_UNSET_MSEC;
    conf->preview = NGX_CONF_UNSET_UINT;
    conf->latent = NGX_CONF_UNSET_UINT;
    conf->pagination = NGX_CONF_UNSET;
    conf->get = NGX_CONF_UNSET;
    conf->max_steps = NGX_CONF_UNSET;
    conf->max_pixels = NGX_CONF_UNSET;
    conf->max_images = NGX_CONF_UNSET;

    return conf;
}


static char *
ngx_http_sd_merge_loc_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_http_sd_loc_conf_t *prev = parent;
    ngx_http_sd_loc_conf_t *conf = child;

    ngx_http_core_loc_conf_t  *clcf;

    ngx_conf_merge_msec_value(conf->upstream.read_timeout,
                              prev->upstream.read_timeout, 60000);
    ngx_conf_merge_value(conf->upstream.intercept_errors,
                         prev->upstream.intercept_errors, 0);

    ngx_conf_merge_str_value(conf->model, prev->model, "");
    ngx_conf_merge_uint_value(conf->precision, prev->precision,
                              SD_PRECISION_EXACT);
    ngx_conf_merge_msec_value(conf->timeout, prev->timeout, 0);
    ngx_conf_merge_uint_value(conf->preview, prev->preview, SD_PREVIEW_RGB);
    ngx_conf_merge_uint_value(conf->latent, prev->latent, SD_LATENT_DEFAULT);
    ngx_conf_merge_value(conf->pagination, prev->pagination, 0);
    ngx_conf_merge_value(conf->get, prev->get, 0);
    ngx_conf_merge_value(conf->max_steps, prev->max_steps, 150);
    ngx_conf_merge_value(conf->max_pixels, prev->max_pixels, 1024 * 1024);
    ngx_conf_merge_value(conf->max_images, prev->max_images, 4);

    if (conf->cors.data == NULL) {
        conf->cors = prev->cors;
    }

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    /* "if" and "limit_except" blocks are the location that they stand in */

    if ((clcf->noname || clcf->lmt_excpt)
        && clcf->handler == NULL && conf->dialect == NGX_CONF_UNSET_UINT
        && prev->dialect != NGX_CONF_UNSET_UINT)
    {
        conf->dialect = prev->dialect;
        conf->file = prev->file;
        conf->line = prev->line;
        clcf->handler = ngx_http_sd_handler;
    }

    if (conf->dialect == NGX_CONF_UNSET_UINT) {
        return NGX_CONF_OK;
    }

    return ngx_http_sd_merge_handler(cf, conf);
}


/* what follows from a location's settings, once they are all known */

static char *
ngx_http_sd_merge_handler(ngx_conf_t *cf, ngx_http_sd_loc_conf_t *conf)
{
    u_char                   *p;
    ngx_int_t                 index;
    ngx_uint_t                generate;
    ngx_http_sd_main_conf_t  *smcf;

    generate = conf->dialect == SD_DIALECT_NATIVE
               || conf->dialect == SD_DIALECT_SAGEMAKER;

    if (generate && conf->model.len == 0) {
        ngx_log_error(NGX_LOG_EMERG, cf->log, 0,
                      "\"sd_generate\" without \"sd_model\" in %s:%ui",
                      conf->file, conf->line);
        return NGX_CONF_ERROR;
    }

    smcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_sd_module);

    smcf->handlers++;

    /* the engine has to say something well before we lose patience */

    smcf->heartbeat = ngx_min(smcf->heartbeat,
                              conf->upstream.read_timeout / 3 + 1);

    index = 0;

    if (conf->model.len) {
        index = ngx_http_sd_model_index(cf, &conf->model, conf->precision);
        if (index == NGX_ERROR) {
            return NGX_CONF_ERROR;
        }
    }

    conf->location.model = (uint32_t) index;
    conf->location.dialect = conf->dialect;
    conf->location.timeout = (uint32_t) conf->timeout;
    conf->location.max_steps = (uint32_t) conf->max_steps;
    conf->location.max_pixels = (uint32_t) conf->max_pixels;
    conf->location.max_images = (uint32_t) conf->max_images;
    conf->location.preview = conf->preview;
    conf->location.latent = conf->latent;
    conf->location.pagination = conf->pagination;

    p = ngx_pnalloc(cf->pool, sizeof("GET, HEAD, POST, OPTIONS") - 1);
    if (p == NULL) {
        return NGX_CONF_ERROR;
    }

    conf->allow.data = p;
    conf->methods = NGX_HTTP_HEAD;

    if (conf->get || !generate) {
        conf->methods |= NGX_HTTP_GET;
        p = ngx_cpymem(p, "GET, ", 5);
    }

    p = ngx_cpymem(p, "HEAD", 4);

    if (generate) {
        conf->methods |= NGX_HTTP_POST;
        p = ngx_cpymem(p, ", POST", 6);
    }

    if (conf->cors.len) {
        conf->methods |= NGX_HTTP_OPTIONS;
        p = ngx_cpymem(p, ", OPTIONS", 9);
    }

    conf->allow.len = p - conf->allow.data;

    return NGX_CONF_OK;
}


/* the engine's models are those that a location can reach */

static ngx_int_t
ngx_http_sd_model_index(ngx_conf_t *cf, ngx_str_t *path, ngx_uint_t precision)
{
    ngx_uint_t                i;
    sd_model_conf_t          *model;
    ngx_http_sd_main_conf_t  *smcf;

    smcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_sd_module);

    model = smcf->models.elts;

    for (i = 0; i < smcf->models.nelts; i++) {

        if (model[i].precision == precision
            && ngx_strcmp(model[i].path, path->data) == 0)
        {
            return i;
        }
    }

    model = ngx_array_push(&smcf->models);
    if (model == NULL) {
        return NGX_ERROR;
    }

    model->path = (char *) path->data;
    model->precision = precision;

    return i;
}


static char *
ngx_http_sd_set_handler(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_sd_loc_conf_t *slcf = conf;

    ngx_str_t                 *value;
    ngx_conf_enum_t           *e;
    ngx_http_core_loc_conf_t  *clcf;

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    if (slcf->dialect != NGX_CONF_UNSET_UINT) {
        return "is duplicate";
    }

    if (clcf->handler) {
        return "conflicts with another handler of this location";
    }

    if (cmd->post) {
        slcf->dialect = *(ngx_uint_t *) cmd->post;

    } else if (cf->args->nelts == 1) {
        slcf->dialect = SD_DIALECT_NATIVE;

    } else {
        value = cf->args->elts;

        for (e = ngx_http_sd_dialects; e->name.len; e++) {

            if (e->name.len == value[1].len
                && ngx_strcmp(e->name.data, value[1].data) == 0)
            {
                slcf->dialect = e->value;
                break;
            }
        }

        if (e->name.len == 0) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "unknown dialect \"%V\", must be \"native\" "
                               "or \"sagemaker\"", &value[1]);
            return NGX_CONF_ERROR;
        }
    }

    slcf->file = cf->conf_file->file.name.data;
    slcf->line = cf->conf_file->line;

    clcf->handler = ngx_http_sd_handler;

    return NGX_CONF_OK;
}


/*
 * checks the model at once, where an error can name the line.  A worker may
 * see less than the root that runs `nginx -t`: it is checked as that user.
 */

static char *
ngx_http_sd_set_model(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_sd_loc_conf_t *slcf = conf;

    sd_user_t                 user, *as;
    ngx_str_t                *value, *path;
    ngx_uint_t                i;
    sd_error_t                err;
    ngx_core_conf_t          *ccf;
    ngx_http_sd_main_conf_t  *smcf;

    if (slcf->model.data) {
        return "is duplicate";
    }

    value = cf->args->elts;

    /* "model/" and "model" are one; a root directory is none */

    while (value[1].len && value[1].data[value[1].len - 1] == '/') {
        value[1].data[--value[1].len] = '\0';
    }

    if (value[1].len == 0) {
        return "has an empty path";
    }

    if (ngx_conf_full_name(cf->cycle, &value[1], 0) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    slcf->model = value[1];

    smcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_sd_module);

    path = smcf->checked.elts;

    for (i = 0; i < smcf->checked.nelts; i++) {

        if (path[i].len == value[1].len
            && ngx_strcmp(path[i].data, value[1].data) == 0)
        {
            return NGX_CONF_OK;
        }
    }

    as = NULL;
    ccf = (ngx_core_conf_t *) ngx_get_conf(cf->cycle->conf_ctx,
                                           ngx_core_module);

    if (geteuid() == 0 && ccf->user != (ngx_uid_t) NGX_CONF_UNSET_UINT
        && ccf->user != 0)
    {
        user.name = ccf->username;
        user.uid = ccf->user;
        user.gid = ccf->group;
        as = &user;
    }

    if (sd_check_model((char *) value[1].data, as, &err) != SD_OK) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "sd_model \"%V\"%s%s%s: %s", &value[1],
                           as ? " as user \"" : "", as ? as->name : "",
                           as ? "\"" : "", err.message);
        return NGX_CONF_ERROR;
    }

    path = ngx_array_push(&smcf->checked);
    if (path == NULL) {
        return NGX_CONF_ERROR;
    }

    *path = value[1];

    return NGX_CONF_OK;
}


/* an origin is what a browser sends: a scheme and a host, no path */

static char *
ngx_http_sd_set_cors(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_sd_loc_conf_t *slcf = conf;

    u_char     *p;
    ngx_str_t  *value;

    if (slcf->cors.data) {
        return "is duplicate";
    }

    value = cf->args->elts;

    if (ngx_strcmp(value[1].data, "off") == 0) {
        ngx_str_set(&slcf->cors, "");
        return NGX_CONF_OK;
    }

    if (ngx_strcmp(value[1].data, "*") != 0) {

        p = (u_char *) ngx_strstr(value[1].data, "://");

        if (p == NULL || p == value[1].data || p[3] == '\0'
            || ngx_strchr(p + 3, '/') || ngx_strchr(p + 3, ' '))
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid origin \"%V\", must be \"*\", \"off\" "
                               "or as \"https://example.com\"", &value[1]);
            return NGX_CONF_ERROR;
        }
    }

    slcf->cors = value[1];

    return NGX_CONF_OK;
}


static char *
ngx_http_sd_check_msec(ngx_conf_t *cf, void *post, void *data)
{
    ngx_msec_t *value = data;

    if (*value == 0) {
        return "must be greater than zero";
    }

    return NGX_CONF_OK;
}


/* the engine's life: made by the master, run by one worker */

/* an error here would end nginx, on a reload too: log it, and answer 503 */

static ngx_int_t
ngx_http_sd_init_module(ngx_cycle_t *cycle)
{
    ngx_http_sd_main_conf_t  *smcf;

    if (ngx_test_config) {
        return NGX_OK;
    }

    smcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_sd_module);

    if (smcf == NULL || smcf->handlers == 0) {
        return NGX_OK;
    }

    smcf->engine = ngx_http_sd_create_engine(cycle);

    if (smcf->engine == NULL) {
        ngx_log_error(NGX_LOG_ERR, cycle->log, 0, "sd engine is down");
        return NGX_OK;
    }

    smcf->engine->drain_timeout = smcf->drain_timeout;

    return NGX_OK;
}


static ngx_http_sd_engine_t *
ngx_http_sd_create_engine(ngx_cycle_t *cycle)
{
    u_char                *p;
    uint8_t                name[16];
    ngx_pool_cleanup_t    *cln;
    ngx_http_sd_engine_t  *e;

    cln = ngx_pool_cleanup_add(cycle->pool, sizeof(ngx_http_sd_engine_t));
    if (cln == NULL) {
        return NULL;
    }

    e = cln->data;

    ngx_memzero(e, sizeof(ngx_http_sd_engine_t));
    e->listen = (ngx_socket_t) -1;
    e->pids = MAP_FAILED;

    cln->handler = ngx_http_sd_close_engine;

    if (getrandom(e->cookie, SD_COOKIE_SIZE, 0) != SD_COOKIE_SIZE
        || getrandom(name, sizeof(name), 0) != sizeof(name))
    {
        ngx_log_error(NGX_LOG_ERR, cycle->log, ngx_errno,
                      "getrandom() failed");
        return NULL;
    }

    /* shared with the workers, so that the engine's knows who is there */

    e->pids = mmap(NULL, NGX_MAX_PROCESSES * sizeof(ngx_pid_t),
                   PROT_READ|PROT_WRITE, MAP_SHARED|MAP_ANONYMOUS, -1, 0);

    if (e->pids == MAP_FAILED) {
        ngx_log_error(NGX_LOG_ERR, cycle->log, ngx_errno, "mmap() failed");
        return NULL;
    }

    /* abstract, the zero before the name: no file, nothing to be unlinked */

    e->addr.sun_family = AF_UNIX;

    p = ngx_cpymem(e->addr.sun_path + 1, "nginx-sd-", sizeof("nginx-sd-") - 1);
    p = ngx_hex_dump(p, name, sizeof(name));

    e->addrlen = p - (u_char *) &e->addr;

    e->listen = socket(AF_UNIX, SOCK_STREAM|SOCK_NONBLOCK|SOCK_CLOEXEC, 0);

    if (e->listen == (ngx_socket_t) -1
        || bind(e->listen, (struct sockaddr *) &e->addr, e->addrlen) == -1
        || listen(e->listen, NGX_LISTEN_BACKLOG) == -1)
    {
        ngx_log_error(NGX_LOG_ERR, cycle->log, ngx_socket_errno,
                      "cannot listen for requests to the sd engine");
        return NULL;
    }

    return e;
}


static void
ngx_http_sd_close_engine(void *data)
{
    ngx_http_sd_engine_t *e = data;

    ngx_http_sd_stop_engine(e);

    if (e->listen != (ngx_socket_t) -1) {
        ngx_close_socket(e->listen);
        e->listen = (ngx_socket_t) -1;
    }

    if (e->pids != MAP_FAILED) {
        (void) munmap(e->pids, NGX_MAX_PROCESSES * sizeof(ngx_pid_t));
        e->pids = MAP_FAILED;
    }
}


static ngx_int_t
ngx_http_sd_init_process(ngx_cycle_t *cycle)
{
    ngx_http_sd_engine_t     *e;
    ngx_http_sd_main_conf_t  *smcf;

    smcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_sd_module);

    if (smcf == NULL || smcf->engine == NULL) {
        return NGX_OK;
    }

    e = smcf->engine;

    if (ngx_process == NGX_PROCESS_WORKER) {
        e->pids[ngx_worker] = ngx_pid;
    }

    if ((ngx_process == NGX_PROCESS_WORKER && ngx_worker == 0)
        || ngx_process == NGX_PROCESS_SINGLE)
    {
        if (ngx_http_sd_start_engine(cycle, smcf) == NGX_OK) {
            return NGX_OK;
        }

        ngx_log_error(NGX_LOG_ERR, cycle->log, 0, "sd engine is down");
    }

    /*
     * Nobody else keeps the socket open, so that connecting fails at once when
     * there is no engine, and does not wait for one; but the master does, for
     * a worker that it may have to respawn.
     */

    ngx_close_socket(e->listen);
    e->listen = (ngx_socket_t) -1;

    return NGX_OK;
}


static ngx_int_t
ngx_http_sd_start_engine(ngx_cycle_t *cycle, ngx_http_sd_main_conf_t *smcf)
{
    int                    fd;
    sd_error_t             err;
    ngx_event_t           *rev;
    ngx_connection_t      *c;
    sd_engine_conf_t       conf;
    ngx_http_sd_engine_t  *e;

    e = smcf->engine;

    /*
     * The threads wake this loop up by an eventfd when they have something for
     * the log.  Its connection is "idle", so nginx calls its handler on QUIT
     * and on reload: that is how the drain begins without a polling timer.
     */

    fd = eventfd(0, EFD_NONBLOCK|EFD_CLOEXEC);
    if (fd == -1) {
        ngx_log_error(NGX_LOG_ERR, cycle->log, ngx_errno, "eventfd() failed");
        return NGX_ERROR;
    }

    c = ngx_get_connection(fd, cycle->log);
    if (c == NULL) {
        (void) close(fd);
        return NGX_ERROR;
    }

    c->data = e;
    c->idle = 1;

    rev = c->read;
    rev->log = cycle->log;
    rev->channel = 1;
    rev->handler = ngx_http_sd_wakeup_handler;

    c->write->log = cycle->log;
    c->write->channel = 1;

    if (ngx_add_event(rev, NGX_READ_EVENT, 0) == NGX_ERROR) {
        ngx_close_connection(c);
        return NGX_ERROR;
    }

    e->wakeup = c;
    e->last = &e->log;
    pthread_mutex_init(&e->mutex, NULL);

    e->drain.data = c;
    e->drain.log = cycle->log;
    e->drain.handler = ngx_http_sd_drain_handler;

    ngx_memzero(&conf, sizeof(sd_engine_conf_t));

    conf.listen = e->listen;
    ngx_memcpy(conf.cookie, e->cookie, SD_COOKIE_SIZE);
    conf.device = ngx_http_sd_device_names[smcf->device];
    conf.threads = (int) smcf->threads;
    conf.models = smcf->models.elts;
    conf.nmodels = smcf->models.nelts;
    conf.queue = (int) smcf->queue;
    conf.slots = (int) smcf->slots;
    conf.heartbeat = (int) smcf->heartbeat;
    conf.log = ngx_http_sd_log;
    conf.log_data = e;

    if (sd_engine_start(&e->engine, &conf, &err) != SD_OK) {
        ngx_log_error(NGX_LOG_ERR, cycle->log, 0, "sd: %s", err.message);
        e->engine = NULL;
        e->wakeup = NULL;
        ngx_close_connection(c);
        return NGX_ERROR;
    }

    ngx_http_sd_running = e;

    return NGX_OK;
}


static void
ngx_http_sd_exit_process(ngx_cycle_t *cycle)
{
    if (ngx_http_sd_running) {
        ngx_http_sd_stop_engine(ngx_http_sd_running);
    }
}


static void
ngx_http_sd_stop_engine(ngx_http_sd_engine_t *e)
{
    ngx_connection_t  *c;

    if (e->engine == NULL) {
        return;
    }

    sd_engine_stop(e->engine);
    e->engine = NULL;

    ngx_http_sd_running = NULL;

    if (e->drain.timer_set) {
        ngx_del_timer(&e->drain);
    }

    ngx_http_sd_print_log(e);

    c = e->wakeup;
    e->wakeup = NULL;
    ngx_close_connection(c);

    ngx_close_socket(e->listen);
    e->listen = (ngx_socket_t) -1;
}


/* called by the engine's threads, so malloc() and no pool */

static void
ngx_http_sd_log(void *data, sd_log_level_t level, const char *message)
{
    ngx_http_sd_engine_t *e = data;

    size_t              len;
    uint64_t            one;
    ngx_http_sd_log_t  *line;

    static const ngx_uint_t  levels[] = {
        NGX_LOG_ERR, NGX_LOG_WARN, NGX_LOG_NOTICE, NGX_LOG_INFO, NGX_LOG_DEBUG
    };

    len = ngx_strlen(message);

    line = malloc(sizeof(ngx_http_sd_log_t) + len);
    if (line == NULL) {
        return;
    }

    line->next = NULL;
    line->level = levels[level];
    ngx_memcpy(line->text, message, len + 1);

    pthread_mutex_lock(&e->mutex);
    *e->last = line;
    e->last = &line->next;
    pthread_mutex_unlock(&e->mutex);

    one = 1;

    if (write(e->wakeup->fd, &one, sizeof(uint64_t)) == -1) {
        /* the counter is full: the loop is awake anyway */
        return;
    }
}


static void
ngx_http_sd_print_log(ngx_http_sd_engine_t *e)
{
    ngx_http_sd_log_t  *line, *next;

    pthread_mutex_lock(&e->mutex);
    line = e->log;
    e->log = NULL;
    e->last = &e->log;
    pthread_mutex_unlock(&e->mutex);

    for ( /* void */ ; line; line = next) {
        next = line->next;
        ngx_log_error(line->level, ngx_cycle->log, 0, "sd: %s", line->text);
        free(line);
    }
}


static void
ngx_http_sd_wakeup_handler(ngx_event_t *ev)
{
    uint64_t               n;
    ngx_connection_t      *c;
    ngx_http_sd_engine_t  *e;

    c = ev->data;
    e = c->data;

    while (read(c->fd, &n, sizeof(uint64_t)) > 0) { /* void */ }

    ngx_http_sd_print_log(e);

    if (c->close && !e->exiting) {

        /* the worker is going to exit; from here on the timer holds it */

        e->exiting = 1;
        e->drain_start = ngx_current_msec;
        e->idle_start = ngx_current_msec;

        ngx_http_sd_drain_handler(&e->drain);
    }
}


/*
 * An exiting worker lives as long as it has a timer that is not cancelable, or
 * a request.  This one holds it while the engine works for anybody, and while
 * other workers of the cycle might still send a request that they had accepted
 * before, though not for long.
 */

static void
ngx_http_sd_drain_handler(ngx_event_t *ev)
{
    ngx_msec_t             now;
    ngx_connection_t      *c;
    ngx_http_sd_engine_t  *e;

    c = ev->data;
    e = c->data;

    now = ngx_current_msec;

    ev->cancelable = 0;

    if (sd_engine_active(e->engine)) {
        e->idle_start = now;

        if (e->drain_timeout && !e->drained
            && (ngx_msec_int_t) (now - e->drain_start - e->drain_timeout) >= 0)
        {
            e->drained = 1;
            sd_engine_drain(e->engine);
        }

    } else if (now - e->idle_start >= NGX_HTTP_SD_DRAIN_IDLE) {

        /* what holds the worker now needs no pictures: give memory back */

        ngx_http_sd_stop_engine(e);
        return;

    } else if (ngx_http_sd_alone(e)) {
        ev->cancelable = 1;
    }

    ngx_add_timer(ev, NGX_HTTP_SD_DRAIN_POLL);
}


static ngx_uint_t
ngx_http_sd_alone(ngx_http_sd_engine_t *e)
{
    ngx_uint_t  i;

    for (i = 1; i < NGX_MAX_PROCESSES; i++) {

        if (e->pids[i] && kill(e->pids[i], 0) == 0) {
            return 0;
        }
    }

    return 1;
}
