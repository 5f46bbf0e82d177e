/*
 * Pictures that are stepped together: of different prompts, seeds, samplers,
 * guidance and steps, they end with the bytes that each has alone.  On the cpu
 * and on a device that enqueues and records, see stream.h.  Runs in the
 * source's root directory.
 */

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "../../src/sd/batch.h"
#include "stream.h"
#include "tap.h"


#define TINY      "t/golden/models/sd15"
#define WIDTH     72
#define HEIGHT    104
#define PICTURES  4


typedef struct {
    sd_device_t   *dev;
    sd_model_t    *m;
    sd_context_t   cx;              /* prompts, and pictures alone */
    sd_context_t   steps;           /* of batches */
} host_t;


static const sd_params_t  pictures[] = {
    { "a red house", "night", WIDTH, HEIGHT, 6, 4, 42, NULL, NULL, 0, -1,
      0, 0 },
    { "the sea", "", WIDTH, HEIGHT, 4, 1, 7, NULL, NULL, 0, -1,
      0, 0 },
    { "a hill", "", WIDTH, HEIGHT, 5, 7.5, 1, NULL, NULL, 0, -1,
      0, 0 },
    { "rain", "sun", WIDTH, HEIGHT, 7, 2, 3, NULL, NULL, 0, -1,
      0, 0 },
    { "a field", "", WIDTH, HEIGHT, 3, 0, 9, NULL, NULL, 0, -1,
      0, 0 },
    { "fog", "", WIDTH, HEIGHT, 6, 3, 42, NULL, NULL, 0, -1,
      0, 0 }
};

static const char  *samplers[] = {
    "ddim", "euler_a", "euler", "ddim", "euler_a", "euler"
};

#define N  ((int) (sizeof(pictures) / sizeof(pictures[0])))


static int
host_open(host_t *h, int stream)
{
    size_t      prompt, decode, steps;
    sd_error_t  err = { 0 };

    memset(h, 0, sizeof(host_t));

    if (sd_device_open(&h->dev, "cpu", 2, SD_PRECISION_EXACT, NULL, &err)
        != SD_OK)
    {
        return ok(0, "open: %s", err.message);
    }

    if (stream) {
        stream_device(h->dev);
    }

    if (sd_model_open(&h->m, TINY, h->dev, &err) != SD_OK
        || sd_model_load(h->m, h->dev, NULL, NULL, NULL, &err) != SD_OK
        || sd_model_plan(h->m, h->dev, WIDTH, HEIGHT, &steps, &prompt,
                         &decode, &err) != SD_OK)
    {
        return ok(0, "open: %s", err.message);
    }

    prompt = prompt > decode ? prompt : decode;
    prompt = prompt > steps ? prompt : steps;

    if (sd_batch_plan(h->m, h->dev, WIDTH, HEIGHT, PICTURES, &steps, &err)
        != SD_OK)
    {
        return ok(0, "plan: %s", err.message);
    }

    /* exactly what was planned: a byte more would be an error */

    return ok(sd_context_init(&h->cx, h->dev, 0, prompt, &err) == SD_OK
              && sd_context_init(&h->steps, h->dev, 0, steps, &err) == SD_OK,
              "%s: arenas of %zu and %zu bytes", h->dev->ops->name, prompt,
              steps);
}


static void
host_close(host_t *h)
{
    sd_context_free(&h->steps);
    sd_context_free(&h->cx);
    sd_model_close(h->m);
    sd_device_close(h->dev);
}


static sd_picture_t *
begin(host_t *h, int i)
{
    sd_error_t     err = { 0 };
    sd_params_t    params;
    sd_picture_t  *p;

    params = pictures[i];
    params.sampler = sd_sampler_find(samplers[i]);

    if (sd_picture_create(&p, h->m, &params, &err) != SD_OK
        || sd_picture_begin(p, &h->cx, NULL, &err) != SD_OK)
    {
        ok(0, "begin: %s", err.message);
        exit(1);
    }

    return p;
}


