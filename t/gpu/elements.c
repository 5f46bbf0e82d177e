/*
 * The kernels to which one element is like the next: activations, layouts,
 * embeddings, the sampler, pictures.
 */

#include "gpu.h"

#include "../../src/ops/philox.h"


static double
gelu(double x)
{
    return 0.5 * x * (1 + erf(x * 0.70710678118654752440));
}


static void
test_geglu(int rows, int inner)
{
    int         i;
    double      worst = 0;
    size_t      at, n = (size_t) rows * inner;
    sd_half_t  *x = halves(2 * n, 4), *r = halves(n, 1), *dx, *dy, *y;

    dx = device(n * 4, x);
    dy = device(n * 2, r);

    must(sd_cuda_geglu(stream, dy, dx, dy, rows, inner), "geglu");
    y = host(dy, n * 2);

    for (i = 0; i < 50000; i++) {
        at = any(n);
        compare(&worst, value(y[at]),
                value(x[at / inner * 2 * inner + at % inner])
                * gelu(value(x[at / inner * 2 * inner + inner + at % inner]))
                + value(r[at]));
    }

    ok(worst < 6e-4, "geglu %dx%d + residual: %.1e off", rows, inner, worst);

    cudaFree(dx);
    cudaFree(dy);
    free(x);
    free(r);
    free(y);
}


static void
test_act(int act, size_t n)
{
    double      v, worst = 0;
    size_t      i;
    sd_half_t  *x = halves(n, 12), *dx, *y;

    x[0] = half(60000);
    x[n - 1] = half(-60000);
    dx = device(n * 2, x);

    must(sd_cuda_act(stream, dx, dx, NULL, n, act), "act");
    y = host(dx, n * 2);

    for (i = 0; i < n; i++) {
        v = value(x[i]);
        v = act == 1 ? silu(v) : act == 2 ? gelu(v)
            : act == 3 ? v / (1 + exp(-1.702 * v))
            : act == 4 ? 0.5 * v * (1 + tanh(0.79788456080286535588
                                             * (v + 0.044715 * v * v * v)))
            : v;
        compare(&worst, value(y[i]), v);
    }

    ok(worst < 6e-4, "act %d of %zu: %.1e off", act, n, worst);

    cudaFree(dx);
    free(x);
    free(y);
}


static void
test_layouts(int c)
{
    int         i, x, same, h = 5, w = 7, oh = 9, ow = 14;
    float      *f, *df;
    size_t      at, n;
    sd_half_t  *in, *in2, *out, *dx, *dx2, *dy;

    /* nearest x2, to one row less */

    n = (size_t) 2 * oh * ow * c;
    in = halves((size_t) 2 * h * w * c, 1);
    in2 = halves((size_t) 70 * 8, 1);
    dx = device((size_t) 2 * h * w * c * 2, in);
    dx2 = device((size_t) 70 * 8 * 2, in2);
    dy = device(n * 2, NULL);

    must(sd_cuda_upsample(stream, dy, dx, 2, h, w, c, oh, ow), "upsample");
    out = host(dy, n * 2);
    same = 1;

    for (at = 0; at < (size_t) 2 * oh * ow; at++) {
        x = (int) (at / (oh * ow)) * h * w + (int) (at / ow % oh) / 2 * w
            + (int) (at % ow) / 2;
        same &= memcmp(out + at * c, in + (size_t) x * c, c * 2) == 0;
    }

    free(out);
    cudaFree(dy);

    dy = device((size_t) 70 * (c + 8) * 2, NULL);
    must(sd_cuda_concat(stream, dy, dx, dx2, 70, c, 8), "concat");
    out = host(dy, (size_t) 70 * (c + 8) * 2);

    for (i = 0; i < 70; i++) {
        same &= memcmp(out + i * (c + 8), in + i * c, c * 2) == 0
                && memcmp(out + i * (c + 8) + c, in2 + i * 8, 16) == 0;
    }

    free(out);
    cudaFree(dy);

    f = floats((size_t) 5 * c * 9, 1);
    df = device((size_t) 5 * c * 9 * 4, f);
    n = (size_t) 8 * 9 * (c + 3);
    dy = device(n * 2, NULL);
    must(sd_cuda_pack(stream, dy, df, 5, c, 3, 8, c + 3), "pack");
    out = host(dy, n * 2);

    for (at = 0; at < n; at++) {
        i = (int) (at / (9 * (c + 3)));
        x = at % (c + 3);
        same &= out[at] == (i < 5 && x < c
                            ? half(f[(i * c + x) * 9 + at / (c + 3) % 9]) : 0);
    }

    free(out);

    must(sd_cuda_to_half(stream, dy, df, 5 * c), "to_half");
    out = host(dy, 5 * c * 2);

    for (i = 0; i < 5 * c; i++) {
        same &= out[i] == half(f[i]);
    }

    free(f);
    must(sd_cuda_to_float(stream, df, dx, 5 * c), "to_float");
    f = host(df, 5 * c * 4);

    for (i = 0; i < 5 * c; i++) {
        same &= f[i] == value(in[i]);
    }

    ok(same, "upsample, concat, pack, to_half, to_float: %d channels", c);

    cudaFree(dx);
    cudaFree(dx2);
    cudaFree(dy);
    cudaFree(df);
    free(in);
    free(in2);
    free(out);
    free(f);
}


