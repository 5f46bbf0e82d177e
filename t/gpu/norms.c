/*
 * The kernels that have sums of rows or groups: group_norm, layer_norm,
 * softmax.
 */

#include "gpu.h"


static void  *scratch;


/* group_norm */

typedef struct {
    int  hw, c, c2, groups, silu, addend;
} norm_t;

static const norm_t  norms[] = {
    /* the UNet's */
    { 4096, 320, 0, 32, 1, 1 }, { 4096, 320, 320, 32, 1, 0 },
    { 4096, 640, 320, 32, 1, 0 }, { 4096, 320, 0, 32, 0, 0 },
    { 1024, 320, 0, 32, 1, 0 }, { 1024, 640, 0, 32, 1, 1 },
    { 1024, 640, 320, 32, 1, 0 }, { 1024, 640, 640, 32, 1, 0 },
    { 1024, 1280, 640, 32, 1, 0 }, { 256, 640, 0, 32, 1, 0 },
    { 256, 1280, 0, 32, 1, 1 }, { 256, 1280, 640, 32, 1, 0 },
    { 256, 1280, 1280, 32, 1, 0 }, { 64, 1280, 0, 32, 1, 1 },
    { 64, 1280, 1280, 32, 1, 0 }, { 9216, 320, 0, 32, 1, 1 },
    { 9216, 640, 320, 32, 1, 0 },
    /* the VAE's */
    { 4096, 512, 0, 32, 1, 0 }, { 16384, 512, 0, 32, 1, 0 },
    { 65536, 512, 0, 32, 1, 0 }, { 65536, 256, 0, 32, 1, 0 },
    { 262144, 256, 0, 32, 1, 0 }, { 262144, 128, 0, 32, 1, 0 },
    /* others */
    { 1, 320, 0, 32, 1, 1 }, { 63, 64, 32, 32, 1, 1 }, { 77, 12, 0, 4, 1, 1 },
    { 1000, 33, 0, 3, 0, 1 }, { 5000, 1, 0, 1, 1, 0 }, { 300, 20, 3, 1, 1, 1 },
    { 999, 128, 0, 32, 1, 1 }, { 2501, 64, 0, 32, 0, 1 },
    { 100, 640, 0, 2, 1, 1 }
};


static void
test_norm(const norm_t *t)
{
    int                    i, j, k, g, p, n, ch, c, cpg, most, same;
    float                 *gamma, *beta, *table;
    size_t                 one, at, size;
    double                *mean, *rstd, v, d, worst;
    sd_half_t             *x[2], *y, *first;
    const float           *rows[16];
    sd_cuda_group_norm_t   a;

    static const int  batches[] = { 2, 1, 16 };

    memset(&a, 0, sizeof(a));

    c = t->c + t->c2;
    cpg = c / t->groups;
    one = (size_t) t->hw * c;
    most = one > ((size_t) 16 << 20) ? 3 : 16;

    gamma = floats(c, 1);
    beta = floats(c, 1);
    table = floats((size_t) 17 * (c + 5), 1);
    x[0] = halves((size_t) 2 * t->hw * t->c, 1.5f);
    x[1] = halves((size_t) 2 * t->hw * t->c2, 3);
    mean = calloc(2 * t->groups, sizeof(double));
    rstd = calloc(2 * t->groups, sizeof(double));
    first = NULL;
    worst = 0;
    same = 1;

    float  *dt = device((size_t) 17 * (c + 5) * 4, table);

    for (i = 0; i < 16; i++) {
        rows[i] = dt + (size_t) (i * 7 % 17) * (c + 5);
    }

    for (k = 0; k < 2; k++) {
        for (i = 0; i < 2; i++) {
            for (p = 0; p < t->hw; p++) {
                for (ch = 0; ch < c; ch++) {
                    g = i * t->groups + ch / cpg;
                    v = ch < t->c
                        ? value(x[0][((size_t) i * t->hw + p) * t->c + ch])
                        : value(x[1][((size_t) i * t->hw + p) * t->c2 + ch
                                     - t->c]);
                    v += t->addend ? table[(i * 7 % 17) * (c + 5) + 5 + ch] : 0;

                    if (k == 0) {
                        mean[g] += v / ((double) t->hw * cpg);
                    } else {
                        rstd[g] += (v - mean[g]) * (v - mean[g])
                                   / ((double) t->hw * cpg);
                    }
                }
            }
        }
    }

    a.gamma = device(c * 4, gamma);
    a.beta = device(c * 4, beta);
    a.addend = t->addend ? device(sizeof(rows), rows) : NULL;
    a.addend_at = 5;
    a.hw = t->hw;
    a.c = t->c;
    a.c2 = t->c2;
    a.groups = t->groups;
    a.eps = 1e-5f;
    a.silu = t->silu;
    a.scratch = scratch;

    for (j = 0; j < 3; j++) {
        n = min(batches[j], most);
        size = (size_t) t->hw * 2;

        sd_half_t  *dx = samples(n, size * t->c, x[0]);
        sd_half_t  *dx2 = samples(n, size * t->c2, x[1]);

        /* in place where that is allowed, once */

        a.n = n;
        a.x = dx;
        a.x2 = t->c2 ? dx2 : NULL;
        a.y = t->c2 || j != 1 ? device(one * 2 * n, NULL) : dx;

        must(cudaMemset(scratch, 0xff, sd_cuda_group_norm_scratch(n, t->hw, c,
                                                                  t->groups)),
             "cudaMemset");
        must(sd_cuda_group_norm(stream, &chip, &a), "group_norm");
        y = host(a.y, one * 2 * n);

        if (j == 0) {
            for (i = 0; i < 20000; i++) {
                at = any(2 * one);
                ch = at % c;
                k = (int) (at / one);
                p = at / c % t->hw;
                g = k * t->groups + ch / cpg;

                v = ch < t->c
                    ? value(x[0][((size_t) k * t->hw + p) * t->c + ch])
                    : value(x[1][((size_t) k * t->hw + p) * t->c2 + ch - t->c]);
                v += t->addend ? table[(k * 7 % 17) * (c + 5) + 5 + ch] : 0;
                d = (v - mean[g]) / sqrt(rstd[g] + 1e-5) * gamma[ch] + beta[ch];

                compare(&worst, value(y[at]), t->silu ? silu(d) : d);
            }

            first = y;

        } else {
            same &= memcmp(first, y, one * 2) == 0;
            free(y);
        }

        if (a.y != dx) {
            cudaFree(a.y);
        }

        cudaFree(dx);
        cudaFree(dx2);
    }

    ok(worst < 1e-3 && same, "group_norm %dx%d+%d, %d groups%s%s: %.1e off%s",
       t->hw, t->c, t->c2, t->groups, t->silu ? ", silu" : "",
       t->addend ? ", addend" : "", worst, same ? "" : ", n changes the bits");

    cudaFree((void *) a.gamma);
    cudaFree((void *) a.beta);
    cudaFree((void *) a.addend);
    cudaFree(dt);
    free(gamma);
    free(beta);
    free(table);
    free(x[0]);
    free(x[1]);
    free(mean);
    free(rstd);
    free(first);
}


