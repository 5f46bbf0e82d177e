/*
 * A model that paints gradients, in place of src/ops and src/sd/model.c,
 * picture.c and batch.c: for what is not about pictures.  How long a step
 * takes, and what fails, is up to the test, which may change it meanwhile: what
 * is FAKE_HELD goes on when it is told to.  States are real ones.  "cuda:N" is
 * a card that steps four pictures together and can record.  What belongs to one
 * thread at a time is watched.
 */

#ifndef FAKE_H
#define FAKE_H

#include <limits.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../../src/sd/batch.h"
#include "../../src/sd/packed.h"
#include "../../src/sd/state.h"


#define FAKE_HELD   INT_MAX
#define FAKE_BEGUN  64


static atomic_int  fake_step_ms = 1;    /* 0 .. FAKE_HELD */
static atomic_int  fake_load_ms;
static atomic_int  fake_open_fails, fake_load_fails, fake_step_fails;
static atomic_int  fake_dead;
static atomic_int  fake_pictures;       /* that are alive */
static atomic_int  fake_steps;          /* made in all */
static atomic_int  fake_begun;          /* in all, and the last ones' seeds */
static uint64_t    fake_seeds[FAKE_BEGUN];
static atomic_int  fake_cards;          /* that "auto" finds */
static atomic_int  fake_dead_cards;     /* bits: those that do not open */
static atomic_int  fake_dying;          /* bits: those that die at a step */
static atomic_int  fake_most;           /* pictures that were in one row */
static atomic_int  fake_rows;           /* that are being made */
static atomic_int  fake_beside;         /* what was done meanwhile */
static atomic_int  fake_races;          /* should stay 0 */
static atomic_int  fake_await;          /* steps that others make before a
                                           prompt or a decode ends */
static atomic_int  fake_vain;           /* none did; should stay 0 */


struct sd_picture_s {
    sd_model_t   *model;
    char          digest[65];
    int           width, height, step, steps;
    uint64_t      seed;
    double        guidance;
    int           resumed, begun;
    char          numerics[96];         /* of its state */
    atomic_int    users;
    sd_state_flags_t  flags;
    const sd_sampler_t  *sampler;
};


static int64_t
fake_clock(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return (int64_t) ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}


/* in pieces of a millisecond, as operations look at cancel for each tile */

static int
fake_work(const atomic_int *ms, const atomic_int *cancel)
{
    int64_t          start;
    struct timespec  ts = { 0, 1000000 };

    start = fake_clock();

    while (fake_clock() - start < atomic_load(ms)) {
        if (cancel && atomic_load(cancel)) {
            return SD_CANCELLED;
        }

        nanosleep(&ts, NULL);
    }

    return cancel && atomic_load(cancel) ? SD_CANCELLED : SD_OK;
}


/* what is beside the steps; 10 s for those to come, if any are waited for */

static int
fake_side(const atomic_int *cancel)
{
    int  i, until;

    static const atomic_int  moment = 1;

    until = fake_steps + fake_await;

    for (i = 0; i < 10000 && fake_steps - until < 0; i++) {
        if (fake_work(&moment, cancel) == SD_CANCELLED) {
            return SD_CANCELLED;
        }
    }

    fake_vain += i == 10000;

    return fake_work(&moment, cancel);
}


/* a use of the picture and the context: NULL ends it */

static void
fake_enter(sd_picture_t *p, sd_context_t *cx)
{
    atomic_int  *users = cx->impl;

    if (atomic_fetch_add(&p->users, 1) || atomic_fetch_add(users, 1)) {
        fake_races++;
    }
}


static void
fake_leave(sd_picture_t *p, sd_context_t *cx)
{
    atomic_int  *users = cx->impl;

    atomic_fetch_sub(&p->users, 1);
    atomic_fetch_sub(users, 1);
}


static int
fake_record(sd_context_t *cx)
{
    return SD_OK;
}