static void
test_sampler(void)
{
    int         i, j, s, e, hw = 64 * 64, c = 4, hwc = hw * c, same, equal;
    float      *x, *dx, *y, in[3 + SD_KEPT + 2], v, u;
    double      worst;
    sd_slot_t   slots[4], *ds;
    sd_half_t  *out, *dout, *di, *input;

    x = floats((size_t) 4 * 6 * hwc, 1);
    out = halves((size_t) 6 * hwc, 3);
    dx = device((size_t) 4 * 6 * hwc * 4, x);
    dout = device((size_t) 6 * hwc * 2, out);
    di = device((size_t) 6 * hwc * 2, NULL);
    memset(slots, 0, sizeof(slots));

    for (s = 0; s < 4; s++) {
        slots[s].scale_in = number();
        slots[s].a = number();
        slots[s].b = number();
        slots[s].clamp = s == 2 ? 0.5f : 0;
        slots[s].guidance = 7.5f;
        slots[s].guided = s != 1;
        slots[s].out = s == 0 ? 3 : s == 1 ? 2 : s == 2 ? 0 : -1;
        slots[s].nkept = s == 1 ? SD_KEPT : s;
        slots[s].draw = 17 + s;
        slots[s].seed = 0x123456789abcdef0u + s;
        slots[s].x = dx + (size_t) s * 6 * hwc;
        slots[s].next = (float *) slots[s].x;
        slots[s].kept = slots[s].x + hwc;
        slots[s].kept_next = (float *) slots[s].kept;
        slots[s].denoised = slots[s].next + 5 * (size_t) hwc;

        for (i = 0; i <= SD_KEPT; i++) {
            for (j = 0; j < 3 + SD_KEPT + 2; j++) {
                slots[s].m[i][j] = j >= 3 + SD_KEPT + s ? 0 : number();
            }
        }
    }

    ds = device(sizeof(slots), slots);
    must(sd_cuda_scale_input(stream, di, ds, 4, hwc), "scale_input");
    must(sd_cuda_sampler_step(stream, dout, ds, 4, hw, c), "sampler_step");
    input = host(di, (size_t) 6 * hwc * 2);
    y = host(dx, (size_t) 4 * 6 * hwc * 4);
    same = 1;
    equal = 1;
    worst = 0;

    for (s = 0; s < 4; s++) {
        for (e = 0; e < hwc; e++) {
            sd_slot_t    *t = &slots[s];
            size_t        at = (size_t) e % hw * c + e / hw;
            const float  *a = x + (size_t) s * 6 * hwc;
            const float  *b = y + (size_t) s * 6 * hwc;

            if (t->out < 0) {
                for (i = 0; i < 6; i++) {
                    same &= a[(size_t) i * hwc + at]
                            == b[(size_t) i * hwc + at];
                }

                continue;
            }

            for (i = 0; i <= t->guided; i++) {
                same &= input[(size_t) (t->out + i) * hwc + at]
                        == half(a[at] * t->scale_in);
            }

            memset(in, 0, sizeof(in));
            u = value(out[(size_t) t->out * hwc + at]);
            in[0] = a[at];
            in[1] = t->guided
                    ? u + t->guidance
                          * (value(out[(size_t) (t->out + 1) * hwc + at]) - u)
                    : u;
            in[2] = t->a * in[0] + t->b * in[1];
            in[2] = t->clamp > 0 ? min(max(in[2], -t->clamp), t->clamp) : in[2];

            for (i = 0; i < t->nkept; i++) {
                in[3 + i] = a[(size_t) (1 + i) * hwc + at];
            }

            for (j = 0; j < min(s, 2); j++) {
                in[3 + SD_KEPT + j] = sd_philox_normal(t->seed, t->draw + j, e);
            }

            for (i = 0; i <= t->nkept; i++) {
                v = 0;

                for (j = 0; j < 3 + SD_KEPT + 2; j++) {
                    v += t->m[i][j] * in[j];
                }

                compare(&worst, b[(size_t) i * hwc + at], v);
                equal &= b[(size_t) i * hwc + at] == v;
            }

            for ( /* void */ ; i <= SD_KEPT; i++) {
                same &= a[(size_t) i * hwc + at] == b[(size_t) i * hwc + at];
            }

            equal &= b[(size_t) 5 * hwc + at] == in[2];
        }
    }

    for (i = 0; i < hwc; i++) {
        same &= input[(size_t) 5 * hwc + i] == 0xffff;
    }

    ok(same, "scale_input, empty slots");
    ok(worst < 1e-5, "sampler_step: %.1e off%s", worst,
       equal ? ", the cpu's bits" : "");

    free(y);
    must(sd_cuda_noise(stream, dx, 987654321987654321u, 5, 14.6f, hw, c),
         "noise");
    y = host(dx, (size_t) hwc * 4);
    same = 0;

    for (e = 0; e < hwc; e++) {
        same += y[e % hw * c + e / hw]
                == 14.6f * sd_philox_normal(987654321987654321u, 5, e);
    }

    ok(same == hwc, "noise: the cpu's bits in %d of %d", same, hwc);

    cudaFree(dx);
    cudaFree(dout);
    cudaFree(di);
    cudaFree(ds);
    free(x);
    free(out);
    free(y);
    free(input);
}


