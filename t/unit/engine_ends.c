/*
 * The engine over its socket, with a fake model: the ways in which a job, or
 * the engine, can end.
 */

#define _GNU_SOURCE

#include "fake_engine.h"


static void
test_cancel(void)
{
    int           fd, steps;
    answer_t      a = { 0 };
    sd_engine_t  *e;
    sd_request_t  r;

    e = start(1, 1);
    ask(&a, request(SD_DIALECT_NATIVE, ""), "{\"prompt\":\"x\"}");

    fake_step_ms = FAKE_HELD;
    r = request(SD_DIALECT_NATIVE, "image/jpeg");
    fd = send_request(&r, "{\"prompt\":\"x\"}");
    until(fake_rows, "in the middle of a step");
    steps = fake_steps;

    close(fd);
    until(fake_pictures == 0, "a client that leaves ends the job within it");
    is_int(fake_steps, steps, "of which nothing comes");

    fake_step_ms = 30;
    ask_late(&a, r, 0, "{\"prompt\":\"x\",\"seed\":3,\"steps\":100",
             "\"states\":[");
    is_int(a.status, 504, "a job that takes too long");
    is_str(a.info.status, "timeout", "the log's status");
    ok(has(&a, "\"states\":[{\"image\":0,\"step\":"), "gives its state back");

    r = request(SD_DIALECT_NATIVE, "multipart/mixed");
    ask_late(&a, r, 0, "{\"prompt\":\"x\",\"latent\":\"none\",\"steps\":100",
             "SD-Event: latent");
    is_int(a.status, 200, "the same as a stream");
    is_int(count(&a, "SD-Event: latent"), 1, "has the state");
    ok(has(&a, "\"code\":\"timeout\""), "and the error");
    ok(memcmp(a.body.data + a.body.len - 4, "--\r\n", 4) == 0, "and an end");

    fake_step_ms = 1;
    fake_step_fails = 1;
    ask(&a, r, "{\"prompt\":\"x\"}");
    ok(has(&a, "\"code\":\"internal_error\""), "a step that fails");
    is_str(a.info.status, "error", "the log's status");

    ask(&a, request(SD_DIALECT_NATIVE, JSON), "{\"prompt\":\"x\",\"n\":3}");
    is_int(a.status, 500, "the same, collected");
    fake_step_fails = 0;

    no_pictures(e);
    sd_engine_stop(e);

    forget(&a);
}


/* a request may give itself less time than its location does */

static void
test_deadlines(void)
{
    int           fd;
    answer_t      a = { 0 };
    sd_engine_t  *e;
    sd_request_t  r;

    e = start(4, 1);
    ask(&a, request(SD_DIALECT_NATIVE, ""), "{\"prompt\":\"x\"}");

    r = request(SD_DIALECT_NATIVE, "multipart/mixed");
    r.location.timeout = 60000;

    ask(&a, r, "{\"prompt\":\"x\",\"timeout\":60.5}");
    is_int(a.status, 400, "more time than there is");
    ok(has(&a, "\"param\":\"timeout\"")
       && has(&a, "at most 60 seconds"), "is refused");

    ask(&a, r, "{\"prompt\":\"x\",\"timeout\":-1}");
    is_int(a.status, 400, "less than none");

    ask(&a, r, "{\"prompt\":\"x\",\"timeout\":\"1\"}");
    ok(a.status == 400 && has(&a, "invalid_type"), "a string");

    ask(&a, r, "{\"prompt\":\"x\",\"timeout\":0,\"steps\":2}");
    ok(a.status == 200 && has(&a, "SD-Event: final"), "0: the location's");

    fake_step_ms = 50;
    ask_late(&a, r, 1, "{\"prompt\":\"x\",\"steps\":100,\"latent\":\"none\"",
             "SD-Event: latent");
    is_int(a.status, 200, "a fraction of a second, as a stream");
    ok(has(&a, "\"code\":\"timeout\"") && has(&a, "\"resumable\":true"),
       "ends with the error");
    is_int(count(&a, "SD-Event: latent"), 1, "and the state");
    is_str(a.info.status, "timeout", "the log's status");

    r.accept = str(JSON);
    r.location.timeout = 0;
    ask_late(&a, r, 1, "{\"prompt\":\"x\",\"steps\":100", "\"states\":[");
    is_int(a.status, 504, "the same, collected");
    ok(has(&a, "\"states\":[{\"image\":0,\"step\":"), "with its state");

    /* one that waits ends there */

    fake_step_ms = FAKE_HELD;
    fd = send_request(&r, "{\"prompt\":\"x\",\"steps\":100}");
    wait_queue(1, 0);

    r.accept = str("text/event-stream");
    ask_late(&a, r, 1, "{\"prompt\":\"x\"", "event: queued\n");
    ok(has(&a, "event: queued\n") && has(&a, "event: error\n")
       && has(&a, "\"code\":\"timeout\""), "one that waits ends, too");

    r.accept = str("image/jpeg");
    ask(&a, r, "{\"prompt\":\"x\",\"timeout\":0.3}");
    is_int(a.status, 504, "or is answered so");

    close(fd);
    no_pictures(e);
    sd_engine_stop(e);

    fake_step_ms = 1;
    forget(&a);
}


