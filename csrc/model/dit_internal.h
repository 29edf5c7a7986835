/* Inside the DiT: what dit.c, dit_block.c, dit_inputs.c and dit_pass.c share. */
#ifndef IPVG_MODEL_DIT_INTERNAL_H
#define IPVG_MODEL_DIT_INTERNAL_H

#include "dit.h"
#include "stream.h"

/* ---- weights; D = dim ---- */

typedef struct ipvg_dit_linear {
    ipvg_tensor w, b; /* (out, in), (out) */
} ipvg_dit_linear;

typedef struct ipvg_dit_attention {
    ipvg_dit_linear q, k, v, o; /* (D, D) */
    ipvg_tensor norm_q, norm_k; /* (D) */
    ipvg_dit_linear qkv;        /* (3 D, D): q, k, v as one, where weights were placed; else ndim 0 */
} ipvg_dit_attention;

typedef struct ipvg_dit_block {
    const char *kind; /* "block" or "vace", and its index: how the trace names it */
    int index;
    ipvg_tensor modulation; /* (6, D): shift, scale, gate of self-attention, then of the FFN */
    ipvg_dit_attention self, cross;
    ipvg_tensor norm3_w, norm3_b;  /* (D) */
    ipvg_dit_linear up, down;      /* (ffn, D), (D, ffn) */
    ipvg_dit_linear before, after; /* (D, D), VACE blocks only; `before` in the first alone */
} ipvg_dit_block;

struct ipvg_dit {
    ipvg_dit_config config;
    const ipvg_weights *weights;
    ipvg_arena home;                                   /* of weights in a backend's memory */
    bool hollow;                                       /* the weights are shapes only: it can plan, not run */
    ipvg_dit_linear patch, vace_patch;                 /* (D, in_dim * 4), (D, vace_in_dim * 4) */
    ipvg_dit_linear text[2], time[2], time_projection; /* (D, text_dim), (D, D); (D, freq_dim), (D, D); (6 D, D) */
    ipvg_dit_linear head;                              /* (4 * out_dim, D) */
    ipvg_tensor head_modulation;                       /* (2, D): shift, scale */
    ipvg_stream *stream;                               /* of the blocks, under a memory limit; NULL: all are placed */
    size_t all, rest, placing;   /* bytes in a backend's memory: of all, without blocks; scratch to bring them there */
    ipvg_stream_bytes streaming; /* what a stream takes */
    ipvg_dit_block *placed;      /* with a stream: where blocks are now, and its two slots */
    ipvg_dit_block blocks[];     /* layers main ones, then n_vace VACE ones */
};

/* ---- prepared inputs ---- */

struct ipvg_dit_text {
    const ipvg_dit *dit;
    ipvg_tensor kv; /* (layers + n_vace, 2, rows, D): cross-attention keys and values of each block */
    int64_t repeat; /* how often the last row counts, as the padding of the reference up to text_len */
};

struct ipvg_dit_context {
    const ipvg_dit *dit;
    int frames, height, width; /* of the latent */
    ipvg_tensor tokens;        /* (L, D); no data without VACE layers */
    ipvg_tensor rope;          /* (L, d/2, 2): cosine and sine of each complex pair's angle */
    void *buffer;              /* holds both */
};

/* ---- dit_block.c ---- */

/* What a block's large products take: those whose rows are the tokens and whose inputs have been normed or averaged, so that
 * E4M3 holds them. VACE's projections of the state itself, 2 % of the arithmetic, are not among them, nor what is made once. */
static inline ipvg_dtype ipvg_dit_large(const ipvg_backend *be)
{
    return be->compute == IPVG_E4M3 ? IPVG_E4M3 : be->activation;
}

/* Takes a block's weights by the names under `prefix` ("blocks.3"). */
ipvg_status ipvg_dit_block_take(ipvg_context *ctx, ipvg_dit_block *block, ipvg_weights *weights,
                                const ipvg_dit_config *config, const char *prefix);

/* What a block is given besides its state x (L, D), other than text. */
typedef struct ipvg_dit_given {
    const ipvg_dit_config *config;
    const ipvg_dit_context *context; /* rope, rows and columns */
    ipvg_tensor e0;                  /* (6, D): time modulation */
    ipvg_dit_perturb perturb;
    float blur;
} ipvg_dit_given;

/* What its cross-attention reads. */
typedef struct ipvg_dit_words {
    ipvg_tensor k, v;           /* (rows, D): of the text */
    const ipvg_dit_nag *nag;    /* NULL: none */
    ipvg_tensor nag_k, nag_v;   /* (rows, D): of its text */
    int64_t repeat, nag_repeat; /* how often each last row counts */
} ipvg_dit_words;

/* Brings a block's weights to the backend's memory, but those that come before and after it. */
ipvg_status ipvg_dit_block_place(ipvg_placing *p, ipvg_dit_block *block);
/* Both tensors of a layer, in one dtype; of E4M3 the weights alone. */
ipvg_status ipvg_dit_linear_place(ipvg_placing *p, ipvg_dit_linear *linear, ipvg_dtype dtype);

