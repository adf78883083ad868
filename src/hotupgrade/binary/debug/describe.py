"""Entries that are types, as texts and definitions (see :mod:`hotupgrade.binary.debug.model`)."""

from __future__ import annotations

import hashlib

from hotupgrade.binary.debug.abbreviations import unsigned
from hotupgrade.binary.debug.constants import At, Encoding, Op, Tag
from hotupgrade.binary.debug.model import ATOMIC, SHORTENED, Definition, Field, names_in
from hotupgrade.binary.debug.sections import Corrupt
from hotupgrade.binary.debug.units import Entry

MAX_TEXT = 1000  # a longer one is shortened, with a digest for what is left out
MAX_SCOPES = 64
MAX_FIELDS = 1 << 16

_STRUCTURES = {Tag.STRUCTURE: "struct", Tag.CLASS: "struct", Tag.UNION: "union"}
_KINDS = {**_STRUCTURES, Tag.ENUMERATION: "enum"}
_TRANSPARENT = frozenset((Tag.CONST, Tag.VOLATILE, Tag.RESTRICT, Tag.TYPEDEF))
_SUFFIXES = {Tag.POINTER: " *", Tag.REFERENCE: " &", Tag.RVALUE_REFERENCE: " &&"}
_ENCODINGS = {
    Encoding.BOOLEAN: "bool",
    Encoding.COMPLEX_FLOAT: "complex",
    Encoding.FLOAT: "float",
    Encoding.SIGNED: "int",
    Encoding.SIGNED_CHAR: "int",
    Encoding.UNSIGNED: "uint",
    Encoding.UNSIGNED_CHAR: "uint",
}
_IN_PROGRESS = "..."


def text_of(entry: Entry | None) -> str:
    """The text of a type; nothing is ``void``."""
    if entry is None:
        return "void"
    if entry.text is None:
        entry.text = _IN_PROGRESS  # an unnamed type that holds itself: no compiler of C makes that
        entry.keep_text(_shortened(_text(entry)))
    return entry.text


def type_of(entry: Entry) -> str:
    """The text of the type that an entry has."""
    return entry.type_text() or text_of(entry.entry(At.TYPE))


def _shortened(text: str) -> str:
    if len(text) <= MAX_TEXT:
        return text
    digest = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
    # The names stay, so that what it leads to is still known.
    names = "".join(f" `{name}`" for name in dict.fromkeys(names_in(text)))
    return f"{text[:40].replace('`', '')}{SHORTENED}{digest}{names[:MAX_TEXT]}"


def _text(entry: Entry) -> str:
    tag = entry.tag
    if tag in _TRANSPARENT:
        return type_of(entry)
    if tag in _KINDS:
        name = name_of(entry)
        return f"`{name}`" if name else _unnamed(entry)
    if tag == Tag.BASE:
        return _base(entry)
    if tag in _SUFFIXES:
        return type_of(entry) + _SUFFIXES[tag]
    if tag == Tag.ARRAY:
        return _array(entry)
    if tag == Tag.ATOMIC:
        return type_of(entry) + ATOMIC
    if tag == Tag.SUBROUTINE_TYPE:
        return _prototype(entry)
    if tag == Tag.POINTER_TO_MEMBER:
        return f"{type_of(entry)} ::*"
    if tag == Tag.SUBRANGE:
        return type_of(entry)
    return f"{entry.name}<{tag:#x}:{entry.number(At.BYTE_SIZE) or 0}>"


def _base(entry: Entry) -> str:
    size, encoding = entry.number(At.BYTE_SIZE) or 0, entry.number(At.ENCODING) or 0
    kind = _ENCODINGS.get(encoding)
    if kind is None or (kind in ("float", "complex") and size >= 16):
        return f"{entry.name}:{8 * size}"  # several formats have this size
    return f"{kind}{8 * size}"


def _array(entry: Entry) -> str:
    lengths = []
    for child in entry.children:
        if child.tag == Tag.SUBRANGE:
            count, bound = child.number(At.COUNT), child.number(At.UPPER_BOUND)
            if count is None and bound is not None:
                count = bound + 1
            lengths.append(str(count) if count and 0 < count < 1 << 63 else "")
    word = "vector" if At.GNU_VECTOR in entry.values else ""
    return f"{type_of(entry)} {word}" + "".join(f"[{length}]" for length in lengths)


