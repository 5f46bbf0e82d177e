/*
 * Pictures that are stepped together: see batch.h.
 *
 * The device reads three tables, one block, which each step sends anew:
 *
 *   slots [pictures]        see slot.h; those beyond n are empty
 *   time  [2 * pictures]    each sample's row of time embeddings
 *   text  [2 * pictures]    each sample's keys and values
 *
 * A picture's samples stand together, pictures in the order of the call; the
 * samples that round the batch up read the first one's time and text.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "batch.h"
#include "picture_impl.h"


typedef struct {
    int               h, w, samples;
    sd_recording_t   *recording;
} sd_batch_recording_t;


struct sd_batch_s {
    sd_model_t             *model;
    sd_context_t           *cx;
    int                     pictures;
    char                   *host, *device;      /* the tables */
    sd_batch_recording_t   *recordings;
    size_t                  n, a;
};


/* where the tables are in the block */

typedef struct {
    sd_slot_t     *slots;
    const void   **time, **text;
    size_t         size;
} sd_batch_tables_t;


static sd_batch_tables_t
sd_batch_tables(char *block, int pictures)
{
    size_t             slots, pointers;
    sd_batch_tables_t  t;

    slots = pictures * sizeof(sd_slot_t);
    pointers = 2 * pictures * sizeof(void *);

    memset(&t, 0, sizeof(t));
    t.size = slots + 2 * pointers;

    /* plan mode has no tables */

    if (block) {
        t.slots = (sd_slot_t *) block;
        t.time = (const void **) (block + slots);
        t.text = (const void **) (block + slots + pointers);
    }

    return t;
}


size_t
sd_batch_tables_size(int pictures)
{
    return sd_batch_tables(NULL, pictures).size;
}


static void
sd_batch_slot(const sd_picture_t *p, sd_slot_t *s, int out)
{
    int                      i, j, from, to;
    const sd_sampler_row_t  *row;

    row = &p->rows[p->row];

    s->scale_in = row->scale_in;
    s->a = row->a;
    s->b = row->b;
    s->clamp = row->clamp;

    for (i = 0; i < 1 + SD_KEPT; i++) {
        for (j = 0; j < 3 + SD_KEPT + 2; j++) {
            s->m[i][j] = row->m[i][j];
        }
    }

    s->guidance = p->guidance;
    s->guided = p->n == 2;
    s->out = out;
    s->draw = row->draw;
    s->nkept = p->sampler->kept;
    s->seed = p->seed;

    /* a step's first row reads what holds, the others what the step has
     * written: so a step that is cancelled leaves the last one's end */

    to = !p->now;
    from = p->row && !p->rows[p->row - 1].last_of_step ? to : p->now;

    s->x = p->x[from].data;
    s->next = p->x[to].data;
    s->kept = p->kept[from].data;
    s->kept_next = p->kept[to].data;
    s->denoised = p->denoised.data;
}


/* fills the tables at host for n pictures and so many samples */

static void
sd_batch_fill(char *host, int pictures, sd_picture_t **p, int n, int samples)
{
    int                i, k, s;
    const char        *time;
    sd_batch_tables_t  t;

    t = sd_batch_tables(host, pictures);
    memset(host, 0, t.size);

    for (i = 0, s = 0; i < n; i++) {
        sd_batch_slot(p[i], &t.slots[i], s);

        time = (char *) p[i]->time.data
               + (size_t) p[i]->row * p[i]->time.c * sizeof(float);

        for (k = 0; k < p[i]->n; k++) {
            t.time[s] = time;
            t.text[s++] = p[i]->texts[k]->data;
        }
    }

    for (i = n; i < pictures; i++) {
        t.slots[i].out = -1;
    }

    for ( /* void */ ; s < samples; s++) {
        t.time[s] = t.time[0];
        t.text[s] = t.text[0];
    }
}


