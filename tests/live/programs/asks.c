/* A library that has an answer of its own, which the program it is in may replace; it is never upgraded. */

#include "subject.h"

EXPORT long asked;

EXPORT long opinion(long x)
{
    return x - 1;
}

EXPORT __attribute__((weak)) long hint(long);

EXPORT long ask_for_opinion(long x)
{
    asked++;
    return opinion(x);
}

EXPORT long ask_for_hint(long x)
{
    return hint ? hint(x) : -1;
}
