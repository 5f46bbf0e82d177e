
/*
 * Stable Diffusion in nginx.
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
 *     ngx_http_sd_module.c     what nginx is told: directives, configuration
 *     ngx_http_sd_directives.c the directives that nginx cannot read by itself
 *     ngx_http_sd_handler.c    who may ask, and who answers
 *     ngx_http_sd_upstream.c   a request's way to the engine, the answer's way
 *                              back, variables
 *     ngx_http_sd_status.c     what operators look at, and the zone it is in
 *     ngx_http_sd_engine.c     the engine's life: sockets, election, reload
 */


#include "ngx_http_sd.h"


#define NGX_HTTP_SD_HEARTBEAT     15000     /* ms, at most */


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


static ngx_uint_t  ngx_http_sd_status = NGX_HTTP_SD_STATUS;
static ngx_uint_t  ngx_http_sd_metrics = NGX_HTTP_SD_METRICS;
static ngx_uint_t  ngx_http_sd_ready = NGX_HTTP_SD_READY;
static ngx_uint_t  ngx_http_sd_live = NGX_HTTP_SD_LIVE;


static ngx_conf_enum_t  ngx_http_sd_precisions[] = {
    { ngx_string("exact"), SD_PRECISION_EXACT },
    { ngx_string("bf16"), SD_PRECISION_BF16 },
    { ngx_null_string, 0 }
};

static ngx_conf_enum_t  ngx_http_sd_loadings[] = {
    { ngx_string("wait"), 0 },
    { ngx_string("fail"), 1 },
    { ngx_null_string, 0 }
};

static ngx_conf_enum_t  ngx_http_sd_reloads[] = {
    { ngx_string("overlap"), 0 },
    { ngx_string("wait"), 1 },
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


static ngx_conf_enum_t  ngx_http_sd_priorities[] = {
    { ngx_string("low"), SD_PRIORITY_LOW },
    { ngx_string("normal"), SD_PRIORITY_NORMAL },
    { ngx_string("high"), SD_PRIORITY_HIGH },
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

    { ngx_string("sd_metrics"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS,
      ngx_http_sd_set_handler,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      &ngx_http_sd_metrics },

    { ngx_string("sd_ready"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS,
      ngx_http_sd_set_handler,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      &ngx_http_sd_ready },

    { ngx_string("sd_live"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS,
      ngx_http_sd_set_handler,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      &ngx_http_sd_live },

    { ngx_string("sd_zone"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE12,
      ngx_http_sd_set_zone,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

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
      NGX_HTTP_MAIN_CONF|NGX_CONF_1MORE,
      ngx_http_sd_set_device,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("sd_sizes"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_1MORE,
      ngx_http_sd_set_sizes,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("sd_cache_path"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_path_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_sd_main_conf_t, cache),
      NULL },

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
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE12,
      ngx_http_sd_set_queue,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_sd_main_conf_t, queue),
      &ngx_http_sd_queue_bounds },

    { ngx_string("sd_loading"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_enum_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_sd_main_conf_t, loading),
      &ngx_http_sd_loadings },

    { ngx_string("sd_reload"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_enum_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_sd_main_conf_t, reload),
      &ngx_http_sd_reloads },

    { ngx_string("sd_drain_timeout"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_sd_main_conf_t, drain_timeout),
      NULL },

    { ngx_string("sd_priority"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_enum_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_sd_loc_conf_t, priority),
      &ngx_http_sd_priorities },

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
                      "\"sd_status\", \"sd_metrics\", \"sd_live\" or "
                      "\"sd_ready\" without \"sd_generate\"");
        return NGX_ERROR;
    }

    ngx_str_set(&name, "ngx_http_sd");

    if (smcf->handlers && smcf->zone == NULL
        && ngx_http_sd_add_zone(cf, &smcf->zone, &name, 0) != NGX_CONF_OK)
    {
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
     *     smcf->zone = NULL;
     *     smcf->engine = NULL;
     *     smcf->devices = NULL;
     *     smcf->ndevices = 0;
     *     smcf->sizes = NULL;
     *     smcf->nsizes = 0;
     *     smcf->cache = NULL;
     *     smcf->queue_time = 0;
     */

    if (ngx_array_init(&smcf->models, cf->pool, 4, sizeof(sd_model_conf_t))
        != NGX_OK
        || ngx_array_init(&smcf->checked, cf->pool, 4, sizeof(ngx_str_t))
           != NGX_OK)
    {
        return NULL;
    }

    smcf->heartbeat = NGX_HTTP_SD_HEARTBEAT;

    smcf->threads = NGX_CONF_UNSET;
    smcf->slots = NGX_CONF_UNSET;
    smcf->queue = NGX_CONF_UNSET;
    smcf->loading = NGX_CONF_UNSET_UINT;
    smcf->reload = NGX_CONF_UNSET_UINT;
    smcf->drain_timeout = NGX_CONF_UNSET_MSEC;

    return smcf;
}


static char *
ngx_http_sd_init_main_conf(ngx_conf_t *cf, void *conf)
{
    ngx_http_sd_main_conf_t *smcf = conf;

    ngx_conf_init_value(smcf->threads, 0);
    ngx_conf_init_value(smcf->slots, 0);
    ngx_conf_init_value(smcf->queue, 64);
    ngx_conf_init_uint_value(smcf->loading, 0);
    ngx_conf_init_uint_value(smcf->reload, 0);
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
    conf->priority = NGX_CONF_UNSET_UINT;
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
    ngx_conf_merge_uint_value(conf->priority, prev->priority,
                              SD_PRIORITY_NORMAL);
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

    generate = conf->dialect < SD_DIALECTS;

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
    conf->location.priority = conf->priority;

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

    if (i == SD_STATS_MODELS) {
        ngx_log_error(NGX_LOG_EMERG, cf->log, 0,
                      "\"sd_model\": more than %d models", SD_STATS_MODELS);
        return NGX_ERROR;
    }

    model = ngx_array_push(&smcf->models);
    if (model == NULL) {
        return NGX_ERROR;
    }

    model->path = (char *) path->data;
    model->precision = precision;

    return i;
}
