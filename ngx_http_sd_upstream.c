
/*
 * The upstream callbacks: a request becomes one frame and its body, the
 * engine's frames become a response.  All of it runs in nginx's event loop.
 */


#include "ngx_http_sd.h"


#define NGX_HTTP_SD_ENDING_SIZE   65536     /* the longest ENDING we keep */


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

    unsigned                   heard:1;     /* of the engine */
    unsigned                   has_info:1;
    unsigned                   done:1;      /* END has come */
} ngx_http_sd_ctx_t;


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
static void ngx_http_sd_count(ngx_http_request_t *r, ngx_uint_t code,
    sd_result_t result);
static void ngx_http_sd_finalize_request(ngx_http_request_t *r, ngx_int_t rc);


/* the request's way: from the client to the engine */

ngx_int_t
ngx_http_sd_generate(ngx_http_request_t *r)
{
    ngx_int_t                 rc;
    ngx_http_upstream_t      *u;
    ngx_http_sd_ctx_t        *ctx;
    ngx_http_sd_loc_conf_t   *slcf;
    ngx_http_sd_main_conf_t  *smcf;

    slcf = ngx_http_get_module_loc_conf(r, ngx_http_sd_module);
    smcf = ngx_http_get_module_main_conf(r, ngx_http_sd_module);

    if (smcf->engine == NULL) {
        sd_stats_request(smcf->zone->data, NGX_HTTP_SERVICE_UNAVAILABLE,
                         SD_RESULT_REJECTED);
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


ngx_int_t
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

    ctx = ngx_http_get_module_ctx(r, ngx_http_sd_module);
    ctx->heard = 1;

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

    value.data = p + sizeof(sd_frame_header_t);
    value.len = len;

    p = ngx_pstrdup(r->pool, &value);
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
ngx_http_sd_count(ngx_http_request_t *r, ngx_uint_t code, sd_result_t result)
{
    ngx_http_sd_main_conf_t  *smcf;

    smcf = ngx_http_get_module_main_conf(r, ngx_http_sd_module);

    sd_stats_request(smcf->zone->data, (int) code, result);
}


static void
ngx_http_sd_finalize_request(ngx_http_request_t *r, ngx_int_t rc)
{
    char               *status;
    ngx_buf_t          *b;
    ngx_uint_t          code;
    sd_result_t         result;
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
        result = SD_RESULT_NONE;

    } else if (rc == NGX_HTTP_GATEWAY_TIME_OUT) {
        status = "timeout";
        result = ctx->heard ? SD_RESULT_NONE : SD_RESULT_TIMEOUT;

    } else {
        status = "error";
        result = SD_RESULT_ERROR;
    }

    /* what it does not count itself: it has died, or never heard of this */

    if (result != SD_RESULT_NONE) {
        code = r->upstream->header_sent ? r->headers_out.status
               : rc >= NGX_HTTP_SPECIAL_RESPONSE ? (ngx_uint_t) rc
               : NGX_HTTP_INTERNAL_SERVER_ERROR;

        ngx_http_sd_count(r, code, result);
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

    /* core ends the connection, but not the response: browsers throw away what
     * they have not read yet of one that is cut */

    b->last_buf = (r == r->main) ? 1 : 0;
    b->last_in_chain = 1;
    b->memory = 1;
    b->flush = 1;
    b->pos = ctx->ending;
    b->last = ctx->ending + ctx->ending_len;

    out.buf = b;
    out.next = NULL;

    (void) ngx_http_output_filter(r, &out);
}


/* variables */

ngx_int_t
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
