"""Which entries say the same: header files are compiled into every unit, and need be described only once.

Entries get numbers, and entries with one number are described alike, whatever unit they are in.  A number stands for
everything that :mod:`hotupgrade.binary.debug.describe` looks at: what an entry itself says, the number of its type,
and the numbers of its children.  A type with a name is known elsewhere by its name alone, so that is where the number
of what refers to it ends.  Where more would have to be looked at (what is declared elsewhere, or within a function),
an entry has a number of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from hotupgrade.binary.debug.abbreviations import BLOCKS, WANTED_ATTRIBUTES, Abbreviation
from hotupgrade.binary.debug.columns import Columns, Rows, little, places_of
from hotupgrade.binary.debug.constants import At, Form, Op, Tag
from hotupgrade.binary.debug.layout import Layout
from hotupgrade.binary.debug.numbering import Numbering
from hotupgrade.binary.debug.survey import Batch, Unclear
from hotupgrade.binary.model import I32, I64, U8, Flags

MAX_LAYERS = 100  # pointers to arrays of functions that return pointers …, without a name on the way
_KINDS = (Tag.STRUCTURE, Tag.CLASS, Tag.UNION, Tag.ENUMERATION)
_PLAIN_TYPES = (
    *(Tag.BASE, Tag.UNSPECIFIED_TYPE, Tag.POINTER, Tag.CONST, Tag.VOLATILE, Tag.RESTRICT, Tag.ATOMIC, Tag.TYPEDEF),
    *(Tag.ARRAY, Tag.SUBROUTINE_TYPE),
)
_PARTS = (Tag.MEMBER, Tag.ENUMERATOR, Tag.SUBRANGE)
_SAID = (*_KINDS, *_PLAIN_TYPES, *_PARTS, Tag.SUBPROGRAM)  # of which it matters what they say themselves
_WITH_PARTS = (*_KINDS, Tag.ARRAY)
_WITH_PARAMETERS = (Tag.SUBROUTINE_TYPE, Tag.SUBPROGRAM)
_NAMES = (At.NAME, At.LINKAGE_NAME)
_VALUES = (
    *(At.BYTE_SIZE, At.BIT_OFFSET, At.BIT_SIZE, At.CONST_VALUE, At.UPPER_BOUND, At.COUNT, At.DATA_MEMBER_LOCATION),
    *(At.ENCODING, At.DATA_BIT_OFFSET, At.ALIGNMENT),
)
# Of these it matters whether they are there, or nothing.
_FLAGS = frozenset(
    (
        *(At.SIBLING, At.LOCATION, At.LOW_PC, At.HIGH_PC, At.RANGES, At.INLINE),
        *(At.DECLARATION, At.EXTERNAL, At.GNU_VECTOR),
    )
)
_ALIKE = frozenset((*_NAMES, *_VALUES, *_FLAGS, At.TYPE))
_OWN_REFERENCES = frozenset((Form.REF1, Form.REF2, Form.REF4, Form.REF8, Form.REF_UDATA))
_OFFSET_TEXTS = (Form.STRP,)
_INDEXED_TEXTS = (Form.STRX, Form.STRX1, Form.STRX2, Form.STRX3, Form.STRX4)
_WITHOUT_NUMBER = frozenset((*BLOCKS, Form.DATA16, Form.STRING, Form.ADDRX, Form.LOCLISTX, Form.RNGLISTX))
_HERE = (At.LOW_PC, At.RANGES, At.INLINE)
_FIXED_PLACES = (Op.ADDR, Op.CONST4U, Op.CONST8U, Op.ADDRX, Op.CONSTX, Op.PIECE)
GLOBAL, LOCAL, DECLARED = range(3)
# What numbers are of: rows of different sorts are never equal.
_ITSELF, _NAMED, _TYPE, _PART, _DEFINITION, _PROTOTYPE = range(6)


class Functions(NamedTuple):
    """Functions that say all of themselves: ``row`` of the entry, number of the ``name``, number of the ``prototype``,
    and whether they are GLOBAL, LOCAL, or only DECLARED."""

    row: I64
    name: I64
    prototype: I64
    told_as: I64


@dataclass(frozen=True)
class Alike:
    """What was found out of a batch; all arrays are parallel to its entries.

    ``target``: what an entry's type attribute names, -1 for nothing.  ``number``: of a type or function, for its text;
    0 for other entries.  ``told``: of an entry that describes something, but for ``functions``; 0 for other entries.
    ``own``: whether what it describes depends on the file that it is in.  ``alias``: typedef that names an unnamed
    type, by that type.
    """

    batch: Batch
    target: I32
    number: I32
    told: I32
    own: Flags
    functions: Functions
    alias: dict[int, int]


class Shapes:
    """What abbreviations alone tell, by their numbers."""

    def __init__(self, abbreviations: Sequence[Abbreviation], layouts: Sequence[Layout]) -> None:
        self.layouts = layouts
        self.tag = np.array([each.tag for each in abbreviations], np.int32)
        self.is_kind, self.is_said = np.isin(self.tag, _KINDS), np.isin(self.tag, _SAID)
        self.is_type = self.is_kind | np.isin(self.tag, _PLAIN_TYPES)
        self.has_parts, self.has_parameters = np.isin(self.tag, _WITH_PARTS), np.isin(self.tag, _WITH_PARAMETERS)
        self.is_parameter = np.isin(self.tag, (Tag.PARAMETER, Tag.UNSPECIFIED_PARAMETERS))
        sorts: dict[object, int] = {}
        self.sort = np.array([sorts.setdefault(_sort(each), len(sorts)) for each in abbreviations], np.int64)
        self.alone = _flags(abbreviations, _is_alone)
        self.declares = _flags(abbreviations, lambda each: At.DECLARATION in each.forms or At.SIGNATURE in each.forms)
        # Of functions: how they are told (see Functions), -1 for not at all.
        self.told_as = np.array([_told_as(each) for each in abbreviations], np.int8)
        self.places = {attribute: places_of(attribute, layouts) for attribute in (*_NAMES, *_VALUES, At.TYPE)}
        self.values = [each for each in _VALUES if (self.places[each].gap >= 0).any()]
        self.location = places_of(At.LOCATION, layouts)
        self.strings_base = places_of(At.STR_OFFSETS_BASE, layouts)


def _flags(abbreviations: Sequence[Abbreviation], test: Callable[[Abbreviation], bool]) -> Flags:
    return np.array([test(each) for each in abbreviations], np.bool_)


def _told_as(each: Abbreviation) -> int:
    if any(attribute in each.forms for attribute in _HERE):
        return GLOBAL if At.EXTERNAL in each.forms else LOCAL
    return DECLARED if At.DECLARATION in each.forms else -1


def _sort(each: Abbreviation) -> object:
    """Entries whose sorts are equal say the same if their values are equal."""
    shape = [
        (attribute, form, constant)
        for attribute, form, constant in each.attributes
        if attribute in WANTED_ATTRIBUTES and attribute != At.SIBLING
    ]
    return each.tag, tuple(sorted(shape))


def _is_alone(each: Abbreviation) -> bool:
    """Whether such entries say something that is not compared here."""
    values = [form for attribute, form in each.forms.items() if attribute in _VALUES]
    return not _ALIKE.issuperset(each.forms) or not _WITHOUT_NUMBER.isdisjoint(values)


def can_tell(abbreviations: Sequence[Abbreviation], layouts: Sequence[Layout]) -> bool:
    """Whether it is worth it: C++ has nearly everything in a namespace or a class."""
    known = not any(each.tag in (Tag.NAMESPACE, Tag.TYPE_UNIT, Tag.PARTIAL_UNIT) for each in abbreviations)
    return known and not any(layout.repeats for layout in layouts)


class Finder:
    """Goes through the batches of a file."""

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self._numbering = Numbering()
        self._texts: dict[bytes, int] = {}  # that stand in the entries themselves

    def find(self, batch: Batch) -> Alike:
        """Raises:
        Unclear: an entry is not as compilers write it.
        """
        return _Finding(batch, self._shapes, self._numbering, self._texts).result()

    def texts(self) -> list[str]:
        """Names that stand in the entries themselves, in the order of their numbers."""
        return [text.decode(errors="replace") for text in self._texts]


class _Finding:
    def __init__(self, batch: Batch, shapes: Shapes, numbering: Numbering, texts: dict[bytes, int]) -> None:
        self._batch, self._shapes, self._numbering, self._texts = batch, shapes, numbering, texts
        self._columns = Columns(batch, shapes.layouts)
        self._tag = shapes.tag[batch.shape]
        self._top = batch.parent >= 0
        self._top[self._top] = batch.parent[batch.parent[self._top]] < 0  # in no other than the unit's own entry
        self._by_parent = np.argsort(batch.parent, kind="stable")
        # Where the children of each entry begin in that.
        self._first_child = np.searchsorted(batch.parent[self._by_parent], np.arange(len(batch.parent) + 1))
        if not (self._tag[batch.parent < 0] == Tag.COMPILE_UNIT).all():
            raise Unclear
        self._target = self._targets()
        self._is_kind, self._is_type = shapes.is_kind[batch.shape], shapes.is_type[batch.shape]
        self._is_said = shapes.is_said[batch.shape]
        referred = self._target[self._target >= 0]
        if not self._is_type[referred].all():
            raise Unclear
        self._name = self._names(At.NAME)
        self._alias, self._aliases = self._find_aliases()
        self._itself = self._say_themselves()
        self._number = np.full(len(batch.start), -1, np.int64)

    def result(self) -> Alike:
        self._number_types()
        functions = self._functions()
        told, own = self._told()
        number = np.where(self._is_type, self._number, 0)
        number[functions.row] = functions.prototype
        return Alike(
            batch=self._batch,
            target=self._target,
            number=number.astype(np.int32),
            told=told.astype(np.int32),
            own=own,
            functions=functions,
            alias=self._aliases,
        )

    # What entries say themselves

    def _targets(self) -> I32:
        """What their type attributes name."""
        batch, places = self._batch, self._shapes.places[At.TYPE]
        found = np.full(len(batch.start), -1, np.int32)
        rows = self._columns.present(places)
        if not np.isin(places.form[batch.shape[rows]], list(_OWN_REFERENCES)).all():
            raise Unclear
        begins = np.array([unit.offset for unit in batch.units], np.int64)
        offset = self._columns.integers(places, rows) + begins[batch.unit[rows]]
        at = np.minimum(np.searchsorted(batch.start, offset), len(batch.start) - 1)
        hit = (batch.start[at] == offset) & (batch.unit[at] == batch.unit[rows])
        found[rows[hit]] = at[hit]
        return found

    def _names(self, attribute: int) -> I64:
        """Numbers for names: even ones for those in the table, odd ones for those that stand in the entries; 0 for
        none, -1 for one without a letter."""
        batch, places = self._batch, self._shapes.places[attribute]
        found = np.zeros(len(batch.start), np.int64)
        rows = self._columns.present(places, self._is_said)
        forms = places.form[batch.shape[rows]]
        here = np.isin(forms, _OFFSET_TEXTS)
        found[rows[here]] = self._in_table(self._columns.integers(places, rows[here]))
        here = np.isin(forms, _INDEXED_TEXTS)
        found[rows[here]] = self._in_table(self._string_offsets(self._columns.integers(places, rows[here]), rows[here]))
        here = forms == Form.STRING
        found[rows[here]] = self._in_entries(self._columns.at(places, rows[here]))
        if not np.isin(forms, (*_OFFSET_TEXTS, *_INDEXED_TEXTS, Form.STRING)).all():
            raise Unclear
        return found

    def _in_table(self, offset: I64) -> I64:
        strings: U8 = np.frombuffer(self._batch.units[0].units.sections.strings, np.uint8)
        if len(offset) and not 0 <= int(offset.min()) <= int(offset.max()) < len(strings):
            raise Unclear
        return np.where(strings[offset] == 0, -1, 2 * offset + 2)

    def _string_offsets(self, index: I64, rows: Rows) -> I64:
        batch, places = self._batch, self._shapes.strings_base
        size = batch.units[0].offset_size
        bases = np.full(len(batch.units), 2 * size, np.int64)
        said = self._columns.present(places, batch.parent < 0)
        bases[batch.unit[said]] = self._columns.integers(places, said)
        data: U8 = np.frombuffer(batch.units[0].units.sections.string_offsets, np.uint8)
        return little(data, bases[batch.unit[rows]] + index * size, size)

    def _in_entries(self, at: I64) -> I64:
        data, known = self._batch.units[0].data, self._texts
        begin, end = self._columns.texts(at)
        numbers = [known.setdefault(data[b:e], 2 * len(known) + 1) for b, e in zip(begin.tolist(), end.tolist())]  # noqa: B905
        return np.where(begin == end, -1, np.array(numbers, np.int64))

    def _find_aliases(self) -> tuple[I64, dict[int, int]]:
        """The first typedef of an unnamed type names it."""
        found = np.zeros(len(self._tag), np.int64)
        typedefs = np.flatnonzero((self._tag == Tag.TYPEDEF) & (self._target >= 0))
        targets = self._target[typedefs]
        unnamed = self._is_kind[targets] & (self._shapes.places[At.NAME].gap[self._batch.shape[targets]] < 0)
        named, first = np.unique(targets[unnamed], return_index=True)
        chosen = typedefs[unnamed][first]
        found[named] = self._name[chosen]
        if (found[named] <= 0).any():
            raise Unclear
        return found, dict(zip(named.tolist(), chosen.tolist(), strict=True))

    def _say_themselves(self) -> I64:
        """Numbers for what entries say without others."""
        found = np.zeros(len(self._batch.start), np.int64)
        rows = np.flatnonzero(self._is_type & ~self._is_alone)
        found[rows] = self._numbering.rows(_ITSELF, *(column[rows] for column in self._words))
        rows = np.flatnonzero(self._is_alone)
        found[rows] = self._numbering.fresh(len(rows))
        return found

    @cached_property
    def _words(self) -> list[I64]:
        """What types and their parts say in numbers, but for their types; 0 where they say nothing."""
        batch, shapes = self._batch, self._shapes
        columns = [shapes.sort[batch.shape], self._name]
        said = self._is_said & ~self._is_alone
        for attribute in shapes.values:  # the same for all batches: what a column is about is not said again
            rows = self._columns.present(shapes.places[attribute], said)
            column = np.zeros(len(batch.start), np.int64)
            column[rows] = self._columns.integers(shapes.places[attribute], rows)
            columns.append(column)
        return columns

    # Types

    def _type_of(self, rows: Rows) -> I64:
        """Number of the type of each, 0 for none, -1 for one that has no number yet."""
        target = self._target[rows]
        return np.where(target >= 0, self._number[target], 0)

    def _number_types(self) -> None:
        alone = self._is_type & self._is_alone
        self._number[alone] = self._itself[alone]
        named = self._is_kind & ((self._name > 0) | (self._alias > 0)) & ~alone
        rows = np.flatnonzero(named)
        self._number[rows] = self._numbering.rows(_NAMED, self._itself[rows], self._alias[rows])
        left = np.flatnonzero(self._is_type & ~alone & ~named)
        for _ in range(MAX_LAYERS):
            if not len(left):
                return
            ready = (self._type_of(left) >= 0) & ~self._waits(left)
            rows = left[ready]
            self._number[rows] = self._numbering.rows(
                _TYPE, self._itself[rows], self._type_of(rows), self._contents(rows)
            )
            left = left[~ready]
        raise Unclear  # maybe a type that holds itself

    @cached_property
    def _is_alone(self) -> Flags:
        alone: Flags = self._shapes.alone[self._batch.shape] | (self._name < 0) | (self._is_kind & ~self._top)
        return alone

    def _children(self, rows: Rows) -> tuple[Rows, Rows]:
        """(children, index of the parent in ``rows``) of entries, by parent; ``rows`` ascend."""
        low = self._first_child[rows]
        lengths = self._first_child[rows + 1] - low
        owner = np.repeat(np.arange(len(rows)), lengths)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        children = self._by_parent[low[owner] + within]
        shape, shapes = self._batch.shape[rows], self._shapes
        counts = shapes.has_parameters[shape][owner] & shapes.is_parameter[self._batch.shape[children]]
        counts |= shapes.has_parts[shape][owner]
        return children[counts], owner[counts]

    def _waits(self, rows: Rows) -> Flags:
        """Whether a child has a type without a number yet."""
        children, owner = self._children(rows)
        waits = np.zeros(len(rows), np.bool_)
        waits[owner[self._type_of(children) < 0]] = True
        return waits

    def _contents(self, rows: Rows) -> I64:
        """Numbers for what the children of entries say."""
        children, owner = self._children(rows)
        kind = self._type_of(children)
        said = np.where(self._tag[children] == Tag.PARAMETER, 2 * kind, 1)
        parts = self._shapes.has_parts[self._batch.shape[rows]][owner]
        at = children[parts]
        numbers = self._numbering.rows(_PART, *(column[at] for column in self._words), kind[parts])
        alone = self._is_alone[at] | ~self._is_said[at] | self._has_children[at]
        numbers[alone] = self._numbering.fresh(int(alone.sum()))
        said[parts] = numbers
        return self._numbering.sequences(said, np.bincount(owner, minlength=len(rows)).tolist())

    @cached_property
    def _has_children(self) -> Flags:
        found = np.zeros(len(self._batch.start), np.bool_)
        found[self._batch.parent[self._batch.parent >= 0]] = True
        return found

    # What is to be told

    def _told(self) -> tuple[I64, Flags]:
        batch, shapes, numbering = self._batch, self._shapes, self._numbering
        told = np.zeros(len(batch.start), np.int64)
        defined = self._is_kind & ~shapes.declares[batch.shape]
        rows = np.flatnonzero(defined & ~self._is_alone)
        columns = self._itself[rows], self._alias[rows], self._type_of(rows), self._contents(rows)
        told[rows] = numbering.rows(_DEFINITION, *columns)
        typedefs = self._tag == Tag.TYPEDEF
        rows = np.flatnonzero(typedefs & self._top & ~self._is_alone)
        told[rows] = self._number[rows]
        functions = (self._tag == Tag.SUBPROGRAM) & ~self._is_simple
        rest = (defined | functions | typedefs) & (told == 0)
        variables = self._fixed_variables()
        told[rest] = numbering.fresh(int(rest.sum()))
        told[variables] = numbering.fresh(len(variables))
        own = (self._tag == Tag.ENUMERATION) & (self._name <= 0) & (self._alias == 0)
        return told, own

    @cached_property
    def _is_simple(self) -> Flags:
        """Functions that say all of themselves, and in the usual place."""
        simple: Flags = (self._tag == Tag.SUBPROGRAM) & self._top & ~self._is_alone
        return simple

    def _functions(self) -> Functions:
        linkage = self._names(At.LINKAGE_NAME)
        if (linkage < 0).any():
            raise Unclear
        name = np.where(linkage > 0, linkage, self._name)
        told_as = self._shapes.told_as[self._batch.shape]
        rows = np.flatnonzero(self._is_simple & (told_as >= 0) & (name > 0))
        prototype = self._numbering.rows(_PROTOTYPE, self._type_of(rows), self._contents(rows))
        return Functions(rows, name[rows], prototype, told_as[rows].astype(np.int64))

    def _fixed_variables(self) -> Rows:
        """Variables that may have a fixed place."""
        places = self._shapes.location
        rows = self._columns.present(places, self._tag == Tag.VARIABLE)
        forms = places.form[self._batch.shape[rows]]
        rows = rows[np.isin(forms, list(BLOCKS))]
        simple = places.form[self._batch.shape[rows]] == Form.EXPRLOC
        _, first = self._columns.first_bytes(self._columns.at(places, rows[simple]))
        return np.sort(np.concatenate([rows[~simple], rows[simple][np.isin(first, _FIXED_PLACES)]]))
