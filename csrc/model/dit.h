/* The Wan2.1-VACE diffusion transformer: predicts the velocity of a video latent.
 *
 *     ipvg_dit *dit = NULL;
 *     IPVG_TRY(ipvg_dit_new(ctx, &dit, &config, weights));
 *     IPVG_TRY(ipvg_dit_text_new(ex, &text, dit, &states));                   // once a prompt
 *     IPVG_TRY(ipvg_dit_context_new(ex, &context, dit, &vace, frames));       // once a source
 *     const ipvg_dit_branch cond = {text, context}, uncond = {other, context}, *const both[] = {&cond, &uncond};
 *     ipvg_arena_plan(ex->arena);                                             // once: how much scratch?
 *     IPVG_TRY(ipvg_dit_forward(ex, velocity, &x, t, dit, both, 2, NULL));
 *     IPVG_TRY(ipvg_arena_reserve(ctx, &be->memory, ex->arena, ex->arena->peak));
 *     for (each step)                                                         // allocates nothing
 *         IPVG_TRY(ipvg_dit_forward(ex, velocity, &x, t, dit, both, 2, NULL));
 *
 * What does not change from step to step is made once: the text embedding and every block's cross-attention keys and
 * values (ipvg_dit_text), the embedded VACE context and the rotary table (ipvg_dit_context). Hints depend on x and t and
 * are made anew in every forward, each right after the main block that takes it, so that one buffer is enough.
 *
 * Branches of one step have much in common: what the same operations make of the same inputs is computed once. So a
 * forward takes them all and goes through the blocks with them side by side. It changes no bit of any velocity.
 *
 * Intermediates show themselves to ex->trace by the golden names: "x_tokens", "block0_q", "vace1_hint" and so on.
 *
 * Shapes: L = F * (h/2) * (w/2) tokens, D = dim columns. Activations are in
 * the backend's dtype for them, latents and velocities in float32. */
#ifndef IPVG_MODEL_DIT_H
#define IPVG_MODEL_DIT_H

#include "../ops/ops.h"
#include "../ops/replay.h"
#include "weights.h"

#define IPVG_DIT_MAX_LAYERS 256
#define IPVG_DIT_MAX_FREQ 4096
#define IPVG_DIT_MAX_SIDE 65536 /* frames, rows and columns of a latent */
#define IPVG_DIT_BRANCHES 16    /* of one forward */

typedef struct ipvg_dit_config {
    int dim, heads, ffn_dim, layers;      /* heads divides dim; dim / heads is even */
    int in_dim, out_dim;                  /* latent channels: 16, 16 */
    int vace_in_dim;                      /* 96 */
    int freq_dim;                         /* sinusoid of the timestep: 256 */
    int text_len, text_dim;               /* 512, 4096 */
    float eps;                            /* 1e-6 */
    int n_vace;                           /* 0: a plain text-to-video model; then contexts are NULL */
    int vace_layers[IPVG_DIT_MAX_LAYERS]; /* ascending, the first is 0: main block vace_layers[n] takes hint n */
} ipvg_dit_config;

typedef struct ipvg_dit ipvg_dit;
typedef struct ipvg_dit_text ipvg_dit_text;
typedef struct ipvg_dit_context ipvg_dit_context;

/* Takes every tensor from `weights` (which must outlive the model). A missing, misshapen or unknown one: IPVG_E_FORMAT. */
ipvg_status ipvg_dit_new(ipvg_context *ctx, ipvg_dit **out, const ipvg_dit_config *config, ipvg_weights *weights);
/* Brings the weights to the backend's memory, where that is not the host's (model/place.h); before anything is prepared.
 * Under a memory limit (be->meter) only what no block can do without: blocks are streamed (model/stream.h), and settle lets
 * as many stay as there is room for, once all else that a run takes has been taken. It gives the same bytes. */
ipvg_status ipvg_dit_place(ipvg_exec *ex, ipvg_dit *dit);
ipvg_status ipvg_dit_settle(ipvg_exec *ex, const ipvg_dit *dit);
int ipvg_dit_streamed(const ipvg_dit *dit); /* blocks that do not stay */
void ipvg_dit_free(ipvg_dit **dit);
const ipvg_dit_config *ipvg_dit_get_config(const ipvg_dit *dit);

/* A prompt for this model. states (n, text_dim), 1 <= n <= text_len, float32 of the host's memory or the backend's: umT5's
 * states without padding; the zero rows up to text_len, which count too, are added here.
 * Plans and grows ex->arena itself: call it with nothing of yours in the arena. The same holds for the context. */
ipvg_status ipvg_dit_text_new(ipvg_exec *ex, ipvg_dit_text **out, const ipvg_dit *dit, const ipvg_tensor *states);
void ipvg_dit_text_free(const ipvg_backend *be, ipvg_dit_text **text);

