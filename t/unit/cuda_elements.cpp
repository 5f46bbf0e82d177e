/*
 * CUDA kernels, run on the host (cuda/cuda_host.h) against references in double
 * precision: activations, layouts, embeddings, the sampler, pictures.
 */

#include "cuda/reference.h"

#include "../../cuda/activation.cu"
#include "../../cuda/embed.cu"
#include "../../cuda/layout.cu"
#include "../../cuda/picture.cu"
#include "../../cuda/sampler.cu"


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
            same &= y[i]
                    == sd_to_half(sd_to_float(table[ids[i / c] * c + i % c])
                                  + sd_to_float(position[i % (3 * c)]));
        }

        ok(same, "embed %d", c);
    }
}


int
main(void)
{
    int  i;

    for (i = 0; i < 2; i++) {
        geglu(17, 1, i);
        geglu(9, 33, i);
        geglu(33, 128, i);
        geglu(16, 320, i);
    }

    acts();

    layouts();
    samplers();
    pictures();

    return done();
}
