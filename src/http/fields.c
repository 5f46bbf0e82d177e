/*
 * The table of request fields, and the two parsers that work from it: see
 * fields.h.  Functions from bytes to values; any thread.
 */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../io/base64.h"
#include "../io/utf8.h"
#include "fields.h"
#include "json.h"


#define SD_MAX_NAME  64


const sd_field_t  sd_fields[SD_FIELDS] = {

    [SD_FIELD_PROMPT] =
    { "prompt", NULL, SD_TYPE_STRING, 1, SD_MAX_PROMPT, "required",
      "What to draw. Only the first 77 tokens count." },

    [SD_FIELD_NEGATIVE_PROMPT] =
    { "negative_prompt", NULL, SD_TYPE_STRING, 0, SD_MAX_PROMPT, "empty",
      "What to keep away from; works where `guidance_scale` is above 1." },

    [SD_FIELD_WIDTH] =
    { "width", NULL, SD_TYPE_INTEGER, 8, 16384, "the model's",
      "In pixels, divisible by 8." },

    [SD_FIELD_HEIGHT] =
    { "height", NULL, SD_TYPE_INTEGER, 8, 16384, "the model's",
      "In pixels, divisible by 8." },

    [SD_FIELD_STEPS] =
    { "num_inference_steps", "steps", SD_TYPE_INTEGER, 1, 1000, "20",
      "Steps from noise to picture." },

    [SD_FIELD_GUIDANCE] =
    { "guidance_scale", "cfg_scale", SD_TYPE_NUMBER, 0, 100, "7.5",
      "How closely to follow the prompt; up to 1: unguided, twice as fast." },

    [SD_FIELD_SEED] =
    { "seed", NULL, SD_TYPE_INTEGER, -1, SD_MAX_SEED, "random",
      "Picture i of a request has seed + i. -1: random, and reported." },

    [SD_FIELD_IMAGES] =
    { "num_images_per_prompt", "n", SD_TYPE_INTEGER, 1, SD_MAX_IMAGES, "1",
      "How many pictures." },

    [SD_FIELD_SAMPLER] =
    { "sampler", NULL, SD_TYPE_STRING, 1, 32, "the model's",
      "`ddim`, `euler` or `euler_a`." },

    [SD_FIELD_FORMAT] =
    { "format", NULL, SD_TYPE_STRING, 1, 64, "by `Accept`",
      "`jpeg`, `png`, `multipart`, `sse`, `mjpeg`, `json`, or the media "
      "type." },

    [SD_FIELD_OUTPUT_FORMAT] =
    { "output_format", NULL, SD_TYPE_STRING, 1, 16, "`jpeg`",
      "Of final pictures within the other formats: `jpeg` or `png`." },

    [SD_FIELD_QUALITY] =
    { "quality", NULL, SD_TYPE_INTEGER, 1, 100, "90",
      "Of JPEGs." },

    [SD_FIELD_PREVIEW] =
    { "preview", NULL, SD_TYPE_STRING, 1, 16, "the location's",
      "`rgb`: quick, free of charge; `vae`: decoded in full; `none`." },

    [SD_FIELD_PREVIEW_EVERY] =
    { "preview_every", NULL, SD_TYPE_INTEGER, 0, 1000, "1",
      "A preview every so many steps. 0: none." },

    [SD_FIELD_PREVIEWS] =
    { "num_interim_images", "previews", SD_TYPE_INTEGER, 0, 1000, "",
      "Instead: so many previews, evenly spaced. SageMaker's pages: the "
      "steps of a page." },

    [SD_FIELD_LATENT] =
    { "latent", NULL, SD_TYPE_LATENT, 1, 1000, "the location's",
      "The state, as safetensors: `none`, `last`: with the final picture; "
      "`all`: with each preview too; a number: every so many steps." },

    [SD_FIELD_LATENTS] =
    { "latents", NULL, SD_TYPE_BASE64, 1, SD_MAX_BODY, "",
      "A state to go on from, or initial noise, of each picture: safetensors "
      "in base64." },

    [SD_FIELD_STARTING_STEP] =
    { "starting_step", NULL, SD_TYPE_INTEGER, 0, 1000, "as the state says",
      "The step that `latents` stands at. 0: it is initial noise." },

    [SD_FIELD_TIMEOUT] =
    { "timeout", NULL, SD_TYPE_NUMBER, 0, 86400, "the location's",
      "Seconds that it may take, waiting included: then it ends with the state "
      "reached. At most the location's; 0: that." },
};