/* A VACE context for latents of `frames` frames. context (vace_in_dim, Fc, h, w), float32 as the states, Fc <= frames: the
 * embedded tokens of a shorter one get zero rows at the end (the released code's "dropped" reference; the control tokens
 * then sit early by frames - Fc). A slot that is kept but absent is zeros in `context`: its tokens are the bias.
 * A model without VACE layers has contexts too, for the rotary table: pass a context tensor with shape[0] = 0. */
ipvg_status ipvg_dit_context_new(ipvg_exec *ex, ipvg_dit_context **out, const ipvg_dit *dit, const ipvg_tensor *context,
                                 int frames);
void ipvg_dit_context_free(const ipvg_backend *be, ipvg_dit_context **context);
void ipvg_dit_context_size(const ipvg_dit_context *context, int *frames, int *height, int *width); /* of the latent */

typedef enum ipvg_dit_run {
    IPVG_DIT_RUN = 0,
    IPVG_DIT_SKIP,           /* the block returns x: its hint is dropped with it, as in the released code */
    IPVG_DIT_SKIP_KEEP_HINT, /* the block returns x + its hint * scale */
} ipvg_dit_run;

/* What becomes of a main block's self-attention. */
typedef enum ipvg_dit_perturb {
    IPVG_DIT_ATTEND = 0,
    IPVG_DIT_IDENTITY, /* every token attends to itself alone, so that the output is V: STG-A, PAG */
    IPVG_DIT_BLUR,     /* queries blurred over each frame after the rotary embedding, which blurs the logits: SEG */
} ipvg_dit_perturb;

/* Normalised attention guidance in every cross-attention, those of the VACE blocks too. */
typedef struct ipvg_dit_nag {
    const ipvg_dit_text *text; /* what to move away from; NULL: no such guidance */
    float scale, tau, alpha;   /* see ipvg_nag */
} ipvg_dit_nag;

/* One prediction. With all but the first two zero it is the plain one, and fields added later keep that rule. */
typedef struct ipvg_dit_branch {
    const ipvg_dit_text *text;
    const ipvg_dit_context *context;
    const unsigned char *perturb; /* (layers) of ipvg_dit_perturb; NULL: all attend */
    float blur;                   /* sigma of IPVG_DIT_BLUR in tokens, > 0; INFINITY: the mean of a frame */
    ipvg_dit_nag nag;
    int reference_frames;         /* the tokens of the first so many frames ... */
    const float *reference_scale; /* ... get each hint with this scale (n_vace) instead; NULL: no difference */
    const unsigned char *run;     /* (layers) of ipvg_dit_run; NULL: all run */
    const float *scale; /* (n_vace) context scale of each hint; NULL: 1. What no main block takes, because of a
                                 scale of 0 or a skip, is not computed, unless a trace (ex->trace) looks */
} ipvg_dit_branch;

/* velocity[b] (out_dim, F, h, w) of x (in_dim, F, h, w) at timestep t in [0, 1000] (not sigma) as branch[b] predicts it,
 * for 1 to IPVG_DIT_BRANCHES branches, all in the backend's memory; F, h, w as the contexts were made for. A velocity may
 * be x. Takes its scratch from ex->arena and allocates nothing else; in planning mode only shapes are read.
 * IPVG_E_CANCELLED within one block, or before a forward that is queued as one. A trace sees what branches share once.
 * again: of calls in which only t and the numbers in x differ, see ops/replay.h; or NULL. */
ipvg_status ipvg_dit_forward(ipvg_exec *ex, ipvg_tensor *const *velocity, const ipvg_tensor *x, double t,
                             const ipvg_dit *dit, const ipvg_dit_branch *const *branch, int count, ipvg_replay *again);

/* What a latent of that size needs besides the weights, in bytes: measured by planning, nothing is allocated. */
typedef struct ipvg_dit_bytes {
    size_t scratch; /* of the arena: the largest of ipvg_dit_place, _text_new, _context_new and _forward */
    size_t text;    /* each ipvg_dit_text, at most */
    size_t context; /* each ipvg_dit_context */
    size_t weights, least,
        block; /* in the backend's memory, where that is not the host's: all; with every block streamed,
                                     two slots included; what each block adds that stays, up to all */
} ipvg_dit_bytes;
typedef struct ipvg_dit_job {
    int frames, height, width; /* of the latent */
    int branches, hints; /* of a forward; how many of them differ in text, context or NAG: the others share hints */
    bool nag, blur;      /* does a branch have NAG, blurred queries? */
} ipvg_dit_job;
ipvg_status ipvg_dit_memory(ipvg_context *ctx, const ipvg_backend *be, ipvg_dit_bytes *out, const ipvg_dit *dit,
                            const ipvg_dit_job *job);

#endif
