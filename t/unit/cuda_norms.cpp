/*
 * CUDA kernels, run on the host (cuda/cuda_host.h) against references in double
 * precision: norms and softmax, in shapes that fill no block and no vector.
 */

#include "cuda/reference.h"

#include "../../cuda/group_norm.cu"
#include "../../cuda/group_norm_slab.cu"
#include "../../cuda/group_norm_split.cu"
#include "../../cuda/layer_norm.cu"
#include "../../cuda/softmax.cu"


static void
group_norm(int arch, int n, int hw, int c, int c2, int groups, int act,
    int addend, float bias, double bound)
{
    int              i, j, k, g, p, ch, cpg, channels;
    char             name[128];
    double           v, mean, var, d;
    sd_cuda_chip_t   chip = { arch, 132, arch >= 90 ? 232448 : 101376 };

    channels = c + c2;
    cpg = channels / groups;

    snprintf(name, sizeof(name),
             "group_norm sm_%d %dx%dx%d+%d, %d groups%s%s%s", arch, n, hw, c, c2,
             groups, act ? ", silu" : "", addend ? ", addend" : "",
             bias ? ", off centre" : "");

    halves_t   x = halves((size_t) n * hw * c, 1, bias);
    halves_t   x2 = halves((size_t) n * hw * c2, 2, bias);
    floats_t   gamma = floats(channels), beta = floats(channels);
    floats_t   table = floats((size_t) n * (channels + 3));
    doubles_t  ref((size_t) n * hw * channels);

    std::vector<const float *>  rows(n);
    std::vector<char>           scratch(
        sd_cuda_group_norm_scratch(n, hw, channels, groups), (char) 0xff);

    for (i = 0; i < n; i++) {
        rows[i] = table.data() + (size_t) (n - 1 - i) * (channels + 3);
    }

    auto  input = [&](int i, int p, int ch) {
        v = ch < c ? value(x[((size_t) i * hw + p) * c + ch])
                   : value(x2[((size_t) i * hw + p) * c2 + ch - c]);
        return v + (addend ? rows[i][3 + ch] : 0);
    };

    for (i = 0; i < n; i++) {
        for (g = 0; g < groups; g++) {
            mean = 0;
            var = 0;

            for (k = 0; k < 2; k++) {
                for (p = 0; p < hw; p++) {
                    for (j = 0; j < cpg; j++) {
                        d = input(i, p, g * cpg + j) - mean;
                        var += d * d;
                        mean += k == 0 ? (d + mean) / ((double) hw * cpg) : 0;
                    }
                }

                if (k == 0) {
                    /* once more, about the mean */
                    var = 0;
                    mean = 0;

                    for (p = 0; p < hw; p++) {
                        for (j = 0; j < cpg; j++) {
                            mean += input(i, p, g * cpg + j);
                        }
                    }

                    mean /= (double) hw * cpg;
                }
            }

            for (p = 0; p < hw; p++) {
                for (j = 0; j < cpg; j++) {
                    ch = g * cpg + j;
                    v = (input(i, p, ch) - mean)
                        / sqrt(var / ((double) hw * cpg) + 1e-5) * gamma[ch]
                        + beta[ch];
                    ref[((size_t) i * hw + p) * channels + ch] =
                        act ? silu(v) : v;
                }
            }
        }
    }

    sd_cuda_group_norm_t  t = {};

    t.x = x.data();
    t.x2 = c2 ? x2.data() : NULL;
    t.gamma = gamma.data();
    t.beta = beta.data();
    t.addend = addend ? rows.data() : NULL;
    t.addend_at = 3;
    t.n = n;
    t.hw = hw;
    t.c = c;
    t.c2 = c2;
    t.groups = groups;
    t.eps = 1e-5f;
    t.silu = act;
    t.scratch = scratch.data();

    halves_t  y = orders(ref.size(), name, [&](sd_half_t *out) {
        t.y = out;
        return sd_cuda_group_norm(NULL, &chip, &t);
    });

    d = difference(y, ref);
    ok(d < bound, "%s: %.1e off", name, d);

    /* the first sample alone, in place if there is one input */

    halves_t  alone = c2 ? halves(ref.size() / n) : x;

    t.n = 1;
    t.y = alone.data();
    t.x = c2 ? x.data() : alone.data();
    (void) sd_cuda_group_norm(NULL, &chip, &t);

    if (memcmp(alone.data(), y.data(), ref.size() / n * 2) != 0) {
        ok(0, "%s: alone and in a batch", name);
    }
}


