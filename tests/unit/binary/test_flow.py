"""Functions that nobody would write: they are left open, not followed for ever, and refused where it matters."""

from __future__ import annotations

import time

import pytest

from hotupgrade.binary.build import Build
from hotupgrade.binary.code import CodeFacts, read_code
from hotupgrade.binary.model import THREAD_LOCAL_FORMS
from hotupgrade.plan.compare import compare
from hotupgrade.plan.model import Image
from hotupgrade.plan.options import PlanOptions
from hotupgrade.plan.verdict import verdict
from unit.conftest import Compiler

# "f" is hostile, and one more has a thread-local before which the new build may have others.
SOURCE = """
    .section .tbss,"awT",@nobits
    .type before, @object
    .size before, {before}
before: .skip {before}
    .type wanted, @object
    .size wanted, 400
wanted: .skip 400
    .text
    .globl f
    .type f, @function
f:
    {code}
    ret
    .size f, . - f
    .section .note.GNU-stack
"""
MAIN = "int main(void) { return 0; }\n"
BLOCK = "lea before@tlsld(%rip), %rdi\ncall __tls_get_addr@plt\n"
POINTER = "mov %fs:0, %rax\n"


def _chosen(count: int) -> str:
    """One of so many numbers, each of which may be the offset of a thread-local."""
    return "mov $wanted@tpoff, %rcx\ncmovne %rcx, %rdx\n" * count


COUNT = 3000
# Each takes the product of two of its lengths, or more.
FOLLOWED_FOR_EVER = {
    "many values in a register": (True, _chosen(COUNT) + POINTER + "add %rdx, %rax\n"),
    "sums of many values": (True, _chosen(COUNT) + "mov %rdx, %rbx\nadd %rdx, %rbx\n" * COUNT + POINTER),
    "many values, moved": (True, _chosen(COUNT) + "add $1, %rdx\n" * COUNT + POINTER),
    "many values, over and over": (
        True,
        "1:\n" + "mov $wanted@tpoff, %rcx\ncmovne %rcx, %rdx\nje 1b\n" * COUNT + POINTER,
    ),
    "every jump may lead to every label": (
        False,
        BLOCK + "".join(f"lea {i}1f(%rip), %rcx\n{i}1: jmp *%rcx\n" for i in range(1, COUNT)),
    ),
}
# Long, but no longer to be followed than to be read.
LONG = 10_000
MERELY_LONG = {
    "a deep stack": (
        False,
        BLOCK + "push %rax\n" * LONG + f"mov {8 * LONG - 8}(%rsp), %rdx\nmov wanted@dtpoff(%rdx), %rax",
    ),
    "code that nothing leads to": (False, BLOCK + "ret\n" * LONG),
    "many fields": (False, BLOCK + "lea wanted@dtpoff(%rax,%rcx), %rdx\n" * (LONG // 4)),
}
SLOW_S = 20.0  # of processor time; what is not bounded takes minutes


def built(compiler: Compiler, code: str, executable: bool, before: int = 200) -> Build:
    sources = {"module.s": SOURCE.format(code=code, before=before), **({"main.c": MAIN} if executable else {})}
    return compiler.build(sources, executable=executable)


def read(build: Build) -> CodeFacts:
    begin = time.process_time()
    facts = read_code(build, None)
    assert time.process_time() - begin < SLOW_S
    return facts


def fields(facts: CodeFacts) -> int:
    return sum(form in THREAD_LOCAL_FORMS for form in facts.references.form.tolist())


@pytest.mark.parametrize("case", FOLLOWED_FOR_EVER)
def test_a_function_that_would_be_followed_for_ever(compiler: Compiler, case: str) -> None:
    executable, code = FOLLOWED_FOR_EVER[case]
    build = built(compiler, code, executable)
    facts = read(build)
    assert {build.entities.names[row] for _, row in facts.unproven} == {"f"}
    assert fields(facts) == 0


@pytest.mark.parametrize("case", MERELY_LONG)
def test_a_function_that_is_merely_long(compiler: Compiler, case: str) -> None:
    executable, code = MERELY_LONG[case]
    facts = read(built(compiler, code, executable))
    assert facts.unproven == ()
    assert fields(facts) == (0 if "ret\n" in code else 1 if "push" in code else LONG // 4)


@pytest.mark.parametrize("before", [200, 264], ids=["the same layout", "another layout"])
def test_it_is_refused_only_where_it_matters(compiler: Compiler, before: int) -> None:
    _, code = FOLLOWED_FOR_EVER["every jump may lead to every label"]
    old, new = built(compiler, code, executable=False), built(compiler, code + "nop\n", executable=False, before=before)
    options = PlanOptions(trust_layout=True)
    refusals, _ = verdict([Image(old, 0x7F0000000000)], 0, new, [compare(old, new)], options)
    found = {(reason.code, reason.subject) for reason in refusals}
    assert ("tls-layout" in {code for code, _ in found}) == (before != 200), found
