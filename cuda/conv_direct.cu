/*
 * Convolutions that libraries are slow at, or cannot do: few channels in
 * (conv_in, 4 to 320), few out (conv_out, 320 to 4, 128 to 3), or a number of
 * them that is no multiple of 8.
 *
 * Floors, by bytes at 3.0 TB/s, and what it takes on an H100; and cuDNN, padded
 * to eight channels where there are fewer:
 *
 *                                           floor    this   cuDNN
 *      2 samples of 64x64,   4 to 320         1.8     4.4     6.2 us
 *                           320 to 4          1.8     7.2    11.1
 *     16 samples of 64x64,  320 to 4         14.2    24.2    54.1
 *      1 sample of 64x64,     4 to 512        1.4     4.0     5.4
 *      1 sample of 512x512, 128 to 3         22.9    36.1    92.8
 *
 * Sums are fp32, in an order that the shape of the weights decides.
 */

#include "common.cuh"


#define SD_CONV_FEW_IN  16          /* channels that are few */


/* where tap (i, j) of output pixel p reads: number of a pixel of x, or -1 */

SD_FN int
sd_conv_source(const sd_cuda_conv_t *d, int p, int i, int j)
{
    int  x, y, h, w;

    y = p / d->ow;
    x = p - y * d->ow;

    y = y * d->stride + i - d->r / 2;
    x = x * d->stride + j - d->r / 2;

    h = d->upsample ? d->oh : d->h;
    w = d->upsample ? d->ow : d->wd;

    if (y < 0 || y >= h || x < 0 || x >= w) {
        return -1;
    }

    if (d->upsample) {
        y /= 2;
        x /= 2;
    }

    return y * d->wd + x;
}


/*
 * Few channels in.  The values that an output sums over, taps x channels, are
 * its pixel's row of a matrix, and come as units of four: lane 4 g + q has
 * units q, q + 4 ... of rows g, g + 8, which is all that an mma asks, as its
 * columns may stand in any order.  A warp makes 32 channels of 32 pixels; those
 * that a lane gets follow each other.
 * UNIT: units are four channels of one tap.  FOUR: there are four channels, in
 * 3x3 taps of stride 1, nothing is enlarged.
 * grid: pixels, channels, samples
 */

