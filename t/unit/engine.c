/*
 * The engine over its socket, with a fake model: every dialect and format, the
 * queue, and all the ways in which a job can end.
 */

#define _GNU_SOURCE

#include <pthread.h>

#include <sys/resource.h>

#include "client.h"
#include "fake.h"


#define BODIES  12              /* of the largest that may be */


static sd_engine_t *
start(int queue, int slots)
{
    return start_model("fake", queue, slots);
}


/* the device thread is a moment behind the last byte */

static void
no_pictures(sd_engine_t *e)
{
    int  i;

    idle(e);

    for (i = 0; fake_pictures && i < 1000; i++) {
        nap(1);
    }

    is_int(fake_pictures, 0, "no picture is left");
}


/* until the status says so */

static void
wait_status(const char *what)
{
    int       i;
    answer_t  a = { 0 };

    for (i = 0; i < 5000; i++) {
        ask_status(&a);

        if (has(&a, what)) {
            break;
        }

        nap(2);
    }

    ok(i < 5000, "status: %s", what);
    forget(&a);
}


static void
test_loading(sd_engine_t *e)
{
    answer_t  a = { 0 };

    ask_ready(&a);
    is_int(a.status, 503, "not ready while the model loads");

    ask(&a, request(SD_DIALECT_NATIVE, "multipart/mixed"),
        "{\"prompt\":\"x\"}");
    is_int(a.status, 200, "a request waits for the model");
    ok(a.infos + a.ticks > 10, "ticks meanwhile");

    ask_ready(&a);
    is_int(a.status, 200, "ready then");
    is_str(a.body.data, "{\"status\":\"ready\"}\n", "and says so");

    forget(&a);
}


static void
test_still(void)
{
    answer_t      a = { 0 };
    sd_request_t  r;

    r = request(SD_DIALECT_NATIVE, "*/*");

    ask(&a, r, "{\"prompt\":\"a house\",\"seed\":7,\"steps\":3,\"foo\":1}");
    is_int(a.status, 200, "a picture");
    is_str(a.type, "image/jpeg", "is a JPEG");
    ok(jpeg(a.body.data, a.body.len), "whole");
    is_int(a.content_length, a.body.len, "of the length it says");
    ok(a.ended, "and ends");
    ok(strstr(a.headers, "SD-Seed: 7\r\n") != NULL, "SD-Seed");
    ok(strstr(a.headers, "SD-Steps: 3\r\n") != NULL, "SD-Steps");
    ok(strstr(a.headers, "Cache-Control: no-store, no-transform\r\n") != NULL,
       "Cache-Control");
    ok(strstr(a.headers, "X-Request-Id: 0123456789abcdef") != NULL,
       "X-Request-Id");
    ok(strstr(a.headers, "SD-Warning: unknown field \"foo\"") != NULL,
       "SD-Warning");
    is_str(a.info.status, "ok", "the log's status");
    is_int(a.info.step, 3, "the log's step");
    is_str(a.info.model, "fake", "the log's model");

    ask(&a, request(SD_DIALECT_NATIVE, "image/png"), "{\"prompt\":\"a\"}");
    ok(a.body.len > 8 && memcmp(a.body.data, "\x89PNG", 4) == 0, "a PNG");
    ok(memmem(a.body.data, a.body.len, "Steps: 20, Sampler: ", 20) != NULL,
       "with parameters");

    r.method = SD_METHOD_GET;
    r.args = str("prompt=a+b%20c&steps=2&seed=3&format=png");
    r.content_type = str("");
    ask(&a, r, NULL);
    is_str(a.type, "image/png", "GET with arguments");

    r.method = SD_METHOD_HEAD;
    ask(&a, r, NULL);
    is_int(a.status, 200, "HEAD");
    is_int(a.body.len, 0, "has no body");
    is_str(a.type, "image/png", "but a type");

    forget(&a);
}


static void
test_multipart(void)
{
    int        parts;
    char      *p, *end, *b, boundary[64];
    size_t     n, close;
    answer_t   a = { 0 };

    ask(&a, request(SD_DIALECT_NATIVE, "multipart/mixed"),
        "{\"prompt\":\"x\",\"steps\":4,\"seed\":1,\"n\":2,\"bar\":null}");

    is_int(a.status, 200, "multipart/mixed");
    ok(strncmp(a.type, "multipart/mixed; boundary=", 26) == 0, "its type");

    n = snprintf(boundary, sizeof(boundary), "--%.40s", a.type + 26);

    /* walk through it by Content-Length alone */

    p = a.body.data;
    end = p + a.body.len;
    parts = 0;
    close = 0;

    while (p + n + 2 <= end && memcmp(p, boundary, n) == 0) {
        p += n;

        if (memcmp(p, "--\r\n", 4) == 0) {
            close = p + 4 == end;
            break;
        }

        b = strstr(p, "\r\n\r\n");
        p = strstr(p, "Content-Length: ");

        if (b == NULL || p == NULL || p > b) {
            break;
        }

        p = b + 4 + atoi(p + 16) + 2;
        parts++;
    }

    /* a newer preview may have taken an older one's place */

    n = count(&a, "SD-Event: preview");

    ok(close, "ends with its closing boundary");
    ok(n >= 2 && n <= 6, "previews");
    is_int(parts, 1 + 2 * n + 4 + waits(&a),
           "a start, then each with its latent");
    is_int(a.data, 1 + n + 2 + waits(&a), "a frame for each event");
    is_int(count(&a, "SD-Event: latent"), n + 2, "latents");
    is_int(count(&a, "SD-Event: final"), 2, "pictures");
    ok(count(&a, "SD-Seed: 2") >= 4, "the second one has the next seed");
    ok(has(&a, "\"warnings\":[\"unknown field \\\"bar\\\" was ignored\"]"),
       "warnings in the start");
    ok(a.ending.len && memmem(a.ending.data, a.ending.len, "engine_failed", 13),
       "an ending, for the case");

    ask(&a, request(SD_DIALECT_NATIVE, "multipart/mixed"),
        "{\"prompt\":\"x\",\"latent\":\"none\",\"preview\":\"none\"}");
    is_int(a.data, 2 + waits(&a), "no previews and no latents: start and end");

    ask(&a, request(SD_DIALECT_NATIVE, "multipart/x-mixed-replace"),
        "{\"prompt\":\"x\",\"steps\":4,\"preview\":\"vae\"}");
    n = count(&a, "Content-Type: image/jpeg");
    ok(n >= 2 && n <= 4, "x-mixed-replace");
    is_int(count(&a, "Content-Type: "), n, "pictures alone");

    forget(&a);
}


