"""Units and the tree of entries in them."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Collection, Container, Iterator, Mapping, Sequence

from hotupgrade.binary.debug.abbreviations import (
    SUPPLEMENT_REFERENCES,
    SUPPLEMENT_STRINGS,
    Abbreviation,
    Tables,
    Values,
    unsigned,
)
from hotupgrade.binary.debug.constants import At, Form, Tag, UnitType
from hotupgrade.binary.debug.sections import Corrupt, Sections, Unusable

MAX_ENTRIES = 3_000_000  # of the units that are held at one time
MAX_DEPTH = 512
MAX_STRING = 1 << 16
MAX_STRINGS = 1 << 28  # bytes of all strings
SHARED_ANYHOW, SHARED_BYTES = 100_000, 4  # see Allowance

_NAME = At.NAME
_LENGTH_64 = 0xFFFFFFFF
_LENGTH_RESERVED = 0xFFFFFFF0
_OWN_REFERENCES = frozenset((Form.REF1, Form.REF2, Form.REF4, Form.REF8, Form.REF_UDATA))
_OTHER_REFERENCES = SUPPLEMENT_REFERENCES | {Form.REF_ADDR, Form.REF_SIG8}
_STRING_INDICES = frozenset((Form.STRX, Form.STRX1, Form.STRX2, Form.STRX3, Form.STRX4))
_ADDRESS_INDICES = frozenset((Form.ADDRX, Form.ADDRX1, Form.ADDRX2, Form.ADDRX3, Form.ADDRX4))
PARAMETERS = (Tag.PARAMETER, Tag.UNSPECIFIED_PARAMETERS)
_TYPES = frozenset((Tag.STRUCTURE, Tag.CLASS, Tag.UNION, Tag.ENUMERATION))


_NO_CHILDREN: list[Entry] = []


class Entry:
    """One entry: its values by attribute, and those of its children that are looked at."""

    __slots__ = ("abbreviation", "alias", "children", "parent", "tag", "text", "unit", "values")

    def __init__(self, unit: Unit, abbreviation: Abbreviation, values: Values, parent: Entry | None) -> None:
        self.unit = unit
        self.abbreviation = abbreviation
        self.tag = abbreviation.tag
        self.values = values
        self.parent = parent
        # Most have none, and need no list of their own; nobody but the walk adds to one.
        self.children: list[Entry] = [] if abbreviation.children else _NO_CHILDREN
        self.alias = ""  # the typedef that gives an unnamed type its name
        self.text: str | None = None  # filled in by who describes types

    def keep_text(self, text: str) -> None:
        self.text = text

    def parameters(self) -> Sequence[Entry]:
        """Of a function: its parameters, and what says that there may be more."""
        return [child for child in self.children if child.tag in PARAMETERS]

    def type_text(self) -> str | None:
        """The text of the entry's type, if it is known already."""
        return None

    @property
    def name(self) -> str:
        value = self.values.get(_NAME)
        if value is None:
            return ""
        known = self.unit.units.texts.get(value) if self.abbreviation.named_by_offset else None
        return self.unit.string(self.abbreviation.forms[_NAME], value) if known is None else known

    def string(self, attribute: int) -> str:
        """A string, "" if there is none."""
        value = self.values.get(attribute)
        return "" if value is None else self.unit.string(self.abbreviation.forms[attribute], value)

    def address(self, attribute: int) -> int | None:
        value = self.values.get(attribute)
        if value is None:
            return None
        form = self.abbreviation.forms[attribute]
        return self.unit.indexed_address(value) if form in _ADDRESS_INDICES else int(value)

    def number(self, attribute: int) -> int | None:
        """A constant; None if it is absent or computed."""
        value = self.values.get(attribute)
        return int(value) if isinstance(value, int) else None

    def signed(self, attribute: int) -> int | None:
        """A constant that may be negative: fixed sizes do not say."""
        value = self.number(attribute)
        bits = _BITS.get(self.abbreviation.forms.get(attribute, 0))
        if value is not None and bits and value >> (bits - 1):
            value -= 1 << bits
        return value

    def entry(self, attribute: int) -> Entry | None:
        """The entry that an attribute names, if it is one that is looked at."""
        value = self.values.get(attribute)
        if value is None:
            return None
        form, unit = self.abbreviation.forms[attribute], self.unit
        if form not in _OWN_REFERENCES:
            return unit.units.other(form, value)
        entries = unit.entries
        return (unit.load() if entries is None else entries).get(unit.offset + value)


