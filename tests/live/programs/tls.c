/* Thread-locals; the build's flags choose the model.  NEW_TLS adds one, in front. */

#include "subject.h"

#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

enum { MOST = 16 };

#ifdef NEW_TLS
static __thread long inserted = 5;
#endif
EXPORT __thread long exported_id = -1;
static __thread long calls;
static __thread long bonus = 40;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static long asked, answers[MOST], addresses[MOST], workers, answered;

/* 1000000 * build + 10000 * id + 100 * bonus + calls; a new thread-local adds what it says */
EXPORT NOINLINE long answer(long more)
{
    calls++;
    bonus += more;
    long result = VERSION * 1000000L + exported_id * 10000 + bonus * 100 + calls;
#ifdef NEW_TLS
    inserted += more + 1;
    result += inserted * 1000000000L;
#endif
    return result;
}

EXPORT NOINLINE long address_of_calls(long unused UNUSED)
{
    return (long)&calls;
}

/* A thread that never leaves: it says what its own thread-locals hold whenever it is asked. */
EXPORT long worker(long id)
{
    exported_id = id;
    pthread_mutex_lock(&mutex);
    long seen = asked;
    workers++;
    for (;;) {
        while (seen == asked) {
            pthread_cond_wait(&changed, &mutex);
        }
        seen = asked;
        answers[id % MOST] = answer(0);
        addresses[id % MOST] = address_of_calls(0);
        answered++;
        pthread_cond_broadcast(&changed);
    }
}

EXPORT long count_workers(long unused UNUSED)
{
    pthread_mutex_lock(&mutex);
    long result = workers;
    pthread_mutex_unlock(&mutex);
    return result;
}

EXPORT const char *ask(void)
{
    static char text[1024];
    pthread_mutex_lock(&mutex);
    asked++;
    answered = 0;
    pthread_cond_broadcast(&changed);
    while (answered < workers) {
        pthread_cond_wait(&changed, &mutex);
    }
    int used = 0;
    for (int i = 0; i < MOST; i++) {
        if (answers[i]) {
            used += snprintf(text + used, sizeof text - used, "answer%d=%ld address%d=%lx ", i, answers[i], i,
                             addresses[i]);
        }
    }
    pthread_mutex_unlock(&mutex);
    return text;
}
