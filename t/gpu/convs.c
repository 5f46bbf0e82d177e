/*
 * The convolutions: conv_direct; on Hopper conv_up and conv_sm90.
 */

#include "gpu.h"


typedef struct {
    int  h, w, c, c2, k, r, stride, up, odd, residual;
} conv_t;

static const conv_t  convs[] = {
    { 64, 64, 4, 0, 320, 3, 1, 0, 0, 0 }, { 64, 64, 320, 0, 4, 3, 1, 0, 0, 0 },
    { 64, 64, 4, 0, 512, 3, 1, 0, 0, 0 },
    { 512, 512, 128, 0, 3, 3, 1, 0, 0, 0 },
    { 64, 64, 4, 0, 4, 1, 1, 0, 0, 0 }, { 37, 51, 4, 0, 72, 3, 2, 0, 0, 1 },
    { 13, 9, 3, 0, 64, 3, 1, 0, 0, 1 }, { 9, 8, 9, 4, 32, 3, 1, 1, 1, 0 },
    { 40, 33, 64, 32, 8, 3, 1, 0, 0, 1 }, { 40, 33, 64, 32, 5, 3, 2, 0, 0, 0 },
    { 17, 16, 24, 0, 3, 3, 1, 1, 1, 1 }, { 70, 19, 40, 0, 1, 3, 1, 0, 0, 1 },
    { 9, 9, 33, 0, 20, 3, 1, 0, 0, 1 }, { 16, 16, 12, 20, 20, 3, 2, 0, 0, 0 },
    { 8, 9, 20, 12, 33, 1, 1, 0, 0, 1 }, { 8, 8, 64, 0, 64, 3, 1, 1, 0, 1 }
};


static void
test_conv(const conv_t *t)
{
    int              i, j, a, b, n, y, x, m, ch, iy, ix, oh, ow, c, same;
    double           s, worst = 0;
    size_t           at, in, one, weights;
    sd_half_t       *hx, *hx2, *hw, *hb, *hr, *out, *first;
    sd_cuda_conv_t   d;

    static const int  batches[] = { 2, 1, 16 };

    memset(&d, 0, sizeof(d));

    c = t->c + t->c2;
    oh = t->up ? 2 * t->h - t->odd : (t->h - 1) / t->stride + 1;
    ow = t->up ? 2 * t->w - t->odd : (t->w - 1) / t->stride + 1;
    in = (size_t) t->h * t->w;
    one = (size_t) oh * ow * t->k;
    weights = (size_t) t->k * t->r * t->r * c;

    hx = halves(2 * in * t->c, 1);
    hx2 = halves(2 * in * t->c2, 1);
    hw = halves(weights, 0.3f);
    hb = halves(t->k, 1);
    hr = halves(2 * one, 1);
    first = NULL;
    same = 1;

    d.w = device(weights * 2, hw);
    d.bias = device(t->k * 2, hb);
    d.h = t->h;
    d.wd = t->w;
    d.c = t->c;
    d.c2 = t->c2;
    d.oh = oh;
    d.ow = ow;
    d.k = t->k;
    d.r = t->r;
    d.stride = t->stride;
    d.upsample = t->up;

    for (j = 0; j < 3; j++) {
        n = min(batches[j], in * c > 1 << 24 ? 3 : 16);

        sd_half_t  *dx = samples(n, in * t->c * 2, hx);
        sd_half_t  *dx2 = samples(n, in * t->c2 * 2, hx2);
        sd_half_t  *dy = t->residual ? samples(n, one * 2, hr)
                                     : device(one * 2 * n, NULL);

        d.n = n;
        d.x = dx;
        d.x2 = t->c2 ? dx2 : NULL;
        d.y = dy;
        d.residual = t->residual ? dy : NULL;

        must(sd_cuda_conv_direct(stream, &chip, &d), "conv_direct");
        out = host(dy, one * 2 * n);

        for (i = 0; j == 0 && i < 3000; i++) {
            at = i < 300 ? (size_t) i % (2 * one) : any(2 * one);
            m = at % t->k;
            x = at / t->k % ow;
            y = at / t->k / ow % oh;
            n = (int) (at / one);
            s = value(hb[m]) + (t->residual ? value(hr[at]) : 0);

            for (a = 0; a < t->r; a++) {
                for (b = 0; b < t->r; b++) {
                    iy = y * t->stride + a - t->r / 2;
                    ix = x * t->stride + b - t->r / 2;

                    if (iy < 0 || ix < 0 || iy >= (t->up ? oh : t->h)
                        || ix >= (t->up ? ow : t->w))
                    {
                        continue;
                    }

                    iy >>= t->up;
                    ix >>= t->up;

                    for (ch = 0; ch < c; ch++) {
                        s += (double) value(ch < t->c
                             ? hx[((n * in) + (size_t) iy * t->w + ix) * t->c
                                  + ch]
                             : hx2[((n * in) + (size_t) iy * t->w + ix) * t->c2
                                   + ch - t->c])
                             * value(hw[((size_t) (m * t->r + a) * t->r + b) * c
                                        + ch]);
                    }
                }
            }

            compare(&worst, value(out[at]), s);
        }

        if (j == 0) {
            first = out;

        } else {
            same &= memcmp(first, out, one * 2) == 0;
            free(out);
        }

        cudaFree(dx);
        cudaFree(dx2);
        cudaFree(dy);
    }

    ok(worst < 1e-3 && same, "conv %dx%d, %dx%dx%d+%d to %d, stride %d%s%s: "
       "%.1e off%s", t->r, t->r, t->h, t->w, t->c, t->c2, t->k, t->stride,
       t->up ? ", enlarged" : "", t->residual ? ", residual" : "", worst,
       same ? "" : ", n changes the bits");

    cudaFree((void *) d.w);
    cudaFree((void *) d.bias);
    free(hx);
    free(hx2);
    free(hw);
    free(hb);
    free(hr);
    free(first);
}


