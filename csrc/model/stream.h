/* Weights that are more than the memory allows: a model's blocks, of which some lie in the backend's memory for good and the
 * others are brought there each time, to two slots in turn, while the block before them computes.
 *
 *     IPVG_TRY(ipvg_stream_new(ex, &s, place, model, order, count));
 *     for (int i = 0; i < count; i++) {
 *         IPVG_TRY(ipvg_stream_enter(ex, s, order[i], &where));         // its weights are there for what is queued next
 *         IPVG_TRY(forward(ex, ..., &model->placed[where]));
 *         IPVG_TRY(ipvg_stream_leave(ex, s, order[(i + 1) % count]));   // that one sets out
 *     }
 *
 * Every block is placed by the same code wherever it goes, so that its bytes are the same. Copies go through the pinned
 * buffers of a queue of their own (be->lane), straight from the files: the host holds nothing twice. The thread that
 * queues the work also feeds them; it is a block ahead of the device and has the time. */
#ifndef IPVG_MODEL_STREAM_H
#define IPVG_MODEL_STREAM_H

#include "place.h"

typedef struct ipvg_stream ipvg_stream;

/* Places block i of a model as number `where` of what it has placed: i itself, or count or count + 1, the slots. */
typedef ipvg_status (*ipvg_stream_place)(ipvg_placing *p, void *model, int i, int where);

/* What streaming `count` blocks takes, by planning: bytes of one (the largest), and of all that is needed beside those
 * that stay: two slots and the scratch of casts. */
typedef struct ipvg_stream_bytes {
    size_t block, staging;
} ipvg_stream_bytes;
ipvg_status ipvg_stream_measure(ipvg_exec *ex, ipvg_stream_bytes *out, ipvg_stream_place place, void *model, int count);

/* Takes the slots; no block stays yet. order: in which the blocks run, a permutation. */
ipvg_status ipvg_stream_new(ipvg_exec *ex, ipvg_stream **out, ipvg_stream_place place, void *model, const int *order,
                            int count);
void ipvg_stream_free(ipvg_stream **s);

/* Lets as many blocks stay as fit below the limit now, spread evenly over the others. They go again, one by one, when
 * something else needs their room. Not in a loop that must not allocate. */
ipvg_status ipvg_stream_settle(ipvg_exec *ex, ipvg_stream *s);
int ipvg_stream_staying(const ipvg_stream *s);
bool ipvg_stream_stays(const ipvg_stream *s, int i);

ipvg_status ipvg_stream_enter(ipvg_exec *ex, ipvg_stream *s, int i, int *where);
/* After the work of the block entered last. next: the one that is entered next of those that do not stay; a wrong or no
 * guess (-1) costs time alone. */
ipvg_status ipvg_stream_leave(ipvg_exec *ex, ipvg_stream *s, int next);

#endif
