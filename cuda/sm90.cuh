/*
 * Hopper's own instructions: barriers in shared memory, TMA; and how a tensor
 * map is made.  For sm_90a alone: older chips get empty kernels, see HOPPER.
 * wgmma.cuh has products.
 */

#ifndef SD_CUDA_SM90_CUH
#define SD_CUDA_SM90_CUH

#include <cuda.h>

#include "common.cuh"


/* the driver's cuTensorMapEncodeTiled, of its version 12.0 */
typedef CUresult (*encode_pt)(CUtensorMap *map, CUtensorMapDataType type,
    cuuint32_t rank, void *address, const cuuint64_t *dims,
    const cuuint64_t *strides, const cuuint32_t *box,
    const cuuint32_t *element_strides, CUtensorMapInterleave interleave,
    CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
    CUtensorMapFloatOOBfill fill);


/* the driver's library is there, as cudart has loaded it: not linked */

static inline cudaError_t
tensor_map_encoder(encode_pt *encode)
{
    void                             *p;
    cudaError_t                       rc;
    cudaDriverEntryPointQueryResult   found;

    static void  *entry;

    p = __atomic_load_n(&entry, __ATOMIC_RELAXED);

    if (p == NULL) {
        rc = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &p,
                                              12000, cudaEnableDefault,
                                              &found);
        if (rc != cudaSuccess) {
            return rc;
        }

        if (found != cudaDriverEntryPointSuccess) {
            return cudaErrorNotSupported;
        }

        __atomic_store_n(&entry, p, __ATOMIC_RELAXED);
    }

    *encode = (encode_pt) p;

    return cudaSuccess;
}


/* fp16 of four dimensions, the inner one first; strides: elements from one to
 * the next of each but that; swizzle: by 128 bytes */

static inline int
map_boxes(CUtensorMap *m, encode_pt encode, const void *data, const int *dims,
    const size_t *strides, const int *box, int swizzle)
{
    int         i;
    cuuint32_t  b[4];
    cuuint64_t  d[4], s[3];

    static const cuuint32_t  steps[4] = { 1, 1, 1, 1 };

    for (i = 0; i < 4; i++) {
        d[i] = dims[i];
        b[i] = box[i];

        if (i) {
            s[i - 1] = strides[i - 1] * 2;
        }
    }

    return encode(m, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4, (void *) data, d, s,
                  b, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                  swizzle ? CU_TENSOR_MAP_SWIZZLE_128B
                          : CU_TENSOR_MAP_SWIZZLE_NONE,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
           == CUDA_SUCCESS;
}


/* older chips get an empty kernel */

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER
#endif


#ifdef HOPPER


/* barriers */

static __device__ __forceinline__ void
barrier_init(uint32_t at, int count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
                 :: "r"(at), "r"(count) : "memory");
}


/* makes barriers known to TMA */

static __device__ __forceinline__ void
barrier_init_fence(void)
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}


/* an arrival, and bytes that will arrive */

static __device__ __forceinline__ void
barrier_expect(uint32_t at, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 :: "r"(at), "r"(bytes) : "memory");
}


static __device__ __forceinline__ void
barrier_arrive(uint32_t at)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];"
                 :: "r"(at) : "memory");
}


/*
 * at the same place in the memory of block rank of the cluster.  Of the
 * cluster's scope, it would wait for all stores that are under way
 */

static __device__ __forceinline__ void
barrier_arrive_at(uint32_t at, int rank)
{
    asm volatile("{\n"
                 ".reg .b32  there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
                 "}"
                 :: "r"(at), "r"(rank) : "memory");
}


/* until the phase of this parity is over */

static __device__ __forceinline__ void
barrier_wait(uint32_t at, uint32_t parity)
{
    asm volatile("{\n"
                 ".reg .pred  done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra over;\n"
                 "bra again;\n"
                 "over:\n"
                 "}"
                 :: "r"(at), "r"(parity) : "memory");
}


/* the 128 threads of a warpgroup */

static __device__ __forceinline__ void
group_sync(int id)
{
    asm volatile("bar.sync %0, 128;" :: "r"(id) : "memory");
}


