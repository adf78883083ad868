"""The part of a build's unwind tables that concerns some of its functions.

``.eh_frame`` is cut down to the entries of these functions and written where the whole one stood in the file; all
pointers in it are relative to their own place and are made anew.  What entries point to (personality routines,
language-specific data, type information) is reported, so that it can be made present.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import Flags

_OMIT = 0xFF
_INDIRECT = 0x80
_RELATIVE_32 = 0x1B  # DW_EH_PE_pcrel | DW_EH_PE_sdata4
_FORMAT_MASK = 0x0F
_APPLICATION_MASK = 0x70
_PC_RELATIVE = 0x10
_SIZES = {0x00: 8, 0x02: 2, 0x03: 4, 0x04: 8, 0x0A: 2, 0x0B: 4, 0x0C: 8}
_TERMINATOR = bytes(4)
_LONGEST = 1 << 16  # bytes of one record
_MOST_LETTERS = 16  # of an augmentation
_MOST_TABLE = 1 << 20  # bytes of one function's language-specific data
_MOST_READ = 1 << 26  # bytes of language-specific data: they may overlap, within reason


class _Unusual(Exception):
    """An encoding that compilers for x86-64 do not use in position-independent code."""


@dataclass
class UnwindTables:
    """``frames`` goes to vaddr ``start``; ``words`` are vaddrs of 8-byte words that unwinding reads through."""

    start: int
    frames: bytes
    words: set[int] = field(default_factory=set)
    pointers: dict[int, int] = field(default_factory=dict)  # vaddr of a pc-relative 4-byte field → vaddr it names
    ranges: list[tuple[int, int]] = field(default_factory=list)  # language-specific data: [low, high) to be present


@dataclass(frozen=True)
class _Common:
    """A CIE."""

    offset: int
    content: bytes  # with its length field
    code_encoding: int
    data_encoding: int
    personality: int | None  # offset of the pointer within content
    personality_encoding: int
    sized: bool  # augmentation data have a length ("z")


@dataclass(frozen=True)
class _Frame:
    """An FDE."""

    offset: int
    common: int  # offset of its CIE
    start: int  # vaddr of the first instruction


def unwind_tables(build: Build, functions: Flags) -> UnwindTables | None:
    """The tables for these rows; None where they have none."""
    if build.eh_frame is None:
        return None
    start, size = build.eh_frame
    section = build.read(start, size)
    try:
        frames = _frames_of(section, start, build, functions)
        if not frames:
            return None
        tables = _Reducer(build, section, start).reduce(frames)
    except (_Unusual, struct.error, IndexError, ValueError):
        return _everything(build, section, start)
    return tables if len(tables.frames) <= size else _everything(build, section, start)


def _everything(build: Build, section: bytes, start: int) -> UnwindTables | None:
    """The tables as they are: not small, and of use only if nothing in them needs the loader."""
    if not section.endswith(_TERMINATOR) or build.text_relocations:
        return None
    return UnwindTables(start, section)


def _frames_of(section: bytes, start: int, build: Build, functions: Flags) -> list[_Frame]:
    rows = np.flatnonzero(functions)
    lows = build.entities.address[rows].astype(np.int64)
    highs = lows + build.extent[rows]
    frames = list(_walk(section, start))
    places = np.asarray([frame.start for frame in frames], dtype=np.int64)
    if not len(places) or not len(rows):
        return []
    index = np.maximum(np.searchsorted(lows, places, side="right") - 1, 0)
    wanted = (places >= lows[index]) & (places < highs[index])
    return [frames[place] for place in np.flatnonzero(wanted).tolist()]


def _walk(section: bytes, start: int) -> list[_Frame]:
    """All FDEs.  That their first field is a 32-bit relative pointer is checked where their CIE is read."""
    frames: list[_Frame] = []
    offset, unpack = 0, struct.Struct("<IIi").unpack_from
    while offset + 12 <= len(section):
        length, identity, relative = unpack(section, offset)
        if length == 0:
            break
        if length == 0xFFFFFFFF:
            raise _Unusual
        if identity:
            common = offset + 4 - identity
            if common < 0:
                raise _Unusual
            frames.append(_Frame(offset, common, start + offset + 8 + relative))
        offset += 4 + length
    return frames


class _Reducer:
    def __init__(self, build: Build, section: bytes, start: int) -> None:
        self._build = build
        self._section = section
        self._start = start
        self._output = bytearray()
        self._placed: dict[int, tuple[int, _Common]] = {}  # old offset of a CIE → new offset, CIE
        self._tables = UnwindTables(start, b"")
        self._data: set[int] = set()

    def reduce(self, frames: list[_Frame]) -> UnwindTables:
        for frame in frames:
            self._append_frame(frame)
        budget = _MOST_READ
        for vaddr in sorted(self._data):
            data = _LanguageData(self._build, vaddr, self._tables)
            budget -= data.read()
            if budget < 0:
                raise _Unusual
        self._tables.frames = bytes(self._output) + _TERMINATOR
        return self._tables

    def _append_frame(self, frame: _Frame) -> None:
        common_place, common = self._common(frame.common)
        content = bytearray(_record(self._section, frame.offset))
        place = len(self._output)
        struct.pack_into("<I", content, 4, place + 4 - common_place)
        self._move_pointer(content, frame.offset, place, 8)
        if common.sized and common.data_encoding != _OMIT:
            _, position = _uleb(content, 16)
            if struct.unpack_from("<i", content, position)[0]:
                self._data.add(self._move_pointer(content, frame.offset, place, position))
        self._output += content

    def _common(self, offset: int) -> tuple[int, _Common]:
        if offset not in self._placed:
            common = _read_common(self._section, offset)
            if common.code_encoding != _RELATIVE_32 or common.data_encoding not in (_OMIT, _RELATIVE_32):
                raise _Unusual
            content = bytearray(common.content)
            place = len(self._output)
            if common.personality is not None:
                if common.personality_encoding not in (_RELATIVE_32, _RELATIVE_32 | _INDIRECT):
                    raise _Unusual
                target = self._move_pointer(content, offset, place, common.personality)
                if common.personality_encoding & _INDIRECT:
                    self._tables.words.add(target)
                else:
                    self._tables.pointers[self._start + place + common.personality] = target
            self._output += content
            self._placed[offset] = (place, common)
        return self._placed[offset]

    def _move_pointer(self, content: bytearray, old: int, new: int, position: int) -> int:
        """Keeps a relative pointer on its target while its record moves; returns the target's vaddr."""
        relative: int = struct.unpack_from("<i", content, position)[0]
        struct.pack_into("<i", content, position, relative + old - new)
        return self._start + old + position + relative


