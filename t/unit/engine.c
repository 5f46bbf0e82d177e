/*
 * The engine over its socket, with a fake model: every dialect and format, and
 * what requests are answered.
 */

#define _GNU_SOURCE

#include <sys/resource.h>

#include "fake_engine.h"


/* of the largest that may be; a sanitizer takes its time */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define BODIES  4
#else
#define BODIES  12
#endif


static void
test_loading(void)
{
    int           fd;
    answer_t      a = { 0 };
    sd_request_t  r;

    ask_ready(&a);
    is_int(a.status, 503, "not ready while the model loads");

    r = request(SD_DIALECT_NATIVE, "multipart/mixed");
    fd = send_request(&r, "{\"prompt\":\"x\"}");

    forget(&a);

    while (a.infos + a.ticks < 5 && read_frame(fd, &a) != -1) { /* void */ }

    is_int(a.infos + a.ticks, 5, "a request hears ticks meanwhile");
    is_int(a.status, 0, "and is not answered");

    fake_load_ms = 0;
    finish(fd, &a);
    is_int(a.status, 200, "before the model is there");

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


/* previews of 512x512 add up to more than a socket takes */

static void
test_slow(void)
{
    int           fd, begun, previews;
    answer_t      a = { 0 };
    sd_request_t  r;

    r = request(SD_DIALECT_NATIVE, "multipart/mixed");

    begun = fake_begun;
    fd = send_request(&r, "{\"prompt\":\"x\",\"width\":512,\"height\":512,"
                      "\"steps\":90,\"quality\":100}");

    until(fake_begun > begun && fake_pictures == 0,
          "a slow client does not hold the device");

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
    int           fd;
    answer_t      a = { 0 };
    sd_request_t  r;

    fake_step_ms = FAKE_HELD;
    r = request(SD_DIALECT_NATIVE, "text/event-stream");
    fd = send_request(&r, "{\"prompt\":\"x\",\"steps\":2}");

    while (count(&a, ": still here\n\n") < 2 && read_frame(fd, &a) != -1) { }

    is_int(count(&a, ": still here\n\n"), 2, "heartbeats within a long step");

    fake_step_ms = 1;
    finish(fd, &a);
    ok(has(&a, "event: image_generation.completed\n"), "which ends");

    forget(&a);
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


int
main(void)
{
    int           before;
    sd_engine_t  *e;

    listen_abstract();
    before = fds();

    fake_load_ms = FAKE_HELD;
    e = start(1, 1);

    test_loading();
    test_still();
    test_multipart();
    test_sse();
    test_json();
    test_sagemaker();
    test_refusals();
    test_bodies(e);
    test_cookie(e);
    test_slow();
    test_heartbeat();
    test_status();

    no_pictures(e);
    sd_engine_stop(e);

    is_int(fds(), before, "no descriptor is left");

    return done();
}
