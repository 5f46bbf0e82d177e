/*
 * Pictures that are stepped together on a card have the bytes that each has
 * alone: of other seeds, steps, samplers and guidance, in batches of 1 to 16
 * that they enter and leave, with and without previews, resumed on the way,
 * time and again.  Any model will do; the embedded one is where it is.
 *
 *     batch [--device NAME] [--model DIR] [--times N]
 *
 * Runs in the source's root directory.
 */

#include <getopt.h>
#include <stdlib.h>
#include <time.h>

#include "../../src/sd/batch.h"
#include "../unit/tap.h"


#define PICTURES  16
#define SMALL     64
#define BIG       512


typedef struct {
    const char  *prompt, *sampler;
    int          steps;
    double       guidance;
    uint64_t     seed;
} request_t;

static const request_t  requests[] = {
    { "a red house", "ddim", 8, 7.5, 1 },
    { "the sea at night", "euler_a", 5, 4, 2 },
    { "a hill", "euler", 9, 1, 3 },
    { "rain", "ddim", 3, 0, 4 },
    { "two trees beside a lake", "euler", 7, 3, 5 },
    { "", "euler_a", 6, 7.5, 6 },
    { "a red house", "euler_a", 8, 1, 1 },
    { "snow", "ddim", 12, 12, 8 },
    { "a field of wheat", "euler", 4, 7.5, 9 },
    { "fog", "ddim", 8, 2, 10 },
    { "the sun", "euler_a", 10, 5, 11 },
    { "a red house", "ddim", 5, 7.5, 12 },
    { "clouds", "euler", 6, 1, 13 },
    { "a boat", "ddim", 7, 7.5, 14 },
    { "a mill", "euler_a", 4, 6, 15 },
    { "stars", "ddim", 6, 1, 16 },
    { "a house, a tree, a hill, a lake", "euler", 8, 7.5, 17 },
    { "dusk", "ddim", 2, 7.5, 18 },
    { "dawn", "euler_a", 3, 7.5, 19 },
    { "grass", "euler", 5, 9, 20 }
};

#define N  ((int) (sizeof(requests) / sizeof(requests[0])))

enum { PREVIEWS = 1, RESUMED = 2, DECODED = 4 };


typedef struct {
    sd_device_t   *dev;
    sd_model_t    *m;
    sd_context_t   cx;              /* prompts, previews, decoding */
    sd_context_t   steps;
    sd_batch_t    *b;
    int            size;
    uint8_t       *rgb, *preview;
    sd_buf_t       ends[N];         /* states at the end */
    uint8_t       *pictures[N];     /* decoded */
} host_t;


static void
must(int rc, const char *what, sd_error_t *err)
{
    if (rc != SD_OK) {
        printf("Bail out! %s: %s\n", what, err->message);
        exit(1);
    }
}


static double
now(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return ts.tv_sec + ts.tv_nsec * 1e-9;
}


static void
host_size(host_t *h, int size)
{
    size_t      step, prompt, decode, batch;
    sd_error_t  err = { 0 };

    h->size = size;

    must(sd_model_plan(h->m, h->dev, size, size, &step, &prompt, &decode,
                       &err), "plan", &err);
    must(sd_batch_plan(h->m, h->dev, size, size, PICTURES, &batch, &err),
         "plan", &err);

    prompt = prompt > decode ? prompt : decode;
    prompt = prompt > step ? prompt : step;

    /* exactly what was planned: a byte more would be an error */

    must(sd_context_init(&h->cx, h->dev, 0, prompt, &err), "context", &err);
    must(sd_context_init(&h->steps, h->dev, 0, batch, &err), "context", &err);
    must(sd_batch_create(&h->b, h->m, &h->steps, PICTURES, &err), "batch",
         &err);

    h->rgb = malloc((size_t) size * size * 3);
    h->preview = malloc((size_t) size * size * 3);
}


