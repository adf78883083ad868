/* A program to be stopped: threads that sleep, and busy threads that see from outside how long they were away.
 *
 * usage: subject SLEEPERS CORE...      (one busy thread for each CORE, tied to it; -1: to none)
 *
 * A busy thread reads the time-stamp counter in a loop and notes each pair of readings that lie further apart than
 * THRESHOLD.  Whatever took the thread away lies between the two readings: the delivery of a signal, its handler, the
 * return from it.  Commands on standard input, one line each; each is answered by one line:
 *
 *   tids                 the busy threads' ids
 *   rate                 ticks of the counter in a microsecond
 *   forget               start a new window
 *   largest TID          the largest gap in the window, in ticks
 *   gap TID TICK         the gap that contains the moment TICK, in ticks; 0 if there is none
 *   pause TID MICROS     take the thread away for so long, by a signal whose handler waits (by another clock);
 *                        a tick within the pause, and how long it was by that clock, in nanoseconds
 *   value N              what the library's function N returns
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#define THRESHOLD 2000
#define GAPS 65536
#define MOST_BUSY 64

typedef long function(long);
extern function *const functions[];
extern const int function_count;

struct gap {
    uint64_t from, to;
};

struct busy {
    pthread_t thread;
    _Atomic pid_t tid;
    int core;
    _Atomic uint64_t count; /* of gaps so far; the newest GAPS are kept */
    uint64_t window;        /* count at the begin of the window */
    struct gap gaps[GAPS];
};

static struct busy *all[MOST_BUSY];
static int busy_count;
static _Atomic long pause_us;
static _Atomic int paused;
static uint64_t paused_tick;
static int64_t paused_ns;
static _Atomic long kept;

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static void on_pause(int number)
{
    (void)number;
    int64_t begin = now_ns(), now = begin;
    paused_tick = __rdtsc();
    while (now < begin + pause_us * 1000) {
        now = now_ns();
    }
    paused_ns = now - begin;
    paused = 1;
}

static void *be_busy(void *argument)
{
    struct busy *self = argument;
    if (self->core >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(self->core, &set);
        sched_setaffinity(0, sizeof set, &set);
    }
    self->tid = gettid();
    uint64_t last = __rdtsc();
    for (unsigned turn = 0;; turn++) {
        uint64_t tick = __rdtsc();
        if (tick - last > THRESHOLD) {
            uint64_t count = self->count;
            self->gaps[count % GAPS] = (struct gap){last, tick};
            atomic_store_explicit(&self->count, count + 1, memory_order_release);
        }
        last = tick;
        /* The library is in use, but never for long: it is not what is measured. */
        if (turn % 64 == 0) {
            kept = functions[turn / 64 % (unsigned)function_count](kept & 0xff);
        }
    }
    return NULL;
}

static void *be_asleep(void *argument)
{
    (void)argument;
    for (;;) {
        poll(NULL, 0, 1000);
    }
    return NULL;
}

static pthread_t start(void *(*body)(void *), void *argument)
{
    pthread_t thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 256 * 1024);
    int error = pthread_create(&thread, &attributes, body, argument);
    if (error) {
        fprintf(stderr, "pthread_create: %s\n", strerror(error));
        exit(1);
    }
    return thread;
}

static double ticks_per_us(void)
{
    uint64_t tick = __rdtsc();
    int64_t begin = now_ns();
    usleep(100000);
    uint64_t ticks = __rdtsc() - tick;
    return (double)ticks * 1000 / (double)(now_ns() - begin);
}

static struct busy *find(long tid)
{
    for (int i = 0; i < busy_count; i++) {
        if (all[i]->tid == tid) {
            return all[i];
        }
    }
    fprintf(stderr, "no busy thread %ld\n", tid);
    exit(1);
}

static uint64_t largest(const struct busy *self)
{
    uint64_t most = 0, count = self->count;
    uint64_t first = count > GAPS && self->window < count - GAPS ? count - GAPS : self->window;
    for (uint64_t i = first; i < count; i++) {
        uint64_t length = self->gaps[i % GAPS].to - self->gaps[i % GAPS].from;
        most = length > most ? length : most;
    }
    return most;
}

static uint64_t gap_at(const struct busy *self, uint64_t tick)
{
    uint64_t count = self->count;
    for (uint64_t i = count; i > 0 && count - i < GAPS; i--) {
        const struct gap *gap = &self->gaps[(i - 1) % GAPS];
        if (gap->from <= tick && tick <= gap->to) {
            return gap->to - gap->from;
        }
        if (gap->to < tick) {
            break;
        }
    }
    return 0;
}

static void answer(const char *line)
{
    long tid = 0, number = 0;
    uint64_t tick = 0;
    if (strncmp(line, "tids", 4) == 0) {
        for (int i = 0; i < busy_count; i++) {
            printf("%s%d", i ? " " : "", all[i]->tid);
        }
        printf("\n");
    } else if (strncmp(line, "rate", 4) == 0) {
        printf("%.6f\n", ticks_per_us());
    } else if (strncmp(line, "forget", 6) == 0) {
        for (int i = 0; i < busy_count; i++) {
            all[i]->window = all[i]->count;
        }
        printf("done\n");
    } else if (sscanf(line, "largest %ld", &tid) == 1) {
        printf("%lu\n", largest(find(tid)));
    } else if (sscanf(line, "gap %ld %lu", &tid, &tick) == 2) {
        printf("%lu\n", gap_at(find(tid), tick));
    } else if (sscanf(line, "pause %ld %ld", &tid, &number) == 2) {
        pause_us = number;
        paused = 0;
        pthread_kill(find(tid)->thread, SIGUSR1);
        while (!paused) {
            usleep(200);
        }
        usleep(2000);
        printf("%lu %ld\n", paused_tick, paused_ns);
    } else if (sscanf(line, "value %ld", &number) == 1) {
        printf("%ld\n", functions[number](0));
    } else {
        printf("unknown\n");
    }
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    struct sigaction action = {.sa_handler = on_pause, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &action, NULL);
    for (int i = argc > 1 ? atoi(argv[1]) : 0; i > 0; i--) {
        start(be_asleep, NULL);
    }
    for (int i = 2; i < argc && busy_count < MOST_BUSY; i++) {
        struct busy *self = calloc(1, sizeof *self);
        if (self == NULL) {
            return 1;
        }
        memset(self->gaps, 1, sizeof self->gaps); /* present before it is used: page faults are gaps too */
        memset(self->gaps, 0, sizeof self->gaps);
        self->core = atoi(argv[i]);
        all[busy_count++] = self;
        self->thread = start(be_busy, self);
    }
    for (int i = 0; i < busy_count; i++) {
        while (all[i]->tid == 0) {
            usleep(100);
        }
    }
    printf("ready\n");
    char line[128];
    while (fgets(line, sizeof line, stdin) != NULL) {
        answer(line);
    }
    _exit(0);
}
