/* A variable whose initial value changes (it is kept as it is), and new ones. */

#include "subject.h"

static long limit = VERSION * 100;
#if VERSION >= 2
static long new_one = 77;
static long new_zero[1000];
static long *new_pointer = &new_one;
static long *new_to_old = &limit;
#endif

EXPORT long get_limit(long by)
{
    limit += by;
#if VERSION >= 2
    new_zero[by % 1000]++;
#endif
    return limit;
}

EXPORT long get_new(long by UNUSED)
{
#if VERSION >= 2
    new_one += by;
    return *new_pointer * 1000000 + new_zero[3] * 10000 + *new_to_old;
#else
    return limit;
#endif
}
