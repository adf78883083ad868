/* The agent's parts, one by one, on one thread. */
#include "host.h"

static uint64_t words[4] = {10, 11, 12, 13};
static struct hu_thread rows[3];
static struct hu_watch watches[2], stacks[2];
static struct hu_edit edits[3];
static uint64_t stack[64] __attribute__((aligned(64)));

static void begin(void)
{
    hu_mailbox = (struct hu_mailbox){0};
    hu_mailbox.state = HU_STOPPING;
    hu_mailbox.deadline_tsc = now() + ticks(2000);
    hu_mailbox.deadline_ns = nanoseconds() + 2000000000;
    hu_mailbox.threads = (uint64_t)rows;
    hu_mailbox.thread_count = 3;
    watches[0] = (struct hu_watch){1000, 1010, 0};
    watches[1] = (struct hu_watch){2000, 2001, 0};
    hu_mailbox.watches = (uint64_t)watches;
    hu_mailbox.watch_count = 2;
    hu_mailbox.watch_low = 1000;
    hu_mailbox.watch_high = 2001;
    stacks[0] = (struct hu_watch){(uint64_t)stack, (uint64_t)(stack + 32), 0};
    stacks[1] = (struct hu_watch){(uint64_t)(stack + 40), (uint64_t)(stack + 64), 0};
    hu_mailbox.stacks = (uint64_t)stacks;
    hu_mailbox.stack_count = 2;
    for (int i = 0; i < 3; i++) {
        edits[i] = (struct hu_edit){(uint64_t)&words[i], words[i], words[i] + 100};
        rows[i] = (struct hu_thread){.tid = (uint64_t)i + 1};
    }
    hu_mailbox.edits = (uint64_t)edits;
    hu_mailbox.edit_count = 3;
    hu_mailbox.sync_count = 1;
    for (int i = 0; i < 64; i++) {
        stack[i] = 0;
    }
    fails(~0ul, 0, 0);
}

static int scan(uint64_t *sp, uint64_t pc, uint64_t *tcb, int alternate)
{
    hu_mailbox.state = HU_STOPPING;
    hu_mailbox.reason = 0;
    rows[0] = (struct hu_thread){.tid = 7, .sp = (uint64_t)sp, .pc = pc, .tcb = (uint64_t)tcb};
    return blocked(&rows[0], alternate);
}

static void watching(void)
{
    begin();
    for (uint64_t word = 990; word < 2010; word++) {
        int inside = (word > 1000 && word < 1010);
        CHECK(watched(word, 0) == inside);
    }
    CHECK(!watched(0, 0) && !watched(~0ull, 0));
    hu_mailbox.watch_count = 0;
    CHECK(!scan(stack + 1, 1005, 0, 0));
    CHECK(below(watches, 0, 5) == 0 && below(watches, 2, 1000) == 0 && below(watches, 2, 1001) == &watches[0]);
    CHECK(below(watches, 2, ~0ull) == &watches[1]);
}

