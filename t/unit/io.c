/*
 * Bytes and pictures: buffer, base64, JPEG, PNG, enlarging.
 */

#include <math.h>
#include <stdlib.h>

#include <png.h>
#include <turbojpeg.h>

#include "../../src/io/base64.h"
#include "../../src/io/buf.h"
#include "../../src/io/image.h"
#include "tap.h"


static void
buffers(void)
{
    int       i;
    sd_buf_t  b = { 0 };

    for (i = 0; i < 1000; i++) {
        sd_buf_printf(&b, "%d,", i);
    }

    is_int(b.len, 10 * 2 + 90 * 3 + 900 * 4, "a thousand appends");
    ok(memcmp(b.data + b.len - 4, "999,", 4) == 0, "in order");

    b.len = 0;
    sd_buf_json(&b, "a\"b\\c\n\x01\xc3\xa9/", 10);
    sd_buf_append(&b, "", 1);
    is_str(b.data, "a\\\"b\\\\c\\u000a\\u0001\xc3\xa9/", "the inside of JSON");

    ok(sd_buf_reserve(&b, (size_t) -1) == NULL && b.failed,
       "a size that overflows");
    i = b.len;
    sd_buf_puts(&b, "more");
    is_int(b.len, i, "a failed buffer takes nothing");

    sd_buf_free(&b);
    ok(b.data == NULL && !b.failed, "freed");
}


static void
base64(void)
{
    char      text[2048];
    size_t    i, n;
    uint8_t   bytes[1024], back[1100];
    unsigned  bad, seed;

    static const struct {
        const char  *text;
        int          n;         /* -1: refused */
        const char  *bytes;
    } tests[] = {
        { "", 0, "" },
        { "Zg==", 1, "f" }, { "Zm8=", 2, "fo" }, { "Zm9v", 3, "foo" },
        { "Zm9vYg==", 4, "foob" }, { "Zm9vYmE=", 5, "fooba" },
        { "Zm9vYmFy", 6, "foobar" },
        { "Zg", 1, "f" }, { "Zm8", 2, "fo" },
        { " Z m\t9\r\nv ", 3, "foo" }, { "Zg= =\n", 1, "f" },
        { "Z", -1, NULL }, { "Zm9vY", -1, NULL }, { "=", -1, NULL },
        { "Zg=", -1, NULL }, { "Zg===", -1, NULL }, { "Zm8==", -1, NULL },
        { "Zm9v====", -1, NULL }, { "Zg==Zg==", -1, NULL },
        { "Zh==", -1, NULL }, { "Zm9=", -1, NULL }, { "Zm-v", -1, NULL },
        { "Zm_v", -1, NULL }, { "Zm9v!", -1, NULL }, { "\xff", -1, NULL }
    };

    for (i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
        memset(back, 0, 16);
        ok(sd_base64_decode(back, tests[i].text, strlen(tests[i].text))
           == tests[i].n
           && (tests[i].n < 0
               || memcmp(back, tests[i].bytes, tests[i].n) == 0),
           "base64 %zu", i);
    }

    seed = 1;
    bad = 0;

    for (n = 0; n < sizeof(bytes); n++) {
        for (i = 0; i < n; i++) {
            seed = seed * 1103515245 + 12345;
            bytes[i] = seed >> 16;
        }

        i = sd_base64_encode(text, bytes, n);
        bad += i != sd_base64_encoded_size(n)
               || sd_base64_decode(back, text, i) != (ssize_t) n
               || memcmp(back, bytes, n) != 0;
    }

    is_int(bad, 0, "1024 sizes there and back");
}


/* a picture with smooth parts, edges and corners that are not equal */

static uint8_t *
picture(int w, int h)
{
    int       x, y;
    uint8_t  *rgb, *p;

    p = rgb = malloc(w * h * 3);

    for (y = 0; y < h; y++) {
        for (x = 0; x < w; x++) {
            *p++ = 255 * x / w;
            *p++ = 255 * y / h;
            *p++ = (x - w / 2) * (x - w / 2) + (y - h / 2) * (y - h / 2)
                   < w * h / 9 ? 220 : 40;
        }
    }

    return rgb;
}


static void
jpeg(int w, int h, int quality, double limit)
{
    int         i, dw, dh, sub, space;
    double      e, psnr;
    uint8_t    *rgb, *back;
    sd_buf_t    b = { 0 };
    tjhandle    tj;
    sd_error_t  err;

    rgb = picture(w, h);
    back = malloc(w * h * 3);

    sd_buf_puts(&b, "head");

    i = sd_jpeg_encode(&b, rgb, w, h, quality, &err);

    if (!ok(i == SD_OK, "JPEG %d x %d, quality %d: %zu bytes", w, h, quality,
            b.len))
    {
        return;
    }

    tj = tjInitDecompress();
    tjDecompressHeader3(tj, (uint8_t *) b.data + 4, b.len - 4, &dw, &dh, &sub,
                        &space);
    is_int(sub, quality < 90 ? TJSAMP_420 : TJSAMP_444, "subsampling");

    ok(dw == w && dh == h && memcmp(b.data, "head", 4) == 0
       && tjDecompress2(tj, (uint8_t *) b.data + 4, b.len - 4, back, w, 0, h,
                        TJPF_RGB, 0) == 0, "appended and readable");

    for (e = 0, i = 0; i < w * h * 3; i++) {
        e += (rgb[i] - back[i]) * (rgb[i] - back[i]);
    }

    psnr = 10 * log10(255.0 * 255 / (e / (w * h * 3) + 1e-9));
    ok(psnr > limit, "PSNR %.1f dB", psnr);

    tjDestroy(tj);
    sd_buf_free(&b);
    free(rgb);
    free(back);
}


/* the payload of the first chunk of that type, terminated; *n: its length */

