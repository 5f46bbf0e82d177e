/*
 * sd bench on a card: what a step of several pictures at a time takes, and
 * whole pictures with and without previews.
 *
 * Two times of a step: as a server does it, the host's part included, and the
 * device's own, of steps that are enqueued without waiting.  Their quotient is
 * how busy the device is kept.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../io/file.h"
#include "../io/image.h"
#include "bench.h"
#include "profile.h"


#define SD_CARD_STEPS  20           /* that are timed */


static int
sd_card_compare(const void *a, const void *b)
{
    double  x = *(const double *) a, y = *(const double *) b;

    return x < y ? -1 : x > y;
}


/* so many pictures, begun, with seeds of their own */

static int
sd_card_pictures(sd_bench_t *b, sd_picture_t **p, int n, int steps,
    sd_error_t *err)
{
    int          i, rc;
    sd_params_t  params;

    for (i = 0, rc = SD_OK; i < n && rc == SD_OK; i++) {
        params = b->params;
        params.seed += i;
        params.steps = steps;

        rc = sd_picture_create(&p[i], b->model, &params, err);

        if (rc == SD_OK) {
            rc = sd_picture_begin(p[i], &b->cx, NULL, err);
        }
    }

    return rc;
}


static int
sd_card_steps(sd_bench_t *b, sd_batch_t *batch, int n, double decode,
    sd_error_t *err)
{
    int            i, rc;
    double         times[SD_CARD_STEPS], start, prepared, own;
    sd_picture_t  *p[SD_BENCH_PICTURES] = { NULL };

    own = 0;
    prepared = sd_now();

    rc = sd_card_pictures(b, p, n, SD_CARD_STEPS + 2, err);

    for (i = -2; i < SD_CARD_STEPS && rc == SD_OK; i++) {
        start = sd_now();
        rc = sd_batch_row(batch, p, n, NULL, err);

        if (i == -2) {
            prepared = sd_now() - prepared;
        }

        if (i >= 0) {
            times[i] = sd_now() - start;
        }

        /* the device's own time, before the last step */

        if (rc == SD_OK && i == SD_CARD_STEPS - 2) {
            start = sd_now();
            rc = sd_batch_repeat(batch, p, n, SD_CARD_STEPS, err);
            own = (sd_now() - start) / SD_CARD_STEPS;
        }
    }

    if (rc == SD_OK) {
        qsort(times, SD_CARD_STEPS, sizeof(double), sd_card_compare);

        start = times[SD_CARD_STEPS / 2];

        printf("%-10d %9.3f %9.3f %9.3f %9.3f %8.1f %9.2f %7.1f%% %9.1f\n", n,
               start * 1e3, times[0] * 1e3, times[SD_CARD_STEPS - 1] * 1e3,
               start * 1e3 / n, n / start,
               n / (50 * start + n * decode), 100 * own / start, prepared);
        fflush(stdout);
    }

    for (i = 0; i < n; i++) {
        sd_picture_destroy(p[i]);
    }

    return rc;
}


/* prompt to JPEG, with a preview every step and a state every five, or not */

static int
sd_card_whole(sd_bench_t *b, sd_batch_t *batch, int previews, double *whole,
    double *first, sd_error_t *err)
{
    int                 rc;
    double              start;
    uint8_t            *rgb;
    sd_buf_t            out = { 0 };
    sd_picture_t       *p = NULL;
    sd_picture_info_t   info;

    rgb = malloc((size_t) b->params.width * b->params.height * 3);

    if (rgb == NULL) {
        return sd_fail(err, "no memory for a picture");
    }

    start = sd_now();
    *first = 0;

    rc = sd_card_pictures(b, &p, 1, b->params.steps, err);

    do {
        if (rc == SD_OK) {
            rc = sd_batch_row(batch, &p, 1, NULL, err);
        }

        if (rc != SD_OK) {
            break;
        }

        sd_picture_info(p, &info);

        if (previews) {
            rc = sd_picture_preview(p, &b->cx, rgb, err);

            if (*first == 0) {
                *first = sd_now() - start;
            }

            if (rc == SD_OK && info.step % 5 == 0) {
                out.len = 0;
                rc = sd_picture_state(p, &out, err);
            }
        }

    } while (rc == SD_OK && info.step < info.steps);

    if (rc == SD_OK) {
        rc = sd_picture_decode(p, &b->cx, 0, rgb, NULL, NULL, err);
    }

    if (rc == SD_OK) {
        out.len = 0;
        rc = sd_jpeg_encode(&out, rgb, b->params.width, b->params.height, 90,
                            err);
    }

    *whole = sd_now() - start;

    sd_picture_destroy(p);
    sd_buf_free(&out);
    free(rgb);

    return rc;
}


/* the median of some rounds */

