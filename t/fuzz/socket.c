/*
 * Requests through a real socket to a running engine, whose model is a fake.
 * An input is how to send it, a location, bytes of the frame to change, and a
 * body; it is sent on two connections at once, of which one may go away.
 *
 * A request that is whole has to be answered in order, to its END; whatever was
 * sent, nothing is left of it in the end.
 */

#define _GNU_SOURCE

#include <errno.h>
#include <pthread.h>
#include <sys/stat.h>

#include "../unit/client.h"
#include "../unit/fake.h"


#define SIDE   128              /* pixels, the most */
#define WAIT   60000            /* ms for a frame: it does not come */


static sd_engine_t  *engine;
static int           descriptors;


static void
die(const char *what)
{
    printf("%s\n%s\n", log_lines, what);
    fflush(stdout);
    __builtin_trap();
}


/* the fuzzer has descriptors of its own, but no sockets */

static int
sockets(void)
{
    int          n, fd;
    struct stat  st;

    for (n = 0, fd = 0; fd < 256; fd++) {
        n += fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode);
    }

    return n;
}


int
LLVMFuzzerInitialize(int *argc, char ***argv)
{
    sd_request_t  r;
    answer_t      a = { 0 };

    memset(cookie, 0x5a, SD_COOKIE_SIZE);
    listen_abstract();
    fake_step_ms = 0;
    quiet = 1;

    engine = start_model("fake", 4, 4);

    r = request(SD_DIALECT_NATIVE, "");
    ask(&a, r, "{\"prompt\":\"x\"}");

    if (a.status != 200) {
        die("the engine does not start");
    }

    forget(&a);
    idle(engine);
    descriptors = sockets();

    return 0;
}


typedef struct {
    const uint8_t  *p, *last;
} input_t;


static unsigned
byte(input_t *in)
{
    return in->p < in->last ? *in->p++ : 0;
}


/* what a location may be, cheap enough */

static sd_request_t
decode(input_t *in)
{
    unsigned      b;
    sd_request_t  r;

    static const char  *accept[] = {
        "", "*/*", "image/jpeg", "image/png", "multipart/mixed",
        "text/event-stream", "multipart/x-mixed-replace", "application/json"
    };

    b = byte(in);
    r = request(b & 1, accept[b >> 2 & 7]);
    r.method = b >> 5 & 3;
    r.method = r.method > SD_METHOD_HEAD ? SD_METHOD_POST : r.method;

    b = byte(in);
    r.location.preview = b % 3;
    r.location.latent = b >> 2 & 3;
    r.location.pagination = b >> 4 & 1;
    r.location.timeout = b >> 5 & 1 ? 1 + (b >> 6) : 0;
    r.location.max_steps = 20;
    r.location.max_pixels = SIDE * SIDE;

    return r;
}


/* a frame and a body, perhaps with a few bytes changed */

static void
encode(sd_buf_t *out, sd_request_t *r, input_t *in)
{
    int            i, n;
    size_t         at;
    sd_error_t     err;
    sd_location_t  l;

    n = byte(in) & 3;

    struct {
        unsigned  at, value;
    } change[3];

    for (i = 0; i < n; i++) {
        change[i].at = byte(in) << 8;
        change[i].at |= byte(in);
        change[i].value = byte(in);
    }

    if (r->method == SD_METHOD_POST) {
        r->body_length = in->last - in->p;

    } else {
        r->args.data = (const char *) in->p;
        r->args.len = in->last - in->p;
    }

    sd_frame_request(out, cookie, r, &err);

    for (i = 0; i < n; i++) {
        at = change[i].at % out->len;
        out->data[at] ^= change[i].value;
    }

    /* the cookie's value is of no interest, and work has to be bounded */

    at = 2 * sizeof(uint32_t);

    if (out->len >= at + SD_COOKIE_SIZE + sizeof(l)) {
        memcpy(out->data + at, cookie, SD_COOKIE_SIZE);
        at += SD_COOKIE_SIZE;

        memcpy(&l, out->data + at, sizeof(l));
        l.max_steps = l.max_steps % 20 + 1;
        l.max_pixels = l.max_pixels % (SIDE * SIDE) + 1;
        l.max_images = l.max_images % 4 + 1;
        memcpy(out->data + at, &l, sizeof(l));
    }

    if (r->method == SD_METHOD_POST) {
        sd_buf_append(out, in->p, in->last - in->p);
    }
}


/* whether it is one request of ours, and all of it */

static int
whole(const sd_buf_t *b)
{
    ssize_t       n;
    sd_error_t    err;
    sd_request_t  r;

    n = sd_frame_parse_request(&r, b->data, b->len, cookie, &err);

    return n > 0 && r.body_length == b->len - n && r.location.model == 0;
}


