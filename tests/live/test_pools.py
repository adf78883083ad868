"""Constants without a name that hold pointers: a compiler's templates of local arrays."""

from __future__ import annotations

import pytest

from live.conftest import Start
from live.harness import PIE, Builder, HotUpgrade, Options


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_templates_of_local_arrays(build: Builder, start: Start, hu: HotUpgrade, compiler: str) -> None:
    """gcc keeps them in .data, where variables are."""
    options = Options(compiler=compiler)
    one, two = (build.library("pools", version, options, label=compiler) for version in (1, 2))
    program = start(build.host(one))
    for step, version in enumerate((1, 2, 1, 2)):
        if step:
            hu.rolled_back(program) if version == 1 else hu.upgraded(program, two)
        for n in (0, 1, 31, 59):
            assert program.call("word", n) == 1000 * version + n
            assert program.call("same_word", n) == 3000 + n
            assert program.call("kept_word", n) == (4000 + n) * version
        assert program.call("count") == 1 + 4 * (step + 1)


def test_templates_in_a_program(build: Builder, start: Start, hu: HotUpgrade) -> None:
    one, two = (build.executable(["pools"], version, PIE) for version in (1, 2))
    program = start(one)
    hu.upgraded(program, two)
    assert [program.call("word", n) for n in (0, 59)] == [2000, 2059]
    assert program.call("kept_word", 7) == 8014
