/* What the program and the library of the restarts' meter share. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

struct worker {
    pthread_t thread;
    _Atomic pid_t tid;
    atomic_bool stop;
    atomic_int version; /* of the loop that it is in */
    atomic_ulong done;
    atomic_long out_us, in_us;         /* how long to wait on the way out and in */
    atomic_long waited_out, waited_in; /* how long it was, in ns */
};

void work(struct worker *worker);
int worker_start(struct worker *worker);
