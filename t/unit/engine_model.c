/*
 * The engine with the embedded model: the same request gives the same bytes,
 * whatever else runs, whole or in pieces, before a reload and after it.
 */

#define _GNU_SOURCE

#include "../../src/io/base64.h"
#include "client.h"


#define FIELDS  "\"prompt\":\"a red house on a hill\",\"width\":64,"          \
                "\"height\":64,\"steps\":5,\"seed\":11"


/* the body of the part that is this event, at this step; its size in *n */

static char *
part(const answer_t *a, const char *event, int step, size_t *n)
{
    char  *p, *s, *end, *head, line[64];

    p = a->body.data;
    end = p + a->body.len;

    snprintf(line, sizeof(line), "SD-Event: %s\r\nSD-Step: %d\r\n", event,
             step);

    while ((p = memmem(p, end - p, "Content-Length: ", 16)) != NULL) {
        head = p;
        *n = strtoul(p + 16, &p, 10);
        s = memmem(head, end - head, "\r\n\r\n", 4);

        if (strncmp(p + 2, line, strlen(line)) == 0) {
            return s + 4;
        }

        p = s + 4 + *n;
    }

    return NULL;
}


static void
is_same(const answer_t *a, const char *event, int step, const sd_buf_t *whole,
    const char *name)
{
    char    *p;
    size_t   n;

    p = part(a, event, step, &n);

    ok(p && n == whole->len && memcmp(p, whole->data, n) == 0, "%s", name);
}


/* fields and, in base64, latents */

static char *
with_latents(const char *fields, const char *latents)
{
    sd_buf_t  b = { 0 };

    sd_buf_printf(&b, "{%s,\"latents\":\"%s\"}", fields, latents);
    sd_buf_append(&b, "", 1);

    return b.data;
}


/* the state after this step; malloc'ed */

static char *
state_at(int step)
{
    char      *p, body[512];
    answer_t   a = { 0 };

    snprintf(body, sizeof(body), "{" FIELDS ",\"preview_every\":%d,"
             "\"latent\":\"all\"}", step);
    ask(&a, request(SD_DIALECT_NATIVE, JSON), body);

    p = find(strstr(a.body.data, "\"previews\""), "\"latents\":\"", '"');
    p = strdup(p ? p : "");

    forget(&a);

    return p;
}


static void
test_same(const sd_buf_t *whole)
{
    int           fd;
    char         *p, *body, *state;
    answer_t      a = { 0 };
    sd_request_t  r;

    r = request(SD_DIALECT_NATIVE, "image/jpeg");

    ask(&a, r, "{" FIELDS "}");
    ok(a.body.len == whole->len
       && memcmp(a.body.data, whole->data, whole->len) == 0, "once more");

    /* beside two others, of another size */

    r.accept = str("multipart/mixed");
    fd = send_request(&r, "{\"prompt\":\"the sea\",\"width\":128,"
                      "\"height\":64,\"steps\":12,\"n\":2}");
    nap(50);
    ask(&a, request(SD_DIALECT_NATIVE, "image/jpeg"), "{" FIELDS "}");
    ok(a.body.len == whole->len
       && memcmp(a.body.data, whole->data, whole->len) == 0, "beside others");
    close(fd);

    /* image 1 of two whose seeds begin one below */

    ask(&a, request(SD_DIALECT_NATIVE, "multipart/mixed"),
        "{\"prompt\":\"a red house on a hill\",\"width\":64,\"height\":64,"
        "\"steps\":5,\"seed\":10,\"n\":2,\"preview\":\"none\"}");
    p = memmem(a.body.data, a.body.len, "SD-Image: 1\r\nSD-Seed: 11\r\n", 26);
    ok(p && memmem(p, a.body.data + a.body.len - p, whole->data, whole->len),
       "as one of two");

    /* with previews and states, and from each of them on */

    ask(&a, request(SD_DIALECT_NATIVE, "multipart/mixed"), "{" FIELDS "}");
    is_same(&a, "final", 5, whole, "with previews");
    ok(has(&a, "SD-Event: preview"), "that came");

    ask(&a, request(SD_DIALECT_NATIVE, "multipart/mixed"),
        "{" FIELDS ",\"preview\":\"vae\",\"preview_every\":2}");
    is_same(&a, "final", 5, whole, "with decoded previews");

    state = state_at(2);
    body = with_latents(FIELDS, state);
    ask(&a, request(SD_DIALECT_NATIVE, "multipart/mixed"), body);
    is_same(&a, "final", 5, whole, "from the second step on");
    ok(has(&a, "\"resumed\":true,\"inexact\":false,\"branched\":false"),
       "exactly so");
    free(body);
    free(state);

    forget(&a);
}


/* a state decides what it is of, but not where it goes */

static void
test_state(void)
{
    char      *state, *body;
    answer_t   a = { 0 };

    state = state_at(3);

    body = with_latents("\"prompt\":\"a blue house\"", state);
    ask(&a, request(SD_DIALECT_NATIVE, "multipart/mixed"), body);
    is_int(a.status, 200, "another prompt");
    ok(has(&a, "\"branched\":true") && has(&a, "\"seed\":11,\"step\":3,"
       "\"steps\":5,"), "branches; the rest is the state's");
    free(body);

    body = with_latents("\"prompt\":\"x\",\"steps\":9", state);
    ask(&a, request(SD_DIALECT_NATIVE, ""), body);
    is_int(a.status, 409, "another number of steps");
    ok(has(&a, "\"code\":\"state_mismatch\""), "does not fit");
    free(body);

    body = with_latents("\"prompt\":\"x\",\"width\":128", state);
    ask(&a, request(SD_DIALECT_NATIVE, ""), body);
    is_int(a.status, 409, "another width");
    free(body);

    state[strlen(state) / 2] = '\0';
    body = with_latents("\"prompt\":\"x\"", state);
    ask(&a, request(SD_DIALECT_NATIVE, ""), body);
    is_int(a.status, 400, "half a state");
    free(body);

    free(state);
    forget(&a);
}


