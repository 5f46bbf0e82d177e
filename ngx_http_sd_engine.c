
/*
 * The engine's life.
 *
 * The socket belongs to a configuration cycle.  The master makes it in
 * init_module, with a random name and a random cookie that each request
 * presents, and the workers inherit it.  So after a reload the old workers go
 * on with the old engine, and the new ones have theirs.  The first worker runs
 * the engine; when it is killed, the one that the master respawns in its place
 * does.
 *
 * The engine's threads call back for one thing only, the log, and that goes
 * through a list and an eventfd to the event loop, which prints it.
 */


#include "ngx_http_sd.h"

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>


#define NGX_HTTP_SD_DRAIN_POLL    50        /* ms */
#define NGX_HTTP_SD_DRAIN_IDLE    10000     /* ms that an idle engine waits
                                               for requests of old workers */


/* a line for the error log, on its way from an engine's thread to the loop */

struct ngx_http_sd_log_s {
    ngx_http_sd_log_t         *next;
    ngx_uint_t                 level;
    u_char                     text[1];
};


static void ngx_http_sd_check(ngx_cycle_t *cycle,
    ngx_http_sd_main_conf_t *smcf);
static ngx_http_sd_engine_t *ngx_http_sd_create_engine(ngx_cycle_t *cycle);
static void ngx_http_sd_open_generations(ngx_cycle_t *cycle,
    ngx_http_sd_main_conf_t *smcf);
static void ngx_http_sd_close_engine(void *data);
static ngx_int_t ngx_http_sd_start_engine(ngx_cycle_t *cycle,
    ngx_http_sd_main_conf_t *smcf);
static void ngx_http_sd_stop_engine(ngx_http_sd_engine_t *e);
static int ngx_http_sd_peer(void *data, pid_t pid);
static void ngx_http_sd_log(void *data, sd_log_level_t level,
    const char *message);
static void ngx_http_sd_print_log(ngx_http_sd_engine_t *e);
static void ngx_http_sd_wakeup_handler(ngx_event_t *ev);
static void ngx_http_sd_drain_handler(ngx_event_t *ev);
static ngx_uint_t ngx_http_sd_alone(ngx_http_sd_engine_t *e);


/* the engine of this process, for exit_process */

static ngx_http_sd_engine_t  *ngx_http_sd_running;


/* an error here would end nginx, on a reload too: log it, and answer 503 */

ngx_int_t
ngx_http_sd_init_module(ngx_cycle_t *cycle)
{
    ngx_http_sd_main_conf_t  *smcf;

    smcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_sd_module);

    if (smcf == NULL || smcf->handlers == 0) {
        return NGX_OK;
    }

    ngx_http_sd_check(cycle, smcf);

    if (ngx_test_config) {
        return NGX_OK;
    }

    smcf->engine = ngx_http_sd_create_engine(cycle);

    if (smcf->engine == NULL) {
        ngx_log_error(NGX_LOG_ERR, cycle->log, 0, "sd engine is down");
        return NGX_OK;
    }

    smcf->engine->drain_timeout = smcf->drain_timeout;

    ngx_http_sd_open_generations(cycle, smcf);

    return NGX_OK;
}


/* what other modules' settings and the file system have to do with ours, and
 * is known only here */

