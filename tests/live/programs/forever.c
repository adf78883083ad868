/* A loop that never returns.  LOOP is the build of the loop itself, VERSION of what it calls. */

#include "subject.h"

#include <unistd.h>

#ifndef LOOP
#define LOOP 1
#endif

static long turns, last;

EXPORT NOINLINE long step(long x)
{
    return x * 0 + VERSION;
}

EXPORT NOINLINE long never_returns(long x)
{
    for (;;) {
        last = step(x);
        turns += LOOP;
        usleep(5000);
    }
}

EXPORT long seen(long unused UNUSED)
{
    return last;
}

EXPORT long count_turns(long unused UNUSED)
{
    return turns;
}