def _record(section: bytes, offset: int) -> bytes:
    content = section[offset : offset + 4 + struct.unpack_from("<I", section, offset)[0]]
    if len(content) > _LONGEST:
        raise _Unusual
    return content


def _read_common(section: bytes, offset: int) -> _Common:
    content = _record(section, offset)
    if struct.unpack_from("<I", content, 4)[0] != 0:
        raise _Unusual
    version = content[8]
    end = content.index(b"\0", 9, 9 + _MOST_LETTERS + 1)
    augmentation = content[9:end].decode("ascii", "replace")
    position = end + 1
    _, position = _uleb(content, position)  # code alignment
    _, position = _uleb(content, position)  # data alignment (signed; only its length matters here)
    position = position + 1 if version == 1 else _uleb(content, position)[1]  # return address register
    if not augmentation.startswith("z"):
        if augmentation:
            raise _Unusual
        return _Common(offset, content, 0, _OMIT, None, _OMIT, sized=False)
    _, position = _uleb(content, position)
    code, data, personality, personality_encoding = 0, _OMIT, None, _OMIT
    for letter in augmentation[1:]:
        if letter == "R":
            code, position = content[position], position + 1
        elif letter == "L":
            data, position = content[position], position + 1
        elif letter == "P":
            personality_encoding, personality = content[position], position + 1
            position += 1 + _size(personality_encoding)
        elif letter not in "SB":
            raise _Unusual
    return _Common(offset, content, code, data, personality, personality_encoding, sized=True)


