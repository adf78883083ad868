/* Threads that are led out of their loops: every step by itself, then real threads that leave early, late, never or
 * for reasons of their own, while the leader asks, waits and takes back. */
#include "host.h"

enum { MOVES = 4, SITES = 5, SEATS = 3 };
enum { CLEAN, SETUP, ALONE, WORK, OTHER };
enum { ENTRY = 0x1000, BACK = 0x2000, REAL = 0x3000, PAIR = 2, OTHER_PAIR = 4 };

static struct hu_move moves[MOVES];
static struct hu_site sites[SITES] = {
    [CLEAN] = {REAL + CLEAN, HU_SITE_CLEAN, PAIR, 0, 0, 0},
    [SETUP] = {REAL + SETUP, HU_SITE_SETUP, PAIR, 0, 1, 77},
    [ALONE] = {REAL + ALONE, HU_SITE_SETUP, 8, 1, 1, ~0ull},
    [WORK] = {REAL + WORK, HU_SITE_WORK, 1, 0, 0, 0},
    [OTHER] = {REAL + OTHER, HU_SITE_CLEAN, OTHER_PAIR, 0, 0, 0},
};
static uint64_t slots[MOVES];

static void begin(void)
{
    hu_mailbox = (struct hu_mailbox){0};
    hu_mailbox.moves = (uint64_t)moves;
    hu_mailbox.move_count = MOVES;
    hu_mailbox.sites = (uint64_t)sites;
    for (int i = 0; i < MOVES; i++) {
        slots[i] = (uint64_t)hu_landing;
        moves[i] = (struct hu_move){.state = HU_MOVE_FREE,
                                    .tid = (uint64_t)gettid(),
                                    .tcb = thread_pointer(),
                                    .slot = (uint64_t)&slots[i],
                                    .back = BACK,
                                    .entry = ENTRY,
                                    .argument = 5,
                                    .patience_ns = nanoseconds() + 20000000000};
    }
    fails(~0ul, 0, 0);
}

/* What becomes of a thread that comes by in some state; "together" is looked at by the way. */
static struct hu_landing land(int index, uint64_t state)
{
    struct hu_landing landing = {.rdi = 1, .rdx = 2, .rax = 3, .rbx = 4, .rbp = 6, .r12 = 7, .r15 = 8};
    moves[index].state = state;
    slots[index] = (uint64_t)hu_landing;
    hu_land(&landing, &slots[index]);
    CHECK(slots[index] == BACK && landing.rax == 3 && landing.rdx == 2 && moves[index].left > 0);
    return landing;
}

static int went_home(const struct hu_landing *landing, int index)
{
    int home = landing->target == BACK;
    CHECK(home || landing->target == ENTRY);
    CHECK(landing->stack == (uint64_t)(&slots[index] + home) && landing->rdi == (home ? 1 : 5));
    return home;
}

static void landing(void)
{
    begin();
    uint8_t leaving = 0, asked = 1;
    uint64_t number = 9;
    struct hu_move *move = &moves[2];
    move->clears = 2;
    move->clear_address[0] = (uint64_t)&asked;
    move->clear_size[0] = 1;
    move->clear_address[1] = (uint64_t)&number;
    move->clear_size[1] = 8;
    move->clear_value[1] = 99;
    /* Nobody has asked it: what it does is its own business. */
    struct hu_landing on = land(2, HU_MOVE_WAITING);
    CHECK(went_home(&on, 2) && move->state == HU_MOVE_FREE && asked == 1 && number == 9);
    /* It was asked. */
    on = land(2, HU_MOVE_LEAVING);
    CHECK(!went_home(&on, 2) && move->state == HU_MOVE_ENTERED && asked == 0 && number == 99 && move->entered);
    /* That was taken back meanwhile, but it has left. */
    on = land(2, HU_MOVE_REVOKED);
    CHECK(!went_home(&on, 2) && move->state == HU_MOVE_ENTERED);
    /* The same, and the program wants it to end. */
    move->leaving = (uint64_t)&leaving;
    on = land(2, HU_MOVE_REVOKED);
    CHECK(!went_home(&on, 2));
    leaving = 1;
    on = land(2, HU_MOVE_REVOKED);
    CHECK(went_home(&on, 2) && move->state == HU_MOVE_FREE);
    /* With a group: who waits for it is let go by the leader, or goes when its patience is at an end. */
    move->together = 1;
    move->patience_ns = nanoseconds() + 20000000;
    on = land(2, HU_MOVE_LEAVING);
    CHECK(!went_home(&on, 2) && move->state == HU_MOVE_ENTERED && nanoseconds() >= move->patience_ns);
    CHECK(hu_mailbox.landed == 1);
    /* A child that was forked on the way is another thread, and alone. */
    move->patience_ns = nanoseconds() + 20000000000;
    move->tid++;
    on = land(2, HU_MOVE_LEAVING);
    CHECK(!went_home(&on, 2) && move->state == HU_MOVE_ENTERED && hu_mailbox.landed == 1);
}

