/*
 * What becomes of the sums of a product's task: bias, activation, residual.
 * Row by row, so that memory is read and written in its order.
 */

#ifndef SD_CPU_FINISH_H
#define SD_CPU_FINISH_H

#include "cpu.h"
#include "simd.h"


sd_inline v16
sd_act(v16 x, sd_act_t act)
{
    switch (act) {

    case SD_ACT_SILU:
        return v_swish(x, 1.0f);

    case SD_ACT_GELU:
        return v_gelu(x);

    case SD_ACT_QUICK_GELU:
        return v_swish(x, 1.702f);

    case SD_ACT_GELU_TANH:
        return v_gelu_tanh(x);

    default:
        return x;
    }
}


/*
 * y and residual: the first of rows, of so many outputs; sums: [rows] at ld, of
 * panels first .. last - 1; bias: of all
 */

sd_inline void
sd_finish(float *y, const float *residual, const float *sums, size_t ld,
    const float *bias, int rows, int outputs, int first, int last,
    sd_act_t act)
{
    int           i, n, width, at, end;
    v16           v, gate;
    const float  *b, *s;

    /* outputs of a panel */

    width = act == SD_ACT_GEGLU ? SD_PANEL / 2 : SD_PANEL;
    end = sd_min(last * width, outputs);

    for (i = 0; i < rows; i++) {
        b = bias + first * SD_PANEL;
        s = sums;

        for (at = first * width; at < end; at += SD_LANES) {
            v = v_add(v_load(s), v_load(b));

            if (act == SD_ACT_GEGLU) {
                gate = v_add(v_load(s + SD_LANES), v_load(b + SD_LANES));
                v = v_mul(v, v_gelu(gate));
                s += SD_LANES;
                b += SD_LANES;

            } else {
                v = sd_act(v, act);
            }

            s += SD_LANES;
            b += SD_LANES;
            n = end - at;

            if (residual != NULL) {
                v = v_add(v, v_loadx(residual + at, n));
            }

            v_storex(y + at, v, n);
        }

        y += outputs;
        residual = residual == NULL ? NULL : residual + outputs;
        sums += ld;
    }
}


#endif
