/* in CUDA's place where kernels are compiled for the host */

#include "cuda_host.h"
