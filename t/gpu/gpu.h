/*
 * What the tests of our kernels on a real GPU share: a device, memory, numbers,
 * and measuring.  Each program tests launchers against references in double
 * precision computed on the host, outputs poisoned before, and that a sample
 * alone and in a batch has the same bits; then how long each takes at the
 * shapes of Stable Diffusion 1.5, beside the time its bytes need at 3.0 TB/s.
 *
 * convs              tests and measures
 * convs test, convs bench, convs bench conv_up
 * convs small        tests what is quick enough for compute-sanitizer
 *
 * One program a file, as tap.h.
 */

#ifndef GPU_H
#define GPU_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "../../cuda/kernels.h"
#include "../unit/tap.h"


#define COLD       ((size_t) 120 << 20)     /* more than twice any L2 */
#define BANDWIDTH  3.0e12
#define SMALL      330000                   /* elements of a small test */

#define min(a, b)  ((a) < (b) ? (a) : (b))
#define max(a, b)  ((a) > (b) ? (a) : (b))


/*
 * Not a cudaStreamNonBlocking: launches must come after cudaMemset, which does
 * not wait, and after cudaMemcpy, which may return before the bytes are there.
 */
static cudaStream_t    stream;
static sd_cuda_chip_t  chip;
static const char     *only;        /* what to measure */


static inline void
must(cudaError_t rc, const char *what)
{
    if (rc != cudaSuccess) {
        printf("Bail out! %s: %s\n", what, cudaGetErrorString(rc));
        exit(1);
    }
}


static inline void *
device(size_t size, const void *from)
{
    void  *p;

    must(cudaMalloc(&p, size + 16), "cudaMalloc");

    if (from == NULL) {
        must(cudaMemset(p, 0xff, size + 16), "cudaMemset");
    } else {
        must(cudaMemcpy(p, from, size, cudaMemcpyHostToDevice), "cudaMemcpy");
    }

    return p;
}


static inline void *
host(const void *p, size_t size)
{
    void  *h = malloc(size + 16);

    must(cudaStreamSynchronize(stream), "a kernel");
    must(cudaMemcpy(h, p, size, cudaMemcpyDeviceToHost), "cudaMemcpy");

    return h;
}


/* a batch of n samples of size bytes: the two of from, again and again */

static inline void *
samples(int n, size_t size, const void *from)
{
    int    i;
    char  *p = device(size * n, NULL);

    for (i = 0; i < n; i++) {
        must(cudaMemcpy(p + i * size, (const char *) from + i % 2 * size, size,
                        cudaMemcpyHostToDevice), "cudaMemcpy");
    }

    return p;
}


/* halves, rounded to nearest even */

static inline float
value(sd_half_t h)
{
    float     f;
    uint32_t  bits, e = h >> 10 & 31;

    if (e == 0) {
        f = (float) (h & 1023) * 0x1p-24f;
        return h & 0x8000 ? -f : f;
    }

    bits = (uint32_t) (h & 0x8000) << 16 | (uint32_t) (h & 1023) << 13
           | (e == 31 ? 255 : e + 112) << 23;
    memcpy(&f, &bits, 4);

    return f;
}


static inline sd_half_t
half(float f)
{
    float     g;
    uint32_t  bits, a, sign;

    memcpy(&bits, &f, 4);
    sign = bits >> 16 & 0x8000;
    a = bits & 0x7fffffff;

    if (a > 0x7f800000) {
        return 0x7fff;
    }

    if (a >= 0x477ff000) {
        return (sd_half_t) (sign | 0x7c00);
    }

    if (a < 0x38800000) {
        memcpy(&g, &a, 4);
        g += 0.5f;
        memcpy(&a, &g, 4);
        return (sd_half_t) (sign | (a - 0x3f000000));
    }

    a += 0xfff + (a >> 13 & 1);

    return (sd_half_t) (sign | (a - 0x38000000) >> 13);
}


static uint64_t  seed = 1;


static inline float
number(void)
{
    seed = seed * 6364136223846793005 + 1442695040888963407;
    return (float) ((int32_t) (seed >> 32) * 0x1p-31);
}


static inline sd_half_t *
halves(size_t n, float scale)
{
    size_t      i;
    sd_half_t  *p = malloc(n * 2 + 16);

    for (i = 0; i < n; i++) {
        p[i] = half(number() * scale);
    }

    return p;
}


static inline float *
floats(size_t n, float scale)
{
    size_t  i;
    float  *p = malloc(n * 4 + 16);

    for (i = 0; i < n; i++) {
        p[i] = number() * scale;
    }

    return p;
}


static inline size_t
any(size_t n)
{
    seed = seed * 6364136223846793005 + 1442695040888963407;
    return (size_t) (seed >> 20) % n;
}


