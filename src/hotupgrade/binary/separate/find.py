"""Symbols and debug information of a module, from wherever they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hotupgrade.binary.elf import ElfFile, ElfTables
from hotupgrade.binary.model import DynamicSymbol
from hotupgrade.binary.separate.companion import (
    DebugFile,
    Mismatch,
    require_same_build,
    require_supplement,
    symbols_of,
)
from hotupgrade.binary.separate.links import (
    MAX_IDENTITY,
    DebugLink,
    debug_link,
    section_content,
    supplement_identity,
    supplement_link,
)
from hotupgrade.binary.separate.mini import MiniFile, mini_symbols
from hotupgrade.binary.separate.places import Candidate, Place, Wanted
from hotupgrade.binary.symbols import RawSymbols, read_symbol_table
from hotupgrade.errors import Reason, Refused

LISTED = 6  # places that a message names


@dataclass(frozen=True)
class Search:
    """Places, in the order in which they are looked at.

    ``structure``: a module whose symbols are nowhere may be read without them (see :mod:`hotupgrade.binary.bare`).
    """

    places: Sequence[Place] = ()
    structure: bool = False


NOWHERE = Search()  # only the file itself counts


@dataclass(frozen=True)
class Separate:
    """What there is of a module's symbols and debug information.

    ``types`` is the file that holds the debug information (the module itself, or another), None if there is none, and
    ``supplement`` the one that it shares with others.  ``absent`` says what is missing and where it was looked for, ""
    if nothing is.  ``problems`` are files that were found but cannot be used, by name.
    """

    symbols: RawSymbols | None
    types: ElfTables | None
    supplement: ElfTables | None = None
    absent: str = ""
    problems: tuple[Reason, ...] = ()


def separate_files(separate: Separate) -> dict[str, DebugFile]:
    """The other files that something came from, by what they are looked for by."""
    found: dict[str, DebugFile] = {}
    for file in (separate.symbols and separate.symbols.file, separate.types, separate.supplement):
        # Not the module itself, nor what was packed in it.
        if isinstance(file, DebugFile) and not isinstance(file, MiniFile):
            found[supplement_identity(file) or file.build_id() or ""] = file
    return {identity: file for identity, file in found.items() if 2 < len(identity) <= MAX_IDENTITY}


def find_separate(
    elf: ElfFile, dynamic_symbols: Sequence[DynamicSymbol], path: Path | None, search: Search
) -> Separate:
    """Looks elsewhere only for what the file does not have itself."""
    own, has_types = read_symbol_table(elf), _has_types(elf)
    if own is not None and has_types:
        return _with_supplement(Separate(own, elf), elf, path, search)
    return _Finder(elf, path, search).find(own, dynamic_symbols)


def _has_types(file: ElfTables) -> bool:
    return any(section_content(file, name) for name in (".debug_info", ".zdebug_info"))


class _Finder:
    """The search for what one module lacks."""

    def __init__(self, elf: ElfFile, path: Path | None, search: Search) -> None:
        self._elf = elf
        self._path = path
        self._search = search
        self._link: DebugLink | None = debug_link(elf)
        folder = None if path is None else path.parent
        self._wanted = Wanted(elf.build_id() or "", self._link.name if self._link else "", path, folder)
        self._problems: list[Reason] = []

    def find(self, own: RawSymbols | None, dynamic_symbols: Sequence[DynamicSymbol]) -> Separate:
        symbols = own
        types: ElfTables | None = self._elf if _has_types(self._elf) else None
        for file, found in self._companions():
            if found is not None and (symbols is None or len(found.table) > len(symbols.table)):
                symbols = found
            if types is None and _has_types(file):
                types = file
            if symbols is not None and types is not None:
                break
        symbols = symbols or mini_symbols(self._elf, dynamic_symbols)
        absent = "" if symbols is not None and types is not None else self._absent(symbols is None)
        separate = Separate(symbols, types, None, absent, tuple(self._problems))
        return separate if types is None else _with_supplement(separate, types, self._path, self._search)

    def _companions(self) -> Iterator[tuple[DebugFile, RawSymbols | None]]:
        """The files that are of this very build, with their symbols."""
        for candidate in _candidates(self._search, self._wanted, self._problems):
            try:
                file = DebugFile(candidate.read(), candidate.where, candidate.folder)
                require_same_build(file, self._elf, self._link if candidate.linked else None)
                yield file, symbols_of(file, self._elf)
            except Mismatch as error:
                self._problems.append(error.reason)
            except Refused as error:
                self._problems += error.reasons

    def _absent(self, symbols: bool) -> str:
        what = "symbols (.symtab)" if symbols else "debug information"
        return f"it has no {what}{_looked(self._search, self._wanted)}"


def _candidates(search: Search, wanted: Wanted, problems: list[Reason]) -> Iterator[Candidate]:
    for place in search.places:
        try:
            yield from place.candidates(wanted)
        except Refused as error:
            problems += error.reasons


def _looked(search: Search, wanted: Wanted) -> str:
    places = [text for place in search.places for text in place.described(wanted)]
    if not places:
        return ""
    more = f" and {len(places) - LISTED} more places" if len(places) > LISTED else ""
    return (
        f", and none was found in {', '.join(places[:LISTED])}{more} (install its -dbgsym package, or name that, or a"
        " folder with its debug files, by --debug-dir)"
    )


# Supplements


def _with_supplement(separate: Separate, types: ElfTables, path: Path | None, search: Search) -> Separate:
    """Adds the file that the debug information refers to, if it does."""
    link = supplement_link(types)
    if link is None:
        return separate
    folder = types.folder if isinstance(types, DebugFile) else path and path.parent
    wanted = Wanted(link.identity, link.name, None, folder)
    problems = list(separate.problems)
    for candidate in _candidates(search, wanted, problems):
        try:
            file = DebugFile(candidate.read(), candidate.where, candidate.folder)
            require_supplement(file, link.identity)
        except Mismatch as error:
            problems.append(error.reason)
        except Refused as error:
            problems += error.reasons
        else:
            return Separate(separate.symbols, types, file, separate.absent, tuple(problems))
    absent = (
        f"part of its debug information is in {link.name} (dwz -m, build-id {link.identity})"
        f"{_looked(search, wanted) or ', which was not looked for'}"
    )
    return Separate(separate.symbols, types, None, separate.absent or absent, tuple(problems))
