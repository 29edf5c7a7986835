#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dit_internal.h"

/* Zeros: a combination whose only term is dropped. */
static ipvg_status zero(ipvg_exec *ex, ipvg_tensor *t)
{
    return ipvg_combine(ex, t, 1, (const ipvg_tensor *[]){t}, (const float[]){0.f});
}

/* ==== time ==== */

ipvg_status ipvg_dit_time(ipvg_exec *ex, ipvg_tensor *e, ipvg_tensor *e0, double t, const ipvg_dit *dit)
{
    const int64_t dim = dit->config.dim, half = dit->config.freq_dim / 2;
    const int64_t row[] = {1, dim}, all[] = {1, 6 * dim}, in[] = {1, dit->config.freq_dim};
    float host[IPVG_DIT_MAX_FREQ];
    ipvg_tensor wave, hidden, projected;
    ipvg_status status;

    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, e, IPVG_F32, 2, row));
    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &projected, IPVG_F32, 2, all));
    size_t mark = ipvg_arena_mark(ex->arena);
    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &wave, IPVG_F32, 2, in));
    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &hidden, IPVG_F32, 2, row));
    for (int64_t i = 0; i < half; i++) { /* in double: t * frequency is up to 1000 radians */
        double angle = t * pow(10000.0, -(double)i / (double)half);
        host[i] = (float)cos(angle);
        host[half + i] = (float)sin(angle);
    }
    IPVG_TRY(ex->be->copy_in(ex, &wave, host));
    IPVG_TRY(ipvg_dit_linear_exact(ex, &hidden, &wave, &dit->time[0], IPVG_ACT_SILU));
    IPVG_TRY(ipvg_dit_linear_exact(ex, e, &hidden, &dit->time[1], IPVG_ACT_NONE));
    IPVG_TRY(ipvg_see(ex, e, "e"));
    IPVG_TRY(ipvg_silu(ex, &hidden, e));
    IPVG_TRY(ipvg_dit_linear_exact(ex, &projected, &hidden, &dit->time_projection, IPVG_ACT_NONE));
    *e0 = ipvg_tensor_of(projected.data, IPVG_F32, 6, dim);
    IPVG_TRY(ipvg_see(ex, e0, "e0"));
    ipvg_arena_reset(ex->arena, mark);
done:
    return status;
}

/* ==== text ==== */

ipvg_tensor ipvg_dit_text_part(const ipvg_dit_text *text, int block, int what)
{
    const int64_t *shape = text->kv.shape, size = shape[2] * shape[3];
    char *data = text->kv.data;
    size_t at = (size_t)((2 * block + what) * size) * ipvg_dtype_size(text->kv.dtype);
    return ipvg_tensor_of(data ? data + at : NULL, text->kv.dtype, shape[2], shape[3]);
}

static bool any(const void *user, int block)
{
    (void)user, (void)block;
    return true;
}

/* The reference pads with zeros up to text_len, before the embedding, whose biases make them count. What it makes of them is
 * one row, many times: the last one here, which attention counts `repeat` times. */
static ipvg_status text_run(ipvg_exec *ex, ipvg_dit_text *text, const ipvg_tensor *states)
{
    const ipvg_dit *dit = text->dit;
    const ipvg_dit_config *c = &dit->config;
    const int64_t rows = text->kv.shape[2], given = states->shape[0];
    const int64_t in[] = {rows, c->text_dim}, out[] = {rows, c->dim};
    size_t mark = ipvg_arena_mark(ex->arena);
    const ipvg_dtype dtype = ex->be->activation;
    ipvg_tensor embedded, padded, hidden, rounded;
    int order[2 * IPVG_DIT_MAX_LAYERS], count;
    ipvg_status status;

    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &embedded, dtype, 2, out));
    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &hidden, dtype, 2, out));
    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &padded, IPVG_F32, 2, in));
    ipvg_tensor real = ipvg_tensor_slice(&padded, 0, given);
    ipvg_tensor rest = ipvg_tensor_slice(&padded, given, rows - given);
    IPVG_TRY(ex->be->copy_in(ex, &real, states->data));
    if (rest.shape[0]) IPVG_TRY(zero(ex, &rest));
    if (dtype != IPVG_F32) {
        IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &rounded, dtype, 2, in));
        IPVG_TRY(ipvg_cast(ex, &rounded, &padded));
        padded = rounded;
    }
    IPVG_TRY(ipvg_dit_linear_run(ex, &hidden, &padded, &dit->text[0], IPVG_ACT_GELU_TANH));
    IPVG_TRY(ipvg_dit_linear_run(ex, &embedded, &hidden, &dit->text[1], IPVG_ACT_NONE));
    IPVG_TRY(ipvg_see(ex, &embedded, "text_rows"));
    count = ipvg_dit_order(order, c);
    for (int n = 0; n < count; n++) {
        const int i = order[n];
        const ipvg_dit_block *block;
        ipvg_tensor k = ipvg_dit_text_part(text, i, 0), v = ipvg_dit_text_part(text, i, 1);
        IPVG_TRY(ipvg_pace(ex));
        IPVG_TRY(ipvg_dit_block_enter(ex, &block, dit, i));
        IPVG_TRY(ipvg_dit_linear_run(ex, &k, &embedded, &block->cross.k, IPVG_ACT_NONE));
        IPVG_TRY(ipvg_rms_norm(ex, &k, &k, &block->cross.norm_k, c->eps));
        IPVG_TRY(ipvg_dit_linear_run(ex, &v, &embedded, &block->cross.v, IPVG_ACT_NONE));
        IPVG_TRY(ipvg_dit_block_leave(ex, dit, ipvg_dit_block_next(dit, i, any, NULL)));
    }
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

