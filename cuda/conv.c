/*
 * Convolutions by cuDNN's backend API, NHWC fp16 with fp32 sums.
 *
 * The graphs are those that its precompiled engines know: conv, bias; and conv,
 * residual, bias, in that order (the other order would be compiled at run time,
 * for seconds).  1x1 convolutions are matrix products.  What is enlarged by
 * nearest x2 first is that in memory, but on Hopper, where it is enlarged to
 * exactly twice its size: see conv_up.cu.
 *
 * On Hopper its engines' bits depend on the depth of a slice (32 or 64) and on
 * whether the depth is split, and on nothing else: tile, cluster and batch do
 * not matter (72 of 72 shapes on an H100).  So candidates are slices of 64
 * without a split, and of those the ones whose bits are the first one's.  Where
 * the heuristics propose none, we make some: on an H100 the best of these
 * takes 0.99 to 1.08 times as long as the best of theirs.
 */

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cudnn_backend.h>

#include "cuda.h"


#define SD_CONV_CONFIGS   48
#define SD_CONV_OWN       32        /* configurations of our own making */
#define SD_CONV_KNOBS     32
#define SD_CONV_ENGINE    41        /* Hopper's, of graphs with a bias */
#define SD_CONV_LITTLE    4096      /* bytes of workspace that are none */
#define SD_CONV_TRIAL     ((size_t) 192 << 20)
#define SD_CONV_HOPELESS  2.0f      /* times the best: not timed to the end */


typedef cudnnBackendDescriptor_t  sd_desc_t;

/* tensors' names in a graph */
enum {
    SD_CONV_X = 1, SD_CONV_W, SD_CONV_Y, SD_CONV_BIAS, SD_CONV_RESIDUAL,
    SD_CONV_SUM, SD_CONV_SUM2
};


typedef struct {
    int   n, h, w, c, oh, ow, k, r, stride, residual;
} sd_conv_key_t;

/* an engine of cuDNN's and how its knobs stand */
typedef struct {
    int              engine, n;
    int              type[SD_CONV_KNOBS], value[SD_CONV_KNOBS];
} sd_conv_choice_t;

typedef struct {
    sd_cuda_plan_t    plan;
    sd_conv_choice_t  choice;
    sd_desc_t         exec;
} sd_conv_plan_t;

typedef struct {
    cudnnHandle_t      cudnn;
    sd_conv_plan_t    *plan;
    sd_cuda_trial_t   *trial;
    sd_conv_key_t      key;
    size_t             x, y, w;         /* bytes */
} sd_conv_trial_t;

/* a graph under construction: everything that it made, to be destroyed */
typedef struct {
    cudnnStatus_t    status;
    sd_desc_t        made[SD_CONV_CONFIGS + 8 * SD_CONV_OWN + 64];
    int              n;
} sd_graph_t;


static sd_desc_t
sd_graph_make(sd_graph_t *g, cudnnBackendDescriptorType_t type)
{
    sd_desc_t  d = NULL;

    if (g->n == sizeof(g->made) / sizeof(g->made[0])) {
        g->status = CUDNN_STATUS_INTERNAL_ERROR;
    }

    if (g->status == CUDNN_STATUS_SUCCESS) {
        g->status = cudnnBackendCreateDescriptor(type, &d);
    }

    if (d) {
        g->made[g->n++] = d;
    }

    return d;
}


static void
sd_graph_set(sd_graph_t *g, sd_desc_t d, cudnnBackendAttributeName_t name,
    cudnnBackendAttributeType_t type, int64_t n, const void *values)
{
    if (g->status == CUDNN_STATUS_SUCCESS) {
        g->status = cudnnBackendSetAttribute(d, name, type, n, values);
    }
}


static void
sd_graph_link(sd_graph_t *g, sd_desc_t d, cudnnBackendAttributeName_t name,
    sd_desc_t to)
{
    sd_graph_set(g, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &to);
}


static sd_desc_t
sd_graph_done(sd_graph_t *g, sd_desc_t d)
{
    if (g->status == CUDNN_STATUS_SUCCESS) {
        g->status = cudnnBackendFinalize(d);
    }

    return d;
}


/* keep: what is not to be destroyed with the rest, or NULL */

static void
sd_graph_free(sd_graph_t *g, sd_desc_t keep)
{
    while (g->n > 0) {
        g->n--;

        if (g->made[g->n] != keep) {
            cudnnBackendDestroyDescriptor(g->made[g->n]);
        }
    }
}