/* weights are F32 for the reference: what their sums lose is an error, too */

static void
test_conv_up(int h, int w, int c, int k)
{
    int              i, j, a, b, n, y, x, m, ch, iy, ix, same;
    float           *hw, *dw;
    double           s, worst = 0;
    size_t           at, in, one;
    sd_half_t       *hx, *hb, *packed, *out, *first;
    sd_cuda_conv_t   d;

    static const int  batches[] = { 2, 1, 5, 16 };

    if (chip.arch != 90) {
        return;
    }

    memset(&d, 0, sizeof(d));

    in = (size_t) h * w * c;
    one = (size_t) 4 * h * w * k;

    hx = halves(2 * in, 1);
    hb = halves(k, 1);
    hw = floats((size_t) k * c * 9, 1 / sqrtf((float) c));
    first = NULL;
    same = 1;

    dw = device((size_t) k * c * 9 * sizeof(float), hw);
    packed = device((size_t) 16 * k * c * 2, NULL);
    must(sd_cuda_pack_up(stream, packed, dw, k, c), "pack_up");

    d.w = packed;
    d.bias = device(k * 2, hb);
    d.h = h;
    d.wd = w;
    d.c = c;
    d.oh = 2 * h;
    d.ow = 2 * w;
    d.k = k;
    d.r = 3;
    d.stride = 1;
    d.upsample = 1;

    for (j = 0; j < 4; j++) {
        n = min(batches[j], one > 1 << 24 ? 3 : 16);

        sd_half_t  *dx = samples(n, in * 2, hx);
        sd_half_t  *dy = device(one * 2 * n, NULL);

        d.n = n;
        d.x = dx;
        d.y = dy;

        if (!sd_cuda_conv_up_takes(&chip, &d)) {
            ok(0, "conv_up takes %dx%dx%d to %d", h, w, c, k);
            exit(1);
        }

        must(sd_cuda_conv_up(stream, &chip, &d), "conv_up");
        out = host(dy, one * 2 * n);

        for (i = 0; j == 0 && i < 3000; i++) {
            at = i < 300 ? (size_t) i % (2 * one) : any(2 * one);
            m = at % k;
            x = at / k % (2 * w);
            y = at / k / (2 * w) % (2 * h);
            s = value(hb[m]);

            for (a = -1; a < 2; a++) {
                for (b = -1; b < 2; b++) {
                    iy = y + a;
                    ix = x + b;

                    if (iy < 0 || ix < 0 || iy >= 2 * h || ix >= 2 * w) {
                        continue;
                    }

                    for (ch = 0; ch < c; ch++) {
                        s += (double) value(hx[at / one * in
                                               + ((size_t) iy / 2 * w + ix / 2)
                                                 * c + ch])
                             * hw[((size_t) m * c + ch) * 9 + a * 3 + b + 4];
                    }
                }
            }

            compare(&worst, value(out[at]), s);
        }

        for (at = 0; at < one * n; at++) {
            same &= (out[at] & 0x7c00) != 0x7c00;
        }

        if (j == 0) {
            first = out;

        } else {
            same &= memcmp(first, out, one * 2) == 0;
            free(out);
        }

        cudaFree(dx);
        cudaFree(dy);
    }

    ok(worst < 1.5e-3 && same, "conv_up %dx%dx%d to %d: %.1e off%s", h, w, c, k,
       worst, same ? "" : ", n changes the bits");

    cudaFree((void *) d.w);
    cudaFree((void *) d.bias);
    cudaFree(dw);
    free(hx);
    free(hw);
    free(hb);
    free(first);
}


