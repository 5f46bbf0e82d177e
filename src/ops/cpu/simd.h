/*
 * Sixteen floats at a time, on any machine: one AVX-512 register, two of AVX2,
 * or four of the compiler's own vectors.  Kernels are written once over these
 * functions and compiled once an instruction set, with SD_AVX512 or SD_AVX2
 * defined or neither.
 *
 * The same operations in the same order give the same bits with AVX-512 and
 * AVX2: sd_fma() is one rounding in both, and what sums over lanes goes by
 * halves.  Without FMA sd_fma() rounds twice, hence another numerics id.
 *
 * Own exp, sigmoid and erf: vector code, a few ulp, equal everywhere.
 */

#ifndef SD_CPU_SIMD_H
#define SD_CPU_SIMD_H

#include <stdint.h>
#include <string.h>

#if defined(SD_AVX512) || defined(SD_AVX2)
#include <immintrin.h>
#endif


#define SD_LANES  16

#define sd_inline  static inline __attribute__((always_inline, unused))


#if defined(SD_AVX512)

typedef __m512  v16;

sd_inline v16 v_set(float x) { return _mm512_set1_ps(x); }
sd_inline v16 v_load(const float *p) { return _mm512_loadu_ps(p); }
sd_inline void v_store(float *p, v16 a) { _mm512_storeu_ps(p, a); }
sd_inline v16 v_add(v16 a, v16 b) { return _mm512_add_ps(a, b); }
sd_inline v16 v_sub(v16 a, v16 b) { return _mm512_sub_ps(a, b); }
sd_inline v16 v_mul(v16 a, v16 b) { return _mm512_mul_ps(a, b); }
sd_inline v16 v_div(v16 a, v16 b) { return _mm512_div_ps(a, b); }
sd_inline v16 v_max(v16 a, v16 b) { return _mm512_max_ps(a, b); }
sd_inline v16 v_min(v16 a, v16 b) { return _mm512_min_ps(a, b); }
sd_inline v16 v_fma(v16 a, v16 b, v16 c) { return _mm512_fmadd_ps(a, b, c); }
sd_inline v16 v_fnma(v16 a, v16 b, v16 c) { return _mm512_fnmadd_ps(a, b, c); }

/* the first n lanes, 0 < n <= 16; the others are zero, and stay as they are */

sd_inline v16
v_loadn(const float *p, int n)
{
    return _mm512_maskz_loadu_ps((__mmask16) (0xffffu >> (16 - n)), p);
}

sd_inline void
v_storen(float *p, v16 a, int n)
{
    _mm512_mask_storeu_ps(p, (__mmask16) (0xffffu >> (16 - n)), a);
}

/* a 2^k where t = 0x1.8p23 + k, as a sum on the exponent's bits */

sd_inline v16
v_scale2(v16 a, v16 t)
{
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a),
               _mm512_slli_epi32(_mm512_castps_si512(t), 23)));
}

/* about 1 / a, to a twentieth: a line through the logarithm, which bits are */

sd_inline v16
v_recip0(v16 a)
{
    return _mm512_castsi512_ps(_mm512_sub_epi32(_mm512_set1_epi32(0x7ef30000),
                                                _mm512_castps_si512(a)));
}

/* y where x >= limit, else zero */

sd_inline v16
v_where_ge(v16 x, v16 limit, v16 y)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_GE_OQ), y);
}

/* sixteen pairs of bf16: the first of each, and the second */

sd_inline v16
v_even_bf16(const void *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}

sd_inline v16
v_odd_bf16(const void *p)
{
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p),
               _mm512_set1_epi32((int) 0xffff0000)));
}

/* v_scale2() where t >= limit, else zero */

sd_inline v16
v_scale2_ge(v16 a, v16 t, v16 limit)
{
    return _mm512_castsi512_ps(_mm512_maskz_add_epi32(
               _mm512_cmp_ps_mask(t, limit, _CMP_GE_OQ),
               _mm512_castps_si512(a),
               _mm512_slli_epi32(_mm512_castps_si512(t), 23)));
}