static void
test_pages(void)
{
    int           step;
    char         *whole, *latents, *p;
    sd_buf_t      b = { 0 };
    answer_t      a = { 0 };
    sd_request_t  r;

    r = request(SD_DIALECT_SAGEMAKER, "");
    ask(&a, r, "{\"prompt\":\"sea\",\"parameters\":{\"num_inference_steps\":5,"
        "\"seed\":3,\"width\":64,\"height\":64}}");
    whole = strdup(find(a.body.data, "{\"images\":[\"", '"'));

    r.location.pagination = 1;
    latents = NULL;

    for (step = 0; step < 5; step += 2) {
        b.len = 0;
        sd_buf_printf(&b, "{\"prompt\":\"sea\",\"parameters\":{"
                      "\"num_inference_steps\":5,\"seed\":3,\"width\":64,"
                      "\"height\":64,\"num_interim_images\":2,"
                      "\"starting_step\":%d", step);

        if (latents) {
            sd_buf_printf(&b, ",\"latents\":\"%s\"", latents);
        }

        sd_buf_puts(&b, "}}");
        sd_buf_append(&b, "", 1);
        ask(&a, r, b.data);

        p = find(a.body.data, "\"latents\":\"", '"');
        free(latents);
        latents = p ? strdup(p) : NULL;
    }

    p = find(a.body.data, "{\"images\":[\"", '"');
    ok(p && strcmp(p, whole) == 0, "in pages");

    b.len = 0;
    sd_buf_printf(&b, "{\"prompt\":\"sea\",\"parameters\":{"
                  "\"num_inference_steps\":5,\"width\":64,\"height\":64,"
                  "\"num_interim_images\":2,\"starting_step\":5,"
                  "\"latents\":\"%s\"}}", latents);
    sd_buf_append(&b, "", 1);
    ask(&a, r, b.data);
    p = find(a.body.data, "{\"images\":[\"", '"');
    ok(p && strcmp(p, whole) == 0, "and once more after the last");

    free(latents);
    free(whole);
    sd_buf_free(&b);
    forget(&a);
}


/* ms of the processor so far, to which it does not matter who else has it: a
 * step of 512x512 takes thousands */

static int64_t
worked(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);

    return (int64_t) ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}


static void
test_cancel(void)
{
    int           fd;
    int64_t       t;
    sd_request_t  r;

    r = request(SD_DIALECT_NATIVE, "image/jpeg");
    fd = send_request(&r, "{\"prompt\":\"x\",\"steps\":100,\"width\":512,"
                      "\"height\":512}");
    wait_queue(1, 0);
    nap(300);

    t = worked();
    close(fd);
    wait_queue(0, 0);
    t = worked() - t;

    ok(t < 1000, "cancelled in the middle of a step, after %d ms", (int) t);
}


/* the way of a picture over a reload: handed back, given to the next engine */

static void
test_handoff(sd_engine_t *e, const sd_buf_t *whole)
{
    int           fd, step;
    char         *p, *body;
    size_t        n;
    int64_t       t;
    sd_buf_t      b = { 0 };
    answer_t      a = { 0 };
    sd_request_t  r;

    r = request(SD_DIALECT_NATIVE, "multipart/mixed");
    fd = send_request(&r, "{" FIELDS ",\"preview\":\"vae\"}");

    while ((a.data == 0 || count(&a, "SD-Event: latent") < 2)
           && read_frame(fd, &a) != -1)
    {
        /* void */
    }

    sd_engine_quit(e);
    sd_engine_drain(e);
    finish(fd, &a);

    t = worked();
    sd_engine_stop(e);
    ok(worked() - t < 1000, "stopped");

    ok(has(&a, "SD-Event: handoff"), "handed off");

    /* the last one, whichever it is */

    for (p = NULL, step = 5; step && p == NULL; step--) {
        p = part(&a, "latent", step, &n);
    }

    if (p) {
        sd_buf_base64(&b, p, n);
    }

    sd_buf_append(&b, "", 1);
    body = with_latents(FIELDS, b.data);
    sd_buf_free(&b);

    e = start_model("model", 4, 2);
    ask(&a, request(SD_DIALECT_NATIVE, "multipart/mixed"), body);
    is_same(&a, "final", 5, whole, "over a reload");
    ok(has(&a, "\"inexact\":false"), "exactly so, even before it has loaded");

    r = request(SD_DIALECT_NATIVE, "");
    fd = send_request(&r, "{\"prompt\":\"x\",\"steps\":100,\"width\":512,"
                      "\"height\":512}");
    wait_queue(1, 0);
    nap(300);

    t = worked();
    sd_engine_stop(e);
    t = worked() - t;

    ok(t < 1000, "stopped in the middle of a step, after %d ms", (int) t);
    close(fd);

    free(body);
    forget(&a);
}


int
main(void)
{
    int           before;
    answer_t      a = { 0 };
    sd_engine_t  *e;

    listen_abstract();
    before = fds();

    e = start_model("model", 4, 2);

    ask(&a, request(SD_DIALECT_NATIVE, "image/jpeg"), "{" FIELDS "}");
    is_int(a.status, 200, "a picture");
    ok(jpeg(a.body.data, a.body.len), "a whole one");

    test_same(&a.body);
    test_state();
    test_pages();
    test_cancel();
    test_handoff(e, &a.body);

    is_int(fds(), before, "no descriptor is left");

    forget(&a);

    return done();
}
