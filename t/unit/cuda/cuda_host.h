/*
 * Plays the CUDA device for plain kernels compiled as C++ for the host, so that
 * their tests need neither GPU nor nvcc.
 *
 * Every thread of a grid is a fiber, all on one thread of the host; blocks run
 * one after the other, the blocks of a cluster together.  A fiber runs until
 * it reaches a barrier, a warp's exchange or its end.  cuda_host_order says in
 * which order the fibers go (0: first to last, 1: last to first, 2: any), so
 * that a missing barrier changes results.  Shared memory is poisoned before
 * each block, and has its exact size, for AddressSanitizer to see who leaves
 * it.  A barrier that some threads do not reach aborts.
 *
 * Not covered: wgmma, textures, TMA, streams.
 */

#ifndef CUDA_HOST_H
#define CUDA_HOST_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif


#define __global__          static
#define __device__
#define __host__
#define __forceinline__     inline
#define __launch_bounds__(...)
#define __shared__          static


/* types */

typedef struct { unsigned x, y, z; } uint3;
typedef struct { float x, y; } float2;
typedef struct alignas(8) { unsigned x, y; } uint2;
typedef struct alignas(16) { unsigned x, y, z, w; } uint4;
typedef struct alignas(16) { float x, y, z, w; } float4;

struct dim3 {
    unsigned  x, y, z;

    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1)
        : x(a), y(b), z(c) { }
};

typedef struct { uint16_t bits; } __half;
typedef struct alignas(4) { __half x, y; } __half2;


static inline float2
make_float2(float x, float y)
{
    return float2{x, y};
}


static inline float4
make_float4(float x, float y, float z, float w)
{
    return float4{x, y, z, w};
}


static inline uint2
make_uint2(unsigned x, unsigned y)
{
    return uint2{x, y};
}


static inline uint4
make_uint4(unsigned x, unsigned y, unsigned z, unsigned w)
{
    return uint4{x, y, z, w};
}


/* halves, rounded to nearest even */

static inline float
__half2float(__half h)
{
    float     f;
    uint32_t  bits, e;

    e = h.bits >> 10 & 31;

    if (e == 0) {
        f = (float) (h.bits & 1023) * 0x1p-24f;
        return h.bits & 0x8000 ? -f : f;
    }

    bits = (uint32_t) (h.bits & 0x8000) << 16 | (uint32_t) (h.bits & 1023) << 13
           | (e == 31 ? 255 : e + 112) << 23;
    memcpy(&f, &bits, 4);

    return f;
}


static inline __half
__float2half_rn(float f)
{
    float     g;
    uint32_t  bits, a, sign;

    memcpy(&bits, &f, 4);
    sign = bits >> 16 & 0x8000;
    a = bits & 0x7fffffff;

    if (a > 0x7f800000) {
        return __half{0x7fff};
    }

    if (a >= 0x477ff000) {
        return __half{(uint16_t) (sign | 0x7c00)};
    }

    if (a < 0x38800000) {
        /* the sum's last place is the smallest half */
        memcpy(&g, &a, 4);
        g += 0.5f;
        memcpy(&a, &g, 4);
        return __half{(uint16_t) (sign | (a - 0x3f000000))};
    }

    a += 0xfff + (a >> 13 & 1);

    return __half{(uint16_t) (sign | (a - 0x38000000) >> 13)};
}


static inline __half
__ushort_as_half(uint16_t bits)
{
    return __half{bits};
}


static inline uint16_t
__half_as_ushort(__half h)
{
    return h.bits;
}


static inline float2
__half22float2(__half2 h)
{
    return float2{__half2float(h.x), __half2float(h.y)};
}


static inline __half2
__floats2half2_rn(float x, float y)
{
    return __half2{__float2half_rn(x), __float2half_rn(y)};
}


/* fibers */

#define CUDA_HOST_STACK  (32 * 1024)

typedef enum {
    CUDA_HOST_RUN, CUDA_HOST_WARP, CUDA_HOST_BLOCK, CUDA_HOST_CLUSTER,
    CUDA_HOST_DONE
} cuda_host_state_t;

typedef struct {
    cuda_host_state_t   state;
    int                 block;          /* of the cluster */
    int                 warp;           /* first fiber of it */
    int                 turn;           /* of the exchange's two slots */
    int                 arrived;        /* at cluster barriers */
    uint3               thread;
    uint64_t            slot[2];
    uint32_t            mma[2][6];
    char               *stack;
#if defined(__x86_64__)
    void               *sp;
#else
    ucontext_t          context;
#endif
} cuda_host_fiber_t;

