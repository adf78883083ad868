"""Tables of abbreviations, made into decoders: what an entry holds, and how its bytes become values."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from hotupgrade.binary.debug.constants import At, Form, Tag
from hotupgrade.binary.debug.sections import Corrupt, Unusable

Values = dict[int, Any]

MAX_ABBREVIATIONS = 1 << 20  # all tables together
MAX_ATTRIBUTES = 1 << 12  # of one abbreviation

# Everything else is passed over without being made into values.
WANTED_ATTRIBUTES = frozenset(value for name, value in vars(At).items() if not name.startswith("_"))
WANTED_TAGS = frozenset(value for name, value in vars(Tag).items() if not name.startswith("_")) - {
    Tag.INLINED_SUBROUTINE  # many, and of use only to who asks for them
}

_FIXED = {
    Form.ADDR: "Q",
    Form.DATA1: "B",
    Form.DATA2: "H",
    Form.DATA4: "I",
    Form.DATA8: "Q",
    Form.DATA16: "16s",
    Form.FLAG: "?",
    Form.REF1: "B",
    Form.REF2: "H",
    Form.REF4: "I",
    Form.REF8: "Q",
    Form.REF_SIG8: "Q",
    Form.REF_SUP4: "I",
    Form.REF_SUP8: "Q",
    Form.STRX1: "B",
    Form.STRX2: "H",
    Form.STRX4: "I",
    Form.ADDRX1: "B",
    Form.ADDRX2: "H",
    Form.ADDRX4: "I",
}
_OFFSETS = frozenset(
    (
        Form.STRP,
        Form.LINE_STRP,
        Form.SEC_OFFSET,
        Form.REF_ADDR,
        Form.STRP_SUP,
        Form.GNU_REF_ALT,
        Form.GNU_STRP_ALT,
    )
)
_WITHOUT_ROOM = frozenset((Form.FLAG_PRESENT, Form.IMPLICIT_CONST))
_NUMBERS = frozenset((Form.UDATA, Form.REF_UDATA, Form.STRX, Form.ADDRX, Form.LOCLISTX, Form.RNGLISTX))
BLOCKS = {Form.BLOCK1: 1, Form.BLOCK2: 2, Form.BLOCK4: 4, Form.BLOCK: 0, Form.EXPRLOC: 0}
# In another file: what "dwz -m" and DWARF 5 (7.3.6) call a supplementary one.
SUPPLEMENT_REFERENCES = frozenset((Form.GNU_REF_ALT, Form.REF_SUP4, Form.REF_SUP8))
SUPPLEMENT_STRINGS = frozenset((Form.GNU_STRP_ALT, Form.STRP_SUP))
_SUPPLEMENT = SUPPLEMENT_REFERENCES | SUPPLEMENT_STRINGS
_ACROSS = SUPPLEMENT_REFERENCES | {Form.REF_ADDR, Form.REF_SIG8}
_MOST_BITS = 70  # of a LEB128 number: ten groups of seven

# An abbreviation as compilers write it: its code; then its tag, whether it has children, pairs of attribute and form
# (with a constant behind IMPLICIT_CONST), and two zeros.
_NUMBER = rb"[\x80-\xff]*+[\x00-\x7f]"
_NONZERO = rb"(?:[\x01-\x7f]|[\x80-\xff]++[\x01-\x7f])"
_FORM = rb"(?:[\x01-\x20\x22-\x7f]|\x21" + _NUMBER + rb"|[\x80-\xff]++[\x01-\x7f])"
_USUAL = re.compile(
    b"(" + _NONZERO + b")(" + _NONZERO + rb"[\x00-\xff](?:" + _NONZERO + _FORM + rb"){0,%d}+\x00\x00)" % MAX_ATTRIBUTES
)


def size_of_form(form: int, offset_size: int) -> int | None:
    """Bytes that a value takes; None if only the value tells."""
    if form in _WITHOUT_ROOM:
        return 0
    if form in _OFFSETS:
        return offset_size
    return struct.calcsize(f"<{_FIXED[form]}") if form in _FIXED else None


def unsigned(data: bytes, at: int) -> tuple[int, int]:
    """A ULEB128 number and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift >= _MOST_BITS:
            raise Corrupt("a number without an end")


def signed(data: bytes, at: int) -> tuple[int, int]:
    """An SLEB128 number and where it ends."""
    value, end = unsigned(data, at)
    bits = 7 * (end - at)
    return (value - (1 << bits) if value >> (bits - 1) else value), end