static void scanning(void)
{
    begin();
    CHECK(!scan(stack + 1, 5, stack + 32, 0));
    CHECK(scan(stack + 1, 1005, stack + 32, 0) && hu_mailbox.reason == HU_ACTIVE && hu_mailbox.reason_address == 1005);
    CHECK(hu_mailbox.state == HU_ABORTED && hu_mailbox.reason_tid == 7);
    /* The last word below the end, the first at the pointer, and those that are none of it. */
    stack[31] = 1009;
    CHECK(scan(stack + 1, 5, 0, 0) && hu_mailbox.reason_address == 1009);
    CHECK(!scan(stack + 1, 5, stack + 31, 0));                     /* above the thread's control block */
    CHECK(!scan((uint64_t *)((char *)(stack + 31) + 1), 5, 0, 0)); /* half of a word is no return address */
    stack[31] = 1000;
    CHECK(!scan(stack + 1, 5, 0, 0)); /* the function itself is a pointer, no return address */
    stack[31] = 0;
    stack[4] = 1001;
    CHECK(scan(stack + 4, 5, 0, 0) && !scan(stack + 5, 5, 0, 0));
    /* On another stack, all of the thread's own is looked at, and of the main thread's. */
    stack[4] = 0;
    stack[2] = 1001;
    CHECK(scan(stack + 50, 5, stack + 30, 0) && scan(stack + 20, 5, stack + 30, 1) &&
          !scan(stack + 20, 5, stack + 30, 0));
    hu_mailbox.main_stack = (uint64_t)(stack + 31);
    CHECK(scan(stack + 50, 5, stack + 60, 1));
    /* Nowhere, and too much of it. */
    CHECK(scan(stack + 36, 5, 0, 0) && hu_mailbox.reason == HU_NO_STACK);
    CHECK(scan((uint64_t *)8, 5, 0, 0) && hu_mailbox.reason == HU_NO_STACK);
    stacks[1].high = stacks[1].low + MOST_STACK + 4096;
    CHECK(scan(stack + 41, 5, 0, 0) && hu_mailbox.reason == HU_NO_STACK);
    hu_mailbox.stack_count = 0;
    CHECK(scan(stack + 1, 5, 0, 0) && hu_mailbox.reason == HU_NO_STACK);
}

static void checking(void)
{
    begin();
    rows[1].busy = 1; /* those are looked at by themselves */
    rows[2].arrived = HU_ARRIVED;
    rows[2].sp = (uint64_t)(stack + 1);
    CHECK(check() && hu_mailbox.state == HU_STOPPING);
    edits[2].old++;
    CHECK(!check() && hu_mailbox.reason == HU_MISMATCH && hu_mailbox.reason_address == (uint64_t)&words[2]);
    begin();
    rows[0].arrived = HU_ARRIVED;
    rows[0].sp = (uint64_t)(stack + 1);
    stack[9] = 1003;
    CHECK(!check() && hu_mailbox.reason == HU_ACTIVE);
}

static uint64_t calls, order_of[4];

static uint64_t hook(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
    CHECK(b == 2 && c == 3 && d == 4 && e == 5 && f == 6);
    order_of[calls++] = a;
    return a == 99 ? 0x100000001 : 0;
}

static uint64_t xsave_room(void)
{
    uint32_t a = 0xd, b, c = 0, d;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return b;
}

static void committing(void)
{
    begin();
    commit();
    CHECK(hu_mailbox.state == HU_COMMITTED && words[0] == 110 && words[1] == 111 && words[2] == 112 && words[3] == 13);
    CHECK(hu_mailbox.stamps[HU_T_STOPPED] <= hu_mailbox.stamps[HU_T_SYNCED]);
    CHECK(hu_mailbox.stamps[HU_T_SYNCED] <= hu_mailbox.stamps[HU_T_REPLACED]);
    commit(); /* once only */
    give_up(HU_LATE, 1, 2);
    CHECK(hu_mailbox.state == HU_COMMITTED && hu_mailbox.reason == 0);
    begin();
    give_up(HU_GONE, 5, 6);
    commit();
    CHECK(hu_mailbox.state == HU_ABORTED && words[0] == 110 && hu_mailbox.reason == HU_GONE);
    give_up(HU_LATE, 1, 2); /* the first reason counts */
    CHECK(hu_mailbox.reason == HU_GONE && hu_mailbox.reason_tid == 5 && hu_mailbox.reason_address == 6);
    /* Hooks come first, in order; one that fails is the end of it. */
    begin();
    struct hu_op hooks[3];
    for (int i = 0; i < 3; i++) {
        hooks[i] = (struct hu_op){.number = (uint64_t)hook, .args = {i == 1 ? 99 : (uint64_t)i, 2, 3, 4, 5, 6}};
    }
    hu_mailbox.hooks = (uint64_t)hooks;
    hu_mailbox.hook_count = 3;
    hu_mailbox.xsave_size = xsave_room();
    commit();
    CHECK(hu_mailbox.state == HU_ABORTED && hu_mailbox.reason == HU_HOOK && hu_mailbox.reason_address == 1);
    CHECK(calls == 2 && order_of[0] == 0 && order_of[1] == 99 && words[0] == 110);
}

