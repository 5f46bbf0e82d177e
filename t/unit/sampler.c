/*
 * Samplers: the rows, executed here in double precision on the toy model of
 * t/golden/samplers.py, against diffusers' own schedulers; and what a
 * scheduler_config.json may not say.
 */

#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "../../src/io/file.h"
#include "../../src/sd/sampler.h"
#include "tap.h"


#define SIZE  3


static double
noise(int draw, int j)
{
    return ((draw * 7 + j * 3) % 11 - 5) / 4.0;
}


/* config: JSON text, through a file, as the model's loader reads it */

static int
config_read(sd_scheduler_config_t *c, const char *config, sd_error_t *err)
{
    int   fd, rc;
    char  path[] = "/tmp/sd-sampler-XXXXXX";

    fd = mkstemp(path);
    if (fd == -1 || write(fd, config, strlen(config)) == -1) {
        return sd_fail(err, "cannot write %s", path);
    }

    close(fd);
    rc = sd_scheduler_config_read(c, path, err);
    unlink(path);

    return rc;
}


/* one row on the toy model: x and D of all elements */

static void
execute(const sd_sampler_row_t *r, double x[SIZE], double d[SIZE],
    double k[SD_KEPT][SIZE])
{
    int     i, j, c;
    double  in, out, v[3 + SD_KEPT + 2], y[1 + SD_KEPT];

    for (j = 0; j < SIZE; j++) {
        in = x[j] * r->scale_in;
        out = 0.9 * in / (1 + fabs(in)) + 0.1 * (j - 1) + r->timestep / 2000;

        d[j] = r->a * x[j] + r->b * out;

        if (r->clamp > 0) {
            d[j] = fmax(fmin(d[j], r->clamp), -r->clamp);
        }

        v[0] = x[j];
        v[1] = out;
        v[2] = d[j];

        for (i = 0; i < SD_KEPT; i++) {
            v[3 + i] = k[i][j];
        }

        for (i = 0; i < 2; i++) {
            v[3 + SD_KEPT + i] = i < r->noise ? noise(r->draw + i, j) : 0;
        }

        for (i = 0; i < 1 + SD_KEPT; i++) {
            y[i] = 0;

            for (c = 0; c < 3 + SD_KEPT + 2; c++) {
                y[i] += r->m[i][c] * v[c];
            }
        }

        x[j] = y[0];

        for (i = 0; i < SD_KEPT; i++) {
            k[i][j] = y[1 + i];
        }
    }
}


/* the largest difference, relative to the largest element */

static double
difference(const double *x, const cJSON *expected)
{
    int     j;
    double  e, worst, size;

    worst = size = 0;

    for (j = 0; j < SIZE; j++) {
        e = cJSON_GetArrayItem(expected, j)->valuedouble;
        worst = fmax(worst, fabs(x[j] - e));
        size = fmax(size, fabs(e));

        if (!isfinite(x[j])) {
            return INFINITY;
        }
    }

    return worst / fmax(size, 1e-3);
}


static double
run(const sd_sampler_t *s, const sd_scheduler_config_t *c, const cJSON *run)
{
    int                i, n, steps;
    double             x[SIZE], d[SIZE], k[SD_KEPT][SIZE], sigma, worst, e, t;
    sd_error_t         err;
    const cJSON       *point;
    sd_sampler_row_t  *rows;

    steps = cJSON_GetObjectItem(run, "steps")->valueint;
    n = s->rows(steps);
    rows = calloc(n, sizeof(sd_sampler_row_t));

    if (s->compile(rows, &sigma, c, steps, &err) != SD_OK) {
        free(rows);
        return INFINITY;
    }

    e = cJSON_GetObjectItem(run, "sigma")->valuedouble;
    worst = fabs(sigma - e) / e;

    memset(k, 0, sizeof(k));

    for (i = 0; i < SIZE; i++) {
        x[i] = noise(0, i) * sigma;
    }

    point = cJSON_GetObjectItem(run, "points")->child;

    for (i = 0; i < n; i++) {
        execute(&rows[i], x, d, k);

        if (point == NULL || !rows[i].last_of_step
            || rows[i].step != cJSON_GetArrayItem(point, 0)->valueint)
        {
            continue;
        }

        t = cJSON_GetArrayItem(point, 1)->valuedouble;
        worst = fmax(worst, fabs(rows[i].timestep - t) / 1000);
        worst = fmax(worst, difference(x, cJSON_GetArrayItem(point, 2)));
        worst = fmax(worst, difference(d, cJSON_GetArrayItem(point, 3)));

        point = point->next;
    }

    free(rows);

    return point ? INFINITY : worst;
}


