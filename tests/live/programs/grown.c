/* How far the heap can still grow. */

#define _GNU_SOURCE
#include "subject.h"

#include <unistd.h>

EXPORT long grow(long mib)
{
    long grown = 0;
    while (grown < mib && sbrk(1 << 20) != (void *)-1) {
        grown++;
    }
    return grown;
}
