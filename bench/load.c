/*
 * A load of clients: each asks a server for a picture with previews, reads it
 * as it comes, and asks for the next.  One process, one thread, one epoll; needs
 * nothing but libc.
 *
 *     load [-c clients] [-n pictures | -t seconds] [-f multipart|sse]
 *          [-H host] -p port [-u uri] [-b fields] [-s seed] [-j]
 *
 * -n is how many pictures each client asks for, -t for how long clients ask;
 * what has begun is read to its end.  -b is more of the request's JSON, such as
 * '"width":64,"steps":8'.  Says what the clients saw: as a table, or with -j as
 * one JSON object.  A picture that did not come whole is an error, 503 is not:
 * the client asks again after a while.  Exit code 1 where there were errors.
 *
 * Requests are HTTP/1.0, so that a response is its header and then nothing but
 * its body.  A picture's time starts with connect(); an event's time is that of
 * its last byte.  All arrays grow, none shrinks.
 */

#define _GNU_SOURCE

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>


#define LINE    1024        /* bytes of a line that are looked at */
#define EVENTS  64
#define WAIT    0.1         /* s after a 503, or a connection that failed */
#define SILENT  120.0       /* s after which a response has stopped */


typedef struct {
    double     *v;
    size_t      n, size;
} values_t;


typedef struct {
    int         fd;             /* -1: none */
    double      again;          /* when to ask, where there is none */
    int         asked;          /* pictures */
    int         seed;

    char       *request;
    size_t      length, sent;

    /* of the response */
    int         status;         /* 0: its first line is not here yet */
    int         body;           /* the header is over */
    char        line[LINE];
    size_t      nline;
    size_t      skip;           /* bytes of a part */
    size_t      part;           /* ... that follow this header */
    char        event[64];
    int         whole;          /* the picture is here, */
    int         closed;         /* and the end that the format has */
    double      start, last;    /* last: the last preview */
    double      heard;
    int         previews;
} client_t;


static values_t     first, gap, total;
static long         refused, failed, bytes;
static double       started, ended;

static int          clients = 1, pictures, seed = 1, json, sse;
static double       seconds;
static const char  *host = "127.0.0.1", *uri = "/generate", *fields = "";
static int          port;
static int          ep;


static double
now(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return ts.tv_sec + ts.tv_nsec / 1e9;
}


static void
die(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(2);
}


static void
add(values_t *a, double v)
{
    if (a->n == a->size) {
        a->size = a->size ? a->size * 2 : 256;
        a->v = realloc(a->v, a->size * sizeof(double));

        if (a->v == NULL) {
            die("realloc()");
        }
    }

    a->v[a->n++] = v;
}


static int
compare(const void *a, const void *b)
{
    double  x = *(const double *) a, y = *(const double *) b;

    return (x > y) - (x < y);
}


/* of sorted values, the nearest rank */

static double
rank(const values_t *a, double p)
{
    size_t  i;

    if (a->n == 0) {
        return 0;
    }

    i = ceil(p / 100 * a->n);

    return a->v[i ? i - 1 : 0];
}


/* Jain's index: 1 where all took equally long, 1/n where one took all */

static double
fairness(const values_t *a)
{
    size_t  i;
    double  sum, squares;

    sum = 0;
    squares = 0;

    for (i = 0; i < a->n; i++) {
        sum += a->v[i];
        squares += a->v[i] * a->v[i];
    }

    return squares > 0 ? sum * sum / (a->n * squares) : 0;
}


/* whether to ask for one more */

static int
more(const client_t *c)
{
    return seconds > 0 ? now() - started < seconds : c->asked < pictures;
}


static void
later(client_t *c)
{
    c->asked--;
    c->again = now() + WAIT;
}


static void
ask(client_t *c)
{
    int                  n;
    char                *body;
    struct epoll_event   ev;
    struct sockaddr_in   sin;

    memset(&sin, 0, sizeof(struct sockaddr_in));
    sin.sin_family = AF_INET;
    sin.sin_port = htons(port);

    if (inet_pton(AF_INET, host, &sin.sin_addr) != 1) {
        errno = EINVAL;
        die(host);
    }

    n = asprintf(&body, "{\"prompt\":\"a red house by a lake at sunset\","
                 "\"seed\":%d%s%s}", c->seed + c->asked, *fields ? "," : "",
                 fields);
    if (n == -1) {
        die("asprintf()");
    }

    free(c->request);

    n = asprintf(&c->request, "POST %s HTTP/1.0\r\nHost: %s\r\nAccept: %s\r\n"
                 "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                 "%s", uri, host, sse ? "text/event-stream" : "multipart/mixed",
                 n, body);
    if (n == -1) {
        die("asprintf()");
    }

    free(body);

    c->length = n;
    c->sent = 0;
    c->status = 0;
    c->body = 0;
    c->nline = 0;
    c->skip = 0;
    c->part = 0;
    c->event[0] = '\0';
    c->whole = 0;
    c->closed = 0;
    c->previews = 0;
    c->start = now();
    c->heard = c->start;
    c->asked++;

    c->fd = socket(AF_INET, SOCK_STREAM|SOCK_NONBLOCK|SOCK_CLOEXEC, 0);
    if (c->fd == -1) {
        die("socket()");
    }

    ev.events = EPOLLIN|EPOLLOUT;
    ev.data.ptr = c;

    if ((connect(c->fd, (struct sockaddr *) &sin, sizeof(sin)) == -1
         && errno != EINPROGRESS)
        || epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &ev) == -1)
    {
        die("connect()");
    }
}


