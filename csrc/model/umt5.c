#include "umt5.h"

#include <math.h>
#include <stdlib.h>

#include "stream.h"

#define DISTANCES (2 * IPVG_UMT5_MAX_TOKENS - 1) /* key - query = -511 .. 511 */

typedef struct block {
    ipvg_tensor norm1;         /* (D) */
    ipvg_tensor q, k, v;       /* (dim_attn, D) */
    ipvg_tensor o;             /* (D, dim_attn) */
    ipvg_tensor pos_embedding; /* (buckets, H) */
    ipvg_tensor bias;          /* (H, DISTANCES) float32: pos_embedding by distance. No data if the weights have none */
    ipvg_tensor norm2;         /* (D) */
    ipvg_tensor gate, up;      /* (dim_ffn, D) */
    ipvg_tensor down;          /* (D, dim_ffn) */
    ipvg_tensor qkv, gate_up;  /* (3 dim_attn, D), (2 dim_ffn, D): where the above lie in a backend's memory; or none */
} block;

struct ipvg_umt5 {
    ipvg_umt5_config config;
    const ipvg_weights *weights;
    ipvg_tensor token_embedding; /* (vocab, D) */
    ipvg_tensor norm;            /* (D) */
    ipvg_arena home;             /* of weights in a backend's memory */
    ipvg_stream *stream;         /* of the blocks, under a memory limit; NULL: all are placed */
    ipvg_umt5_bytes bytes;
    block *placed; /* with a stream: its two slots */
    float *bias;   /* (layers, H, DISTANCES) */
    block blocks[];
};

/* ==== position bias ==== */

int ipvg_umt5_bucket(int distance, int buckets, int max_distance)
{
    int half = buckets / 2, exact = half / 2, first = distance > 0 ? half : 0;
    int n = abs(distance);
    if (n < exact) return first + n;
    /* In float32, as the reference does it: the truncation decides, and a wider type moves a few edges. */
    float position = logf((float)n / (float)exact) / (float)log((double)max_distance / exact) * (float)(half - exact);
    int large = exact + (int)position;
    return first + (large < half ? large : half - 1);
}

static void spread_bias(const block *b, const ipvg_umt5_config *c)
{
    float *bias = b->bias.data;
    for (int i = 0; i < DISTANCES; i++) {
        int bucket = ipvg_umt5_bucket(i - (IPVG_UMT5_MAX_TOKENS - 1), c->buckets, c->max_distance);
        for (int h = 0; h < c->heads; h++)
            bias[(size_t)h * DISTANCES + i] = ipvg_tensor_at(&b->pos_embedding, (int64_t)bucket * c->heads + h);
    }
}

/* ==== new, free ==== */

static ipvg_status check_config(ipvg_context *ctx, const ipvg_umt5_config *c)
{
    if (c->vocab < 1 || c->dim < 1 || c->dim_attn < 1 || c->dim_ffn < 1 || c->heads < 1 || c->dim_attn % c->heads)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "umT5: the sizes must be positive and heads (%d) divide dim_attn (%d)",
                         c->heads, c->dim_attn);
    if (c->layers < 1 || c->layers > IPVG_UMT5_MAX_LAYERS)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "umT5: 1 to %d layers, got %d", IPVG_UMT5_MAX_LAYERS, c->layers);
    if (c->buckets < 4 || c->buckets % 4 || c->max_distance <= c->buckets / 4)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT,
                         "umT5: buckets (%d) must be a multiple of 4 and max_distance (%d) above a quarter of it",
                         c->buckets, c->max_distance);
    if (!(c->eps > 0)) return ipvg_fail(ctx, IPVG_E_ARGUMENT, "umT5: eps must be positive");
    return IPVG_OK;
}

