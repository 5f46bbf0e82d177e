/*
 * The state of a picture: written and read back, every field that may be wrong,
 * and which picture may go on from it.
 */

#include <math.h>
#include <stdlib.h>

#include "../../src/io/safetensors.h"
#include "../../src/sd/state.h"
#include "tap.h"


#define DIGITS  "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

enum { C = 4, H = 24, W = 13, N = C * H * W };


static float  values[1 + SD_KEPT][N];


static void
fill(sd_state_t *s, int nkept)
{
    int  i, j;

    for (i = 0; i < 1 + SD_KEPT; i++) {
        for (j = 0; j < N; j++) {
            values[i][j] = sinf(j * 0.37f + i) * 3;
        }
    }

    memset(s, 0, sizeof(sd_state_t));

    s->version = SD_STATE_VERSION;
    s->step = 7;
    s->steps = 20;
    s->seed = 18446744073709551615ULL;
    strcpy(s->sampler, "ddim");
    strcpy(s->model, DIGITS);
    s->width = W * 8;
    s->height = H * 8;
    sd_state_digest(s->prompt, "a red house", "");
    s->guidance = 7.1;
    strcpy(s->numerics, "cpu-fp32-1");
    s->n = 1;
    s->c = C;
    s->h = H;
    s->w = W;
    s->nkept = nkept;
    s->latents = values[0];

    for (i = 0; i < nkept; i++) {
        s->kept[i] = values[1 + i];
    }
}


static void
there_and_back(int nkept)
{
    int               i;
    sd_buf_t          b = { 0 };
    sd_state_t        s, r;
    sd_error_t        err = { 0 };
    sd_state_flags_t  flags;

    fill(&s, nkept);

    is_int(sd_state_write(&b, &s, &err), SD_OK, "written");

    if (!ok(sd_state_read(&r, b.data, b.len, &err) == SD_OK, "read: %s",
            err.message))
    {
        return;
    }

    ok(r.version == 1 && r.step == 7 && r.steps == 20 && r.seed == s.seed
       && strcmp(r.sampler, "ddim") == 0 && strcmp(r.model, s.model) == 0
       && r.width == s.width && r.height == s.height
       && strcmp(r.prompt, s.prompt) == 0 && r.guidance == 7.1
       && strcmp(r.numerics, s.numerics) == 0
       && r.c == C && r.h == H && r.w == W, "the same fields");

    is_int(r.nkept, nkept, "the same number of kept tensors");

    for (i = 0; i < 1 + nkept; i++) {
        ok(memcmp(i ? r.kept[i - 1] : r.latents, values[i], sizeof(values[i]))
           == 0, "tensor %d, bit for bit", i);
    }

    ok(sd_state_check(&r, &s, &flags, &err) == SD_OK && !flags.branched
       && !flags.inexact, "its own picture may go on from it");

    sd_state_free(&r);
    ok(r.latents == NULL, "freed");
    sd_buf_free(&b);
}


/* the bytes of a file with these tensors and this metadata */

static sd_buf_t
make(const sd_st_out_t *tensors, size_t n, const sd_st_meta_t *meta,
    size_t nmeta)
{
    sd_buf_t    b = { 0 };
    sd_error_t  err;

    if (sd_safetensors_write(&b, tensors, n, meta, nmeta, &err) != SD_OK) {
        printf("# %s\n", err.message);
    }

    return b;
}


