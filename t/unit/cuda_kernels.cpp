/*
 * The CUDA kernels that are plain enough, run on the host (cuda/cuda_host.h)
 * against references in double precision, in three orders of their threads:
 * shapes that fill no block and no vector, outputs that are poison before.
 */

#include <vector>

#include "cuda/cuda_host.h"

#include "../../cuda/activation.cu"
#include "../../cuda/conv_direct.cu"
#include "../../cuda/embed.cu"
#include "../../cuda/group_norm.cu"
#include "../../cuda/group_norm_slab.cu"
#include "../../cuda/group_norm_split.cu"
#include "../../cuda/layer_norm.cu"
#include "../../cuda/layout.cu"
#include "../../cuda/picture.cu"
#include "../../cuda/sampler.cu"
#include "../../cuda/softmax.cu"

#include "tap.h"


typedef std::vector<sd_half_t>  halves_t;
typedef std::vector<float>      floats_t;
typedef std::vector<double>     doubles_t;


static uint64_t  seed = 1;


/* [-1, 1) */

static float
number(void)
{
    seed = seed * 6364136223846793005 + 1442695040888963407;
    return (float) ((int32_t) (seed >> 32) * 0x1p-31);
}


static halves_t
halves(size_t n, float scale = 1, float bias = 0)
{
    halves_t  v(n);

    for (sd_half_t &h : v) {
        h = sd_to_half(number() * scale + bias);
    }

    return v;
}


static floats_t
floats(size_t n, float scale = 1)
{
    floats_t  v(n);

    for (float &f : v) {
        f = number() * scale;
    }

    return v;
}


static double
value(sd_half_t h)
{
    return sd_to_float(h);
}


/* how far off, in units of 1 or of the reference where that is larger */

static double
difference(const halves_t &y, const doubles_t &ref)
{
    size_t  i;
    double  d, worst = 0;

    if (y.size() < ref.size()) {
        return INFINITY;
    }

    for (i = 0; i < ref.size(); i++) {
        d = fabs(value(y[i]) - ref[i]) / fmax(1, fabs(ref[i]));
        worst = d <= worst ? worst : d;

        if (d != d) {
            return INFINITY;
        }
    }

    return worst;
}


/*
 * calls run(y) in each order with a poisoned y; all must give the same bits
 */

template <class F>
static halves_t
orders(size_t n, const char *name, F run)
{
    int       same = 1;
    halves_t  first, y;

    for (cuda_host_order = 0; cuda_host_order < 3; cuda_host_order++) {
        y.assign(n, 0xffff);
        same &= run(y.data()) == cudaSuccess;

        if (cuda_host_order == 0) {
            first = y;
        }

        same &= y == first;
    }

    cuda_host_order = 0;

    if (!same) {
        ok(0, "%s: one result whatever the order of threads", name);
    }

    return first;
}


static double
gelu(double x)
{
    return 0.5 * x * (1 + erf(x * 0.70710678118654752440));
}


static double
silu(double x)
{
    return x / (1 + exp(-x));
}


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

    snprintf(name, sizeof(name), "group_norm sm_%d %dx%dx%d+%d, %d groups%s%s%s",
             arch, n, hw, c, c2, groups, act ? ", silu" : "",
             addend ? ", addend" : "", bias ? ", off centre" : "");

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
geglu(int rows, int inner, int add)
{
    int     i, j;
    char    name[64];
    double  d;

    snprintf(name, sizeof(name), "geglu %dx%d%s", rows, inner,
             add ? " + residual" : "");

    halves_t   x = halves((size_t) rows * 2 * inner, 4);
    halves_t   residual = halves((size_t) rows * inner);
    doubles_t  ref((size_t) rows * inner);

    for (i = 0; i < rows; i++) {
        for (j = 0; j < inner; j++) {
            ref[(size_t) i * inner + j] =
                value(x[(size_t) i * 2 * inner + j])
                * gelu(value(x[((size_t) i * 2 + 1) * inner + j]))
                + (add ? value(residual[(size_t) i * inner + j]) : 0);
        }
    }

    halves_t  y = orders(ref.size(), name, [&](sd_half_t *out) {
        return sd_cuda_geglu(NULL, out, x.data(), add ? residual.data() : NULL,
                             rows, inner);
    });

    d = difference(y, ref);
    ok(d < 6e-4, "%s: %.1e off", name, d);
}