static void
end(client_t *c)
{
    close(c->fd);
    c->fd = -1;
    c->again = 0;

    if (c->status == 503) {
        refused++;
        later(c);

    } else if (c->whole && c->closed) {
        add(&total, ended - c->start);

    } else {
        failed++;
        fprintf(stderr, "load: seed %d: status %d, %d previews, %s\n",
                c->seed + c->asked - 1, c->status, c->previews,
                c->whole ? "not closed" : "no picture");

        /* a server that is not there would be asked without end */
        c->again = now() + WAIT;
    }
}


/* an event has come to its end */

static void
event(client_t *c)
{
    double  t;

    t = now();

    if (strcmp(c->event, "preview") == 0
        || strcmp(c->event, "image_generation.partial_image") == 0)
    {
        if (c->previews++) {
            add(&gap, t - c->last);

        } else {
            add(&first, t - c->start);
        }

        c->last = t;

    } else if (strcmp(c->event, "final") == 0
               || strcmp(c->event, "image_generation.completed") == 0)
    {
        c->whole = 1;
        c->closed = sse;

    } else if (strcmp(c->event, "error") == 0
               || strcmp(c->event, "handoff") == 0)
    {
        c->whole = 0;
        c->closed = 0;
    }

    c->event[0] = '\0';
}


/* a line of the header, of a part's header, or of an event stream */

static void
line(client_t *c)
{
    char  *s;

    s = c->line;
    s[c->nline] = '\0';

    if (c->nline && s[c->nline - 1] == '\r') {
        s[--c->nline] = '\0';
    }

    if (c->status == 0) {
        c->status = strncmp(s, "HTTP/1.", 7) == 0 ? atoi(s + 9) : -1;

    } else if (!c->body) {
        c->body = c->nline == 0;

    } else if (sse) {
        if (strncmp(s, "event: ", 7) == 0) {
            snprintf(c->event, sizeof(c->event), "%s", s + 7);

        } else if (c->nline == 0) {
            event(c);
        }

    } else if (strncmp(s, "SD-Event: ", 10) == 0) {
        snprintf(c->event, sizeof(c->event), "%s", s + 10);

    } else if (strncmp(s, "Content-Length: ", 16) == 0) {
        c->part = strtoul(s + 16, NULL, 10);

    } else if (strncmp(s, "--", 2) == 0) {
        c->closed = c->nline > 4 && strcmp(s + c->nline - 2, "--") == 0;

    } else if (c->nline == 0 && c->event[0]) {
        c->skip = c->part;
        c->part = 0;

        if (c->skip == 0) {
            event(c);
        }
    }

    c->nline = 0;
}


static void
take(client_t *c, const char *p, size_t n)
{
    size_t  k;

    bytes += n;

    while (n) {

        if (c->skip) {
            k = c->skip < n ? c->skip : n;
            c->skip -= k;
            p += k;
            n -= k;

            if (c->skip == 0) {
                event(c);
            }

            continue;
        }

        if (*p == '\n') {
            line(c);

        } else if (c->nline < LINE - 1) {
            c->line[c->nline++] = *p;
        }

        p++;
        n--;
    }
}


static void
handle(client_t *c, uint32_t events)
{
    ssize_t              n;
    static char          buf[65536];
    struct epoll_event   ev;

    if (events & EPOLLOUT && c->sent < c->length) {
        n = send(c->fd, c->request + c->sent, c->length - c->sent,
                 MSG_NOSIGNAL);

        if (n > 0) {
            c->sent += n;
        }

        if (c->sent == c->length) {
            ev.events = EPOLLIN;
            ev.data.ptr = c;
            epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &ev);
        }
    }

    if ((events & ~EPOLLOUT) == 0) {
        return;
    }

    for ( ;; ) {
        n = recv(c->fd, buf, sizeof(buf), 0);

        if (n == -1 && (errno == EAGAIN || errno == EINTR)) {
            return;
        }

        ended = now();
        c->heard = ended;

        if (n <= 0) {
            end(c);
            return;
        }

        take(c, buf, n);
    }
}