static ipvg_status take_block(ipvg_context *ctx, ipvg_umt5 *m, ipvg_weights *w, int i)
{
    const ipvg_umt5_config *c = &m->config;
    const int64_t norm[] = {c->dim}, in[] = {c->dim_attn, c->dim}, out[] = {c->dim, c->dim_attn};
    const int64_t up[] = {c->dim_ffn, c->dim}, down[] = {c->dim, c->dim_ffn}, pos[] = {c->buckets, c->heads};
    block *b = &m->blocks[i];
    float *bias = m->bias + (size_t)i * c->heads * DISTANCES;
    ipvg_status status;

    IPVG_TRY(ipvg_weights_take(ctx, w, &b->norm1, norm, 1, "blocks.%d.norm1.weight", i));
    IPVG_TRY(ipvg_weights_take(ctx, w, &b->q, in, 2, "blocks.%d.attn.q.weight", i));
    IPVG_TRY(ipvg_weights_take(ctx, w, &b->k, in, 2, "blocks.%d.attn.k.weight", i));
    IPVG_TRY(ipvg_weights_take(ctx, w, &b->v, in, 2, "blocks.%d.attn.v.weight", i));
    IPVG_TRY(ipvg_weights_take(ctx, w, &b->o, out, 2, "blocks.%d.attn.o.weight", i));
    IPVG_TRY(ipvg_weights_take(ctx, w, &b->pos_embedding, pos, 2, "blocks.%d.pos_embedding.embedding.weight", i));
    IPVG_TRY(ipvg_weights_take(ctx, w, &b->norm2, norm, 1, "blocks.%d.norm2.weight", i));
    IPVG_TRY(ipvg_weights_take(ctx, w, &b->gate, up, 2, "blocks.%d.ffn.gate.0.weight", i));
    IPVG_TRY(ipvg_weights_take(ctx, w, &b->up, up, 2, "blocks.%d.ffn.fc1.weight", i));
    IPVG_TRY(ipvg_weights_take(ctx, w, &b->down, down, 2, "blocks.%d.ffn.fc2.weight", i));
    b->bias = ipvg_tensor_of(b->pos_embedding.data ? bias : NULL, IPVG_F32, c->heads, DISTANCES);
    if (b->bias.data) spread_bias(b, c);
done:
    return status;
}

ipvg_status ipvg_umt5_new(ipvg_context *ctx, ipvg_umt5 **out, const ipvg_umt5_config *config, ipvg_weights *weights)
{
    const ipvg_umt5_config *c = config;
    ipvg_umt5 *m = NULL;
    ipvg_status status;

    IPVG_TRY(check_config(ctx, c));
    m = calloc(1, sizeof *m + (size_t)c->layers * sizeof(block));
    if (m) m->bias = calloc((size_t)c->layers * c->heads, DISTANCES * sizeof(float));
    if (!m || !m->bias) {
        status = ipvg_fail(ctx, IPVG_E_MEMORY, "umT5: no memory for the position biases of %d layers", c->layers);
        goto done;
    }
    m->config = *c;
    m->weights = weights;
    const int64_t table[] = {c->vocab, c->dim}, norm[] = {c->dim};
    IPVG_TRY(ipvg_weights_take(ctx, weights, &m->token_embedding, table, 2, "token_embedding.weight"));
    for (int i = 0; i < c->layers; i++) IPVG_TRY(take_block(ctx, m, weights, i));
    IPVG_TRY(ipvg_weights_take(ctx, weights, &m->norm, norm, 1, "norm.weight"));
    IPVG_TRY(ipvg_weights_all_taken(ctx, weights));
    *out = m;
    m = NULL;
done:
    ipvg_umt5_free(&m);
    return status;
}

static ipvg_status place_one(ipvg_placing *p, block *b)
{
    const ipvg_dtype half = p->ex->be->activation;
    ipvg_status status;

    IPVG_TRY(ipvg_place_joined(p, &b->qkv, (ipvg_tensor *[]){&b->q, &b->k, &b->v}, 3, half));
    IPVG_TRY(ipvg_place_joined(p, &b->gate_up, (ipvg_tensor *[]){&b->gate, &b->up}, 2, half));
    IPVG_TRY(ipvg_place(p, &b->o, half));
    IPVG_TRY(ipvg_place(p, &b->down, half));
    IPVG_TRY(ipvg_place(p, &b->norm1, IPVG_F32));
    IPVG_TRY(ipvg_place(p, &b->norm2, IPVG_F32));
    IPVG_TRY(ipvg_place(p, &b->bias, IPVG_F32));
done:
    return status;
}

