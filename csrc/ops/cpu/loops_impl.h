/* The loops of loops.h for one instruction set. The including file defines ISA_LEVEL and ISA_TABLE. */
#include "loops.h"

#include "target.h"

#include "simd.h"

/* ---- norms. Sums of 256 numbers in float lanes, then in double: rounding stays near 1e-7 for any row length. ---- */

#define CHUNK 256

static double row_sum(const float *x, int64_t d)
{
    double total = 0;
    for (int64_t c = 0; c < d; c += CHUNK) {
        int64_t end = c + CHUNK < d ? c + CHUNK : d;
        vf s = vset(0.f);
        for (int64_t i = c; i < end; i += VL) s += vload_n(x + i, end - i);
        total += vsum(s);
    }
    return total;
}

/* Sums of x - mean and of its square. */
static void row_moments(double *first, double *second, const float *x, float mean, int64_t d)
{
    *first = *second = 0;
    for (int64_t c = 0; c < d; c += CHUNK) {
        int64_t end = c + CHUNK < d ? c + CHUNK : d, i = c;
        vf s = vset(0.f), q = vset(0.f);
        for (; i + VL <= end; i += VL) {
            vf v = vload(x + i) - vset(mean);
            s += v;
            q = vfma(v, v, q);
        }
        *first += vsum(s);
        *second += vsum(q);
        for (; i < end; i++) {
            float v = x[i] - mean;
            *first += v;
            *second += (double)v * v;
        }
    }
}

/* The mean is found twice: what float sums left of it (`rest`) is measured on the centred row, so that a mean far from
 * 0 costs no digits. */
static void layer_norm(float *y, const float *x, const float *mul, const float *add, float plus, float eps, int64_t d)
{
    double first, second;
    float mean = (float)(row_sum(x, d) / (double)d);
    row_moments(&first, &second, x, mean, d);
    first /= (double)d;
    float rest = (float)first, inv = (float)(1.0 / sqrt(second / (double)d - first * first + eps));
    for (int64_t i = 0; i < d; i += VL) {
        vf n = (vload_n(x + i, d - i) - vset(mean) - vset(rest)) * vset(inv);
        vf m = vset(plus) + vload_n(mul + i, d - i);
        vstore_n(y + i, vfma(n, m, vload_n(add + i, d - i)), d - i);
    }
}

static float rms_inverse(const float *x, float eps, int64_t d)
{
    double first, second;
    row_moments(&first, &second, x, 0.f, d);
    return (float)(1.0 / sqrt(second / (double)d + eps));
}

static void rms_norm(float *y, const float *x, const float *w, float eps, int64_t d)
{
    float inv = rms_inverse(x, eps, d);
    for (int64_t i = 0; i < d; i += VL)
        vstore_n(y + i, vload_n(x + i, d - i) * vset(inv) * vload_n(w + i, d - i), d - i);
}

static void rms_norm_rope(float *y, const float *x, const float *w, const float *rope, float eps, int64_t d,
                          int64_t head)
{
    float inv = rms_inverse(x, eps, d);
    for (int64_t h = 0; h < d; h += head)
        for (int64_t i = 0; i < head; i += VL) {
            vf v = vload_n(x + h + i, head - i) * vset(inv) * vload_n(w + h + i, head - i);
            vf cs = vload_n(rope + i, head - i);
            vstore_n(y + h + i, vturn(v, cs), head - i);
        }
}

/* ---- element-wise ---- */

static void gate_add(float *x, const float *y, const float *gate, int64_t d)
{
    for (int64_t i = 0; i < d; i += VL) {
        vf g = gate ? vload_n(gate + i, d - i) : vset(1.f);
        vstore_n(x + i, vfma(vload_n(y + i, d - i), g, vload_n(x + i, d - i)), d - i);
    }
}

static void bias_act(float *y, const float *bias, ipvg_act act, int64_t d)
{
    for (int64_t i = 0; i < d; i += VL) {
        vf v = vload_n(y + i, d - i);
        if (bias) v += vload_n(bias + i, d - i);
        if (act == IPVG_ACT_GELU_TANH) v = vgelu(v);
        if (act == IPVG_ACT_SILU) v = vsilu(v);
        vstore_n(y + i, v, d - i);
    }
}