def _unnamed(entry: Entry) -> str:
    found = define(entry)
    if found.kind == "enum":
        return f"enum {found.text}"  # its enumerators are looked at one by one
    parts = (f"{f.name}@{f.bit}{f':{f.bits}' if f.bits else ''} {f.text}" for f in found.fields)
    return f"{found.kind} {{{'; '.join(parts)}}} {found.size} bytes"


def prototype(entry: Entry) -> str:
    """The text of a function, from its own entry."""
    if entry.text is None:
        entry.keep_text(_prototype(entry))
    assert entry.text is not None
    return entry.text


def _prototype(entry: Entry) -> str:
    parameters = [type_of(child) if child.tag == Tag.PARAMETER else "..." for child in entry.parameters()]
    return f"({', '.join(parameters)}) -> {type_of(entry)}"


# Names


def name_of(entry: Entry) -> str:
    """``struct conn``; the typedef's name for a type without one of its own; "" if it has none at all."""
    name = _qualified(entry)
    # What only a typedef names has no tag: one says "conn_t", not "struct conn_t".
    return f"{_KINDS[entry.tag]} {name}" if name and _declaration(entry).name else name


def _qualified(entry: Entry) -> str:
    entry = _declaration(entry)
    name = entry.name or entry.alias
    return scope_of(entry) + name if name else ""


def _declaration(entry: Entry) -> Entry:
    """Where a type is declared, which is what says its scope and sometimes its name."""
    if entry.abbreviation.own_type:
        return entry
    for attribute in (At.SPECIFICATION, At.SIGNATURE):
        other = entry.entry(attribute)
        if other is not None and other is not entry and other.tag in _KINDS and (other.name or other.alias):
            following = other.entry(At.SPECIFICATION)
            return other if following is None or following.tag not in _KINDS else following
    return entry


def scope_of(entry: Entry) -> str:
    """The namespaces, classes and functions that an entry is in."""
    parent = entry.parent
    if parent is None or parent.parent is None:
        return ""  # what a unit holds itself, nearly all
    parts: list[str] = []
    while parent is not None:
        if parent.tag == Tag.NAMESPACE:
            parts.append((parent.name or "(anonymous namespace)") + "::")
        elif parent.tag in _KINDS:
            declaration = _declaration(parent)
            parts.append((declaration.name or declaration.alias or "(unnamed)") + "::")
            parent = declaration
        elif parent.tag == Tag.SUBPROGRAM:
            parts.append(function_name(parent) + "()::")
        if len(parts) > MAX_SCOPES:
            raise Corrupt("a scope without an end")
        parent = parent.parent
    return "".join(reversed(parts))


def origin(entry: Entry) -> Entry:
    """The entry that says what this one leaves out: its abstract instance, or its declaration."""
    for _ in range(8):
        other = entry.entry(At.ABSTRACT_ORIGIN) or entry.entry(At.SPECIFICATION)
        if other is None:
            return entry
        entry = other
    raise Corrupt("an origin without an end")


def function_name(entry: Entry) -> str:
    """As the linker knows it."""
    for _ in range(8):
        if name := entry.string(At.LINKAGE_NAME):
            return name
        other = entry.entry(At.ABSTRACT_ORIGIN) or entry.entry(At.SPECIFICATION)
        if other is None:
            return entry.name
        entry = other
    raise Corrupt("an origin without an end")


# Definitions


def is_definition(entry: Entry) -> bool:
    return entry.tag in _KINDS and At.DECLARATION not in entry.values and At.SIGNATURE not in entry.values


def define(entry: Entry) -> Definition:
    """What a structure, union or enumeration holds."""
    size = entry.number(At.BYTE_SIZE)
    size = -1 if size is None else size
    alignment = entry.number(At.ALIGNMENT) or 0
    if entry.tag == Tag.ENUMERATION:
        return Definition("enum", size, alignment, enumerators=enumerators_of(entry), text=_stored_as(entry, size))
    fields: list[Field] = []
    _add_fields(fields, entry, "", 0, _Room(MAX_FIELDS))
    return Definition(_STRUCTURES[entry.tag], size, alignment, tuple(fields))


