/* Local arrays of pointers, filled from a constant without a name: gcc keeps it in .data, clang in .data.rel.ro. */

#include "subject.h"

#define TEN(x) x "0", x "1", x "2", x "3", x "4", x "5", x "6", x "7", x "8", x "9"

static long kept = VERSION;

static NOINLINE long chosen(const char **words, long n)
{
    long value = 0;
    for (const char *at = words[n]; *at; at++) {
        value = value * 10 + (*at - '0');
    }
    return value;
}

/* The n-th of its words: 1000 * version + n */
EXPORT NOINLINE long word(long n)
{
#if VERSION == 1
    const char *words[] = {TEN("100"), TEN("101"), TEN("102"), TEN("103"), TEN("104"), TEN("105")};
#else
    const char *words[] = {TEN("200"), TEN("201"), TEN("202"), TEN("203"), TEN("204"), TEN("205")};
#endif
    kept++;
    return chosen(words, n);
}

/* The same in both builds.
 * It stays where it stands. */
EXPORT NOINLINE long same_word(long n)
{
    const char *words[] = {TEN("300"), TEN("301"), TEN("302"), TEN("303"), TEN("304"), TEN("305")};
    return chosen(words, n);
}

/* Changed, and filled from the same constant. */
EXPORT NOINLINE long kept_word(long n)
{
    const char *words[] = {TEN("400"), TEN("401"), TEN("402"), TEN("403"), TEN("404"), TEN("405")};
    return chosen(words, n) * VERSION;
}

EXPORT long count(long unused UNUSED)
{
    return kept;
}
