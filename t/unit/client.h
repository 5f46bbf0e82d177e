/*
 * nginx's side of the socket, and an engine to talk to: for the tests of it.
 */

#ifndef CLIENT_H
#define CLIENT_H

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "../../src/engine/engine.h"
#include "tap.h"


#define UNUSED  __attribute__((unused))

#define JSON  "application/json"

#define PATIENCE  60000         /* ms for what comes at once, if ever */


static uint8_t             cookie[SD_COOKIE_SIZE];
static struct sockaddr_un  addr;
static socklen_t           addrlen;
static int                 listener;
static sd_precision_t      precision;       /* of models */
static int64_t             queue_time;
static sd_stats_t         *stats;           /* of all engines */
static uint64_t            cycle;           /* the last one's */


/* what came back */

typedef struct {
    int               status;
    int               ended;            /* END was the last frame */
    int               data, infos, ticks;
    int64_t           content_length;
    char              type[256];
    char              headers[4096];
    sd_buf_t          body;
    sd_buf_t          ending;
    sd_frame_info_t   info;
} answer_t;


static int64_t UNUSED
now(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return (int64_t) ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}


static void UNUSED
nap(int ms)
{
    poll(NULL, 0, ms);
}


/* a test of its own: what has to come, however busy the machine is */

#define until(cond, ...)                                                      \
                                                                              \
do {                                                                          \
    int64_t  limit;                                                           \
                                                                              \
    for (limit = now() + PATIENCE; !(cond) && now() < limit; nap(1)) {        \
        /* void */                                                            \
    }                                                                         \
                                                                              \
    ok(now() < limit, __VA_ARGS__);                                           \
} while (0)


/* the engine's socket, and the cookie that it wants to see */

static void
listen_abstract(void)
{
    int  n;

    memset(cookie, 0x5a, SD_COOKIE_SIZE);

    addr.sun_family = AF_UNIX;
    n = snprintf(addr.sun_path + 1, sizeof(addr.sun_path) - 1,
                 "sd-test-%d-%lld", (int) getpid(), (long long) now());
    addrlen = offsetof(struct sockaddr_un, sun_path) + 1 + n;

    listener = socket(AF_UNIX, SOCK_STREAM|SOCK_NONBLOCK|SOCK_CLOEXEC, 0);

    if (bind(listener, (struct sockaddr *) &addr, addrlen) == -1
        || listen(listener, 64) == -1)
    {
        exit(1);
    }
}


static sd_str_t
str(const char *s)
{
    return (sd_str_t) { s, s ? strlen(s) : 0 };
}


static sd_request_t
request(uint32_t dialect, const char *accept)
{
    sd_request_t  r;

    memset(&r, 0, sizeof(sd_request_t));

    r.location.dialect = dialect;
    r.location.max_steps = 100;
    r.location.max_pixels = 512 * 512;
    r.location.max_images = 4;
    r.location.preview = SD_PREVIEW_RGB;
    r.location.priority = SD_PRIORITY_NORMAL;
    r.method = SD_METHOD_POST;
    r.uri = str("/generate");
    r.accept = str(accept);
    r.content_type = str(JSON);
    r.id = str("0123456789abcdef0123456789abcdef");

    return r;
}


static int
send_request(sd_request_t *r, const char *body)
{
    int         fd;
    size_t      n;
    ssize_t     rc;
    sd_buf_t    b = { 0 };
    sd_error_t  err;

    fd = socket(AF_UNIX, SOCK_STREAM|SOCK_CLOEXEC, 0);

    if (connect(fd, (struct sockaddr *) &addr, addrlen) == -1) {
        close(fd);
        return -1;
    }

    r->body_length = body ? strlen(body) : 0;

    sd_frame_request(&b, cookie, r, &err);
    sd_buf_append(&b, body, r->body_length);

    for (n = 0; n < b.len; n += rc) {
        rc = send(fd, b.data + n, b.len - n, MSG_NOSIGNAL);

        if (rc <= 0) {
            break;
        }
    }

    sd_buf_free(&b);

    return fd;
}


static int
read_all(int fd, void *p, size_t n)
{
    ssize_t  rc;

    for ( /* void */ ; n; n -= rc, p = (char *) p + rc) {
        rc = recv(fd, p, n, 0);

        if (rc <= 0) {
            return -1;
        }
    }

    return 0;
}


