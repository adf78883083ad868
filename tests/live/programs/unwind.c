/* Frames of the new code, as the program itself sees them; and how the program may be confined. */

#define _GNU_SOURCE
#include "subject.h"

#include <execinfo.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>

static NOINLINE long count_frames(void)
{
    void *frames[64];
    return backtrace(frames, 64);
}

static NOINLINE long deeper(long x)
{
    long result = x > 0 ? deeper(x - 1) : count_frames();
    __asm__ volatile("" ::: "memory"); /* no tail call */
    return result;
}

/* Every build puts one frame more on the stack. */
EXPORT long depth(long x)
{
    long result = deeper(x + VERSION);
    __asm__ volatile("" ::: "memory");
    return result;
}

EXPORT long version(long unused UNUSED)
{
    return VERSION;
}

EXPORT long lock_memory(long unused UNUSED)
{
    return mlockall(MCL_CURRENT | MCL_FUTURE);
}

/* A filter that allows everything: whoever looks sees a process under seccomp. */
EXPORT long confine(long unused UNUSED)
{
    struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {1, &allow};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}
