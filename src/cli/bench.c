/*
 * sd bench: how fast a model is on this machine, part by part.
 *
 * Measures the parts that a picture is made of: the prompt (tokenizer and text
 * encoder, negative prompt included), a step (UNet with guidance, sampler), the
 * decoding, and a whole picture from prompt to JPEG, without previews and with
 * one of each step; and the memory that all this took against what was planned.
 *
 * --lines is for bench/run, which takes turns between this and other programs:
 * a command a line on stdin, the answer a line on stdout.
 */

#define _GNU_SOURCE

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../io/file.h"
#include "../io/image.h"
#include "cli.h"
#include "bench.h"
#include "profile.h"


/* a part of the work; seconds: what it took, without its preparation */
typedef int (*sd_bench_part_pt)(sd_bench_t *b, double *seconds,
    sd_error_t *err);


static const struct option  sd_bench_options[] = {
    { "model",     required_argument, NULL, 'm' },
    { "device",    required_argument, NULL, 'd' },
    { "precision", required_argument, NULL, 'P' },
    { "threads",   required_argument, NULL, 't' },
    { "size",      required_argument, NULL, 'S' },
    { "prompt",    required_argument, NULL, 'p' },
    { "steps",     required_argument, NULL, 's' },
    { "rounds",    required_argument, NULL, 'r' },
    { "pictures",  required_argument, NULL, 'n' },
    { "latents",   required_argument, NULL, 'L' },
    { "profile",   no_argument,       NULL, 'O' },
    { "plans",     required_argument, NULL, 'f' },
    { "lines",     no_argument,       NULL, 'l' },
    { "help",      no_argument,       NULL, 'h' },
    { NULL,        0,                 NULL, 0 }
};

static const char  sd_bench_usage[] =
"sd bench [options]\n"
"\n"
"Measures a model on this machine: its prompt, a step, the decoding, a whole\n"
"picture from prompt to JPEG, one with a preview of each step, and memory.\n"
"\n"
"    --model DIR         the embedded model\n"
"    --device NAME       cpu, or cuda, cuda:0 ...\n"
"    --precision NAME    exact or bf16\n"
"    --threads N         as many as this process may use\n"
"    --size WxH          the model's own\n"
"    --steps N           20\n"
"    --prompt TEXT       something\n"
"    --latents FILE      the initial noise, as for \"sd generate\"\n"
"    --pictures N        on a card: at most so many at a time; 16\n"
"    --plans DIR         on a card: what \"sd tune\" has found\n"
"    --rounds N          measure each part so often, show the median; 3\n"
"    --profile           time by operation and shape, as shares of the peak of\n"
"                        fp32 multiplications and additions\n"
"    --lines             do what stdin says, line by line: prompt, step,\n"
"                        decode, generate, previews, memory, peak, save\n"
"                        FILE\n";


static int
sd_bench_picture(sd_bench_t *b, sd_error_t *err)
{
    sd_picture_destroy(b->picture);
    b->picture = NULL;

    return sd_picture_create(&b->picture, b->model, &b->params, err);
}


static int
sd_bench_prompt(sd_bench_t *b, double *seconds, sd_error_t *err)
{
    int                       i, tokens, length;
    double                    start;
    int32_t                   ids[2 * 77];
    const char               *texts[2];
    const sd_text_encoder_t  *t;

    t = &b->model->text_encoder;
    length = t->length;

    if (length > 77) {
        return sd_fail(err, "prompts of %d tokens are not measured", length);
    }

    texts[0] = b->params.negative_prompt;
    texts[1] = b->params.prompt;

    start = sd_now();

    for (i = 0; i < 2; i++) {
        if (sd_tokenizer_encode(b->model->tokenizer, texts[i],
                                strlen(texts[i]), ids + i * length, length,
                                &tokens, err)
            != SD_OK)
        {
            return SD_ERROR;
        }
    }

    sd_context_reset(&b->cx, err, NULL);
    (void) sd_text_encoder(t, &b->cx, ids, 2);

    *seconds = sd_now() - start;

    return b->cx.status;
}


