"""Symbol tables: .symtab as entities, .dynsym with versions."""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from hotupgrade.binary.elf import (
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHF_TLS,
    SHF_WRITE,
    SYMBOL,
    Dt,
    ElfFile,
    ElfTables,
    SectionType,
    Table,
)
from hotupgrade.binary.model import I32, U8, U64, DynamicSymbol, Entities, Flags, Kind
from hotupgrade.errors import Reason, Refused


class SymbolType(enum.IntEnum):
    NOTYPE = 0
    OBJECT = 1
    FUNC = 2
    SECTION = 3
    FILE = 4
    COMMON = 5
    TLS = 6
    GNU_IFUNC = 10


class Binding(enum.IntEnum):
    LOCAL = 0
    GLOBAL = 1
    WEAK = 2
    GNU_UNIQUE = 10


VISIBLE = (0, 3)  # STV_DEFAULT, STV_PROTECTED
FIRST_RESERVED_SECTION = 0xFF00
VERSION_HIDDEN = 0x8000
VERSION_NUMBER = 0x7FFF

# Names that the linker invents.  They say where a section begins or ends; they are no objects.
LINKER_NAMES = frozenset(
    (
        "_DYNAMIC",
        "_GLOBAL_OFFSET_TABLE_",
        "_PROCEDURE_LINKAGE_TABLE_",
        "_TLS_MODULE_BASE_",
        "__TMC_END__",
        "__GNU_EH_FRAME_HDR",
        "__FRAME_END__",
        "__EH_FRAME_BEGIN__",
        "__bss_start",
        "__data_start",
        "data_start",
        "__ehdr_start",
        "__executable_start",
        "__etext",
        "__init_array_start",
        "__init_array_end",
        "__fini_array_start",
        "__fini_array_end",
        "__preinit_array_start",
        "__preinit_array_end",
        "_edata",
        "_end",
        "_etext",
        "edata",
        "end",
        "etext",
    )
)
# Sections whose contents belong to the linker and the loader, whatever symbols compilers put there.
LOADER_SECTIONS = frozenset((".dynamic", ".got", ".got.plt", ".eh_frame", ".eh_frame_hdr", ".tm_clone_table"))
LOADER_SECTION_TYPES = (SectionType.INIT_ARRAY, SectionType.FINI_ARRAY, SectionType.PREINIT_ARRAY, SectionType.NOTE)


@dataclass(frozen=True)
class SymbolTable:
    entities: Entities
    by_name: Mapping[str, int]
    marks: Mapping[int, tuple[str, ...]]
    extent: I32


@dataclass(frozen=True)
class RowTable:
    """The rows of a build, from its symbols or (:mod:`hotupgrade.binary.bare`) without.

    ``unbounded`` rows are objects of which only the address is known; ``unframed`` functions may be several.
    """

    symbols: SymbolTable
    unbounded: Flags
    unframed: Flags


def plain_name(name: str) -> str:
    """``foo@@V`` is what ``foo`` means by default; ``foo@V`` is another symbol and keeps its version."""
    return name.split("@@", 1)[0] if "@@" in name else name


@dataclass(frozen=True)
class RawSymbols:
    """The rows of a .symtab, and their names.  ``shndx`` numbers the sections of the module that they are about."""

    file: ElfTables  # where they lie: of that it is said when they cannot be right
    table: Table  # SYMBOL
    names: tuple[str, ...]


@dataclass(frozen=True)
class _Symbols:
    """Columns of .symtab."""

    table: Table
    names: tuple[str, ...]
    types: U8
    bindings: U8
    files: tuple[str, ...]
    kinds: U8  # Kind; 0 for what is no entity


