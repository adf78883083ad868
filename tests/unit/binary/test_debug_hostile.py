"""Debug information of strangers: whatever the bytes say, there is an answer, soon, and in bounded memory."""

from __future__ import annotations

import struct
import time
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hotupgrade.binary.build import Build
from hotupgrade.binary.debug import abbreviations, read, sections, units
from hotupgrade.binary.debug.model import Debug, checked
from hotupgrade.binary.debug.read import read_debug
from hotupgrade.binary.model import Section
from unit.binary.test_debug import CXX, FORMS, TYPES
from unit.conftest import Compiler

SECONDS = 5.0
KINDS = ("dwarf5", "dwarf4", "type units of 4", "lto")


@pytest.fixture(autouse=True)
def condensed(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small these are, they are read in both ways."""
    monkeypatch.setattr(read, "CONDENSED_FROM", 0)


@pytest.fixture(scope="module")
def samples(compiler: Compiler) -> list[Build]:
    found = [compiler.build(TYPES, *FORMS[kind]) for kind in KINDS]
    return [*found, compiler.build({"module.cc": CXX}, *FORMS["type units"])]


def answered(data: bytes, where: dict[str, Section]) -> Debug:
    begin = time.monotonic()
    debug = checked(read_debug(data, where))
    assert time.monotonic() - begin < SECONDS
    return debug


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_spoiled_bytes(samples: list[Build], data: st.DataObject) -> None:
    build = data.draw(st.sampled_from(samples))
    spoiled = bytearray(build.data)
    names = [name for name in sections.USED_SECTIONS if name in build.sections]
    for _ in range(data.draw(st.integers(1, 6))):
        section = build.sections[data.draw(st.sampled_from(names))]
        at = section.file_offset + data.draw(st.integers(0, section.size - 1))
        spoiled[at] = data.draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF, data.draw(st.integers(0, 255)))))
    answered(bytes(spoiled), dict(build.sections))


@pytest.mark.parametrize("name", [".debug_info", ".debug_abbrev", ".debug_str"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_cut_off(samples: list[Build], name: str, part: float) -> None:
    for build in samples:
        where = dict(build.sections)
        if section := where.get(name):
            size = int(section.size * part)
            where[name] = Section(name, 0, size, section.file_offset, section.type, section.flags, 0)
            assert answered(build.data, where).missing or name == ".debug_str"  # its end may be of no use


def only(**contents: bytes) -> tuple[bytes, dict[str, Section]]:
    """A file that is nothing but debug sections."""
    data, where = b"", {}
    for name, content in contents.items():
        where[f".debug_{name}"] = Section(f".debug_{name}", 0, len(content), len(data), 1, 0, 0)
        data += content
    return data, where


def unit(entries: bytes) -> bytes:
    body = struct.pack("<HBBI", 5, 1, 8, 0) + entries
    return struct.pack("<I", len(body)) + body


# 1: a unit, 2: struct of one member that is unnamed and of type X, 3: the member, 4: pointer, 5: function in another
ABBREVIATIONS = bytes.fromhex(
    "01 11 01 00 00"
    "02 13 01 0b 0b 00 00"
    "03 0d 00 49 13 38 0b 00 00"
    "04 0f 00 49 13 00 00"
    "05 2e 01 00 00"
    "06 34 00 03 0e 49 13 02 18 00 00"
    "07 2e 00 31 13 00 00"
    "00".replace(" ", "")
)


def test_a_type_that_is_a_pointer_to_itself() -> None:
    entries = bytes([1]) + bytes([4]) + struct.pack("<I", 13) + bytes([0])
    assert answered(*only(info=unit(entries), abbrev=ABBREVIATIONS)).missing == ""


def test_an_origin_that_is_its_own() -> None:
    entries = bytes([1]) + bytes([7]) + struct.pack("<I", 13) + bytes([0])
    assert "corrupt" in answered(*only(info=unit(entries), abbrev=ABBREVIATIONS)).missing


def test_a_chain_of_pointers_without_end() -> None:
    count = 50_000
    chain = b"".join(bytes([4]) + struct.pack("<I", 13 + 5 * (i + 1)) for i in range(count))
    variable = bytes([6]) + struct.pack("<II", 0, 13) + bytes([9, 3]) + bytes(8)
    entries = bytes([1]) + chain + variable + bytes([0])
    assert "corrupt" in answered(*only(info=unit(entries), abbrev=ABBREVIATIONS, str=b"x\0")).missing


def test_unnamed_structures_that_double() -> None:
    """Each holds the next one twice: written out, it would have 2 to the power of 60 members."""
    depth, start, size = 60, 12, 2 + 2 * 6 + 1
    entries = bytes([1])
    for level in range(depth):
        inner = start + size * (level + 1)
        member = bytes([3]) + struct.pack("<I", inner) + bytes([0])
        entries += bytes([2, 8]) + member * 2 + bytes([0])
    entries += bytes([4]) + struct.pack("<I", 0)
    entries += bytes([6]) + struct.pack("<II", 0, start + 1) + bytes([9, 3]) + bytes(8) + bytes([0])
    answered(*only(info=unit(entries), abbrev=ABBREVIATIONS, str=b"x\0"))


def test_entries_nested_without_end() -> None:
    entries = bytes([1]) + bytes([5]) * 100_000
    assert "nested" in answered(*only(info=unit(entries), abbrev=ABBREVIATIONS)).missing


def test_a_packed_section_that_would_fill_the_memory() -> None:
    header = struct.pack("<IIQQ", 1, 0, 1 << 40, 1)
    packed = header + zlib.compress(bytes(1 << 20))
    data, where = only(info=packed)
    section = where[".debug_info"]
    where[".debug_info"] = Section(section.name, 0, section.size, 0, 1, sections.SHF_COMPRESSED, 0)
    assert "larger than" in answered(data, where).missing
    lies = struct.pack("<IIQQ", 1, 0, 100, 1) + zlib.compress(bytes(1 << 24))
    data, where = only(info=lies)
    where[".debug_info"] = Section(section.name, 0, len(lies), 0, 1, sections.SHF_COMPRESSED, 0)
    assert "another size" in answered(data, where).missing


def test_more_entries_than_anybody_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "MAX_ENTRIES", 1000)
    entries = bytes([1]) + (bytes([4]) + bytes(4)) * 2000 + bytes([0])
    assert "more than 1000 entries" in answered(*only(info=unit(entries), abbrev=ABBREVIATIONS)).missing


def test_more_abbreviations_than_anybody_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abbreviations, "MAX_ABBREVIATIONS", 3)
    assert "more than 3" in answered(*only(info=unit(bytes([1, 0])), abbrev=ABBREVIATIONS)).missing


def test_time_is_bounded(samples: list[Build], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections, "MAX_SECONDS", 0.0)
    assert "within" in answered(samples[0].data, dict(samples[0].sections)).missing