template <bool FOUR, bool UNIT>
__global__ void
__launch_bounds__(128)
sd_conv_few_in(const sd_cuda_conv_t d)
{
    int               i, j, s, g, q, k, k0, at, from, unit, steps, channels;
    int               pixel, pixels, length, py[4], px[4];
    float             acc[2][4][4], v[8], w[8];
    size_t            n, out;
    uint2             a[4], b[4];
    const sd_half_t  *x, *x2;

    channels = d.c + d.c2;
    length = FOUR ? 36 : d.r * d.r * channels;
    steps = FOUR ? 3 : sd_cuda_div(length, 16);
    pixels = d.oh * d.ow;
    n = blockIdx.z;
    k0 = blockIdx.y * 32;
    g = threadIdx.x % 32 / 4;
    q = threadIdx.x % 4;
    pixel = (blockIdx.x * 4 + threadIdx.x / 32) * 32;

    x = d.x + n * d.h * d.wd * d.c;
    x2 = d.x2 + n * d.h * d.wd * d.c2;

#pragma unroll
    for (i = 0; i < 2; i++) {

#pragma unroll
        for (j = 0; j < 4; j++) {
            acc[i][j][0] = acc[i][j][1] = acc[i][j][2] = acc[i][j][3] = 0;
        }
    }

#pragma unroll
    for (i = 0; i < 4 && FOUR; i++) {
        at = pixel + i * 8 + g;
        py[i] = at / d.ow;
        px[i] = at - py[i] * d.ow;
        py[i] = at < pixels ? py[i] - 1 : -9;
    }

#pragma unroll(FOUR ? 3 : 1)
    for (s = 0; s < steps; s++) {
        unit = 4 * s + q;

#pragma unroll
        for (i = 0; i < 4; i++) {
            a[i] = make_uint2(0, 0);
            at = pixel + i * 8 + g;

            if ((at >= pixels && !FOUR) || 4 * unit >= length) {
                continue;
            }

            if constexpr (FOUR) {
                j = py[i] + unit / 3;
                from = px[i] + unit % 3 - 1;

                if (j >= 0 && j < d.h && from >= 0 && from < d.wd) {
                    a[i] = ((const uint2 *) x)[j * d.wd + from];
                }

            } else if constexpr (UNIT) {
                j = 4 * unit / channels;
                from = sd_conv_source(&d, at, j / d.r, j % d.r);

                if (from >= 0) {
                    a[i] = *(const uint2 *) (x + from * channels
                                             + 4 * unit - j * channels);
                }

            } else {
                sd_half_t  h[4] = { 0, 0, 0, 0 };

#pragma unroll
                for (j = 0; j < 4; j++) {
                    k = 4 * unit + j;
                    from = k < length ? sd_conv_source(&d, at, k / channels
                                                       / d.r,
                                                       k / channels % d.r) : -1;
                    k %= channels;

                    if (from >= 0) {
                        h[j] = k < d.c ? x[(size_t) from * d.c + k]
                                       : x2[(size_t) from * d.c2 + k - d.c];
                    }
                }

                a[i] = make_uint2(h[0] | (uint32_t) h[1] << 16,
                                  h[2] | (uint32_t) h[3] << 16);
            }
        }

        /* column 2 q + e of block j is channel 8 q + 2 j + e */

#pragma unroll
        for (j = 0; j < 4; j++) {
            b[j] = make_uint2(0, 0);
            k = k0 + g / 2 * 8 + 2 * j + g % 2;

            if (k >= d.k || 4 * unit >= length) {
                continue;
            }

            if constexpr (UNIT) {
                b[j] = *(const uint2 *) (d.w + k * length + 4 * unit);

            } else {
                sd_half_t  h[4] = { 0, 0, 0, 0 };

#pragma unroll
                for (i = 0; i < 4; i++) {
                    if (4 * unit + i < length) {
                        h[i] = d.w[k * length + 4 * unit + i];
                    }
                }

                b[j] = make_uint2(h[0] | (uint32_t) h[1] << 16,
                                  h[2] | (uint32_t) h[3] << 16);
            }
        }

#pragma unroll
        for (i = 0; i < 2; i++) {
            uint32_t  rows[4] = { a[2 * i].x, a[2 * i + 1].x, a[2 * i].y,
                                  a[2 * i + 1].y };

#pragma unroll
            for (j = 0; j < 4; j++) {
                uint32_t  cols[2] = { b[j].x, b[j].y };

                sd_mma(acc[i][j], rows, cols);
            }
        }
    }

    k = k0 + q * 8;

    if (k >= d.k) {
        return;
    }

#pragma unroll
    for (j = 0; j < 8; j++) {
        w[j] = 0;
    }

    if (d.bias != NULL) {
        sd_load<8>(w, d.bias + k);
    }

#pragma unroll
    for (i = 0; i < 4; i++) {
        at = pixel + i * 8 + g;

        if (at >= pixels) {
            break;
        }

#pragma unroll
        for (j = 0; j < 8; j++) {
            v[j] = acc[i / 2][j / 2][i % 2 * 2 + j % 2] + w[j];
        }

        out = (n * pixels + at) * d.k + k;

        if (d.residual != NULL) {
            float  r[8];

            sd_load<8>(r, d.residual + out);

#pragma unroll
            for (j = 0; j < 8; j++) {
                v[j] += r[j];
            }
        }

        sd_store<8>(d.y + out, v);
    }
}