/* Of that many words. Rows go in eights: 16 bytes that kernels read at once, and few shapes whose algorithms are timed. */
static ipvg_dit_text text_shell(const ipvg_dit *dit, const ipvg_backend *be, int64_t words)
{
    const ipvg_dit_config *c = &dit->config;
    const int64_t padded = words / 8 * 8 + 8,
                  rows = padded < c->text_len && padded <= be->few_keys ? padded : c->text_len;
    return (ipvg_dit_text){.dit = dit,
                           .kv = ipvg_tensor_of(NULL, be->activation, c->layers + c->n_vace, 2, rows, c->dim),
                           .repeat = c->text_len - rows + 1};
}

ipvg_status ipvg_dit_text_new(ipvg_exec *ex, ipvg_dit_text **out, const ipvg_dit *dit, const ipvg_tensor *states)
{
    const ipvg_dit_config *c = &dit->config;
    ipvg_dit_text *text = NULL;
    ipvg_status status;

    if (dit->hollow) return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "text: the model has shapes but no weights");
    if (states->ndim != 2 || states->shape[0] < 1 || states->shape[0] > c->text_len ||
        states->shape[1] != c->text_dim || states->dtype != IPVG_F32) {
        char shape[96];
        return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "text: states have shape %s, expected (1 to %d, %d) float32",
                         ipvg_shape_text(shape, sizeof shape, states->ndim, states->shape), c->text_len, c->text_dim);
    }
    text = malloc(sizeof *text);
    if (!text) return ipvg_fail(ex->ctx, IPVG_E_MEMORY, "text: no memory");
    *text = text_shell(dit, ex->be, states->shape[0]);
    ipvg_arena_plan(ex->arena);
    IPVG_TRY(text_run(ex, text, states));
    IPVG_TRY(ipvg_arena_reserve(ex->ctx, &ex->be->memory, ex->arena, ex->arena->peak));
    IPVG_TRY(ex->be->memory.alloc(&ex->be->memory, ex->ctx, &text->kv.data, ipvg_tensor_bytes(&text->kv)));
    IPVG_TRY(text_run(ex, text, states));
    *out = text;
    text = NULL;
done:
    ipvg_arena_unplan(ex->arena);
    ipvg_dit_text_free(ex->be, &text);
    return status;
}

void ipvg_dit_text_free(const ipvg_backend *be, ipvg_dit_text **text)
{
    if (!*text) return;
    if ((*text)->kv.data) be->memory.free(&be->memory, (*text)->kv.data);
    free(*text);
    *text = NULL;
}

/* ==== VACE context ==== */

/* Angles of the positions on one axis: pair j of n turns by position * 10000^(-j/n). `out` has d numbers a row. */
static void rope_axis(float *out, int64_t position, int64_t pairs)
{
    for (int64_t j = 0; j < pairs; j++) {
        double angle = (double)position * pow(10000.0, -(double)j / (double)pairs);
        out[2 * j] = (float)cos(angle);
        out[2 * j + 1] = (float)sin(angle);
    }
}

/* The c = d/2 complex pairs of a head go to time (c - 2 (c/3)), rows (c/3) and columns (c/3), in that order. */
static ipvg_status rope_fill(ipvg_exec *ex, ipvg_tensor *rope, int64_t frames, int64_t rows, int64_t cols)
{
    const int64_t pairs = rope->shape[1], space = pairs / 3, time = pairs - 2 * space, d = 2 * pairs,
                  area = rows * cols;
    ipvg_status status = IPVG_OK;

    if (ipvg_planning(ex)) return IPVG_OK;
    float *host = malloc((size_t)(area * d) * sizeof(float)); /* one frame */
    if (!host) return ipvg_fail(ex->ctx, IPVG_E_MEMORY, "no memory for the rotary table of a frame");
    for (int64_t y = 0; y < rows; y++)
        for (int64_t x = 0; x < cols; x++) {
            rope_axis(host + (y * cols + x) * d + 2 * time, y, space);
            rope_axis(host + (y * cols + x) * d + 2 * (time + space), x, space);
        }
    for (int64_t f = 0; f < frames; f++) {
        rope_axis(host, f, time);
        for (int64_t i = 1; i < area; i++)
            for (int64_t j = 0; j < 2 * time; j++) host[i * d + j] = host[j];
        ipvg_tensor part = ipvg_tensor_slice(rope, f * area, area);
        IPVG_TRY(ex->be->copy_in(ex, &part, host));
    }
done:
    free(host);
    return status;
}

