/* What a stripped library leaves to be proven: its own state, used by code that changes and by code that does not. */

#include "subject.h"

#include <string.h>

#define LENGTH(array) (sizeof(array) / sizeof *(array))

struct kind {
    long (*weigh)(long);
    const char *name;
};

static long total;
static long counts[8];
#if VERSION == 3
static long doubled = 7; /* comes to lie between others */
#endif
static long limit = 1000;
static char last[32] = "nothing";

static NOINLINE long weigh_light(long x)
{
    return x;
}

static NOINLINE long weigh_heavy(long x)
{
    return VERSION == 1 ? x * 10 : x * 100 + 1;
}

static const struct kind kinds[] = {{weigh_light, "light"}, {weigh_heavy, "heavy"}};
static const struct kind *chosen = &kinds[1];

/* Changes, and uses what others use as well. */
EXPORT long put(long x)
{
    total += chosen->weigh(x);
    counts[(unsigned long) x % LENGTH(counts)]++;
#if VERSION >= 2
    if (total > limit * 1000) {
        return -1;
    }
#endif
#if VERSION == 3
    doubled += 2 * x;
    if (doubled < 0) {
        return doubled;
    }
#endif
    strcpy(last, "put");
    return total;
}

/* Changes, and the variable that only it uses with it: from the file nobody can tell whether that is the old one. */
#if VERSION == 4
static long squares;
EXPORT long tally(long x)
{
    return squares += x * x;
}
#else
static long sum;
EXPORT long tally(long x)
{
    return sum += x;
}
#endif

EXPORT long get_total(long unused UNUSED)
{
    return total;
}

EXPORT long get_count(long index)
{
    return counts[(unsigned long) index % LENGTH(counts)];
}

EXPORT long set_limit(long x)
{
    long old = limit;
    limit = x;
    return old;
}

EXPORT long choose(long x)
{
    chosen = &kinds[x & 1];
    return strlen(chosen->name);
}

EXPORT long is_heavy(long unused UNUSED)
{
    return chosen->weigh == weigh_heavy;
}

EXPORT long last_length(long unused UNUSED)
{
    return strlen(last);
}

EXPORT long version(long unused UNUSED)
{
    return VERSION;
}
