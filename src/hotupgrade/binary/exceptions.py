"""Language-specific data of functions: which exceptions they catch is written there and not in their code."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotupgrade.binary.elf import SectionType

if TYPE_CHECKING:
    from hotupgrade.binary.build import Build

SECTION = ".gcc_except_table"
OMIT = 0xFF
INDIRECT = 0x80
FORMATS = {0x00: "<Q", 0x02: "<H", 0x03: "<I", 0x04: "<Q", 0x0A: "<h", 0x0B: "<i", 0x0C: "<q"}
FORMAT_MASK = 0x0F
APPLICATION_MASK = 0x70
PC_RELATIVE = 0x10
ULEB = 0x01
MAX_TYPES = 1 << 16
MAX_AUGMENTATION = 16  # letters


@dataclass(frozen=True, slots=True)
class ExceptionTable:
    """``content`` holds call sites and actions, which are relative to the function; ``types`` what is caught."""

    content: bytes
    encoding: int  # of the types
    types: tuple[int, ...]  # vaddrs (of a word that holds the address, where the encoding says so); 0 catches all


def landing_pads(tables: Mapping[int, ExceptionTable]) -> Callable[[int], tuple[int, ...]]:
    """Where an exception from a call lands, by the call's vaddr.  ``tables`` by the start of the code they are for."""
    sites = sorted(site for start, table in tables.items() for site in _call_sites(start, table))
    lows = [low for low, _, _ in sites]

    def landings(vaddr: int) -> tuple[int, ...]:
        at = bisect_right(lows, vaddr) - 1  # ranges are disjoint
        return (sites[at][2],) if at >= 0 and vaddr < sites[at][1] else ()

    return landings


def _call_sites(start: int, table: ExceptionTable) -> list[tuple[int, int, int]]:
    """(start, end, landing pad) of the ranges from which exceptions are caught; see :func:`_table`."""
    reader = _Reader(table.content, 0)
    found: list[tuple[int, int, int]] = []
    try:
        reader.byte()
        if reader.byte() != OMIT:
            reader.leb()
        reader.byte()
        size = reader.leb()
        end = reader.at + size
        while reader.at < end:
            first, length, pad, _ = (reader.leb() for _ in range(4))
            if pad:
                found.append((start + first, start + first + length, start + pad))
    except _UnreadableError:  # cannot be: it was read before
        return []
    return found


class _UnreadableError(Exception):
    """An encoding that nobody uses, or damage."""


def exception_tables(build: Build) -> dict[int, ExceptionTable | None]:
    """By vaddr of the function; None for a table that cannot be read."""
    section = build.sections.get(SECTION)
    if section is None or section.type == SectionType.NOBITS or build.eh_frame is None:
        return {}
    start, size = build.eh_frame
    frames = _Reader(build.read(start, size), start)
    found: dict[int, ExceptionTable | None] = {}
    tables: dict[int, ExceptionTable | None] = {}  # by their own vaddr
    budget = 16 * section.size + 65536  # tables may overlap, within reason
    try:
        for function, place in _frames(frames):
            if place not in tables:
                reader = _Reader(build.image[place : section.vaddr + section.size].data, place)
                inside = section.vaddr <= place < section.vaddr + section.size
                tables[place] = _table_or_none(reader) if inside else None
                budget -= reader.spent
            if budget < 0:
                raise _UnreadableError
            found[function] = tables[place]
    except _UnreadableError:
        # Frames that cannot be walked: no function's table is known.
        return {int(address): None for address in build.entities.address[build.function_spans.row].tolist()}
    return found


def _table_or_none(reader: _Reader) -> ExceptionTable | None:
    try:
        return _table(reader)
    except _UnreadableError:
        return None


