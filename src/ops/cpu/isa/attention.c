/*
 * Attention without the matrix of scores (Dao et al. 2022, Rabe and Staats
 * 2021): keys go by in blocks; a running maximum and sum of each query rescale
 * what has been added up.
 *
 * First keys and values are packed into panels, per sample and head: keys
 * transposed, [d][32 keys], values [keys][32 of d].  A task is then a block of
 * queries of one sample and head: scores of a block of keys by the tile
 * product, exp in place, and the tile product with the values.
 *
 * Blocks of keys are always SD_KEYS long and in order, so sums do not depend on
 * anything but the shape.
 *
 * Floor: FMA units, and sixteen exps in about ten of their cycles.  Heads of 40
 * at 64x64 reach 0.67 of the FMA peak, heads of 80 0.73, of 512 0.76; what is
 * missing is mostly exp.
 */

#include "isa.h"


#define SD_QUERIES  96
#define SD_KEYS     512
#define SD_LD       (SD_KEYS + SD_LANES)    /* rows apart in the cache's sets */


typedef struct {
    sd_tensor_t      q, k, v, o;
    int              heads, d;
    int              kpanels;       /* of keys */
    int              dcolumns;      /* of values, padded */
    size_t           ksize, vsize;  /* floats a head */
    float           *kpack, *vpack;
    float            scale;
    int              causal;
    sd_tables_t      kv;
    int              k_at, v_at;
    int              lk;
    int              blocks;        /* of queries */
    int              kblocks;       /* of keys */
} sd_attend_t;


static int sd_attend_width(int columns);
static void sd_attend_pack(void *data, int task, char *scratch);
static void sd_attend_task(void *data, int task, char *scratch);


/* of the next panel of values: 48 leaves no panel of 16 but the only one */

static int
sd_attend_width(int columns)
{
    if (columns == 48 || (columns % SD_PANEL && columns > SD_PANEL)) {
        return 48;
    }

    return sd_min(columns, SD_PANEL);
}


/* a block of keys of one sample and head */

static void
sd_attend_pack(void *data, int task, char *scratch)
{
    int           i, j, n, head, lk, from, last, columns, ld;
    float        *dst;
    const float  *src;
    sd_attend_t  *a = data;

    from = task % a->kblocks * SD_KEYS;
    task /= a->kblocks;
    n = task / a->heads;
    head = task % a->heads;
    lk = a->lk;
    last = sd_min(from + SD_KEYS, lk);

    dst = a->kpack + task * a->ksize + (size_t) from * a->d;
    src = sd_cpu_keys(&a->k, &a->kv, a->k_at, n, from, &ld) + head * a->d;

    for (j = from; j < sd_align(last, SD_PANEL); j++) {
        for (i = 0; i < a->d; i++) {
            dst[i * SD_PANEL] = j < last ? src[i] : 0;
        }

        src += j < last ? ld : 0;
        dst += (j + 1) % SD_PANEL ? 1 : (a->d - 1) * SD_PANEL + 1;
    }

    for (i = 0; i < a->dcolumns; i += columns) {
        columns = sd_attend_width(a->dcolumns - i);

        dst = a->vpack + task * a->vsize + (size_t) i * lk
              + (size_t) from * columns;
        src = sd_cpu_keys(&a->v, &a->kv, a->v_at, n, from, &ld)
              + head * a->d + i;

        for (j = from; j < last; j++) {
            memset(dst, 0, columns * sizeof(float));
            memcpy(dst, src, sd_min(columns, a->d - i) * sizeof(float));

            src += ld;
            dst += columns;
        }
    }
}