static void
test_sse(void)
{
    answer_t      a = { 0 };
    sd_request_t  r;

    r = request(SD_DIALECT_NATIVE, "text/event-stream");

    ask(&a, r, "{\"prompt\":\"x\",\"steps\":4,\"preview_every\":2}");
    is_str(a.type, "text/event-stream; charset=utf-8", "event stream");
    is_int(count(&a, "event: image_generation.partial_image\ndata: "), 1,
           "a preview after 2 of 4");
    is_int(count(&a, "event: image_generation.completed\n"), 1, "completed");
    is_int(count(&a, "\nid: ") + 1, 3 + waits(&a), "ids");
    ok(has(&a, "\"usage\":{\"total_tokens\":"), "usage");

    r.last_event_id = str("2");
    ask(&a, r, "{\"prompt\":\"x\"}");
    is_int(a.status, 204, "a reconnect is told to stop");

    forget(&a);
}


static void
test_json(void)
{
    answer_t  a = { 0 };

    ask(&a, request(SD_DIALECT_NATIVE, JSON),
        "{\"prompt\":\"x\",\"steps\":4,\"n\":3,\"latent\":\"last\"}");
    is_int(count(&a, "\"b64_json\":"), 3, "JSON with pictures");
    is_int(count(&a, "\"latents\":"), 3, "and latents");
    ok(!has(&a, "\"previews\""), "no previews unasked");
    ok(has(&a, "\"timings\":{"), "timings");
    is_int(a.content_length, a.body.len, "Content-Length");

    ask(&a, request(SD_DIALECT_NATIVE, JSON),
        "{\"prompt\":\"x\",\"steps\":4,\"preview_every\":1}");
    is_int(count(&a, "\"b64_json\":"), 4, "with previews, if asked");

    ask(&a, request(SD_DIALECT_NATIVE, JSON),
        "{\"prompt\":\"x\",\"steps\":10,\"preview\":\"rgb\","
        "\"previews\":4}");
    is_int(count(&a, "\"b64_json\":"), 5, "evenly spaced");
    ok(has(&a, "\"step\":2,") && has(&a, "\"step\":4,")
       && has(&a, "\"step\":6,") && has(&a, "\"step\":8,"), "they are");

    ask(&a, request(SD_DIALECT_NATIVE, JSON),
        "{\"prompt\":\"x\",\"steps\":10,\"latent\":3}");
    is_int(count(&a, "\"latents\":"), 4, "a latent every third step");
    is_int(count(&a, "\"b64_json\":"), 1, "without previews");

    forget(&a);
}


static void
test_sagemaker(void)
{
    int           i;
    char         *p, *whole, *latents, body[65536];
    answer_t      a = { 0 };
    sd_request_t  r;

    r = request(SD_DIALECT_SAGEMAKER, "");
    r.content_type = str("text/x-anything");

    ask(&a, r, "{\"prompt\":\"x\",\"parameters\":{\"seed\":5,"
        "\"num_inference_steps\":7,\"num_interim_images\":3,"
        "\"starting_step\":0}}");
    is_int(a.status, 200, "sagemaker");
    ok(strncmp(a.body.data, "{\"images\":[\"", 12) == 0
       && strcmp(strchr(a.body.data, ']'), "]}\n") == 0, "images alone");

    whole = strdup(find(a.body.data, "{\"images\":[\"", '"'));

    r.location.pagination = 1;
    latents = strdup("");

    for (i = 0; i < 3; i++) {
        snprintf(body, sizeof(body), "{\"prompt\":\"x\",\"parameters\":{%s"
                 "\"num_inference_steps\":7,\"num_interim_images\":3,"
                 "\"starting_step\":%d%s%s%s}}", i ? "" : "\"seed\":5,", i * 3,
                 i ? ",\"latents\":\"" : "", latents, i ? "\"" : "");
        ask(&a, r, body);

        is_int(a.status, 200, "a page");
        is_int(count(&a, "\",\"") + (i < 2), i < 2 ? 4 : 1, "its images");

        p = find(a.body.data, "\"step\":", '}');
        is_int(p ? atoi(p) : -1, i < 2 ? i * 3 + 3 : 7, "its step");

        free(latents);
        latents = strdup(find(a.body.data, "\"latents\":\"", '"'));
    }

    ok(strncmp(a.body.data + 12, whole, strlen(whole)) == 0,
       "the last page has the picture of the whole");

    snprintf(body, sizeof(body), "{\"prompt\":\"x\",\"parameters\":{"
             "\"num_inference_steps\":7,\"num_interim_images\":3,"
             "\"starting_step\":7,\"latents\":\"%s\"}}", latents);
    ask(&a, r, body);
    is_int(a.status, 200, "one more call");
    ok(strncmp(a.body.data + 12, whole, strlen(whole)) == 0,
       "has it once more");

    ask(&a, r, "{\"prompt\":7}");
    is_int(a.status, 400, "an error");
    ok(strncmp(a.body.data, "{\"message\":\"", 12) == 0, "with a message");
    ok(strstr(a.headers, "x-amzn-ErrorType: ValidationError") != NULL,
       "and its type");

    free(whole);
    free(latents);
    forget(&a);
}


static void
test_refusals(void)
{
    answer_t      a = { 0 };
    sd_request_t  r;

    r = request(SD_DIALECT_NATIVE, "video/mp4");
    ask(&a, r, "{\"prompt\":\"x\"}");
    is_int(a.status, 406, "a type that we do not make");

    r = request(SD_DIALECT_NATIVE, "");
    r.content_type = str("application/x-www-form-urlencoded");
    ask(&a, r, "prompt=x");
    is_int(a.status, 415, "a form");

    r = request(SD_DIALECT_NATIVE, "");
    ask(&a, r, "{\"prompt\":\"x\",\"width\":12}");
    is_int(a.status, 400, "a width of 12");
    is_str(a.body.data, "{\"error\":{\"message\":\"width and height must be "
           "divisible by 8\",\"type\":\"invalid_request_error\",\"param\":"
           "\"width\",\"code\":\"invalid_value\"}}\n", "the error object");
    is_str(a.info.status, "rejected", "rejected, says the log");

    ask(&a, r, "{\"prompt\":\"x\",\"latents\":\"AAAA\"}");
    is_int(a.status, 400, "latents that are none");
    is_str(find(a.body.data, "\"param\":\"", '"'), "latents", "are named");

    r.body_length = 0;
    ask(&a, r, "");
    is_int(a.status, 400, "an empty body");

    forget(&a);
}


