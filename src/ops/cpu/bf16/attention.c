/*
 * bf16 attention: as isa/attention.c, with both products in bf16; the maximum,
 * exp and sums stay fp32.
 *
 * Floor: maximum, exp and rounding, about 13 operations for sixteen scores, and
 * with AMX four cycles of tiles (heads of 40), which do not overlap.
 */

#include "bf16_isa.h"
#include "../softmax.h"


static void sd_bf16_attend_weights(const float *scores, sd_bf16_t *weights,
    int keys, int padded, float *maxima, float *sums, float *out, int d,
    float scale, int first);


void
sd_bf16_attend_pack(void *data, int task, char *scratch)
{
    int                i, j, n, head, block, from, keys, rows, ld;
    float             *t = (float *) scratch;
    sd_bf16_t         *k, *v;
    const float       *src;
    sd_bf16_attend_t  *a = data;

    /* a block of keys of one sample and head */

    block = task % a->kblocks;
    task /= a->kblocks;
    n = task / a->heads;
    head = task % a->heads;
    from = block * SD_BF16_KEYS;
    keys = sd_min(SD_BF16_KEYS, a->lk - from);
    rows = sd_align(keys, SD_BF16_K);

    /* rows of keys; those that are none are zero */

    k = a->kpack + task * a->ksize + (size_t) from * a->dk;
    src = sd_cpu_keys(&a->k, &a->kv, a->k_at, n, from, &ld) + head * a->d;

    for (i = 0; i < keys; i++) {
        v_row_bf16(k, src, a->d, a->dk);
        k += a->dk;
        src += ld;
    }

    memset(k, 0, (size_t) (rows - keys) * a->dk * sizeof(sd_bf16_t));

    /* and columns of values */

    src = sd_cpu_keys(&a->v, &a->kv, a->v_at, n, from, &ld) + head * a->d;
    v_transpose(t, SD_BF16_KEYS, src, ld, keys, a->d);

    v = a->vpack + task * a->vsize + (size_t) block * a->dk * SD_BF16_KEYS;

    for (j = 0; j < a->d; j++) {
        v_row_bf16(v, t, keys, SD_BF16_KEYS);
        v += SD_BF16_KEYS;
        t += SD_BF16_KEYS;
    }

    memset(v, 0, (size_t) (a->dk - a->d) * SD_BF16_KEYS * sizeof(sd_bf16_t));
}


/* scores [keys][32] to weights, a panel as deep as there are keys, padded */

static void
sd_bf16_attend_weights(const float *scores, sd_bf16_t *weights, int keys,
    int padded, float *maxima, float *sums, float *out, int d, float scale,
    int first)
{
    int           i, j;
    v16           c, base, s, t, sum, other;
    sd_bf16_t    *w;
    const float  *p;

    c = v_set(scale);

    for (i = 0; i < SD_PANEL; i += SD_LANES) {
        p = scores + i;
        base = sd_softmax_block(p, keys, SD_PANEL, maxima + i, sums + i,
                                out + i, d, c, first, &sum);
        other = v_set(0);
        w = weights + i * SD_BF16_K;

        for (j = 0; j < padded; j += 2) {
            s = j < keys ? v_exp2_rough(v_load(p), c, base) : v_set(0);
            t = j + 1 < keys ? v_exp2_rough(v_load(p + SD_PANEL), c, base)
                             : v_set(0);

            v_store_pairs(w, s, t);
            sum = v_add(sum, s);
            other = v_add(other, t);

            p += 2 * SD_PANEL;
            w += 2 * SD_LANES;

            /* the other columns' half of a step lies between */

            if ((j + 2) % SD_BF16_K == 0) {
                w += SD_LANES * SD_BF16_K;
            }
        }

        v_store(sums + i, v_add(sum, other));
    }
}


