/*
 * sd tune: does once, and keeps in a file, what a card would otherwise have to
 * find out at each start: which of the libraries' kernels is the fastest for
 * each shape of a model's work.  Pictures are the same with and without.
 */

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "profile.h"


#define SD_TUNE_SIZES  16


typedef struct {
    const char       *model, *device, *dir;
    int               pictures, n;
    int               width[SD_TUNE_SIZES], height[SD_TUNE_SIZES];
    uint8_t          *rgb;
    sd_model_t       *loaded;
    sd_device_t      *dev;
} sd_tune_t;


static const char  sd_tune_usage[] =
"sd tune --plans DIR [options]\n"
"\n"
"Chooses the fastest kernels for a model on a card, and keeps the choice in DIR,\n"
"which nginx is told by sd_cache_path.  What is there already is not done again.\n"
"\n"
"    --model DIR         the embedded model\n"
"    --device NAME       cuda\n"
"    --size WxH          of pictures, may be repeated; the model's own\n"
"    --pictures N        at most so many at a time; 8\n";


/* all that a picture of this size needs: prompt, steps, decoding */

static int
sd_tune_size(sd_tune_t *t, int width, int height, sd_error_t *err)
{
    int            rc;
    size_t         step, prompt, decode;
    sd_batch_t    *batch = NULL;
    sd_params_t    params = { 0 };
    sd_context_t   steps, cx;
    sd_picture_t  *p = NULL;

    params.prompt = "tuning";
    params.negative_prompt = "";
    params.width = width;
    params.height = height;
    params.steps = 20;
    params.guidance = 7.5;
    params.starting_step = -1;

    t->rgb = realloc(t->rgb, (size_t) width * height * 3);

    if (t->rgb == NULL) {
        return sd_fail(err, "no memory for a picture");
    }

    if (sd_batch_plan(t->loaded, t->dev, width, height, t->pictures, &step,
                      err) != SD_OK
        || sd_model_plan(t->loaded, t->dev, width, height, NULL, &prompt,
                         &decode, err) != SD_OK
        || sd_context_init(&steps, t->dev, 0, step, err) != SD_OK)
    {
        return SD_ERROR;
    }

    if (sd_context_init(&cx, t->dev, 0, prompt > decode ? prompt : decode, err)
        != SD_OK)
    {
        sd_context_free(&steps);
        return SD_ERROR;
    }

    rc = sd_batch_create(&batch, t->loaded, &steps, t->pictures, err);

    if (rc == SD_OK) {
        rc = sd_batch_prepare(batch, width, height, err);
    }

    if (rc == SD_OK) {
        rc = sd_picture_create(&p, t->loaded, &params, err);
    }

    if (rc == SD_OK) {
        rc = sd_picture_begin(p, &cx, NULL, err);
    }

    if (rc == SD_OK) {
        rc = sd_picture_decode(p, &cx, 0, t->rgb, NULL, NULL, err);
    }

    sd_picture_destroy(p);
    sd_batch_destroy(batch);
    sd_context_free(&cx);
    sd_context_free(&steps);

    return rc;
}


static int
sd_tune_run(sd_tune_t *t, sd_error_t *err)
{
    int     i;
    double  start;

    if (sd_device_open(&t->dev, t->device, 0, SD_PRECISION_EXACT, NULL, err)
        != SD_OK
        || sd_device_plans(t->dev, t->dir, 0, err) != SD_OK
        || sd_model_open(&t->loaded, t->model, t->dev, err) != SD_OK
        || sd_model_load(t->loaded, t->dev, NULL, NULL, NULL, err) != SD_OK)
    {
        return SD_ERROR;
    }

    if (!sd_can_record(t->dev)) {
        return sd_fail(err, "%s has nothing to tune", t->device);
    }

    if (t->n == 0) {
        t->width[0] = t->loaded->default_width;
        t->height[0] = t->loaded->default_height;
        t->n = 1;
    }

    for (i = 0; i < t->n; i++) {
        start = sd_now();

        /* after each, so that what is done is kept */

        if (sd_tune_size(t, t->width[i], t->height[i], err) != SD_OK
            || sd_device_plans(t->dev, t->dir, 1, err) != SD_OK)
        {
            return SD_ERROR;
        }

        printf("%dx%d: 1 to %d pictures at a time, %.1f s\n", t->width[i],
               t->height[i], t->pictures, sd_now() - start);
    }

    return SD_OK;
}


int
sd_cli_tune(int argc, char **argv)
{
    static const struct option  options[] = {
        { "model", required_argument, NULL, 'm' },
        { "device", required_argument, NULL, 'd' },
        { "plans", required_argument, NULL, 'f' },
        { "size", required_argument, NULL, 's' },
        { "pictures", required_argument, NULL, 'n' },
        { "help", no_argument, NULL, 'h' },
        { NULL, 0, NULL, 0 }
    };

    int         c, rc;
    long long   n;
    sd_tune_t   t = { 0 };
    sd_error_t  err;

    t.model = sd_cli_default_model();
    t.device = "cuda";
    t.pictures = 8;

    rc = SD_OK;

    while (rc == SD_OK
           && (c = getopt_long(argc, argv, "h", options, NULL)) != -1)
    {
        switch (c) {

        case 'm':
            t.model = optarg;
            break;

        case 'd':
            t.device = optarg;
            break;

        case 'f':
            t.dir = optarg;
            break;

        case 's':
            rc = t.n == SD_TUNE_SIZES
                 ? SD_ERROR
                 : sd_cli_size(optarg, &t.width[t.n], &t.height[t.n]);
            t.n++;
            break;

        case 'n':
            rc = sd_cli_number("pictures", optarg, 1, 64, &n);
            t.pictures = n;
            break;

        case 'h':
            fputs(sd_tune_usage, stdout);
            return 0;

        default:
            rc = SD_ERROR;
        }
    }

    if (rc != SD_OK || optind != argc || t.dir == NULL) {
        fputs(sd_tune_usage, stderr);
        return 2;
    }

    rc = sd_tune_run(&t, &err);

    if (rc != SD_OK) {
        fprintf(stderr, "sd tune: %s\n", err.message);
    }

    sd_model_close(t.loaded);
    sd_device_close(t.dev);
    free(t.rgb);

    return rc == SD_OK ? 0 : 1;
}
