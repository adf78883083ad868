/* A program to be upgraded while it runs: host [LIBRARY TO OPEN]...
 *
 * It answers commands, one line each.  What it calls is found by name in the libraries under test, so that one host
 * serves every test. */

#define _GNU_SOURCE
#include "host.h"

#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef LINE
#define LINE 256 /* another one is another main() */
#endif

enum { MOST_LIBRARIES = 4, MOST_WORDS = 6, MOST_SAVED = 8 };

typedef const char *text_function(void);

static void *libraries[MOST_LIBRARIES];
static int n_libraries;
static function *saved[MOST_SAVED];
static int errors;

void die(const char *what)
{
    perror(what);
    abort();
}

void say(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    putchar('\n');
    fflush(stdout);
}

pthread_t start(const pthread_attr_t *attributes, void *(*run)(void *), void *argument, const char *name)
{
    char short_name[16];
    pthread_t thread;
    errno = pthread_create(&thread, attributes, run, argument);
    if (errno) {
        die("pthread_create");
    }
    snprintf(short_name, sizeof short_name, "%s", name);
    pthread_setname_np(thread, short_name);
    return thread;
}

static void *find(const char *name)
{
    void *found = dlsym(RTLD_DEFAULT, name);
    for (int i = 0; !found && i < n_libraries; i++) {
        found = dlsym(libraries[i], name);
    }
    if (!found) {
        say("error=no-such-function");
    }
    return found;
}

static long number(const char *word)
{
    return word ? strtol(word, NULL, 0) : 0;
}

/* The commands.  words[0] is the command itself; words that are not there are NULL. */

static void command_call(char **words)
{
    function *f = find(words[1]);
    if (f) {
        say("value=%ld", f(number(words[2])));
    }
}

static void command_text(char **words)
{
    text_function *f = (text_function *)find(words[1]);
    if (f) {
        say("%s", f());
    }
}

static void command_address(char **words)
{
    void *found = find(words[1]);
    if (found) {
        say("value=%ld", (long)found);
    }
}

static void command_save(char **words)
{
    saved[number(words[2]) % MOST_SAVED] = find(words[1]);
    say("value=%ld", (long)saved[number(words[2]) % MOST_SAVED]);
}

static void command_saved(char **words)
{
    say("value=%ld", saved[number(words[1]) % MOST_SAVED](number(words[2])));
}

struct request {
    function *f;
    long argument;
};

static void *thread_main(void *argument)
{
    struct request request = *(struct request *)argument;
    free(argument);
    return (void *)request.f(request.argument);
}

/* thread NAME ARGUMENT: a thread called NAME that runs the function of that name once */
static void command_thread(char **words)
{
    struct request *request = malloc(sizeof *request);
    *request = (struct request){find(words[1]), number(words[2])};
    if (request->f) {
        pthread_detach(start(NULL, thread_main, request, words[1]));
        say("started=1");
    }
}

/* fork NAME ARGUMENT: what a child of this process answers, and how it ends */
static void command_fork(char **words)
{
    function *f = find(words[1]);
    int ends[2], status = -1;
    long value = -1;
    if (!f || pipe(ends)) {
        return;
    }
    pid_t pid = fork();
    if (pid == 0) {
        value = f(number(words[2]));
        _exit(write(ends[1], &value, sizeof value) != sizeof value);
    }
    struct pollfd p = {.fd = ends[0], .events = POLLIN};
    if (poll(&p, 1, 5000) != 1 || read(ends[0], &value, sizeof value) != sizeof value) {
        value = -2;
    }
    waitpid(pid, &status, 0);
    close(ends[0]);
    close(ends[1]);
    say("value=%ld status=%d", value, status);
}

static void command_sleepers(char **words)
{
    (void)words;
    start_sleepers();
    say("started=1");
}

static void command_errors(char **words)
{
    (void)words;
    report_sleepers(errors);
}

