/*
 * sd generate: pictures from a prompt, with the engine's parts and without
 * nginx.  One thread beside the device's own.
 */

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../io/file.h"
#include "../io/image.h"
#include "cli.h"


#define SD_LATENTS_MAX  (256 << 20)


typedef struct {
    const char       *model;
    const char       *out;
    const char       *dump;
    const char       *state;            /* file to write it to */
    const char       *isa;
    int               threads;
    int               n, preview, stop, quality, png, quiet, bar;
    sd_precision_t    precision;
    const char       *device_name;
    sd_params_t       params;
    sd_buf_t          latents;

    sd_device_t      *device;
    sd_model_t       *loaded;
    sd_context_t      cx;
    sd_batch_t       *batch;
    sd_cli_memory_t   memory;
    int               failed;           /* of a dump */
} sd_generate_t;


static const char  sd_generate_usage[] =
"sd generate --prompt TEXT [options]\n"
"\n"
"    --model DIR         diffusers' layout; the embedded model by default\n"
"    --prompt TEXT\n"
"    --negative TEXT     what not to paint\n"
"    --steps N           20\n"
"    --seed N            random, and printed\n"
"    --size WxH          the model's own by default\n"
"    --sampler NAME      the model's own by default; \"help\" lists them\n"
"    --guidance X        7.5; 1 and less: none\n"
"    --n N               pictures, with seeds SEED, SEED + 1 ...\n"
"    -o FILE             out.jpg; .jpg or .png; -0, -1 ... added where N > 1\n"
"    --quality N         of JPEG, 1 .. 100; 90\n"
"    --preview-every N   writes the denoised estimate after every N steps,\n"
"                        FILE-step005.jpg ...\n"
"\n"
"    --latents FILE      safetensors with \"latents\": the initial noise, not\n"
"                        yet scaled; or a state, to go on from\n"
"    --starting-step N   ... or the latent after step N\n"
"    --stop N            ends after step N\n"
"    --state FILE        writes the state at the end, as safetensors\n"
"    --dump DIR          writes cond, uncond, unet_in_000, unet_out_000,\n"
"                        latent_000 ... and image, each as safetensors\n"
"\n"
"    --threads N         as many as this process may use\n"
"    --device NAME       cpu, or cuda, cuda:0 ...\n"
"    --precision NAME    exact (cpu: fp32, cuda: fp16) or bf16 (cpu)\n"
"    --isa NAME          avx512, avx2 or baseline; the best by default\n"
"    --quiet             prints nothing but errors\n";


static double
sd_now(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return ts.tv_sec + ts.tv_nsec * 1e-9;
}


static void
sd_generate_bar(const sd_generate_t *g, const char *what, double done,
    const char *more)
{
    int   i, full;
    char  bar[31];

    if (!g->bar) {
        return;
    }

    full = done * 30 + 0.5;

    for (i = 0; i < 30; i++) {
        bar[i] = i < full ? '#' : '.';
    }

    bar[30] = '\0';

    fprintf(stderr, "\r%-8s [%s] %s\033[K", what, bar, more);
    fflush(stderr);
}


static void
sd_generate_loading(void *data, double done)
{
    sd_generate_bar(data, "loading", done, "");
}


/* OUT with "-N" or "-stepN" before its suffix */

static void
sd_generate_path(char path[PATH_MAX], const sd_generate_t *g, int i, int step)
{
    int          len;
    char         image[32], at[32];
    const char  *dot;

    dot = strrchr(g->out, '.');
    len = dot && !strchr(dot, '/') ? dot - g->out : (int) strlen(g->out);

    image[0] = at[0] = '\0';

    if (g->n > 1) {
        snprintf(image, sizeof(image), "-%d", i);
    }

    if (step >= 0) {
        snprintf(at, sizeof(at), "-step%03d", step);
    }

    snprintf(path, PATH_MAX, "%.*s%s%s%s", len, g->out, image, at,
             g->out + len);
}


