/*
 * sd_cuda_product_sm90() on a Hopper GPU: outputs here and there against double
 * precision, no output left out, the same bits with fewer rows; and how long it
 * takes at Stable Diffusion 1.5's sizes, with weights that are not in the
 * cache, beside the time at 755 TFLOP/s or 3.0 TB/s.
 *
 * usage: product [test | bench]
 */

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "../../cuda/kernels.h"
#include "../unit/tap.h"


#define GUARD     4096          /* bytes behind the output that stay as is */
#define LAUNCHES  20
#define COLD      ((size_t) 128 << 20)


typedef enum {
    PLAIN,
    ADD,
    GLU
} form_t;

static const char  *forms[] = { "", " + residual", ", geglu" };


static const struct {
    int     rows, cols, c, bias;
    form_t  form;
} tests[] = {
    { 128, 320, 64, 1, GLU }, { 1, 8, 8, 1, GLU }, { 77, 168, 40, 0, GLU },
    { 155, 1304, 328, 1, GLU }, { 300, 256, 320, 0, GLU },
    { 1000, 1280, 320, 1, GLU }, { 129, 2560, 640, 1, GLU },
    { 700, 5120, 1280, 1, GLU }, { 64, 5120, 1280, 1, GLU },
    { 2304, 1280, 320, 1, GLU }, { 17000, 128, 64, 1, GLU },
    { 128, 320, 64, 1, PLAIN }, { 1, 8, 8, 1, ADD },
    { 77, 168, 40, 0, PLAIN }, { 77, 168, 40, 1, ADD }, { 155, 1304, 328, 1, ADD },
    { 1000, 320, 320, 0, PLAIN }, { 2304, 960, 320, 1, PLAIN },
    { 700, 640, 2560, 1, ADD }, { 17000, 320, 64, 1, ADD }
};

/* rows of a picture of 512 x 512, by two for one with guidance */

static const int  sizes[][2] = {
    { 4096, 320 }, { 1024, 640 }, { 256, 1280 }, { 64, 1280 }
};


static cudaStream_t    stream;
static sd_cuda_chip_t  chip;
static uint64_t        seed = 1;


#define CHECK(call)                                                           \
    do {                                                                      \
        cudaError_t  rc_ = (call);                                            \
        if (rc_ != cudaSuccess) {                                             \
            printf("Bail out! %s:%d: %s: %s\n", __FILE__, __LINE__, #call,    \
                   cudaGetErrorString(rc_));                                  \
            exit(1);                                                          \
        }                                                                     \
    } while (0)


static uint32_t
any(void)
{
    seed = seed * 6364136223846793005 + 1442695040888963407;

    return (uint32_t) (seed >> 33);
}


static sd_half_t *
halves(size_t n, float scale)
{
    size_t      i;
    _Float16   *p = malloc(n * 2);

    for (i = 0; i < n; i++) {
        p[i] = (_Float16) (((float) (any() & 0xffff)
                            + (float) (any() & 0xffff) - 65535)
                           * scale / 26755);
    }

    return (sd_half_t *) p;
}


static void *
device(const void *from, size_t size)
{
    void  *p;

    CHECK(cudaMalloc(&p, size));
    CHECK(cudaMemcpy(p, from, size, cudaMemcpyHostToDevice));

    return p;
}


static double
dot(const _Float16 *a, const _Float16 *b, int n)
{
    int     i;
    double  sum;

    for (i = 0, sum = 0; i < n; i++) {
        sum += (double) a[i] * (double) b[i];
    }

    return sum;
}


/* element j of row r, as it is to be */

static double
wanted(const sd_cuda_product_t *q, const _Float16 *x, const _Float16 *w,
    const _Float16 *b, const _Float16 *add, int r, int j)
{
    double  v, g;

    v = dot(x + (size_t) r * q->c, w + (size_t) j * q->c, q->c);
    v += q->bias ? (double) b[j] : 0;
    v += q->add ? (double) add[(size_t) r * q->cols + j] : 0;

    if (!q->glu) {
        return v;
    }

    j += q->cols;
    g = dot(x + (size_t) r * q->c, w + (size_t) j * q->c, q->c);
    g += q->bias ? (double) b[j] : 0;

    return v * 0.5 * g * (1 + erf(g * 0.70710678118654752440));
}


