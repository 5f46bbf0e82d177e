/*
 * bf16 attention: as isa/attention.c, with both products in bf16; the maximum,
 * exp and sums stay fp32.  Floor: exp, about ten cycles for sixteen; heads of
 * 40 at 64x64 take two and a half times that in all.
 */

#include "bf16_isa.h"


/* from row to row, apart in the cache's sets */
#define SD_SCORES   (SD_BF16_KEYS + SD_LANES)
#define SD_WEIGHTS  (SD_BF16_KEYS + SD_BF16_SKEW)


void
sd_bf16_attend_pack(void *data, int task, char *scratch)
{
    int                i, j, n, head, from, last, end, ld;
    size_t             size;
    sd_bf16_t         *k, *v;
    const float       *src;
    sd_bf16_attend_t  *a = data;

    /* a block of keys of one sample and head */

    from = task % a->kblocks * SD_BF16_KEYS;
    task /= a->kblocks;
    n = task / a->heads;
    head = task % a->heads;
    last = sd_min(from + SD_BF16_KEYS, a->keys);
    end = sd_align(last, SD_BF16_K);
    size = (size_t) a->lk * a->dk;

    /* keys are columns, 32 of them a panel of depth dk */

    k = a->kpack + task * size;
    memset(k + (size_t) from * a->dk, 0,
           (size_t) (end - from) * a->dk * sizeof(sd_bf16_t));

    for (i = from; i < last; i++) {
        src = sd_cpu_keys(&a->k, &a->kv, a->k_at, n, i, &ld) + head * a->d;

        for (j = 0; j < a->d; j++) {
            k[(size_t) (i / SD_PANEL) * SD_PANEL * a->dk
              + sd_bf16_at(j, i % SD_PANEL)] = sd_bf16(src[j]);
        }
    }

    /* with values they are the depth of panels of 32 of d */

    v = a->vpack + task * size;

    for (j = 0; j < a->dk; j += SD_PANEL) {
        memset(v + (size_t) j * a->lk + (size_t) from * SD_PANEL, 0,
               (size_t) (end - from) * SD_PANEL * sizeof(sd_bf16_t));
    }

    for (i = from; i < last; i++) {
        src = sd_cpu_keys(&a->v, &a->kv, a->v_at, n, i, &ld) + head * a->d;

        for (j = 0; j < a->d; j++) {
            v[(size_t) (j / SD_PANEL) * SD_PANEL * a->lk
              + sd_bf16_at(i, j % SD_PANEL)] = sd_bf16(src[j]);
        }
    }
}


void
sd_bf16_attend(void *data, int task, char *scratch)
{
    int                i, j, n, head, first, queries, rows, from, keys;
    int                padded, valid;
    v16                s, sum, c, top;
    float             *scores, *out, *row, *maxima, *sums, *dst;
    float              old, new, factor;
    size_t             size;
    sd_bf16_t         *q, *weights, *w;
    const float       *src;
    const sd_bf16_t   *k, *v;
    sd_bf16_attend_t  *a = data;

    n = task / (a->heads * a->blocks);
    head = task / a->blocks % a->heads;
    first = task % a->blocks * SD_BF16_QUERIES;
    queries = sd_min(SD_BF16_QUERIES, a->q.w - first);
    rows = sd_align(queries, SD_PANEL);

    size = (size_t) a->lk * a->dk;
    k = a->kpack + ((size_t) n * a->heads + head) * size;
    v = a->vpack + ((size_t) n * a->heads + head) * size;

    scores = (float *) scratch;
    maxima = scores + SD_BF16_QUERIES * SD_SCORES;
    sums = maxima + SD_BF16_QUERIES;
    out = sums + SD_BF16_QUERIES * SD_LANES;
    weights = (sd_bf16_t *) (out + (size_t) SD_BF16_QUERIES * a->dk);
    q = weights + SD_BF16_QUERIES * SD_WEIGHTS;

    memset(q, 0, (size_t) rows * a->dk * sizeof(sd_bf16_t));
    memset(weights, 0, rows * SD_WEIGHTS * sizeof(sd_bf16_t));

    for (i = 0; i < queries; i++) {
        src = (float *) a->q.data
              + ((size_t) n * a->q.w + first + i) * a->q.ld + head * a->d;

        for (j = 0; j + SD_LANES <= a->d; j += SD_LANES) {
            v_store_bf16(q + (size_t) i * a->dk + j, v_load(src + j));
        }

        for ( /* void */ ; j < a->d; j++) {
            q[(size_t) i * a->dk + j] = sd_bf16(src[j]);
        }
    }

    sd_bf16_enter(a->amx);

    for (from = 0; from < a->keys; from += SD_BF16_KEYS) {

        if (a->causal && from > first + queries - 1) {
            break;
        }

        keys = sd_min(SD_BF16_KEYS, a->keys - from);
        padded = sd_align(keys, SD_BF16_K);

        for (j = 0; j < keys; j += SD_PANEL) {
            sd_bf16_gemm(a->amx, scores + j, SD_SCORES, q, a->dk,
                         k + (size_t) (from + j) * a->dk, rows, a->dk, 0, NULL);
        }

        for (i = 0; i < queries; i++) {
            row = scores + i * SD_SCORES;
            w = weights + i * SD_WEIGHTS;

            valid = a->causal ? sd_min(keys, first + i + 1 - from) : keys;

            if (valid <= 0) {
                memset(w, 0, padded * sizeof(sd_bf16_t));
                continue;
            }

            /* what is beyond the last key weighs nothing */

            for (j = valid; j < sd_align(valid, SD_LANES); j++) {
                row[j] = -INFINITY;
            }

            old = from ? maxima[i] : -INFINITY;
            new = v_greatest(row, valid) * a->scale;
            new = new > old ? new : old;
            maxima[i] = new;

            top = v_set(-new);
            c = v_set(a->scale);
            sum = v_set(0);

            for (j = 0; j < valid; j += SD_LANES) {
                s = v_exp2_negative(v_fma(v_load(row + j), c, top));
                v_store_bf16(w + j, s);
                sum = v_add(sum, s);
            }

            for ( /* void */ ; j < padded; j++) {
                w[j] = 0;
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

            for (j = 0; j < a->dk; j += SD_LANES) {
                dst = out + (size_t) i * a->dk + j;
                v_store(dst, v_mul(v_load(dst), v_set(factor)));
            }
        }

        for (j = 0; j < a->dk; j += SD_PANEL) {
            sd_bf16_gemm(a->amx, out + j, a->dk, weights, SD_WEIGHTS,
                         v + (size_t) a->lk * j + (size_t) from * SD_PANEL,
                         rows, padded, from != 0, NULL);
        }
    }

    sd_bf16_leave(a->amx);

    for (i = 0; i < queries; i++) {
        dst = (float *) a->o.data
              + ((size_t) n * a->q.w + first + i) * a->o.ld + head * a->d;
        sum = v_set(v_sum(v_load(sums + i * SD_LANES)));

        for (j = 0; j < a->d; j += SD_LANES) {
            v_storex(dst + j, v_div(v_load(out + (size_t) i * a->dk + j), sum),
                     a->d - j);
        }
    }
}
