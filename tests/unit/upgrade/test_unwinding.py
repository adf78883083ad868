"""Which builds exceptions could not cross."""

from __future__ import annotations

from hotupgrade.upgrade.unwinding import refusals
from unit.conftest import Compiler

THROWS = {"module.cpp": 'extern "C" int f(int x) { try { if (x) throw x; } catch (int y) { return y; } return 0; }'}


def codes(compiler: Compiler, *flags: str) -> list[str]:
    build = compiler.build(THROWS, *flags)
    return [reason.code for reason in refusals("libx.so", [build, build], [])]


def test_an_unwinder_of_the_librarys_own(compiler: Compiler) -> None:
    assert codes(compiler, "-static-libgcc", "-static-libstdc++") == ["own-unwinder"]


def test_no_unwinder_in_the_process(compiler: Compiler) -> None:
    """No module of the process is libgcc_s."""
    assert codes(compiler) == ["no-unwinder"]


def test_without_exceptions_none_is_needed(compiler: Compiler) -> None:
    build = compiler.build("int f(int x) { return x + 1; }")
    assert not list(refusals("libx.so", [build], []))
