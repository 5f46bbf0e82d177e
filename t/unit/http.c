/*
 * Requests into job parameters: every field's type and bounds, what is refused
 * and how it is named, Accept, and when previews are due.
 */

#include <stdlib.h>

#include "../../src/http/http.h"
#include "../../src/http/json.h"
#include "tap.h"


static sd_model_t       model;
static sd_job_params_t  p;
static sd_error_t       err;


static sd_str_t
str(const char *s)
{
    return (sd_str_t) { s, strlen(s) };
}


/* the body in memory of exactly its size, for sanitizers */

static int
parse_request(sd_request_t *r, const char *body, size_t n)
{
    int    rc;
    char  *copy;

    sd_job_params_free(&p);

    copy = malloc(n ? n : 1);
    memcpy(copy, body, n);

    rc = sd_job_request(&p, sd_dialect(r->location.dialect), r, copy, n,
                        &model, &err);
    free(copy);

    return rc;
}


static sd_request_t
request(void)
{
    sd_request_t  r;

    memset(&r, 0, sizeof(sd_request_t));

    r.method = SD_METHOD_POST;
    r.location.max_steps = 150;
    r.location.max_pixels = 1024 * 1024;
    r.location.max_images = 8;
    r.location.preview = SD_PREVIEW_RGB;

    return r;
}


static int
parse(const char *body)
{
    sd_request_t  r = request();

    return parse_request(&r, body, strlen(body));
}


static int
query(const char *args)
{
    sd_request_t  r = request();

    r.method = SD_METHOD_GET;
    r.args = str(args);

    return parse_request(&r, "", 0);
}


/* name, status and code of what is wrong with a body */

static void
refused(const char *body, const char *param, const char *code)
{
    int  rc;

    rc = parse(body);

    if (!ok(rc == SD_ERROR && err.status == 400
            && strcmp(err.param, param) == 0
            && strcmp(err.code, code) == 0,
            "refused: %.60s", body))
    {
        printf("# %d: %d \"%s\" %s: %s\n", rc, err.status, err.param,
               rc ? err.code : "", err.message);
    }
}


static void
test_defaults(void)
{
    uint64_t  seed;

    is_int(parse("{\"prompt\":\"a\"}"), SD_OK, "a prompt is enough");
    is_str(p.params.prompt, "a", "the prompt");
    is_str(p.params.negative_prompt, "", "no negative prompt");
    is_int(p.params.width, 512, "the model's width");
    is_int(p.params.height, 256, "the model's height");
    is_int(p.params.steps, 20, "20 steps");
    ok(p.params.guidance == 7.5, "guidance 7.5");
    is_int(p.params.starting_step, -1, "no starting step");
    ok(p.params.sampler == NULL, "the model's sampler");
    is_int(p.images, 1, "one picture");
    is_int(p.quality, 90, "quality 90");
    ok(p.format == &sd_format_jpeg, "a JPEG");

    seed = p.params.seed;
    parse("{\"prompt\":\"a\",\"seed\":-1}");
    ok(p.params.seed != seed, "random seeds differ");
    parse("{\"prompt\":\"a\",\"seed\":null}");
    ok(p.params.seed <= UINT32_MAX, "null is as absent");
}


static void
test_fields(void)
{
    is_int(parse(" {\"prompt\" : \"\\u00e9\\ud83d\\ude00\\n\\/\" , "
                 "\"parameters\":{\"steps\":1e2,\"cfg_scale\":0.5},"
                 "\"negative_prompt\":\"\",\"width\":64,\"height\":128.0,"
                 "\"seed\":9007199254740991,\"n\":8,\"sampler\":\"euler\","
                 "\"format\":\"multipart\",\"quality\":1,"
                 "\"output_format\":\"png\",\"preview\":\"vae\","
                 "\"preview_every\":5,\"latent\":3}\r\n\t"), SD_OK,
           "all fields");
    is_str(p.params.prompt, "\xc3\xa9\xf0\x9f\x98\x80\n/", "escapes");
    is_int(p.params.steps, 100, "an exponent");
    ok(p.params.guidance == 0.5, "an alias, under parameters");
    is_int(p.params.height, 128, "a whole number with a fraction of 0");
    ok(p.params.seed == 9007199254740991, "the largest seed");
    is_int(p.images, 8, "n");
    is_str(p.params.sampler->name, "euler", "the sampler");
    ok(p.format == &sd_format_multipart, "the format");
    is_int(p.image, SD_IMAGE_PNG, "output_format");
    is_int(p.preview, SD_PREVIEW_VAE, "preview");
    is_int(p.preview_every, 5, "preview_every");
    is_int(p.latent_every, 3, "latent");

    is_int(parse("{\"prompt\":\"a\",\"x\":[{\"y\":null},true,-0.1E-1],"
                 "\"\":1,\"parameters\":5}"), SD_OK, "unknown fields");
    is_int(p.nwarnings, 3, "are warned of");
    is_str(p.warnings[0], "unknown field \"x\" was ignored", "by name");
}


