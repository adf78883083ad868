/* Pointers to this library's functions that others hold: callbacks, comparators, destructors of keys, signal handlers.
 */

#define _GNU_SOURCE
#include "subject.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static pthread_key_t key;
static long ended, handled, released;

static long callback(long x)
{
    return x + VERSION * 10;
}

static int compare(const void *a, const void *b)
{
    long x = *(const long *)a, y = *(const long *)b;
#if VERSION == 2
    return (x < y) - (x > y);
#else
    return (x > y) - (x < y);
#endif
}

static void at_thread_end(void *value UNUSED)
{
    ended += VERSION;
}

static void handle(int number UNUSED)
{
    handled += VERSION;
}

static void at_exit(void)
{
    printf("atexit=%d\n", VERSION);
    fflush(stdout);
}

EXPORT long install(long unused UNUSED)
{
    atexit(at_exit);
    signal(SIGUSR1, handle);
    return pthread_key_create(&key, at_thread_end);
}

EXPORT long (*get_callback(long unused UNUSED))(long)
{
    return callback;
}

/* Unchanged; what it calls has changed. */
EXPORT long head_of_sorted(long unused UNUSED)
{
    long numbers[] = {5, 2, 9, 4};
    qsort(numbers, 4, sizeof *numbers, compare);
    return numbers[0];
}

EXPORT long raise_it(long unused UNUSED)
{
    raise(SIGUSR1);
    return handled;
}

/* Runs in a thread of its own until release() is called. */
EXPORT long wait_with_key(long unused UNUSED)
{
    pthread_setspecific(key, &key);
    while (!__atomic_load_n(&released, __ATOMIC_ACQUIRE)) {
        usleep(1000);
    }
    return 0;
}

EXPORT long release(long unused UNUSED)
{
    __atomic_store_n(&released, 1, __ATOMIC_RELEASE);
    return 0;
}

EXPORT long count_ended(long unused UNUSED)
{
    return ended;
}