/* many large bodies at a time, all of which want to be read first: some wait,
 * as the engine does not hold them all */

static void
test_bodies(sd_engine_t *e)
{
    int             i, fd[BODIES], left, before;
    char           *blank;
    size_t          sent[BODIES] = { 0 };
    ssize_t         n;
    sd_buf_t        b = { 0 };
    answer_t        a = { 0 };
    sd_error_t      err;
    sd_request_t    r;
    struct rusage   ru;

    blank = malloc(SD_MAX_BODY);
    memset(blank, ' ', SD_MAX_BODY);

    getrusage(RUSAGE_SELF, &ru);
    before = ru.ru_maxrss / 1024;

    r = request(SD_DIALECT_NATIVE, "");
    r.body_length = SD_MAX_BODY;
    sd_frame_request(&b, cookie, &r, &err);

    for (i = 0; i < BODIES; i++) {
        fd[i] = socket(AF_UNIX, SOCK_STREAM|SOCK_CLOEXEC, 0);
        (void) !connect(fd[i], (struct sockaddr *) &addr, addrlen);
        (void) !send(fd[i], b.data, b.len, MSG_NOSIGNAL);
    }

    /* one leaves while it waits, or while it is read */
    close(fd[BODIES - 1]);

    /* as much of each as it takes, in turns */

    do {
        for (i = 0, left = 0; i < BODIES - 1; i++) {
            n = send(fd[i], blank, SD_MAX_BODY - sent[i],
                     MSG_NOSIGNAL|MSG_DONTWAIT);
            sent[i] += n > 0 ? n : 0;
            left += sent[i] < SD_MAX_BODY;
        }

        nap(1);
    } while (left);

    for (i = 0; i < BODIES - 1; i++) {
        finish(fd[i], &a);
        is_int(a.status, 400, "a large body is answered");
        forget(&a);
    }

    getrusage(RUSAGE_SELF, &ru);
    printf("# %d bodies of %d MB: %ld MB after %d\n", BODIES,
           SD_MAX_BODY >> 20, ru.ru_maxrss / 1024, before);

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    ok(ru.ru_maxrss / 1024 < before + 300, "but not all at a time");
#endif

    idle(e);
    is_int(sd_engine_active(e), 0, "and none is left");

    sd_buf_free(&b);
    free(blank);
}


static void
test_cookie(sd_engine_t *e)
{
    answer_t      a = { 0 };
    sd_request_t  r;

    r = request(SD_DIALECT_NATIVE, "");
    cookie[3]++;
    ask(&a, r, "{\"prompt\":\"x\"}");
    cookie[3]--;

    is_int(a.status, 0, "a wrong cookie gets nothing");

    stranger = 1;
    ask(&a, r, "{\"prompt\":\"x\"}");
    is_int(a.status, 0, "a stranger with the right one gets nothing");
    stranger = 0;

    idle(e);
    is_int(sd_engine_active(e), 0, "and is forgotten");

    ask(&a, r, "{\"prompt\":\"x\"}");
    is_int(a.status, 200, "we do");

    forget(&a);
}


/* one slot, one place in the queue */

static void
test_queue(sd_engine_t *e)
{
    int           fd[2], i;
    answer_t      a = { 0 };
    sd_request_t  r;

    fake_step_ms = 20;
    r = request(SD_DIALECT_NATIVE, "text/event-stream");

    for (i = 0; i < 2; i++) {
        fd[i] = send_request(&r, "{\"prompt\":\"x\",\"steps\":20}");
        nap(60);
    }

    is_int(read_frame(fd[1], &a), SD_FRAME_HEADER, "the second one waits");

    while (a.data == 0 && read_frame(fd[1], &a) != -1) { /* void */ }

    ok(has(&a, "event: queued\ndata: {\"type\":\"queued\",\"position\":1"),
       "and is told so");

    ask(&a, request(SD_DIALECT_NATIVE, ""), "{\"prompt\":\"x\"}");
    is_int(a.status, 503, "the third one is refused");
    ok(has(&a, "\"code\":\"queue_full\""), "queue_full");
    ok(strstr(a.headers, "Retry-After: ") != NULL, "Retry-After");

    /* who leaves the queue makes room at once */

    close(fd[1]);
    nap(50);

    fd[1] = send_request(&r, "{\"prompt\":\"x\",\"steps\":2}");
    forget(&a);
    finish(fd[1], &a);
    is_int(a.status, 200, "room again");

    forget(&a);
    finish(fd[0], &a);
    is_int(count(&a, "event: image_generation.completed"), 1,
           "the first one noticed nothing");

    no_pictures(e);

    fake_step_ms = 1;
    forget(&a);
}


/* the last value of "key": in the events so far; -1: none */

static double
last(const answer_t *a, const char *key)
{
    double       v;
    const char  *p, *end;

    v = -1;
    p = a->body.data;
    end = p + a->body.len;

    while (p && (p = memmem(p, end - p, key, strlen(key))) != NULL) {
        p += strlen(key);
        v = atof(p);
    }

    return v;
}


/* where one stands, and when it begins: told again when it changes */

static void
test_positions(void)
{
    int           fd[4], i;
    double        eta;
    int64_t       t;
    answer_t      a = { 0 }, b = { 0 };
    sd_engine_t  *e;
    sd_request_t  r;

    e = start(4, 1);

    /* so that it is known what a step takes */

    fake_step_ms = 20;
    ask(&a, request(SD_DIALECT_NATIVE, ""), "{\"prompt\":\"x\"}");

    r = request(SD_DIALECT_NATIVE, "text/event-stream");
    fd[0] = send_request(&r, "{\"prompt\":\"x\",\"steps\":100}");
    wait_status("\"running\":1,\"queue\":{\"waiting\":0,");

    for (i = 1; i < 4; i++) {
        r.accept = str(i == 2 ? "multipart/mixed" : "text/event-stream");
        fd[i] = send_request(&r, "{\"prompt\":\"x\",\"steps\":50}");
        snprintf(a.type, sizeof(a.type), "\"waiting\":%d,", i);
        wait_status(a.type);
    }

    forget(&a);
    t = now();

    while (last(&a, "\"position\":") != 3 && read_frame(fd[3], &a) != -1) { }

    ok(has(&a, "event: queued\ndata: {\"type\":\"queued\",\"position\":3,"
               "\"eta\":"), "the third one is told so");

    /* some 100 and twice 50 steps; a busy machine takes longer */

    eta = last(&a, "\"eta\":");
    ok(eta > 2 && eta < 60, "and when it begins: in %.1f seconds", eta);

    close(fd[1]);

    while (last(&a, "\"position\":") != 2 && read_frame(fd[3], &a) != -1) { }

    is_int(last(&a, "\"position\":"), 2, "one leaves: now it is the second");
    ok(now() - t >= 900, "and is told a second later");
    ok(last(&a, "\"eta\":") > 0, "in %.1f seconds", last(&a, "\"eta\":"));

    close(fd[0]);
    finish(fd[3], &a);
    is_int(count(&a, "event: image_generation.completed"), 1, "and is made");
    ok(count(&a, "event: queued\n") <= 2 + (now() - t) / 1000,
       "told %d times at most", count(&a, "event: queued\n"));

    finish(fd[2], &b);
    ok(has(&b, "{\"event\":\"queued\",\"position\":2,\"eta\":"),
       "as multipart, too");

    no_pictures(e);
    sd_engine_stop(e);

    fake_step_ms = 1;
    forget(&a);
    forget(&b);
}


