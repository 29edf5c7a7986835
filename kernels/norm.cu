/* Norms over whole rows: one reading of a row, kept in registers, and one writing. */
#include <type_traits>

#include "team.cuh"

/* The models' narrower rows (1536) fit a warp that way, which needs no barrier. */
template <int V>
using norm_keep = std::integral_constant<int, V == 8 ? 6 : keep<V>::chunks>;
template <int V>
using norm_row = kept_row<V, norm_keep<V>::value>;
template <int V, int D>
__device__ inline team norm_team(int64_t *d, int lanes)
{
    return team_for<V, norm_keep<V>::value, D>(d, lanes);
}

/* Of a kernel of teams with a parameter D: 128 threads there, five blocks of which have 96 registers a thread. */
#define NORM_BOUNDS __launch_bounds__(D ? 128 : TEAM_MOST, D ? 6 : 1)

/* ==== layer norm, after a gated residual or alone ==== */

/* Mean and 1 / standard deviation. The mean is found twice: what float32 sums left of it (`rest`) is measured on the centred
 * row, so that a mean far from 0 costs no digits. */
template <int V>
__device__ inline void moments(float *mean, float *rest, float *inverse, norm_row<V> &row, float eps, int64_t d)
{
    const float share = 1.f / (float)d;
    float sum = 0.f, both[2] = {0.f, 0.f};
    row.each([&](const float(&v)[V], int) {
#pragma unroll
        for (int i = 0; i < V; i++) sum += v[i];
    });
    const float near = team_sum(row.t, sum) * share;
    row.each([&](const float(&v)[V], int) {
#pragma unroll
        for (int i = 0; i < V; i++) {
            const float centred = v[i] - near;
            both[0] += centred;
            both[1] = fmaf(centred, centred, both[1]);
        }
    });
    reduce<add>(row.t, both);
    *mean = near;
    *rest = both[0] * share;
    *inverse = 1.f / sqrtf(both[1] * share - *rest * *rest + eps);
}

template <int V>
__device__ inline float greatest(float most, const float (&v)[V])
{
#pragma unroll
    for (int i = 0; i < V; i++) most = fmaxf(most, fabsf(v[i]));
    return most;
}

/* Writes v * factor, which is E4M3 then. */
template <int V>
__device__ inline void store_times(const array &y, int64_t at, const float (&v)[V], float factor)
{
    float out[V];
#pragma unroll
    for (int i = 0; i < V; i++) out[i] = v[i] * factor;
    store<V>(y, at, out);
}

/* Writes what `result` makes of each chunk, in E4M3 divided by the row's scale. */
template <int V, class F>
__device__ inline void write_row(const array &y, float *y_scale, norm_row<V> &row, F result)
{
    const int64_t begin = row.t.row * y.ld;
    float out[V], most = 0.f;
    if (y.dtype != IPVG_K_E4M3) {
        row.each([&](const float(&v)[V], int column) {
            result(out, v, column);
            store<V>(y, begin + column, out);
        });
        return;
    }
    row.each_kept([&](float(&v)[V], int column) {
        result(out, v, column);
#pragma unroll
        for (int i = 0; i < V; i++) v[i] = out[i];
        most = greatest<V>(most, v);
    });
    row.each_beyond([&](const float(&v)[V], int column) {
        result(out, v, column);
        most = greatest<V>(most, out);
    });
    most = team_max(row.t, most);
    const bool seen = most > E4M3_LEAST;
    const float factor = seen ? E4M3_MAX / most : 1.f;
    if (row.chunks && row.t.lane == 0) y_scale[row.t.row] = seen ? most / E4M3_MAX : 1.f;
    row.each_kept([&](const float(&v)[V], int column) { store_times<V>(y, begin + column, v, factor); });
    row.each_beyond([&](const float(&v)[V], int column) {
        result(out, v, column);
        store_times<V>(y, begin + column, out, factor);
    });
}

template <int V>
__device__ inline void write_norm(const array &y, float *y_scale, norm_row<V> &row, const array &mul, const array &add,
                                  float plus, float eps, int64_t d)
{
    float mean, rest, inverse;
    moments<V>(&mean, &rest, &inverse, row, eps, d);
    const float low = -rest * inverse;
    write_row<V>(y, y_scale, row, [&](float(&out)[V], const float(&v)[V], int column) {
        float m[V], a[V];
        load_vector<V>(m, mul, column);
        load_vector<V>(a, add, column);
#pragma unroll
        for (int i = 0; i < V; i++) out[i] = fmaf(fmaf(v[i] - mean, inverse, low), plus + m[i], a[i]);
    });
}

