/*
 * sd_cuda_attention() on the GPU: against double precision on the host, the
 * same bits whatever is computed along, and how long it takes.
 *
 * usage: attention [row]: row: a number, of the table's rows; or small, tiny:
 * those that are quick enough for compute-sanitizer, and its racecheck
 */

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "../../cuda/kernels.h"


#define MOST      16            /* samples */
#define GUARD     4096          /* bytes behind the output that stay as is */
#define LAUNCHES  20


typedef enum {
    SELF,                       /* views of one fused tensor */
    CROSS,                      /* k, v of tables that kv points to */
    CAUSAL,                     /* as SELF */
    ODD,                        /* as SELF, rows and pointers not aligned */
    GROWING                     /* as SELF, later keys count more and more */
} shape_t;

typedef struct {
    shape_t   shape;
    int       heads, d, lq, lk;
    int       timed;
} row_t;


static const row_t  rows[] = {

    /* SD 1.5 */
    { SELF,   8,  40, 4096, 4096, 1 },
    { SELF,   8,  80, 1024, 1024, 1 },
    { SELF,   8, 160,  256,  256, 1 },
    { SELF,   8, 160,   64,   64, 1 },
    { CROSS,  8,  40, 4096,   77, 1 },
    { CROSS,  8,  80, 1024,   77, 1 },
    { CROSS,  8, 160,  256,   77, 1 },
    { CROSS,  8, 160,   64,   77, 1 },
    { CAUSAL, 12, 64,   77,   77, 1 },

    /* SD 2.1 */
    { SELF,   5,  64, 4096, 4096, 1 },
    { SELF,  10,  64, 1024, 1024, 1 },
    { SELF,  20,  64,  256,  256, 1 },
    { SELF,  20,  64,   64,   64, 1 },
    { CROSS,  5,  64, 4096,   77, 1 },
    { CROSS, 10,  64, 1024,   77, 1 },
    { CROSS, 20,  64,  256,   77, 1 },
    { CROSS, 20,  64,   64,   77, 1 },
    { CAUSAL, 16, 64,   77,   77, 1 },

    /* pictures of other sizes */
    { SELF,   8,  40,  312,  312, 0 },
    { SELF,   8,  80,  312,  312, 0 },
    { SELF,   5,  64,  312,  312, 0 },
    { SELF,   8, 160,  312,  312, 0 },
    { SELF,   8,  40, 1000, 1000, 0 },
    { SELF,   8,  80, 1000, 1000, 0 },
    { SELF,   5,  64, 1000, 1000, 0 },
    { SELF,   1,  40,  513,  513, 0 },
    { SELF,   3,  80,  527,  641, 0 },
    { SELF,   1,  64,   30,  700, 0 },
    { SELF,   8, 160, 1000, 1000, 0 },

    /* heads of any width, few keys, no alignment */
    { SELF,   3,   2,   50,   50, 0 },
    { SELF,   2,   1,    9,   17, 0 },
    { SELF,   2,   3,   33,  129, 0 },
    { SELF,   4,   8,   70,   64, 0 },
    { SELF,   5,  15,  100,  100, 0 },
    { SELF,   4,  16,  100,  300, 0 },
    { SELF,   4,  20,   61,   61, 0 },
    { SELF,   4,  32,  129,  257, 0 },
    { SELF,   3,  33,   65,   90, 0 },
    { SELF,   3,  48,   65,  190, 0 },
    { SELF,   3,  96,   65,  190, 0 },
    { SELF,   3, 128,  200,  600, 0 },
    { SELF,   2, 150,   31,   45, 0 },
    { SELF,   2,  40,   20,    1, 0 },
    { SELF,   2, 160,    1,    1, 0 },
    { SELF,   2, 160,   17,   16, 0 },
    { CROSS,  4,  20,   65,   77, 0 },
    { CROSS,  3,  15,   65,   77, 0 },
    { CROSS,  8,  40,   65,   77, 0 },
    { CROSS,  8, 160,   65,  154, 0 },
    { CROSS,  8,  40, 1000,  600, 0 },
    { CAUSAL, 2,  16,   40,   40, 0 },
    { CAUSAL, 2,  40,  300,  300, 0 },
    { CAUSAL, 2, 160,  300,  300, 0 },
    { CAUSAL, 1,  96,    5,    5, 0 },
    { GROWING, 2,  40, 1000, 1000, 0 },
    { GROWING, 2,  64, 1000, 1000, 0 },
    { GROWING, 2,  80, 1000, 1000, 0 },
    { GROWING, 2, 160, 1000, 1000, 0 },
    { GROWING, 2,  40,   77,   77, 0 },
    { ODD,    8,  40,  600,  600, 0 },
    { ODD,    2,  64,  100,  100, 0 },
    { ODD,    2, 160,   40,  140, 0 },
};

