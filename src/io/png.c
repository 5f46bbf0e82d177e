/*
 * PNG by libpng: see image.h.  Encoder threads.  libpng reports errors by
 * longjmp(), which stays inside sd_png_write().
 */

#include <stdlib.h>
#include <string.h>

#include <png.h>

#include "image.h"


static void
sd_png_error(png_structp png, png_const_charp message)
{
    sd_error_t  *err;

    err = png_get_error_ptr(png);
    (void) sd_fail(err, "PNG: %s", message);

    png_longjmp(png, 1);
}


static void
sd_png_warning(png_structp png, png_const_charp message)
{
}


/* a buffer that fails is found at the end */

static void
sd_png_append(png_structp png, png_bytep data, size_t n)
{
    sd_buf_append(png_get_io_ptr(png), data, n);
}


static void
sd_png_flush(png_structp png)
{
}


/*
 * UTF-8 to Latin-1 in place; returns 0, and leaves text as it was, where it has
 * anything beyond
 */

static int
sd_png_latin1(char *text)
{
    char           *d;
    unsigned char  *s;

    for (s = (unsigned char *) text; *s; s++) {
        if (*s < 0x80) {
            continue;
        }

        if ((*s != 0xc2 && *s != 0xc3) || (s[1] & 0xc0) != 0x80) {
            return 0;
        }

        s++;
    }

    d = text;

    for (s = (unsigned char *) text; *s; s++) {
        if (*s >= 0x80) {
            *d++ = (*s & 3) << 6 | (s[1] & 0x3f);
            s++;
            continue;
        }

        *d++ = *s;
    }

    *d = '\0';

    return 1;
}


static int
sd_png_write(png_structp png, png_infop info, const uint8_t *rgb, int width,
    int height, char *text)
{
    int       y;
    png_text  t;

    if (setjmp(png_jmpbuf(png))) {
        return SD_ERROR;
    }

    png_set_IHDR(png, info, width, height, 8, PNG_COLOR_TYPE_RGB,
                 PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT,
                 PNG_FILTER_TYPE_DEFAULT);

    if (text) {
        memset(&t, 0, sizeof(png_text));

        t.compression = sd_png_latin1(text) ? PNG_TEXT_COMPRESSION_NONE
                                            : PNG_ITXT_COMPRESSION_NONE;
        t.key = (char *) "parameters";
        t.text = text;

        png_set_text(png, info, &t, 1);
    }

    png_write_info(png, info);

    for (y = 0; y < height; y++) {
        png_write_row(png, rgb + (size_t) y * width * 3);
    }

    png_write_end(png, info);

    return SD_OK;
}


int
sd_png_encode(sd_buf_t *out, const uint8_t *rgb, int width, int height,
    const char *text, sd_error_t *err)
{
    int          rc;
    char        *copy;
    size_t       len;
    sd_error_t   ignored;
    png_infop    info;
    png_structp  png;

    rc = SD_ERROR;
    info = NULL;
    len = out->len;
    err = err ? err : &ignored;

    copy = text ? strdup(text) : NULL;
    png = png_create_write_struct(PNG_LIBPNG_VER_STRING, err, sd_png_error,
                                  sd_png_warning);
    if (png) {
        info = png_create_info_struct(png);
    }

    if (info == NULL || (text && copy == NULL)) {
        (void) sd_fail(err, "no memory for a PNG");
        goto done;
    }

    png_set_write_fn(png, out, sd_png_append, sd_png_flush);
    rc = sd_png_write(png, info, rgb, width, height, copy);

    if (rc == SD_OK && out->failed) {
        rc = sd_fail(err, "no memory for a PNG of %d x %d", width, height);
    }

done:

    if (rc != SD_OK) {
        out->len = len;
    }

    png_destroy_write_struct(&png, &info);
    free(copy);

    return rc;
}