/*
 * Few channels out, 3x3, stride 1.  Every pixel is read once, and multiplied
 * with the weights of all taps and outputs, as columns of one matrix: column
 * tap * k + output.  The products go to shared memory, where an output's nine
 * meet.  A block makes tw x th pixels, of the products of (tw + 2) x (th + 2).
 * Lane 4 g + q reads channels 8 q .. 8 q + 7 of 32 of rows g and g + 8: as
 * above, an mma's columns may stand in any order.
 * BLOCKS: of eight columns
 * shared: weights [c / 32, BLOCKS, 32] of uint4, products [pixels, PITCH];
 * grid: tiles of a sample, samples
 */

template <int BLOCKS>
__global__ void
__launch_bounds__(256)
sd_conv_few_out(const sd_cuda_conv_t d, int tw, int th, int across)
{
    const int  PITCH = BLOCKS <= 5 ? 40 : 72;
    const int  BATCH = 4;

    int               i, j, s, m, g, q, y, x, y0, x0, at, lane, steps, pixels;
    int               from[2];
    float             acc[BLOCKS][4], sum, *part;
    size_t            n, out;
    uint4             a[BATCH][2], b;
    const sd_half_t  *in;

    SD_SHARED(uint4, weights);

    lane = threadIdx.x % 32;
    g = lane / 4;
    q = lane % 4;
    steps = sd_cuda_div(d.c, 32);
    part = (float *) (weights + steps * BLOCKS * 32);

    n = blockIdx.y;
    y0 = blockIdx.x / across * th;
    x0 = blockIdx.x % across * tw;
    in = d.x + n * d.h * d.wd * d.c;

    for (i = threadIdx.x; i < steps * BLOCKS * 32; i += 256) {
        j = i / 32 % BLOCKS * 8 + i % 32 / 4;
        at = i / 32 / BLOCKS * 32 + i % 4 * 8;

        if (j < 9 * d.k && at < d.c) {
            sd_copy_async(weights + i,
                          d.w + ((j % d.k) * 9 + j / d.k) * d.c + at);
        } else {
            weights[i] = make_uint4(0, 0, 0, 0);
        }
    }

    sd_copy_commit();
    sd_copy_wait<0>();
    __syncthreads();

    pixels = (tw + 2) * (th + 2);

    for (m = threadIdx.x / 32 * 16; m < pixels; m += 8 * 16) {

#pragma unroll
        for (i = 0; i < 2; i++) {
            at = m + g + 8 * i;
            y = at / (tw + 2);
            x = at - y * (tw + 2) + x0 - 1;
            y += y0 - 1;
            from[i] = at < pixels && y >= 0 && y < d.h && x >= 0 && x < d.wd
                      ? y * d.wd + x : -1;
        }

#pragma unroll
        for (j = 0; j < BLOCKS; j++) {
            acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = 0;
        }

        for (s = 0; s < steps; s += BATCH) {

#pragma unroll
            for (i = 0; i < BATCH; i++) {
                at = (s + i) * 32 + q * 8;

#pragma unroll
                for (j = 0; j < 2; j++) {
                    a[i][j] = from[j] >= 0 && at < d.c
                              ? *(const uint4 *) (in + (size_t) from[j] * d.c
                                                  + at)
                              : make_uint4(0, 0, 0, 0);
                }
            }

#pragma unroll
            for (i = 0; i < BATCH; i++) {
                if (s + i >= steps) {
                    break;
                }

                uint32_t  lo[4] = { a[i][0].x, a[i][1].x, a[i][0].y,
                                    a[i][1].y };
                uint32_t  hi[4] = { a[i][0].z, a[i][1].z, a[i][0].w,
                                    a[i][1].w };

#pragma unroll
                for (j = 0; j < BLOCKS; j++) {
                    b = weights[((s + i) * BLOCKS + j) * 32 + lane];

                    uint32_t  first[2] = { b.x, b.y }, last[2] = { b.z, b.w };

                    sd_mma(acc[j], lo, first);
                    sd_mma(acc[j], hi, last);
                }
            }
        }

#pragma unroll
        for (i = 0; i < 2; i++) {
            if (m + g + 8 * i >= pixels) {
                continue;
            }

#pragma unroll
            for (j = 0; j < BLOCKS; j++) {
                *(float2 *) (part + (m + g + 8 * i) * PITCH + j * 8 + q * 2) =
                    make_float2(acc[j][2 * i], acc[j][2 * i + 1]);
            }
        }
    }

    __syncthreads();

    for (i = threadIdx.x; i < tw * th * d.k; i += 256) {
        j = i / d.k;
        y = j / tw;
        x = j - y * tw;
        j = i - j * d.k;

        if (y0 + y >= d.h || x0 + x >= d.wd) {
            continue;
        }

        sum = d.bias == NULL ? 0 : sd_to_float(d.bias[j]);
        at = (y * (tw + 2) + x) * PITCH + j;

#pragma unroll
        for (s = 0; s < 9; s++) {
            sum += part[at + (s / 3 * (tw + 2) + s % 3) * PITCH + s * d.k];
        }

        out = ((n * d.h + y0 + y) * d.wd + x0 + x) * d.k + j;

        if (d.residual != NULL) {
            sum += sd_to_float(d.residual[out]);
        }

        d.y[out] = sd_to_half(sum);
    }
}


