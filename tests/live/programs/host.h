/* The parts of the host program. */

#ifndef HOST_H
#define HOST_H

#include <pthread.h>
#include <stdio.h>

#define LENGTH(array) (sizeof(array) / sizeof *(array))

typedef long function(long);

/* host.c */
void die(const char *what) __attribute__((noreturn));
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
pthread_t start(const pthread_attr_t *attributes, void *(*run)(void *), void *argument, const char *name);

/* sleepers.c */
void start_sleepers(void);
void report_sleepers(int errors_of_main);

/* workers.c: a worker is a thread that calls a function again and again in some way, until stop_workers() */
void start_workers(const char *way, int count, function *f, long argument, int pause);
void report_workers(void);
void stop_workers(void);

#endif
