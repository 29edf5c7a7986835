#include "replay.h"

#include <string.h>

#include "ops.h"

/* Keeps what `work` queues. The device may be unable to, for the sake of one operation: that is found at the end, and then
 * nothing is kept and nothing has run. */
static ipvg_status keep(ipvg_exec *ex, ipvg_replay *r, ipvg_status (*work)(ipvg_exec *ex, const void *user),
                        const void *user)
{
    ipvg_status status;

    IPVG_TRY(ex->be->keep(ex));
    status = work(ex, user);
    r->kept = ex->be->kept(ex);
    r->scratch = ex->arena->base;
    if (status == IPVG_OK) goto done;
    if (r->kept) ex->be->drop(ex->be, r->kept); /* a part */
    r->kept = NULL;
    if (status != IPVG_E_CANCELLED) status = IPVG_OK; /* it says so itself when it is run */
done:
    return status;
}

ipvg_status ipvg_replay_run(ipvg_exec *ex, ipvg_replay *r, ipvg_status (*work)(ipvg_exec *ex, const void *user),
                            const void *user)
{
    ipvg_status status = IPVG_OK;

    if (!ex->be->keep || ex->trace || ipvg_planning(ex)) return work(ex, user);
    if (r->kept && r->scratch != ex->arena->base) ipvg_replay_free(ex->be, r);
    if (r->runs == 1 && !r->kept) IPVG_TRY(keep(ex, r, work, user));
    if (r->kept) {
        IPVG_TRY(ipvg_pace(ex));
        IPVG_TRY(ex->be->play(ex, r->kept));
    } else {
        IPVG_TRY(work(ex, user));
    }
    r->runs += r->runs < 2;
done:
    return status;
}

void ipvg_replay_free(const ipvg_backend *be, ipvg_replay *r)
{
    if (r->kept) be->drop(be, r->kept);
    memset(r, 0, sizeof *r);
}