static void
metadata(void)
{
    size_t      i, j, n;
    sd_buf_t    b;
    sd_state_t  s;
    sd_error_t  err;

    static const sd_st_meta_t  good[] = {
        { "sd_version", "1" }, { "step", "7" }, { "steps", "20" },
        { "seed", "42" }, { "sampler", "ddim" }, { "model", DIGITS },
        { "width", "104" }, { "height", "192" }, { "prompt", DIGITS },
        { "guidance", "7.5" }, { "numerics", "x" }
    };

    static const sd_st_meta_t  bad[] = {
        { "step", "21" }, { "step", "-1" }, { "step", "" }, { "step", "1.0" },
        { "step", " 1" }, { "step", "99999999999999999999999" },
        { "steps", "0" }, { "steps", "10001" },
        { "seed", "18446744073709551616" }, { "seed", "0x10" },
        { "sampler", "" },
        { "sampler", "0123456789012345678901234567890123456789" },
        { "model", "abc" }, { "model", DIGITS "0" },
        { "prompt",
          "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdeg" },
        { "width", "0" }, { "width", "65537" }, { "height", "many" },
        { "guidance", "nan" }, { "guidance", "inf" }, { "guidance", "1e999" },
        { "guidance", "7,5" }, { "guidance", "" }, { "guidance", "0x1p3" },
        { "numerics", "" }
    };

    const sd_st_out_t  t = { "latents", values[0], 4, { 1, C, H, W } };

    sd_st_meta_t  m[11];

    n = sizeof(good) / sizeof(good[0]);

    b = make(&t, 1, good, n);
    is_int(sd_state_read(&s, b.data, b.len, &err), SD_OK, "good metadata");
    sd_state_free(&s);
    sd_buf_free(&b);

    for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        memcpy(m, good, sizeof(good));

        for (j = 0; j < n; j++) {
            if (strcmp(m[j].key, bad[i].key) == 0) {
                m[j] = bad[i];
            }
        }

        b = make(&t, 1, m, n);
        ok(sd_state_read(&s, b.data, b.len, &err) == SD_ERROR
           && err.status == 400 && strcmp(err.param, "latents") == 0
           && strstr(err.message, bad[i].key), "refused: %s \"%s\"",
           bad[i].key, bad[i].value);
        sd_buf_free(&b);
    }

    /* each one missing: without the version it is a bare latent */

    for (i = 1; i < n; i++) {
        memcpy(m, good, sizeof(good));
        m[i] = m[n - 1];

        b = make(&t, 1, m, n - 1);
        ok(sd_state_read(&s, b.data, b.len, &err) == SD_ERROR
           && err.status == 400 && strstr(err.message, good[i].key),
           "refused: no %s", good[i].key);
        sd_buf_free(&b);
    }

    memcpy(m, good, sizeof(good));
    m[0].value = "2";
    b = make(&t, 1, m, n);
    ok(sd_state_read(&s, b.data, b.len, &err) == SD_ERROR && err.status == 409
       && strcmp(err.param, "latents") == 0, "another version: %s",
       err.message);
    sd_buf_free(&b);
}


static void
tensors(void)
{
    size_t      i;
    sd_buf_t    b;
    sd_state_t  s;
    sd_error_t  err;

    static const float  special[] = { NAN, INFINITY, -INFINITY };

    const sd_st_out_t  good = { "latents", values[0], 4, { 1, C, H, W } };

    const sd_st_out_t  bad[] = {
        { "latent", values[0], 4, { 1, C, H, W } },
        { "latents", values[0], 3, { C, H, W } },
        { "latents", values[0], 4, { 65, C, 1, 1 } },
        { "latents", values[0], 4, { 1, 0, H, W } },
        { "latents", values[0], 5, { 1, C, H, W, 1 } },
        { "latents", values[0], 0, { 0 } }
    };

    for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        b = make(&bad[i], 1, NULL, 0);
        ok(b.len && sd_state_read(&s, b.data, b.len, &err) == SD_ERROR
           && err.status == 400 && strcmp(err.param, "latents") == 0,
           "refused: %s", err.message);
        sd_buf_free(&b);
    }

    for (i = 0; i < 3; i++) {
        values[0][N - 1] = special[i];
        b = make(&good, 1, NULL, 0);
        ok(sd_state_read(&s, b.data, b.len, &err) == SD_ERROR
           && strstr(err.message, "finite"), "refused: %f", special[i]);
        sd_buf_free(&b);
    }

    values[0][N - 1] = 0;

    b = make(&good, 1, NULL, 0);
    is_int(sd_state_read(&s, b.data, b.len, &err), SD_OK, "a bare latent");
    is_int(s.version, 0, "has no version");
    sd_state_free(&s);

    /* every cut of it */

    for (i = 0; i < b.len; i += i < 200 ? 1 : 97) {
        if (sd_state_read(&s, b.data, i, &err) == SD_OK) {
            break;
        }
    }

    ok(i >= b.len, "every cut file is refused");
    sd_buf_free(&b);

    /* a kept tensor of another shape, in a state */

    {
        sd_buf_t           w = { 0 };
        sd_state_t         st;
        const sd_st_out_t  two[] = {
            good, { "kept_0", values[1], 4, { 1, C, W, H } }
        };
        const sd_st_meta_t  meta[] = {
            { "sd_version", "1" }, { "step", "7" }, { "steps", "20" },
            { "seed", "42" }, { "sampler", "ddim" }, { "model", DIGITS },
            { "width", "104" }, { "height", "192" }, { "prompt", DIGITS },
            { "guidance", "7.5" }, { "numerics", "x" }
        };

        w = make(two, 2, meta, 11);
        ok(sd_state_read(&st, w.data, w.len, &err) == SD_ERROR
           && err.status == 400, "refused: %s", err.message);
        sd_buf_free(&w);
    }
}


