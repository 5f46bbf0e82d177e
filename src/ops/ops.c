/*
 * The checking wrapper around a backend.
 *
 * DESIGN
 *
 * Shapes are verified here, once for all backends, in plan mode as well as in a
 * real run; a backend may rely on them.  The first failure of a context stays:
 * later operations and allocations return at once, so a model's code needs no
 * error path of its own.
 */

#include "check.h"


static int sd_done(sd_context_t *cx, int rc);


static int
sd_done(sd_context_t *cx, int rc)
{
    if (rc != SD_OK && cx->status == SD_OK) {
        cx->status = rc;
    }

    return cx->status;
}


/* checks that several operations share */

static int
sd_is(sd_context_t *cx, const char *op, const char *what, const sd_tensor_t *t,
    sd_type_t type, int n, int h, int w, int c)
{
    if (sd_empty(t)) {
        return sd_refuse(cx, op, "%s is empty", what);
    }

    if (t->type != type) {
        return sd_refuse(cx, op, "%s has type %d, must be %d", what,
                         (int) t->type, (int) type);
    }

    if (t->n != n || t->h != h || t->w != w || t->c != c) {
        return sd_refuse(cx, op,
                         "%s is [%d, %d, %d, %d], must be [%d, %d, %d, %d]",
                         what, t->n, t->h, t->w, t->c, n, h, w, c);
    }

    if (t->ld != t->c) {
        return sd_refuse(cx, op, "%s is a view", what);
    }

    return SD_OK;
}


static int
sd_is_weight(sd_context_t *cx, const char *op, const sd_weight_t *w,
    sd_weight_kind_t kind)
{
    if (w == NULL || w->kind != kind) {
        return sd_refuse(cx, op, "not a weight of its kind");
    }

    if (sd_weight_check(w, cx->err) != SD_OK) {
        cx->status = SD_ERROR;
        return SD_ERROR;
    }

    if (!cx->plan && w->data == NULL) {
        return sd_refuse(cx, op, "weight is not loaded");
    }

    return SD_OK;
}


#define sd_enter(cx)                                                          \
    if ((cx)->status != SD_OK) {                                              \
        return (cx)->status;                                                  \
    }                                                                         \
                                                                              \
    if ((cx)->cancel != NULL                                                  \
        && atomic_load_explicit((cx)->cancel, memory_order_relaxed))          \
    {                                                                         \
        return (cx)->status = SD_CANCELLED;                                   \
    }


#define sd_act_type(cx)  (cx)->device->ops->type


/* transfers */

int
sd_upload(sd_context_t *cx, sd_tensor_t t, const float *src)
{
    sd_enter(cx);

    if (sd_empty(&t) || t.ld != t.c || sd_type_size(t.type) < 2) {
        return sd_refuse(cx, "upload", "not a tensor of numbers");
    }

    return cx->plan ? SD_OK : sd_done(cx, cx->device->ops->upload(cx, t, src));
}


int
sd_download(sd_context_t *cx, float *dst, sd_tensor_t t)
{
    sd_enter(cx);

    if (sd_empty(&t) || t.ld != t.c || sd_type_size(t.type) < 2) {
        return sd_refuse(cx, "download", "not a tensor of numbers");
    }

    return cx->plan ? SD_OK
                    : sd_done(cx, cx->device->ops->download(cx, dst, t));
}


int
sd_download_u8(sd_context_t *cx, uint8_t *dst, sd_tensor_t t)
{
    sd_enter(cx);

    if (sd_empty(&t) || t.ld != t.c || t.type != SD_U8) {
        return sd_refuse(cx, "download_u8", "not a tensor of bytes");
    }

    return cx->plan ? SD_OK
                    : sd_done(cx, cx->device->ops->download_u8(cx, dst, t));
}


int
sd_put(sd_context_t *cx, void *dst, const void *src, size_t size)
{
    sd_enter(cx);

    return cx->plan ? SD_OK
                    : sd_done(cx, cx->device->ops->put(cx, dst, src, size));
}


int
sd_copy(sd_context_t *cx, void *dst, const void *src, size_t size)
{
    sd_enter(cx);

    return cx->plan ? SD_OK
                    : sd_done(cx, cx->device->ops->copy(cx, dst, src, size));
}


int
sd_wait(sd_context_t *cx)
{
    /* also after an error: what runs yet must not find its memory gone */

    if (cx->plan || cx->device->ops->wait == NULL) {
        return cx->status;
    }

    return sd_done(cx, cx->device->ops->wait(cx));
}


/* recordings */

int
sd_record(sd_context_t *cx)
{
    sd_enter(cx);

    return sd_done(cx, cx->device->ops->record(cx));
}


