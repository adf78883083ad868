/* What the agent and the tool agree on.  Every field is a 64-bit word so that the Python side can mirror it without
 * knowing a compiler's padding (src/hotupgrade/target/abi.py; tests/unit/target/test_abi.py compares the two). */
#ifndef HOTUPGRADE_ABI_H
#define HOTUPGRADE_ABI_H

#include <stdint.h>

#define HU_MAGIC 0x3165646172677075ull /* "upgrade1" */
#define HU_ABI 3ull
#define HU_CPU_WORDS 16 /* 1,024 processors */
#define HU_CALL_WORDS 8 /* 512 system calls */

/* Life of one stop.  A compare-and-swap leads from STOPPING to exactly one of COMMITTING and ABORTED. */
enum hu_state { HU_IDLE = 0, HU_STOPPING = 1, HU_COMMITTING = 2, HU_COMMITTED = 3, HU_ABORTED = 4 };

/* Why a stop was aborted. */
enum hu_reason {
    HU_OK = 0,
    HU_LATE = 1,       /* a thread did not arrive before the time limit */
    HU_ACTIVE = 2,     /* a thread stands in a watched range, or will return into one */
    HU_GONE = 3,       /* a thread to be signalled is gone */
    HU_STRANGER = 4,   /* the process has a thread that is not parked */
    HU_MISMATCH = 5,   /* bytes to be replaced are not what the plan expects */
    HU_NO_TASK_FD = 6, /* /proc/self/task cannot be opened: threads cannot be counted */
    HU_NO_HANDLER = 7, /* the signal handler could not be installed */
    HU_NO_STACK = 8,   /* a stack pointer outside of every known mapping, or too much to scan */
    HU_HOOK = 9,       /* a function of the new build that prepares its state reported a failure */
    HU_ASLEEP = 10,    /* a thread that was seen busy sleeps */
    HU_OCCUPIED = 12,  /* the leader is to stand still in a certain system call, and is in another */
    HU_ELSEWHERE = 11, /* a thread that is to be led out of a sleep is no longer in it */
};

/* One thread, two cache lines. */
struct hu_thread {
    uint64_t tid;
    uint64_t busy;     /* 1: parked by signal, spins; 0: parked by redirection, sleeps */
    uint64_t tcb;      /* the thread's own thread pointer (%fs:0); glibc puts it at the upper end of the stack */
    uint64_t sp;       /* where the scan begins; written by the thread itself */
    uint64_t pc;       /* where the thread stands; written by the thread itself */
    uint64_t parked;   /* time stamp */
    uint64_t released; /* time stamp */
    uint64_t arrived;  /* enum hu_arrival */
    uint64_t loop; /* the watched ranges in which this thread may stand: those of the loop that it will be led out of */
    uint64_t live; /* 0, or the lowest address that its stack pointer must not be above: a frame is dropped there */
    uint64_t spare[6];
};

enum hu_arrival { HU_AWAY = 0, HU_ARRIVED = 1, HU_ON_ALTERNATE = 2 /* arrived, from an alternate signal stack */ };

struct hu_watch {
    uint64_t low, high; /* a word w is a hit if low < w < high */
    uint64_t loop;      /* 0, or the loop whose code this is: no hit for a thread that will be led out of it */
};

struct hu_edit {
    uint64_t address, old, new;
};

/* The life of a thread that is led out of its loop and enters it again, in the new code. */
enum hu_move_state {
    HU_MOVE_FREE = 0,
    HU_MOVE_WAITING = 1, /* its loop returns to us; it was not asked to leave */
    HU_MOVE_LEAVING = 2, /* it was asked to leave */
    HU_MOVE_LANDED = 3,  /* it has left, and waits for the others of its group */
    HU_MOVE_ENTERED = 4, /* it is on its way into the loop */
    HU_MOVE_ARRIVED = 5, /* it works, or sleeps, in the new loop */
    HU_MOVE_REVOKED = 6, /* it did not leave in time and is to stay: should it come yet, it goes back */
    HU_MOVE_STAYED = 7,  /* it was seen at work after that, and has its return address back */
};

/* What a thread needs in order to land.  Rows stay valid for as long as a slot may lead here. */
struct hu_move {
    uint64_t state; /* enum hu_move_state; the low half is a futex word */
    uint64_t tid, tcb;
    uint64_t slot;    /* where the return address lay that leads here now */
    uint64_t back;    /* that return address */
    uint64_t drop;    /* 0: the loop itself returned; else where the loop's own return address lies: its frame goes */
    uint64_t kept[6]; /* dropping: where the frame holds its caller's rbx, rbp, r12 to r15; 0: still in the register */
    uint64_t entry;   /* home of the loop: leads to the code in force */
    uint64_t argument;
    uint64_t together; /* 1: waits for its group before it enters */
    uint64_t works;   /* 1: it has arrived when it works or sleeps (dropping: when it has skipped a call), not before */
    uint64_t leaving; /* 0, or the address of a byte that says whether the program itself wants the thread to end */
    uint64_t clears;  /* of the following: what it puts back when it has left */
    uint64_t clear_address[2], clear_size[2], clear_value[2];
    uint64_t cleaned, set_up; /* by pair of calls: skipped */
    uint64_t patience_ns;     /* moment of CLOCK_MONOTONIC at which a landed thread goes on by itself */
    uint64_t asked, worked, left, entered, arrived; /* time stamps; "worked": began to work for the last time before */
    uint64_t code; /* entry of the code that it stands in until it has left; only the tool looks at it */
};

enum hu_site_kind { HU_SITE_CLEAN = 1, HU_SITE_SETUP = 2, HU_SITE_WORK = 3 };