static int
dial(void)
{
    int             fd;
    struct timeval  tv = { WAIT / 1000, 0 };

    fd = socket(AF_UNIX, SOCK_STREAM|SOCK_CLOEXEC, 0);

    if (connect(fd, (struct sockaddr *) &addr, addrlen) == -1) {
        die("connect() failed");
    }

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));

    return fd;
}


static void
put(int fd, const char *p, size_t n)
{
    ssize_t  rc;

    while (n) {
        rc = send(fd, p, n, MSG_NOSIGNAL);

        if (rc == -1 && errno == EINTR) {
            continue;
        }

        if (rc <= 0) {
            break;
        }

        p += rc;
        n -= rc;
    }
}


/* the fuzzer's alarm interrupts who waits with a limit */

static ssize_t
take(int fd, char *p, size_t n)
{
    ssize_t  rc;

    do {
        rc = recv(fd, p, n, 0);
    } while (rc == -1 && errno == EINTR);

    return rc;
}


/* to the end, all in order */

static void
receive(int fd)
{
    int        header, end;
    ssize_t    n;
    size_t     got;
    sd_frame_t f;
    char       buf[65536];

    header = 0;
    end = 0;

    for ( ;; ) {
        for (got = 0; got < sizeof(f); got += n) {
            n = take(fd, (char *) &f + got, sizeof(f) - got);

            if (n == -1) {
                die(errno == EAGAIN ? "a whole request is not answered"
                                    : strerror(errno));
            }

            if (n == 0) {
                if (got || !end) {
                    die("an answer is cut");
                }

                return;
            }
        }

        if (end || f.length > SD_MAX_FRAME
            || f.type < SD_FRAME_HEADER || f.type > SD_FRAME_END
            || (f.type == SD_FRAME_HEADER && header)
            || (f.type == SD_FRAME_INFO
                && f.length != sizeof(sd_frame_info_t))
            || (!header && (f.type == SD_FRAME_DATA || f.type == SD_FRAME_END
                            || f.type == SD_FRAME_ENDING)))
        {
            die("a frame out of order");
        }

        header |= f.type == SD_FRAME_HEADER;
        end = f.type == SD_FRAME_END;

        for (got = 0; got < f.length; got += n) {
            n = take(fd, buf, f.length - got < sizeof(buf)
                              ? f.length - got : sizeof(buf));

            if (n <= 0) {
                die("a frame is cut");
            }
        }
    }
}


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int           i, fd[2];
    size_t        n, leave;
    input_t       in = { data, data + size };
    unsigned      how;
    sd_buf_t      b = { 0 };
    sd_request_t  r;

    how = byte(&in);
    leave = byte(&in);

    r = decode(&in);
    encode(&b, &r, &in);

    fd[0] = dial();
    fd[1] = dial();

    /* in one piece, in small ones, or in two; all of it, or not */

    switch (how & 3) {

    case 0:
        put(fd[0], b.data, b.len);
        put(fd[1], b.data, b.len);
        break;

    case 1:
        for (n = 0; n < b.len; n += leave % 7 + 1) {
            i = b.len - n < leave % 7 + 1 ? b.len - n : leave % 7 + 1;
            put(fd[0], b.data + n, i);
            put(fd[1], b.data + n, i);
        }

        break;

    case 2:
        n = b.len * leave / 256;
        put(fd[1], b.data, n);
        put(fd[0], b.data, b.len);
        put(fd[1], b.data + n, b.len - n);
        break;

    default:
        put(fd[1], b.data, b.len * leave / 256);
        put(fd[0], b.data, b.len);
    }

    /* one is read, the other leaves now, or in the middle, or stays */

    if (how & 4) {
        if (how & 8) {
            char  buf[256];

            (void) !recv(fd[1], buf, leave, MSG_DONTWAIT);
        }

        close(fd[1]);
        fd[1] = -1;
    }

    if (whole(&b)) {
        receive(fd[0]);

        if (fd[1] != -1 && (how & 3) != 3) {
            receive(fd[1]);
        }
    }

    close(fd[0]);

    if (fd[1] != -1) {
        close(fd[1]);
    }

    sd_buf_free(&b);

    /* who left before he was accepted is accepted yet */

    for (i = 0; sd_engine_active(engine) || fake_pictures
                || sockets() > descriptors; i++)
    {
        if (i == WAIT) {
            die(fake_pictures ? "a picture is left"
                : sd_engine_active(engine) ? "a connection is left"
                : "a descriptor is left");
        }

        nap(1);
    }

    if (fake_races) {
        die("two at a time with a picture");
    }

    return 0;
}
