/* Holds another process as a debugger would: tracer PID.  The process runs on, but is traced. */

#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (argc != 2 || ptrace(PTRACE_SEIZE, atoi(argv[1]), 0, 0)) {
        perror("tracer");
        return 1;
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        pause();
    }
}
