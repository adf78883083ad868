/* Functions that are awkward to redirect: shorter than a jump, or with a loop that starts in the first bytes. */

#include "subject.h"

long counter EXPORT = 0;

#if VERSION == 1
EXPORT void nothing(void) {}
#else
EXPORT void nothing(void)
{
    counter += VERSION;
}
#endif

EXPORT long constant(long unused UNUSED)
{
    return VERSION;
}

EXPORT long identity(long x)
{
    return x
#if VERSION > 1
           + VERSION * 100
#endif
        ;
}

EXPORT long loop_at_head(long x)
{
    do {
        x -= 3;
    } while (x > 0);
    return x + VERSION * 100;
}

EXPORT long all(long x)
{
    nothing();
    return constant(0) * 1000000 + identity(x) * 1000 + loop_at_head(x) + counter;
}