/* |a|, and a with the sign of b */

sd_inline v16
v_abs(v16 a)
{
    return _mm512_abs_ps(a);
}

sd_inline v16
v_sign(v16 a, v16 b)
{
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(a),
               _mm512_and_si512(_mm512_castps_si512(b),
                                _mm512_set1_epi32((int) 0x80000000))));
}

typedef __m256  v8;

sd_inline v8 v_low(v16 a) { return _mm512_castps512_ps256(a); }
sd_inline v8 v_high(v16 a) { return _mm512_extractf32x8_ps(a, 1); }

#elif defined(SD_AVX2)

typedef struct {
    __m256  a, b;
} v16;

#define sd_v2(name, op)                                                       \
                                                                              \
    sd_inline v16                                                             \
    name(v16 x, v16 y)                                                        \
    {                                                                         \
        v16  r;                                                               \
                                                                              \
        r.a = op(x.a, y.a);                                                   \
        r.b = op(x.b, y.b);                                                   \
        return r;                                                             \
    }

sd_v2(v_add, _mm256_add_ps)
sd_v2(v_sub, _mm256_sub_ps)
sd_v2(v_mul, _mm256_mul_ps)
sd_v2(v_div, _mm256_div_ps)
sd_v2(v_max, _mm256_max_ps)
sd_v2(v_min, _mm256_min_ps)

sd_inline v16
v_set(float x)
{
    v16  r;

    r.a = _mm256_set1_ps(x);
    r.b = r.a;
    return r;
}

sd_inline v16
v_load(const float *p)
{
    v16  r;

    r.a = _mm256_loadu_ps(p);
    r.b = _mm256_loadu_ps(p + 8);
    return r;
}

sd_inline void
v_store(float *p, v16 x)
{
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}

sd_inline v16
v_fma(v16 x, v16 y, v16 z)
{
    v16  r;

    r.a = _mm256_fmadd_ps(x.a, y.a, z.a);
    r.b = _mm256_fmadd_ps(x.b, y.b, z.b);
    return r;
}

sd_inline v16
v_fnma(v16 x, v16 y, v16 z)
{
    v16  r;

    r.a = _mm256_fnmadd_ps(x.a, y.a, z.a);
    r.b = _mm256_fnmadd_ps(x.b, y.b, z.b);
    return r;
}

sd_inline v16
v_scale2(v16 x, v16 t)
{
    v16  r;

    r.a = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x.a),
              _mm256_slli_epi32(_mm256_castps_si256(t.a), 23)));
    r.b = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x.b),
              _mm256_slli_epi32(_mm256_castps_si256(t.b), 23)));
    return r;
}

sd_inline v16
v_recip0(v16 x)
{
    v16  r;

    r.a = _mm256_castsi256_ps(_mm256_sub_epi32(_mm256_set1_epi32(0x7ef30000),
                                               _mm256_castps_si256(x.a)));
    r.b = _mm256_castsi256_ps(_mm256_sub_epi32(_mm256_set1_epi32(0x7ef30000),
                                               _mm256_castps_si256(x.b)));
    return r;
}

sd_inline v16
v_where_ge(v16 x, v16 limit, v16 y)
{
    v16  r;

    r.a = _mm256_and_ps(_mm256_cmp_ps(x.a, limit.a, _CMP_GE_OQ), y.a);
    r.b = _mm256_and_ps(_mm256_cmp_ps(x.b, limit.b, _CMP_GE_OQ), y.b);
    return r;
}

sd_inline v16
v_abs(v16 x)
{
    v16  r;

    r.a = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x.a);
    r.b = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x.b);
    return r;
}

