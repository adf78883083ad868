"""A build's debug information, read from its sections."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Collection, Mapping

from hotupgrade.binary.debug.abbreviations import unsigned
from hotupgrade.binary.debug.condense import Condensed, Function
from hotupgrade.binary.debug.constants import At, Op, Tag
from hotupgrade.binary.debug.describe import (
    define,
    enumerators_of,
    function_name,
    is_definition,
    name_of,
    origin,
    prototype,
    scope_of,
    type_of,
)
from hotupgrade.binary.debug.model import Debug, Definition, Variable, names_in
from hotupgrade.binary.debug.ranges import merged, ranges_of
from hotupgrade.binary.debug.sections import Corrupt, Sections, Supplement, Unusable
from hotupgrade.binary.debug.survey import Unclear
from hotupgrade.binary.debug.units import Allowance, Entry, Unit, Units
from hotupgrade.binary.model import Section

# What a file that is not as it should be makes the reader stumble over.
STUMBLES = (struct.error, IndexError, KeyError, ValueError, TypeError, OverflowError, RecursionError)
_LOOKED_AT = frozenset(
    (Tag.VARIABLE, Tag.SUBPROGRAM, Tag.STRUCTURE, Tag.CLASS, Tag.UNION, Tag.ENUMERATION, Tag.TYPEDEF)
)
CONDENSED_FROM = 1 << 18  # bytes of entries from which on it pays to look which say the same
_TOP = (Tag.COMPILE_UNIT, Tag.PARTIAL_UNIT)
_LITERALS = {Op.ADDR: 8, Op.CONST4U: 4, Op.CONST8U: 8}  # bytes that follow
_TLS_OPERATIONS = (Op.FORM_TLS_ADDRESS, Op.GNU_PUSH_TLS_ADDRESS)


def read_debug(data: bytes, sections: Mapping[str, Section], supplement: Supplement | None = None) -> Debug:
    """What a file says, and its supplementary file.

    Never raises for what they say: what cannot be used is as if it were not there, and ``missing`` says why.
    """
    try:
        contents = Sections(data, sections)
        if not contents.info:
            return Debug(missing="it has no debug information")
        units = Units(contents, (), None if supplement is None else Sections(*supplement))
        if len(contents.info) >= CONDENSED_FROM:
            try:
                return Reader(units).read_condensed()
            except (Unclear, Unusable, *STUMBLES):
                units.release()  # one after the other, then: that tells what is wrong, if anything is
        return Reader(units).read()
    except Unusable as error:
        return Debug(missing=str(error))
    except STUMBLES as error:
        return Debug(missing=str(Corrupt(type(error).__name__)))


class Reader:
    """Collects what the units of a file say, in one of two ways that give the same."""

    def __init__(self, units: Units) -> None:
        self._units = units
        self._files: dict[str, int] = {}
        self._definitions: dict[Definition, int] = {}
        self._types: dict[str, dict[int, dict[int, None]]] = defaultdict(lambda: defaultdict(dict))
        self._typedefs: dict[str, dict[str, None]] = defaultdict(dict)
        self._variables: dict[Variable, None] = {}
        self._functions: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
        self._imports: dict[str, dict[str, None]] = defaultdict(dict)
        self._constants: dict[tuple[str, str, bool], dict[int, None]] = defaultdict(dict)
        self._atomics = True
        self._covered: list[tuple[int, int]] = []

    def read(self) -> Debug:
        """Entry by entry."""
        allowance = Allowance(self._units)
        for unit in self._units:
            files = self._begin(unit)
            for entry in unit.load().values():
                if entry.tag in _LOOKED_AT:
                    allowance.take(len(files) - 1)
                    self._add(entry, files)
        return self._result()

    def read_condensed(self) -> Debug:
        """What several units say alike, only once.

        Raises:
            Unclear: that cannot be found out.
        """
        condensed = Condensed(self._units)
        numbers = [number for unit in condensed.units for number in self._begin(unit).values()]
        names = list(self._files)
        places = [*names, ""]  # the last one is that of what is global
        for told in condensed.told(numbers):
            if isinstance(told, Function):
                known = self._imports[told.name] if told.file is None else self._functions[told.name, places[told.file]]
                known[told.text] = None
            else:
                self._add(told.entry, {names[file]: file for file in told.files})
        return self._result()

    def _begin(self, unit: Unit) -> dict[str, int]:
        """The files that a unit is part of, with their numbers."""
        self._atomics &= unit.version >= 5
        self._covered += ranges_of(unit)
        # A unit that several import says the same of each of their files.
        names = dict.fromkeys(_file(importer.root) for importer in self._units.importers(unit))
        return {name: self._files.setdefault(name, len(self._files)) for name in names}

    def _result(self) -> Debug:
        return Debug(
            atomics=self._atomics,
            covered=merged(self._covered),
            files=list(self._files),
            definitions=list(self._definitions),
            types={
                name: [(index, sorted(files)) for index, files in sorted(found.items())]
                for name, found in sorted(self._types.items())
            },
            typedefs={name: sorted(targets) for name, targets in sorted(self._typedefs.items())},
            variables=sorted(self._variables, key=lambda v: (v.thread_local, v.address, v.name, v.scope)),
            functions=[(name, file, list(texts)) for (name, file), texts in sorted(self._functions.items())],
            imports={name: list(texts) for name, texts in sorted(self._imports.items())},
            constants=[(*key, list(values)) for key, values in sorted(self._constants.items())],
        )

    def _add(self, entry: Entry, files: Mapping[str, int]) -> None:
        """``files``: those that the entry is part of, with their numbers."""
        tag = entry.tag
        if tag == Tag.VARIABLE:
            for file in files:
                self._add_variable(entry, file)
        elif tag == Tag.SUBPROGRAM:
            self._add_function(entry, files)
        elif tag == Tag.TYPEDEF:
            target = names_in(type_of(entry))
            if target and type_of(entry) == f"`{target[0]}`":
                self._typedefs[scope_of(entry) + entry.name][target[0]] = None
        elif is_definition(entry):
            name = name_of(entry)
            self._units.sections.check_time()
            if name:
                found = define(entry)
                index = self._definitions.setdefault(found, len(self._definitions))
                self._types[name][index].update(dict.fromkeys(files.values()))
            elif tag == Tag.ENUMERATION:
                values = enumerators_of(entry)
                for enumerator, value in values:
                    for file in files:
                        self._constants[scope_of(entry) + enumerator, file, len(values) == 1][value] = None

    def _add_variable(self, entry: Entry, file: str) -> None:
        location = entry.values.get(At.LOCATION)
        if not isinstance(location, bytes):
            return
        places = static_places(entry, location)
        if not places:
            return
        source = origin(entry)
        typed = entry if At.TYPE in entry.values else source
        text = type_of(typed)
        file = _file(source.unit.root) or file
        alignment = entry.number(At.ALIGNMENT) or source.number(At.ALIGNMENT)
        if alignment:
            text += f" aligned({alignment})"
        scope = function_around(source)
        for address, thread_local, part in places:
            self._variables[Variable(address, thread_local, source.name, scope, file, text, part)] = None

    def _add_function(self, entry: Entry, files: Collection[str]) -> None:
        here = At.LOW_PC in entry.values or At.RANGES in entry.values or At.INLINE in entry.values
        source = origin(entry)
        name = function_name(entry)
        if not name or (At.ABSTRACT_ORIGIN in entry.values and not entry.children):
            return
        if here:
            external = At.EXTERNAL in source.values or At.EXTERNAL in entry.values
            own = _file(source.unit.root)
            whole = source if At.ABSTRACT_ORIGIN in entry.values else entry
            text = prototype(whole) if At.TYPE in whole.values or whole is source else _with_result(whole, source)
            for file in files:
                self._functions[name, "" if external else own or file][text] = None
        elif At.DECLARATION in entry.values and entry.parent is not None and entry.parent.tag in _TOP:
            self._imports[name][prototype(entry)] = None


def _file(root: Entry) -> str:
    return root.name.rsplit("/", 1)[-1]


def _with_result(entry: Entry, declaration: Entry) -> str:
    """A definition outside of its class leaves the result's type to the declaration there."""
    return prototype(entry).rpartition(" -> ")[0] + " -> " + type_of(declaration)


