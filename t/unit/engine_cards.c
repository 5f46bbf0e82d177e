/*
 * The engine over its socket, with a fake model on fake cards: one, several,
 * and those that are not there or die.
 */

#define _GNU_SOURCE

#include "fake_engine.h"


#define LONG  20                /* ms of a step */


/* cards: pictures are stepped together, and prompts and pictures beside */

static void
test_card(void)
{
    int           fd[5], i, begun;
    answer_t      a = { 0 };
    sd_engine_t  *e;
    sd_request_t  r;

    static const char  *bodies[] = {
        "{\"prompt\":\"x\",\"steps\":300}",
        "{\"prompt\":\"x\",\"steps\":300,\"seed\":7}",
        "{\"prompt\":\"x\",\"steps\":300,\"preview\":\"vae\"}",
        "{\"prompt\":\"x\",\"steps\":300,\"width\":128,\"height\":128}",
        "{\"prompt\":\"x\",\"steps\":200,\"n\":4,\"preview\":\"vae\"}"
    };

    e = start_devices("cuda", "fake", 8, 0);
    ask(&a, request(SD_DIALECT_NATIVE, ""), "{\"prompt\":\"x\"}");

    /* pictures join between two steps: long ones, until all are there */

    fake_step_ms = LONG;
    fake_most = 0;
    fake_beside = 0;
    begun = fake_begun;

    r = request(SD_DIALECT_NATIVE, "multipart/mixed");
    r.location.max_steps = 300;

    for (i = 0; i < 5; i++) {
        fd[i] = send_request(&r, bodies[i]);
    }

    wait_queue(8, 0);
    wait_steps(begun + 8, 6);
    fake_step_ms = 0;

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

    fake_step_ms = LONG;
    begun = fake_begun;

    for (i = 0; i < 3; i++) {
        fd[i] = send_request(&r, "{\"prompt\":\"x\",\"steps\":300}");
    }

    wait_queue(3, 0);
    wait_steps(begun + 3, 6);
    close(fd[1]);

    ask_late(&a, r, 0, "{\"prompt\":\"x\",\"steps\":300,\"latent\":\"none\"",
             "SD-Event: latent");
    is_int(count(&a, "SD-Event: latent"), 1, "timeout: the state");
    ok(has(&a, "\"code\":\"timeout\""), "and the error");
    fake_step_ms = 0;

    for (i = 0; i < 3; i += 2) {
        forget(&a);
        finish(fd[i], &a);
        is_int(count(&a, "SD-Event: final"), 1, "the others go on");
    }

    /* a step that fails is the end of all that were in it */

    fake_step_ms = LONG;
    begun = fake_begun;
    r.accept = str(JSON);

    for (i = 0; i < 2; i++) {
        fd[i] = send_request(&r, "{\"prompt\":\"x\",\"steps\":300,\"n\":2}");
    }

    wait_queue(4, 0);
    wait_steps(begun + 4, 8);
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

    wait_status("{\"name\":\"cuda:0\",\"state\":\"ready\"");
    wait_status("{\"name\":\"cuda:1\",\"state\":\"ready\"");

    fake_step_ms = LONG;
    r = request(SD_DIALECT_NATIVE, "multipart/mixed");
    r.location.max_steps = 300;

    for (i = 0; i < 4; i++) {
        fd[i] = send_request(&r, "{\"prompt\":\"x\",\"steps\":300}");
        wait_queue(i + 1, 0);
    }

    ask_status(&a);
    is_int(count(&a, "\"slots\":2,\"running\":2}"), 2, "two on each");
    ok(has(&a, "\"slots\":4,\"running\":4,"), "four in all");
    printf("# %s", a.body.data);

    fake_step_ms = 0;

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

    /* a state of one goes on at the same and at the other */

    ask(&a, request(SD_DIALECT_NATIVE, JSON), "{\"prompt\":\"x\",\"steps\":"
        "20,\"preview_every\":10,\"latent\":\"all\"}");
    latent = find(strstr(a.body.data, "\"previews\""), "\"latents\":\"", '"');
    sd_buf_printf(&b, "{\"prompt\":\"x\",\"latents\":\"%s\"}", latent);
    sd_buf_append(&b, "", 1);

    fake_step_ms = FAKE_HELD;
    inexact = 0;

    for (i = 0; i < 2; i++) {
        fd[i] = send_request(&r, b.data);
        wait_queue(i + 1, 0);
    }

    fake_step_ms = 1;

    for (i = 0; i < 2; i++) {
        forget(&a);
        finish(fd[i], &a);
        ok(has(&a, "\"resumed\":true"), "goes on");
        inexact += has(&a, "\"inexact\":true");
    }

    is_int(inexact, 1, "exactly so on the same card only");
    sd_buf_free(&b);

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
    is_int(a.status, 503, "a card dies under a picture");
    ok(has(&a, "\"code\":\"device_failed\"")
       && strstr(a.headers, "Retry-After: "),
       "who asked may ask again");
    ok(has(&a, "\"states\":["), "and go on from its state");

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


int
main(void)
{
    int  before;

    listen_abstract();
    before = fds();

    test_card();
    test_cards();
    test_no_cards();
    test_death();

    is_int(fds(), before, "no descriptor is left");

    return done();
}
