/*
 * Matrix products by cublasLt, and what is one: linear layers and 1x1
 * convolutions.
 *
 * Row-major y [rows, cols] is cublasLt's column-major [cols, rows], so w is its
 * A and x its B: both then stand with the depth first, which is the layout that
 * its Hopper kernels like best.
 *
 * Every algorithm that does not split the depth gives the same bits (39 of 39
 * shapes on an H100, whatever tile, cluster and number of rows), so the fastest
 * may be chosen for each number of rows.
 */

#include <stdlib.h>
#include <string.h>

#include "cuda.h"


#define SD_GEMM_ASK        24       /* candidates a number of rows */
#define SD_GEMM_CANDIDATES 96
#define SD_GEMM_TRIAL      ((size_t) 192 << 20)     /* more than any L2 */


typedef struct {
    int      rows, cols, depth, ldx, ldw, ldy;
    int      w_by_depth, y_is_float, bias, residual;
    int      align;                 /* bytes, of all addresses */
} sd_gemm_key_t;

typedef struct {
    sd_cuda_plan_t           plan;
    cublasLtMatmulDesc_t     desc;
    cublasLtMatrixLayout_t   a, b, d;
    cublasLtMatmulAlgo_t     algo;
} sd_gemm_plan_t;

typedef struct {
    sd_cuda_device_t  *dev;
    sd_gemm_plan_t    *plan;
    sd_cuda_trial_t   *trial;
    sd_gemm_key_t      key;
    size_t             x, w, y;         /* bytes */
} sd_gemm_trial_t;


static void
sd_gemm_free(sd_cuda_plan_t *plan)
{
    sd_gemm_plan_t  *p = (sd_gemm_plan_t *) plan;

    if (p->desc) {
        cublasLtMatmulDescDestroy(p->desc);
    }

    if (p->a) {
        cublasLtMatrixLayoutDestroy(p->a);
    }

    if (p->b) {
        cublasLtMatrixLayoutDestroy(p->b);
    }

    if (p->d) {
        cublasLtMatrixLayoutDestroy(p->d);
    }

    free(p);
}


static cublasStatus_t
sd_gemm_run(sd_cuda_device_t *dev, sd_gemm_plan_t *p, const sd_cuda_gemm_t *g,
    void *workspace, cudaStream_t stream)
{
    float           beta;
    cublasStatus_t  rc;

    if (g->bias) {
        rc = cublasLtMatmulDescSetAttribute(p->desc,
                 CUBLASLT_MATMUL_DESC_BIAS_POINTER, &g->bias,
                 sizeof(g->bias));

        if (rc != CUBLAS_STATUS_SUCCESS) {
            return rc;
        }
    }

    beta = g->residual ? 1 : 0;

    return cublasLtMatmul(dev->lt, p->desc, &g->alpha, g->w, p->a, g->x, p->b,
                          &beta, g->residual ? g->residual : g->y, p->d, g->y,
                          p->d, &p->algo, workspace, SD_CUDA_WORKSPACE,
                          stream);
}


/* launch i of a trial, with a weight that is not in the cache */

static int
sd_gemm_try(void *data, cudaStream_t stream, int i)
{
    char             *m;
    size_t            left;
    sd_cuda_gemm_t    g = { 0 };
    sd_gemm_trial_t  *t = data;

    m = t->trial->memory;

    g.x = (sd_half_t *) m;
    g.y = m + t->x;
    g.bias = t->key.bias ? (sd_half_t *) m : NULL;
    g.residual = t->key.residual ? g.y : NULL;
    g.alpha = 1;

    left = t->trial->size - t->x - t->y - t->w;
    g.w = (sd_half_t *) (m + t->x + t->y
                         + (left ? (size_t) i * t->w % left / 256 * 256 : 0));

    return sd_gemm_run(t->dev, t->plan, &g, t->trial->workspace, stream)
           == CUBLAS_STATUS_SUCCESS ? SD_OK : SD_ERROR;
}


