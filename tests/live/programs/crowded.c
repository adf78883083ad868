/* A process in whose address space there is no room near the library, or just one gap. */

#define _GNU_SOURCE
#include "subject.h"

#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>

static const uintptr_t GIB = 1ul << 30;
static uintptr_t gap_at;

EXPORT long version(long x UNUSED)
{
    return VERSION;
}

/* Takes every free page within 2.25 GiB. */
EXPORT long fill(long x)
{
    uintptr_t here = (uintptr_t)&gap_at & ~0xfffful, from = here - 2 * GIB - GIB / 4, to = here + 2 * GIB + GIB / 4;
    for (uintptr_t step = 16 << 20; step >= 4096; step /= 16) {
        for (uintptr_t at = from & ~(step - 1); at < to; at += step) {
            mmap((void *)at, step, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
        }
    }
    return x;
}

/* Gives back x bytes of what was taken, 1.5 GiB below. */
EXPORT long make_gap(long x)
{
    char line[256];
    uintptr_t here = (uintptr_t)&gap_at, low, high;
    FILE *maps = fopen("/proc/self/maps", "re");
    while (maps && fgets(line, sizeof line, maps)) {
        if (sscanf(line, "%lx-%lx ---p 00000000 00:00 0", &low, &high) == 2 && low < here - 3 * GIB / 2 &&
            high > here - 3 * GIB / 2 + (uintptr_t)x) {
            gap_at = (here - 3 * GIB / 2) & ~0xffful;
            munmap((void *)gap_at, (size_t)x);
        }
    }
    if (maps) {
        fclose(maps);
    }
    return gap_at != 0;
}