static size_t
sd_conv_few_out_shared(const sd_cuda_conv_t *d, int blocks, int tw, int th)
{
    return (size_t) sd_cuda_div(d->c, 32) * blocks * 32 * sizeof(uint4)
           + (size_t) (tw + 2) * (th + 2) * (blocks <= 5 ? 40 : 72)
             * sizeof(float);
}


/* by the smallest tile, so that n does not decide; 0: not that kernel */

static int
sd_conv_few_out_blocks(const sd_cuda_chip_t *chip, const sd_cuda_conv_t *d)
{
    int  blocks;

    if (d->k > 8 || d->c % 8 != 0 || d->c2 != 0 || d->r != 3 || d->stride != 1
        || d->upsample || !sd_cuda_aligned(d->x) || !sd_cuda_aligned(d->w))
    {
        return 0;
    }

    blocks = d->k <= 3 ? 4 : d->k == 4 ? 5 : 9;

    return sd_conv_few_out_shared(d, blocks, 8, 8) <= (size_t) chip->shared
           ? blocks : 0;
}


/* the biggest tile that fits and gives every SM one */

template <int BLOCKS>
static cudaError_t
sd_conv_few_out_launch(cudaStream_t s, const sd_cuda_chip_t *chip,
    const sd_cuda_conv_t *d)
{
    int          i, tw, th, across;
    dim3         grid;
    size_t       shared;
    cudaError_t  rc;

    static const int  tiles[][2] = { { 16, 16 }, { 16, 8 }, { 8, 8 } };

    for (i = 0; i < 3; i++) {
        tw = tiles[i][0];
        th = tiles[i][1];
        across = sd_cuda_div(d->wd, tw);
        grid = dim3(across * sd_cuda_div(d->h, th), d->n);
        shared = sd_conv_few_out_shared(d, BLOCKS, tw, th);

        if ((int) (grid.x * grid.y) >= chip->sms
            && shared <= (size_t) chip->shared)
        {
            break;
        }
    }

    rc = cudaFuncSetAttribute((const void *) sd_conv_few_out<BLOCKS>,
                              cudaFuncAttributeMaxDynamicSharedMemorySize,
                              (int) shared);

    if (rc != cudaSuccess) {
        return rc;
    }

    return sd_launch(sd_conv_few_out<BLOCKS>, grid, dim3(256), shared, s, *d,
                     tw, th, across);
}


/* anything: a thread an element of y; grid: pixels * k, samples */