static void
test_refused(void)
{
    refused("", "", "invalid_json");
    refused("[]", "", "invalid_type");
    refused("7", "", "invalid_type");
    refused("{}", "prompt", "missing_field");
    refused("{\"prompt\":null}", "prompt", "missing_field");
    refused("{\"prompt\":\"\"}", "prompt", "invalid_value");
    refused("{\"prompt\":7}", "prompt", "invalid_type");
    refused("{\"prompt\":[\"a\"]}", "prompt", "invalid_type");
    refused("{\"prompt\":\"a\\u0000b\"}", "prompt", "invalid_json");
    refused("{\"prompt\":\"\xff\"}", "prompt", "invalid_json");
    refused("{\"prompt\":\"\xed\xa0\x80\"}", "prompt", "invalid_json");
    refused("{\"prompt\":\"\\ud800\"}", "prompt", "invalid_json");
    refused("{\"prompt\":\"\\ud800\\u0041\"}", "prompt", "invalid_json");
    refused("{\"prompt\":\"\\x\"}", "prompt", "invalid_json");
    refused("{\"prompt\":\"a\tb\"}", "prompt", "invalid_json");
    refused("{\"prompt\":\"a", "prompt", "invalid_json");
    refused("{\"prompt\":\"a\"", "prompt", "invalid_json");
    refused("{\"prompt\":\"a\",}", "", "invalid_json");
    refused("{\"prompt\":\"a\"} x", "", "invalid_json");
    refused("{\"prompt\":\"a\"}{}", "", "invalid_json");
    refused("{prompt:\"a\"}", "", "invalid_json");
    refused("{\"prompt\":\"a\",\"prompt\":\"a\"}", "prompt",
            "duplicate_field");
    refused("{\"prompt\":\"a\",\"steps\":1,\"num_inference_steps\":1}",
            "num_inference_steps", "duplicate_field");
    refused("{\"prompt\":\"a\",\"parameters\":{\"prompt\":\"a\"}}", "prompt",
            "duplicate_field");

    refused("{\"prompt\":\"a\",\"steps\":0}", "num_inference_steps",
            "invalid_value");
    refused("{\"prompt\":\"a\",\"steps\":-1}", "num_inference_steps",
            "invalid_value");
    refused("{\"prompt\":\"a\",\"steps\":1e999}", "num_inference_steps",
            "invalid_value");
    refused("{\"prompt\":\"a\",\"steps\":2.5}", "num_inference_steps",
            "invalid_value");
    refused("{\"prompt\":\"a\",\"steps\":\"2\"}", "num_inference_steps",
            "invalid_type");
    refused("{\"prompt\":\"a\",\"steps\":true}", "num_inference_steps",
            "invalid_type");
    refused("{\"prompt\":\"a\",\"steps\":151}", "num_inference_steps",
            "invalid_value");
    refused("{\"prompt\":\"a\",\"guidance_scale\":NaN}", "guidance_scale",
            "invalid_json");
    refused("{\"prompt\":\"a\",\"guidance_scale\":-1}", "guidance_scale",
            "invalid_value");
    refused("{\"prompt\":\"a\",\"guidance_scale\":1e9}", "guidance_scale",
            "invalid_value");
    refused("{\"prompt\":\"a\",\"seed\":-2}", "seed", "invalid_value");
    refused("{\"prompt\":\"a\",\"seed\":9007199254740992}", "seed",
            "invalid_value");
    refused("{\"prompt\":\"a\",\"width\":100}", "width", "invalid_value");
    refused("{\"prompt\":\"a\",\"height\":100}", "height", "invalid_value");
    refused("{\"prompt\":\"a\",\"width\":1024,\"height\":2048}", "height",
            "invalid_value");
    refused("{\"prompt\":\"a\",\"n\":9}", "num_images_per_prompt",
            "invalid_value");
    refused("{\"prompt\":\"a\",\"n\":2}", "num_images_per_prompt",
            "invalid_value");
    refused("{\"prompt\":\"a\",\"sampler\":\"nope\"}", "sampler",
            "invalid_value");
    refused("{\"prompt\":\"a\",\"format\":\"nope\"}", "format",
            "invalid_value");
    refused("{\"prompt\":\"a\",\"preview\":\"nope\"}", "preview",
            "invalid_value");
    refused("{\"prompt\":\"a\",\"latent\":\"nope\"}", "latent",
            "invalid_value");
    refused("{\"prompt\":\"a\",\"latent\":0}", "latent", "invalid_value");
    refused("{\"prompt\":\"a\",\"latents\":\"&\"}", "latents",
            "invalid_value");
    refused("{\"prompt\":\"a\",\"latents\":\"AAAA\"}", "latents",
            "invalid_value");
    refused("{\"prompt\":\"a\",\"latents\":\"\"}", "latents",
            "invalid_value");
    refused("{\"prompt\":\"a\",\"starting_step\":3}", "latents",
            "missing_field");
    refused("{\"prompt\":\"a\",\"quality\":101}", "quality", "invalid_value");
}


