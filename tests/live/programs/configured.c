/* One version of one source; what it lays out depends on what was found when it was configured (HAVE_CLOCK). */

#include "subject.h"

#include <stdlib.h>

struct device {
    struct device *next;
#ifdef HAVE_CLOCK
    long clock;
#endif
    long id;
};

static struct device *devices;

EXPORT const char *version_text(void)
{
    return "1.0";
}

EXPORT long add_device(long id)
{
    struct device *device = calloc(1, sizeof *device);
    device->next = devices;
    device->id = id;
    devices = device;
    return id;
}

EXPORT long sum_of_devices(long x UNUSED)
{
    long sum = 0;
    for (struct device *device = devices; device; device = device->next) {
        sum += device->id;
    }
    return sum;
}
