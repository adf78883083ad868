"""Link-time relocation records (--emit-relocs), read without any help from the code under test."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

SHT_SYMTAB, SHT_RELA = 2, 4
SHF_ALLOC, SHF_EXECINSTR = 2, 4

PC32, PLT32, GOTPCREL, TLSGD, TLSLD, DTPOFF32, GOTTPOFF, TPOFF32 = 2, 4, 9, 19, 20, 21, 22, 23
GOTPC32, GOTPC32_TLSDESC, TLSDESC_CALL, GOTPCRELX, REX_GOTPCRELX = 26, 34, 35, 41, 42

SECTION = np.dtype(
    {
        "names": ("name", "type", "flags", "address", "offset", "size", "link", "info", "align", "entry"),
        "formats": ("<u4", "<u4", "<u8", "<u8", "<u8", "<u8", "<u4", "<u4", "<u8", "<u8"),
    }
)
RELA = np.dtype([("place", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])
SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)

Table = npt.NDArray[np.void]


@dataclass(frozen=True)
class Record:
    place: int  # vaddr
    type: int  # R_X86_64_*
    symbol: str
    value: int  # of the symbol: vaddr, or offset of a thread-local
    defined: bool
    addend: int
    section: int  # index of the section that the place is in


def read_records(path: Path) -> list[Record]:
    """All records about code."""
    data = path.read_bytes()
    (offset,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    assert size == SECTION.itemsize
    sections = np.frombuffer(data, SECTION, count, offset)
    (symbols_at,) = np.flatnonzero(sections["type"] == SHT_SYMTAB).tolist()
    symbols = _rows(data, sections[symbols_at], SYMBOL)
    strings = sections[int(sections[symbols_at]["link"])]
    names = data[int(strings["offset"]) : int(strings["offset"] + strings["size"])]
    found = []
    for section in sections[sections["type"] == SHT_RELA]:
        subject = int(section["info"])
        if section["flags"] & SHF_ALLOC or not sections[subject]["flags"] & SHF_EXECINSTR:
            continue
        assert int(section["link"]) == symbols_at
        for place, kind, number, addend in _rows(data, section, RELA).tolist():
            symbol = symbols[number]
            start = int(symbol["name"])
            name = names[start : names.index(b"\0", start)].decode()
            defined = int(symbol["section"]) != 0
            found.append(Record(place, kind, name, int(symbol["value"]), defined, addend, subject))
    return found


def _rows(data: bytes, section: Table, layout: np.dtype[np.void]) -> Table:
    return np.frombuffer(data, layout, int(section["size"]) // layout.itemsize, int(section["offset"]))
