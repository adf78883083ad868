/* Live heap objects whose type changes: a field inserted (FIELD), or an enumerator renumbered (RENUMBER). */

#include "subject.h"

#include <stdlib.h>

enum colour {
#ifdef RENUMBER
    COLOUR_NEW,
#endif
    COLOUR_RED,
    COLOUR_BLUE,
};

struct item {
    long first;
#ifdef FIELD
    long inserted;
#endif
    long second;
    enum colour colour;
    struct item *next;
};

static struct item *items;

EXPORT long add_item(long x)
{
    struct item *item = malloc(sizeof *item);
    *item = (struct item){.first = x, .second = x * 2, .colour = COLOUR_BLUE, .next = items};
    items = item;
    return x;
}

EXPORT long sum_of_items(long unused UNUSED)
{
    long result = 0;
    for (struct item *item = items; item; item = item->next) {
        result += item->first + item->second * 1000 + (item->colour == COLOUR_BLUE) * 1000000;
    }
    return result + (VERSION - 1) * 100000000L;
}