static ipvg_status context_run(ipvg_exec *ex, ipvg_dit_context *context, const ipvg_tensor *given)
{
    const ipvg_dit *dit = context->dit;
    const int64_t rows = context->height / 2, cols = context->width / 2;
    size_t mark = ipvg_arena_mark(ex->arena);
    ipvg_status status;

    IPVG_TRY(rope_fill(ex, &context->rope, context->frames, rows, cols));
    if (dit->config.n_vace) {
        const int64_t tokens = given->shape[1] * rows * cols, shape[] = {tokens, given->shape[0] * 4};
        ipvg_tensor latent, patches, real = ipvg_tensor_slice(&context->tokens, 0, tokens);
        ipvg_tensor rest = ipvg_tensor_slice(&context->tokens, tokens, context->tokens.shape[0] - tokens);
        IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &latent, IPVG_F32, 4, given->shape));
        IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &patches, ex->be->activation, 2, shape));
        IPVG_TRY(ex->be->copy_in(ex, &latent, given->data));
        IPVG_TRY(ipvg_patchify(ex, &patches, &latent));
        IPVG_TRY(ipvg_dit_linear_run(ex, &real, &patches, &dit->vace_patch, IPVG_ACT_NONE));
        IPVG_TRY(ipvg_see(ex, &real, "vace_tokens"));
        if (rest.shape[0]) IPVG_TRY(zero(ex, &rest)); /* after the embedding: without its bias, at the end */
    }
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

static ipvg_dit_context context_shell(const ipvg_dit *dit, ipvg_dtype dtype, int frames, int height, int width)
{
    const int64_t tokens = (int64_t)frames * (height / 2) * (width / 2), dim = dit->config.dim;
    return (ipvg_dit_context){.dit = dit,
                              .frames = frames,
                              .height = height,
                              .width = width,
                              .tokens = ipvg_tensor_of(NULL, dtype, dit->config.n_vace ? tokens : 0, dim),
                              .rope = ipvg_tensor_of(NULL, IPVG_F32, tokens, dim / dit->config.heads / 2, 2)};
}

static size_t context_bytes(const ipvg_dit_context *context)
{
    size_t tokens = ipvg_tensor_bytes(&context->tokens);
    return (tokens + IPVG_ALIGN - 1) / IPVG_ALIGN * IPVG_ALIGN + ipvg_tensor_bytes(&context->rope);
}

ipvg_status ipvg_dit_context_new(ipvg_exec *ex, ipvg_dit_context **out, const ipvg_dit *dit, const ipvg_tensor *given,
                                 int frames)
{
    const ipvg_dit_config *c = &dit->config;
    const int64_t *s = given->shape;
    ipvg_dit_context *context = NULL;
    ipvg_status status;

    if (dit->hollow) return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "context: the model has shapes but no weights");
    if (given->ndim != 4 || s[0] != (c->n_vace ? c->vace_in_dim : 0) || s[1] < 1 || s[2] < 2 || s[3] < 2 || s[2] % 2 ||
        s[3] % 2 || s[2] > IPVG_DIT_MAX_SIDE || s[3] > IPVG_DIT_MAX_SIDE || given->dtype != IPVG_F32) {
        char shape[96];
        return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT,
                         "context: shape %s, expected (%d, frames, height, width) float32 with even height and width",
                         ipvg_shape_text(shape, sizeof shape, given->ndim, s), c->n_vace ? c->vace_in_dim : 0);
    }
    if (frames < s[1] || frames > IPVG_DIT_MAX_SIDE)
        return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT,
                         "context: %lld frames for a latent of %d; it may be shorter, not longer", (long long)s[1],
                         frames);
    context = malloc(sizeof *context);
    if (!context) return ipvg_fail(ex->ctx, IPVG_E_MEMORY, "context: no memory");
    *context = context_shell(dit, ex->be->activation, frames, (int)s[2], (int)s[3]);
    context->buffer = NULL;
    ipvg_arena_plan(ex->arena);
    IPVG_TRY(context_run(ex, context, given));
    IPVG_TRY(ipvg_arena_reserve(ex->ctx, &ex->be->memory, ex->arena, ex->arena->peak));
    IPVG_TRY(ex->be->memory.alloc(&ex->be->memory, ex->ctx, &context->buffer, context_bytes(context)));
    context->tokens.data = context->buffer;
    context->rope.data = (char *)context->buffer + context_bytes(context) - ipvg_tensor_bytes(&context->rope);
    IPVG_TRY(context_run(ex, context, given));
    *out = context;
    context = NULL;
