/* A main thread somewhere; a function that may be called on it, which allocates. */

#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER, own = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t never = PTHREAD_COND_INITIALIZER;
static volatile int ready;

__attribute__((noinline)) long allocates(long size)
{
    char *volatile memory = malloc((size_t)size);
    memset(memory, 1, (size_t)size);
    free(memory);
    return size + 1;
}

static void churn(long turns)
{
    void *kept[16] = {0};
    for (long i = 0; i < turns; i++) {
        free(kept[i % 16]);
        kept[i % 16] = malloc(2000 + (size_t)(i * 37 % 3000)); /* more than a thread keeps for itself */
    }
    for (int i = 0; i < 16; i++) {
        free(kept[i]);
    }
}

static void *holds(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&held);
    ready = 1;
    pause();
    return NULL;
}

static void *sleeps(void *unused)
{
    (void)unused;
    ready = 1;
    pause();
    return NULL;
}

static void *churns(void *unused)
{
    (void)unused;
    for (ready = 1;;) {
        churn(100);
    }
    return NULL;
}

int main(int count, char **words)
{
    const char *what = count > 1 ? words[1] : "";
    pthread_t other;
    mallopt(M_ARENA_MAX, 1);
    pthread_create(&other, NULL, !strcmp(what, "locks") ? holds : !strcmp(what, "mixed") ? churns : sleeps, NULL);
    while (!ready) {
        usleep(1000);
    }
    printf("%#lx\n", (unsigned long)(uintptr_t)allocates);
    fflush(stdout);
    alarm(120);
    if (!strcmp(what, "locks")) {
        pthread_mutex_lock(&held);
    } else if (!strcmp(what, "joins")) {
        pthread_join(other, NULL);
    } else if (!strcmp(what, "waits")) {
        pthread_mutex_lock(&own);
        pthread_cond_wait(&never, &own);
    } else if (!strcmp(what, "polls")) {
        poll(NULL, 0, -1);
    } else if (!strcmp(what, "spins")) {
        for (;;) {
            churn(100);
        }
    } else {
        for (;;) {
            churn(5000);
            poll(NULL, 0, 1);
        }
    }
    return 0;
}