_BITS = {Form.DATA1: 8, Form.DATA2: 16, Form.DATA4: 32, Form.DATA8: 64}


class Unit:
    """A compile, partial or type unit.  Its entries are read when they are asked for, and can be let go."""

    def __init__(self, units: Units, data: bytes, offset: int) -> None:
        self.units = units
        self.in_info = data is units.sections.info
        self.offset = offset
        self.data = data
        try:
            self._read_header(data, offset)
        except struct.error as error:
            raise Corrupt("a unit is cut off") from error
        if self.end > len(data):
            raise Corrupt("a unit beyond the end")
        self.entries: Mapping[int, Entry] | None = None  # None: not read yet
        self._root: Entry | None = None
        self._strings_base = 0
        self._addresses_base = 0

    def _read_header(self, data: bytes, at: int) -> None:
        (length,) = struct.unpack_from("<I", data, at)
        at, word, size = at + 4, "I", 4
        if length == _LENGTH_64:
            (length,) = struct.unpack_from("<Q", data, at)
            at, word, size = at + 8, "Q", 8
        elif length >= _LENGTH_RESERVED:
            raise Corrupt("a unit of an impossible size")
        self.end, self.offset_size = at + length, size
        (self.version,) = struct.unpack_from("<H", data, at)
        at += 2
        if self.version == 5:
            kind, address_size, self.table = struct.unpack_from("<BB" + word, data, at)
            at += 2 + size
        elif self.version == 4:
            kind = UnitType.TYPE if data is self.units.sections.types else UnitType.COMPILE
            self.table, address_size = struct.unpack_from(f"<{word}B", data, at)
            at += size + 1
        else:
            raise Unusable(f"its debug information is DWARF {self.version}; build with -gdwarf-5 or -gdwarf-4")
        if address_size != 8:
            raise Corrupt("addresses are not of eight bytes")
        if kind in (UnitType.SKELETON, UnitType.SPLIT_COMPILE, UnitType.SPLIT_TYPE):
            raise Unusable(_SPLIT)
        self.signature = self.type_offset = 0
        if kind == UnitType.TYPE:
            self.signature, self.type_offset = struct.unpack_from("<Q" + word, data, at)
            at += 8 + size
        self.first = at

    # Entries

    @property
    def root(self) -> Entry:
        """The unit's own entry; its children are what the file declares."""
        self.load()
        if self._root is None:
            raise Corrupt("a unit that is none")
        return self._root

    def load(self) -> Mapping[int, Entry]:
        """All entries that are looked at, by offset in the section."""
        if self.entries is None:
            self.entries = found = dict[int, Entry]()
            self._walk(found)
            self.units.held += len(found)
            _name_by_typedef(found, _OWN_REFERENCES)
        return self.entries

    def adopt(self, entries: Mapping[int, Entry], root: Entry) -> None:
        """Have entries that were found in another way, and are made only when they are asked for."""
        self.entries = entries
        self._begin(root)

    def release(self) -> None:
        if isinstance(self.entries, dict):
            self.units.held -= len(self.entries)
            for entry in self.entries.values():
                if entry.children:
                    entry.children.clear()  # no cycle is left: memory comes back without a collector
        self.entries = self._root = None

    def own(self, offset: int) -> Entry | None:
        """The entry at an offset from the unit's start."""
        return self.load().get(self.offset + offset)

    def _walk(self, found: dict[int, Entry]) -> None:
        data, at, end, units = self.data, self.first, self.end, self.units
        table = units.tables.at(self.table, self.offset_size)
        room = MAX_ENTRIES - units.held
        parents: list[Entry | None] = []
        parent: Entry | None = None
        while at < end:
            start = at
            code, at = (data[at], at + 1) if data[at] < 0x80 else unsigned(data, at)
            if not code:
                if not parents:
                    return  # padding
                parent = parents.pop()
                if not parents:
                    return
                continue
            abbreviation = table[code]
            if not abbreviation.wanted or (parent is None and parents):
                after = abbreviation.end(data, at)
                if abbreviation.children and At.SIBLING in abbreviation.forms:
                    at = self._sibling(abbreviation.decode(data, at)[0], after)
                    continue
                at = after
                if abbreviation.children:
                    _go_down(parents, parent)
                    parent = None
                elif not parents:
                    return
            else:
                run = abbreviation.only_run
                if run is not None:
                    values = dict(zip(run.names, run.unpack(data, at)))  # noqa: B905  as many as the format says
                    at += run.size
                    if abbreviation.constants:
                        values |= abbreviation.constants
                else:
                    values, at = abbreviation.decode(data, at)
                found[start] = entry = Entry(self, abbreviation, values, parent)
                if len(found) > room:
                    units.allow(len(found))
                if parent is None:
                    self._begin(entry)
                else:
                    parent.children.append(entry)
                if abbreviation.children:
                    _go_down(parents, parent)
                    parent = entry
                elif not parents:
                    return
        if at > end or parents:
            raise Corrupt("a unit ends in the middle of an entry")

    def _sibling(self, values: Values, after: int) -> int:
        """Where the entry behind the children of this one is; only ever further on."""
        offset = self.offset + int(values[At.SIBLING])
        if not after < offset <= self.end:
            raise Corrupt("a sibling in the wrong place")
        return offset

    def _begin(self, root: Entry) -> None:
        self._root = root
        if root.tag == Tag.SKELETON_UNIT or At.DWO_NAME in root.values or At.GNU_DWO_NAME in root.values:
            raise Unusable(_SPLIT)
        self._strings_base = root.number(At.STR_OFFSETS_BASE) or 2 * self.offset_size
        self._addresses_base = root.number(At.ADDR_BASE) or 8

    # Values that stand for something elsewhere

    def string(self, form: int, value: str | int) -> str:
        if isinstance(value, str):
            return value
        if form == Form.STRP:  # nearly all
            return self.units.string(value)
        if form in SUPPLEMENT_STRINGS:
            return self.units.shared().string(value)
        if form in _STRING_INDICES:
            size = self.offset_size
            at = self._strings_base + value * size
            value = int.from_bytes(_bytes(self.units.sections.string_offsets, at, size), "little")
        return self.units.line_string(value) if form == Form.LINE_STRP else self.units.string(value)

    def indexed_address(self, index: int) -> int:
        return int.from_bytes(_bytes(self.units.sections.addresses, self._addresses_base + 8 * index, 8), "little")


