/*
 * Plans, and how candidates for them are timed: see cuda.h.
 */

#define _GNU_SOURCE

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cuda.h"


#define SD_TRIAL_LAUNCHES  10       /* a graph */
#define SD_TRIAL_REPLAYS   3


/* FNV-1a */

static size_t
sd_cuda_hash(const sd_cuda_kind_t *kind, const int *key)
{
    size_t                i;
    uint64_t              h = 0xcbf29ce484222325;
    const unsigned char  *p = (const unsigned char *) key;

    for (i = 0; i < kind->ints * sizeof(int); i++) {
        h = (h ^ p[i]) * 0x100000001b3;
    }

    return h % SD_CUDA_BUCKETS;
}


sd_cuda_plan_t *
sd_cuda_plan_find(sd_cuda_device_t *dev, const sd_cuda_kind_t *kind,
    const void *key)
{
    sd_cuda_plan_t  *p;

    for (p = dev->plans[sd_cuda_hash(kind, key)]; p; p = p->next) {
        if (p->kind == kind
            && memcmp(p->key, key, kind->ints * sizeof(int)) == 0)
        {
            return p;
        }
    }

    return NULL;
}


void
sd_cuda_plan_add(sd_cuda_device_t *dev, sd_cuda_plan_t *plan,
    const sd_cuda_kind_t *kind, const void *key)
{
    size_t  i;

    plan->kind = kind;
    memcpy(plan->key, key, kind->ints * sizeof(int));

    i = sd_cuda_hash(kind, key);
    plan->next = dev->plans[i];
    dev->plans[i] = plan;
    dev->fresh++;
}


void
sd_cuda_plans_free(sd_cuda_device_t *dev)
{
    int              i;
    sd_cuda_plan_t  *p, *next;

    for (i = 0; i < SD_CUDA_BUCKETS; i++) {
        for (p = dev->plans[i]; p; p = next) {
            next = p->next;
            p->kind->free(p);
        }

        dev->plans[i] = NULL;
    }
}


/*
 * The file, named as the numerics id: a line that says what the plans are for,
 * then one a line,
 *
 *     kind  ints of the key ...  microseconds  the choice in its kind's words
 *
 * A file of another device, driver or library is as none.  A line that makes no
 * sense is passed over: its plan is chosen anew.
 */

static int
sd_cuda_plans_head(sd_cuda_device_t *dev, char *head, size_t size)
{
    int                    driver;
    struct cudaDeviceProp  prop;

    if (cudaGetDeviceProperties(&prop, dev->ordinal) != cudaSuccess
        || cudaDriverGetVersion(&driver) != cudaSuccess)
    {
        return SD_ERROR;
    }

    snprintf(head, size, "sd-plans 1, %s, driver %d, cudnn %zu, cublas "
             "%zu\n",
             prop.name, driver, cudnnGetVersion(), cublasLtGetVersion());

    return SD_OK;
}


static void
sd_cuda_plans_line(sd_cuda_device_t *dev, char *line)
{
    int                           key[SD_CUDA_KEY];
    char                         *p, *end;
    long                          v;
    float                         us;
    size_t                        i, k, len;
    sd_cuda_plan_t               *plan;
    static const sd_cuda_kind_t  *kinds[] = {
        &sd_cuda_gemms, &sd_cuda_convs
    };

    line[strcspn(line, "\n")] = '\0';
    len = strcspn(line, " ");

    for (k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
        if (strlen(kinds[k]->name) == len
            && strncmp(line, kinds[k]->name, len) == 0)
        {
            break;
        }
    }

    if (k == sizeof(kinds) / sizeof(kinds[0])) {
        return;
    }

    memset(key, 0, sizeof(key));
    p = line + len;

    for (i = 0; i < kinds[k]->ints; i++) {
        v = strtol(p, &end, 10);

        if (end == p || v < 0 || v > INT_MAX) {
            return;
        }

        key[i] = (int) v;
        p = end;
    }

    us = strtof(p, &end);

    if (end == p || *end != ' ' || sd_cuda_plan_find(dev, kinds[k], key)) {
        return;
    }

    plan = kinds[k]->load(dev, key, end + 1);

    if (plan) {
        plan->us = us;
        sd_cuda_plan_add(dev, plan, kinds[k], key);
    }
}


