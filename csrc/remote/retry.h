/* The same request again, when waiting may help: no connection, a time-out, 408, 409, 429 and 5xx. Any other answer is
 * final. Waits grow by two from `first_wait`, each drawn from the upper half of its range so that many clients do not
 * come back together; a server's Retry-After counts instead where it is longer. */
#ifndef IPVG_REMOTE_RETRY_H
#define IPVG_REMOTE_RETRY_H

#include "http.h"

typedef struct ipvg_retry {
    int attempts;      /* in all, >= 1 */
    double deadline;   /* seconds for everything, waits included */
    double first_wait; /* seconds; 0.5 is usual */
    double max_wait;   /* seconds a back-off grows to; 30 is usual */
} ipvg_retry;

bool ipvg_retry_status(long status);

/* Seconds before try `attempt` (1 for the first repetition); share: uniform in [0, 1). */
double ipvg_retry_wait(const ipvg_retry *policy, int attempt, double retry_after, double share);

/* As ipvg_http_send, with *attempts set to the tries made. A wait that would pass the deadline is not begun: the last
 * answer or failure stands. */
ipvg_status ipvg_retry_send(ipvg_context *ctx, ipvg_http *http, ipvg_http_answer *answer,
                            const ipvg_http_request *request, const ipvg_retry *policy, int *attempts);

#endif
