/* Softmax over the keys of an attention that keeps its scores: T5 with its relative positions, and float32 attention. */
#include "team.cuh"

template <int V>
__global__ void __launch_bounds__(TEAM_MOST, 1)
    softmax_kernel(array p, array s, array bias, float scale, float last, int64_t lq, int64_t first, int64_t all,
                   int64_t rows, int64_t lk, int lanes)
{
    const team t(lanes);
    kept_row<V> row(t, s, rows, lk);
    const int64_t head = t.row / lq, query = first + t.row % lq;
    const float *shifted = bias.data && row.chunks ? (const float *)bias.data + head * bias.ld + all - 1 - query : NULL;
    auto score = [&](float(&out)[V], const float(&v)[V], int column) {
#pragma unroll
        for (int i = 0; i < V; i++) out[i] = shifted ? fmaf(v[i], scale, shifted[column + i]) : v[i] * scale;
        if (column + V == lk) out[V - 1] += last;
    };
    float most = -INFINITY, sum = 0.f;
    row.each([&](const float(&v)[V], int column) {
        float out[V];
        score(out, v, column);
#pragma unroll
        for (int i = 0; i < V; i++) most = fmaxf(most, out[i]);
    });
    most = team_max(t, most);
    row.each([&](const float(&v)[V], int column) {
        float out[V];
        score(out, v, column);
#pragma unroll
        for (int i = 0; i < V; i++) sum += expf(out[i] - most);
    });
    const float share = 1.f / team_sum(t, sum);
    row.each([&](const float(&v)[V], int column) {
        float out[V];
        score(out, v, column);
#pragma unroll
        for (int i = 0; i < V; i++) out[i] = expf(out[i] - most) * share;
        store<V>(p, t.row * p.ld + column, out);
    });
}

int ipvg_k_softmax(array p, array s, array bias, float scale, int heads, int64_t lq, int64_t lk, int64_t first,
                   int64_t all, int64_t repeat, void *stream)
{
    const int64_t rows = heads * lq;
    if (heads < 0 || lq < 0 || lk < 1 || lk > INT32_MAX || first < 0 || first + lq > all || repeat < 1 ||
        p.dtype == IPVG_K_E4M3 || !readable(s) || (bias.data && bias.dtype != IPVG_K_F32))
        return cudaErrorInvalidValue;
    const bool fast = wide(lk, p, s);
    const team_plan plan = plan_teams(rows, fast ? lk / 8 : lk, fast ? keep<8>::chunks : keep<1>::chunks);
    return launch(fast ? softmax_kernel<8> : softmax_kernel<1>, plan.blocks, plan.threads, stream, p, s, bias, scale,
                  logf((float)repeat), lq, first, all, rows, lk, plan.lanes);
}
