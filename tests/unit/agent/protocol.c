/* Whole stops, with real threads: sleepers, busy threads that get the real signal, a leader, and a tool that gives up.
 */
#include "host.h"

enum { SLEEPERS = 3, BUSY = 2, THREADS = SLEEPERS + BUSY + 1, WORDS = 16, ARENA = 128 };

enum scenario {
    WHOLE,
    NOBODY_BUSY,
    SLEEPER_LATE,
    BUSY_LATE,
    STRANGER,
    ACTIVE,
    GIVEN_UP,
    AFTERWARDS,
    NO_HANDLER,
    GONE,
    NO_TASKS,
    OLD_KERNEL,
    SCENARIOS
};

static uint64_t words[WORDS];
static struct hu_thread tables[2][THREADS]; /* one for every attempt, so that who comes late is known by it */
static struct hu_thread *rows;
static struct hu_edit edits[WORDS];
static struct hu_watch stacks[THREADS];
static struct hu_op stop_op;
/* In place of the stacks of sleepers: the frame that the tool writes, and what is above it. */
static struct arena {
    struct hu_frame frame;
    uint64_t above[ARENA];
} arenas[SLEEPERS + 1] __attribute__((aligned(4096)));
static atomic_int ended, spinning;
static atomic_long tids[BUSY];
static volatile int spin_on; /* looked at by busy threads, without a sanitizer's eyes: the signal may come anywhere */
static unsigned seed;
static uint64_t signal_number;

static void pause_a_little(unsigned most_us)
{
    struct timespec moment = {0, (long)(rand_r(&seed) % (most_us + 1)) * 1000};
    nanosleep(&moment, 0);
}

__attribute__((no_sanitize("address", "thread", "undefined"), noinline)) static void spin_until_told(void)
{
    while (__atomic_load_n(&spin_on, __ATOMIC_ACQUIRE)) {
        __builtin_ia32_pause();
    }
}

static void *busy(void *argument)
{
    long index = (long)argument;
    atomic_store(&tids[index], gettid());
    atomic_fetch_add(&spinning, 1);
    spin_until_told();
    __tsan_acquire(&order);
    return 0;
}

static void *sleeper(void *argument)
{
    struct arena *arena = argument;
    unsigned mine = seed + (unsigned)(arena - arenas);
    struct timespec moment = {0, (long)(rand_r(&mine) % 300) * 1000};
    nanosleep(&moment, 0);
    hu_dispatch(&arena->frame);
    atomic_fetch_add(&ended, 1);
    return 0;
}

static void *idle(void *argument)
{
    (void)argument;
    while (atomic_load(&ended) < SLEEPERS + 1) {
        pause_a_little(100);
    }
    return 0;
}

static void *blocks_all(void *argument)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, 0);
    return busy(argument);
}

static pthread_t start(void *(*run)(void *), void *argument)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, 0, run, argument) == 0);
    return thread;
}

static uint64_t threads_now(void)
{
    uint64_t stat[18];
    int64_t fd = system3(SYS_open, "/proc/self/task", 0x90000, 0);
    CHECK(fd >= 0 && system2(SYS_fstat, fd, stat) == 0);
    close((int)fd);
    return stat[2] - 2;
}

static void prepare(enum scenario scenario, int n_busy, unsigned round)
{
    hu_mailbox.state = HU_IDLE;
    hu_mailbox.sleepers = scenario == SLEEPER_LATE ? SLEEPERS + 1 : SLEEPERS;
    hu_mailbox.sleepers_in = hu_mailbox.busy_in = 0;
    hu_mailbox.busy = (uint64_t)n_busy;
    hu_mailbox.reason = hu_mailbox.reason_tid = hu_mailbox.reason_address = 0;
    rows = tables[round % 2];
    hu_mailbox.threads = (uint64_t)rows;
    hu_mailbox.thread_count = THREADS;
    hu_mailbox.signal = signal_number;
    hu_mailbox.edits = (uint64_t)edits;
    hu_mailbox.edit_count = WORDS;
    hu_mailbox.sync_count = WORDS / 2;
    hu_mailbox.watch_count = 0;
    if (scenario == ACTIVE) {
        static struct hu_watch watch = {0x500, 0x600, 0};
        hu_mailbox.watches = (uint64_t)&watch;
        hu_mailbox.watch_count = 1;
        hu_mailbox.watch_low = watch.low;
        hu_mailbox.watch_high = watch.high;
    }
    for (int i = 0; i <= SLEEPERS; i++) {
        stacks[i] = (struct hu_watch){(uint64_t)&arenas[i], (uint64_t)(&arenas[i] + 1), 0};
        arenas[i].above[ARENA - 1] = scenario == ACTIVE && i == 1 ? 0x555 : 0;
        arenas[i].frame = (struct hu_frame){.lead = 0, .thread = (uint64_t)&rows[i], .mask = 0, .rip = 0x100};
        rows[i] = (struct hu_thread){.tid = (uint64_t)i + 1};
    }
    for (int i = 0; i < BUSY; i++) {
        long tid = i < n_busy ? atomic_load(&tids[i]) : 0;
        rows[SLEEPERS + 1 + i] = (struct hu_thread){.tid = (uint64_t)tid, .busy = i < n_busy};
    }
    if (scenario == GONE) {
        rows[THREADS - 1].tid = 0x3fffffff;
    }
    hu_mailbox.stacks = (uint64_t)stacks;
    hu_mailbox.stack_count = SLEEPERS + 1;
    hu_mailbox.main_stack = 0;
    for (int i = 0; i < WORDS; i++) {
        edits[i] = (struct hu_edit){(uint64_t)&words[i], words[i], words[i] + 1};
    }
    stop_op = (struct hu_op){.kind = HU_OP_STOP};
    hu_mailbox.ops = (uint64_t)&stop_op;
    hu_mailbox.op_count = 1;
    arenas[SLEEPERS].frame.lead = ++hu_mailbox.serial;
    uint64_t limit = scenario == SLEEPER_LATE || scenario == BUSY_LATE ? 30 : 5000;
    hu_mailbox.deadline_tsc = now() + ticks(limit);
    hu_mailbox.deadline_ns = nanoseconds() + limit * 1000000;
    hu_mailbox.busy_limit = ticks(limit / 2); /* the leader shortens the time that is left */
    store(&hu_mailbox.state, HU_STOPPING);
}

