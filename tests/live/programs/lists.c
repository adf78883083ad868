/* A static list whose empty head points at itself, heap nodes that point back at it, and a static mutex in use. */

#include "subject.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

struct node {
    struct node *next, *previous;
    long value;
};

static struct node full = {&full, &full, 0};
static struct node empty = {&empty, &empty, 0};
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static long added, entered;

EXPORT long add(long value)
{
    struct node *node = malloc(sizeof *node);
    *node = (struct node){&full, full.previous, value};
    pthread_mutex_lock(&mutex);
    full.previous->next = node;
    full.previous = node;
    pthread_mutex_unlock(&mutex);
    return ++added;
}

/* Would run for ever if the new code had another head than the nodes. */
EXPORT long sum(long unused UNUSED)
{
    long result = 0;
    for (struct node *node = full.next; node != &full; node = node->next) {
        result += node->value;
    }
    return result * VERSION;
}

EXPORT long empty_is_empty(long unused UNUSED)
{
    return (empty.next == &empty && empty.previous == &empty) * VERSION;
}

EXPORT long lock(long unused UNUSED)
{
    return pthread_mutex_lock(&mutex);
}

EXPORT long unlock(long unused UNUSED)
{
    return pthread_mutex_unlock(&mutex) + (VERSION - 1) * 0;
}

/* EBUSY while it is held */
EXPORT long try_lock(long unused UNUSED)
{
    long error = pthread_mutex_trylock(&mutex);
    if (!error) {
        pthread_mutex_unlock(&mutex);
    }
    return error + VERSION * 1000;
}

/* Waits for the mutex; a thread stays in here during the upgrade. */
EXPORT long enter(long unused UNUSED)
{
    pthread_mutex_lock(&mutex);
    entered++;
    pthread_mutex_unlock(&mutex);
    return 0;
}

EXPORT const char *state(void)
{
    static char text[256];
    snprintf(text, sizeof text, "full=%p next=%p previous=%p empty=%p,%p added=%ld entered=%ld mutex=%p", (void *)&full,
             (void *)full.next, (void *)full.previous, (void *)&empty, (void *)empty.next, added, entered,
             (void *)&mutex);
    return text;
}