/* a kernel's every way to do it, which are to give the same bits */

static void
test_conv_sm90(int h, int w, int c, int k, int residual)
{
    int              i, j, a, b, n, y, x, m, way, ways, same;
    double           s, worst = 0;
    size_t           at, in, one, weights;
    sd_half_t       *hx, *hw, *hb, *hr, *out, *first;
    cudaError_t      rc;
    sd_cuda_conv_t   d;

    static const int  batches[] = { 2, 1, 5, 16 };

    if (chip.arch != 90) {
        return;
    }

    memset(&d, 0, sizeof(d));

    in = (size_t) h * w * c;
    one = (size_t) h * w * k;
    weights = (size_t) k * 9 * c;

    hx = halves(2 * in, 1);
    hw = halves(weights, 1 / sqrtf((float) c));
    hb = halves(k, 1);
    hr = halves(2 * one, 1);
    first = NULL;
    same = 1;
    ways = 0;

    d.w = device(weights * 2, hw);
    d.bias = device(k * 2, hb);
    d.h = d.oh = h;
    d.wd = d.ow = w;
    d.c = c;
    d.k = k;
    d.r = 3;
    d.stride = 1;

    for (j = 0; j < 4; j++) {
        n = batches[j];

        sd_half_t  *dx = samples(n, in * 2, hx);
        sd_half_t  *dy = device(one * 2 * n, NULL);
        sd_half_t  *dr = samples(n, one * 2, hr);

        d.n = n;
        d.x = dx;
        d.y = dy;
        d.residual = residual ? dy : NULL;

        if (!sd_cuda_conv_sm90_takes(&chip, &d)) {
            ok(0, "conv_sm90 takes %dx%dx%d to %d", h, w, c, k);
            exit(1);
        }

        for (way = 0; way <= SD_CUDA_CONV_WAYS; way++) {
            d.way = way;

            must(residual ? cudaMemcpyAsync(dy, dr, one * 2 * n,
                                            cudaMemcpyDeviceToDevice, stream)
                          : cudaMemsetAsync(dy, 0xff, one * 2 * n, stream),
                 "copy");

            rc = sd_cuda_conv_sm90(stream, &chip, &d);

            if (way && rc == cudaErrorInvalidValue) {
                continue;
            }

            must(rc, "conv_sm90");
            out = host(dy, one * 2 * n);
            ways += way > 0;

            for (at = 0; at < one * n; at++) {
                same &= (out[at] & 0x7c00) != 0x7c00;
            }

            if (first == NULL) {
                first = out;
                continue;
            }

            for (i = 0; i < n; i++) {
                same &= memcmp(first + i % 2 * one, out + i * one, one * 2)
                        == 0;
            }

            free(out);
        }

        cudaFree(dx);
        cudaFree(dy);
        cudaFree(dr);
    }

    for (i = 0; i < 3000; i++) {
        at = i < 300 ? (size_t) i : any(2 * one);
        m = at % k;
        x = at / k % w;
        y = at / k / w % h;
        s = value(hb[m]) + (residual ? value(hr[at]) : 0);

        for (a = -1; a < 2; a++) {
            for (b = -1; b < 2; b++) {
                if (y + a < 0 || x + b < 0 || y + a >= h || x + b >= w) {
                    continue;
                }

                for (j = 0; j < c; j++) {
                    s += (double) value(hx[at / one * in
                                           + ((size_t) (y + a) * w + x + b) * c
                                           + j])
                         * value(hw[((size_t) m * 9 + a * 3 + b + 4) * c + j]);
                }
            }
        }

        compare(&worst, value(first[at]), s);
    }

    ok(worst < 1.5e-3 && same && ways, "conv_sm90 %dx%dx%d to %d%s: %.1e off, "
       "%d runs%s", h, w, c, k, residual ? ", residual" : "", worst, ways,
       same ? "" : ", bits differ");

    cudaFree((void *) d.w);
    cudaFree((void *) d.bias);
    free(hx);
    free(hw);
    free(hb);
    free(hr);
    free(first);
}


