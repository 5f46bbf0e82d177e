/*
 * CUDA kernels, run on the host (cuda/cuda_host.h) against references in double
 * precision: conv_direct, in shapes that fill no block and no vector.
 */

#include "cuda/reference.h"

#include "../../cuda/conv_direct.cu"


static void
conv(int n, int h, int w, int c, int c2, int k, int r, int stride, int up,
    int odd, int bias, int residual)
{
    int     i, y, x, m, a, b, ch, iy, ix, oh, ow, channels;
    char    name[96];
    double  d, s;

    channels = c + c2;
    oh = up ? 2 * h - odd : (h - 1) / stride + 1;
    ow = up ? 2 * w - odd : (w - 1) / stride + 1;

    snprintf(name, sizeof(name),
             "conv %dx%d %dx%dx%dx%d+%d to %d, stride %d%s%s%s", r, r, n, h, w,
             c, c2, k, stride, up ? ", enlarged" : "", bias ? ", bias" : "",
             residual ? ", residual" : "");

    halves_t   in = halves((size_t) n * h * w * c);
    halves_t   in2 = halves((size_t) n * h * w * c2);
    halves_t   weights = halves((size_t) k * r * r * channels, 0.3f);
    halves_t   biases = halves(k), add = halves((size_t) n * oh * ow * k);
    doubles_t  ref;

    for (i = 0; i < n; i++) {
        for (y = 0; y < oh; y++) {
            for (x = 0; x < ow; x++) {
                for (m = 0; m < k; m++) {
                    s = bias ? value(biases[m]) : 0;
                    s += residual ? value(add[ref.size()]) : 0;

                    for (a = 0; a < r; a++) {
                        for (b = 0; b < r; b++) {
                            iy = y * stride + a - r / 2;
                            ix = x * stride + b - r / 2;

                            if (iy < 0 || ix < 0 || iy >= (up ? oh : h)
                                || ix >= (up ? ow : w))
                            {
                                continue;
                            }

                            iy >>= up;
                            ix >>= up;

                            for (ch = 0; ch < channels; ch++) {
                                s += value(ch < c
                                       ? in[((size_t) (i * h + iy) * w + ix) * c
                                            + ch]
                                       : in2[((size_t) (i * h + iy) * w + ix)
                                             * c2 + ch - c])
                                     * value(weights[((m * r + a) * r + b)
                                                     * channels + ch]);
                            }
                        }
                    }

                    ref.push_back(s);
                }
            }
        }
    }

    sd_cuda_chip_t  chip = { 90, 132, 232448 };
    sd_cuda_conv_t  t = {};

    t.x = in.data();
    t.x2 = c2 ? in2.data() : NULL;
    t.w = weights.data();
    t.bias = bias ? biases.data() : NULL;
    t.n = n;
    t.h = h;
    t.wd = w;
    t.c = c;
    t.c2 = c2;
    t.oh = oh;
    t.ow = ow;
    t.k = k;
    t.r = r;
    t.stride = stride;
    t.upsample = up;

    halves_t  out = orders(ref.size(), name, [&](sd_half_t *p) {
        if (residual) {
            memcpy(p, add.data(), add.size() * 2);
        }

        t.residual = residual ? p : NULL;
        t.y = p;
        return sd_cuda_conv_direct(NULL, &chip, &t);
    });

    d = difference(out, ref);
    ok(d < 1e-3, "%s: %.1e off", name, d);

    t.n = 1;
    halves_t  alone(out.size() / n, 0xffff);

    if (residual) {
        memcpy(alone.data(), add.data(), alone.size() * 2);
    }

    t.residual = residual ? alone.data() : NULL;
    t.y = alone.data();
    (void) sd_cuda_conv_direct(NULL, &chip, &t);

    if (memcmp(alone.data(), out.data(), alone.size() * 2) != 0) {
        ok(0, "%s: alone and in a batch", name);
    }
}


static void
convs(void)
{
    int  up, c;

    /* few in */
    conv(2, 9, 7, 4, 0, 320, 3, 1, 0, 0, 1, 0);
    conv(1, 16, 16, 4, 0, 72, 3, 1, 0, 0, 0, 1);
    conv(2, 5, 9, 3, 0, 64, 3, 2, 0, 0, 1, 1);
    conv(1, 6, 5, 9, 4, 8, 3, 1, 0, 0, 1, 0);
    conv(1, 11, 3, 4, 0, 8, 1, 1, 0, 0, 1, 0);
    conv(1, 1, 1, 16, 0, 16, 3, 1, 0, 0, 1, 0);
    conv(2, 7, 11, 8, 0, 40, 3, 1, 0, 0, 1, 1);
    conv(1, 20, 19, 3, 0, 128, 3, 1, 0, 0, 1, 0);

    for (up = 0; up < 2; up++) {
        conv(1, 4, 5, 4, 0, 24, 3, 1, 1, up, 1, 1);
    }

    /* few out */
    conv(2, 9, 7, 128, 0, 3, 3, 1, 0, 0, 1, 0);
    conv(1, 17, 33, 32, 0, 4, 3, 1, 0, 0, 1, 1);
    conv(2, 8, 8, 320, 0, 4, 3, 1, 0, 0, 1, 0);
    conv(1, 3, 40, 64, 0, 8, 3, 1, 0, 0, 0, 0);
    conv(3, 97, 65, 40, 0, 3, 3, 1, 0, 0, 1, 1);
    conv(1, 9, 10, 160, 0, 6, 3, 1, 0, 0, 1, 0);
    conv(1, 5, 5, 24, 16, 3, 3, 1, 0, 0, 1, 1);
    conv(1, 20, 19, 40, 0, 1, 3, 1, 0, 0, 1, 1);
    conv(1, 5, 5, 16, 8, 5, 3, 2, 0, 0, 1, 1);
    conv(1, 5, 6, 24, 0, 3, 3, 1, 1, 1, 1, 1);

    /* whatever */
    for (c = 1; c < 40; c = c * 2 + 1) {
        conv(1, 5, 4, c, 0, c + 1, 3, 1, 0, 0, 1, 1);
        conv(2, 4, 5, c + 20, c, 12, 1, 1, 0, 0, 1, 0);
        conv(1, 5, 7, c, 32, 33, 3, 2, 0, 0, 0, 1);
    }
}


int
main(void)
{
    convs();

    return done();
}
