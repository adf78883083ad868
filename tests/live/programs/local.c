/* A local function changes; its callers do not.  Callers may rely on the registers that it happened to leave alone. */

#include "subject.h"

static long kept = 3;

static NOINLINE long helper(long x)
{
#if VERSION == 1
    return x * 3 + 1;
#else
    long a = x, b = x + 1, c = x + 2, d = x + 3;
    for (long i = 0; i < VERSION; i++) {
        a = b * 3 + d;
        b = c ^ a;
        c = d + b;
        d = a - c;
    }
    return x * 3 + VERSION + (a ^ a) + (b - b) + (kept > 1000 ? c + d : 0);
#endif
}

static NOINLINE long middle(long x)
{
    return helper(x) * 1000 + helper(x + 1);
}

EXPORT long outer(long x)
{
    long before = kept, result = 0;
    for (long i = 0; i < 3; i++) {
        result += middle(x + i);
    }
    return result + before;
}

EXPORT long other(long x)
{
    return helper(x) + kept;
}

EXPORT long unrelated(long x)
{
    return x + kept;
}