static void
test_drain(void)
{
    int           fd[3], i, begun;
    answer_t      a = { 0 };
    sd_engine_t  *e;
    sd_request_t  r;

    e = start(4, 3);
    ask(&a, request(SD_DIALECT_NATIVE, ""), "{\"prompt\":\"x\"}");

    fake_step_ms = 20;
    begun = fake_begun;

    r = request(SD_DIALECT_NATIVE, "multipart/mixed");
    fd[0] = send_request(&r, "{\"prompt\":\"x\",\"steps\":100,\"n\":2}");
    r = request(SD_DIALECT_NATIVE, JSON);
    fd[1] = send_request(&r, "{\"prompt\":\"x\",\"steps\":100}");
    r = request(SD_DIALECT_NATIVE, "multipart/mixed");
    wait_queue(3, 0);
    fd[2] = send_request(&r, "{\"prompt\":\"x\",\"steps\":100}");
    wait_queue(3, 1);
    wait_steps(begun + 3, 6);

    sd_engine_quit(e);
    sd_engine_drain(e);

    forget(&a);
    finish(fd[0], &a);
    is_int(count(&a, "SD-Event: handoff"), 1, "a stream is handed off");
    ok(has(&a, "\"resumable\":true"), "with its state");
    ok(has(&a, "\"code\":\"draining\""), "as draining");
    ok(memcmp(a.body.data + a.body.len - 4, "--\r\n", 4) == 0, "in order");
    is_str(a.info.status, "handoff", "which is not an error");

    forget(&a);
    finish(fd[1], &a);
    is_int(a.status, 503, "what collects gets a 503");
    is_str(a.info.status, "handoff", "and is no error either");
    ok(has(&a, "\"states\":[{\"image\":0,"), "with its state");
    ok(strstr(a.headers, "Retry-After: ") != NULL, "Retry-After");

    forget(&a);
    finish(fd[2], &a);
    ok(has(&a, "\"code\":\"draining\""), "what waits is told, too");

    idle(e);
    is_int(sd_engine_active(e), 0, "nothing is active");

    r = request(SD_DIALECT_NATIVE, "");
    i = send_request(&r, "");
    nap(200);
    is_int(sd_engine_active(e), 0, "nobody else is let in");
    close(i);

    sd_engine_stop(e);
    fake_step_ms = 1;
    forget(&a);
}


/* who runs in the middle of it: each format's own way to say where it stands */

static void
test_handoffs(void)
{
    int            fd, i, n, begun;
    char           body[128];
    answer_t       a = { 0 };
    sd_engine_t   *e;
    sd_request_t   r;

    static const struct {
        const char  *format, *body, *has, *without;
        int          status, sagemaker;
    } tests[] = {
        { "multipart", "", "SD-Event: handoff", "SD-Event: error", 200, 0 },
        { "multipart", ",\"latent\":\"none\"", "SD-Event: latent",
          "SD-Event: error", 200, 0 },
        { "sse", "", "event: handoff\n", "event: error", 200, 0 },
        { "sse", "", "event: latent\n", "completed", 200, 0 },
        { "mjpeg", "", "image/jpeg", "application/json", 200, 0 },
        { "json", "", "\"states\":[{\"image\":0,", "b64_json", 503, 0 },
        { "jpeg", "", "\"states\":[{\"image\":0,", "b64_json", 503, 0 },
        { "png", "", "\"code\":\"draining\"", "b64_json", 503, 0 },
        { "json", "", "\"code\":\"draining\"", "images", 503, 1 }
    };

    n = sizeof(tests) / sizeof(tests[0]);

    for (i = 0; i < n; i++) {
        e = start(4, 3);

        r = request(tests[i].sagemaker ? SD_DIALECT_SAGEMAKER
                                       : SD_DIALECT_NATIVE, "*/*");
        snprintf(body, sizeof(body), "{\"prompt\":\"x\",\"steps\":100,"
                 "\"format\":\"%s\"%s}", tests[i].format, tests[i].body);
        ask(&a, request(SD_DIALECT_NATIVE, ""), "{\"prompt\":\"x\"}");
        begun = fake_begun;
        fake_step_ms = 20;

        fd = send_request(&r, body);
        wait_steps(begun + 1, 3);

        sd_engine_drain(e);

        forget(&a);
        finish(fd, &a);

        is_int(a.status, tests[i].status, tests[i].format);
        ok(has(&a, tests[i].has), "%s: %s", tests[i].format, tests[i].has);
        ok(!has(&a, tests[i].without), "%s: not %s", tests[i].format,
           tests[i].without);
        ok(a.ended, "%s: in good order", tests[i].format);

        sd_engine_stop(e);
        fake_step_ms = 1;
    }

    forget(&a);
}


