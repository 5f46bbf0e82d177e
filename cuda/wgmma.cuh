/*
 * Hopper's products: wgmma, of matrices in shared memory to sums in registers.
 * For sm_90a alone, see HOPPER in sm90.cuh.
 */

#ifndef SD_CUDA_WGMMA_CUH
#define SD_CUDA_WGMMA_CUH

#include "sm90.cuh"


#ifdef HOPPER


static __device__ __forceinline__ void
wgmma_fence(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}


static __device__ __forceinline__ void
wgmma_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}


template <int n>
static __device__ __forceinline__ void
wgmma_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(n) : "memory");
}


#define R4(d, i)   "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define R16(d, i)  R4(d, i), R4(d, i + 4), R4(d, i + 8), R4(d, i + 12)

#define N8(a, b, c, d, e, f, g, h)                                            \
    "%" #a ", %" #b ", %" #c ", %" #d ", %" #e ", %" #f ", %" #g ", %" #h

#define N16_0   N8(0, 1, 2, 3, 4, 5, 6, 7) ", "                               \
                N8(8, 9, 10, 11, 12, 13, 14, 15)
#define N16_16  N8(16, 17, 18, 19, 20, 21, 22, 23) ", "                       \
                N8(24, 25, 26, 27, 28, 29, 30, 31)
#define N16_32  N8(32, 33, 34, 35, 36, 37, 38, 39) ", "                       \
                N8(40, 41, 42, 43, 44, 45, 46, 47)
#define N16_48  N8(48, 49, 50, 51, 52, 53, 54, 55) ", "                       \
                N8(56, 57, 58, 59, 60, 61, 62, 63)
#define N16_64  N8(64, 65, 66, 67, 68, 69, 70, 71) ", "                       \
                N8(72, 73, 74, 75, 76, 77, 78, 79)
#define N16_80  N8(80, 81, 82, 83, 84, 85, 86, 87) ", "                       \
                N8(88, 89, 90, 91, 92, 93, 94, 95)
#define N16_96  N8(96, 97, 98, 99, 100, 101, 102, 103) ", "                   \
                N8(104, 105, 106, 107, 108, 109, 110, 111)
#define N16_112  N8(112, 113, 114, 115, 116, 117, 118, 119) ", "              \
                N8(120, 121, 122, 123, 124, 125, 126, 127)

#define WGMMA(n, list, x, y, p, ...)                                          \
    asm volatile("{\n"                                                        \
                 ".reg .pred  add;\n"                                         \
                 "setp.ne.b32 add, %" #p ", 0;\n"                             \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.f16.f16 "    \
                 "{" list "}, %" #x ", %" #y ", add, 1, 1, 0, 0;\n"           \
                 "}"                                                          \
                 : __VA_ARGS__                                                \
                 : "l"(a), "l"(b), "r"(add))

#define WGMMA_ADD(n, list, w, x, y, z, m, ...)                                \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.f16.f16 "    \
                 "{" list "}, {%" #w ", %" #x ", %" #y ", %" #z "}, %" #m ", "\
                 "1, 1, 1, 1;"                                                \
                 : __VA_ARGS__                                                \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))


/* d: [64, N] = or += a: [64, 16], b: [N, 16], rows of 16 both */