/* Usual: 2 is the same with a result in E4M3. D: of the models, or 0. */
template <int V, int Usual, int D>
__global__ void NORM_BOUNDS layer_norm_kernel(array y, float *y_scale, array x, array mul, array add, float plus,
                                              float eps, int64_t rows, int64_t d, int lanes)
{
    const team t = norm_team<V, D>(&d, lanes);
    if (D && t.row >= rows) return;
    if (Usual) y.dtype = Usual == 2 ? IPVG_K_E4M3 : IPVG_K_BF16, x.dtype = IPVG_K_BF16;
    if (Usual) mul.dtype = add.dtype = IPVG_K_F32;
    norm_row<V> row(t, x, rows, d);
    write_norm<V>(y, y_scale, row, mul, add, plus, eps, d);
}

template <int V, int Usual, int D>
__global__ void NORM_BOUNDS gate_residual_norm_kernel(array y, float *y_scale, array x, array u, array gate, array mul,
                                                      array add, float plus, float eps, int64_t rows, int64_t d,
                                                      int lanes)
{
    const team t = norm_team<V, D>(&d, lanes);
    if (D && t.row >= rows) return;
    if (Usual) {
        y.dtype = Usual == 2 ? IPVG_K_E4M3 : IPVG_K_BF16, x.dtype = u.dtype = IPVG_K_BF16;
        gate.dtype = mul.dtype = add.dtype = IPVG_K_F32;
    }
    norm_row<V> row(t, x, rows, d);
    row.template each_with<D ? norm_keep<V>::value : norm_row<V>::SOME>(
        u, [&](float(&v)[V], const float(&w)[V], int column) {
            float g[V];
            load_or<V>(g, gate, column, 1.f);
#pragma unroll
            for (int i = 0; i < V; i++) v[i] = fmaf(w[i], g[i], v[i]);
            store_rounded<V>(x, t.row * x.ld + column, v);
        });
    write_norm<V>(y, y_scale, row, mul, add, plus, eps, d);
}

/* ==== RMS norm, with rotary embedding or without ==== */

#define HEAD 128 /* of all models */

template <int V>
__device__ inline void times(float (&v)[V], float factor)
{
#pragma unroll
    for (int i = 0; i < V; i++) v[i] *= factor;
}

template <int V, bool Rope>
__device__ inline void rms_norm(const team &t, array y, array x, array w, const float *rope, int head, float eps,
                                int64_t rows, int64_t d)
{
    const array angles = {(void *)rope, IPVG_K_F32, 0};
    const bool alike = Rope && t.lanes * V % head == 0; /* a lane's chunks have the same columns of their heads */
    float turn[V], squares = 0.f;
    if (Rope && t.row < rows) load_vector<V>(turn, angles, t.row * head + t.lane * V % head);
    norm_row<V> row(t, x, rows, d);
    row.each([&](const float(&v)[V], int) {
#pragma unroll
        for (int i = 0; i < V; i++) squares = fmaf(v[i], v[i], squares);
    });
    const float inverse = 1.f / sqrtf(team_sum(t, squares) * (1.f / (float)d) + eps);
    if (alike) times<V>(turn, inverse); /* the angles' length becomes `inverse` */
    row.each([&](const float(&v)[V], int column) {
        float f[V], out[V];
        load_vector<V>(f, w, column);
        if constexpr (Rope) {
            if (!alike) load_vector<V>(turn, angles, t.row * head + column % head), times<V>(turn, inverse);
#pragma unroll
            for (int i = 0; i < V; i += 2) {
                const float a = v[i] * f[i], b = v[i + 1] * f[i + 1];
                out[i] = a * turn[i] - b * turn[i + 1];
                out[i + 1] = b * turn[i] + a * turn[i + 1];
            }
        } else {
#pragma unroll
            for (int i = 0; i < V; i++) out[i] = v[i] * inverse * f[i];
        }
        store<V>(y, t.row * y.ld + column, out);
    });
}