/* places are bounded by what they take, too */

static void
test_queue_time(void)
{
    int           fd[3], i, seconds;
    answer_t      a = { 0 };
    sd_engine_t  *e;
    sd_request_t  r;

    queue_time = 4000;
    e = start(64, 1);
    queue_time = 0;

    fake_step_ms = 20;
    ask(&a, request(SD_DIALECT_NATIVE, ""), "{\"prompt\":\"x\"}");

    /* one runs, and one waits, however long it takes; both seem to take twice
     * what they do, as they are guided and this model does not mind */

    r = request(SD_DIALECT_NATIVE, JSON);

    for (i = 0; i < 2; i++) {
        fd[i] = send_request(&r, "{\"prompt\":\"x\",\"steps\":100,\"n\":3}");
        wait_status(i ? "\"waiting\":1," : "\"running\":1,");
    }

    ask(&a, r, "{\"prompt\":\"x\",\"steps\":1}");
    is_int(a.status, 503, "no room for a second one");
    ok(has(&a, "\"code\":\"queue_full\"") && has(&a, "seconds of work wait"),
       "for want of time");

    seconds = atoi(strstr(a.headers, "Retry-After: ") + 13);
    ok(seconds >= 3 && seconds < 60, "try again in %d seconds", seconds);

    close(fd[1]);
    wait_status("\"waiting\":0,");

    for (i = 1; i < 3; i++) {
        fd[i] = send_request(&r, "{\"prompt\":\"x\",\"steps\":2}");
        wait_status(i == 1 ? "\"waiting\":1," : "\"waiting\":2,");
    }

    ok(1, "room for two that take less");

    for (i = 0; i < 3; i++) {
        close(fd[i]);
    }

    no_pictures(e);
    sd_engine_stop(e);

    fake_step_ms = 1;
    forget(&a);
}


/* ns of the processor that the engine's threads have had, but for devices' */

static int64_t
engine_time(void)
{
    DIR            *d;
    FILE           *f;
    char            path[300], name[32];
    int64_t         all;
    long long       ns;
    struct dirent  *de;

    all = 0;
    d = opendir("/proc/self/task");

    while ((de = readdir(d)) != NULL) {
        snprintf(path, sizeof(path), "/proc/self/task/%s/comm", de->d_name);

        f = fopen(path, "r");
        if (f == NULL || fgets(name, sizeof(name), f) == NULL) {
            name[0] = '\0';
        }

        if (f) {
            fclose(f);
        }

        if (strncmp(name, "sd-io", 5) && strncmp(name, "sd-enc", 6)) {
            continue;
        }

        snprintf(path, sizeof(path), "/proc/self/task/%s/schedstat",
                 de->d_name);
        f = fopen(path, "r");

        if (f && fscanf(f, "%lld", &ns) == 1) {
            all += ns;
        }

        if (f) {
            fclose(f);
        }
    }

    closedir(d);

    return all;
}


#define REFUSED  500

static void
test_refusing(void)
{
    int           fd[65], i, refused;
    char         *body;
    int64_t       t, best;
    answer_t      a = { 0 };
    sd_engine_t  *e;
    sd_request_t  r;

    e = start(64, 1);
    ask(&a, request(SD_DIALECT_NATIVE, ""), "{\"prompt\":\"x\"}");

    fake_step_ms = 60000;
    r = request(SD_DIALECT_NATIVE, "text/event-stream");

    for (i = 0; i < 65; i++) {
        fd[i] = send_request(&r, "{\"prompt\":\"x\"}");

        if (i == 0) {
            wait_status("\"running\":1,");
        }
    }

    wait_status("\"waiting\":64,");

    /* with a state, too, that nobody needs to look at: 12 kB here */

    body = malloc(16384);
    memset(body, 'A', 16384);
    memcpy(body, "{\"prompt\":\"x\",\"latents\":\"", 25);
    memcpy(body + 12000, "\"}", 3);

    t = 0;
    refused = 0;
    best = INT64_MAX;

    for (i = 0; i < 5 * REFUSED; i++) {
        if (i % REFUSED == 0) {
            t = engine_time();
        }

        ask(&a, r, i % 2 ? body : "{\"prompt\":\"x\"}");
        refused += a.status == 503 && has(&a, "queue_full");

        if (i % REFUSED == REFUSED - 1) {
            t = engine_time() - t;
            best = t < best ? t : best;
        }
    }

    is_int(refused, 5 * REFUSED, "requests are refused");

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    best /= 20;
#endif

    ok(best < REFUSED * INT64_C(100000), "in %.1f us each", best / 1e3 / REFUSED);

    for (i = 0; i < 65; i++) {
        close(fd[i]);
    }

    free(body);
    no_pictures(e);
    sd_engine_stop(e);

    fake_step_ms = 1;
    forget(&a);
}


/* a request may give itself less time than its location does */