static int
sd_generate_write(const sd_generate_t *g, const char *path, const uint8_t *rgb,
    const sd_picture_info_t *info, sd_error_t *err)
{
    int       rc;
    sd_buf_t  b = { 0 }, text = { 0 };

    if (g->png) {
        sd_buf_puts(&text, g->params.prompt);

        if (g->params.negative_prompt[0]) {
            sd_buf_printf(&text, "\nNegative prompt: %s",
                          g->params.negative_prompt);
        }

        sd_buf_printf(&text, "\nSteps: %d, Sampler: %s, CFG scale: %g, "
                      "Seed: %llu, Size: %dx%d, Model: %s", info->steps,
                      info->sampler, g->params.guidance,
                      (unsigned long long) info->seed, info->width,
                      info->height, g->loaded->name);
        sd_buf_append(&text, "", 1);

        rc = text.failed ? sd_fail(err, "no memory")
                         : sd_png_encode(&b, rgb, info->width, info->height,
                                         text.data, err);
    } else {
        rc = sd_jpeg_encode(&b, rgb, info->width, info->height, g->quality,
                            err);
    }

    if (rc == SD_OK) {
        rc = sd_file_write(path, b.data, b.len, err);
    }

    sd_buf_free(&text);
    sd_buf_free(&b);

    return rc;
}


static int
sd_generate_preview(sd_generate_t *g, sd_picture_t *p, int i, sd_error_t *err)
{
    int                 rc, scale;
    char                path[PATH_MAX];
    uint8_t            *small, *rgb;
    sd_picture_info_t   info;

    sd_picture_info(p, &info);

    scale = g->loaded->vae_scale;
    small = malloc((size_t) info.width / scale * (info.height / scale) * 3);
    rgb = malloc((size_t) info.width * info.height * 3);

    if (small == NULL || rgb == NULL) {
        rc = sd_fail(err, "no memory for a preview");

    } else {
        rc = sd_picture_preview(p, &g->cx, small, err);
    }

    if (rc == SD_OK) {
        sd_image_upscale(rgb, small, info.width / scale, info.height / scale,
                         scale);
        sd_generate_path(path, g, i, info.step);
        rc = sd_generate_write(g, path, rgb, &info, err);
    }

    free(small);
    free(rgb);

    return rc;
}


static void
sd_generate_dump(void *data, const char *name, const float *values, int rank,
    const int64_t *shape)
{
    int             i;
    char            path[PATH_MAX];
    sd_buf_t        b = { 0 };
    sd_error_t      err;
    sd_st_out_t     t = { 0 };
    sd_generate_t  *g = data;

    t.name = name;
    t.data = values;
    t.rank = rank;

    for (i = 0; i < rank; i++) {
        t.shape[i] = shape[i];
    }

    snprintf(path, sizeof(path), "%s/%s.safetensors", g->dump, name);

    if (sd_safetensors_write(&b, &t, 1, NULL, 0, &err) != SD_OK
        || sd_file_write(path, b.data, b.len, &err) != SD_OK)
    {
        fprintf(stderr, "sd generate: %s\n", err.message);
        g->failed = 1;
    }

    sd_buf_free(&b);
}


/* the steps, then the picture; all that a picture has in common with others
 * is in g */