int
sd_cuda_cards(int *n, sd_error_t *err)
{
    *n = fake_cards;

    return *n ? SD_OK : sd_fail(err, "there is no card");
}


int
sd_device_open(sd_device_t **dev, const char *name, int threads,
    sd_precision_t precision, const char *isa, sd_error_t *err)
{
    static const sd_ops_t  cpu = { .name = "cpu", .pictures = 1 };
    static const sd_ops_t  card = { .name = "cuda", .pictures = 4,
                                    .record = fake_record };

    if (strncmp(name, "cuda:", 5) == 0) {
        if (precision != SD_PRECISION_EXACT) {
            return sd_fail(err, "bf16 is for the cpu");
        }

        if (fake_dead_cards >> atoi(name + 5) & 1) {
            return sd_fail(err, "%s is out of order", name);
        }
    }

    *dev = calloc(1, sizeof(sd_device_t));
    (*dev)->ops = strncmp(name, "cpu", 3) == 0 ? &cpu : &card;
    strcpy((*dev)->name, name);
    strcpy((*dev)->isa, "none");
    snprintf((*dev)->numerics, sizeof((*dev)->numerics), "fake-%s", name);

    return SD_OK;
}


void
sd_device_close(sd_device_t *dev)
{
    free(dev);
}


int
sd_context_init(sd_context_t *cx, sd_device_t *dev, int plan, size_t size,
    sd_error_t *err)
{
    memset(cx, 0, sizeof(sd_context_t));
    cx->impl = calloc(1, sizeof(atomic_int));
    cx->arena.base = malloc(size);
    cx->arena.size = size;

    return SD_OK;
}


void
sd_context_free(sd_context_t *cx)
{
    fake_races += *(atomic_int *) cx->impl;
    free(cx->impl);
    free(cx->arena.base);
    cx->arena.base = NULL;
}


int
sd_model_open(sd_model_t **m, const char *path, sd_device_t *dev,
    sd_error_t *err)
{
    if (fake_open_fails) {
        return sd_fail(err, "no such model");
    }

    *m = calloc(1, sizeof(sd_model_t));

    (*m)->device = dev;
    strcpy((*m)->name, "fake");
    memset((*m)->fingerprint, 'f', 64);
    (*m)->vae_scale = 8;
    (*m)->default_width = 64;
    (*m)->default_height = 32;

    return SD_OK;
}


int
sd_model_load(sd_model_t *m, sd_device_t *dev,
    void (*progress)(void *data, double done), void *data,
    const atomic_int *cancel, sd_error_t *err)
{
    if (fake_load_fails) {
        return sd_fail(err, "a weight is missing");
    }

    return fake_work(&fake_load_ms, cancel);
}


int
sd_packed_load(sd_model_t *m, sd_device_t *dev, const char *dir,
    const atomic_int *cancel, sd_packed_how_t *how, sd_error_t *note,
    sd_error_t *err)
{
    *how = SD_PACKED_NONE;
    memset(note, 0, sizeof(sd_error_t));

    return sd_model_load(m, dev, NULL, NULL, cancel, err);
}


void
sd_model_close(sd_model_t *m)
{
    if (m) {
        sd_texts_destroy(m->texts, m->device);
    }

    free(m);
}


int
sd_model_plan(sd_model_t *m, sd_device_t *dev, int width, int height,
    size_t *step, size_t *prompt, size_t *decode, sd_error_t *err)
{
    *prompt = 1000;
    *decode = (size_t) width * height * 3;

    return SD_OK;
}


struct sd_batch_s {
    sd_model_t    *model;
    sd_context_t  *cx;
    int            pictures;
};


int
sd_batch_create(sd_batch_t **b, sd_model_t *m, sd_context_t *cx, int pictures,
    sd_error_t *err)
{
    *b = calloc(1, sizeof(sd_batch_t));
    (*b)->model = m;
    (*b)->cx = cx;
    (*b)->pictures = pictures;

    return SD_OK;
}