/* x[0] (L, D) becomes block(x[0]). The others, whose contents are not read, become what the block makes of that same
 * state with words of their own: its self-attention is computed once. */
ipvg_status ipvg_dit_block_forward(ipvg_exec *ex, ipvg_tensor *const *x, const ipvg_dit_block *block,
                                   const ipvg_dit_given *given, const ipvg_dit_words *words, int count);

/* out (rows, D) float32 in the arena = modulation (rows, D), any dtype, + e: (rows, D), or (1, D) added to every row. */
ipvg_status ipvg_dit_modulation(ipvg_exec *ex, ipvg_tensor *out, const ipvg_tensor *modulation, const ipvg_tensor *e);

/* Takes "<prefix>.weight" of that shape (seen as (out, in)) and "<prefix>.bias". */
ipvg_status ipvg_dit_linear_take(ipvg_context *ctx, ipvg_dit_linear *linear, ipvg_weights *weights,
                                 const int64_t *shape, int ndim, const char *prefix);

static inline ipvg_status ipvg_dit_linear_run(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x,
                                              const ipvg_dit_linear *linear, ipvg_act act)
{
    return ipvg_linear(ex, y, x, &linear->w, &linear->b, act);
}

/* In float32 on every backend: the timestep's layers and the head. */
static inline ipvg_status ipvg_dit_linear_exact(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x,
                                                const ipvg_dit_linear *linear, ipvg_act act)
{
    return ipvg_linear_exact(ex, y, x, &linear->w, &linear->b, act);
}

static inline ipvg_status ipvg_dit_copy(ipvg_exec *ex, ipvg_tensor *to, const ipvg_tensor *from)
{
    return ipvg_combine(ex, to, 1, &from, (const float[]){1.f});
}

/* ---- dit_place.c ---- */

/* The blocks as they run: each VACE block right before the main block that takes its hint. Returns how many. */
int ipvg_dit_order(int order[2 * IPVG_DIT_MAX_LAYERS], const ipvg_dit_config *config);
/* Block i, ready for what is queued next, and the end of that. next: the one that follows, or -1. */
ipvg_status ipvg_dit_block_enter(ipvg_exec *ex, const ipvg_dit_block **out, const ipvg_dit *dit, int i);
ipvg_status ipvg_dit_block_leave(ipvg_exec *ex, const ipvg_dit *dit, int next);
/* The block after i of those that run one after the other, which does not stay and for which runs(user, block); -1: none.
 * It goes round: after the last comes the first of the next forward. */
int ipvg_dit_block_next(const ipvg_dit *dit, int i, bool (*runs)(const void *user, int block), const void *user);

/* ---- dit_pass.c ---- */

/* One state of each branch. Branches that share one have the same leader. */
typedef struct ipvg_dit_states {
    ipvg_tensor state[IPVG_DIT_BRANCHES]; /* (L, D), where lead[b] == b */
    int lead[IPVG_DIT_BRANCHES];          /* -1: this branch needs none */
} ipvg_dit_states;

typedef struct ipvg_dit_pass {
    const ipvg_dit *dit;
    int count;
    const ipvg_dit_branch *const *branch;
    int needed[IPVG_DIT_BRANCHES]; /* hints of each branch, up to the last that counts */
    ipvg_dit_states x, c;
} ipvg_dit_pass;

/* Takes the states from the arena. Who shares what of c at its start is known then; x is one for all. */
ipvg_status ipvg_dit_pass_begin(ipvg_exec *ex, ipvg_dit_pass *p, const ipvg_dit *dit,
                                const ipvg_dit_branch *const *branch, int count);
/* Block i, counted over main and then VACE ones, of p->x or p->c, in all branches that run it. */
ipvg_status ipvg_dit_pass_block(ipvg_exec *ex, ipvg_dit_pass *p, ipvg_dit_states *s, ipvg_dit_given *given, int i);
/* Before hint n is added to x: who gets another hint, or on another scale, parts. */
ipvg_status ipvg_dit_pass_hint(ipvg_exec *ex, ipvg_dit_pass *p, int n);
/* What hint n counts for in branch b, in the rows of references or of all others; 0 if its main block drops it. */
float ipvg_dit_hint_scale(const ipvg_dit_pass *p, int b, int n, bool reference);
bool ipvg_dit_hint_counts(const ipvg_dit_pass *p, int b, int n);

/* ---- dit_inputs.c ---- */

/* The keys (what = 0) or values (1) of block i. */
ipvg_tensor ipvg_dit_text_part(const ipvg_dit_text *text, int block, int what);
/* e (1, D) and e0 (6, D), in the arena, of a timestep. */
ipvg_status ipvg_dit_time(ipvg_exec *ex, ipvg_tensor *e, ipvg_tensor *e0, double t, const ipvg_dit *dit);

#endif