static int
sd_generate_paint(sd_generate_t *g, sd_picture_t *p, int i, sd_error_t *err)
{
    int                 rc;
    char                path[PATH_MAX], text[64];
    double              start, t;
    uint8_t            *rgb;
    sd_buf_t            b = { 0 };
    sd_picture_info_t   info;

    if (g->dump) {
        sd_picture_dump(p, sd_generate_dump, g);
    }

    start = sd_now();
    rc = sd_picture_begin(p, &g->cx, NULL, err);

    sd_picture_info(p, &info);

    while (rc == SD_OK && info.step < info.steps && info.step < g->stop) {
        t = sd_now();
        rc = g->dump ? sd_picture_step(p, &g->cx, NULL, err)
                     : sd_cli_step(g->batch, p, err);

        sd_picture_info(p, &info);

        snprintf(text, sizeof(text), "%d/%d  %.2f s a step", info.step,
                 info.steps, sd_now() - t);
        sd_generate_bar(g, "painting", (double) info.step / info.steps, text);

        if (rc == SD_OK && g->preview && info.step % g->preview == 0
            && info.step < info.steps)
        {
            rc = sd_generate_preview(g, p, i, err);
        }
    }

    if (rc == SD_OK && g->state) {
        rc = sd_picture_state(p, &b, err);

        if (rc == SD_OK) {
            rc = sd_file_write(g->state, b.data, b.len, err);
        }

        sd_buf_free(&b);
    }

    if (rc != SD_OK) {
        return rc;
    }

    rgb = malloc(g->memory.bytes);

    if (rgb == NULL) {
        return sd_fail(err, "no memory for a picture");
    }

    rc = sd_picture_decode(p, &g->cx, 0, rgb, NULL, NULL, err);

    if (rc == SD_OK) {
        sd_generate_path(path, g, i, -1);
        rc = sd_generate_write(g, path, rgb, &info, err);
    }

    free(rgb);

    if (rc == SD_OK && !g->quiet) {
        fprintf(stderr, "%s%s: %dx%d, seed %llu, %s, step %d of %d, %.2f s\n",
                g->bar ? "\r\033[K" : "", path, info.width, info.height,
                (unsigned long long) info.seed, info.sampler, info.step,
                info.steps, sd_now() - start);
    }

    if (!g->quiet && i == 0 && info.prompt_tokens > g->loaded
                                                    ->text_encoder.length)
    {
        fprintf(stderr, "sd generate: the prompt is %d tokens long, and was "
                "cut at %d\n", info.prompt_tokens,
                g->loaded->text_encoder.length);
    }

    return rc;
}


static int
sd_generate_run(sd_generate_t *g, sd_error_t *err)
{
    int            i, rc;
    uint64_t       seed;
    sd_picture_t  *p;

    if (sd_device_open(&g->device, g->device_name, g->threads, g->precision,
                       g->isa, err) != SD_OK
        || sd_model_open(&g->loaded, g->model, g->device, err) != SD_OK)
    {
        return SD_ERROR;
    }

    if (g->params.width == 0) {
        g->params.width = g->loaded->default_width;
        g->params.height = g->loaded->default_height;
    }

    /* what is wrong with the parameters is said before the weights are read */

    if (sd_cli_memory(&g->memory, g->loaded, g->device, g->threads,
                      &g->params, err) != SD_OK
        || sd_model_load(g->loaded, g->device, sd_generate_loading, g, NULL,
                         err) != SD_OK
        || sd_context_init(&g->cx, g->device, 0, g->memory.arena, err)
           != SD_OK
        || sd_batch_create(&g->batch, g->loaded, &g->cx, 1, err) != SD_OK)
    {
        return SD_ERROR;
    }

    rc = SD_OK;
    seed = g->params.seed;

    for (i = 0; i < g->n && rc == SD_OK; i++) {
        g->params.seed = seed + i;
        g->params.image = i;
        g->params.images = g->n;

        rc = sd_picture_create(&p, g->loaded, &g->params, err);

        if (rc == SD_OK) {
            rc = sd_generate_paint(g, p, i, err);
            sd_picture_destroy(p);
        }
    }

    return rc;
}


static int
sd_generate_seed(const char *arg, uint64_t *seed)
{
    char  *end;

    errno = 0;
    *seed = strtoull(arg, &end, 10);

    if (errno || end == arg || *end || *arg == '-') {
        fprintf(stderr, "sd generate: --seed takes a whole number, not "
                "\"%s\"\n", arg);
        return SD_ERROR;
    }

    return SD_OK;
}


