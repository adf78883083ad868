/* Calls what is in converter.c. */

#include "subject.h"

#if VERSION == 1
long convert(long x);
#define CONVERT(x) convert(x)
#else
long convert(long x, long scale);
#define CONVERT(x) convert(x, 100)
#endif

EXPORT long converted(long x)
{
    return CONVERT(x);
}