sd_inline v16
v_sign(v16 x, v16 s)
{
    v16  r;

    r.a = _mm256_or_ps(x.a, _mm256_and_ps(s.a, _mm256_set1_ps(-0.0f)));
    r.b = _mm256_or_ps(x.b, _mm256_and_ps(s.b, _mm256_set1_ps(-0.0f)));
    return r;
}

typedef __m256  v8;

sd_inline v8 v_low(v16 x) { return x.a; }
sd_inline v8 v_high(v16 x) { return x.b; }

#else

typedef float     v4 __attribute__((vector_size(16)));
typedef int32_t   v4i __attribute__((vector_size(16)));
typedef uint32_t  v4u __attribute__((vector_size(16)));

typedef struct {
    v4  q[4];
} v16;

#define sd_each(expr)                                                         \
    v16  r;                                                                   \
    int  i;                                                                   \
                                                                              \
    _Pragma("GCC unroll 4")                                                   \
    for (i = 0; i < 4; i++) {                                                 \
        r.q[i] = (expr);                                                      \
    }                                                                         \
                                                                              \
    return r

sd_inline v4
v4_select(v4i mask, v4 a, v4 b)
{
    return (v4) ((mask & (v4i) a) | (~mask & (v4i) b));
}

sd_inline v16 v_set(float x) { sd_each(((v4) { x, x, x, x })); }
sd_inline v16 v_add(v16 a, v16 b) { sd_each(a.q[i] + b.q[i]); }
sd_inline v16 v_sub(v16 a, v16 b) { sd_each(a.q[i] - b.q[i]); }
sd_inline v16 v_mul(v16 a, v16 b) { sd_each(a.q[i] * b.q[i]); }
sd_inline v16 v_div(v16 a, v16 b) { sd_each(a.q[i] / b.q[i]); }

sd_inline v16
v_max(v16 a, v16 b)
{
    sd_each(v4_select(a.q[i] > b.q[i], a.q[i], b.q[i]));
}

sd_inline v16
v_min(v16 a, v16 b)
{
    sd_each(v4_select(a.q[i] < b.q[i], a.q[i], b.q[i]));
}

sd_inline v16
v_fma(v16 a, v16 b, v16 c)
{
    sd_each(a.q[i] * b.q[i] + c.q[i]);
}

sd_inline v16
v_fnma(v16 a, v16 b, v16 c)
{
    sd_each(c.q[i] - a.q[i] * b.q[i]);
}

sd_inline v16
v_load(const float *p)
{
    v16  r;

    memcpy(&r, p, sizeof(r));
    return r;
}

sd_inline void
v_store(float *p, v16 a)
{
    memcpy(p, &a, sizeof(a));
}

sd_inline v16
v_scale2(v16 a, v16 t)
{
    sd_each((v4) ((v4i) a.q[i] + ((v4i) t.q[i] << 23)));
}

sd_inline v16
v_recip0(v16 a)
{
    sd_each((v4) ((v4u) { 0x7ef30000, 0x7ef30000, 0x7ef30000, 0x7ef30000 }
                  - (v4u) a.q[i]));
}

sd_inline v16
v_where_ge(v16 x, v16 limit, v16 y)
{
    sd_each((v4) ((x.q[i] >= limit.q[i]) & (v4i) y.q[i]));
}

sd_inline v16
v_abs(v16 a)
{
    sd_each((v4) ((v4i) a.q[i] & (v4i) { INT32_MAX, INT32_MAX, INT32_MAX,
                                         INT32_MAX }));
}

sd_inline v16
v_sign(v16 a, v16 b)
{
    sd_each((v4) ((v4i) a.q[i] | ((v4i) b.q[i] & (v4i) { INT32_MIN, INT32_MIN,
                                             INT32_MIN, INT32_MIN })));
}

#endif


#if !defined(SD_AVX512)

sd_inline v16
v_even_bf16(const void *p)
{
    int       i;
    uint32_t  w[SD_LANES];

    memcpy(w, p, sizeof(w));

    for (i = 0; i < SD_LANES; i++) {
        w[i] <<= 16;
    }

    return v_load((float *) w);
}

