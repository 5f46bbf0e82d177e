/*
 * scheduler_config.json: which noise schedule a model was trained on, and what
 * its own scheduler would do.  Names, defaults and formulas are diffusers'.
 */

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "../io/file.h"
#include "sampler.h"


#define SD_MIN_ALPHA  1e-12     /* a sigma of 1e6; the cosine schedule ends
                                   above 1e-9 */


/* diffusers' classes for models with betas, and where their defaults differ */

typedef struct {
    const char   *name;
    double        beta_start, beta_end;
    const char   *beta_schedule;
    int           clip_sample;
    int           set_alpha_to_one;
} sd_scheduler_class_t;

static const sd_scheduler_class_t  sd_scheduler_classes[] = {
    { "DDIMScheduler", 0.0001, 0.02, "linear", 1, 1 },
    { "DDIMParallelScheduler", 0.0001, 0.02, "linear", 1, 1 },
    { "DDPMScheduler", 0.0001, 0.02, "linear", 1, 1 },
    { "DDPMParallelScheduler", 0.0001, 0.02, "linear", 1, 1 },
    { "PNDMScheduler", 0.0001, 0.02, "linear", 0, 0 },
    { "LMSDiscreteScheduler", 0.0001, 0.02, "linear", 0, 1 },
    { "EulerDiscreteScheduler", 0.0001, 0.02, "linear", 0, 1 },
    { "EulerAncestralDiscreteScheduler", 0.0001, 0.02, "linear", 0, 1 },
    { "HeunDiscreteScheduler", 0.00085, 0.012, "linear", 0, 1 },
    { "KDPM2DiscreteScheduler", 0.00085, 0.012, "linear", 0, 1 },
    { "KDPM2AncestralDiscreteScheduler", 0.00085, 0.012, "linear", 0, 1 },
    { "DPMSolverMultistepScheduler", 0.0001, 0.02, "linear", 0, 1 },
    { "DPMSolverSinglestepScheduler", 0.0001, 0.02, "linear", 0, 1 },
    { "DPMSolverSDEScheduler", 0.00085, 0.012, "linear", 0, 1 },
    { "DEISMultistepScheduler", 0.0001, 0.02, "linear", 0, 1 },
    { "UniPCMultistepScheduler", 0.0001, 0.02, "linear", 0, 1 },
    { "SASolverScheduler", 0.0001, 0.02, "linear", 0, 1 },
    { "LCMScheduler", 0.00085, 0.012, "scaled_linear", 0, 1 },
    { "TCDScheduler", 0.00085, 0.012, "scaled_linear", 0, 1 },
    { NULL, 0, 0, NULL, 0, 0 }
};


/* one configuration file being read */

typedef struct {
    const cJSON   *json;
    const char    *path;
    sd_error_t    *err;
} sd_scheduler_reader_t;


static int
sd_scheduler_refuse(sd_scheduler_reader_t *r, const char *key, const char *why)
{
    int    rc;
    char  *value;

    value = cJSON_PrintUnformatted(cJSON_GetObjectItemCaseSensitive(r->json,
                                                                    key));

    rc = sd_error(r->err, 500, "invalid_model", key, "%s: \"%s\": %.80s %s",
                  r->path, key, value ? value : "", why);
    cJSON_free(value);

    return rc;
}


/* the getters leave *v, a default, as it is where the key is missing */

static int
sd_scheduler_number(sd_scheduler_reader_t *r, const char *key, double *v,
    double min, double max)
{
    const cJSON  *item;

    item = cJSON_GetObjectItemCaseSensitive(r->json, key);

    if (item == NULL || cJSON_IsNull(item)) {
        return SD_OK;
    }

    if (!cJSON_IsNumber(item)) {
        return sd_scheduler_refuse(r, key, "is not a number");
    }

    if (!(item->valuedouble >= min && item->valuedouble <= max)) {
        return sd_scheduler_refuse(r, key, "is out of range");
    }

    *v = item->valuedouble;

    return SD_OK;
}


static int
sd_scheduler_int(sd_scheduler_reader_t *r, const char *key, int *v, int min,
    int max)
{
    double  d;

    d = *v;

    if (sd_scheduler_number(r, key, &d, min, max) != SD_OK) {
        return SD_ERROR;
    }

    if (d != floor(d)) {
        return sd_scheduler_refuse(r, key, "is not a whole number");
    }

    *v = (int) d;

    return SD_OK;
}


