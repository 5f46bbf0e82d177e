/*
 * Group and layer normalisation.
 *
 * Floor: memory: three passes, of which two read; and ten cycles of SiLU for a
 * line.  512x512x128: 11 GB/s on one thread.
 *
 * Statistics read the input once: pixels go by in chunks of SD_CHUNK, which
 * stay in cache for an exact two-pass mean and sum of squares per channel;
 * chunks and channels are then put together per group in double precision, in
 * order (Chan et al. 1979).  No E[x^2] - m^2, nothing atomic, nothing that
 * depends on threads.  The last pass is one FMA a value.
 */

#include "isa.h"


#define SD_CHUNK  64            /* pixels */
#define SD_STRIP  4             /* vectors of channels; with a chunk's pixels
                                   they stay in the first cache */


typedef struct {
    const float    *x[2];
    int             c[2];
    int             channels, groups, n, pixels, chunks;
    const float    *weight;     /* beta, then gamma at gamma_at */
    int             gamma_at;
    float           eps;
    int             silu;
    const void *const  *addend; /* or NULL: each sample's */
    int             addend_at;
    float          *stats;      /* [n, chunks, 2, channels] */
    float          *affine;     /* [n, 2, channels] */
    float          *y;
} sd_norm_t;


static void sd_norm_stats(void *data, int task, char *scratch);
static void sd_norm_combine(void *data, int task, char *scratch);
static void sd_norm_apply(void *data, int task, char *scratch);
static void sd_norm_rows(void *data, int task, char *scratch);


/* count vectors of channels side by side, a constant; the last may be short */

sd_inline void
sd_norm_strip(float *out, size_t ld, const float *x, int c, int channels,
    int pixels, const int count)
{
    int  i, j;
    v16  sum[SD_STRIP], mean[SD_STRIP], diff;

#pragma GCC unroll 4
    for (j = 0; j < count; j++) {
        sum[j] = v_set(0);
    }

    for (i = 0; i < pixels; i++) {
#pragma GCC unroll 4
        for (j = 0; j < count; j++) {
            sum[j] = v_add(sum[j], v_loadx(x + (size_t) i * c + j * SD_LANES,
                                           channels - j * SD_LANES));
        }
    }

#pragma GCC unroll 4
    for (j = 0; j < count; j++) {
        mean[j] = v_div(sum[j], v_set((float) pixels));
        sum[j] = v_set(0);
    }

    for (i = 0; i < pixels; i++) {
#pragma GCC unroll 4
        for (j = 0; j < count; j++) {
            diff = v_sub(v_loadx(x + (size_t) i * c + j * SD_LANES,
                                 channels - j * SD_LANES), mean[j]);
            sum[j] = v_fma(diff, diff, sum[j]);
        }
    }

#pragma GCC unroll 4
    for (j = 0; j < count; j++) {
        v_storex(out + j * SD_LANES, mean[j], channels - j * SD_LANES);
        v_storex(out + ld + j * SD_LANES, sum[j], channels - j * SD_LANES);
    }
}


static void
sd_norm_stats(void *data, int task, char *scratch)
{
    int           j, n, s, c, first, pixels;
    float        *out;
    const float  *x;
    sd_norm_t    *g = data;

    n = task / g->chunks;
    first = task % g->chunks * SD_CHUNK;
    pixels = sd_min(SD_CHUNK, g->pixels - first);

    out = g->stats + (size_t) task * 2 * g->channels;

    for (s = 0; s < 2; s++) {
        c = g->c[s];
        x = g->x[s] + ((size_t) n * g->pixels + first) * c;

        for (j = 0; j + SD_STRIP * SD_LANES <= c; j += SD_STRIP * SD_LANES) {
            sd_norm_strip(out + j, g->channels, x + j, c, SD_STRIP * SD_LANES,
                          pixels, SD_STRIP);
        }

        for ( /* void */ ; j < c; j += SD_LANES) {
            sd_norm_strip(out + j, g->channels, x + j, c, c - j, pixels, 1);
        }

        out += c;
    }
}


static void
sd_norm_combine(void *data, int task, char *scratch)
{
    int           i, j, n, cpg, first, pixels;
    float        *affine;
    double        sum, mean, m2, d, rstd, add;
    const float  *stats, *addend;
    sd_norm_t    *g = data;

    n = task / g->groups;
    cpg = g->channels / g->groups;
    first = task % g->groups * cpg;

    addend = g->addend == NULL ? NULL
             : (const float *) g->addend[n] + g->addend_at;

    sum = 0;

    for (i = 0; i < g->chunks; i++) {
        stats = g->stats + ((size_t) n * g->chunks + i) * 2 * g->channels;
        pixels = sd_min(SD_CHUNK, g->pixels - i * SD_CHUNK);

        for (j = first; j < first + cpg; j++) {
            add = addend == NULL ? 0 : addend[j];
            sum += (stats[j] + add) * pixels;
        }
    }

    mean = sum / ((double) g->pixels * cpg);
    m2 = 0;

    for (i = 0; i < g->chunks; i++) {
        stats = g->stats + ((size_t) n * g->chunks + i) * 2 * g->channels;
        pixels = sd_min(SD_CHUNK, g->pixels - i * SD_CHUNK);

        for (j = first; j < first + cpg; j++) {
            add = addend == NULL ? 0 : addend[j];
            d = stats[j] + add - mean;
            m2 += stats[g->channels + j] + d * d * pixels;
        }
    }

    rstd = 1 / sqrt(m2 / ((double) g->pixels * cpg) + g->eps);

    affine = g->affine + (size_t) n * 2 * g->channels;

    for (j = first; j < first + cpg; j++) {
        add = addend == NULL ? 0 : addend[j];
        d = g->weight[g->gamma_at + j] * rstd;

        affine[j] = (float) d;
        affine[g->channels + j] = (float) (g->weight[j] + (add - mean) * d);
    }
}