static ipvg_status place_block(ipvg_placing *p, void *model, int i, int where)
{
    ipvg_umt5 *m = model;
    block *b = &m->placed[where - m->config.layers]; /* none stays: a text takes each block once */
    *b = m->blocks[i];
    p->weights = m->weights;
    return place_one(p, b);
}

static ipvg_status place_rest(ipvg_placing *p, void *model)
{
    ipvg_umt5 *m = model;
    p->weights = m->weights;
    return ipvg_place(p, &m->norm, IPVG_F32);
}

static ipvg_status place_all(ipvg_placing *p, void *model)
{
    ipvg_umt5 *m = model;
    ipvg_status status;

    IPVG_TRY(place_rest(p, m));
    for (int i = 0; i < m->config.layers; i++) IPVG_TRY(place_one(p, &m->blocks[i]));
done:
    return status;
}

ipvg_status ipvg_umt5_place(ipvg_exec *ex, ipvg_umt5 *m)
{
    const int layers = m->config.layers;
    const bool hollow = !m->token_embedding.data;
    int order[IPVG_UMT5_MAX_LAYERS];
    ipvg_stream_bytes streaming;
    ipvg_status status;

    if (ex->be->host) return IPVG_OK;
    m->placed = calloc(2, sizeof *m->placed);
    if (!m->placed) return ipvg_fail(ex->ctx, IPVG_E_MEMORY, "umT5: no memory for two blocks");
    IPVG_TRY(ipvg_stream_measure(ex, &streaming, place_block, m, layers));
    m->bytes = (ipvg_umt5_bytes){(size_t)layers * streaming.block, streaming.staging};
    if (hollow || !ex->be->meter->limit) return ipvg_place_model(ex, &m->home, place_all, m, hollow);
    IPVG_TRY(ipvg_place_model(ex, &m->home, place_rest, m, false));
    for (int i = 0; i < layers; i++) order[i] = i;
    IPVG_TRY(ipvg_stream_new(ex, &m->stream, place_block, m, order, layers));
done:
    return status;
}

ipvg_umt5_bytes ipvg_umt5_memory(const ipvg_umt5 *umt5) { return umt5->bytes; }

void ipvg_umt5_free(ipvg_umt5 **umt5)
{
    if (!*umt5) return;
    ipvg_stream_free(&(*umt5)->stream);
    ipvg_arena_free(&(*umt5)->home);
    free((*umt5)->placed);
    free((*umt5)->bias);
    free(*umt5);
    *umt5 = NULL;
}

const ipvg_umt5_config *ipvg_umt5_get_config(const ipvg_umt5 *umt5) { return &umt5->config; }

/* ==== forward ==== */

/* y[i] (L, N) = x w[i]^T for n matrices of one shape (N, K); where they lie together, as one product whose columns these are. */
static ipvg_status products(ipvg_exec *ex, ipvg_tensor *y, int n, const ipvg_tensor *x, const ipvg_tensor *joined,
                            const ipvg_tensor *const *w)
{
    const int64_t tokens = x->shape[0], width = w[0]->shape[0];
    ipvg_tensor all;
    ipvg_status status = IPVG_OK;

    if (joined->ndim) {
        IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &all, x->dtype, 2, (const int64_t[]){tokens, n * width}));
        IPVG_TRY(ipvg_linear(ex, &all, x, joined, NULL, IPVG_ACT_NONE));
    }
    for (int i = 0; i < n; i++) {
        if (joined->ndim) {
            y[i] = ipvg_tensor_columns(&all, i * width, width);
            continue;
        }
        IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &y[i], x->dtype, 2, (const int64_t[]){tokens, width}));
        IPVG_TRY(ipvg_linear(ex, &y[i], x, w[i], NULL, IPVG_ACT_NONE));
    }
done:
    return status;
}