/* always a first step, so that each does the same */

static int
sd_bench_step(sd_bench_t *b, double *seconds, sd_error_t *err)
{
    double  start;

    if (sd_bench_picture(b, err) != SD_OK
        || sd_picture_begin(b->picture, &b->cx, NULL, err) != SD_OK)
    {
        return SD_ERROR;
    }

    start = sd_now();

    if (sd_cli_step(b->batch, b->picture, err) != SD_OK) {
        return SD_ERROR;
    }

    *seconds = sd_now() - start;

    return SD_OK;
}


static int
sd_bench_decode(sd_bench_t *b, double *seconds, sd_error_t *err)
{
    double  start;

    if (b->picture == NULL && sd_bench_step(b, &start, err) != SD_OK) {
        return SD_ERROR;
    }

    start = sd_now();

    if (sd_picture_decode(b->picture, &b->cx, 0, b->rgb, NULL, NULL, err)
        != SD_OK)
    {
        return SD_ERROR;
    }

    *seconds = sd_now() - start;

    return SD_OK;
}


/* an rgb preview as the engine sends it: scaled up, and a JPEG; all of it here,
 * while the engine's encoder threads do most of it beside the steps */

static int
sd_bench_preview(sd_bench_t *b, sd_error_t *err)
{
    int       rc, scale;
    uint8_t  *small;
    sd_buf_t  jpeg;

    memset(&jpeg, 0, sizeof(jpeg));

    scale = b->model->vae_scale;
    small = malloc((size_t) b->params.width / scale
                   * (b->params.height / scale) * 3);

    if (small == NULL) {
        return sd_fail(err, "no memory for a preview");
    }

    rc = sd_picture_preview(b->picture, &b->cx, small, err);

    if (rc == SD_OK) {
        sd_image_upscale(b->rgb, small, b->params.width / scale,
                         b->params.height / scale, scale);
        rc = sd_jpeg_encode(&jpeg, b->rgb, b->params.width, b->params.height,
                            90, err);
    }

    free(small);
    sd_buf_free(&jpeg);

    return rc;
}


static int
sd_bench_whole(sd_bench_t *b, int previews, double *seconds, sd_error_t *err)
{
    int       i, rc;
    double    start;
    sd_buf_t  jpeg;

    memset(&jpeg, 0, sizeof(jpeg));
    start = sd_now();

    if (sd_bench_picture(b, err) != SD_OK
        || sd_picture_begin(b->picture, &b->cx, NULL, err) != SD_OK)
    {
        return SD_ERROR;
    }

    for (i = 0; i < b->params.steps; i++) {
        if (sd_cli_step(b->batch, b->picture, err) != SD_OK) {
            return SD_ERROR;
        }

        if (previews && i + 1 < b->params.steps
            && sd_bench_preview(b, err) != SD_OK)
        {
            return SD_ERROR;
        }
    }

    if (sd_picture_decode(b->picture, &b->cx, 0, b->rgb, NULL, NULL, err)
        != SD_OK)
    {
        return SD_ERROR;
    }

    rc = sd_jpeg_encode(&jpeg, b->rgb, b->params.width, b->params.height, 90,
                        err);
    sd_buf_free(&jpeg);

    *seconds = sd_now() - start;

    return rc;
}


static int
sd_bench_generate(sd_bench_t *b, double *seconds, sd_error_t *err)
{
    return sd_bench_whole(b, 0, seconds, err);
}


static int
sd_bench_previews(sd_bench_t *b, double *seconds, sd_error_t *err)
{
    return sd_bench_whole(b, 1, seconds, err);
}


static const struct {
    const char        *name;
    sd_bench_part_pt   run;
} sd_bench_parts[] = {
    { "prompt",   sd_bench_prompt },
    { "step",     sd_bench_step },
    { "decode",   sd_bench_decode },
    { "generate", sd_bench_generate },
    { "previews", sd_bench_previews },
    { NULL,       NULL }
};