static void
test_layer(int rows, int c)
{
    int         i, j, r, same;
    float      *gamma = floats(c, 1), *beta = floats(c, 1), *g, *b;
    double      mean, var, d, worst = 0;
    size_t      size = (size_t) rows * c * 2;
    sd_half_t  *x = halves((size_t) rows * c, 2), *dx, *dy, *y, *z;

    dx = device(size, x);
    dy = device(size, NULL);
    g = device(c * 4, gamma);
    b = device(c * 4, beta);

    must(sd_cuda_layer_norm(stream, dy, dx, g, b, rows, c, 1e-5f), "layer");
    y = host(dy, size);
    must(sd_cuda_layer_norm(stream, dx, dx, g, b, (rows + 1) / 2, c, 1e-5f),
         "layer");
    z = host(dx, size);
    same = memcmp(y, z, (size_t) ((rows + 1) / 2) * c * 2) == 0;

    for (i = 0; i < min(rows, 200); i++) {
        r = (int) any(rows);
        mean = 0;
        var = 0;

        for (j = 0; j < c; j++) {
            mean += value(x[(size_t) r * c + j]) / (double) c;
        }

        for (j = 0; j < c; j++) {
            d = value(x[(size_t) r * c + j]) - mean;
            var += d * d / c;
        }

        for (j = 0; j < c; j++) {
            compare(&worst, value(y[(size_t) r * c + j]),
                    (value(x[(size_t) r * c + j]) - mean) / sqrt(var + 1e-5)
                    * gamma[j] + beta[j]);
        }
    }

    ok(worst < 1e-3 && same, "layer_norm %dx%d: %.1e off%s", rows, c, worst,
       same ? "" : ", rows change the bits");

    cudaFree(dx);
    cudaFree(dy);
    cudaFree(g);
    cudaFree(b);
    free(x);
    free(y);
    free(z);
    free(gamma);
    free(beta);
}


static void
test_softmax(int rows, int cols, int ld, float scale)
{
    int         i, j, r;
    double      top, sum, worst = 0;
    size_t      n = (size_t) rows * ld;
    sd_half_t  *x = halves(n, scale), *dx, *y;

    dx = device(n * 2, x);

    must(sd_cuda_softmax(stream, dx, rows, cols, ld), "softmax");
    y = host(dx, n * 2);

    for (i = 0; i < min(rows, 40); i++) {
        r = (int) any(rows);
        top = -INFINITY;
        sum = 0;

        for (j = 0; j < cols; j++) {
            top = fmax(top, value(x[(size_t) r * ld + j]));
        }

        for (j = 0; j < cols; j++) {
            sum += exp(value(x[(size_t) r * ld + j]) - top);
        }

        for (j = 0; j < ld; j++) {
            double  v = value(x[(size_t) r * ld + j]);

            compare(&worst, value(y[(size_t) r * ld + j]),
                    j < cols ? exp(v - top) / sum : v);
        }
    }

    ok(worst < 3e-4, "softmax %dx%d of %d: %.1e off", rows, cols, ld, worst);

    cudaFree(dx);
    free(x);
    free(y);
}