static uint8_t
byte(float v)
{
    v = v * 127.5f + 127.5f;

    return !(v > 0) ? 0 : v >= 255 ? 255 : (uint8_t) (v + 0.5f);
}


static void
test_pictures(int c)
{
    int             i, j, same, n = 64 * 64;
    float          *x, *dx, v;
    uint8_t        *y, *dy;
    int32_t         ids[6] = { 4, 0, 2, 2, 1, 3 }, *di;
    sd_half_t      *h, *dh, *out, *dout, *position, *dp;
    sd_cuda_rgb_t   rgb;

    for (i = 0; i < 48; i++) {
        rgb.factors[i / 3][i % 3] = number();
        rgb.bias[i % 3] = number();
    }

    x = floats((size_t) n * c, 2);
    h = halves((size_t) n * c, 1.5f);
    x[7] = NAN;
    h[3] = 0x7e00;
    dx = device((size_t) n * c * 4, x);
    dh = device((size_t) n * c * 2, h);
    dy = device((size_t) n * 3, NULL);
    dout = device((size_t) n * c * 2, NULL);

    must(sd_cuda_preview_rgb(stream, dy, dx, &rgb, n, c), "preview_rgb");
    y = host(dy, (size_t) n * 3);
    same = 1;

    for (i = 0; i < n * 3; i++) {
        v = rgb.bias[i % 3];

        for (j = 0; j < c; j++) {
            v += x[i / 3 * c + j] * rgb.factors[j][i % 3];
        }

        same &= y[i] == byte(v);
    }

    free(y);
    must(sd_cuda_image_rgb8(stream, (uint8_t *) dout, dh, (size_t) n * c - 3),
         "image_rgb8");
    y = host(dout, (size_t) n * c);

    for (i = 0; i < n * c - 3; i++) {
        same &= y[i] == byte(value(h[i]));
    }

    ok(same, "preview_rgb, image_rgb8: the cpu's bytes, %d channels", c);

    must(sd_cuda_scale(stream, dout, dx, 0, 5.5f, (size_t) n * c), "scale");
    out = host(dout, (size_t) n * c * 2);
    same = 1;

    for (i = 8; i < n * c; i++) {
        same &= out[i] == half(5.5f * x[i]);
    }

    free(out);
    must(sd_cuda_scale(stream, dout, dh, 1, 5.5f, (size_t) n * c), "scale");
    out = host(dout, (size_t) n * c * 2);

    for (i = 8; i < n * c; i++) {
        same &= out[i] == half(5.5f * value(h[i]));
    }

    free(out);

    /* 5 rows of the table, two samples of 3 tokens */

    position = halves((size_t) 3 * c, 1);
    dp = device((size_t) 3 * c * 2, position);
    di = device(sizeof(ids), ids);
    must(sd_cuda_embed(stream, dout, di, dh + 8 * c, dp, 2, 3, c), "embed");
    out = host(dout, (size_t) 6 * c * 2);

    for (i = 0; i < 6 * c; i++) {
        same &= out[i] == half(value(h[(8 + ids[i / c]) * c + i % c])
                               + value(position[i % (3 * c)]));
    }

    free(y);
    must(sd_cuda_add_bias(stream, dx, dp, 5, c), "add_bias");
    y = host(dx, (size_t) 5 * c * 4);

    for (i = 8; i < 5 * c; i++) {
        same &= ((float *) y)[i] == x[i] + value(position[i % c]);
    }

    ok(same, "scale, embed, add_bias: %d channels", c);

    cudaFree(dx);
    cudaFree(dh);
    cudaFree(dy);
    cudaFree(dout);
    cudaFree(dp);
    cudaFree(di);
    free(x);
    free(h);
    free(y);
    free(out);
    free(position);
}