static void
group_norms(void)
{
    int         arch;
    sd_gn_t     g;
    static int  archs[] = { 80, 90 };

    for (int a : archs) {
        arch = a;
        group_norm(arch, 3, 64, 64, 0, 32, 1, 1, 0, 1e-3);
        group_norm(arch, 2, 64, 320, 0, 32, 1, 1, 0, 1e-3);
        group_norm(arch, 2, 49, 320, 320, 32, 1, 0, 0, 1e-3);
        group_norm(arch, 2, 1, 320, 0, 32, 0, 0, 0, 1e-3);
        group_norm(arch, 2, 7, 960, 320, 32, 1, 1, 0, 1e-3);
        group_norm(arch, 1, 1024, 640, 0, 32, 1, 1, 0, 1e-3);
        group_norm(arch, 1, 99, 2560, 0, 32, 1, 0, 0, 1e-3);
        group_norm(arch, 1, 1000, 32, 8, 5, 1, 1, 0, 1e-3);
        group_norm(arch, 2, 300, 128, 0, 32, 1, 1, 0, 1e-3);
        group_norm(arch, 1, 2500, 320, 0, 32, 1, 1, 0, 1e-3);
        group_norm(arch, 1, 2500, 320, 0, 32, 1, 0, 300, 3e-3);

        /* no vectors */
        group_norm(arch, 2, 25, 1, 0, 1, 1, 1, 0, 1e-3);
        group_norm(arch, 2, 65, 3, 0, 3, 0, 1, 0, 1e-3);
        group_norm(arch, 2, 100, 12, 0, 4, 1, 0, 0, 1e-3);
        group_norm(arch, 3, 63, 20, 16, 4, 1, 1, 0, 1e-3);
        group_norm(arch, 1, 300, 33, 0, 11, 1, 1, 0, 1e-3);
        group_norm(arch, 1, 40, 600, 4, 4, 1, 1, 0, 1e-3);
        group_norm(arch, 1, 700, 12, 0, 4, 0, 0, 300, 3e-3);
    }

    /* too large for a slab; 16 and 5 vectors a pixel */
    group_norm(90, 1, 40000, 64, 0, 32, 1, 1, 0, 1e-3);
    group_norm(80, 2, 1500, 40, 0, 1, 1, 0, 0, 1e-3);
    group_norm(80, 1, 3000, 80, 0, 2, 0, 1, 300, 3e-3);

    /* a choice that n has no part in, for every shape of SD 1.5 */

    static int  shapes[][2] = {
        { 4096, 320 }, { 4096, 640 }, { 4096, 960 }, { 1024, 320 },
        { 1024, 640 }, { 1024, 960 }, { 1024, 1280 }, { 1024, 1920 },
        { 256, 640 }, { 256, 1280 }, { 256, 1920 }, { 256, 2560 },
        { 64, 1280 }, { 64, 2560 }, { 4096, 512 }, { 16384, 512 },
        { 9216, 320 }, { 9216, 640 }, { 9216, 960 },
        { 65536, 512 }, { 65536, 256 }, { 262144, 256 }, { 262144, 128 }
    };

    sd_cuda_chip_t  chip = { 90, 132, 232448 };

    for (auto &s : shapes) {
        memset(&g, 0, sizeof(g));
        g.hw = s[0];
        g.c = s[1];
        g.groups = 32;
        g.cpg = s[1] / 32;

        if (!sd_gn_slab_plan(&g, &chip)) {
            printf("# %d x %d: split\n", s[0], s[1]);
            continue;
        }

        printf("# %d x %d: %d slabs of %d bytes, %d blocks of %d pixels, "
               "%d threads of %d vectors, %zu bytes\n", s[0], s[1],
               32 / g.slab, g.vecs * 16, g.blocks, g.pixels, g.rows * g.vecs,
               g.vectors, sd_gn_slab_shared(&g));

        ok(g.rows * g.vectors >= g.pixels && g.blocks * g.pixels >= g.hw
           && g.rows * g.vecs % 32 == 0, "%d x %d fits", s[0], s[1]);
    }
}