sd_inline v16
v_odd_bf16(const void *p)
{
    int       i;
    uint32_t  w[SD_LANES];

    memcpy(w, p, sizeof(w));

    for (i = 0; i < SD_LANES; i++) {
        w[i] &= 0xffff0000;
    }

    return v_load((float *) w);
}

sd_inline v16
v_scale2_ge(v16 a, v16 t, v16 limit)
{
    return v_where_ge(t, limit, v_scale2(a, t));
}

sd_inline v16
v_loadn(const float *p, int n)
{
    float  t[SD_LANES] __attribute__((aligned(64))) = { 0 };

    memcpy(t, p, n * sizeof(float));
    return v_load(t);
}

sd_inline void
v_storen(float *p, v16 a, int n)
{
    float  t[SD_LANES] __attribute__((aligned(64)));

    v_store(t, a);
    memcpy(p, t, n * sizeof(float));
}

#endif


/* all sixteen or the first n */

sd_inline v16
v_loadx(const float *p, int n)
{
    return n >= SD_LANES ? v_load(p) : v_loadn(p, n);
}

sd_inline void
v_storex(float *p, v16 a, int n)
{
    if (n >= SD_LANES) {
        v_store(p, a);

    } else {
        v_storen(p, a, n);
    }
}


/* over lanes, by halves: 8 + 8, 4 + 4, 2 + 2, 1 + 1 */

#if defined(SD_AVX512) || defined(SD_AVX2)

#define sd_halves(name, op8, op4)                                             \
                                                                              \
    sd_inline float                                                           \
    name(v16 a)                                                               \
    {                                                                         \
        v8      h;                                                            \
        __m128  q;                                                            \
                                                                              \
        h = op8(v_low(a), v_high(a));                                         \
        q = op4(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));      \
        q = op4(q, _mm_movehl_ps(q, q));                                      \
        q = op4(q, _mm_movehdup_ps(q));                                       \
                                                                              \
        return _mm_cvtss_f32(q);                                              \
    }

sd_halves(v_sum, _mm256_add_ps, _mm_add_ps)

#else

sd_inline float
v_sum(v16 a)
{
    v4  q;

    q = (a.q[0] + a.q[2]) + (a.q[1] + a.q[3]);

    return (q[0] + q[2]) + (q[1] + q[3]);
}

#endif


/* dst[j][i] = src[i][j], i < rows, j < columns */

#if defined(SD_AVX512) || defined(SD_AVX2)

