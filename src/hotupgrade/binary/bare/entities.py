"""The functions and objects of a stripped build, as rows like those that a symbol table gives.

A function has the bounds that its frame information gives it.  Of an object only this is known: somebody refers to its
address.  So every address that code or data refer to in writable memory, or in memory that is written once at start, is
a row of its own, which reaches to the next one.  That is no size but the most that it can be without being referred to
elsewhere; and a row may well be the middle of an object, or its end.  Constants in ``.rodata`` stay without rows, like
strings: they are told by their contents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hotupgrade.binary.bare.functions import Functions, find_functions
from hotupgrade.binary.code import data_targets
from hotupgrade.binary.elf import SHF_ALLOC, SHF_EXECINSTR, SHF_TLS, SHF_WRITE
from hotupgrade.binary.model import I32, DynamicSymbol, Entities, Kind, Section
from hotupgrade.binary.symbols import (
    LOADER_SECTION_TYPES,
    LOADER_SECTIONS,
    VISIBLE,
    Binding,
    RowTable,
    SymbolTable,
    SymbolType,
    exported_rows,
    refuse_stripped,
)

if TYPE_CHECKING:
    from hotupgrade.binary.build import Build

_DATA_TYPES = (SymbolType.OBJECT, SymbolType.COMMON, SymbolType.NOTYPE)
_GLOBAL = (Binding.GLOBAL, Binding.WEAK, Binding.GNU_UNIQUE)


@dataclass(frozen=True, slots=True)
class _Row:
    address: int
    kind: int
    size: int
    names: tuple[str, ...]
    unbounded: bool = False
    unframed: bool = False


def read_structure(build: Build) -> RowTable:
    """Rows of a build without symbols.

    Raises:
        Refused: not even its structure can be read.
    """
    functions = find_functions(build)
    if not len(functions):
        refuse_stripped(build.elf)
    exports = _exports(build)
    labels = _labels(build)
    rows = [
        *_function_rows(build, functions, exports, labels),
        *_object_rows(build, functions, labels),
        *_thread_locals(build),
    ]
    rows.sort(key=lambda row: (row.kind == Kind.TLS, row.address, row.kind))
    return _table(build, rows)


def _table(build: Build, rows: list[_Row]) -> RowTable:
    address = np.array([row.address for row in rows], np.uint64)
    kind = np.array([row.kind for row in rows], np.uint8)
    size = np.array([row.size for row in rows], np.uint64)
    entities = Entities(
        address=address,
        size=size,
        kind=kind,
        exported=exported_rows(address, kind, build.dynamic_symbols),
        names=tuple(row.names[0] for row in rows),
        aliases=tuple(row.names for row in rows),
        files=("",) * len(rows),
    )
    extent: I32 = size.astype(np.int32)
    symbols = SymbolTable(entities, _by_name(build, rows), MappingProxyType({}), extent)
    unbounded = np.array([row.unbounded for row in rows], np.bool_)
    return RowTable(symbols, unbounded, np.array([row.unframed for row in rows], np.bool_))


def _by_name(build: Build, rows: list[_Row]) -> Mapping[str, int]:
    places = {(row.kind == Kind.FUNCTION, row.kind == Kind.TLS, row.address): i for i, row in enumerate(rows)}
    found: dict[str, int] = {}
    for symbol in _defined(build):
        thread_local = symbol.type == SymbolType.TLS
        for function in (True, False):
            row = places.get((function and not thread_local, thread_local, symbol.vaddr))
            if row is not None:
                found.setdefault(_name(symbol), row)
    return MappingProxyType(found)


def _defined(build: Build) -> list[DynamicSymbol]:
    return [s for s in build.dynamic_symbols if s.defined and s.name and s.binding in _GLOBAL]


def _name(symbol: DynamicSymbol) -> str:
    return f"{symbol.name}@{symbol.version}" if symbol.hidden_version else symbol.name


def _exports(build: Build) -> dict[int, tuple[str, ...]]:
    """Names by address; global before weak, then the shortest."""
    found: dict[int, list[DynamicSymbol]] = {}
    for symbol in _defined(build):
        if symbol.type != SymbolType.TLS:
            found.setdefault(symbol.vaddr, []).append(symbol)
    return {
        vaddr: tuple(
            dict.fromkeys(
                _name(s) for s in sorted(symbols, key=lambda s: (s.binding == Binding.WEAK, len(s.name), s.name))
            )
        )
        for vaddr, symbols in found.items()
    }


def _labels(build: Build) -> Mapping[int, str]:
    """What a symbol table says after all (of a build that is only seen as if it had none): for messages."""
    raw = build.separate.symbols
    if raw is None:
        return {}
    named = np.flatnonzero((raw.table["shndx"] != 0) & np.isin(raw.table["info"] & 15, (1, 2, 10)))
    found = ((int(raw.table["value"][i]), raw.names[i]) for i in named.tolist())
    return {vaddr: name for vaddr, name in found if ".cold" not in name}


# Functions


def _function_rows(
    build: Build, functions: Functions, exports: Mapping[int, tuple[str, ...]], labels: Mapping[int, str]
) -> list[_Row]:
    start, stop = functions.start.tolist(), functions.stop.tolist()
    names = [exports.get(low) or (labels.get(low) or f"sub_{low:x}",) for low in start]
    special = frozenset(_start_files(build, functions).values())
    for index, name in _start_files(build, functions).items():
        names[index] = (name,)
    pieces: dict[int, int] = {}
    for index, owner in enumerate(functions.owner.tolist()):
        if owner >= 0:
            number = pieces[owner] = pieces.get(owner, -1) + 1
            names[index] = (f"{names[owner][0]}.cold" + (f".{number}" if number else ""),)
    columns = zip(start, stop, names, functions.framed.tolist(), strict=True)
    return [
        _Row(low, Kind.FUNCTION, high - low, name, unframed=not (framed or name[0] in special or low in exports))
        for low, high, name, framed in columns
    ]


def _start_files(build: Build, functions: Functions) -> dict[int, str]:
    """The compiler's own functions have no frame information, but the loader knows them by their duties."""
    place = {vaddr: index for index, vaddr in enumerate(functions.start.tolist())}
    exported = {symbol.vaddr for symbol in build.dynamic_symbols if symbol.defined}
    found: dict[int, str] = {}
    duties = [(build.init, "_init"), (build.fini, "_fini"), (build.entry or None, "_start")]
    duties += [(vaddr, "frame_dummy") for vaddr in build.init_array[:1]]
    duties += [(vaddr, "__do_global_dtors_aux") for vaddr in build.fini_array[:1]]
    for vaddr, name in duties:
        index = place.get(vaddr if vaddr is not None else -1)
        if index is not None and (not functions.framed[index] or name == "_start") and vaddr not in exported:
            found[index] = name
    # The two that these call lie before them, and nothing else does in their gap.
    ends = [index for index, name in found.items() if name in ("frame_dummy", "__do_global_dtors_aux")]
    if len(ends) == 2 and max(ends) - min(ends) == 1:
        before = [index for index in range(max(min(ends) - 2, 0), min(ends)) if not functions.framed[index]]
        if len(before) == 2:
            found.update(zip(before, ("deregister_tm_clones", "register_tm_clones"), strict=True))
    return found


