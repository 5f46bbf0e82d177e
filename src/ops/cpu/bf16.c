/*
 * The bf16 precision: operations as tasks, for any machine; see bf16.h.
 */

#include "bf16.h"


#if defined(__x86_64__)

static int sd_bf16_run(sd_context_t *cx, sd_bf16_product_t *p,
    const sd_weight_t *w, sd_tensor_t y, sd_tensor_t x, sd_tensor_t x2,
    sd_tensor_t residual);


/* fills in what convolutions and linear have in common, and runs */

static int
sd_bf16_run(sd_context_t *cx, sd_bf16_product_t *p, const sd_weight_t *w,
    sd_tensor_t y, sd_tensor_t x, sd_tensor_t x2, sd_tensor_t residual)
{
    int          n;
    sd_packed_t  packed;
    sd_tensor_t  rounded;

    p->in = x.n * x.h * x.w;
    p->channels = sd_align(w->c, SD_BF16_K);
    p->ld = p->channels + (p->channels % 512 ? 0 : SD_BF16_SKEW);

    rounded = sd_alloc_type(cx, SD_BF16, 1, 1, sd_align(p->in, SD_PANEL),
                            (int) p->ld);

    if (cx->plan || cx->status != SD_OK) {
        sd_free(cx, &rounded);
        return cx->status;
    }

    sd_cpu_packed(cx->device, w, &packed);

    p->src[0] = x.data;
    p->c[0] = x.c;

    if (!sd_empty(&x2)) {
        p->src[1] = x2.data;
        p->c[1] = x2.c;
    }

    p->x = rounded.data;
    p->taps = packed.taps;
    p->bias = (float *) w->data + packed.bias;
    p->matrix = (sd_bf16_t *) ((float *) w->data + packed.matrix);
    p->panels = packed.panels;
    p->outputs = y.c;
    p->rows = y.n * y.h * y.w;
    p->y = y.data;
    p->residual = sd_empty(&residual) ? NULL : residual.data;
    p->amx = ((sd_cpu_t *) cx->device->impl)->amx;

    n = (p->rows + SD_BF16_ROWS - 1) / SD_BF16_ROWS;
    p->block = sd_align((p->rows + n - 1) / n, SD_PANEL);
    p->blocks = (p->rows + p->block - 1) / p->block;
    p->groups = (p->panels + SD_BF16_GROUP - 1) / SD_BF16_GROUP;

    if (p->blocks * p->groups < 8) {
        p->groups = sd_min(p->panels, (8 + p->blocks - 1) / p->blocks);
    }

    (void) (sd_pool_run(cx, sd_bf16_round, p,
                        (p->in + SD_BF16_CHUNK - 1) / SD_BF16_CHUNK) == SD_OK
            && sd_pool_run(cx, sd_bf16_product, p, p->blocks * p->groups)
               == SD_OK);

    sd_free(cx, &rounded);

    return cx->status;
}


static int
sd_bf16_conv2d(sd_context_t *cx, sd_tensor_t y, const sd_conv2d_t *d)
{
    sd_packed_t        packed;
    sd_bf16_product_t  p;

    sd_cpu_packed(cx->device, d->w, &packed);

    if (!packed.bf16) {
        return (cx->plan ? &sd_kernels_baseline : &sd_kernels_avx512)
               ->conv2d(cx, y, d);
    }

    memset(&p, 0, sizeof(sd_bf16_product_t));

    p.up = d->w->upsample;
    p.sh = d->x.h;
    p.sw = d->x.w;
    p.h = p.up ? y.h : d->x.h;
    p.w = p.up ? y.w : d->x.w;
    p.oh = y.h;
    p.ow = y.w;
    p.r = d->w->r;
    p.stride = d->w->stride;
    p.gather = p.r > 1 || p.stride > 1;
    p.act = SD_ACT_NONE;

    return sd_bf16_run(cx, &p, d->w, y, d->x, d->x2, d->residual);
}


static int
sd_bf16_linear(sd_context_t *cx, sd_tensor_t y, const sd_linear_t *d)
{
    sd_tensor_t        none;
    sd_bf16_product_t  p;

    memset(&p, 0, sizeof(sd_bf16_product_t));
    memset(&none, 0, sizeof(sd_tensor_t));

    p.act = d->act;

    return sd_bf16_run(cx, &p, d->w, y, d->x, none, d->residual);
}


static int
sd_bf16_attention(sd_context_t *cx, sd_tensor_t o, const sd_attention_t *d)
{
    int               lk;
    sd_tensor_t       kpack, vpack;
    sd_bf16_attend_t  a;

    memset(&a, 0, sizeof(sd_bf16_attend_t));

    a.lk = d->kv.columns ? d->kv.rows : d->k.w;
    lk = sd_align(a.lk, SD_BF16_K);

    a.q = d->q;
    a.k = d->k;
    a.v = d->v;
    a.o = o;
    a.heads = d->heads;
    a.d = d->q.c / d->heads;
    a.dk = sd_align(a.d, SD_BF16_K);
    a.scale = d->scale * 1.44269504f;
    a.causal = d->causal;
    a.kv = d->kv;
    a.k_at = d->k_at;
    a.v_at = d->v_at;
    a.blocks = (d->q.w + SD_BF16_QUERIES - 1) / SD_BF16_QUERIES;
    a.kblocks = (a.lk + SD_BF16_KEYS - 1) / SD_BF16_KEYS;
    a.ksize = (size_t) lk * a.dk;
    a.vsize = (size_t) a.kblocks * SD_BF16_KEYS * a.dk;

    if (a.dk > 4096) {
        return sd_fail(cx->err, "attention: heads of %d are too wide", a.d);
    }

    kpack = sd_alloc_type(cx, SD_BF16, d->q.n, d->heads, lk, a.dk);
    vpack = sd_alloc_type(cx, SD_BF16, d->q.n, d->heads,
                          a.kblocks * SD_BF16_KEYS, a.dk);

    if (!cx->plan && cx->status == SD_OK) {
        a.kpack = kpack.data;
        a.vpack = vpack.data;
        a.amx = ((sd_cpu_t *) cx->device->impl)->amx;

        (void) (sd_pool_run(cx, sd_bf16_attend_pack, &a,
                            d->q.n * d->heads * a.kblocks) == SD_OK
                && sd_pool_run(cx, sd_bf16_attend, &a,
                               d->q.n * a.heads * a.blocks) == SD_OK);
    }

    sd_free(cx, &vpack);
    sd_free(cx, &kpack);

    return cx->status;
}


/* norms are the fp32 ones; plan mode takes those of any machine */

static int
sd_bf16_group_norm(sd_context_t *cx, sd_tensor_t y, const sd_group_norm_t *d)
{
    return (cx->plan ? &sd_kernels_baseline : &sd_kernels_avx512)
           ->group_norm(cx, y, d);
}


static int
sd_bf16_layer_norm(sd_context_t *cx, sd_tensor_t y, const sd_layer_norm_t *d)
{
    return (cx->plan ? &sd_kernels_baseline : &sd_kernels_avx512)
           ->layer_norm(cx, y, d);
}


static double
sd_bf16_peak(long n)
{
    return sd_kernels_avx512.peak(n);
}


const sd_kernels_t  sd_kernels_bf16 = {
    "avx512",
    "cpu-bf16",
    sd_bf16_conv2d,
    sd_bf16_group_norm,
    sd_bf16_linear,
    sd_bf16_layer_norm,
    sd_bf16_attention,
    sd_bf16_peak
};

#endif