/* null is false, as in Python */

static int
sd_scheduler_bool(sd_scheduler_reader_t *r, const char *key, int *v)
{
    const cJSON  *item;

    item = cJSON_GetObjectItemCaseSensitive(r->json, key);

    if (item == NULL) {
        return SD_OK;
    }

    if (!cJSON_IsBool(item) && !cJSON_IsNull(item)) {
        return sd_scheduler_refuse(r, key, "is not true or false");
    }

    *v = cJSON_IsTrue(item);

    return SD_OK;
}


/*
 * the value's place in names, which ends with NULL; *v stays where the key is
 * missing
 */

static int
sd_scheduler_enum(sd_scheduler_reader_t *r, const char *key,
    const char *const *names, int *v)
{
    int           i;
    const cJSON  *item;

    item = cJSON_GetObjectItemCaseSensitive(r->json, key);

    if (item == NULL || cJSON_IsNull(item)) {
        return SD_OK;
    }

    if (!cJSON_IsString(item)) {
        return sd_scheduler_refuse(r, key, "is not a string");
    }

    for (i = 0; names[i]; i++) {
        if (strcmp(item->valuestring, names[i]) == 0) {
            *v = i;
            return SD_OK;
        }
    }

    return sd_scheduler_refuse(r, key, "is not implemented");
}


static int
sd_scheduler_class(sd_scheduler_reader_t *r, sd_scheduler_config_t *c,
    const sd_scheduler_class_t **class)
{
    int                          v;
    const char                  *names[32];
    const sd_scheduler_class_t  *k;

    v = 0;

    for (k = sd_scheduler_classes; k->name; k++) {
        names[k - sd_scheduler_classes] = k->name;
    }

    names[k - sd_scheduler_classes] = NULL;

    if (sd_scheduler_enum(r, "_class_name", names, &v) != SD_OK) {
        return SD_ERROR;
    }

    *class = &sd_scheduler_classes[v];
    snprintf(c->class_name, sizeof(c->class_name), "%s", (*class)->name);

    return SD_OK;
}


/* what changes the picture and what no row of ours does */

static int
sd_scheduler_unsupported(sd_scheduler_reader_t *r,
    const sd_scheduler_config_t *c)
{
    int           i, on, euler;
    const cJSON  *item;

    static const struct {
        const char  *key;
        int          euler;         /* matters for Euler's own class only: the
                                       other classes become DDIM anyway */
    } flags[] = {
        { "thresholding", 0 },
        { "use_flow_sigmas", 0 },
        { "use_karras_sigmas", 1 },
        { "use_exponential_sigmas", 1 },
        { "use_beta_sigmas", 1 },
        { NULL, 0 }
    };

    static const struct {
        const char  *key;
        const char  *value;
    } strings[] = {
        { "interpolation_type", "linear" },
        { "timestep_type", "discrete" },
        { "final_sigmas_type", "zero" },
        { NULL, NULL }
    };

    euler = strcmp(c->class_name, "EulerDiscreteScheduler") == 0;

    for (i = 0; flags[i].key; i++) {
        on = 0;

        if (flags[i].euler && !euler) {
            continue;
        }

        if (sd_scheduler_bool(r, flags[i].key, &on) != SD_OK) {
            return SD_ERROR;
        }

        if (on) {
            return sd_scheduler_refuse(r, flags[i].key, "is not implemented");
        }
    }

    for (i = 0; euler && strings[i].key; i++) {
        item = cJSON_GetObjectItemCaseSensitive(r->json, strings[i].key);

        if (item && !cJSON_IsNull(item)
            && (!cJSON_IsString(item)
                || strcmp(item->valuestring, strings[i].value) != 0))
        {
            return sd_scheduler_refuse(r, strings[i].key,
                                       "is not implemented");
        }
    }

    item = cJSON_GetObjectItemCaseSensitive(r->json, "variance_type");

    if (cJSON_IsString(item)
        && strncmp(item->valuestring, "learned", 7) == 0)
    {
        return sd_scheduler_refuse(r, "variance_type", "is not implemented");
    }

    return SD_OK;
}