/* save: what one step made, for a comparison with other programs */

static void
sd_bench_dump(void *data, const char *name, const float *values, int rank,
    const int64_t *shape)
{
    int               i;
    size_t            n;
    sd_bench_t       *b;
    sd_bench_dump_t  *d;

    b = data;

    if (b->ndumps == SD_BENCH_DUMPS || rank > 8) {
        return;
    }

    d = &b->dumps[b->ndumps];
    n = 1;

    for (i = 0; i < rank; i++) {
        d->shape[i] = shape[i];
        n *= shape[i];
    }

    d->values = malloc(n * sizeof(float));

    if (d->values == NULL) {
        return;
    }

    memcpy(d->values, values, n * sizeof(float));
    snprintf(d->name, sizeof(d->name), "%s", name);
    d->rank = rank;
    b->ndumps++;
}


static int
sd_bench_write(sd_bench_t *b, const char *path, sd_error_t *err)
{
    int          i, rc;
    sd_buf_t     file;
    sd_st_out_t  out[SD_BENCH_DUMPS];

    memset(&file, 0, sizeof(file));
    memset(out, 0, sizeof(out));

    for (i = 0; i < b->ndumps; i++) {
        out[i].name = b->dumps[i].name;
        out[i].data = b->dumps[i].values;
        out[i].rank = b->dumps[i].rank;
        memcpy(out[i].shape, b->dumps[i].shape, sizeof(out[i].shape));
    }

    rc = sd_safetensors_write(&file, out, b->ndumps, NULL, 0, err);

    if (rc == SD_OK) {
        rc = sd_file_write(path, file.data, file.len, err);
    }

    sd_buf_free(&file);

    return rc;
}


static int
sd_bench_save(sd_bench_t *b, const char *path, sd_error_t *err)
{
    int  rc;

    if (sd_bench_picture(b, err) != SD_OK) {
        return SD_ERROR;
    }

    sd_picture_dump(b->picture, sd_bench_dump, b);

    rc = sd_picture_begin(b->picture, &b->cx, NULL, err);

    if (rc == SD_OK) {
        rc = sd_picture_step(b->picture, &b->cx, NULL, err);
    }

    if (rc == SD_OK) {
        rc = sd_picture_decode(b->picture, &b->cx, 0, b->rgb, NULL, NULL, err);
    }

    sd_picture_dump(b->picture, NULL, NULL);

    if (rc == SD_OK) {
        rc = sd_bench_write(b, path, err);
    }

    while (b->ndumps > 0) {
        free(b->dumps[--b->ndumps].values);
    }

    return rc;
}


static int
sd_bench_lines(sd_bench_t *b, sd_error_t *err)
{
    int     i, rc;
    char    line[4096], *arg;
    double  seconds;

    printf("ready %s %s\n", b->device->isa, b->device->numerics);
    fflush(stdout);

    while (fgets(line, sizeof(line), stdin) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        arg = strchr(line, ' ');

        if (arg != NULL) {
            *arg++ = '\0';
        }

        rc = SD_OK;

        if (strcmp(line, "save") == 0 && arg != NULL) {
            rc = sd_bench_save(b, arg, err);
            printf("%s\n", rc == SD_OK ? "ok" : "failed");

        } else if (strcmp(line, "memory") == 0) {
            printf("%zu\n", sd_cli_rss());

        } else if (strcmp(line, "peak") == 0) {
            printf("%.4g\n", sd_peak_flops(b->device, b->threads));

        } else {

            for (i = 0; sd_bench_parts[i].name != NULL; i++) {
                if (strcmp(line, sd_bench_parts[i].name) == 0) {
                    break;
                }
            }

            if (sd_bench_parts[i].name == NULL) {
                return sd_fail(err, "no such command: \"%s\"", line);
            }

            rc = sd_bench_parts[i].run(b, &seconds, err);

            if (rc == SD_OK) {
                printf("%.6f\n", seconds);
            }
        }

        if (rc != SD_OK) {
            return rc;
        }

        fflush(stdout);
    }

    return SD_OK;
}


