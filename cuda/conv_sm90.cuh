/*
 * The kernels that conv_sm90.cu has and conv_sm90_choose.cu chooses from, and
 * what they are told.
 */

#ifndef SD_CUDA_CONV_SM90_CUH
#define SD_CUDA_CONV_SM90_CUH

#include "sm90.cuh"


#define SLICE    64             /* channels */
#define ROW      128            /* bytes of a slice's pixel */
#define PIXELS   128
#define WARPS    8              /* that compute */
#define THREADS  384            /* and a group of which one thread asks */

/* a tile's box: 16 x 8 pixels, or 8 x 8 of two samples; both are read with two
 * rows more a sample */
#define BOX      (PIXELS / 4 * 5 * ROW)

#define CHUNK    80             /* columns that are stored at a time */
#define OUT      (64 * CHUNK * 2)


typedef struct {
    CUtensorMap    x, w, y, residual;
    const __half  *bias, *add;
    __half        *out;
    int            n, h, wd, k;
    int            shift, width, deep;  /* of a box: log2, pixels, samples */
    int            across, down;        /* boxes */
    int            row, group;          /* bytes between rows, and groups */
    int            slices, parts;
    int            pair;                /* blocks that share weights */
    int            sets, blocks;        /* of a pair's tiles, of channels */
} conv_t;


#define CONV_KINDS  (SD_CUDA_CONV_WAYS / 2)

/* of those for a number of parts the bits are the same */

typedef struct {
    int           cols, split, many;
    int         (*room)(int pair);
    const void   *kernel;
    int           size;
} conv_kind_t;

extern const conv_kind_t  conv_sm90_kinds[CONV_KINDS];


#endif
