/*
 * A picture's life: the same bytes whole or resumed at any step, with any
 * number of threads; a cancelled step leaves the last one's state; previews
 * change nothing, nor does it whose prompt was encoded first; parameters that
 * make no sense are refused with their names.
 * Runs in the source's root directory.
 */

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "../../src/sd/picture.h"
#include "tap.h"


#define TINY    "t/golden/models/sd15"
#define WIDTH   72
#define HEIGHT  104
#define STEPS   6
#define BYTES   (WIDTH * HEIGHT * 3)


typedef struct {
    sd_device_t   *dev;
    sd_model_t    *m;
    sd_context_t   cx;
} host_t;


static const sd_params_t  defaults = {
    .prompt = "a red house",
    .negative_prompt = "night",
    .width = WIDTH,
    .height = HEIGHT,
    .steps = STEPS,
    .guidance = 4,
    .seed = 42,
    .starting_step = -1
};


static int
host_open(host_t *h, const char *model, int threads, const char *isa)
{
    size_t      step, prompt, decode;
    sd_error_t  err = { 0 };

    memset(h, 0, sizeof(host_t));

    if (sd_device_open(&h->dev, "cpu", threads, SD_PRECISION_EXACT, isa, &err)
        != SD_OK)
    {
        printf("# %s\n", err.message);
        return 0;
    }

    if (sd_model_open(&h->m, model, h->dev, &err) != SD_OK
        || sd_model_load(h->m, h->dev, NULL, NULL, NULL, &err) != SD_OK
        || sd_model_plan(h->m, h->dev, WIDTH, HEIGHT, &step, &prompt, &decode,
                         &err) != SD_OK)
    {
        return ok(0, "open: %s", err.message);
    }

    step = step > prompt ? step : prompt;
    step = step > decode ? step : decode;

    /* exactly what was planned: a byte more would be an error */

    return ok(sd_context_init(&h->cx, h->dev, 0, step, &err) == SD_OK,
              "%s, %d threads, %s, an arena of %zu bytes", model, threads,
              h->dev->isa, step);
}


static void
host_close(host_t *h)
{
    sd_context_free(&h->cx);
    sd_model_close(h->m);
    sd_device_close(h->dev);
}


/* steps until step; preview: one after each */

static int
advance(host_t *h, sd_picture_t *p, int step, int preview)
{
    uint8_t            *small;
    sd_error_t          err = { 0 };
    sd_picture_info_t   info;

    small = malloc(WIDTH / 8 * (HEIGHT / 8) * 3);

    for ( ;; ) {
        sd_picture_info(p, &info);

        if (info.step >= step) {
            break;
        }

        if (sd_picture_step(p, &h->cx, NULL, &err) != SD_OK
            || (preview && sd_picture_preview(p, &h->cx, small, &err)
                           != SD_OK))
        {
            free(small);
            return ok(0, "step: %s", err.message);
        }
    }

    free(small);

    return 1;
}


static sd_picture_t *
begin(host_t *h, const sd_params_t *params)
{
    sd_error_t     err = { 0 };
    sd_picture_t  *p;

    if (sd_picture_create(&p, h->m, params, &err) != SD_OK
        || sd_picture_begin(p, &h->cx, NULL, &err) != SD_OK)
    {
        ok(0, "begin: %s", err.message);
        sd_picture_destroy(p);
        return NULL;
    }

    return p;
}


/* the whole of it, in rgb */

static void
paint(host_t *h, const sd_params_t *params, int preview, uint8_t *rgb)
{
    sd_error_t     err = { 0 };
    sd_picture_t  *p;

    memset(rgb, 0, BYTES);
    p = begin(h, params);

    if (p) {
        if (advance(h, p, params->steps, preview)
            && sd_picture_decode(p, &h->cx, 0, rgb, NULL, NULL, &err) != SD_OK)
        {
            ok(0, "decode: %s", err.message);
        }

        sd_picture_destroy(p);
    }
}


static int
flat(const uint8_t *rgb)
{
    size_t  i;

    for (i = 1; i < BYTES && rgb[i] == rgb[0]; i++) { /* void */ }

    return i == BYTES;
}