static int
step_of(sd_picture_t *p)
{
    sd_picture_info_t  info;

    sd_picture_info(p, &info);

    return info.step;
}


static void
state_of(sd_picture_t *p, sd_buf_t *b)
{
    sd_error_t  err = { 0 };

    sd_buf_free(b);

    if (sd_picture_state(p, b, &err) != SD_OK) {
        ok(0, "state: %s", err.message);
    }
}


static int
same(const sd_buf_t *a, const sd_buf_t *b)
{
    return a->len && a->len == b->len && memcmp(a->data, b->data, a->len) == 0;
}


/* each alone: the state at its end */

static void
alone(host_t *h, sd_buf_t *ends)
{
    int            i;
    sd_error_t     err = { 0 };
    sd_picture_t  *p;

    for (i = 0; i < N; i++) {
        p = begin(h, i);

        while (step_of(p) < pictures[i].steps) {
            if (sd_picture_step(p, &h->cx, NULL, &err) != SD_OK) {
                ok(0, "step: %s", err.message);
                return;
            }
        }

        state_of(p, &ends[i]);
        sd_picture_destroy(p);
    }
}


/* they come and go: the next one takes the place of one that has ended */

static void
together(host_t *h, sd_batch_t *b, int most, const sd_buf_t *ends)
{
    int            i, n, next, of[PICTURES];
    sd_buf_t       state = { 0 };
    sd_error_t     err = { 0 };
    sd_picture_t  *p[PICTURES];

    n = 0;
    next = 0;

    for ( ;; ) {
        if (n < most && next < N) {
            of[n] = next;
            p[n++] = begin(h, next++);
        }

        if (n == 0) {
            break;
        }

        if (sd_batch_row(b, p, n, NULL, &err) != SD_OK) {
            ok(0, "row: %s", err.message);
            break;
        }

        for (i = n - 1; i >= 0; i--) {
            if (step_of(p[i]) < pictures[of[i]].steps) {
                continue;
            }

            state_of(p[i], &state);
            ok(same(&state, &ends[of[i]]), "%s: \"%s\" by %s among %d",
               h->dev->ops->name, pictures[of[i]].prompt, samplers[of[i]], n);

            sd_picture_destroy(p[i]);
            n--;
            p[i] = p[n];
            of[i] = of[n];
        }
    }

    sd_buf_free(&state);
}


static void *
cancel_soon(void *data)
{
    struct timespec  ts = { 0, 300000 };

    nanosleep(&ts, NULL);
    atomic_store((atomic_int *) data, 1);

    return NULL;
}


static void
test_cancel(host_t *h, sd_batch_t *b, const sd_buf_t *ends)
{
    int            i, k, rc;
    sd_buf_t       before[PICTURES] = { 0 }, after = { 0 };
    pthread_t      t;
    atomic_int     cancel;
    sd_error_t     err = { 0 };
    sd_picture_t  *p[PICTURES];

    for (i = 0; i < PICTURES; i++) {
        p[i] = begin(h, i);
    }

    (void) sd_batch_row(b, p, PICTURES, NULL, &err);

    for (k = 0, rc = SD_OK; k < 50 && rc == SD_OK; k++) {
        for (i = 0; i < PICTURES; i++) {
            state_of(p[i], &before[i]);

            if (step_of(p[i]) == pictures[i].steps - 1) {
                sd_picture_destroy(p[i]);
                p[i] = begin(h, i);
                state_of(p[i], &before[i]);
            }
        }

        atomic_init(&cancel, 0);
        pthread_create(&t, NULL, cancel_soon, &cancel);
        rc = sd_batch_row(b, p, PICTURES, &cancel, &err);
        pthread_join(t, NULL);
    }

    is_int(rc, SD_CANCELLED, "a row that is cancelled in the middle");

    for (i = 0; i < PICTURES; i++) {
        state_of(p[i], &after);
        ok(same(&before[i], &after), "%d stands at its last step's end", i);
        sd_buf_free(&before[i]);
    }

    /* one leaves, the others go on to the same */

    sd_picture_destroy(p[1]);
    p[1] = NULL;

    while (step_of(p[0]) < pictures[0].steps) {
        if (sd_batch_row(b, p, 1, NULL, &err) != SD_OK) {
            ok(0, "row: %s", err.message);
            break;
        }
    }

    state_of(p[0], &after);
    ok(same(&after, &ends[0]), "and goes on to the same");

    for (i = 0; i < PICTURES; i++) {
        sd_picture_destroy(p[i]);
    }

    sd_buf_free(&after);
}


