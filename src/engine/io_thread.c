/*
 * The I/O thread: the only one that touches sockets.  It accepts nginx's
 * connections, reads of each one request, hands it on, and writes what the job
 * leaves in its outbox.  End of file from nginx means that the client has gone,
 * and cancels the job wherever it is.
 */

#define _GNU_SOURCE

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"


#define SD_IO_EVENTS   64
#define SD_IO_SCAN     100          /* ms between looks at the clocks */
#define SD_IO_TELL     1000         /* ... between positions in the queue */
#define SD_IO_TICK     1000         /* at most; the log knows a step by it */
#define SD_IO_REQUEST  30000        /* ms for a request to arrive */
#define SD_IO_READ     65536
#define SD_IO_BODIES   (128 * 1024 * 1024)      /* at a time, but for one */
#define SD_IO_REST     500          /* ms without accept() after a failure */
#define SD_IO_REPEAT   10000        /* ms between lines about strangers */


struct sd_conn_s {
    sd_conn_t    *next, **prev;
    int           fd;
    int           writing;          /* EPOLLOUT is asked for */
    int           complete;         /* the request is here */
    int           framed;           /* ... its frame at least */
    int           parked;           /* its body has to wait */
    uint64_t      expected;         /* bytes of frame and body */
    uint64_t      received;
    int64_t       last;             /* when something was last sent, */
    int64_t       shown;            /* ... that the client sees */
    sd_job_t     *job;
    sd_chunk_t   *chunk;            /* being sent */
    sd_error_t    refused;          /* status: what to answer once read */
};


static void sd_io_listen(sd_engine_t *e);
static void sd_io_accept(sd_engine_t *e);
static void sd_io_read(sd_engine_t *e, sd_conn_t *c);
static void sd_io_write(sd_engine_t *e, sd_conn_t *c);
static void sd_io_wake(sd_engine_t *e);
static void sd_io_unpark(sd_engine_t *e);
static void sd_io_scan(sd_engine_t *e);
static void sd_io_close(sd_engine_t *e, sd_conn_t *c);


void *
sd_io_thread(void *data)
{
    int                  i, n, suppressed;
    int64_t              scanned;
    uint64_t             counter;
    sd_conn_t           *c;
    sd_engine_t         *e = data;
    struct epoll_event   events[SD_IO_EVENTS];

    scanned = 0;
    suppressed = 0;

    sd_io_listen(e);

    while (!atomic_load(&e->stopping)) {

        n = epoll_wait(e->epoll, events, SD_IO_EVENTS,
                       e->conns || e->accept_after || suppressed
                       ? SD_IO_SCAN : -1);

        for (i = 0; i < n; i++) {
            c = events[i].data.ptr;

            if (c == NULL) {
                (void) !read(e->event, &counter, sizeof(counter));

            } else if ((void *) c == (void *) e) {
                sd_io_accept(e);

            } else if (events[i].events & ~EPOLLOUT) {
                sd_io_read(e, c);

            } else {
                sd_io_write(e, c);
            }
        }

        sd_io_wake(e);
        sd_io_unpark(e);

        if (sd_engine_now() - scanned >= SD_IO_SCAN) {
            scanned = sd_engine_now();
            sd_io_scan(e);
        }

        suppressed = sd_engine_suppressed(e, 0);

        sd_io_listen(e);
    }

    while (e->conns) {
        sd_io_close(e, e->conns);
    }

    return NULL;
}


/* whether to accept: until the engine quits, and not for a while after it has
 * failed */