static void
golden(void)
{
    int                     nruns;
    char                   *text, name[256];
    cJSON                  *json;
    double                  worst, e;
    sd_buf_t                b = { 0 };
    sd_error_t              err;
    const cJSON            *test, *r;
    const sd_sampler_t     *s;
    sd_scheduler_config_t   c;

    if (!ok(sd_file_read(&b, "t/golden/samplers.json", 1 << 24, &err) == SD_OK,
            "the golden file"))
    {
        return;
    }

    json = cJSON_Parse(b.data);

    cJSON_ArrayForEach(test, json) {
        s = sd_sampler_find(cJSON_GetObjectItem(test, "sampler")->valuestring);
        text = cJSON_PrintUnformatted(cJSON_GetObjectItem(test, "config"));

        if (!ok(s && config_read(&c, text, &err) == SD_OK, "config %.150s",
                text))
        {
            printf("# %s\n", err.message);
            free(text);
            continue;
        }

        ok(sd_sampler_default(&c) == s, "is its class's own sampler");

        worst = 0;
        nruns = 0;

        cJSON_ArrayForEach(r, cJSON_GetObjectItem(test, "runs")) {
            e = run(s, &c, r);
            worst = fmax(worst, e);
            nruns++;
        }

        snprintf(name, sizeof(name), "%s: %d runs within %.1e", s->name, nruns,
                 worst);
        ok(nruns >= 5 && worst <= 1e-6, "%s", name);

        sd_scheduler_config_free(&c);
        free(text);
    }

    ok(cJSON_GetArraySize(json) > 40, "%d configurations",
       cJSON_GetArraySize(json));

    cJSON_Delete(json);
    sd_buf_free(&b);
}


static void
defaults(void)
{
    sd_error_t             err;
    sd_sampler_row_t       rows[4];
    double                 sigma;
    sd_scheduler_config_t  c;

    if (ok(config_read(&c, "{\"_class_name\":\"DDIMScheduler\"}", &err)
           == SD_OK, "nothing but a class"))
    {
        ok(c.clip_sample == 1, "a missing clip_sample is true for DDIM");
        ok(c.set_alpha_to_one == 1 && c.num_train_timesteps == 1000
           && c.prediction == SD_PREDICT_EPSILON && (int) c.spacing == -1,
           "DDIM's other defaults");
        sd_scheduler_config_free(&c);
    }

    if (ok(config_read(&c, "{}", &err) == SD_OK, "an empty configuration")) {
        is_str(c.class_name, "DDIMScheduler", "is DDIM's");
        sd_scheduler_config_free(&c);
    }

    /* Stable Diffusion 1.5's own file */

    if (ok(config_read(&c,
                "{\"_class_name\":\"PNDMScheduler\","
                "\"_diffusers_version\":\"0.6.0\",\"beta_end\":0.012,"
                "\"beta_schedule\":\"scaled_linear\",\"beta_start\":0.00085,"
                "\"num_train_timesteps\":1000,\"set_alpha_to_one\":false,"
                "\"skip_prk_steps\":true,\"steps_offset\":1,"
                "\"trained_betas\":null,\"clip_sample\":false,"
                "\"what_is_this\":[1]}", &err) == SD_OK,
           "PNDM, unknown keys and all"))
    {
        is_str(sd_sampler_default(&c)->name, "ddim", "becomes DDIM");
        ok(c.clip_sample == 0 && c.set_alpha_to_one == 0
           && c.steps_offset == 1, "keeps its keys");
        ok(fabs(c.alphas_cumprod[999] - 0.0046600951) < 1e-8,
           "SD's last alpha");

        is_int(sd_samplers[0].compile(rows, &sigma, &c, 0, &err), SD_ERROR,
               "no steps at all");
        is_int(sd_samplers[0].compile(rows, &sigma, &c, 1001, &err), SD_ERROR,
               "more steps than timesteps");
        is_str(err.param, "num_inference_steps", "names the parameter");
        is_int(err.status, 400, "is the request's fault");
        sd_scheduler_config_free(&c);
    }

    if (ok(config_read(&c, "{\"_class_name\":\"DPMSolverMultistepScheduler\","
                       "\"use_karras_sigmas\":true}", &err) == SD_OK,
           "another solver's sigmas do not matter to DDIM"))
    {
        ok(c.clip_sample == 0, "nor did it clip");
        sd_scheduler_config_free(&c);
    }

    if (ok(config_read(&c, "{\"_class_name\":\"LCMScheduler\"}", &err)
           == SD_OK, "LCM"))
    {
        ok(fabs(c.alphas_cumprod[999] - 0.0046600951) < 1e-8,
           "has other betas");
        sd_scheduler_config_free(&c);
    }

    ok(sd_sampler_find("DDIM") == &sd_samplers[0]
       && sd_sampler_find("EulerDiscreteScheduler") == &sd_samplers[1]
       && sd_sampler_find("euler_a") == &sd_samplers[2]
       && sd_sampler_find("") == NULL && sd_sampler_find("plms") == NULL,
       "finding a sampler");
}