static int
sd_generate_sampler(const char *arg, const sd_sampler_t **sampler)
{
    int  i;

    *sampler = sd_sampler_find(arg);

    if (*sampler) {
        return SD_OK;
    }

    if (strcmp(arg, "help") != 0) {
        fprintf(stderr, "sd generate: no sampler \"%s\"; ", arg);
    }

    fprintf(stderr, "samplers:");

    for (i = 0; sd_samplers[i].name; i++) {
        fprintf(stderr, " %s", sd_samplers[i].name);
    }

    fprintf(stderr, "\n");

    return SD_ERROR;
}


static int
sd_generate_suffix(sd_generate_t *g)
{
    const char  *dot;

    dot = strrchr(g->out, '.');

    if (dot && strcmp(dot, ".png") == 0) {
        g->png = 1;
        return SD_OK;
    }

    if (dot && (strcmp(dot, ".jpg") == 0 || strcmp(dot, ".jpeg") == 0)) {
        return SD_OK;
    }

    fprintf(stderr, "sd generate: -o takes a name that ends with .jpg or "
            ".png, not \"%s\"\n", g->out);

    return SD_ERROR;
}


enum {
    SD_O_NEGATIVE = 256, SD_O_STEPS, SD_O_SEED, SD_O_SIZE, SD_O_SAMPLER,
    SD_O_GUIDANCE, SD_O_N, SD_O_QUALITY, SD_O_PREVIEW, SD_O_LATENTS,
    SD_O_START, SD_O_STOP, SD_O_STATE, SD_O_DUMP, SD_O_THREADS,
    SD_O_DEVICE, SD_O_PRECISION, SD_O_ISA
};


static const struct option  sd_generate_options[] = {
    { "model", required_argument, NULL, 'm' },
    { "prompt", required_argument, NULL, 'p' },
    { "negative", required_argument, NULL, SD_O_NEGATIVE },
    { "steps", required_argument, NULL, SD_O_STEPS },
    { "seed", required_argument, NULL, SD_O_SEED },
    { "size", required_argument, NULL, SD_O_SIZE },
    { "sampler", required_argument, NULL, SD_O_SAMPLER },
    { "guidance", required_argument, NULL, SD_O_GUIDANCE },
    { "n", required_argument, NULL, SD_O_N },
    { "out", required_argument, NULL, 'o' },
    { "quality", required_argument, NULL, SD_O_QUALITY },
    { "preview-every", required_argument, NULL, SD_O_PREVIEW },
    { "latents", required_argument, NULL, SD_O_LATENTS },
    { "starting-step", required_argument, NULL, SD_O_START },
    { "stop", required_argument, NULL, SD_O_STOP },
    { "state", required_argument, NULL, SD_O_STATE },
    { "dump", required_argument, NULL, SD_O_DUMP },
    { "threads", required_argument, NULL, SD_O_THREADS },
    { "device", required_argument, NULL, SD_O_DEVICE },
    { "precision", required_argument, NULL, SD_O_PRECISION },
    { "isa", required_argument, NULL, SD_O_ISA },
    { "quiet", no_argument, NULL, 'q' },
    { "help", no_argument, NULL, 'h' },
    { NULL, 0, NULL, 0 }
};