static void dropping(void)
{
    begin();
    uint64_t frame[4] = {21, 22, 23, 24};
    struct hu_move *move = &moves[1];
    move->drop = (uint64_t)&frame[3];
    move->kept[0] = (uint64_t)&frame[0]; /* rbx */
    move->kept[2] = (uint64_t)&frame[1]; /* r12 */
    move->kept[5] = (uint64_t)&frame[2]; /* r15 */
    struct hu_landing on = land(1, HU_MOVE_WAITING);
    CHECK(on.target == ENTRY && on.rdi == 5 && on.stack == (uint64_t)&frame[3]);
    CHECK(on.rbx == 21 && on.rbp == 6 && on.r12 == 22 && on.r15 == 23 && frame[3] == 24);
    CHECK(move->state == HU_MOVE_ARRIVED);
    move->works = 1; /* its first call is to be skipped: until then it has not arrived */
    on = land(1, HU_MOVE_WAITING);
    CHECK(move->state == HU_MOVE_ENTERED);
    on = land(1, HU_MOVE_REVOKED);
    CHECK(on.target == ENTRY && move->state == HU_MOVE_ENTERED);
}

/* Of several rows the one counts that is of this slot, of this thread, and not over. */
static void choosing(void)
{
    begin();
    for (int i = 0; i < MOVES; i++) {
        moves[i].slot = (uint64_t)&slots[3];
        moves[i].entry = ENTRY + 16 * (uint64_t)i;
    }
    moves[0].state = HU_MOVE_ARRIVED;
    moves[1].state = HU_MOVE_STAYED;
    moves[2].state = HU_MOVE_LEAVING;
    moves[2].tcb++;
    struct hu_landing on = {0};
    moves[3].state = HU_MOVE_LEAVING;
    hu_land(&on, &slots[3]);
    CHECK(on.target == ENTRY + 48 && moves[3].state == HU_MOVE_ENTERED && moves[2].state == HU_MOVE_LEAVING);
}

static int pass(int index, uint64_t *result)
{
    struct hu_passage passage = {.index = (uint64_t)index, .rax = 123, .rdi = 45};
    int skipped = hu_pass(&passage);
    CHECK(passage.index == REAL + (uint64_t)index && passage.rdi == 45 && (skipped || passage.rax == 123));
    if (result) {
        *result = passage.rax;
    }
    return skipped;
}

static void skipping(void)
{
    begin();
    struct hu_move *move = &moves[1];
    uint64_t result;
    for (int site = 0; site < SITES; site++) {
        CHECK(!pass(site, 0)); /* a thread of which nothing is known */
    }
    /* Each once, in the right order, and only for who was asked. */
    move->state = HU_MOVE_WAITING;
    CHECK(!pass(CLEAN, 0) && !pass(SETUP, 0) && !pass(ALONE, 0) && move->cleaned == 0);
    move->state = HU_MOVE_LEAVING;
    CHECK(!pass(SETUP, 0) && !pass(ALONE, 0) && pass(CLEAN, &result) && result == 123 && !pass(CLEAN, 0));
    move->state = HU_MOVE_ENTERED;
    CHECK(!pass(OTHER, 0) && pass(SETUP, &result) && result == 77 && !pass(SETUP, 0));
    CHECK(pass(ALONE, &result) && result == ~0ull && !pass(ALONE, 0));
    CHECK(move->cleaned == PAIR && move->set_up == (PAIR | 8) && !pass(CLEAN, 0));
    CHECK(!pass(WORK, 0) && move->state == HU_MOVE_ARRIVED && move->arrived);
    for (int site = 0; site < SITES; site++) {
        CHECK(!pass(site, 0)); /* what comes now is real */
    }
    /* Without a clean-up that was skipped, what is set up is set up. */
    *move = (struct hu_move){.state = HU_MOVE_ENTERED, .tcb = thread_pointer()};
    CHECK(!pass(SETUP, 0));
    /* Another thread's. */
    *move = (struct hu_move){.state = HU_MOVE_LEAVING, .tcb = thread_pointer() + 1};
    CHECK(!pass(CLEAN, 0));
    /* A dropped frame has arrived with the call that it skips. */
    *move = (struct hu_move){.state = HU_MOVE_ENTERED, .tcb = thread_pointer(), .drop = 1, .works = 1};
    CHECK(pass(ALONE, 0) && move->state == HU_MOVE_ARRIVED);
}

