/*
 * The state of a picture: see state.h.  Any thread; touches nothing but its
 * arguments.
 */

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../io/safetensors.h"
#include "../io/sha256.h"
#include "state.h"


#define SD_STATE_MAX_SIZE      65536    /* pixels along a side */
#define SD_STATE_MAX_PICTURES  64


void
sd_state_digest(char hex[65], const char *prompt, const char *negative_prompt)
{
    sd_sha256_t  sha;

    sd_sha256_init(&sha);
    sd_sha256_update(&sha, prompt, strlen(prompt) + 1);
    sd_sha256_update(&sha, negative_prompt, strlen(negative_prompt));
    sd_sha256_hex(&sha, hex);
}


int
sd_state_write(sd_buf_t *out, const sd_state_t *s, sd_error_t *err)
{
    int          i;
    char         step[12], steps[12], width[12], height[12], seed[24],
                 guidance[32];
    sd_st_out_t  tensors[1 + SD_KEPT];

    static const char *const  names[] = {
        "latents", "kept_0", "kept_1", "kept_2", "kept_3"
    };

    const sd_st_meta_t  meta[] = {
        { "sd_version", "1" },
        { "step", step },
        { "steps", steps },
        { "seed", seed },
        { "sampler", s->sampler },
        { "model", s->model },
        { "width", width },
        { "height", height },
        { "prompt", s->prompt },
        { "guidance", guidance },
        { "numerics", s->numerics }
    };

    snprintf(step, sizeof(step), "%d", s->step);
    snprintf(steps, sizeof(steps), "%d", s->steps);
    snprintf(width, sizeof(width), "%d", s->width);
    snprintf(height, sizeof(height), "%d", s->height);
    snprintf(seed, sizeof(seed), "%" PRIu64, s->seed);
    snprintf(guidance, sizeof(guidance), "%.17g", s->guidance);

    for (i = 0; i < 1 + s->nkept; i++) {
        tensors[i].name = names[i];
        tensors[i].data = i ? s->kept[i - 1] : s->latents;
        tensors[i].rank = 4;
        tensors[i].shape[0] = 1;
        tensors[i].shape[1] = s->c;
        tensors[i].shape[2] = s->h;
        tensors[i].shape[3] = s->w;
    }

    return sd_safetensors_write(out, tensors, 1 + s->nkept, meta,
                                sizeof(meta) / sizeof(meta[0]), err);
}


static int
sd_state_bad(sd_error_t *err, const char *what)
{
    return sd_error(err, 400, "invalid_value", "latents", "latents: %s", what);
}


static int
sd_state_meta_bad(sd_error_t *err, const char *key)
{
    return sd_error(err, 400, "invalid_value", "latents",
                    "latents: the metadata's \"%s\" is missing or wrong", key);
}


/* the getters return SD_ERROR with err set */

static int
sd_state_integer(const sd_safetensors_t *st, const char *key, uint64_t min,
    uint64_t max, uint64_t *v, sd_error_t *err)
{
    char        *end;
    const char  *s;

    s = sd_safetensors_meta(st, key);

    /* digits alone, which strtoull() does not ask for */

    if (s == NULL || *s == '\0' || strspn(s, "0123456789") != strlen(s)) {
        return sd_state_meta_bad(err, key);
    }

    errno = 0;
    *v = strtoull(s, &end, 10);

    if (errno || *end || *v < min || *v > max) {
        return sd_state_meta_bad(err, key);
    }

    return SD_OK;
}


static int
sd_state_number(const sd_safetensors_t *st, const char *key, double *v,
    sd_error_t *err)
{
    char        *end;
    const char  *s;

    s = sd_safetensors_meta(st, key);

    if (s == NULL || *s == '\0' || strspn(s, "0123456789.+-eE") != strlen(s)) {
        return sd_state_meta_bad(err, key);
    }

    *v = strtod(s, &end);

    if (*end || !isfinite(*v)) {
        return sd_state_meta_bad(err, key);
    }

    return SD_OK;
}


static int
sd_state_string(const sd_safetensors_t *st, const char *key, char *dst,
    size_t size, sd_error_t *err)
{
    size_t       len;
    const char  *s;

    s = sd_safetensors_meta(st, key);
    len = s ? strlen(s) : 0;

    if (len == 0 || len >= size) {
        return sd_state_meta_bad(err, key);
    }

    memcpy(dst, s, len + 1);

    return SD_OK;
}


