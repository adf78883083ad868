/* Constructors: old ones ran when the process started; new ones run once, at their first upgrade. */

#include "subject.h"

#include <stdio.h>

static long first, second, third;

__attribute__((constructor)) static void construct_first(void)
{
    first += VERSION;
}

#if VERSION >= 2
__attribute__((constructor)) static void construct_second(void)
{
    second += 1;
}
#endif

#if VERSION >= 3
__attribute__((constructor)) static void construct_third(void)
{
    third += 1;
}
#endif

__attribute__((destructor)) static void destroy(void)
{
    printf("destroyed=%d\n", VERSION);
    fflush(stdout);
}

EXPORT const char *state(void)
{
    static char text[128];
    snprintf(text, sizeof text, "version=%d first=%ld second=%ld third=%ld", VERSION, first, second, third);
    return text;
}