static void
sd_attend_task(void *data, int task, char *scratch)
{
    int           i, j, n, head, first, queries, keys, from, valid, columns;
    v16           s, sum, c, top;
    float        *scores, *out, *row, *maxima, *sums, old, new, factor;
    float        *dst;
    const float  *q, *kp, *vp;
    sd_attend_t  *a = data;

    n = task / (a->heads * a->blocks);
    head = task / a->blocks % a->heads;
    first = task % a->blocks * SD_QUERIES;
    queries = sd_min(SD_QUERIES, a->q.w - first);

    scores = (float *) scratch;
    maxima = scores + SD_QUERIES * SD_LD;
    sums = maxima + SD_QUERIES;
    out = sums + SD_QUERIES * SD_LANES;

    q = (float *) a->q.data + ((size_t) n * a->q.w + first) * a->q.ld
        + head * a->d;

    kp = a->kpack + ((size_t) n * a->heads + head) * a->ksize;
    vp = a->vpack + ((size_t) n * a->heads + head) * a->vsize;

    for (from = 0; from < a->lk; from += SD_KEYS) {

        if (a->causal && from > first + queries - 1) {
            break;
        }

        keys = sd_min(SD_KEYS, a->lk - from);

        for (j = 0; j < keys; j += SD_PANEL) {
            sd_isa(sd_gemm)(scores + j, SD_LD, q, a->q.ld,
                            kp + (size_t) (from + j) * a->d, SD_PANEL, queries,
                            a->d, 0, NULL, 0);
        }

        for (i = 0; i < queries; i++) {
            row = scores + i * SD_LD;

            valid = keys;

            if (a->causal) {
                valid = sd_min(keys, first + i + 1 - from);
            }

            if (valid <= 0) {
                memset(row, 0, keys * sizeof(float));
                continue;
            }

            /* what is beyond the last key weighs nothing */

            for (j = valid; j < sd_align(valid, SD_LANES); j++) {
                row[j] = -INFINITY;
            }

            /* in the scale of the exponents of two; the scale is positive */

            old = from ? maxima[i] : -INFINITY;
            new = v_greatest(row, valid) * a->scale;
            new = new > old ? new : old;
            maxima[i] = new;

            top = v_set(-new);
            c = v_set(a->scale);
            sum = v_set(0);

            for (j = 0; j < valid; j += SD_LANES) {
                s = v_exp2_negative(v_fma(v_load(row + j), c, top));
                v_store(row + j, s);
                sum = v_add(sum, s);
            }

            for (j = sd_align(valid, SD_LANES); j < keys; j++) {
                row[j] = 0;
            }

            dst = sums + i * SD_LANES;

            if (from == 0) {
                v_store(dst, sum);
                continue;
            }

            v_storen(&factor, v_exp2_negative(v_set(old - new)), 1);

            v_store(dst, v_fma(v_load(dst), v_set(factor), sum));

            if (factor == 1.0f) {
                continue;
            }

            for (j = 0; j < a->dcolumns; j += SD_LANES) {
                dst = out + (size_t) i * a->dcolumns + j;
                v_store(dst, v_mul(v_load(dst), v_set(factor)));
            }
        }

        for (j = 0; j < a->dcolumns; j += columns) {
            columns = sd_attend_width(a->dcolumns - j);

            sd_isa(sd_gemm)(out + j, a->dcolumns, scores, SD_LD,
                            vp + (size_t) a->lk * j + (size_t) from * columns,
                            columns, queries, keys, from != 0, NULL, 0);
        }
    }

    for (i = 0; i < queries; i++) {
        dst = (float *) a->o.data
              + ((size_t) n * a->q.w + first + i) * a->o.ld + head * a->d;

        for (j = 0; j < a->d; j += SD_LANES) {
            v_storex(dst + j, v_div(v_load(out + (size_t) i * a->dcolumns + j),
                                    v_set(v_sum(v_load(sums + i * SD_LANES)))),
                     a->d - j);
        }
    }
}


int
sd_isa(sd_attention)(sd_context_t *cx, sd_tensor_t o, const sd_attention_t *d)
{
    size_t       heads;
    sd_attend_t  a;
    sd_tensor_t  pack;

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

    a.kpanels = (a.lk + SD_PANEL - 1) / SD_PANEL;
    a.dcolumns = sd_align(a.d, SD_LANES);
    a.ksize = (size_t) a.kpanels * SD_PANEL * a.d;
    a.vsize = (size_t) a.lk * a.dcolumns;
    a.blocks = (d->q.w + SD_QUERIES - 1) / SD_QUERIES;
    a.kblocks = (a.lk + SD_KEYS - 1) / SD_KEYS;

    if (SD_QUERIES * (SD_LD + 1 + SD_LANES + (size_t) a.dcolumns)
        * sizeof(float) > SD_SCRATCH)
    {
        return sd_fail(cx->err, "attention: heads of %d are too wide", a.d);
    }

    heads = (size_t) d->q.n * d->heads;

    pack = sd_alloc_type(cx, SD_F32, d->q.n, d->heads, a.kpanels * SD_PANEL,
                         a.d + a.dcolumns);

    if (cx->plan || cx->status != SD_OK) {
        sd_free(cx, &pack);
        return cx->status;
    }

    a.kpack = pack.data;
    a.vpack = a.kpack + heads * a.ksize;

    (void) (sd_pool_run(cx, sd_attend_pack, &a, (int) heads * a.kblocks)
            == SD_OK
            && sd_pool_run(cx, sd_attend_task, &a,
                           d->q.n * a.heads * a.blocks) == SD_OK);

    sd_free(cx, &pack);

    return cx->status;
}
