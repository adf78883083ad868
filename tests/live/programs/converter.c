/* A function that other libraries call, and that takes one parameter more from version 2 on. */

#include "subject.h"

#if VERSION == 1
EXPORT long convert(long x);

EXPORT long convert(long x)
{
    return x * 10;
}
#else
EXPORT long convert(long x, long scale);

EXPORT long convert(long x, long scale)
{
    return x * scale;
}
#endif