int
sd_record_end(sd_context_t *cx, sd_recording_t **r)
{
    /* also after an error: a stream must not go on recording */

    *r = NULL;

    (void) sd_done(cx, cx->device->ops->record_end(cx, r));

    if (cx->status != SD_OK) {
        sd_recording_free(cx->device, *r);
        *r = NULL;
    }

    return cx->status;
}


int
sd_replay(sd_context_t *cx, sd_recording_t *r)
{
    sd_enter(cx);

    return sd_done(cx, cx->device->ops->replay(cx, r));
}


void
sd_recording_free(sd_device_t *dev, sd_recording_t *r)
{
    if (r != NULL) {
        dev->ops->recording_free(dev, r);
    }
}


/* the operations, in the header's order */

int
sd_conv2d(sd_context_t *cx, sd_tensor_t y, const sd_conv2d_t *d)
{
    int                 h, w;
    const char         *op = "conv2d";
    const sd_tensor_t  *x = &d->x;

    sd_enter(cx);

    if (sd_is_weight(cx, op, d->w, SD_WEIGHT_CONV) != SD_OK
        || sd_is(cx, op, "x", x, sd_act_type(cx), x->n, x->h, x->w, x->c)
           != SD_OK)
    {
        return SD_ERROR;
    }

    if (!sd_empty(&d->x2)
        && sd_is(cx, op, "x2", &d->x2, x->type, x->n, x->h, x->w, d->x2.c)
           != SD_OK)
    {
        return SD_ERROR;
    }

    if (x->c + (sd_empty(&d->x2) ? 0 : d->x2.c) != d->w->c) {
        return sd_refuse(cx, op, "x has %d + %d channels, the weight %d",
                         x->c, sd_empty(&d->x2) ? 0 : d->x2.c, d->w->c);
    }

    if (d->w->upsample) {
        h = 2 * x->h - (y.h == 2 * x->h - 1);
        w = 2 * x->w - (y.w == 2 * x->w - 1);

    } else {
        h = (x->h - 1) / d->w->stride + 1;
        w = (x->w - 1) / d->w->stride + 1;
    }

    if (sd_is(cx, op, "y", &y, x->type, x->n, h, w, d->w->k) != SD_OK) {
        return SD_ERROR;
    }

    if (!sd_empty(&d->residual)
        && sd_is(cx, op, "residual", &d->residual, y.type, y.n, y.h, y.w, y.c)
           != SD_OK)
    {
        return SD_ERROR;
    }

    return sd_done(cx, cx->device->ops->conv2d(cx, y, d));
}


int
sd_group_norm(sd_context_t *cx, sd_tensor_t y, const sd_group_norm_t *d)
{
    int                 c;
    const char         *op = "group_norm";
    const sd_tensor_t  *x = &d->x;
    const sd_tables_t  *a = &d->addend;

    sd_enter(cx);

    if (sd_is_weight(cx, op, d->w, SD_WEIGHT_NORM) != SD_OK
        || sd_is(cx, op, "x", x, sd_act_type(cx), x->n, x->h, x->w, x->c)
           != SD_OK)
    {
        return SD_ERROR;
    }

    c = x->c;

    if (!sd_empty(&d->x2)) {
        c += d->x2.c;

        if (sd_is(cx, op, "x2", &d->x2, x->type, x->n, x->h, x->w, d->x2.c)
            != SD_OK)
        {
            return SD_ERROR;
        }
    }

    if (sd_is(cx, op, "y", &y, x->type, x->n, x->h, x->w, c) != SD_OK) {
        return SD_ERROR;
    }

    if (c != d->w->k) {
        return sd_refuse(cx, op, "%d channels, the weight has %d", c, d->w->k);
    }

    if (d->groups <= 0 || c % d->groups) {
        return sd_refuse(cx, op, "%d channels in %d groups", c, d->groups);
    }

    if (!(d->eps >= 0)) {
        return sd_refuse(cx, op, "bad eps");
    }

    if (a->columns) {
        if (a->rows != 1 || d->addend_at < 0 || c > a->columns - d->addend_at) {
            return sd_refuse(cx, op, "columns %d..%d of addends of %d",
                             d->addend_at, d->addend_at + c, a->columns);
        }

        if (!cx->plan && a->at == NULL) {
            return sd_refuse(cx, op, "addends without their places");
        }
    }

    return sd_done(cx, cx->device->ops->group_norm(cx, y, d));
}