void
sd_fields_free(sd_field_values_t *v)
{
    int  i;

    for (i = 0; i < SD_FIELDS; i++) {
        sd_buf_free(&v->value[i].text);
    }

    v->given = 0;
}


static int
sd_field_find(const char *name, size_t n)
{
    int                i;
    const sd_field_t  *f;

    for (i = 0; i < SD_FIELDS; i++) {
        f = &sd_fields[i];

        if ((strlen(f->name) == n && memcmp(f->name, name, n) == 0)
            || (f->alias && strlen(f->alias) == n
                && memcmp(f->alias, name, n) == 0))
        {
            return i;
        }
    }

    return -1;
}


/* name: valid UTF-8 */

static void
sd_field_unknown(sd_field_values_t *v, const char *name, size_t n)
{
    size_t  max;

    if (v->nwarnings == SD_MAX_WARNINGS) {
        return;
    }

    max = 60;

    if (n > max) {
        /* not in the middle of a character */
        while ((name[max] & 0xc0) == 0x80) {
            max--;
        }

        n = max;
    }

    snprintf(v->warnings[v->nwarnings++], sizeof(v->warnings[0]),
             "unknown field \"%.*s\" was ignored", (int) n, name);
}


static int
sd_field_number(sd_field_values_t *v, int id, double number, sd_error_t *err)
{
    const sd_field_t  *f;

    f = &sd_fields[id];

    if (f->type != SD_TYPE_NUMBER && number != floor(number)) {
        return sd_error(err, 400, "invalid_value", f->name,
                        "\"%s\" must be a whole number", f->name);
    }

    if (!(number >= f->min && number <= f->max)) {
        return sd_error(err, 400, "invalid_value", f->name,
                        "\"%s\" must be from %.0f to %.0f", f->name, f->min,
                        f->max);
    }

    v->value[id].number = number;
    v->given |= 1u << id;

    return SD_OK;
}


/* value[id].text holds the string, valid UTF-8 */

static int
sd_field_string(sd_field_values_t *v, int id, sd_error_t *err)
{
    ssize_t            n;
    sd_buf_t          *b;
    const sd_field_t  *f;

    f = &sd_fields[id];
    b = &v->value[id].text;

    if (f->type == SD_TYPE_BASE64) {
        n = sd_base64_decode(b->data, b->data, b->len);

        if (n < 0) {
            return sd_error(err, 400, "invalid_value", f->name,
                            "\"%s\" is not base64", f->name);
        }

        b->len = n;
    }

    if (b->len < f->min || b->len > f->max) {
        return sd_error(err, 400, "invalid_value", f->name,
                        b->len == 0 ? "\"%s\" is empty"
                                    : "\"%s\" is too long", f->name);
    }

    /* terminated, for those who want a C string; see sd_field_room() */
    b->data[b->len] = '\0';
    v->given |= 1u << id;

    return SD_OK;
}


static int
sd_field_room(sd_buf_t *b, sd_error_t *err)
{
    if (sd_buf_reserve(b, 1) == NULL) {
        return sd_fail(err, "no memory for a field");
    }

    return SD_OK;
}


static int
sd_field_duplicate(const sd_field_values_t *v, int id, sd_error_t *err)
{
    const sd_field_t  *f;

    if (!sd_given(v, id)) {
        return SD_OK;
    }

    f = &sd_fields[id];

    return sd_error(err, 400, "duplicate_field", f->name,
                    "\"%s\" is given twice%s%s%s", f->name,
                    f->alias ? " (its alias is \"" : "",
                    f->alias ? f->alias : "", f->alias ? "\")" : "");
}


/* JSON */