/* torch.linspace() in fp32, which goes from both ends to the middle */

static void
sd_scheduler_linspace(float *dst, float start, float end, int n)
{
    int    i;
    float  step;

    step = n > 1 ? (end - start) / (n - 1) : 0;

    for (i = 0; i < n; i++) {
        dst[i] = i < n / 2 || n == 1 ? fmaf(step, i, start)
                                     : fmaf(-step, n - i - 1, end);
    }
}


static int
sd_scheduler_betas(sd_scheduler_reader_t *r, float *betas, int n,
    const sd_scheduler_class_t *class)
{
    int           i, schedule;
    double        start, end;
    const cJSON  *item, *e;

    static const char *const  names[] = {
        "linear", "scaled_linear", "squaredcos_cap_v2", NULL
    };

    item = cJSON_GetObjectItemCaseSensitive(r->json, "trained_betas");

    if (item && !cJSON_IsNull(item)) {
        if (!cJSON_IsArray(item) || cJSON_GetArraySize(item) != n) {
            return sd_scheduler_refuse(r, "trained_betas",
                                 "is not a list of num_train_timesteps numbers");
        }

        i = 0;

        cJSON_ArrayForEach(e, item) {
            betas[i] = cJSON_IsNumber(e) ? (float) e->valuedouble : 0;

            if (!(betas[i] > 0 && betas[i] < 1)) {
                return sd_scheduler_refuse(r, "trained_betas",
                                     "are not all numbers between 0 and 1");
            }

            i++;
        }

        return SD_OK;
    }

    schedule = strcmp(class->beta_schedule, "scaled_linear") == 0;
    start = class->beta_start;
    end = class->beta_end;

    if (sd_scheduler_enum(r, "beta_schedule", names, &schedule) != SD_OK
        || sd_scheduler_number(r, "beta_start", &start, 1e-7, 0.999) != SD_OK
        || sd_scheduler_number(r, "beta_end", &end, 1e-7, 0.999) != SD_OK)
    {
        return SD_ERROR;
    }

    if (schedule == 0) {
        sd_scheduler_linspace(betas, (float) start, (float) end, n);

    } else if (schedule == 1) {
        sd_scheduler_linspace(betas, (float) sqrt(start), (float) sqrt(end),
                              n);

        for (i = 0; i < n; i++) {
            betas[i] *= betas[i];
        }

    } else {
        /* Nichol and Dhariwal 2021, with betas of at most 0.999 */

        for (i = 0; i < n; i++) {
            start = cos(((double) i / n + 0.008) / 1.008 * M_PI / 2);
            end = cos(((double) (i + 1) / n + 0.008) / 1.008 * M_PI / 2);
            betas[i] = (float) fmin(1 - end * end / (start * start), 0.999);
        }
    }

    return SD_OK;
}


static void
sd_scheduler_cumprod(double *dst, const float *betas, int n)
{
    int     i;
    double  p;

    p = 1;

    for (i = 0; i < n; i++) {
        p *= 1.0f - betas[i];
        dst[i] = (float) p;
    }
}


/* Lin et al. 2023 (arXiv 2305.08891), algorithm 1 */

static void
sd_scheduler_zero_snr(float *betas, double *alphas_cumprod, int n)
{
    int     i;
    float   first, last, a, prev;

    sd_scheduler_cumprod(alphas_cumprod, betas, n);

    first = sqrtf((float) alphas_cumprod[0]);
    last = sqrtf((float) alphas_cumprod[n - 1]);
    prev = 1;

    for (i = 0; i < n; i++) {
        a = sqrtf((float) alphas_cumprod[i]);
        a = (a - last) * (first / (first - last));
        a = a * a;
        betas[i] = 1 - a / prev;
        prev = a;
    }
}


/* neither without noise nor without signal, or samplers divide by zero; a zero
 * SNR has its last step without, and the samplers know */

