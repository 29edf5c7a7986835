/* Work that is queued again and again with the same tensors and the same numbers. Where the device can keep it as one (a CUDA
 * graph), it is kept at its second run, when every algorithm has been chosen, and queued as one from then on: hundreds of small
 * kernels then cost the CPU what one did.
 *
 *     ipvg_replay again = {0};
 *     for (each step) IPVG_TRY(ipvg_replay_run(ex, &again, work, arguments));   // work(ex, arguments)
 *     ipvg_replay_free(ex->be, &again);
 *
 * What is kept holds addresses and numbers, not where they came from: whoever changes one, but the contents of tensors, frees
 * it. `work` may read nothing from the device and bring nothing there. */
#ifndef IPVG_OPS_REPLAY_H
#define IPVG_OPS_REPLAY_H

#include "backend.h"

typedef struct ipvg_replay {
    int runs;
    const char *scratch; /* of the arena that it was kept with */
    void *kept;          /* the backend's; NULL: none yet, or the device could not */
} ipvg_replay;

/* Runs `work`, in one of these ways: the same bytes. With a trace, and where the backend keeps nothing, always by itself. */
ipvg_status ipvg_replay_run(ipvg_exec *ex, ipvg_replay *r, ipvg_status (*work)(ipvg_exec *ex, const void *user),
                            const void *user);
void ipvg_replay_free(const ipvg_backend *be, ipvg_replay *r);

#endif