static void
sd_io_listen(sd_engine_t *e)
{
    int                  want, quit;
    struct epoll_event   ev;

    pthread_mutex_lock(&e->lock);
    quit = e->quitting;
    want = !quit;
    pthread_mutex_unlock(&e->lock);

    if (e->accept_after > sd_engine_now()) {
        want = 0;

    } else {
        e->accept_after = 0;
    }

    if (want == e->accepting) {
        return;
    }

    e->accepting = want;

    if (want) {
        ev.events = EPOLLIN;
        ev.data.ptr = e;
        epoll_ctl(e->epoll, EPOLL_CTL_ADD, e->conf.listen, &ev);
        return;
    }

    if (quit) {
        /* those who have connected already are served */
        sd_io_accept(e);
    }

    epoll_ctl(e->epoll, EPOLL_CTL_DEL, e->conf.listen, NULL);
}


/*
 * Abstract sockets have no permissions, so who connects must be our own user
 * and one of those processes who may, and then show the cookie.  Others are
 * closed before a byte of theirs is read, and may not fill the log either.
 */

static int
sd_io_stranger(sd_engine_t *e, int fd)
{
    int64_t        now;
    socklen_t      len;
    struct ucred   cred;

    memset(&cred, 0, sizeof(cred));
    len = sizeof(cred);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0
        && cred.uid == geteuid()
        && (e->conf.peer == NULL || e->conf.peer(e->conf.peer_data, cred.pid)))
    {
        return 0;
    }

    e->strangers++;

    now = sd_engine_now();

    if (now >= e->stranger_after) {
        sd_engine_log(e, SD_LOG_WARN, "closed %d connections of others, the "
                      "last one of process %d, user %u", e->strangers,
                      (int) cred.pid, (unsigned) cred.uid);
        e->strangers = 0;
        e->stranger_after = now + SD_IO_REPEAT;
    }

    return 1;
}


static void
sd_io_accept(sd_engine_t *e)
{
    int                  fd;
    sd_conn_t           *c;
    struct epoll_event   ev;

    for ( ;; ) {
        fd = accept4(e->conf.listen, NULL, NULL, SOCK_NONBLOCK|SOCK_CLOEXEC);

        if (fd == -1) {
            if (errno == EINTR || errno == ECONNABORTED) {
                continue;
            }

            if (errno != EAGAIN) {
                sd_engine_complain(e, SD_LOG_ERR, "accept4() failed: %s",
                                   strerror(errno));

                /* no descriptors, as a rule: ask again when some are back */
                e->accept_after = sd_engine_now() + SD_IO_REST;
            }

            return;
        }

        if (sd_io_stranger(e, fd)) {
            close(fd);
            continue;
        }

        c = calloc(1, sizeof(sd_conn_t));

        if (c) {
            c->fd = fd;
            c->last = sd_engine_now();
            c->shown = c->last;
            c->job = sd_job_new(e);
        }

        ev.events = EPOLLIN|EPOLLRDHUP;
        ev.data.ptr = c;

        if (c == NULL || c->job == NULL
            || epoll_ctl(e->epoll, EPOLL_CTL_ADD, fd, &ev) == -1)
        {
            sd_engine_complain(e, SD_LOG_ERR, "no memory for a connection");

            if (c && c->job) {
                sd_job_unref(c->job);
            }

            free(c);
            close(fd);
            continue;
        }

        c->job->conn = c;

        c->next = e->conns;
        c->prev = &e->conns;

        if (c->next) {
            c->next->prev = &c->next;
        }

        e->conns = c;

        atomic_fetch_add(&e->entry->connections, 1);
        atomic_fetch_add(&e->active, 1);
    }
}


/* the job goes on without a connection, to its next look at job->cancelled */

static void
sd_io_close(sd_engine_t *e, sd_conn_t *c)
{
    sd_job_t  *job;

    job = c->job;
    job->conn = NULL;

    pthread_mutex_lock(&e->lock);

    /* what the engine's end cuts, nginx's side counts */

    if (c->complete && !job->ended && !atomic_load(&e->stopping)) {
        sd_job_result_locked(job, job->header ? 200 : 499,
                             SD_RESULT_CANCELLED);
    }

    sd_queue_cancel_locked(job, SD_CANCEL_CLIENT);

    pthread_mutex_unlock(&e->lock);

    sd_job_close(job);
    sd_job_unref(job);

    *c->prev = c->next;

    if (c->next) {
        c->next->prev = c->prev;
    }

    e->parked -= c->parked;

    /* close() also takes it out of epoll */
    close(c->fd);
    sd_chunk_free(c->chunk);
    free(c);

    atomic_fetch_sub(&e->entry->connections, 1);
    atomic_fetch_sub(&e->active, 1);
}