template <int N>
static __device__ __forceinline__ void
wgmma(float *d, uint64_t a, uint64_t b, int add)
{
    if constexpr (N == 64) {
        WGMMA(64, N16_0 ", " N16_16, 32, 33, 34, R16(d, 0), R16(d, 16));

    } else if constexpr (N == 80) {
        WGMMA(80, N16_0 ", " N16_16 ", " N8(32, 33, 34, 35, 36, 37, 38, 39),
              40, 41, 42, R16(d, 0), R16(d, 16), R4(d, 32), R4(d, 36));

    } else if constexpr (N == 96) {
        WGMMA(96, N16_0 ", " N16_16 ", " N16_32,
              48, 49, 50, R16(d, 0), R16(d, 16), R16(d, 32));

    } else if constexpr (N == 128) {
        WGMMA(128, N16_0 ", " N16_16 ", " N16_32 ", " N16_48,
              64, 65, 66, R16(d, 0), R16(d, 16), R16(d, 32), R16(d, 48));

    } else if constexpr (N == 160) {
        WGMMA(160, N16_0 ", " N16_16 ", " N16_32 ", " N16_48 ", " N16_64,
              80, 81, 82, R16(d, 0), R16(d, 16), R16(d, 32), R16(d, 48),
              R16(d, 64));

    } else if constexpr (N == 192) {
        WGMMA(192, N16_0 ", " N16_16 ", " N16_32 ", " N16_48 ", " N16_64 ", "
                   N16_80,
              96, 97, 98, R16(d, 0), R16(d, 16), R16(d, 32), R16(d, 48),
              R16(d, 64), R16(d, 80));

    } else {
        static_assert(N == 256, "no such wgmma");

        WGMMA(256, N16_0 ", " N16_16 ", " N16_32 ", " N16_48 ", " N16_64 ", "
                   N16_80 ", " N16_96 ", " N16_112,
              128, 129, 130, R16(d, 0), R16(d, 16), R16(d, 32), R16(d, 48),
              R16(d, 64), R16(d, 80), R16(d, 96), R16(d, 112));
    }
}


/* d: [64, N] += a: [64, 16], in registers, b: [16, N], rows of N */

template <int N>
static __device__ __forceinline__ void
wgmma_add(float *d, const uint32_t *a, uint64_t b)
{
    if constexpr (N == 40) {
        WGMMA_ADD(40, N16_0 ", %16, %17, %18, %19",
                  20, 21, 22, 23, 24, R16(d, 0), R4(d, 16));

    } else if constexpr (N == 64) {
        WGMMA_ADD(64, N16_0 ", " N16_16,
                  32, 33, 34, 35, 36, R16(d, 0), R16(d, 16));

    } else if constexpr (N == 80) {
        WGMMA_ADD(80, N16_0 ", " N16_16 ", " N8(32, 33, 34, 35, 36, 37, 38, 39),
                  40, 41, 42, 43, 44, R16(d, 0), R16(d, 16), R4(d, 32),
                  R4(d, 36));

    } else {
        static_assert(N == 160, "no such wgmma");

        WGMMA_ADD(160, N16_0 ", " N16_16 ", " N16_32 ", " N16_48 ", " N16_64,
                  80, 81, 82, 83, 84, R16(d, 0), R16(d, 16), R16(d, 32),
                  R16(d, 48), R16(d, 64));
    }
}


/*
 * x is what an asynchronous instruction, over by now, has read or written: no
 * use of it moves from here to before
 */

static __device__ __forceinline__ void
settled(float *x, int n)
{
    int  i;

    #pragma unroll
    for (i = 0; i < n; i++) {
        asm volatile("" : "+f"(x[i]) :: "memory");
    }
}


static __device__ __forceinline__ void
settled(uint32_t *x, int n)
{
    int  i;

    #pragma unroll
    for (i = 0; i < n; i++) {
        asm volatile("" : "+r"(x[i]) :: "memory");
    }
}


/*
 * A matrix in shared memory, swizzled by 128 bytes, as wgmma wants it said:
 * rows of 128 bytes, eight of them 1024 bytes before the next eight; next: how
 * many bytes after the first 64 columns the next 64 are, where columns are not
 * what is summed over.  The low half of it, and what is so many bytes after it
 */

static __device__ __forceinline__ uint32_t
matrix_low(uint32_t at, int next)
{
    return at >> 4 | (uint32_t) (next >> 4) << 16;
}


static __device__ __forceinline__ uint64_t
matrix_at(uint32_t m, int bytes)
{
    return (uint64_t) (1 << 30 | 1024 >> 4) << 32 | (m + bytes / 16);
}


static __device__ __forceinline__ uint64_t
matrix(uint32_t at, int next)
{
    return matrix_at(matrix_low(at, next), 0);
}

#endif

#endif