/* the larger of *worst and how far y is from ref, relative where ref > 1 */

static inline void
compare(double *worst, double y, double ref)
{
    double  d = fabs(y - ref) / fmax(1, fabs(ref));

    if (!(d <= *worst)) {
        *worst = d == d ? d : INFINITY;
    }
}


static inline double
silu(double x)
{
    return x / (1 + exp(-x));
}


/* measuring: launches that take turns with sets of buffers */

typedef struct bench_s  bench_t;

struct bench_s {
    cudaError_t  (*run)(const bench_t *b, void *x, void *y);
    char           name[64];
    size_t         in, in2, out;        /* bytes of x, x2 behind it, and y */
    int            n, a, b, c, c2, k;
    void          *extra[3];
};


static inline int
ascending(const void *a, const void *b)
{
    return (*(float *) a > *(float *) b) - (*(float *) a < *(float *) b);
}


static inline float
measure(const bench_t *b, char *memory, size_t stride, int sets, int launches)
{
    int              i;
    float            ms[7];
    cudaEvent_t      from, to;
    cudaGraph_t      graph;
    cudaGraphExec_t  exec;

    must(cudaEventCreate(&from), "event");
    must(cudaEventCreate(&to), "event");
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "graph");

    for (i = 0; i < launches; i++) {
        char  *x = memory + i % sets * stride;

        must(b->run(b, x, x + (b->in + b->in2 + 255) / 256 * 256), b->name);
    }

    must(cudaStreamEndCapture(stream, &graph), "graph");
    must(cudaGraphInstantiate(&exec, graph, 0), "graph");

    for (i = -1; i < 7; i++) {
        must(cudaEventRecord(from, stream), "event");
        must(cudaGraphLaunch(exec, stream), "graph");
        must(cudaEventRecord(to, stream), "event");
        must(cudaEventSynchronize(to), b->name);

        if (i >= 0) {
            must(cudaEventElapsedTime(&ms[i], from, to), "event");
        }
    }

    qsort(ms, 7, sizeof(float), ascending);

    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaEventDestroy(from);
    cudaEventDestroy(to);

    return ms[3] * 1000 / launches;
}


static inline void
bench(const bench_t *b)
{
    int         sets;
    char       *memory;
    float       cold, warm;
    double      floor;
    size_t      i, n, bytes, stride;
    sd_half_t  *noise;

    if (only != NULL && strncmp(b->name, only, strlen(only)) != 0) {
        return;
    }

    bytes = b->in + b->in2 + b->out;
    stride = (b->in + b->in2 + 255) / 256 * 256 + (b->out + 255) / 256 * 256;
    sets = (int) max(2, min(COLD / stride + 1, 400));

    memory = device(stride * sets, NULL);
    n = (size_t) 1 << 20;
    noise = halves(n, 2);

    /* numbers, not zeros, as they may cost power */

    for (i = 0; i < stride * sets; i += n * 2) {
        must(cudaMemcpy(memory + i, noise, min(n * 2, stride * sets - i),
                        cudaMemcpyHostToDevice), "copy");
    }

    cold = measure(b, memory, stride, sets, max(20, sets));
    warm = measure(b, memory, stride, 1, 20);
    floor = bytes / BANDWIDTH * 1e6;

    printf("# %-40s cold %7.2f us, warm %7.2f, floor %6.2f, cold / floor "
           "%5.2f\n", b->name, cold, warm, floor, cold / floor);
    fflush(stdout);

    cudaFree(memory);
    free(noise);
}


/* what main() does; test: of whether only what does not take long */

static inline int
run(int argc, char **argv, void (*test)(int small), void (*benches)(void))
{
    struct cudaDeviceProp  p;

    must(cudaGetDeviceProperties(&p, 0), "cudaGetDeviceProperties");

    /* one that waits for what cudaMemcpy() and cudaMemset() leave to be done */

    must(cudaStreamCreate(&stream), "stream");

    chip.arch = p.major * 10 + p.minor;
    chip.sms = p.multiProcessorCount;
    chip.shared = (int) p.sharedMemPerBlockOptin;

    printf("# %s, sm_%d, %d multiprocessors, %d bytes shared\n", p.name,
           chip.arch, chip.sms, chip.shared);

    only = argc > 2 ? argv[2] : NULL;

    if (argc < 2 || strcmp(argv[1], "test") == 0) {
        test(0);
    }

    if (argc > 1 && strcmp(argv[1], "small") == 0) {
        test(1);
    }

    if (argc < 2 || strcmp(argv[1], "bench") == 0) {
        benches();
    }

    return done();
}


#endif
