"""Changes to ELF files that hit what readers look at: rows and fields of tables, offsets, sizes, records of frames.

Blind changes of bytes mostly hit code and text.  These find the tables by their headers, leniently, so that files
which are spoiled already can be spoiled further.
"""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass

MOST = 1 << 20  # bytes that a file may grow to
SECTION_HEADER, PROGRAM_HEADER = 64, 56

#: Width of each field of a row, by table.
FILE_FIELDS = (16, 2, 2, 4, 8, 8, 8, 4, 2, 2, 2, 2, 2, 2)
PROGRAM_FIELDS = (4, 4, 8, 8, 8, 8, 8, 8)
SECTION_FIELDS = (4, 4, 8, 8, 8, 8, 4, 4, 8, 8)
ROWS = {  # by section type
    2: (4, 1, 1, 2, 8, 8),  # SYMTAB
    11: (4, 1, 1, 2, 8, 8),  # DYNSYM
    4: (8, 4, 4, 8),  # RELA
    6: (8, 8),  # DYNAMIC
    7: (4, 4, 4, 4),  # NOTE
    14: (8,),  # INIT_ARRAY
    15: (8,),  # FINI_ARRAY
    19: (8,),  # RELR
    0x6FFFFFFF: (2,),  # GNU_versym
    0x6FFFFFFE: (2, 2, 4, 4, 4),  # GNU_verneed
    0x6FFFFFFD: (2, 2, 2, 2, 4, 4, 4),  # GNU_verdef
    0x6FFFFFF6: (4, 4, 4, 4),  # GNU_HASH
}
BYTES = (1,)
BYTEWISE = (b".eh_frame", b".gcc_except_table", b".debug_", b".strtab", b".dynstr", b".shstrtab", b".rodata")


@dataclass(frozen=True)
class Region:
    """A table within the file."""

    offset: int
    size: int
    fields: tuple[int, ...]

    @property
    def row(self) -> int:
        return sum(self.fields)


def regions(data: bytes) -> list[Region]:
    """The tables of a file, as far as its headers still say where they are."""
    found = [Region(0, len(data), BYTES), Region(0, 64, FILE_FIELDS)]
    with contextlib.suppress(struct.error, OverflowError):
        programs, sections = struct.unpack_from("<QQ", data, 32)
        program_count, _, section_count, names = struct.unpack_from("<HHHH", data, 56)
        found.append(Region(programs, PROGRAM_HEADER * program_count, PROGRAM_FIELDS))
        found.append(Region(sections, SECTION_HEADER * section_count, SECTION_FIELDS))
        (text,) = struct.unpack_from("<Q", data, sections + SECTION_HEADER * names + 24)
        for number in range(min(section_count, 64)):
            name, kind, _, _, offset, size = struct.unpack_from("<IIQQQQ", data, sections + SECTION_HEADER * number)
            if kind in ROWS:
                found.append(Region(offset, size, ROWS[kind]))
            elif data[text + name : text + name + 24].startswith(BYTEWISE):
                found.append(Region(offset, size, BYTES))
    return [region for region in found if region.row <= region.size and region.offset + region.size <= len(data)]


def mutated(data: bytes, chance: random.Random, most: int = MOST) -> bytes:
    """One to four changes."""
    for _ in range(chance.choice((1, 1, 1, 2, 3, 4))):
        if data:
            data = chance.choice(_CHANGES)(bytearray(data), chance)[:most]
    return data


def _field(data: bytearray, chance: random.Random) -> bytes:
    """One field of one row gets a telling value."""
    tables = regions(bytes(data))
    table = chance.choice(tables)
    row = table.offset + table.row * chance.randrange(table.size // table.row)
    index = chance.randrange(len(table.fields))
    at, width = row + sum(table.fields[:index]), table.fields[index]
    before = int.from_bytes(data[at : at + width], "little")
    data[at : at + width] = (_value(before, width, data, chance) % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(data)


def _value(before: int, width: int, data: bytes, chance: random.Random) -> int:
    bits = 8 * width
    how = chance.randrange(7)
    if how == 0:
        return chance.choice((0, 1, 2, -1, -2, 1 << (bits - 1), (1 << (bits - 1)) - 1, 1 << (bits // 2)))
    if how == 1:
        return before + chance.choice((-1, 1)) * (1 << chance.randrange(bits))
    if how == 2:
        return before ^ 1 << chance.randrange(bits)
    if how == 3:
        return chance.choice((len(data), len(data) - 1, len(data) + 1, 1 << 31, (1 << 31) - 4096, 4096, 1 << 28))
    if how == 4:
        return chance.randrange(1 << chance.randrange(1, bits + 1))
    if how == 5:
        return chance.randrange(24)
    other = chance.choice(regions(data))
    row = other.offset + other.row * chance.randrange(other.size // other.row)
    return int.from_bytes(data[row : row + min(8, other.row)], "little")


def _row(data: bytearray, chance: random.Random) -> bytes:
    """One row becomes a copy of another: overlaps, duplicates, loops."""
    table = chance.choice(regions(bytes(data)))
    source, target = (table.offset + table.row * chance.randrange(table.size // table.row) for _ in range(2))
    data[target : target + table.row] = data[source : source + table.row]
    return bytes(data)


def _bytes(data: bytearray, chance: random.Random) -> bytes:
    for _ in range(chance.randrange(1, 9)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data)


def _piece(data: bytearray, chance: random.Random) -> bytes:
    """A piece is copied over another place, or to the end."""
    start = chance.randrange(len(data))
    piece = data[start : start + chance.randrange(1, 257)]
    if chance.randrange(4) == 0:
        return bytes(data + piece)
    target = chance.randrange(len(data))
    data[target : target + len(piece)] = piece
    return bytes(data)


def _cut(data: bytearray, chance: random.Random) -> bytes:
    return bytes(data[: chance.randrange(len(data))]) if chance.randrange(4) == 0 else bytes(data)


_CHANGES: tuple[Callable[[bytearray, random.Random], bytes], ...] = (
    _field,
    _field,
    _field,
    _field,
    _field,
    _row,
    _bytes,
    _piece,
    _cut,
)
