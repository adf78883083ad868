"""Whatever a file holds, reading it ends soon: with a build, or with one clear sentence."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hotupgrade.binary.build import Build
from hotupgrade.errors import Refused
from unit.binary.samples import EVERYTHING
from unit.conftest import Compiler

LIMIT_S = 5.0
SMALL = """
int f(int x) { static int n; return n += x; }
int g(void) { return f(3); }
__thread int t;
const int k[2] = {1, 2};
"""


@pytest.fixture(scope="module")
def good(compiler: Compiler) -> bytes:
    return compiler.file(SMALL, "-Wl,--emit-relocs").read_bytes()


def refusal(read: Callable[[], Build]) -> str:
    """The code of the one reason; checks that its text is a sentence with the culprit's name."""
    with pytest.raises(Refused) as caught:
        read()
    (reason,) = caught.value.reasons
    assert reason.subject in reason.text
    assert "\n" not in reason.text
    assert len(reason.text) > 20
    return reason.code


def read_fully(data: bytes) -> None:
    """Everything that a build offers."""
    build = Build.from_bytes(data, "mutated")
    assert len(build.references) == len(build.access)
    assert len(build.plain) == len(build.entities)
    assert build.boundaries.size
    assert build.read(0, min(build.span, 64))
    assert build.fingerprint
    assert build.section_at(0x1000) or True


def ends_soon(data: bytes) -> None:
    """No exception but Refused, and no long wait."""
    start = time.monotonic()
    with contextlib.suppress(Refused):
        read_fully(data)
    assert time.monotonic() - start < LIMIT_S


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "not-elf"),
        (b"\x7fEL", "not-elf"),
        (b"#!/bin/sh\necho no\n", "not-elf"),
        (b"\x7fELF", "truncated"),
        (b"\x7fELF\x02\x01\x01" + bytes(40), "truncated"),
        (b"\x7fELF\x01\x01\x01" + bytes(60), "wrong-architecture"),
        (b"\x7fELF\x02\x02\x01" + bytes(60), "wrong-architecture"),
        (b"\x7fELF\x02\x01\x01" + bytes(60), "wrong-architecture"),
        (bytes(1 << 20), "not-elf"),
    ],
)
def test_what_is_no_module(data: bytes, code: str) -> None:
    assert refusal(lambda: Build.from_bytes(data, "input")) == code


def test_another_machine(good: bytes) -> None:
    arm = good[:18] + struct.pack("<H", 183) + good[20:]
    assert refusal(lambda: Build.from_bytes(arm, "input")) == "wrong-architecture"


