"""Call frame information, against readelf's own interpretation of it."""

from __future__ import annotations

import re
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotupgrade.binary.build import Build
from hotupgrade.binary.frames import RETURN, RSP, Frames, NoFrameError, Row, caller
from unit.conftest import Compiler

SOURCE = """
#include <alloca.h>
#include <stdarg.h>
extern int outside(char *, ...);
int leaf(int a) { return a + 1; }
int plain(int a) { char room[100]; outside(room, a); return room[3]; }
int variable(int a) { char *room = alloca(a); outside(room, a); return room[3]; }
int aligned(int a) { char room[100] __attribute__((aligned(64))); outside(room); return room[a]; }
int many(int a, int b, int c, int d, int e, int f, int g) {
    int x = outside(0, a), y = outside(0, b), z = outside(0, c), u = outside(0, d), v = outside(0, e);
    if (a > 3) { return x; }
    return x * y + z * u + v * f * g + outside(0, x, y, z, u, v, a, b, c, d, e, f, g);
}
int sum(int n, ...) { va_list l; va_start(l, n); int s = 0; while (n--) s += va_arg(l, int); va_end(l); return s; }
"""
NUMBERS = {f"r{n}": n for n in range(8, 16)} | {
    "rax": 0, "rdx": 1, "rcx": 2, "rbx": 3, "rsi": 4, "rdi": 5, "rbp": 6, "rsp": 7, "ra": 16,
}  # fmt: skip


def said_by_readelf(path: str) -> list[tuple[int, dict[str, str]]]:
    done = subprocess.run(
        ["readelf", "--debug-dump=frames-interp", "-W", path], capture_output=True, text=True, check=True
    )
    found, columns = [], []
    for line in done.stdout.splitlines():
        words = line.split()
        if words[:1] == ["LOC"]:
            columns = words[1:]
        elif columns and re.match(r"[0-9a-f]{16}\Z", words[0] if words else "") and len(words) == len(columns) + 1:
            found.append((int(words[0], 16), dict(zip(columns, words[1:], strict=True))))
    return found


def as_readelf_says_it(row: Row, columns: dict[str, str]) -> dict[str, str]:
    names = {number: name for name, number in NUMBERS.items()}
    said = {}
    for name in columns:
        if name == "CFA":
            said[name] = f"{names[row.cfa[0]]}+{row.cfa[1]}" if isinstance(row.cfa, tuple) else "exp"
        else:
            where = row.saved.get(NUMBERS[name])
            said[name] = "u" if where is None else "exp" if isinstance(where, bytes) else f"c{where:+d}"
    return said


@pytest.mark.parametrize("flags", [("-O2",), ("-O0",), ("-O2", "-fno-omit-frame-pointer"), ("-O3", "-mavx2")], ids=str)
def test_every_row_is_as_readelf_says(compiler: Compiler, flags: tuple[str, ...]) -> None:
    path = compiler.file(SOURCE, *flags)
    build = Build.open(path)
    assert build.eh_frame is not None
    start, size = build.eh_frame
    frames = Frames(build.read(start, size), start, "it")
    compared = 0
    for vaddr, columns in said_by_readelf(str(path)):
        try:
            row = frames.row(vaddr)
        except NoFrameError:
            continue  # a line of a CIE
        assert as_readelf_says_it(row, columns) == columns, hex(vaddr)
        compared += 1
    assert compared > 20


def test_a_place_without_information(compiler: Compiler) -> None:
    build = Build.open(compiler.file(SOURCE))
    assert build.eh_frame is not None
    frames = Frames(build.read(*build.eh_frame), build.eh_frame[0], "it")
    with pytest.raises(NoFrameError, match="no frame information"):
        frames.row(build.eh_frame[0])


def test_a_caller_is_found_and_the_outermost_has_none() -> None:
    memory = {1000: 77, 1008: 0x4010}
    row = Row((RSP, 16), {6: -16, RETURN: -8}, frozenset(), signal=False)
    found = caller(row, {RSP: 1000, 6: 5, 12: 9}, memory.__getitem__)
    assert found is not None
    assert (found.slot, found.pc, dict(found.registers)) == (1008, 0x4010, {RSP: 1016, 6: 77, 12: 9})
    assert caller(Row((RSP, 8), {}, frozenset({RETURN}), signal=False), {RSP: 1000}, memory.__getitem__) is None
    with pytest.raises(NoFrameError, match="not known"):
        caller(Row((10, 0), {RETURN: -8}, frozenset(), signal=False), {RSP: 1000}, memory.__getitem__)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_information_is_an_error_and_never_a_crash(compiler: Compiler, data: st.DataObject) -> None:
    build = Build.open(compiler.file(SOURCE))
    assert build.eh_frame is not None
    start, size = build.eh_frame
    section = bytearray(build.read(start, size))
    for _ in range(data.draw(st.integers(1, 8))):
        section[data.draw(st.integers(0, size - 1))] = data.draw(st.integers(0, 255))
    frames = Frames(bytes(section), start, "it")
    for name in ("plain", "variable", "aligned", "many"):
        try:
            row = frames.row(int(build.entities.address[build.by_name[name]]) + 8)
            caller(row, dict.fromkeys(range(16), 4096), lambda _: 1)
        except NoFrameError:
            pass