static void
host_end(host_t *h)
{
    int  i;

    for (i = 0; i < N; i++) {
        sd_buf_free(&h->ends[i]);
        free(h->pictures[i]);
        h->pictures[i] = NULL;
    }

    sd_batch_destroy(h->b);
    sd_context_free(&h->steps);
    sd_context_free(&h->cx);
    free(h->rgb);
    free(h->preview);
}


/* state: NULL, or where to go on from */

static sd_picture_t *
begin(host_t *h, int i, const sd_buf_t *state)
{
    sd_error_t        err = { 0 };
    sd_params_t       params = { 0 };
    sd_picture_t     *p;
    const request_t  *r = &requests[i];

    params.prompt = r->prompt;
    params.negative_prompt = i % 2 ? "" : "blurry";
    params.width = h->size;
    params.height = h->size;
    params.steps = r->steps;
    params.guidance = r->guidance;
    params.seed = r->seed;
    params.sampler = sd_sampler_find(r->sampler);
    params.starting_step = -1;

    if (state) {
        params.latents = state->data;
        params.latents_size = state->len;
    }

    must(sd_picture_create(&p, h->m, &params, &err), "create", &err);
    must(sd_picture_begin(p, &h->cx, NULL, &err), "begin", &err);

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
    must(sd_picture_state(p, b, &err), "state", &err);
}


static int
same(const sd_buf_t *a, const sd_buf_t *b)
{
    return a->len && a->len == b->len && memcmp(a->data, b->data, a->len) == 0;
}


/* each alone, operation by operation, which is the reference; and recorded */

static void
alone(host_t *h, int n)
{
    int            i, equal;
    size_t         bytes;
    sd_buf_t       state = { 0 };
    sd_error_t     err = { 0 };
    sd_picture_t  *p;

    bytes = (size_t) h->size * h->size * 3;
    equal = 1;

    for (i = 0; i < n; i++) {
        p = begin(h, i, NULL);

        while (step_of(p) < requests[i].steps) {
            must(sd_picture_step(p, &h->cx, NULL, &err), "step", &err);
        }

        state_of(p, &h->ends[i]);

        h->pictures[i] = malloc(bytes);
        must(sd_picture_decode(p, &h->cx, 0, h->pictures[i], NULL, NULL,
                               &err), "decode", &err);
        sd_picture_destroy(p);

        p = begin(h, i, NULL);

        while (step_of(p) < requests[i].steps) {
            must(sd_batch_row(h->b, &p, 1, NULL, &err), "row", &err);
        }

        state_of(p, &state);
        equal &= same(&state, &h->ends[i]);
        sd_picture_destroy(p);
    }

    ok(equal, "%dx%d: recorded or not, %d pictures alone", h->size, h->size,
       n);

    /* or the rest would prove nothing */

    for (i = 1, equal = 0; i < n; i++) {
        equal |= memcmp(h->pictures[i - 1], h->pictures[i], bytes) == 0;
    }

    ok(!equal, "%dx%d: they are different pictures", h->size, h->size);

    sd_buf_free(&state);
}


/* what is between two rows of a batch; the picture, or one that goes on */

static sd_picture_t *
between(host_t *h, sd_picture_t *p, int i, int how)
{
    sd_buf_t    state = { 0 };
    sd_error_t  err = { 0 };

    if (how & PREVIEWS) {
        must(sd_picture_preview(p, &h->cx, h->preview, &err), "preview", &err);
    }

    if ((how & RESUMED) && step_of(p) == (requests[i].steps + 1) / 2
        && step_of(p) < requests[i].steps)
    {
        state_of(p, &state);
        sd_picture_destroy(p);
        p = begin(h, i, &state);
        sd_buf_free(&state);
    }

    return p;
}


/* n pictures, at most so many at a time: the next takes the place of one that
 * has ended; how many ended with other bytes than alone */