static int
sd_state_digits(const sd_safetensors_t *st, const char *key, char dst[65],
    sd_error_t *err)
{
    if (sd_state_string(st, key, dst, 65, err) != SD_OK) {
        return SD_ERROR;
    }

    if (strspn(dst, "0123456789abcdef") != 64) {
        return sd_state_meta_bad(err, key);
    }

    return SD_OK;
}


static int
sd_state_metadata(sd_state_t *s, const sd_safetensors_t *st, sd_error_t *err)
{
    uint64_t     step, steps, width, height;
    const char  *version;

    version = sd_safetensors_meta(st, "sd_version");

    if (version == NULL) {
        return SD_OK;
    }

    if (strcmp(version, "1") != 0) {
        return sd_error(err, 409, "state_version", "latents",
                        "latents: a state of version \"%.20s\", and this "
                        "server has version \"1\"", version);
    }

    s->version = SD_STATE_VERSION;

    if (sd_state_integer(st, "steps", 1, SD_MAX_TRAIN_STEPS, &steps, err)
           != SD_OK
        || sd_state_integer(st, "step", 0, steps, &step, err) != SD_OK
        || sd_state_integer(st, "width", 1, SD_STATE_MAX_SIZE, &width, err)
           != SD_OK
        || sd_state_integer(st, "height", 1, SD_STATE_MAX_SIZE, &height, err)
           != SD_OK
        || sd_state_integer(st, "seed", 0, UINT64_MAX, &s->seed, err) != SD_OK
        || sd_state_string(st, "sampler", s->sampler, sizeof(s->sampler), err)
           != SD_OK
        || sd_state_digits(st, "model", s->model, err) != SD_OK
        || sd_state_digits(st, "prompt", s->prompt, err) != SD_OK
        || sd_state_number(st, "guidance", &s->guidance, err) != SD_OK
        || sd_state_string(st, "numerics", s->numerics, sizeof(s->numerics),
                           err)
           != SD_OK)
    {
        return SD_ERROR;
    }

    s->step = (int) step;
    s->steps = (int) steps;
    s->width = (int) width;
    s->height = (int) height;

    return SD_OK;
}


static int
sd_state_tensor(float **dst, sd_state_t *s, sd_safetensors_t *st,
    const sd_st_tensor_t *t, sd_error_t *err)
{
    uint64_t  i;

    /* a state is exact or it is none */

    if (s->version ? t->type != SD_F32
                   : t->type != SD_F32 && t->type != SD_F16
                     && t->type != SD_BF16)
    {
        return sd_error(err, 400, "invalid_value", "latents",
                        "latents: tensor \"%.20s\" has another type than "
                        "fp32", t->name);
    }

    /* at most twice the bytes that have come */

    *dst = malloc(t->count * sizeof(float));

    if (*dst == NULL) {
        return sd_fail(err, "no memory for a latent");
    }

    if (sd_safetensors_read_f32(st, t, *dst, err) != SD_OK) {
        return SD_ERROR;
    }

    for (i = 0; i < t->count; i++) {
        if (!isfinite((*dst)[i])) {
            return sd_error(err, 400, "invalid_value", "latents",
                            "latents: tensor \"%.20s\" has a value that is "
                            "not finite", t->name);
        }
    }

    return SD_OK;
}


static int
sd_state_load(sd_state_t *s, sd_safetensors_t *st, sd_error_t *err)
{
    int                    i;
    const sd_st_tensor_t  *t, *k;

    static const char *const  names[] = {
        "kept_0", "kept_1", "kept_2", "kept_3"
    };

    if (sd_state_metadata(s, st, err) != SD_OK) {
        return SD_ERROR;
    }

    t = sd_safetensors_find(st, "latents");

    if (t == NULL) {
        return sd_state_bad(err, "there is no tensor \"latents\"");
    }

    if (t->rank != 4 || t->count == 0
        || t->shape[0] > (s->version ? 1 : SD_STATE_MAX_PICTURES)
        || t->shape[1] > 1024 || t->shape[2] > SD_STATE_MAX_SIZE
        || t->shape[3] > SD_STATE_MAX_SIZE)
    {
        return sd_state_bad(err, "the tensor's shape is not "
                            "[n, channels, height, width]");
    }

    s->n = (int) t->shape[0];
    s->c = (int) t->shape[1];
    s->h = (int) t->shape[2];
    s->w = (int) t->shape[3];

    if (sd_state_tensor(&s->latents, s, st, t, err) != SD_OK) {
        return SD_ERROR;
    }

    for (i = 0; s->version && i < SD_KEPT; i++) {
        k = sd_safetensors_find(st, names[i]);

        if (k == NULL) {
            break;
        }

        if (k->rank != 4
            || memcmp(k->shape, t->shape, 4 * sizeof(int64_t)) != 0)
        {
            return sd_state_bad(err, "the tensors' shapes differ");
        }

        if (sd_state_tensor(&s->kept[i], s, st, k, err) != SD_OK) {
            return SD_ERROR;
        }

        s->nkept++;
    }

    return SD_OK;
}


