/*
 * Whole models against diffusers: every file of t/golden that make.py wrote is
 * a request and what became of it in torch's fp32.  Each tensor on the way must
 * agree within 5e-5 (norm of the difference over the norm), and the picture's
 * bytes within 60 dB.  In bf16 it is the text embeddings and the UNet's first
 * output, within 2e-2: what later steps make of a difference is the sampler's
 * and the guidance's affair.  Runs in the source's root directory.
 */

#include <glob.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../src/sd/picture.h"
#include "tap.h"


#define LIMIT  5e-5
#define PSNR   60

#define BF16_LIMIT  2e-2


typedef struct {
    const char        *name;
    sd_safetensors_t  *st;
    int                bf16;
    int                compared;
    double             worst;
    char               worst_name[64];
} golden_t;


static double
relative(const float *a, const float *b, size_t n)
{
    size_t  i;
    double  d, diff, norm;

    for (diff = 0, norm = 0, i = 0; i < n; i++) {
        d = (double) a[i] - b[i];
        diff += d * d;
        norm += (double) b[i] * b[i];
    }

    return sqrt(diff / norm);
}


static float *
values(golden_t *g, const char *name)
{
    float                 *v;
    sd_error_t             err;
    const sd_st_tensor_t  *t;

    t = sd_safetensors_find(g->st, name);

    if (t == NULL) {
        return NULL;
    }

    v = malloc(t->count * sizeof(float));

    if (sd_safetensors_read_f32(g->st, t, v, &err) != SD_OK) {
        free(v);
        return NULL;
    }

    return v;
}


static void
compare(void *data, const char *name, const float *got, int rank,
    const int64_t *shape)
{
    int                    i;
    float                 *want;
    double                 error;
    golden_t              *g = data;
    const sd_st_tensor_t  *t;

    if (g->bf16 && strcmp(name, "cond") != 0 && strcmp(name, "uncond") != 0
        && strcmp(name, "unet_out_000") != 0)
    {
        return;
    }

    t = sd_safetensors_find(g->st, name);

    if (t == NULL || t->rank != rank) {
        ok(0, "%s: %s is a tensor of the golden file", g->name, name);
        return;
    }

    for (i = 0; i < rank; i++) {
        if (shape[i] != t->shape[i]) {
            ok(0, "%s: %s has the right shape", g->name, name);
            return;
        }
    }

    want = values(g, name);
    error = relative(got, want, t->count);
    free(want);

    g->compared++;

    if (!(error <= g->worst)) {
        g->worst = error;
        snprintf(g->worst_name, sizeof(g->worst_name), "%s", name);
    }

    if (!(error <= (g->bf16 ? BF16_LIMIT : LIMIT))) {
        ok(0, "%s: %s: relative error %.2g", g->name, name, error);
    }
}


/* of bytes, as a JPEG encoder would get them */

static double
psnr(golden_t *g, const uint8_t *rgb, size_t pixels)
{
    int      k;
    float   *want, v;
    size_t   i;
    double   d, sum;

    want = values(g, "image");

    for (sum = 0, k = 0; k < 3; k++) {
        for (i = 0; i < pixels; i++) {
            v = roundf(127.5f * want[k * pixels + i] + 127.5f);
            v = v < 0 ? 0 : v > 255 ? 255 : v;
            d = rgb[i * 3 + k] - v;
            sum += d * d;
        }
    }

    free(want);

    return sum ? 10 * log10(255.0 * 255 * 3 * pixels / sum) : INFINITY;
}


/* the initial noise alone, as a request's "latents" would bring it */

static int
noise(golden_t *g, sd_buf_t *b, sd_error_t *err)
{
    int                    rc;
    sd_st_out_t            out = { 0 };
    const sd_st_tensor_t  *t;

    t = sd_safetensors_find(g->st, "latents");

    out.name = "latents";
    out.data = values(g, "latents");
    out.rank = t->rank;
    memcpy(out.shape, t->shape, sizeof(out.shape));

    rc = sd_safetensors_write(b, &out, 1, NULL, 0, err);
    free((void *) out.data);

    return rc;
}


static int
paint(golden_t *g, sd_picture_t *p, sd_context_t *cx, uint8_t *rgb,
    sd_error_t *err)
{
    int                rc;
    sd_picture_info_t  info;

    sd_picture_dump(p, compare, g);

    rc = sd_picture_begin(p, cx, NULL, err);

    do {
        if (rc == SD_OK) {
            rc = sd_picture_step(p, cx, NULL, err);
        }

        sd_picture_info(p, &info);

    } while (rc == SD_OK && info.step < info.steps);

    return rc == SD_OK ? sd_picture_decode(p, cx, 0, rgb, NULL, NULL, err)
                       : rc;
}