static void
test(int rows, int cols, int c, int bias, form_t form)
{
    int                 i, j, r, few, left, wide, tiles;
    size_t              size;
    double              v, d, error, all;
    _Float16           *x, *w, *b, *y, *z, *add;
    sd_cuda_product_t   q;

    size = (size_t) rows * cols * 2;
    wide = form == GLU ? 2 * cols : cols;

    x = (_Float16 *) halves((size_t) rows * c, 1);
    w = (_Float16 *) halves((size_t) wide * c, 1.5f / sqrtf((float) c));
    b = (_Float16 *) halves((size_t) wide, 0.5f);
    add = (_Float16 *) halves((size_t) rows * cols + GUARD / 2, 1);
    y = malloc(size + GUARD);
    z = malloc(size + GUARD);

    /* what is there before */

    memset(y, 0xff, size + GUARD);
    memcpy(y, add, form == ADD ? size : 0);
    memcpy(add, y, size + GUARD);

    q.x = device(x, (size_t) rows * c * 2);
    q.w = device(w, (size_t) wide * c * 2);
    q.bias = bias ? device(b, (size_t) wide * 2) : NULL;
    q.y = device(y, size + GUARD);
    q.rows = rows;
    q.cols = cols;
    q.c = c;
    q.glu = form == GLU;
    q.add = form == ADD;
    q.tile = -1;

    printf("# %d x %d x %d%s%s\n", rows, cols, c, bias ? ", bias" : "",
           forms[form]);

    ok(!q.glu || sd_cuda_product_sm90_takes(&chip, &q), "  taken");

    /* copies from here may be under way yet */
    CHECK(cudaDeviceSynchronize());

    CHECK(sd_cuda_product_sm90(stream, &chip, &q));
    CHECK(cudaStreamSynchronize(stream));
    CHECK(cudaMemcpy(y, q.y, size + GUARD, cudaMemcpyDeviceToHost));

    for (i = 0, left = 0; i < rows; i++) {
        for (j = 0; j < cols; j++) {
            d = (double) y[(size_t) i * cols + j];
            left += d != d;
        }
    }

    ok(left == 0, "  all written (%d are not)", left);

    for (i = 0, left = 0; i < GUARD; i++) {
        left += ((unsigned char *) y)[size + i] != 0xff;
    }

    ok(left == 0, "  nothing beyond");

    error = 0;
    all = 0;

    for (i = 0; i < 4000; i++) {
        r = i < 200 ? rows - 1 - i % (rows < 3 ? rows : 3)
                    : (int) (any() % (unsigned) rows);
        j = i > 3800 ? cols - 1 - i % 8 : (int) (any() % (unsigned) cols);

        v = wanted(&q, x, w, b, add, r, j);
        d = (double) y[(size_t) r * cols + j] - v;
        error += d * d;
        all += v * v;
    }

    ok(error / all < (q.add ? 4e-7 : 2e-7), "  error: nmse %.1e",
       error / all);

    few = (rows + 9) / 10;
    q.rows = few;
    tiles = q.glu ? SD_CUDA_GLU_TILES : SD_CUDA_PRODUCT_TILES;

    for (q.tile = q.glu ? 0 : SD_CUDA_GLU_TILES; q.tile < tiles; q.tile++) {

        CHECK(cudaMemcpyAsync(q.y, add, size + GUARD, cudaMemcpyHostToDevice,
                              stream));
        CHECK(sd_cuda_product_sm90(stream, &chip, &q));
        CHECK(cudaStreamSynchronize(stream));
        CHECK(cudaMemcpy(z, q.y, size + GUARD, cudaMemcpyDeviceToHost));

        ok(memcmp(y, z, (size_t) few * cols * 2) == 0
           && memcmp((char *) z + (size_t) few * cols * 2,
                     (char *) add + (size_t) few * cols * 2,
                     size + GUARD - (size_t) few * cols * 2) == 0,
           "  the same bits of %d rows by tile %d, and nothing beyond", few,
           q.tile);
    }

    q.rows = rows;

    for (q.tile = q.glu ? 0 : SD_CUDA_GLU_TILES; q.tile < tiles; q.tile++) {

        CHECK(cudaMemcpyAsync(q.y, add, size + GUARD, cudaMemcpyHostToDevice,
                              stream));
        CHECK(sd_cuda_product_sm90(stream, &chip, &q));
        CHECK(cudaStreamSynchronize(stream));
        CHECK(cudaMemcpy(z, q.y, size + GUARD, cudaMemcpyDeviceToHost));

        ok(memcmp(y, z, size + GUARD) == 0, "  the same bits by tile %d",
           q.tile);
    }

    CHECK(cudaFree((void *) q.x));
    CHECK(cudaFree((void *) q.w));
    CHECK(cudaFree((void *) q.bias));
    CHECK(cudaFree(q.y));

    free(x);
    free(w);
    free(b);
    free(add);
    free(y);
    free(z);
}


static int
compare(const void *a, const void *b)
{
    float  x = *(const float *) a, y = *(const float *) b;

    return (x > y) - (x < y);
}