_SPLIT = "its debug information is in .dwo files; build without -gsplit-dwarf"


def _go_down(parents: list[Entry | None], parent: Entry | None) -> None:
    parents.append(parent)
    if len(parents) > MAX_DEPTH:
        raise Corrupt("entries are nested too deep")


def _bytes(data: bytes, at: int, size: int) -> bytes:
    found = data[at : at + size]
    if len(found) != size:
        raise Corrupt("something lies beyond the end of its section")
    return found


def _name_by_typedef(entries: Mapping[int, Entry], forms: Container[int]) -> None:
    """``typedef struct { ... } name``: the first such typedef names the type."""
    for entry in entries.values():
        if entry.tag == Tag.TYPEDEF and entry.abbreviation.forms.get(At.TYPE) in forms:
            target = entry.entry(At.TYPE)
            if target is not None and At.SIGNATURE in target.values:
                target = target.entry(At.SIGNATURE)
            if target is not None and target.tag in _TYPES and not target.alias and At.NAME not in target.values:
                target.alias = entry.name


class Allowance:
    """How often what is written once may count: in proportion to the file, and more than dwz ever saves.

    Else a small file could say everything of every file.
    """

    def __init__(self, units: Units) -> None:
        sizes = len(units.sections.info), len(units.supplement.sections.info) if units.supplement else 0
        self._left = SHARED_ANYHOW + sum(sizes) // SHARED_BYTES

    def take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise Unusable("its debug information shares more between its units than is read")


def _imports(unit: Unit) -> Iterator[Unit]:
    for entry in unit.root.children:
        if entry.tag == Tag.IMPORTED_UNIT:
            target = entry.entry(At.IMPORT)
            if target is not None:
                yield target.unit


