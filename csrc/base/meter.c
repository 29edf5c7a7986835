#include "meter.h"

#include <stdint.h>
#include <stdlib.h>

size_t ipvg_meter_pages(size_t bytes)
{
    const size_t unit = bytes < (1u << 20) ? 256 : 2u << 20;
    return bytes > SIZE_MAX - unit ? bytes : (bytes + unit - 1) / unit * unit;
}

bool ipvg_meter_begin(ipvg_meter *m, size_t fixed)
{
    pthread_mutexattr_t attributes;
    if (pthread_mutexattr_init(&attributes)) return false;
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
    *m = (ipvg_meter){.used = fixed, .peak = fixed, .fixed = fixed};
    bool made = pthread_mutex_init(&m->lock, &attributes) == 0;
    pthread_mutexattr_destroy(&attributes);
    return made;
}

void ipvg_meter_end(ipvg_meter *m)
{
    pthread_mutex_destroy(&m->lock);
    free(m->lots);
}

void ipvg_meter_lock(ipvg_meter *m) { pthread_mutex_lock(&m->lock); }
void ipvg_meter_unlock(ipvg_meter *m) { pthread_mutex_unlock(&m->lock); }

bool ipvg_meter_give(ipvg_meter *m)
{
    for (ipvg_spare *s = m->spares; s; s = s->next)
        if (s->give(s->user)) return true;
    return false;
}

bool ipvg_meter_fits(const ipvg_meter *m, size_t bytes)
{
    return !m->limit || (bytes <= m->limit && m->used <= m->limit - bytes);
}

bool ipvg_meter_room(ipvg_meter *m, size_t bytes)
{
    while (!ipvg_meter_fits(m, bytes))
        if (!ipvg_meter_give(m)) return false;
    return true;
}

bool ipvg_meter_add(ipvg_meter *m, void *p, size_t bytes)
{
    if (m->count == m->capacity) {
        const size_t capacity = m->capacity ? 2 * m->capacity : 32;
        ipvg_lot *lots = realloc(m->lots, capacity * sizeof *lots);
        if (!lots) return false;
        m->lots = lots;
        m->capacity = capacity;
    }
    m->lots[m->count++] = (ipvg_lot){p, bytes};
    m->used += bytes;
    if (m->used > m->peak) m->peak = m->used;
    return true;
}

void ipvg_meter_drop(ipvg_meter *m, const void *p)
{
    for (size_t i = m->count; i-- > 0;) {
        if (m->lots[i].p != p) continue;
        m->used -= m->lots[i].bytes;
        m->lots[i] = m->lots[--m->count];
        return;
    }
}

void ipvg_meter_enlist(ipvg_meter *m, ipvg_spare *spare)
{
    ipvg_meter_lock(m);
    spare->next = m->spares;
    m->spares = spare;
    ipvg_meter_unlock(m);
}

void ipvg_meter_dismiss(ipvg_meter *m, ipvg_spare *spare)
{
    ipvg_meter_lock(m);
    for (ipvg_spare **at = &m->spares; *at; at = &(*at)->next) {
        if (*at != spare) continue;
        *at = spare->next;
        break;
    }
    ipvg_meter_unlock(m);
}