#define NROWS  ((int) (sizeof(rows) / sizeof(rows[0])))


static int             tests, failures;
static cudaStream_t    stream;
static sd_cuda_chip_t  chip;


#define CHECK(call)                                                           \
    do {                                                                      \
        cudaError_t  rc_ = (call);                                            \
        if (rc_ != cudaSuccess) {                                             \
            printf("Bail out! %s:%d: %s: %s\n", __FILE__, __LINE__, #call,    \
                   cudaGetErrorString(rc_));                                  \
            exit(1);                                                          \
        }                                                                     \
    } while (0)


static void
ok(int good, const char *what, const char *of)
{
    printf("%sok %d - %s: %s\n", good ? "" : "not ", ++tests, of, what);
    failures += !good;
}


static float  halves[65536];


static void
halves_make(void)
{
    int     h, e;
    double  v;

    for (h = 0; h < 65536; h++) {
        e = h >> 10 & 31;
        v = h & 1023;

        v = e == 31 ? (v ? NAN : INFINITY)
            : e ? ldexp(v + 1024, e - 25) : ldexp(v, -24);

        halves[h] = h & 0x8000 ? -v : v;
    }
}


static double
from_half(sd_half_t h)
{
    return halves[h];
}


/* |x| < 65504, rounded to nearest, ties away: it is a random number anyway */

static sd_half_t
to_half(double x)
{
    int     e;
    double  m;

    m = frexp(fabs(x), &e);

    if (e < -13) {
        return (x < 0 ? 0x8000 : 0) | (int) (fabs(x) * 0x1p24 + 0.5);
    }

    /* a carry out of the mantissa goes where it should */
    return (x < 0 ? 0x8000 : 0) | (((e + 13) << 10)
                                   + (int) (m * 2048 + 0.5));
}


/* [-1, 1) * scale */

static void
randoms(sd_half_t *p, size_t n, unsigned seed, double scale)
{
    size_t    i;
    uint64_t  s = seed * 0x9e3779b97f4a7c15 + 1;

    for (i = 0; i < n; i++) {
        s = s * 6364136223846793005 + 1442695040888963407;
        p[i] = to_half((int32_t) (s >> 32) * 0x1p-31 * scale);
    }
}


/* ref: [d] = a row of the output; q: the row's head, k, v: the first key's */

static void
reference(double *ref, const sd_half_t *q, const sd_half_t *k,
    const sd_half_t *v, int ldk, int keys, int d, double scale)
{
    int     i, j;
    double  sum, max, *s, x[160];

    s = malloc(keys * sizeof(double));

    for (j = 0; j < d; j++) {
        x[j] = from_half(q[j]);
        ref[j] = 0;
    }

    max = -INFINITY;

    for (i = 0; i < keys; i++) {
        s[i] = 0;

        for (j = 0; j < d; j++) {
            s[i] += x[j] * from_half(k[(size_t) i * ldk + j]);
        }

        s[i] *= scale;
        max = s[i] > max ? s[i] : max;
    }

    sum = 0;

    for (i = 0; i < keys; i++) {
        s[i] = exp(s[i] - max);
        sum += s[i];

        for (j = 0; j < d; j++) {
            ref[j] += s[i] * from_half(v[(size_t) i * ldk + j]);
        }
    }

    for (j = 0; j < d; j++) {
        ref[j] /= sum;
    }

    free(s);
}


static int
compare_floats(const void *a, const void *b)
{
    return *(const float *) a < *(const float *) b ? -1 : 1;
}


/* us a call, the median of graphs of LAUNCHES */

static double
measure(const sd_cuda_attention_t *a)
{
    int              i;
    float            ms[9];
    cudaGraph_t      graph;
    cudaEvent_t      from, to;
    cudaGraphExec_t  exec;

    CHECK(cudaEventCreate(&from));
    CHECK(cudaEventCreate(&to));

    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));

    for (i = 0; i < LAUNCHES; i++) {
        CHECK(sd_cuda_attention(stream, &chip, a));
    }

    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&exec, graph, 0));

    for (i = -2; i < 9; i++) {
        CHECK(cudaEventRecord(from, stream));
        CHECK(cudaGraphLaunch(exec, stream));
        CHECK(cudaEventRecord(to, stream));
        CHECK(cudaStreamSynchronize(stream));

        if (i >= 0) {
            CHECK(cudaEventElapsedTime(&ms[i], from, to));
        }
    }

    CHECK(cudaGraphExecDestroy(exec));
    CHECK(cudaGraphDestroy(graph));
    CHECK(cudaEventDestroy(from));
    CHECK(cudaEventDestroy(to));

    qsort(ms, 9, sizeof(float), compare_floats);

    return ms[4] * 1000 / LAUNCHES;
}


