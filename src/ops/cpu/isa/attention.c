/*
 * Attention without the matrix of scores (Dao et al. 2022, Rabe and Staats
 * 2021): keys go by in blocks; a running maximum and sum of each query rescale
 * what has been added up.
 *
 * Everything lies on its side: a vector's lanes are queries.  So scores are
 * keys by queries, a product of rows of keys with a panel of 32 queries, and
 * they are themselves the panel that the transposed values are multiplied with.
 * Heads of any width fill vectors, and maxima and sums need no lane of another.
 *
 * First keys are copied, and values transposed, per sample and head.  A task is
 * then some panels of queries of one sample and head.
 *
 * Blocks of keys are always SD_KEYS long and in order, so sums do not depend on
 * anything but the shape.
 *
 * Maxima are rounded to whole powers of two, which makes rescaling exact and
 * rare, and saves operations in exp; see v_exp2_below().
 *
 * Floor: FMA units: for sixteen scores 2 d operations in the products and 13 in
 * maximum and exp, so heads of 40 cannot pass 0.86 of the FMA peak, and of 24
 * 0.79.  Reached, on one thread: heads of 24 0.7, of 40 0.75, of 80 0.8.
 */

#include "isa.h"
#include "../softmax.h"


#define SD_QUERIES  96
#define SD_KEYS     120         /* ten of AVX-512's tiles */


typedef struct {
    sd_tensor_t      q, k, v, o;
    int              heads, d;
    size_t           ksize, vsize;  /* floats a head */
    float           *kpack;         /* [keys][d] */
    float           *vpack;         /* [kblocks][d][SD_KEYS] */
    float            scale;
    int              causal;
    sd_tables_t      kv;
    int              k_at, v_at;
    int              lk;
    int              blocks;        /* of queries */
    int              kblocks;       /* of keys */
} sd_attend_t;


static void sd_attend_pack(void *data, int task, char *scratch);
static void sd_attend_task(void *data, int task, char *scratch);
static void sd_attend_weights(float *scores, int keys, int columns,
    float *maxima, float *sums, float *out, int d, float scale, int first);


/* a block of keys of one sample and head */

static void
sd_attend_pack(void *data, int task, char *scratch)
{
    int           j, n, head, block, from, keys, ld;
    float        *dst;
    const float  *src;
    sd_attend_t  *a = data;

    block = task % a->kblocks;
    task /= a->kblocks;
    n = task / a->heads;
    head = task % a->heads;
    from = block * SD_KEYS;
    keys = sd_min(SD_KEYS, a->lk - from);

    dst = a->kpack + task * a->ksize + (size_t) from * a->d;
    src = sd_cpu_keys(&a->k, &a->kv, a->k_at, n, from, &ld) + head * a->d;

    for (j = 0; j < keys; j++) {
        memcpy(dst, src, a->d * sizeof(float));
        src += ld;
        dst += a->d;
    }

    src = sd_cpu_keys(&a->v, &a->kv, a->v_at, n, from, &ld) + head * a->d;
    v_transpose(a->vpack + task * a->vsize + (size_t) block * a->d * SD_KEYS,
                SD_KEYS, src, ld, keys, a->d);
}


/* scores to weights, in place; [keys][columns], columns 16 or 32 */

static void
sd_attend_weights(float *scores, int keys, int columns, float *maxima,
    float *sums, float *out, int d, float scale, int first)
{
    int     i, j;
    v16     c, base, s, sum, other;
    float  *p;

    c = v_set(scale);

    for (i = 0; i < columns; i += SD_LANES) {
        p = scores + i;
        base = sd_softmax_block(p, keys, columns, maxima + i, sums + i, out + i,
                                d, c, first, &sum);
        other = v_set(0);

        for (j = 0; j + 2 <= keys; j += 2) {
            s = v_exp2_below(v_load(p), c, base);
            v_store(p, s);
            sum = v_add(sum, s);

            s = v_exp2_below(v_load(p + columns), c, base);
            v_store(p + columns, s);
            other = v_add(other, s);

            p += 2 * columns;
        }

        if (j < keys) {
            s = v_exp2_below(v_load(p), c, base);
            v_store(p, s);
            sum = v_add(sum, s);
        }

        v_store(sums + i, v_add(sum, other));
    }
}