template <int W>
__global__ void
__launch_bounds__(256)
sd_conv_any(const sd_cuda_conv_t d)
{
    int               i, j, t, k, ch, from, channels;
    float             v[W], w[W], sum;
    size_t            n, at;
    const sd_half_t  *x, *x2, *weight;

    at = (size_t) blockIdx.x * 256 + threadIdx.x;
    n = blockIdx.y;

    if (at >= (size_t) d.oh * d.ow * d.k) {
        return;
    }

    i = (int) (at / d.k);
    k = (int) (at - (size_t) i * d.k);
    channels = d.c + d.c2;

    x = d.x + n * d.h * d.wd * d.c;
    x2 = d.x2 + n * d.h * d.wd * d.c2;
    weight = d.w + (size_t) k * d.r * d.r * channels;

    sum = d.bias == NULL ? 0 : sd_to_float(d.bias[k]);

    for (t = 0; t < d.r * d.r; t++) {
        from = sd_conv_source(&d, i, t / d.r, t % d.r);

        if (from < 0) {
            continue;
        }

        for (ch = 0; ch < channels; ch += W) {
            sd_load<W>(v, ch < d.c ? x + (size_t) from * d.c + ch
                                   : x2 + (size_t) from * d.c2 + ch - d.c);
            sd_load<W>(w, weight + t * channels + ch);

#pragma unroll
            for (j = 0; j < W; j++) {
                sum += v[j] * w[j];
            }
        }
    }

    at += n * d.oh * d.ow * d.k;

    if (d.residual != NULL) {
        sum += sd_to_float(d.residual[at]);
    }

    d.y[at] = sd_to_half(sum);
}


cudaError_t
sd_cuda_conv_direct(cudaStream_t s, const sd_cuda_chip_t *chip,
    const sd_cuda_conv_t *in)
{
    int             channels;
    dim3            grid;
    size_t          count;
    sd_cuda_conv_t  d = *in;

    if (d.x2 == NULL) {
        d.c2 = 0;
    }

    channels = d.c + d.c2;
    count = (size_t) d.oh * d.ow * d.k;

    if (d.n <= 0 || count == 0) {
        return cudaSuccess;
    }

    if (channels <= SD_CONV_FEW_IN && d.k % 8 == 0 && sd_cuda_aligned(d.y)
        && sd_cuda_aligned(d.bias) && sd_cuda_aligned(d.residual)
        && sd_cuda_aligned(d.x) && sd_cuda_aligned(d.w))
    {
        grid = dim3(sd_cuda_div(d.oh * d.ow, 128), sd_cuda_div(d.k, 32), d.n);

        if (d.c == 4 && d.c2 == 0 && d.r == 3 && d.stride == 1 && !d.upsample) {
            return sd_launch((sd_conv_few_in<true, true>), grid, dim3(128), 0,
                             s, d);
        }

        if (d.c % 4 == 0 && d.c2 == 0) {
            return sd_launch((sd_conv_few_in<false, true>), grid, dim3(128), 0,
                             s, d);
        }

        return sd_launch((sd_conv_few_in<false, false>), grid, dim3(128), 0, s,
                         d);
    }

    switch (sd_conv_few_out_blocks(chip, &d)) {

    case 4:
        return sd_conv_few_out_launch<4>(s, chip, &d);

    case 5:
        return sd_conv_few_out_launch<5>(s, chip, &d);

    case 9:
        return sd_conv_few_out_launch<9>(s, chip, &d);
    }

    grid = dim3((unsigned) sd_cuda_div(count, 256), d.n);

    if (d.c % 8 == 0 && d.c2 % 8 == 0 && sd_cuda_aligned(d.x)
        && sd_cuda_aligned(d.x2) && sd_cuda_aligned(d.w))
    {
        return sd_launch(sd_conv_any<8>, grid, dim3(256), 0, s, d);
    }

    return sd_launch(sd_conv_any<1>, grid, dim3(256), 0, s, d);
}