/* work WAY COUNT NAME ARGUMENT PAUSE */
static void command_work(char **words)
{
    function *f = find(words[3]);
    if (f) {
        start_workers(words[1], (int)number(words[2]), f, number(words[4]), (int)number(words[5]));
    }
}

static void command_workers(char **words)
{
    (void)words;
    report_workers();
}

static void command_stop(char **words)
{
    (void)words;
    stop_workers();
}

struct end {
    bool exec;
    long ms;
    char *file; /* if there is one, its coming is waited for */
};

static void *end_later(void *argument)
{
    struct end *end = argument;
    do {
        nanosleep(&(struct timespec){end->ms / 1000, end->ms % 1000 * 1000000}, NULL);
    } while (end->file && access(end->file, F_OK));
    if (end->exec) {
        execlp("sleep", "sleep", "20", NULL);
    }
    _exit(0);
}

/* end exit|exec MS [FILE]: the process ends, or becomes another program, in MS milliseconds, or as soon as there is a
 * file */
static void command_end(char **words)
{
    static struct end end;
    end = (struct end){words[1] && !strcmp(words[1], "exec"), number(words[2]), words[3] ? strdup(words[3]) : NULL};
    pthread_detach(start(NULL, end_later, &end, "end"));
    say("started=1");
}

static void *open_main(void *path)
{
    if (!dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
        die(dlerror());
    }
    free(path);
    return NULL;
}

/* open PATH: a thread loads a library, and holds the loader's lock for as long as its constructors take */
static void command_open(char **words)
{
    pthread_detach(start(NULL, open_main, strdup(words[1]), "open"));
    say("started=1");
}

/* leave: the main thread ends, the others go on */
static void command_leave(char **words)
{
    (void)words;
    say("left=1");
    pthread_exit(NULL);
}

static void command_backtrace(char **words)
{
    (void)words;
    void *frames[32];
    say("value=%d", backtrace(frames, LENGTH(frames)));
}

static void command_quit(char **words)
{
    (void)words;
    exit(0);
}

static const struct {
    const char *name;
    void (*run)(char **words);
} commands[] = {
    {"address", command_address}, {"backtrace", command_backtrace}, {"call", command_call},
    {"end", command_end},         {"errors", command_errors},       {"fork", command_fork},
    {"leave", command_leave},     {"open", command_open},           {"quit", command_quit},
    {"save", command_save},       {"saved", command_saved},         {"sleepers", command_sleepers},
    {"stop", command_stop},       {"text", command_text},           {"thread", command_thread},
    {"work", command_work},       {"workers", command_workers},
};

static void answer(char *line)
{
    char *words[MOST_WORDS + 1] = {NULL}, *rest = NULL;
    for (int i = 0; i < MOST_WORDS && (words[i] = strtok_r(i ? NULL : line, " ", &rest)); i++) {
    }
    for (size_t i = 0; words[0] && i < LENGTH(commands); i++) {
        if (!strcmp(words[0], commands[i].name)) {
            commands[i].run(words);
            return;
        }
    }
    say("error=no-such-command");
}

/* Reads one line; a sleep that an upgrade disturbed is counted. */
static void read_line(char *line, size_t room)
{
    size_t used = 0;
    for (;;) {
        struct pollfd p = {.fd = 0, .events = POLLIN};
        if (poll(&p, 1, -1) < 0) {
            errors++;
            continue;
        }
        ssize_t got = read(0, line + used, 1);
        if (got < 0) {
            errors++;
        } else if (got == 0) {
            exit(0);
        } else if (line[used] == '\n' || used == room - 1) {
            line[used] = '\0';
            return;
        } else {
            used++;
        }
    }
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc && n_libraries < MOST_LIBRARIES; i++) {
        libraries[n_libraries] = dlopen(argv[i], RTLD_NOW | RTLD_LOCAL);
        if (!libraries[n_libraries++]) {
            fprintf(stderr, "%s\n", dlerror());
            return 1;
        }
    }
    say("ready");
    for (;;) {
        char line[LINE];
        read_line(line, sizeof line);
        answer(line);
    }
}