static void
test_hostile(void)
{
    int           bad;
    size_t        i, n;
    char         *s;
    sd_request_t  r;
    static char   deep[200000];

    memset(deep, '[', sizeof(deep));
    memcpy(deep, "{\"x\":", 5);
    r = request();
    is_int(parse_request(&r, deep, sizeof(deep)), SD_ERROR, "deep arrays");

    for (i = 5; i + 5 < sizeof(deep); i += 5) {
        memcpy(deep + i, "{\"a\":", 5);
    }

    is_int(parse_request(&r, deep, sizeof(deep)), SD_ERROR, "deep objects");

    /* whatever is cut off or flipped: an answer, and nothing read beyond */

    s = strdup("{\"prompt\":\"\\u00e9\xc3\xa9\",\"parameters\":{\"steps\":"
               "20,\"x\":[1.5e3,null,{\"a\":true}]},\"latent\":\"all\"}");
    n = strlen(s);

    for (bad = 0, i = 0; i < n; i++) {
        bad += parse_request(&r, s, i) == SD_OK;
    }

    is_int(bad, 0, "no cut is valid");

    for (i = 0; i < n; i++) {
        s[i] ^= 0x80;
        bad += parse_request(&r, s, n) == SD_OK;
        s[i] ^= 0x80;
    }

    is_int(bad, 0, "nor with a high bit flipped");
    free(s);

    memset(deep, 'a', sizeof(deep));
    memcpy(deep, "{\"prompt\":\"", 11);
    memcpy(deep + sizeof(deep) - 2, "\"}", 2);
    is_int(parse_request(&r, deep, sizeof(deep)), SD_ERROR, "a long prompt");
    is_str(err.param, "prompt", "is named");
}


static void
test_query(void)
{
    is_int(query("prompt=a+b%21%C3%A9&steps=5&seed=&&latent=2&flag"), SD_OK,
           "a query");
    is_str(p.params.prompt, "a b!\xc3\xa9", "its prompt");
    is_int(p.params.steps, 5, "its steps");
    is_str(p.warnings[0], "unknown field \"flag\" was ignored", "its flag");

    is_int(query(""), SD_ERROR, "an empty query");
    is_str(err.param, "prompt", "lacks a prompt");
    is_int(query("prompt=%00"), SD_ERROR, "a NUL");
    is_str(err.param, "prompt", "is named");
    is_int(query("prompt=%f"), SD_ERROR, "a cut escape");
    is_int(query("prompt=%zz"), SD_ERROR, "a wrong escape");
    is_int(query("prompt=%ff"), SD_ERROR, "no UTF-8");
    is_int(query("prompt=a&steps=x"), SD_ERROR, "no number");
    is_str(err.param, "num_inference_steps", "is named");
    is_int(query("prompt=a&steps=5x"), SD_ERROR, "more than a number");
    is_int(query("prompt=a&prompt=b"), SD_ERROR, "twice");
    is_str(err.code, "duplicate_field", "is told");
}


static void
test_accept(void)
{
    size_t                i;
    const sd_format_t    *f;
    const sd_dialect_t   *d;

    static const struct {
        const char  *accept;
        const char  *name;
    } t[] = {
        { "", "jpeg" },
        { "*/*", "jpeg" },
        { "image/*", "jpeg" },
        { "image/png", "png" },
        { "IMAGE/PNG", "png" },
        { "image/png;q=0.5, image/jpeg;q=0.4", "png" },
        { "image/*;q=0.5, image/jpeg;q=0", "png" },
        { "*/*, multipart/mixed", "multipart" },
        { "multipart/*", "multipart" },
        { "text/event-stream", "sse" },
        { "text/html, image/*;q=0.8, */*;q=0.1", "jpeg" },
        { "multipart/x-mixed-replace", "mjpeg" },
        { "application/json ;q=1.0", "json" },
        { "application/json; charset=\"a,b\"; q=0.3, image/png;q=0.2",
          "json" },
        { "text/html", NULL },
        { "*/*;q=0", NULL },
        { "image/jpeg;q=0.000", NULL },
        { ",,;q=", NULL },
    };

    d = sd_dialect(SD_DIALECT_NATIVE);

    for (i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
        f = sd_format_negotiate(d, str(t[i].accept));

        ok(t[i].name ? f && strcmp(f->name, t[i].name) == 0 : f == NULL,
           "Accept: %s", t[i].accept);
    }
}


