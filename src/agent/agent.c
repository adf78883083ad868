/* The agent: what runs inside the target.  It maps, touches, parks, scans, stores and calls, as a list of operations
 * tells it.  It knows no ELF, no symbol and no library: it is a flat blob that depends on nothing but the kernel, so
 * that neither the target's allocator nor its loader takes part, whatever locks its threads hold.
 *
 * Built with -mgeneral-regs-only: vector registers of the threads that come here are never touched. */
#include "abi.h"

#define SYS_rt_sigaction 13
#define SYS_rt_sigprocmask 14
#define SYS_sched_yield 24
#define SYS_getpid 39
#define SYS_fstat 5
#define SYS_read 0
#define SYS_open 2
#define SYS_close 3
#define SYS_rt_sigpending 127
#define SYS_sigaltstack 131
#define SYS_gettid 186
#define SYS_futex 202
#define SYS_sched_setaffinity 203
#define SYS_sched_getaffinity 204
#define SYS_clock_gettime 228
#define SYS_ppoll 271
#define SYS_rt_tgsigqueueinfo 297
#define SYS_futex_waitv 449

#define EINTR_ 4
#define ENOSYS_ 38
#define ERESTARTSYS_ 512
#define ERESTARTNOINTR_ 513

#define SIG_SETMASK_ 2
#define SA_SIGINFO_ 4ul
#define SA_ONSTACK_ 0x08000000ul
#define SA_RESTART_ 0x10000000ul
#define SA_RESTORER_ 0x04000000ul
#define SS_ONSTACK_ 1
#define SIG_DFL_ 0ul
#define SIG_IGN_ 1ul

#define FUTEX_WAKE_PRIVATE 129
#define FUTEX2_32_PRIVATE 130

/* How long a busy thread spins for the others before it lets them have its core.  Two cores may have to run four of
 * them. */
#define SPIN_BEFORE_YIELD 60000ull

/* How often the leader looks whether the busy threads are done. */
#define LOOK_AGAIN_NS 30000ull

/* More than this between a stack pointer and the end of its stack is no stack that can be scanned in a stop. */
#define MOST_STACK (64ull << 20)

struct sigaction_kernel {
    uint64_t handler, flags, restorer, mask;
};

struct timespec_kernel {
    int64_t seconds, nanoseconds;
};

struct stack_kernel {
    uint64_t low;
    int32_t flags, pad;
    uint64_t size;
};

/* The mailbox lives in the writable part of the blob; the tool writes it, the threads read it. */
__attribute__((section(".mailbox"), aligned(64))) struct hu_mailbox hu_mailbox;

extern void hu_handler(void);
extern void hu_landing(void);
extern void hu_restorer(void);

static inline uint64_t now(void)
{
    uint32_t low, high;
    __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high)::"memory");
    return (uint64_t)high << 32 | low;
}

#ifndef system6 /* the agent's own tests put another in its place, which can fail */
static inline int64_t system6(uint64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
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
#endif

#define system0(n) system6(n, 0, 0, 0, 0, 0, 0)
#define system1(n, a) system6(n, (uint64_t)(a), 0, 0, 0, 0, 0)
#define system2(n, a, b) system6(n, (uint64_t)(a), (uint64_t)(b), 0, 0, 0, 0)
#define system3(n, a, b, c) system6(n, (uint64_t)(a), (uint64_t)(b), (uint64_t)(c), 0, 0, 0)
#define system4(n, a, b, c, d) system6(n, (uint64_t)(a), (uint64_t)(b), (uint64_t)(c), (uint64_t)(d), 0, 0)

/* gcc turns copies and clears into calls of these even in free-standing code. */
void *memset(void *to, int byte, unsigned long size)
{
    void *start = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(byte) : "memory");
    return start;
}