/* [n, c, h, w] with the channels innermost; sums live in registers, in fp32 */

static sd_desc_t
sd_graph_tensor(sd_graph_t *g, int64_t name, int64_t n, int64_t c, int64_t h,
    int64_t w)
{
    bool             inner;
    int64_t          dims[4], strides[4], align;
    sd_desc_t        d;
    cudnnDataType_t  type;

    inner = name == SD_CONV_SUM || name == SD_CONV_SUM2;
    type = inner ? CUDNN_DATA_FLOAT : CUDNN_DATA_HALF;
    align = 16;

    dims[0] = n;
    dims[1] = c;
    dims[2] = h;
    dims[3] = w;

    strides[0] = c * h * w;
    strides[1] = 1;
    strides[2] = c * w;
    strides[3] = c;

    d = sd_graph_make(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR);

    sd_graph_set(g, d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1,
                 &type);
    sd_graph_set(g, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4,
                 dims);
    sd_graph_set(g, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4,
                 strides);
    sd_graph_set(g, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1,
                 &name);
    sd_graph_set(g, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1,
                 &align);

    if (inner) {
        sd_graph_set(g, d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1,
                     &inner);
    }

    return sd_graph_done(g, d);
}


static sd_desc_t
sd_graph_conv(sd_graph_t *g, const sd_conv_key_t *key, sd_desc_t x,
    sd_desc_t w, sd_desc_t y)
{
    float                    one, zero;
    int64_t                  two, pad[2], stride[2], dilation[2];
    sd_desc_t                c, o;
    cudnnDataType_t          type;
    cudnnConvolutionMode_t   mode;

    two = 2;
    pad[0] = pad[1] = key->r / 2;
    stride[0] = stride[1] = key->stride;
    dilation[0] = dilation[1] = 1;
    type = CUDNN_DATA_FLOAT;
    mode = CUDNN_CROSS_CORRELATION;
    one = 1;
    zero = 0;

    c = sd_graph_make(g, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);

    sd_graph_set(g, c, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64,
                 1, &two);
    sd_graph_set(g, c, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE,
                 1, &type);
    sd_graph_set(g, c, CUDNN_ATTR_CONVOLUTION_CONV_MODE,
                 CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
    sd_graph_set(g, c, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64,
                 2, pad);
    sd_graph_set(g, c, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64,
                 2, pad);
    sd_graph_set(g, c, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES,
                 CUDNN_TYPE_INT64, 2, stride);
    sd_graph_set(g, c, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2,
                 dilation);
    sd_graph_done(g, c);

    o = sd_graph_make(g, CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);

    sd_graph_link(g, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, x);
    sd_graph_link(g, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, w);
    sd_graph_link(g, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, y);
    sd_graph_link(g, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, c);
    sd_graph_set(g, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
                 CUDNN_TYPE_FLOAT, 1, &one);
    sd_graph_set(g, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA,
                 CUDNN_TYPE_FLOAT, 1, &zero);

    return sd_graph_done(g, o);
}


/* y = x + b */

static sd_desc_t
sd_graph_add(sd_graph_t *g, sd_desc_t x, sd_desc_t b, sd_desc_t y)
{
    sd_desc_t             p, o;
    cudnnDataType_t       type;
    cudnnPointwiseMode_t  mode;

    type = CUDNN_DATA_FLOAT;
    mode = CUDNN_POINTWISE_ADD;

    p = sd_graph_make(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);

    sd_graph_set(g, p, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1,
                 &mode);
    sd_graph_set(g, p, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1,
                 &type);
    sd_graph_done(g, p);

    o = sd_graph_make(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);

    sd_graph_link(g, o, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, p);
    sd_graph_link(g, o, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    sd_graph_link(g, o, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
    sd_graph_link(g, o, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);

    return sd_graph_done(g, o);
}


/* the operation graph for a key */

static sd_desc_t
sd_graph_build(sd_graph_t *g, cudnnHandle_t cudnn, const sd_conv_key_t *key)
{
    int        n;
    sd_desc_t  x, w, y, b, r, sum, sum2, ops[3], graph;

    x = sd_graph_tensor(g, SD_CONV_X, key->n, key->c, key->h, key->w);
    w = sd_graph_tensor(g, SD_CONV_W, key->k, key->c, key->r, key->r);
    y = sd_graph_tensor(g, SD_CONV_Y, key->n, key->k, key->oh, key->ow);
    b = sd_graph_tensor(g, SD_CONV_BIAS, 1, key->k, 1, 1);
    sum = sd_graph_tensor(g, SD_CONV_SUM, key->n, key->k, key->oh, key->ow);

    n = 0;
    ops[n++] = sd_graph_conv(g, key, x, w, sum);

    if (key->residual) {
        r = sd_graph_tensor(g, SD_CONV_RESIDUAL, key->n, key->k, key->oh,
                            key->ow);
        sum2 = sd_graph_tensor(g, SD_CONV_SUM2, key->n, key->k, key->oh,
                               key->ow);
        ops[n++] = sd_graph_add(g, sum, r, sum2);
        sum = sum2;
    }

    ops[n++] = sd_graph_add(g, sum, b, y);

    graph = sd_graph_make(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);

    sd_graph_set(g, graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE,
                 1, &cudnn);
    sd_graph_set(g, graph, CUDNN_ATTR_OPERATIONGRAPH_OPS,
                 CUDNN_TYPE_BACKEND_DESCRIPTOR, n, ops);

    return sd_graph_done(g, graph);
}


/* engine configurations that the heuristics propose; returns how many */

static int
sd_graph_configs(sd_graph_t *g, sd_desc_t graph, sd_desc_t *configs)
{
    int                    i;
    int64_t                n;
    sd_desc_t              heur;
    cudnnBackendHeurMode_t mode;

    mode = CUDNN_HEUR_MODE_A;

    heur = sd_graph_make(g, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);

    sd_graph_link(g, heur, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
    sd_graph_set(g, heur, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1,
                 &mode);
    sd_graph_done(g, heur);

    for (i = 0; i < SD_CONV_CONFIGS; i++) {
        configs[i] = sd_graph_make(g, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    }

    n = 0;

    if (g->status == CUDNN_STATUS_SUCCESS) {
        g->status = cudnnBackendGetAttribute(heur,
                        CUDNN_ATTR_ENGINEHEUR_RESULTS,
                        CUDNN_TYPE_BACKEND_DESCRIPTOR, SD_CONV_CONFIGS, &n,
                        configs);
    }

    return g->status == CUDNN_STATUS_SUCCESS ? (int) n : 0;
}


/* reads what a configuration is; 0: it does not tell */
static int
sd_conv_read(sd_desc_t config, sd_conv_choice_t *c)
{
    int                     i, ok;
    int64_t                 n, one, value;
    sd_desc_t               engine, knobs[SD_CONV_KNOBS];
    cudnnBackendKnobType_t  type;

    memset(c, 0, sizeof(sd_conv_choice_t));
    memset(knobs, 0, sizeof(knobs));
    engine = NULL;

    ok = cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINE_DESCRIPTOR, &engine)
         == CUDNN_STATUS_SUCCESS;

    for (i = 0; i < SD_CONV_KNOBS && ok; i++) {
        ok = cudnnBackendCreateDescriptor(CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR,
                                          &knobs[i])
             == CUDNN_STATUS_SUCCESS;
    }

    n = 0;

    ok = ok
         && cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE,
                CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &one, &engine)
            == CUDNN_STATUS_SUCCESS
         && cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX,
                CUDNN_TYPE_INT64, 1, &one, &value)
            == CUDNN_STATUS_SUCCESS
         && cudnnBackendGetAttribute(config,
                CUDNN_ATTR_ENGINECFG_KNOB_CHOICES,
                CUDNN_TYPE_BACKEND_DESCRIPTOR, SD_CONV_KNOBS, &n, knobs)
            == CUDNN_STATUS_SUCCESS;

    c->engine = ok ? (int) value : -1;

    for (i = 0; i < n && ok; i++) {
        ok = cudnnBackendGetAttribute(knobs[i],
                 CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 1,
                 &one, &type) == CUDNN_STATUS_SUCCESS
             && cudnnBackendGetAttribute(knobs[i],
                    CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, 1,
                    &one, &value) == CUDNN_STATUS_SUCCESS;

        c->type[i] = type;
        c->value[i] = (int) value;
        c->n = i + 1;
    }

    for (i = 0; i < SD_CONV_KNOBS; i++) {
        if (knobs[i]) {
            cudnnBackendDestroyDescriptor(knobs[i]);
        }
    }

    if (engine) {
        cudnnBackendDestroyDescriptor(engine);
    }

    return ok;
}


/* the configuration that a choice is for this graph; g's, as all else */

static sd_desc_t
sd_conv_write(sd_graph_t *g, sd_desc_t graph, const sd_conv_choice_t *c)
{
    int                     i;
    int64_t                 value;
    sd_desc_t               engine, config, knobs[SD_CONV_KNOBS];
    cudnnBackendKnobType_t  type;

    value = c->engine;

    engine = sd_graph_make(g, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    sd_graph_link(g, engine, CUDNN_ATTR_ENGINE_OPERATION_GRAPH, graph);
    sd_graph_set(g, engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64,
                 1, &value);
    sd_graph_done(g, engine);

    for (i = 0; i < c->n; i++) {
        type = c->type[i];
        value = c->value[i];

        knobs[i] = sd_graph_make(g, CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR);
        sd_graph_set(g, knobs[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE,
                     CUDNN_TYPE_KNOB_TYPE, 1, &type);
        sd_graph_set(g, knobs[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE,
                     CUDNN_TYPE_INT64, 1, &value);
        sd_graph_done(g, knobs[i]);
    }

    config = sd_graph_make(g, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    sd_graph_link(g, config, CUDNN_ATTR_ENGINECFG_ENGINE, engine);
    sd_graph_set(g, config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES,
                 CUDNN_TYPE_BACKEND_DESCRIPTOR, c->n, knobs);

    return sd_graph_done(g, config);
}


/*
 * configurations of Hopper's engine that are of our class, as the heuristics do
 * not propose one for every shape and batch; returns how many
 */

static int
sd_graph_own(sd_graph_t *g, sd_desc_t graph, sd_desc_t *configs)
{
    int            i, n;
    cudnnStatus_t  before;

    static const int  tiles[8] = { 0, 1, 3, 5, 7, 18, 19, 20 };
    static const int  clusters[4][2] = { { 2, 1 }, { 1, 2 }, { 1, 1 },
                                         { 4, 1 } };

    before = g->status;
    n = 0;

    for (i = 0; i < SD_CONV_OWN; i++) {
        sd_conv_choice_t  c = {
            SD_CONV_ENGINE, 6,
            { CUDNN_KNOB_TYPE_TILE_SIZE, CUDNN_KNOB_TYPE_TILEK,
              CUDNN_KNOB_TYPE_IDX_MODE, CUDNN_KNOB_TYPE_WORKSPACE,
              CUDNN_KNOB_TYPE_TILE_CGA_M, CUDNN_KNOB_TYPE_TILE_CGA_N },
            { tiles[i / 4], 1, 0, 1, clusters[i % 4][0], clusters[i % 4][1] }
        };

        g->status = CUDNN_STATUS_SUCCESS;
        configs[n] = sd_conv_write(g, graph, &c);

        if (g->status == CUDNN_STATUS_SUCCESS) {
            n++;
        }
    }

    g->status = before;

    return n;
}


/* whether a choice is of the class that decides the bits: Hopper's engines
 * have clusters, and then the slice must be the deep one, and the depth not in
 * segments */

static int
sd_conv_in_class(const sd_conv_choice_t *c)
{
    int  i, cluster, deep;

    cluster = 0;
    deep = 1;

    for (i = 0; i < c->n; i++) {
        cluster |= c->type[i] == CUDNN_KNOB_TYPE_TILE_CGA_M;
        deep &= (c->type[i] != CUDNN_KNOB_TYPE_TILEK
                 && c->type[i] != CUDNN_KNOB_TYPE_WORKSPACE)
                || c->value[i] == 1;
    }

    return cluster && deep;
}


/* an execution plan, or NULL; not one that needs more workspace than most: such
 * split the depth, or copy tensors.  131 bytes say nothing: most configurations
 * ask for that much, whatever they do */

static sd_desc_t
sd_conv_exec(cudnnHandle_t cudnn, sd_desc_t config, int64_t most)
{
    int64_t    n, workspace;
    sd_desc_t  exec;

    if (cudnnBackendCreateDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR,
                                     &exec)
        != CUDNN_STATUS_SUCCESS)
    {
        return NULL;
    }

    if (cudnnBackendSetAttribute(exec, CUDNN_ATTR_EXECUTION_PLAN_HANDLE,
                                 CUDNN_TYPE_HANDLE, 1, &cudnn)
            == CUDNN_STATUS_SUCCESS
        && cudnnBackendSetAttribute(exec,
               CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG,
               CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &config)
           == CUDNN_STATUS_SUCCESS
        && cudnnBackendFinalize(exec) == CUDNN_STATUS_SUCCESS
        && cudnnBackendGetAttribute(exec,
               CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1,
               &n, &workspace)
           == CUDNN_STATUS_SUCCESS
        && workspace <= most)
    {
        return exec;
    }

    cudnnBackendDestroyDescriptor(exec);

    return NULL;
}


static void
sd_conv_free(sd_cuda_plan_t *plan)
{
    sd_conv_plan_t  *p = (sd_conv_plan_t *) plan;

    if (p->exec) {
        cudnnBackendDestroyDescriptor(p->exec);
    }

    free(p);
}


static cudnnStatus_t
sd_conv_run(cudnnHandle_t cudnn, sd_conv_plan_t *p, void *y, const void *x,
    const void *w, const void *bias, const void *residual, void *workspace)
{
    int            n;
    void          *data[5];
    int64_t        names[5];
    sd_desc_t      pack;
    cudnnStatus_t  rc;

    n = 0;

    names[n] = SD_CONV_X;
    data[n++] = (void *) x;
    names[n] = SD_CONV_W;
    data[n++] = (void *) w;
    names[n] = SD_CONV_Y;
    data[n++] = y;
    names[n] = SD_CONV_BIAS;
    data[n++] = (void *) bias;

    if (residual) {
        names[n] = SD_CONV_RESIDUAL;
        data[n++] = (void *) residual;
    }

    rc = cudnnBackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR,
                                      &pack);

    if (rc != CUDNN_STATUS_SUCCESS) {
        return rc;
    }

    rc = cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS,
                                  CUDNN_TYPE_VOID_PTR, n, data);

    if (rc == CUDNN_STATUS_SUCCESS) {
        rc = cudnnBackendSetAttribute(pack,
                 CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, n,
                 names);
    }

    if (rc == CUDNN_STATUS_SUCCESS) {
        rc = cudnnBackendSetAttribute(pack,
                 CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1,
                 &workspace);
    }

    if (rc == CUDNN_STATUS_SUCCESS) {
        rc = cudnnBackendFinalize(pack);
    }

    if (rc == CUDNN_STATUS_SUCCESS) {
        rc = cudnnBackendExecute(cudnn, p->exec, pack);
    }

    cudnnBackendDestroyDescriptor(pack);

    return rc;
}


static int
sd_conv_try(void *data, cudaStream_t stream, int i)
{
    char             *m, *w;
    size_t            left;
    sd_conv_trial_t  *t = data;

    m = t->trial->memory;
    left = t->trial->size - t->x - t->y - t->w;
    w = m + t->x + t->y + (size_t) i * t->w % left / 256 * 256;

    return sd_conv_run(t->cudnn, t->plan, m + t->x, m, w, m,
                       t->key.residual ? m + t->x : NULL,
                       t->trial->workspace)
           == CUDNN_STATUS_SUCCESS ? SD_OK : SD_ERROR;
}


/* the bits that a candidate gives for the same input; 0: it fails */

static uint64_t
sd_conv_bits(sd_conv_trial_t *t)
{
    char      *m;
    size_t     i, n;
    uint64_t   hash, *bits;

    m = t->trial->memory;
    n = t->y;

    bits = malloc(n);

    if (bits == NULL) {
        return 0;
    }

    hash = 0;

    /* the residual is the output's own place: it must be as it was */

    if (sd_cuda_random(t->trial->stream, (sd_half_t *) (m + t->x), t->y / 2)
            == cudaSuccess
        && sd_conv_try(t, t->trial->stream, 0) == SD_OK
        && cudaMemcpyAsync(bits, m + t->x, n, cudaMemcpyDeviceToHost,
                           t->trial->stream) == cudaSuccess
        && cudaStreamSynchronize(t->trial->stream) == cudaSuccess)
    {
        hash = 0xcbf29ce484222325;

        for (i = 0; i < n / sizeof(uint64_t); i++) {
            hash = (hash ^ bits[i]) * 0x100000001b3;
            hash ^= hash >> 29;
        }

        hash |= 1;
    }

    free(bits);
    (void) cudaGetLastError();

    return hash;
}


static int
sd_conv_choose(sd_cuda_device_t *dev, sd_conv_plan_t *p,
    const sd_conv_key_t *key, sd_error_t *err)
{
    int               i, n, own, rc, strict;
    float             us;
    uint64_t          bits, first;
    sd_desc_t         configs[SD_CONV_CONFIGS + SD_CONV_OWN], graph, exec;
    sd_graph_t        g = { 0 };
    sd_conv_choice_t  choice;
    cudnnHandle_t     cudnn;
    sd_cuda_trial_t   trial;
    sd_conv_trial_t   t;

    memset(&t, 0, sizeof(t));

    t.plan = p;
    t.trial = &trial;
    t.key = *key;
    t.x = ((size_t) key->n * key->h * key->w * key->c * 2 + 255) / 256 * 256;
    t.y = ((size_t) key->n * key->oh * key->ow * key->k * 2 + 255) / 256 * 256;
    t.w = ((size_t) key->k * key->r * key->r * key->c * 2 + 255) / 256 * 256;

    memset(&trial, 0, sizeof(trial));

    if (cudnnCreate(&cudnn) != CUDNN_STATUS_SUCCESS) {
        return sd_fail(err, "cudnn does not start");
    }

    if (dev->tune) {
        if (sd_cuda_trial_begin(&trial, t.x + t.y + t.w + SD_CONV_TRIAL, err)
            != SD_OK)
        {
            cudnnDestroy(cudnn);
            return SD_ERROR;
        }

        cudnnSetStream(cudnn, trial.stream);
        t.cudnn = cudnn;
    }

    graph = sd_graph_build(&g, cudnn, key);
    n = sd_graph_configs(&g, graph, configs);
    own = dev->chip.arch == 90 ? sd_graph_own(&g, graph, configs + n) : 0;

    exec = NULL;
    first = 0;

    /* of the class; where the heuristics have none, one of our own; where that
     * fails, too, the first that works */

    for (strict = 1; strict >= 0 && exec == NULL; strict--) {

        for (i = 0; i < n + (strict ? own : 0); i++) {
            if (i == n && exec) {
                break;
            }

            if (!sd_conv_read(configs[i], &choice)
                || (strict && !sd_conv_in_class(&choice)))
            {
                continue;
            }

            p->exec = sd_conv_exec(cudnn, configs[i],
                                   strict ? SD_CONV_LITTLE
                                          : (int64_t) SD_CUDA_WORKSPACE);

            if (p->exec == NULL) {
                continue;
            }

            if (!dev->tune) {
                exec = p->exec;
                p->choice = choice;
                break;
            }

            bits = sd_conv_bits(&t);

            if (bits == 0 || (first && bits != first)) {
                cudnnBackendDestroyDescriptor(p->exec);
                continue;
            }

            first = bits;
            us = sd_cuda_trial_time(&trial, sd_conv_try, &t);

            if (us > 0 && (exec == NULL || us < p->plan.us)) {
                if (exec) {
                    cudnnBackendDestroyDescriptor(exec);
                }

                exec = p->exec;
                p->choice = choice;
                p->plan.us = us;

            } else {
                cudnnBackendDestroyDescriptor(p->exec);
            }

            if (exec && !strict) {
                break;
            }
        }
    }

    p->exec = exec;
    rc = SD_OK;

    if (exec == NULL) {
        rc = sd_fail(err, "cudnn has no %dx%d convolution of [%d, %d, %d, %d] "
                     "to %d channels (%s)", key->r, key->r, key->n, key->h,
                     key->w, key->c, key->k, cudnnGetErrorString(g.status));
    }

    sd_graph_free(&g, NULL);
    cudnnDestroy(cudnn);

    if (dev->tune) {
        sd_cuda_trial_end(dev, &trial);
    }

    return rc;
}


static sd_conv_plan_t *
sd_conv_plan(sd_cuda_device_t *dev, const sd_conv_key_t *key, sd_error_t *err)
{
    sd_conv_plan_t  *p;

    p = (sd_conv_plan_t *) sd_cuda_plan_find(dev, &sd_cuda_convs, key);

    if (p) {
        return p;
    }

    p = calloc(1, sizeof(sd_conv_plan_t));

    if (p == NULL) {
        sd_fail(err, "no memory for a plan");
        return NULL;
    }

    if (sd_conv_choose(dev, p, key, err) != SD_OK) {
        sd_conv_free(&p->plan);
        return NULL;
    }

    sd_cuda_plan_add(dev, &p->plan, &sd_cuda_convs, key);

    return p;
}


/* engine, then knob=value ... */

static void
sd_conv_save(const sd_cuda_plan_t *plan, char *text, size_t size)
{
    int                    i, n;
    const sd_conv_plan_t  *p = (const sd_conv_plan_t *) plan;

    n = snprintf(text, size, "%d", p->choice.engine);

    for (i = 0; i < p->choice.n && n < (int) size; i++) {
        n += snprintf(text + n, size - n, " %d=%d", p->choice.type[i],
                      p->choice.value[i]);
    }
}


static sd_cuda_plan_t *
sd_conv_load(sd_cuda_device_t *dev, const int *key, const char *text)
{
    int               n;
    sd_graph_t        g = { 0 };
    sd_conv_key_t     k;
    cudnnHandle_t     cudnn;
    sd_conv_plan_t   *p;
    sd_conv_choice_t  c = { 0 };

    memcpy(&k, key, sizeof(k));

    if (sscanf(text, "%d%n", &c.engine, &n) != 1) {
        return NULL;
    }

    for (text += n; c.n < SD_CONV_KNOBS; c.n++, text += n) {
        if (sscanf(text, " %d=%d%n", &c.type[c.n], &c.value[c.n], &n) != 2) {
            break;
        }
    }

    p = calloc(1, sizeof(sd_conv_plan_t));

    if (p == NULL || cudnnCreate(&cudnn) != CUDNN_STATUS_SUCCESS) {
        free(p);
        return NULL;
    }

    p->choice = c;
    p->exec = sd_conv_exec(cudnn,
                           sd_conv_write(&g, sd_graph_build(&g, cudnn, &k),
                                         &c),
                           (int64_t) SD_CUDA_WORKSPACE);

    sd_graph_free(&g, NULL);
    cudnnDestroy(cudnn);

    if (p->exec == NULL) {
        free(p);
        return NULL;
    }

    return &p->plan;
}


const sd_cuda_kind_t  sd_cuda_convs = {
    "conv", sizeof(sd_conv_key_t) / sizeof(int), sd_conv_free, sd_conv_save,
    sd_conv_load
};


/* y = conv(x), x one packed tensor of w's channels */

static int
sd_conv_library(sd_context_t *cx, sd_tensor_t y, const sd_conv2d_t *d,
    const sd_tensor_t *x)
{
    cudnnStatus_t       rc;
    sd_conv_key_t       key;
    sd_conv_plan_t     *plan;
    sd_cuda_packed_t    p;
    sd_cuda_context_t  *c = sd_cuda_of(cx);

    sd_cuda_packed(d->w, &p);

    memset(&key, 0, sizeof(key));

    key.n = x->n;
    key.h = x->h;
    key.w = x->w;
    key.c = x->c;
    key.oh = y.h;
    key.ow = y.w;
    key.k = y.c;
    key.r = d->w->r;
    key.stride = d->w->stride;
    key.residual = !sd_empty(&d->residual);

    pthread_mutex_lock(&c->device->lock);
    plan = sd_conv_plan(c->device, &key, cx->err);
    pthread_mutex_unlock(&c->device->lock);

    if (plan == NULL) {
        return SD_ERROR;
    }

    rc = sd_conv_run(c->cudnn, plan, y.data, x->data, d->w->data,
                     (char *) d->w->data + p.bias, d->residual.data,
                     c->workspace);

    return rc == CUDNN_STATUS_SUCCESS
           ? SD_OK : sd_fail(cx->err, "cudnn: %s", cudnnGetErrorString(rc));
}


/* 1x1: a product, or two where there are two inputs */

static int
sd_conv_product(sd_context_t *cx, sd_tensor_t y, const sd_conv2d_t *d)
{
    sd_cuda_gemm_t    g = { 0 };
    sd_cuda_packed_t  p;

    sd_cuda_packed(d->w, &p);

    g.y = y.data;
    g.x = d->x.data;
    g.w = d->w->data;
    g.bias = (sd_half_t *) ((char *) d->w->data + p.bias);
    g.residual = d->residual.data;
    g.rows = y.n * y.h * y.w;
    g.cols = y.c;
    g.depth = d->x.c;
    g.ldx = d->x.c;
    g.ldw = d->w->c;
    g.ldy = y.c;
    g.alpha = 1;

    if (sd_cuda_gemm(cx, &g) != SD_OK || sd_empty(&d->x2)) {
        return cx->status;
    }

    g.x = d->x2.data;
    g.w += d->x.c;
    g.bias = NULL;
    g.residual = y.data;
    g.depth = d->x2.c;
    g.ldx = d->x2.c;

    return sd_cuda_gemm(cx, &g);
}


/* d as our own kernels take it */

static void
sd_conv_own(sd_cuda_conv_t *c, sd_tensor_t y, const sd_conv2d_t *d)
{
    sd_cuda_packed_t  p;

    sd_cuda_packed(d->w, &p);

    memset(c, 0, sizeof(*c));

    c->y = y.data;
    c->x = d->x.data;
    c->x2 = d->x2.data;
    c->w = d->w->data;
    c->bias = (sd_half_t *) ((char *) d->w->data + p.bias);
    c->residual = d->residual.data;
    c->n = d->x.n;
    c->h = d->x.h;
    c->wd = d->x.w;
    c->c = d->x.c;
    c->c2 = sd_empty(&d->x2) ? 0 : d->x2.c;
    c->oh = y.h;
    c->ow = y.w;
    c->k = y.c;
    c->r = d->w->r;
    c->stride = d->w->stride;
    c->upsample = d->w->upsample;
}


static int
sd_conv_direct(sd_context_t *cx, sd_tensor_t y, const sd_conv2d_t *d)
{
    sd_cuda_conv_t  c;

    sd_conv_own(&c, y, d);

    return sd_cuda_done(cx, sd_cuda_conv_direct(sd_cuda_stream(cx),
                                &sd_cuda_of(cx)->device->chip, &c),
                        "conv_direct");
}


/* without the enlarged tensor, where there is a kernel for that; else *done
 * stays 0 */

static int
sd_conv_up(sd_context_t *cx, sd_tensor_t y, const sd_conv2d_t *d, int *done)
{
    sd_cuda_conv_t         c;
    sd_cuda_packed_t       p;
    const sd_cuda_chip_t  *chip;

    chip = &sd_cuda_of(cx)->device->chip;

    sd_cuda_packed(d->w, &p);
    sd_conv_own(&c, y, d);

    c.w = (sd_half_t *) ((char *) d->w->data + p.up);

    if (p.up == 0 || !sd_cuda_conv_up_takes(chip, &c)) {
        return SD_OK;
    }

    *done = 1;

    return sd_cuda_done(cx, sd_cuda_conv_up(sd_cuda_stream(cx), chip, &c),
                        "conv_up");
}


int
sd_cuda_conv2d(sd_context_t *cx, sd_tensor_t y, const sd_conv2d_t *d)
{
    int           rc, done;
    cudaError_t   e;
    sd_tensor_t   t;
    cudaStream_t  s;

    t = sd_cuda_conv_scratch(cx, &y, d);

    if (cx->plan || cx->status != SD_OK) {
        sd_free(cx, &t);
        return cx->status;
    }

    if (sd_cuda_is_direct(d)) {
        return sd_conv_direct(cx, y, d);
    }

    if (d->w->r == 1 && d->w->stride == 1
        && (sd_empty(&d->x2) || d->x.c % 8 == 0))
    {
        return sd_conv_product(cx, y, d);
    }

    if (sd_empty(&t)) {
        return sd_conv_library(cx, y, d, &d->x);
    }

    done = 0;

    if (d->w->upsample) {
        rc = sd_conv_up(cx, y, d, &done);

        if (done) {
            sd_free(cx, &t);
            return rc;
        }
    }

    s = sd_cuda_stream(cx);

    e = d->w->upsample
        ? sd_cuda_upsample(s, t.data, d->x.data, d->x.n, d->x.h, d->x.w,
                           d->x.c, t.h, t.w)
        : sd_cuda_concat(s, t.data, d->x.data, d->x2.data,
                         (size_t) t.n * t.h * t.w, d->x.c, d->x2.c);

    rc = sd_cuda_done(cx, e, "upsample or concat");

    if (rc == SD_OK) {
        rc = sd_conv_library(cx, y, d, &t);
    }

    sd_free(cx, &t);

    return rc;
}