/* A call in a loop that comes by here first. */
struct hu_site {
    uint64_t real; /* what is called */
    uint64_t kind;
    uint64_t pair;           /* a single bit; SETUP: skipped only if CLEAN of the same pair was */
    uint64_t alone;          /* 1: a SETUP that needs no CLEAN */
    uint64_t returns, value; /* a skipped call returns this value, if "returns" */
};

enum hu_op_kind {
    HU_OP_SYSCALL = 1,
    HU_OP_CALL = 2,
    HU_OP_TOUCH_READ = 3,
    HU_OP_TOUCH_WRITE = 4,
    HU_OP_STOP = 5,
    HU_OP_STORE = 6,   /* at address "number", args[0] bytes of args[1] */
    HU_OP_ASK = 7,     /* moves "number" on, args[0] of them: waiting, or asked in vain before -> leaving */
    HU_OP_LAND = 8,    /* wait until they have left; args[1] ticks at most, else skip args[2] operations */
    HU_OP_ENTER = 9,   /* let those in that wait */
    HU_OP_ARRIVE = 10, /* as LAND: wait until they have arrived */
    HU_OP_REVOKE = 11, /* those that have not left are to stay */
    HU_OP_EXPECT = 14, /* at address "number", args[0] bytes of args[1]; else skip args[2] operations */
    HU_OP_SKIP = 12,   /* "number" operations */
    HU_OP_END = 13,
};

struct hu_op {
    uint64_t kind;
    uint64_t number; /* system call number, address of a function, or address of a page list */
    uint64_t args[6];
    uint64_t result;
    uint64_t fatal; /* nonzero: a negative result of a system call ends the list */
};

enum hu_stamp {
    HU_T_BEGIN = 0,   /* written by the tool: when the stop began */
    HU_T_PARKED = 1,  /* every sleeper is parked, the leader is in */
    HU_T_CHECKED = 2, /* stacks of the sleepers and bytes to be replaced were checked */
    HU_T_STOPPED = 3, /* the last busy thread is parked */
    HU_T_SYNCED = 4,  /* state was migrated, constants have their new contents */
    HU_T_REPLACED = 5,
    HU_T_RELEASED = 6, /* the sleepers were woken */
    HU_T_CLEANED = 7,
    HU_STAMPS = 8
};

struct hu_mailbox {
    uint64_t magic, abi;
    uint64_t state; /* the low half is a futex word */
    uint64_t deadline_tsc, deadline_ns;
    uint64_t busy_limit;            /* time-stamp ticks that busy threads may be held before the stop is given up */
    uint64_t sleepers, sleepers_in; /* the low half of sleepers_in is a futex word */
    uint64_t search;                /* 1: the tool still looks for stacks that no thread stands on; wait for it */
    uint64_t busy, busy_in;
    uint64_t threads, thread_count;                       /* struct hu_thread[] */
    uint64_t watches, watch_count, watch_low, watch_high; /* struct hu_watch[], sorted, disjoint */
    uint64_t stacks, stack_count;                         /* struct hu_watch[]: the writable mappings, sorted */
    uint64_t excuses, excuse_count; /* addresses of words on stacks that are no return addresses, as an unwinder says */
    uint64_t main_stack;            /* the last word of the main thread's stack */
    uint64_t edits, edit_count, sync_count; /* the first sync_count edits are data */
    uint64_t hooks, hook_count;             /* struct hu_op[]: calls to be made with all threads parked */
    uint64_t signal;
    uint64_t expected_threads, task_fd;
    uint64_t reason, reason_tid, reason_address;
    uint64_t stamps[HU_STAMPS];
    uint64_t ops, op_count;
    uint64_t serial, taken,
        done; /* the list's number, copied to "taken" when a thread begins it and to "done" at its end */
    uint64_t xsave_size;
    uint64_t ledger;                /* address of the record in force; switched by an edit of the plan itself */
    uint64_t inside;                /* threads that may be using the tables of a stop */
    uint64_t leader_in, leader_out; /* time stamps of the leader's visit */
    uint64_t owner;                 /* which process this is: in a child that was forked, it names the parent */
    uint64_t cpus[HU_CPU_WORDS];    /* where the leader is to run meanwhile: off the busy threads' cores; 0: anywhere */
    uint64_t moves, move_count;     /* struct hu_move[] */
    uint64_t sites;                 /* struct hu_site[] */
    uint64_t hold;                  /* 1: the leader must be in one of the system calls of the following set */
    uint64_t calls[HU_CALL_WORDS];  /* a bit for each number */
    uint64_t landed; /* counts threads of groups that have left their loop; the low half is a futex word */
};

/* A thread whose loop, or the call that it slept in, has returned; with what it goes on. */
struct hu_landing {
    uint64_t target, stack, rdi, rdx, rax, r15, r14, r13, r12, rbp, rbx;
};

/* A call that came by here; "index" is that of the site, and becomes the address of what is called. */
struct hu_passage {
    uint64_t r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax, index;
};

/* What the tool writes below the red zone of a thread that it sends here. */
struct hu_frame {
    uint64_t lead;   /* number of the operation list to run; 0: park */
    uint64_t thread; /* address of its struct hu_thread */
    uint64_t mask;   /* signal mask to return to */
    uint64_t error;  /* 0, or the kernel's internal restart code (512 to 516) or EINTR of the interrupted system call */
    uint64_t resume_after; /* the address behind the system call instruction */
    uint64_t r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi;
    uint64_t rflags, rip;
    /* 128 bytes of red zone, then the thread's own stack pointer */
};

/* The blob begins with this table of offsets from its own start. */
struct hu_header {
    uint64_t magic, abi;
    uint64_t enter, handler, restorer, mailbox, text_size, total_size, landing, site;
};

#endif