/* x += attention(norm1(x)). h (L, D) is scratch. */
static ipvg_status self_attention(ipvg_exec *ex, ipvg_tensor *x, ipvg_tensor *h, const ipvg_umt5 *m, const block *b,
                                  int layer)
{
    const int64_t tokens = x->shape[0], shape[] = {tokens, m->config.dim_attn};
    size_t mark = ipvg_arena_mark(ex->arena);
    ipvg_tensor qkv[3], o;
    ipvg_status status;

    /* The bias depends on the distance alone: a shorter text uses the middle of the table. */
    ipvg_tensor bias = ipvg_tensor_columns(&b->bias, IPVG_UMT5_MAX_TOKENS - tokens, 2 * tokens - 1);
    IPVG_TRY(ipvg_see(ex, &bias, "pos_bias%d", layer));
    IPVG_TRY(ipvg_rms_norm(ex, h, x, &b->norm1, m->config.eps));
    IPVG_TRY(products(ex, qkv, 3, h, &b->qkv, (const ipvg_tensor *[]){&b->q, &b->k, &b->v}));
    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &o, ex->be->activation, 2, shape));
    /* Scale 1: T5 folds 1/sqrt(d) into its weights. */
    IPVG_TRY(ipvg_attention(ex, &o, &qkv[0], &qkv[1], &qkv[2], m->config.heads, 1.0f, &bias, 1));
    IPVG_TRY(ipvg_linear(ex, h, &o, &b->o, NULL, IPVG_ACT_NONE));
    IPVG_TRY(ipvg_gate_residual(ex, x, h, NULL));
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

/* x += down(gelu(gate(n)) * up(n)) with n = norm2(x). h (L, D) is scratch. */
static ipvg_status feed_forward(ipvg_exec *ex, ipvg_tensor *x, ipvg_tensor *h, const ipvg_umt5 *m, const block *b)
{
    size_t mark = ipvg_arena_mark(ex->arena);
    ipvg_tensor both[2], *gate = &both[0];
    ipvg_status status;

    IPVG_TRY(ipvg_rms_norm(ex, h, x, &b->norm2, m->config.eps));
    IPVG_TRY(products(ex, both, 2, h, &b->gate_up, (const ipvg_tensor *[]){&b->gate, &b->up}));
    IPVG_TRY(ipvg_gated_gelu(ex, gate, gate, &both[1]));
    IPVG_TRY(ipvg_linear(ex, h, gate, &b->down, NULL, IPVG_ACT_NONE));
    IPVG_TRY(ipvg_gate_residual(ex, x, h, NULL));
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

ipvg_status ipvg_umt5_encode(ipvg_exec *ex, ipvg_tensor *states, const ipvg_tensor *ids, const ipvg_umt5 *umt5)
{
    const int64_t shape[] = {ids->shape[0], umt5->config.dim};
    size_t mark = ipvg_arena_mark(ex->arena);
    ipvg_tensor x, h;
    ipvg_status status;

    if (ids->ndim != 1 || shape[0] < 1 || shape[0] > IPVG_UMT5_MAX_TOKENS) {
        status = ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "umT5: 1 to %d tokens", IPVG_UMT5_MAX_TOKENS);
        goto done;
    }
    if (!ipvg_planning(ex) && !umt5->token_embedding.data) {
        status = ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "umT5: these weights are shapes without data, for planning only");
        goto done;
    }
    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &x, ex->be->activation, 2, shape));
    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &h, ex->be->activation, 2, shape));
    IPVG_TRY(ipvg_gather_rows(ex, &x, &umt5->token_embedding, ids));
    IPVG_TRY(ipvg_see(ex, &x, "embedding"));
    for (int i = 0; i < umt5->config.layers; i++) {
        const block *b = &umt5->blocks[i];
        int where;
        IPVG_TRY(ipvg_pace(ex));
        if (umt5->stream) {
            IPVG_TRY(ipvg_stream_enter(ex, umt5->stream, i, &where));
            b = &umt5->placed[where - umt5->config.layers];
        }
        IPVG_TRY(self_attention(ex, &x, &h, umt5, b, i));
        IPVG_TRY(feed_forward(ex, &x, &h, umt5, b));
        if (umt5->stream) IPVG_TRY(ipvg_stream_leave(ex, umt5->stream, (i + 1) % umt5->config.layers));
        IPVG_TRY(ipvg_see(ex, &x, "after_layer%d", i));
    }
    IPVG_TRY(ipvg_rms_norm(ex, states, &x, &umt5->norm, umt5->config.eps));
    IPVG_TRY(ipvg_see(ex, states, "out"));
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}