static void working(void)
{
    begin();
    struct hu_move *move = &moves[0];
    move->state = HU_MOVE_WAITING;
    CHECK(!pass(WORK, 0) && move->worked && move->state == HU_MOVE_WAITING);
    /* One that was to stay, and is at work: nobody leads it any more. */
    move->state = HU_MOVE_REVOKED;
    CHECK(!pass(WORK, 0) && move->state == HU_MOVE_STAYED && slots[0] == BACK);
    slots[0] = 4; /* its own return address is there already */
    move->state = HU_MOVE_REVOKED;
    CHECK(!pass(WORK, 0) && slots[0] == 4);
}

static void storing(void)
{
    static const uint64_t masks[] = {[1] = 0xff, [2] = 0xffff, [4] = 0xffffffff, [8] = ~0ull};
    for (uint64_t size = 0; size <= 9; size++) {
        uint64_t word = 0x1111111111111111, value = 0x2233445566778899;
        int known = size == 1 || size == 2 || size == 4 || size == 8;
        put((uint64_t)&word, size, value);
        CHECK(word == (known ? (0x1111111111111111 & ~masks[size]) | (value & masks[size]) : 0x1111111111111111));
        CHECK(holds((uint64_t)&word, size, value) == known && !holds((uint64_t)&word, size, value ^ 1));
    }
}

static uint64_t run_list(struct hu_op *ops, uint64_t count)
{
    struct hu_frame frame = {.lead = ++hu_mailbox.serial};
    hu_mailbox.ops = (uint64_t)ops;
    hu_mailbox.op_count = count;
    hu_dispatch(&frame);
    CHECK(hu_mailbox.done == hu_mailbox.serial);
    return count;
}

static void listing(void)
{
    begin();
    uint64_t marks[4] = {0};
    uint8_t expected = 3;
    struct hu_op ops[] = {
        {.kind = HU_OP_EXPECT, .number = (uint64_t)&expected, .args = {1, 3, 5}},
        {.kind = HU_OP_EXPECT, .number = (uint64_t)&expected, .args = {1, 4, 1}},
        {.kind = HU_OP_STORE, .number = (uint64_t)&marks[0], .args = {8, 1}}, /* stepped over */
        {.kind = HU_OP_STORE, .number = (uint64_t)&marks[1], .args = {8, 1}},
        {.kind = HU_OP_SKIP, .number = 1},
        {.kind = HU_OP_STORE, .number = (uint64_t)&marks[2], .args = {8, 1}}, /* stepped over */
        {.kind = HU_OP_ASK, .number = 1, .args = {2}},
        {.kind = HU_OP_LAND, .number = 1, .args = {2, ticks(2), 2}},
        {.kind = HU_OP_END}, /* not reached: nobody came */
        {.kind = HU_OP_REVOKE, .number = 1, .args = {2}},
        {.kind = HU_OP_ENTER, .number = 0, .args = {MOVES}},
        {.kind = HU_OP_END},
        {.kind = HU_OP_STORE, .number = (uint64_t)&marks[3], .args = {8, 1}}, /* not reached */
    };
    for (int i = 0; i < MOVES; i++) {
        moves[i].state = HU_MOVE_WAITING;
    }
    moves[3].state = HU_MOVE_LANDED;
    uint64_t began = now();
    run_list(ops, sizeof ops / sizeof *ops);
    CHECK(now() - began >= ticks(2) && ops[7].result == 1 && ops[1].result == 1 && ops[0].result == 0);
    CHECK(marks[0] == 0 && marks[1] == 1 && marks[2] == 0 && marks[3] == 0);
    CHECK(moves[0].state == HU_MOVE_WAITING && !moves[0].asked && moves[3].state == HU_MOVE_ENTERED);
    CHECK(moves[1].state == HU_MOVE_REVOKED && moves[2].state == HU_MOVE_REVOKED && moves[1].asked);
}