void
sd_batch_destroy(sd_batch_t *b)
{
    if (b && b->cx->arena.base == NULL) {
        fake_races++;
    }

    free(b);
}


int
sd_batch_plan(sd_model_t *m, sd_device_t *dev, int width, int height,
    int pictures, size_t *size, sd_error_t *err)
{
    *size = (size_t) width * height * pictures;

    return SD_OK;
}


int
sd_batch_prepare(sd_batch_t *b, int width, int height, sd_error_t *err)
{
    return SD_OK;
}


int
sd_batch_rehearse(sd_model_t *m, sd_context_t *cx, int pictures, int width,
    int height, sd_error_t *err)
{
    return SD_OK;
}


int
sd_device_plans(sd_device_t *dev, const char *dir, int save, sd_error_t *err)
{
    return SD_OK;
}


static int
fake_dies(const sd_device_t *dev)
{
    const char  *p = strchr(dev->name, ':');

    return p && fake_dying >> atoi(p + 1) & 1;
}


int
sd_device_alive(sd_device_t *dev)
{
    return !fake_dead && !fake_dies(dev);
}


int
sd_device_bind(sd_device_t *dev, sd_error_t *err)
{
    return SD_OK;
}


void
sd_device_tune(sd_device_t *dev, int on)
{
}


int
sd_batch_row(sd_batch_t *b, sd_picture_t **p, int n, const atomic_int *cancel,
    sd_error_t *err)
{
    int  i, rc;

    if (fake_step_fails || fake_dies(b->model->device)) {
        return sd_fail(err, "a step went wrong");
    }

    for (i = 0; i < n; i++) {
        if (p[i]->model != b->model || p[i]->width != p[0]->width
            || n > b->pictures || (i && p[i]->users))
        {
            fake_races++;
        }

        atomic_fetch_add(&p[i]->users, i > 0);
    }

    fake_enter(p[0], b->cx);
    fake_rows++;

    rc = fake_work(&fake_step_ms, cancel);

    if (rc == SD_OK) {
        memset(b->cx->arena.base, p[0]->step,
               (size_t) p[0]->width * p[0]->height * n);

        fake_most = n > fake_most ? n : fake_most;
    }

    fake_rows--;
    fake_leave(p[0], b->cx);

    for (i = 0; i < n; i++) {
        atomic_fetch_sub(&p[i]->users, i > 0);

        if (rc == SD_OK) {
            p[i]->step++;
            fake_steps++;
        }
    }

    return rc;
}


int
sd_picture_create(sd_picture_t **pp, sd_model_t *m, const sd_params_t *params,
    sd_error_t *err)
{
    int            rc;
    sd_state_t     s, r;
    sd_picture_t  *p;

    p = calloc(1, sizeof(sd_picture_t));

    p->model = m;
    p->width = params->width;
    p->height = params->height;
    p->steps = params->steps;
    p->seed = params->seed;
    p->guidance = params->guidance;
    p->sampler = params->sampler ? params->sampler : &sd_samplers[0];
    sd_state_digest(p->digest, params->prompt, params->negative_prompt);

    if (params->latents) {
        if (sd_state_read(&s, params->latents, params->latents_size, err)
            != SD_OK)
        {
            free(p);
            return SD_ERROR;
        }

        memset(&r, 0, sizeof(sd_state_t));

        r.version = SD_STATE_VERSION;
        r.step = params->starting_step;
        r.steps = p->steps;
        r.width = p->width;
        r.height = p->height;
        r.n = params->images > 1 ? params->images : 1;
        r.c = 4;
        r.w = p->width / 8;
        r.h = p->height / 8;
        r.guidance = p->guidance;
        strcpy(r.sampler, p->sampler->name);
        strcpy(r.model, m->fingerprint);
        strcpy(r.prompt, p->digest);
        strcpy(r.numerics, m->device->numerics);

        rc = sd_state_check(&s, &r, &p->flags, err);
        strcpy(p->numerics, s.numerics);

        if (rc == SD_OK && s.version) {
            p->step = s.step;
            p->seed = s.seed;
        }

        p->resumed = 1;
        sd_state_free(&s);

        if (rc != SD_OK) {
            free(p);
            return rc;
        }
    }

    fake_pictures++;
    *pp = p;

    return SD_OK;
}


