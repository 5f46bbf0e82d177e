/*
 * A convolution as a graph of cuDNN's backend API: see conv_graph.h.
 */

#include <stdbool.h>
#include <string.h>

#include "conv_graph.h"


#define SD_CONV_ENGINE  41          /* Hopper's, of graphs with a bias */


/* tensors' names in a graph */

enum {
    SD_CONV_X = 1, SD_CONV_W, SD_CONV_Y, SD_CONV_BIAS, SD_CONV_RESIDUAL,
    SD_CONV_SUM, SD_CONV_SUM2
};


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


void
sd_graph_free(sd_graph_t *g)
{
    while (g->n > 0) {
        cudnnBackendDestroyDescriptor(g->made[--g->n]);
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

    o = sd_graph_make(g,
                      CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);

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

sd_desc_t
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

    if (cudnn) {
        sd_graph_set(g, graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE,
                     CUDNN_TYPE_HANDLE, 1, &cudnn);
    }

    sd_graph_set(g, graph, CUDNN_ATTR_OPERATIONGRAPH_OPS,
                 CUDNN_TYPE_BACKEND_DESCRIPTOR, n, ops);

    return sd_graph_done(g, graph);
}


/* engine configurations that the heuristics propose; returns how many */

int
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

    if (g->device) {
        sd_graph_link(g, heur, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, g->device);
    }

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
int
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

sd_desc_t
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

    if (g->device) {
        sd_graph_link(g, engine, CUDNN_ATTR_ENGINE_DEVICEPROP, g->device);
    }

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

int
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

int
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

sd_desc_t
sd_conv_exec(const sd_graph_t *g, cudnnHandle_t cudnn, sd_desc_t config,
    int64_t most)
{
    int64_t        n, workspace;
    sd_desc_t      exec;
    cudnnStatus_t  rc;

    if (cudnnBackendCreateDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR,
                                     &exec)
        != CUDNN_STATUS_SUCCESS)
    {
        return NULL;
    }

    rc = g->device
         ? cudnnBackendSetAttribute(exec, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP,
                                    CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                                    &g->device)
         : cudnnBackendSetAttribute(exec, CUDNN_ATTR_EXECUTION_PLAN_HANDLE,
                                    CUDNN_TYPE_HANDLE, 1, &cudnn);

    if (rc == CUDNN_STATUS_SUCCESS
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


cudnnStatus_t
sd_conv_run(cudnnHandle_t cudnn, sd_desc_t exec, void *y, const void *x,
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
        rc = cudnnBackendExecute(cudnn, exec, pack);
    }

    cudnnBackendDestroyDescriptor(pack);

    return rc;
}
