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

/* Take all the memory that may be locked; give it back. */
EXPORT long fill_memory(long on)
{
    static struct {
        void *at;
        size_t size;
    } taken[4096];
    static long count;
    size_t size = 1 << 20;
    while (on && count < 4096 && size >= 4096) {
        void *more = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (more == MAP_FAILED) {
            size /= 2;
        } else {
            taken[count].at = more;
            taken[count++].size = size;
        }
    }
    while (!on && count > 0) {
        count--;
        munmap(taken[count].at, taken[count].size);
    }
    return count;
}

/* No page that was not executable may become so, and no executable page writable. */
EXPORT long harden(long unused UNUSED)
{
    return prctl(65 /* PR_SET_MDWE */, 1 /* PR_MDWE_REFUSE_EXEC_GAIN */, 0, 0, 0);
}

/* A filter that allows everything: whoever looks sees a process under seccomp. */
EXPORT long confine(long unused UNUSED)
{
    struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {1, &allow};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}
