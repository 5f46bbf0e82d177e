/*
 * A device that behaves as a card does, on the cpu's operations: work is
 * enqueued, and nothing happens until somebody waits; it can be recorded and
 * replayed; a batch is four pictures.  So whoever reads what was not waited
 * for, or replays what no longer holds, gets other bytes than the cpu.
 *
 * A context's operations run in an arena of their own: what a recording has
 * placed in the context's must stay as it is.
 */

#ifndef STREAM_H
#define STREAM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "../../src/ops/ops.h"


#define STREAM_SCRATCH   (16 << 20)
#define STREAM_PICTURES  4


typedef struct {
    int             op;
    sd_tensor_t     t;
    union {
        sd_conv2d_t      conv2d;
        sd_group_norm_t  group_norm;
        sd_linear_t      linear;
        sd_layer_norm_t  layer_norm;
        sd_attention_t   attention;

        struct {
            const sd_slot_t  *at;
            int               n;
        } slots;

        struct {
            uint64_t         seed;
            uint32_t         draw;
            float            scale;
        } noise;

        struct {
            sd_tensor_t      x;
            float            scale;
        } scale;

        struct {
            void            *dst;
            char            *copy;
            size_t           size;
        } put;
    } d;
} stream_op_t;

enum {
    STREAM_CONV2D, STREAM_GROUP_NORM, STREAM_LINEAR, STREAM_LAYER_NORM,
    STREAM_ATTENTION, STREAM_SCALE_INPUT, STREAM_SAMPLER_STEP, STREAM_NOISE,
    STREAM_SCALE, STREAM_PUT
};

struct sd_recording_s {
    stream_op_t  *ops;
    size_t        n;
};

typedef struct {
    stream_op_t   *ops;             /* enqueued, or being recorded */
    size_t         n, a, before;    /* before: where the recording began */
    int            recording;
    sd_context_t   cx;              /* that computes */
} stream_t;


static atomic_int  stream_records, stream_recordings, stream_replays;

/* a card is one, however many streams feed it; and so is the cpu's pool */
static pthread_mutex_t  stream_card = PTHREAD_MUTEX_INITIALIZER;


static int
stream_add(sd_context_t *cx, int op, sd_tensor_t t, const void *d, size_t size)
{
    stream_t     *s = cx->impl;
    stream_op_t  *o;

    if (cx->plan) {
        return SD_OK;
    }

    if (s->n == s->a) {
        s->a = 2 * s->a + 256;
        s->ops = realloc(s->ops, s->a * sizeof(stream_op_t));
    }

    o = &s->ops[s->n++];
    memset(o, 0, sizeof(stream_op_t));
    o->op = op;
    o->t = t;
    memcpy(&o->d, d, size);

    return SD_OK;
}


static int
stream_run(sd_context_t *cx, stream_op_t *o)
{
    const sd_ops_t  *ops = &sd_ops_cpu;

    switch (o->op) {
    case STREAM_CONV2D:
        return ops->conv2d(cx, o->t, &o->d.conv2d);
    case STREAM_GROUP_NORM:
        return ops->group_norm(cx, o->t, &o->d.group_norm);
    case STREAM_LINEAR:
        return ops->linear(cx, o->t, &o->d.linear);
    case STREAM_LAYER_NORM:
        return ops->layer_norm(cx, o->t, &o->d.layer_norm);
    case STREAM_ATTENTION:
        return ops->attention(cx, o->t, &o->d.attention);
    case STREAM_SCALE_INPUT:
        return ops->scale_input(cx, o->t, o->d.slots.at, o->d.slots.n);
    case STREAM_SAMPLER_STEP:
        return ops->sampler_step(cx, o->t, o->d.slots.at, o->d.slots.n);
    case STREAM_NOISE:
        return ops->noise(cx, o->t, &o->d.noise.seed, o->d.noise.draw,
                          o->d.noise.scale);
    case STREAM_SCALE:
        return ops->scale(cx, o->t, o->d.scale.x, o->d.scale.scale);
    default:
        memcpy(o->d.put.dst, o->d.put.copy, o->d.put.size);
        free(o->d.put.copy);
        return SD_OK;
    }
}