static uint64_t one(enum scenario scenario, unsigned round)
{
    pthread_t threads[THREADS + 1];
    int n_busy = scenario == NOBODY_BUSY || scenario == SLEEPER_LATE ? 0 : BUSY, count = 0;
    atomic_store(&ended, 0);
    atomic_store(&spinning, 0);
    __atomic_store_n(&spin_on, 1, __ATOMIC_RELEASE);
    for (long i = 0; i < n_busy; i++) {
        threads[count++] = start(scenario == BUSY_LATE && i ? blocks_all : busy, (void *)i);
    }
    while (atomic_load(&spinning) < n_busy) {
        pause_a_little(10);
    }
    prepare(scenario, n_busy, round);
    hu_mailbox.expected_threads = threads_now() + SLEEPERS + 1;
    if (scenario == STRANGER) {
        threads[count++] = start(idle, 0);
    }
    if (scenario == NO_HANDLER) {
        fails(SYS_rt_sigaction, -EINVAL, 0);
    } else if (scenario == NO_TASKS) {
        fails(SYS_open, -ENOENT, 0);
    } else if (scenario == OLD_KERNEL) {
        fails(SYS_futex_waitv, -ENOSYS, 0);
    }
    if (scenario == AFTERWARDS) {
        give_up(HU_LATE, 0, 0);
    }
    for (int i = 0; i <= SLEEPERS; i++) {
        threads[count++] = start(sleeper, &arenas[i]);
    }
    if (scenario == GIVEN_UP) {
        pause_a_little(600);
        give_up(HU_OK, 0, 0);
    }
    while (atomic_load(&ended) < SLEEPERS + 1) {
        pause_a_little(50);
    }
    __tsan_release(&order);
    __atomic_store_n(&spin_on, 0, __ATOMIC_RELEASE);
    for (int i = 0; i < count; i++) {
        CHECK(pthread_join(threads[i], 0) == 0);
    }
    fails(~0ul, 0, 0);
    CHECK(load(&hu_mailbox.inside) == 0 && hu_mailbox.done == hu_mailbox.serial);
    return load(&hu_mailbox.state);
}

static void whole_or_nothing(uint64_t state, uint64_t before)
{
    CHECK(state == HU_COMMITTED || state == HU_ABORTED);
    for (int i = 0; i < WORDS; i++) {
        CHECK(words[i] == before + (state == HU_COMMITTED));
    }
}

int main(int argc, char **argv)
{
    static const uint64_t expected[SCENARIOS] = {
        [SLEEPER_LATE] = HU_LATE, [BUSY_LATE] = HU_LATE,        [STRANGER] = HU_STRANGER, [ACTIVE] = HU_ACTIVE,
        [AFTERWARDS] = HU_LATE,   [NO_HANDLER] = HU_NO_HANDLER, [GONE] = HU_GONE,         [NO_TASKS] = HU_NO_TASK_FD,
    };
    unsigned rounds = argc > 1 ? (unsigned)atoi(argv[1]) : 10, commits = 0, aborts = 0;
    signal_number = (uint64_t)SIGRTMIN + 3;
    signal(SIGRTMIN + 3, SIG_IGN); /* one that comes late ends nobody */
    for (unsigned round = 0; round < rounds; round++) {
        for (int scenario = 0; scenario < SCENARIOS; scenario++) {
            uint64_t before = words[0];
            seed = round * SCENARIOS + (unsigned)scenario;
            uint64_t state = one((enum scenario)scenario, seed);
            whole_or_nothing(state, before);
            if (scenario == WHOLE || scenario == NOBODY_BUSY || scenario == OLD_KERNEL) {
                CHECK(state == HU_COMMITTED);
                for (int i = 0; i < THREADS; i++) {
                    CHECK(!rows[i].tid || (rows[i].arrived && rows[i].released >= rows[i].parked));
                }
            } else if (scenario != GIVEN_UP) {
                CHECK(state == HU_ABORTED && hu_mailbox.reason == expected[scenario]);
            }
            state == HU_COMMITTED ? commits++ : aborts++;
        }
    }
    printf("sound: %u commits, %u aborts\n", commits, aborts);
    return 0;
}
