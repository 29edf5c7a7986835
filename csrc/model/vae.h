/* The causal video VAE of Wan2.1: frames to latents and back, as a stream of frames.
 *
 *     ipvg_vae *vae = NULL;
 *     IPVG_TRY(ipvg_vae_new(ctx, &vae, &config, weights));
 *     ipvg_arena_plan(ex->arena);
 *     IPVG_TRY(ipvg_vae_decode(ex, &frames, &latent, vae));         // how much scratch? (ipvg_vae_memory asks for you)
 *     IPVG_TRY(ipvg_arena_reserve(ctx, &be->memory, ex->arena, ex->arena->peak));
 *     IPVG_TRY(ipvg_vae_decode(ex, &frames, &latent, vae));         // computes
 *
 * or, as frames become ready, with memory that does not depend on how many there are:
 *
 *     IPVG_TRY(ipvg_vae_decoder_begin(ex, &decoder, vae, h, w));    // plan it the same way
 *     for (int64_t i = 0; i < latent.shape[1]; i++)
 *         IPVG_TRY(ipvg_vae_decoder_next(ex, decoder, &chunk, 0, &count, &latent, i));  // 1 frame, then 4 each
 *         IPVG_TRY(ipvg_vae_decoder_finish(ex, decoder));
 *     ipvg_vae_decoder_end(ex->be, &decoder);
 *
 * The reference walks over chunks (1, 4, 4, ... frames) and keeps two frames of history for every convolution. Here the
 * unit is a single frame, which gives the same result: each convolution has a ring of its newest three inputs, a frame
 * is pushed through the net as far as it goes, and missing history is not zeros that are multiplied but is left out.
 * What is not plainly causal: see time_up (vae_decoder.c) and resample (vae_encoder.c).
 *
 * frames (3, T, H, W) float32 in [-1, 1], T = 1 + 4n; latent (z, 1 + n, H/8, W/8), normalised:
 * (mu - mean) * (1/std). What is given lies in the host's memory or the backend's, what is made in the host's; everything
 * between is channels last, (H, W, C), in the backend's. */
#ifndef IPVG_MODEL_VAE_H
#define IPVG_MODEL_VAE_H

#include "../ops/ops.h"
#include "weights.h"

#define IPVG_VAE_MAX_LEVELS 6
#define IPVG_VAE_MAX_BLOCKS 8
#define IPVG_VAE_MAX_Z 64

typedef struct ipvg_vae_config {
    int dim, z_dim;                                  /* 96, 16 */
    int levels, dim_mult[IPVG_VAE_MAX_LEVELS];       /* 4: 1, 2, 4, 4. Space shrinks 2^(levels - 1) times */
    int res_blocks;                                  /* 2 in a level of the encoder; the decoder has one more */
    bool temporal[IPVG_VAE_MAX_LEVELS];              /* levels - 1: does time halve there too? no, yes, yes */
    float mean[IPVG_VAE_MAX_Z], std[IPVG_VAE_MAX_Z]; /* of the latent's channels */
} ipvg_vae_config;

/* The latent statistics of Wan2.1's VAE (16 channels). */
extern const float ipvg_vae_wan_mean[16], ipvg_vae_wan_std[16];

typedef struct ipvg_vae ipvg_vae;

/* Takes every tensor from `weights` (which must outlive the model). A missing, misshapen or unknown one: IPVG_E_FORMAT. */
ipvg_status ipvg_vae_new(ipvg_context *ctx, ipvg_vae **out, const ipvg_vae_config *config, ipvg_weights *weights);
/* Brings the weights to the backend's memory, where that is not the host's (model/place.h). */
ipvg_status ipvg_vae_place(ipvg_exec *ex, ipvg_vae *vae);
void ipvg_vae_free(ipvg_vae **vae);
const ipvg_vae_config *ipvg_vae_get_config(const ipvg_vae *vae);
int ipvg_vae_space_stride(const ipvg_vae *vae); /* 8: rows of frames per row of a latent */
int ipvg_vae_time_stride(const ipvg_vae *vae);  /* 4: frames per latent frame, but one for the first */