class _Reader:
    """Bytes at a known address, read from front to back."""

    def __init__(self, data: bytes | memoryview, vaddr: int) -> None:
        self.data, self.vaddr, self.at = data, vaddr, 0
        self.spent = 0  # bytes read so far, again and again

    def unpack(self, layout: str) -> int:
        size = struct.calcsize(layout)
        if self.at < 0 or self.at + size > len(self.data):
            raise _UnreadableError
        (value,) = struct.unpack_from(layout, self.data, self.at)
        self.at += size
        self.spent += size
        return int(value)

    def byte(self) -> int:
        return self.unpack("<B")

    def leb(self, signed: bool = False) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
            if shift > 63:
                raise _UnreadableError
        return value - (1 << shift) if signed and byte & 0x40 else value

    def pointer(self, encoding: int) -> int:
        """0 where nothing is pointed to."""
        place = self.vaddr + self.at
        layout = FORMATS.get(encoding & FORMAT_MASK)
        if layout is None or encoding & APPLICATION_MASK not in (0, PC_RELATIVE):
            raise _UnreadableError
        value = self.unpack(layout)
        return value + place if value and encoding & APPLICATION_MASK == PC_RELATIVE else value


def _frames(reader: _Reader) -> Iterator[tuple[int, int]]:
    """(function, its language-specific data) for every frame that has some."""
    common: dict[int, tuple[int, int] | None] = {}
    while reader.at + 8 <= len(reader.data):
        length = reader.unpack("<I")
        if length == 0:
            return
        start = reader.at
        identity = reader.unpack("<I")
        if identity == 0:
            common[start] = _common(reader)
        else:
            place_of_common = start - identity + 4  # counted from one length field to another
            if place_of_common not in common:
                raise _UnreadableError
            encodings = common[place_of_common]
            if encodings is not None:
                function = reader.pointer(encodings[0])
                reader.pointer(encodings[0] & FORMAT_MASK)
                reader.leb()
                place = reader.pointer(encodings[1])
                if place > 0:
                    yield function, place
        reader.at = start + length


def _common(reader: _Reader) -> tuple[int, int] | None:
    """(encoding of code addresses, encoding of the pointer to language-specific data), None if there is no such."""
    version = reader.byte()
    augmentation = bytearray()
    while byte := reader.byte():
        augmentation.append(byte)
        if len(augmentation) > MAX_AUGMENTATION:
            raise _UnreadableError
    reader.leb()
    reader.leb(signed=True)
    _ = reader.byte() if version == 1 else reader.leb()
    if not augmentation.startswith(b"z"):
        return None
    reader.leb()
    code, data = 0, OMIT
    for letter in augmentation[1:].decode("ascii", "replace"):
        if letter == "R":
            code = reader.byte()
        elif letter == "L":
            data = reader.byte()
        elif letter == "P":
            reader.pointer(reader.byte() & ~INDIRECT)
        elif letter != "S":
            raise _UnreadableError
    return None if data == OMIT else (code, data)


def _table(reader: _Reader) -> ExceptionTable:
    if reader.byte() != OMIT:
        raise _UnreadableError  # landing pads counted from elsewhere
    encoding = reader.byte()
    types_end = reader.leb() if encoding != OMIT else 0
    types_end += reader.at
    if reader.byte() != ULEB:
        raise _UnreadableError
    size = reader.leb()
    actions = reader.at + size
    chains = set()
    while reader.at < actions:
        _start, _length, _pad = reader.leb(), reader.leb(), reader.leb()
        chains.add(reader.leb())
    filters, end = _filters(reader, actions, chains - {0})
    count = max((number for number in filters if number > 0), default=0)
    specifications = b""
    for number in sorted(-number for number in filters if number < 0):
        reader.at = first = types_end + number - 1
        while index := reader.leb():
            count = max(count, index)
        specifications += bytes(reader.data[first : reader.at])
    if count > MAX_TYPES:
        raise _UnreadableError
    types = []
    width = struct.calcsize(FORMATS.get(encoding & FORMAT_MASK, "<Q"))
    for number in range(1, count + 1):
        reader.at = types_end - number * width
        types.append(reader.pointer(encoding & ~INDIRECT))
    return ExceptionTable(bytes(reader.data[:end]) + specifications, encoding, tuple(types))


def _filters(reader: _Reader, actions: int, chains: set[int]) -> tuple[set[int], int]:
    """(what the chains of actions ask for, end of the last one)."""
    filters: set[int] = set()
    end = actions
    seen: set[int] = set()
    for chain in chains:
        reader.at = actions + chain - 1
        while reader.at not in seen:
            seen.add(reader.at)
            filters.add(reader.leb(signed=True))
            field = reader.at
            step = reader.leb(signed=True)
            end = max(end, reader.at)
            if not step:
                break
            reader.at = field + step
    return filters, end