static void
refused(void)
{
    size_t                 i;
    sd_error_t             err;
    sd_scheduler_config_t  c;

    static const struct {
        const char  *config;
        const char  *key;
        const char  *value;
    } tests[] = {
        { "{\"thresholding\":true}", "thresholding", "true" },
        { "{\"_class_name\":\"DDPMScheduler\","
          "\"variance_type\":\"learned_range\"}", "variance_type",
          "learned_range" },
        { "{\"rescale_betas_zero_snr\":true}", "rescale_betas_zero_snr",
          "true" },
        { "{\"_class_name\":\"EulerDiscreteScheduler\","
          "\"use_karras_sigmas\":true}", "use_karras_sigmas", "true" },
        { "{\"_class_name\":\"EulerDiscreteScheduler\","
          "\"timestep_type\":\"continuous\"}", "timestep_type", "continuous" },
        { "{\"_class_name\":\"EulerDiscreteScheduler\","
          "\"final_sigmas_type\":\"sigma_min\"}", "final_sigmas_type",
          "sigma_min" },
        { "{\"_class_name\":\"FlowMatchEulerDiscreteScheduler\"}",
          "_class_name", "FlowMatch" },
        { "{\"_class_name\":3}", "_class_name", "3" },
        { "{\"prediction_type\":\"flow_prediction\"}", "prediction_type",
          "flow_prediction" },
        { "{\"beta_schedule\":\"sigmoid\"}", "beta_schedule", "sigmoid" },
        { "{\"timestep_spacing\":\"karras\"}", "timestep_spacing", "karras" },
        { "{\"num_train_timesteps\":0}", "num_train_timesteps", "0" },
        { "{\"num_train_timesteps\":1e9}", "num_train_timesteps", "1000000000" },
        { "{\"num_train_timesteps\":10.5}", "num_train_timesteps", "10.5" },
        { "{\"num_train_timesteps\":\"1000\"}", "num_train_timesteps",
          "1000" },
        { "{\"steps_offset\":-1}", "steps_offset", "-1" },
        { "{\"clip_sample\":1}", "clip_sample", "1" },
        { "{\"clip_sample_range\":0}", "clip_sample_range", "0" },
        { "{\"beta_start\":0}", "beta_start", "0" },
        { "{\"beta_end\":1}", "beta_end", "1" },
        { "{\"beta_end\":0.5}", "beta_end", "0.5" },
        { "{\"num_train_timesteps\":1,\"trained_betas\":[1e-30]}",
          "trained_betas", "1e-30" },
        { "{\"trained_betas\":[0.1]}", "trained_betas", "0.1" },
        { "{\"num_train_timesteps\":2,\"trained_betas\":[0.1,2]}",
          "trained_betas", "2" },
        { "{\"num_train_timesteps\":1,\"prediction_type\":\"sample\","
          "\"rescale_betas_zero_snr\":true}", "rescale_betas_zero_snr",
          "true" }
    };

    for (i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
        ok(config_read(&c, tests[i].config, &err) == SD_ERROR
           && strcmp(err.param, tests[i].key) == 0
           && strstr(err.message, tests[i].key)
           && strstr(err.message, tests[i].value),
           "refused: %s", tests[i].config);
    }

    is_int(config_read(&c, "[]", &err), SD_ERROR, "not an object");
    is_int(config_read(&c, "{\"a\":", &err), SD_ERROR, "not JSON");
    is_int(sd_scheduler_config_read(&c, "/nowhere/scheduler_config.json",
                                    &err), SD_ERROR, "no such file");
}


int
main(void)
{
    golden();
    defaults();
    refused();

    return done();
}