/* the frame is complete: what is to be done once the body is, too */

static int
sd_io_frame(sd_engine_t *e, sd_conn_t *c)
{
    ssize_t     n;
    sd_job_t   *job;
    sd_error_t  err;

    job = c->job;

    n = sd_frame_parse_request(&job->request, job->input.data, job->input.len,
                               e->conf.cookie, &err);

    if (n == 0) {
        return SD_OK;
    }

    if (n < 0) {
        sd_engine_complain(e, SD_LOG_WARN, "closed a connection: %s",
                           err.message);
        return SD_ERROR;
    }

    c->framed = 1;
    c->expected = n + job->request.body_length;

    job->frame = n;
    job->dialect = sd_dialect(job->request.location.dialect);
    job->priority = job->request.location.priority;

    if (job->request.location.timeout) {
        atomic_store(&job->deadline,
                     job->arrived + job->request.location.timeout);
    }

    if (job->request.location.model >= e->nmodels) {
        sd_engine_complain(e, SD_LOG_ERR, "a request for model %u of %zu",
                           job->request.location.model, e->nmodels);
        return SD_ERROR;
    }

    job->model = &e->models[job->request.location.model];

    if (job->request.id.len < sizeof(job->info.id)) {
        memcpy(job->info.id, job->request.id.data, job->request.id.len);
    }

    if (job->request.too_long) {
        sd_error(&c->refused, job->request.too_long,
                 job->request.too_long == 414 ? "uri_too_long"
                                              : "headers_too_large",
                 job->request.too_long_name, "\"%s\" is longer than 64 kB",
                 job->request.too_long_name);
    }

    if (job->request.body_length > SD_MAX_BODY) {
        sd_error(&c->refused, 413, "body_too_large", NULL,
                 "the body is larger than %d MB", SD_MAX_BODY >> 20);
    }

    return SD_OK;
}


/* the whole request is here */

static int
sd_io_request(sd_engine_t *e, sd_conn_t *c)
{
    ssize_t     n;
    sd_job_t   *job;
    sd_mail_t  *mail;
    sd_error_t  err;

    job = c->job;
    c->complete = 1;

    /* the strings have moved while the body was read */
    n = sd_frame_parse_request(&job->request, job->input.data, job->input.len,
                               e->conf.cookie, &err);
    if (n <= 0) {
        return SD_ERROR;
    }

    mail = sd_mail_new(c->refused.status ? SD_EVENT_ERROR : SD_EVENT_QUEUED);

    if (mail == NULL) {
        return SD_ERROR;
    }

    mail->request = c->refused.status == 0;
    mail->event.error = c->refused;
    mail->event.last = 1;
    sd_job_mail(job, mail);

    return SD_OK;
}


/*
 * Large bodies are read as long as there is room for them, so that clients
 * cannot fill the memory with what is not even parsed.  Room is made as they
 * are; nginx has the others in files meanwhile.
 */

static int
sd_io_room(sd_engine_t *e, sd_conn_t *c)
{
    size_t  size, bodies;

    size = c->job->request.body_length;

    if (size <= SD_IO_READ || c->refused.status || c->job->large) {
        return 1;
    }

    bodies = atomic_load(&e->bodies);

    if (bodies && bodies + size > SD_IO_BODIES) {
        return 0;
    }

    atomic_fetch_add(&e->bodies, size);
    c->job->large = size;

    return 1;
}


