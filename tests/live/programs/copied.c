/* Data that the executable holds a copy of (COPY relocation): the library's own object is never used. */

#include "subject.h"

EXPORT long shared_counter = 5;
EXPORT long shared_table[4] = {1, 2, 3, 4};

EXPORT long count(long by)
{
    shared_counter += by * VERSION;
    return shared_counter;
}

EXPORT long where(long unused UNUSED)
{
    return (long)&shared_counter + (VERSION - 1) * 0;
}

EXPORT long sum_of_table(long unused UNUSED)
{
    return (shared_table[0] + shared_table[1] + shared_table[2] + shared_table[3]) * VERSION;
}