static inline uint64_t load(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static inline void store(uint64_t *word, uint64_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

static inline int swap(uint64_t *word, uint64_t from, uint64_t to)
{
    return __atomic_compare_exchange_n(word, &from, to, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

/* Make this core forget instructions that it fetched before another core replaced them.  IRET is a serialising
 * instruction at every privilege level (Intel SDM 3A 9.3, AMD APM 2 7.6.4) and, unlike CPUID, no exit in a virtual
 * machine; with every thread doing so on its way out, membarrier(SYNC_CORE) and its interrupts are not needed. */
static inline void serialize(void)
{
    uint64_t scratch;
    __asm__ volatile(
        "mov %%ss, %k0\n\tpush %q0\n\tlea 8(%%rsp), %q0\n\tpush %q0\n\tpushfq\n\tmov %%cs, %k0\n\tpush %q0\n\t"
        "lea 1f(%%rip), %q0\n\tpush %q0\n\tiretq\n1:"
        : "=&r"(scratch)::"memory", "cc");
}

static void wake(uint64_t *word)
{
    system3(SYS_futex, word, FUTEX_WAKE_PRIVATE, 0x7fffffff);
}

/* Sleep until the low half of *word is no longer value, at most until a moment of CLOCK_MONOTONIC.  Neither call used
 * here keeps state in the kernel's restart block, which still holds what is left of an interrupted nanosleep() or
 * poll(). */
static void sleep_while(uint64_t *word, uint64_t value, uint64_t until_ns)
{
    struct {
        uint64_t value, address;
        uint32_t flags, reserved;
    } waiter = {value & 0xffffffff, (uint64_t)word, FUTEX2_32_PRIVATE, 0};
    struct timespec_kernel limit = {(int64_t)(until_ns / 1000000000), (int64_t)(until_ns % 1000000000)};
    int64_t result = system6(SYS_futex_waitv, (uint64_t)&waiter, 1, 0, (uint64_t)&limit, 1 /* CLOCK_MONOTONIC */, 0);
    if (result == -ENOSYS_) {
        struct timespec_kernel moment = {0, 200000};
        system6(SYS_ppoll, 0, 0, (uint64_t)&moment, 0, 8, 0);
    }
}

static int late(void)
{
    return now() > load(&hu_mailbox.deadline_tsc);
}

/* Give the stop up, unless it is being committed already. */
static void give_up(enum hu_reason reason, uint64_t tid, uint64_t address)
{
    if (swap(&hu_mailbox.state, HU_STOPPING, HU_ABORTED)) {
        hu_mailbox.reason_tid = tid;
        hu_mailbox.reason_address = address;
        store(&hu_mailbox.reason, reason);
        wake(&hu_mailbox.state);
    }
}

/* The last range of a sorted list that begins below the word; NULL if there is none. */
static const struct hu_watch *below(const struct hu_watch *ranges, uint64_t count, uint64_t word)
{
    uint64_t low = 0, high = count;
    while (low < high) {
        uint64_t middle = (low + high) / 2;
        if (ranges[middle].low < word) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low ? &ranges[low - 1] : 0;
}

/* "loop": the one that the thread will be led out of, whose code may be on its stack; 0 for none. */
static int watched(uint64_t word, uint64_t loop)
{
    if (word <= hu_mailbox.watch_low || word >= hu_mailbox.watch_high) {
        return 0;
    }
    const struct hu_watch *range = below((const struct hu_watch *)hu_mailbox.watches, hu_mailbox.watch_count, word);
    return range && word < range->high && !(range->loop && range->loop == loop);
}

static uint64_t thread_pointer(void)
{
    uint64_t self;
    __asm__("mov %%fs:0, %0" : "=r"(self));
    return self;
}

static int excused(uint64_t address)
{
    const uint64_t *excuses = (const uint64_t *)hu_mailbox.excuses;
    for (uint64_t i = 0; i < hu_mailbox.excuse_count; i++) {
        if (excuses[i] == address) {
            return 1;
        }
    }
    return 0;
}

/* Every aligned word of [low, high) may be a return address.  Taking too many for one costs a retry; an unwinder that
 * takes too few would cost the process.  The first byte of a range is no hit: a word that equals it is a pointer to the
 * function, and no call returns there.  Returns 0 if the stop may go on. */
static int returns_into_watched(const struct hu_thread *thread, uint64_t from, uint64_t to)
{
    const uint64_t low = hu_mailbox.watch_low, span = hu_mailbox.watch_high - low;
    if (to - from > MOST_STACK) {
        give_up(HU_NO_STACK, thread->tid, from);
        return 1;
    }
    for (uint64_t at = (from + 7) & ~7ull; at + 8 <= to; at += 8) {
        uint64_t word = *(const uint64_t *)at;
        if (word - low < span && watched(word, thread->loop) && !excused(at)) {
            give_up(HU_ACTIVE, thread->tid, word);
            return 1;
        }
    }
    return 0;
}

static const struct hu_watch *stack_of(uint64_t address)
{
    const struct hu_watch *stack = below((const struct hu_watch *)hu_mailbox.stacks, hu_mailbox.stack_count, address);
    return stack && address <= stack->high ? stack : 0;
}

/* Mappings that touch are one to the kernel; what lies above a thread's control block is none of its stack. */
static uint64_t top_of(const struct hu_watch *stack, uint64_t from, uint64_t tcb)
{
    return tcb > from && tcb < stack->high ? tcb : stack->high;
}

/* A thread's stack is live from its stack pointer up (a call lowers the pointer, so nothing is below).  One that does
 * not stand on its own stack (a handler on an alternate signal stack, a coroutine) left frames there, at a depth that
 * nothing here tells: then all of it is looked at, the dead part too. */
static int blocked(const struct hu_thread *thread, int alternate)
{
    if (thread->live && thread->sp > thread->live) {
        give_up(HU_ELSEWHERE, thread->tid, thread->live);
        return 1;
    }
    if (hu_mailbox.watch_count == 0) {
        return 0;
    }
    if (watched(thread->pc, thread->loop)) {
        give_up(HU_ACTIVE, thread->tid, thread->pc);
        return 1;
    }
    const struct hu_watch *stack = stack_of(thread->sp);
    if (!stack) {
        give_up(HU_NO_STACK, thread->tid, thread->sp);
        return 1;
    }
    if (returns_into_watched(thread, thread->sp, top_of(stack, thread->sp, thread->tcb))) {
        return 1;
    }
    const struct hu_watch *own = stack_of(thread->tcb), *first = stack_of(hu_mailbox.main_stack);
    if (!alternate && (stack == own || stack == first)) {
        return 0;
    }
    return (own && returns_into_watched(thread, own->low, top_of(own, own->low, thread->tcb))) ||
           (first && first != own && returns_into_watched(thread, first->low, first->high));
}

/* st_nlink of /proc/self/task is 2 + the number of threads: the one way to count them in a single call. */
static int strangers(void)
{
    uint64_t stat[18];
    if (system2(SYS_fstat, hu_mailbox.task_fd, stat) != 0) {
        return 1;
    }
    return stat[2] != hu_mailbox.expected_threads + 2;
}

/* Call a function of the target with its vector registers kept: the thread may stand in a system call that was written
 * in line, around which a compiler keeps them live. */
__attribute__((target("xsave"))) static uint64_t call(const struct hu_op *op)
{
    uint8_t area[hu_mailbox.xsave_size + 64] __attribute__((aligned(64)));
    uint8_t *save = (uint8_t *)(((uint64_t)area + 63) & ~63ull);
    memset(save, 0, hu_mailbox.xsave_size > 576 ? 576 : hu_mailbox.xsave_size);
    __builtin_ia32_xsave64(save, -1);
    uint64_t (*function)(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t) = (void *)op->number;
    uint64_t result = function(op->args[0], op->args[1], op->args[2], op->args[3], op->args[4], op->args[5]);
    __builtin_ia32_xrstor64(save, -1);
    return result;
}

/* Functions of the new build that bring old state into its new form.  They write only what no running code uses yet, so
 * that one which fails has changed nothing. */
static int migrated(void)
{
    struct hu_op *hooks = (struct hu_op *)hu_mailbox.hooks;
    for (uint64_t i = 0; i < hu_mailbox.hook_count; i++) {
        hooks[i].result = call(&hooks[i]);
        if ((uint32_t)hooks[i].result != 0) {
            hu_mailbox.reason_tid = 0;
            hu_mailbox.reason_address = i;
            store(&hu_mailbox.reason, HU_HOOK);
            store(&hu_mailbox.state, HU_ABORTED);
            return 0;
        }
    }
    return 1;
}

/* All threads are parked: replace.  Nothing here but a hook can fail, block or fault: the pages were touched for
 * writing before. */
static void commit(void)
{
    const struct hu_edit *edits = (const struct hu_edit *)hu_mailbox.edits;
    uint64_t count = hu_mailbox.edit_count, data = hu_mailbox.sync_count, i = 0;
    if (!swap(&hu_mailbox.state, HU_STOPPING, HU_COMMITTING)) {
        return;
    }
    hu_mailbox.stamps[HU_T_STOPPED] = now();
    if (!migrated()) {
        return;
    }
    for (; i < data; i++) {
        *(volatile uint64_t *)edits[i].address = edits[i].new;
    }
    hu_mailbox.stamps[HU_T_SYNCED] = now();
    for (; i < count; i++) {
        *(volatile uint64_t *)edits[i].address = edits[i].new;
    }
    hu_mailbox.stamps[HU_T_REPLACED] = now();
    store(&hu_mailbox.state, HU_COMMITTED);
}

static void decide(void)
{
    if (strangers()) {
        give_up(HU_STRANGER, 0, 0);
    } else {
        commit();
    }
}

static int undecided(void)
{
    uint64_t state = load(&hu_mailbox.state);
    return state == HU_STOPPING || state == HU_COMMITTING;
}

/* Every attempt has its own table of threads: a thread that comes late, for an attempt that was given up, is known by
 * that. */
static int mine(const struct hu_thread *thread)
{
    uint64_t offset = (uint64_t)thread - hu_mailbox.threads;
    return offset < hu_mailbox.thread_count * sizeof *thread;
}

static int current(const struct hu_thread *thread)
{
    return mine(thread) && load(&hu_mailbox.state) == HU_STOPPING;
}

static void enter(void)
{
    __atomic_add_fetch(&hu_mailbox.inside, 1, __ATOMIC_ACQ_REL);
}

static void leave(void)
{
    __atomic_sub_fetch(&hu_mailbox.inside, 1, __ATOMIC_ACQ_REL);
}

/* A thread that is redirected stays on the stack that it was on. */
static uint64_t arrival(void)
{
    struct stack_kernel stack = {0, 0, 0, 0};
    system2(SYS_sigaltstack, 0, &stack);
    return stack.flags & SS_ONSTACK_ ? HU_ON_ALTERNATE : HU_ARRIVED;
}

/* A sleeper, sent here by the tool, waits for the end of the stop.  One that comes when the stop is over touches
 * nothing: the tables may be gone. */
static void park(struct hu_frame *frame)
{
    struct hu_thread *thread = (struct hu_thread *)frame->thread;
    if (!current(thread)) {
        return;
    }
    thread->parked = now();
    thread->sp = (uint64_t)(frame + 1) + 128;
    thread->pc = frame->rip;
    thread->tcb = thread_pointer();
    store(&thread->arrived, arrival());
    uint64_t in = __atomic_add_fetch(&hu_mailbox.sleepers_in, 1, __ATOMIC_ACQ_REL);
    if (in == load(&hu_mailbox.sleepers)) {
        wake(&hu_mailbox.sleepers_in);
    }
    while (mine(thread)) {
        uint64_t state = load(&hu_mailbox.state);
        if (state != HU_STOPPING && state != HU_COMMITTING) {
            break;
        }
        if (late()) {
            give_up(HU_LATE, thread->tid, 0);
            if (state == HU_COMMITTING) {
                system0(SYS_sched_yield); /* a commit that began is always ended, within microseconds */
            }
            continue;
        }
        sleep_while(&hu_mailbox.state, state, hu_mailbox.deadline_ns);
    }
    serialize();
    thread->released = now();
}

struct siginfo_kernel {
    int32_t signal, error, code, pad;
    int32_t pid, uid;
    uint64_t value;
    uint64_t rest[12];
};

struct ucontext_kernel {
    uint64_t flags, link;
    struct stack_kernel stack;
    uint64_t r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags;
};

/* A busy thread waits for the end of the stop.  The last one in does the commit itself, so that it waits for nobody. */
static void spin(struct hu_thread *thread, uint64_t parked, const struct ucontext_kernel *context)
{
    thread->parked = parked;
    thread->sp = context->rsp;
    thread->pc = context->rip;
    thread->tcb = thread_pointer();
    int alternate = thread->sp - context->stack.low < context->stack.size;
    if (blocked(thread, alternate)) {
        return;
    }
    store(&thread->arrived, alternate ? HU_ON_ALTERNATE : HU_ARRIVED);
    if (__atomic_add_fetch(&hu_mailbox.busy_in, 1, __ATOMIC_ACQ_REL) == hu_mailbox.busy && !hu_mailbox.hook_count) {
        decide();
    }
    uint64_t patience = now() + SPIN_BEFORE_YIELD;
    while (undecided()) {
        uint64_t moment = now();
        if (moment > load(&hu_mailbox.deadline_tsc)) {
            give_up(HU_LATE, thread->tid, 0);
        }
        if (moment > patience) {
            system0(SYS_sched_yield);
        } else {
            __builtin_ia32_pause();
        }
    }
}

/* The handler of the signal that the leader sends to a busy thread. */
__attribute__((used)) void hu_handle(int signal, const struct siginfo_kernel *info, struct ucontext_kernel *context)
{
    (void)signal;
    uint64_t parked = now();
    struct hu_thread *thread = (struct hu_thread *)info->value;
    enter();
    int ours = current(thread);
    if (ours) {
        spin(thread, parked, context);
    }
    /* A system call that this signal ended early is made again: "mov $number, %eax; syscall" is how libc makes them. */
    const uint8_t *code = (const uint8_t *)context->rip;
    if (context->rax == (uint64_t)-EINTR_ && code[-2] == 0x0f && code[-1] == 0x05 && code[-7] == 0xb8) {
        context->rip -= 7;
    }
    serialize();
    if (ours) {
        thread->released = now();
    }
    leave();
}

/* Do not spin: this may be the very core that a busy thread needs in order to come in.  And have nobody wake us, busy
 * threads least of all: looking again soon costs only us. */
static void look_again_soon(uint64_t *word, uint64_t value)
{
    struct timespec_kernel moment;
    system2(SYS_clock_gettime, 1 /* CLOCK_MONOTONIC */, &moment);
    sleep_while(word, value, (uint64_t)moment.seconds * 1000000000 + (uint64_t)moment.nanoseconds + LOOK_AGAIN_NS);
}

/* Whether a thread that was seen busy sleeps now, as /proc/self/task/TID/stat says: "TID (name) S ...".  A signal would
 * end its system call, and not every one can be made again. */
static int asleep(uint64_t tid)
{
    char path[48] = "/proc/self/task/", digits[24], text[96];
    uint64_t length = 16, count = 0;
    for (; tid; tid /= 10) {
        digits[count++] = (char)('0' + tid % 10);
    }
    while (count) {
        path[length++] = digits[--count];
    }
    for (const char *rest = "/stat"; *rest; rest++) {
        path[length++] = *rest;
    }
    path[length] = 0;
    int64_t fd = system3(SYS_open, path, 0x80000 /* O_CLOEXEC */, 0);
    if (fd < 0) {
        return 0; /* it is gone, as will be noticed, or nothing is known of it */
    }
    int64_t size = system3(SYS_read, fd, text, sizeof text);
    system1(SYS_close, fd);
    while (size > 0 && text[size - 1] != ')') { /* the name may hold anything, but is at most 15 bytes */
        size--;
    }
    return size > 0 && (uint64_t)size + 1 < sizeof text && text[size + 1] != 'R';
}

static int all_busy(const struct hu_thread *threads)
{
    for (uint64_t i = 0; i < hu_mailbox.thread_count; i++) {
        if (threads[i].busy && asleep(threads[i].tid)) {
            give_up(HU_ASLEEP, threads[i].tid, 0);
            return 0;
        }
    }
    return 1;
}

/* Signal every busy thread and see the stop through; called with every sleeper parked and checked. */
static void stop_busy(void)
{
    struct hu_thread *threads = (struct hu_thread *)hu_mailbox.threads;
    struct sigaction_kernel ours = {(uint64_t)hu_handler, SA_SIGINFO_ | SA_ONSTACK_ | SA_RESTART_ | SA_RESTORER_,
                                    (uint64_t)hu_restorer, ~0ull};
    struct sigaction_kernel before, ignore = {SIG_IGN_, SA_RESTORER_, (uint64_t)hu_restorer, 0};
    uint64_t number = hu_mailbox.signal;
    if (!all_busy(threads)) {
        return;
    }
    if (system4(SYS_rt_sigaction, number, &ours, &before, 8) != 0) {
        give_up(HU_NO_HANDLER, 0, 0);
        return;
    }
    uint64_t group = (uint64_t)system0(SYS_getpid), limit = now() + hu_mailbox.busy_limit;
    if (limit < load(&hu_mailbox.deadline_tsc)) {
        store(&hu_mailbox.deadline_tsc, limit);
    }
    for (uint64_t i = 0; i < hu_mailbox.thread_count; i++) {
        if (!threads[i].busy) {
            continue;
        }
        struct siginfo_kernel info = {.signal = (int32_t)number, .code = -1 /* SI_QUEUE */, .pid = (int32_t)group};
        info.value = (uint64_t)&threads[i];
        if (system4(SYS_rt_tgsigqueueinfo, group, threads[i].tid, number, &info) != 0) {
            give_up(HU_GONE, threads[i].tid, 0);
            break;
        }
    }
    for (;;) {
        uint64_t state = load(&hu_mailbox.state);
        if (state == HU_COMMITTED || state == HU_ABORTED) {
            break;
        }
        if (late()) {
            give_up(HU_LATE, 0, 0);
            continue;
        }
        /* Hooks want more of a stack than a busy thread may have for its signals. */
        if (hu_mailbox.hook_count && load(&hu_mailbox.busy_in) == hu_mailbox.busy) {
            decide();
            continue;
        }
        look_again_soon(&hu_mailbox.state, state);
    }
    /* Ignoring a signal discards those still queued (POSIX); only then may its action be what it was, which would end
     * the process. */
    system4(SYS_rt_sigaction, number, &ignore, 0, 8);
    system4(SYS_rt_sigaction, number, &before, 0, 8);
}

static int check(void)
{
    struct hu_thread *threads = (struct hu_thread *)hu_mailbox.threads;
    const struct hu_edit *edits = (const struct hu_edit *)hu_mailbox.edits;
    for (uint64_t i = 0; i < hu_mailbox.thread_count; i++) {
        if (threads[i].busy) {
            continue;
        }
        uint64_t arrived = load(&threads[i].arrived);
        if (arrived == HU_AWAY) {
            continue; /* a zombie leader: counted, but it runs no more */
        }
        if (blocked(&threads[i], arrived == HU_ON_ALTERNATE)) {
            return 0;
        }
    }
    for (uint64_t i = 0; i < hu_mailbox.edit_count; i++) {
        if (*(volatile uint64_t *)edits[i].address != edits[i].old) {
            give_up(HU_MISMATCH, 0, edits[i].address);
            return 0;
        }
    }
    return 1;
}

/* Whether a thread was sent here out of one of the system calls in which it is to be held. */
static int stands_still(const struct hu_frame *frame)
{
    uint64_t number = frame->rax;
    return frame->error && number < 64 * HU_CALL_WORDS && hu_mailbox.calls[number / 64] >> number % 64 & 1;
}

/* The leader: the last thread to be sent here.  It sees to it that the sleepers are in, stops the busy ones and lets
 * all go. */
static void stop(struct hu_frame *frame)
{
    struct hu_thread *self = (struct hu_thread *)frame->thread;
    static const char path[] = "/proc/self/task";
    self->parked = now();
    self->sp = (uint64_t)(frame + 1) + 128;
    self->pc = frame->rip;
    self->tcb = thread_pointer();
    store(&self->arrived, arrival());
    if (hu_mailbox.hold && !stands_still(frame)) {
        give_up(HU_OCCUPIED, self->tid, 0);
    }
    int64_t fd = system3(SYS_open, path, 0x90000 /* O_DIRECTORY | O_CLOEXEC */, 0);
    if (fd < 0) {
        give_up(HU_NO_TASK_FD, 0, 0);
    }
    hu_mailbox.task_fd = (uint64_t)fd;
    for (;;) {
        uint64_t in = load(&hu_mailbox.sleepers_in);
        if (in >= hu_mailbox.sleepers || load(&hu_mailbox.state) != HU_STOPPING) {
            break;
        }
        if (late()) {
            give_up(HU_LATE, 0, 0);
        } else {
            sleep_while(&hu_mailbox.sleepers_in, in, hu_mailbox.deadline_ns);
        }
    }
    while (load(&hu_mailbox.search) && load(&hu_mailbox.state) == HU_STOPPING) {
        if (late()) {
            give_up(HU_LATE, 0, 0);
        } else {
            look_again_soon(&hu_mailbox.state, HU_STOPPING);
        }
    }
    hu_mailbox.stamps[HU_T_PARKED] = now();
    if (load(&hu_mailbox.state) == HU_STOPPING && check()) {
        hu_mailbox.stamps[HU_T_CHECKED] = now();
        if (hu_mailbox.busy) {
            stop_busy();
        } else {
            decide();
        }
    }
    wake(&hu_mailbox.state);
    hu_mailbox.stamps[HU_T_RELEASED] = now();
    if (fd >= 0) {
        system1(SYS_close, fd);
    }
    serialize();
    hu_mailbox.stamps[HU_T_CLEANED] = now();
    self->released = now();
}

/* Threads that are led out of their loop and into it again.  A thread does all of it by itself; the leader asks, waits
 * and, when one does not come, takes back what it asked for. */

static struct hu_move *move_at(uint64_t index)
{
    return (struct hu_move *)hu_mailbox.moves + index;
}

static int is_over(uint64_t state)
{
    return state == HU_MOVE_FREE || state == HU_MOVE_ARRIVED || state == HU_MOVE_STAYED;
}

static void put(uint64_t address, uint64_t size, uint64_t value)
{
    switch (size) {
    case 1:
        __atomic_store_n((uint8_t *)address, (uint8_t)value, __ATOMIC_RELEASE);
        break;
    case 2:
        __atomic_store_n((uint16_t *)address, (uint16_t)value, __ATOMIC_RELEASE);
        break;
    case 4:
        __atomic_store_n((uint32_t *)address, (uint32_t)value, __ATOMIC_RELEASE);
        break;
    case 8:
        __atomic_store_n((uint64_t *)address, value, __ATOMIC_RELEASE);
        break;
    }
}

/* Wait for the others of the group.  Whoever waits here has left the old code, so that going on is never wrong: only
 * what the group was asked to leave by has to be put back before.  In a child that was forked on the way there is
 * nobody to wait for. */
static void wait_for_group(struct hu_move *move)
{
    struct timespec_kernel moment;
    int alone = (uint64_t)system0(SYS_gettid) != move->tid;
    if (load(&move->state) == HU_MOVE_LANDED && !alone) {
        __atomic_add_fetch(&hu_mailbox.landed, 1, __ATOMIC_ACQ_REL);
        wake(&hu_mailbox.landed);
    }
    while (!alone) {
        system2(SYS_clock_gettime, 1 /* CLOCK_MONOTONIC */, &moment);
        if (load(&move->state) != HU_MOVE_LANDED ||
            (uint64_t)moment.seconds * 1000000000 + (uint64_t)moment.nanoseconds > move->patience_ns) {
            break;
        }
        sleep_while(&move->state, HU_MOVE_LANDED, move->patience_ns);
    }
    swap(&move->state, HU_MOVE_LANDED, HU_MOVE_ENTERED);
}

/* Not because of us: the thread goes on to where it would have gone.  Returns 0 if it was asked to leave after all. */
static int go_home(struct hu_landing *landing, struct hu_move *move, uint64_t slot, enum hu_move_state state)
{
    landing->target = move->back;
    landing->stack = slot + 8;
    return swap(&move->state, state, HU_MOVE_FREE);
}

static void go_round(struct hu_landing *landing, struct hu_move *move, uint64_t slot)
{
    uint64_t *registers[6] = {&landing->rbx, &landing->rbp, &landing->r12, &landing->r13, &landing->r14, &landing->r15};
    for (uint64_t i = 0; i < move->clears; i++) {
        put(move->clear_address[i], move->clear_size[i], move->clear_value[i]);
    }
    landing->target = move->entry;
    landing->rdi = move->argument;
    landing->stack = slot;
    if (move->drop) {
        for (int i = 0; i < 6; i++) {
            if (move->kept[i]) {
                *registers[i] = *(const uint64_t *)move->kept[i];
            }
        }
        landing->stack = move->drop;
    }
    move->entered = now();
}

__attribute__((used)) void hu_land(struct hu_landing *landing, uint64_t *slot)
{
    uint64_t left = now(), self = thread_pointer();
    for (uint64_t i = 0; i < hu_mailbox.move_count; i++) {
        struct hu_move *move = move_at(i);
        uint64_t state = load(&move->state);
        if (move->slot != (uint64_t)slot || move->tcb != self || is_over(state)) {
            continue;
        }
        *slot = move->back;
        move->left = left;
        if (!move->drop && go_home(landing, move, (uint64_t)slot, HU_MOVE_WAITING)) {
            return;
        }
        if (!swap(&move->state, HU_MOVE_LEAVING, move->together ? HU_MOVE_LANDED : HU_MOVE_ENTERED) &&
            !swap(&move->state, HU_MOVE_WAITING, HU_MOVE_ENTERED)) {
            if (move->leaving && *(const volatile uint8_t *)move->leaving) {
                go_home(landing, move, (uint64_t)slot, HU_MOVE_REVOKED);
                return;
            }
            swap(&move->state, HU_MOVE_REVOKED, HU_MOVE_ENTERED);
        }
        wait_for_group(move);
        go_round(landing, move, (uint64_t)slot);
        if (move->drop && !move->works) {
            store(&move->state, HU_MOVE_ARRIVED);
        }
        return;
    }
    __builtin_trap(); /* a return address of ours without a row: nothing is known of where to go */
}

/* A thread at a call that comes by here.  Returns 1 if the call is to be skipped. */
__attribute__((used)) int hu_pass(struct hu_passage *passage)
{
    const struct hu_site *site = (const struct hu_site *)hu_mailbox.sites + passage->index;
    uint64_t self = thread_pointer();
    passage->index = site->real;
    for (uint64_t i = 0; i < hu_mailbox.move_count; i++) {
        struct hu_move *move = move_at(i);
        uint64_t state = load(&move->state);
        if (move->tcb != self || is_over(state)) {
            continue;
        }
        switch ((enum hu_site_kind)site->kind) {
        case HU_SITE_CLEAN:
            if (state != HU_MOVE_LEAVING || move->cleaned & site->pair) {
                return 0;
            }
            store(&move->cleaned, move->cleaned | site->pair);
            break;
        case HU_SITE_SETUP:
            if (state != HU_MOVE_ENTERED || !(move->cleaned & site->pair || site->alone) || move->set_up & site->pair) {
                return 0;
            }
            store(&move->set_up, move->set_up | site->pair);
            if (move->drop) {
                store(&move->state, HU_MOVE_ARRIVED);
            }
            break;
        case HU_SITE_WORK:
            if (state == HU_MOVE_ENTERED) {
                store(&move->arrived, now());
                store(&move->state, HU_MOVE_ARRIVED);
            } else if (state == HU_MOVE_REVOKED) {
                /* At work it cannot be on its way out, and nobody asks it any more. */
                if (swap(&move->state, HU_MOVE_REVOKED, HU_MOVE_STAYED) &&
                    *(uint64_t *)move->slot == (uint64_t)hu_landing) {
                    *(uint64_t *)move->slot = move->back;
                }
            } else {
                move->worked = now();
            }
            return 0;
        default:
            return 0;
        }
        if (site->returns) {
            passage->rax = site->value;
        }
        return 1;
    }
    return 0;
}

/* Whether there is this value; of a size that is not known there is none. */
static int holds(uint64_t address, uint64_t size, uint64_t value)
{
    switch (size) {
    case 1:
        return __atomic_load_n((uint8_t *)address, __ATOMIC_ACQUIRE) == (uint8_t)value;
    case 2:
        return __atomic_load_n((uint16_t *)address, __ATOMIC_ACQUIRE) == (uint16_t)value;
    case 4:
        return __atomic_load_n((uint32_t *)address, __ATOMIC_ACQUIRE) == (uint32_t)value;
    case 8:
        return __atomic_load_n((uint64_t *)address, __ATOMIC_ACQUIRE) == value;
    }
    return 0;
}

static int has_landed(struct hu_move *move)
{
    return load(&move->state) != HU_MOVE_LEAVING;
}

static int has_arrived(struct hu_move *move)
{
    uint64_t state = load(&move->state);
    /* One that sleeps on its way in has not arrived: what it is yet to skip would not be skipped any more. */
    int pending = (load(&move->cleaned) & ~load(&move->set_up)) != 0;
    if (state == HU_MOVE_ENTERED && (!move->works || (!pending && asleep(move->tid)))) {
        store(&move->arrived, now());
        swap(&move->state, HU_MOVE_ENTERED, HU_MOVE_ARRIVED);
        return 1;
    }
    return state == HU_MOVE_ARRIVED || state == HU_MOVE_FREE; /* free: the program itself has ended it meanwhile */
}

/* Returns the index of the operation to go on with. */
static uint64_t wait_for_moves(struct hu_op *op, uint64_t here, int (*done)(struct hu_move *))
{
    uint64_t limit = now() + op->args[1];
    for (uint64_t i = op->number; i < op->number + op->args[0];) {
        uint64_t seen = load(&hu_mailbox.landed);
        if (done(move_at(i))) {
            i++;
        } else if (now() > limit) {
            op->result = 1;
            return here + op->args[2];
        } else {
            look_again_soon(&hu_mailbox.landed, seen);
        }
    }
    return here + 1;
}

static void for_moves(const struct hu_op *op, enum hu_move_state from, enum hu_move_state to)
{
    for (uint64_t i = op->number; i < op->number + op->args[0]; i++) {
        struct hu_move *move = move_at(i);
        if (to == HU_MOVE_LEAVING) {
            move->asked = now();
        }
        if (swap(&move->state, from, to)) {
            wake(&move->state);
        }
    }
}

static void run(struct hu_frame *frame)
{
    struct hu_op *ops = (struct hu_op *)hu_mailbox.ops;
    uint64_t cpus[HU_CPU_WORDS];
    int64_t moved = -1;
    /* A list is for one thread, once: not for one that was sent by a tool that died, and comes late. */
    if (frame->lead != load(&hu_mailbox.serial) ||
        __atomic_exchange_n(&hu_mailbox.taken, frame->lead, __ATOMIC_ACQ_REL) == frame->lead) {
        return;
    }
    hu_mailbox.leader_in = now();
    for (int i = 0; i < HU_CPU_WORDS; i++) {
        if (hu_mailbox.cpus[i]) {
            moved = system3(SYS_sched_getaffinity, 0, sizeof cpus, cpus);
            break;
        }
    }
    if (moved > 0) {
        system3(SYS_sched_setaffinity, 0, sizeof hu_mailbox.cpus, hu_mailbox.cpus);
    }
    for (uint64_t i = 0, next; i < hu_mailbox.op_count; i = next) {
        struct hu_op *op = &ops[i];
        const uint64_t *pages = (const uint64_t *)op->number;
        next = i + 1;
        switch ((enum hu_op_kind)op->kind) {
        case HU_OP_SYSCALL:
            op->result = (uint64_t)system6(op->number, op->args[0], op->args[1], op->args[2], op->args[3], op->args[4],
                                           op->args[5]);
            if (op->fatal && (int64_t)op->result < 0 && (int64_t)op->result > -4096) {
                next = hu_mailbox.op_count;
            }
            break;
        case HU_OP_CALL:
            op->result = call(op);
            break;
        case HU_OP_TOUCH_READ:
            for (uint64_t k = 0; k < op->args[0]; k++) {
                (void)*(const volatile uint8_t *)pages[k];
            }
            break;
        case HU_OP_TOUCH_WRITE: /* "or nothing" makes the kernel give us our own copy of the page */
            for (uint64_t k = 0; k < op->args[0]; k++) {
                __asm__ volatile("lock orb $0, (%0)" ::"r"(pages[k]) : "memory", "cc");
            }
            break;
        case HU_OP_STOP: /* what follows it is for the new code */
            stop(frame);
            if (load(&hu_mailbox.state) != HU_COMMITTED) {
                next = hu_mailbox.op_count;
            }
            break;
        case HU_OP_STORE:
            put(op->number, op->args[0], op->args[1]);
            break;
        case HU_OP_ASK:
            for_moves(op, HU_MOVE_WAITING, HU_MOVE_LEAVING);
            for_moves(op, HU_MOVE_REVOKED, HU_MOVE_LEAVING);
            break;
        case HU_OP_LAND:
            next = wait_for_moves(op, i, has_landed);
            break;
        case HU_OP_ENTER:
            for_moves(op, HU_MOVE_LANDED, HU_MOVE_ENTERED);
            break;
        case HU_OP_ARRIVE:
            next = wait_for_moves(op, i, has_arrived);
            break;
        case HU_OP_REVOKE:
            for_moves(op, HU_MOVE_LEAVING, HU_MOVE_REVOKED);
            break;
        case HU_OP_EXPECT:
            op->result = !holds(op->number, op->args[0], op->args[1]);
            next = op->result ? i + 1 + op->args[2] : next;
            break;
        case HU_OP_SKIP:
            next = i + 1 + op->number;
            break;
        case HU_OP_END:
            next = hu_mailbox.op_count;
            break;
        }
    }
    if (moved > 0) {
        system3(SYS_sched_setaffinity, 0, moved, cpus);
    }
    hu_mailbox.leader_out = now();
    store(&hu_mailbox.done, frame->lead);
}

/* While the thread was here its signals waited.  One that would have ended its system call with EINTR must still do so:
 * act as the kernel does (arch/x86/kernel/signal.c, arch_do_signal_or_restart). */
static void settle(struct hu_frame *frame)
{
    uint64_t pending = 0;
    if (frame->error == 0) {
        return;
    }
    system2(SYS_rt_sigpending, &pending, 8);
    pending &= ~frame->mask;
    for (uint64_t number = 1; number <= 64; number++) {
        struct sigaction_kernel action;
        if (!(pending >> (number - 1) & 1) || system4(SYS_rt_sigaction, number, 0, &action, 8) != 0) {
            continue;
        }
        if (action.handler == SIG_IGN_ || action.handler == SIG_DFL_ || frame->error == ERESTARTNOINTR_ ||
            (frame->error == ERESTARTSYS_ && action.flags & SA_RESTART_)) {
            continue; /* no handler runs, or the system call is made again after it */
        }
        frame->rip = frame->resume_after;
        frame->rax = (uint64_t)-EINTR_;
        return;
    }
}

__attribute__((used)) void hu_dispatch(struct hu_frame *frame)
{
    uint64_t all = ~0ull;
    system4(SYS_rt_sigprocmask, SIG_SETMASK_, &all, 0, 8);
    enter();
    if (frame->lead) {
        run(frame);
    } else {
        park(frame);
    }
    leave();
    settle(frame);
    system4(SYS_rt_sigprocmask, SIG_SETMASK_, &frame->mask, 0, 8);
}
