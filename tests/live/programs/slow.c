/* A library whose constructor takes a while: the loader's lock is held meanwhile. */

#include "subject.h"

#include <time.h>

__attribute__((constructor)) static void construct(void)
{
    nanosleep(&(struct timespec){3, 0}, NULL);
}

EXPORT long version(long unused UNUSED)
{
    return VERSION;
}
