
/*
 * The directives that are more than a value of one of nginx's own kinds.  What
 * can be found wrong with them is found here, where a message names the line.
 */


#include "ngx_http_sd.h"


static ngx_conf_enum_t  ngx_http_sd_dialects[] = {
    { ngx_string("native"), SD_DIALECT_NATIVE },
    { ngx_string("sagemaker"), SD_DIALECT_SAGEMAKER },
    { ngx_null_string, 0 }
};


char *
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


char *
ngx_http_sd_set_zone(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_sd_main_conf_t *smcf = conf;

    ssize_t     size;
    ngx_str_t  *value;

    if (smcf->zone) {
        return "is duplicate";
    }

    value = cf->args->elts;

    if (value[1].len == 0) {
        return "has an empty name";
    }

    size = 0;

    if (cf->args->nelts == 3) {
        size = ngx_parse_size(&value[2]);

        if (size <= 0) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid zone size \"%V\"", &value[2]);
            return NGX_CONF_ERROR;
        }
    }

    return ngx_http_sd_add_zone(cf, &smcf->zone, &value[1], size);
}


/*
 * checks the model at once, where an error can name the line.  A worker may
 * see less than the root that runs `nginx -t`: it is checked as that user.
 */

char *
ngx_http_sd_set_model(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_sd_loc_conf_t *slcf = conf;

    sd_user_t                 user, *as;
    ngx_str_t                *value, *path;
    ngx_uint_t                i;
    sd_error_t                err;
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

    as = ngx_http_sd_user(cf->cycle, &user);

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


/* whether they are there is found out by who opens them: after fork() */

char *
ngx_http_sd_set_device(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_sd_main_conf_t *smcf = conf;

    ngx_str_t   *value;
    ngx_uint_t   i;
    sd_error_t   err;

    if (smcf->devices) {
        return "is duplicate";
    }

    value = cf->args->elts;

    smcf->ndevices = cf->args->nelts - 1;
    smcf->devices = ngx_palloc(cf->pool, smcf->ndevices * sizeof(char *));

    if (smcf->devices == NULL) {
        return NGX_CONF_ERROR;
    }

    for (i = 0; i < smcf->ndevices; i++) {
        smcf->devices[i] = (char *) value[i + 1].data;
    }

    if (smcf->ndevices > SD_STATS_DEVICES) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "more than %d devices",
                           SD_STATS_DEVICES);
        return NGX_CONF_ERROR;
    }

    if (sd_check_devices(smcf->devices, (int) smcf->ndevices, &err) != SD_OK) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "\"sd_device\": %s",
                           err.message);
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


char *
ngx_http_sd_set_queue(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_sd_main_conf_t *smcf = conf;

    char        *rv;
    ngx_int_t    time;
    ngx_str_t   *value, s;

    rv = ngx_conf_set_num_slot(cf, cmd, conf);

    if (rv != NGX_CONF_OK || cf->args->nelts == 2) {
        return rv;
    }

    value = cf->args->elts;

    if (ngx_strncmp(value[2].data, "time=", 5) != 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid parameter \"%V\" of \"sd_queue\"",
                           &value[2]);
        return NGX_CONF_ERROR;
    }

    s.data = value[2].data + 5;
    s.len = value[2].len - 5;

    time = ngx_parse_time(&s, 0);

    if (time == NGX_ERROR || time == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid value \"%V\" of \"sd_queue\"",
                           &value[2]);
        return NGX_CONF_ERROR;
    }

    smcf->queue_time = (ngx_msec_t) time;

    return NGX_CONF_OK;
}


char *
ngx_http_sd_set_sizes(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_sd_main_conf_t *smcf = conf;

    ngx_str_t   *value;
    ngx_uint_t   i;
    sd_error_t   err;

    if (smcf->sizes) {
        return "is duplicate";
    }

    value = cf->args->elts;

    smcf->nsizes = cf->args->nelts - 1;
    smcf->sizes = ngx_palloc(cf->pool, smcf->nsizes * sizeof(sd_size_t));

    if (smcf->sizes == NULL) {
        return NGX_CONF_ERROR;
    }

    for (i = 0; i < smcf->nsizes; i++) {
        if (sd_check_size((char *) value[i + 1].data, &smcf->sizes[i], &err)
            != SD_OK)
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "%s", err.message);
            return NGX_CONF_ERROR;
        }
    }

    return NGX_CONF_OK;
}


/* an origin is what a browser sends: a scheme and a host, no path */

char *
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


char *
ngx_http_sd_check_msec(ngx_conf_t *cf, void *post, void *data)
{
    ngx_msec_t *value = data;

    if (*value == 0) {
        return "must be greater than zero";
    }

    return NGX_CONF_OK;
}


/* the user of the workers, where the process is not theirs; or NULL */

sd_user_t *
ngx_http_sd_user(ngx_cycle_t *cycle, sd_user_t *user)
{
    ngx_core_conf_t  *ccf;

    ccf = (ngx_core_conf_t *) ngx_get_conf(cycle->conf_ctx, ngx_core_module);

    if (geteuid() != 0 || ccf->user == (ngx_uid_t) NGX_CONF_UNSET_UINT
        || ccf->user == 0)
    {
        return NULL;
    }

    user->name = ccf->username;
    user->uid = ccf->user;
    user->gid = ccf->group;

    return user;
}