/* one frame; -1 at the end */

static int
read_frame(int fd, answer_t *a)
{
    char                *p;
    sd_frame_t           f;
    sd_frame_header_t    h;

    if (read_all(fd, &f, sizeof(f)) == -1) {
        return -1;
    }

    p = malloc(f.length + 1);

    if (read_all(fd, p, f.length) == -1) {
        free(p);
        return -1;
    }

    switch (f.type) {

    case SD_FRAME_HEADER:
        memcpy(&h, p, sizeof(h));
        a->status = h.status;
        a->content_length = h.content_length;
        memcpy(a->type, p + sizeof(h), h.content_type_length);
        memcpy(a->headers, p + sizeof(h) + h.content_type_length,
               h.headers_length);
        break;

    case SD_FRAME_DATA:
        a->data++;
        sd_buf_append(&a->body, p, f.length);
        break;

    case SD_FRAME_INFO:
        a->infos++;
        memcpy(&a->info, p, sizeof(sd_frame_info_t));
        break;

    case SD_FRAME_TICK:
        a->ticks++;
        break;

    case SD_FRAME_ENDING:
        a->ending.len = 0;
        sd_buf_append(&a->ending, p, f.length);
        break;

    case SD_FRAME_END:
        a->ended = 1;
        break;
    }

    free(p);

    return f.type;
}


static void
finish(int fd, answer_t *a)
{
    while (read_frame(fd, a) != -1) { /* void */ }

    close(fd);

    /* so that strstr() may look at it */
    sd_buf_append(&a->body, "", 1);
    a->body.len--;
}


static void
forget(answer_t *a)
{
    sd_buf_free(&a->body);
    sd_buf_free(&a->ending);
    memset(a, 0, sizeof(answer_t));
}


static void UNUSED
ask(answer_t *a, sd_request_t r, const char *body)
{
    forget(a);
    finish(send_request(&r, body), a);
}


static int UNUSED
has(const answer_t *a, const char *s)
{
    return a->body.len
           && memmem(a->body.data, a->body.len, s, strlen(s)) != NULL;
}


static int UNUSED
count(const answer_t *a, const char *s)
{
    int          n;
    const char  *p, *end;

    n = 0;
    p = a->body.data;
    end = p + a->body.len;

    while (p && (p = memmem(p, end - p, s, strlen(s))) != NULL) {
        p += strlen(s);
        n++;
    }

    return n;
}


/* the pictures of a multipart answer, three at most, in the images' order */

static void UNUSED
finals(const answer_t *a, sd_buf_t *out)
{
    int      i;
    char    *p, *s, *end, *head, line[64];
    size_t   n;

    for (i = 0; i < 3; i++) {
        snprintf(line, sizeof(line), "\r\nSD-Image: %d\r\n", i);

        for (p = a->body.data, end = p + a->body.len;
             (p = memmem(p, end - p, "Content-Length: ", 16)) != NULL;
             p = s + 4 + n)
        {
            head = p;
            n = strtoul(p + 16, NULL, 10);
            s = memmem(head, end - head, "\r\n\r\n", 4);

            if (memmem(head, s - head, "SD-Event: final\r\n", 17)
                && memmem(head, s + 2 - head, line, strlen(line)))
            {
                sd_buf_append(out, s + 4, n);
            }
        }
    }
}


/* what a busy machine adds: parts and events that say that nothing happens */

static int UNUSED
waits(const answer_t *a)
{
    return count(a, "SD-Event: heartbeat") + count(a, "SD-Event: queued")
           + count(a, "event: queued\n");
}


static int UNUSED
jpeg(const void *p, size_t n)
{
    return n > 4 && memcmp(p, "\xff\xd8\xff", 3) == 0
           && memcmp((const char *) p + n - 2, "\xff\xd9", 2) == 0;
}


static int UNUSED
fds(void)
{
    int   n;
    DIR  *d;

    n = 0;
    d = opendir("/proc/self/fd");

    while (readdir(d)) {
        n++;
    }

    closedir(d);

    return n;
}


/* the last lines of the log */