static void
test_failures(void)
{
    answer_t      a = { 0 };
    sd_engine_t  *e;

    fake_load_fails = 1;
    fake_load_ms = 0;
    e = start(2, 1);

    ask(&a, request(SD_DIALECT_NATIVE, ""), "{\"prompt\":\"x\"}");
    is_int(a.status, 503, "a model that does not load");
    ok(has(&a, "\"code\":\"model_failed\"") && has(&a, "a weight is missing"),
       "says why");

    ask_status(&a);
    ok(has(&a, "\"state\":\"failed\"") && has(&a, "a weight is missing"),
       "so does the status");

    sd_engine_stop(e);
    fake_load_fails = 0;

    fake_open_fails = 1;
    e = start(2, 1);

    ask(&a, request(SD_DIALECT_NATIVE, ""), "{\"prompt\":\"x\"}");
    is_int(a.status, 503, "a model that is not there");
    ok(has(&a, "no such model"), "says why");

    ask_ready(&a);
    is_int(a.status, 503, "and is not ready");

    sd_engine_stop(e);
    fake_open_fails = 0;

    forget(&a);
}


static void
test_stop(const char *devices)
{
    int           fd[4], i;
    answer_t      a = { 0 };
    sd_engine_t  *e;
    sd_request_t  r;

    fake_load_ms = FAKE_HELD;

    e = start_devices(devices, "fake", 4, 2);
    wait_status("\"state\":\"loading\"");
    sd_engine_stop(e);
    ok(1, "stopped while it loads");

    fake_load_ms = 0;
    e = start_devices(devices, "fake", 4, 2);
    ask(&a, request(SD_DIALECT_NATIVE, ""), "{\"prompt\":\"x\"}");
    fake_step_ms = 20;

    r = request(SD_DIALECT_NATIVE, "text/event-stream");

    for (i = 0; i < 4; i++) {
        fd[i] = send_request(&r, "{\"prompt\":\"x\",\"steps\":100}");
    }

    wait_queue(2, 2);
    fake_step_ms = FAKE_HELD;
    until(fake_rows, "in the middle of a step");
    sd_engine_stop(e);
    ok(1, "stopped in it");
    is_int(fake_pictures, 0, "no picture is left");

    forget(&a);
    finish(fd[0], &a);
    ok(!a.ended, "a stream is cut");

    for (i = 1; i < 4; i++) {
        close(fd[i]);
    }

    fake_step_ms = 1;
    forget(&a);
}


/* what requests can cause without end is not logged without end */

static void
test_flood(void)
{
    int           i, suppressed;
    int64_t       t;
    answer_t      a = { 0 };
    sd_engine_t  *e;

    suppressed = atomic_load(&stats->counts[SD_COUNT_SUPPRESSED]);

    e = start(2, 2);

    ask(&a, request(SD_DIALECT_NATIVE, JSON), "{\"prompt\":\"x\"}");
    is_int(a.status, 200, "before the flood");
    ok(has(&a, "\"numerics\":\"fake-cpu\""), "numerics in JSON");

    fake_step_fails = 1;
    log_failed = log_suppressed = 0;
    t = now();

    for (i = 0; i < 100; i++) {
        ask(&a, request(SD_DIALECT_NATIVE, ""), "{\"prompt\":\"x\"}");
    }

    is_int(a.status, 500, "requests fail");
    ok(log_failed <= 20 * (2 + (now() - t) / 10000),
       "not all of it is in the log");

    fake_step_fails = 0;
    sd_engine_stop(e);

    is_int(log_failed + log_suppressed, 100, "but how many there were");
    is_int(atomic_load(&stats->counts[SD_COUNT_SUPPRESSED]) - suppressed,
           log_suppressed, "and counted");

    forget(&a);
}


int
main(void)
{
    int  before;

    listen_abstract();
    before = fds();

    test_cancel();
    test_deadlines();
    test_drain();
    test_handoffs();
    test_failures();
    test_stop("cpu");
    test_flood();

    is_int(fds(), before, "no descriptor is left");

    return done();
}
