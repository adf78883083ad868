"""The entries of a file without repetitions: what many units say alike is described once, for all of their files.

Entries are made only when they are looked at.  What is described is the same, and in the same order, as if every entry
of every unit were.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hotupgrade.binary.debug.abbreviations import Abbreviation, Values
from hotupgrade.binary.debug.alike import DECLARED, LOCAL, Alike, Finder, Shapes, can_tell
from hotupgrade.binary.debug.constants import At, Tag
from hotupgrade.binary.debug.describe import prototype
from hotupgrade.binary.debug.layout import layout_of
from hotupgrade.binary.debug.numbering import distinct
from hotupgrade.binary.debug.survey import Unclear, survey
from hotupgrade.binary.debug.units import PARAMETERS, Entry, Unit, Units
from hotupgrade.binary.model import I64

_READ_WHOLE = (Tag.STRUCTURE, Tag.CLASS, Tag.UNION, Tag.ENUMERATION)  # whose children are all looked at


class _LazyEntry(Entry):
    """An entry of which nothing is read before it is asked for."""

    __slots__ = ("_index", "_part")

    def __init__(self, part: _Part, index: int) -> None:  # not what it is based on: nothing is known yet
        self._part = part
        self._index = index
        self.abbreviation = abbreviation = part.abbreviations[part.shape[index]]
        self.tag = abbreviation.tag
        self.text = part.texts.get(part.number[index])

    def keep_text(self, text: str) -> None:
        self.text = text
        number = self._part.number[self._index]
        if number:
            self._part.texts[number] = text

    def parameters(self) -> Sequence[Entry]:
        part = self._part
        return [_LazyEntry(part, index) for index in part.children(self._index) if part.is_parameter[part.shape[index]]]

    def type_text(self) -> str | None:
        part = self._part
        target = part.target[self._index]
        return part.texts.get(part.number[target]) if target >= 0 else None

    def entry(self, attribute: int) -> Entry | None:
        if attribute == At.TYPE:
            target = self._part.target[self._index]
            return _LazyEntry(self._part, target) if target >= 0 else None
        return super().entry(attribute)

    def __getattr__(self, name: str) -> object:
        """What is asked for the first time."""
        part, index = self._part, self._index
        found: object
        if name == "values":
            found = part.values(index)
        elif name == "unit":
            found = part.units[part.unit[index]]
        elif name == "parent":
            above = part.parent[index]
            found = _LazyEntry(part, above) if above >= 0 else None
        elif name == "children":
            found = [_LazyEntry(part, child) for child in part.children(index)]
            if self.tag in _READ_WHOLE:
                for child in found:
                    child.values = part.values(child._index)
                    child.unit = self.unit
        elif name == "alias":
            alias = part.alias.get(index)
            found = "" if alias is None else _LazyEntry(part, alias).name
        else:
            raise AttributeError(name)
        setattr(self, name, found)
        return found


class _LazyEntries(Mapping[int, Entry]):
    """The entries of a unit, by offset; they are made each time they are asked for."""

    def __init__(self, part: _Part, begin: int, end: int) -> None:
        """``begin``, ``end``: where the unit's entries lie among those of the batch."""
        self._part = part
        self._rows = range(begin, end)

    def __getitem__(self, offset: int) -> Entry:
        index = self._part.at(offset)
        if index not in self._rows:
            raise KeyError(offset)
        return _LazyEntry(self._part, index)

    def __iter__(self) -> Iterator[int]:
        return (self._part.start[index] for index in self._rows)

    def __len__(self) -> int:
        return len(self._rows)


class _Part:
    """A batch, with what is needed to make its entries, in a form that is fast to index."""

    def __init__(self, abbreviations: Sequence[Abbreviation], texts: dict[int, str], alike: Alike) -> None:
        batch = alike.batch
        self.alike = alike
        self.abbreviations = abbreviations
        self.is_parameter = [each.tag in PARAMETERS for each in abbreviations]
        self.texts = texts
        self.units = batch.units
        self.data = batch.units[0].data
        self.alias = alike.alias
        self.start, self.shape, self.unit = (column.data for column in (batch.start, batch.shape, batch.unit))
        self.parent, self.target, self.number = (column.data for column in (batch.parent, alike.target, alike.number))
        self._children = np.argsort(batch.parent, kind="stable").astype(np.int32)
        self._ascending = batch.parent[self._children].data

    def values(self, index: int) -> Values:
        at = self.start[index]
        content = at + (1 if self.data[at] < 0x80 else 2)
        return self.abbreviations[self.shape[index]].decode(self.data, content)[0]

    def at(self, offset: int) -> int:
        """Index of the entry that begins at an offset, -1 if none does."""
        index = bisect_left(self.start, offset)
        return index if index < len(self.start) and self.start[index] == offset else -1

    def children(self, index: int) -> list[int]:
        low = bisect_left(self._ascending, index)
        high = bisect_left(self._ascending, index + 1, low)
        found: list[int] = self._children[low:high].tolist()
        return found

    def be_adopted(self) -> None:
        """By the units whose entries these are."""
        roots = np.flatnonzero(self.alike.batch.parent < 0).tolist()
        for unit, begin, end in zip(self.units, roots, [*roots[1:], len(self.start)], strict=True):
            unit.adopt(_LazyEntries(self, begin, end), _LazyEntry(self, begin))


