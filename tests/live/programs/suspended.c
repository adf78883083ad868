/* Waits as the master of a fork server does: every signal is blocked but in sigsuspend().  SIGUSR1 is counted, SIGUSR2
 * prints what was counted and the build, SIGTERM ends it. */

#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>

#ifndef VERSION
#define VERSION 1
#endif

static volatile sig_atomic_t count, wanted, over, wrong;

static void caught(int number)
{
    count += number == SIGUSR1;
    wanted += number == SIGUSR2;
    over |= number == SIGTERM;
}

__attribute__((noinline)) int version(void)
{
    __asm__ volatile("" ::: "memory");
    return VERSION;
}

__attribute__((noinline)) static void answer(void)
{
    wanted = 0;
    printf("version=%d count=%d wrong=%d\n", version(), (int)count, (int)wrong);
    fflush(stdout);
}

int main(void)
{
    sigset_t these, none, now;
    struct sigaction action = {.sa_handler = caught};
    sigemptyset(&none);
    sigemptyset(&these);
    sigaddset(&these, SIGUSR1);
    sigaddset(&these, SIGUSR2);
    sigaddset(&these, SIGTERM);
    sigprocmask(SIG_BLOCK, &these, NULL);
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGUSR2, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    puts("ready");
    fflush(stdout);
    while (!over) {
        wrong += sigsuspend(&none) != -1 || errno != EINTR;
        sigprocmask(SIG_BLOCK, NULL, &now);
        wrong += !sigismember(&now, SIGUSR1) || !sigismember(&now, SIGTERM);
        if (wanted) {
            answer();
        }
    }
    return 0;
}
