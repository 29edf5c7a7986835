/* umT5's encoder: from token ids to the text states that the diffusion transformer attends to.
 *
 *     ipvg_umt5 *umt5 = NULL;
 *     IPVG_TRY(ipvg_umt5_new(ctx, &umt5, &config, weights));
 *     ipvg_arena_plan(ex->arena);
 *     IPVG_TRY(ipvg_umt5_encode(ex, &states, &ids, umt5));       // how much scratch?
 *     IPVG_TRY(ipvg_arena_reserve(ctx, &be->memory, ex->arena, ex->arena->peak));
 *     IPVG_TRY(ipvg_umt5_encode(ex, &states, &ids, umt5));       // computes
 *     ipvg_umt5_free(&umt5);
 *
 * The reference pads every text to 512 tokens, masks the padding and trims the result. Attention depends on the distance
 * of two tokens only, so a text alone gives the same states, and that is what is computed here.
 *
 * Shapes: L tokens, D = dim columns, H heads. Activations are in the backend's dtype for them. */
#ifndef IPVG_MODEL_UMT5_H
#define IPVG_MODEL_UMT5_H

#include "../ops/ops.h"
#include "weights.h"

#define IPVG_UMT5_MAX_TOKENS 512
#define IPVG_UMT5_MAX_LAYERS 256

typedef struct ipvg_umt5_config {
    int vocab, dim, dim_attn, dim_ffn, heads, layers; /* heads divides dim_attn */
    int buckets, max_distance;                        /* of the relative position bias: 32, 128 */
    float eps;                                        /* 1e-6 */
} ipvg_umt5_config;

typedef struct ipvg_umt5 ipvg_umt5;

/* Takes every tensor from `weights` (which must outlive the model). A missing, misshapen or unknown one: IPVG_E_FORMAT.
 * Reads the position embeddings (a few KiB a layer) and nothing else. */
ipvg_status ipvg_umt5_new(ipvg_context *ctx, ipvg_umt5 **out, const ipvg_umt5_config *config, ipvg_weights *weights);
/* Brings the weights, but the token embedding, to the backend's memory where that is not the host's (model/place.h). Under a
 * memory limit (be->meter) blocks are streamed instead (model/stream.h); the same bytes come out. */
ipvg_status ipvg_umt5_place(ipvg_exec *ex, ipvg_umt5 *umt5);
/* What that takes of it: all, or streamed. 0 where it is the host's. */
typedef struct ipvg_umt5_bytes {
    size_t weights, least;
} ipvg_umt5_bytes;
ipvg_umt5_bytes ipvg_umt5_memory(const ipvg_umt5 *umt5);
void ipvg_umt5_free(ipvg_umt5 **umt5);
const ipvg_umt5_config *ipvg_umt5_get_config(const ipvg_umt5 *umt5);

/* states (L, dim) float32 of ids (L) int32, 1 <= L <= IPVG_UMT5_MAX_TOKENS; states in the backend's
 * memory, ids in the host's. An id outside
 * the vocabulary: IPVG_E_ARGUMENT. Takes its scratch from ex->arena and allocates nothing else. IPVG_E_CANCELLED within
 * one block. Traces "embedding", then for each layer i "pos_bias<i>" (H, 2L - 1: entry [h][key - query + L - 1]) and
 * "after_layer<i>", then "out". */
ipvg_status ipvg_umt5_encode(ipvg_exec *ex, ipvg_tensor *states, const ipvg_tensor *ids, const ipvg_umt5 *umt5);

/* The bucket of a distance key - query: half of the buckets for keys after the query; of each half, half for one distance
 * each and half logarithmic up to max_distance. */
int ipvg_umt5_bucket(int distance, int buckets, int max_distance);

#endif
