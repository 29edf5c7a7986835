#include "retry.h"

#include <stdint.h>
#include <sys/random.h>
#include <time.h>

/* The generator of base/random.h is for results that must repeat; waits of several processes must not. */
static double random_share(void)
{
    uint32_t word = 0;
    if (getrandom(&word, sizeof word, GRND_NONBLOCK) != sizeof word) word = (uint32_t)(ipvg_http_seconds() * 1e9);
    return word / 4294967296.0;
}

bool ipvg_retry_status(long status)
{
    return status == 408 || status == 409 || status == 429 || (status >= 500 && status <= 599);
}

double ipvg_retry_wait(const ipvg_retry *policy, int attempt, double retry_after, double share)
{
    double wait = policy->first_wait;
    for (int i = 1; i < attempt && wait < policy->max_wait; i++) wait *= 2;
    if (wait > policy->max_wait) wait = policy->max_wait;
    wait *= 0.5 + 0.5 * share;
    return wait > retry_after ? wait : retry_after;
}

/* Sleeps in short pieces, so that cancelling is seen in time. */
static ipvg_status rest(ipvg_context *ctx, double seconds)
{
    double end = ipvg_http_seconds() + seconds;
    for (double left; (left = end - ipvg_http_seconds()) > 0;) {
        double piece = left < 0.05 ? left : 0.05;
        struct timespec t = {0, (long)(piece * 1e9)};
        nanosleep(&t, NULL);
        ipvg_status status = ipvg_check_cancel(ctx);
        if (status != IPVG_OK) return status;
    }
    return ipvg_check_cancel(ctx);
}

ipvg_status ipvg_retry_send(ipvg_context *ctx, ipvg_http *http, ipvg_http_answer *answer,
                            const ipvg_http_request *request, const ipvg_retry *policy, int *attempts)
{
    double end = ipvg_http_seconds() + policy->deadline;
    for (*attempts = 1;; ++*attempts) {
        ipvg_http_request once = *request;
        double left = end - ipvg_http_seconds();
        if (once.timeout > left) once.timeout = left > 0.001 ? left : 0.001;
        ipvg_status status = ipvg_http_send(ctx, http, answer, &once);
        bool again = status == IPVG_OK ? ipvg_retry_status(answer->status) : answer->fault;
        if (!again || *attempts >= policy->attempts) return status;
        double wait = ipvg_retry_wait(policy, *attempts, answer->retry_after, random_share());
        if (ipvg_http_seconds() + wait >= end) return status;
        if ((status = rest(ctx, wait)) != IPVG_OK) return status;
    }
}