static struct {
    cuda_host_fiber_t  *fibers;
    int                 n, a, current;
    uint3               first;          /* block of the cluster */
    char               *shared[16];     /* of a cluster's blocks */
    void              (*fn)(void *);
    void               *arg;
#if defined(__x86_64__)
    void               *sp;
#else
    ucontext_t          context;
#endif
} cuda_host;

static int    cuda_host_order;
static uint3  threadIdx, blockIdx;
static dim3   blockDim, gridDim;


static inline void
cuda_host_die(const char *message)
{
    fprintf(stderr, "cuda_host: block (%u, %u, %u) thread (%u, %u, %u): %s\n",
            blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y,
            threadIdx.z, message);
    abort();
}


#if defined(__x86_64__)

/* saves what a callee must, and changes the stack */

extern "C" void cuda_host_switch(void **from, void *to);

__asm__(".text\n"
        ".weak cuda_host_switch\n"
        "cuda_host_switch:\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp,(%rdi)\n"
        "mov %rsi,%rsp\n"
        "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\n"
        "ret\n");

#endif


static inline void
cuda_host_yield(cuda_host_state_t state)
{
    cuda_host_fiber_t  *f = &cuda_host.fibers[cuda_host.current];

    f->state = state;

#if defined(__x86_64__)
    cuda_host_switch(&f->sp, cuda_host.sp);
#else
    swapcontext(&f->context, &cuda_host.context);
#endif
}


static inline void
cuda_host_entry(void)
{
    cuda_host.fn(cuda_host.arg);
    cuda_host_yield(CUDA_HOST_DONE);
    abort();
}


static inline void
cuda_host_resume(int i)
{
    cuda_host_fiber_t  *f = &cuda_host.fibers[i];

    cuda_host.current = i;
    threadIdx = f->thread;
    blockIdx = cuda_host.first;
    blockIdx.x += f->block;

#if defined(__x86_64__)
    cuda_host_switch(&cuda_host.sp, f->sp);
#else
    swapcontext(&cuda_host.context, &f->context);
#endif
}


static inline void
cuda_host_start(int i, int threads)
{
    int                 t;
    cuda_host_fiber_t  *f = &cuda_host.fibers[i];

    t = i % threads;

    f->state = CUDA_HOST_RUN;
    f->block = i / threads;
    f->warp = i - t % 32;
    f->turn = 0;
    f->arrived = 0;
    f->thread.x = t % blockDim.x;
    f->thread.y = t / blockDim.x % blockDim.y;
    f->thread.z = t / (blockDim.x * blockDim.y);

#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(f->stack, CUDA_HOST_STACK);
#endif

#if defined(__x86_64__)
    void  **s = (void **) ((uintptr_t) (f->stack + CUDA_HOST_STACK) & ~15ul);

    *--s = NULL;
    *--s = (void *) cuda_host_entry;
    s -= 6;
    memset(s, 0, 6 * sizeof(void *));
    f->sp = s;
#else
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = CUDA_HOST_STACK;
    f->context.uc_link = NULL;
    makecontext(&f->context, cuda_host_entry, 0);
#endif
}


/* runs fibers [lo, hi), a warp, until none of them is able to; 1: some ran */

static inline int
cuda_host_warp(int lo, int hi)
{
    int              i, k, n, at, waiting, ran;
    static uint32_t  random = 12345;

    n = hi - lo;
    ran = 0;

    for ( ;; ) {
        at = 0;

        if (cuda_host_order == 2) {
            random = random * 1664525u + 1013904223u;
            at = random >> 16;
        }

        for (k = 0; k < n; k++) {
            i = cuda_host_order == 1 ? hi - 1 - k : lo + (k + at) % n;

            if (cuda_host.fibers[i].state == CUDA_HOST_RUN) {
                cuda_host_resume(i);
                ran = 1;
            }
        }

        waiting = 0;

        for (i = lo; i < hi; i++) {
            waiting += cuda_host.fibers[i].state == CUDA_HOST_WARP;
        }

        if (waiting == 0) {
            return ran;
        }

        if (waiting != n) {
            cuda_host_die("an exchange that some lanes of a warp do not reach");
        }

        for (i = lo; i < hi; i++) {
            cuda_host.fibers[i].state = CUDA_HOST_RUN;
        }
    }
}