class Described(NamedTuple):
    """An entry that describes something, and the files (numbers) that have it."""

    entry: Entry
    files: list[int]


class Function(NamedTuple):
    """A function by its prototype.  ``file``: its number; -1 for one that is global, None for one that is declared."""

    name: str
    file: int | None
    text: str


class Condensed:
    """All that the units of a file say, each thing once.

    Raises:
        Unclear: the file must be read one entry after the other.
    """

    def __init__(self, units: Units) -> None:
        if units.across or units.imports or not units.plain:
            raise Unclear
        abbreviations = units.tables.all
        layouts = [layout_of(each) for each in abbreviations]
        if not can_tell(abbreviations, layouts):
            raise Unclear
        self.units: Sequence[Unit] = units.plain
        self._strings = units.string
        self._texts: dict[int, str] = {}  # by number
        finder = Finder(Shapes(abbreviations, layouts))
        batches = survey(self.units, abbreviations, layouts)
        self._parts = [_Part(abbreviations, self._texts, finder.find(batch)) for batch in batches]
        self._short_texts = finder.texts()
        for part in self._parts:
            part.be_adopted()

    def told(self, files: Sequence[int]) -> Iterator[Described | Function]:
        """What is described, in the order of the entries that do it; ``files``: number of the file of each unit."""
        file = self._files(np.array(files, np.int64))
        entries, functions = self._entries(file), self._functions(file)
        order = np.argsort(np.concatenate([entries.first, functions.first])).tolist()
        first, begins, files_of = entries.first.tolist(), entries.begins.tolist(), entries.files.tolist()
        rows = list(zip(*(column.tolist() for column in functions), strict=True))
        for index in order:
            if index < len(first):
                yield Described(self._entry(first[index]), files_of[begins[index] : begins[index + 1]])
            else:
                yield self._function(*rows[index - len(first)])

    # Entries

    def _entries(self, file: I64) -> _Entries:
        number, own = self._gathered(lambda alike: alike.told), self._gathered(lambda alike: alike.own)
        at = np.flatnonzero(number)
        file = file[at]
        # Once, or once for each file.
        first, which = distinct([number[at], np.where(own[at], file, -1)])
        pair = np.unique(which * len(self.units) + file)
        begins = np.searchsorted(pair, np.arange(len(first) + 1) * len(self.units))
        return _Entries(at[first], begins, pair % len(self.units))

    # Functions

    def _functions(self, file: I64) -> _Functions:
        starts = np.cumsum([0, *(len(part.alike.number) for part in self._parts)])
        found = [part.alike.functions for part in self._parts]
        at = np.concatenate([each.row + start for each, start in zip(found, starts[:-1].tolist(), strict=True)])
        name, prototype, told_as = (
            np.concatenate([getattr(each, column) for each in found]) for column in ("name", "prototype", "told_as")
        )
        file = np.where(told_as == LOCAL, file[at], -1)
        first, _ = distinct([name, prototype, told_as, file])
        return _Functions(at[first], name[first], prototype[first], told_as[first], file[first])

    def _function(self, first: int, name: int, number: int, told_as: int, file: int) -> Function:
        text = self._texts.get(number)
        if text is None:
            text = prototype(self._entry(first))
        return Function(self._name(name), None if told_as == DECLARED else file, text)

    def _name(self, number: int) -> str:
        return self._short_texts[number >> 1] if number & 1 else self._strings((number >> 1) - 1)

    # Entries of all batches together

    def _gathered(self, column: Callable[[Alike], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return np.concatenate([column(part.alike) for part in self._parts])

    def _files(self, files: I64) -> I64:
        """Of each entry the number of its file."""
        counts = np.cumsum([0, *(len(part.units) for part in self._parts)])
        begins = zip(self._parts, counts[:-1].tolist(), strict=True)
        found: I64 = np.concatenate([files[part.alike.batch.unit + begin] for part, begin in begins])
        return found

    def _entry(self, index: int) -> Entry:
        for part in self._parts:
            if index < len(part.number):
                return _LazyEntry(part, index)
            index -= len(part.number)
        raise IndexError(index)


class _Entries(NamedTuple):
    """Entries that stand for all that say the same: the first of each, and ``files[begins[n]:begins[n + 1]]``."""

    first: I64
    begins: I64
    files: I64


class _Functions(NamedTuple):
    first: I64
    name: I64
    prototype: I64
    told_as: I64
    file: I64
