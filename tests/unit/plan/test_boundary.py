"""One past the end of an object, or the start of the next thing?"""

from __future__ import annotations

import numpy as np
import pytest

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import Kind, TargetKind
from hotupgrade.plan.boundary import end_pointers, settle
from hotupgrade.plan.compare import compare
from hotupgrade.plan.homes import NEW, Homes, find_homes
from hotupgrade.plan.model import Image
from unit.conftest import Compiler
from unit.plan.scenes import BASE

# Two tables, the first with a home, the second without: their neighbourhood ends.  ``probe`` loads the address between
# them into %rax, and uses the first one elsewhere.
SOURCE = """
__asm__(".section .rodata\\n.balign 8\\n"
        ".globl table\\n.hidden table\\n.type table, @object\\ntable: .quad 1, 2, 3\\n.size table, 24\\n"
        "{what}"
        ".text\\n.globl probe\\n.type probe, @function\\nprobe:\\n"
        "lea table(%rip), %rbx\\n{before}lea table+24(%rip), %rax\\n{use}\\nret\\n.size probe, . - probe\\n"
        ".globl other\\n.type other, @function\\nother: lea table+24(%rip), %rax\\nret\\n.size other, . - other\\n");
"""  # the last one also uses what begins there

NAMED = ".globl second\\n.hidden second\\n.type second, @object\\nsecond: .quad 4, 5\\n.size second, 16\\n"
NAMELESS = '.Lsecond: .asciz \\"some text\\"\\n'

START, END, UNCLEAR = "start", "end", "unclear"

USES = {
    "reads through it": ("mov 8(%rax), %rcx", START, START),
    "reads behind it": ("mov (%rax), %rcx", START, START),
    "writes through it": ("movl $1, (%rax)", START, START),
    "reads before it": ("mov -8(%rax), %rcx", UNCLEAR, UNCLEAR),
    "indexes it": ("mov (%rax,%rcx,8), %rdx", UNCLEAR, UNCLEAR),
    "a switch table": ("movslq (%rax,%rcx,4), %rdx", START, UNCLEAR),
    "the test of a loop": ("1: add $8, %rbx\\ncmp %rax, %rbx\\njne 1b", END, END),
    "the test of a loop, reversed": ("1: add $8, %rbx\\nnop\\ncmp %rbx, %rax\\njne 1b", END, END),
    "the test of a loop, moved": ("mov %rax, %r12\\ncall other\\n1: add $8, %rbx\\ncmp %r12, %rbx\\njne 1b", END, END),
    "an identity": ("cmp %rax, %rdi", END, UNCLEAR),
    "an identity in memory": ("cmp %rax, 16(%rdi)", END, UNCLEAR),
    "an argument": ("mov %rax, %rdi\\ncall other", START, START),
    "a range": ("mov %rax, %rsi\\nlea table(%rip), %rdi\\ncall other", UNCLEAR, UNCLEAR),
    "a range, copied": ("mov %rax, %rsi\\nmov %rbx, %rdi\\ncall other", UNCLEAR, UNCLEAR),
    "a range, overwritten": ("mov %rbx, %rdi\\nmov %rax, %rsi\\nxor %edi, %edi\\ncall other", START, START),
    "a tail call": ("mov %rax, %rdi\\njmp other", START, START),
    "stored": ("mov %rax, 8(%rdi)", UNCLEAR, UNCLEAR),
    "returned": ("nop", UNCLEAR, UNCLEAR),
    "overwritten": ("xor %eax, %eax\\nmov (%rax), %rcx", UNCLEAR, UNCLEAR),
    "lost in a call": ("call other\\nmov (%rax), %rcx", UNCLEAR, UNCLEAR),
    "on a branch": ("test %edi, %edi\\njne 2f\\nret\\n2: mov (%rax), %rcx", START, START),
    "a loop entered at its test": (
        "jmp 2f\\n1: add $8, %rbx\\n2: cmp %rax, %rbx\\nje 3f\\ncmpl $0, (%rbx)\\njne 1b\\n3: nop",
        END,
        END,
    ),
    "different on two branches": (
        "test %edi, %edi\\njne 2f\\ncmp %rax, %rdi\\nret\\n2: mov (%rax), %rcx",
        UNCLEAR,
        START,
    ),
    "the test of a loop, after a call": (
        "mov %rax, %r8\\ntest %edi, %edi\\njne 2f\\n1: add $8, %rbx\\ncmp %r8, %rbx\\njne 1b\\n2: call other",
        END,
        END,
    ),
    "behind a jump": ("jmp 2f\\nud2\\n2: mov (%rax), %rcx", START, START),
}


def homes_without(build: Build, *names: str) -> Homes:
    """Everything has its home where the build itself has it, except these names."""
    homes = find_homes([Image(build, BASE)], 0, build, [compare(build, build)])
    for name in names:
        row = build.entities.names.index(name)
        homes.owner[row], homes.partner[row], homes.address[row] = NEW, -1, 0
    return homes


def outcome(build: Build, homes: Homes) -> str:
    functions = build.entities.kind == Kind.FUNCTION
    settled, unclear = settle(build, homes, functions)
    if unclear:
        return UNCLEAR
    table = build.entities.names.index("table")
    ends = (settled.target_kind == TargetKind.ENTITY) & (settled.entity == table) & (settled.addend == 24)
    return END if np.any(ends) else START


@pytest.mark.parametrize("use", USES)
def test_what_code_says_of_nameless_data(compiler: Compiler, use: str) -> None:
    code, expected, _ = USES[use]
    build = compiler.build(SOURCE.format(what=NAMELESS, before="", use=code))
    assert outcome(build, homes_without(build)) == expected


