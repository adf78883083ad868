/* A process that means harm to the tool: what it holds for others to read is spoiled, each time in another way.
 *
 * hostile WAY [FILE ENTER TEXT TOTAL MAILBOX SERIAL DONE LEDGER-AT LEDGER ABI RESULT] */

#define _GNU_SOURCE
#include <fcntl.h>
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { CROWD = 4000, TABLE = 250 << 20 };

extern long version(long);

static uint64_t numbers[10];
static volatile uint64_t *mailbox_serial, *mailbox_done, *operation_result;
static int victim = -1;

/* A thread that is sent to our agent comes here, and gives the tool a file of somebody else for its memory. */
__attribute__((noreturn, used)) static void arrived(void)
{
    *operation_result = (uint64_t)victim;
    __atomic_store_n(mailbox_done, *mailbox_serial, __ATOMIC_RELEASE);
    for (;;) {
        pause();
    }
}

/* Mapped as the tool's own agent is. */
static void fake_agent(void)
{
    size_t text = numbers[1], total = numbers[2];
    int fd = memfd_create("hotupgrade-agent", 0);
    /* It begins as the real one does, which is looked at: cld; mov %rsp, %rbx; and $-64, %rsp. */
    unsigned char jump[] = {0xfc, 0x48, 0x89, 0xe3, 0x48, 0x83, 0xe4, 0xc0, 0x48, 0xb8,
                            0,    0,    0,    0,    0,    0,    0,    0,    0xff, 0xe0};
    void (*entry)(void) = arrived;
    memcpy(jump + 10, &entry, 8);
    if (fd < 0 || ftruncate(fd, (off_t)total) || pwrite(fd, jump, sizeof jump, (off_t)numbers[0]) < 0) {
        abort();
    }
    char *at = mmap(0, total, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);
    mmap(at + text, total - text, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, (off_t)text);
    close(fd);
    char *mailbox = at + numbers[3];
    ((uint64_t *)mailbox)[0] = 0x3165646172677075; /* HU_MAGIC */
    ((uint64_t *)mailbox)[1] = numbers[8];
    mailbox_serial = (uint64_t *)(mailbox + numbers[4]);
    mailbox_done = (uint64_t *)(mailbox + numbers[5]);
    *mailbox_serial = ~0ull;
    *(uint64_t *)(mailbox + numbers[6]) = numbers[7]; /* ledger */
    operation_result = (uint64_t *)(mailbox + 1024 + numbers[9]);
}

/* Thousands of modules, each with tables of a quarter of a gigabyte that take no memory here. */
static void crowd(void)
{
    static struct link_map maps[CROWD];
    static ElfW(Dyn) dynamic[16];
    char *table = mmap(0, TABLE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    ElfW(Sxword) tags[] = {DT_STRTAB, DT_SYMTAB, DT_GNU_HASH, DT_RELA, DT_JMPREL, DT_VERSYM};
    int n = 0;
    for (size_t i = 0; i < sizeof tags / sizeof *tags; i++) {
        dynamic[n++] = (ElfW(Dyn)){tags[i], {(uint64_t)table}};
    }
    dynamic[n++] = (ElfW(Dyn)){DT_STRSZ, {TABLE}};
    dynamic[n++] = (ElfW(Dyn)){DT_RELASZ, {TABLE}};
    dynamic[n++] = (ElfW(Dyn)){DT_PLTRELSZ, {TABLE}};
    dynamic[n++] = (ElfW(Dyn)){DT_NEEDED, {5}};
    struct link_map *last = _r_debug.r_map;
    while (last->l_next) {
        last = last->l_next;
    }
    for (int i = 0; i < CROWD; i++) {
        maps[i] = (struct link_map){.l_name = (char *)"crowd", .l_ld = dynamic};
        last->l_next = &maps[i];
        last = &maps[i];
    }
}

/* A memory file that calls itself a second line of the memory map. */
static void forged_line(void)
{
    int fd = memfd_create("x\r10000-7ffffffff000 rwxp 00000000 00:01 1 /forged", 0);
    if (fd < 0 || ftruncate(fd, 4096) || mmap(0, 4096, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED) {
        abort();
    }
}

int main(int argc, char **argv)
{
    const char *way = argv[1];
    for (int i = 3; i < argc && i < 13; i++) {
        numbers[i - 3] = strtoull(argv[i], NULL, 0);
    }
    if (argc > 2) {
        victim = open(argv[2], O_RDONLY);
        fake_agent();
    }
    puts("ready");
    fflush(stdout);
    struct link_map *first = _r_debug.r_map;
    if (!strcmp(way, "circle")) {
        first->l_next->l_next = first;
    } else if (!strcmp(way, "nowhere")) {
        first->l_next->l_next = (struct link_map *)0xfffffffffffff000;
    } else if (!strcmp(way, "unmapped")) {
        first->l_next->l_next = (struct link_map *)0x1000;
    } else if (!strcmp(way, "names")) {
        first->l_next->l_name = (char *)0x8000000000000000;
    } else if (!strcmp(way, "crowd")) {
        crowd();
    } else if (!strcmp(way, "line")) {
        forged_line();
    }
    char byte;
    while (read(0, &byte, 1) > 0) {
        if (byte == 'v') {
            printf("value=%ld\n", version(0));
            fflush(stdout);
        }
    }
    _exit(0);
}