def enumerators_of(entry: Entry) -> tuple[tuple[str, int], ...]:
    # Compilers write negative ones as such.
    enumerators = [child for child in entry.children if child.tag == Tag.ENUMERATOR]
    return tuple([(child.name, child.number(At.CONST_VALUE) or 0) for child in enumerators])


def _stored_as(entry: Entry, size: int) -> str:
    if At.TYPE in entry.values:
        return type_of(entry)
    encoding = entry.number(At.ENCODING)
    return f"{_ENCODINGS.get(encoding or 0, 'int')}{8 * size}"


class _Room:
    """How many members may yet be looked at: those of structures in structures multiply, even where they are empty."""

    def __init__(self, size: int) -> None:
        self._left = size

    def take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise Corrupt("a structure with too many members")


def _add_fields(fields: list[Field], entry: Entry, prefix: str, start: int, room: _Room) -> None:
    room.take(len(entry.children))
    for child in entry.children:
        tag, values = child.tag, child.values
        if tag == Tag.MEMBER:
            if At.EXTERNAL in values or At.DECLARATION in values:
                continue  # static: it has a place of its own
            bit, width = _place(child)
            kind = child.entry(At.TYPE)
            inner = _unnamed_structure(kind)
            if inner is not None and bit >= 0 and not width:
                name = child.name
                _add_fields(fields, inner, f"{prefix}{name}." if name else prefix, start + bit, room)
                continue
            text = text_of(kind)
            if At.ALIGNMENT in values:
                text += f" aligned({child.number(At.ALIGNMENT)})"
            fields.append(Field(prefix + child.name, start + bit if bit >= 0 else bit, width, text))
        elif tag == Tag.INHERITANCE:
            bit, _ = _place(child)
            text = type_of(child)
            fields.append(Field(f"{prefix}<base {text.strip('`')}>", start + bit if bit >= 0 else bit, 0, text))
        elif tag == Tag.SUBPROGRAM and At.VTABLE_ELEM_LOCATION in values:
            slot = values[At.VTABLE_ELEM_LOCATION]
            number = unsigned(slot, 1)[0] if isinstance(slot, bytes) and slot[:1] == bytes([Op.CONSTU]) else slot
            fields.append(Field(f"{prefix}<virtual {number!s}>", 0, 0, function_name(child)))


def _unnamed_structure(kind: Entry | None) -> Entry | None:
    """The structure that a member's type is, if it has no name."""
    for _ in range(8):
        if kind is None or kind.tag not in (Tag.CONST, Tag.VOLATILE):
            break
        kind = kind.entry(At.TYPE)
    return kind if kind is not None and kind.tag in _STRUCTURES and not name_of(kind) else None


def _place(member: Entry) -> tuple[int, int]:
    """First bit, and width if it is a bit-field.  A place that is computed is -1."""
    values = member.values
    location = values.get(At.DATA_MEMBER_LOCATION, 0)
    if isinstance(location, int) and At.BIT_SIZE not in values:
        return 8 * location, 0  # nearly all
    width = member.number(At.BIT_SIZE) or 0
    if At.DATA_BIT_OFFSET in values:
        return member.number(At.DATA_BIT_OFFSET) or 0, width
    if isinstance(location, bytes):
        if location[:1] != bytes([Op.PLUS_UCONST]):
            return -1, width
        location = unsigned(location, 1)[0]
    bit = 8 * int(location)
    if At.BIT_OFFSET in values:
        # DWARF 4 counts from the most significant bit of the storage unit.
        storage = member.number(At.BYTE_SIZE) or _size_of(member.entry(At.TYPE))
        bit += 8 * storage - (member.signed(At.BIT_OFFSET) or 0) - width
    return bit, width


def _size_of(entry: Entry | None) -> int:
    for _ in range(16):
        if entry is None:
            break
        size = entry.number(At.BYTE_SIZE)
        if size is not None:
            return size
        entry = entry.entry(At.TYPE)
    return 0