done:
    ipvg_arena_unplan(ex->arena);
    ipvg_dit_context_free(ex->be, &context);
    return status;
}

void ipvg_dit_context_free(const ipvg_backend *be, ipvg_dit_context **context)
{
    if (!*context) return;
    if ((*context)->buffer) be->memory.free(&be->memory, (*context)->buffer);
    free(*context);
    *context = NULL;
}

void ipvg_dit_context_size(const ipvg_dit_context *context, int *frames, int *height, int *width)
{
    *frames = context->frames;
    *height = context->height;
    *width = context->width;
}

/* ==== memory ==== */

ipvg_status ipvg_dit_memory(ipvg_context *ctx, const ipvg_backend *be, ipvg_dit_bytes *out, const ipvg_dit *dit,
                            const ipvg_dit_job *job)
{
    const int frames = job->frames, height = job->height, width = job->width;
    const ipvg_dit_config *c = &dit->config;
    unsigned char blurred[IPVG_DIT_MAX_LAYERS];
    ipvg_dit_text text[IPVG_DIT_BRANCHES];
    ipvg_dit_branch branch[IPVG_DIT_BRANCHES];
    const ipvg_dit_branch *branches[IPVG_DIT_BRANCHES];
    ipvg_tensor *velocities[IPVG_DIT_BRANCHES];
    ipvg_arena arena = {0};
    ipvg_exec ex = {.ctx = ctx, .be = be, .arena = &arena};
    ipvg_status status;

    if (frames < 1 || height < 2 || width < 2 || height % 2 || width % 2 || frames > IPVG_DIT_MAX_SIDE ||
        height > IPVG_DIT_MAX_SIDE || width > IPVG_DIT_MAX_SIDE)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT,
                         "memory: a latent of %d frames, %d x %d: expected 1 or more frames and even "
                         "sides, each at most %d",
                         frames, height, width, IPVG_DIT_MAX_SIDE);
    if (job->branches < 1 || job->branches > IPVG_DIT_BRANCHES || job->hints < 1 || job->hints > job->branches)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "memory: hints for %d of %d branches: expected 1 to all of 1 to %d",
                         job->hints, job->branches, IPVG_DIT_BRANCHES);
    ipvg_dit_context context = context_shell(dit, be->activation, frames, height, width);
    ipvg_tensor states = ipvg_tensor_of(NULL, IPVG_F32, c->text_len, c->text_dim);
    ipvg_tensor given = ipvg_tensor_of(NULL, IPVG_F32, c->n_vace ? c->vace_in_dim : 0, frames, height, width);
    ipvg_tensor x = ipvg_tensor_of(NULL, IPVG_F32, c->in_dim, frames, height, width);
    ipvg_tensor velocity = ipvg_tensor_of(NULL, IPVG_F32, c->out_dim, frames, height, width);
    memset(blurred, IPVG_DIT_BLUR, sizeof blurred);
    for (int b = 0; b < job->branches; b++) {
        const ipvg_dit_text *own = &text[b < job->hints ? b : job->hints - 1]; /* another text: other hints */
        text[b] = text_shell(dit, be, c->text_len);
        branch[b] = (ipvg_dit_branch){.text = own, .context = &context, .blur = 1.f, .nag = {NULL, 1.f, 1.f, 1.f}};
        if (job->blur) branch[b].perturb = blurred;
        if (job->nag) branch[b].nag.text = own;
        branches[b] = &branch[b];
        velocities[b] = &velocity;
    }
    *out = (ipvg_dit_bytes){.scratch = dit->placing,
                            .text = ipvg_tensor_bytes(&text[0].kv),
                            .context = context_bytes(&context),
                            .weights = dit->all,
                            .least = dit->rest + dit->streaming.staging,
                            .block = dit->streaming.block};
    for (int i = 0; i < 4; i++) {
        ipvg_arena_plan(&arena);
        if (i == 0) IPVG_TRY(text_run(&ex, &text[0], &states));
        if (i == 1) IPVG_TRY(context_run(&ex, &context, &given));
        for (int b = 0; b < job->branches && i == 3; b++)
            text[b].repeat = 2; /* a shorter one: perhaps another kernel */
        if (i >= 2) IPVG_TRY(ipvg_dit_forward(&ex, velocities, &x, 0, dit, branches, job->branches, NULL));
        if (arena.peak > out->scratch) out->scratch = arena.peak;
    }
done:
    return status;
}