class _LanguageData:
    """One function's language-specific data, as C++ writes it: call sites, actions, types."""

    def __init__(self, build: Build, vaddr: int, tables: UnwindTables) -> None:
        section = build.section_at(vaddr)
        if section is None:
            raise _Unusual
        room = min(section.vaddr + section.size - vaddr, _MOST_TABLE)
        self._content = build.read(vaddr, room)
        self._vaddr = vaddr
        self._tables = tables
        self._cost = 256  # and what is read besides the table itself
        self._followed: set[int] = set()  # actions

    def read(self) -> int:
        """Takes note of all that it refers to; returns how many bytes that cost."""
        content, position = self._content, 0
        if content[position] != _OMIT:
            raise _Unusual  # landing pads counted from elsewhere than the function's start
        type_encoding = content[position + 1]
        position += 2
        types: int | None = None
        if type_encoding != _OMIT:
            distance, position = _uleb(content, position)
            types = position + distance
        site_encoding = content[position]
        length, position = _uleb(content, position + 1)
        actions = position + length
        first_actions = self._first_actions(position, actions, site_encoding)
        end = actions
        filters: set[int] = set()
        for first in first_actions:
            end = max(end, self._follow(actions + first - 1, filters))
        if types is not None:
            end = max(end, types)
            end = max(end, self._types(types, type_encoding, filters))
        self._tables.ranges.append((self._vaddr, self._vaddr + end))
        return end + self._cost

    def _first_actions(self, position: int, end: int, encoding: int) -> set[int]:
        found: set[int] = set()
        while position < end:
            for _ in range(3):
                position = self._skip(position, encoding)
            action, position = _uleb(self._content, position)
            if action:
                found.add(action)
        return found

    def _skip(self, position: int, encoding: int) -> int:
        if encoding & _FORMAT_MASK in (0x01, 0x09):
            return _uleb(self._content, position)[1]
        return position + _size(encoding)

    def _follow(self, position: int, filters: set[int]) -> int:
        """One chain of actions; returns where its last record ends."""
        end = position
        while position not in self._followed:
            self._followed.add(position)
            number, behind = _sleb(self._content, position)
            step, after = _sleb(self._content, behind)
            filters.add(number)
            end = max(end, after)
            if not step:
                break
            position = behind + step
        return end

    def _types(self, base: int, encoding: int, filters: set[int]) -> int:
        """The types that the filters name; a negative filter is an exception specification, a list of types."""
        numbers = {number for number in filters if number > 0}
        end = base
        for specification in (number for number in filters if number < 0):
            position = base - specification - 1
            while True:
                number, position = _uleb(self._content, position)
                end = max(end, position)
                self._cost += 1
                if self._cost > _MOST_TABLE:
                    raise _Unusual
                if not number:
                    break
                numbers.add(number)
        for number in numbers:
            self._type(base - number * _size(encoding), encoding)
        return end

    def _type(self, position: int, encoding: int) -> None:
        if encoding & _APPLICATION_MASK != _PC_RELATIVE or encoding & _FORMAT_MASK != 0x0B:
            raise _Unusual
        if position < 0:
            raise _Unusual
        relative: int = struct.unpack_from("<i", self._content, position)[0]
        if not relative:
            return  # catch (...)
        place = self._vaddr + position
        if encoding & _INDIRECT:
            self._tables.words.add(place + relative)
        else:
            self._tables.pointers[place] = place + relative


def _size(encoding: int) -> int:
    size = _SIZES.get(encoding & _FORMAT_MASK)
    if size is None or encoding & _APPLICATION_MASK not in (0, _PC_RELATIVE):
        raise _Unusual
    return size


def _uleb(content: bytes | bytearray, position: int) -> tuple[int, int]:
    value = shift = 0
    if position < 0:
        raise _Unusual
    while True:
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, position
        if shift > 63:
            raise _Unusual


def _sleb(content: bytes | bytearray, position: int) -> tuple[int, int]:
    value, behind = _uleb(content, position)
    bits = 7 * (behind - position)
    return (value - (1 << bits) if value & (1 << (bits - 1)) else value), behind