class Units:
    """All units of a file, and those of its supplementary file that they use.

    ``more_tags`` are those of entries that are passed over otherwise: some tags, and variables without a fixed place.
    """

    def __init__(self, sections: Sections, more_tags: Collection[int] = (), supplement: Sections | None = None) -> None:
        self.sections = sections
        self.supplement = None if supplement is None else Units(supplement, more_tags)
        self.tables = Tables(sections.abbreviations, more_tags, alone=supplement is None)
        self.held = 0  # entries of the units that are loaded
        self.texts: dict[int, str] = {}  # that were asked for, by their offsets
        self._line_texts: dict[int, str] = {}
        self._text_room = MAX_STRINGS
        self._units = [*self._headers(sections.info), *self._headers(sections.types)]
        abbreviations = self.tables.all
        self.across = any(each.leads_across for each in abbreviations)  # whether entries name those of other units
        self.imports = any(each.tag == Tag.IMPORTED_UNIT for each in abbreviations)  # whether units import others
        self.plain = [unit for unit in self._units if unit.in_info]  # whose entries other units may refer to
        self._starts = [unit.offset for unit in self.plain]
        self._by_signature = {unit.signature: unit for unit in self._units if unit.signature}
        self._importers: dict[Unit, list[Unit]] = {}

    def __iter__(self) -> Iterator[Unit]:
        """Each unit, loaded; it is let go afterwards unless another unit may lead back to it."""
        for unit in self._units if self.across else ():
            self.sections.check_time()
            _name_by_typedef(unit.load(), _OTHER_REFERENCES)
        self._importers = self._find_importers() if self.imports else {}
        for unit in [*self._units, *self._used_of_supplement()]:
            self.sections.check_time()
            unit.load()
            yield unit
            if not self.across:
                unit.release()

    def allow(self, entries: int) -> None:
        """Whether so many may be held besides those that are.

        Raises:
            Unusable: they may not.
        """
        if self.held + entries > MAX_ENTRIES:
            raise Unusable(f"its debug information has more than {MAX_ENTRIES} entries in one unit")

    def release(self) -> None:
        """Let all entries go."""
        for unit in self._units:
            unit.release()

    # Units that others import

    def importers(self, unit: Unit) -> list[Unit]:
        """The units of source files that a unit is part of: itself, but for one that was made of what several share."""
        return self._importers.get(unit, [unit])

    def _find_importers(self) -> dict[Unit, list[Unit]]:
        found: dict[Unit, list[Unit]] = {}
        allowance = Allowance(self)
        for unit in self._units:
            if unit.root.tag == Tag.PARTIAL_UNIT:
                continue
            seen, work = {unit}, [unit]
            while work:
                self.sections.check_time()
                for imported in _imports(work.pop()):
                    if imported not in seen:
                        allowance.take(1)
                        seen.add(imported)
                        work.append(imported)
                        found.setdefault(imported, []).append(unit)
        return found

    def _used_of_supplement(self) -> list[Unit]:
        """The rest of what is in there is about other files."""
        return [unit for unit in self._importers if unit.units is not self]

    def shared(self) -> Units:
        if self.supplement is None:
            raise Corrupt("a reference to another file")
        return self.supplement

    def _headers(self, data: bytes) -> list[Unit]:
        found, at = list[Unit](), 0
        while at < len(data):
            unit = Unit(self, data, at)
            self.tables.at(unit.table, unit.offset_size)
            found.append(unit)
            at = unit.end
        return found

    def string(self, offset: int) -> str:
        text = self.texts.get(offset)
        if text is None:
            self.texts[offset] = text = self._text(self.sections.strings, offset)
        return text

    def line_string(self, offset: int) -> str:
        """One of the table that the line numbers have."""
        text = self._line_texts.get(offset)
        if text is None:
            self._line_texts[offset] = text = self._text(self.sections.line_strings, offset)
        return text

    def _text(self, data: bytes, offset: int) -> str:
        end = data.find(b"\0", offset, offset + MAX_STRING)
        if end < 0:
            raise Corrupt("a name without an end")
        self._text_room -= end - offset
        if self._text_room < 0:
            raise Corrupt("names that overlap")
        return data[offset:end].decode(errors="replace")

    def other(self, form: int, value: int) -> Entry | None:
        """An entry of any unit: by its offset in the section, or by the signature of its unit."""
        if form in SUPPLEMENT_REFERENCES:
            return self.shared().other(Form.REF_ADDR, value)
        if form == Form.REF_SIG8:
            unit = self._by_signature.get(value)
            return None if unit is None else unit.own(unit.type_offset)
        if form != Form.REF_ADDR:
            raise Corrupt("a reference of a form that is none")
        index = bisect_right(self._starts, value) - 1
        return self.plain[index].load().get(value) if index >= 0 else None