static char  log_lines[4096];
static int   quiet;                 /* they are not printed */
static int   log_failed;            /* of requests that failed */
static int   log_suppressed;        /* that there were more, it says */

static pthread_mutex_t  log_lock = PTHREAD_MUTEX_INITIALIZER;


static void
note(void *data, sd_log_level_t level, const char *message)
{
    size_t  n;

    pthread_mutex_lock(&log_lock);

    n = strlen(log_lines);

    if (strstr(message, " failed: ")) {
        log_failed++;

    } else if (strstr(message, " more warnings ")) {
        log_suppressed += atoi(message);
    }

    snprintf(log_lines + (n < 3000 ? n : 0), 1024, "%s\n", message);

    if (!quiet) {
        printf("# log %d: %s\n", level, message);
    }

    pthread_mutex_unlock(&log_lock);
}


/* what any worker would answer; the last engine is its own */

static void UNUSED
ask_status(answer_t *a)
{
    forget(a);
    sd_stats_status(stats, cycle, &a->body);
    sd_buf_append(&a->body, "", 1);
    a->body.len--;
}


static void UNUSED
ask_ready(answer_t *a)
{
    forget(a);
    a->status = sd_stats_ready(stats, cycle, 0, &a->body);
    sd_buf_append(&a->body, "", 1);
    a->body.len--;
}


/* until it says so */

static int UNUSED
tells(const char *what)
{
    int       found;
    answer_t  a = { 0 };

    ask_status(&a);
    found = has(&a, what);
    forget(&a);

    return found;
}


static void UNUSED
wait_status(const char *what)
{
    until(tells(what), "status: %s", what);
}


/* so many pictures run, and so many requests wait */

static void UNUSED
wait_queue(int running, int waiting)
{
    char  what[64];

    snprintf(what, sizeof(what), "\"running\":%d,\"queue\":{\"waiting\":%d,",
             running, waiting);
    wait_status(what);
}


/* who is let in: us, unless we are to be a stranger */

static atomic_int  stranger;


static int
peer(void *data, pid_t pid)
{
    return pid == getpid() && !stranger;
}


/* devices: separated by blanks */

static sd_engine_t *
start_devices(const char *devices, const char *path, int queue, int slots)
{
    char              *p, names[256];
    const char        *list[8];
    sd_error_t        err;
    sd_engine_t      *e;
    sd_model_conf_t   model = { path, precision };
    sd_engine_conf_t  conf;

    memset(&conf, 0, sizeof(sd_engine_conf_t));

    if (stats == NULL) {
        stats = calloc(1, sd_stats_size(4));
        sd_stats_init(stats, sd_stats_size(4));
    }

    conf.stats = stats;
    conf.cycle = ++cycle;
    conf.listen = listener;
    memcpy(conf.cookie, cookie, SD_COOKIE_SIZE);
    conf.devices = list;
    snprintf(names, sizeof(names), "%s", devices);

    for (p = strtok(names, " "); p; p = strtok(NULL, " ")) {
        list[conf.ndevices++] = p;
    }

    conf.models = &model;
    conf.nmodels = 1;
    conf.queue = queue;
    conf.queue_time = queue_time;
    conf.slots = slots;
    conf.heartbeat = 300;
    conf.peer = peer;
    conf.log = note;

    if (sd_engine_start(&e, &conf, &err) != SD_OK) {
        printf("# %s\n", err.message);
        exit(1);
    }

    return e;
}


static UNUSED sd_engine_t *
start_model(const char *path, int queue, int slots)
{
    return start_devices("cpu", path, queue, slots);
}


static void UNUSED
idle(sd_engine_t *e)
{
    int64_t  limit;

    for (limit = now() + PATIENCE; sd_engine_active(e) && now() < limit;) {
        nap(1);
    }
}


/* the value of "key":" in a JSON answer, or of a header; static memory */

static UNUSED char *
find(const char *s, const char *key, int end)
{
    size_t        n;
    const char   *p;
    static char   value[1 << 20];

    p = s ? strstr(s, key) : NULL;

    if (p == NULL) {
        return NULL;
    }

    p += strlen(key);
    n = strchr(p, end) - p;
    memcpy(value, p, n);
    value[n] = '\0';

    return value;
}


#endif
