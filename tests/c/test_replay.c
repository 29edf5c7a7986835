/* When work is run, kept and played: counted through a backend that only counts. */
#include "../../csrc/ops/replay.h"

#include "../../csrc/ops/ops.h"
#include "check.h"

static ipvg_context ctx;
static ipvg_backend *cpu, be;
static ipvg_arena arena;
static ipvg_exec ex;
static int worked, began, played, dropped;
static bool able;
static ipvg_status gives; /* what the work returns */

static ipvg_status work(ipvg_exec *e, const void *user)
{
    CHECK(e == &ex && user == &able);
    worked++;
    return gives;
}

static ipvg_status keep(ipvg_exec *e)
{
    (void)e;
    began++;
    return IPVG_OK;
}

static void *kept(ipvg_exec *e)
{
    (void)e;
    return able ? &played : NULL;
}

static ipvg_status play(ipvg_exec *e, void *what)
{
    (void)e;
    CHECK(what == &played);
    played++;
    return IPVG_OK;
}

static void drop(const ipvg_backend *b, void *what)
{
    CHECK(b == &be && what == &played);
    dropped++;
}

/* Runs it so many times and says how often it worked, was kept, played and dropped. */
static void run(ipvg_replay *r, int times, ipvg_status status, int w, int k, int p, int d)
{
    worked = began = played = dropped = 0;
    for (int i = 0; i < times; i++) CHECK(ipvg_replay_run(&ex, r, work, &able) == status);
    CHECK(worked == w && began == k && played == p && dropped == d);
}

int main(void)
{
    const ipvg_trace trace = {0};
    char first, second;
    ipvg_replay r = {0};

    ipvg_context_init(&ctx, 1);
    CHECK(ipvg_backend_cpu(&ctx, &cpu, IPVG_F32) == IPVG_OK);
    ex = (ipvg_exec){.ctx = &ctx, .be = cpu, .arena = &arena};
    run(&r, 5, IPVG_OK, 5, 0, 0, 0); /* nothing to gain on a CPU */

    be = *cpu;
    be.keep = keep, be.kept = kept, be.play = play, be.drop = drop;
    ex.be = &be;
    arena.base = &first;
    able = true;
    run(&r, 1, IPVG_OK, 1, 0, 0, 0); /* algorithms are chosen */
    run(&r, 5, IPVG_OK, 1, 1, 5, 0);
    ex.trace = &trace;
    run(&r, 2, IPVG_OK, 2, 0, 0, 0); /* what is kept shows nothing */
    ex.trace = NULL;
    run(&r, 2, IPVG_OK, 0, 0, 2, 0);
    arena.base = &second; /* the scratch has moved */
    run(&r, 4, IPVG_OK, 2, 1, 3, 1);
    atomic_store(&ctx.cancel, 1);
    run(&r, 1, IPVG_E_CANCELLED, 0, 0, 0, 0);
    run(&r, 1, IPVG_OK, 0, 0, 1, 0);
    dropped = 0;
    ipvg_replay_free(&be, &r);
    CHECK(dropped == 1 && !r.kept && !r.runs);

    able = false; /* asked once, not at every run */
    run(&r, 5, IPVG_OK, 6, 1, 0, 0);
    ipvg_replay_free(&be, &r);

    able = true; /* work that fails while it is kept: a part of it is not played */
    run(&r, 1, IPVG_OK, 1, 0, 0, 0);
    gives = IPVG_E_BACKEND;
    run(&r, 1, IPVG_E_BACKEND, 2, 1, 0, 1);
    gives = IPVG_E_CANCELLED;
    run(&r, 1, IPVG_E_CANCELLED, 1, 1, 0, 1);
    gives = IPVG_OK;
    run(&r, 3, IPVG_OK, 1, 1, 3, 0);
    ipvg_replay_free(&be, &r);

    arena.base = NULL;
    ipvg_backend_free(&cpu);
    puts("replay ok");
    return 0;
}