static int
stream_wait(sd_context_t *cx)
{
    int        rc;
    size_t     i;
    stream_t  *s = cx->impl;

    if (s->recording) {
        return sd_fail(cx->err, "waiting cannot be recorded");
    }

    s->cx.err = cx->err;
    rc = SD_OK;

    for (i = 0; i < s->n; i++) {
        pthread_mutex_lock(&stream_card);
        s->cx.arena.nused = 0;
        rc |= stream_run(&s->cx, &s->ops[i]);
        pthread_mutex_unlock(&stream_card);
    }

    s->n = 0;

    return rc;
}


static int
stream_context_init(sd_context_t *cx, size_t size)
{
    stream_t  *s;

    s = calloc(1, sizeof(stream_t));
    s->cx.device = cx->device;

    if (size) {
        s->cx.arena.size = STREAM_SCRATCH;
        s->cx.arena.base = sd_ops_cpu.alloc(cx->device, STREAM_SCRATCH);
    }

    cx->impl = s;

    return SD_OK;
}


static void
stream_context_free(sd_context_t *cx)
{
    stream_t  *s = cx->impl;

    cx->err = cx->err ? cx->err : s->cx.err;
    (void) stream_wait(cx);

    if (s->cx.arena.base) {
        sd_ops_cpu.free(cx->device, s->cx.arena.base, STREAM_SCRATCH);
    }

    free(s->cx.arena.used);
    free(s->ops);
    free(s);
}


static int
stream_record(sd_context_t *cx)
{
    stream_t  *s = cx->impl;

    s->recording = 1;
    s->before = s->n;
    stream_records++;

    return SD_OK;
}


static int
stream_record_end(sd_context_t *cx, sd_recording_t **out)
{
    stream_t        *s = cx->impl;
    sd_recording_t  *r;

    r = calloc(1, sizeof(sd_recording_t));
    r->n = s->n - s->before;
    r->ops = malloc((r->n + 1) * sizeof(stream_op_t));
    memcpy(r->ops, s->ops + s->before, r->n * sizeof(stream_op_t));

    s->n = s->before;
    s->recording = 0;
    stream_recordings++;

    *out = r;

    return SD_OK;
}


static int
stream_replay(sd_context_t *cx, sd_recording_t *r)
{
    size_t  i;

    for (i = 0; i < r->n; i++) {
        (void) stream_add(cx, r->ops[i].op, r->ops[i].t, &r->ops[i].d,
                          sizeof(r->ops[i].d));
    }

    stream_replays++;

    return SD_OK;
}


static void
stream_recording_free(sd_device_t *dev, sd_recording_t *r)
{
    stream_recordings--;
    free(r->ops);
    free(r);
}


static int
stream_put(sd_context_t *cx, void *dst, const void *src, size_t size)
{
    stream_op_t  o = { 0 };

    o.d.put.dst = dst;
    o.d.put.size = size;
    o.d.put.copy = malloc(size);
    memcpy(o.d.put.copy, src, size);

    return stream_add(cx, STREAM_PUT, (sd_tensor_t) { 0 }, &o.d, sizeof(o.d));
}


/* what is done at once, in its turn */

#define STREAM_NOW(name, proto, args)                                         \
                                                                              \
static int                                                                    \
stream_##name proto                                                           \
{                                                                             \
    int  rc;                                                                  \
                                                                              \
    if (cx->plan) {                                                           \
        return SD_OK;                                                         \
    }                                                                         \
                                                                              \
    rc = stream_wait(cx);                                                     \
                                                                              \
    if (rc == SD_OK) {                                                        \
        pthread_mutex_lock(&stream_card);                                     \
        rc = sd_ops_cpu.name args;                                            \
        pthread_mutex_unlock(&stream_card);                                   \
    }                                                                         \
                                                                              \
    return rc;                                                                \
}

STREAM_NOW(upload, (sd_context_t *cx, sd_tensor_t t, const float *src),
           (cx, t, src))
STREAM_NOW(download, (sd_context_t *cx, float *dst, sd_tensor_t t),
           (cx, dst, t))
