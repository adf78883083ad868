/* Threads that make no system call at all, once they are ready: each computes, with a value in every register, in the
 * flags and in the red zone, and looks whether all of them are still there.  What they find is in a file that is
 * shared.
 */

#include <cpuid.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION 1
#endif

struct facts {
    volatile long turns, disturbed, version, over;
};

__attribute__((noinline)) long version(void)
{
    __asm__ volatile("" ::: "memory");
    return VERSION;
}

/* Both return 0 if nothing was disturbed.  r10 counts.  The second looks at the upper halves of the vector registers.
 */
long computes(void);
long computes_wide(void);

__asm__(
    ".macro each_general what\n.set number, 0x100\n"
    ".irp name, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r11, r12, r13, r14, r15\n"
    ".set number, number + 1\n\\what \\name\n.endr\n.endm\n"
    ".macro each_vector what\n.irp name, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
    "\\what \\name\n.endr\n.endm\n"
    ".macro set name\nmov $number, %\\name\n.endm\n"
    ".macro look name\ncmp $number, %\\name\njne 9f\n.endm\n"
    ".macro set_vector name\nmov $0x200 + \\name, %eax\nmovq %rax, %xmm\\name\n.endm\n"
    ".macro look_vector name\nmovq %xmm\\name, %rax\ncmp $0x200 + \\name, %rax\njne 9f\n.endm\n"
    ".macro set_upper name\nvinsertf128 $1, %xmm\\name, %ymm\\name, %ymm\\name\n.endm\n"
    ".macro look_upper name\nvextractf128 $1, %ymm\\name, %xmm\\name\nlook_vector \\name\n.endm\n"
    ".macro set_word name\nmovq $0x300 + \\name, -8-8*\\name(%rsp)\n.endm\n"
    ".macro look_word name\ncmpq $0x300 + \\name, -8-8*\\name(%rsp)\njne 9f\n.endm\n"
    ".macro computes name, wide\n"
    ".globl \\name\n.type \\name, @function\n\\name:\n.cfi_startproc\n"
    "push %rbx\npush %rbp\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "each_vector set_vector\n.if \\wide\neach_vector set_upper\n.endif\neach_vector set_word\neach_general set\n"
    "mov $20000, %r10\nstc\nstd\n"
    "1: jnc 9f\ndec %r10\njnz 1b\njnc 9f\n" /* dec leaves the carry as it is */
    "each_general look\neach_vector look_word\neach_vector look_vector\n.if \\wide\neach_vector look_upper\n.endif\n"
    "pushfq\npop %rax\ntest $0x400, %eax\njz 9f\n" /* the direction */
    "xor %eax, %eax\njmp 8f\n9: mov $1, %eax\n8: cld\n.if \\wide\nvzeroupper\n.endif\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbp\npop %rbx\nret\n"
    ".cfi_endproc\n.size \\name, . - \\name\n.endm\n"
    ".text\ncomputes computes, 0\ncomputes computes_wide, 1\n");

static int wide;

static void *spins(void *argument)
{
    struct facts *facts = argument;
    while (!facts->over) {
        facts->disturbed += wide ? computes_wide() : computes();
        facts->version = version();
        facts->turns++;
    }
    return NULL;
}

/* spins FILE THREADS */
int main(int count, char **words)
{
    int file = count == 3 ? open(words[1], O_RDWR) : -1, threads = count == 3 ? atoi(words[2]) : 0;
    struct facts *facts = mmap(NULL, threads * sizeof *facts, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    pthread_t others[threads];
    unsigned a, b, c, d;
    wide = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_OSXSAVE) && (c & bit_AVX);
    if (facts == MAP_FAILED) {
        return 1;
    }
    close(file);
    puts("ready");
    fflush(stdout);
    for (int i = 1; i < threads; i++) {
        pthread_create(&others[i], NULL, spins, &facts[i]);
    }
    spins(facts);
    for (int i = 1; i < threads; i++) {
        pthread_join(others[i], NULL);
    }
    return 0;
}