static void counting(void)
{
    begin();
    int64_t fd = system3(SYS_open, "/proc/self/task", 0x90000, 0);
    hu_mailbox.task_fd = (uint64_t)fd;
    uint64_t stat[18];
    CHECK(system2(SYS_fstat, fd, stat) == 0);
    hu_mailbox.expected_threads = stat[2] - 2;
    CHECK(!strangers());
    hu_mailbox.expected_threads++;
    CHECK(strangers());
    decide();
    CHECK(hu_mailbox.state == HU_ABORTED && hu_mailbox.reason == HU_STRANGER);
    fails(SYS_fstat, -9, 0);
    CHECK(strangers());
    close((int)fd);
}

static void running(void)
{
    begin();
    uint64_t page = 5, pages[2] = {(uint64_t)&page, (uint64_t)&page};
    struct hu_op ops[6] = {
        {.kind = HU_OP_SYSCALL, .number = SYS_getpid},
        {.kind = HU_OP_TOUCH_READ, .number = (uint64_t)pages, .args = {2}},
        {.kind = HU_OP_TOUCH_WRITE, .number = (uint64_t)pages, .args = {2}},
        {.kind = HU_OP_CALL, .number = (uint64_t)hook, .args = {1, 2, 3, 4, 5, 6}},
        {.kind = HU_OP_SYSCALL, .number = SYS_close, .args = {~0ull}, .fatal = 1},
        {.kind = HU_OP_SYSCALL, .number = SYS_getpid},
    };
    struct hu_frame frame = {.lead = 4};
    calls = 0;
    hu_mailbox.xsave_size = xsave_room();
    hu_mailbox.ops = (uint64_t)ops;
    hu_mailbox.op_count = 6;
    hu_mailbox.serial = 5;
    hu_dispatch(&frame); /* sent by a tool that died */
    CHECK(hu_mailbox.done == 0 && hu_mailbox.taken == 0 && hu_mailbox.inside == 0);
    hu_mailbox.serial = 4;
    hu_mailbox.cpus[0] = ~0ull;
    hu_dispatch(&frame);
    CHECK(hu_mailbox.done == 4 && hu_mailbox.taken == 4 && hu_mailbox.inside == 0 && calls == 1 && page == 5);
    CHECK(ops[0].result == (uint64_t)getpid() && (int64_t)ops[4].result == -EBADF && ops[5].result == 0);
    hu_dispatch(&frame); /* once only */
    CHECK(calls == 1);
}

static void handler(int number)
{
    (void)number;
}

/* What the kernel would have done with a system call that a signal interrupted. */
static uint64_t settled(uint64_t error, int flags, void (*action)(int))
{
    struct sigaction wanted = {.sa_handler = action, .sa_flags = flags};
    sigset_t set;
    CHECK(sigaction(SIGUSR1, &wanted, 0) == 0);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, 0);
    raise(SIGUSR1);
    struct hu_frame frame = {.error = error, .rip = 1, .rax = 2, .resume_after = 3, .mask = 0};
    settle(&frame);
    sigprocmask(SIG_UNBLOCK, &set, 0);
    CHECK((frame.rip == 3) == (frame.rax == (uint64_t)-EINTR));
    return frame.rip;
}

static void settling(void)
{
    begin();
    CHECK(settled(0, 0, handler) == 1);
    CHECK(settled(ERESTARTSYS_, 0, handler) == 3 && settled(ERESTARTSYS_, SA_RESTART, handler) == 1);
    CHECK(settled(ERESTARTNOINTR_, 0, handler) == 1 && settled(514, SA_RESTART, handler) == 3);
    CHECK(settled(516, 0, handler) == 3 && settled(ERESTARTSYS_, 0, SIG_IGN) == 1);
}

int main(void)
{
    watching();
    scanning();
    checking();
    committing();
    counting();
    running();
    settling();
    puts("sound");
    return 0;
}