static int
sd_bench_compare(const void *one, const void *two)
{
    double  a, b;

    a = *(const double *) one;
    b = *(const double *) two;

    return (a > b) - (a < b);
}


static int
sd_bench_table(sd_bench_t *b, sd_error_t *err)
{
    int     i, j;
    double  seconds[SD_BENCH_ROUNDS];

    printf("%s, %s, %s\n", b->model->name, b->device->isa,
           b->device->numerics);
    printf("%dx%d, %d steps, loaded in %.2f s\n\n", b->params.width,
           b->params.height, b->params.steps, b->load);
    printf("%-10s %12s %12s %12s\n", "seconds", "median", "min", "max");

    for (i = 0; sd_bench_parts[i].name != NULL; i++) {

        for (j = 0; j < b->rounds; j++) {
            if (sd_bench_parts[i].run(b, &seconds[j], err) != SD_OK) {
                return SD_ERROR;
            }
        }

        qsort(seconds, b->rounds, sizeof(double), sd_bench_compare);
        printf("%-10s %12.4f %12.4f %12.4f\n", sd_bench_parts[i].name,
               seconds[b->rounds / 2], seconds[0], seconds[b->rounds - 1]);
        fflush(stdout);
    }

    printf("\nmemory     %12.1f MiB planned, %.1f MiB at most\n",
           b->memory.peak / 1048576.0, sd_cli_rss() / 1048576.0);

    return SD_OK;
}


/* each part once for warmth and once for the profile */

static int
sd_bench_profile(sd_bench_t *b, sd_error_t *err)
{
    int           i, rc;
    double        seconds, peak;
    sd_profile_t  p;

    peak = sd_peak_flops(b->device, b->threads);
    printf("FMA peak: %.1f GFLOP/s\n", peak / 1e9);

    sd_profile_begin(&p, b->device);
    rc = SD_OK;

    for (i = 0; i < 3 && rc == SD_OK; i++) {
        rc = sd_bench_parts[i].run(b, &seconds, err);

        if (rc != SD_OK) {
            break;
        }

        sd_profile_clear(&p);
        rc = sd_bench_parts[i].run(b, &seconds, err);

        if (rc == SD_OK) {
            printf("\n%s: %.4f s\n\n", sd_bench_parts[i].name, seconds);
            sd_profile_print(&p, stdout, 16, peak);
        }
    }

    sd_profile_end(&p);

    return rc;
}


static int
sd_bench_open(sd_bench_t *b, sd_error_t *err)
{
    if (sd_device_open(&b->device, b->name, b->threads, b->precision, NULL, err)
        != SD_OK
        || (b->plans && sd_device_plans(b->device, b->plans, 0, err) != SD_OK)
        || sd_model_open(&b->model, b->path, b->device, err) != SD_OK)
    {
        return SD_ERROR;
    }

    if (b->params.width == 0) {
        b->params.width = b->model->default_width;
        b->params.height = b->model->default_height;
    }

    if (sd_cli_memory(&b->memory, b->model, b->device, b->threads, &b->params,
                      err)
        != SD_OK)
    {
        return SD_ERROR;
    }

    b->load = sd_now();

    if (sd_model_load(b->model, b->device, NULL, NULL, NULL, err) != SD_OK) {
        return SD_ERROR;
    }

    b->load = sd_now() - b->load;
    b->rgb = malloc(b->memory.bytes);

    if (b->rgb == NULL) {
        return sd_fail(err, "no memory for the picture");
    }

    if (sd_context_init(&b->cx, b->device, 0, b->memory.arena, err) != SD_OK) {
        return SD_ERROR;
    }

    return sd_batch_create(&b->batch, b->model, &b->cx, 1, err);
}


