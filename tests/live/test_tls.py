"""Thread-locals: every thread keeps its own, whatever the model, also when their offsets change."""

from __future__ import annotations

from pathlib import Path

import pytest

from live.conftest import Start
from live.harness import REFUSED, Builder, HotUpgrade, Options, Program, until

MODELS = ["global-dynamic", "local-dynamic", "initial-exec"]
THREADS = 5


def begin(program: Program) -> None:
    for number in range(1, THREADS + 1):
        program.ask("thread", "worker", number)
    until(lambda: program.call("count_workers") == THREADS)


def asked(program: Program) -> tuple[list[int], list[str]]:
    """What every thread answers, and where its thread-locals are."""
    facts = program.facts("text", "ask")
    numbers = range(1, THREADS + 1)
    return [int(facts[f"answer{i}"]) for i in numbers], [facts[f"address{i}"] for i in numbers]


def expected(version: int, calls: int, inserted: int = 0) -> list[int]:
    return [
        version * 1000000 + number * 10000 + 4000 + calls + inserted * 1000000000 for number in range(1, THREADS + 1)
    ]


@pytest.mark.parametrize(
    ("opened", "emit_relocs"),
    [(False, False), (False, True), (True, False)],
    ids=["linked", "linked-emit-relocs", "dlopen"],
)
@pytest.mark.parametrize("flag", [*(f"-ftls-model={model}" for model in MODELS), "-mtls-dialect=gnu2"])
def test_equal_layout(
    build: Builder, start: Start, hu: HotUpgrade, *, flag: str, emit_relocs: bool, opened: bool
) -> None:
    one, two, three = (build.library("tls", v, Options(emit_relocs=emit_relocs, flags=(flag,))) for v in (1, 2, 3))
    program = start(build.host(), one) if opened else start(build.host(one))
    begin(program)
    answers, addresses = asked(program)
    assert answers == expected(1, 1)

    hu.upgraded(program, two)
    assert asked(program) == (expected(2, 2), addresses)
    hu.upgraded(program, three)
    assert asked(program) == (expected(3, 3), addresses)
    program.ask("thread", "answer", 1)  # a thread that is born in the new code
    hu.rolled_back(program)
    assert asked(program) == (expected(2, 4), addresses)
    hu.rolled_back(program)
    assert asked(program) == (expected(1, 5), addresses)


@pytest.mark.parametrize("emit_relocs", [True, False], ids=["emit-relocs", "plain"])
@pytest.mark.parametrize("flag", [*(f"-ftls-model={model}" for model in MODELS), "-mtls-dialect=gnu2"])
def test_a_new_thread_local(build: Builder, start: Start, hu: HotUpgrade, flag: str, emit_relocs: bool) -> None:
    """In front of the others, whose offsets all change: the code of the new build is led to where they are."""
    one = build.library("tls", 1, Options(emit_relocs=emit_relocs, flags=(flag,)))
    two = build.library("tls", 2, Options(emit_relocs=emit_relocs, flags=(flag, "-DNEW_TLS")))
    program = start(build.host(one))
    begin(program)
    _, addresses = asked(program)
    hu.upgraded(program, two)
    assert asked(program) == (expected(2, 2, inserted=6), addresses), "old ones kept, the new one as written, in each"
    assert asked(program) == (expected(2, 3, inserted=7), addresses)
    hu.rolled_back(program)
    assert asked(program) == (expected(1, 4), addresses)
    hu.upgraded(program, two)
    assert asked(program)[0][0] % 1000000000 == expected(2, 5)[0]


# One way leads to the thread-local through what the caller passes: nobody can tell what the field means.
EITHER = """
    .globl either
    .type either, @function
either:
    push %rbx
    mov %rsi, %rax
    test %edi, %edi
    jne 1f
    lea spare@tlsld(%rip), %rdi
    call __tls_get_addr@plt
1:  mov wanted@dtpoff(%rax), %rax
    add $VERSION, %rax
    pop %rbx
    ret
    .size either, . - either
    .section .tbss,"awT",@nobits
    .type spare, @object
    .size spare, 1024
spare: .skip 1024
    .globl wanted
    .hidden wanted
    .type wanted, @object
    .size wanted, 8
wanted: .skip 8
    .section .note.GNU-stack
"""


def test_what_cannot_be_told_is_refused_by_name(build: Builder, start: Start, hu: HotUpgrade, workshop: Path) -> None:
    def library(version: int, more: str = "") -> Path:
        source = workshop / f"either-{version}{bool(more)}.s"
        source.write_text(EITHER.replace("$VERSION", f"${version}"))
        other = workshop / f"other-{bool(more)}.c"
        other.write_text(f"{more} static __thread long own; long use(long x) {{ return own += x; }}")
        soname = "libeither.so.1"
        words = ["gcc", "-O2", "-g", "-fPIC", "-shared", f"-Wl,-soname,{soname}", str(other), str(source)]
        return build.built(f"either-v{version}", soname, words)

    program = start(build.host(library(1)))
    assert program.call("either", 0) == 1
    hu.upgraded(program, library(2))
    assert program.call("either", 0) == 2, "nothing need be proven as long as all thread-locals keep their places"
    before = program.fingerprint("libeither")
    answer = hu.upgrade(program.pid, library(3, "__thread long before[300] = {1};"))
    assert answer.code == REFUSED, str(answer)
    assert answer.codes() == {"tls-layout"}
    assert "either" in answer.about()
    assert program.fingerprint("libeither") == before
    assert program.call("either", 0) == 2