static void
bench(int rows, int cols, int c, form_t form)
{
    int                i, best, wide, first, tiles;
    float              ms[9], us, least;
    size_t             one, weights;
    double             flops, bytes, floor;
    sd_half_t         *w;
    cudaGraph_t        graph;
    cudaEvent_t        from, to;
    cudaGraphExec_t    exec;
    sd_cuda_product_t  q;

    wide = form == GLU ? 2 * cols : cols;
    one = (size_t) wide * c;
    weights = COLD / 2 / one + 1;

    CHECK(cudaMalloc((void **) &q.x, (size_t) rows * c * 2));
    CHECK(cudaMalloc((void **) &w, one * weights * 2));
    CHECK(cudaMalloc((void **) &q.y, (size_t) rows * cols * 2));
    CHECK(sd_cuda_random(stream, (sd_half_t *) q.x, (size_t) rows * c));
    CHECK(sd_cuda_random(stream, w, one * weights));
    CHECK(sd_cuda_random(stream, q.y, (size_t) rows * cols));

    q.bias = w;
    q.add = form == ADD;
    q.rows = rows;
    q.cols = cols;
    q.c = c;
    q.glu = form == GLU;

    CHECK(cudaEventCreate(&from));
    CHECK(cudaEventCreate(&to));
    printf("# %6d x %5d x %4d%s:", rows, wide, c, forms[form]);

    least = 0;
    best = 0;
    first = q.glu ? 0 : SD_CUDA_GLU_TILES;
    tiles = q.glu ? SD_CUDA_GLU_TILES : SD_CUDA_PRODUCT_TILES;

    for (q.tile = -1; q.tile < tiles;
         q.tile = q.tile < first ? first : q.tile + 1)
    {
        CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));

        for (i = 0; i < LAUNCHES; i++) {
            q.w = w + i % weights * one;
            CHECK(sd_cuda_product_sm90(stream, &chip, &q));
        }

        CHECK(cudaStreamEndCapture(stream, &graph));
        CHECK(cudaGraphInstantiate(&exec, graph, 0));

        for (i = 0; i < 9; i++) {
            CHECK(cudaEventRecord(from, stream));
            CHECK(cudaGraphLaunch(exec, stream));
            CHECK(cudaEventRecord(to, stream));
            CHECK(cudaEventSynchronize(to));
            CHECK(cudaEventElapsedTime(&ms[i], from, to));
        }

        CHECK(cudaGraphExecDestroy(exec));
        CHECK(cudaGraphDestroy(graph));

        qsort(ms, 9, sizeof(float), compare);
        us = ms[4] * 1000 / LAUNCHES;

        if (q.tile < 0 || us < least) {
            least = us;
            best = q.tile;
        }

        printf(" %.1f%s", us, q.tile < 0 ? " us, by tile" : "");
    }

    flops = 2.0 * rows * one;
    bytes = 2.0 * ((double) rows * (c + (1 + q.add) * cols)
                   + (double) one);
    floor = fmax(flops / 755e12, bytes / 3.0e12) * 1e6;

    printf("; best %d, floor %.1f, %.0f TFLOP/s\n", best, floor,
           flops / least * 1e-6);

    CHECK(cudaEventDestroy(from));
    CHECK(cudaEventDestroy(to));
    CHECK(cudaFree((void *) q.x));
    CHECK(cudaFree(w));
    CHECK(cudaFree(q.y));
}


int
main(int argc, char **argv)
{
    int                    i, n, c, rows;
    struct cudaDeviceProp  p;

    CHECK(cudaGetDeviceProperties(&p, 0));
    CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));

    chip.arch = p.major * 10 + p.minor;
    chip.sms = p.multiProcessorCount;
    chip.shared = (int) p.sharedMemPerBlockOptin;

    printf("# %s, sm_%d\n", p.name, chip.arch);

    if (chip.arch != 90) {
        printf("1..0 # skip: not a Hopper\n");
        return 0;
    }

    if (argc < 2 || strcmp(argv[1], "test") == 0) {
        for (i = 0; i < (int) (sizeof(tests) / sizeof(tests[0])); i++) {
            test(tests[i].rows, tests[i].cols, tests[i].c, tests[i].bias,
                 tests[i].form);
        }
    }

    if (argc < 2 || strcmp(argv[1], "bench") == 0) {
        for (n = 2; n <= 16; n *= 8) {
            for (i = 0; i < 4; i++) {
                rows = n * sizes[i][0];
                c = sizes[i][1];

                bench(rows, 4 * c, c, GLU);
                bench(rows, c, c, PLAIN);
                bench(rows, c, c, ADD);
                bench(rows, 3 * c, c, PLAIN);
                bench(rows, c, 4 * c, ADD);
            }
        }
    }

    return done();
}