static int
run(golden_t *g, sd_device_t *dev, sd_error_t *err)
{
    int            rc;
    size_t         step, prompt, decode;
    double         db;
    uint8_t       *rgb;
    sd_buf_t       b = { 0 };
    sd_model_t    *m;
    sd_params_t    params = { 0 };
    sd_context_t   cx;
    sd_picture_t  *p;

    if (sd_model_open(&m, sd_safetensors_meta(g->st, "model"), dev, err)
        != SD_OK)
    {
        return SD_ERROR;
    }

    params.prompt = sd_safetensors_meta(g->st, "prompt");
    params.negative_prompt = sd_safetensors_meta(g->st, "negative_prompt");
    params.width = atoi(sd_safetensors_meta(g->st, "width"));
    params.height = atoi(sd_safetensors_meta(g->st, "height"));
    params.steps = atoi(sd_safetensors_meta(g->st, "steps"));
    params.guidance = atof(sd_safetensors_meta(g->st, "guidance"));
    params.sampler = sd_sampler_find(sd_safetensors_meta(g->st, "sampler"));
    params.starting_step = -1;

    memset(&cx, 0, sizeof(cx));
    p = NULL;
    rgb = malloc((size_t) params.width * params.height * 3);

    rc = noise(g, &b, err);
    params.latents = b.data;
    params.latents_size = b.len;

    if (rc == SD_OK) {
        rc = sd_model_load(m, dev, NULL, NULL, NULL, err);
    }

    if (rc == SD_OK) {
        rc = sd_model_plan(m, dev, params.width, params.height, &step, &prompt,
                           &decode, err);
    }

    if (rc == SD_OK) {
        step = step > prompt ? step : prompt;
        rc = sd_context_init(&cx, dev, 0, step > decode ? step : decode, err);
    }

    if (rc == SD_OK) {
        rc = sd_picture_create(&p, m, &params, err);
    }

    if (rc == SD_OK) {
        rc = paint(g, p, &cx, rgb, err);
    }

    if (rc == SD_OK && g->bf16) {
        is_int(g->compared, params.guidance > 1 ? 3 : 2, g->name);
        ok(g->worst <= BF16_LIMIT, "%s: bf16: worst relative error %.2g, of "
           "%s", g->name, g->worst, g->worst_name);

    } else if (rc == SD_OK) {
        is_int(g->compared, sd_safetensors_count(g->st) - 1, g->name);
        db = psnr(g, rgb, (size_t) params.width * params.height);
        ok(g->worst <= LIMIT, "%s: worst relative error %.2g, of %s", g->name,
           g->worst, g->worst_name);
        ok(db >= PSNR, "%s: picture %.1f dB", g->name, db);
    }

    sd_picture_destroy(p);
    sd_context_free(&cx);
    sd_model_close(m);
    sd_buf_free(&b);
    free(rgb);

    return rc;
}


static void
all(const char *pattern, sd_device_t *dev)
{
    char        *file, dir[256];
    glob_t       files;
    size_t       i;
    golden_t     g;
    sd_error_t   err = { 0 };

    memset(&files, 0, sizeof(files));
    glob(pattern, 0, NULL, &files);

    ok(files.gl_pathc >= 2, "golden files for %s, %s", dev->isa,
       dev->numerics);

    for (i = 0; i < files.gl_pathc; i++) {
        memset(&g, 0, sizeof(g));
        g.name = strrchr(files.gl_pathv[i], '/') + 1;
        g.bf16 = dev->precision == SD_PRECISION_BF16;

        snprintf(dir, sizeof(dir), "%.*s",
                 (int) (g.name - 1 - files.gl_pathv[i]), files.gl_pathv[i]);
        file = strdup(g.name);
        *strrchr(file, '.') = '\0';

        if (sd_safetensors_open(&g.st, dir, file, &err) != SD_OK
            || run(&g, dev, &err) != SD_OK)
        {
            ok(0, "%s: %s", file, err.message);
        }

        sd_safetensors_close(g.st);
        free(file);
    }

    globfree(&files);
}


int
main(void)
{
    static const char *const  isas[] = { "avx512", "avx2", "baseline" };

    int           i, n;
    sd_error_t    err;
    sd_device_t  *dev;

    for (n = 0, i = 0; i < 3; i++) {
        if (sd_device_open(&dev, "cpu", 2, SD_PRECISION_EXACT, isas[i], &err)
            != SD_OK)
        {
            continue;
        }

        /* all of them on the best, a small one on the others */

        all(n++ ? "t/golden/sd21v-plain-*.safetensors"
                : "t/golden/*.safetensors", dev);
        sd_device_close(dev);
    }

    if (sd_device_open(&dev, "cpu", 2, SD_PRECISION_BF16, NULL, &err)
        == SD_OK)
    {
        all("t/golden/*-ddim.safetensors", dev);
        sd_device_close(dev);

    } else {
        printf("# %s\n", err.message);
    }

    return done();
}