static inline void
cuda_host_cluster(int blocks, int threads)
{
    int                 i, b, w, warps, live, at, least, moved;
    cuda_host_fiber_t  *f;

    for (i = 0; i < blocks * threads; i++) {
        cuda_host_start(i, threads);
    }

    warps = (threads + 31) / 32;

    do {
        moved = 0;
        live = 0;
        least = INT32_MAX;

        for (b = 0; b < blocks; b++) {
            for (i = 0; i < warps; i++) {
                w = (cuda_host_order == 1 ? warps - 1 - i : i) * 32;
                moved |= cuda_host_warp(b * threads + w, b * threads
                                        + (w + 32 < threads ? w + 32
                                                            : threads));
            }

            at = 0;

            for (i = b * threads; i < (b + 1) * threads; i++) {
                f = &cuda_host.fibers[i];
                at += f->state == CUDA_HOST_BLOCK;

                if (f->state != CUDA_HOST_DONE) {
                    live++;
                    least = f->arrived < least ? f->arrived : least;
                }
            }

            for (i = b * threads; at == threads && i < (b + 1) * threads; i++) {
                cuda_host.fibers[i].state = CUDA_HOST_RUN;
                moved = 1;
            }
        }

        for (i = 0; i < blocks * threads; i++) {
            f = &cuda_host.fibers[i];

            if (f->state == CUDA_HOST_CLUSTER && f->arrived <= least) {
                f->state = CUDA_HOST_RUN;
                moved = 1;
            }
        }

        if (live && !moved) {
            cuda_host_die("a barrier that some threads do not reach");
        }

    } while (live);
}


template <class L>
static inline void
cuda_host_launch(dim3 grid, dim3 block, int cluster, size_t shared, L body)
{
    int     i, threads;
    size_t  b, n;

    threads = block.x * block.y * block.z;
    n = (size_t) grid.x * grid.y * grid.z;

    if (threads < 1 || threads > 1024 || n == 0 || grid.x % cluster != 0
        || grid.y > 65535 || grid.z > 65535 || shared > 232448)
    {
        cuda_host_die("no such launch");
    }

    if (cuda_host.a < threads * cluster) {
        cuda_host.fibers = (cuda_host_fiber_t *)
            realloc(cuda_host.fibers,
                    threads * cluster * sizeof(cuda_host_fiber_t));

        for (i = cuda_host.a; i < threads * cluster; i++) {
            cuda_host.fibers[i].stack = (char *) malloc(CUDA_HOST_STACK);
        }

        cuda_host.a = threads * cluster;
    }

    for (i = 0; i < cluster; i++) {
        cuda_host.shared[i] = (char *) malloc(shared + 1);
    }

    cuda_host.fn = [](void *p) { (*(L *) p)(); };
    cuda_host.arg = &body;

    gridDim = grid;
    blockDim = block;

    for (b = 0; b < n; b += cluster) {
        cuda_host.first.x = b % grid.x;
        cuda_host.first.y = b / grid.x % grid.y;
        cuda_host.first.z = b / ((size_t) grid.x * grid.y);

        for (i = 0; i < cluster; i++) {
            memset(cuda_host.shared[i], 0xff, shared);
        }

        cuda_host_cluster(cluster, threads);
    }

    for (i = 0; i < cluster; i++) {
        free(cuda_host.shared[i]);
    }
}


/* what kernels call */

static inline void
__syncthreads(void)
{
    cuda_host_yield(CUDA_HOST_BLOCK);
}


static inline void
__syncwarp(unsigned mask = 0xffffffff)
{
    cuda_host_yield(CUDA_HOST_WARP);
}


/* two slots that take turns, so one yield is enough */

static inline float
__shfl_xor_sync(unsigned mask, float v, int x)
{
    int                 turn;
    cuda_host_fiber_t  *f = &cuda_host.fibers[cuda_host.current];

    turn = f->turn ^= 1;
    memcpy(&f->slot[turn], &v, sizeof(float));

    cuda_host_yield(CUDA_HOST_WARP);

    f = &cuda_host.fibers[cuda_host.current];
    f = &cuda_host.fibers[f->warp + ((cuda_host.current - f->warp) ^ x)];
    memcpy(&v, &f->slot[turn], sizeof(float));

    return v;
}


