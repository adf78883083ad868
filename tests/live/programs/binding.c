/* Symbols that bind in unusual ways: an IFUNC, a weak one, an alias. */

#include "subject.h"

static long fast(long x)
{
    return x + VERSION * 10;
}

static long slow(long x)
{
    return x - VERSION * 10;
}

static long (*choose(void))(long)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("sse2") ? fast : slow;
}

EXPORT long chosen(long) __attribute__((ifunc("choose")));

EXPORT __attribute__((weak)) long weak_one(long x)
{
    return x + VERSION * 100;
}

EXPORT long strong(long x)
{
    return x + VERSION * 1000;
}

EXPORT long alias(long) __attribute__((alias("strong")));

EXPORT __attribute__((weak)) long absent(long);

EXPORT long everything(long x)
{
    return chosen(x) + weak_one(x) + alias(x) + strong(x) + (absent ? absent(x) : 0);
}
