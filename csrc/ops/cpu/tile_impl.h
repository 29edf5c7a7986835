/* Products of packed blocks, for attention.c. Included by loops_impl.h.
 *
 * A tile of MR x NR results lives in registers: for every k, NR numbers of B are loaded and MR of A are broadcast. B is
 * packed so that those NR lie side by side, panel after panel: packed[panel][k][NR]; A likewise with MR. */

#if ISA_LEVEL == 4
#define MR 14
#else
#define MR 6
#endif
#define NR (2 * VL)

/* dst[k][width] = the transpose of src[rows][k] (rows <= width), zeros for the missing rows; times `scale`. */
static void pack_panel(float *dst, const float *src, int64_t rows, int64_t width, int64_t k, int64_t ld, float scale)
{
    const __m128 factor = _mm_set1_ps(scale);
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
        const float *p = src + r * ld;
        int64_t i = 0;
        for (; i + 4 <= k; i += 4) {
            __m128 a = _mm_loadu_ps(p + i), b = _mm_loadu_ps(p + ld + i), c = _mm_loadu_ps(p + 2 * ld + i),
                   d = _mm_loadu_ps(p + 3 * ld + i);
            _MM_TRANSPOSE4_PS(a, b, c, d);
            _mm_storeu_ps(dst + i * width + r, a * factor);
            _mm_storeu_ps(dst + (i + 1) * width + r, b * factor);
            _mm_storeu_ps(dst + (i + 2) * width + r, c * factor);
            _mm_storeu_ps(dst + (i + 3) * width + r, d * factor);
        }
        for (; i < k; i++)
            for (int64_t j = 0; j < 4; j++) dst[i * width + r + j] = p[j * ld + i] * scale;
    }
    for (; r < rows; r++)
        for (int64_t i = 0; i < k; i++) dst[i * width + r] = src[r * ld + i] * scale;
    for (; r < width; r++)
        for (int64_t i = 0; i < k; i++) dst[i * width + r] = 0.f;
}

/* Whole matrices: the rows of src (rows, k) become panels of MR (queries) or NR (keys) of them. */
static void pack_rows(float *dst, const float *src, int64_t rows, int64_t width, int64_t k, int64_t ld, float scale)
{
    for (int64_t r = 0; r < rows; r += width)
        pack_panel(dst + r * k, src + r * ld, rows - r < width ? rows - r : width, width, k, ld, scale);
}

static void pack_queries(float *dst, const float *q, int64_t rows, int64_t d, int64_t ld, float scale)
{
    pack_rows(dst, q, rows, MR, d, ld, scale);
}

static void pack_keys(float *dst, const float *k, int64_t rows, int64_t d, int64_t ld)
{
    pack_rows(dst, k, rows, NR, d, ld, 1.f);
}

/* dst[panel][k][NR] = columns of src (k, columns), zeros beyond them. */
static void pack_values(float *dst, const float *src, int64_t k, int64_t columns, int64_t ld)
{
    for (int64_t c = 0; c < columns; c += NR)
        for (int64_t i = 0; i < k; i++, dst += NR) {
            vstore(dst, vload_n(src + i * ld + c, columns - c > 0 ? columns - c : 0));
            vstore(dst + VL, columns - c > VL ? vload_n(src + i * ld + c + VL, columns - c - VL) : vset(0.f));
        }
}

/* c (MR, NR) = or += a b. a: element (m, i) at a[m * row + i * step]; b[k][NR]. */
static inline __attribute__((always_inline)) void tile(float *c, int64_t ldc, const float *a, int64_t row, int64_t step,
                                                       const float *b, int64_t k, int add)
{
    vf sum[MR][2];
    for (int m = 0; m < MR; m++) sum[m][0] = sum[m][1] = vset(0.f);
    for (int64_t i = 0; i < k; i++, a += step, b += NR) {
        vf b0 = vload(b), b1 = vload(b + VL);
#pragma GCC unroll 14
        for (int m = 0; m < MR; m++) {
            vf x = vset(a[m * row]);
            sum[m][0] = vfma(x, b0, sum[m][0]);
            sum[m][1] = vfma(x, b1, sum[m][1]);
        }
    }
    if (add) {
#pragma GCC unroll 14
        for (int m = 0; m < MR; m++) {
            sum[m][0] += vload(c + m * ldc);
            sum[m][1] += vload(c + m * ldc + VL);
        }
    }
#pragma GCC unroll 14
    for (int m = 0; m < MR; m++) {
        vstore(c + m * ldc, sum[m][0]);
        vstore(c + m * ldc + VL, sum[m][1]);
    }
}

