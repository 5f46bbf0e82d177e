/*
 * What the kernels share: vectors of eight halves, sums over a warp, a few
 * instructions that CUDA has no name for, launches.
 *
 * The kernels are plain enough to be compiled as C++ for the host, too, where
 * t/unit/cuda/cuda_host.h plays the device (SD_CUDA_HOST): so their tests need
 * no GPU.
 */

#ifndef SD_CUDA_COMMON_CUH
#define SD_CUDA_COMMON_CUH

#include <math.h>
#include <stdint.h>

#include <cuda_fp16.h>

#include "kernels.h"


#define sd_cuda_min(a, b)   ((a) < (b) ? (a) : (b))
#define sd_cuda_max(a, b)   ((a) > (b) ? (a) : (b))
#define sd_cuda_div(a, b)   (((a) + (b) - 1) / (b))

#define SD_FN  static __device__ __forceinline__


#ifndef SD_CUDA_HOST

/* enqueues; its value is the launch's error */

#define sd_launch(kernel, grid, block, shared, stream, ...)                   \
    (kernel<<<grid, block, shared, stream>>>(__VA_ARGS__), cudaGetLastError())

/*
 * For kernels that begin with sd_grid_wait(), and only for them: such a kernel
 * starts while what is before it in the stream still ends.  Blocks of a cluster
 * are neighbours in x.
 *
 * Asks the kernel's own code, as the driver may run code of an older chip,
 * which has no sd_grid_wait().
 */

template <class... P, class... A>
static cudaError_t
sd_launch_early(void (*kernel)(P...), int cluster, dim3 grid, dim3 block,
    size_t shared, cudaStream_t s, A... args)
{
    cudaError_t          rc;
    cudaFuncAttributes   attributes;
    cudaLaunchConfig_t   config = {};
    cudaLaunchAttribute  attr[2] = {};

    rc = cudaFuncGetAttributes(&attributes, (const void *) kernel);

    if (rc == cudaSuccess && shared > 49152) {
        rc = cudaFuncSetAttribute((const void *) kernel,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int) shared);
    }

    if (rc != cudaSuccess) {
        return rc;
    }

    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = s;
    config.attrs = attr;

    if (attributes.ptxVersion >= 90) {
        attr[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attr[0].val.programmaticStreamSerializationAllowed = 1;
        config.numAttrs = 1;
    }

    if (cluster > 1) {
        attr[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
        attr[config.numAttrs].val.clusterDim.x = cluster;
        attr[config.numAttrs].val.clusterDim.y = 1;
        attr[config.numAttrs].val.clusterDim.z = 1;
        config.numAttrs++;
    }

    return cudaLaunchKernelEx(&config, kernel, P(args)...);
}


/* the launch's dynamic shared memory, aligned to 16 bytes */

#define SD_SHARED(type, name)                                                 \
    extern __shared__ uint4  sd_shared_memory[];                              \
    type *name = (type *) sd_shared_memory


/* 2^x and 1 / x as the hardware has them, two units in the last place off */

SD_FN float
sd_exp2(float x)
{
    float  y;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}


SD_FN float
sd_rcp(float x)
{
    float  y;

    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}


/* 1 / sqrt(x), likewise */

SD_FN float
sd_rsqrt(float x)
{
    float  y;

    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}


/* the compiler knows no more what u is, and keeps nothing made of it */

SD_FN void
sd_forget(uint4 *u)
{
    asm volatile("" : "+r"(u->x), "+r"(u->y), "+r"(u->z), "+r"(u->w));
}


/*
 * sd_grid_wait(): all that was before this kernel in the stream has ended, and
 * is seen; before it, a kernel may write nothing, and read weights only, or
 * what the kernel before it has waited for.  sd_grid_next() lets the next
 * kernel start, as far as there is room, to wait for the end of this one.
 */

SD_FN void
sd_grid_wait(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}


SD_FN void
sd_grid_next(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}


/* a place in shared memory, as instructions want it */

SD_FN uint32_t
sd_address(const void *p)
{
    return (uint32_t) __cvta_generic_to_shared(p);
}


/* two halves, lo in the low bits */

SD_FN uint32_t
sd_pair(float lo, float hi)
{
    uint32_t  r;

    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));

    return r;
}


/* 16 bytes to shared memory past the registers */

SD_FN void
sd_copy_async(void *shared, const void *global)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                 :: "r"(sd_address(shared)), "l"(global) : "memory");
}


SD_FN void
sd_copy_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}


/* waits for this thread's groups of copies, but for the latest N */

template <int N>
SD_FN void
sd_copy_wait(void)
{
    asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory");
}


/*
 * d: [16, 8] += a: [16, 16] b^T, b: [8, 16], halves in pairs.  Lane 4 g + q has
 * rows g (a[0], a[2]) and g + 8 (a[1], a[3]) of a, columns 2 q, 2 q + 1 and 8
 * further ones; the same columns of row g of b; of d columns 2 q, 2 q + 1 of
 * rows g and g + 8
 */

SD_FN void
sd_mma(float *d, const uint32_t *a, const uint32_t *b)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]),
                   "r"(b[1]));
}


/* four 8x8 matrices; lane 8 i + j has the address of row j of matrix i */

SD_FN void
sd_load_matrices(uint32_t *r, uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 "
                 "{%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at)
                 : "memory");
}


/* clusters; nothing before sm_90 */

SD_FN void
sd_cluster_arrive(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}


SD_FN void
sd_cluster_wait(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}


/*
 * Blocks send to each other: one thread of each opens a barrier for the bytes
 * that its block is sent; a send reaches place p of block rank's shared memory,
 * once that block has opened; all who read, receive.  A block that has received
 * all has no more to fear from the others: it may end.
 */

