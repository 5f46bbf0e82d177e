/*
 * Rows of operations that every backend is tested with: the corners.
 */

#ifndef OPS_TABLE_H
#define OPS_TABLE_H

#include "ops_reference.h"


static const row_t  table[] = {
    { CONV, .n = 1, .h = 1, .w = 1, .c = 1, .k = 1, .r = 1, .stride = 1 },
    { CONV, .n = 1, .h = 1, .w = 1, .c = 3, .k = 5, .r = 3, .stride = 1,
      .bias = 1 },
    { CONV, .n = 2, .h = 24, .w = 13, .c = 20, .k = 36, .r = 3, .stride = 1,
      .bias = 1, .hint = 4096 },
    { CONV, .n = 1, .h = 64, .w = 48, .c = 4, .k = 32, .r = 3, .stride = 1,
      .bias = 1, .hint = 4096 },
    { CONV, .n = 2, .h = 16, .w = 16, .c = 64, .k = 64, .r = 3, .stride = 1,
      .bias = 1, .residual = 1, .hint = 256 },
    { CONV, .n = 2, .h = 8, .w = 8, .c = 96, .c2 = 64, .k = 64, .r = 3,
      .stride = 1, .bias = 1, .residual = 1, .inplace = 1, .hint = 64 },
    { CONV, .n = 2, .h = 24, .w = 13, .c = 48, .c2 = 33, .k = 50, .r = 3,
      .stride = 1, .bias = 1, .residual = 1, .inplace = 1, .hint = 4096 },
    { CONV, .n = 1, .h = 9, .w = 31, .c = 150, .k = 129, .r = 3, .stride = 1,
      .hint = 4096 },
    { CONV, .n = 1, .h = 3, .w = 2, .c = 64, .k = 64, .r = 3, .stride = 1,
      .bias = 1, .hint = 4096 },
    { CONV, .n = 2, .h = 64, .w = 60, .c = 33, .k = 35, .r = 3, .stride = 1,
      .bias = 1, .residual = 1, .hint = 4096 },
    { CONV, .n = 2, .h = 24, .w = 13, .c = 40, .k = 24, .r = 3, .stride = 2,
      .bias = 1 },
    { CONV, .n = 1, .h = 7, .w = 7, .c = 32, .k = 64, .r = 3, .stride = 2,
      .bias = 1 },
    { CONV, .n = 2, .h = 12, .w = 7, .c = 40, .k = 40, .r = 3, .stride = 1,
      .up = 1, .bias = 1, .hint = 1024 },
    { CONV, .n = 1, .h = 13, .w = 9, .c = 64, .k = 64, .r = 3, .stride = 1,
      .up = 1, .odd = 1, .bias = 1, .hint = 1024 },
    { CONV, .n = 3, .h = 21, .w = 17, .c = 40, .c2 = 24, .k = 32, .r = 3,
      .stride = 1, .up = 1, .bias = 1, .residual = 1, .hint = 1024 },
    { CONV, .n = 1, .h = 1, .w = 1, .c = 64, .k = 64, .r = 3, .stride = 1,
      .up = 1, .bias = 1, .hint = 16 },
    { CONV, .n = 1, .h = 32, .w = 32, .c = 128, .k = 3, .r = 3, .stride = 1,
      .bias = 1, .hint = 1024 },
    { CONV, .n = 2, .h = 24, .w = 13, .c = 48, .c2 = 32, .k = 80, .r = 1,
      .stride = 1, .bias = 1, .residual = 1 },
    { CONV, .n = 1, .h = 40, .w = 40, .c = 16, .k = 700, .r = 1, .stride = 1 },
    { CONV, .n = 1, .h = 4, .w = 4, .c = 700, .c2 = 650, .k = 20, .r = 3,
      .stride = 1, .bias = 1, .hint = 64 },

    { NORM, .n = 1, .h = 1, .w = 1, .c = 32, .groups = 4 },
    { NORM, .n = 2, .h = 24, .w = 13, .c = 40, .groups = 4, .silu = 1 },
    { NORM, .n = 3, .h = 16, .w = 16, .c = 64, .groups = 32, .silu = 1,
      .addend = 1 },
    { NORM, .n = 2, .h = 9, .w = 7, .c = 33, .c2 = 27, .groups = 10,
      .silu = 1, .addend = 1 },
    { NORM, .n = 2, .h = 8, .w = 8, .c = 64, .groups = 32, .inplace = 1 },

    { LINEAR, .n = 1, .h = 1, .w = 1, .c = 1, .k = 1 },
    { LINEAR, .n = 1, .h = 1, .w = 1, .c = 320, .k = 1280, .bias = 1,
      .act = SD_ACT_SILU },
    { LINEAR, .n = 2, .h = 1, .w = 77, .c = 768, .k = 100, .bias = 1,
      .act = SD_ACT_QUICK_GELU },
    { LINEAR, .n = 2, .h = 24, .w = 13, .c = 40, .k = 40, .bias = 1,
      .residual = 1, .inplace = 1 },
    { LINEAR, .n = 1, .h = 32, .w = 32, .c = 64, .k = 512, .bias = 1,
      .act = SD_ACT_GEGLU },
    { LINEAR, .n = 1, .h = 3, .w = 3, .c = 20, .k = 42, .bias = 1,
      .act = SD_ACT_GEGLU, .residual = 1 },
    { LINEAR, .n = 1, .h = 5, .w = 5, .c = 1300, .k = 33, .act = SD_ACT_GELU },
    { LINEAR, .n = 1, .h = 5, .w = 41, .c = 31, .k = 17, .bias = 1,
      .act = SD_ACT_GELU_TANH },
    { LINEAR, .n = 4, .h = 16, .w = 16, .c = 96, .k = 288 },

    { LAYER, .n = 1, .h = 1, .w = 1, .c = 16 },
    { LAYER, .n = 2, .h = 24, .w = 13, .c = 40 },
    { LAYER, .n = 2, .h = 1, .w = 77, .c = 768, .inplace = 1 },
    { LAYER, .n = 1, .h = 3, .w = 1, .c = 7 },

    { ATTEND, .n = 1, .w = 1, .heads = 1, .d = 2, .lk = 1 },
    { ATTEND, .n = 2, .w = 312, .heads = 4, .d = 2, .lk = 312, .fused = 1 },
    { ATTEND, .n = 2, .w = 300, .heads = 3, .d = 40, .lk = 300, .fused = 1 },
    { ATTEND, .n = 2, .w = 65, .heads = 2, .d = 80, .lk = 77, .rows = 3 },
    { ATTEND, .n = 3, .w = 64, .heads = 2, .d = 160, .lk = 77, .rows = 2 },
    { ATTEND, .n = 2, .w = 77, .heads = 3, .d = 64, .lk = 77, .causal = 1,
      .fused = 1 },
    { ATTEND, .n = 1, .w = 300, .heads = 2, .d = 20, .lk = 300, .causal = 1 },
    { ATTEND, .n = 1, .w = 520, .heads = 1, .d = 512, .lk = 520 },
    { ATTEND, .n = 1, .w = 100, .heads = 5, .d = 15, .lk = 1000 },
};


#endif