static void arriving(void)
{
    begin();
    struct hu_move *move = &moves[0];
    static const uint64_t before[] = {HU_MOVE_FREE,    HU_MOVE_WAITING, HU_MOVE_LEAVING, HU_MOVE_LANDED,
                                      HU_MOVE_ENTERED, HU_MOVE_ARRIVED, HU_MOVE_REVOKED};
    for (uint64_t i = 0; i < sizeof before / sizeof *before; i++) {
        move->state = before[i];
        int arrived = has_arrived(move);
        CHECK(arrived == (before[i] == HU_MOVE_FREE || before[i] == HU_MOVE_ENTERED || before[i] == HU_MOVE_ARRIVED));
        CHECK(move->state == (before[i] == HU_MOVE_ENTERED ? HU_MOVE_ARRIVED : before[i]));
        CHECK(has_landed(move) == (before[i] != HU_MOVE_LEAVING));
    }
    move->works = 1; /* then it tells by itself; this thread does not sleep */
    move->state = HU_MOVE_ENTERED;
    CHECK(!has_arrived(move) && move->state == HU_MOVE_ENTERED);
}

/* Real threads. */

enum manner { AT_ONCE, ABOUT_IN_TIME, NEVER, ENDS, MANNERS };

static struct seat {
    uint64_t slot;
    uint32_t stop, quit, over; /* asked by us, by the program, and no use any more */
    enum manner manner;
    unsigned seed;
    int attached; /* what CLEAN undoes and SETUP does */
    unsigned entered, ended;
    pthread_t thread;
    uint32_t ready;
} seats[SEATS];
static uint32_t group_flag;