SD_FN void
sd_cluster_open(uint64_t *barrier, int bytes)
{
#if __CUDA_ARCH__ >= 900
    uint32_t  at = sd_address(barrier);

    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(at)
                 : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 :: "r"(at), "r"(bytes) : "memory");
#endif
}


SD_FN void
sd_cluster_send(float2 *p, uint64_t *barrier, int rank, float2 v)
{
#if __CUDA_ARCH__ >= 900
    uint32_t  at, to;

    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(at) : "r"(sd_address(p)), "r"(rank));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(to) : "r"(sd_address(barrier)), "r"(rank));
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes"
                 ".v2.f32 [%0], {%1, %2}, [%3];"
                 :: "r"(at), "f"(v.x), "f"(v.y), "r"(to) : "memory");
#endif
}


SD_FN void
sd_cluster_receive(uint64_t *barrier)
{
#if __CUDA_ARCH__ >= 900
    uint32_t  done, at = sd_address(barrier);

    do {
        asm volatile("{\n"
                     ".reg .pred p;\n"
                     "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 "
                     "p, [%1], 0;\n"
                     "selp.u32 %0, 1, 0, p;\n"
                     "}" : "=r"(done) : "r"(at) : "memory");
    } while (!done);
#endif
}

#endif


SD_FN float
sd_to_float(sd_half_t h)
{
    return __half2float(__ushort_as_half(h));
}


SD_FN sd_half_t
sd_to_half(float f)
{
    return __half_as_ushort(__float2half_rn(f));
}


/* v: [W]; W = 8: 16 bytes, aligned; W = 1: any address */

template <int W>
SD_FN void
sd_unpack(float *v, uint4 u)
{
    int       i;
    float2    f;
    uint32_t  w[4] = { u.x, u.y, u.z, u.w };

    if constexpr (W == 1) {
        v[0] = sd_to_float((sd_half_t) u.x);

    } else {

#pragma unroll
        for (i = 0; i < W / 2; i++) {
            f = __half22float2(*(__half2 *) &w[i]);
            v[2 * i] = f.x;
            v[2 * i + 1] = f.y;
        }
    }
}


template <int W>
SD_FN uint4
sd_load_raw(const sd_half_t *p)
{
    if (W == 8) {
        return *(const uint4 *) p;
    }

    return make_uint4(*p, 0, 0, 0);
}


/* what nobody reads after us: the first to leave the caches */

template <int W>
SD_FN uint4
sd_load_last(const sd_half_t *p)
{
    if (W == 8) {
        return __ldcs((const uint4 *) p);
    }

    return make_uint4(*p, 0, 0, 0);
}


template <int W>
SD_FN void
sd_load(float *v, const sd_half_t *p)
{
    sd_unpack<W>(v, sd_load_raw<W>(p));
}


template <int W>
SD_FN uint4
sd_pack(const float *v)
{
    int       i;
    __half2   h;
    uint32_t  w[4];

    if constexpr (W == 1) {
        return make_uint4(sd_to_half(v[0]), 0, 0, 0);

    } else {

#pragma unroll
        for (i = 0; i < W / 2; i++) {
            h = __floats2half2_rn(v[2 * i], v[2 * i + 1]);
            w[i] = *(uint32_t *) &h;
        }

        return make_uint4(w[0], w[1], w[2], w[3]);
    }
}


template <int W>
SD_FN void
sd_store(sd_half_t *p, const float *v)
{
    if constexpr (W == 1) {
        *p = sd_to_half(v[0]);

    } else {
        *(uint4 *) p = sd_pack<W>(v);
    }
}


/* F32, in the same portions */

template <int W>
SD_FN void
sd_load_f32(float *v, const float *p)
{
    int     i;
    float4  f;

    if constexpr (W == 1) {
        v[0] = *p;

    } else {

#pragma unroll
        for (i = 0; i < W / 4; i++) {
            f = ((const float4 *) p)[i];
            v[4 * i] = f.x;
            v[4 * i + 1] = f.y;
            v[4 * i + 2] = f.z;
            v[4 * i + 3] = f.w;
        }
    }
}


/*
 * x / (1 + exp(-x)).  Two reciprocals are one, of the product: the unit that
 * makes exponentials and reciprocals is the narrowest.  2^57 squared is still
 * a float, and x / 2^57 is nothing in fp16.
 */

SD_FN void
sd_silu2(float *a, float *b)
{
    float  p, q, r;

    p = 1 + sd_exp2(fminf(*a * -1.44269504f, 57));
    q = 1 + sd_exp2(fminf(*b * -1.44269504f, 57));
    r = sd_rcp(p * q);

    *a *= q * r;
    *b *= p * r;
}


template <int W>
SD_FN void
sd_silu(float *v)
{
    int    i;
    float  unused = 0;

    if constexpr (W == 1) {
        sd_silu2(v, &unused);

    } else {

#pragma unroll
        for (i = 0; i < W; i += 2) {
            sd_silu2(&v[i], &v[i + 1]);
        }
    }
}


/* over L neighbouring lanes; every lane gets the same sum */

template <int L>
SD_FN float
sd_warp_sum(float v)
{
    int  i;

#pragma unroll
    for (i = L / 2; i > 0; i /= 2) {
        v += __shfl_xor_sync(0xffffffff, v, i);
    }

    return v;
}


template <int L>
SD_FN float
sd_warp_max(float v)
{
    int  i;

#pragma unroll
    for (i = L / 2; i > 0; i /= 2) {
        v = fmaxf(v, __shfl_xor_sync(0xffffffff, v, i));
    }

    return v;
}


/* 1: may be read as vectors of 16 bytes */

static inline int
sd_cuda_aligned(const void *p)
{
    return ((uintptr_t) p & 15) == 0;
}


#endif