static void gated_gelu(float *y, const float *gate, const float *up, int64_t n)
{
    for (int64_t i = 0; i < n; i += VL)
        vstore_n(y + i, vgelu(vload_n(gate + i, n - i)) * vload_n(up + i, n - i), n - i);
}

static void silu(float *y, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i += VL) vstore_n(y + i, vsilu(vload_n(x + i, n - i)), n - i);
}

/* Products are rounded before they are added (no FMA), as arrays added one after the other would be. */
static void combine(float *y, int terms, const float *const *x, const float *weight, int64_t n)
{
    for (int64_t i = 0; i < n; i += VL) {
        vf s = vset(0.f);
        int first = 1;
        for (int t = 0; t < terms; t++) {
            if (weight[t] == 0.f) continue;
            vf v = vload_n(x[t] + i, n - i) * vset(weight[t]);
            if (first)
                s = v;
            else
                s = s + v;
            first = 0;
        }
        vstore_n(y + i, s, n - i);
    }
}

/* ---- dtypes ---- */

static void widen(float *y, const void *x, ipvg_dtype dtype, int64_t n)
{
    const uint16_t *h = x;
    uint32_t *u = (uint32_t *)y;
    if (dtype == IPVG_F32) {
        if (y != x) memcpy(y, x, (size_t)n * sizeof(float));
    } else if (dtype == IPVG_BF16) {
        for (int64_t i = 0; i < n; i++) {
            uint32_t bits = (uint32_t)h[i] << 16;
            memcpy(u + i, &bits, 4);
        }
    } else { /* float16: the exponent is rebased by a multiplication, which also makes subnormals right */
        for (int64_t i = 0; i < n; i++) {
            uint32_t magnitude = (uint32_t)(h[i] & 0x7fff) << 13, bits;
            float f;
            memcpy(&f, &magnitude, 4);
            f *= 0x1p112f;
            memcpy(&bits, &f, 4);
            bits |= (magnitude >= 0x0f800000u ? 0x7f800000u : 0u) | (uint32_t)(h[i] & 0x8000) << 16;
            memcpy(y + i, &bits, 4);
        }
    }
}

static uint16_t to_f16(float v)
{
    uint32_t bits, sign;
    memcpy(&bits, &v, 4);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return (uint16_t)(sign | 0x7e00);  /* NaN */
    if (bits >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* rounds to 65536 or more: infinity */
    if (bits < 0x38800000) { /* subnormal: adding 0.5 leaves the rounded mantissa in the low bits */
        float a;
        memcpy(&a, &bits, 4);
        a += 0.5f;
        memcpy(&bits, &a, 4);
        return (uint16_t)(sign | (bits - 0x3f000000));
    }
    bits += 0xfff + (bits >> 13 & 1) - (112u << 23);
    return (uint16_t)(sign | bits >> 13);
}

static void narrow(void *y, const float *x, ipvg_dtype dtype, int64_t n)
{
    uint16_t *h = y;
    if (dtype == IPVG_F32) {
        if (y != x) memcpy(y, x, (size_t)n * sizeof(float));
    } else if (dtype == IPVG_BF16) {
        for (int64_t i = 0; i < n; i++) {
            uint32_t bits;
            memcpy(&bits, x + i, 4);
            uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
            h[i] = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
        }
    } else {
        for (int64_t i = 0; i < n; i++) h[i] = to_f16(x[i]);
    }
}

#include "tile_impl.h"

const ipvg_loops ISA_TABLE = {
    .isa = ISA_NAME,
    .layer_norm = layer_norm,
    .rms_norm = rms_norm,
    .rms_norm_rope = rms_norm_rope,
    .gate_add = gate_add,
    .bias_act = bias_act,
    .gated_gelu = gated_gelu,
    .silu = silu,
    .combine = combine,
    .widen = widen,
    .narrow = narrow,
    .tile_rows = MR,
    .tile_columns = NR,
    .pack_queries = pack_queries,
    .pack_keys = pack_keys,
    .pack_values = pack_values,
    .scores = scores,
    .softmax_step = softmax_step,
    .weighted = weighted,
    .divide = divide,
};

#include "target_end.h"