static void
test(int small)
{
    int  i;

    static const int  widths[] = { 1, 3, 8, 20, 33, 320, 328, 640, 768, 1024,
                                   1280, 2560, 2568 };

    for (i = 0; i < (int) (sizeof(norms) / sizeof(norms[0])); i++) {
        if (!small
            || norms[i].hw * (norms[i].c + norms[i].c2) <= SMALL)
        {
            test_norm(&norms[i]);
        }
    }

    for (i = 0; i < (int) (sizeof(widths) / sizeof(widths[0])); i++) {
        test_layer(small ? 101 : 1001, widths[i]);
    }

    test_softmax(small ? 40 : 4096, 4096, 4096, 10);
    test_softmax(100, 77, 80, 10);
    test_softmax(100, 64, 64, 60000);
    test_softmax(20, 8192, 8192, 10);
    test_softmax(20, 16384, 16384, 10);
    test_softmax(20, 65536, 65536, 10);
    test_softmax(20, 20001, 20008, 10);
}


static cudaError_t
run_norm(const bench_t *b, void *x, void *y)
{
    sd_cuda_group_norm_t  a;

    memset(&a, 0, sizeof(a));
    a.y = y;
    a.x = x;
    a.x2 = b->c2 ? (sd_half_t *) ((char *) x + b->in) : NULL;
    a.gamma = b->extra[0];
    a.beta = b->extra[0];
    a.addend = b->extra[1];
    a.n = b->n;
    a.hw = b->a;
    a.c = b->c;
    a.c2 = b->c2;
    a.groups = 32;
    a.eps = 1e-5f;
    a.silu = 1;
    a.scratch = scratch;

    return sd_cuda_group_norm(stream, &chip, &a);
}


static cudaError_t
run_layer(const bench_t *b, void *x, void *y)
{
    return sd_cuda_layer_norm(stream, y, x, b->extra[0], b->extra[0], b->a,
                              b->c, 1e-5f);
}


static cudaError_t
run_softmax(const bench_t *b, void *x, void *y)
{
    return sd_cuda_softmax(stream, x, b->a, b->c, b->c);
}


static void
benches(void)
{
    int           i, j, n;
    void         *f32, *table;
    float        *ones = floats(1 << 15, 1);
    bench_t       b;
    const float  *rows[16];

    static const int  layers[][2] = { { 4096, 320 }, { 1024, 640 },
                                      { 256, 1280 }, { 64, 1280 } };
    static const int  batches[] = { 2, 16 };

    f32 = device((1 << 15) * 4, ones);

    for (i = 0; i < 16; i++) {
        rows[i] = f32;
    }

    table = device(sizeof(rows), rows);

    for (j = 0; j < 2; j++) {
        for (i = 0; i < 23; i++) {
            const norm_t  *t = &norms[i];

            memset(&b, 0, sizeof(b));
            n = batches[j];

            /* the VAE decodes one or two pictures at once */

            if (i >= 17) {
                n = j + 1;
            }

            b.run = run_norm;
            b.n = n;
            b.a = t->hw;
            b.c = t->c;
            b.c2 = t->c2;
            b.in = (size_t) n * t->hw * t->c * 2;
            b.in2 = (size_t) n * t->hw * t->c2 * 2;
            b.out = b.in + b.in2;
            b.extra[0] = f32;
            b.extra[1] = t->addend ? table : NULL;
            snprintf(b.name, sizeof(b.name), "group_norm %d x %d x %d%s%.0d%s",
                     n, t->hw, t->c, t->c2 ? "+" : "", t->c2,
                     t->addend ? " addend" : "");
            bench(&b);
        }
    }

    for (j = 0; j < 2; j++) {
        for (i = 0; i < 4; i++) {
            memset(&b, 0, sizeof(b));
            b.run = run_layer;
            b.a = batches[j] * layers[i][0];
            b.c = layers[i][1];
            b.in = b.out = (size_t) b.a * b.c * 2;
            b.extra[0] = f32;
            snprintf(b.name, sizeof(b.name), "layer_norm %d x %d", b.a, b.c);
            bench(&b);
        }
    }

    memset(&b, 0, sizeof(b));
    b.run = run_softmax;
    b.a = 4096;
    b.c = 4096;

    /* in place: what is read is written, too, but memory is one */

    b.in = (size_t) 4096 * 4096 * 2;
    b.in2 = 0;
    b.out = b.in;
    snprintf(b.name, sizeof(b.name), "softmax 4096 x 4096");
    bench(&b);
}


int
main(int argc, char **argv)
{
    scratch = device((size_t) 8 << 20, NULL);

    return run(argc, argv, test, benches);
}