template <int V, int Usual, int D>
__global__ void NORM_BOUNDS rms_norm_kernel(array y, array x, array w, float eps, int64_t rows, int64_t d, int lanes)
{
    const team t = norm_team<V, D>(&d, lanes);
    if (D && t.row >= rows) return;
    if (Usual) y.dtype = x.dtype = IPVG_K_BF16, w.dtype = IPVG_K_F32;
    rms_norm<V, false>(t, y, x, w, NULL, 1, eps, rows, d);
}

template <int V, int Usual, int D>
__global__ void NORM_BOUNDS rms_norm_rope_kernel(array y, array x, array w, const float *rope, int head, float eps,
                                                 int64_t rows, int64_t d, int lanes)
{
    const team t = norm_team<V, D>(&d, lanes);
    if (D && t.row >= rows) return;
    if (D) head = HEAD;
    if (Usual) y.dtype = x.dtype = IPVG_K_BF16, w.dtype = IPVG_K_F32;
    rms_norm<V, true>(t, y, x, w, rope, head, eps, rows, d);
}

/* ==== quantisation alone ==== */

template <int V, int Usual, int D>
__global__ void NORM_BOUNDS quantise_rows_kernel(array y, float *y_scale, array x, int64_t rows, int64_t d, int lanes)
{
    const team t = norm_team<V, D>(&d, lanes);
    if (D && t.row >= rows) return;
    if (Usual) x.dtype = IPVG_K_BF16, y.dtype = IPVG_K_E4M3;
    norm_row<V> row(t, x, rows, d);
    write_row<V>(y, y_scale, row, [&](float(&out)[V], const float(&v)[V], int) {
#pragma unroll
        for (int i = 0; i < V; i++) out[i] = v[i];
    });
}

/* ==== normalised attention guidance ==== */

template <int V, bool Usual>
__global__ void __launch_bounds__(TEAM_MOST, 1)
    nag_kernel(array y, array p, array n, float scale, float tau, float alpha, int64_t rows, int64_t d, int lanes)
{
    const team t(lanes);
    if (Usual) y.dtype = p.dtype = n.dtype = IPVG_K_BF16;
    norm_row<V> row(t, p, rows, d);
    float sums[2] = {0.f, 0.f};
    row.each_with(n, [&](const float(&v)[V], const float(&away)[V], int) {
#pragma unroll
        for (int i = 0; i < V; i++) {
            sums[0] += fabsf(v[i]);
            sums[1] += fabsf(scale * v[i] - (scale - 1.f) * away[i]);
        }
    });
    reduce<add>(t, sums);
    const float shrink = sums[1] > tau * sums[0] ? tau * sums[0] / sums[1] : 1.f;
    row.each_with(n, [&](const float(&v)[V], const float(&away)[V], int column) {
        float out[V];
#pragma unroll
        for (int i = 0; i < V; i++)
            out[i] = alpha * shrink * (scale * v[i] - (scale - 1.f) * away[i]) + (1.f - alpha) * v[i];
        store<V>(y, t.row * y.ld + column, out);
    });
}

/* ==== launchers ==== */

/* Which instance: with accesses of 16 bytes or not (`narrow` numbers at a time then), and the usual dtypes' for a width. */
#define USUAL(kernel, as, d) ((d) == 1536 ? kernel<8, as, 1536> : (d) == 5120 ? kernel<8, as, 5120> : kernel<8, as, 0>)
#define INSTANCE(kernel, narrow, fast, usual, d) \
    (!(fast) ? kernel<narrow, 0, 0> : (usual) ? USUAL(kernel, 1, d) : kernel<8, 0, 0>)

/* Starts it, a team for each row; v: how many numbers at a time. */
template <typename... P, typename... A>
static int start(void (*kernel)(P...), int v, int64_t rows, int64_t d, void *stream, A... args)
{
    const int keep = v == 8 ? norm_keep<8>::value : norm_keep<1>::value;
    const team_plan plan = plan_teams(rows, d / v, keep);
    return launch(kernel, plan.blocks, plan.threads, stream, args..., rows, d, plan.lanes);
}

static bool bad(int64_t rows, int64_t d) { return rows < 0 || d < 1 || d > INT32_MAX; }

/* An E4M3 result and its scales come together. */
static bool bad_result(const array &y, const float *y_scale) { return (y.dtype == IPVG_K_E4M3) != (y_scale != NULL); }