static void
sd_bench_close(sd_bench_t *b)
{
    sd_picture_destroy(b->picture);
    sd_batch_destroy(b->batch);
    sd_context_free(&b->cx);
    sd_model_close(b->model);

    if (b->device != NULL) {
        sd_device_close(b->device);
    }

    sd_buf_free(&b->latents);
    free(b->rgb);
}


static int
sd_bench_parse(sd_bench_t *b, int argc, char **argv, sd_error_t *err)
{
    int        c, rc;
    long long  n;

    rc = SD_OK;

    while (rc == SD_OK
           && (c = getopt_long(argc, argv, "h", sd_bench_options, NULL)) != -1)
    {
        switch (c) {

        case 'm':
            b->path = optarg;
            break;

        case 'd':
            b->name = optarg;
            break;

        case 'P':
            rc = sd_cli_precision(optarg, &b->precision);
            break;

        case 't':
            rc = sd_cli_number("threads", optarg, 1, 1024, &n);
            b->threads = n;
            break;

        case 'S':
            rc = sd_cli_size(optarg, &b->params.width, &b->params.height);
            break;

        case 'p':
            b->params.prompt = optarg;
            break;

        case 's':
            rc = sd_cli_number("steps", optarg, 1, 1000, &n);
            b->params.steps = n;
            break;

        case 'r':
            rc = sd_cli_number("rounds", optarg, 1, SD_BENCH_ROUNDS, &n);
            b->rounds = n;
            break;

        case 'n':
            rc = sd_cli_number("pictures", optarg, 1, SD_BENCH_PICTURES, &n);
            b->pictures = n;
            break;

        case 'f':
            b->plans = optarg;
            break;

        case 'L':
            if (sd_file_read(&b->latents, optarg, 64 << 20, err) != SD_OK) {
                fprintf(stderr, "sd bench: %s\n", err->message);
                rc = SD_ERROR;
            }

            b->params.latents = b->latents.data;
            b->params.latents_size = b->latents.len;
            b->params.starting_step = 0;
            break;

        case 'O':
            b->profile = 1;
            break;

        case 'l':
            b->lines = 1;
            break;

        default:
            fputs(sd_bench_usage, c == 'h' ? stdout : stderr);
            rc = c == 'h' ? SD_AGAIN : SD_ERROR;
        }
    }

    if (rc == SD_OK && optind != argc) {
        fputs(sd_bench_usage, stderr);
        rc = SD_ERROR;
    }

    return rc;
}


int
sd_cli_bench(int argc, char **argv)
{
    int          rc;
    sd_bench_t   b;
    sd_error_t   err;

    memset(&b, 0, sizeof(b));
    b.path = sd_cli_default_model();
    b.name = "cpu";
    b.rounds = 3;
    b.pictures = SD_BENCH_PICTURES;
    b.params.prompt = "a red house beside a lake at sunset";
    b.params.negative_prompt = "";
    b.params.steps = 20;
    b.params.guidance = 7.5;
    b.params.seed = 1;
    b.params.starting_step = -1;

    rc = sd_bench_parse(&b, argc, argv, &err);

    if (rc != SD_OK) {
        sd_buf_free(&b.latents);
        return rc == SD_AGAIN ? 0 : 2;
    }

    rc = sd_bench_open(&b, &err);

    if (rc == SD_OK && sd_can_record(b.device) && !b.lines && !b.profile) {
        rc = sd_bench_card(&b, &err);

    } else if (rc == SD_OK) {
        rc = b.lines ? sd_bench_lines(&b, &err)
             : b.profile ? sd_bench_profile(&b, &err)
             : sd_bench_table(&b, &err);
    }

    if (rc == SD_OK && b.plans) {
        rc = sd_device_plans(b.device, b.plans, 1, &err);
    }

    if (rc != SD_OK) {
        fprintf(stderr, "sd bench: %s\n", err.message);
    }

    sd_bench_close(&b);

    return rc == SD_OK ? 0 : 1;
}
