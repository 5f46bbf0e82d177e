/*
 * Engines that follow one another, with a fake model: who waits for whom, and
 * what requests are told meanwhile.
 */

#define _GNU_SOURCE

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "client.h"
#include "fake.h"


static int  file;               /* that engines lock */


static sd_engine_t *
follow(int fails, int waits, int queue)
{
    sd_error_t        err;
    sd_engine_t      *e;
    const char       *cpu = "cpu";
    sd_model_conf_t   model = { "fake", SD_PRECISION_EXACT };
    sd_engine_conf_t  conf;

    memset(&conf, 0, sizeof(sd_engine_conf_t));

    conf.stats = stats;
    conf.cycle = ++cycle;
    conf.listen = listener;
    memcpy(conf.cookie, cookie, SD_COOKIE_SIZE);
    conf.devices = &cpu;
    conf.ndevices = 1;
    conf.models = &model;
    conf.nmodels = 1;
    conf.queue = queue;
    conf.slots = 1;
    conf.heartbeat = 300;
    conf.loading_fails = fails;
    conf.generations = file;
    conf.reload_waits = waits;
    conf.log = note;

    if (sd_engine_start(&e, &conf, &err) != SD_OK) {
        printf("# %s\n", err.message);
        exit(1);
    }

    return e;
}


/* processes that hold a lock, as seen from this one */