static void
layer_norm(int rows, int c, float bias, double bound)
{
    int     i, j;
    char    name[64];
    double  mean, var, d;

    snprintf(name, sizeof(name), "layer_norm %dx%d", rows, c);

    halves_t   x = halves((size_t) rows * c, 1, bias), in;
    floats_t   gamma = floats(c), beta = floats(c);
    doubles_t  ref((size_t) rows * c);

    for (i = 0; i < rows; i++) {
        mean = 0;
        var = 0;

        for (j = 0; j < c; j++) {
            mean += value(x[(size_t) i * c + j]) / c;
        }

        for (j = 0; j < c; j++) {
            d = value(x[(size_t) i * c + j]) - mean;
            var += d * d / c;
        }

        for (j = 0; j < c; j++) {
            ref[(size_t) i * c + j] = (value(x[(size_t) i * c + j]) - mean)
                                      / sqrt(var + 1e-5) * gamma[j] + beta[j];
        }
    }

    halves_t  y = orders(ref.size(), name, [&](sd_half_t *out) {
        return sd_cuda_layer_norm(NULL, out, x.data(), gamma.data(),
                                  beta.data(), rows, c, 1e-5f);
    });

    d = difference(y, ref);
    ok(d < bound, "%s: %.1e off", name, d);

    (void) sd_cuda_layer_norm(NULL, x.data(), x.data(), gamma.data(),
                              beta.data(), rows, c, 1e-5f);
    ok(x == y, "%s in place", name);
}


static void
softmax(int rows, int cols, int ld, float scale)
{
    int     i, j;
    char    name[64];
    double  d, max, sum;

    snprintf(name, sizeof(name), "softmax %dx%d of %d, scores to %g", rows,
             cols, ld, scale);

    halves_t   x = halves((size_t) rows * ld, scale);
    doubles_t  ref((size_t) rows * ld);

    for (i = 0; i < rows; i++) {
        double           *out = &ref[(size_t) i * ld];
        const sd_half_t  *in = &x[(size_t) i * ld];

        max = -INFINITY;
        sum = 0;

        for (j = 0; j < cols; j++) {
            max = fmax(max, value(in[j]));
        }

        for (j = 0; j < cols; j++) {
            sum += exp(value(in[j]) - max);
        }

        for (j = 0; j < cols; j++) {
            out[j] = exp(value(in[j]) - max) / sum;
        }

        /* what is between rows stays */

        for ( /* void */ ; j < ld; j++) {
            out[j] = value(in[j]);
        }
    }

    halves_t  y = orders(ref.size(), name, [&](sd_half_t *out) {
        memcpy(out, x.data(), x.size() * 2);
        return sd_cuda_softmax(NULL, out, rows, cols, ld);
    });

    d = difference(y, ref);
    ok(d < 3e-4, "%s: %.1e off", name, d);
}


int
main(void)
{
    static int  widths[] = { 1, 3, 8, 20, 33, 64, 320, 328, 640, 648, 768, 1024,
                             1280, 2560, 2568 };

    group_norms();

    for (int c : widths) {
        layer_norm(c > 1000 ? 5 : 35, c, 0, 1e-3);
    }

    layer_norm(9, 320, 300, 3e-3);

    softmax(3, 1, 1, 1);
    softmax(3, 33, 40, 10);
    softmax(2, 64, 64, 60000);
    softmax(2, 2048, 2056, 10);
    softmax(2, 4096, 4096, 3);
    softmax(1, 8192, 8192, 10);
    softmax(1, 9000, 9000, 10);
    softmax(1, 20008, 20008, 10);
    softmax(1, 65535, 65535, 10);

    return done();
}