static void
ngx_http_sd_check(ngx_cycle_t *cycle, ngx_http_sd_main_conf_t *smcf)
{
    sd_user_t         user, *as;
    sd_error_t        err;
    ngx_core_conf_t  *ccf;

    ccf = (ngx_core_conf_t *) ngx_get_conf(cycle->conf_ctx, ngx_core_module);

    if (ccf->shutdown_timeout
        && (smcf->drain_timeout == 0
            || smcf->drain_timeout >= ccf->shutdown_timeout))
    {
        ngx_log_error(NGX_LOG_WARN, cycle->log, 0,
                      "\"sd_drain_timeout\" is not shorter than "
                      "\"worker_shutdown_timeout\", at which pictures are cut "
                      "without their state");
    }

    if (smcf->cache == NULL) {
        return;
    }

    as = ngx_http_sd_user(cycle, &user);

    if (sd_check_directory((char *) smcf->cache->name.data, as, &err)
        != SD_OK)
    {
        ngx_log_error(NGX_LOG_WARN, cycle->log, 0,
                      "\"sd_cache_path\" \"%V\" cannot be written to%s%s%s, "
                      "and does nothing: %s", &smcf->cache->name,
                      as ? " by user \"" : "", as ? as->name : "",
                      as ? "\"" : "", err.message);
    }
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
    e->generations = NGX_INVALID_FILE;
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

    ngx_memcpy(&e->cycle, name, sizeof(uint64_t));

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


/*
 * The file that this nginx's engines lock, those of other cycles and of another
 * binary included: nginx's own pid file has a name of its own, but is removed
 * and renamed; this one stays.
 */

static void
ngx_http_sd_open_generations(ngx_cycle_t *cycle,
    ngx_http_sd_main_conf_t *smcf)
{
    u_char            name[NGX_MAX_PATH];
    ngx_fd_t          fd;
    ngx_core_conf_t  *ccf;

    ccf = (ngx_core_conf_t *) ngx_get_conf(cycle->conf_ctx, ngx_core_module);

    (void) ngx_snprintf(name, NGX_MAX_PATH - 1, "%V.sd%Z", &ccf->pid);
    name[NGX_MAX_PATH - 1] = '\0';

    fd = open((char *) name, O_RDWR|O_CREAT|O_CLOEXEC|O_NOFOLLOW|O_NONBLOCK,
              0600);

    smcf->engine->generations = fd;

    if (fd == NGX_INVALID_FILE && smcf->reload) {
        ngx_log_error(NGX_LOG_WARN, cycle->log, ngx_errno,
                      "\"sd_reload wait\" does nothing: cannot open \"%s\"",
                      name);
    }
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

    if (e->generations != NGX_INVALID_FILE) {
        (void) ngx_close_file(e->generations);
        e->generations = NGX_INVALID_FILE;
    }

    if (e->pids != MAP_FAILED) {
        (void) munmap(e->pids, NGX_MAX_PROCESSES * sizeof(ngx_pid_t));
        e->pids = MAP_FAILED;
    }
}


ngx_int_t
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

    } else if (ngx_process == NGX_PROCESS_SINGLE) {
        e->pids[0] = ngx_pid;
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
    conf.devices = smcf->devices;
    conf.ndevices = (int) smcf->ndevices;
    conf.sizes = smcf->sizes;
    conf.nsizes = (int) smcf->nsizes;
    conf.cache = smcf->cache ? (char *) smcf->cache->name.data : NULL;
    conf.threads = (int) smcf->threads;
    conf.models = smcf->models.elts;
    conf.nmodels = smcf->models.nelts;
    conf.queue = (int) smcf->queue;
    conf.queue_time = smcf->queue_time;
    conf.slots = (int) smcf->slots;
    conf.heartbeat = (int) smcf->heartbeat;
    conf.stats = smcf->zone->data;
    conf.cycle = e->cycle;
    conf.peer = ngx_http_sd_peer;
    conf.peer_data = e;
    conf.loading_fails = (int) smcf->loading;
    conf.generations = e->generations;
    conf.reload_waits = (int) smcf->reload;
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


void
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


/* called by the engine's I/O thread: a worker of this cycle, who has written
 * down who he is before he connects */

static int
ngx_http_sd_peer(void *data, pid_t pid)
{
    ngx_http_sd_engine_t *e = data;

    ngx_uint_t  i;

    for (i = 0; i < NGX_MAX_PROCESSES; i++) {
        if (e->pids[i] == pid) {
            return 1;
        }
    }

    return 0;
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
        sd_engine_leave(e->engine);

        e->drain_start = ngx_current_msec;
        e->idle_start = ngx_current_msec;

        sd_engine_leave(e->engine);
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
