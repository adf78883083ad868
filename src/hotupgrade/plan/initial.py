"""The contents that a build gives an object at start, in words."""

from __future__ import annotations

import struct
from functools import cached_property

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.debug.model import Variable
from hotupgrade.binary.model import Kind
from hotupgrade.plan.leaves import leaves, quoted, written
from hotupgrade.plan.rows import Rows
from hotupgrade.plan.scopes import variables_of
from hotupgrade.plan.targets import Targets

_MOST_PLACES = 4
_NUMBERS = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}


class Initial:
    """Reads objects of one build."""

    def __init__(self, build: Build) -> None:
        self.build = build
        self._targets = Targets(build, Rows(build))

    @cached_property
    def variables(self) -> dict[int, Variable]:
        """What debug information says of the objects, by row; nothing of parts, which are not laid out as it says."""
        found = variables_of(self.build).items()
        return {row: variables[0] for row, variables in found if not variables[0].part}

    def words(self, row: int) -> dict[int, str]:
        """Offset → what the pointer there names, for the words of an object that the loader fills in."""
        if int(self.build.entities.kind[row]) == Kind.TLS:
            return {}
        low = int(self.build.entities.address[row])
        targets = self._targets
        found = {}
        for index in targets.within(low, low + int(self.build.entities.size[row])):
            symbol = self.build.dynamic_symbols[int(targets.number[index])].name if targets.number[index] else ""
            target, addend = int(targets.row[index]), int(targets.addend[index])
            if target >= 0:
                name = self.build.entities.names[target] + (f"+{addend}" if addend else "")
            elif symbol:
                name = symbol
            else:
                name = text_at(self.build, int(targets.plain_addend[index])) or "unnamed data"
            found[int(targets.vaddr[index]) - low] = name
        return found

    def members(self, function: int) -> list[str]:
        """Where tables hold the address of a function: ``netdev_linux_class.construct``, or ``+16`` for the field."""
        found = []
        for index in np.flatnonzero((self._targets.row == function) & (self._targets.container >= 0)).tolist():
            row, offset = int(self._targets.container[index]), int(self._targets.offset[index])
            variable = self.variables.get(row)
            parts = leaves(self.build.debug, variable.text, variable.file) if variable else []
            path = next((leaf.path for leaf in parts if leaf.offset == offset), f"+{offset}")
            found.append(self.build.entities.names[row] + path)
        return found

    def content(self, row: int) -> bytes:
        """The bytes of an object or of a thread-local."""
        entities = self.build.entities
        low, size = int(entities.address[row]), int(entities.size[row])
        if int(entities.kind[row]) != Kind.TLS:
            return self.build.read(low, size)
        block = self.build.tls
        stored = max(0, min(size, block.file_size - low)) if block else 0
        return (self.build.read(block.vaddr + low, stored) if block else b"") + bytes(size - stored)


def difference(old: Initial, old_row: int, new: Initial, new_row: int) -> str:
    """What differs between the contents of an object of one size in two builds, by field where types are known."""
    was, becomes = old.content(old_row), new.content(new_row)
    was_words, words = old.words(old_row), new.words(new_row)
    contents = (was, was_words), (becomes, words)
    found, understood = _by_field(old, new, new_row, *contents)
    if not understood and not was_words and not words and len(was) not in _NUMBERS:
        first_text, second_text = _text(was), _text(becomes)
        if first_text is not None and second_text is not None:
            return f"{first_text} → {second_text}"
    found += _by_word(*contents, understood)
    places = [f"{path.removeprefix('.')} {first} → {second}".lstrip() for path, first, second in found]
    more = f" and in {len(places) - _MOST_PLACES} more places" if len(places) > _MOST_PLACES else ""
    return ", ".join(places[:_MOST_PLACES]) + more


#: Contents, and what the pointers among them name.
_Contents = tuple[bytes, dict[int, str]]


def _by_field(
    old: Initial, new: Initial, row: int, was: _Contents, becomes: _Contents
) -> tuple[list[tuple[str, str, str]], set[int]]:
    """(path, old value, new value) of each field that differs, and the bytes whose types are known."""
    found: list[tuple[str, str, str]] = []
    understood: set[int] = set()
    variable = new.variables.get(row)
    if variable is None:
        return found, understood
    for leaf in leaves(new.build.debug, variable.text, variable.file):
        places = range(leaf.offset, leaf.offset + leaf.size)
        if places.stop > len(becomes[0]) or (not leaf.bits and understood.issuperset(places)):
            continue  # another member of a union says it already
        understood.update(places)
        first, second = (
            words.get(leaf.offset) or written(side.build.debug, leaf, content, variable.file)
            for side, (content, words) in ((old, was), (new, becomes))
        )
        if first != second:
            found.append((leaf.path, first, second))
    return found, understood


def _by_word(was: _Contents, becomes: _Contents, understood: set[int]) -> list[tuple[str, str, str]]:
    """The same without types."""
    found = []
    for offset in range(0, len(was[0]), 8):
        places = range(offset, min(offset + 8, len(was[0])))
        if understood and all(i in understood or was[0][i] == becomes[0][i] for i in places):
            continue
        first = was[1].get(offset) or _number(was[0][offset : offset + 8])
        second = becomes[1].get(offset) or _number(becomes[0][offset : offset + 8])
        if first != second:
            found.append((f"at +{offset}" if len(was[0]) > 8 else "", first, second))
    return found


def text_at(build: Build, vaddr: int) -> str:
    """The C string at an address, quoted and cut; "" if there is none."""
    section = build.section_at(vaddr)
    if section is None:
        return ""
    raw = build.read(vaddr, min(4096, section.vaddr + section.size - vaddr))
    return quoted(raw.split(b"\0", 1)[0]) if b"\0" in raw else ""


def _text(content: bytes) -> str | None:
    """What fills an array of characters; None for anything else."""
    text = content.rstrip(b"\0")
    if b"\0" in text or len(text) == len(content):
        return None
    return quoted(text) or ('""' if not text else None)


def _number(content: bytes) -> str:
    """As a person writes it: small negative ones with their sign, large ones in hexadecimal."""
    if len(content) not in _NUMBERS:
        return content.hex(" ")
    value: int = struct.unpack(_NUMBERS[len(content)], content)[0]
    if (negative := value - (1 << 8 * len(content))) >= -4096 and len(content) > 1:
        return str(negative)
    return str(value) if value < 1 << 20 or len(content) < 4 else hex(value)
