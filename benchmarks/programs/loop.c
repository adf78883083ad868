/* A library with a loop that never returns, to be restarted: compiled with -DVERSION=1 and -DVERSION=2.
 *
 * On its way out of the loop, and on its way in, the worker waits as long as it is told to, and notes by
 * CLOCK_MONOTONIC how long that was: pauses whose true length is known, for the meter of restarts to find. */
#define _GNU_SOURCE
#include "loop.h"

#include <stdint.h>
#include <time.h>
#include <unistd.h>

void work(struct worker *worker)
{
    atomic_fetch_add_explicit(&worker->done, 1, memory_order_relaxed);
}

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static long wait_for(long microseconds)
{
    int64_t begin = now_ns(), now = begin;
    while (now < begin + microseconds * 1000) {
        now = now_ns();
    }
    return (long)(now - begin);
}

static void *worker_main(void *argument)
{
    struct worker *worker = argument;

    worker->tid = gettid();
    worker->version = VERSION;
    worker->waited_in = wait_for(worker->in_us);
    while (!atomic_load_explicit(&worker->stop, memory_order_relaxed)) {
        work(worker);
    }
    worker->waited_out = wait_for(worker->out_us);
    return NULL;
}

int worker_start(struct worker *worker)
{
    return pthread_create(&worker->thread, NULL, worker_main, worker);
}