void
sd_picture_destroy(sd_picture_t *p)
{
    if (p) {
        fake_pictures--;
        free(p);
    }
}


size_t
sd_picture_memory(const sd_picture_t *p)
{
    return 0;
}


int
sd_picture_begin(sd_picture_t *p, sd_context_t *cx, const atomic_int *cancel,
    sd_error_t *err)
{
    int  rc;

    p->begun = 1;

    fake_enter(p, cx);
    fake_beside += fake_rows;
    rc = fake_side(cancel);
    fake_leave(p, cx);

    if (rc == SD_OK) {
        fake_seeds[fake_begun++ % FAKE_BEGUN] = p->seed;
    }

    return rc;
}


void
sd_picture_move(sd_picture_t *p, sd_model_t *m)
{
    p->model = m;

    if (p->numerics[0]) {
        p->flags.inexact = strcmp(p->numerics, m->device->numerics) != 0;
    }
}


static void
fake_paint(sd_picture_t *p, uint8_t *rgb, int width, int height)
{
    int  x, y;

    for (y = 0; y < height; y++) {
        for (x = 0; x < width; x++, rgb += 3) {
            rgb[0] = x * 255 / width;
            rgb[1] = y * 255 / height;
            rgb[2] = p->step * 10 + p->seed;
        }
    }
}


int
sd_picture_preview(sd_picture_t *p, sd_context_t *cx, uint8_t *rgb,
    sd_error_t *err)
{
    fake_enter(p, cx);
    fake_paint(p, rgb, p->width / 8, p->height / 8);
    fake_leave(p, cx);

    return SD_OK;
}


int
sd_picture_decode(sd_picture_t *p, sd_context_t *cx, int denoised,
    uint8_t *rgb, float *image, const atomic_int *cancel, sd_error_t *err)
{
    int  rc;

    fake_enter(p, cx);
    fake_beside += fake_rows;
    memset(cx->arena.base, 0, (size_t) p->width * p->height * 3);
    fake_paint(p, rgb, p->width, p->height);
    rc = fake_side(cancel);
    fake_leave(p, cx);

    return rc;
}


int
sd_picture_state(sd_picture_t *p, sd_buf_t *out, sd_error_t *err)
{
    int         rc;
    sd_state_t  s;

    memset(&s, 0, sizeof(sd_state_t));

    s.version = SD_STATE_VERSION;
    s.step = p->step;
    s.steps = p->steps;
    s.seed = p->seed;
    s.width = p->width;
    s.height = p->height;
    s.guidance = p->guidance;
    s.c = 4;
    s.h = p->height / 8;
    s.w = p->width / 8;
    s.latents = calloc((size_t) s.c * s.h * s.w, sizeof(float));
    strcpy(s.sampler, p->sampler->name);
    strcpy(s.model, p->model->fingerprint);
    strcpy(s.prompt, p->digest);
    strcpy(s.numerics, p->model->device->numerics);

    rc = sd_state_write(out, &s, err);

    free(s.latents);

    return rc;
}


void
sd_picture_info(const sd_picture_t *p, sd_picture_info_t *info)
{
    memset(info, 0, sizeof(sd_picture_info_t));

    info->step = p->step;
    info->steps = p->steps;
    info->width = p->width;
    info->height = p->height;
    info->samples = p->guidance > 1 ? 2 : 1;
    info->evaluations = (p->steps - p->step) * info->samples;
    info->seed = p->seed;
    info->sampler = p->sampler->name;
    info->prompt_tokens = 5;
    info->negative_tokens = 2;
    info->resumed = p->resumed;
    info->branched = p->flags.branched;
    info->inexact = p->flags.inexact;
}


#endif
