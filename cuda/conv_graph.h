/*
 * A convolution as a graph of cuDNN's backend API, and what its engines are:
 * see conv.c, which chooses among them.
 *
 * A sd_graph_t owns all descriptors that were made with it but execution plans;
 * the first error sticks in its status, and what is made after it is nothing.
 * One thread at a time.
 */

#ifndef SD_CUDA_CONV_GRAPH_H
#define SD_CUDA_CONV_GRAPH_H

#include <stdint.h>

#include <cudnn.h>
#include <cudnn_backend.h>


#define SD_CONV_CONFIGS  48         /* that the heuristics are asked for */
#define SD_CONV_OWN      32         /* of our own making */
#define SD_CONV_KNOBS    32
#define SD_CONV_LITTLE   4096       /* bytes of workspace that are none */


typedef cudnnBackendDescriptor_t  sd_desc_t;

/* n samples of [h, w, c] to [oh, ow, k] by [r, r], padding r / 2; with a bias,
 * and a residual of the output's shape or not */
typedef struct {
    int              n, h, w, c, oh, ow, k, r, stride, residual;
} sd_conv_key_t;

/* an engine of cuDNN's and how its knobs stand */
typedef struct {
    int              engine, n;
    int              type[SD_CONV_KNOBS], value[SD_CONV_KNOBS];
} sd_conv_choice_t;

/* a graph under construction: everything that it made, to be destroyed */
typedef struct {
    sd_desc_t        device;        /* properties of one that is not here; NULL:
                                       that of the handle */
    cudnnStatus_t    status;
    sd_desc_t        made[SD_CONV_CONFIGS + 8 * SD_CONV_OWN + 64];
    int              n;
} sd_graph_t;


/* the operation graph for a key; cudnn: NULL where g->device is told */
sd_desc_t sd_graph_build(sd_graph_t *g, cudnnHandle_t cudnn,
    const sd_conv_key_t *key);
void sd_graph_free(sd_graph_t *g);

/* engine configurations that the heuristics propose; returns how many */
int sd_graph_configs(sd_graph_t *g, sd_desc_t graph, sd_desc_t *configs);
/* and configurations of Hopper's engine that are of our class */
int sd_graph_own(sd_graph_t *g, sd_desc_t graph, sd_desc_t *configs);

/* what a configuration is, 0: it does not tell; and the configuration that a
 * choice is for this graph */
int sd_conv_read(sd_desc_t config, sd_conv_choice_t *c);
sd_desc_t sd_conv_write(sd_graph_t *g, sd_desc_t graph,
    const sd_conv_choice_t *c);

/* whether a choice is of the class that decides the bits */
int sd_conv_in_class(const sd_conv_choice_t *c);

/* an execution plan, the caller's, that needs at most so much workspace; or
 * NULL */
sd_desc_t sd_conv_exec(const sd_graph_t *g, cudnnHandle_t cudnn,
    sd_desc_t config, int64_t most);

/* enqueues it on the handle's stream; residual: NULL where there is none */
cudnnStatus_t sd_conv_run(cudnnHandle_t cudnn, sd_desc_t exec, void *y,
    const void *x, const void *w, const void *bias, const void *residual,
    void *workspace);


#endif
