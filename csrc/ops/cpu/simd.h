/* One vector of floats, VL wide, for the instruction set that ISA_LEVEL names: 1 = SSE2, 3 = AVX2 + FMA, 4 = AVX-512.
 * Included by loops_impl.h alone, after it has set the compiler's target. + - * / work on `vf` as on floats. */
#include <immintrin.h>
#include <string.h>

#if ISA_LEVEL == 4
#define VL 16
typedef __m512 vf;
#define vload(p) _mm512_loadu_ps(p)
#define vstore(p, v) _mm512_storeu_ps(p, v)
#define vset(x) _mm512_set1_ps(x)
#define vfma(a, b, c) _mm512_fmadd_ps(a, b, c)   /* a b + c */
#define vnfma(a, b, c) _mm512_fnmadd_ps(a, b, c) /* c - a b */
#define vmax(a, b) _mm512_max_ps(a, b)           /* b if either is NaN */
#define vmin(a, b) _mm512_min_ps(a, b)
#define vround(v) _mm512_roundscale_ps(v, 0)
/* 2^n of a whole number n in [-126, 127] */
#define vpow2(n) \
    _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23))
#define vsum(v) _mm512_reduce_add_ps(v)
#define vhighest(v) _mm512_reduce_max_ps(v)
/* Turns pairs (a, b) by (cos, sin): (a cos - b sin, b cos + a sin). */
#define vturn(v, cs) \
    _mm512_fmaddsub_ps(v, _mm512_moveldup_ps(cs), _mm512_mul_ps(_mm512_permute_ps(v, 0xB1), _mm512_movehdup_ps(cs)))
#elif ISA_LEVEL == 3
#define VL 8
typedef __m256 vf;
#define vload(p) _mm256_loadu_ps(p)
#define vstore(p, v) _mm256_storeu_ps(p, v)
#define vset(x) _mm256_set1_ps(x)
#define vfma(a, b, c) _mm256_fmadd_ps(a, b, c)
#define vnfma(a, b, c) _mm256_fnmadd_ps(a, b, c)
#define vmax(a, b) _mm256_max_ps(a, b)
#define vmin(a, b) _mm256_min_ps(a, b)
#define vround(v) _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define vpow2(n) \
    _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23))
static inline float vsum(vf v)
{
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}
static inline float vhighest(vf v)
{
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}
#define vturn(v, cs) \
    _mm256_fmaddsub_ps(v, _mm256_moveldup_ps(cs), _mm256_mul_ps(_mm256_permute_ps(v, 0xB1), _mm256_movehdup_ps(cs)))
#else
#define VL 4
typedef __m128 vf;
#define vload(p) _mm_loadu_ps(p)
#define vstore(p, v) _mm_storeu_ps(p, v)
#define vset(x) _mm_set1_ps(x)
#define vfma(a, b, c) _mm_add_ps(_mm_mul_ps(a, b), c)
#define vnfma(a, b, c) _mm_sub_ps(c, _mm_mul_ps(a, b))
#define vmax(a, b) _mm_max_ps(a, b)
#define vmin(a, b) _mm_min_ps(a, b)
#define vround(v) _mm_cvtepi32_ps(_mm_cvtps_epi32(v))
#define vpow2(n) _mm_castsi128_ps(_mm_slli_epi32(_mm_add_epi32(_mm_cvtps_epi32(n), _mm_set1_epi32(127)), 23))
static inline float vsum(vf x)
{
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}
static inline float vhighest(vf x)
{
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}
static inline vf vturn(vf v, vf cs)
{
    vf sine = _mm_xor_ps(_mm_shuffle_ps(cs, cs, 0xF5), _mm_setr_ps(-0.f, 0.f, -0.f, 0.f));
    return v * _mm_shuffle_ps(cs, cs, 0xA0) + _mm_shuffle_ps(v, v, 0xB1) * sine;
}
#endif

/* The first min(n, VL) numbers at p; the other lanes are 0. */
static inline vf vload_n(const float *p, int64_t n)
{
    if (n >= VL) return vload(p);
    float lane[VL] = {0};
    memcpy(lane, p, (size_t)n * sizeof(float));
    return vload(lane);
}

static inline void vstore_n(float *p, vf v, int64_t n)
{
    if (n >= VL) {
        vstore(p, v);
        return;
    }
    float lane[VL];
    vstore(lane, v);
    memcpy(p, lane, (size_t)n * sizeof(float));
}

/* e^x, relative error below 2e-7; x beyond [-87.3, 88.3] counts as that bound, so that nothing becomes 0 or infinite.
 * NaN stays NaN. x = n ln 2 + r with ln 2 in two parts; the polynomial is the well-known one of Cephes. */
static inline vf vexp(vf x)
{
    x = vmin(vset(88.3f), vmax(vset(-87.3f), x));
    vf n = vround(x * vset(1.44269504f));
    vf r = vnfma(n, vset(0.693359375f), x);
    r = vnfma(n, vset(-2.12194440e-4f), r);
    vf p = vset(1.9875691500e-4f);
    p = vfma(p, r, vset(1.3981999507e-3f));
    p = vfma(p, r, vset(8.3334519073e-3f));
    p = vfma(p, r, vset(4.1665795894e-2f));
    p = vfma(p, r, vset(1.6666665459e-1f));
    p = vfma(p, r, vset(5.0000001201e-1f));
    p = vfma(p, r * r, r) + vset(1.f);
    return p * vpow2(n);
}

static inline vf vsilu(vf x) { return x / (vset(1.f) + vexp(vset(0.f) - x)); }

/* x (1 + tanh u) / 2 = x / (1 + e^(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3): no cancellation for negative x. */
static inline vf vgelu(vf x)
{
    vf u = x * vfma(x * x, vset(0.044715f), vset(1.f));
    return x / (vset(1.f) + vexp(u * vset(-1.5957691216f)));
}