static void
sd_norm_apply(void *data, int task, char *scratch)
{
    int           i, j, n, s, c, first, pixels, lanes;
    v16           v;
    float        *y, *out;
    const float  *x, *a, *b;
    sd_norm_t    *g = data;

    n = task / g->chunks;
    first = task % g->chunks * SD_CHUNK;
    pixels = sd_min(SD_CHUNK, g->pixels - first);

    a = g->affine + (size_t) n * 2 * g->channels;
    b = a + g->channels;
    y = g->y + ((size_t) n * g->pixels + first) * g->channels;

    for (s = 0; s < 2; s++) {
        c = g->c[s];

        for (i = 0; i < pixels; i++) {
            x = g->x[s] + ((size_t) n * g->pixels + first + i) * c;
            out = y + (size_t) i * g->channels;

            for (j = 0; j < c; j += SD_LANES) {
                lanes = sd_min(SD_LANES, c - j);

                v = v_fma(v_loadx(x + j, lanes), v_loadx(a + j, lanes),
                          v_loadx(b + j, lanes));

                if (g->silu) {
                    v = v_swish(v, 1.0f);
                }

                v_storex(out + j, v, lanes);
            }
        }

        a += c;
        b += c;
        y += c;
    }
}


int
sd_isa(sd_group_norm)(sd_context_t *cx, sd_tensor_t y,
    const sd_group_norm_t *d)
{
    sd_norm_t    g;
    sd_packed_t  p;
    sd_tensor_t  stats, affine;

    memset(&g, 0, sizeof(sd_norm_t));

    g.n = y.n;
    g.pixels = y.h * y.w;
    g.chunks = (g.pixels + SD_CHUNK - 1) / SD_CHUNK;
    g.channels = y.c;
    g.groups = d->groups;

    stats = sd_alloc_type(cx, SD_F32, g.n, g.chunks, 2, g.channels);
    affine = sd_alloc_type(cx, SD_F32, g.n, 1, 2, g.channels);

    if (cx->plan || cx->status != SD_OK) {
        sd_free(cx, &affine);
        sd_free(cx, &stats);
        return cx->status;
    }

    g.x[0] = d->x.data;
    g.c[0] = d->x.c;

    if (!sd_empty(&d->x2)) {
        g.x[1] = d->x2.data;
        g.c[1] = d->x2.c;
    }

    sd_cpu_packed(cx->device, d->w, &p);

    g.weight = d->w->data;
    g.gamma_at = p.columns;
    g.eps = d->eps;
    g.silu = d->silu;

    g.addend = d->addend.columns ? d->addend.at : NULL;
    g.addend_at = d->addend_at;

    g.stats = stats.data;
    g.affine = affine.data;
    g.y = y.data;

    (void) (sd_pool_run(cx, sd_norm_stats, &g, g.n * g.chunks) == SD_OK
            && sd_pool_run(cx, sd_norm_combine, &g, g.n * g.groups) == SD_OK
            && sd_pool_run(cx, sd_norm_apply, &g, g.n * g.chunks) == SD_OK);

    sd_free(cx, &affine);
    sd_free(cx, &stats);

    return cx->status;
}


static void
sd_norm_rows(void *data, int task, char *scratch)
{
    int           i, j, c, last, lanes;
    v16           sum, v, mean, rstd;
    float        *y, m, tail, diff;
    const float  *x, *gamma;
    sd_norm_t    *g = data;

    c = g->channels;
    gamma = g->weight + g->gamma_at;
    last = sd_min((task + 1) * SD_CHUNK, g->pixels);

    for (i = task * SD_CHUNK; i < last; i++) {
        x = g->x[0] + (size_t) i * c;
        y = g->y + (size_t) i * c;

        sum = v_set(0);

        for (j = 0; j < c; j += SD_LANES) {
            sum = v_add(sum, v_loadx(x + j, c - j));
        }

        m = v_sum(sum) / c;
        mean = v_set(m);
        sum = v_set(0);

        for (j = 0; j + SD_LANES <= c; j += SD_LANES) {
            v = v_sub(v_load(x + j), mean);
            sum = v_fma(v, v, sum);
        }

        tail = 0;

        for ( /* void */ ; j < c; j++) {
            diff = x[j] - m;
            tail += diff * diff;
        }

        rstd = v_set(1.0f / sqrtf((v_sum(sum) + tail) / c + g->eps));

        for (j = 0; j < c; j += SD_LANES) {
            lanes = c - j;

            v = v_mul(v_sub(v_loadx(x + j, lanes), mean), rstd);
            v = v_fma(v, v_loadx(gamma + j, lanes),
                      v_loadx(g->weight + j, lanes));
            v_storex(y + j, v, lanes);
        }
    }
}


int
sd_isa(sd_layer_norm)(sd_context_t *cx, sd_tensor_t y,
    const sd_layer_norm_t *d)
{
    sd_norm_t    g;
    sd_packed_t  p;

    if (cx->plan) {
        return SD_OK;
    }

    memset(&g, 0, sizeof(sd_norm_t));
    sd_cpu_packed(cx->device, d->w, &p);

    g.x[0] = d->x.data;
    g.channels = y.c;
    g.pixels = y.n * y.h * y.w;
    g.weight = d->w->data;
    g.gamma_at = p.columns;
    g.eps = d->eps;
    g.y = y.data;

    return sd_pool_run(cx, sd_norm_rows, &g,
                       (g.pixels + SD_CHUNK - 1) / SD_CHUNK);
}
