/* The tracer: the few ptrace sequences that must be short, as a library for the Python side (target/tracer.py).
 *
 * Every sequence leaves the tracee autonomous at every moment: if the tracer is killed between any two instructions
 * here, the kernel detaches and the thread either goes on with its system call or runs through the agent and then goes
 * on with it.  But the kernel can end a system call with EINTR that is never restarted, such as epoll_wait, or forget a
 * signal that was reported and not yet handed back.  So each sequence runs in a process of its own, the helper, which a
 * SIGKILL to the tool does not reach: it ends what was begun, within its time limit, and then itself.  It shares the
 * tool's memory, so that nothing has to be copied there and back, and the tool's lock on the target, so that nobody
 * else comes in between.
 *
 * ptrace binds a tracee to its tracer.  When the helper ends, the kernel lets go whatever did not stop in time, and a
 * pending interrupt with it. */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "abi.h"

#define EXPORT __attribute__((visibility("default")))
#define RED_ZONE 128
#define RSEQ_CS_AT 8      /* of the field rseq_cs in struct rseq */
#define MOST_XSTATE 16384 /* bytes; AVX-512 needs 2,696 */
#define LATE_US 3000000   /* how long threads that are late are waited for, in microseconds */
#define SEIZE_US 50000    /* how long one thread may take to be seized */

enum visit_status {
    VISIT_PENDING = 0,
    VISIT_DONE = 1,      /* redirected (or, for a remote call, completed) */
    VISIT_GONE = 2,      /* no such thread, or it ended meanwhile */
    VISIT_DENIED = 3,    /* the kernel forbids it: no permission, or traced by another program */
    VISIT_LATE = 4,      /* it did not stop within the time limit */
    VISIT_HALTED = 5,    /* the process is stopped by a signal (SIGSTOP) */
    VISIT_SIGNALLED = 6, /* it has a signal to handle first: try again */
    VISIT_FAILED = 7,    /* unexpected; detail holds errno */
    VISIT_AWAKE = 8,     /* it was to be asleep in certain system calls, and is not */
};

struct visit {
    uint64_t tid;
    uint64_t lead, thread; /* for struct hu_frame */
    uint64_t status, detail;
    uint64_t sp, pc, number; /* where it stood; the system call it was in, or -1 */
};

struct remote_call {
    uint64_t number, args[6], result;
};

struct job {
    pid_t pid;
    struct visit *visits;
    uint64_t count, entry, code;
    int memory; /* /proc/PID/mem */
    int64_t timeout_us;
    const uint64_t *still; /* NULL, or HU_CALL_WORDS: a bit for each system call out of which a thread may be sent */
    struct remote_call *calls;
    uint64_t call_count, syscall_at, sigreturn_at;
    uint8_t *vectors; /* MOST_XSTATE bytes to work with */
    char name[32];    /* unless empty: the first argument of the first call points at it */
};

static int64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

