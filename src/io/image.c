/*
 * Enlarging previews: see image.h.
 */

#include "image.h"


#define SD_SCALE_MAX  64


/* Catmull and Rom 1974: weights of the four pixels around 1 + t */

static void
sd_image_weights(float *w, float t)
{
    w[0] = ((-0.5f * t + 1) * t - 0.5f) * t;
    w[1] = (1.5f * t - 2.5f) * t * t + 1;
    w[2] = ((-1.5f * t + 2) * t + 0.5f) * t;
    w[3] = (0.5f * t - 0.5f) * t * t;
}


static int
sd_image_clamp(int i, int n)
{
    return i < 0 ? 0 : i < n ? i : n - 1;
}


static uint8_t
sd_image_byte(float v)
{
    return v <= 0 ? 0 : v >= 255 ? 255 : (uint8_t) (v + 0.5f);
}


/*
 * pixel X of the result lies at (X + 1/2) / scale - 1/2 of the source, so the
 * phases are the same in every pixel, and in both directions.  A row of the
 * result needs four rows of the source, blended column by column as a window
 * of four columns moves on.
 */

void
sd_image_upscale(uint8_t *dst, const uint8_t *src, int width, int height,
    int scale)
{
    int             x, y, i, k, c, first[SD_SCALE_MAX], column;
    float           w[SD_SCALE_MAX][4], v[4][3], at;
    const float    *wx, *wy;
    const uint8_t  *row[4];

    if (scale < 1 || scale > SD_SCALE_MAX) {
        return;
    }

    for (i = 0; i < scale; i++) {
        at = (i + 0.5f) / scale - 0.5f;
        first[i] = at < 0 ? -2 : -1;
        sd_image_weights(w[i], at < 0 ? at + 1 : at);
    }

    for (y = 0; y < height * scale; y++) {
        wy = w[y % scale];

        for (k = 0; k < 4; k++) {
            i = sd_image_clamp(y / scale + first[y % scale] + k, height);
            row[k] = src + (size_t) i * width * 3;
        }

        /* the window holds columns up to, not including, this one */

        column = -2;

        for (x = 0; x < width * scale; x++) {
            wx = w[x % scale];

            while (column < x / scale + first[x % scale] + 4) {
                i = sd_image_clamp(column, width) * 3;

                for (c = 0; c < 3; c++) {
                    v[0][c] = v[1][c];
                    v[1][c] = v[2][c];
                    v[2][c] = v[3][c];
                    v[3][c] = wy[0] * row[0][i + c] + wy[1] * row[1][i + c]
                              + wy[2] * row[2][i + c] + wy[3] * row[3][i + c];
                }

                column++;
            }

            for (c = 0; c < 3; c++) {
                *dst++ = sd_image_byte(wx[0] * v[0][c] + wx[1] * v[1][c]
                                       + wx[2] * v[2][c] + wx[3] * v[3][c]);
            }
        }
    }
}