def read_symbols(elf: ElfFile, dynamic_symbols: Sequence[DynamicSymbol], raw: RawSymbols) -> SymbolTable:
    """The named things of a build, from its own symbol table or from one that lies elsewhere.

    Raises:
        Refused: there is no function among them, or they cannot be those of this build.
    """
    symbols = _columns(elf, raw)
    table, kinds = symbols.table, symbols.kinds
    chosen = np.flatnonzero(kinds)
    if not (kinds == Kind.FUNCTION).any():
        refuse_stripped(elf)
    _check_bounds(elf, raw.file, table, kinds, chosen)
    is_tls = kinds[chosen] == Kind.TLS
    order = chosen[np.lexsort((kinds[chosen], table["value"][chosen], is_tls))]
    entities, by_name = _rows(symbols, order, dynamic_symbols)
    # What is compared byte by byte stays in proportion to file and image: symbols within symbols are rare.
    stored = np.isin(entities.kind, (Kind.FUNCTION, Kind.CONSTANT, Kind.RELRO))
    room = 4 * (elf.span + (elf.tls.memory_size if elf.tls else 0))
    if int(entities.size[stored].sum()) > 4 * len(elf.data) or int(entities.size[~stored].sum()) > room:
        raw.file.corrupt("symbols overlap beyond reason")
    marks = _marks(table, symbols.names, symbols.types)
    return SymbolTable(entities, by_name, marks, _extents(elf, entities))


def _columns(elf: ElfFile, raw: RawSymbols) -> _Symbols:
    table, names = raw.table, raw.names
    info = table["info"].astype(np.uint8)
    types = info & np.uint8(15)
    kinds = _kinds(elf, raw.file, table, types)
    # Labels of the assembler (.LC0) stay in the table under --emit-relocs; what they name has no name.
    kinds[[name in LINKER_NAMES or name.startswith(".L") for name in names]] = 0
    _drop_untyped_duplicates(table, types, kinds)
    return _Symbols(table, names, types, info >> np.uint8(4), _files(types, names), kinds)


def refuse_stripped(elf: ElfTables, absent: str = "", problems: Sequence[Reason] = ()) -> NoReturn:
    """``absent`` says where symbols were looked for, ``problems`` what was found there and is of no use."""
    what = absent or "the file has no symbol table (.symtab)"
    text = (
        f"{elf.label}: {what}; so nothing in it can be matched: use a build that is not stripped, or bring its symbols"
    )
    raise Refused(*problems, Reason("no-symbols", elf.label, text))


