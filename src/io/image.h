/*
 * Pictures to bytes: JPEG by libjpeg-turbo's TurboJPEG, PNG by libpng.  Input
 * is [height, width, 3] of 8-bit RGB, packed.  Encoder threads only.
 */

#ifndef SD_IMAGE_H
#define SD_IMAGE_H

#include <stdint.h>

#include "buf.h"
#include "error.h"


/* quality: 1 .. 100; 4:2:0 below 90, 4:4:4 from there on; appends to out */
int sd_jpeg_encode(sd_buf_t *out, const uint8_t *rgb, int width, int height,
    int quality, sd_error_t *err);

/*
 * text: NULL, or UTF-8 for an iTXt chunk with the keyword "parameters", as
 * A1111 writes and reads; tEXt where it is plain Latin-1.  Appends to out.
 */
int sd_png_encode(sd_buf_t *out, const uint8_t *rgb, int width, int height,
    const char *text, sd_error_t *err);

/*
 * smooth (Catmull-Rom) enlargement of src [h, w, 3] to dst [h * scale,
 * w * scale, 3], for previews; scale: 1 .. 64
 */
void sd_image_upscale(uint8_t *dst, const uint8_t *src, int width, int height,
    int scale);


#endif
