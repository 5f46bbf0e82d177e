
/*
 * A request has come: whether its method is one of the location's, what a
 * browser of another origin is told, and who answers.
 */


#include "ngx_http_sd.h"


#define NGX_HTTP_SD_EXPOSE                                                    \
    "SD-Seed, SD-Steps, SD-Model, SD-Warning, X-Request-Id, "                 \
    "Retry-After"


static ngx_int_t ngx_http_sd_cors(ngx_http_request_t *r,
    ngx_http_sd_loc_conf_t *slcf);
static ngx_int_t ngx_http_sd_preflight(ngx_http_request_t *r,
    ngx_http_sd_loc_conf_t *slcf);


ngx_int_t
ngx_http_sd_handler(ngx_http_request_t *r)
{
    ngx_http_sd_loc_conf_t  *slcf;

    slcf = ngx_http_get_module_loc_conf(r, ngx_http_sd_module);

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

    if (slcf->dialect >= SD_DIALECTS) {
        return ngx_http_sd_tell(r);
    }

    return ngx_http_sd_generate(r);
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