EXPORT uint64_t hu_tsc(void)
{
    uint32_t low, high;
    __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

/* Bytes that XSAVE needs for every state the kernel has enabled (CPUID leaf 0xd, ebx). */
EXPORT uint64_t hu_xsave_size(void)
{
    uint32_t a = 0xd, b, c = 0, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return b;
}

/* Through a descriptor, which stays with the program that it was opened for: a write by thread id could reach the
 * program that the process has become meanwhile. */
static int write_target(int memory, uint64_t address, const void *bytes, size_t size)
{
    ssize_t done = pwrite(memory, bytes, size, (off_t)address);
    if (done == 0) {
        errno = ESRCH; /* that program is gone */
    }
    return done == (ssize_t)size ? 0 : -1;
}

/* Make the registers of a thread that was stopped within a system call describe the call's beginning, as the kernel
 * itself does when no handler runs (arch_do_signal_or_restart). Returns the kernel's restart code, or 0 outside of a
 * call. */
static uint64_t rewind_call(struct user_regs_struct *regs, uint64_t *number)
{
    int64_t result = (int64_t)regs->rax;
    *number = (uint64_t)-1;
    if ((int64_t)regs->orig_rax < 0) {
        return 0;
    }
    *number = regs->orig_rax;
    switch (-result) {
    case 512: /* ERESTARTSYS */
    case 513: /* ERESTARTNOINTR */
    case 514: /* ERESTARTNOHAND */
        regs->rax = regs->orig_rax;
        break;
    case 516: /* ERESTART_RESTARTBLOCK: the kernel holds what is left of the time */
        regs->rax = SYS_restart_syscall;
        break;
    case EINTR: /* epoll_wait and its like are never restarted by the kernel, not even after a stop */
        regs->rax = regs->orig_rax;
        break;
    default:
        return 0; /* the call was over already */
    }
    regs->rip -= 2;
    return (uint64_t)-result;
}

/* The signals that no handler is run for and that end nothing.  While one of its threads is traced, the kernel queues
 * those too. */
static uint64_t without_effect(pid_t tid)
{
    const uint64_t by_default =
        1ull << (SIGCHLD - 1) | 1ull << (SIGCONT - 1) | 1ull << (SIGURG - 1) | 1ull << (SIGWINCH - 1);
    char path[32], text[4096];
    snprintf(path, sizeof path, "/proc/%d/status", (int)tid);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = file < 0 ? -1 : read(file, text, sizeof text - 1);
    if (file >= 0) {
        close(file);
    }
    text[size < 0 ? 0 : size] = '\0';
    const char *ignored = strstr(text, "SigIgn:"), *caught = strstr(text, "SigCgt:");
    if (!ignored || !caught) {
        return 0;
    }
    return strtoull(ignored + 7, NULL, 16) | (by_default & ~strtoull(caught + 7, NULL, 16));
}

/* Does the thread have a signal to handle that this mask lets through? */
static int has_signal(pid_t tid, uint64_t mask)
{
    int looked = 0;
    for (unsigned shared = 0; shared < 2; shared++) {
        for (uint64_t offset = 0; offset < 64; offset++) {
            struct __ptrace_peeksiginfo_args args = {offset, shared, 1};
            siginfo_t info;
            if (ptrace(PTRACE_PEEKSIGINFO, tid, &args, &info) != 1) {
                break;
            }
            if (info.si_signo < 1 || info.si_signo > 64) {
                continue;
            }
            if (!looked++) {
                mask |= without_effect(tid);
            }
            if (!(mask >> (info.si_signo - 1) & 1)) {
                return 1;
            }
        }
    }
    return 0;
}

/* A thread that is interrupted within a restartable sequence (rseq) must start it anew.  The kernel sees to that when
 * the thread goes on, but only where it then is; so it is done here, before its registers say otherwise. */
static void start_sequence_anew(int memory, pid_t tid, struct user_regs_struct *regs)
{
    struct __ptrace_rseq_configuration area;
    struct {
        uint32_t version, flags;
        uint64_t start, size, abort;
    } sequence;
    uint64_t at;
    if (ptrace(PTRACE_GET_RSEQ_CONFIGURATION, tid, sizeof area, &area) != sizeof area || !area.rseq_abi_pointer ||
        pread(memory, &at, sizeof at, (off_t)(area.rseq_abi_pointer + RSEQ_CS_AT)) != sizeof at || !at ||
        pread(memory, &sequence, sizeof sequence, (off_t)at) != sizeof sequence) {
        return;
    }
    if (regs->rip - sequence.start < sequence.size) {
        regs->rip = sequence.abort;
    }
}

static void fail(struct visit *visit)
{
    visit->detail = (uint64_t)errno;
    visit->status = errno == ESRCH || errno == ECHILD ? VISIT_GONE : errno == EPERM ? VISIT_DENIED : VISIT_FAILED;
}

/* Is this still the program that the tool looked at?  A thread id outlives an exec, what it runs does not. */
static int is_there(pid_t tid, uint64_t address, uint64_t code, uint64_t mask)
{
    uint64_t found = 0;
    struct iovec to = {&found, sizeof found}, from = {(void *)address, sizeof found};
    return process_vm_readv(tid, &to, 1, &from, 1, 0) == sizeof found && !((found ^ code) & mask);
}

/* Was the thread asleep in one of these system calls?  What the tool saw before may be over by now.  Functions of the
 * program must not be called where it may be in the midst of the C library's allocator, nor while it waits for a lock,
 * as that allocator does.  glibc's locks wait for their word to change from 2 (nptl/lowlevellock.c); its condition
 * variables, semaphores and joins use FUTEX_WAIT_BITSET. */
static int stood_still(const struct user_regs_struct *regs, uint64_t error, uint64_t number, const uint64_t *calls)
{
    if (!error || number >= 64 * HU_CALL_WORDS || !(calls[number / 64] >> number % 64 & 1)) {
        return 0;
    }
    uint64_t command = regs->rsi & FUTEX_CMD_MASK;
    int locks = command == FUTEX_LOCK_PI || command == FUTEX_LOCK_PI2 || (command == FUTEX_WAIT && regs->rdx == 2);
    return number != SYS_futex || !locks;
}

/* The thread is in ptrace-stop: send it through the agent, and let go of it. */
static void redirect(struct visit *visit, const struct job *job)
{
    pid_t tid = (pid_t)visit->tid;
    struct user_regs_struct before, regs;
    uint64_t mask, all = ~0ull;
    if (ptrace(PTRACE_GETREGS, tid, 0, &before) || ptrace(PTRACE_GETSIGMASK, tid, 8, &mask)) {
        fail(visit);
        return;
    }
    regs = before;
    struct hu_frame frame = {.lead = visit->lead, .thread = visit->thread, .mask = mask};
    frame.error = rewind_call(&regs, &visit->number);
    if (job->still && !stood_still(&before, frame.error, visit->number, job->still)) {
        visit->status = VISIT_AWAKE;
        return;
    }
    if (visit->number == (uint64_t)-1) {
        start_sequence_anew(job->memory, tid, &regs);
    }
    frame.resume_after = before.rip;
    frame.r15 = regs.r15, frame.r14 = regs.r14, frame.r13 = regs.r13, frame.r12 = regs.r12;
    frame.rbp = regs.rbp, frame.rbx = regs.rbx, frame.r11 = regs.r11, frame.r10 = regs.r10;
    frame.r9 = regs.r9, frame.r8 = regs.r8, frame.rax = regs.rax, frame.rcx = regs.rcx;
    frame.rdx = regs.rdx, frame.rsi = regs.rsi, frame.rdi = regs.rdi;
    frame.rflags = regs.eflags, frame.rip = regs.rip;
    visit->sp = regs.rsp;
    visit->pc = regs.rip;
    uint64_t at = regs.rsp - RED_ZONE - sizeof frame;
    regs.rsp = at;
    regs.rip = job->entry;
    regs.orig_rax = (uint64_t)-1; /* the kernel must not restart anything on its own now */
    if (write_target(job->memory, at, &frame, sizeof frame)) {
        fail(visit);
        return;
    }
    if (!is_there(tid, job->entry, job->code, ~0ull)) {
        visit->status = VISIT_GONE;
        return;
    }
    /* From SETREGS on the thread is on its way; the agent itself blocks signals and puts the mask of the frame back, so
     * blocking them already here may be lost with the tool, but never stays. */
    if (ptrace(PTRACE_SETREGS, tid, 0, &regs) || ptrace(PTRACE_SETSIGMASK, tid, 8, &all)) {
        fail(visit);
        return;
    }
    if (has_signal(tid, mask)) {
        ptrace(PTRACE_SETSIGMASK, tid, 8, &mask);
        ptrace(PTRACE_SETREGS, tid, 0, &before);
        visit->status = VISIT_SIGNALLED;
        return;
    }
    visit->status = VISIT_DONE;
}

/* Look once at a tracee that was told to stop.  Returns 1 when it stands in ptrace-stop for us. */
static int arrived(struct visit *visit)
{
    int status;
    pid_t tid = (pid_t)visit->tid, got = waitpid(tid, &status, __WALL | WNOHANG);
    if (got == 0) {
        return 0;
    }
    if (got < 0) {
        fail(visit);
    } else if (!WIFSTOPPED(status)) {
        visit->status = VISIT_GONE;
    } else if (status >> 16 != PTRACE_EVENT_STOP) {
        ptrace(PTRACE_CONT, tid, 0, status >> 16 ? 0 : WSTOPSIG(status)); /* a signal of its own: hand it back */
    } else if (WSTOPSIG(status) != SIGTRAP) {
        visit->status = VISIT_HALTED;
        ptrace(PTRACE_DETACH, tid, 0, 0);
    } else {
        return 1;
    }
    return 0;
}

static void pause_us(long us)
{
    struct timespec t = {0, us * 1000};
    nanosleep(&t, NULL);
}

static __thread sigjmp_buf *volatile way_out __attribute__((tls_model("initial-exec")));

static void get_out(int signal)
{
    (void)signal;
    if (way_out) {
        siglongjmp(*way_out, 1);
    }
}

/* PTRACE_SEIZE waits, without a limit, for a thread of the process that is executing another program; that thread waits
 * for all others to end; and those of them that we hold end only when we look at them.  So seizing has a limit.
 * Returns 0 when that was reached. */
static int seize(struct visit *visit)
{
    sigjmp_buf here;
    sigset_t alarm;
    struct itimerval limit = {{0, SEIZE_US}, {0, SEIZE_US}}, none = {{0, 0}, {0, 0}};
    visit->status = VISIT_PENDING;
    if (sigsetjmp(here, 1)) {
        way_out = NULL;
        setitimer(ITIMER_REAL, &none, NULL);
        visit->status = VISIT_LATE;
        return 0;
    }
    way_out = &here;
    sigemptyset(&alarm);
    sigaddset(&alarm, SIGALRM);
    setitimer(ITIMER_REAL, &limit, NULL);
    sigprocmask(SIG_UNBLOCK, &alarm, NULL);
    long result = ptrace(PTRACE_SEIZE, (pid_t)visit->tid, 0, 0);
    int error = errno;
    sigprocmask(SIG_BLOCK, &alarm, NULL);
    way_out = NULL;
    setitimer(ITIMER_REAL, &none, NULL);
    errno = error;
    if (result || ptrace(PTRACE_INTERRUPT, (pid_t)visit->tid, 0, 0)) {
        fail(visit);
    }
    return 1;
}

/* Let a stopped thread go on as if nothing had been.  The kernel does that on its own, except for system calls that it
 * never restarts, not even after a stop: those are made again. */
static void let_go(pid_t tid)
{
    struct user_regs_struct regs;
    uint64_t number;
    if (!ptrace(PTRACE_GETREGS, tid, 0, &regs) && rewind_call(&regs, &number) == EINTR) {
        regs.orig_rax = (uint64_t)-1;
        ptrace(PTRACE_SETREGS, tid, 0, &regs);
    }
    ptrace(PTRACE_DETACH, tid, 0, 0);
}

/* Threads that were told to stop and have not yet, on a machine with too much to do: the order cannot be taken back, so
 * wait for them to come, and let them go. */
static void wait_for_the_late(struct job *job)
{
    int64_t limit = now_us() + LATE_US;
    for (uint64_t left = 1; left && now_us() < limit;) {
        left = 0;
        for (uint64_t i = 0; i < job->count; i++) {
            struct visit *visit = &job->visits[i];
            if (visit->status == VISIT_PENDING && arrived(visit)) {
                let_go((pid_t)visit->tid);
                visit->status = VISIT_LATE;
            }
            left += visit->status == VISIT_PENDING;
        }
        if (left) {
            pause_us(100);
        }
    }
    for (uint64_t i = 0; i < job->count; i++) {
        if (job->visits[i].status == VISIT_PENDING) {
            job->visits[i].status = VISIT_LATE;
        }
    }
}

/* A session of its own: a signal to the tool's process group is not meant for the helper. */
static void become_helper(void)
{
    struct sigaction action = {.sa_handler = get_out};
    sigaction(SIGALRM, &action, NULL);
    setsid();
    prctl(PR_SET_TIMERSLACK, 1000);
}

static int redirect_all(void *argument)
{
    struct job *job = argument;
    int64_t limit = now_us() + job->timeout_us;
    uint64_t left = 0;
    int going = 1;
    become_helper();
    for (uint64_t i = 0; i < job->count; i++) {
        if (going) {
            going = seize(&job->visits[i]);
        } else {
            job->visits[i].status = VISIT_LATE;
        }
        left += job->visits[i].status == VISIT_PENDING;
    }
    while (left) {
        uint64_t still = 0, progress = 0;
        for (uint64_t i = 0; i < job->count; i++) {
            struct visit *visit = &job->visits[i];
            if (visit->status != VISIT_PENDING) {
                continue;
            }
            if (arrived(visit)) {
                redirect(visit, job);
                if (visit->status == VISIT_AWAKE) {
                    let_go((pid_t)visit->tid);
                } else {
                    ptrace(PTRACE_DETACH, (pid_t)visit->tid, 0, 0);
                }
                progress++;
            }
            still += visit->status == VISIT_PENDING;
        }
        left = still;
        if (!left) {
            break;
        }
        if (now_us() > limit) {
            wait_for_the_late(job);
            break;
        }
        if (!progress) {
            pause_us(20);
        }
    }
    return 0;
}

/* What rt_sigreturn finds on the stack (arch/x86/include/uapi/asm/{ucontext,sigcontext}.h). */
struct sigreturn_frame {
    uint64_t return_address; /* taken off by the "ret" behind the system call */
    uint64_t uc_flags, uc_link, uc_stack[3];
    uint64_t r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags;
    uint16_t cs, gs, fs, ss;
    uint64_t err, trapno, oldmask, cr2, fpstate, reserved[8];
    uint64_t sigmask;
};

/* What rt_sigreturn wants to know of an XSAVE image (struct _fpx_sw_bytes), in the bytes that the image leaves free. */
struct software_bytes {
    uint32_t magic, whole_size;
    uint64_t features;
    uint32_t size, padding[7];
};
#define XSTATE_MAGIC 0x46505853u
#define XSTATE_END_MAGIC 0x46505845u
#define SOFTWARE_AT 464                 /* of the image */
#define TILES (1ull << 17 | 1ull << 18) /* of AMX; a program has them only if it asked, and a frame only then */

/* All vector registers of a stopped thread, as rt_sigreturn restores them; a thread that was interrupted anywhere may
 * need every one.  Returns the image's size with its end mark, 0 on failure (errno). */
static size_t vector_state(pid_t tid, uint8_t *image)
{
    struct iovec room = {image, MOST_XSTATE - 8};
    if (ptrace(PTRACE_GETREGSET, tid, NT_X86_XSTATE, &room)) {
        return 0;
    }
    struct software_bytes told = {.magic = XSTATE_MAGIC};
    memcpy(&told.features, image + SOFTWARE_AT, 8); /* the kernel puts there what it has enabled */
    told.features &= ~TILES;
    told.size = 512 + 64;
    for (uint32_t number = 2; number < 63; number++) {
        if (told.features >> number & 1) {
            uint32_t size, offset, c, d;
            __asm__("cpuid" : "=a"(size), "=b"(offset), "=c"(c), "=d"(d) : "a"(0xd), "c"(number));
            told.size = offset + size > told.size ? offset + size : told.size;
        }
    }
    if (told.size > room.iov_len) {
        errno = EOVERFLOW;
        return 0;
    }
    told.whole_size = told.size + 4;
    const uint32_t end = XSTATE_END_MAGIC;
    memcpy(image + SOFTWARE_AT, &told, sizeof told);
    memcpy(image + told.size, &end, sizeof end);
    return told.whole_size;
}

static int step_to_syscall_stop(pid_t tid, int64_t limit)
{
    int status;
    if (ptrace(PTRACE_SYSCALL, tid, 0, 0)) {
        return -1;
    }
    for (;;) {
        pid_t got = waitpid(tid, &status, __WALL | WNOHANG);
        if (got == tid) {
            if (!WIFSTOPPED(status)) {
                errno = ESRCH;
                return -1;
            }
            if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
                return 0;
            }
            /* signals wait: they are blocked; anything else is not for us */
            if (ptrace(PTRACE_SYSCALL, tid, 0, 0)) {
                return -1;
            }
        } else if (got < 0) {
            return -1;
        } else if (now_us() > limit) {
            errno = ETIMEDOUT;
            return -1;
        } else {
            pause_us(10);
        }
    }
}