STREAM_NOW(download_u8, (sd_context_t *cx, uint8_t *dst, sd_tensor_t t),
           (cx, dst, t))
STREAM_NOW(copy, (sd_context_t *cx, void *dst, const void *src, size_t size),
           (cx, dst, src, size))
STREAM_NOW(embed, (sd_context_t *cx, sd_tensor_t y, const sd_embed_t *d),
           (cx, y, d))
STREAM_NOW(preview_rgb, (sd_context_t *cx, sd_tensor_t y, sd_tensor_t x,
                         const float *factors, const float *bias),
           (cx, y, x, factors, bias))
STREAM_NOW(image_rgb8, (sd_context_t *cx, sd_tensor_t y, sd_tensor_t x),
           (cx, y, x))


/* what is enqueued */

#define STREAM_LATER(name, op)                                                \
                                                                              \
static int                                                                    \
stream_##name(sd_context_t *cx, sd_tensor_t y, const sd_##name##_t *d)        \
{                                                                             \
    return stream_add(cx, op, y, d, sizeof(*d));                              \
}

STREAM_LATER(conv2d, STREAM_CONV2D)
STREAM_LATER(group_norm, STREAM_GROUP_NORM)
STREAM_LATER(linear, STREAM_LINEAR)
STREAM_LATER(layer_norm, STREAM_LAYER_NORM)
STREAM_LATER(attention, STREAM_ATTENTION)


static int
stream_slots(sd_context_t *cx, int op, sd_tensor_t t, const sd_slot_t *slots,
    int n)
{
    stream_op_t  o = { 0 };

    o.d.slots.at = slots;
    o.d.slots.n = n;

    return stream_add(cx, op, t, &o.d, sizeof(o.d));
}


static int
stream_scale_input(sd_context_t *cx, sd_tensor_t y, const sd_slot_t *slots,
    int n)
{
    return stream_slots(cx, STREAM_SCALE_INPUT, y, slots, n);
}


static int
stream_sampler_step(sd_context_t *cx, sd_tensor_t out, const sd_slot_t *slots,
    int n)
{
    return stream_slots(cx, STREAM_SAMPLER_STEP, out, slots, n);
}


/* of one picture, as pictures are */

static int
stream_noise(sd_context_t *cx, sd_tensor_t x, const uint64_t *seeds,
    uint32_t draw, float scale)
{
    stream_op_t  o = { 0 };

    o.d.noise.seed = seeds[0];
    o.d.noise.draw = draw;
    o.d.noise.scale = scale;

    return stream_add(cx, STREAM_NOISE, x, &o.d, sizeof(o.d));
}


static int
stream_scale(sd_context_t *cx, sd_tensor_t y, sd_tensor_t x, float scale)
{
    stream_op_t  o = { 0 };

    o.d.scale.x = x;
    o.d.scale.scale = scale;

    return stream_add(cx, STREAM_SCALE, y, &o.d, sizeof(o.d));
}


/* a cpu device that was opened becomes one of these */

static void
stream_device(sd_device_t *dev)
{
    static sd_ops_t  ops;

    ops = sd_ops_cpu;

    ops.name = "stream";
    ops.pictures = STREAM_PICTURES;
    ops.context_init = stream_context_init;
    ops.context_free = stream_context_free;
    ops.upload = stream_upload;
    ops.download = stream_download;
    ops.download_u8 = stream_download_u8;
    ops.put = stream_put;
    ops.copy = stream_copy;
    ops.wait = stream_wait;
    ops.record = stream_record;
    ops.record_end = stream_record_end;
    ops.replay = stream_replay;
    ops.recording_free = stream_recording_free;
    ops.conv2d = stream_conv2d;
    ops.group_norm = stream_group_norm;
    ops.linear = stream_linear;
    ops.layer_norm = stream_layer_norm;
    ops.attention = stream_attention;
    ops.embed = stream_embed;
    ops.scale_input = stream_scale_input;
    ops.sampler_step = stream_sampler_step;
    ops.noise = stream_noise;
    ops.preview_rgb = stream_preview_rgb;
    ops.image_rgb8 = stream_image_rgb8;
    ops.scale = stream_scale;

    dev->ops = &ops;
}


#endif