static void
sd_io_park(sd_engine_t *e, sd_conn_t *c, int parked)
{
    struct epoll_event   ev;

    c->parked = parked;
    c->last = sd_engine_now();
    e->parked += parked ? 1 : -1;

    ev.events = EPOLLRDHUP|(parked ? 0 : EPOLLIN);
    ev.data.ptr = c;
    epoll_ctl(e->epoll, EPOLL_CTL_MOD, c->fd, &ev);
}


/* the oldest first; new connections are at the list's head */

static void
sd_io_unpark(sd_engine_t *e)
{
    sd_conn_t  *c, *oldest;

    while (e->parked) {
        oldest = NULL;

        for (c = e->conns; c; c = c->next) {
            oldest = c->parked ? c : oldest;
        }

        if (!sd_io_room(e, oldest)) {
            return;
        }

        sd_io_park(e, oldest, 0);
    }
}


static void
sd_io_read(sd_engine_t *e, sd_conn_t *c)
{
    char      *p, over[4096];
    size_t     size;
    ssize_t    n;
    sd_buf_t  *in;

    in = &c->job->input;

    /* the only thing that is to be heard of one that is parked is its end */

    for ( ; !c->parked; ) {
        p = over;
        size = sizeof(over);

        if (!c->complete && c->refused.status == 0) {
            size = SD_IO_READ;

            if (c->framed && c->expected - c->received < size) {
                size = c->expected - c->received;
            }

            p = sd_buf_reserve(in, size);
            if (p == NULL) {
                break;
            }

        } else if (!c->complete && c->expected - c->received < size) {
            size = c->expected - c->received;
        }

        n = recv(c->fd, p, size, 0);

        if (n == -1 && errno == EINTR) {
            continue;
        }

        if (n == -1 && errno == EAGAIN) {
            return;
        }

        if (n <= 0) {
            break;
        }

        if (c->complete) {
            sd_engine_complain(e, SD_LOG_WARN, "closed a connection: more than "
                               "a request");
            break;
        }

        c->received += n;

        if (p != over) {
            in->len += n;
        }

        if (!c->framed) {
            if (sd_io_frame(e, c) != SD_OK) {
                break;
            }

            if (c->framed && c->received > c->expected) {
                sd_engine_complain(e, SD_LOG_WARN, "closed a connection: more "
                                   "than a request");
                break;
            }

            if (!c->framed && in->len > SD_MAX_REQUEST) {
                break;
            }

            if (c->framed && !sd_io_room(e, c)) {
                sd_io_park(e, c, 1);
                return;
            }
        }

        if (c->framed && c->received == c->expected
            && sd_io_request(e, c) != SD_OK)
        {
            break;
        }
    }

    sd_io_close(e, c);
}


static void
sd_io_write(sd_engine_t *e, sd_conn_t *c)
{
    int                  want, ended;
    ssize_t              n;
    sd_chunk_t          *chunk;
    struct epoll_event   ev;

    want = 0;
    ended = 0;

    for ( ;; ) {
        if (c->chunk == NULL) {
            c->chunk = sd_job_chunk(c->job);

            if (c->chunk == NULL) {
                break;
            }
        }

        chunk = c->chunk;

        n = send(c->fd, chunk->bytes.data + chunk->sent,
                 chunk->bytes.len - chunk->sent, MSG_NOSIGNAL);

        if (n == -1 && errno == EINTR) {
            continue;
        }

        if (n == -1 && errno == EAGAIN) {
            want = 1;
            break;
        }

        if (n == -1) {
            sd_io_close(e, c);
            return;
        }

        c->last = sd_engine_now();
        c->shown = chunk->tick ? c->shown : c->last;
        chunk->sent += n;

        if (chunk->sent == chunk->bytes.len) {
            ended = chunk->end;
            sd_chunk_free(chunk);
            c->chunk = NULL;
        }
    }

    if (!want && !ended) {

        /* ended without an END: cut, for want of memory */
        pthread_mutex_lock(&e->lock);
        ended = c->job->ended && c->job->chunks == NULL;
        pthread_mutex_unlock(&e->lock);
    }

    if (ended) {
        sd_io_close(e, c);
        return;
    }

    if (want != c->writing) {
        c->writing = want;

        ev.events = EPOLLIN|EPOLLRDHUP|(want ? EPOLLOUT : 0);
        ev.data.ptr = c;
        epoll_ctl(e->epoll, EPOLL_CTL_MOD, c->fd, &ev);
    }
}