static void
test_same(host_t *h, const uint8_t *whole, const sd_params_t *params,
    const char *name)
{
    int                 k;
    uint8_t             rgb[BYTES];
    sd_buf_t            state = { 0 };
    sd_error_t          err = { 0 };
    sd_params_t         resumed;
    sd_picture_t       *p;
    sd_picture_info_t   info;

    paint(h, params, 1, rgb);
    ok(memcmp(rgb, whole, BYTES) == 0, "%s: the same with previews", name);

    for (k = 0; k <= STEPS; k++) {
        p = begin(h, params);

        if (p == NULL || !advance(h, p, k, 0)
            || sd_picture_state(p, &state, &err) != SD_OK)
        {
            ok(0, "%s: a state at %d: %s", name, k, err.message);
        }

        sd_picture_destroy(p);

        resumed = *params;
        resumed.seed = 1;
        resumed.latents = state.data;
        resumed.latents_size = state.len;

        p = begin(h, &resumed);

        if (p) {
            sd_picture_info(p, &info);
            is_int(info.step, k, "goes on where it stopped");
            ok(info.seed == params->seed && !info.inexact && !info.branched,
               "with its seed");
            sd_picture_destroy(p);
        }

        paint(h, &resumed, 0, rgb);
        ok(memcmp(rgb, whole, BYTES) == 0, "%s: the same, resumed at %d", name,
           k);

        sd_buf_free(&state);
    }
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
test_cancel(host_t *h, const uint8_t *whole)
{
    int            rc, i, cancelled;
    uint8_t        rgb[BYTES];
    sd_buf_t       before = { 0 }, after = { 0 };
    pthread_t      t;
    atomic_int     cancel;
    sd_error_t     err = { 0 };
    sd_picture_t  *p;

    p = begin(h, &defaults);

    if (p == NULL || !advance(h, p, 2, 0)) {
        return;
    }

    (void) sd_picture_state(p, &before, &err);

    /* at once, and then in the middle, as far as one can aim */

    atomic_init(&cancel, 1);
    rc = sd_picture_step(p, &h->cx, &cancel, &err);
    is_int(rc, SD_CANCELLED, "a step that is cancelled before it began");

    for (cancelled = 0, i = 0; i < 20 && !cancelled; i++) {
        atomic_store(&cancel, 0);
        pthread_create(&t, NULL, cancel_soon, &cancel);
        rc = sd_picture_step(p, &h->cx, &cancel, &err);
        pthread_join(t, NULL);
        cancelled = rc == SD_CANCELLED;

        if (!cancelled) {
            sd_picture_destroy(p);
            p = begin(h, &defaults);

            if (p == NULL || !advance(h, p, 2, 0)) {
                return;
            }
        }
    }

    ok(cancelled, "a step that is cancelled in the middle");

    is_int(sd_picture_state(p, &after, &err), SD_OK, "still has a state");
    ok(before.len == after.len
       && memcmp(before.data, after.data, after.len) == 0,
       "which is the last step's");

    (void) advance(h, p, STEPS, 0);
    (void) sd_picture_decode(p, &h->cx, 0, rgb, NULL, NULL, &err);
    ok(memcmp(rgb, whole, BYTES) == 0, "and it even goes on to the same");

    sd_picture_destroy(p);
    sd_buf_free(&before);
    sd_buf_free(&after);
}


static void
test_refused(host_t *h)
{
    float          data[4 * 13 * 9] = { 0 };
    size_t         i;
    sd_buf_t       state = { 0 }, bare = { 0 }, small = { 0 };
    sd_error_t     err;
    sd_params_t    p;
    sd_picture_t  *picture;
    sd_st_out_t    t = { "latents", data, 4, { 1, 4, 13, 9 } };

    struct {
        const char   *param;
        int           status;
        sd_params_t   p;
    } tests[20];

    size_t         n = 0;

#define T(name, st, ...)                                                      \
    p = defaults;                                                             \
    __VA_ARGS__;                                                              \
    tests[n].param = name;                                                    \
    tests[n].status = st;                                                     \
    tests[n++].p = p

    (void) sd_safetensors_write(&bare, &t, 1, NULL, 0, &err);
    t.shape[3] = 8;
    (void) sd_safetensors_write(&small, &t, 1, NULL, 0, &err);

    picture = begin(h, &defaults);

    if (picture == NULL || !advance(h, picture, 3, 0)) {
        return;
    }

    (void) sd_picture_state(picture, &state, &err);
    sd_picture_destroy(picture);

    T("width", 400, p.width = 70);
    T("width", 400, p.width = 0);
    T("width", 400, p.width = 1 << 20);
    T("height", 400, p.height = -8);
    T("num_inference_steps", 400, p.steps = 0);
    T("num_inference_steps", 400, p.steps = 1001);
    T("guidance_scale", 400, p.guidance = 0.0 / 0.0);
    T("prompt", 400, p.prompt = "a \xff house");
    T("negative_prompt", 400, p.negative_prompt = "\xed\xa0\x80");
    T("latents", 400, p.starting_step = 2);
    T("starting_step", 400, p.starting_step = 7);
    T("latents", 400, p.latents = "x", p.latents_size = 1);
    T("latents", 400, p.latents = small.data, p.latents_size = small.len);
    T("num_inference_steps", 409, p.latents = state.data,
      p.latents_size = state.len, p.steps = 7);
    T("width", 409, p.latents = state.data, p.latents_size = state.len,
      p.width = 64);
    T("sampler", 409, p.latents = state.data, p.latents_size = state.len,
      p.sampler = sd_sampler_find("euler"));
    T("starting_step", 409, p.latents = state.data,
      p.latents_size = state.len, p.starting_step = 2);
    T("latents", 400, p.latents = state.data, p.latents_size = state.len,
      p.images = 2);
    T("latents", 400, p.latents = bare.data, p.latents_size = bare.len,
      p.images = 2);

    for (i = 0; i < n; i++) {
        memset(&err, 0, sizeof(err));

        (void) sd_picture_create(&picture, h->m, &tests[i].p, &err);

        ok(picture == NULL && err.status == tests[i].status
           && strcmp(err.param, tests[i].param) == 0, "%d %s: %s", err.status,
           err.param, err.message);
    }

    /* what is allowed */

    T("", 0, p.latents = bare.data, p.latents_size = bare.len);
    p.starting_step = 6;

    is_int(sd_picture_create(&picture, h->m, &p, &err), SD_OK,
           "a bare latent at the last step");
    sd_picture_destroy(picture);

    p = defaults;
    p.latents = state.data;
    p.latents_size = state.len;
    p.prompt = "a blue house";
    is_int(sd_picture_create(&picture, h->m, &p, &err), SD_OK,
           "another prompt");

    if (picture) {
        sd_picture_info_t  info;

        sd_picture_info(picture, &info);
        ok(info.branched && info.resumed && info.step == 3,
           "which is a branch");
        sd_picture_destroy(picture);
    }

    sd_buf_free(&state);
    sd_buf_free(&bare);
    sd_buf_free(&small);
}


/* how often the text encoder runs, and what prompts take */

static const sd_ops_t  *plain;
static atomic_int       encoded, texts;
static size_t           text_size;


static int
count_embed(sd_context_t *cx, sd_tensor_t y, const sd_embed_t *d)
{
    encoded += cx->plan ? 0 : y.n;

    return plain->embed(cx, y, d);
}


static void *
count_alloc(sd_device_t *dev, size_t size)
{
    texts += size == text_size;

    return plain->alloc(dev, size);
}


static void
count_free(sd_device_t *dev, void *p, size_t size)
{
    texts -= size == text_size;
    plain->free(dev, p, size);
}


static void
test_texts(host_t *h, const uint8_t *whole)
{
    int                i;
    char               prompt[32];
    uint8_t            rgb[BYTES], other[BYTES];
    sd_ops_t           ops;
    atomic_int         cancel;
    sd_error_t         err = { 0 };
    sd_params_t        p;
    sd_picture_t      *first, *second;
    sd_picture_info_t  info;

    plain = h->dev->ops;
    ops = *plain;
    ops.embed = count_embed;
    ops.alloc = count_alloc;
    ops.free = count_free;
    h->dev->ops = &ops;

    text_size = (size_t) h->m->text_encoder.length * sizeof(float)
                * sd_unet_text_columns(&h->m->unet);

    p = defaults;
    p.prompt = "a blue house";
    paint(h, &p, 0, other);

    is_int(encoded, 2, "two prompts, encoded");
    is_int(texts, 0, "and forgotten where nothing is shared");

    (void) sd_texts_create(&h->m->texts, 4, &err);

    encoded = 0;
    paint(h, &defaults, 0, rgb);
    is_int(encoded, 2, "the first picture's are encoded");
    ok(memcmp(rgb, whole, BYTES) == 0, "the same bytes");

    paint(h, &defaults, 0, rgb);
    is_int(encoded, 2, "the second one's are not");
    ok(memcmp(rgb, whole, BYTES) == 0, "the same bytes");

    paint(h, &p, 0, rgb);
    is_int(encoded, 3, "of another one only what is new");
    ok(memcmp(rgb, other, BYTES) == 0, "the same bytes");

    p.guidance = 1;
    p.negative_prompt = "unread";
    second = begin(h, &p);
    sd_picture_info(second, &info);
    ok(info.samples == 1 && info.text_hits == 1 && encoded == 3,
       "unguided ones have one prompt");
    sd_picture_destroy(second);

    /* one that runs keeps its own while others come and go */

    first = begin(h, &defaults);
    sd_picture_info(first, &info);
    ok(info.samples == 2 && info.text_hits == 2, "both are shared");
    second = begin(h, &defaults);
    (void) advance(h, first, 2, 0);

    p = defaults;

    for (i = 0; i < 6; i++) {
        snprintf(prompt, sizeof(prompt), "house number %d", i);
        p.prompt = prompt;
        paint(h, &p, 0, rgb);
    }

    is_int(encoded, 9, "prompts that nobody has seen");
    is_int(texts, 4, "of which so many stay");

    sd_picture_destroy(second);
    (void) advance(h, first, STEPS, 0);
    (void) sd_picture_decode(first, &h->cx, 0, rgb, NULL, NULL, &err);
    ok(memcmp(rgb, whole, BYTES) == 0, "who shares with one that left: the "
       "same bytes");
    sd_picture_destroy(first);

    paint(h, &p, 0, rgb);
    is_int(encoded, 9, "the last one is still there");
    p.prompt = "house number 0";
    paint(h, &p, 0, rgb);
    is_int(encoded, 10, "the first one is not");

    /* a prompt and the same once more, as the negative one */

    p.prompt = p.negative_prompt = "fog";
    paint(h, &p, 0, rgb);
    paint(h, &p, 0, other);
    ok(memcmp(rgb, other, BYTES) == 0, "the same twice");
    ok(encoded <= 12, "and found");

    /* what was not finished is nobody's */

    atomic_init(&cancel, 1);
    p.prompt = "a cancelled house";
    (void) sd_picture_create(&first, h->m, &p, &err);
    is_int(sd_picture_begin(first, &h->cx, &cancel, &err), SD_CANCELLED,
           "cancelled");
    sd_picture_destroy(first);

    encoded = 0;
    second = begin(h, &p);
    is_int(encoded, 1, "nothing of it was shared");
    sd_picture_destroy(second);

    is_int(texts, 4, "no more than there may be");

    sd_texts_destroy(h->m->texts, h->dev);
    h->m->texts = NULL;

    is_int(texts, 0, "and none in the end");

    h->dev->ops = plain;
}


/* several threads, more prompts than stay */

static void *
text_storm(void *data)
{
    int         i, k, hit, bad;
    host_t     *h = data;
    int32_t     ids[2];
    unsigned    seed;
    sd_text_t  *t[2];

    bad = 0;
    seed = (unsigned) (uintptr_t) &ids;

    for (i = 0; i < 5000; i++) {
        for (k = 0; k < 2; k++) {
            ids[0] = 49406;
            ids[1] = rand_r(&seed) % 7;

            t[k] = sd_texts_get(h->m->texts, h->dev, ids, 2, 64, &hit);

            if (!hit) {
                *(int32_t *) t[k]->data = ids[1];

                if (rand_r(&seed) % 8) {
                    sd_texts_done(h->m->texts, t[k]);
                }
            }

            bad += *(int32_t *) t[k]->data != ids[1]
                   || memcmp(t[k]->ids, ids, sizeof(ids)) != 0;
        }

        for (k = 0; k < 2; k++) {
            bad += *(int32_t *) t[k]->data != t[k]->ids[1];
            sd_texts_put(h->m->texts, h->dev, t[k]);
        }
    }

    return (void *) (uintptr_t) bad;
}


static void
test_text_storm(host_t *h)
{
    int         i;
    long        all;
    void       *bad;
    pthread_t   t[4];
    sd_error_t  err;

    (void) sd_texts_create(&h->m->texts, 6, &err);

    for (i = 0; i < 4; i++) {
        pthread_create(&t[i], NULL, text_storm, h);
    }

    for (all = 0, i = 0; i < 4; i++) {
        pthread_join(t[i], &bad);
        all += (uintptr_t) bad;
    }

    is_int(all, 0, "texts of several threads are what they should be");

    sd_texts_destroy(h->m->texts, h->dev);
    h->m->texts = NULL;
}


/*
 * the embedded model, which is large enough for every algorithm that the
 * backend has: machines that share a numerics id share their bytes
 */

static void
test_machines(void)
{
    static const struct {
        const char  *isa;
        int          threads;
    } tests[] = {
        { "avx512", 2 }, { "avx512", 1 }, { "avx2", 3 }, { "avx2", 1 },
        { "baseline", 2 }, { "baseline", 3 }
    };

    char           first[96];
    host_t         h;
    size_t         i;
    sd_buf_t       before = { 0 }, state = { 0 };
    sd_error_t     err = { 0 };
    sd_picture_t  *p;

    first[0] = '\0';

    for (i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
        if (!host_open(&h, "model", tests[i].threads, tests[i].isa)) {
            host_close(&h);
            continue;
        }

        p = begin(&h, &defaults);

        if (p && advance(&h, p, 2, 0)
            && ok(sd_picture_state(p, &state, &err) == SD_OK, "two steps"))
        {
            if (strcmp(h.dev->numerics, first) == 0) {
                ok(state.len == before.len
                   && memcmp(state.data, before.data, state.len) == 0,
                   "%s, %d threads: the same bytes by %s", tests[i].isa,
                   tests[i].threads, first);
            }

            snprintf(first, sizeof(first), "%s", h.dev->numerics);
            sd_buf_free(&before);
            before = state;
            memset(&state, 0, sizeof(state));
        }

        sd_picture_destroy(p);
        host_close(&h);
    }

    sd_buf_free(&before);
}


int
main(void)
{
    int          i;
    host_t       h;
    uint8_t      whole[BYTES], euler[BYTES], rgb[BYTES];
    sd_params_t  p;

    if (host_open(&h, TINY, 2, NULL)) {
        paint(&h, &defaults, 0, whole);
        ok(!flat(whole), "there is something to see");
        paint(&h, &defaults, 0, rgb);
        ok(memcmp(rgb, whole, BYTES) == 0, "the same twice");

        p = defaults;
        p.seed++;
        paint(&h, &p, 0, rgb);
        ok(memcmp(rgb, whole, BYTES) != 0, "another seed, another picture");

        p = defaults;
        p.guidance = 1;
        paint(&h, &p, 0, rgb);
        ok(memcmp(rgb, whole, BYTES) != 0, "unguided");

        test_same(&h, whole, &defaults, "ddim");

        for (i = 0; sd_samplers[i].name; i++) {
            if (sd_samplers[i].stochastic || i == 1) {
                p = defaults;
                p.sampler = &sd_samplers[i];
                paint(&h, &p, 0, euler);
                test_same(&h, euler, &p, sd_samplers[i].name);
            }
        }

        test_cancel(&h, whole);
        test_refused(&h);
        test_texts(&h, whole);
        test_text_storm(&h);
    }

    host_close(&h);

    for (i = 1; i <= 5; i += 4) {
        if (host_open(&h, TINY, i, NULL)) {
            paint(&h, &defaults, 0, rgb);
            ok(memcmp(rgb, whole, BYTES) == 0, "the same on %d threads", i);
        }

        host_close(&h);
    }

    test_machines();

    return done();
}