static void
test_due(void)
{
    int   i, n;
    char  s[64];

    parse("{\"prompt\":\"a\",\"format\":\"sse\",\"preview_every\":5}");

    for (n = 0, i = 0; i <= 20; i++) {
        n += sd_preview_due(&p, i, 0, 20) << i;
    }

    is_int(n, 1 << 5 | 1 << 10 | 1 << 15, "every fifth, not the last");

    parse("{\"prompt\":\"a\",\"format\":\"sse\",\"previews\":3}");

    for (n = 0, s[0] = '\0', i = 0; i <= 20; i++) {
        if (sd_preview_due(&p, i, 10, 20)) {
            n += snprintf(s + n, sizeof(s) - n, "%d ", i);
        }
    }

    is_str(s, "13 15 18 ", "three, evenly, of a resumed one");

    parse("{\"prompt\":\"a\",\"format\":\"sse\",\"previews\":1000}");

    for (n = 0, i = 0; i <= 20; i++) {
        n += sd_preview_due(&p, i, 0, 20);
    }

    is_int(n, 19, "no more than there are steps");

    parse("{\"prompt\":\"a\",\"preview_every\":1}");
    is_int(sd_preview_due(&p, 1, 0, 20), 0, "a JPEG has none");
}


static void
test_manual(void)
{
    int       i;
    sd_buf_t  b = { 0 };

    sd_fields_markdown(&b);
    sd_buf_append(&b, "", 1);

    for (i = 0; i < SD_FIELDS; i++) {
        if (sd_fields[i].name == NULL
            || strstr(b.data, sd_fields[i].name) == NULL)
        {
            break;
        }
    }

    is_int(i, SD_FIELDS, "the manual has every field");

    sd_buf_free(&b);
}


/* pictures of a job are finished in any order, and collected in theirs */

static void
test_collected(void)
{
    int                  i, k;
    char                *first, *second;
    void                *state;
    uint8_t              rgb[2][8 * 8 * 3];
    sd_buf_t             out, jpeg, alone[2];
    sd_event_t           ev;
    sd_job_info_t        job;
    const sd_format_t   *f;

    static const sd_format_t  *formats[] = {
        &sd_format_json, &sd_format_sagemaker
    };

    parse("{\"prompt\":\"a\",\"n\":2}");

    memset(&job, 0, sizeof(sd_job_info_t));
    job.model = "m";
    job.fingerprint = "f";
    job.params = &p;

    memset(rgb[0], 0, sizeof(rgb[0]));
    memset(rgb[1], 200, sizeof(rgb[1]));

    for (i = 0; i < 2; i++) {
        f = formats[i];
        state = calloc(1, f->state_size);
        memset(&out, 0, sizeof(sd_buf_t));
        memset(&jpeg, 0, sizeof(sd_buf_t));
        memset(alone, 0, sizeof(alone));

        for (k = 1; k >= 0; k--) {
            memset(&ev, 0, sizeof(sd_event_t));
            ev.type = SD_EVENT_FINAL;
            ev.image = k;
            ev.last = k == 0;
            ev.rgb = rgb[k];
            ev.rgb_width = 8;
            ev.rgb_height = 8;
            ev.rgb_scale = 1;

            ok(f->event(&out, state, &job, &ev, &err) == SD_OK,
               "%s: picture %d", f->name, k);

            sd_format_picture(&jpeg, &job, &ev, p.image, p.quality, &err);
            sd_buf_base64(&alone[k], jpeg.data, jpeg.len);
            sd_buf_append(&alone[k], "", 1);
            sd_buf_free(&jpeg);
        }

        sd_buf_append(&out, "", 1);

        first = strstr(out.data, alone[0].data);
        second = strstr(out.data, alone[1].data);

        ok(first && second && first < second,
           "%s: pictures in their order, not in that of their ends", f->name);

        f->cleanup(state);
        free(state);
        sd_buf_free(&out);
        sd_buf_free(&alone[0]);
        sd_buf_free(&alone[1]);
    }
}


int
main(void)
{
    model.default_width = 512;
    model.default_height = 256;
    model.vae_scale = 8;

    test_defaults();
    test_fields();
    test_refused();
    test_hostile();
    test_query();
    test_accept();
    test_due();
    test_collected();
    test_manual();

    sd_job_params_free(&p);

    return done();
}