def read_symbol_table(file: ElfTables) -> RawSymbols | None:
    """The .symtab of a file, its rows numbering that file's own sections; None if it has none."""
    headers = file.section_table.headers
    found = np.flatnonzero(headers["type"] == SectionType.SYMTAB)
    if not len(found):
        return None
    header = headers[found[0]]
    link = int(header["link"])
    if link >= len(headers) or headers[link]["type"] != SectionType.STRTAB:
        file.corrupt("the symbol table has no string table")
    if header["entsize"] != SYMBOL.itemsize or header["size"] % SYMBOL.itemsize:
        file.corrupt("the symbol table has rows of an impossible size")
    table = file.table(SYMBOL, int(header["offset"]), int(header["size"]) // SYMBOL.itemsize, "the symbol table")
    return RawSymbols(file, table, file.strings(file.section_bytes(headers[link]), table["name"], "a symbol name"))


def _files(types: U8, names: Sequence[str]) -> tuple[str, ...]:
    """For every symbol, the name of the last FILE symbol before it."""
    at = np.flatnonzero(types == SymbolType.FILE)
    owner = np.searchsorted(at, np.arange(len(types)), side="right") - 1
    table = [names[i] for i in at.tolist()] + [""]  # index -1 for what precedes every FILE symbol
    return tuple([table[i] for i in owner.tolist()])


def _kinds(elf: ElfFile, file: ElfTables, table: Table, types: U8) -> U8:
    """Kind of each symbol; 0 for what is no entity."""
    headers = elf.section_table.headers
    index = table["shndx"]
    defined = (index != 0) & (index < FIRST_RESERVED_SECTION)
    if (index[defined] >= len(headers)).any():
        file.corrupt("a symbol names a section that does not exist")
    usable = np.array(
        [
            bool(header["flags"] & SHF_ALLOC)
            and name not in LOADER_SECTIONS
            and header["type"] not in LOADER_SECTION_TYPES
            for header, name in zip(headers, elf.section_table.names, strict=True)
        ],
        np.bool_,
    )
    section = np.where(defined, index, 0)
    flags = headers["flags"][section]
    good = defined & usable[section]
    executable = (flags & SHF_EXECINSTR) != 0
    writable = (flags & SHF_WRITE) != 0
    low, high = elf.relro or (0, 0)
    protected = (table["value"] >= low) & (table["value"] < high)
    # What the source calls constant stays so where the linker was told not to protect it (-z norelro).
    constant = [name == ".data.rel.ro" or name.startswith(".data.rel.ro.") for name in elf.section_table.names]
    protected |= np.array(constant, np.bool_)[section]
    data_type = np.isin(types, (SymbolType.OBJECT, SymbolType.COMMON, SymbolType.NOTYPE)) & good
    # A label in text without a type is a branch target of hand-written code, not a table.
    data = data_type & ~(executable & (types == SymbolType.NOTYPE)) & ((flags & SHF_TLS) == 0)
    kinds = np.zeros(len(table), np.uint8)
    kinds[data & ~writable] = Kind.CONSTANT
    kinds[data & writable] = Kind.OBJECT
    kinds[data & writable & protected] = Kind.RELRO
    typed = good & executable & np.isin(types, (SymbolType.FUNC, SymbolType.GNU_IFUNC))
    kinds[typed] = Kind.FUNCTION
    # One that has a size is a function all the same, whose author forgot to say so, unless it is a part of another.
    sized = good & executable & (types == SymbolType.NOTYPE) & (table["size"] > 0)
    kinds[sized & ~_within(table["value"], table["value"][typed], table["size"][typed])] = Kind.FUNCTION
    kinds[defined & (types == SymbolType.TLS)] = Kind.TLS
    return kinds


def _within(values: U64, starts: U64, sizes: U64) -> Flags:
    """Which values lie in one of these ranges."""
    if not len(starts):
        return np.zeros(len(values), np.bool_)
    order = np.argsort(starts, kind="stable")
    reached = np.maximum.accumulate(starts[order] + np.maximum(sizes[order], 1))
    at = np.searchsorted(starts[order], values, side="right").astype(np.int64) - 1
    inside: Flags = (at >= 0) & (values < reached[np.maximum(at, 0)])
    return inside


def _marks(table: Table, names: Sequence[str], types: U8) -> Mapping[int, tuple[str, ...]]:
    marks: dict[int, tuple[str, ...]] = {}
    defined = table["shndx"] != 0
    values = table["value"]
    for i in np.flatnonzero(defined & (types != SymbolType.FILE) & (types != SymbolType.SECTION)).tolist():
        if names[i] in LINKER_NAMES:
            vaddr = int(values[i])
            marks[vaddr] = (*marks.get(vaddr, ()), names[i])
    return MappingProxyType(marks)


def _drop_untyped_duplicates(table: Table, types: U8, kinds: U8) -> None:
    """A label without type beside a typed symbol (``__start_section``) must not lend its name to the object there."""
    untyped = (types == SymbolType.NOTYPE) & (kinds != 0)
    typed = (types != SymbolType.NOTYPE) & (kinds != 0)
    kinds[untyped & np.isin(table["value"], table["value"][typed])] = 0


def _check_bounds(elf: ElfFile, file: ElfTables, table: Table, kinds: U8, chosen: npt.NDArray[np.intp]) -> None:
    values, sizes = table["value"][chosen], table["size"][chosen]
    is_tls = kinds[chosen] == Kind.TLS
    block = elf.tls.memory_size if elf.tls else 0
    limit = np.where(is_tls, block, elf.span).astype(np.uint64)
    if (values > limit).any() or (sizes > limit - np.minimum(values, limit)).any():
        file.corrupt("a symbol lies outside the segments")
    code = kinds[chosen] == Kind.FUNCTION
    if (sizes[code].astype(np.int64) > _stored(elf, values[code].astype(np.int64))).any():
        file.corrupt("a function lies outside what the file holds")


def _stored(elf: ElfFile, vaddrs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each vaddr, how many bytes from there on, within its segment, come from the file."""
    start = np.array([segment.vaddr for segment in elf.segments], np.int64)
    stop = start + np.array([segment.file_size for segment in elf.segments], np.int64)
    at = np.searchsorted(start, vaddrs, side="right") - 1
    return np.where(at >= 0, np.maximum(stop[np.maximum(at, 0)] - vaddrs, 0), 0)


def _rows(
    symbols: _Symbols, order: npt.NDArray[np.intp], dynamic_symbols: Sequence[DynamicSymbol]
) -> tuple[Entities, Mapping[str, int]]:
    names, files = symbols.names, symbols.files
    value, kind, size = symbols.table["value"][order], symbols.kinds[order], symbols.table["size"][order]
    first = np.ones(len(order), np.bool_)
    first[1:] = (value[1:] != value[:-1]) | (kind[1:] != kind[:-1])
    starts = np.flatnonzero(first)
    stops = np.append(starts[1:], len(order))
    members = order.tolist()
    binding = symbols.bindings.tolist()
    preferred: list[str] = []
    aliases: list[tuple[str, ...]] = []
    row_files: list[str] = []
    by_name: dict[str, int] = {}
    # Weak after global; what is neither (unique symbols of C++) counts as global.
    rank = {int(Binding.LOCAL): 2, int(Binding.WEAK): 1}
    for row, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        group = members[start:stop]
        ordered: tuple[str, ...]
        if stop - start == 1:
            ordered = (plain_name(names[group[0]]),)
        else:
            group.sort(key=lambda i: (rank.get(binding[i], 0), len(names[i]), names[i]))
            ordered = tuple(dict.fromkeys(plain_name(names[i]) for i in group))
        preferred.append(ordered[0])
        aliases.append(ordered)
        file = ""
        for i in group:
            if binding[i] == Binding.LOCAL:
                file = file or files[i]
            else:
                by_name.setdefault(plain_name(names[i]), row)
        row_files.append(file)
    entities = Entities(
        address=value[starts].astype(np.uint64),
        size=np.maximum.reduceat(size, starts).astype(np.uint64),
        kind=kind[starts],
        exported=exported_rows(value[starts], kind[starts], dynamic_symbols),
        names=tuple(preferred),
        aliases=tuple(aliases),
        files=tuple(row_files),
    )
    return entities, MappingProxyType(by_name)


def exported_rows(address: U64, kind: U8, dynamic_symbols: Sequence[DynamicSymbol]) -> Flags:
    visible = [s for s in dynamic_symbols if s.defined and s.binding != Binding.LOCAL and s.visibility in VISIBLE]
    thread = np.array([s.vaddr for s in visible if s.type == SymbolType.TLS], np.uint64)
    other = np.array([s.vaddr for s in visible if s.type != SymbolType.TLS], np.uint64)
    is_tls = kind == Kind.TLS
    return np.where(is_tls, np.isin(address, thread), np.isin(address, other)).astype(np.bool_)


def _extents(elf: ElfFile, entities: Entities) -> I32:
    """Bytes that each row occupies; a function without a size reaches to the next symbol or its section's end."""
    extent = entities.size.astype(np.int64)
    fixed = np.flatnonzero(entities.kind != Kind.TLS)
    address = entities.address[fixed].astype(np.int64)
    distinct = np.unique(address)
    following = np.append(distinct, elf.span)[np.searchsorted(distinct, address, side="right")]
    open_ended = (entities.kind[fixed] == Kind.FUNCTION) & (entities.size[fixed] == 0)
    limit = _section_ends(elf, address[open_ended])
    room = np.minimum(np.minimum(following[open_ended], limit) - address[open_ended], _stored(elf, address[open_ended]))
    extent[fixed[open_ended]] = np.maximum(room, 0)
    return extent.astype(np.int32)


def _section_ends(elf: ElfFile, vaddrs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each vaddr, the end of the allocated section that holds it; the vaddr itself if none does."""
    allocated = [s for s in elf.sections.values() if s.flags & SHF_ALLOC and s.size and s.vaddr < elf.span]
    spans = sorted((s.vaddr, min(s.vaddr + s.size, elf.span)) for s in allocated)
    if not spans:
        return vaddrs
    start, stop = np.array(spans, np.int64).T
    at = np.maximum(np.searchsorted(start, vaddrs, side="right") - 1, 0)
    inside = (start[at] <= vaddrs) & (vaddrs < stop[at])
    return np.where(inside, stop[at], vaddrs)


def read_dynamic_symbols(elf: ElfFile) -> tuple[DynamicSymbol, ...]:
    headers = elf.section_table.headers
    found = np.flatnonzero(headers["type"] == SectionType.DYNSYM)
    if not len(found) or Dt.SYMTAB not in elf.dynamic:
        if Dt.SYMTAB in elf.dynamic and not len(headers):
            refuse_stripped(elf)
        return ()
    header = headers[found[0]]
    if int(header["addr"]) != elf.tag(Dt.SYMTAB, 0):
        elf.corrupt("the dynamic symbol table is not where the dynamic table says")
    table = elf.link_table(SYMBOL, int(header["addr"]), int(header["size"]), "the dynamic symbol table")
    blob = dynamic_strings(elf)
    names = elf.strings(blob, table["name"], "a dynamic symbol name")
    versions = _version_names(elf, blob)
    numbers = _version_numbers(elf, len(table))
    defined = (table["shndx"] != 0).tolist()
    rows = table.tolist()
    symbols = []
    for row, name, number, is_defined in zip(rows, names, numbers, defined, strict=True):
        _, info, other, _, value, size = row
        version = versions.get(number & VERSION_NUMBER, "")
        hidden = bool(number & VERSION_HIDDEN) and is_defined
        symbols.append(DynamicSymbol(name, version, value, size, info & 15, info >> 4, other & 3, is_defined, hidden))
    return tuple(symbols)


def dynamic_strings(elf: ElfFile) -> bytes:
    start, size = elf.tag(Dt.STRTAB, 0), elf.tag(Dt.STRSZ, 0)
    return elf.link_table(np.uint8, start, size, "the dynamic string table").tobytes()


def _version_numbers(elf: ElfFile, count: int) -> list[int]:
    if Dt.VERSYM not in elf.dynamic:
        return [0] * count
    start = elf.tag(Dt.VERSYM, 0)
    numbers: list[int] = elf.link_table("<u2", start, 2 * count, "the version table").tolist()
    return numbers


def _version_names(elf: ElfFile, blob: bytes) -> Mapping[int, str]:
    """Version number to name, from what is needed and from what is defined."""
    found = [*_needed_versions(elf), *_defined_versions(elf)]
    names = elf.strings(blob, np.array([offset for _, offset in found], np.uint32), "a version name")
    return {number: name for (number, _), name in zip(found, names, strict=True)}


def _record(elf: ElfFile, vaddr: int, fields: str) -> tuple[int, ...]:
    layout = "<" + fields
    return struct.unpack(layout, elf.link_table(np.uint8, vaddr, struct.calcsize(layout), "a version record").tobytes())


def _needed_versions(elf: ElfFile) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    at = elf.tag(Dt.VERNEED, 0)
    for _ in range(min(elf.tag(Dt.VERNEEDNUM, 0), 0xFFFF)):
        _, count, _, first, step = _record(elf, at, "HHIII")
        inner = at + first
        for _ in range(count):
            _, _, number, name, inner_step = _record(elf, inner, "IHHII")
            found.append((number & VERSION_NUMBER, name))
            if len(found) > 0xFFFF:
                elf.corrupt("there are too many version records")
            if not inner_step:
                break
            inner += inner_step
        if not step:
            break
        at += step
    return found


def _defined_versions(elf: ElfFile) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    at = elf.tag(Dt.VERDEF, 0)
    for _ in range(min(elf.tag(Dt.VERDEFNUM, 0), 0xFFFF)):
        _, flags, number, count, _, first, step = _record(elf, at, "HHHHIII")
        # The base version names the file itself; symbols of number 1 are unversioned.
        if count and not flags & 1:
            name, _ = _record(elf, at + first, "II")
            found.append((number & VERSION_NUMBER, name))
        if not step:
            break
        at += step
    return found
