/* The program's side of basic.c: what it uses of that library, the second build more than the first. */

#include "subject.h"

long version(long unused);
#if VERSION >= 2
long only_two(long x);
#endif

EXPORT long use(long x)
{
#if VERSION >= 2
    return version(0) * 100000 + only_two(x);
#else
    return version(0) * 100000 + x;
#endif
}