static int
sd_generate_option(sd_generate_t *g, int c, sd_error_t *err)
{
    int        rc;
    char      *end;
    long long  v;

    rc = SD_OK;
    v = -1;

    switch (c) {

    case 'm':
        g->model = optarg;
        break;

    case 'p':
        g->params.prompt = optarg;
        break;

    case SD_O_NEGATIVE:
        g->params.negative_prompt = optarg;
        break;

    case SD_O_STEPS:
        rc = sd_cli_number("steps", optarg, 1, 10000, &v);
        g->params.steps = v;
        break;

    case SD_O_SEED:
        rc = sd_generate_seed(optarg, &g->params.seed);
        break;

    case SD_O_SIZE:
        rc = sd_cli_size(optarg, &g->params.width, &g->params.height);
        break;

    case SD_O_SAMPLER:
        rc = sd_generate_sampler(optarg, &g->params.sampler);
        break;

    case SD_O_GUIDANCE:
        g->params.guidance = strtod(optarg, &end);

        if (end == optarg || *end) {
            fprintf(stderr, "sd generate: --guidance takes a number, not "
                    "\"%s\"\n", optarg);
            rc = SD_ERROR;
        }

        break;

    case SD_O_N:
        rc = sd_cli_number("n", optarg, 1, 10000, &v);
        g->n = v;
        break;

    case 'o':
        g->out = optarg;
        break;

    case SD_O_QUALITY:
        rc = sd_cli_number("quality", optarg, 1, 100, &v);
        g->quality = v;
        break;

    case SD_O_PREVIEW:
        rc = sd_cli_number("preview-every", optarg, 1, 10000, &v);
        g->preview = v;
        break;

    case SD_O_LATENTS:
        g->latents.len = 0;

        if (sd_file_read(&g->latents, optarg, SD_LATENTS_MAX, err) != SD_OK) {
            fprintf(stderr, "sd generate: %s\n", err->message);
            rc = SD_ERROR;
        }

        g->params.latents = g->latents.data;
        g->params.latents_size = g->latents.len;
        break;

    case SD_O_START:
        rc = sd_cli_number("starting-step", optarg, 0, 10000, &v);
        g->params.starting_step = v;
        break;

    case SD_O_STOP:
        rc = sd_cli_number("stop", optarg, 0, 10000, &v);
        g->stop = v;
        break;

    case SD_O_STATE:
        g->state = optarg;
        break;

    case SD_O_DUMP:
        g->dump = optarg;
        break;

    case SD_O_THREADS:
        rc = sd_cli_number("threads", optarg, 1, 1024, &v);
        g->threads = v;
        break;

    case SD_O_DEVICE:
        g->device_name = optarg;
        break;

    case SD_O_PRECISION:
        rc = sd_cli_precision(optarg, &g->precision);
        break;

    case SD_O_ISA:
        g->isa = optarg;
        break;

    case 'q':
        g->quiet = 1;
        break;

    default:
        rc = SD_ERROR;
    }

    return rc;
}


int
sd_cli_generate(int argc, char **argv)
{
    int            c, rc;
    sd_error_t     err;
    sd_generate_t  g = { 0 };

    g.model = sd_cli_default_model();
    g.device_name = "cpu";
    g.out = "out.jpg";
    g.n = 1;
    g.quality = 90;
    g.stop = INT_MAX;
    g.params.negative_prompt = "";
    g.params.steps = 20;
    g.params.guidance = 7.5;
    g.params.starting_step = -1;

    if (getrandom(&g.params.seed, 4, 0) != 4) {
        g.params.seed = time(NULL);
    }

    rc = SD_OK;

    while (rc == SD_OK && (c = getopt_long(argc, argv, "m:p:o:qh",
                                           sd_generate_options, NULL)) != -1)
    {
        if (c == 'h') {
            fputs(sd_generate_usage, stdout);
            sd_buf_free(&g.latents);
            return 0;
        }

        rc = sd_generate_option(&g, c, &err);
    }

    if (rc == SD_OK && (optind != argc || g.params.prompt == NULL)) {
        fputs(sd_generate_usage, stderr);
        rc = SD_ERROR;
    }

    if (rc != SD_OK || sd_generate_suffix(&g) != SD_OK) {
        sd_buf_free(&g.latents);
        return 2;
    }

    if (g.dump && mkdir(g.dump, 0777) == -1 && errno != EEXIST) {
        fprintf(stderr, "sd generate: %s: %s\n", g.dump, strerror(errno));
        sd_buf_free(&g.latents);
        return 1;
    }

    g.bar = !g.quiet && isatty(STDERR_FILENO);

    rc = sd_generate_run(&g, &err);

    if (rc != SD_OK) {
        fprintf(stderr, "%ssd generate: %s\n", g.bar ? "\r\033[K" : "",
                err.message);
    }

    sd_batch_destroy(g.batch);
    sd_context_free(&g.cx);
    sd_model_close(g.loaded);
    sd_device_close(g.device);
    sd_buf_free(&g.latents);

    return rc == SD_OK && !g.failed ? 0 : 1;
}