static int
sd_card_median(sd_bench_t *b, sd_batch_t *batch, int previews, double *whole,
    double *first, sd_error_t *err)
{
    int     i;
    double  times[SD_BENCH_ROUNDS], firsts[SD_BENCH_ROUNDS];

    for (i = -1; i < b->rounds; i++) {
        if (sd_card_whole(b, batch, previews, &times[i < 0 ? 0 : i],
                          &firsts[i < 0 ? 0 : i], err)
            != SD_OK)
        {
            return SD_ERROR;
        }
    }

    qsort(times, b->rounds, sizeof(double), sd_card_compare);
    qsort(firsts, b->rounds, sizeof(double), sd_card_compare);

    *whole = times[b->rounds / 2];
    *first = firsts[b->rounds / 2];

    return SD_OK;
}


/* text encoder of both prompts; all tables of a picture; a decode */

static int
sd_card_parts(sd_bench_t *b, double *begin, double *decode, sd_error_t *err)
{
    int            i, rc;
    double         start, times[2][SD_BENCH_ROUNDS];
    sd_picture_t  *p;

    for (i = -1, rc = SD_OK; i < b->rounds && rc == SD_OK; i++) {
        p = NULL;

        start = sd_now();
        rc = sd_card_pictures(b, &p, 1, b->params.steps, err);

        times[0][i < 0 ? 0 : i] = sd_now() - start;

        start = sd_now();

        if (rc == SD_OK) {
            rc = sd_picture_decode(p, &b->cx, 0, b->rgb, NULL, NULL, err);
        }

        times[1][i < 0 ? 0 : i] = sd_now() - start;

        sd_picture_destroy(p);
    }

    for (i = 0; i < 2; i++) {
        qsort(times[i], b->rounds, sizeof(double), sd_card_compare);
    }

    *begin = times[0][b->rounds / 2];
    *decode = times[1][b->rounds / 2];

    return rc;
}


int
sd_bench_card(sd_bench_t *b, sd_error_t *err)
{
    int           i, rc;
    size_t        size, left, total;
    double        begin, decode, plain, shown, first, none;
    sd_batch_t   *batch;
    sd_context_t  cx;

    static const int  counts[] = { 1, 2, 4, 8, 16 };

    if (sd_batch_plan(b->model, b->device, b->params.width, b->params.height,
                      b->pictures, &size, err)
        != SD_OK
        || sd_context_init(&cx, b->device, 0, size, err) != SD_OK)
    {
        return SD_ERROR;
    }

    if (sd_batch_create(&batch, b->model, &cx, b->pictures, err) != SD_OK) {
        sd_context_free(&cx);
        return SD_ERROR;
    }

    printf("%s, %s, %s, %s\n%dx%d, loaded in %.2f s\n\n", b->model->name,
           b->device->name, b->device->isa, b->device->numerics,
           b->params.width, b->params.height, b->load);

    rc = sd_card_parts(b, &begin, &decode, err);

    if (rc == SD_OK) {
        printf("prompt, tables and noise  %9.3f ms\n"
               "decode, to bytes          %9.3f ms\n\n", begin * 1e3,
               decode * 1e3);
        printf("%-10s %9s %9s %9s %9s %8s %9s %8s %9s\n", "pictures", "ms/step",
               "min", "max", "ms each", "it/s", "50 steps,", "device", "ready");
        printf("%-10s %9s %9s %9s %9s %8s %9s %8s %9s\n", "at a time", "", "",
               "", "", "", "pict./s", "busy", "after, s");
    }

    for (i = 0; i < (int) (sizeof(counts) / sizeof(counts[0])) && rc == SD_OK
                && counts[i] <= b->pictures; i++)
    {
        rc = sd_card_steps(b, batch, counts[i], decode, err);
    }

    if (rc == SD_OK) {
        rc = sd_card_median(b, batch, 0, &plain, &none, err);
    }

    if (rc == SD_OK) {
        rc = sd_card_median(b, batch, 1, &shown, &first, err);
    }

    if (rc == SD_OK) {
        printf("\n%d steps, prompt to JPEG                  %9.2f ms\n"
               "the same, a preview each step, a state each fifth %9.2f ms, "
               "%.3f times; the first preview after %.2f ms\n",
               b->params.steps, plain * 1e3, shown * 1e3, shown / plain,
               first * 1e3);

        if (b->device->ops->memory(b->device, &left, &total) == SD_OK) {
            printf("\nmemory  %.0f MiB: weights %.0f, arenas %.0f and %.0f\n",
                   (total - left) / 1048576.0,
                   b->model->packed_bytes / 1048576.0,
                   b->memory.arena / 1048576.0, size / 1048576.0);
        }
    }

    sd_batch_destroy(batch);
    sd_context_free(&cx);

    return rc;
}
