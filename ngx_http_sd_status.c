
/*
 * What operators look at: sd_status, sd_metrics, sd_ready and sd_live.  Any
 * worker answers, from the zone that engines count in (src/engine/stats.h),
 * whether there is an engine or not.
 */


#include "ngx_http_sd.h"


#define NGX_HTTP_SD_ZONE_SLACK  8           /* pages that are the zone's own */


static ngx_int_t ngx_http_sd_init_zone(ngx_shm_zone_t *zone, void *data);
static ngx_int_t ngx_http_sd_send(ngx_http_request_t *r, ngx_uint_t status,
    ngx_str_t *type, sd_buf_t *body);


/* size: 0 for the default; *zone is NULL where a message has been logged */

char *
ngx_http_sd_add_zone(ngx_conf_t *cf, ngx_shm_zone_t **zone, ngx_str_t *name,
    size_t size)
{
    size_t  least;

    /* nginx has a descriptor of 32 bytes at most for each page */

    least = sd_stats_size(2) * 65 / 64 + NGX_HTTP_SD_ZONE_SLACK * ngx_pagesize;

    if (size == 0) {
        size = sd_stats_size(SD_STATS_ENGINES) * 65 / 64
               + NGX_HTTP_SD_ZONE_SLACK * ngx_pagesize;
    }

    if (size < least) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "zone \"%V\" is too small, it takes %uzk", name,
                           least / 1024 + 1);
        return NGX_CONF_ERROR;
    }

    *zone = ngx_shared_memory_add(cf, name, size, &ngx_http_sd_module);

    if (*zone == NULL) {
        return NGX_CONF_ERROR;
    }

    (*zone)->init = ngx_http_sd_init_zone;

    return NGX_CONF_OK;
}


/* after a reload that has left its name and size alone it is the old one */

static ngx_int_t
ngx_http_sd_init_zone(ngx_shm_zone_t *zone, void *data)
{
    size_t            size;
    ngx_slab_pool_t  *shpool;

    if (data) {
        zone->data = data;
        return NGX_OK;
    }

    shpool = (ngx_slab_pool_t *) zone->shm.addr;

    size = shpool->pfree * ngx_pagesize;

    zone->data = ngx_slab_calloc(shpool, size);
    if (zone->data == NULL) {
        return NGX_ERROR;
    }

    sd_stats_init(zone->data, size);

    return NGX_OK;
}


ngx_int_t
ngx_http_sd_tell(ngx_http_request_t *r)
{
    sd_buf_t                  body;
    uint64_t                  cycle;
    ngx_int_t                 rc;
    ngx_str_t                 type;
    ngx_uint_t                status;
    sd_stats_t               *stats;
    ngx_http_sd_loc_conf_t   *slcf;
    ngx_http_sd_main_conf_t  *smcf;

    rc = ngx_http_discard_request_body(r);

    if (rc != NGX_OK) {
        return rc;
    }

    slcf = ngx_http_get_module_loc_conf(r, ngx_http_sd_module);
    smcf = ngx_http_get_module_main_conf(r, ngx_http_sd_module);

    stats = smcf->zone->data;
    cycle = smcf->engine ? smcf->engine->cycle : 0;

    status = NGX_HTTP_OK;
    ngx_str_set(&type, "application/json");
    ngx_memzero(&body, sizeof(sd_buf_t));

    switch (slcf->dialect) {

    case NGX_HTTP_SD_STATUS:
        sd_stats_status(stats, cycle, &body);
        break;

    case NGX_HTTP_SD_METRICS:
        sd_stats_metrics(stats, &body);
        ngx_str_set(&type, "text/plain; version=0.0.4; charset=utf-8");
        break;

    case NGX_HTTP_SD_READY:
        status = sd_stats_ready(stats, cycle, slcf->location.model, &body);
        break;

    default: /* NGX_HTTP_SD_LIVE */
        sd_buf_puts(&body, "{\"status\":\"live\"}\n");
    }

    rc = ngx_http_sd_send(r, status, &type, &body);

    sd_buf_free(&body);

    return rc;
}


static ngx_int_t
ngx_http_sd_send(ngx_http_request_t *r, ngx_uint_t status, ngx_str_t *type,
    sd_buf_t *body)
{
    ngx_int_t     rc;
    ngx_buf_t    *b;
    ngx_str_t     value;
    ngx_chain_t   out;

    if (body->failed) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    r->headers_out.status = status;
    r->headers_out.content_length_n = body->len;
    r->headers_out.content_type = *type;
    r->headers_out.content_type_len = type->len;
    r->headers_out.content_type_lowcase = NULL;

    ngx_str_set(&value, "no-store, no-transform");

    if (ngx_http_sd_add_header(r, "Cache-Control", &value) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_str_set(&value, "nosniff");

    if (ngx_http_sd_add_header(r, "X-Content-Type-Options", &value) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_str_set(&value, "1");

    if (status == NGX_HTTP_SERVICE_UNAVAILABLE
        && ngx_http_sd_add_header(r, "Retry-After", &value) != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    rc = ngx_http_send_header(r);

    if (rc == NGX_ERROR || rc > NGX_OK || r->header_only) {
        return rc;
    }

    b = ngx_create_temp_buf(r->pool, body->len);
    if (b == NULL) {
        return NGX_ERROR;
    }

    b->last = ngx_cpymem(b->last, body->data, body->len);
    b->last_buf = (r == r->main) ? 1 : 0;
    b->last_in_chain = 1;

    out.buf = b;
    out.next = NULL;

    return ngx_http_output_filter(r, &out);
}
