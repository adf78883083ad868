"""C texts that show what compilers and linkers do with names and references."""

EVERYTHING = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int exported_data = 7;
int exported_zeroed[10];
const int exported_constant[4] = {1, 2, 3, 4};
extern char **environ;

static int counter;
static int initialised = 5;
static const char *const words[] = {"one", "two", "three"};
static const int numbers[] = {10, 20, 30};
static void callback(void *argument) { counter += *(int *) argument; }
static void (*volatile pointer)(void *) = callback;
__thread int exported_thread_local = 3;
static __thread int hidden_thread_local;

__attribute__((noinline)) static int helper(int x) { return x * exported_data + counter++; }
__attribute__((noinline)) static void failed(const char *what) { fprintf(stderr, "%s failed\n", what); abort(); }
__attribute__((noinline, cold)) static void rarely(int x) { printf("rare %d\n", x); }

int exported(int x)
{
    static int once;
    if (x == 42) { rarely(x); }
    if (!once++) { puts("first"); }
    return helper(x) + initialised + numbers[x & 1];
}

int uses_table(int x)
{
    switch (x) {
    case 0: return exported(1);
    case 1: puts("a"); return 4;
    case 2: return helper(9);
    case 3: puts("b"); return 17;
    case 4: exported_zeroed[2] = 4; return 1;
    case 5: return (int) strlen(words[x % 3]);
    case 6: failed("six");
    case 7: puts("c"); return counter;
    default: return -1;
    }
}

const char *word(unsigned x) { return words[x % 3]; }
double uses_double(double x) { return x * 3.25 + 1e100; }
void *gives_callback(void) { return (void *) callback; }
void calls_pointer(int x) { pointer(&x); }
int uses_thread_locals(void) { return exported_thread_local++ + hidden_thread_local++; }
int tail(int x) { return helper(x + 1); }
int reads_import(void) { return environ != NULL; }
void *own_address(void) { return (void *) &exported; }

__attribute__((constructor)) static void first_constructor(void) { counter = 1; }
__attribute__((constructor)) static void second_constructor(void) { counter = 2; }
__attribute__((destructor)) static void last(void) { counter = 0; }
"""

PROGRAM = EVERYTHING + "\nint main(void) { return exported(uses_table(3)); }\n"
