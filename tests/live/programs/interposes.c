/* A program that has another answer than asks.c; later builds have more of them, or none. */

#include "subject.h"

#ifndef NO_OPINION
EXPORT long opinion(long x)
{
    return x * 10 + VERSION;
}
#endif

#ifdef HINT
EXPORT long hint(long x)
{
    return x * 1000 + VERSION;
}
#endif

#ifdef PEEK
extern long asked;

EXPORT long peek(long unused UNUSED)
{
    return asked;
}
#endif

EXPORT long my_version(long unused UNUSED)
{
    return VERSION;
}