/* The thread is in ptrace-stop: let it make our system calls.  Its stack holds, for the case that the tool is killed on
 * the way, a signal frame: "syscall; ret" then leads into libc's own rt_sigreturn, and that back to what it was doing.
 */
static void make_calls(struct job *job)
{
    struct visit *visit = job->visits;
    int64_t limit = now_us() + LATE_US; /* it only has to get a processor; half of the calls made would be worse */
    pid_t tid = (pid_t)visit->tid;
    struct user_regs_struct before, regs, undo;
    uint8_t *fp = job->vectors;
    size_t fp_size;
    uint64_t mask, all = ~0ull;
    if (ptrace(PTRACE_GETREGS, tid, 0, &before) || !(fp_size = vector_state(tid, fp)) ||
        ptrace(PTRACE_GETSIGMASK, tid, 8, &mask) || ptrace(PTRACE_SETOPTIONS, tid, 0, PTRACE_O_TRACESYSGOOD)) {
        fail(visit);
        return;
    }
    if (!is_there(tid, job->syscall_at, 0xc3050f, 0xffffff)) {
        visit->status = VISIT_GONE;
        return;
    }
    if (has_signal(tid, mask)) {
        visit->status = VISIT_SIGNALLED;
        return;
    }
    undo = before;
    uint64_t error = rewind_call(&undo, &visit->number);
    if (error == 0 && visit->number != (uint64_t)-1) {
        visit->status = VISIT_SIGNALLED; /* its system call has just ended: let it go, try again */
        return;
    }
    if (visit->number == (uint64_t)-1) {
        start_sequence_anew(job->memory, tid, &undo);
    }
    visit->sp = before.rsp;
    visit->pc = before.rip;
    struct {
        struct sigreturn_frame frame;
        char name[32];
    } rescue = {0};
    struct sigreturn_frame *frame = &rescue.frame;
    uint64_t fp_at = (before.rsp - RED_ZONE - fp_size) & ~63ull;
    uint64_t at = ((fp_at - sizeof rescue) & ~63ull) - 8;
    if (undo.rax == SYS_restart_syscall && error) {
        frame->rax = visit->number; /* sigreturn forgets the time that was left: begin again */
    } else {
        frame->rax = undo.rax;
    }
    frame->return_address = job->sigreturn_at;
    frame->r8 = undo.r8, frame->r9 = undo.r9, frame->r10 = undo.r10, frame->r11 = undo.r11;
    frame->r12 = undo.r12, frame->r13 = undo.r13, frame->r14 = undo.r14, frame->r15 = undo.r15;
    frame->rdi = undo.rdi, frame->rsi = undo.rsi, frame->rbp = undo.rbp, frame->rbx = undo.rbx;
    frame->rdx = undo.rdx, frame->rcx = undo.rcx, frame->rsp = undo.rsp, frame->rip = undo.rip;
    frame->eflags = undo.eflags, frame->cs = (uint16_t)undo.cs, frame->ss = (uint16_t)undo.ss;
    frame->uc_flags = 7; /* UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS */
    frame->fpstate = fp_at;
    frame->sigmask = mask;
    memcpy(rescue.name, job->name, sizeof rescue.name);
    if (write_target(job->memory, fp_at, fp, fp_size) || write_target(job->memory, at, &rescue, sizeof rescue)) {
        fail(visit);
        return;
    }
    for (uint64_t i = 0; i < job->call_count; i++) {
        struct remote_call *call = &job->calls[i];
        regs = undo;
        regs.orig_rax = (uint64_t)-1;
        regs.rip = job->syscall_at;
        regs.rsp = at;
        regs.rax = call->number;
        regs.rdi = call->args[0], regs.rsi = call->args[1], regs.rdx = call->args[2];
        regs.r10 = call->args[3], regs.r8 = call->args[4], regs.r9 = call->args[5];
        if (i == 0 && job->name[0]) {
            regs.rdi = at + offsetof(__typeof__(rescue), name);
        }
        if (ptrace(PTRACE_SETREGS, tid, 0, &regs)) {
            fail(visit);
            return;
        }
        ptrace(PTRACE_SETSIGMASK, tid, 8, &all);
        if (step_to_syscall_stop(tid, limit) || step_to_syscall_stop(tid, limit) ||
            ptrace(PTRACE_GETREGS, tid, 0, &regs)) {
            fail(visit);
            return; /* autonomous: it finds its way back through the rescue frame */
        }
        call->result = regs.rax;
        if ((int64_t)call->result < 0 && (int64_t)call->result > -4096) {
            break;
        }
    }
    undo.orig_rax = (uint64_t)-1;
    /* The mask first: without the registers, the rescue frame still leads back. */
    if (ptrace(PTRACE_SETSIGMASK, tid, 8, &mask) || ptrace(PTRACE_SETREGS, tid, 0, &undo)) {
        fail(visit);
        return;
    }
    visit->status = VISIT_DONE;
}

