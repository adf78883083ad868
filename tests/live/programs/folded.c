/* Two functions with the same code, which a linker may fold into one; in the next build they differ. */

#include "subject.h"

static long calls;

EXPORT NOINLINE long folded_first(long x)
{
    return x * 3 + 7;
}

EXPORT NOINLINE long folded_second(long x)
{
    return x * 3 + 6 + VERSION;
}

EXPORT long folded_both(long x)
{
    calls++;
    return folded_first(x) * 1000 + folded_second(x) + calls * 0;
}
