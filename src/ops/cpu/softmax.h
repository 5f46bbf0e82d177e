/*
 * A block of keys' part in attention's softmax, as both precisions have it;
 * to be included behind the vectors of an instruction set.
 */

#ifndef SD_CPU_SOFTMAX_H
#define SD_CPU_SOFTMAX_H


/*
 * scores: sixteen columns of [keys][columns].  Raises the columns' maxima by
 * those of the block, in powers of two of scaled scores, and where they have
 * moved rescales out, [d][columns], and the sums.  Returns the new maxima for
 * v_exp2_below() and v_exp2_rough(), and in *sum the sums before this block.
 * The scale is positive.
 */

static inline v16
sd_softmax_block(const float *scores, int keys, int columns, float *maxima,
    const float *sums, float *out, int d, v16 scale, int first, v16 *sum)
{
    int    j, moved;
    v16    m, n, old, new, s;
    float  factor[SD_LANES] __attribute__((aligned(64)));

    m = v_load(scores);
    n = m;

    for (j = 1; j + 2 <= keys; j += 2) {
        m = v_max(m, v_load(scores + j * columns));
        n = v_max(n, v_load(scores + (j + 1) * columns));
    }

    if (j < keys) {
        m = v_max(m, v_load(scores + j * columns));
    }

    new = v_round(v_mul(v_max(m, n), scale));
    *sum = v_set(0);

    if (!first) {
        old = v_load(maxima);
        new = v_max(new, old);

        v_store(factor, v_power2(v_sub(old, new)));

        for (moved = 0, j = 0; j < SD_LANES; j++) {
            moved |= factor[j] != 1.0f;
        }

        s = v_load(factor);
        *sum = v_mul(v_load(sums), s);

        for (j = 0; moved && j < d; j++) {
            v_store(out + j * columns, v_mul(v_load(out + j * columns), s));
        }
    }

    v_store(maxima, new);

    return v_exp2_base(new);
}


#endif