def static_places(entry: Entry, location: bytes) -> list[tuple[int, bool, str]]:
    """(address, whether thread-local, part) of a variable with fixed places; see :class:`Variable`."""
    found: list[tuple[int, bool, str]] = []
    at = begin = 0
    while at < len(location):
        place = _place_at(entry, location, at)
        address, thread_local, at = place or (0, False, at)
        if at < len(location) and location[at] == Op.PIECE:
            size, at = unsigned(location, at + 1)
            if place:
                found.append((address, thread_local, f"[{begin}:{begin + size}]"))
            begin += size
            continue
        if place:
            rest = f"as {location[at:].hex()}" if at < len(location) else ""
            found.append((address, thread_local, f"[{begin}:] {rest}" if begin else rest))
        break
    return found


def _place_at(entry: Entry, location: bytes, at: int) -> tuple[int, bool, int] | None:
    """(address, whether thread-local, where that is said) if an expression goes on with a fixed place."""
    operation = location[at]
    if operation in _LITERALS:
        end = at + 1 + _LITERALS[operation]
        number = int.from_bytes(location[at + 1 : end], "little")
    elif operation in (Op.ADDRX, Op.CONSTX):
        index, end = unsigned(location, at + 1)
        number = entry.unit.indexed_address(index)
    else:
        return None
    if operation in (Op.ADDR, Op.ADDRX):
        return (number, False, end) if end <= len(location) else None
    return (number, True, end + 1) if end < len(location) and location[end] in _TLS_OPERATIONS else None


def function_around(entry: Entry) -> str:
    """The function that an entry is local to, or ""."""
    parent = entry.parent
    while parent is not None:
        if parent.tag == Tag.SUBPROGRAM:
            return function_name(parent)
        parent = parent.parent
    return ""
