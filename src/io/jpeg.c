/*
 * JPEG by libjpeg-turbo: see image.h.  Encoder threads; a compressor lives for
 * one call, as making it takes microseconds.
 */

#include <turbojpeg.h>

#include "image.h"


int
sd_jpeg_encode(sd_buf_t *out, const uint8_t *rgb, int width, int height,
    int quality, sd_error_t *err)
{
    int             rc, subsampling;
    tjhandle        tj;
    unsigned char  *p;
    unsigned long   size;

    if (width < 1 || height < 1 || width > 65535 || height > 65535) {
        return sd_fail(err, "no JPEG can be %d x %d", width, height);
    }

    subsampling = quality < 90 ? TJSAMP_420 : TJSAMP_444;
    size = tjBufSize(width, height, subsampling);

    if (size == (unsigned long) -1) {
        return sd_fail(err, "no JPEG can be %d x %d", width, height);
    }

    p = sd_buf_reserve(out, size);
    tj = tjInitCompress();

    if (p == NULL || tj == NULL) {
        if (tj) {
            tjDestroy(tj);
        }

        return sd_fail(err, "no memory for a JPEG of %d x %d", width, height);
    }

    rc = tjCompress2(tj, rgb, width, 0, height, TJPF_RGB, &p, &size,
                     subsampling, quality, TJFLAG_NOREALLOC);

    if (rc == -1) {
        (void) sd_fail(err, "JPEG: %s", tjGetErrorStr2(tj));

    } else {
        out->len += size;
    }

    tjDestroy(tj);

    return rc == -1 ? SD_ERROR : SD_OK;
}