static void
sd_attend_task(void *data, int task, char *scratch)
{
    int           i, j, n, head, first, queries, block, from, keys, panel;
    int           count, columns;
    float        *scores, *maxima, *sums, *q, *out, *o, *qp, *op;
    const float  *kp, *vp;
    sd_attend_t  *a = data;

    n = task / (a->heads * a->blocks);
    head = task / a->blocks % a->heads;
    first = task % a->blocks * SD_QUERIES;
    queries = sd_min(SD_QUERIES, a->q.w - first);

    scores = (float *) scratch;
    maxima = scores + SD_KEYS * SD_PANEL;
    sums = maxima + SD_QUERIES;
    q = sums + SD_QUERIES;
    out = q + (size_t) SD_QUERIES * a->d;

    kp = a->kpack + ((size_t) n * a->heads + head) * a->ksize;
    vp = a->vpack + ((size_t) n * a->heads + head) * a->vsize;

    /* what a last panel lacks is of no consequence, but is a number */

    if (queries % SD_LANES) {
        memset(q, 0, (size_t) SD_QUERIES * a->d * sizeof(float));
    }

    for (panel = 0; panel < queries; panel += SD_PANEL) {
        count = sd_min(SD_PANEL, queries - panel);
        columns = sd_align(count, SD_LANES);

        v_transpose(q + (size_t) panel * a->d, columns,
                    (float *) a->q.data
                    + ((size_t) n * a->q.w + first + panel) * a->q.ld
                    + head * a->d, a->q.ld, count, a->d);
    }

    for (block = 0; block < a->kblocks; block++) {
        from = block * SD_KEYS;
        keys = sd_min(SD_KEYS, a->lk - from);

        for (panel = 0; panel < queries; panel += SD_PANEL) {
            count = sd_min(SD_PANEL, queries - panel);
            columns = sd_align(count, SD_LANES);

            if (a->causal && from > first + panel + count - 1) {
                continue;
            }

            qp = q + (size_t) panel * a->d;
            op = out + (size_t) panel * a->d;

            sd_isa(sd_gemm)(scores, columns, kp + (size_t) from * a->d, a->d,
                            qp, columns, keys, a->d, 0, NULL, 0);

            if (a->causal && from + keys - 1 > first + panel) {
                for (i = 0; i < keys; i++) {
                    for (j = 0; j < columns; j++) {
                        if (from + i > first + panel + j) {
                            scores[i * columns + j] = -INFINITY;
                        }
                    }
                }
            }

            sd_attend_weights(scores, keys, columns, maxima + panel,
                              sums + panel, op, a->d, a->scale, block == 0);

            sd_isa(sd_gemm)(op, columns, vp + (size_t) block * a->d * SD_KEYS,
                            SD_KEYS, scores, columns, a->d, keys, block != 0,
                            NULL, 0);
        }
    }

    for (panel = 0; panel < queries; panel += SD_PANEL) {
        count = sd_min(SD_PANEL, queries - panel);
        columns = sd_align(count, SD_LANES);

        op = out + (size_t) panel * a->d;

        for (j = 0; j < columns; j += SD_LANES) {
            for (i = 0; i < a->d; i++) {
                o = op + i * columns + j;
                v_store(o, v_div(v_load(o), v_load(sums + panel + j)));
            }
        }

        v_transpose((float *) a->o.data
                    + ((size_t) n * a->q.w + first + panel) * a->o.ld
                    + head * a->d, a->o.ld, op, columns, a->d, count);
    }
}


int
sd_isa(sd_attention)(sd_context_t *cx, sd_tensor_t o, const sd_attention_t *d)
{
    size_t       heads;
    sd_attend_t  a;
    sd_tensor_t  kpack, vpack;

    memset(&a, 0, sizeof(sd_attend_t));

    a.q = d->q;
    a.k = d->k;
    a.v = d->v;
    a.o = o;
    a.heads = d->heads;
    a.d = d->q.c / d->heads;
    a.scale = d->scale * 1.44269504f;
    a.causal = d->causal;
    a.kv = d->kv;
    a.k_at = d->k_at;
    a.v_at = d->v_at;
    a.lk = d->kv.columns ? d->kv.rows : d->k.w;

    a.blocks = (d->q.w + SD_QUERIES - 1) / SD_QUERIES;
    a.kblocks = (a.lk + SD_KEYS - 1) / SD_KEYS;
    a.ksize = (size_t) a.lk * a.d;
    a.vsize = (size_t) a.kblocks * SD_KEYS * a.d;

    if ((SD_KEYS * SD_PANEL + SD_QUERIES * (2 + 2 * (size_t) a.d))
        * sizeof(float) > SD_SCRATCH)
    {
        return sd_fail(cx->err, "attention: heads of %d are too wide", a.d);
    }

    heads = (size_t) d->q.n * d->heads;

    kpack = sd_alloc_type(cx, SD_F32, d->q.n, d->heads, a.lk, a.d);
    vpack = sd_alloc_type(cx, SD_F32, d->q.n, d->heads, a.kblocks * SD_KEYS,
                          a.d);

    if (!cx->plan && cx->status == SD_OK) {
        a.kpack = kpack.data;
        a.vpack = vpack.data;

        (void) (sd_pool_run(cx, sd_attend_pack, &a, (int) heads * a.kblocks)
                == SD_OK
                && sd_pool_run(cx, sd_attend_task, &a,
                               d->q.n * a.heads * a.blocks) == SD_OK);
    }

    sd_free(cx, &vpack);
    sd_free(cx, &kpack);

    return cx->status;
}