static void
test_deadlines(void)
{
    int           fd[2];
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
    ask(&a, r, "{\"prompt\":\"x\",\"timeout\":0.5,\"steps\":100,"
               "\"latent\":\"none\"}");
    is_int(a.status, 200, "half a second, as a stream");
    ok(has(&a, "\"code\":\"timeout\"") && has(&a, "\"resumable\":true"),
       "ends with the error");
    is_int(count(&a, "SD-Event: latent"), 1, "and the state");
    is_str(a.info.status, "timeout", "the log's status");

    r.accept = str(JSON);
    r.location.timeout = 0;
    ask(&a, r, "{\"prompt\":\"x\",\"timeout\":0.5,\"steps\":100}");
    is_int(a.status, 504, "the same, collected");
    ok(has(&a, "\"states\":[{\"image\":0,\"step\":"), "with its state");

    /* one that waits ends there */

    fake_step_ms = 200;
    fd[0] = send_request(&r, "{\"prompt\":\"x\",\"steps\":100}");
    wait_status("\"running\":1,");

    r.accept = str("text/event-stream");
    fd[1] = send_request(&r, "{\"prompt\":\"x\",\"timeout\":0.3}");
    forget(&a);
    finish(fd[1], &a);
    ok(has(&a, "event: queued\n") && has(&a, "event: error\n")
       && has(&a, "\"code\":\"timeout\""), "one that waits ends, too");

    r.accept = str("image/jpeg");
    ask(&a, r, "{\"prompt\":\"x\",\"timeout\":0.3}");
    is_int(a.status, 504, "or is answered so");

    close(fd[0]);
    no_pictures(e);
    sd_engine_stop(e);

    fake_step_ms = 1;
    forget(&a);
}


/* by weights, of those that wait: the order in which they are admitted */

static void
test_priorities(void)
{
    int           fd[13], i, j, k;
    char          order[13];
    uint32_t      time[12];
    answer_t      a = { 0 };
    sd_engine_t  *e;
    sd_request_t  r;

    static const char  come[] = "lnhlnhlnhlnh";

    e = start(12, 1);

    ask(&a, request(SD_DIALECT_NATIVE, ""), "{\"prompt\":\"x\"}");

    fake_step_ms = 200;
    r = request(SD_DIALECT_NATIVE, JSON);
    fd[12] = send_request(&r, "{\"prompt\":\"x\",\"steps\":100}");
    wait_status("\"running\":1,\"queue\":{\"waiting\":0,");

    for (i = 0; i < 12; i++) {
        r.location.priority = come[i] == 'l' ? SD_PRIORITY_LOW
                              : come[i] == 'h' ? SD_PRIORITY_HIGH
                              : SD_PRIORITY_NORMAL;
        fd[i] = send_request(&r, "{\"prompt\":\"x\",\"steps\":2}");
    }

    wait_status("\"waiting\":12,");
    fake_step_ms = 10;
    close(fd[12]);

    for (i = 0; i < 12; i++) {
        forget(&a);
        finish(fd[i], &a);
        time[i] = a.info.queue_time;
    }

    for (i = 0; i < 12; i++) {
        for (k = 0; time[k] == 0; k++) { /* void */ }

        /* those of one priority in the order in which they came */

        for (j = k; j < 12; j++) {
            k = time[j] && time[j] < time[k] ? j : k;
        }

        order[i] = come[k];
        time[k] = 0;
    }

    order[12] = '\0';
    is_str(order, "hlhhnhnlnnll", "four of high, two of normal, one of low");

    no_pictures(e);
    sd_engine_stop(e);

    fake_step_ms = 1;
    forget(&a);
}


static void
test_cancel(sd_engine_t *e)
{
    int           fd, steps;
    int64_t       t;
    answer_t      a = { 0 };
    sd_request_t  r;

    fake_step_ms = 1000;
    r = request(SD_DIALECT_NATIVE, "image/jpeg");

    fd = send_request(&r, "{\"prompt\":\"x\"}");
    nap(100);
    steps = fake_steps;

    t = now();
    close(fd);

    while (fake_pictures && now() - t < 2000) {
        nap(1);
    }

    ok(now() - t < 200, "a client that leaves ends the job within a step");
    is_int(fake_steps, steps, "of which nothing comes");

    fake_step_ms = 30;
    r.location.timeout = 200;
    ask(&a, r, "{\"prompt\":\"x\",\"seed\":3}");
    is_int(a.status, 504, "a job that takes too long");
    is_str(a.info.status, "timeout", "the log's status");
    ok(has(&a, "\"states\":[{\"image\":0,\"step\":"), "gives its state back");

    r = request(SD_DIALECT_NATIVE, "multipart/mixed");
    r.location.timeout = 200;
    ask(&a, r, "{\"prompt\":\"x\",\"latent\":\"none\"}");
    is_int(a.status, 200, "the same as a stream");
    is_int(count(&a, "SD-Event: latent"), 1, "has the state");
    ok(has(&a, "\"code\":\"timeout\""), "and the error");
    ok(memcmp(a.body.data + a.body.len - 4, "--\r\n", 4) == 0, "and an end");

    fake_step_ms = 1;
    fake_step_fails = 1;
    r.location.timeout = 0;
    ask(&a, r, "{\"prompt\":\"x\"}");
    ok(has(&a, "\"code\":\"internal_error\""), "a step that fails");
    is_str(a.info.status, "error", "the log's status");

    ask(&a, request(SD_DIALECT_NATIVE, JSON), "{\"prompt\":\"x\",\"n\":3}");
    is_int(a.status, 500, "the same, collected");
    fake_step_fails = 0;

    no_pictures(e);

    forget(&a);
}


/* previews of 512x512 add up to more than a socket takes */

static void
test_slow(sd_engine_t *e)
{
    int           fd, previews;
    int64_t       t;
    answer_t      a = { 0 };
    sd_request_t  r;

    r = request(SD_DIALECT_NATIVE, "multipart/mixed");

    fd = send_request(&r, "{\"prompt\":\"x\",\"width\":512,\"height\":512,"
                      "\"steps\":90,\"quality\":100}");

    t = now();

    while (fake_pictures == 0 && now() - t < 3000) {
        nap(1);
    }

    while (fake_pictures && now() - t < 10000) {
        nap(1);
    }

    is_int(fake_pictures, 0, "a slow client does not hold the device");

    ask(&a, request(SD_DIALECT_NATIVE, ""), "{\"prompt\":\"x\"}");
    is_int(a.status, 200, "nor anyone else");

    forget(&a);
    finish(fd, &a);

    previews = count(&a, "SD-Event: preview");

    ok(previews > 0 && previews < 89, "it misses previews");
    printf("# got %d of 89\n", previews);
    is_int(count(&a, "SD-Event: latent"), previews + 1, "with their latents");
    is_int(count(&a, "SD-Event: final"), 1, "but not the picture");
    ok(memcmp(a.body.data + a.body.len - 4, "--\r\n", 4) == 0, "nor the end");

    forget(&a);
}


