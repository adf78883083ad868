/* The agent as a part of an ordinary program, whose system calls can be made to fail. */
#ifndef HOST_H
#define HOST_H
#define _GNU_SOURCE /* not sys/syscall.h: the agent has its own names for those */

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int64_t host_system6(uint64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f);

#define system6 host_system6
#define memset agent_memset /* the agent's own; the program has another */
#include "agent.c"
#undef memset

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                            \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

#if defined(__SANITIZE_THREAD__)
void __tsan_acquire(void *);
void __tsan_release(void *);
#else
#define __tsan_acquire(x) (void)(x)
#define __tsan_release(x) (void)(x)
#endif

/* A system call that fails, and how; calls of it that still succeed before. */
static atomic_ulong failing;
static atomic_long failure, after;
/* The kernel orders what comes before a signal is sent and after it is received; ThreadSanitizer cannot see that. */
static char order;

static int64_t host_system6(uint64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
    if (number == atomic_load(&failing) && atomic_fetch_sub(&after, 1) <= 0) {
        return atomic_load(&failure);
    }
    if (number == SYS_rt_tgsigqueueinfo) {
        __tsan_release(&order);
    }
    int64_t result;
    register uint64_t r10 __asm__("r10") = d;
    register uint64_t r8 __asm__("r8") = e;
    register uint64_t r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static inline void fails(uint64_t number, int64_t how, long successes)
{
    atomic_store(&failure, how);
    atomic_store(&after, successes);
    atomic_store(&failing, number);
}

void hu_handler(void);
void hu_landing(void);
void hu_restorer(void);
void host_handle(int signal, const struct siginfo_kernel *info, struct ucontext_kernel *context);

/* As in entry.S. */
__asm__(
    ".globl hu_landing\nhu_landing: hlt\n.globl hu_handler\nhu_handler: jmp host_handle\n.globl hu_restorer\nhu_restorer: mov $15, %eax\nsyscall\nhlt\n");

__attribute__((used)) void host_handle(int signal, const struct siginfo_kernel *info, struct ucontext_kernel *context)
{
    __tsan_acquire(&order);
    hu_handle(signal, info, context);
}

static inline uint64_t nanoseconds(void)
{
    struct timespec moment;
    clock_gettime(CLOCK_MONOTONIC, &moment);
    return (uint64_t)moment.tv_sec * 1000000000 + (uint64_t)moment.tv_nsec;
}

/* Time-stamp ticks in so many milliseconds. */
static inline uint64_t ticks(uint64_t milliseconds)
{
    static uint64_t rate;
    if (!rate) {
        uint64_t begin = now(), from = nanoseconds();
        while (nanoseconds() - from < 5000000) {
        }
        rate = (now() - begin) / 5;
    }
    return rate * milliseconds;
}

#endif