/* algorithms that the library proposes for so many rows */

static int
sd_gemm_candidates(sd_cuda_device_t *dev, sd_gemm_plan_t *p, int rows,
    uint32_t align, cublasLtMatmulHeuristicResult_t *out, int max)
{
    static const cublasLtMatmulPreferenceAttributes_t  aligns[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES
    };

    int                         n, i, k;
    size_t                      workspace;
    int32_t                     split;
    uint32_t                    schemes;
    uint64_t                    cols;
    cublasStatus_t              rc;
    cublasLtMatmulPreference_t  pref;

    if (cublasLtMatmulPreferenceCreate(&pref) != CUBLAS_STATUS_SUCCESS) {
        return 0;
    }

    workspace = SD_CUDA_WORKSPACE;
    schemes = CUBLASLT_REDUCTION_SCHEME_NONE;

    cublasLtMatmulPreferenceSetAttribute(pref,
        CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
        sizeof(workspace));
    cublasLtMatmulPreferenceSetAttribute(pref,
        CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes,
        sizeof(schemes));

    for (i = 0; i < 4; i++) {
        cublasLtMatmulPreferenceSetAttribute(pref, aligns[i], &align,
                                             sizeof(align));
    }

    cols = rows;
    cublasLtMatrixLayoutSetAttribute(p->b, CUBLASLT_MATRIX_LAYOUT_COLS, &cols,
                                     sizeof(cols));
    cublasLtMatrixLayoutSetAttribute(p->d, CUBLASLT_MATRIX_LAYOUT_COLS, &cols,
                                     sizeof(cols));

    rc = cublasLtMatmulAlgoGetHeuristic(dev->lt, p->desc, p->a, p->b, p->d,
                                        p->d, pref, max, out, &n);

    cublasLtMatmulPreferenceDestroy(pref);

    if (rc != CUBLAS_STATUS_SUCCESS) {
        return 0;
    }

    for (i = 0, k = 0; i < n; i++) {
        split = 1;

        (void) cublasLtMatmulAlgoConfigGetAttribute(&out[i].algo,
                   CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &split, sizeof(split),
                   NULL);

        if (out[i].state == CUBLAS_STATUS_SUCCESS && split <= 1) {
            out[k++] = out[i];
        }
    }

    return k;
}


/* the fastest of what is proposed for these rows, and for more and fewer */

