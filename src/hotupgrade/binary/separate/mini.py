"""MiniDebugInfo: a small ELF file, packed by xz, in the section ``.gnu_debugdata`` of a module.

It has the symbols of the functions that the dynamic symbol table does not name, and nothing else: no variables, no
types, no files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hotupgrade.binary.elf import SYMBOL, ElfFile, SectionType
from hotupgrade.binary.model import DynamicSymbol
from hotupgrade.binary.separate.companion import DebugFile, Mismatch, symbols_of
from hotupgrade.binary.separate.links import section_content
from hotupgrade.binary.separate.unpack import UnpackError, unpack
from hotupgrade.binary.symbols import RawSymbols
from hotupgrade.errors import Refused

MAX_UNPACKED = 1 << 26  # bytes; that of a program of 100 MB has 3 MB


class MiniFile(DebugFile):
    """What is packed in a module."""


def mini_symbols(elf: ElfFile, dynamic_symbols: Sequence[DynamicSymbol]) -> RawSymbols | None:
    """The functions that it names, and all that the dynamic symbol table names; None: it has no such section, or it
    is of no use."""
    content = section_content(elf, ".gnu_debugdata")
    if not content:
        return None
    try:
        file = MiniFile(unpack(content, "xz", MAX_UNPACKED), f"{elf.label} (.gnu_debugdata)")
        raw = symbols_of(file, elf)
    except (UnpackError, Mismatch, Refused):
        return None
    return None if raw is None else _joined(raw, elf, dynamic_symbols)


def _joined(raw: RawSymbols, elf: ElfFile, dynamic_symbols: Sequence[DynamicSymbol]) -> RawSymbols:
    """Local names first, as in any symbol table."""
    headers = elf.section_table.headers
    dynamic = headers[headers["type"] == SectionType.DYNSYM][:1]
    if not len(dynamic):
        return raw
    table = elf.link_table(SYMBOL, int(dynamic[0]["addr"]), int(dynamic[0]["size"]), "the dynamic symbol table")
    names = (symbol.name + (f"@{symbol.version}" if symbol.hidden_version else "") for symbol in dynamic_symbols)
    return RawSymbols(raw.file, np.concatenate((raw.table, table)), (*raw.names, *names))
