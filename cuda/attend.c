/*
 * Attention: our own kernel up to heads of SD_CUDA_HEAD, two matrix products
 * with a softmax between beyond (the VAE's one head of 512).
 */

#include "cuda.h"


/* scores of some queries at a time: s = scale q k^T, softmax, o = s v */

static int
sd_attend_products(sd_context_t *cx, sd_tensor_t o, const sd_attention_t *d,
    sd_tensor_t scores)
{
    int              i, head, dim, rows, from;
    cudaError_t      rc;
    sd_cuda_gemm_t   g = { 0 };
    const sd_half_t *q, *k, *v;
    sd_half_t       *out;

    dim = d->q.c / d->heads;

    for (i = 0; i < d->q.n; i++) {
        for (head = 0; head < d->heads; head++) {

            q = (sd_half_t *) d->q.data + (size_t) i * d->q.w * d->q.ld
                + head * dim;
            k = (sd_half_t *) d->k.data + (size_t) i * d->k.w * d->k.ld
                + head * dim;
            v = (sd_half_t *) d->v.data + (size_t) i * d->v.w * d->v.ld
                + head * dim;
            out = (sd_half_t *) o.data + (size_t) i * o.w * o.c + head * dim;

            for (from = 0; from < d->q.w; from += rows) {
                rows = d->q.w - from < scores.w ? d->q.w - from : scores.w;

                g.y = scores.data;
                g.x = q + (size_t) from * d->q.ld;
                g.w = k;
                g.rows = rows;
                g.cols = d->k.w;
                g.depth = dim;
                g.ldx = d->q.ld;
                g.ldw = d->k.ld;
                g.ldy = scores.c;
                g.w_by_depth = 0;
                g.alpha = d->scale;

                if (sd_cuda_gemm(cx, &g) != SD_OK) {
                    return SD_ERROR;
                }

                rc = sd_cuda_softmax(sd_cuda_stream(cx), scores.data, rows,
                                     d->k.w, scores.c);

                if (sd_cuda_done(cx, rc, "softmax") != SD_OK) {
                    return SD_ERROR;
                }

                g.y = out + (size_t) from * o.c;
                g.x = scores.data;
                g.w = v;
                g.cols = dim;
                g.depth = d->k.w;
                g.ldx = scores.c;
                g.ldw = d->v.ld;
                g.ldy = o.c;
                g.w_by_depth = 1;
                g.alpha = 1;

                if (sd_cuda_gemm(cx, &g) != SD_OK) {
                    return SD_ERROR;
                }
            }
        }
    }

    return SD_OK;
}


int
sd_cuda_attend(sd_context_t *cx, sd_tensor_t o, const sd_attention_t *d)
{
    int                   rc;
    sd_tensor_t           scores;
    sd_cuda_attention_t   a = { 0 };
    sd_cuda_context_t    *c = sd_cuda_of(cx);

    scores = sd_cuda_attention_scratch(cx, d);

    if (cx->plan || cx->status != SD_OK) {
        sd_free(cx, &scores);
        return cx->status;
    }

    if (!sd_empty(&scores)) {
        if (d->causal || d->kv.columns) {
            rc = sd_fail(cx->err, "attention: heads of %d are too wide",
                         d->q.c / d->heads);
        } else {
            rc = sd_attend_products(cx, o, d, scores);
        }

        sd_free(cx, &scores);

        return rc;
    }

    a.o = o.data;
    a.q = d->q.data;
    a.n = d->q.n;
    a.heads = d->heads;
    a.d = d->q.c / d->heads;
    a.lq = d->q.w;
    a.ldq = d->q.ld;
    a.scale = d->scale;
    a.causal = d->causal;

    if (d->kv.columns) {
        a.kv = (const sd_half_t *const *) d->kv.at;
        a.k_at = d->k_at;
        a.v_at = d->v_at;
        a.lk = d->kv.rows;
        a.ldk = d->kv.columns;

    } else {
        a.k = d->k.data;
        a.v = d->v.data;
        a.lk = d->k.w;
        a.ldk = d->k.ld;
    }

    return sd_cuda_done(cx, sd_cuda_attention(c->stream, &c->device->chip,
                                              &a), "attention");
}