static void
authority(void)
{
    size_t            i;
    sd_state_t        s, q;
    sd_error_t        err;
    sd_state_flags_t  flags;

    static const char *const  params[] = {
        "model", "sampler", "num_inference_steps", "width", "height",
        "starting_step"
    };

    for (i = 0; i < 6; i++) {
        fill(&s, 0);
        q = s;

        switch (i) {
        case 0:
            q.model[3] = 'f';
            break;
        case 1:
            strcpy(q.sampler, "euler");
            break;
        case 2:
            q.steps = 21;
            break;
        case 3:
            q.width += 8;
            break;
        case 4:
            q.height += 8;
            break;
        case 5:
            q.step = 8;
            break;
        }

        ok(sd_state_check(&s, &q, &flags, &err) == SD_ERROR
           && err.status == 409 && strcmp(err.code, "state_mismatch") == 0
           && strcmp(err.param, params[i]) == 0, "409: %s", err.message);
    }

    fill(&s, 0);
    q = s;
    q.step = -1;
    q.seed = 1;
    ok(sd_state_check(&s, &q, &flags, &err) == SD_OK && !flags.branched
       && !flags.inexact, "no starting_step, another seed");

    sd_state_digest(q.prompt, "a blue house", "");
    ok(sd_state_check(&s, &q, &flags, &err) == SD_OK && flags.branched
       && !flags.inexact, "another prompt branches");

    q = s;
    q.guidance = 3;
    ok(sd_state_check(&s, &q, &flags, &err) == SD_OK && flags.branched,
       "so does another guidance");

    q = s;
    strcpy(q.numerics, "cuda-fp16-1");
    ok(sd_state_check(&s, &q, &flags, &err) == SD_OK && !flags.branched
       && flags.inexact, "other numerics are inexact");

    q = s;
    q.nkept = 1;
    ok(sd_state_check(&s, &q, &flags, &err) == SD_ERROR && err.status == 400,
       "kept tensors that are not there");

    q = s;
    q.h++;
    ok(sd_state_check(&s, &q, &flags, &err) == SD_ERROR && err.status == 400,
       "tensors of another size than the metadata's");

    /* bare */

    q = s;
    s.version = 0;
    q.step = -1;
    ok(sd_state_check(&s, &q, &flags, &err) == SD_OK && !flags.inexact,
       "a bare latent is initial noise");
    q.step = 5;
    ok(sd_state_check(&s, &q, &flags, &err) == SD_OK && flags.inexact,
       "a bare latent later on");
    q.nkept = 2;
    ok(sd_state_check(&s, &q, &flags, &err) == SD_ERROR && err.status == 409,
       "409: %s", err.message);
    q.step = 0;
    ok(sd_state_check(&s, &q, &flags, &err) == SD_OK,
       "but noise fits every sampler");
    q.w = 12;
    ok(sd_state_check(&s, &q, &flags, &err) == SD_ERROR && err.status == 400
       && strcmp(err.param, "latents") == 0, "400: %s", err.message);
}


int
main(void)
{
    char  a[65], b[65];

    there_and_back(0);
    there_and_back(1);
    there_and_back(4);
    metadata();
    tensors();
    authority();

    sd_state_digest(a, "ab", "c");
    sd_state_digest(b, "a", "bc");
    ok(strcmp(a, b) != 0, "prompt and negative prompt do not run together");

    /* sha256 of "ab\0c" */
    is_str(a,
        "6c032e631d39a14d85aff7e319546af701e26c97b57ca95fbfe9c6ba855f67bf",
        "the digest");

    return done();
}
