/* Context, tensor views and the arena: what every other part of the core stands on. */
#include <errno.h>
#include <string.h>

#include "../../csrc/base/arena.h"
#include "check.h"

static int poll_cancels(void *user)
{
    (void)user;
    return 1;
}

static void context_keeps_the_error_text(void)
{
    ipvg_context ctx;
    ipvg_context_init(&ctx, 3);
    CHECK(ctx.threads == 3);
    CHECK(ipvg_fail(&ctx, IPVG_E_ARGUMENT, "frames: expected 4n+1, got %d", 6) == IPVG_E_ARGUMENT);
    CHECK(strcmp(ctx.error, "frames: expected 4n+1, got 6") == 0);
    char longer[3000];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    ipvg_fail(&ctx, IPVG_E_FORMAT, "%s", longer);
    CHECK(strlen(ctx.error) < sizeof ctx.error);
    errno = ENOENT;
    CHECK(ipvg_fail_errno(&ctx, "cannot open '%s'", "a") == IPVG_E_IO);
    CHECK(ctx.sys_errno == ENOENT && strstr(ctx.error, strerror(ENOENT)));
}

static void cancel_is_obeyed_once(void)
{
    ipvg_context ctx;
    ipvg_context_init(&ctx, 1);
    CHECK(ipvg_check_cancel(&ctx) == IPVG_OK);
    atomic_store(&ctx.cancel, 1);
    CHECK(ipvg_check_cancel(&ctx) == IPVG_E_CANCELLED);
    CHECK(ipvg_check_cancel(&ctx) == IPVG_OK);
    ctx.poll = poll_cancels;
    CHECK(ipvg_check_cancel(&ctx) == IPVG_E_CANCELLED);
}

static void views_share_memory(void)
{
    float data[24];
    for (int i = 0; i < 24; i++) data[i] = (float)i;
    ipvg_tensor t = ipvg_tensor_of(data, IPVG_F32, 4, 6);
    CHECK(ipvg_tensor_count(&t) == 24 && ipvg_tensor_rows(&t) == 4 && ipvg_tensor_bytes(&t) == 96);
    ipvg_tensor rows = ipvg_tensor_slice(&t, 1, 2);
    CHECK(rows.shape[0] == 2 && *(float *)rows.data == 6.0f);
    ipvg_tensor columns = ipvg_tensor_columns(&t, 2, 3);
    CHECK(columns.shape[1] == 3 && columns.ld == 6 && *(float *)columns.data == 2.0f);
    char text[64];
    CHECK(strcmp(ipvg_shape_text(text, sizeof text, t.ndim, t.shape), "(4, 6)") == 0);
    CHECK(strlen(ipvg_shape_text(text, 4, t.ndim, t.shape)) < 4);
}

/* The same calls plan and then run: what planning measured is enough, and one byte less is an error, not an overrun. */
static ipvg_status work(ipvg_context *ctx, ipvg_arena *arena)
{
    ipvg_status status;
    void *block;
    ipvg_tensor t;
    size_t mark = ipvg_arena_mark(arena);
    for (int i = 1; i < 5; i++) {
        IPVG_TRY(ipvg_arena_alloc(ctx, arena, &block, 1000 * (size_t)i + 1));
        if (!arena->planning) memset(block, 0x5a, 1000 * (size_t)i + 1);
        IPVG_TRY(ipvg_arena_tensor(ctx, arena, &t, IPVG_F32, 2, (int64_t[]){i, 7}));
        if (!arena->planning) {
            CHECK((uintptr_t)t.data % IPVG_ALIGN == 0);
            memset(t.data, 0, ipvg_tensor_bytes(&t));
        }
        if (i % 2) ipvg_arena_reset(arena, mark);
    }
done:
    return status;
}

static void planning_measures_what_a_run_takes(void)
{
    ipvg_context ctx;
    ipvg_context_init(&ctx, 1);
    ipvg_arena arena = {0};
    ipvg_arena_plan(&arena);
    CHECK(work(&ctx, &arena) == IPVG_OK);
    size_t peak = arena.peak;
    CHECK(peak > 4001);
    CHECK(ipvg_arena_reserve(&ctx, &ipvg_host_memory, &arena, peak) == IPVG_OK);
    CHECK(work(&ctx, &arena) == IPVG_OK);
    CHECK(arena.peak <= peak);
    ipvg_arena_free(&arena);

    CHECK(ipvg_arena_reserve(&ctx, &ipvg_host_memory, &arena, peak - IPVG_ALIGN) == IPVG_OK);
    CHECK(work(&ctx, &arena) == IPVG_E_MEMORY);
    ipvg_arena_free(&arena);
    ipvg_arena_free(&arena); /* a second time is harmless */
}

int main(void)
{
    context_keeps_the_error_text();
    cancel_is_obeyed_once();
    views_share_memory();
    planning_measures_what_a_run_takes();
    return 0;
}