int ipvg_k_layer_norm(array y, float *y_scale, array x, array mul, array add, float plus, float eps, int64_t rows,
                      int64_t d, void *stream)
{
    mul = flat(mul), add = flat(add);
    if (bad(rows, d) || bad_result(y, y_scale) || !readable(x, mul, add)) return cudaErrorInvalidValue;
    const bool fast = wide(d, y, x, mul, add), usual = all_of(IPVG_K_BF16, x) && all_of(IPVG_K_F32, mul, add);
    return start(y_scale && fast && usual ? USUAL(layer_norm_kernel, 2, d)
                                          : INSTANCE(layer_norm_kernel, 1, fast, usual && all_of(IPVG_K_BF16, y), d),
                 fast ? 8 : 1, rows, d, stream, y, y_scale, x, mul, add, plus, eps);
}

int ipvg_k_gate_residual_norm(array y, float *y_scale, array x, array u, array gate, array mul, array add, float plus,
                              float eps, int64_t rows, int64_t d, void *stream)
{
    gate = flat(gate), mul = flat(mul), add = flat(add);
    if (bad(rows, d) || bad_result(y, y_scale) || !readable(x, u, gate, mul, add)) return cudaErrorInvalidValue;
    const bool fast = wide(d, y, x, u, gate, mul, add),
               usual = all_of(IPVG_K_BF16, x, u) && all_of(IPVG_K_F32, gate, mul, add);
    return start(y_scale && fast && usual
                     ? USUAL(gate_residual_norm_kernel, 2, d)
                     : INSTANCE(gate_residual_norm_kernel, 1, fast, usual && all_of(IPVG_K_BF16, y), d),
                 fast ? 8 : 1, rows, d, stream, y, y_scale, x, u, gate, mul, add, plus, eps);
}

int ipvg_k_rms_norm(array y, array x, array w, float eps, int64_t rows, int64_t d, void *stream)
{
    w = flat(w);
    if (bad(rows, d) || y.dtype == IPVG_K_E4M3 || !readable(x, w)) return cudaErrorInvalidValue;
    const bool fast = wide(d, y, x, w), usual = all_of(IPVG_K_BF16, y, x) && all_of(IPVG_K_F32, w);
    return start(INSTANCE(rms_norm_kernel, 1, fast, usual, d), fast ? 8 : 1, rows, d, stream, y, x, w, eps);
}

int ipvg_k_rms_norm_rope(array y, array x, array w, const float *rope, int heads, float eps, int64_t rows, int64_t d,
                         void *stream)
{
    w = flat(w);
    if (bad(rows, d) || y.dtype == IPVG_K_E4M3 || !readable(x, w) || heads < 1 || d % (2 * (int64_t)heads))
        return cudaErrorInvalidValue;
    const int head = (int)(d / heads);
    const bool fast = wide(d, y, x, w, array{(void *)rope, IPVG_K_F32, 0}) && head % 8 == 0,
               usual = head == HEAD && all_of(IPVG_K_BF16, y, x) && all_of(IPVG_K_F32, w);
    return start(INSTANCE(rms_norm_rope_kernel, 2, fast, usual, d), fast ? 8 : 2, rows, d, stream, y, x, w, rope, head,
                 eps);
}

int ipvg_k_quantise_rows(array y, float *y_scale, array x, int64_t rows, int64_t d, void *stream)
{
    if (bad(rows, d) || y.dtype != IPVG_K_E4M3 || !y_scale || !readable(x)) return cudaErrorInvalidValue;
    const bool fast = wide(d, y, x), usual = all_of(IPVG_K_BF16, x);
    return start(INSTANCE(quantise_rows_kernel, 1, fast, usual, d), fast ? 8 : 1, rows, d, stream, y, y_scale, x);
}

int ipvg_k_nag(array y, array p, array n, float scale, float tau, float alpha, int64_t rows, int64_t d, void *stream)
{
    if (bad(rows, d) || y.dtype == IPVG_K_E4M3 || !readable(p, n)) return cudaErrorInvalidValue;
    const bool fast = wide(d, y, p, n), usual = all_of(IPVG_K_BF16, y, p, n);
    return start(!fast   ? nag_kernel<1, false>
                 : usual ? nag_kernel<8, true>
                         : nag_kernel<8, false>,
                 fast ? 8 : 1, rows, d, stream, y, p, n, scale, tau, alpha);
}