/* takes the string out of the tree: latents are large */

static void
sd_field_take(sd_buf_t *b, cJSON *item)
{
    sd_buf_free(b);

    b->data = item->valuestring;
    b->len = strlen(item->valuestring);
    b->size = b->len + 1;

    item->valuestring = NULL;
}


static int
sd_field_json(sd_field_values_t *v, int id, cJSON *item, sd_error_t *err)
{
    const sd_field_t  *f;

    f = &sd_fields[id];

    if (sd_field_duplicate(v, id, err) != SD_OK) {
        return SD_ERROR;
    }

    if (cJSON_IsNull(item)) {
        return SD_OK;
    }

    if (cJSON_IsString(item) && f->type != SD_TYPE_INTEGER
        && f->type != SD_TYPE_NUMBER)
    {
        sd_field_take(&v->value[id].text, item);
        return sd_field_string(v, id, err);
    }

    if (cJSON_IsNumber(item) && f->type != SD_TYPE_STRING
        && f->type != SD_TYPE_BASE64)
    {
        return sd_field_number(v, id, item->valuedouble, err);
    }

    return sd_error(err, 400, "invalid_type", f->name, "\"%s\" must be a %s",
                    f->name,
                    f->type == SD_TYPE_STRING || f->type == SD_TYPE_BASE64
                    ? "string"
                    : f->type == SD_TYPE_LATENT ? "string or a number"
                                                : "number");
}


/* an object's members; "parameters" may hold fields too, but not again */

static int
sd_fields_object(sd_field_values_t *v, cJSON *object, int nested,
    sd_error_t *err)
{
    int     id;
    cJSON  *item;

    cJSON_ArrayForEach(item, object) {

        id = sd_field_find(item->string, strlen(item->string));

        if (id >= 0) {
            if (sd_field_json(v, id, item, err) != SD_OK) {
                return SD_ERROR;
            }

        } else if (!nested && strcmp(item->string, "parameters") == 0
                   && cJSON_IsObject(item))
        {
            if (sd_fields_object(v, item, 1, err) != SD_OK) {
                return SD_ERROR;
            }

        } else {
            sd_field_unknown(v, item->string, strlen(item->string));
        }
    }

    return SD_OK;
}


int
sd_fields_json(sd_field_values_t *v, const void *body, size_t size,
    sd_error_t *err)
{
    int     rc;
    cJSON  *json;

    if (sd_json_parse(&json, body, size, err) != SD_OK) {
        return SD_ERROR;
    }

    rc = cJSON_IsObject(json)
         ? sd_fields_object(v, json, 0, err)
         : sd_error(err, 400, "invalid_type", NULL,
                    "the body must be a JSON object");

    cJSON_Delete(json);

    return rc;
}


/* the query */

static int
sd_unhex(int c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }

    c |= 0x20;

    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}


/* %xx and + decoded, appended to out; not valid UTF-8: SD_ERROR */

static int
sd_query_decode(sd_buf_t *out, const char *s, size_t n)
{
    char    c;
    size_t  i, from;

    from = out->len;

    if (n == 0) {
        return SD_OK;
    }

    for (i = 0; i < n; i++) {
        c = s[i];

        if (c == '+') {
            c = ' ';

        } else if (c == '%') {
            if (n - i < 3 || sd_unhex(s[i + 1]) < 0 || sd_unhex(s[i + 2]) < 0)
            {
                return SD_ERROR;
            }

            c = sd_unhex(s[i + 1]) << 4 | sd_unhex(s[i + 2]);
            i += 2;
        }

        sd_buf_append(out, &c, 1);
    }

    if (out->failed || memchr(out->data + from, '\0', out->len - from)
        || !sd_utf8_valid(out->data + from, out->len - from))
    {
        return SD_ERROR;
    }

    return SD_OK;
}


