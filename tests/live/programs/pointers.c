/* Function pointers in the heap and in tables of constants; tables compared by address. */

#include "subject.h"

#include <stdlib.h>

struct class
{
    const char *name;
    long (*run)(long);
    long weight;
};

static long run_changed(long x)
{
    return x + VERSION * 100;
}

static UNUSED long run_same(long x)
{
    return x * 2;
}

#if VERSION >= 3
static long run_new(long x)
{
    return x + 33333;
}
#define RUN_SECOND run_new
#else
#define RUN_SECOND run_same
#endif

const struct class exported_class EXPORT = {"exported", run_changed, VERSION * 7};
static const struct class classes[] = {
    {"first", run_changed, VERSION * 11},
    {"second", RUN_SECOND, 5},
};
EXPORT const long exported_constants[4] = {VERSION, VERSION * 2, 3, 4};

struct object {
    const struct class *exported, *first, *second;
    const long *constants;
    long (*callback)(long);
};

static struct object *object;

/* Objects made before the upgrade keep their pointers; the index is not known to the compiler, so the table stays. */
EXPORT long make(long zero)
{
    object = malloc(sizeof *object);
    *object = (struct object){&exported_class, &classes[zero], &classes[zero + 1], exported_constants, run_changed};
    return object != NULL;
}

EXPORT long through_callback(long x)
{
    return object->callback(x);
}

EXPORT long through_exported(long x)
{
    return object->exported->run(x);
}

EXPORT long through_first(long x)
{
    return object->first->run(x);
}

EXPORT long through_second(long x)
{
    return object->second->run(x);
}

EXPORT long weight_of_exported(long unused UNUSED)
{
    return object->exported->weight;
}

EXPORT long weight_of_first(long unused UNUSED)
{
    return object->first->weight;
}

EXPORT long constant(long i)
{
    return object->constants[i];
}

/* Fifteen, and the build: new code must find the addresses that the old code stored. */
EXPORT long identity(long zero)
{
    return (object->callback == run_changed) + (object->exported == &exported_class) * 2 +
           (object->first == &classes[zero]) * 4 + (object->first->run == run_changed) * 8 + VERSION * 1000;
}