/* a state goes on at another device, which says so; the same bytes come, as in
 * truth they are two of a kind */

static void
test_move(host_t *h, const sd_buf_t *ends)
{
    host_t              o;
    sd_buf_t            state = { 0 };
    sd_error_t          err = { 0 };
    sd_params_t         params;
    sd_picture_t       *p;
    sd_picture_info_t   info;

    if (!host_open(&o, 0)) {
        return;
    }

    p = begin(h, 0);
    (void) sd_picture_step(p, &h->cx, NULL, &err);
    state_of(p, &state);
    sd_picture_destroy(p);

    params = pictures[0];
    params.latents = state.data;
    params.latents_size = state.len;

    if (sd_picture_create(&p, h->m, &params, &err) != SD_OK) {
        ok(0, "create: %s", err.message);
        return;
    }

    sd_picture_info(p, &info);
    ok(info.step == 1 && !info.inexact, "a state of this device");

    snprintf(o.dev->numerics, sizeof(o.dev->numerics), "another");
    sd_picture_move(p, o.m);
    sd_picture_info(p, &info);
    ok(info.inexact, "moved to another one");

    snprintf(o.dev->numerics, sizeof(o.dev->numerics), "%s", h->dev->numerics);
    sd_picture_move(p, o.m);
    sd_picture_info(p, &info);
    ok(!info.inexact, "and to one of its kind");

    if (sd_picture_begin(p, &o.cx, NULL, &err) != SD_OK) {
        ok(0, "begin: %s", err.message);
    }

    while (step_of(p) < params.steps
           && sd_picture_step(p, &o.cx, NULL, &err) == SD_OK) { /* void */ }

    state_of(p, &state);
    ok(same(&state, &ends[0]), "where the same bytes come");

    sd_picture_destroy(p);
    sd_buf_free(&state);
    host_close(&o);
}


int
main(void)
{
    int          i, stream, records;
    host_t       h;
    sd_buf_t     ends[N] = { 0 };
    sd_error_t   err = { 0 };
    sd_batch_t  *b;

    for (stream = 0; stream < 2; stream++) {

        if (!host_open(&h, stream)
            || sd_batch_create(&b, h.m, &h.steps, PICTURES, &err) != SD_OK)
        {
            ok(0, "batch: %s", err.message);
            return done();
        }

        if (!stream) {
            alone(&h, ends);

        } else {
            is_int(sd_batch_prepare(b, WIDTH, HEIGHT, &err), SD_OK,
                   "recordings are made");
            ok(stream_recordings > 3, "some of them");
        }

        records = stream_records;

        for (i = 1; i <= PICTURES; i++) {
            together(&h, b, i, ends);
        }

        is_int(stream_records, records, "nothing is recorded any more");

        if (!stream) {
            test_cancel(&h, b, ends);
            test_move(&h, ends);

        } else {
            ok(stream_replays > 20, "but replayed");
        }

        sd_batch_destroy(b);
        is_int(stream_recordings, 0, "no recording is left");

        host_close(&h);
    }

    for (i = 0; i < N; i++) {
        sd_buf_free(&ends[i]);
    }

    return done();
}
