"""A file that holds the symbols or the debug information of a module, and whether it is of that module.

What ``objcopy --only-keep-debug``, ``eu-strip -f`` and the like make: every section of the module is named in it, at
the same address, but only those that are not loaded have contents.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hotupgrade.binary.elf import (
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHF_TLS,
    SHF_WRITE,
    ElfFile,
    ElfTables,
    ProgramType,
    SectionTable,
    find_build_id,
)
from hotupgrade.binary.separate.links import DebugLink, section_content, supplement_identity
from hotupgrade.binary.symbols import FIRST_RESERVED_SECTION, RawSymbols, read_symbol_table
from hotupgrade.errors import Reason

_MEANT = SHF_ALLOC | SHF_WRITE | SHF_EXECINSTR | SHF_TLS
_ABSOLUTE = 0xFFF1  # SHN_ABS: in no section


class Mismatch(Exception):
    """The file is of another build; the text says how that is known."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(what)
        self.reason = Reason(
            "debug-mismatch",
            where,
            f"{where}: {what}; debug information of another build says nothing about this one: bring that of this"
            " very build",
        )


class DebugFile(ElfTables):
    """The tables of a separate file; ``label`` is where it was found, ``folder`` what names in it are relative to."""

    def __init__(self, data: bytes, label: str, folder: Path | None = None) -> None:
        super().__init__(data, label)
        self.folder = folder

    def build_id(self) -> str | None:
        """Notes keep their place as sections; what program headers say of it need not be true any more."""
        content = section_content(self, ".note.gnu.build-id")
        return find_build_id(content, 4) or (None if content else super().build_id())


def require_same_build(file: DebugFile, elf: ElfFile, link: DebugLink | None) -> None:
    """That the file was made from this module, or from the link of which it is a stripped copy.

    ``link`` is what the module says of a debug file of this name: its CRC counts as well.

    Raises:
        Mismatch: it was not.
        Refused: the file is damaged.
    """
    wanted, found = elf.build_id(), file.build_id()
    if wanted != found:
        raise Mismatch(file.label, f"it has {_said(found)}, and {elf.label} {_said(wanted)}")
    if link is not None and (crc := zlib.crc32(file.data)) != link.crc:
        raise Mismatch(file.label, f"its CRC is {crc:08x}, and {elf.label} asks for {link.crc:08x}")
    if wanted is None and link is None:
        raise Mismatch(file.label, f"neither it nor {elf.label} has a build-id or a CRC that could tell")
    _section_numbers(file, elf)
    if (said := _segments(file)) and said != _segments(elf):
        raise Mismatch(file.label, f"its segments are not those of {elf.label}, though both have {_said(wanted)}")


def require_supplement(file: DebugFile, identity: str) -> None:
    """That this is the file that others share debug information in.

    Raises:
        Mismatch: it is another.
        Refused: the file is damaged.
    """
    found = supplement_identity(file) or file.build_id() or ""
    if not identity or found != identity:
        raise Mismatch(file.label, f"it has build-id {found or '(none)'}, and {identity or '(none)'} is asked for")


def _said(build_id: str | None) -> str:
    return f"build-id {build_id}" if build_id else "no build-id"


def _segments(file: ElfTables) -> list[tuple[int, int, int]]:
    """(vaddr, size in memory, flags); how much of it a debug file has does not matter."""
    loads = file.programs[file.programs["type"] == ProgramType.LOAD]
    return [(int(row["vaddr"]), int(row["memsz"]), int(row["flags"])) for row in loads]


# Symbols


def symbols_of(file: DebugFile, elf: ElfFile) -> RawSymbols | None:
    """Its symbol table, with the numbers that its sections have in the module; None if it has none.

    Raises:
        Mismatch: the module has no such sections.
        Refused: the table is damaged.
    """
    raw = read_symbol_table(file)
    if raw is None:
        return None
    numbers = _section_numbers(file, elf)
    table = raw.table.copy()
    ordinary = table["shndx"] < FIRST_RESERVED_SECTION
    if (table["shndx"][ordinary] >= len(numbers)).any():
        file.corrupt("a symbol names a section that does not exist")
    table["shndx"][ordinary] = numbers[table["shndx"][ordinary]]
    return RawSymbols(file, table, raw.names)


def _section_numbers(file: DebugFile, elf: ElfFile) -> npt.NDArray[np.uint16]:
    """For each section of the file, its number in the module: stripping removes headers, so numbers shift.

    What is not loaded is nobody's: SHN_ABS.
    """
    known = _places(elf.section_table)
    numbers = np.full(len(file.section_table.headers), _ABSOLUTE, np.uint16)
    numbers[:1] = 0
    for place, number in _places(file.section_table).items():
        if place not in known:
            name, vaddr, size, _ = place
            raise Mismatch(
                file.label,
                f"it has a section {name} of {size} bytes at {vaddr:#x}, which {elf.label} has not, though both have"
                f" {_said(elf.build_id())}",
            )
        numbers[number] = known[place]
    return numbers


def _places(sections: SectionTable) -> Mapping[tuple[str, int, int, int], int]:
    """(name, vaddr, size, flags) of what is loaded, to its number."""
    headers = sections.headers
    columns = (headers["addr"].tolist(), headers["size"].tolist(), (headers["flags"] & _MEANT).tolist())
    rows = enumerate(zip(sections.names, *columns, strict=True))
    return {place: number for number, place in rows if place[3] & SHF_ALLOC}
