/* Frames of a changed function on a stack that its thread does not stand on: below a signal handler that runs on a
 * stack of its own, and in coroutines. */

#define _GNU_SOURCE
#include "subject.h"

#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

enum { STACK = 64 << 10 };

static volatile int go_on, in_handler;
static volatile long result;

/* These two change in every build: what they give is 1001 or 2002 unless old and new code were mixed. */
static NOINLINE long half(void)
{
    return VERSION;
}

static NOINLINE long interrupted_here(void)
{
    long first = VERSION * 1000;
    raise(SIGUSR1);
    return first + half();
}

static void handler(int number UNUSED)
{
    in_handler = 1;
    while (!go_on) {
        usleep(1000);
    }
}

static void handled_on(void *stack)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
    stack_t alternate = {.ss_sp = stack, .ss_size = STACK};
    sigaltstack(&alternate, NULL);
    sigaction(SIGUSR1, &action, NULL);
    result = interrupted_here();
    alternate.ss_flags = SS_DISABLE;
    sigaltstack(&alternate, NULL);
}

EXPORT long interrupted_on_mapped(long x)
{
    handled_on(mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    return x;
}

EXPORT long interrupted_on_own(long x)
{
    char stack[STACK]; /* the interrupted frames are below, on the same mapping */
    handled_on(stack);
    return x;
}

EXPORT long go(long x)
{
    go_on = (int)x;
    return x;
}

EXPORT long inside(long x UNUSED)
{
    return in_handler;
}

EXPORT long outcome(long x UNUSED)
{
    return result;
}

EXPORT long version(long x UNUSED)
{
    return VERSION;
}

/* A word in a live frame that looks like a return address into a function that changes, and is none. */

static void *trace;

static NOINLINE void remember(void)
{
    trace = __builtin_return_address(0);
}

EXPORT long leave_trace(long x)
{
    remember();
    return x + VERSION;
}

EXPORT long doze(long x)
{
    volatile long room[8];
    room[3] = (long)trace;
    while (!go_on) {
        usleep(1000);
    }
    result = room[3] != 0 ? VERSION * 0 + 77 : -1;
    return x;
}

/* Coroutines */

static ucontext_t caller, coroutine;

EXPORT long suspended_here(void); /* exported: what calls it need not change with it */

NOINLINE long suspended_here(void)
{
    long first = VERSION * 1000;
    swapcontext(&coroutine, &caller);
    return first + half();
}

static void body(void)
{
    result = suspended_here();
    for (;;) {
        swapcontext(&coroutine, &caller);
    }
}

EXPORT long begin_coroutine(long x)
{
    getcontext(&coroutine);
    coroutine.uc_stack.ss_sp = malloc(STACK);
    coroutine.uc_stack.ss_size = STACK;
    makecontext(&coroutine, body, 0);
    swapcontext(&caller, &coroutine);
    return x;
}

EXPORT long resume_coroutine(long x)
{
    swapcontext(&caller, &coroutine);
    return x;
}

#ifdef JUMPS
/* A library that also jumps may switch stacks so: then no ucontext_t need describe a suspended one. */
EXPORT long jump(long x)
{
    jmp_buf here;
    if (setjmp(here) == 0) {
        longjmp(here, 1);
    }
    return x;
}
#endif