static int
sd_gemm_choose(sd_cuda_device_t *dev, sd_gemm_plan_t *p,
    const sd_gemm_key_t *key, sd_error_t *err)
{
    int                               i, j, n;
    float                             us, best;
    uint64_t                          cols;
    sd_cuda_trial_t                   trial;
    sd_gemm_trial_t                   t;
    cublasLtMatmulAlgo_t              algo;
    cublasLtMatmulHeuristicResult_t  *list, check;

    list = calloc(SD_GEMM_CANDIDATES, sizeof(*list));

    if (list == NULL) {
        return sd_fail(err, "no memory for a plan");
    }

    n = sd_gemm_candidates(dev, p, key->rows, key->align, list,
                           SD_GEMM_ASK);

    if (n == 0) {
        free(list);
        return sd_fail(err, "cublasLt has no [%d, %d] x [%d, %d]", key->rows,
                       key->depth, key->depth, key->cols);
    }

    p->algo = list[0].algo;

    if (dev->tune) {
        n += sd_gemm_candidates(dev, p, 8 * key->rows, key->align, list + n,
                                SD_GEMM_ASK);
        n += sd_gemm_candidates(dev, p, key->rows > 4 ? key->rows / 4 : 1,
                                key->align, list + n, SD_GEMM_ASK);
    }

    cols = key->rows;
    cublasLtMatrixLayoutSetAttribute(p->b, CUBLASLT_MATRIX_LAYOUT_COLS, &cols,
                                     sizeof(cols));
    cublasLtMatrixLayoutSetAttribute(p->d, CUBLASLT_MATRIX_LAYOUT_COLS, &cols,
                                     sizeof(cols));

    if (!dev->tune || n == 1) {
        free(list);
        return SD_OK;
    }

    memset(&t, 0, sizeof(t));

    t.dev = dev;
    t.plan = p;
    t.trial = &trial;
    t.key = *key;
    t.x = ((size_t) key->rows * key->ldx * 2 + 255) / 256 * 256;
    t.y = ((size_t) key->rows * key->ldy * (key->y_is_float ? 4 : 2) + 255)
          / 256 * 256;
    t.w = ((size_t) (key->w_by_depth ? key->depth : key->cols) * key->ldw * 2
           + 255) / 256 * 256;

    if (sd_cuda_trial_begin(&trial, t.x + t.y + t.w + SD_GEMM_TRIAL, err)
        != SD_OK)
    {
        free(list);
        return SD_ERROR;
    }

    algo = p->algo;
    best = -1;

    for (i = 0; i < n; i++) {

        for (j = 0; j < i; j++) {
            if (memcmp(&list[j].algo, &list[i].algo, sizeof(algo)) == 0) {
                break;
            }
        }

        if (j < i
            || cublasLtMatmulAlgoCheck(dev->lt, p->desc, p->a, p->b, p->d,
                                       p->d, &list[i].algo, &check)
               != CUBLAS_STATUS_SUCCESS
            || check.workspaceSize > SD_CUDA_WORKSPACE)
        {
            continue;
        }

        p->algo = list[i].algo;
        us = sd_cuda_trial_time(&trial, sd_gemm_try, &t);

        if (us > 0 && (best < 0 || us < best)) {
            best = us;
            algo = p->algo;
        }
    }

    p->algo = algo;
    p->plan.us = best;

    sd_cuda_trial_end(&trial);
    free(list);

    return SD_OK;
}


/* a plan without its algorithm; NULL: no memory, or nothing of that kind */

static sd_gemm_plan_t *
sd_gemm_describe(const sd_gemm_key_t *key)
{
    int                  ok;
    sd_gemm_plan_t      *p;
    cudaDataType_t       type;
    cublasOperation_t    op;
    cublasLtEpilogue_t   epilogue;

    p = calloc(1, sizeof(sd_gemm_plan_t));

    if (p == NULL) {
        return NULL;
    }

    op = key->w_by_depth ? CUBLAS_OP_N : CUBLAS_OP_T;
    epilogue = key->bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    type = key->y_is_float ? CUDA_R_32F : CUDA_R_16F;

    ok = cublasLtMatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F)
             == CUBLAS_STATUS_SUCCESS
         && cublasLtMatmulDescSetAttribute(p->desc,
                CUBLASLT_MATMUL_DESC_TRANSA, &op, sizeof(op))
             == CUBLAS_STATUS_SUCCESS
         && cublasLtMatmulDescSetAttribute(p->desc,
                CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof(epilogue))
             == CUBLAS_STATUS_SUCCESS
         && cublasLtMatrixLayoutCreate(&p->a, CUDA_R_16F,
                key->w_by_depth ? key->cols : key->depth,
                key->w_by_depth ? key->depth : key->cols, key->ldw)
             == CUBLAS_STATUS_SUCCESS
         && cublasLtMatrixLayoutCreate(&p->b, CUDA_R_16F, key->depth,
                key->rows, key->ldx)
             == CUBLAS_STATUS_SUCCESS
         && cublasLtMatrixLayoutCreate(&p->d, type, key->cols, key->rows,
                key->ldy)
             == CUBLAS_STATUS_SUCCESS;

    if (!ok) {
        sd_gemm_free(&p->plan);
        return NULL;
    }

    return p;
}