static char *
chunk(const sd_buf_t *b, const char *type, size_t *n)
{
    char           *copy;
    size_t          at, len;
    const uint8_t  *p;

    for (at = 8; at + 12 <= b->len; at += len + 12) {
        p = (const uint8_t *) b->data + at;
        len = (size_t) p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3];

        if (memcmp(p + 4, type, 4) == 0) {
            copy = calloc(1, len + 1);
            memcpy(copy, p + 8, len);
            *n = len;
            return copy;
        }
    }

    return NULL;
}


static void
png(int w, int h, const char *text, const char *type, const char *expected,
    size_t size)
{
    char       *t;
    size_t      n;
    uint8_t    *rgb, *back;
    sd_buf_t    b = { 0 };
    png_image   image;
    sd_error_t  err;

    rgb = picture(w, h);
    back = malloc(w * h * 3);

    n = sd_png_encode(&b, rgb, w, h, text, &err);
    ok(n == SD_OK, "PNG %d x %d: %zu bytes", w, h, b.len);

    memset(&image, 0, sizeof(image));
    image.version = PNG_IMAGE_VERSION;

    ok(png_image_begin_read_from_memory(&image, b.data, b.len)
       && image.width == (unsigned) w && image.height == (unsigned) h,
       "readable");
    image.format = PNG_FORMAT_RGB;
    ok(png_image_finish_read(&image, NULL, back, 0, NULL)
       && memcmp(rgb, back, w * h * 3) == 0, "the same picture");

    if (type) {
        t = chunk(&b, type, &n);
        ok(t && n == size && memcmp(t, expected, n) == 0, "%s", type);
        free(t);

    } else {
        ok(chunk(&b, "tEXt", &n) == NULL && chunk(&b, "iTXt", &n) == NULL,
           "no text");
    }

    sd_buf_free(&b);
    free(rgb);
    free(back);
}


static void
upscale(void)
{
    int       x, y, c, scale, worst, bad;
    float     v;
    uint8_t  *small, *big;

    enum { W = 13, H = 9 };

    small = malloc(W * H * 3);
    big = malloc(W * H * 3 * 64);

    for (scale = 1; scale <= 8; scale += scale == 1 ? 2 : 5) {
        memset(small, 77, W * H * 3);
        memset(big, 0, W * H * 3 * 64);
        sd_image_upscale(big, small, W, H, scale);

        bad = 0;

        for (x = 0; x < W * H * 3 * scale * scale; x++) {
            bad += big[x] != 77;
        }

        is_int(bad, 0, "one colour stays");

        /* planes are reproduced, but where the border is near */

        for (y = 0; y < H; y++) {
            for (x = 0; x < W; x++) {
                for (c = 0; c < 3; c++) {
                    small[(y * W + x) * 3 + c] = 20 + 10 * x + 8 * y + 5 * c;
                }
            }
        }

        sd_image_upscale(big, small, W, H, scale);

        worst = 0;

        for (y = 2 * scale; y < (H - 2) * scale; y++) {
            for (x = 2 * scale; x < (W - 2) * scale; x++) {
                for (c = 0; c < 3; c++) {
                    v = 20 + 10 * ((x + 0.5f) / scale - 0.5f)
                        + 8 * ((y + 0.5f) / scale - 0.5f) + 5 * c;
                    bad = abs(big[(y * W * scale + x) * 3 + c]
                              - (int) (v + 0.5f));
                    worst = bad > worst ? bad : worst;
                }
            }
        }

        ok(worst <= 1, "a plane stays a plane, x%d", scale);
    }

    /* black beside white: over- and undershoot are cut, not wrapped */

    memset(small, 0, W * H * 3);

    for (y = 0; y < H; y++) {
        memset(small + (y * W + 6) * 3, 255, (W - 6) * 3);
    }

    sd_image_upscale(big, small, W, H, 8);

    bad = 0;

    for (y = 0; y < H * 8; y++) {
        for (x = 1; x < W * 8; x++) {
            bad += big[(y * W * 8 + x) * 3] < 250
                   && big[(y * W * 8 + x - 1) * 3] > 250;
        }

        bad += big[y * W * 8 * 3] != 0
               || big[(y * W * 8 + W * 8 - 1) * 3] != 255;
    }

    is_int(bad, 0, "an edge stays an edge");

    memset(small, 9, 3);
    sd_image_upscale(big, small, 1, 1, 8);
    ok(big[0] == 9 && big[191] == 9, "one pixel");

    free(small);
    free(big);
}


int
main(void)
{
    sd_buf_t    b = { 0 };
    sd_error_t  err;

    buffers();
    base64();

    jpeg(256, 256, 85, 32);
    jpeg(104, 192, 95, 38);
    jpeg(8, 8, 1, 8);
    jpeg(1, 1, 100, 20);
    is_int(sd_jpeg_encode(&b, (uint8_t *) "", 70000, 1, 85, &err), SD_ERROR,
           "too wide for a JPEG");
    ok(b.len == 0 && err.status == 500, "leaves nothing");

    png(64, 48, NULL, NULL, NULL, 0);
    png(8, 8, "a caf\xc3\xa9\nSteps: 20", "tEXt",
        "parameters\0a caf\xe9\nSteps: 20", 27);
    png(8, 8, "\xe5\xb1\xb1 caf\xc3\xa9", "iTXt",
        "parameters\0\0\0\0\0\xe5\xb1\xb1 caf\xc3\xa9", 24);
    is_int(sd_png_encode(&b, (uint8_t *) "", 0, 0, NULL, &err), SD_ERROR,
           "an empty PNG");
    ok(b.len == 0 && strstr(err.message, "PNG"), "leaves nothing: %s",
       err.message);

    upscale();

    return done();
}