void
sd_batch_model(const sd_model_t *m, sd_context_t *cx, char *device,
    int pictures, int samples, int h, int w, sd_batch_show_pt show,
    void *data)
{
    sd_tensor_t        x, out;
    sd_unet_given_t    given = { 0 };
    sd_batch_tables_t  t;

    t = sd_batch_tables(device, pictures);

    given.time.at = t.time;
    given.time.rows = 1;
    given.time.columns = sd_unet_time_columns(&m->unet);
    given.text.at = t.text;
    given.text.rows = m->text_encoder.length;
    given.text.columns = sd_unet_text_columns(&m->unet);

    x = sd_alloc(cx, samples, h, w, m->unet.in_channels);
    sd_scale_input(cx, x, t.slots, pictures);

    if (show) {
        show(data, cx, x, "unet_in_000");
    }

    out = sd_unet(&m->unet, cx, x, &given);

    if (show) {
        show(data, cx, out, "unet_out_000");
    }

    sd_sampler_step(cx, out, t.slots, pictures);

    sd_free(cx, &out);
    sd_free(cx, &x);
}


void
sd_batch_advance(sd_picture_t *p)
{
    if (p->rows[p->row++].last_of_step) {
        p->now = !p->now;
        p->have_denoised = 1;
        p->step++;
    }
}


void
sd_batch_rewind(sd_picture_t *p)
{
    while (p->row && !p->rows[p->row - 1].last_of_step) {
        p->row--;
    }
}


void
sd_batch_one(sd_picture_t *p, sd_context_t *cx, char *device,
    sd_batch_show_pt show, void *data)
{
    char  host[sizeof(sd_slot_t) + 4 * sizeof(void *)];

    sd_batch_fill(host, 1, &p, 1, p->n);
    sd_put(cx, device, host, sizeof(host));

    sd_batch_model(p->model, cx, device, 1, p->n, p->h, p->w, show, data);
}


int
sd_batch_create(sd_batch_t **out, sd_model_t *m, sd_context_t *cx,
    int pictures, sd_error_t *err)
{
    size_t       size;
    sd_batch_t  *b;

    *out = NULL;

    b = calloc(1, sizeof(sd_batch_t));

    if (b == NULL) {
        return sd_fail(err, "no memory for a batch");
    }

    b->model = m;
    b->cx = cx;
    b->pictures = pictures;

    size = sd_batch_tables_size(pictures);

    b->host = malloc(size);
    b->device = cx->device->ops->alloc(cx->device, size);

    if (b->host == NULL || b->device == NULL) {
        sd_batch_destroy(b);
        return sd_fail(err, "no memory for a batch");
    }

    *out = b;

    return SD_OK;
}


void
sd_batch_destroy(sd_batch_t *b)
{
    size_t        i;
    sd_device_t  *dev;

    if (b == NULL) {
        return;
    }

    dev = b->cx->device;

    for (i = 0; i < b->n; i++) {
        sd_recording_free(dev, b->recordings[i].recording);
    }

    if (b->device) {
        dev->ops->free(dev, b->device, sd_batch_tables_size(b->pictures));
    }

    free(b->recordings);
    free(b->host);
    free(b);
}


/*
 * few sizes of batches, so that there are few recordings: 1 .. 4, then in
 * steps of at most a half: 6, 8, 12, 16, 24, 32 ... at most
 */

static int
sd_batch_round(const sd_device_t *dev, int samples, int most)
{
    int  n;

    if (!sd_can_record(dev) || samples <= 4) {
        return samples;
    }

    for (n = 4; n < samples; n += n & (n - 1) ? n / 3 : n / 2) { /* void */ }

    return n < most ? n : most;
}


int
sd_batch_plan(sd_model_t *m, sd_device_t *dev, int width, int height,
    int pictures, size_t *size, sd_error_t *err)
{
    int           rc;
    sd_picture_t  p;
    sd_context_t  cx;

    memset(&p, 0, sizeof(p));
    p.model = m;

    if (sd_picture_size(&p, width, height, err) != SD_OK
        || sd_context_init(&cx, dev, 1, 0, err) != SD_OK)
    {
        return SD_ERROR;
    }

    sd_batch_model(m, &cx, NULL, pictures, 2 * pictures, p.h, p.w, NULL, NULL);

    *size = cx.arena.peak;
    rc = cx.status;

    sd_context_free(&cx);

    return rc;
}


/* finds the recording, or makes it; NULL: the context's status says why */

