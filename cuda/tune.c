/*
 * Plans, and how candidates for them are timed: see cuda.h.
 */

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda.h"


#define SD_TRIAL_LAUNCHES  10       /* a graph */
#define SD_TRIAL_REPLAYS   3


static double
sd_cuda_now(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return ts.tv_sec + ts.tv_nsec * 1e-9;
}


/* FNV-1a */

static size_t
sd_cuda_hash(const void *key, size_t size)
{
    size_t                i;
    uint64_t              h = 0xcbf29ce484222325;
    const unsigned char  *p = key;

    for (i = 0; i < size; i++) {
        h = (h ^ p[i]) * 0x100000001b3;
    }

    return h % SD_CUDA_BUCKETS;
}


sd_cuda_plan_t *
sd_cuda_plan_find(sd_cuda_device_t *dev, const void *key, size_t size)
{
    sd_cuda_plan_t  *p;

    for (p = dev->plans[sd_cuda_hash(key, size)]; p; p = p->next) {
        if (p->size == size && memcmp(p->key, key, size) == 0) {
            return p;
        }
    }

    return NULL;
}


int
sd_cuda_plan_add(sd_cuda_device_t *dev, sd_cuda_plan_t *plan, const void *key,
    size_t size)
{
    size_t  i;

    plan->key = malloc(size);

    if (plan->key == NULL) {
        plan->free(plan);
        return SD_ERROR;
    }

    memcpy(plan->key, key, size);
    plan->size = size;

    i = sd_cuda_hash(key, size);
    plan->next = dev->plans[i];
    dev->plans[i] = plan;
    dev->nplans++;

    return SD_OK;
}


void
sd_cuda_plans_free(sd_cuda_device_t *dev)
{
    int              i;
    sd_cuda_plan_t  *p, *next;

    for (i = 0; i < SD_CUDA_BUCKETS; i++) {
        for (p = dev->plans[i]; p; p = next) {
            next = p->next;
            free(p->key);
            p->free(p);
        }

        dev->plans[i] = NULL;
    }
}


/* a stream of its own: the context's may be recording */

int
sd_cuda_trial_begin(sd_cuda_trial_t *t, size_t size, sd_error_t *err)
{
    cudaError_t  rc;

    memset(t, 0, sizeof(sd_cuda_trial_t));

    t->size = size;
    t->started = sd_cuda_now();

    rc = cudaStreamCreateWithFlags(&t->stream, cudaStreamNonBlocking);

    if (rc == cudaSuccess) {
        rc = cudaMalloc((void **) &t->memory, size);
    }

    if (rc == cudaSuccess) {
        rc = cudaMalloc(&t->workspace, SD_CUDA_WORKSPACE);
    }

    if (rc == cudaSuccess) {
        rc = sd_cuda_random(t->stream, (sd_half_t *) t->memory, size / 2);
    }

    if (rc == cudaSuccess) {
        rc = cudaStreamSynchronize(t->stream);
    }

    if (rc != cudaSuccess) {
        sd_cuda_trial_end(NULL, t);
        return sd_cuda_fail(err, rc, "memory to tune in");
    }

    return SD_OK;
}


void
sd_cuda_trial_end(sd_cuda_device_t *dev, sd_cuda_trial_t *t)
{
    if (t->stream) {
        cudaStreamSynchronize(t->stream);
        cudaStreamDestroy(t->stream);
    }

    cudaFree(t->memory);
    cudaFree(t->workspace);

    if (dev) {
        dev->tuned += sd_cuda_now() - t->started;
    }
}


float
sd_cuda_trial_time(sd_cuda_trial_t *t,
    int (*run)(void *data, cudaStream_t stream, int i), void *data)
{
    int              i, bad;
    float            ms, least;
    cudaGraph_t      graph = NULL;
    cudaEvent_t      from = NULL, to = NULL;
    cudaGraphExec_t  exec = NULL;

    /* once as it is: what must be loaded or compiled is, then */

    if (run(data, t->stream, 0) != SD_OK
        || cudaStreamSynchronize(t->stream) != cudaSuccess)
    {
        return -1;
    }

    least = -1;

    if (cudaStreamBeginCapture(t->stream, cudaStreamCaptureModeRelaxed)
        != cudaSuccess)
    {
        return -1;
    }

    for (i = 0, bad = 0; i < SD_TRIAL_LAUNCHES; i++) {
        bad |= run(data, t->stream, i);
    }

    if (cudaStreamEndCapture(t->stream, &graph) == cudaSuccess && !bad
        && cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess
        && cudaEventCreate(&from) == cudaSuccess
        && cudaEventCreate(&to) == cudaSuccess)
    {
        for (i = 0; i < SD_TRIAL_REPLAYS; i++) {
            if (cudaEventRecord(from, t->stream) != cudaSuccess
                || cudaGraphLaunch(exec, t->stream) != cudaSuccess
                || cudaEventRecord(to, t->stream) != cudaSuccess
                || cudaEventSynchronize(to) != cudaSuccess
                || cudaEventElapsedTime(&ms, from, to) != cudaSuccess)
            {
                least = -1;
                break;
            }

            if (least < 0 || ms < least) {
                least = ms;
            }
        }
    }

    if (from) {
        cudaEventDestroy(from);
    }

    if (to) {
        cudaEventDestroy(to);
    }

    if (exec) {
        cudaGraphExecDestroy(exec);
    }

    if (graph) {
        cudaGraphDestroy(graph);
    }

    /* errors of a candidate must not be taken for the next operation's */

    (void) cudaGetLastError();

    return least < 0 ? -1 : least * 1000 / SD_TRIAL_LAUNCHES;
}
