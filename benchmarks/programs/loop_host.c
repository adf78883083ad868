/* The program of loop.c: one worker, tied to a core, and commands on standard input, each answered by one line:
 *
 *   tid              the worker's thread id
 *   pauses OUT IN    wait so many microseconds on the way out, and on the way in, from now on
 *   waited           how long it was in the last restart, out and in, in nanoseconds
 *   version          of the loop that the worker is in
 */
#define _GNU_SOURCE
#include "loop.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct worker worker;

static void tie(int core)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    pthread_setaffinity_np(worker.thread, sizeof set, &set);
}

static void answer(const char *line)
{
    long out, in;
    if (strncmp(line, "tid", 3) == 0) {
        printf("%d\n", worker.tid);
    } else if (sscanf(line, "pauses %ld %ld", &out, &in) == 2) {
        worker.out_us = out;
        worker.in_us = in;
        printf("done\n");
    } else if (strncmp(line, "waited", 6) == 0) {
        printf("%ld %ld\n", worker.waited_out, worker.waited_in);
    } else if (strncmp(line, "version", 7) == 0) {
        printf("%d\n", worker.version);
    } else {
        printf("what?\n");
    }
}

int main(int count, char **words)
{
    char line[128];
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (count != 2 || worker_start(&worker) != 0) {
        fprintf(stderr, "usage: loop_host CORE\n");
        return 2;
    }
    tie(atoi(words[1]));
    while (!worker.done) {
        usleep(1000);
    }
    printf("ready\n");
    while (fgets(line, sizeof line, stdin)) {
        answer(line);
    }
    return 0;
}