static sd_recording_t *
sd_batch_recording(sd_batch_t *b, int h, int w, int samples)
{
    size_t                 i;
    sd_context_t          *cx = b->cx;
    sd_batch_recording_t  *r;

    for (i = 0; i < b->n; i++) {
        r = &b->recordings[i];

        if (r->h == h && r->w == w && r->samples == samples) {
            return r->recording;
        }
    }

    if (b->n == b->a) {
        r = realloc(b->recordings, (2 * b->a + 8) * sizeof(*r));

        if (r == NULL) {
            cx->status = sd_fail(cx->err, "no memory for a recording");
            return NULL;
        }

        b->recordings = r;
        b->a = 2 * b->a + 8;
    }

    r = &b->recordings[b->n];
    r->h = h;
    r->w = w;
    r->samples = samples;

    if (sd_record(cx) != SD_OK) {
        return NULL;
    }

    sd_batch_model(b->model, cx, b->device, b->pictures, samples, h, w, NULL,
                   NULL);

    if (sd_record_end(cx, &r->recording) != SD_OK) {
        return NULL;
    }

    b->n++;

    return r->recording;
}


int
sd_batch_prepare(sd_batch_t *b, int width, int height, sd_error_t *err)
{
    int           n, most;
    sd_picture_t  p;

    if (!sd_can_record(b->cx->device)) {
        return SD_OK;
    }

    memset(&p, 0, sizeof(p));
    p.model = b->model;

    if (sd_picture_size(&p, width, height, err) != SD_OK) {
        return SD_ERROR;
    }

    sd_context_reset(b->cx, err, NULL);

    most = 2 * b->pictures;

    for (n = 1; n <= most;
         n = n < most ? sd_batch_round(b->cx->device, n + 1, most) : n + 1)
    {
        if (sd_batch_recording(b, p.h, p.w, n) == NULL) {
            return SD_ERROR;
        }
    }

    return SD_OK;
}


int
sd_batch_rehearse(sd_model_t *m, sd_context_t *cx, int pictures, int width,
    int height, sd_error_t *err)
{
    int              n, most;
    sd_picture_t     p;
    sd_recording_t  *r;

    if (!sd_can_record(cx->device)) {
        return SD_OK;
    }

    memset(&p, 0, sizeof(p));
    p.model = m;

    if (sd_picture_size(&p, width, height, err) != SD_OK) {
        return SD_ERROR;
    }

    most = 2 * pictures;

    for (n = 1; n <= most;
         n = n < most ? sd_batch_round(cx->device, n + 1, most) : n + 1)
    {
        sd_context_reset(cx, err, NULL);

        if (sd_record(cx) != SD_OK) {
            return SD_ERROR;
        }

        /* tables that nobody reads: nothing of it is ever done */

        sd_batch_model(m, cx, cx->arena.base, pictures, n, p.h, p.w, NULL,
                       NULL);

        if (sd_record_end(cx, &r) != SD_OK) {
            return SD_ERROR;
        }

        sd_recording_free(cx->device, r);
    }

    return SD_OK;
}


/* enqueues the next row of each picture, so many times */

static int
sd_batch_enqueue(sd_batch_t *b, sd_picture_t **p, int n, int times)
{
    int              i, samples;
    sd_context_t    *cx = b->cx;
    sd_recording_t  *r;

    samples = 0;

    for (i = 0; i < n; i++) {
        samples += p[i]->n;
    }

    samples = sd_batch_round(cx->device, samples, 2 * b->pictures);

    r = sd_can_record(cx->device)
        ? sd_batch_recording(b, p[0]->h, p[0]->w, samples) : NULL;

    sd_batch_fill(b->host, b->pictures, p, n, samples);
    sd_put(cx, b->device, b->host, sd_batch_tables_size(b->pictures));

    for (i = 0; i < times; i++) {
        if (r) {
            sd_replay(cx, r);
        } else {
            sd_batch_model(b->model, cx, b->device, b->pictures, samples,
                           p[0]->h, p[0]->w, NULL, NULL);
        }
    }

    return sd_wait(cx);
}


int
sd_batch_row(sd_batch_t *b, sd_picture_t **p, int n, const atomic_int *cancel,
    sd_error_t *err)
{
    int  i, rc;

    sd_context_reset(b->cx, err, cancel);

    rc = sd_batch_enqueue(b, p, n, 1);

    for (i = 0; i < n; i++) {
        if (rc == SD_OK) {
            sd_batch_advance(p[i]);
        } else {
            sd_batch_rewind(p[i]);
        }
    }

    return rc;
}


int
sd_batch_repeat(sd_batch_t *b, sd_picture_t **p, int n, int times,
    sd_error_t *err)
{
    sd_context_reset(b->cx, err, NULL);

    return sd_batch_enqueue(b, p, n, times);
}
