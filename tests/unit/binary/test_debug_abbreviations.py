"""Tables of abbreviations are the same, whether they are recognised as usual or read number by number."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotupgrade.binary.debug import abbreviations
from hotupgrade.binary.debug.abbreviations import Abbreviation, Tables
from hotupgrade.binary.debug.sections import Corrupt, Sections, Unusable
from hotupgrade.binary.debug.units import Units
from unit.binary.dwarf import leb
from unit.binary.test_debug import TYPES
from unit.conftest import Compiler

Shape = tuple[int, bool, tuple[tuple[int, int, int], ...], bool]

numbers = st.one_of(st.integers(0, 0x40), st.sampled_from((0x21, 0x7F, 0x80, 0x2107)))
#: Also what no compiler writes: numbers with more bytes than they need, attributes and forms that are 0.
words = st.one_of(numbers.map(leb), st.sampled_from((b"\x80\x00", b"\xa1\x00", b"\x00")))


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    found = b""
    for _ in range(draw(st.integers(0, 3))):
        found += draw(words) + draw(words) + draw(st.sampled_from((b"\0", b"\1", b"\2")))
        found += b"".join(draw(st.lists(words, max_size=6))) + draw(st.sampled_from((b"\0\0", b"\0\0", b"\0", b"")))
    return found + draw(st.sampled_from((b"\0", b"\0\0", b"")))


def shapes(table: Mapping[int, Abbreviation]) -> dict[int, Shape]:
    return {code: (each.tag, each.children, tuple(each.attributes), each.wanted) for code, each in table.items()}


def read(data: bytes, offset: int = 0) -> dict[int, Shape] | str:
    try:
        return shapes(Tables(data).at(offset, 4))
    except (Corrupt, Unusable) as error:
        return str(error)
    except IndexError:
        return "beyond the end"


@given(tables())
def test_any_table(data: bytes) -> None:
    usual = read(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(abbreviations, "_USUAL", re.compile(rb"(?!)"))
        assert read(data) == usual


def test_what_compilers_write(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    build = compiler.build(TYPES, "-g")
    sections = Sections(build.data, build.sections)
    offsets = [unit.table for unit in Units(sections)]
    usual = [read(sections.abbreviations, offset) for offset in offsets]
    monkeypatch.setattr(abbreviations, "_USUAL", re.compile(rb"(?!)"))
    assert [read(sections.abbreviations, offset) for offset in offsets] == usual
    assert all(usual)