/* the blocks of a cluster */

static __device__ __forceinline__ int
cluster_rank(void)
{
    int  r;

    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));

    return r;
}


static __device__ __forceinline__ void
cluster_arrive(void)
{
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}


static __device__ __forceinline__ void
cluster_wait(void)
{
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}


static __device__ __forceinline__ void
cluster_sync(void)
{
    cluster_arrive();
    cluster_wait();
}


static __device__ __forceinline__ void
map_prefetch(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" :: "l"(map) : "memory");
}


/* TMA: boxes at column, head, row, sample of a map */

static __device__ __forceinline__ void
box_load(uint32_t to, const CUtensorMap *map, uint32_t barrier, int column,
    int head, int row, int sample)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile"
                 ".mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2];"
                 :: "r"(to), "l"(map), "r"(barrier), "r"(column), "r"(head),
                    "r"(row), "r"(sample)
                 : "memory");
}


/* boxes at column, row of a map */

static __device__ __forceinline__ void
box_load(uint32_t to, const CUtensorMap *map, uint32_t barrier, int column,
    int row)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile"
                 ".mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
                 :: "r"(to), "l"(map), "r"(barrier), "r"(column), "r"(row)
                 : "memory");
}


/* to the same place, and barrier, of each block of the cluster that mask has */

static __device__ __forceinline__ void
box_load_to(int mask, uint32_t to, const CUtensorMap *map, uint32_t barrier,
    int column, int row)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile"
                 ".mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%3, %4}], [%2], %5;"
                 :: "r"(to), "l"(map), "r"(barrier), "r"(column), "r"(row),
                    "h"((uint16_t) mask)
                 : "memory");
}


static __device__ __forceinline__ void
box_load_to(int mask, uint32_t to, const CUtensorMap *map, uint32_t barrier,
    int column, int head, int row, int sample)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile"
                 ".mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2], %7;"
                 :: "r"(to), "l"(map), "r"(barrier), "r"(column), "r"(head),
                    "r"(row), "r"(sample), "h"((uint16_t) mask)
                 : "memory");
}


static __device__ __forceinline__ void
box_store(const CUtensorMap *map, uint32_t from, int column, int head,
    int row, int sample)
{
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group "
                 "[%0, {%2, %3, %4, %5}], [%1];"
                 :: "l"(map), "r"(from), "r"(column), "r"(head), "r"(row),
                    "r"(sample)
                 : "memory");
}


/* ordinary stores to shared memory before, TMA after */

static __device__ __forceinline__ void
box_store_fence(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}


/* a store that is a group of its own */

static __device__ __forceinline__ void
box_store_group(const CUtensorMap *map, uint32_t from, int column, int head,
    int row, int sample)
{
    box_store(map, from, column, head, row, sample);
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}


/* until all groups of stores but the latest n have read shared memory */

template <int n>
static __device__ __forceinline__ void
box_groups_wait(void)
{
    asm volatile("cp.async.bulk.wait_group.read %0;" :: "n"(n) : "memory");
}


/* until shared memory has been read */

static __device__ __forceinline__ void
box_store_wait(void)
{
    asm volatile("cp.async.bulk.commit_group;\n"
                 "cp.async.bulk.wait_group.read 0;" ::: "memory");
}


static __device__ __forceinline__ void
store_4(uint32_t at, uint32_t x)
{
    asm volatile("st.shared.b32 [%0], %1;" :: "r"(at), "r"(x) : "memory");
}


/* four 8x8 matrices; lane 8 i + j has the address of row j of matrix i */

static __device__ __forceinline__ void
store_matrices(uint32_t at, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], "
                 "{%1, %2, %3, %4};"
                 :: "r"(at), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}


/* a ring of places, and the parity of the round */

template <int N>
struct ring {
    int       at = 0;
    uint32_t  parity = 0;

    __device__ __forceinline__ void
    next(void)
    {
        if (++at == N) {
            at = 0;
            parity ^= 1;
        }
    }
};

#endif

#endif