static uint32_t look(const uint32_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static void set(uint32_t *word, uint32_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

static void delay(struct seat *seat, unsigned most_us)
{
    struct timespec moment = {0, (long)(rand_r(&seat->seed) % (most_us + 1)) * 1000};
    nanosleep(&moment, 0);
}

/* The loop, from its top; returns when its thread has gone to where its caller called it. */
static void looping(struct seat *seat)
{
    for (;;) {
        if (!pass(SETUP, 0)) {
            CHECK(!seat->attached);
            seat->attached = 1;
        }
        CHECK(seat->attached);
        for (;;) {
            pass(WORK, 0);
            int asked = look(&seat->stop) || look(&group_flag);
            if (look(&seat->quit) || (asked && seat->manner != NEVER) || look(&seat->over)) {
                break;
            }
            delay(seat, 20);
        }
        if (seat->manner == ABOUT_IN_TIME) {
            delay(seat, 2000);
        }
        int skipped = pass(CLEAN, 0);
        if (!skipped) {
            CHECK(seat->attached);
            seat->attached = 0;
        }
        if (seat->manner == ABOUT_IN_TIME) {
            delay(seat, 500);
        }
        if (seat->slot != (uint64_t)hu_landing) {
            CHECK(seat->slot == BACK && !skipped);
            return;
        }
        struct hu_landing landing = {0};
        hu_land(&landing, &seat->slot);
        CHECK(seat->slot == BACK);
        if (landing.target == BACK) {
            return;
        }
        CHECK(landing.target == ENTRY && landing.rdi == (uint64_t)seat);
        seat->entered++;
    }
}

static void *sit(void *argument)
{
    struct seat *seat = argument;
    struct hu_move *move = &moves[seat - seats];
    move->tid = (uint64_t)gettid();
    move->tcb = thread_pointer();
    set(&seat->ready, 1);
    while (look(&seat->ready) != 2) {
        delay(seat, 20);
    }
    looping(seat);
    seat->ended++;
    return 0;
}

/* As the tool writes it (upgrade/restart.py). */
static uint64_t restart_list(struct hu_op *ops, uint64_t first, uint64_t count, int group, uint64_t limit)
{
    struct hu_op *op = ops;
    *op++ = (struct hu_op){.kind = HU_OP_ASK, .number = first, .args = {count}};
    for (uint64_t i = first; i < first + count && !group; i++) {
        *op++ = (struct hu_op){.kind = HU_OP_STORE, .number = (uint64_t)&seats[i].stop, .args = {4, 1}};
    }
    if (group) {
        *op++ = (struct hu_op){.kind = HU_OP_STORE, .number = (uint64_t)&group_flag, .args = {4, 1}};
    }
    struct hu_op back = {.kind = HU_OP_STORE, .number = (uint64_t)&group_flag, .args = {4, 0}};
    *op++ = (struct hu_op){.kind = HU_OP_LAND, .number = first, .args = {count, limit, 5}};
    *op++ = back;
    *op++ = (struct hu_op){.kind = HU_OP_ENTER, .number = first, .args = {count}};
    *op++ = (struct hu_op){.kind = HU_OP_ARRIVE, .number = first, .args = {count, ticks(2000), 2}};
    *op++ = (struct hu_op){.kind = HU_OP_SKIP, .number = 4 + count};
    *op++ = (struct hu_op){.kind = HU_OP_STORE, .number = (uint64_t)&group_flag, .args = {4, 0}};
    *op++ = back;
    for (uint64_t i = first; i < first + count; i++) {
        *op++ = (struct hu_op){.kind = HU_OP_STORE, .number = (uint64_t)&seats[i].stop, .args = {4, 0}};
    }
    *op++ = (struct hu_op){.kind = HU_OP_REVOKE, .number = first, .args = {count}};
    *op++ = (struct hu_op){.kind = HU_OP_ENTER, .number = first, .args = {count}};
    *op++ = (struct hu_op){.kind = HU_OP_END};
    return (uint64_t)(op - ops);
}

static void *the_program(void *argument)
{
    struct seat *seat = argument;
    delay(seat, 1500);
    set(&seat->quit, 1);
    return 0;
}

static void round_of(unsigned number, unsigned *came, unsigned *stayed)
{
    struct hu_op ops[64];
    pthread_t program = 0;
    int group = number % 2;
    uint64_t limit = ticks(1 + number % 2);
    begin();
    set(&group_flag, 0);
    for (uint64_t i = 0; i < SEATS; i++) {
        struct seat *seat = &seats[i];
        *seat = (struct seat){.slot = BACK, .manner = (number >> (2 * i)) % MANNERS, .seed = number * SEATS + i};
        CHECK(pthread_create(&seat->thread, 0, sit, seat) == 0);
    }
    for (int i = 0; i < SEATS; i++) {
        struct seat *seat = &seats[i];
        while (!look(&seat->ready)) {
            sched_yield();
        }
        struct hu_move *move = &moves[i];
        move->slot = (uint64_t)&seat->slot;
        move->argument = (uint64_t)seat;
        move->together = (uint64_t)group;
        move->works = 1;
        move->clears = 1;
        move->clear_address[0] = (uint64_t)&seat->stop;
        move->clear_size[0] = 4;
        move->state = HU_MOVE_WAITING;
        seat->slot = (uint64_t)hu_landing; /* as the commit does it, while they stand still */
        set(&seat->ready, 2);
        if (seat->manner == ENDS && !program) {
            CHECK(pthread_create(&program, 0, the_program, seat) == 0);
        }
    }
    for (uint64_t first = 0; first < SEATS; first += group ? SEATS : 1) {
        run_list(ops, restart_list(ops, first, group ? SEATS : 1, group, limit));
    }
    if (program) {
        CHECK(pthread_join(program, 0) == 0);
    }
    for (int i = 0; i < SEATS; i++) {
        uint64_t until = nanoseconds() + 3000000000; /* nobody waits for its patience to end */
        for (uint64_t state = HU_MOVE_LANDED; state == HU_MOVE_LANDED || state == HU_MOVE_LEAVING;) {
            state = load(&moves[i].state);
            CHECK(nanoseconds() < until);
        }
        set(&seats[i].over, 1);
    }
    for (int i = 0; i < SEATS; i++) {
        CHECK(pthread_join(seats[i].thread, 0) == 0);
        struct seat *seat = &seats[i];
        uint64_t state = load(&moves[i].state);
        CHECK(seat->ended == 1 && seat->entered <= 1 && seat->slot == BACK);
        /* Nothing is left set up, but where it was asked to leave and then was not, the moment it left for good. */
        CHECK(!seat->attached);
        CHECK(state != HU_MOVE_WAITING && state != HU_MOVE_LEAVING && state != HU_MOVE_LANDED);
        seat->entered ? (*came)++ : (*stayed)++;
    }
}

int main(int argc, char **argv)
{
    unsigned rounds = argc > 1 ? (unsigned)atoi(argv[1]) : 64, came = 0, stayed = 0;
    landing();
    dropping();
    choosing();
    skipping();
    working();
    storing();
    listing();
    arriving();
    for (unsigned number = 0; number < rounds; number++) {
        round_of(number * 2654435761u >> 8, &came, &stayed);
    }
    printf("sound: %u came, %u stayed\n", came, stayed);
    return 0;
}
