/*
 * The cpu backend's inside.
 *
 * DESIGN
 *
 * cpu.c is the backend's table: devices, transfers, and everything that is so
 * cheap that plain C does.  pool.c is the threads.  weight.c packs weights in a
 * layout that does not depend on the machine.  isa/ holds the kernels; each of
 * its files is compiled once an instruction set, into one sd_kernels_t each.
 *
 * An operation cuts its work into tasks, by shapes alone or by what is known
 * not to change results; a task has one owner, and no two tasks write the same
 * bytes.  Every sum has one order.  So threads decide nothing but the time.
 *
 * Temporary memory: what outlives a task comes from the arena; a task's own
 * comes from its thread's scratch, SD_SCRATCH bytes, which the device owns.
 */

#ifndef SD_CPU_H
#define SD_CPU_H

#include "../ops.h"


/* columns of a panel of packed weights; see weight.c */
#define SD_PANEL    32

/* outputs of a convolution that are too few for a panel; see isa/narrow.c */
#define SD_NARROW   4

#define SD_SCRATCH  ((size_t) 16 << 20)

#define sd_align(n, a)  (((n) + (a) - 1) / (a) * (a))
#define sd_min(a, b)    ((a) < (b) ? (a) : (b))
#define sd_max(a, b)    ((a) > (b) ? (a) : (b))


/* pool.c */

typedef struct sd_pool_s  sd_pool_t;

/* scratch: 64-byte aligned, SD_SCRATCH bytes, holds what earlier tasks left */
typedef void (*sd_task_pt)(void *data, int task, char *scratch);

/* threads: 0 for all that there are; name: of the device, which may list
 * processors */
int sd_pool_create(sd_pool_t **pool, int threads, const char *name,
    sd_error_t *err);
void sd_pool_destroy(sd_pool_t *pool);
int sd_pool_threads(const sd_pool_t *pool);     /* a caller included */
/* the calling thread is to keep to the processors that are listed */
int sd_pool_bind(const sd_pool_t *pool);

/* what the process may use: affinity and cgroup quota, at least 1 */
int sd_pool_default_threads(void);

/*
 * runs task(data, 0 .. n - 1), in any order, on all threads and this one.
 * Looks at cx->cancel before each task; then cx->status is SD_CANCELLED.
 */
int sd_pool_run(sd_context_t *cx, sd_task_pt task, void *data, int n);


/* weight.c: how a weight lies in memory; offsets in floats.  The name is part
 * of what files of packed weights are known by: other bytes, another name */

#define SD_CPU_PACKING  "cpu-1"

typedef struct {
    int      bf16;              /* the matrix is; see bf16.h */
    int      winograd;          /* 6 or 4: 6 x 6 or 4 x 4 transformed filters
                                   instead of 9 taps; bf16: not yet */
    int      narrow;            /* matrix is [k][taps][c], 16 zeros behind */
    int      taps;              /* r * r */
    int      panels;            /* of SD_PANEL columns, the last one maybe of
                                   half as many */
    int      columns;           /* of all panels */
    size_t   rows;              /* of a panel: taps * c */
    size_t   bias;              /* [columns] at the start */
    size_t   matrix;            /* panels one after the other, each
                                   [rows][its columns]; winograd: that for each
                                   of the 36 or 16, with c rows */
    size_t   size;
} sd_packed_t;

/* Winograd's G: of F(4x4, 3x3), the same after enlargement, F(2x2, 3x3) */
extern const double  sd_winograd_g[3][6][3];

void sd_cpu_packed(const sd_device_t *dev, const sd_weight_t *w,
    sd_packed_t *p);
size_t sd_cpu_weight_size(sd_device_t *dev, const sd_weight_t *w);
int sd_cpu_weight_pack(sd_device_t *dev, sd_weight_t *w, const float *data,
    const float *bias, sd_error_t *err);


/* row `row` of sample n's keys, or values: of a tensor, or of the column `at`
 * of a table */

static inline const float *
sd_cpu_keys(const sd_tensor_t *t, const sd_tables_t *kv, int at, int n,
    int row, int *ld)
{
    if (kv->columns) {
        *ld = kv->columns;
        return (const float *) kv->at[n] + (size_t) row * kv->columns + at;
    }

    *ld = t->ld;
    return (const float *) t->data + ((size_t) n * t->w + row) * t->ld;
}


/* isa/: what is compiled several times */

typedef struct {
    const char  *isa;
    const char  *numerics;

    int        (*conv2d)(sd_context_t *cx, sd_tensor_t y,
                         const sd_conv2d_t *d);
    int        (*group_norm)(sd_context_t *cx, sd_tensor_t y,
                             const sd_group_norm_t *d);
    int        (*linear)(sd_context_t *cx, sd_tensor_t y,
                         const sd_linear_t *d);
    int        (*layer_norm)(sd_context_t *cx, sd_tensor_t y,
                             const sd_layer_norm_t *d);
    int        (*attention)(sd_context_t *cx, sd_tensor_t o,
                            const sd_attention_t *d);

    /* flops of n rounds of independent FMAs: the peak, for benchmarks */
    double     (*peak)(long n);
} sd_kernels_t;

extern const sd_kernels_t  sd_kernels_avx512;
extern const sd_kernels_t  sd_kernels_avx2;
extern const sd_kernels_t  sd_kernels_baseline;
extern const sd_kernels_t  sd_kernels_bf16;


typedef struct {
    const sd_kernels_t  *kernels;
    sd_pool_t           *pool;
    int                  amx;           /* bf16: by AMX tiles */
} sd_cpu_t;

/* a plan device has no impl; its allocations are those of any */
const sd_kernels_t *sd_cpu_kernels(const sd_device_t *dev);


#endif
