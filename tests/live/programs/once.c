/* What must happen once happened in the old build already. */

#include "subject.h"

#include <pthread.h>
#include <stdbool.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool done;
static long by_pthread, by_hand;

static void initialise(void)
{
    by_pthread += 1 + (VERSION - 1) * 100;
}

EXPORT long initialised(long unused UNUSED)
{
    pthread_once(&once, initialise);
    if (!done) {
        done = true;
        by_hand += 1 + (VERSION - 1) * 100;
    }
    return VERSION * 1000000 + by_pthread * 1000 + by_hand;
}