sd_inline void
v_transpose8(float *dst, size_t ldd, const float *src, size_t lds)
{
    int     i;
    __m256  r[8], t[8];

#pragma GCC unroll 8
    for (i = 0; i < 8; i++) {
        r[i] = _mm256_loadu_ps(src + i * lds);
    }

#pragma GCC unroll 4
    for (i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }

#pragma GCC unroll 2
    for (i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }

#pragma GCC unroll 4
    for (i = 0; i < 4; i++) {
        _mm256_storeu_ps(dst + i * ldd,
                         _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps(dst + (i + 4) * ldd,
                         _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
}

#endif

sd_inline void
v_transpose(float *dst, size_t ldd, const float *src, size_t lds, int rows,
    int columns)
{
    int  i, j, done;

    for (i = 0; i < rows; i++) {
        done = 0;

#if defined(SD_AVX512) || defined(SD_AVX2)

        if (i % 8 == 0 && i + 8 <= rows) {
            for (j = 0; j + 8 <= columns; j += 8) {
                v_transpose8(dst + j * ldd + i, ldd, src + i * lds + j, lds);
            }
        }

        done = i < rows / 8 * 8 ? columns / 8 * 8 : 0;

#endif

        for (j = done; j < columns; j++) {
            dst[j * ldd + i] = src[i * lds + j];
        }
    }
}


/*
 * exp(x): 2^k times a polynomial on |r| <= ln 2 / 2 (Cephes expf); zero below
 * -87.3, as exp(88.3) above that
 */

sd_inline v16
v_exp(v16 x)
{
    v16  t, n, r, p, y;

    y = v_min(v_max(x, v_set(-87.3f)), v_set(88.3f));

    t = v_fma(y, v_set(1.44269504f), v_set(0x1.8p23f));
    n = v_sub(t, v_set(0x1.8p23f));

    r = v_fnma(n, v_set(0.693359375f), y);
    r = v_fma(n, v_set(2.12194440e-4f), r);

    p = v_set(1.9875691500e-4f);
    p = v_fma(p, r, v_set(1.3981999507e-3f));
    p = v_fma(p, r, v_set(8.3334519073e-3f));
    p = v_fma(p, r, v_set(4.1665795894e-2f));
    p = v_fma(p, r, v_set(1.6666665459e-1f));
    p = v_fma(p, r, v_set(5.0000001201e-1f));
    p = v_fma(v_mul(r, r), p, r);
    p = v_add(p, v_set(1.0f));

    return v_where_ge(x, v_set(-87.3f), v_scale2(p, t));
}


/* to whole numbers, |x| < 2^22 */

sd_inline v16
v_round(v16 x)
{
    return v_sub(v_add(x, v_set(0x1.8p23f)), v_set(0x1.8p23f));
}


/* 2^n for whole n <= 0, zero below -126 */

sd_inline v16
v_power2(v16 n)
{
    return v_where_ge(n, v_set(-126.0f),
                      v_scale2(v_set(1.0f), v_add(n, v_set(0x1.8p23f))));
}


/* 2^r, |r| <= 1/2, to 1e-7: a least-maximum fit */

sd_inline v16
v_exp2_near(v16 r)
{
    v16  p;

    p = v_set(1.327642589e-03f);
    p = v_fma(p, r, v_set(9.675586596e-03f));
    p = v_fma(p, r, v_set(5.550713837e-02f));
    p = v_fma(p, r, v_set(2.402211875e-01f));
    p = v_fma(p, r, v_set(6.931469440e-01f));

    return v_fma(p, r, v_set(1.000000119e+00f));
}


/*
 * 2^(x c - m) with base = v_exp2_base(m), for a whole m, |m| < 2^22, that x c
 * does not exceed by more than a few; zero below 2^-126.  That m is whole makes
 * one sum of what is subtracted and what rounds.  A factor of about 1 + 1e-7,
 * equal for all, is free, since a softmax divides by the sum: five terms do.
 */

sd_inline v16
v_exp2_base(v16 m)
{
    return v_sub(v_set(0x1.8p23f), m);
}

sd_inline v16
v_exp2_below(v16 x, v16 c, v16 base)
{
    v16  t, r;

    t = v_fma(x, c, base);
    r = v_fma(x, c, v_sub(base, t));

    return v_scale2_ge(v_exp2_near(r), t, v_set(0x1.8p23f - 126));
}

/* the same to 8e-5, for what becomes bf16 */

sd_inline v16
v_exp2_rough(v16 x, v16 c, v16 base)
{
    v16  t, r, p;

    t = v_fma(x, c, base);
    r = v_fma(x, c, v_sub(base, t));

    p = v_set(5.517140403e-02f);
    p = v_fma(p, r, v_set(2.426130176e-01f));
    p = v_fma(p, r, v_set(6.932611465e-01f));
    p = v_fma(p, r, v_set(9.999279380e-01f));

    return v_scale2_ge(p, t, v_set(0x1.8p23f - 126));
}


/*
 * 1 / a, to about an ulp, for 2^-100 < |a| < 2^100: five operations that may
 * overlap with others, where AVX-512's division takes sixteen cycles
 */

sd_inline v16
v_recip(v16 a)
{
    v16  r, e;

    r = v_recip0(a);

    e = v_fnma(a, r, v_set(1.0f));
    r = v_fma(r, v_fma(e, e, e), r);

    e = v_fnma(a, r, v_set(1.0f));

    return v_fma(r, e, r);
}


/*
 * x / (1 + exp(-a x)): SiLU, and quick GELU with a = 1.702.  Beyond 60 the
 * sigmoid is one, or so little as none
 */

sd_inline v16
v_swish(v16 x, float a)
{
    v16  t, c, y, r, p;

    y = v_min(v_max(x, v_set(-60.0f / a)), v_set(60.0f / a));
    c = v_set(-1.44269504f * a);

    t = v_fma(y, c, v_set(0x1.8p23f));
    r = v_fma(y, c, v_sub(v_set(0x1.8p23f), t));

    p = v_scale2(v_exp2_near(r), t);

    return v_mul(x, v_recip(v_add(p, v_set(1.0f))));
}


/* tanh by exp(-2 |x|); next to zero by its series, where that cancels */

sd_inline v16
v_tanh(v16 x)
{
    v16  a, e, t, z, p;

    a = v_abs(x);
    e = v_exp(v_mul(a, v_set(-2.0f)));
    t = v_div(v_sub(v_set(1.0f), e), v_add(v_set(1.0f), e));

    /* Cephes tanhf below 0.625 */

    z = v_mul(x, x);
    p = v_set(-5.70498872745e-3f);
    p = v_fma(p, z, v_set(2.06390887954e-2f));
    p = v_fma(p, z, v_set(-5.37397155531e-2f));
    p = v_fma(p, z, v_set(1.33314422036e-1f));
    p = v_fma(p, z, v_set(-3.33332819422e-1f));
    p = v_fma(v_mul(p, z), a, a);

    /* where() has one arm: the other by subtraction of exact zeros */

    t = v_where_ge(a, v_set(0.625f), t);
    p = v_sub(p, v_where_ge(a, v_set(0.625f), p));

    return v_sign(v_add(t, p), x);
}


/*
 * erf(x): rational in x on |x| <= 4, as Eigen's and XLA's; 1 beyond in float
 */

sd_inline v16
v_erf(v16 x)
{
    v16  z, p, q;

    x = v_min(v_max(x, v_set(-4.0f)), v_set(4.0f));
    z = v_mul(x, x);

    p = v_set(-2.72614225801306e-10f);
    p = v_fma(p, z, v_set(2.77068142495902e-08f));
    p = v_fma(p, z, v_set(-2.10102402082508e-06f));
    p = v_fma(p, z, v_set(-5.69250639462346e-05f));
    p = v_fma(p, z, v_set(-7.34990630326855e-04f));
    p = v_fma(p, z, v_set(-2.95459980854025e-03f));
    p = v_fma(p, z, v_set(-1.60960333262415e-02f));

    q = v_set(-1.45660718464996e-05f);
    q = v_fma(q, z, v_set(-2.13374055278905e-04f));
    q = v_fma(q, z, v_set(-1.68282697438203e-03f));
    q = v_fma(q, z, v_set(-7.37332916720468e-03f));
    q = v_fma(q, z, v_set(-1.42647390514189e-02f));

    return v_mul(v_mul(x, p), v_recip(q));
}

sd_inline v16
v_gelu(v16 x)
{
    return v_mul(v_mul(x, v_set(0.5f)),
                 v_add(v_set(1.0f), v_erf(v_mul(x, v_set(0.70710678f)))));
}

sd_inline v16
v_gelu_tanh(v16 x)
{
    v16  t;

    t = v_fma(v_mul(v_mul(x, x), x), v_set(0.044715f), x);
    t = v_tanh(v_mul(t, v_set(0.79788456f)));

    return v_mul(v_mul(x, v_set(0.5f)), v_add(v_set(1.0f), t));
}


#endif
