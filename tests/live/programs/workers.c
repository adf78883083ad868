/* Workers: threads that call into the library under test again and again, each in a way that makes an upgrade
 * difficult.
 *
 * A worker notes how often the answer changed: once for each switch, if every call ran either wholly the old or wholly
 * the new code. */

#define _GNU_SOURCE
#include "host.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/rseq.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

enum { MOST_WORKERS = 160, MOST_VALUES = 6, SMALL_STACK = 16384 };

struct worker {
    const char *way;
    void (*call)(struct worker *);
    function *f;
    long argument;
    int pause; /* > 0: milliseconds; < 0: turns of an empty loop; 0: none */
    atomic_ulong calls, changes, failures;
    atomic_long last;
    long values[MOST_VALUES]; /* the different answers, in order of appearance */
    atomic_int n_values;
    pthread_t thread;
};

static struct worker workers[MOST_WORKERS];
static int n_workers;
static atomic_bool stopping;

static void note(struct worker *worker, long value)
{
    if (worker->calls && value == worker->last) {
        worker->calls++;
        return;
    }
    worker->changes += worker->calls > 0;
    worker->last = value;
    int known = 0;
    while (known < worker->n_values && worker->values[known] != value) {
        known++;
    }
    if (known == worker->n_values && known < MOST_VALUES) {
        worker->values[known] = value;
        worker->n_values++;
    }
    worker->calls++;
}

static void block_signals(void)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
}

static void call_plainly(struct worker *worker)
{
    note(worker, worker->f(worker->argument));
}

/* A new thread for every call. */

static void *call_once(void *argument)
{
    struct worker *worker = argument;
    return (void *)worker->f(worker->argument);
}

static void call_in_new_threads(struct worker *worker)
{
    pthread_t threads[3];
    size_t n = 0;
    while (n < LENGTH(threads) && !pthread_create(&threads[n], NULL, call_once, worker)) {
        n++;
    }
    worker->failures += n < LENGTH(threads);
    for (size_t i = 0; i < n; i++) {
        void *value;
        pthread_join(threads[i], &value);
        atomic_fetch_add(&worker->calls, 1);
        atomic_store(&worker->last, (long)value);
    }
}

/* A new process for every call, forked and spawned in turns. */

static bool ended_well(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, 0) < 0) {
        if (errno != EINTR) {
            return false;
        }
    }
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void call_in_new_process(struct worker *worker)
{
    char *arguments[] = {"true", NULL};
    pid_t pid;
    if (worker->calls % 4 == 3) {
        if (posix_spawnp(&pid, "true", NULL, NULL, arguments, environ) || !ended_well(pid)) {
            worker->failures++;
        }
        worker->calls++;
        return;
    }
    long expected = worker->f(worker->argument);
    pid = fork();
    if (pid == 0) {
        long value = worker->f(worker->argument);
        /* the code may have changed between the two calls: any value that is an answer at all is sound */
        _exit(value == 0 && expected != 0);
    }
    if (pid < 0 || !ended_well(pid)) {
        worker->failures++;
    }
    note(worker, expected);
}

/* Children that live on, each forked while who knows what goes on here.  One whose code is upgraded ends. */

enum { MOST_CHILDREN = 32, UPGRADED = 7 };

static void breed(struct worker *worker)
{
    static pid_t children[MOST_CHILDREN];
    pid_t *child = &children[worker->calls % MOST_CHILDREN];
    if (*child) {
        kill(*child, SIGKILL);
        waitpid(*child, NULL, 0);
    }
    *child = fork();
    if (*child == 0) {
        long first = worker->f(worker->argument);
        for (int turn = 0; turn < 2000; turn++) {
            nanosleep(&(struct timespec){0, 10000000}, NULL);
            if (worker->f(worker->argument) != first) {
                nanosleep(&(struct timespec){0, 500000000}, NULL); /* the command looks at it once more */
                _exit(UPGRADED);
            }
        }
        _exit(0);
    }
    worker->failures += *child < 0;
    worker->calls++;
}

/* Most of the time the thread waits for a child that shares its memory: nothing can interrupt it then. */
static void call_behind_vfork(struct worker *worker)
{
    pid_t pid = vfork();
    if (pid == 0) {
        nanosleep(&(struct timespec){0, 40000000}, NULL);
        _exit(0);
    }
    if (pid < 0 || !ended_well(pid)) {
        worker->failures++;
    }
    call_plainly(worker);
}

/* The allocator's locks are held nearly always, by one thread or another. */
static void call_and_allocate(struct worker *worker)
{
    void *pieces[64];
    for (size_t i = 0; i < LENGTH(pieces); i++) {
        pieces[i] = malloc(16 + (worker->calls * 37 + i * 977) % 200000);
        worker->failures += !pieces[i];
    }
    for (size_t i = 0; i < LENGTH(pieces); i++) {
        free(pieces[i]);
    }
    call_plainly(worker);
}

/* Restartable sequences: each adds one to a counter without an atomic instruction.  All these threads share a core, and
 * the kernel starts a sequence anew that was interrupted; an addition that is lost shows that one was carried on with.
 */

static long counted;
static atomic_long sequences;
static long started_anew;

