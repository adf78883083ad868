from __future__ import annotations

import itertools
import os

from hypothesis import given
from hypothesis import strategies as st

from hotupgrade.target.maps import PAGE, Mapping, free_base, gaps, mapping_at, parse_maps, read_maps

LINE = "7f0000001000-7f0000003000 r-xp 00001000 fe:00 1234                       /usr/lib/a b.so (deleted)\n"


def test_a_line_is_read() -> None:
    (mapping,) = parse_maps(LINE)
    assert mapping == Mapping(
        0x7F0000001000, 0x7F0000003000, "r-xp", 0x1000, "fe:00", 1234, "/usr/lib/a b.so (deleted)"
    )
    assert mapping.readable
    assert mapping.executable
    assert mapping.private
    assert not mapping.writable


def test_own_maps_hold_own_code() -> None:
    maps = read_maps(os.getpid())
    assert any(m.path == "[stack]" for m in maps)
    assert all(a.end <= b.start for a, b in itertools.pairwise(maps))


def test_mapping_at_finds_only_what_holds_the_address() -> None:
    maps = parse_maps(LINE)
    assert mapping_at(maps, 0x7F0000001000) is maps[0]
    assert mapping_at(maps, 0x7F0000002FFF) is maps[0]
    assert mapping_at(maps, 0x7F0000003000) is None
    assert mapping_at(maps, 0x1000) is None


@st.composite
def layouts(draw: st.DrawFn) -> list[Mapping]:
    at, found = 0x100000, []
    for hole, size in draw(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), max_size=30)):
        at += hole * PAGE
        found.append(Mapping(at, at + size * PAGE, "rw-p", 0, "", 0, ""))
        at += size * PAGE
    return found


@given(layouts(), st.integers(1, 30), st.integers(0x10, 0x800), st.integers(1, 0x800))
def test_a_free_base_is_free_and_within_bounds(maps: list[Mapping], pages: int, low_page: int, pages_wide: int) -> None:
    low, size = low_page * PAGE, pages * PAGE
    high = low + pages_wide * PAGE
    base = free_base(maps, size, low, high)
    if base is None:
        wide = [(a, b) for a, b in gaps(maps, low, high) if b - a >= size + 2 * PAGE]
        assert not wide
        return
    assert base % PAGE == 0
    assert low <= base
    assert base + size <= high
    assert all(m.end <= base or m.start >= base + size for m in maps)


def test_room_below_the_stack_is_taken_from_its_lower_end() -> None:
    maps = [
        Mapping(0x100000, 0x200000, "r--p", 0, "", 0, "a"),
        Mapping(0x900000, 0xA00000, "rw-p", 0, "", 0, "[stack]"),
    ]
    base = free_base(maps, 0x1000, 0x200000, 0x900000)
    assert base is not None
    assert base - 0x200000 < 0x900000 - base


def test_taken_ranges_are_left_alone() -> None:
    first = free_base([], 0x1000, 0x100000, 0x200000)
    assert first is not None
    second = free_base([], 0x1000, 0x100000, 0x200000, [(first, first + 0x1000)])
    assert second is not None
    assert abs(second - first) >= 0x1000