def test_object_file_and_core_dump(good: bytes, compiler: Compiler) -> None:
    place = compiler.file(SMALL).parent
    subprocess.run(["gcc", "-c", "module.c", "-o", "module.o"], cwd=place, check=True)
    assert refusal(lambda: Build.open(place / "module.o")) == "not-a-module"
    core = good[:16] + struct.pack("<H", 4) + good[18:]
    assert refusal(lambda: Build.from_bytes(core, "core")) == "not-a-module"


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (("-static",), "static-executable"),
        (("-static-pie",), "static-executable"),
        (("-no-pie", "-fno-pie"), "fixed-address"),
    ],
)
def test_executables_that_cannot_be_upgraded(compiler: Compiler, flags: tuple[str, ...], code: str) -> None:
    directory = compiler.file(SMALL).parent
    source = directory / "main.c"
    source.write_text("int main(void) { return 0; }")
    result = directory / f"main{'-'.join(flags)}"
    done = subprocess.run(["gcc", source, "-o", result, *flags], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("no static C library here")
    assert refusal(lambda: Build.open(result)) == code


def test_stripped(compiler: Compiler, tmp_path: Path) -> None:
    stripped = tmp_path / "stripped"
    subprocess.run(["strip", "-o", stripped, compiler.file(EVERYTHING)], check=True)
    assert refusal(lambda: Build.open(stripped)) == "no-symbols"
    headless = bytearray(compiler.file(EVERYTHING).read_bytes())
    headless[40:48] = bytes(8)  # e_shoff
    headless[60:64] = bytes(4)  # e_shnum, e_shstrndx
    assert refusal(lambda: Build.from_bytes(bytes(headless), "headless")) == "no-symbols"


def test_without_local_names_it_is_still_a_build(compiler: Compiler, tmp_path: Path) -> None:
    result = tmp_path / "global"
    subprocess.run(["strip", "--discard-all", "-o", result, compiler.file(EVERYTHING)], check=True)
    build = Build.open(result)
    assert "helper" not in build.entities.names
    assert "tail" in build.by_name


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refusal(lambda: Build.open(tmp_path / "absent")) == "unreadable"
    assert refusal(lambda: Build.open(tmp_path / "pipe")) == "not-a-file"
    assert refusal(lambda: Build.open(tmp_path)) == "not-a-file"
    assert refusal(lambda: Build.open("/dev/zero")) == "not-a-file"
    assert refusal(lambda: Build.open("bad\0name")) == "unreadable"


def test_a_huge_sparse_file(tmp_path: Path) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.write(b"\x7fELF\x02\x01\x01")
        file.truncate(1 << 40)
    start = time.monotonic()
    assert refusal(lambda: Build.open(huge)) == "too-large"
    assert time.monotonic() - start < LIMIT_S


def test_an_image_too_large_to_relink(good: bytes) -> None:
    data = bytearray(good)
    phoff = struct.unpack_from("<Q", data, 32)[0]
    for number in range(struct.unpack_from("<H", data, 56)[0]):
        if struct.unpack_from("<I", data, phoff + 56 * number)[0] == 1:
            last = phoff + 56 * number
    struct.pack_into("<Q", data, last + 40, 1 << 40)
    assert refusal(lambda: Build.from_bytes(bytes(data), "input")) == "too-large"


def test_every_truncation(good: bytes) -> None:
    start = time.monotonic()
    for size in {*range(300), *range(300, len(good), 97), len(good) - 1}:
        assert refusal(lambda size=size: Build.from_bytes(good[:size], "cut")) in ("not-elf", "truncated"), size
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("value", [b"\xff" * 8, bytes(8), b"\xff" * 7 + b"\x7f", b"\1" * 8])
def test_every_word_of_the_tables_overwritten(good: bytes, value: bytes) -> None:
    """Headers, dynamic table, symbol and relocation tables: all that is read as numbers."""
    intact = Build.from_bytes(good, "good")
    places = [*range(0, 64 + 56 * 12, 8)]
    for name in (
        ".dynamic",
        ".dynsym",
        ".symtab",
        ".rela.dyn",
        ".rela.plt",
        ".gnu.version_r",
        ".rela.text",
        ".init_array",
    ):
        section = intact.sections.get(name)
        if section is not None:
            places += range(section.file_offset, section.file_offset + section.size, 8)
    table = struct.unpack_from("<Q", good, 40)[0]
    places += range(table, table + 64 * struct.unpack_from("<H", good, 60)[0], 8)
    for place in places:
        ends_soon(good[:place] + value + good[place + 8 :])


MUTATIONS = st.lists(st.tuples(st.floats(0, 0.999999), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations=MUTATIONS)
def test_random_mutations(good: bytes, mutations: list[tuple[float, bytes]]) -> None:
    data = bytearray(good)
    for where, content in mutations:
        at = int(where * len(data))
        data[at : at + len(content)] = content
    ends_soon(bytes(data))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mutations=st.lists(
        st.tuples(
            st.integers(0, 40), st.integers(0, 9), st.one_of(st.integers(0, (1 << 64) - 1), st.integers(0, 1 << 20))
        ),
        min_size=1,
        max_size=5,
    )
)
def test_mutated_section_headers(good: bytes, mutations: list[tuple[int, int, int]]) -> None:
    """Offsets, sizes, links and types in every combination."""
    fields = [
        (0, "<I"),
        (4, "<I"),
        (8, "<Q"),
        (16, "<Q"),
        (24, "<Q"),
        (32, "<Q"),
        (40, "<I"),
        (44, "<I"),
        (48, "<Q"),
        (56, "<Q"),
    ]
    data = bytearray(good)
    table, count = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<H", data, 60)[0]
    for number, field, value in mutations:
        offset, layout = fields[field]
        struct.pack_into(
            layout, data, table + 64 * (number % count) + offset, value % (1 << (8 * struct.calcsize(layout)))
        )
    ends_soon(bytes(data))