int
sd_state_read(sd_state_t *s, const void *data, size_t size, sd_error_t *err)
{
    int                rc;
    sd_error_t         e;
    sd_safetensors_t  *st;

    memset(s, 0, sizeof(sd_state_t));

    if (sd_safetensors_parse(&st, data, size, &e) != SD_OK) {
        return sd_error(err, 400, "invalid_value", "latents", "latents: %s",
                        e.message);
    }

    rc = sd_state_load(s, st, err);
    sd_safetensors_close(st);

    if (rc != SD_OK) {
        sd_state_free(s);
    }

    return rc;
}


void
sd_state_free(sd_state_t *s)
{
    int  i;

    free(s->latents);

    for (i = 0; i < SD_KEPT; i++) {
        free(s->kept[i]);
    }

    memset(s, 0, sizeof(sd_state_t));
}


static int
sd_state_mismatch(sd_error_t *err, const char *param, const char *state,
    const char *request)
{
    return sd_error(err, 409, "state_mismatch", param,
                    "the latents are of %s %s, the request is of %s", param,
                    state, request);
}


static int
sd_state_same_int(int state, int request, const char *param, sd_error_t *err)
{
    char  a[12], b[12];

    if (state == request) {
        return SD_OK;
    }

    snprintf(a, sizeof(a), "%d", state);
    snprintf(b, sizeof(b), "%d", request);

    return sd_state_mismatch(err, param, a, b);
}


static int
sd_state_same_str(const char *state, const char *request, const char *param,
    sd_error_t *err)
{
    if (strcmp(state, request) == 0) {
        return SD_OK;
    }

    return sd_state_mismatch(err, param, state, request);
}


static int
sd_state_check_bare(const sd_state_t *s, const sd_state_t *request,
    sd_state_flags_t *flags, sd_error_t *err)
{
    if (s->n != request->n || s->c != request->c || s->h != request->h
        || s->w != request->w)
    {
        return sd_error(err, 400, "invalid_value", "latents",
                        "latents: the shape is [%d, %d, %d, %d], and %d of "
                        "%d x %d pixels need [%d, %d, %d, %d]", s->n, s->c,
                        s->h, s->w, request->n, request->width,
                        request->height, request->n, request->c, request->h,
                        request->w);
    }

    if (s->n > 1 && request->step > 0) {
        return sd_state_bad(err, "those of several pictures can be initial "
                            "noise only");
    }

    /* at the start there is nothing that a sampler could have kept */

    if (request->step > 0 && request->nkept) {
        return sd_error(err, 409, "state_mismatch", "latents",
                        "latents: sampler %s needs a whole state, with its "
                        "metadata and what it keeps", request->sampler);
    }

    /* who knows what computed it */

    flags->inexact = request->step > 0;

    return SD_OK;
}


int
sd_state_check(const sd_state_t *s, const sd_state_t *request,
    sd_state_flags_t *flags, sd_error_t *err)
{
    memset(flags, 0, sizeof(sd_state_flags_t));

    if (s->version == 0) {
        return sd_state_check_bare(s, request, flags, err);
    }

    if (request->n != 1) {
        return sd_state_bad(err, "a state is that of one picture");
    }

    if (sd_state_same_str(s->model, request->model, "model", err) != SD_OK
        || sd_state_same_str(s->sampler, request->sampler, "sampler", err)
           != SD_OK
        || sd_state_same_int(s->steps, request->steps, "num_inference_steps",
                             err)
           != SD_OK
        || sd_state_same_int(s->width, request->width, "width", err) != SD_OK
        || sd_state_same_int(s->height, request->height, "height", err)
           != SD_OK
        || (request->step >= 0
            && sd_state_same_int(s->step, request->step, "starting_step", err)
               != SD_OK))
    {
        return SD_ERROR;
    }

    /* what the fields above promise, and a file need not keep */

    if (s->c != request->c || s->h != request->h || s->w != request->w
        || s->nkept != request->nkept)
    {
        return sd_state_bad(err, "the tensors do not fit the metadata");
    }

    flags->branched = strcmp(s->prompt, request->prompt) != 0
                      || s->guidance != request->guidance;
    flags->inexact = strcmp(s->numerics, request->numerics) != 0;

    return SD_OK;
}