static bool add_one(struct rseq *area)
{
    bool done;
    __asm__ volatile(".pushsection __rseq_cs, \"aw\"\n"
                     ".balign 32\n"
                     "3: .long 0, 0\n"
                     ".quad 1f, 2f - 1f, 4f\n"
                     ".popsection\n"
                     "leaq 3b(%%rip), %%rax\n"
                     "movq %%rax, %[cs]\n"
                     "1: movq %[counted], %%rcx\n"
                     "movl $2000, %%eax\n"
                     "5: decl %%eax\n"
                     "jnz 5b\n"
                     "incq %%rcx\n"
                     "movq %%rcx, %[counted]\n"
                     "2: movb $1, %[done]\n"
                     "jmp 6f\n"
                     ".byte 0x0f, 0xb9, 0x3d\n"
                     ".long 0x53053053\n"
                     "4: movb $0, %[done]\n"
                     "6:\n"
                     : [done] "=&r"(done), [counted] "+m"(counted), [cs] "=m"(area->rseq_cs)
                     :
                     : "rax", "rcx", "memory", "cc");
    return done;
}

static void call_between_sequences(struct worker *worker)
{
    struct rseq *area = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
    if (!worker->calls) {
        cpu_set_t core;
        sched_getaffinity(0, sizeof core, &core);
        for (int cpu = CPU_SETSIZE - 1; cpu >= 0; cpu--) { /* the first one stays */
            if (CPU_ISSET(cpu, &core) && CPU_COUNT(&core) > 1) {
                CPU_CLR(cpu, &core);
            }
        }
        if (!__rseq_size || sched_setaffinity(0, sizeof core, &core)) {
            die("rseq");
        }
        if (worker->argument) {
            block_signals();
        }
    }
    for (int turn = 0; turn < 50; turn++) {
        while (!add_one(area)) {
            __atomic_add_fetch(&started_anew, 1, __ATOMIC_RELAXED);
        }
        sequences++;
    }
    call_plainly(worker);
}

/* From a signal handler on its own stack, in which the thread spends most of its time. */

static _Thread_local struct worker *me;

static void handle(int signal)
{
    (void)signal;
    call_plainly(me);
    nanosleep(&(struct timespec){0, 2000000}, NULL);
}

static void call_from_signal_stack(struct worker *worker)
{
    if (!me) {
        me = worker;
        stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536};
        struct sigaction action = {.sa_handler = handle, .sa_flags = SA_ONSTACK};
        if (sigaltstack(&stack, NULL) || sigaction(SIGUSR1, &action, NULL)) {
            die("sigaltstack");
        }
    }
    raise(SIGUSR1);
}

static void *worker_main(void *argument)
{
    struct worker *worker = argument;
    if (!strcmp(worker->way, "blocked")) {
        block_signals();
    }
    while (!stopping) {
        worker->call(worker);
        for (volatile int turn = worker->pause; turn < 0; turn++) {
        }
        if (worker->pause > 0) {
            nanosleep(&(struct timespec){0, worker->pause * 1000000L}, NULL);
        }
    }
    return NULL;
}

void start_workers(const char *way, int count, function *f, long argument, int pause)
{
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    if (!strcmp(way, "small")) {
        pthread_attr_setstacksize(&attributes, SMALL_STACK);
    }
    for (int i = 0; i < count && n_workers < MOST_WORKERS; i++) {
        struct worker *worker = &workers[n_workers++];
        memset(worker, 0, sizeof *worker);
        worker->way = strdup(way);
        worker->call = !strcmp(way, "churn")      ? call_in_new_threads
                       : !strcmp(way, "fork")     ? call_in_new_process
                       : !strcmp(way, "altstack") ? call_from_signal_stack
                       : !strcmp(way, "breed")    ? breed
                       : !strcmp(way, "sequence") ? call_between_sequences
                       : !strcmp(way, "vfork")    ? call_behind_vfork
                       : !strcmp(way, "allocate") ? call_and_allocate
                                                  : call_plainly;
        worker->f = f;
        worker->argument = argument;
        worker->pause = pause;
        worker->thread = start(&attributes, worker_main, worker, way);
    }
    pthread_attr_destroy(&attributes);
    say("workers=%d", n_workers);
}

void report_workers(void)
{
    unsigned long calls = 0, least = -1ul, most_changes = 0, failures = 0;
    char last[1024] = "", values[1024] = "";
    for (int i = 0; i < n_workers; i++) {
        struct worker *worker = &workers[i];
        unsigned long mine = worker->calls;
        calls += mine;
        least = mine < least ? mine : least;
        most_changes = worker->changes > most_changes ? worker->changes : most_changes;
        failures += worker->failures;
        if (i < 16) {
            snprintf(last + strlen(last), sizeof last - strlen(last), "%s%ld", i ? "," : "", (long)worker->last);
            for (int v = 0; v < worker->n_values; v++) {
                snprintf(values + strlen(values), sizeof values - strlen(values), "%s%ld", *values ? "," : "",
                         worker->values[v]);
            }
        }
    }
    say("workers=%d calls=%lu least=%lu changes=%lu failures=%lu last=%s values=%s", n_workers, calls, least,
        most_changes, failures, last, values);
}

void stop_workers(void)
{
    stopping = true;
    for (int i = 0; i < n_workers; i++) {
        pthread_join(workers[i].thread, NULL);
    }
    stopping = false;
    n_workers = 0;
    say("workers=0 sequences=%ld lost=%ld anew=%ld", (long)sequences, (long)sequences - counted, started_anew);
}