class Run(NamedTuple):
    """Values of fixed size that follow each other."""

    unpack: Callable[[bytes, int], tuple[Any, ...]]
    names: tuple[int, ...]
    size: int  # bytes


class Single(NamedTuple):
    """A value whose size is known only when it is read."""

    attribute: int
    form: int


class Abbreviation:
    """The shape of an entry.  ``number``: its index among all that a file has."""

    __slots__ = (
        "attributes",
        "children",
        "constants",
        "forms",
        "leads_across",
        "named_by_offset",
        "number",
        "offset_size",
        "only_run",
        "own_type",
        "steps",
        "tag",
        "wanted",
    )

    def __init__(
        self,
        tag: int,
        children: bool,
        attributes: Sequence[tuple[int, int, int]],
        offset_size: int,
        *,
        wanted: bool,
        number: int = 0,
    ) -> None:
        self.tag = tag
        self.children = children
        self.attributes = attributes
        self.offset_size = offset_size
        self.wanted = wanted
        self.number = number
        self.forms = {attribute: form for attribute, form, _ in attributes if attribute in WANTED_ATTRIBUTES}
        self.named_by_offset = self.forms.get(At.NAME) == Form.STRP
        # What says the rest of a type's name elsewhere, if anything does.
        self.own_type = At.SPECIFICATION not in self.forms and At.SIGNATURE not in self.forms
        # Whether an attribute may name an entry of another unit.
        self.leads_across = not _ACROSS.isdisjoint(self.forms.values())
        self.constants: Values = {}  # attributes that take no room in the entry
        self.steps: list[Run | Single] = []
        self._compile(attributes, "I" if offset_size == 4 else "Q")
        first = self.steps[0] if len(self.steps) == 1 else None
        self.only_run = first if isinstance(first, Run) else None  # the usual case

    def _compile(self, attributes: Sequence[tuple[int, int, int]], offset: str) -> None:
        layout, names = "<", list[int]()

        def end_run() -> None:
            nonlocal layout, names
            if layout != "<":
                packed = struct.Struct(layout)
                self.steps.append(Run(packed.unpack_from, tuple(names), packed.size))
            layout, names = "<", []

        for attribute, form, constant in attributes:
            wanted = attribute in WANTED_ATTRIBUTES
            fixed = offset if form in _OFFSETS else _FIXED.get(form)
            if form in _WITHOUT_ROOM:
                if wanted:
                    self.constants[attribute] = True if form == Form.FLAG_PRESENT else constant
            elif fixed is None:
                end_run()
                self.steps.append(Single(attribute, form))
            elif wanted:
                layout += fixed
                names.append(attribute)
            else:
                layout += f"{struct.calcsize('<' + fixed)}x"
        end_run()

    def require_own(self) -> None:
        """Refuses what lies in a supplementary file."""
        if _SUPPLEMENT & set(self.forms.values()):
            raise Unusable("part of its debug information is in a supplementary file (dwz -m), which was not found")

    def decode(self, data: bytes, at: int) -> tuple[Values, int]:
        """The wanted values, and where the entry ends."""
        if self.only_run is not None:  # the usual case
            unpack, names, size = self.only_run
            values = dict(zip(names, unpack(data, at)))  # noqa: B905  as many as the format says
            if self.constants:
                values |= self.constants
            return values, at + size
        values = self.constants.copy()
        for step in self.steps:
            if isinstance(step, Run):
                unpack, names, size = step
                values.update(zip(names, unpack(data, at)))  # noqa: B905  as many as the format says
                at += size
            else:
                attribute, form = step
                if form == Form.STRING:  # the usual one
                    end = data.index(b"\0", at)
                    value, at = data[at:end].decode(errors="replace"), end + 1
                else:
                    value, at = _variable(data, at, form)
                if attribute in WANTED_ATTRIBUTES:
                    values[attribute] = value
        return values, at

    def end(self, data: bytes, at: int) -> int:
        """Where the entry ends."""
        for step in self.steps:
            at = at + step.size if isinstance(step, Run) else _variable(data, at, step.form)[1]
        return at


def _is_local(tag: int, attributes: Sequence[tuple[int, int, int]]) -> bool:
    """Whether this is a variable that for sure has no fixed place: most are in registers, or nowhere."""
    if tag != Tag.VARIABLE:
        return False
    forms = {attribute: form for attribute, form, _ in attributes}
    where = forms.get(At.LOCATION)
    return At.ABSTRACT_ORIGIN in forms if where is None else where not in BLOCKS


