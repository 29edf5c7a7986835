/* What a device's memory has given out, up to which limit, and who can give some of it back.
 *
 * An allocation that finds no room asks the spares in turn, until it fits or none has any left: a model that keeps weights
 * there for speed alone (model/stream.h) lets go of them. */
#ifndef IPVG_BASE_METER_H
#define IPVG_BASE_METER_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#include "status.h"

/* Embedded in its owner. give frees something and returns true, or has nothing left. */
typedef struct ipvg_spare {
    bool (*give)(void *user);
    void *user;
    struct ipvg_spare *next;
} ipvg_spare;

typedef struct ipvg_lot {
    void *p;
    size_t bytes;
} ipvg_lot;

typedef struct ipvg_meter {
    pthread_mutex_t lock;     /* held through an allocation, and by a spare that frees meanwhile: recursive */
    size_t limit, used, peak; /* bytes; limit 0: none */
    size_t fixed;             /* of `used`: what the device takes for itself */
    size_t total;             /* what it has */
    ipvg_spare *spares;
    ipvg_lot *lots; /* what is given out */
    size_t count, capacity;
} ipvg_meter;

/* What a driver takes for an allocation: large ones in pages of 2 MiB. */
size_t ipvg_meter_pages(size_t bytes);

bool ipvg_meter_begin(ipvg_meter *m, size_t fixed);
void ipvg_meter_end(ipvg_meter *m);

void ipvg_meter_lock(ipvg_meter *m);
void ipvg_meter_unlock(ipvg_meter *m);
/* Does one more of `bytes` stay within the limit? */
bool ipvg_meter_fits(const ipvg_meter *m, size_t bytes);
/* With the lock held. room: does it fit, now that spares have been asked? add: p has been given out;
 * false: no memory to remember it. drop: it is given back. */
bool ipvg_meter_room(ipvg_meter *m, size_t bytes);
bool ipvg_meter_give(ipvg_meter *m); /* one spare gives something; false: there is nothing left */
bool ipvg_meter_add(ipvg_meter *m, void *p, size_t bytes);
void ipvg_meter_drop(ipvg_meter *m, const void *p);

/* A spare is asked from `enlist` until `dismiss`, which must come before what it gives is freed otherwise. */
void ipvg_meter_enlist(ipvg_meter *m, ipvg_spare *spare);
void ipvg_meter_dismiss(ipvg_meter *m, ipvg_spare *spare);

#endif