static int call_in(void *argument)
{
    struct job *job = argument;
    int64_t limit = now_us() + job->timeout_us;
    struct visit *visit = job->visits;
    become_helper();
    seize(visit);
    while (visit->status == VISIT_PENDING) {
        if (arrived(visit)) {
            make_calls(job);
            ptrace(PTRACE_DETACH, (pid_t)visit->tid, 0, 0);
        } else if (visit->status == VISIT_PENDING && now_us() > limit) {
            wait_for_the_late(job);
        } else {
            pause_us(20);
        }
    }
    return 0;
}

static int in_helper(int (*work)(void *), struct job *job)
{
    const size_t room = 256 << 10;
    sigset_t all, before;
    char *stack = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED) {
        return -errno;
    }
    /* The helper inherits the tool's handlers, which are not for it. */
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, &before);
    /* No exit signal: it is no child that the tool's other parts could meet. */
    int error = 0, status = 0, helper = clone(work, stack + room, CLONE_VM | CLONE_FS | CLONE_FILES, job);
    if (helper < 0) {
        error = errno;
    } else if (waitpid(helper, &status, __WALL) < 0) {
        error = errno;
    } else if (!WIFEXITED(status)) {
        error = EINTR; /* somebody killed it: what it had begun is as the kernel left it */
    }
    sigprocmask(SIG_SETMASK, &before, NULL);
    munmap(stack, room);
    return -error;
}