static int
sd_field_query(sd_field_values_t *v, int id, const char *s, size_t n,
    sd_error_t *err)
{
    char              *p;
    size_t             i;
    cJSON             *json;
    double             number;
    sd_buf_t          *b;
    const sd_field_t  *f;

    f = &sd_fields[id];

    if (sd_field_duplicate(v, id, err) != SD_OK) {
        return SD_ERROR;
    }

    b = &v->value[id].text;
    b->len = 0;

    if (sd_query_decode(b, s, n) != SD_OK) {
        return sd_error(err, 400, "invalid_value", f->name,
                        "\"%s\" is not valid UTF-8, or not well escaped",
                        f->name);
    }

    if (sd_field_room(b, err) != SD_OK) {
        return SD_ERROR;
    }

    /* as from an empty input of a form */
    if (b->len == 0 && id != SD_FIELD_NEGATIVE_PROMPT) {
        return SD_OK;
    }

    if (f->type == SD_TYPE_STRING) {
        return sd_field_string(v, id, err);
    }

    if (f->type == SD_TYPE_BASE64) {
        for (p = b->data, i = 0; i < b->len; i++) {
            if (p[i] == ' ') {
                p[i] = '+';
            }
        }

        return sd_field_string(v, id, err);
    }

    /* numbers are written as in JSON */
    if (sd_json_parse(&json, b->data, b->len, NULL) == SD_OK) {
        number = cJSON_IsNumber(json) ? json->valuedouble : NAN;
        cJSON_Delete(json);

        if (!isnan(number)) {
            b->len = 0;
            return sd_field_number(v, id, number, err);
        }
    }

    if (f->type == SD_TYPE_LATENT) {
        return sd_field_string(v, id, err);
    }

    return sd_error(err, 400, "invalid_type", f->name,
                    "\"%s\" must be a number", f->name);
}


int
sd_fields_query(sd_field_values_t *v, sd_str_t args, sd_error_t *err)
{
    int          id, rc;
    size_t       n;
    sd_buf_t     name;
    const char  *p, *end, *next, *eq;

    memset(&name, 0, sizeof(sd_buf_t));

    rc = SD_OK;
    end = args.data + args.len;

    for (p = args.data; rc == SD_OK && p < end; p = next + 1) {
        next = memchr(p, '&', end - p);
        next = next ? next : end;

        if (next == p) {
            continue;
        }

        eq = memchr(p, '=', next - p);
        n = (eq ? eq : next) - p;

        name.len = 0;

        if (n > SD_MAX_NAME * 3 || sd_query_decode(&name, p, n) != SD_OK) {
            rc = sd_error(err, 400, "invalid_value", NULL,
                          "the query has a name that is too long or not "
                          "valid UTF-8");
            break;
        }

        id = sd_field_find(name.data ? name.data : "", name.len);

        if (id < 0) {
            sd_field_unknown(v, name.data ? name.data : "", name.len);
            continue;
        }

        eq = eq ? eq + 1 : next;
        rc = sd_field_query(v, id, eq, next - eq, err);
    }

    sd_buf_free(&name);

    return rc;
}


/* the manual */

void
sd_fields_markdown(sd_buf_t *out)
{
    int                i;
    const sd_field_t  *f;

    sd_buf_puts(out, "| field | type | default | |\n|---|---|---|---|\n");

    for (i = 0; i < SD_FIELDS; i++) {
        f = &sd_fields[i];

        sd_buf_printf(out, "| `%s`", f->name);

        if (f->alias) {
            sd_buf_printf(out, ", `%s`", f->alias);
        }

        switch (f->type) {

        case SD_TYPE_STRING:
            sd_buf_puts(out, " | string");
            break;

        case SD_TYPE_BASE64:
            sd_buf_puts(out, " | base64");
            break;

        case SD_TYPE_LATENT:
            sd_buf_puts(out, " | string or number");
            break;

        default:
            sd_buf_printf(out, " | %s, %.0f to ",
                          f->type == SD_TYPE_NUMBER ? "number" : "integer",
                          f->min);

            if (f->max == SD_MAX_SEED) {
                sd_buf_puts(out, "2^53 - 1");

            } else {
                sd_buf_printf(out, "%.0f", f->max);
            }
        }

        sd_buf_printf(out, " | %s | %s |\n", f->fallback, f->text);
    }
}
