/*
 * A slot: what one picture needs in one step of the sampler, in device memory,
 * as the operations sd_scale_input() and sd_sampler_step() read it.  Plain C
 * and C++, as kernels include it, too.
 */

#ifndef SD_SLOT_H
#define SD_SLOT_H

#include <stdint.h>


/* tensors beside the latent that a sampler may keep between steps */
#define SD_KEPT  4


typedef struct {
    float         scale_in;     /* model's input = scale_in * x */
    float         a, b, clamp;  /* D = clamp(a x + b out, +-clamp); 0: none */
    float         m[1 + SD_KEPT][3 + SD_KEPT + 2];
                                /* {x', k0'..k3'} from {x, out, D, k0..k3, z0,
                                   z1} */
    float         guidance;     /* out = u + guidance (c - u) where guided */
    int32_t       guided;
    int32_t       out;          /* first of its samples in the model's batch:
                                   one, or two where it is guided,
                                   unconditional first; -1: an empty slot */
    uint32_t      draw;         /* number of z0's draw; z1 is the next */
    int32_t       nkept;        /* kept tensors in use */
    uint64_t      seed;         /* noise: philox.h, as torch's CUDA generator */

    /* its own device memory, [h, w, c] each; what is read may be what is
     * written */
    const float  *x;
    float        *next;         /* x' */
    const float  *kept;         /* nkept of them, one after the other */
    float        *kept_next;
    float        *denoised;     /* D */
} sd_slot_t;


#endif