/* The part of a tile that exists: `rows` x `columns` of a whole one in `t`. */
static void tile_edge(float *c, int64_t ldc, const float *t, int64_t rows, int64_t columns, int add)
{
    for (int64_t m = 0; m < rows; m++)
        for (int64_t j = 0; j < columns; j++) c[m * ldc + j] = (add ? c[m * ldc + j] : 0.f) + t[m * NR + j];
}

/* c (rows, columns) = or += a b, tile by tile; `next` floats lie between tiles of a. The panel of b stays in the first-level
 * cache while all of a passes. */
static inline __attribute__((always_inline)) void product(float *c, int64_t ldc, const float *a, int64_t row,
                                                          int64_t step, int64_t next, const float *b, int64_t rows,
                                                          int64_t columns, int64_t k, int add)
{
    for (int64_t j = 0; j < columns; j += NR, b += NR * k)
        for (int64_t m = 0; m < rows; m += MR) {
            const float *from = a + m / MR * next;
            if (m + MR <= rows && j + NR <= columns) {
                tile(c + m * ldc + j, ldc, from, row, step, b, k, add);
            } else {
                float t[MR * NR];
                tile(t, NR, from, row, step, b, k, 0);
                tile_edge(c + m * ldc + j, ldc, t, rows - m < MR ? rows - m : MR, columns - j < NR ? columns - j : NR,
                          add);
            }
        }
}

static void scores(float *s, const float *q, const float *k, int64_t rows, int64_t keys, int64_t d, int64_t lds)
{
    product(s, lds, q, 1, MR, MR * d, k, rows, keys, d, 0);
}

static void weighted(float *o, const float *p, const float *v, int64_t rows, int64_t keys, int64_t d, int64_t ldp)
{
    product(o, d, p, ldp, 1, MR * ldp, v, rows, d, keys, 1);
}

/* One block of keys of the running softmax: s becomes e^(s - max), o and sum are rescaled to the new maximum. */
static void softmax_step(float *s, float *max, float *sum, float *o, int64_t rows, int64_t keys, int64_t d, int64_t lds)
{
    for (int64_t r = 0; r < rows; r++) {
        float *row = s + r * lds, high = max[r], rest = 0.f;
        int64_t i = 0;
        vf top = vset(high), total = vset(0.f);
        for (; i + VL <= keys; i += VL) top = vmax(top, vload(row + i));
        high = vhighest(top);
        for (; i < keys; i++) high = row[i] > high ? row[i] : high;
        for (i = 0; i + VL <= keys; i += VL) {
            vf e = vexp(vload(row + i) - vset(high));
            vstore(row + i, e);
            total += e;
        }
        if (i < keys) {
            float lane[VL];
            vstore(lane, vexp(vload_n(row + i, keys - i) - vset(high)));
            for (int64_t j = 0; i + j < keys; j++) rest += row[i + j] = lane[j];
        }
        if (high != max[r]) { /* the first block finds sum and o at 0 */
            float keep = expf(max[r] - high);
            sum[r] *= keep;
            for (i = 0; i < d; i += VL) vstore(o + r * d + i, vload(o + r * d + i) * vset(keep));
            max[r] = high;
        }
        sum[r] += vsum(total) + rest;
    }
}

/* y = x / divisor. */
static void divide(float *y, const float *x, float divisor, int64_t n)
{
    const vf inverse = vset(1.f / divisor);
    for (int64_t i = 0; i < n; i += VL) vstore_n(y + i, vload_n(x + i, n - i) * inverse, n - i);
}