static int
together(host_t *h, int n, int most, int how)
{
    int            i, k, next, wrong, of[PICTURES];
    size_t         bytes;
    sd_buf_t       state = { 0 };
    sd_error_t     err = { 0 };
    sd_picture_t  *p[PICTURES];

    bytes = (size_t) h->size * h->size * 3;
    k = 0;
    next = 0;
    wrong = 0;

    for ( ;; ) {
        while (k < most && next < n) {
            of[k] = next;
            p[k++] = begin(h, next++, NULL);
        }

        if (k == 0) {
            break;
        }

        must(sd_batch_row(h->b, p, k, NULL, &err), "row", &err);

        for (i = k - 1; i >= 0; i--) {
            p[i] = between(h, p[i], of[i], how);

            if (step_of(p[i]) < requests[of[i]].steps) {
                continue;
            }

            state_of(p[i], &state);

            if (how & DECODED) {
                memset(h->rgb, 0x5a, bytes);
                must(sd_picture_decode(p[i], &h->cx, 0, h->rgb, NULL, NULL,
                                       &err), "decode", &err);
            }

            if (!same(&state, &h->ends[of[i]])
                || ((how & DECODED)
                    && memcmp(h->rgb, h->pictures[of[i]], bytes) != 0))
            {
                printf("# \"%s\" by %s among %d\n", requests[of[i]].prompt,
                       requests[of[i]].sampler, k);
                wrong++;
            }

            sd_picture_destroy(p[i]);
            k--;
            p[i] = p[k];
            of[i] = of[k];
        }
    }

    sd_buf_free(&state);

    return wrong;
}


static void
test_size(host_t *h, int size, int n, const int *batches, int times)
{
    int     i, k, wrong;
    double  start;

    static const struct {
        int          how;
        const char  *what;
    } ways[] = {
        { 0, "" },
        { PREVIEWS, ", with previews" },
        { RESUMED, ", resumed on the way" },
        { PREVIEWS | RESUMED | DECODED, ", with all that, and decoded" }
    };

    host_size(h, size);
    alone(h, n);

    for (i = 0; batches[i]; i++) {
        for (k = 0; k < 4; k++) {
            wrong = together(h, n, batches[i], ways[k].how);
            ok(wrong == 0, "%dx%d: %d pictures in batches of %d%s", size, size,
               n, batches[i], ways[k].what);
        }
    }

    if (times) {
        start = now();

        for (k = 0, wrong = 0; k < times; k++) {
            wrong += together(h, n, PICTURES, 0);
        }

        ok(wrong == 0, "%dx%d: the same in batches of %d, %d times (%.1f s)",
           size, size, PICTURES, times, now() - start);
    }

    host_end(h);
}


int
main(int argc, char **argv)
{
    int          c, times;
    host_t       h;
    sd_error_t   err = { 0 };
    const char  *device, *model;

    static const int  small[] = { 1, 2, 3, 5, 8, 16, 0 };
    static const int  big[] = { 3, 16, 0 };

    static const struct option  options[] = {
        { "device", required_argument, NULL, 'd' },
        { "model", required_argument, NULL, 'm' },
        { "times", required_argument, NULL, 't' },
        { NULL, 0, NULL, 0 }
    };

    device = "cuda";
    model = "model";
    times = 100;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {

        case 'd':
            device = optarg;
            break;

        case 'm':
            model = optarg;
            break;

        case 't':
            times = atoi(optarg);
            break;

        default:
            return 2;
        }
    }

    memset(&h, 0, sizeof(h));

    must(sd_device_open(&h.dev, device, 0, SD_PRECISION_EXACT, NULL, &err),
         device, &err);
    must(sd_model_open(&h.m, model, h.dev, &err), model, &err);
    must(sd_model_load(h.m, h.dev, NULL, NULL, NULL, &err), model, &err);

    printf("# %s, %s\n", h.dev->name, h.dev->numerics);

    test_size(&h, SMALL, N, small, times);

    if (sd_can_record(h.dev)) {
        test_size(&h, BIG, 8, big, 2);
    }

    sd_model_close(h.m);
    sd_device_close(h.dev);

    return done();
}
