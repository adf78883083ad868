/* Threads in loops that never return, one kind for each way to lead them out.  VERSION is the build of the loops;
 * STUBBORN and WILD are those of two loops by themselves, which nothing leads out. */

#define _GNU_SOURCE
#include "subject.h"

#include <hotupgrade.h>

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef STUBBORN
#define STUBBORN 1
#endif
#ifndef WILD
#define WILD 1
#endif

/* Not made to measure for those who call it: it is the same in every build. */
#ifdef __clang__
#define SAME NOINLINE
#else
#define SAME __attribute__((noipa))
#endif

enum { MOST_WORKERS = 64 };

/* A pipe: set by a byte in it, seen by all who look. */
struct latch {
    int fds[2];
};

struct pool {
    struct latch exit;
    atomic_long arrived;
};

struct cache {
    long slots[512];
};

struct worker {
    const struct kind *kind;
    pthread_t thread;
    pid_t tid;
    struct pool *pool;
    struct cache *cache;
    bool attached;
    volatile bool stop;    /* the worker is to end */
    volatile bool refuses; /* but does not */
    long body;             /* of which build the loop is that it runs */
    long entered;          /* how often it did so, at the top */
    long odd;              /* turns that only newer builds count */
    atomic_long done, sum;
    long childhood; /* in a forked child: turns */
    long *own;      /* its thread-local counter */
};

static struct worker workers[MOST_WORKERS];
static struct pool pool;
static int n_workers;
static atomic_long taken, sum_taken, attached, detached, made, dropped, wrong;
static atomic_long children, children_lost;
static volatile long nap_ms = 20; /* of sleeping workers */
static _Thread_local long mine;

/* What the loops call. */

static SAME long take(void)
{
    long item = atomic_fetch_add(&taken, 1);
    atomic_fetch_add(&sum_taken, item);
    return item;
}

/* At the top of each loop: always the same thread. */
static SAME void enter(struct worker *w)
{
    if (!w->entered++) {
        w->tid = gettid();
        w->own = &mine;
    }
    wrong += !pthread_equal(w->thread, pthread_self()) || w->tid != gettid();
}

/* The loop's work: an item that was taken is finished, by the thread that took it. */
static SAME void finish(struct worker *w, long item, long body)
{
    wrong += w->own != &mine || mine != w->done;
    mine++;
    w->sum += item;
    w->done++;
    w->body = body;
}

static SAME int attach(struct worker *w)
{
    wrong += w->attached;
    w->attached = true;
    attached++;
    return 1;
}

static SAME void detach(struct worker *w)
{
    wrong += !w->attached;
    w->attached = false;
    detached++;
}

static SAME void make_cache(struct worker *w)
{
    wrong += w->cache != NULL;
    w->cache = calloc(1, sizeof *w->cache);
    made++;
}

static SAME void drop_cache(struct worker *w)
{
#ifdef THOROUGH
    memset(w->cache, 0, sizeof *w->cache);
#endif
    free(w->cache);
    w->cache = NULL;
    dropped++;
}

