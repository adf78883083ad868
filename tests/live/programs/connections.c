/* A correction of every kind that no comparison can judge: see docs/verdict.md. */

#include "subject.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 64 };

struct connection {
    char *peer;
    long timeout;
};

struct kind {
    const char *name;
    long patience;
};

long limit = 10 * VERSION;
const struct kind plain_kind = {"plain", VERSION == 1 ? 30 : 60};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct connection *connections[MOST];
static long count;
static char nobody[] = "nobody";

static NOINLINE void connection_init(struct connection *c, long number)
{
    c->peer = nobody;
#if VERSION > 1
    c->peer = malloc(24); /* from now on each connection owns the name of its peer ... */
    snprintf(c->peer, 24, "peer %ld", number);
#endif
    c->timeout = plain_kind.patience + number;
}

static NOINLINE void connection_drop(struct connection *c)
{
#if VERSION > 1
    free(c->peer); /* ... but those that exist do not */
#endif
    free(c);
}

EXPORT NOINLINE long open_connection(long number)
{
    struct connection *c = malloc(sizeof *c);
    connection_init(c, number);
    pthread_mutex_lock(&mutex);
    connections[count++ % MOST] = c;
    pthread_mutex_unlock(&mutex);
    return c->timeout;
}

EXPORT NOINLINE long close_connection(long number)
{
    pthread_mutex_lock(&mutex);
    struct connection *c = connections[number % MOST];
    connections[number % MOST] = NULL;
    pthread_mutex_unlock(&mutex);
    if (!c) {
        return -1;
    }
    connection_drop(c);
    return 0;
}

EXPORT long report(long unused UNUSED)
{
    return fprintf(stderr, VERSION == 1 ? "%ld open, at most %ld\n" : "%ld of %ld connections\n", count, limit);
}