static pid_t
holder(void)
{
    struct flock  lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

    return fcntl(file, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK
           ? lock.l_pid : 0;
}


/* an engine in a process of its own, which holds the lock when this returns; it
 * ends in good order when stdin's other end does */

static pid_t
before(int *end)
{
    int           i, fd[2];
    char          c;
    pid_t         pid;
    sd_engine_t  *e;

    if (pipe2(fd, O_CLOEXEC) == -1) {
        exit(1);
    }

    pid = fork();

    if (pid == 0) {
        close(fd[1]);
        listen_abstract();
        e = follow(0, 0, 1);

        if (read(fd[0], &c, 1) == 0) {
            sd_engine_stop(e);
        }

        /* the process lives on, as a worker with other requests does */
        pause();
    }

    close(fd[0]);
    *end = fd[1];

    for (i = 0; holder() != pid && i < 10000; i++) {
        nap(1);
    }

    is_int(holder(), pid, "an engine is there");

    return pid;
}


static void
killed(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}


/* a request that has been read, which a tick shows */

static int
waiting(answer_t *a)
{
    int           fd;
    sd_request_t  r;

    r = request(SD_DIALECT_NATIVE, "*/*");
    fd = send_request(&r, "{\"prompt\":\"x\",\"steps\":2}");

    while (a->ticks + a->infos == 0 && read_frame(fd, a) != -1) { /* void */ }

    ok(a->ticks > 0 && a->status == 0, "a request waits, and is told so");

    return fd;
}


/* the engine before is killed, or ends while its process lives on */

static void
test_waits(int kills)
{
    int           fd, end;
    pid_t         pid;
    answer_t      a = { 0 }, b = { 0 };
    sd_engine_t  *e;

    pid = before(&end);
    log_lines[0] = '\0';
    e = follow(0, 1, 4);

    fd = waiting(&a);

    ask_ready(&b);
    is_int(b.status, 503, "not ready");
    ok(has(&b, "\"waiting\""), "as the model waits");
    ask_status(&b);
    ok(has(&b, "\"devices\":[]"), "no device is open");

    if (kills) {
        killed(pid);

    } else {
        close(end);
    }

    finish(fd, &a);
    is_int(a.status, 200, kills ? "answered once the one before was killed"
                                : "answered once the one before has ended");
    ok(jpeg(a.body.data, a.body.len), "by a picture");

    sd_engine_stop(e);

    ok(strstr(log_lines, "waiting for the engine of process") != NULL,
       "the log says so, too");

    if (!kills) {
        is_int(holder(), 0, "no lock is left, though the process is");
        killed(pid);

    } else {
        close(end);
    }

    forget(&a);
    forget(&b);
}


static void
test_overlaps(void)
{
    int           end;
    pid_t         pid;
    answer_t      a = { 0 };
    sd_engine_t  *e;

    pid = before(&end);
    e = follow(0, 0, 4);

    ask(&a, request(SD_DIALECT_NATIVE, "*/*"),
        "{\"prompt\":\"x\",\"steps\":2}");
    is_int(a.status, 200, "who does not wait is there at once");
    is_int(holder(), pid, "beside the other");

    sd_engine_stop(e);
    killed(pid);
    close(end);
    forget(&a);
}


/* what a request that waits for the engine before can come to */

static void
test_ends(void)
{
    int           fd[8], i, full, end;
    pid_t         pid;
    int64_t       t;
    answer_t      a = { 0 }, b[8];
    sd_engine_t  *e;
    sd_request_t  r;

    pid = before(&end);
    e = follow(0, 1, 2);

    r = request(SD_DIALECT_NATIVE, "*/*");
    r.location.timeout = 100;
    ask(&a, r, "{\"prompt\":\"x\"}");
    is_int(a.status, 504, "a timeout is one while nothing is open");
    ok(has(&a, "\"code\":\"timeout\""), "by name");

    /* no more wait than would in the queue */

    r = request(SD_DIALECT_NATIVE, "*/*");
    memset(b, 0, sizeof(b));

    for (i = 0; i < 8; i++) {
        fd[i] = send_request(&r, "{\"prompt\":\"x\",\"steps\":2}");
    }

    for (i = 0, full = 0; i < 8; i++) {

        while (b[i].ticks + b[i].status == 0
               && read_frame(fd[i], &b[i]) != -1)
        {
            /* void */
        }

        if (b[i].status) {
            finish(fd[i], &b[i]);
            full += b[i].status == 503 && has(&b[i], "\"queue_full\"")
                    && strstr(b[i].headers, "Retry-After: ") != NULL;
            fd[i] = -1;
        }
    }

    is_int(full, 5, "three wait, where two fit in the queue; five do not");

    /* the client of one leaves, the others are told of the drain */

    for (i = 0; fd[i] == -1; i++) { /* void */ }

    close(fd[i]);
    fd[i] = -1;

    for (i = 0; sd_engine_active(e) != 2 && i < 2000; i++) {
        nap(1);
    }

    is_int(sd_engine_active(e), 2, "one has left");

    sd_engine_drain(e);

    for (i = 0; i < 8; i++) {
        if (fd[i] != -1) {
            finish(fd[i], &b[i]);
            is_int(b[i].status, 503, "drained before anything was open");
            ok(has(&b[i], "\"code\":\"draining\""), "by name");
        }

        forget(&b[i]);
    }

    ask(&a, r, "{\"prompt\":\"x\"}");
    ok(a.status == 503 && has(&a, "\"code\":\"draining\""),
       "and so is who comes then");

    t = now();
    sd_engine_stop(e);
    ok(now() - t < 10000, "it stops while it waits");

    killed(pid);
    close(end);
    forget(&a);
}


static void
test_fails(void)
{
    int           i, end;
    pid_t         pid;
    answer_t      a = { 0 };
    sd_engine_t  *e;

    pid = before(&end);
    e = follow(1, 1, 2);

    for (i = 0; i < 2; i++) {
        ask(&a, request(SD_DIALECT_NATIVE, "*/*"), "{\"prompt\":\"x\"}");
        is_int(a.status, 503, i ? "503 while the model loads"
                                : "503 while the one before is there");
        ok(has(&a, "\"code\":\"warming_up\""), "by name");
        ok(strstr(a.headers, "Retry-After: ") != NULL, "with Retry-After");

        if (i == 0) {
            fake_load_ms = FAKE_HELD;
            killed(pid);

            do {
                ask_ready(&a);
            } while (!has(&a, "\"loading\""));
        }
    }

    fake_load_ms = 0;

    do {
        ask_ready(&a);
    } while (a.status != 200);

    ask(&a, request(SD_DIALECT_NATIVE, "*/*"),
        "{\"prompt\":\"x\",\"steps\":2}");
    is_int(a.status, 200, "200 once it is there");

    sd_engine_stop(e);
    close(end);
    forget(&a);
}


static uint64_t
arenas(void)
{
    char      *value;
    answer_t   a = { 0 };

    ask_status(&a);
    value = find(a.body.data, "\"arenas\":", ',');
    forget(&a);

    return strtoull(value, NULL, 10);
}


/* memory that is not needed goes back, and pictures come as before */

static void
test_leaves(void)
{
    int           i, k;
    uint64_t      all, less;
    answer_t      a = { 0 };
    sd_engine_t  *e;

    e = follow(0, 0, 2);

    ask(&a, request(SD_DIALECT_NATIVE, "*/*"),
        "{\"prompt\":\"x\",\"steps\":2}");
    is_int(a.status, 200, "a picture");

    all = arenas();
    less = all;
    sd_engine_leave(e);

    for (i = 0; i < 3; i++) {

        for (k = 0; (less = arenas()) == all && k < 10000; k++) {
            nap(1);
        }

        ok(less > 0 && less < all / 2, "an engine that leaves gives back the "
           "arena for decoding: %d of %d bytes", (int) less, (int) all);

        ask_ready(&a);
        is_int(a.status, 503, "it is not ready");

        ask(&a, request(SD_DIALECT_NATIVE, "*/*"),
            "{\"prompt\":\"x\",\"steps\":2}");
        is_int(a.status, 200, "but makes pictures for those who ask");
    }

    sd_engine_stop(e);
    forget(&a);
}


int
main(void)
{
    int  before_all;

    listen_abstract();

    stats = calloc(1, sd_stats_size(4));
    sd_stats_init(stats, sd_stats_size(4));

    file = memfd_create("generations", MFD_CLOEXEC);
    before_all = fds();

    test_waits(1);
    test_waits(0);
    test_overlaps();
    test_ends();
    test_fails();
    test_leaves();

    is_int(fds(), before_all, "no descriptor is left");
    is_int(fake_races, 0, "nothing is used by two");

    return done();
}
