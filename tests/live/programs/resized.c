/* A static table that grows. */

#include "subject.h"

static long growing_table[VERSION * 8] = {1, 2, 3};

EXPORT long get(long i)
{
    return growing_table[i % (VERSION * 8)];
}

EXPORT long put(long i)
{
    return growing_table[i % (VERSION * 8)] = i;
}