void
sd_bf16_attend(void *data, int task, char *scratch)
{
    int                i, j, n, head, first, queries, block, from, keys;
    int                panel, count, padded;
    float             *scores, *maxima, *sums, *out, *op, *o;
    size_t             size;
    sd_bf16_t         *q, *weights, *rows;
    const float       *src;
    const sd_bf16_t   *k, *v;
    sd_bf16_attend_t  *a = data;

    n = task / (a->heads * a->blocks);
    head = task / a->blocks % a->heads;
    first = task % a->blocks * SD_BF16_QUERIES;
    queries = sd_min(SD_BF16_QUERIES, a->q.w - first);

    k = a->kpack + ((size_t) n * a->heads + head) * a->ksize;
    v = a->vpack + ((size_t) n * a->heads + head) * a->vsize;

    size = (size_t) SD_BF16_QUERIES * a->dk;

    scores = (float *) scratch;
    maxima = scores + SD_BF16_KEYS * SD_PANEL;
    sums = maxima + SD_BF16_QUERIES;
    out = sums + SD_BF16_QUERIES;
    weights = (sd_bf16_t *) (out + size);
    q = weights + SD_BF16_KEYS * SD_PANEL;
    rows = q + size;

    /* queries are the columns of panels: pairs of bf16 change places */

    for (i = 0; i < sd_align(queries, SD_PANEL); i++) {
        if (i < queries) {
            src = (float *) a->q.data
                  + ((size_t) n * a->q.w + first + i) * a->q.ld + head * a->d;
            v_row_bf16(rows + (size_t) i * a->dk, src, a->d, a->dk);

        } else {
            memset(rows + (size_t) i * a->dk, 0, a->dk * sizeof(sd_bf16_t));
        }
    }

    for (i = 0; i < queries; i += SD_LANES) {
        for (j = 0; j < a->dk; j += SD_BF16_K) {
            v_transpose((float *) (q + (size_t) (i / SD_PANEL) * SD_PANEL
                                       * a->dk
                                   + j * SD_PANEL
                                   + i % SD_PANEL * SD_BF16_K),
                        SD_LANES,
                        (float *) (rows + (size_t) i * a->dk + j), a->dk / 2,
                        SD_LANES, SD_BF16_K / 2);
        }
    }

    sd_bf16_enter(a->amx);

    for (block = 0; block < a->kblocks; block++) {
        from = block * SD_BF16_KEYS;
        keys = sd_min(SD_BF16_KEYS, a->lk - from);
        padded = sd_align(keys, SD_BF16_K);

        for (panel = 0; panel < queries; panel += SD_PANEL) {
            count = sd_min(SD_PANEL, queries - panel);

            if (a->causal && from > first + panel + count - 1) {
                continue;
            }

            op = out + (size_t) panel * a->dk;

            sd_bf16_gemm(a->amx, scores, SD_PANEL, k + (size_t) from * a->dk,
                         a->dk, q + (size_t) panel * a->dk, padded, a->dk, 0,
                         NULL);

            if (a->causal && from + keys - 1 > first + panel) {
                for (i = 0; i < keys; i++) {
                    for (j = 0; j < SD_PANEL; j++) {
                        if (from + i > first + panel + j) {
                            scores[i * SD_PANEL + j] = -INFINITY;
                        }
                    }
                }
            }

            sd_bf16_attend_weights(scores, weights, keys, padded,
                                   maxima + panel, sums + panel, op, a->dk,
                                   a->scale, block == 0);

            sd_bf16_gemm(a->amx, op, SD_PANEL,
                         v + (size_t) block * a->dk * SD_BF16_KEYS,
                         SD_BF16_KEYS, weights, a->dk, padded, block != 0,
                         NULL);
        }
    }

    sd_bf16_leave(a->amx);

    for (panel = 0; panel < queries; panel += SD_PANEL) {
        op = out + (size_t) panel * a->dk;

        for (i = 0; i < a->d; i++) {
            for (j = 0; j < SD_PANEL; j += SD_LANES) {
                o = op + i * SD_PANEL + j;
                v_store(o, v_div(v_load(o), v_load(sums + panel + j)));
            }
        }

        v_transpose((float *) a->o.data
                    + ((size_t) n * a->q.w + first + panel) * a->o.ld
                    + head * a->d, a->o.ld, op, SD_PANEL, a->d,
                    sd_min(SD_PANEL, queries - panel));
    }
}
