/*
 * Does the embedded model paint what the prompt says?  Eight seeds a prompt, by
 * pixels: each check compares a measure of the pictures of two prompts, and
 * wants the means to differ by a margin, and the pictures, seed by seed, in
 * seven cases of eight.  The last ones are of combinations that training never
 * showed.  Runs in the source's root directory.
 */

#include <math.h>
#include <stdlib.h>

#include "../../src/sd/picture.h"
#include "tap.h"


#define SEEDS     8
#define STEPS     10                /* few: this is a test, not a gallery */
#define GUIDANCE  6

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED  1
#else
#define SANITIZED  0
#endif


typedef enum {
    LUMA,                       /* brightness, 0 .. 255 */
    WARMTH,                     /* red less blue in the upper half, the sky */
    RED,                        /* percent of pixels that are a strong red */
    BLUE,                       /* percent, under the sky, of a strong blue */
    SATURATION,                 /* the largest channel less the smallest */
    WHITE,                      /* the smallest channel in the lower half */
    MEASURES
} measure_t;


#define HILLS  "green hills at noon"

static const struct {
    const char  *name;
    measure_t    measure;
    const char  *more, *less;   /* the prompt with more of it, with less */
    double       margin;
} checks[] = {
    { "night is darker than noon", LUMA,
      HILLS, "green hills at night", 40 },
    { "sunset is warmer than noon", WARMTH,
      "green hills at sunset", HILLS, 40 },
    { "a red house is redder than a blue one", RED,
      "a red house on green hills at noon",
      "a blue house on green hills at noon", 1 },
    { "and a blue one bluer", BLUE,
      "a blue house on green hills at noon",
      "a red house on green hills at noon", 1 },
    { "black and white is unsaturated", SATURATION,
      HILLS, "a black and white picture of green hills", 40 },
    { "snow is whiter than a meadow", WHITE,
      "a snowy field at noon", "a green meadow at noon", 60 },
    { "never seen: a blue house in the snow", BLUE,
      "a blue house in the snow at noon",
      "a red house in the snow at noon", 1 },
    { "never seen: a red house in the desert", RED,
      "a red house in the desert at noon",
      "a blue house in the desert at noon", 1 },
    { "never seen: a forest at sunset", WARMTH,
      "a pine forest at sunset", "a pine forest at noon", 40 },
    { "never seen: a fox in the snow at night", LUMA,
      "a fox in the snow at noon", "a fox in the snow at night", 40 }
};

#define CHECKS  (sizeof(checks) / sizeof(checks[0]))


typedef struct {
    const char  *prompt;
    double       of[SEEDS][MEASURES];
} painted_t;


static sd_device_t   *device;
static sd_model_t    *model;
static sd_context_t   cx;

static painted_t      painted[2 * CHECKS];
static size_t         npainted;


static void
measure(double *of, const uint8_t *rgb, int w, int h)
{
    int             i, n, lower;
    double          r, g, b, min, max;

    memset(of, 0, MEASURES * sizeof(double));
    n = w * h;

    for (i = 0; i < n; i++, rgb += 3) {
        r = rgb[0];
        g = rgb[1];
        b = rgb[2];

        min = fmin(r, fmin(g, b));
        max = fmax(r, fmax(g, b));
        lower = i >= w * (h / 2);

        of[LUMA] += 0.299 * r + 0.587 * g + 0.114 * b;
        of[WARMTH] += lower ? 0 : r - b;
        of[RED] += r > 110 && r > 2 * g && r > 2 * b;
        of[BLUE] += lower && b > 90 && b > 1.4 * g && b > 1.8 * r;
        of[SATURATION] += max - min;
        of[WHITE] += lower ? min : 0;
    }

    of[LUMA] /= n;
    of[WARMTH] /= n / 2;
    of[RED] *= 100.0 / n;
    of[BLUE] *= 100.0 / (n / 2);
    of[SATURATION] /= n;
    of[WHITE] /= n / 2;
}


static int
paint(painted_t *p, sd_error_t *err)
{
    int            i, seed, rc;
    uint8_t       *rgb;
    sd_params_t    params;
    sd_picture_t  *picture;

    memset(&params, 0, sizeof(sd_params_t));

    params.prompt = p->prompt;
    params.negative_prompt = "";
    params.width = model->default_width;
    params.height = model->default_height;
    params.steps = STEPS;
    params.guidance = GUIDANCE;
    params.starting_step = -1;

    rgb = malloc(params.width * params.height * 3);

    for (seed = 0, rc = SD_OK; seed < SEEDS && rc == SD_OK; seed++) {
        params.seed = seed;
        rc = sd_picture_create(&picture, model, &params, err);

        if (rc != SD_OK) {
            break;
        }

        rc = sd_picture_begin(picture, &cx, NULL, err);

        for (i = 0; i < STEPS && rc == SD_OK; i++) {
            rc = sd_picture_step(picture, &cx, NULL, err);
        }

        if (rc == SD_OK) {
            rc = sd_picture_decode(picture, &cx, 0, rgb, NULL, NULL, err);
            measure(p->of[seed], rgb, params.width, params.height);
        }

        sd_picture_destroy(picture);
    }

    free(rgb);

    return rc;
}


/* a prompt's pictures, which are painted once */

static painted_t *
pictures(const char *prompt)
{
    size_t      i;
    sd_error_t  err;
    painted_t  *p;

    for (i = 0; i < npainted; i++) {
        if (strcmp(painted[i].prompt, prompt) == 0) {
            return &painted[i];
        }
    }

    p = &painted[npainted];
    p->prompt = prompt;

    if (paint(p, &err) != SD_OK) {
        printf("# %s: %s\n", prompt, err.message);
        return NULL;
    }

    npainted++;

    return p;
}


static void
check(size_t i)
{
    int         k, won;
    double      a, b, more, less;
    painted_t  *x, *y;

    x = pictures(checks[i].more);
    y = pictures(checks[i].less);

    if (x == NULL || y == NULL) {
        ok(0, "%s", checks[i].name);
        return;
    }

    more = less = 0;

    for (won = k = 0; k < SEEDS; k++) {
        a = x->of[k][checks[i].measure];
        b = y->of[k][checks[i].measure];

        won += a > b;
        more += a / SEEDS;
        less += b / SEEDS;
    }

    ok(more - less >= checks[i].margin && 8 * won >= 7 * SEEDS,
       "%s: %.1f and %.1f, %d of %d seeds", checks[i].name, more, less, won,
       SEEDS);
}


int
main(void)
{
    size_t      i, arena, prompt, decode;
    sd_error_t  err;

    if (SANITIZED) {
        printf("1..0 # skip the same code as elsewhere, many times\n");
        return 0;
    }

    if (sd_device_open(&device, "cpu", 0, SD_PRECISION_EXACT, NULL, &err)
           != SD_OK
        || sd_model_open(&model, "model", device, &err) != SD_OK
        || sd_model_load(model, device, NULL, NULL, NULL, &err) != SD_OK
        || sd_model_plan(model, device, model->default_width,
                         model->default_height, &arena, &prompt, &decode,
                         &err)
           != SD_OK)
    {
        ok(0, "the embedded model: %s", err.message);
        return done();
    }

    arena = arena > prompt ? arena : prompt;
    arena = arena > decode ? arena : decode;

    if (sd_context_init(&cx, device, 0, arena, &err) != SD_OK) {
        ok(0, "an arena: %s", err.message);
        return done();
    }

    for (i = 0; i < CHECKS; i++) {
        check(i);
    }

    sd_context_free(&cx);
    sd_model_close(model);
    sd_device_close(device);

    return done();
}
