/*
 * Which of conv_sm90.cu's kernels, by the shape of a sample and what runs at
 * once; and its launch.
 */

#include "conv_sm90.cuh"


/*
 * The depth's parts, by the shape of a sample: such that two samples, a guided
 * picture, are most of the card's work.  It decides the bits
 */

static int
parts_of(const sd_cuda_conv_t *d)
{
    int  blocks;

    blocks = 2 * d->h * d->wd / PIXELS * (d->k / 160);

    return blocks > 66 ? 1 : blocks > 32 ? 2 : blocks > 15 ? 4 : 8;
}


int
sd_cuda_conv_sm90_takes(const sd_cuda_chip_t *chip, const sd_cuda_conv_t *d)
{
    return chip->arch == 90 && !d->upsample && d->r == 3 && d->stride == 1
           && d->oh == d->h && d->ow == d->wd && d->c2 == 0 && d->bias != NULL
           && d->c % SLICE == 0 && d->k % 160 == 0
           && d->h % 8 == 0 && d->wd % 8 == 0
           && (((uintptr_t) d->x | (uintptr_t) d->y | (uintptr_t) d->w
                | (uintptr_t) d->bias | (uintptr_t) d->residual) & 15) == 0;
}


/*
 * The fastest, by waves of clusters, each of so many steps' columns and what
 * comes after; who reads all of the weights alone waits for them, too.  *most:
 * how many clusters run at once; NULL: there is none
 */

static const conv_kind_t *
choose(const sd_cuda_conv_t *d, int tiles, int *pair, int *most)
{
    int                 i, j, parts, room, sets;
    double              cost, least;
    const conv_kind_t  *kind, *best;

    parts = parts_of(d);
    best = NULL;
    least = 0;

    for (i = 0; i < CONV_KINDS; i++) {
        kind = &conv_sm90_kinds[i];

        /* eight parts one after the other would be two sums, and a third */

        if (kind->many ? parts == 1 || (parts == 8) != (kind->split == 2)
                       : kind->split != parts)
        {
            continue;
        }

        for (j = 1; j <= 2; j++) {

            if (kind->split * j > 8 || j > tiles
                || (d->way > 0 && d->way != 2 * i + j))
            {
                continue;
            }

            room = kind->room(j);
            sets = (tiles + j - 1) / j
                   * ((d->k + kind->cols - 1) / kind->cols);

            cost = 9. * d->c / SLICE / kind->split
                   * (kind->cols + (j == 1 ? 60 : 24))
                   + (kind->split > 1 ? 2000 : 1200);
            cost *= (sets + room - 1) / room;

            if (best == NULL || cost < least) {
                best = kind;
                least = cost;
                *pair = j;
                *most = room;
            }
        }
    }

    return best;
}


cudaError_t
sd_cuda_conv_sm90(cudaStream_t s, const sd_cuda_chip_t *chip,
    const sd_cuda_conv_t *d)
{
    int                  ok, tiles, most;
    void                *args[1];
    conv_t               u;
    size_t               row, image;
    encode_pt            encode;
    cudaError_t          rc;
    const conv_kind_t   *kind;
    cudaLaunchConfig_t   config = { };
    cudaLaunchAttribute  attrs[2];

    rc = tensor_map_encoder(&encode);

    if (rc != cudaSuccess) {
        return rc;
    }

    u.bias = (const __half *) d->bias;
    u.add = (const __half *) d->residual;
    u.out = (__half *) d->y;
    u.n = d->n;
    u.h = d->h;
    u.wd = d->wd;
    u.k = d->k;
    u.shift = d->wd % 16 == 0 ? 4 : 3;
    u.width = 1 << u.shift;
    u.deep = 16 / u.width;
    u.across = d->wd / u.width;
    u.down = d->h / 8;
    u.row = u.width * ROW;
    u.group = u.deep > 1 ? 10 * u.row : 64 * ROW;
    u.slices = d->c / SLICE;
    u.parts = parts_of(d);

    tiles = u.across * u.down * ((d->n + u.deep - 1) / u.deep);

    kind = choose(d, tiles, &u.pair, &most);

    if (kind == NULL) {
        return cudaErrorInvalidValue;
    }

    u.sets = (tiles + u.pair - 1) / u.pair;
    u.blocks = (d->k + kind->cols - 1) / kind->cols;

    row = (size_t) d->wd * d->c;
    image = row * d->h;

    const int     xdims[4] = { d->c, d->wd, d->h, d->n };
    const size_t  xsteps[3] = { (size_t) d->c, row, image };
    const int     xbox[4] = { SLICE, u.width, 10, u.deep };

    const int     wdims[4] = { d->c, 9, d->k, 1 };
    const size_t  wsteps[3] = { (size_t) d->c, (size_t) 9 * d->c,
                                (size_t) 9 * d->c * d->k };
    const int     wbox[4] = { SLICE, 1, kind->cols / u.pair, 1 };

    row = (size_t) d->wd * d->k;
    image = row * d->h;

    const int     ydims[4] = { d->k, d->wd, d->h, d->n };
    const size_t  ysteps[3] = { (size_t) d->k, row, image };
    const int     ybox[4] = { CHUNK, u.width, 64 / u.width, 1 };

    ok = map_boxes(&u.x, encode, d->x, xdims, xsteps, xbox, 1)
         && map_boxes(&u.w, encode, d->w, wdims, wsteps, wbox, 1)
         && map_boxes(&u.y, encode, d->y, ydims, ysteps, ybox, 0)
         && map_boxes(&u.residual, encode, d->residual ? d->residual : d->y,
                      ydims, ysteps, ybox, 0);

    if (!ok) {
        return cudaErrorInvalidValue;
    }

    rc = cudaFuncSetAttribute(kind->kernel,
                              cudaFuncAttributeMaxDynamicSharedMemorySize,
                              kind->size);

    if (rc != cudaSuccess) {
        return rc;
    }

    attrs[0].id = cudaLaunchAttributeClusterDimension;
    attrs[0].val.clusterDim.x = kind->split * u.pair;
    attrs[0].val.clusterDim.y = 1;
    attrs[0].val.clusterDim.z = 1;
    attrs[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attrs[1].val.programmaticStreamSerializationAllowed = 1;

    /* clusters that divide the depth have one tile, others go on to more */

    tiles = u.sets * u.blocks;

    if (kind->split == 1 && tiles > most) {
        tiles = most;
    }

    config.gridDim = dim3(tiles * kind->split * u.pair);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = kind->size;
    config.stream = s;
    config.attrs = attrs;
    config.numAttrs = 2;

    args[0] = &u;

    return cudaLaunchKernelExC(&config, kind->kernel, args);
}