static sd_gemm_plan_t *
sd_gemm_plan(sd_cuda_device_t *dev, const sd_gemm_key_t *key, sd_error_t *err)
{
    sd_gemm_plan_t  *p;

    p = (sd_gemm_plan_t *) sd_cuda_plan_find(dev, &sd_cuda_gemms, key);

    if (p) {
        return p;
    }

    p = sd_gemm_describe(key);

    if (p == NULL) {
        sd_fail(err, "cublasLt does not describe [%d, %d] x [%d, %d]",
                key->rows, key->depth, key->depth, key->cols);
        return NULL;
    }

    if (sd_gemm_choose(dev, p, key, err) != SD_OK) {
        sd_gemm_free(&p->plan);
        return NULL;
    }

    sd_cuda_plan_add(dev, &p->plan, &sd_cuda_gemms, key);

    return p;
}


/* an algorithm is opaque: its words, which the library checks when it reads
 * them again */

static void
sd_gemm_save(const sd_cuda_plan_t *plan, char *text, size_t size)
{
    size_t                 i;
    const sd_gemm_plan_t  *p = (const sd_gemm_plan_t *) plan;

    for (i = 0; i < sizeof(p->algo.data) / sizeof(p->algo.data[0]); i++) {
        snprintf(text + 17 * i, size - 17 * i, "%016llx ",
                 (unsigned long long) p->algo.data[i]);
    }
}


static sd_cuda_plan_t *
sd_gemm_load(sd_cuda_device_t *dev, const int *key, const char *text)
{
    char                             *end;
    size_t                            i;
    sd_gemm_key_t                     k;
    sd_gemm_plan_t                   *p;
    cublasLtMatmulHeuristicResult_t   check;

    memcpy(&k, key, sizeof(k));
    p = sd_gemm_describe(&k);

    for (i = 0; p && i < sizeof(p->algo.data) / sizeof(p->algo.data[0]); i++) {
        p->algo.data[i] = strtoull(text, &end, 16);

        if (end == text) {
            break;
        }

        text = end;
    }

    if (p && (i < sizeof(p->algo.data) / sizeof(p->algo.data[0])
              || cublasLtMatmulAlgoCheck(dev->lt, p->desc, p->a, p->b, p->d,
                                         p->d, &p->algo, &check)
                 != CUBLAS_STATUS_SUCCESS
              || check.workspaceSize > SD_CUDA_WORKSPACE))
    {
        sd_gemm_free(&p->plan);
        return NULL;
    }

    return p ? &p->plan : NULL;
}


const sd_cuda_kind_t  sd_cuda_gemms = {
    "gemm", sizeof(sd_gemm_key_t) / sizeof(int), sd_gemm_free, sd_gemm_save,
    sd_gemm_load
};


int
sd_cuda_gemm(sd_context_t *cx, const sd_cuda_gemm_t *g)
{
    cublasStatus_t      rc;
    sd_gemm_key_t       key;
    sd_gemm_plan_t     *p;
    sd_cuda_context_t  *c = sd_cuda_of(cx);

    memset(&key, 0, sizeof(key));

    key.rows = g->rows;
    key.cols = g->cols;
    key.depth = g->depth;
    key.ldx = g->ldx;
    key.ldw = g->ldw;
    key.ldy = g->ldy;
    key.w_by_depth = g->w_by_depth;
    key.y_is_float = g->y_is_float;
    key.bias = g->bias != NULL;
    key.residual = g->residual != NULL;
    key.align = ((uintptr_t) g->y | (uintptr_t) g->x | (uintptr_t) g->w
                 | (uintptr_t) g->residual) % 16 == 0 ? 16 : 2;

    pthread_mutex_lock(&c->device->lock);

    p = sd_gemm_plan(c->device, &key, cx->err);
    rc = CUBLAS_STATUS_SUCCESS;

    if (p) {
        rc = sd_gemm_run(c->device, p, g, c->workspace, c->stream);
    }

    pthread_mutex_unlock(&c->device->lock);

    if (p == NULL) {
        return SD_ERROR;
    }

    return rc == CUBLAS_STATUS_SUCCESS
           ? SD_OK : sd_fail(cx->err, "cublasLt: %s for [%d, %d] x [%d, %d]",
                             cublasLtGetStatusString(rc), g->rows, g->depth,
                             g->depth, g->cols);
}