@pytest.mark.parametrize("use", USES)
def test_what_code_says_of_another_object(compiler: Compiler, use: str) -> None:
    code, _, expected = USES[use]
    build = compiler.build(SOURCE.format(what=NAMED, before="", use=code))
    assert outcome(build, homes_without(build, "second")) == expected


@pytest.mark.parametrize("what", [NAMED, NAMELESS], ids=["named", "nameless"])
def test_data_that_nobody_else_uses_are_meant(compiler: Compiler, what: str) -> None:
    source = SOURCE.replace("other: lea table+24(%rip), %rax", "other: nop")
    build = compiler.build(source.format(what=what, before="", use="mov %rax, 8(%rdi)"))
    assert outcome(build, homes_without(build, *(["second"] if what == NAMED else []))) == START


def test_padding_is_not_meant(compiler: Compiler) -> None:
    source = SOURCE.replace("other: lea table+24(%rip), %rax", "other: nop")
    padding = ".quad 0, 0\\n.globl far\\n.hidden far\\n.type far, @object\\nfar: .quad 4\\n.size far, 8\\n"
    build = compiler.build(source.format(what=padding, before="", use="mov %rax, 8(%rdi)"))
    assert outcome(build, homes_without(build)) == UNCLEAR


def test_it_does_not_matter_while_both_are_neighbours(compiler: Compiler) -> None:
    build = compiler.build(SOURCE.format(what=NAMED, before="", use="mov %rax, 8(%rdi)"))
    assert outcome(build, homes_without(build)) == START
    assert outcome(build, homes_without(build, "table", "second")) == START
    homes = homes_without(build)
    homes.address[build.entities.names.index("second")] += 8
    assert outcome(build, homes) == UNCLEAR


def test_functions_that_use_only_the_second_mean_the_second(compiler: Compiler) -> None:
    source = SOURCE.replace("lea table(%rip), %rbx\\n", "")
    build = compiler.build(source.format(what=NAMED, before="", use="mov %rax, 8(%rdi)"))
    assert outcome(build, homes_without(build, "second")) == START


def test_functions_that_stay_are_not_asked(compiler: Compiler) -> None:
    build = compiler.build(SOURCE.format(what=NAMED, before="", use="mov %rax, 8(%rdi)"))
    nobody = np.zeros(len(build.entities), dtype=np.bool_)
    assert settle(build, homes_without(build, "second"), nobody)[1] == ()


def test_an_end_with_nothing_behind_it(compiler: Compiler) -> None:
    """Padding follows, or nothing: no other meaning is possible."""
    source = """
    __asm__(".data\\n.balign 32\\n.globl table\\n.hidden table\\n.type table, @object\\ntable: .long 1, 2, 3\\n"
            ".size table, 12\\n.balign 64\\n.globl far\\n.type far, @object\\nfar: .long 1\\n.size far, 4\\n"
            ".text\\n.globl probe\\n.type probe, @function\\nprobe: lea table(%rip), %rbx\\n"
            "lea table+12(%rip), %rax\\nmov %rax, (%rdi)\\nret\\n.size probe, . - probe\\n");
    """
    build = compiler.build(source)
    (index,) = end_pointers(build).tolist()
    assert build.references.target_kind[index] == TargetKind.UNKNOWN
    assert outcome_with_end(build, 12)


def outcome_with_end(build: Build, size: int) -> bool:
    settled, unclear = settle(build, homes_without(build), build.entities.kind == Kind.FUNCTION)
    table = build.entities.names.index("table")
    ends = (settled.target_kind == TargetKind.ENTITY) & (settled.entity == table) & (settled.addend == size)
    return bool(np.any(ends)) and not unclear


FIELDS = """
__asm__(".section .rodata\\n.balign 8\\n"
        ".globl rows\\n.hidden rows\\n.type rows, @object\\nrows: .quad 1, 2, 3, 4, 5, 6\\n.size rows, 48\\n"
        ".globl behind\\n.hidden behind\\n.type behind, @object\\nbehind: .quad 7, 8\\n.size behind, 16\\n"
        ".text\\n.globl each\\n.type each, @function\\neach:\\n"
        "lea rows+8(%rip), %rbx\\nlea rows+56(%rip), %rax\\n"
        "1: add $16, %rbx\\ncmp %rax, %rbx\\njne 1b\\nret\\n.size each, . - each\\n");
"""


def test_a_loop_over_a_field_ends_behind_the_table(compiler: Compiler) -> None:
    """It begins behind the start by as much as it ends behind the end, within or past what follows."""
    build = compiler.build(FIELDS)
    each, rows = build.entities.names.index("each"), build.entities.names.index("rows")
    functions = np.zeros(len(build.entities), dtype=np.bool_)
    functions[each] = True
    homes = _homes(build, {rows})
    settled, unclear = settle(build, homes, functions)
    assert not unclear
    mine = (settled.function == each) & (settled.entity == rows) & (settled.target_kind == TargetKind.ENTITY)
    assert sorted(settled.addend[mine].tolist()) == [8, 56]


def _homes(build: Build, known: set[int]) -> Homes:
    """Only these rows have a home."""
    count = len(build.entities)
    owner = np.full(count, NEW, dtype=np.int32)
    owner[list(known)] = 0
    address = build.entities.address.astype(np.int64) + BASE
    return Homes(owner, np.arange(count, dtype=np.int32), address, np.zeros(count, dtype=np.bool_), ())