static int
sd_cuda_plans_load(sd_cuda_device_t *dev, const char *path, const char *head,
    sd_error_t *err)
{
    char   line[1024];
    FILE  *f;

    f = fopen(path, "re");

    if (f == NULL) {
        return errno == ENOENT ? SD_OK
                               : sd_fail(err, "%s: %s", path, strerror(errno));
    }

    if (fgets(line, sizeof(line), f) && strcmp(line, head) == 0) {
        while (fgets(line, sizeof(line), f)) {
            sd_cuda_plans_line(dev, line);
        }

        dev->fresh = 0;
    }

    fclose(f);

    return SD_OK;
}


/* into place in one piece, so that who reads it meanwhile has the old one */

static int
sd_cuda_plans_save(sd_cuda_device_t *dev, const char *path, const char *head,
    sd_error_t *err)
{
    int              i, bad;
    char             text[512], name[PATH_MAX];
    FILE            *f;
    size_t           k;
    sd_cuda_plan_t  *p;

    snprintf(name, sizeof(name), "%s.%ld", path, (long) getpid());

    f = fopen(name, "we");

    if (f == NULL) {
        return sd_fail(err, "%s: %s", name, strerror(errno));
    }

    fputs(head, f);

    for (i = 0; i < SD_CUDA_BUCKETS; i++) {
        for (p = dev->plans[i]; p; p = p->next) {

            /* what was not tuned may be yet */

            if (!(p->us > 0)) {
                continue;
            }

            fputs(p->kind->name, f);

            for (k = 0; k < p->kind->ints; k++) {
                fprintf(f, " %d", p->key[k]);
            }

            p->kind->save(p, text, sizeof(text));
            fprintf(f, " %.2f %s\n", p->us, text);
        }
    }

    bad = ferror(f);

    if (fclose(f) != 0 || bad || rename(name, path) != 0) {
        sd_fail(err, "%s: %s", path, strerror(errno));
        unlink(name);
        return SD_ERROR;
    }

    dev->fresh = 0;

    return SD_OK;
}


int
sd_cuda_plans(sd_device_t *device, const char *dir, int save, sd_error_t *err)
{
    int                rc;
    char               head[512], path[PATH_MAX - 32];
    sd_cuda_device_t  *dev = device->impl;

    snprintf(path, sizeof(path), "%.*s/%s.plans", (int) sizeof(path) - 128,
             dir, device->numerics);

    if (sd_cuda_plans_head(dev, head, sizeof(head)) != SD_OK) {
        return sd_fail(err, "%s does not tell its name", device->name);
    }

    pthread_mutex_lock(&dev->lock);

    rc = !save ? sd_cuda_plans_load(dev, path, head, err)
         : dev->fresh ? sd_cuda_plans_save(dev, path, head, err) : SD_OK;

    pthread_mutex_unlock(&dev->lock);

    return rc;
}


/* a stream of its own: the context's may be recording */

int
sd_cuda_trial_begin(sd_cuda_trial_t *t, size_t size, sd_error_t *err)
{
    cudaError_t  rc;

    memset(t, 0, sizeof(sd_cuda_trial_t));

    t->size = size;

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
        sd_cuda_trial_end(t);
        return sd_cuda_fail(err, rc, "memory to tune in");
    }

    return SD_OK;
}


void
sd_cuda_trial_end(sd_cuda_trial_t *t)
{
    if (t->stream) {
        cudaStreamSynchronize(t->stream);
        cudaStreamDestroy(t->stream);
    }

    cudaFree(t->memory);
    cudaFree(t->workspace);
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