/*
 * The library has no activation of ours: SD's GELU is the exact one.  Results
 * are rounded once more on the way, which fp16's own error hides; not in what
 * product_sm90.cu takes, for which scratch is planned all the same, as plans know
 * no chip.
 */

int
sd_cuda_linear(sd_context_t *cx, sd_tensor_t y, const sd_linear_t *d)
{
    int                rows;
    cudaError_t        rc;
    sd_tensor_t        t;
    sd_cuda_gemm_t     g = { 0 };
    sd_cuda_product_t  q = { 0 };
    sd_cuda_packed_t   p;

    t = sd_cuda_linear_scratch(cx, d);

    if (cx->plan || cx->status != SD_OK) {
        sd_free(cx, &t);
        return cx->status;
    }

    sd_cuda_packed(d->w, &p);

    rows = d->x.n * d->x.h * d->x.w;

    g.x = d->x.data;
    g.w = d->w->data;
    g.bias = d->w->has_bias ? (sd_half_t *) ((char *) d->w->data + p.bias)
                            : NULL;
    g.rows = rows;
    g.cols = d->w->k;
    g.depth = d->w->c;
    g.ldx = d->w->c;
    g.ldw = d->w->c;
    g.ldy = d->w->k;
    g.alpha = 1;

    q.y = y.data;
    q.x = g.x;
    q.w = g.w;
    q.bias = g.bias;
    q.rows = rows;
    q.glu = d->act == SD_ACT_GEGLU;
    q.cols = q.glu ? d->w->k / 2 : d->w->k;
    q.c = d->w->c;
    q.add = !sd_empty(&d->residual);
    q.tile = -1;

    if ((q.glu || d->act == SD_ACT_NONE) && y.type == SD_F16
        && (!q.add || d->residual.data == y.data)
        && sd_cuda_product_sm90_takes(&sd_cuda_of(cx)->device->chip, &q))
    {
        sd_free(cx, &t);

        return sd_cuda_done(cx, sd_cuda_product_sm90(sd_cuda_stream(cx),
                                    &sd_cuda_of(cx)->device->chip, &q),
                            "product");
    }

    if (!sd_empty(&t)) {
        g.y = t.data;

        if (sd_cuda_gemm(cx, &g) != SD_OK) {
            sd_free(cx, &t);
            return SD_ERROR;
        }

        rc = d->act == SD_ACT_GEGLU
             ? sd_cuda_geglu(sd_cuda_stream(cx), y.data, t.data,
                             d->residual.data, rows, d->w->k / 2)
             : sd_cuda_act(sd_cuda_stream(cx), y.data, t.data,
                           d->residual.data, (size_t) rows * d->w->k, d->act);
        sd_free(cx, &t);

        return sd_cuda_done(cx, rc, "activation");
    }

    g.y = y.data;

    if (y.type == SD_F32) {
        g.y_is_float = 1;
        g.bias = NULL;

        if (sd_cuda_gemm(cx, &g) != SD_OK) {
            return SD_ERROR;
        }

        return !d->w->has_bias ? SD_OK
               : sd_cuda_done(cx, sd_cuda_add_bias(sd_cuda_stream(cx), y.data,
                                      (sd_half_t *) ((char *) d->w->data
                                                     + p.bias),
                                      rows, d->w->k), "add_bias");
    }

    if (d->act == SD_ACT_NONE) {
        g.residual = d->residual.data;
        return sd_cuda_gemm(cx, &g);
    }

    if (sd_cuda_gemm(cx, &g) != SD_OK) {
        return SD_ERROR;
    }

    return sd_cuda_done(cx, sd_cuda_act(sd_cuda_stream(cx), y.data, y.data,
                                        NULL, (size_t) rows * d->w->k,
                                        d->act), "activation");
}