/* The latent size of that video size; IPVG_E_ARGUMENT says which sizes work. */
ipvg_status ipvg_vae_latent_size(ipvg_context *ctx, const ipvg_vae *vae, int64_t frames, int64_t height, int64_t width,
                                 int64_t *t, int64_t *h, int64_t *w);

/* ---- whole arrays ---- */

/* latent (z, t, h, w) of frames (3, T, H, W). ctx->progress counts frames. IPVG_E_CANCELLED within one block of one frame; a GPU
 * then still has a frame or two to do. */
ipvg_status ipvg_vae_encode(ipvg_exec *ex, ipvg_tensor *latent, const ipvg_tensor *frames, const ipvg_vae *vae);
/* frames (3, T, H, W), not clamped, of latent (z, t, h, w). */
ipvg_status ipvg_vae_decode(ipvg_exec *ex, ipvg_tensor *frames, const ipvg_tensor *latent, const ipvg_vae *vae);

/* What a video of that size needs besides weights and the two arrays, in bytes; measured by planning. It includes the
 * weights in the backend's form. */
typedef struct ipvg_vae_bytes {
    size_t encode, decode;
    size_t weights; /* in the backend's memory, as they came from the file; 0 where that is the host's */
} ipvg_vae_bytes;
ipvg_status ipvg_vae_memory(ipvg_context *ctx, const ipvg_backend *be, ipvg_vae_bytes *out, const ipvg_vae *vae,
                            int64_t frames, int64_t height, int64_t width);

/* ---- streams ----
 * A stream takes packed weights and history from ex->arena at begin and its scratch above them in each next: nothing else
 * may be put there below it. With arena->planning set, begin and next measure. A failed or cancelled next ends a stream. */

typedef struct ipvg_vae_encoder ipvg_vae_encoder;
/* height, width: of the frames. */
ipvg_status ipvg_vae_encoder_begin(ipvg_exec *ex, ipvg_vae_encoder **out, const ipvg_vae *vae, int64_t height,
                                   int64_t width);
/* Takes frame `index` of frames (3, T, H, W) and writes what that completes, *count = 0 or 1 latent frames, to frame `at`
 * of latent (z, t, h, w). The last of them may be under way until the next call that makes one, or `finish`. */
ipvg_status ipvg_vae_encoder_next(ipvg_exec *ex, ipvg_vae_encoder *e, ipvg_tensor *latent, int64_t at, int *count,
                                  const ipvg_tensor *frames, int64_t index);
ipvg_status ipvg_vae_encoder_finish(ipvg_exec *ex, ipvg_vae_encoder *e);
void ipvg_vae_encoder_end(const ipvg_backend *be, ipvg_vae_encoder **e);

typedef struct ipvg_vae_decoder ipvg_vae_decoder;
/* height, width: of the latent. */
ipvg_status ipvg_vae_decoder_begin(ipvg_exec *ex, ipvg_vae_decoder **out, const ipvg_vae *vae, int64_t height,
                                   int64_t width);
/* Takes frame `index` of latent (z, t, h, w) and writes *count frames, one for the first and the time stride for each later
 * one, to frames (3, T, H, W), or uint8 (T, H, W, 3), from frame `at` on. The last of them may be under way until the next
 * call or `finish`. As bytes they are clamped, and NaN or infinity is IPVG_E_ARGUMENT. */
ipvg_status ipvg_vae_decoder_next(ipvg_exec *ex, ipvg_vae_decoder *d, ipvg_tensor *frames, int64_t at, int *count,
                                  const ipvg_tensor *latent, int64_t index);
ipvg_status ipvg_vae_decoder_finish(ipvg_exec *ex, ipvg_vae_decoder *d);
void ipvg_vae_decoder_end(const ipvg_backend *be, ipvg_vae_decoder **d);

#endif