int
sd_linear(sd_context_t *cx, sd_tensor_t y, const sd_linear_t *d)
{
    int                 k;
    const char         *op = "linear";
    const sd_tensor_t  *x = &d->x;

    sd_enter(cx);

    if (sd_is_weight(cx, op, d->w, SD_WEIGHT_LINEAR) != SD_OK
        || sd_is(cx, op, "x", x, sd_act_type(cx), x->n, x->h, x->w, x->c)
           != SD_OK)
    {
        return SD_ERROR;
    }

    if (x->c != d->w->c) {
        return sd_refuse(cx, op, "x has %d channels, the weight %d", x->c,
                         d->w->c);
    }

    if ((d->act == SD_ACT_GEGLU) != (d->w->geglu != 0)) {
        return sd_refuse(cx, op, "geglu must be said of weight and operation");
    }

    k = d->w->geglu ? d->w->k / 2 : d->w->k;

    if (sd_is(cx, op, "y", &y, y.type == SD_F32 ? SD_F32 : x->type, x->n, x->h,
              x->w, k) != SD_OK)
    {
        return SD_ERROR;
    }

    if (y.type != x->type
        && (d->act != SD_ACT_NONE || !sd_empty(&d->residual)))
    {
        return sd_refuse(cx, op, "F32 results go with bias alone");
    }

    if (!sd_empty(&d->residual)
        && sd_is(cx, op, "residual", &d->residual, y.type, y.n, y.h, y.w, y.c)
           != SD_OK)
    {
        return SD_ERROR;
    }

    return sd_done(cx, cx->device->ops->linear(cx, y, d));
}


int
sd_layer_norm(sd_context_t *cx, sd_tensor_t y, const sd_layer_norm_t *d)
{
    const char         *op = "layer_norm";
    const sd_tensor_t  *x = &d->x;

    sd_enter(cx);

    if (sd_is_weight(cx, op, d->w, SD_WEIGHT_NORM) != SD_OK
        || sd_is(cx, op, "x", x, sd_act_type(cx), x->n, x->h, x->w, d->w->k)
           != SD_OK
        || sd_is(cx, op, "y", &y, x->type, x->n, x->h, x->w, x->c) != SD_OK)
    {
        return SD_ERROR;
    }

    if (!(d->eps >= 0)) {
        return sd_refuse(cx, op, "bad eps");
    }

    return sd_done(cx, cx->device->ops->layer_norm(cx, y, d));
}


static int
sd_is_view(sd_context_t *cx, const char *op, const char *what,
    const sd_tensor_t *t, int n, int l, int c)
{
    if (sd_empty(t) || t->type != sd_act_type(cx)) {
        return sd_refuse(cx, op, "%s is empty or of another type", what);
    }

    if (t->n != n || t->h != 1 || t->w != l || t->c != c || t->ld < t->c) {
        return sd_refuse(cx, op, "%s is [%d, %d, %d, %d], must be "
                         "[%d, 1, %d, %d]", what, t->n, t->h, t->w, t->c,
                         n, l, c);
    }

    return SD_OK;
}


/* k and v: tensors, or columns of tables */

static int
sd_is_kv(sd_context_t *cx, const char *op, const sd_attention_t *d)
{
    const sd_tables_t  *t = &d->kv;

    if (t->columns == 0) {
        if (sd_is_view(cx, op, "k", &d->k, d->q.n, d->k.w, d->q.c) != SD_OK
            || sd_is_view(cx, op, "v", &d->v, d->q.n, d->k.w, d->q.c) != SD_OK)
        {
            return SD_ERROR;
        }

        return SD_OK;
    }

    if (!sd_empty(&d->k) || !sd_empty(&d->v) || t->rows <= 0
        || d->k_at < 0 || d->q.c > t->columns - d->k_at
        || d->v_at < 0 || d->q.c > t->columns - d->v_at)
    {
        return sd_refuse(cx, op, "columns %d.. and %d.. of tables [%d, %d]",
                         d->k_at, d->v_at, t->rows, t->columns);
    }

    if (!cx->plan && t->at == NULL) {
        return sd_refuse(cx, op, "tables without their places");
    }

    return SD_OK;
}


int
sd_attention(sd_context_t *cx, sd_tensor_t o, const sd_attention_t *d)
{
    int                 lk;
    const char         *op = "attention";
    const sd_tensor_t  *q = &d->q;

    sd_enter(cx);

    if (d->heads <= 0 || q->c <= 0 || q->c % d->heads) {
        return sd_refuse(cx, op, "%d channels in %d heads", q->c, d->heads);
    }

    if (sd_is_view(cx, op, "q", q, q->n, q->w, q->c) != SD_OK
        || sd_is(cx, op, "o", &o, q->type, q->n, 1, q->w, q->c) != SD_OK
        || sd_is_kv(cx, op, d) != SD_OK)
    {
        return SD_ERROR;
    }

    if (!(d->scale > 0)) {
        return sd_refuse(cx, op, "the scale must be positive");
    }

    lk = d->kv.columns ? d->kv.rows : d->k.w;

    if (d->causal && q->w != lk) {
        return sd_refuse(cx, op, "causal over %d queries and %d keys", q->w,
                         lk);
    }

    return sd_done(cx, cx->device->ops->attention(cx, o, d));
}


