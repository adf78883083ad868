/* What gdb, perf and the program itself see of an upgraded process: outer() and inner() change, middle() between them
 * does not, and the function that works has another name in every build. */

#define _GNU_SOURCE
#include "subject.h"

#include <dlfcn.h>
#include <execinfo.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define JOIN(a, b) a##b
#define NAMED(a, b) JOIN(a, b)
#define WORK NAMED(work_of_build_, VERSION)
#define BARRIER() __asm__ volatile("" ::: "memory") /* no tail call */

enum { MOST_FRAMES = 32 };

long limit = 10 * VERSION;
static long turns, releases, ended;
static long frames;
static void *addresses[MOST_FRAMES];

static long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void note_end(void *unused UNUSED)
{
    ended += VERSION;
}

/* x > 0: work for x milliseconds; 0: look at the stack; -1: wait for release(); -2: end with a core; -3: end the thread
 */
static NOINLINE long WORK(long x)
{
    long end = now_ms() + x;
    if (x == 0) {
        frames = backtrace(addresses, MOST_FRAMES);
    } else if (x == -1) {
        for (long before = releases; __atomic_load_n(&releases, __ATOMIC_RELAXED) == before;) {
            usleep(1000);
        }
    } else if (x == -2) {
        abort();
    } else if (x == -3) {
        pthread_cleanup_push(note_end, NULL);
        pthread_exit(NULL);
        pthread_cleanup_pop(0);
    }
    while (now_ms() < end) {
        for (volatile int i = 0; i < 100000; i++) {
            turns++;
        }
    }
    return VERSION;
}

EXPORT NOINLINE long inner(long x)
{
    long result = WORK(x) + VERSION * 10;
    BARRIER();
    return result;
}

EXPORT NOINLINE long middle(long x)
{
    long result = inner(x);
    BARRIER();
    return result;
}

EXPORT NOINLINE long outer(long x)
{
    long result = middle(x) + VERSION * 100;
    BARRIER();
    return result;
}

EXPORT long release(long unused UNUSED)
{
    return __atomic_add_fetch(&releases, 1, __ATOMIC_RELAXED);
}

EXPORT long count_frames(long unused UNUSED)
{
    return frames;
}

EXPORT long frame_address(long index)
{
    return (long)addresses[index];
}

EXPORT long count_ended(long unused UNUSED)
{
    return ended;
}

EXPORT long open_namespace(long unused UNUSED)
{
    return dlmopen(LM_ID_NEWLM, "libm.so.6", RTLD_NOW) != NULL;
}
