/*
 * The engine over its socket, with a fake model: that running pictures share a
 * device, and are not held up by what is beside their steps; and what becomes
 * of them where one of several devices dies.
 */

#define _GNU_SOURCE

#include <pthread.h>

#include "client.h"
#include "fake.h"


#define EQUAL  16


typedef struct {
    pthread_t   id;
    double      ms;                     /* until its picture was there */
    int         status;
} equal_t;


static equal_t  equal[EQUAL];
static int64_t  began;


static void *
wait_for(void *data)
{
    answer_t   a = { 0 };
    equal_t   *q = data;

    ask(&a, request(SD_DIALECT_NATIVE, "image/png"),
        "{\"prompt\":\"x\",\"steps\":25,\"width\":64,\"height\":64}");

    q->status = a.status;
    q->ms = now() - began;
    forget(&a);

    return NULL;
}


static void
test_equal(const char *devices)
{
    int           i, bad;
    double        sum, squares;
    sd_engine_t  *e;

    e = start_devices(devices, "fake", EQUAL, EQUAL);
    fake_step_ms = 2;
    began = now();

    for (i = 0; i < EQUAL; i++) {
        pthread_create(&equal[i].id, NULL, wait_for, &equal[i]);
    }

    for (i = 0, bad = 0, sum = 0, squares = 0; i < EQUAL; i++) {
        pthread_join(equal[i].id, NULL);
        bad += equal[i].status != 200;
        sum += equal[i].ms;
        squares += equal[i].ms * equal[i].ms;
    }

    is_int(bad, 0, "equal jobs of many clients");

    /* Jain's index, which is 1 where all are equal and about 0.75 where one is
     * done after the other */

    ok(sum * sum / (EQUAL * squares) >= 0.95,
       "%s: they end at about the same time", devices);
    printf("# %.4f\n", sum * sum / (EQUAL * squares));

    fake_step_ms = 1;
    idle(e);
    sd_engine_stop(e);
}


/* prompts and decodes that end only after ten steps of somebody else: where
 * those had to wait for these, neither would go on */

static void
test_beside(const char *devices)
{
    int           fd;
    answer_t      a = { 0 };
    sd_request_t  r;
    sd_engine_t  *e;

    e = start_devices(devices, "fake", 4, 4);

    r = request(SD_DIALECT_NATIVE, "multipart/mixed");
    r.location.max_steps = 1000;

    fd = send_request(&r, "{\"prompt\":\"x\",\"steps\":1000,"
                      "\"preview_every\":1,\"latent\":\"none\"}");

    while (a.data < 3 && read_frame(fd, &a) != -1) { /* void */ }

    is_int(a.status, 200, "a long one runs");
    fake_await = a.status == 200 ? 10 : 0;

    ask(&a, request(SD_DIALECT_NATIVE, "multipart/mixed"),
        "{\"prompt\":\"x\",\"steps\":6,\"preview\":\"vae\"}");

    is_int(a.status, 200, "a picture with decoded previews");
    ok(has(&a, "SD-Event: final"), "whole");
    is_int(fake_vain, 0, "steps of another one go on beside its prompt and its "
           "decodes");

    fake_await = 0;
    close(fd);
    idle(e);
    sd_engine_stop(e);
    is_int(fake_pictures, 0, "no picture is left");
    is_int(fake_races, 0, "no picture or context was used by two");

    forget(&a);
}


/* whether the state of a picture that was cut goes on */

static void
goes_on(const answer_t *a)
{
    char       *latents;
    sd_buf_t    b = { 0 };
    answer_t    whole = { 0 };

    latents = find(a->body.data, "\"latents\":\"", '"');
    ok(latents && has(a, "\"resumable\":true"), "it has left its state");

    sd_buf_printf(&b, "{\"prompt\":\"x\",\"latents\":\"%s\"}",
                  latents ? latents : "");
    sd_buf_append(&b, "", 1);

    ask(&whole, request(SD_DIALECT_NATIVE, JSON), b.data);
    is_int(whole.status, 200, "from which it goes on, on the other device");

    sd_buf_free(&b);
    forget(&whole);
}


static void
test_dying(const char *devices)
{
    int           i, fd[4], bad, done, running;
    answer_t      a[4] = { { 0 } };
    sd_request_t  r;
    sd_engine_t  *e;

    printf("# %s\n", devices);
    e = start_devices(devices, "fake", 4, 1);
    r = request(SD_DIALECT_NATIVE, "text/event-stream");
    fake_step_ms = 10;

    /* two run, two wait, when the first device dies */

    for (i = 0; i < 4; i++) {
        fd[i] = send_request(&r, "{\"prompt\":\"x\",\"steps\":100,"
                             "\"preview_every\":1}");
    }

    for (i = 0, running = 0; i < 2000 && running != 2; i++) {
        nap(1);
        ask_status(&a[0]);
        running = count(&a[0], "\"running\":1}");
        forget(&a[0]);
    }

    fake_step_ms = 1;
    fake_dying = 1;

    for (i = 0, bad = -1, done = 0; i < 4; i++) {
        finish(fd[i], &a[i]);
        done += has(&a[i], "event: image_generation.completed");
        bad = has(&a[i], "event: error") ? i : bad;
    }

    is_int(done, 3, "three go on, or begin, on the other device");

    if (ok(bad >= 0, "one is cut")) {
        goes_on(&a[bad]);
    }

    for (i = 0; i < 4; i++) {
        forget(&a[i]);
    }

    ask_status(&a[0]);
    is_int(count(&a[0], "\"state\":\"failed\""), 1, "a device has failed");
    forget(&a[0]);

    fake_dying = 0;
    idle(e);
    sd_engine_stop(e);
    is_int(fake_pictures, 0, "no picture is left");
}


int
main(void)
{
    listen_abstract();

    test_equal("cpu");
    test_equal("cuda:0");
    test_beside("cpu");
    test_beside("cuda:0");
    test_dying("cuda:0 cuda:1");
    test_dying("cpu:0 cpu:1");

    return done();
}