static void
test(int small)
{
    int     i;
    size_t  n;

    test_geglu(small ? 82 : 8192, 1280);
    test_geglu(77, 5120);
    test_geglu(33, 1);
    test_geglu(19, 100);

    for (i = 0; i < 5; i++) {
        for (n = 2; n < 100000; n = n * 17 + 3) {
            test_act(i, n);
        }
    }

    test_layouts(1);
    test_layouts(33);
    test_layouts(64);
    test_sampler();
    test_pictures(3);
    test_pictures(4);
    test_pictures(16);
}


static cudaError_t
run_geglu(const bench_t *b, void *x, void *y)
{
    return sd_cuda_geglu(stream, y, x, NULL, b->a, b->c);
}


static cudaError_t
run_upsample(const bench_t *b, void *x, void *y)
{
    return sd_cuda_upsample(stream, y, x, b->n, b->a, b->b, b->c, 2 * b->a,
                            2 * b->b);
}


static cudaError_t
run_image(const bench_t *b, void *x, void *y)
{
    return sd_cuda_image_rgb8(stream, y, x, b->out);
}


static cudaError_t
run_step(const bench_t *b, void *x, void *y)
{
    return sd_cuda_sampler_step(stream, b->extra[0], b->extra[1], b->n, b->a,
                                4);
}


static void
benches(void)
{
    int         i, j;
    void       *f16, *f32;
    float      *ones = floats(1 << 15, 1);
    bench_t     b;
    sd_slot_t   slot;
    sd_half_t  *small = halves(1 << 20, 0.1f);

    static const int  layers[][2] = { { 4096, 320 }, { 1024, 640 },
                                      { 256, 1280 }, { 64, 1280 } };
    static const int  batches[] = { 2, 16 };

    f32 = device((1 << 15) * 4, ones);
    f16 = device((1 << 20) * 2, small);

    for (j = 0; j < 2; j++) {
        for (i = 0; i < 4; i++) {
            memset(&b, 0, sizeof(b));
            b.run = run_geglu;
            b.a = batches[j] * layers[i][0];
            b.c = layers[i][1] * 4;
            b.in = (size_t) b.a * b.c * 4;
            b.out = b.in / 2;
            snprintf(b.name, sizeof(b.name), "geglu %d x %d", b.a, b.c);
            bench(&b);
        }
    }

    memset(&b, 0, sizeof(b));
    b.run = run_upsample;
    b.n = 1;
    b.a = b.b = 128;
    b.c = 512;
    b.in = (size_t) 128 * 128 * 512 * 2;
    b.out = 4 * b.in;
    snprintf(b.name, sizeof(b.name), "upsample 128x128x512");
    bench(&b);

    memset(&b, 0, sizeof(b));
    b.run = run_image;
    b.out = 512 * 512 * 3;
    b.in = 2 * b.out;
    snprintf(b.name, sizeof(b.name), "image_rgb8 512x512");
    bench(&b);

    memset(&slot, 0, sizeof(slot));
    slot.x = f32;
    slot.next = device(1 << 16, NULL);
    slot.guided = 1;
    slot.guidance = 7.5f;
    slot.a = 1;
    slot.m[0][0] = 1;

    for (i = 0; i < 2; i++) {
        slot.m[0][3 + SD_KEPT] = (float) i;

        memset(&b, 0, sizeof(b));
        b.run = run_step;
        b.n = 1;
        b.a = 64 * 64;
        b.in = 64 * 64 * 4 * 8;
        b.out = 64 * 64 * 4 * 4;
        b.extra[0] = f16;
        b.extra[1] = device(sizeof(slot), &slot);
        snprintf(b.name, sizeof(b.name), "sampler_step%s",
                 i ? " with noise" : "");
        bench(&b);
    }
}


int
main(int argc, char **argv)
{
    return run(argc, argv, test, benches);
}
