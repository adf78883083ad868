"""Thread-locals: every thread keeps its own, whatever the model; a new one works where its layout can be known."""

from __future__ import annotations

import time

import pytest

from live.conftest import Start
from live.harness import DONE, REFUSED, Builder, HotUpgrade, Options, Program, until

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
@pytest.mark.parametrize("model", MODELS)
def test_a_new_thread_local(build: Builder, start: Start, hu: HotUpgrade, model: str, emit_relocs: bool) -> None:
    """With relocation records it works; without them a changed layout may be refused, by name."""
    flag = f"-ftls-model={model}"
    one = build.library("tls", 1, Options(emit_relocs=emit_relocs, flags=(flag,)))
    two = build.library("tls", 2, Options(emit_relocs=emit_relocs, flags=(flag, "-DNEW_TLS")))
    program = start(build.host(one))
    begin(program)
    _, addresses = asked(program)
    time.sleep(0.1)  # until all of them sleep again
    before = program.fingerprint("libtls")
    answer = hu.upgrade(program.pid, two)
    if answer.code == REFUSED and not emit_relocs:
        assert "tls" in " ".join(answer.codes()) or "thread-local" in answer.about()
        assert program.fingerprint("libtls") == before
        assert asked(program) == (expected(1, 2), addresses)
        return
    assert answer.code == DONE, str(answer)
    assert asked(program) == (expected(2, 2, inserted=6), addresses), "old ones kept, the new one as written, in each"
    assert asked(program) == (expected(2, 3, inserted=7), addresses)
    hu.rolled_back(program)
    assert asked(program) == (expected(1, 4), addresses)
    hu.upgraded(program, two)
    assert asked(program)[0][0] % 1000000000 == expected(2, 5)[0]
