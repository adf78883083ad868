/* A static structure and structures on the heap that grow from version 1 to version 2, and go back.
 *
 * FAIL names the hook that fails: 1 before, 2 migrate, 3 sync, 4 after.  ONE_WAY leaves out the way back.  BARE leaves
 * out the hooks altogether. */

#include "subject.h"

#include <stdlib.h>

#ifndef FAIL
#define FAIL 0
#endif

struct stats {
    long packets;
#if VERSION >= 2
    long drops;
#endif
    long bytes;
};

struct conn {
    struct conn *next;
    long id;
#if VERSION >= 2
    long generation;
#endif
};

static struct stats stats = {.packets = 1, .bytes = 100};
static struct conn *conns;
static long n_conns, called;

EXPORT long hooks_called(long x UNUSED)
{
    return called;
}

EXPORT long version(long x UNUSED)
{
    return VERSION;
}

EXPORT long receive(long size)
{
    stats.bytes += size;
    return ++stats.packets;
}

EXPORT long n_bytes(long x UNUSED)
{
    return stats.bytes;
}

EXPORT long drops(long x UNUSED)
{
#if VERSION >= 2
    return stats.drops;
#else
    return -1;
#endif
}

EXPORT long connect_to(long id)
{
    struct conn *conn = malloc(sizeof *conn);
    conn->next = conns;
    conn->id = id;
#if VERSION >= 2
    conn->generation = 2;
#endif
    conns = conn;
    return ++n_conns;
}

EXPORT long sum_of_ids(long x UNUSED)
{
    long sum = 0;
    for (struct conn *conn = conns; conn; conn = conn->next) {
        sum += conn->id;
    }
    return sum;
}

EXPORT long sum_of_generations(long x UNUSED)
{
    long sum = 0;
    for (struct conn *conn = conns; conn; conn = conn->next) {
#if VERSION >= 2
        sum += conn->generation;
#else
        sum -= conn->id;
#endif
    }
    return sum;
}

#if VERSION >= 2 && !defined BARE
#include <hotupgrade.h>

/* What an older build knows of. */
struct stats_1 {
    long packets, bytes;
};

struct conn_1 {
    struct conn_1 *next;
    long id;
};

enum { SPARE = 64 }; /* connections that may come between BEFORE and the stop */

static struct conn *pool;
static long in_pool;

HOTUPGRADE_TYPE(stats);
HOTUPGRADE_TYPE(conn);

HOTUPGRADE_BEFORE()
{
    called = 1;
    in_pool = n_conns + SPARE;
    pool = calloc((size_t)in_pool, sizeof *pool);
    return !pool || FAIL == 1;
}

HOTUPGRADE_CANCEL()
{
    free(pool);
    return 0;
}

HOTUPGRADE_MIGRATE(stats)
{
    const struct stats_1 *before = old_object;
    struct stats *after = new_object;
    if (old_size != sizeof *before || new_size != sizeof *after) {
        return 1;
    }
    *after = (struct stats){.packets = before->packets, .drops = 7, .bytes = before->bytes};
    called = called * 10 + 2;
    return FAIL == 2;
}

HOTUPGRADE_SYNC()
{
    called = called * 10 + 3;
    if (n_conns > in_pool || FAIL == 3) {
        return 1;
    }
    /* Nothing is written that the old code uses, but for the last store: the head of the list. */
    struct conn *first = NULL, **last = &first;
    long used = 0;
    for (struct conn_1 *old = (struct conn_1 *)conns; old; old = old->next) {
        struct conn *conn = &pool[used++];
        *conn = (struct conn){.id = old->id, .generation = 1};
        *last = conn;
        last = &conn->next;
    }
    conns = first;
    return 0;
}

HOTUPGRADE_AFTER()
{
    called = called * 10 + 4;
    return FAIL == 4;
}

#ifndef ONE_WAY
HOTUPGRADE_SYNC_BACK()
{
    /* The larger structures may serve as the smaller ones: what the old code reads comes first. */
    return 0;
}

HOTUPGRADE_RETURN(stats)
{
    const struct stats *now = new_object;
    *(struct stats_1 *)old_object = (struct stats_1){now->packets, now->bytes};
    return old_size != sizeof(struct stats_1) || new_size != sizeof *now;
}
#endif
#endif