static void
test_heartbeat(void)
{
    answer_t  a = { 0 };

    fake_step_ms = 700;
    ask(&a, request(SD_DIALECT_NATIVE, "text/event-stream"),
        "{\"prompt\":\"x\",\"steps\":2}");
    ok(count(&a, ": still here\n\n") >= 2, "heartbeats within a long step");

    fake_step_ms = 1;
    forget(&a);
}


/* clients of all kinds, half of which leave at some moment or other */

static atomic_int  storm_failed, storm_whole;

static void *
storm(void *data)
{
    int           i, fd, k, n;
    unsigned      seed;
    answer_t      a = { 0 };
    sd_request_t  r;

    static const char  *accept[] = {
        "image/jpeg", "image/png", "multipart/mixed", "text/event-stream",
        "multipart/x-mixed-replace", JSON
    };

    seed = (unsigned) (uintptr_t) data;

    for (i = 0; i < 25; i++) {
        k = rand_r(&seed) % 6;
        r = request(k == 5 ? SD_DIALECT_SAGEMAKER : SD_DIALECT_NATIVE,
                    accept[k]);
        r.location.timeout = rand_r(&seed) % 8 == 0 ? 20 : 0;

        fd = send_request(&r, rand_r(&seed) % 8
                          ? "{\"prompt\":\"x\",\"steps\":6}"
                          : "{\"prompt\":\"x\",\"steps\":\"6\"}");
        forget(&a);

        if (rand_r(&seed) % 2) {
            n = rand_r(&seed) % 4;

            while (n-- && read_frame(fd, &a) != -1) { /* void */ }

            nap(rand_r(&seed) % 10);
            close(fd);
            continue;
        }

        finish(fd, &a);

        if (!a.ended || a.status < 200) {
            storm_failed++;

        } else {
            storm_whole++;
        }
    }

    forget(&a);

    return NULL;
}


static void
test_storm(const char *devices)
{
    int           i;
    pthread_t     t[6];
    sd_engine_t  *e;

    printf("# on %s\n", devices);
    storm_whole = 0;

    e = start_devices(devices, "fake", 3, 2);

    for (i = 0; i < 6; i++) {
        pthread_create(&t[i], NULL, storm, (void *) (uintptr_t) (i + 1));
    }

    for (i = 0; i < 6; i++) {
        pthread_join(t[i], NULL);
    }

    is_int(storm_failed, 0, "whoever stays gets an answer");
    ok(storm_whole > 30, "as many do");
    no_pictures(e);
    is_int(sd_engine_active(e), 0, "nothing is active");

    sd_engine_stop(e);
}


static void
test_status(void)
{
    answer_t  a = { 0 };

    ask_status(&a);
    ok(has(&a, "\"requests\":{\"ok\":"), "with counters");
    ok(has(&a, "\"state\":\"ready\""), "and models");
    ok(!has(&a, "\"steps\":0,"), "steps were counted");
    printf("# %s", a.body.data);

    forget(&a);
}


static void
test_drain(sd_engine_t *e)
{
    int           fd[3], i;
    answer_t      a = { 0 };
    sd_request_t  r;

    fake_step_ms = 30;

    r = request(SD_DIALECT_NATIVE, "multipart/mixed");
    fd[0] = send_request(&r, "{\"prompt\":\"x\",\"steps\":100,\"n\":2}");
    r = request(SD_DIALECT_NATIVE, JSON);
    fd[1] = send_request(&r, "{\"prompt\":\"x\",\"steps\":100}");
    r = request(SD_DIALECT_NATIVE, "multipart/mixed");
    nap(300);
    fd[2] = send_request(&r, "{\"prompt\":\"x\",\"steps\":100}");
    nap(100);

    sd_engine_quit(e);
    sd_engine_drain(e);

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

    fake_step_ms = 1;
    forget(&a);
}


/* who runs in the middle of it: each format's own way to say where it stands */

