/* Function-local statics that all have the same name; every build inserts some, so that compilers renumber them. */

#include "subject.h"

#define COUNTER(NAME, START, FACTOR)                                                                                   \
    EXPORT long NAME(long by)                                                                                          \
    {                                                                                                                  \
        static long count = START;                                                                                     \
        static long calls;                                                                                             \
        count += by;                                                                                                   \
        calls++;                                                                                                       \
        return count * (FACTOR) + calls * 0;                                                                           \
    }

#if VERSION >= 2
COUNTER(inserted_first, 100, 1)
#endif
COUNTER(first, 10, VERSION)
#if VERSION >= 3
COUNTER(inserted_between, 500, 1)
#endif
COUNTER(second, 20, 1)
COUNTER(third, 30, VERSION)

EXPORT const char *name_of_first(void)
{
    return __func__;
}