static void
acts(void)
{
    int     act, count;
    size_t  i;
    double  d, v;

    for (act = 0; act < 5; act++) {
        for (count = 1; count < 5000; count = count * 7 + 2) {
            halves_t   x = halves(count, 12), residual = halves(count);
            doubles_t  ref(count);

            x[0] = sd_to_half(act % 2 ? -60000 : 60000);

            for (i = 0; i < x.size(); i++) {
                v = value(x[i]);
                ref[i] = value(residual[i])
                         + (act == SD_CUDA_ACT_SILU ? silu(v)
                            : act == SD_CUDA_ACT_GELU ? gelu(v)
                            : act == SD_CUDA_ACT_QUICK_GELU
                              ? v / (1 + exp(-1.702 * v))
                            : act == SD_CUDA_ACT_GELU_TANH
                              ? 0.5 * v * (1 + tanh(0.79788456080286535588
                                                * (v + 0.044715 * v * v * v)))
                            : v);
            }

            halves_t  y = orders(count, "act", [&](sd_half_t *out) {
                return sd_cuda_act(NULL, out, x.data(), residual.data(), count,
                                   act);
            });

            d = difference(y, ref);
            ok(d < 6e-4, "act %d of %d: %.1e off", act, count, d);
        }
    }

    floats_t  y = floats(5 * 33), before = y;
    halves_t  bias = halves(33);
    int       same = 1;

    (void) sd_cuda_add_bias(NULL, y.data(), bias.data(), 5, 33);

    for (i = 0; i < y.size(); i++) {
        same &= y[i] == before[i] + sd_to_float(bias[i % 33]);
    }

    ok(same, "add_bias");
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


static void
layouts(void)
{
    int     i, y, x, c, odd, same, k, r;
    size_t  at;

    for (c = 1; c < 50; c = c * 2 + 1 + c % 3) {
        for (odd = 0; odd < 2; odd++) {
            int  h = 3, w = 5, oh = 2 * h - odd, ow = 2 * w - odd;

            for (k = c; k <= 8 * c; k += 7 * c) {
                halves_t  in = halves((size_t) 2 * h * w * k);
                halves_t  out = orders((size_t) 2 * oh * ow * k, "upsample",
                                       [&](sd_half_t *p) {
                    return sd_cuda_upsample(NULL, p, in.data(), 2, h, w, k, oh,
                                            ow);
                });

                same = 1;
                at = 0;

                for (i = 0; i < 2; i++) {
                    for (y = 0; y < oh; y++) {
                        for (x = 0; x < ow; x++) {
                            same &= memcmp(&out[at],
                                           &in[((i * h + y / 2) * w + x / 2)
                                               * k], k * 2) == 0;
                            at += k;
                        }
                    }
                }

                ok(same, "upsample to %dx%dx%d", oh, ow, k);
            }
        }

        for (k = 1; k < 9; k += 7) {
            halves_t  a = halves(33 * c * k), b = halves(33 * 8);
            halves_t  out = orders(33 * (c * k + 8), "concat",
                                   [&](sd_half_t *p) {
                return sd_cuda_concat(NULL, p, a.data(), b.data(), 33, c * k,
                                      8);
            });

            same = 1;

            for (i = 0; i < 33; i++) {
                same &= memcmp(&out[i * (c * k + 8)], &a[i * c * k],
                               c * k * 2) == 0
                        && memcmp(&out[i * (c * k + 8) + c * k], &b[i * 8], 16)
                           == 0;
            }

            ok(same, "concat %d + 8", c * k);
        }

        for (r = 1; r < 4; r += 2) {
            floats_t  w = floats((size_t) 5 * c * r * r);
            halves_t  out = orders((size_t) 8 * r * r * (c + 3), "pack",
                                   [&](sd_half_t *p) {
                return sd_cuda_pack(NULL, p, w.data(), 5, c, r, 8, c + 3);
            });

            same = 1;
            at = 0;

            for (k = 0; k < 8; k++) {
                for (i = 0; i < r * r; i++) {
                    for (x = 0; x < c + 3; x++) {
                        same &= out[at++] == (k < 5 && x < c
                                              ? sd_to_half(w[(k * c + x) * r * r
                                                             + i])
                                              : 0);
                    }
                }
            }

            ok(same, "pack %dx%d of %d channels", r, r, c);
        }
    }

    /* enlarged row 2 i + py + a - 1 is row i + (py + a + 1) / 2 - 1 */

    for (c = 1; c < 20; c += 5) {
        floats_t  w = floats((size_t) 3 * c * 9);
        floats_t  sums((size_t) 16 * 3 * c, 0);

        for (i = 0; i < 4; i++) {
            for (k = 0; k < 3 * c * 9; k++) {
                y = (i / 2 + k % 9 / 3 + 1) / 2 - i / 2;
                x = (i % 2 + k % 3 + 1) / 2 - i % 2;
                sums[((i * 3 + k / 9 / c) * 4 + y * 2 + x) * c + k / 9 % c] +=
                    w[k];
            }
        }

        halves_t  out = orders(sums.size(), "pack_up", [&](sd_half_t *p) {
            return sd_cuda_pack_up(NULL, p, w.data(), 3, c);
        });

        same = 1;

        for (at = 0; at < sums.size(); at++) {
            same &= out[at] == sd_to_half(sums[at]);
        }

        ok(same, "pack_up of %d channels", c);
    }

    /* every half there and back */

    halves_t  all(65536);
    floats_t  wide(65536);

    for (i = 0; i < 65536; i++) {
        all[i] = (sd_half_t) i;
    }

    (void) sd_cuda_to_float(NULL, wide.data(), all.data(), 65536);

    halves_t  back = orders(65536, "to_half", [&](sd_half_t *p) {
        return sd_cuda_to_half(NULL, p, wide.data(), 65536);
    });

    same = 1;

    for (i = 0; i < 65536; i++) {
        same &= back[i] == i || ((i & 0x7fff) > 0x7c00 && back[i] == 0x7fff);
    }

    ok(same, "every half to float and back");
}


/* as cpu.c has it, but for the model's output in fp16 */

static void
step_reference(const sd_slot_t *t, const sd_half_t *out, int hw, int c,
    float *next, float *kept_next, float *denoised)
{
    int     i, j, nin, hwc;
    float   in[3 + SD_KEPT + 2], v, u;
    size_t  e, at;

    hwc = hw * c;
    nin = 3 + SD_KEPT + 2;

    for (e = 0; e < (size_t) hwc; e++) {
        at = e % hw * c + e / hw;
        memset(in, 0, sizeof(in));

        u = sd_to_float(out[(size_t) t->out * hwc + at]);

        in[0] = t->x[at];
        in[1] = t->guided
                ? u + t->guidance * (sd_to_float(out[(size_t) (t->out + 1) * hwc
                                                     + at]) - u)
                : u;
        in[2] = t->a * in[0] + t->b * in[1];

        if (t->clamp > 0) {
            in[2] = in[2] < -t->clamp ? -t->clamp
                    : in[2] > t->clamp ? t->clamp : in[2];
        }

        for (i = 0; i < t->nkept; i++) {
            in[3 + i] = t->kept[(size_t) i * hwc + at];
        }

        for (j = 0; j < 2; j++) {
            for (i = 0; i <= t->nkept; i++) {
                if (t->m[i][3 + SD_KEPT + j] != 0) {
                    in[3 + SD_KEPT + j] =
                        sd_philox_normal(t->seed, t->draw + j, (uint32_t) e);
                }
            }
        }

        for (i = 0; i <= t->nkept; i++) {
            v = 0;

            for (j = 0; j < nin; j++) {
                v += t->m[i][j] * in[j];
            }

            (i == 0 ? next : kept_next + (size_t) (i - 1) * hwc)[at] = v;
        }

        denoised[at] = in[2];
    }
}


static void
samplers(void)
{
    int        i, j, s, n = 4, hw = 77, c = 4, hwc = hw * c, same;
    floats_t   state[4], expected[4];
    sd_slot_t  slots[4];
    halves_t   out = halves((size_t) 6 * hwc, 3);

    memset(slots, 0, sizeof(slots));

    for (cuda_host_order = 0; cuda_host_order < 3; cuda_host_order++) {
        for (s = 0; s < n; s++) {
            /* x, kept, denoised */
            state[s] = floats((size_t) (2 + SD_KEPT) * hwc);
            expected[s] = state[s];

            sd_slot_t  *t = &slots[s];

            t->scale_in = number();
            t->a = number();
            t->b = number();
            t->clamp = s == 2 ? 0.5f : 0;
            t->guidance = 7.5f;
            t->guided = s != 1;
            t->out = s == 0 ? 3 : s == 1 ? 2 : s == 2 ? 0 : -1;
            t->nkept = s == 1 ? SD_KEPT : s;
            t->draw = 17 + s;
            t->seed = 0x123456789abcdef0u + s;
            t->x = state[s].data();
            t->next = state[s].data();
            t->kept = t->nkept ? state[s].data() + hwc : NULL;
            t->kept_next = (float *) t->kept;
            t->denoised = s == 1 ? NULL : state[s].data() + 5 * hwc;

            for (i = 0; i <= SD_KEPT; i++) {
                for (j = 0; j < 3 + SD_KEPT + 2; j++) {
                    t->m[i][j] = j >= 3 + SD_KEPT + s ? 0 : number();
                }
            }

            if (t->out >= 0) {
                floats_t  unused(hwc);

                step_reference(t, out.data(), hw, c, expected[s].data(),
                               expected[s].data() + hwc,
                               t->denoised ? expected[s].data() + 5 * hwc
                                           : unused.data());
            }
        }

        halves_t  y((size_t) 6 * hwc, 0xffff), want = y;

        for (s = 0; s < n; s++) {
            for (i = 0; i < hwc && slots[s].out >= 0; i++) {
                for (j = 0; j <= slots[s].guided; j++) {
                    want[(size_t) (slots[s].out + j) * hwc + i] =
                        sd_to_half(slots[s].x[i] * slots[s].scale_in);
                }
            }
        }

        (void) sd_cuda_scale_input(NULL, y.data(), slots, n, hwc);
        ok(y == want, "scale_input, order %d", cuda_host_order);

        (void) sd_cuda_sampler_step(NULL, out.data(), slots, n, hw, c);

        for (s = 0; s < n; s++) {
            ok(memcmp(state[s].data(), expected[s].data(),
                      state[s].size() * sizeof(float)) == 0,
               "sampler_step, order %d, slot %d", cuda_host_order, s);
        }
    }

    cuda_host_order = 0;

    floats_t  x(hwc, NAN);

    (void) sd_cuda_noise(NULL, x.data(), 1234567, 3, 14.5f, hw, c);
    same = 1;

    for (i = 0; i < hwc; i++) {
        same &= x[i % hw * c + i / hw]
                == 14.5f * sd_philox_normal(1234567, 3, (uint32_t) i);
    }

    ok(same, "noise");
}


static uint8_t
byte(float v)
{
    v = v * 127.5f + 127.5f;

    return !(v > 0) ? 0 : v >= 255 ? 255 : (uint8_t) (v + 0.5f);
}


static void
pictures(void)
{
    int     i, j, c, same, count;
    float   v;
    size_t  p;

    for (c = 1; c <= 16; c += 3) {
        sd_cuda_rgb_t         rgb;
        floats_t              x = floats(301 * c, 2);
        std::vector<uint8_t>  y(301 * 3, 0xff);

        for (i = 0; i < 16; i++) {
            for (j = 0; j < 3; j++) {
                rgb.factors[i][j] = number();
                rgb.bias[j] = number();
            }
        }

        x[7] = NAN;
        (void) sd_cuda_preview_rgb(NULL, y.data(), x.data(), &rgb, 301, c);
        same = 1;

        for (p = 0; p < 301; p++) {
            for (j = 0; j < 3; j++) {
                v = rgb.bias[j];

                for (i = 0; i < c; i++) {
                    v += x[p * c + i] * rgb.factors[i][j];
                }

                same &= y[p * 3 + j] == byte(v);
            }
        }

        ok(same, "preview_rgb of %d channels", c);
    }

    for (count = 1; count < 9000; count = count * 5 + 1) {
        halves_t              x = halves(count, 1.5f);
        std::vector<uint8_t>  y(count, 0xff);

        x[count / 2] = 0x7e00;
        (void) sd_cuda_image_rgb8(NULL, y.data(), x.data(), count);
        same = 1;

        for (i = 0; i < count; i++) {
            same &= y[i] == byte(sd_to_float(x[i]));
        }

        ok(same, "image_rgb8 of %d", count);

        floats_t  f = floats(count);
        halves_t  a(count, 0xffff), b(count, 0xffff);

        (void) sd_cuda_scale(NULL, a.data(), x.data(), 1, 5.5f, count);
        (void) sd_cuda_scale(NULL, b.data(), f.data(), 0, 5.5f, count);

        for (i = 0; i < count; i++) {
            v = sd_to_float(x[i]);
            same &= (v != v || a[i] == sd_to_half(5.5f * v))
                    && b[i] == sd_to_half(5.5f * f[i]);
        }

        ok(same, "scale of %d", count);
    }

    for (c = 1; c < 900; c = c * 6 + 1) {
        int32_t   ids[6] = { 4, 0, 2, 2, 1, 3 };
        halves_t  table = halves(5 * c), position = halves(3 * c);
        halves_t  y = orders(6 * c, "embed", [&](sd_half_t *out) {
            return sd_cuda_embed(NULL, out, ids, table.data(), position.data(),
                                 2, 3, c);
        });

        same = 1;

        for (i = 0; i < 6 * c; i++) {
            same &= y[i] == sd_to_half(sd_to_float(table[ids[i / c] * c + i % c])
                                       + sd_to_float(position[i % (3 * c)]));
        }

        ok(same, "embed %d", c);
    }
}


int
main(void)
{
    int         i;
    static int  widths[] = { 1, 3, 8, 20, 33, 64, 320, 328, 640, 648, 768, 1024,
                             1280, 2560, 2568 };

    group_norms();

    for (int c : widths) {
        layer_norm(c > 1000 ? 5 : 35, c, 0, 1e-3);
    }

    layer_norm(9, 320, 300, 3e-3);

    for (i = 0; i < 2; i++) {
        geglu(17, 1, i);
        geglu(9, 33, i);
        geglu(33, 128, i);
        geglu(16, 320, i);
    }

    acts();

    softmax(3, 1, 1, 1);
    softmax(3, 33, 40, 10);
    softmax(2, 64, 64, 60000);
    softmax(2, 2048, 2056, 10);
    softmax(2, 4096, 4096, 3);
    softmax(1, 8192, 8192, 10);
    softmax(1, 9000, 9000, 10);
    softmax(1, 20008, 20008, 10);
    softmax(1, 65535, 65535, 10);

    convs();
    layouts();
    samplers();
    pictures();

    return done();
}
