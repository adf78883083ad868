/* Many threads that sleep inside the library. */

#include "subject.h"

#include <poll.h>

static long woken;

EXPORT long sleep_long(long ms)
{
    poll(0, 0, (int)ms);
    return __atomic_add_fetch(&woken, 1, __ATOMIC_RELAXED) * 0;
}

EXPORT long version(long unused UNUSED)
{
    return VERSION;
}
