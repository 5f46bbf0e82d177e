/*
 * What the kernels' files share.  Each is compiled once an instruction set;
 * sd_isa(name) gives a function the name that it has in this one.
 */

#ifndef SD_CPU_ISA_H
#define SD_CPU_ISA_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../cpu.h"
#include "../simd.h"


#define sd_isa_(name, isa)   name ## _ ## isa
#define sd_isa__(name, isa)  sd_isa_(name, isa)

#if defined(SD_AVX512)

#define sd_isa(name)  sd_isa__(name, avx512)
#define SD_MR         12        /* rows of a tile, by vectors of columns: */
#define SD_NV         2         /* 24 of 32 registers are sums */
#define SD_NARROW_PIXELS  4     /* by 4 outputs are 16 sums */

#elif defined(SD_AVX2)

#define sd_isa(name)  sd_isa__(name, avx2)
#define SD_MR         6         /* 12 of 16 registers */
#define SD_NV         1
#define SD_NARROW_PIXELS  1

#else

#define sd_isa(name)  sd_isa__(name, baseline)
#define SD_MR         2
#define SD_NV         1
#define SD_NARROW_PIXELS  1

#endif


/*
 * c += a b, or c = a b where add is zero
 * a: [m, k], lda; b: [k, columns] packed, columns 16 or 32;
 * c: [m, columns], ldc.  Sums over k in order, for any m.  ahead: bytes that
 * will be wanted next, fetched into the cache meanwhile, or NULL
 */
void sd_isa(sd_gemm)(float *c, size_t ldc, const float *a, size_t lda,
    const float *b, int columns, int m, int k, int add, const void *ahead,
    size_t size);

#define sd_fetch(p)  __builtin_prefetch(p, 0, 2)

/* conv2d with weights that are packed for it */
int sd_isa(sd_winograd)(sd_context_t *cx, sd_tensor_t y, const sd_conv2d_t *d);
int sd_isa(sd_narrow)(sd_context_t *cx, sd_tensor_t y, const sd_conv2d_t *d);

int sd_isa(sd_conv2d)(sd_context_t *cx, sd_tensor_t y, const sd_conv2d_t *d);
int sd_isa(sd_linear)(sd_context_t *cx, sd_tensor_t y, const sd_linear_t *d);
int sd_isa(sd_group_norm)(sd_context_t *cx, sd_tensor_t y,
    const sd_group_norm_t *d);
int sd_isa(sd_layer_norm)(sd_context_t *cx, sd_tensor_t y,
    const sd_layer_norm_t *d);
int sd_isa(sd_attention)(sd_context_t *cx, sd_tensor_t o,
    const sd_attention_t *d);


#endif