def _variable(data: bytes, at: int, form: int) -> tuple[Any, int]:
    """A value whose size is not known beforehand, and where it ends."""
    if form in _NUMBERS:
        return unsigned(data, at)
    if form == Form.SDATA:
        return signed(data, at)
    if form == Form.STRING:
        end = data.index(b"\0", at)
        return data[at:end].decode(errors="replace"), end + 1
    if form in BLOCKS:
        width = BLOCKS[form]
        if width:
            size, start = int.from_bytes(data[at : at + width], "little"), at + width
        else:
            size, start = unsigned(data, at)
        if start + size > len(data):
            raise Corrupt("a block beyond the end")
        return data[start : start + size], start + size
    if form in (Form.STRX3, Form.ADDRX3):
        return int.from_bytes(data[at : at + 3], "little"), at + 3
    raise Unusable(f"its debug information has values of a form that is not known here ({form:#x})")


class Tables:
    """All tables of abbreviations, each read once.  ``alone``: there is no supplementary file that they may name."""

    def __init__(self, data: bytes, more_tags: Collection[int] = (), *, alone: bool = True) -> None:
        self._data = data
        self._alone = alone
        self._wanted, self._more = WANTED_TAGS.union(more_tags), frozenset(more_tags)
        self._known: dict[tuple[int, int], dict[int, Abbreviation]] = {}
        # Every unit has a table of its own, with much the same in it.
        self._by_bytes: dict[tuple[bytes, int], Abbreviation] = {}
        self._by_shape: dict[tuple[int, bool, tuple[tuple[int, int, int], ...], int], Abbreviation] = {}
        self._left = MAX_ABBREVIATIONS

    def at(self, offset: int, offset_size: int) -> dict[int, Abbreviation]:
        key = offset, offset_size
        if key not in self._known:
            self._known[key] = self._read(offset, offset_size)
        return self._known[key]

    @property
    def all(self) -> list[Abbreviation]:
        """Of the tables that were read, each once, by number."""
        return list(self._by_shape.values())

    def _read(self, at: int, offset_size: int) -> dict[int, Abbreviation]:
        data, table, match = self._data, dict[int, Abbreviation](), _USUAL.match
        while True:
            usual = match(data, at)
            if usual is None:
                code, at = unsigned(data, at)
                if not code:
                    return table
                found, at = self._parsed(at, offset_size)
            else:
                word, content = usual.groups()
                code = word[0] if len(word) == 1 else unsigned(word, 0)[0]
                known = self._by_bytes.get((content, offset_size))
                if known is None:
                    known = self._by_bytes[content, offset_size] = self._parsed(usual.start(2), offset_size)[0]
                found, at = known, usual.end()
            self._left -= 1
            if self._left < 0:
                raise Unusable(f"its debug information has more than {MAX_ABBREVIATIONS} abbreviations")
            table[code] = found

    def _parsed(self, at: int, offset_size: int) -> tuple[Abbreviation, int]:
        """The abbreviation whose tag is there, and where it ends."""
        data = self._data
        tag, at = unsigned(data, at)
        children = data[at] != 0
        attributes, at = self._attributes(at + 1)
        shape = tag, children, attributes, offset_size
        known = self._by_shape.get(shape)
        if known is None:
            wanted = tag in self._wanted and (tag in self._more or not _is_local(tag, attributes))
            known = self._by_shape[shape] = Abbreviation(*shape, wanted=wanted, number=len(self._by_shape))
            if self._alone:
                known.require_own()
        return known, at

    def _attributes(self, at: int) -> tuple[tuple[tuple[int, int, int], ...], int]:
        data, found = self._data, list[tuple[int, int, int]]()
        while True:
            # Nearly all numbers are of one byte.
            attribute, at = (data[at], at + 1) if data[at] < 0x80 else unsigned(data, at)
            form, at = (data[at], at + 1) if data[at] < 0x80 else unsigned(data, at)
            constant = 0
            if form == Form.IMPLICIT_CONST:
                constant, at = signed(data, at)
            if not attribute and not form:
                return tuple(found), at
            found.append((attribute, form, constant))
            if len(found) > MAX_ATTRIBUTES:
                raise Corrupt("an abbreviation with too many attributes")