static int
sd_scheduler_noise(sd_scheduler_reader_t *r, const sd_scheduler_config_t *c)
{
    int          i, n;
    double       a;
    const char  *key;

    n = c->num_train_timesteps;
    key = cJSON_IsArray(cJSON_GetObjectItemCaseSensitive(r->json,
                                                         "trained_betas"))
          ? "trained_betas" : "beta_end";

    for (i = 0; i < n - c->rescale_zero_snr; i++) {
        a = c->alphas_cumprod[i];

        if (!(a >= SD_MIN_ALPHA && a < 1)) {
            return sd_scheduler_refuse(r, key, "makes a step of all noise or "
                                       "none");
        }
    }

    return SD_OK;
}


int
sd_scheduler_config_read(sd_scheduler_config_t *c, const char *path,
    sd_error_t *err)
{
    int                          v, n, rc;
    cJSON                       *json;
    float                       *betas;
    sd_scheduler_reader_t        r;
    const sd_scheduler_class_t  *class;

    static const char *const  predictions[] = {
        "epsilon", "v_prediction", "sample", NULL
    };

    static const char *const  spacings[] = {
        "leading", "linspace", "trailing", NULL
    };

    memset(c, 0, sizeof(sd_scheduler_config_t));

    if (sd_json_read(&json, path, err) != SD_OK) {
        return SD_ERROR;
    }

    r.json = json;
    r.path = path;
    r.err = err;

    betas = NULL;
    rc = SD_ERROR;

    if (sd_scheduler_class(&r, c, &class) != SD_OK) {
        goto done;
    }

    c->num_train_timesteps = 1000;
    c->prediction = SD_PREDICT_EPSILON;
    c->spacing = -1;
    c->set_alpha_to_one = class->set_alpha_to_one;
    c->clip_sample = class->clip_sample;
    c->clip_range = 1;

    if (sd_scheduler_int(&r, "num_train_timesteps", &c->num_train_timesteps,
                         1, SD_MAX_TRAIN_STEPS)
        != SD_OK)
    {
        goto done;
    }

    n = c->num_train_timesteps;

    if (sd_scheduler_unsupported(&r, c) != SD_OK
        || sd_scheduler_int(&r, "steps_offset", &c->steps_offset, 0, n)
           != SD_OK
        || sd_scheduler_bool(&r, "set_alpha_to_one", &c->set_alpha_to_one)
           != SD_OK
        || sd_scheduler_bool(&r, "clip_sample", &c->clip_sample) != SD_OK
        || sd_scheduler_number(&r, "clip_sample_range", &c->clip_range,
                               1e-3, 1e6)
           != SD_OK
        || sd_scheduler_bool(&r, "rescale_betas_zero_snr",
                             &c->rescale_zero_snr)
           != SD_OK)
    {
        goto done;
    }

    v = c->prediction;

    if (sd_scheduler_enum(&r, "prediction_type", predictions, &v) != SD_OK) {
        goto done;
    }

    c->prediction = v;
    v = c->spacing;

    if (sd_scheduler_enum(&r, "timestep_spacing", spacings, &v) != SD_OK) {
        goto done;
    }

    c->spacing = v;

    if (c->rescale_zero_snr && c->prediction == SD_PREDICT_EPSILON) {
        (void) sd_scheduler_refuse(&r, "rescale_betas_zero_snr",
                               "is not implemented for epsilon prediction");
        goto done;
    }

    betas = malloc(n * sizeof(float));
    c->alphas_cumprod = malloc(n * sizeof(double));

    if (betas == NULL || c->alphas_cumprod == NULL) {
        (void) sd_fail(err, "no memory");
        goto done;
    }

    if (sd_scheduler_betas(&r, betas, n, class) != SD_OK) {
        goto done;
    }

    if (c->rescale_zero_snr) {
        if (n < 2) {
            (void) sd_scheduler_refuse(&r, "rescale_betas_zero_snr",
                                       "needs two training steps");
            goto done;
        }

        sd_scheduler_zero_snr(betas, c->alphas_cumprod, n);
    }

    sd_scheduler_cumprod(c->alphas_cumprod, betas, n);
    rc = sd_scheduler_noise(&r, c);

done:

    cJSON_Delete(json);
    free(betas);

    if (rc != SD_OK) {
        sd_scheduler_config_free(c);
    }

    return rc;
}


void
sd_scheduler_config_free(sd_scheduler_config_t *c)
{
    free(c->alphas_cumprod);
    memset(c, 0, sizeof(sd_scheduler_config_t));
}
