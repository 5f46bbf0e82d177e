/*
 * Loaded into a program by the CUDA driver, writes a line for each kernel, copy
 * and fill that the device has done, those inside of graphs too:
 *
 *     CUDA_INJECTION64_PATH=build/bench/trace.so SD_TRACE=out.csv sd bench ...
 *
 *     start,end,graph,node,launch,stream,registers,shared,grid,block,name
 *
 * Times in ns; graph and node are 0 outside of graphs, launch tells one replay
 * from the next.  bench/kernels.py makes tables of it.  Nothing is profiled by
 * counters and no cache is flushed: these are the times of the program's own
 * run, with a little between kernels for the writing down.
 */

#include <stdio.h>
#include <stdlib.h>

#include <cupti.h>


#define TRACE_BUFFER  (8 << 20)


static FILE  *trace_out;


static void CUPTIAPI
trace_need(uint8_t **buffer, size_t *size, size_t *records)
{
    *buffer = aligned_alloc(8, TRACE_BUFFER);
    *size = *buffer ? TRACE_BUFFER : 0;
    *records = 0;
}


static void
trace_line(uint64_t start, uint64_t end, uint32_t graph, uint64_t node,
    uint32_t launch, uint32_t stream)
{
    fprintf(trace_out, "%llu,%llu,%u,%llu,%u,%u,", (unsigned long long) start,
            (unsigned long long) end, graph, (unsigned long long) node, launch,
            stream);
}


static void
trace_record(CUpti_Activity *record)
{
    CUpti_ActivityKernel10  *k;
    CUpti_ActivityMemcpy6   *c;
    CUpti_ActivityMemset4   *m;

    switch (record->kind) {

    case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL:
        k = (CUpti_ActivityKernel10 *) record;
        trace_line(k->start, k->end, k->graphId, k->graphNodeId,
                   k->correlationId, k->streamId);
        fprintf(trace_out, "%u,%d,%dx%dx%d,%dx%dx%d,%s\n",
                k->registersPerThread,
                k->staticSharedMemory + k->dynamicSharedMemory, k->gridX,
                k->gridY, k->gridZ, k->blockX, k->blockY, k->blockZ, k->name);
        break;

    case CUPTI_ACTIVITY_KIND_MEMCPY:
        c = (CUpti_ActivityMemcpy6 *) record;
        trace_line(c->start, c->end, c->graphId, c->graphNodeId,
                   c->correlationId, c->streamId);
        fprintf(trace_out, "0,0,%llux1x1,,copy\n",
                (unsigned long long) c->bytes);
        break;

    case CUPTI_ACTIVITY_KIND_MEMSET:
        m = (CUpti_ActivityMemset4 *) record;
        trace_line(m->start, m->end, m->graphId, m->graphNodeId,
                   m->correlationId, m->streamId);
        fprintf(trace_out, "0,0,%llux1x1,,fill\n",
                (unsigned long long) m->bytes);
        break;

    default:
        break;
    }
}


static void CUPTIAPI
trace_done(CUcontext context, uint32_t stream, uint8_t *buffer, size_t size,
    size_t valid)
{
    CUpti_Activity  *record = NULL;

    while (cuptiActivityGetNextRecord(buffer, valid, &record)
           == CUPTI_SUCCESS)
    {
        trace_record(record);
    }

    free(buffer);
}


static void
trace_end(void)
{
    cuptiActivityFlushAll(1);
    fclose(trace_out);
}


/* what the driver calls */

__attribute__((visibility("default"))) int
InitializeInjection(void)
{
    const char  *path;

    path = getenv("SD_TRACE");
    trace_out = fopen(path ? path : "trace.csv", "w");

    if (trace_out == NULL
        || cuptiActivityRegisterCallbacks(trace_need, trace_done)
           != CUPTI_SUCCESS
        || cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL)
           != CUPTI_SUCCESS
        || cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMCPY) != CUPTI_SUCCESS
        || cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMSET) != CUPTI_SUCCESS)
    {
        fprintf(stderr, "trace: CUPTI does not work here\n");
        return 0;
    }

    atexit(trace_end);

    return 1;
}