int
sd_embed(sd_context_t *cx, sd_tensor_t y, const sd_embed_t *d)
{
    int          i;
    const char  *op = "embed";

    sd_enter(cx);

    if (sd_is_weight(cx, op, d->table, SD_WEIGHT_TABLE) != SD_OK
        || sd_is_weight(cx, op, d->position, SD_WEIGHT_TABLE) != SD_OK
        || sd_is(cx, op, "y", &y, sd_act_type(cx), y.n, 1, y.w, d->table->c)
           != SD_OK)
    {
        return SD_ERROR;
    }

    if (d->position->c != y.c || d->position->k < y.w) {
        return sd_refuse(cx, op, "positions [%d, %d] for [%d, %d]",
                         d->position->k, d->position->c, y.w, y.c);
    }

    if (cx->plan) {
        return SD_OK;
    }

    for (i = 0; i < y.n * y.w; i++) {
        if (d->ids[i] < 0 || d->ids[i] >= d->table->k) {
            return sd_refuse(cx, op, "id %d of a table of %d", (int) d->ids[i],
                             d->table->k);
        }
    }

    return sd_done(cx, cx->device->ops->embed(cx, y, d));
}


int
sd_scale_input(sd_context_t *cx, sd_tensor_t y, const sd_slot_t *slots, int n)
{
    sd_enter(cx);

    if (sd_is(cx, "scale_input", "y", &y, sd_act_type(cx), y.n, y.h, y.w, y.c)
        != SD_OK)
    {
        return SD_ERROR;
    }

    return sd_done(cx, cx->device->ops->scale_input(cx, y, slots, n));
}


int
sd_sampler_step(sd_context_t *cx, sd_tensor_t out, const sd_slot_t *slots,
    int n)
{
    sd_enter(cx);

    if (sd_is(cx, "sampler_step", "out", &out, sd_act_type(cx), out.n, out.h,
              out.w, out.c)
        != SD_OK)
    {
        return SD_ERROR;
    }

    return sd_done(cx, cx->device->ops->sampler_step(cx, out, slots, n));
}


int
sd_noise(sd_context_t *cx, sd_tensor_t x, const uint64_t *seeds, uint32_t draw,
    float scale)
{
    sd_enter(cx);

    if (sd_is(cx, "noise", "x", &x, SD_F32, x.n, x.h, x.w, x.c) != SD_OK) {
        return SD_ERROR;
    }

    return sd_done(cx, cx->device->ops->noise(cx, x, seeds, draw, scale));
}


int
sd_preview_rgb(sd_context_t *cx, sd_tensor_t y, sd_tensor_t x,
    const float *factors, const float *bias)
{
    const char  *op = "preview_rgb";

    sd_enter(cx);

    if (sd_is(cx, op, "x", &x, SD_F32, x.n, x.h, x.w, x.c) != SD_OK
        || sd_is(cx, op, "y", &y, SD_U8, x.n, x.h, x.w, 3) != SD_OK)
    {
        return SD_ERROR;
    }

    return sd_done(cx, cx->device->ops->preview_rgb(cx, y, x, factors, bias));
}


int
sd_image_rgb8(sd_context_t *cx, sd_tensor_t y, sd_tensor_t x)
{
    const char  *op = "image_rgb8";

    sd_enter(cx);

    if (sd_is(cx, op, "x", &x, sd_act_type(cx), x.n, x.h, x.w, 3) != SD_OK
        || sd_is(cx, op, "y", &y, SD_U8, x.n, x.h, x.w, 3) != SD_OK)
    {
        return SD_ERROR;
    }

    return sd_done(cx, cx->device->ops->image_rgb8(cx, y, x));
}


int
sd_scale(sd_context_t *cx, sd_tensor_t y, sd_tensor_t x, float scale)
{
    const char  *op = "scale";

    sd_enter(cx);

    if (x.type != SD_F32 && x.type != sd_act_type(cx)) {
        return sd_refuse(cx, op, "x has type %d", (int) x.type);
    }

    if (sd_is(cx, op, "x", &x, x.type, x.n, x.h, x.w, x.c) != SD_OK
        || sd_is(cx, op, "y", &y, sd_act_type(cx), x.n, x.h, x.w, x.c) != SD_OK)
    {
        return SD_ERROR;
    }

    return sd_done(cx, cx->device->ops->scale(cx, y, x, scale));
}
