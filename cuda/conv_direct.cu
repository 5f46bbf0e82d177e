/*
 * Convolutions that libraries are slow at, or cannot do: few channels in
 * (conv_in, 4 to 320), few out (conv_out, 320 to 4, 128 to 3), or a number of
 * them that is no multiple of 8.
 *
 * Floors: 4 to 320 of two samples of 64x64: 5.2 MB written, 1.8 us at 3.0 TB/s
 * (94 million FMAs, 3 us); 128 to 3 at 512x512: 67 MB read, 22 us.
 * Measured: see the end of bench/RESULTS.md
 *
 * Sums are fp32 and run over taps, then channels.
 */

#include "common.cuh"


#define SD_CONV_IN      16          /* channels that are few */
#define SD_CONV_PIXELS  8           /* of a thread */


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
 * Few channels in.  A block makes 64 channels of 128 pixels; a thread 8 of 8
 * pixels that follow each other, so that a weight that it reads is of use eight
 * times.  FOUR: there are 4 channels, of one input.
 * shared: [r * r, c + c2, 64]; grid: pixels, channels, samples
 */

template <bool FOUR>
__global__ void
__launch_bounds__(128)
sd_conv_few_in(const sd_cuda_conv_t d)
{
    int               i, j, t, ch, at, col, pixel, channels, k0, pixels;
    int               from[SD_CONV_PIXELS];
    float             acc[SD_CONV_PIXELS][8], w[8], v;
    size_t            n, out;
    const sd_half_t  *x, *x2;

    SD_SHARED(float, weights);

    channels = d.c + d.c2;
    pixels = d.oh * d.ow;
    k0 = blockIdx.y * 64;
    n = blockIdx.z;

    for (i = threadIdx.x; i < d.r * d.r * channels * 64; i += 128) {
        j = k0 + (i & 63);
        weights[i] = j < d.k
                     ? sd_to_float(d.w[j * d.r * d.r * channels + i / 64]) : 0;
    }

    __syncthreads();

    col = threadIdx.x % 8 * 8;
    pixel = (blockIdx.x * 16 + threadIdx.x / 8) * SD_CONV_PIXELS;

    if (k0 + col >= d.k || pixel >= pixels) {
        return;
    }

    x = d.x + n * d.h * d.wd * d.c;
    x2 = d.x2 + n * d.h * d.wd * d.c2;

    sd_load<8>(w, d.bias == NULL ? d.w : d.bias + k0 + col);

#pragma unroll
    for (i = 0; i < SD_CONV_PIXELS; i++) {

#pragma unroll
        for (j = 0; j < 8; j++) {
            acc[i][j] = d.bias == NULL ? 0 : w[j];
        }
    }

    for (t = 0; t < d.r * d.r; t++) {

#pragma unroll
        for (i = 0; i < SD_CONV_PIXELS; i++) {
            from[i] = pixel + i < pixels
                      ? sd_conv_source(&d, pixel + i, t / d.r, t % d.r) : -1;
        }

        if constexpr (FOUR) {
            float2  a[SD_CONV_PIXELS][2];

#pragma unroll
            for (i = 0; i < SD_CONV_PIXELS; i++) {
                uint2  u = from[i] < 0 ? make_uint2(0, 0)
                                       : ((const uint2 *) x)[from[i]];

                a[i][0] = __half22float2(*(__half2 *) &u.x);
                a[i][1] = __half22float2(*(__half2 *) &u.y);
            }

#pragma unroll
            for (ch = 0; ch < 4; ch++) {
                sd_load_f32<8>(w, weights + (t * 4 + ch) * 64 + col);

#pragma unroll
                for (i = 0; i < SD_CONV_PIXELS; i++) {
                    v = ch % 2 == 0 ? a[i][ch / 2].x : a[i][ch / 2].y;

#pragma unroll
                    for (j = 0; j < 8; j++) {
                        acc[i][j] += v * w[j];
                    }
                }
            }

        } else {

            for (ch = 0; ch < channels; ch++) {
                sd_load_f32<8>(w, weights + (t * channels + ch) * 64 + col);

#pragma unroll
                for (i = 0; i < SD_CONV_PIXELS; i++) {
                    if (from[i] < 0) {
                        continue;
                    }

                    v = sd_to_float(ch < d.c ? x[from[i] * d.c + ch]
                                             : x2[from[i] * d.c2 + ch - d.c]);

#pragma unroll
                    for (j = 0; j < 8; j++) {
                        acc[i][j] += v * w[j];
                    }
                }
            }
        }
    }

#pragma unroll
    for (i = 0; i < SD_CONV_PIXELS; i++) {
        at = pixel + i;

        if (at >= pixels) {
            return;
        }

        out = (n * pixels + at) * d.k + k0 + col;

        if (d.residual != NULL) {
            sd_load<8>(w, d.residual + out);

#pragma unroll
            for (j = 0; j < 8; j++) {
                acc[i][j] += w[j];
            }
        }

        sd_store<8>(d.y + out, acc[i]);
    }
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
sd_cuda_conv_direct(cudaStream_t s, const sd_cuda_conv_t *in)
{
    int             channels;
    dim3            grid;
    size_t          shared, count;
    sd_cuda_conv_t  d = *in;

    if (d.x2 == NULL) {
        d.c2 = 0;
    }

    channels = d.c + d.c2;
    count = (size_t) d.oh * d.ow * d.k;

    if (d.n <= 0 || count == 0) {
        return cudaSuccess;
    }

    if (channels <= SD_CONV_IN && d.k % 8 == 0 && sd_cuda_aligned(d.y)
        && sd_cuda_aligned(d.bias) && sd_cuda_aligned(d.residual)
        && sd_cuda_aligned(d.x) && sd_cuda_aligned(d.w))
    {
        grid = dim3(sd_cuda_div(d.oh * d.ow, 16 * SD_CONV_PIXELS),
                    sd_cuda_div(d.k, 64), d.n);
        shared = (size_t) d.r * d.r * channels * 64 * sizeof(float);

        if (d.c == 4 && d.c2 == 0) {
            return sd_launch(sd_conv_few_in<true>, grid, dim3(128), shared, s,
                             d);
        }

        return sd_launch(sd_conv_few_in<false>, grid, dim3(128), shared, s, d);
    }

    grid = dim3((unsigned) sd_cuda_div(count, 256), d.n);

    if (d.c % 8 == 0 && d.c2 % 8 == 0 && sd_cuda_aligned(d.x)
        && sd_cuda_aligned(d.x2) && sd_cuda_aligned(d.w))
    {
        return sd_launch(sd_conv_any<8>, grid, dim3(256), 0, s, d);
    }

    return sd_launch(sd_conv_any<1>, grid, dim3(256), 0, s, d);
}