# Data


def object_sections(build: Build) -> list[tuple[Section, int]]:
    """Sections that hold objects with rows, and the kind of these; ascending."""
    low, high = build.relro or (0, 0)
    found = []
    for section in build.sections.values():
        wanted = section.flags & SHF_ALLOC and section.flags & SHF_WRITE and not section.flags & SHF_TLS
        if not wanted or section.name in LOADER_SECTIONS or section.type in LOADER_SECTION_TYPES or not section.size:
            continue
        protected = low <= section.vaddr < high or section.name.startswith(".data.rel.ro")
        found.append((section, int(Kind.RELRO if protected else Kind.OBJECT)))
    return sorted(found, key=lambda each: each[0].vaddr)


def _object_rows(build: Build, functions: Functions, labels: Mapping[int, str]) -> list[_Row]:
    code = functions.code.target.astype(np.int64)
    targets = np.unique(np.concatenate([code, data_targets(build)]))
    exported = _exported_objects(build)
    rows = list(exported)

    def names(vaddr: int, section: str) -> tuple[str, ...]:
        return (labels.get(vaddr) or f"{section}@{vaddr:x}",)

    for section, kind in object_sections(build):
        low, high = section.vaddr, section.vaddr + section.size
        inside = [(row.address, row.address + row.size) for row in exported if low <= row.address < high]
        free = _outside(targets[(targets >= low) & (targets < high)], inside)
        edges = sorted({*free, *(edge for span in inside for edge in span), high})
        following = dict(pairwise(edges))
        rows += [
            _Row(vaddr, kind, min(following.get(vaddr, high), high) - vaddr, names(vaddr, section.name), True)
            for vaddr in free
        ]
    return rows


def _outside(targets: npt.NDArray[np.int64], spans: list[tuple[int, int]]) -> list[int]:
    """Addresses that lie in none of these ranges."""
    return [vaddr for vaddr in targets.tolist() if not any(low <= vaddr < high for low, high in spans)]


def _exported_objects(build: Build) -> list[_Row]:
    """These have names and sizes; several names of one address are one row."""
    kinds = object_sections(build)
    sizes: dict[int, int] = {}
    found: dict[int, int] = {}
    names = _exports(build)
    for symbol in _defined(build):
        section = build.section_at(symbol.vaddr)
        fits = section is not None and not section.flags & (SHF_EXECINSTR | SHF_TLS)
        if symbol.type not in _DATA_TYPES or not fits or section is None or section.name in LOADER_SECTIONS:
            continue
        kind = next((kind for other, kind in kinds if other == section), None)
        if kind is None and section.flags & SHF_WRITE:
            continue
        if symbol.size == 0 and symbol.type == SymbolType.NOTYPE:
            continue  # a mark of the linker
        found[symbol.vaddr] = Kind.CONSTANT if kind is None else kind
        sizes[symbol.vaddr] = max(sizes.get(symbol.vaddr, 0), symbol.size)
    return [_Row(vaddr, kind, sizes[vaddr], names[vaddr]) for vaddr, kind in sorted(found.items())]


def _thread_locals(build: Build) -> list[_Row]:
    found: dict[int, list[DynamicSymbol]] = {}
    for symbol in _defined(build):
        if symbol.type == SymbolType.TLS and symbol.visibility in VISIBLE:
            found.setdefault(symbol.vaddr, []).append(symbol)
    return [
        _Row(offset, Kind.TLS, max(s.size for s in symbols), tuple(dict.fromkeys(_name(s) for s in symbols)))
        for offset, symbols in sorted(found.items())
    ]
