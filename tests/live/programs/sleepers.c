/* Sleepers: one thread for each way to sleep.  They note every error that the call should not have seen, and every nap
 * that ended early: an upgrade must be invisible to them. */

#define _GNU_SOURCE
#include "host.h"

#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { NAP_MS = 250, FOREVER = 0 };

struct sleeper {
    const char *name;
    int (*nap)(void);
    int ms;       /* how long a nap lasts; FOREVER */
    int patience; /* how much earlier the kernel may end it, in ms */
    atomic_long naps, errors, early;
    atomic_int error;
};

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static struct timespec from_now(clockid_t clock, long ms)
{
    struct timespec t;
    clock_gettime(clock, &t);
    t.tv_sec += ms / 1000;
    t.tv_nsec += ms % 1000 * 1000000;
    if (t.tv_nsec >= 1000000000) {
        t.tv_sec++;
        t.tv_nsec -= 1000000000;
    }
    return t;
}

static int silent_pipe(void)
{
    static _Thread_local int ends[2];
    if (!ends[0] && pipe(ends)) {
        die("pipe");
    }
    return ends[0];
}

static int failed(int result)
{
    return result < 0 ? errno : 0;
}

static int unless(int result, int expected)
{
    int error = failed(result);
    return error == expected ? 0 : error ? error : EPROTO;
}

static int nap_poll(void)
{
    return failed(poll(NULL, 0, NAP_MS));
}

static int nap_poll_forever(void)
{
    struct pollfd p = {.fd = silent_pipe(), .events = POLLIN};
    return unless(poll(&p, 1, -1), -1);
}

static int nap_ppoll(void)
{
    struct timespec t = {0, NAP_MS * 1000000L};
    sigset_t none;
    sigemptyset(&none);
    return failed(ppoll(NULL, 0, &t, &none));
}

static int nap_select(void)
{
    struct timeval t = {0, NAP_MS * 1000L};
    return failed(select(0, NULL, NULL, NULL, &t));
}

static int epoll_nap(int ms)
{
    static _Thread_local int epoll;
    if (!epoll) {
        struct epoll_event event = {.events = EPOLLIN};
        epoll = epoll_create1(EPOLL_CLOEXEC);
        epoll_ctl(epoll, EPOLL_CTL_ADD, silent_pipe(), &event);
    }
    struct epoll_event event;
    return failed(epoll_wait(epoll, &event, 1, ms));
}

static int nap_epoll(void)
{
    return epoll_nap(NAP_MS);
}

static int nap_epoll_forever(void)
{
    return epoll_nap(-1);
}

static int nap_nanosleep(void)
{
    struct timespec t = {0, NAP_MS * 1000000L};
    return failed(nanosleep(&t, NULL));
}

static int nap_clock_nanosleep(void)
{
    struct timespec t = from_now(CLOCK_MONOTONIC, NAP_MS);
    return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static int nap_condition(void)
{
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
    struct timespec t = from_now(CLOCK_REALTIME, NAP_MS);
    int error;
    pthread_mutex_lock(&mutex);
    do { /* waking without a reason is allowed here */
        error = pthread_cond_timedwait(&condition, &mutex, &t);
    } while (!error);
    pthread_mutex_unlock(&mutex);
    return error == ETIMEDOUT ? 0 : error;
}

static sem_t closed; /* never posted */

static int nap_semaphore(void)
{
    struct timespec t = from_now(CLOCK_REALTIME, NAP_MS);
    return unless(sem_timedwait(&closed, &t), ETIMEDOUT);
}

static int nap_semaphore_forever(void)
{
    return unless(sem_wait(&closed), -1);
}

static int nap_futex(void)
{
    static atomic_uint word;
    struct timespec t = {0, NAP_MS * 1000000L};
    return unless((int)syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &t, NULL, 0), ETIMEDOUT);
}

static int nap_signal(void)
{
    struct timespec t = {0, NAP_MS * 1000000L};
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    return unless(sigtimedwait(&set, NULL, &t), EAGAIN);
}

static int nap_read(void)
{
    char byte;
    return unless((int)read(silent_pipe(), &byte, 1), -1);
}

static int nap_accept(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(s, (struct sockaddr *)&address, sizeof address.sun_family) || listen(s, 1)) {
        die("listen");
    }
    return unless(accept(s, NULL, NULL), -1);
}

static int nap_receive(void)
{
    static int ends[2];
    struct timeval t = {0, NAP_MS * 1000L};
    char byte;
    if (!ends[0]) {
        if (socketpair(AF_UNIX, SOCK_DGRAM, 0, ends)) {
            die("socketpair");
        }
        setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
    }
    return unless((int)recv(ends[0], &byte, 1, 0), EAGAIN);
}

static struct sleeper sleepers[] = {
    {.name = "poll", .nap = nap_poll, .ms = NAP_MS},
    {.name = "poll-forever", .nap = nap_poll_forever},
    {.name = "ppoll", .nap = nap_ppoll, .ms = NAP_MS},
    {.name = "select", .nap = nap_select, .ms = NAP_MS},
    {.name = "epoll", .nap = nap_epoll, .ms = NAP_MS},
    {.name = "epoll-forever", .nap = nap_epoll_forever},
    {.name = "nanosleep", .nap = nap_nanosleep, .ms = NAP_MS},
    {.name = "clock_nanosleep", .nap = nap_clock_nanosleep, .ms = NAP_MS},
    {.name = "condition", .nap = nap_condition, .ms = NAP_MS},
    {.name = "semaphore", .nap = nap_semaphore, .ms = NAP_MS},
    {.name = "sem-forever", .nap = nap_semaphore_forever},
    {.name = "futex", .nap = nap_futex, .ms = NAP_MS},
    {.name = "sigtimedwait", .nap = nap_signal, .ms = NAP_MS},
    {.name = "read", .nap = nap_read},
    {.name = "accept", .nap = nap_accept},
    {.name = "receive", .nap = nap_receive, .ms = NAP_MS, .patience = 10}, /* counted in jiffies */
};

static void *sleeper_main(void *argument) __attribute__((noreturn));

static void *sleeper_main(void *argument)
{
    struct sleeper *sleeper = argument;
    for (;;) {
        double begin = now_ms();
        int error = sleeper->nap();
        if (error) {
            sleeper->errors++;
            sleeper->error = error;
        } else if (now_ms() - begin < sleeper->ms - 2 - sleeper->patience) {
            sleeper->early++;
        }
        sleeper->naps++;
    }
}

void start_sleepers(void)
{
    for (size_t i = 0; i < LENGTH(sleepers); i++) {
        pthread_t thread = start(NULL, sleeper_main, &sleepers[i], sleepers[i].name);
        pthread_detach(thread);
    }
}

void report_sleepers(int errors_of_main)
{
    long errors = errors_of_main, early = 0, naps = 0;
    char detail[512] = "-";
    for (size_t i = 0; i < LENGTH(sleepers); i++) {
        struct sleeper *sleeper = &sleepers[i];
        errors += sleeper->errors;
        early += sleeper->early;
        naps += sleeper->naps;
        if (sleeper->errors || sleeper->early) {
            size_t used = strlen(detail);
            snprintf(detail + used, sizeof detail - used, ",%s:%s:early%ld", sleeper->name,
                     sleeper->errors ? strerrorname_np(sleeper->error) : "0", (long)sleeper->early);
        }
    }
    say("errors=%ld early=%ld naps=%ld main=%d detail=%s", errors, early, naps, errors_of_main, detail);
}