/* Send threads of a process to the agent's entry, whose first eight bytes are "code"; "memory" is /proc/PID/mem, open
 * for writing; "still" is NULL, or the system calls out of which alone they may be sent.  Returns 0, or a negative
 * errno. */
EXPORT int hu_redirect(struct visit *visits, uint64_t count, int memory, uint64_t entry, uint64_t code,
                       int64_t timeout_us, const uint64_t *still)
{
    struct job job = {.visits = visits,
                      .count = count,
                      .memory = memory,
                      .entry = entry,
                      .code = code,
                      .timeout_us = timeout_us,
                      .still = still};
    return in_helper(redirect_all, &job);
}

/* Let one thread make system calls; used once a process, to map the agent.  A name that is not empty is written to the
 * thread's stack, and the first argument of the first call points at it. */
EXPORT int hu_call(struct visit *visit, struct remote_call *calls, uint64_t count, int memory, uint64_t syscall_at,
                   uint64_t sigreturn_at, const char *name, int64_t timeout_us)
{
    uint8_t vectors[MOST_XSTATE];
    struct job job = {.visits = visit,
                      .vectors = vectors,
                      .count = 1,
                      .memory = memory,
                      .timeout_us = timeout_us,
                      .calls = calls,
                      .call_count = count,
                      .syscall_at = syscall_at,
                      .sigreturn_at = sigreturn_at};
    strncpy(job.name, name, sizeof job.name - 1);
    return in_helper(call_in, &job);
}
