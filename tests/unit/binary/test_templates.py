"""Constants without a name among the variables: told by their use, and by nothing less."""

from __future__ import annotations

import numpy as np
import pytest

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import TargetKind
from unit.conftest import Compiler

# ``hidden`` has no name in the file.  ``copies`` takes it for a template; whether it may be one, ``probe`` says.
SOURCE = """
.data
.balign 32
.globl table
.hidden table
.type table, @object
table: .quad 1, 2, 3, 4
.size table, 32
.Lhidden: .quad 5, 6, 7, 8
.globl behind
.type behind, @object
behind: .quad 9
.size behind, 8
.text
.globl copies
.type copies, @function
copies: lea .Lhidden(%rip), %rsi
lea -64(%rsp), %rdi
mov $4, %ecx
rep movsq
mov -64(%rsp), %rax
ret
.size copies, . - copies
.globl probe
.type probe, @function
probe: lea table(%rip), %rbx
{use}
ret
.size probe, . - probe
.globl other
.type other, @function
other: ret
.size other, . - other
.section .note.GNU-stack
"""

TAKE = "lea .Lhidden(%rip), %rax\n"
ENDS = {
    "made anew each time": "1: add $8, %rbx\nlea .Lhidden(%rip), %rax\ncmp %rax, %rbx\njne 1b\nxor %eax, %eax",
    "the test of a loop": TAKE + "1: add $8, %rbx\ncmp %rax, %rbx\njne 1b",
    "a loop that may be left out": TAKE
    + "test %edi, %edi\nje 2f\n1: add $8, %rbx\ncmp %rax, %rbx\njne 1b\n2: xor %eax, %eax",
}
OTHERS = {
    "written to": "movq $1, (%rax)",
    "passed": "mov %rax, %rdi\ncall other",
    "passed on": "mov %rax, %rdi\njmp other",
    "stored": "mov %rax, (%rdi)",
    "returned": "nop",
    "filled": "mov %rax, %rdi\nmov $4, %ecx\nrep stosq",
    "read, step by step": "1: add $8, %rbx\nmov (%rax,%rbx), %rcx\ncmp %rax, %rbx\njne 1b",
    "a loop towards its start": "1: add $-8, %rbx\ncmp %rax, %rbx\njne 1b\nxor %eax, %eax",
    "an end here and passed there": "test %edi, %edi\nje 2f\n1: add $8, %rbx\ncmp %rax, %rbx\njne 1b\nxor %eax, %eax\n"
    "ret\n2: mov %rax, %rdi\ncall other",
    "an end here, and elsewhere it leaves": "test %edi, %edi\nje other\n1: add $8, %rbx\ncmp %rax, %rbx\njne 1b\n"
    "xor %eax, %eax",
}


def kinds(build: Build, function: str) -> set[TargetKind]:
    """Of what a function refers to behind the table."""
    references = build.references
    place = build.entities.address[build.entities.names.index("table")] + 32
    chosen = (references.function == build.entities.names.index(function)) & (references.target == place)
    return {TargetKind(int(kind)) for kind in np.unique(references.target_kind[chosen])}


@pytest.mark.parametrize("use", ENDS)
def test_the_end_of_a_loop_does_not_keep_a_template_from_being_one(compiler: Compiler, use: str) -> None:
    build = compiler.build({"module.s": SOURCE.format(use=ENDS[use])})
    assert kinds(build, "copies") == {TargetKind.ANONYMOUS}
    assert kinds(build, "probe") == {TargetKind.UNKNOWN}


@pytest.mark.parametrize("use", OTHERS)
def test_what_anybody_may_write_to_is_no_template(compiler: Compiler, use: str) -> None:
    build = compiler.build({"module.s": SOURCE.format(use=TAKE + OTHERS[use])})
    assert kinds(build, "copies") == {TargetKind.UNKNOWN}


def test_large_templates_are_copied_by_a_function(compiler: Compiler) -> None:
    words = ", ".join(f'"{number}"' for number in range(1100))
    source = {
        "table.c": 'long table[4] __attribute__((visibility("hidden"), aligned(32))) = {1, 2, 3, 4};',
        "module.c": f"""
            extern long table[4] __attribute__((visibility("hidden")));
            __attribute__((noinline)) static long chosen(const char **words, long n) {{ return words[n][0]; }}
            long word(long n) {{ const char *words[] = {{{words}}}; return chosen(words, n) + table[n & 3]++; }}
        """,
    }
    for more in ((), ("-fno-plt",)):
        build = compiler.build(source, *more)
        assert "memcpy" in {slot.symbol for slot in build.slots}
        assert kinds(build, "word") == {TargetKind.ANONYMOUS}


def test_code_without_a_name_may_write(compiler: Compiler) -> None:
    """What ``-x`` takes from the symbol table: a variable that is copied, and the function that changes it."""
    source = """
        struct numbers { long all[60]; };
        long table[4] = {1, 2, 3, 4};
        static struct numbers state = {{1, 2, 3}};
        __attribute__((noinline)) static void put(struct numbers *to, long n) { to->all[n] = table[n & 3]; }
        __attribute__((noinline)) static long chosen(struct numbers *of, long n) { return of->all[n]; }
        __attribute__((noinline)) static void set(long n)
        {
            struct numbers *to = &state;
            __asm__ volatile("" : "+r"(to));
            put(to, n);
        }
        void change(long n) { set(n); }
        long copies(long n) { struct numbers local = state; return chosen(&local, n); }
    """
    for flag, kind in (("-Wl,-x", TargetKind.UNKNOWN), ("-Wl,-O1", TargetKind.ENTITY)):
        build = compiler.build(source, flag)
        references = build.references
        mine = references.function == build.entities.names.index("copies")
        data = build.sections[".data"]
        inside = (references.target >= data.vaddr) & (references.target < data.vaddr + data.size)
        assert {TargetKind(int(found)) for found in references.target_kind[mine & inside]} == {kind}