static SAME bool latch_is_set(const struct latch *latch)
{
    struct pollfd p = {.fd = latch->fds[0], .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

static SAME void nap(long ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL);
}

static SAME void enter_even_in_a_child(struct worker *w)
{
    if (w->childhood) {
        w->tid = gettid();
    }
    enter(w);
}

/* A process that is no child of ours would be one that nobody waits for. */
static SAME void bear(struct worker *w)
{
    int status;
    while (waitpid(-1, &status, WNOHANG) > 0) {
        children++;
        children_lost += !WIFEXITED(status) || WEXITSTATUS(status);
    }
    pid_t pid = fork();
    if (pid == 0) {
        alarm(2); /* who waits for ever is lost */
        w->childhood = 1;
    }
}

/* The loops. */

/* Polls all the time, until a field of its argument says to end; has things to set up and to clean up. */
static void *busy_main(void *argument)
{
    struct worker *w = argument;
    int id = attach(w);
    make_cache(w);
    enter(w);
#if VERSION > 1
    long turn = w->done % VERSION;
#endif
    while (!w->stop) {
        long item = take();
        w->cache->slots[item % 512] = item;
#if VERSION > 1
        if (++turn == VERSION) {
            turn = 0;
            w->odd++;
        }
#endif
        finish(w, item, VERSION);
    }
    drop_cache(w);
    if (id) {
        detach(w);
    }
    return w;
}

/* Leaves with all others that look at the same latch. */
static void *latched_main(void *argument)
{
    struct worker *w = argument;
    enter(w);
#if VERSION > 1
    long rest = VERSION;
#endif
    while (!latch_is_set(&w->pool->exit)) {
        long item = take();
        finish(w, item, VERSION);
#if VERSION > 1
        if (--rest == 0) {
            rest = VERSION;
            w->odd++;
        }
#endif
        nap(1);
    }
#ifdef CLEARS
    char byte;
    wrong += read(w->pool->exit.fds[0], &byte, 1) != 1;
#endif
    w->pool->arrived++;
    return w;
}

/* The same latch, another loop. */
static void *other_main(void *argument)
{
    struct worker *w = argument;
    enter(w);
    while (!latch_is_set(&w->pool->exit)) {
        finish(w, take(), VERSION);
        nap(2);
    }
    w->pool->arrived++;
    return w;
}

/* No way out: sleeps most of the time. */
static void *sleeping_main(void *argument)
{
    struct worker *w = argument;
    enter(w);
#if VERSION > 1
    long sums[4] = {w->done, 0, VERSION, 0};
#endif
    for (;;) {
        long item = take();
        finish(w, item, VERSION);
#if VERSION > 1
        sums[item % 4] += item;
        w->odd += sums[item % 4] > 0;
#endif
        nap(nap_ms);
    }
    return NULL;
}

/* Its source says where it may be left. */
static void *safe_main(void *argument)
{
    struct worker *w = argument;
    enter(w);
#if VERSION > 1
    long turns = 0;
#endif
    while (!w->stop) {
        HOTUPGRADE_SAFE_POINT(NULL);
        long item = take();
        finish(w, item, VERSION);
#if VERSION > 1
        w->odd += turns++ % VERSION == 0;
#endif
        if (item % 4 == 0) {
            nap(1);
        }
    }
    return w;
}

/* The same, in a thread that was started with another function: that keeps what it was given. */
static void *wrapped_main(void *argument)
{
    struct worker *w = argument;
    enter(w);
    while (!w->stop) {
        HOTUPGRADE_SAFE_POINT(NULL);
        finish(w, take(), VERSION);
#if VERSION > 1
        w->odd++;
#endif
        nap(2);
    }
    return w;
}

struct start {
    void *(*loop)(void *);
    void *argument;
};

static SAME void *wrapper(void *argument)
{
#ifdef LAST_DEED
    struct start given = *(struct start *)argument;
    free(argument);
    return given.loop(given.argument);
#endif
    volatile struct start start = *(struct start *)argument;
    free(argument);
    void *result = start.loop(start.argument);
    start.argument = NULL;
    return result;
}

static SAME int begin_wrapped_thread(struct worker *w, const pthread_attr_t *attributes, void *(*loop)(void *))
{
    struct start *start = malloc(sizeof *start);
    *start = (struct start){loop, w};
    return pthread_create(&w->thread, attributes, wrapper, start);
}

/* The same, and it calls nothing but the C library, which keeps no frame pointers. */
static void *direct_main(void *argument)
{
    struct worker *w = argument;
    w->tid = gettid();
    w->own = &mine;
    w->entered++;
    while (!w->stop) {
        HOTUPGRADE_SAFE_POINT(NULL);
        long item = atomic_fetch_add(&taken, 1);
        sum_taken += item;
        w->sum += item;
        w->done++;
        w->body = VERSION;
        poll(NULL, 0, 1);
#if VERSION > 1
        w->odd += VERSION;
#endif
    }
    return w;
}

/* Has children, which go on in its loop for a while, whatever became of it in the parent. */
static void *forking_main(void *argument)
{
    struct worker *w = argument;
    enter_even_in_a_child(w);
    while (!w->stop) {
        HOTUPGRADE_SAFE_POINT(NULL);
        finish(w, take(), VERSION);
        if (w->childhood) {
            if (++w->childhood > 30) {
                _exit(0);
            }
        } else if (w->done % 4 == 0) {
            bear(w);
        }
        nap(1);
    }
    return w;
}

/* Does not leave when it is asked to, for as long as it was told so. */
static void *stubborn_main(void *argument)
{
    struct worker *w = argument;
    int id = attach(w);
    enter(w);
    while (!w->stop || w->refuses) {
        long item = take();
        finish(w, item, STUBBORN);
        w->odd += STUBBORN - 1;
        nap(1);
    }
    if (id) {
        detach(w);
    }
    return w;
}

/* The same, by a safe point that it does not come to. */
static void *deaf_main(void *argument)
{
    struct worker *w = argument;
    enter(w);
    while (!w->stop) {
        if (!w->refuses) {
            HOTUPGRADE_SAFE_POINT(NULL);
        }
        long item = take();
        finish(w, item, STUBBORN);
        w->odd += STUBBORN - 1;
        nap(1);
    }
    return w;
}

/* Nothing is known of it. */
static void *wild_main(void *argument)
{
    struct worker *w = argument;
    enter(w);
    for (;;) {
        long item = take();
        finish(w, item, WILD);
        w->odd += WILD - 1;
        nap(1);
    }
    return NULL;
}

/* For the tests. */

enum { BUSY, DEAF, DIRECT, FORKING, LATCHED, OTHER, SAFE, SLEEPING, STUBBORN_ONE, WILD_ONE, WRAPPED, KINDS };

static const struct kind {
    const char *name;
    void *(*loop)(void *);
    bool endless;
} kinds[KINDS] = {
    [BUSY] = {"busy", busy_main, false},
    [DEAF] = {"deaf", deaf_main, false},
    [DIRECT] = {"direct", direct_main, false},
    [FORKING] = {"forking", forking_main, false},
    [LATCHED] = {"latched", latched_main, false},
    [OTHER] = {"other", other_main, false},
    [SAFE] = {"safe", safe_main, false},
    [SLEEPING] = {"sleeping", sleeping_main, true},
    [STUBBORN_ONE] = {"stubborn", stubborn_main, false},
    [WILD_ONE] = {"wild", wild_main, true},
    [WRAPPED] = {"wrapped", wrapped_main, false},
};

static long begin(const struct kind *kind, long count)
{
    if (!pool.exit.fds[0] && pipe(pool.exit.fds)) {
        return -1;
    }
    for (; count > 0 && n_workers < MOST_WORKERS; count--) {
        struct worker *w = &workers[n_workers++];
        *w = (struct worker){.kind = kind, .pool = &pool};
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        if (n_workers % 2) { /* others have the least that there can be */
            pthread_attr_setstacksize(&attributes, 16384);
        }
        if (kind->loop == wrapped_main ? begin_wrapped_thread(w, &attributes, kind->loop)
                                       : pthread_create(&w->thread, &attributes, kind->loop, w)) {
            return -1;
        }
        char title[16];
        snprintf(title, sizeof title, "%.9s-%d", kind->name, n_workers % 100);
        pthread_setname_np(w->thread, title);
    }
    return n_workers;
}

EXPORT long begin_busy(long count)
{
    return begin(&kinds[BUSY], count);
}

EXPORT long begin_deaf(long count)
{
    return begin(&kinds[DEAF], count);
}

EXPORT long begin_direct(long count)
{
    return begin(&kinds[DIRECT], count);
}

EXPORT long begin_forking(long count)
{
    return begin(&kinds[FORKING], count);
}

EXPORT long begin_latched(long count)
{
    return begin(&kinds[LATCHED], count);
}

EXPORT long begin_other(long count)
{
    return begin(&kinds[OTHER], count);
}

EXPORT long begin_safe(long count)
{
    return begin(&kinds[SAFE], count);
}

EXPORT long begin_sleeping(long count)
{
    return begin(&kinds[SLEEPING], count);
}

EXPORT long begin_stubborn(long count)
{
    return begin(&kinds[STUBBORN_ONE], count);
}

EXPORT long begin_wild(long count)
{
    return begin(&kinds[WILD_ONE], count);
}

EXPORT long begin_wrapped(long count)
{
    return begin(&kinds[WRAPPED], count);
}

EXPORT long set_nap(long ms)
{
    nap_ms = ms;
    return ms;
}

static void woken(int signal)
{
    (void)signal;
}

/* Naps end early. */
EXPORT long wake_all(long unused UNUSED)
{
    struct sigaction action = {.sa_handler = woken};
    sigaction(SIGUSR1, &action, NULL);
    for (int i = 0; i < n_workers; i++) {
        pthread_kill(workers[i].thread, SIGUSR1);
    }
    return n_workers;
}

/* One after the other, with a pause between. */
EXPORT long breed_safe(long count)
{
    for (; count > 0; count--) {
        begin(&kinds[SAFE], 1);
        nap(6);
    }
    return n_workers;
}

/* The program ends some of its workers: those with an even number, which it forgets then. */
EXPORT long end_even(long unused UNUSED)
{
    long ended = 0;
    for (int i = 0; i < n_workers; i += 2) {
        workers[i].stop = true;
        nap(1);
    }
    for (int i = 0; i < n_workers; i += 2) {
        void *result;
        ended += !pthread_join(workers[i].thread, &result) && result == &workers[i];
    }
    return ended;
}

EXPORT long lost_children(long unused UNUSED)
{
    return children_lost;
}

EXPORT long count_children(long unused UNUSED)
{
    return children;
}

EXPORT long version(long unused UNUSED)
{
    return VERSION;
}

EXPORT long refuse(long whether)
{
    for (int i = 0; i < n_workers; i++) {
        workers[i].refuses = whether;
    }
    return whether;
}

/* All workers end, by the program's own means; returns how many did. */
EXPORT long end_all(long unused UNUSED)
{
    long ended = 0;
    if (n_workers && write(pool.exit.fds[1], "", 1) != 1) {
        return -1;
    }
    for (int i = 0; i < n_workers; i++) {
        if (workers[i].kind->endless) {
            pthread_cancel(workers[i].thread);
        } else {
            workers[i].stop = true;
        }
    }
    for (int i = 0; i < n_workers; i++) {
        void *result;
        void *expected = workers[i].kind->endless ? PTHREAD_CANCELED : &workers[i];
        ended += !pthread_join(workers[i].thread, &result) && result == expected;
    }
    n_workers = 0;
    return ended;
}

/* What each kind did: how many there are; the least of each. */
EXPORT const char *state(void)
{
    static char text[2048];
    long begun = taken, done = 0, sum = 0; /* so that of what was begun at most one each is not done */
    size_t used = 0;
    for (int k = 0; k < KINDS; k++) {
        long count = 0, low_body = 0, high_body = 0, low_entered = 0, high_entered = 0, odd = 0, turns = 0;
        for (int i = 0; i < n_workers; i++) {
            const struct worker *w = &workers[i];
            if (w->kind != &kinds[k]) {
                continue;
            }
            low_body = !count || w->body < low_body ? w->body : low_body;
            high_body = w->body > high_body ? w->body : high_body;
            low_entered = !count || w->entered < low_entered ? w->entered : low_entered;
            high_entered = w->entered > high_entered ? w->entered : high_entered;
            turns = !count || w->done < turns ? w->done : turns;
            odd += w->odd;
            count++;
        }
        used += (size_t)snprintf(text + used, sizeof text - used, "%s=%ld,%ld,%ld,%ld,%ld,%ld,%ld ", kinds[k].name,
                                 count, low_body, high_body, low_entered, high_entered, turns, odd);
    }
    for (int i = 0; i < MOST_WORKERS; i++) {
        done += workers[i].done;
        sum += workers[i].sum;
    }
    snprintf(text + used, sizeof text - used,
             "taken=%ld done=%ld sum_taken=%ld sum=%ld attached=%ld detached=%ld made=%ld dropped=%ld wrong=%ld "
             "arrived=%ld",
             begun, done, (long)sum_taken, sum, (long)attached, (long)detached, (long)made, (long)dropped, (long)wrong,
             (long)pool.arrived);
    return text;
}
