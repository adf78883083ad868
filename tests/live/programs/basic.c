/* The simplest subject: functions that say which build they are of, one that must not be half old, a counter that
 * stays. */

#include "subject.h"

static long kept = 7;

EXPORT long version(long unused UNUSED)
{
    return VERSION;
}

EXPORT NOINLINE long left(long x)
{
    return x * 0 + VERSION;
}

EXPORT NOINLINE long right(long x)
{
    return VERSION + x * 0;
}

/* 1001001, 2002002, ...: a call that ran half old and half new code would show */
EXPORT long pair(long x)
{
    return left(x) * 1000 + right(x) + VERSION * 1000000L;
}

EXPORT long keep(long by)
{
    kept += by;
    return kept;
}

EXPORT long where(long unused UNUSED)
{
    return (long)&kept;
}

/* Changed in every build, and refers to what is kept. */
EXPORT long keep_more(long by)
{
    kept += by * VERSION;
    return kept;
}

#if VERSION == 2
EXPORT long only_two(long x)
{
    return x + 2000 + kept * 0;
}
#endif