/* runs a, poisoned before; *out: [n, lq, heads, d] on the host */

static sd_half_t *
run(const sd_cuda_attention_t *a, const char *name)
{
    size_t      i, size;
    sd_half_t  *out;

    size = (size_t) a->n * a->lq * a->heads * a->d * sizeof(sd_half_t);
    out = malloc(size + GUARD);

    CHECK(cudaMemsetAsync(a->o, 0xff, size + GUARD, stream));
    CHECK(sd_cuda_attention(stream, &chip, a));
    CHECK(cudaMemcpyAsync(out, a->o, size + GUARD, cudaMemcpyDeviceToHost,
                          stream));
    CHECK(cudaStreamSynchronize(stream));

    for (i = 0; i < GUARD; i++) {
        if (((unsigned char *) out)[size + i] != 0xff) {
            ok(0, "writes beyond its output", name);
            break;
        }
    }

    return out;
}


static void
test(const row_t *r)
{
    int                   i, j, sample, head, row, hd, own, same;
    char                  name[80], what[80];
    size_t                size, total, step, at, checked, of;
    double                ref[160], x, e, err, norm, us, flops;
    sd_half_t            *host, *device, *out, *other;
    const sd_half_t      *q, *k, *v;
    sd_cuda_attention_t   a;
    const sd_half_t      *tables[MOST], **kv;

    static const char    *shapes[] = { "self", "cross", "causal", "odd",
                                  "growing" };

    snprintf(name, sizeof(name), "%s %d x %d, %d x %d", shapes[r->shape],
             r->heads, r->d, r->lq, r->lk);

    memset(&a, 0, sizeof(a));

    hd = r->heads * r->d;
    a.heads = r->heads;
    a.d = r->d;
    a.lq = r->lq;
    a.lk = r->lk;
    a.scale = 1 / sqrt(r->d);
    a.causal = r->shape == CAUSAL;

    /*
     * sample i: queries and keys side by side, as rows of one tensor; all
     * samples but the first two repeat these
     */

    own = r->shape == CROSS;
    a.ldq = own ? hd : 3 * hd + (r->shape == ODD);
    a.ldk = own ? 2 * hd : a.ldq;
    of = (size_t) r->lk * a.ldk;        /* elements of a sample */

    if (of < (size_t) r->lq * a.ldq) {
        of = (size_t) r->lq * a.ldq;
    }

    size = (own ? 4 : 2) * of * sizeof(sd_half_t);
    host = malloc(size);
    randoms(host, (own ? 4 : 2) * of, 1 + r->d + r->lk, 1);

    /* scores that differ: a deviation of 2 */

    for (sample = 0; sample < 2; sample++) {
        for (i = 0; i < r->lq; i++) {
            for (j = 0; j < hd; j++) {
                at = sample * (own ? of : (size_t) r->lq * a.ldq)
                     + (size_t) i * a.ldq + j;
                host[at] = to_half(from_half(host[at]) * 6);
            }
        }
    }

    if (r->shape == GROWING) {
        for (i = 0; i < 2 * r->lk; i++) {
            for (j = 0; j < hd; j++) {
                at = (size_t) i * a.ldk + hd + j;
                host[at] = to_half(from_half(host[at])
                                   * (1 + i % r->lk * 15.0 / r->lk));
            }
        }
    }

    /*
     * memory: samples of queries and, where they are not views of the same,
     * four tables of keys
     */

    CHECK(cudaMalloc((void **) &device, (MOST + 4) * of * sizeof(sd_half_t)));
    CHECK(cudaMalloc((void **) &a.o, (size_t) MOST * r->lq * hd
                                     * sizeof(sd_half_t) + GUARD));
    CHECK(cudaMalloc((void **) &kv, sizeof(tables)));

    /* samples follow each other without a gap, lq or lk rows each */

    for (i = 0; i < MOST; i++) {
        CHECK(cudaMemcpy(device + i * (size_t) r->lq * a.ldq,
                         host + i % 2 * (own ? of : (size_t) r->lq * a.ldq),
                         (size_t) r->lq * a.ldq * sizeof(sd_half_t),
                         cudaMemcpyHostToDevice));
    }

    a.q = device;

    if (own) {
        CHECK(cudaMemcpy(device + MOST * of, host + 2 * of,
                         2 * of * sizeof(sd_half_t), cudaMemcpyHostToDevice));

        for (i = 0; i < MOST; i++) {
            tables[i] = device + (MOST + 1 - i % 2) * of;
        }

        CHECK(cudaMemcpy(kv, tables, sizeof(tables), cudaMemcpyHostToDevice));

        a.kv = (const sd_half_t *const *) kv;
        a.v_at = hd;

    } else {
        a.k = device + hd;
        a.v = device + 2 * hd;
    }

    if (!own && r->lq != r->lk) {

        /* keys of another number of rows: the same memory, read otherwise */

        CHECK(cudaMemcpy(device, host, 2 * of * sizeof(sd_half_t),
                         cudaMemcpyHostToDevice));
    }

    a.n = 2;
    out = run(&a, name);

    total = (size_t) 2 * r->heads * r->lq;
    step = total < 600 ? 1 : total / 300 | 1;
    err = norm = 0;
    checked = 0;

    for (at = 0; at < total; at += step, checked++) {
        sample = at / (r->heads * r->lq);
        head = at / r->lq % r->heads;
        row = at % r->lq;

        q = host + (own ? sample * of : sample * (size_t) r->lq * a.ldq)
            + (size_t) row * a.ldq + head * r->d;

        if (own) {
            k = host + (3 - sample) * of + head * r->d;
            v = k + hd;

        } else {
            k = host + sample * (size_t) r->lk * a.ldk + hd + head * r->d;
            v = k + hd;
        }

        reference(ref, q, k, v, a.ldk, a.causal ? row + 1 : r->lk, r->d,
                  a.scale);

        for (j = 0; j < r->d; j++) {
            x = from_half(out[((size_t) sample * r->lq + row) * hd
                              + head * r->d + j]);
            e = x - ref[j];
            err += e * e;
            norm += ref[j] * ref[j];
        }
    }

    err = sqrt(err / norm);
    snprintf(what, sizeof(what), "error %.1e of %zu rows", err, checked);
    ok(err <= 2e-3, what, name);

    /* the same bits alone, among others, and with other queries */

    same = 1;
    size = (size_t) r->lq * hd * sizeof(sd_half_t);

    if (own || r->lq == r->lk) {
        for (i = 1; i <= MOST; i *= 2) {
            a.n = i;
            other = run(&a, name);
            same &= memcmp(out, other, size) == 0
                    && (i < 2 || memcmp(out, other, 2 * size) == 0);
            free(other);
        }
    }

    if (!a.causal) {
        a.n = 1;
        a.lq = (r->lq + 2) / 3;
        other = run(&a, name);
        same &= memcmp(out, other, (size_t) a.lq * hd * sizeof(sd_half_t))
                == 0;
        free(other);
        a.lq = r->lq;
    }

    ok(same, "same bits for any n, lq", name);

    if (r->timed) {
        flops = 4.0 * r->heads * r->lq * r->lk * r->d / (a.causal ? 2 : 1);

        for (i = 2; i <= MOST; i *= 8) {
            a.n = i;
            us = measure(&a);
            printf("# %-26s n = %2d: %8.2f us %6.1f TFLOP/s\n", name, i, us,
                   i * flops / us / 1e6);
        }
    }

    /* a race would show sooner or later */

    if (r == rows) {
        a.n = 2;
        same = 1;

        for (i = 0; i < 100; i++) {
            other = run(&a, name);
            same &= memcmp(out, other, 2 * size) == 0;
            free(other);
        }

        ok(same, "same bits 100 times", name);
    }

    fflush(stdout);
    free(out);
    free(host);
    CHECK(cudaFree(device));
    CHECK(cudaFree(a.o));
    CHECK(cudaFree(kv));
}


/* all, those that are quick, or one by number */

static int
wanted(int i, int argc, char **argv)
{
    if (argc < 2) {
        return 1;
    }

    if (strcmp(argv[1], "small") == 0) {
        return rows[i].lq * rows[i].lk <= 1 << 17;
    }

    if (strcmp(argv[1], "tiny") == 0) {
        return rows[i].heads * rows[i].lq * rows[i].lk <= 21000;
    }

    return atoi(argv[1]) == i;
}


int
main(int argc, char **argv)
{
    int                    i;
    struct cudaDeviceProp  prop;

    halves_make();

    CHECK(cudaGetDeviceProperties(&prop, 0));
    CHECK(cudaStreamCreate(&stream));

    chip.arch = prop.major * 10 + prop.minor;
    chip.sms = prop.multiProcessorCount;
    chip.shared = prop.sharedMemPerBlockOptin;

    printf("# %s, %d SMs\n", prop.name, chip.sms);

    for (i = 0; i < NROWS; i++) {
        if (wanted(i, argc, argv)) {
            test(&rows[i]);
        }
    }

    printf("1..%d\n", tests);

    return failures != 0;
}