static void
test(int small)
{
    int  i;

    for (i = 0; i < (int) (sizeof(convs) / sizeof(convs[0])); i++) {
        if (!small
            || convs[i].h * convs[i].w * convs[i].c * convs[i].k <= SMALL)
        {
            test_conv(&convs[i]);
        }
    }

    test_conv_up(32, 32, 640, 640);
    test_conv_up(16, 16, 1280, 1280);
    test_conv_up(8, 8, 1280, 1280);
    test_conv_up(64, 64, 512, 512);
    test_conv_up(128, 128, 256, 256);
    test_conv_up(64, 36, 640, 640);
    test_conv_up(13, 9, 72, 88);
    test_conv_up(1, 1, 8, 8);
    test_conv_up(5, 200, 320, 24);

    test_conv_sm90(8, 8, 1280, 1280, 1);
    test_conv_sm90(8, 8, 2560, 1280, 0);
    test_conv_sm90(16, 16, 1280, 1280, 1);
    test_conv_sm90(16, 16, 640, 1280, 0);
    test_conv_sm90(32, 32, 640, 640, 1);
    test_conv_sm90(32, 32, 320, 640, 0);
    test_conv_sm90(64, 64, 320, 320, 1);
    test_conv_sm90(64, 64, 960, 320, 0);
    test_conv_sm90(24, 24, 320, 640, 1);
    test_conv_sm90(40, 72, 64, 160, 1);
    test_conv_sm90(16, 8, 64, 320, 1);
    test_conv_sm90(8, 8, 64, 160, 0);
}


static cudaError_t
run_conv(const bench_t *b, void *x, void *y)
{
    sd_cuda_conv_t  d = {
        .y = y, .x = x, .w = b->extra[0], .bias = b->extra[0], .n = b->n,
        .h = b->a, .wd = b->b, .c = b->c, .oh = b->a, .ow = b->b, .k = b->k,
        .r = 3, .stride = 1
    };

    return sd_cuda_conv_direct(stream, &chip, &d);
}


static cudaError_t
run_conv_up(const bench_t *b, void *x, void *y)
{
    sd_cuda_conv_t  d = {
        .y = y, .x = x, .w = b->extra[0], .bias = b->extra[0], .n = b->n,
        .h = b->a, .wd = b->b, .c = b->c, .oh = 2 * b->a, .ow = 2 * b->b,
        .k = b->c, .r = 3, .stride = 1, .upsample = 1
    };

    return sd_cuda_conv_up(stream, &chip, &d);
}


/* x is what there is much of: the weights */