/* products are exact, sums in order */

static inline void
sd_mma(float *d, const uint32_t *a, const uint32_t *b)
{
    int                 i, k, lane, q, g, turn, row, col, warp;
    float               sum;
    uint32_t            x, w;
    cuda_host_fiber_t  *f = &cuda_host.fibers[cuda_host.current];

    turn = f->turn ^= 1;
    memcpy(f->mma[turn], a, 16);
    memcpy(&f->mma[turn][4], b, 8);

    cuda_host_yield(CUDA_HOST_WARP);

    warp = cuda_host.fibers[cuda_host.current].warp;
    lane = cuda_host.current - warp;

    for (i = 0; i < 4; i++) {
        row = lane / 4 + i / 2 * 8;
        col = lane % 4 * 2 + i % 2;
        sum = d[i];

        for (k = 0; k < 16; k++) {
            q = k % 8 / 2;
            g = row % 8 * 4 + q;
            x = cuda_host.fibers[warp + g].mma[turn][row / 8 + k / 8 * 2];
            g = col * 4 + q;
            w = cuda_host.fibers[warp + g].mma[turn][4 + k / 8];

            sum += __half2float(__half{(uint16_t) (x >> k % 2 * 16)})
                   * __half2float(__half{(uint16_t) (w >> k % 2 * 16)});
        }

        d[i] = sum;
    }
}


static inline float
sd_exp2(float x)
{
    return exp2f(x);
}


static inline float
sd_rcp(float x)
{
    return 1 / x;
}


static inline float
sd_rsqrt(float x)
{
    return 1 / sqrtf(x);
}


static inline uint4
__ldcs(const uint4 *p)
{
    return *p;
}


static inline void
sd_forget(uint4 *u)
{
}


static inline void
sd_grid_wait(void)
{
}


static inline void
sd_grid_next(void)
{
}


static inline void
sd_copy_async(void *shared, const void *global)
{
    *(uint4 *) shared = *(const uint4 *) global;
}


static inline void
sd_copy_commit(void)
{
}


template <int N>
static inline void
sd_copy_wait(void)
{
}


static inline void
sd_cluster_arrive(void)
{
    cuda_host.fibers[cuda_host.current].arrived++;
}


static inline void
sd_cluster_wait(void)
{
    cuda_host_yield(CUDA_HOST_CLUSTER);
}


static inline void
sd_cluster_open(uint64_t *barrier, int bytes)
{
    *barrier = bytes;
}


static inline void
sd_cluster_send(float2 *p, uint64_t *barrier, int rank, float2 v)
{
    int      own = cuda_host.fibers[cuda_host.current].block;
    ssize_t  at = cuda_host.shared[rank] - cuda_host.shared[own];

    *(float2 *) ((char *) p + at) = v;
    *(uint64_t *) ((char *) barrier + at) -= sizeof(float2);
}


static inline void
sd_cluster_receive(uint64_t *barrier)
{
    cuda_host.fibers[cuda_host.current].arrived++;
    cuda_host_yield(CUDA_HOST_CLUSTER);

    if (*barrier != 0) {
        cuda_host_die("other bytes are sent than are waited for");
    }
}


#define SD_SHARED(type, name)                                                 \
    type *name = (type *)                                                     \
        cuda_host.shared[cuda_host.fibers[cuda_host.current].block]


/* the runtime */

typedef int    cudaError_t;
typedef void  *cudaStream_t;

enum { cudaSuccess = 0 };


/* a block's shared memory is as much as it asks for */

typedef enum {
    cudaFuncAttributeMaxDynamicSharedMemorySize
} cudaFuncAttribute;

static inline cudaError_t
cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value)
{
    return cudaSuccess;
}


template <class... P, class... A>
static inline cudaError_t
sd_launch_early(void (*kernel)(P...), int cluster, dim3 grid, dim3 block,
    size_t shared, cudaStream_t s, A... args)
{
    cuda_host_launch(grid, block, cluster, shared,
                     [=] { kernel(P(args)...); });

    return cudaSuccess;
}


#define sd_launch(kernel, grid, block, shared, stream, ...)                   \
    (cuda_host_launch(grid, block, 1, shared, [=] { kernel(__VA_ARGS__); }),  \
     cudaSuccess)


#endif
