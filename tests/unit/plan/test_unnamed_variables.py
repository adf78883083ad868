"""Places without a name in writable memory: what lies there is looked at, and in doubt the plan is refused."""

from __future__ import annotations

import pytest

from hotupgrade.errors import Refused
from hotupgrade.plan.compare import compare
from unit.conftest import Compiler
from unit.plan.scenes import FakeScene
from unit.plan.test_relink import Placed

# A table that ends where something begins that the file has no name for: compilers' templates of local arrays, or
# variables of hand-written code.
TABLE = 'long table[4] __attribute__((visibility("hidden"), aligned(32))) = {1, 2, 3, 4};'


def in_c(word: str) -> dict[str, str]:
    """A template so large that the compiler has it copied by memcpy()."""
    words = ", ".join(f'"{word}{number}"' for number in range(1100))
    return {
        "table.c": TABLE,
        "module.c": f"""
            extern long table[4] __attribute__((visibility("hidden")));
            __attribute__((noinline)) static long chosen(const char **words, long n) {{ return words[n][0]; }}
            long word(long n) {{ const char *words[] = {{{words}}}; return chosen(words, n) + table[n & 3]++; }}
        """,
    }


def in_assembler(number: int, code: str) -> dict[str, str]:
    """``probe`` uses the table, and then the address behind it in rax."""
    return {
        "table.c": TABLE,
        "module.s": f"""
            .data
            .balign 32
            .quad {number}, 6, 7, 8
            .text
            .globl probe
            .type probe, @function
            probe: lea table(%rip), %rbx
            lea table+32(%rip), %rax
            {code}
            ret
            .size probe, . - probe
            .section .note.GNU-stack
        """,
    }


def test_a_large_template_that_changed(compiler: Compiler) -> None:
    """Only its contents did: the code is the same, byte for byte."""
    old, new = compiler.build(in_c("a")), compiler.build(in_c("b"))
    placed = Placed.make(old, new, FakeScene(old, externals={"memcpy": 0x7FFF00001000}))
    assert placed.plan.functions["changed"] == ("word",)
    named = placed.named_by("word")
    assert placed.home("table") in named
    assert placed.home("table") + 32 not in named
    assert placed.copy("table") + 32 in named


def test_contents_without_a_name_that_changed(compiler: Compiler) -> None:
    code = "mov (%rax), %rax"
    old, new = (compiler.build(in_assembler(number, code)) for number in (1, 2))
    with pytest.raises(Refused) as refusal:
        Placed.make(old, new, FakeScene(old))
    assert {reason.code for reason in refusal.value.reasons} == {"unknown-reference"}


def test_the_same_contents_are_no_change(compiler: Compiler) -> None:
    old = compiler.build(in_assembler(1, "mov (%rax), %rax"))
    new = compiler.build({**in_assembler(1, "mov (%rax), %rax"), "more.c": "int more(void) { return 1; }"})
    assert compare(old, new).same[new.entities.names.index("probe")]


def test_what_lies_behind_the_end_of_a_loop_is_no_matter(compiler: Compiler) -> None:
    code = "1: add $8, %rbx\ncmp %rax, %rbx\njne 1b\nxor %eax, %eax"
    old, new = (compiler.build(in_assembler(number, code)) for number in (1, 2))
    probe = new.entities.names.index("probe")
    assert compare(old, new).same[probe]


@pytest.mark.parametrize("code", ["mov %rax, (%rdi)", "movq $1, (%rax)", "mov %rax, %rdi\ncall memcpy@PLT"])
def test_what_is_taken_of_such_a_place_is_not_guessed(compiler: Compiler, code: str) -> None:
    """The function changed, and what it names might lie elsewhere in the process."""
    old = compiler.build(in_assembler(1, code))
    new = compiler.build(in_assembler(1, code + "\nnop"))
    with pytest.raises(Refused) as refusal:
        Placed.make(old, new, FakeScene(old, externals={"memcpy": 0x7FFF00001000}))
    assert {reason.code for reason in refusal.value.reasons} == {"unknown-reference"}


def in_text(number: int, use: str, more: str = "") -> dict[str, str]:
    """Constants beside the code, as hand-written code has them, and a function that uses them."""
    return {
        "module.s": f"""
            .text
            .globl first
            .type first, @function
            first: ret
            .size first, . - first
            .balign 64
            .Lconstants: .quad {number}, 2
            {more}
            .balign 64
            .globl probe
            .type probe, @function
            probe: {use}
            ret
            .size probe, . - probe
            .section .note.GNU-stack
        """,
        "more.c": f"int more(void) {{ return {number}; }}",
    }


READS, TAKES = "mov .Lconstants(%rip), %rax", "lea .Lconstants(%rip), %rax"


@pytest.mark.parametrize("use", [READS, TAKES])
def test_constants_beside_the_code_are_compared(compiler: Compiler, use: str) -> None:
    old, changed = (compiler.build(in_text(number, use)) for number in (1, 2))
    same = compiler.build({**in_text(1, use), "more.c": "int more(void) { return 2; }"})
    probe = old.entities.names.index("probe")
    assert compare(old, same).same[probe]
    assert not compare(old, changed).same[probe]


def test_code_without_a_name_is_not_compared(compiler: Compiler) -> None:
    """Equal bytes of instructions may lead to different things."""
    for more in (
        "1: jmp 1b\n.globl other\n.type other, @function\nother: jmp 1b\n.size other, . - other",
        ".cfi_startproc\nnop\n.cfi_endproc",
    ):
        old = compiler.build(in_text(1, TAKES, more))
        new = compiler.build({**in_text(1, TAKES, more), "more.c": "int more(void) { return 2; }"})
        assert not compare(old, new).same[new.entities.names.index("probe")]