/* jobs whose outbox has got something */

static void
sd_io_wake(sd_engine_t *e)
{
    sd_job_t  *job;

    for ( ;; ) {
        pthread_mutex_lock(&e->lock);

        job = e->wake;

        if (job) {
            e->wake = job->next_wake;
            job->wake = 0;
        }

        pthread_mutex_unlock(&e->lock);

        if (job == NULL) {
            return;
        }

        if (job->conn && !job->conn->writing) {
            sd_io_write(e, job->conn);
        }

        sd_job_unref(job);
    }
}


/* something to send where nothing was sent for long */

static void
sd_io_idle(sd_engine_t *e, sd_conn_t *c, int64_t now)
{
    int          heartbeat;
    sd_job_t    *job;
    sd_mail_t   *mail;
    sd_chunk_t  *chunk;

    job = c->job;
    mail = NULL;
    chunk = sd_chunk_new();

    if (chunk) {
        chunk->tick = 1;
    }

    heartbeat = now - c->shown >= e->conf.heartbeat;

    if (heartbeat) {
        mail = sd_mail_new(SD_EVENT_HEARTBEAT);
    }

    pthread_mutex_lock(&e->lock);

    if (job->ended || job->chunks) {
        /* something is on its way */

    } else if (!job->header) {

        /* re-arms the timer of nginx's side */

        if (chunk) {
            if (job->report.steps) {
                sd_job_report_locked(job, &chunk->bytes);

            } else {
                sd_frame_append(&chunk->bytes, SD_FRAME_TICK, NULL, 0);
            }

            sd_job_send_locked(job, chunk);
            chunk = NULL;
        }

    } else if (heartbeat && mail && !job->heartbeat
               && job->params.format->progressive)
    {
        /* re-arms those further away */

        job->heartbeat = 1;
        mail->event.step = job->report.step;
        mail->event.steps = job->report.steps;
        mail->event.seed = job->report.seed;
        sd_job_mail_locked(job, mail);
        mail = NULL;

    } else if (chunk) {
        sd_job_report_locked(job, &chunk->bytes);
        sd_job_send_locked(job, chunk);
        chunk = NULL;
    }

    pthread_mutex_unlock(&e->lock);

    sd_chunk_free(chunk);
    sd_mail_free(mail);
}


static void
sd_io_scan(sd_engine_t *e)
{
    int64_t     now, tick, deadline;
    sd_job_t   *job;
    sd_conn_t  *c, *next;

    now = sd_engine_now();

    if (now - e->told >= SD_IO_TELL) {
        e->told = now;
        sd_forecast_tell(e);
    }

    tick = e->conf.heartbeat / 3;
    tick = tick < SD_IO_TICK ? tick : SD_IO_TICK;

    for (c = e->conns; c; c = next) {
        next = c->next;
        job = c->job;

        if (!c->complete) {
            if (!c->parked && now - c->last > SD_IO_REQUEST) {
                sd_engine_complain(e, SD_LOG_WARN, "closed a connection: its "
                                   "request did not arrive");
                sd_io_close(e, c);
            }

            continue;
        }

        deadline = atomic_load(&job->deadline);

        if (deadline && now >= deadline) {
            sd_queue_cancel(job, SD_CANCEL_TIMEOUT);
        }

        if (!c->writing && now - c->last >= tick) {
            sd_io_idle(e, c, now);
        }
    }
}