static cudaError_t
run_conv_sm90(const bench_t *b, void *x, void *y)
{
    sd_cuda_conv_t  d = {
        .y = y, .x = b->extra[0], .w = x, .bias = b->extra[1],
        .residual = b->extra[2], .n = b->n, .h = b->a, .wd = b->a, .c = b->c,
        .oh = b->a, .ow = b->a, .k = b->k, .r = 3, .stride = 1
    };

    return sd_cuda_conv_sm90(stream, &chip, &d);
}


static void
benches(void)
{
    int         i, n;
    void       *f16;
    bench_t     b;
    sd_half_t  *small = halves(1 << 20, 0.1f);

    f16 = device((1 << 20) * 2, small);

    for (i = 0; i < 5; i++) {
        memset(&b, 0, sizeof(b));
        b.run = run_conv;
        b.n = i == 2 ? 1 : i == 4 ? 16 : i == 3 ? 1 : 2;
        b.a = b.b = i == 3 ? 512 : 64;
        b.c = i == 0 || i == 2 ? 4 : i == 3 ? 128 : 320;
        b.k = i == 0 ? 320 : i == 2 ? 512 : i == 3 ? 3 : 4;
        b.in = (size_t) b.n * b.a * b.b * b.c * 2;
        b.out = (size_t) b.n * b.a * b.b * b.k * 2;
        b.extra[0] = f16;
        snprintf(b.name, sizeof(b.name), "conv_direct %d x %dx%d x %d to %d",
                 b.n, b.a, b.b, b.c, b.k);
        bench(&b);
    }

    static const int  ups[][3] = { { 2, 32, 640 }, { 2, 16, 1280 },
                                   { 2, 8, 1280 }, { 16, 32, 640 },
                                   { 16, 16, 1280 }, { 16, 8, 1280 },
                                   { 1, 64, 512 }, { 1, 128, 512 },
                                   { 1, 256, 256 } };

    void  *weights = device((size_t) 16 * 1280 * 1280 * 2, NULL);

    must(sd_cuda_random(stream, weights, (size_t) 16 * 1280 * 1280), "random");

    for (i = 0; i < 9 && chip.arch == 90; i++) {
        memset(&b, 0, sizeof(b));
        b.run = run_conv_up;
        b.n = ups[i][0];
        b.a = b.b = ups[i][1];
        b.c = ups[i][2];
        b.in = (size_t) b.n * b.a * b.b * b.c * 2;
        b.out = 4 * b.in;
        b.extra[0] = weights;
        snprintf(b.name, sizeof(b.name), "conv_up %d x %dx%d x %d", b.n, b.a,
                 b.b, b.c);
        bench(&b);
    }

    static const int  threes[][3] = { { 64, 320, 320 }, { 64, 640, 320 },
                                      { 64, 960, 320 }, { 32, 320, 640 },
                                      { 32, 640, 640 }, { 32, 960, 640 },
                                      { 32, 1280, 640 }, { 32, 1920, 640 },
                                      { 16, 640, 1280 }, { 16, 1280, 1280 },
                                      { 16, 1920, 1280 }, { 16, 2560, 1280 },
                                      { 8, 1280, 1280 }, { 8, 2560, 1280 } };
    static const int  pictures[] = { 2, 4, 16 };

    n = 16 * 64 * 64 * 960;

    sd_half_t  *pixels = device((size_t) n * 2, NULL);

    must(sd_cuda_random(stream, pixels, n), "random");

    for (i = 0; i < 3 * 14 && chip.arch == 90; i++) {
        memset(&b, 0, sizeof(b));
        b.run = run_conv_sm90;
        b.n = pictures[i / 14];
        b.a = threes[i % 14][0];
        b.c = threes[i % 14][1];
        b.k = threes[i % 14][2];
        b.in = (size_t) b.k * 9 * b.c * 2;
        b.out = (size_t) b.n * b.a * b.a * b.k * 2;
        b.extra[0] = pixels;
        b.extra[1] = f16;
        b.extra[2] = b.c == b.k ? pixels : NULL;
        snprintf(b.name, sizeof(b.name), "conv_sm90 %d x %dx%d x %d to %d",
                 b.n, b.a, b.a, b.c, b.k);
        bench(&b);
    }
}


int
main(int argc, char **argv)
{
    return run(argc, argv, test, benches);
}