static void
row(const char *name, const values_t *a)
{
    printf("%-22s %8zu %9.3f %9.3f %9.3f %9.3f\n", name, a->n, rank(a, 50),
           rank(a, 95), rank(a, 99), rank(a, 100));
}


static void
object(const char *name, const values_t *a)
{
    printf("\"%s\":{\"n\":%zu,\"p50\":%.6f,\"p95\":%.6f,\"p99\":%.6f,"
           "\"max\":%.6f},", name, a->n, rank(a, 50), rank(a, 95), rank(a, 99),
           rank(a, 100));
}


static void
sort(values_t *a)
{
    if (a->n) {
        qsort(a->v, a->n, sizeof(double), compare);
    }
}


static void
report(void)
{
    double  t, rate, jain;

    t = ended - started;
    rate = t > 0 ? 60 * total.n / t : 0;
    jain = fairness(&total);

    sort(&first);
    sort(&gap);
    sort(&total);

    if (json) {
        printf("{\"clients\":%d,\"pictures\":%zu,\"refused\":%ld,"
               "\"failed\":%ld,\"seconds\":%.6f,\"bytes\":%ld,", clients,
               total.n, refused, failed, t, bytes);
        object("first_preview", &first);
        object("step_gap", &gap);
        object("total", &total);
        printf("\"pictures_per_minute\":%.4f,\"fairness\":%.6f}\n", rate, jain);
        return;
    }

    printf("%d clients, %zu pictures in %.1f s, %ld refused, %ld failed\n"
           "%.2f pictures a minute, fairness %.4f, %.1f MB\n\n",
           clients, total.n, t, refused, failed, rate, jain, bytes / 1e6);
    printf("%-22s %8s %9s %9s %9s %9s\n", "seconds", "of", "p50", "p95", "p99",
           "max");
    row("to the first preview", &first);
    row("between previews", &gap);
    row("a picture", &total);
}


static void
arguments(int argc, char **argv)
{
    int  c;

    while ((c = getopt(argc, argv, "c:n:t:f:H:p:u:b:s:j")) != -1) {
        switch (c) {

        case 'c':
            clients = atoi(optarg);
            break;

        case 'n':
            pictures = atoi(optarg);
            break;

        case 't':
            seconds = atof(optarg);
            break;

        case 'f':
            sse = strcmp(optarg, "sse") == 0;

            if (!sse && strcmp(optarg, "multipart") != 0) {
                goto usage;
            }

            break;

        case 'H':
            host = optarg;
            break;

        case 'p':
            port = atoi(optarg);
            break;

        case 'u':
            uri = optarg;
            break;

        case 'b':
            fields = optarg;
            break;

        case 's':
            seed = atoi(optarg);
            break;

        case 'j':
            json = 1;
            break;

        default:
            goto usage;
        }
    }

    if (pictures == 0 && seconds == 0) {
        pictures = 1;
    }

    if (optind == argc && clients > 0 && port > 0 && pictures >= 0
        && seconds >= 0)
    {
        return;
    }

usage:

    fprintf(stderr, "usage: load [-c clients] [-n pictures | -t seconds] "
            "[-f multipart|sse]\n            [-H host] -p port [-u uri] "
            "[-b fields] [-s seed] [-j]\n");
    exit(2);
}


int
main(int argc, char **argv)
{
    int                  i, n, busy;
    client_t            *c;
    struct rlimit        files;
    struct epoll_event   events[EVENTS];

    arguments(argc, argv);

    signal(SIGPIPE, SIG_IGN);

    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }

    ep = epoll_create1(EPOLL_CLOEXEC);
    c = calloc(clients, sizeof(client_t));

    if (ep == -1 || c == NULL) {
        die("no memory");
    }

    started = now();
    ended = started;

    for (i = 0; i < clients; i++) {
        c[i].fd = -1;
        c[i].seed = seed + i * 1000;
    }

    for ( ;; ) {
        busy = 0;

        for (i = 0; i < clients; i++) {

            if (c[i].fd == -1 && c[i].again <= now() && more(&c[i])) {
                ask(&c[i]);
            }

            if (c[i].fd != -1 && now() - c[i].heard > SILENT) {
                end(&c[i]);
            }

            busy += c[i].fd != -1 || more(&c[i]);
        }

        if (!busy) {
            break;
        }

        n = epoll_wait(ep, events, EVENTS, 100);

        for (i = 0; i < n; i++) {
            handle(events[i].data.ptr, events[i].events);
        }
    }

    report();

    for (i = 0; i < clients; i++) {
        free(c[i].request);
    }

    free(c);

    return failed ? 1 : 0;
}