static void
test_handoffs(void)
{
    int            fd, i, n;
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

    fake_step_ms = 20;

    n = sizeof(tests) / sizeof(tests[0]);

    for (i = 0; i < n; i++) {
        e = start(4, 3);

        r = request(tests[i].sagemaker ? SD_DIALECT_SAGEMAKER
                                       : SD_DIALECT_NATIVE, "*/*");
        snprintf(body, sizeof(body), "{\"prompt\":\"x\",\"steps\":100,"
                 "\"format\":\"%s\"%s}", tests[i].format, tests[i].body);
        fd = send_request(&r, body);

        fake_steps = 0;

        while (fake_steps < 3) {
            nap(1);
        }

        sd_engine_drain(e);

        forget(&a);
        finish(fd, &a);

        is_int(a.status, tests[i].status, tests[i].format);
        ok(has(&a, tests[i].has), "%s: %s", tests[i].format, tests[i].has);
        ok(!has(&a, tests[i].without), "%s: not %s", tests[i].format,
           tests[i].without);
        ok(a.ended, "%s: in good order", tests[i].format);

        sd_engine_stop(e);
    }

    log_lines[0] = '\0';
    fake_step_ms = 1;
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


/* cards: pictures are stepped together, and prompts and pictures beside */

static void
test_card(void)
{
    int           fd[5], i;
    answer_t      a = { 0 };
    sd_engine_t  *e;
    sd_request_t  r;

    static const char  *bodies[] = {
        "{\"prompt\":\"x\",\"steps\":30}",
        "{\"prompt\":\"x\",\"steps\":30,\"seed\":7}",
        "{\"prompt\":\"x\",\"steps\":30,\"preview\":\"vae\"}",
        "{\"prompt\":\"x\",\"steps\":30,\"width\":128,\"height\":128}",
        "{\"prompt\":\"x\",\"steps\":20,\"n\":4,\"preview\":\"vae\"}"
    };

    fake_step_ms = 5;
    fake_most = 0;
    fake_beside = 0;

    e = start_devices("cuda", "fake", 8, 0);

    r = request(SD_DIALECT_NATIVE, "multipart/mixed");

    for (i = 0; i < 5; i++) {
        fd[i] = send_request(&r, bodies[i]);
    }

    for (i = 0; i < 5; i++) {
        forget(&a);
        finish(fd[i], &a);
        is_int(count(&a, "SD-Event: final"), i < 4 ? 1 : 4, "pictures");
        ok(has(&a, "SD-Event: preview"), "and previews");
    }

    ok(has(&a, "\"numerics\":\"fake-cuda:0\""), "the start names the card");
    is_int(fake_most, 4, "four were stepped together");
    ok(fake_beside > 0, "others were begun and decoded meanwhile");

    ask_status(&a);
    ok(has(&a, "\"devices\":[{\"name\":\"cuda:0\",\"state\":\"ready\"")
       && has(&a, "\"slots\":8,\"running\":0}]"), "the card in the status");

    /* one leaves, the others do not notice */

    fake_step_ms = 20;
    r = request(SD_DIALECT_NATIVE, "multipart/mixed");

    for (i = 0; i < 3; i++) {
        fd[i] = send_request(&r, "{\"prompt\":\"x\",\"steps\":20}");
    }

    nap(150);
    close(fd[1]);
    r.location.timeout = 100;
    fd[1] = send_request(&r, "{\"prompt\":\"x\",\"latent\":\"none\"}");

    forget(&a);
    finish(fd[1], &a);
    is_int(count(&a, "SD-Event: latent"), 1, "timeout: the state");
    ok(has(&a, "\"code\":\"timeout\""), "and the error");

    for (i = 0; i < 3; i += 2) {
        forget(&a);
        finish(fd[i], &a);
        is_int(count(&a, "SD-Event: final"), 1, "the others go on");
    }

    /* a step that fails is the end of all that were in it */

    r = request(SD_DIALECT_NATIVE, JSON);

    for (i = 0; i < 2; i++) {
        fd[i] = send_request(&r, "{\"prompt\":\"x\",\"n\":2}");
    }

    nap(100);
    fake_step_fails = 1;

    for (i = 0; i < 2; i++) {
        forget(&a);
        finish(fd[i], &a);
        is_int(a.status, 500, "a step that fails");
        ok(has(&a, "a step went wrong") && has(&a, "\"states\":["),
           "says why, with the states");
    }

    fake_step_fails = 0;

    no_pictures(e);
    sd_engine_stop(e);

    fake_step_ms = 1;
    is_int(fake_races, 0, "what has one owner was used by one");
    forget(&a);
}


/* several: who has most room takes the next one */

static void
test_cards(void)
{
    int           fd[4], i, inexact;
    char         *latent;
    answer_t      a = { 0 };
    sd_buf_t      b = { 0 };
    sd_engine_t  *e;
    sd_request_t  r;

    fake_cards = 2;
    e = start_devices("auto", "fake", 4, 2);

    ask(&a, request(SD_DIALECT_NATIVE, ""), "{\"prompt\":\"x\"}");
    is_int(a.status, 200, "all cards that there are");
    fake_cards = 0;

    fake_step_ms = 30;
    r = request(SD_DIALECT_NATIVE, "multipart/mixed");

    for (i = 0; i < 4; i++) {
        fd[i] = send_request(&r, "{\"prompt\":\"x\",\"steps\":20}");
        nap(20);
    }

    nap(100);
    ask_status(&a);
    is_int(count(&a, "\"slots\":2,\"running\":2}"), 2, "two on each");
    ok(has(&a, "\"slots\":4,\"running\":4,"), "four in all");
    printf("# %s", a.body.data);

    for (i = 0; i < 4; i++) {
        forget(&a);
        finish(fd[i], &a);
        is_int(count(&a, "SD-Event: final"), 1, "each of them is made");
        sd_buf_puts(&b, has(&a, "\"numerics\":\"fake-cuda:0\"") ? "0"
                                                              : "1");
        ok(has(&a, "\"numerics\":\"fake-cuda:"), "and says where");
    }

    sd_buf_append(&b, "", 1);
    ok(strchr(b.data, '0') && strchr(b.data, '1'), "on both");
    sd_buf_free(&b);

    fake_step_ms = 1;

    /* a state of one goes on at the same and at the other */

    ask(&a, request(SD_DIALECT_NATIVE, JSON), "{\"prompt\":\"x\",\"steps\":"
        "20,\"preview_every\":10,\"latent\":\"all\"}");
    latent = find(strstr(a.body.data, "\"previews\""), "\"latents\":\"", '"');
    sd_buf_printf(&b, "{\"prompt\":\"x\",\"latents\":\"%s\"}", latent);
    sd_buf_append(&b, "", 1);

    fake_step_ms = 30;
    inexact = 0;

    for (i = 0; i < 2; i++) {
        fd[i] = send_request(&r, b.data);
        nap(60);
    }

    for (i = 0; i < 2; i++) {
        forget(&a);
        finish(fd[i], &a);
        ok(has(&a, "\"resumed\":true"), "goes on");
        inexact += has(&a, "\"inexact\":true");
    }

    is_int(inexact, 1, "exactly so on the same card only");
    sd_buf_free(&b);

    fake_step_ms = 1;
    no_pictures(e);
    sd_engine_stop(e);

    is_int(fake_races, 0, "what has one owner was used by one");
    forget(&a);
}


/* cards that are not there */

static void
test_no_cards(void)
{
    answer_t      a = { 0 };
    sd_engine_t  *e;

    e = start_devices("auto", "fake", 4, 0);
    ask(&a, request(SD_DIALECT_NATIVE, ""), "{\"prompt\":\"x\"}");
    is_int(a.status, 200, "no card: the cpu");
    ask_status(&a);
    ok(has(&a, "\"devices\":[{\"name\":\"cpu\",\"state\":\"ready\"")
       && has(&a, "\"slots\":16,"), "with its slots");
    ok(strstr(log_lines, "no GPU, the cpu computes: there is no card") != NULL,
       "and a line in the log");
    sd_engine_stop(e);

    fake_cards = 3;
    fake_dead_cards = 2;
    e = start_devices("auto", "fake", 4, 0);
    ask(&a, request(SD_DIALECT_NATIVE, ""), "{\"prompt\":\"x\"}");
    is_int(a.status, 200, "one of three is out of order");
    ask_status(&a);
    ok(has(&a, "\"cuda:0\"") && !has(&a, "\"cuda:1\"")
       && has(&a, "\"cuda:2\""), "and left out");
    sd_engine_stop(e);

    e = start_devices("cuda:0 cuda:1", "fake", 4, 0);
    ask(&a, request(SD_DIALECT_NATIVE, ""), "{\"prompt\":\"x\"}");
    is_int(a.status, 200, "the same, named");
    ask_status(&a);
    ok(has(&a, "{\"name\":\"cuda:1\",\"state\":\"failed\",\"error\":")
       && has(&a, "cuda:1 is out of order"), "is shown with its reason");
    ask_ready(&a);
    is_int(a.status, 503, "a server that lacks a card is not ready");
    ok(has(&a, "{\"status\":\"device_failed\",\"error\":{\"message\":"
           "\"cuda:1 is out of order\""), "and says which");
    sd_engine_stop(e);

    fake_dead_cards = 7;
    e = start_devices("cuda:1", "fake", 4, 0);
    ask(&a, request(SD_DIALECT_NATIVE, ""), "{\"prompt\":\"x\"}");
    is_int(a.status, 503, "the only one is out of order");
    ok(has(&a, "\"code\":\"model_failed\"")
       && has(&a, "cuda:1 is out of order"), "says why");
    ask_ready(&a);
    is_int(a.status, 503, "not ready");
    ask_status(&a);
    ok(has(&a, "\"slots\":0,\"running\":0,"), "no slots");
    sd_engine_stop(e);

    e = start_devices("auto", "fake", 4, 0);
    ask(&a, request(SD_DIALECT_NATIVE, ""), "{\"prompt\":\"x\"}");
    is_int(a.status, 200, "all are out of order: the cpu");
    sd_engine_stop(e);

    fake_dead_cards = 0;
    precision = SD_PRECISION_BF16;

    e = start_devices("cuda:0", "fake", 4, 0);
    ask(&a, request(SD_DIALECT_NATIVE, ""), "{\"prompt\":\"x\"}");
    is_int(a.status, 503, "a model in bf16 on a card");
    ok(has(&a, "bf16 is for the cpu"), "is refused with the reason");
    sd_engine_stop(e);

    precision = SD_PRECISION_EXACT;
    fake_cards = 0;
    forget(&a);
}


static void
test_stop(const char *devices)
{
    int           fd[4], i;
    int64_t       t;
    answer_t      a = { 0 };
    sd_engine_t  *e;
    sd_request_t  r;

    fake_step_ms = 10000;
    fake_load_ms = 10000;

    e = start_devices(devices, "fake", 4, 2);
    nap(50);
    t = now();
    sd_engine_stop(e);
    ok(now() - t < 3000, "stopped while it loads");

    fake_load_ms = 0;
    fake_step_ms = 1;
    e = start_devices(devices, "fake", 4, 2);
    ask(&a, request(SD_DIALECT_NATIVE, ""), "{\"prompt\":\"x\"}");
    fake_step_ms = 10000;

    r = request(SD_DIALECT_NATIVE, "text/event-stream");

    for (i = 0; i < 4; i++) {
        fd[i] = send_request(&r, "{\"prompt\":\"x\"}");
    }

    nap(100);
    t = now();
    sd_engine_stop(e);
    ok(now() - t < 3000, "stopped in the middle of a step");
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


/* a card that dies takes no more work */

static void
test_death(void)
{
    int           errors;
    answer_t      a = { 0 };
    sd_engine_t  *e;

    fake_cards = 1;
    e = start_devices("cuda:0", "fake", 4, 2);

    ask(&a, request(SD_DIALECT_NATIVE, ""), "{\"prompt\":\"x\"}");
    is_int(a.status, 200, "a card that lives");

    errors = atomic_load(&stats->counts[SD_COUNT_DEVICE_ERRORS]);
    fake_step_fails = fake_dead = 1;
    ask(&a, request(SD_DIALECT_NATIVE, JSON), "{\"prompt\":\"x\"}");
    is_int(a.status, 500, "a card dies under a picture");
    ok(has(&a, "\"states\":["), "which leaves its state");

    fake_step_fails = 0;
    ask(&a, request(SD_DIALECT_NATIVE, ""), "{\"prompt\":\"x\"}");
    is_int(a.status, 503, "a dead card takes no pictures");
    ok(has(&a, "\"code\":\"model_failed\""), "and that is said");

    ask_ready(&a);
    is_int(a.status, 503, "nor is it ready");

    ask_status(&a);
    ok(has(&a, "{\"name\":\"cuda:0\",\"state\":\"failed\"")
       && has(&a, "\"error\":{\"message\":\"a step went wrong\""),
       "the status says why");
    is_int(atomic_load(&stats->counts[SD_COUNT_DEVICE_ERRORS]) - errors, 1,
           "and it is counted");

    fake_dead = fake_cards = 0;

    no_pictures(e);
    sd_engine_stop(e);
    forget(&a);
}


/* what requests can cause without end is not logged without end */

static void
test_flood(void)
{
    int           i, suppressed;
    answer_t      a = { 0 };
    sd_engine_t  *e;

    suppressed = atomic_load(&stats->counts[SD_COUNT_SUPPRESSED]);

    e = start(2, 2);

    ask(&a, request(SD_DIALECT_NATIVE, JSON), "{\"prompt\":\"x\"}");
    is_int(a.status, 200, "before the flood");
    ok(has(&a, "\"numerics\":\"fake-cpu\""), "numerics in JSON");

    fake_step_fails = 1;
    log_failed = log_suppressed = 0;

    for (i = 0; i < 100; i++) {
        ask(&a, request(SD_DIALECT_NATIVE, ""), "{\"prompt\":\"x\"}");
    }

    is_int(a.status, 500, "requests fail");
    ok(log_failed < 60, "not all of it is in the log");

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
    int           before;
    sd_engine_t  *e;

    memset(cookie, 0x5a, SD_COOKIE_SIZE);
    listen_abstract();
    before = fds();

    fake_load_ms = 1500;
    e = start(1, 1);

    test_loading(e);
    test_still();
    test_multipart();
    test_sse();
    test_json();
    test_sagemaker();
    test_refusals();
    test_bodies(e);
    test_cookie(e);
    test_queue(e);
    test_cancel(e);
    test_slow(e);
    test_heartbeat();
    test_status();

    sd_engine_stop(e);

    fake_load_ms = 0;
    e = start(4, 3);
    test_drain(e);
    sd_engine_stop(e);

    test_handoffs();

    test_priorities();
    test_positions();
    test_queue_time();
    test_deadlines();
    test_refusing();
    test_storm("cpu");
    test_storm("cuda:0");
    test_storm("cuda:0 cuda:1");
    test_failures();
    test_stop("cpu");
    test_card();
    test_cards();
    test_no_cards();
    test_death();
    test_flood();
    test_storm("cuda:0 cuda:1 cuda:2");
    is_int(fake_races, 0, "nor is anything used by two in a storm");

    is_int(fds(), before, "no descriptor is left");

    return done();
}
