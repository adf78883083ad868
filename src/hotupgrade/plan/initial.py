"""The contents that a build gives an object at start, in words."""

from __future__ import annotations

import struct

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import Kind
from hotupgrade.plan.rows import Rows
from hotupgrade.plan.targets import Targets

_MOST_PLACES, _MOST_TEXT = 4, 60
_NUMBERS = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}


class Initial:
    """Reads objects of one build."""

    def __init__(self, build: Build) -> None:
        self.build = build
        self._targets = Targets(build, Rows(build))

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
    """What differs between the contents of an object of one size in two builds."""
    was, becomes = old.content(old_row), new.content(new_row)
    was_words, words = old.words(old_row), new.words(new_row)
    if not was_words and not words:
        first_value, second_value = _value(was), _value(becomes)
        if first_value is not None and second_value is not None:
            return f"{first_value} → {second_value}"
    places = []
    for offset in range(0, len(was), 8):
        first = was_words.get(offset) or _number(was[offset : offset + 8])
        second = words.get(offset) or _number(becomes[offset : offset + 8])
        if first != second:
            places.append(f"at +{offset} {first} → {second}" if len(was) > 8 else f"{first} → {second}")
    more = f" and in {len(places) - _MOST_PLACES} more places" if len(places) > _MOST_PLACES else ""
    return ", ".join(places[:_MOST_PLACES]) + more


def text_at(build: Build, vaddr: int) -> str:
    """The C string at an address, quoted and cut; "" if there is none."""
    section = build.section_at(vaddr)
    if section is None:
        return ""
    raw = build.read(vaddr, min(4096, section.vaddr + section.size - vaddr))
    return _quoted(raw.split(b"\0", 1)[0]) if b"\0" in raw else ""


def _value(content: bytes) -> str | None:
    """A number or a text; None for anything else."""
    if len(content) in _NUMBERS:
        return _number(content)
    text = content.rstrip(b"\0")
    if b"\0" in text or len(text) == len(content):
        return None
    return _quoted(text) or ('""' if not text else None)


def _number(content: bytes) -> str:
    """As a person writes it: small negative ones with their sign, large ones in hexadecimal."""
    if len(content) not in _NUMBERS:
        return content.hex(" ")
    value: int = struct.unpack(_NUMBERS[len(content)], content)[0]
    if (negative := value - (1 << 8 * len(content))) >= -4096 and len(content) > 1:
        return str(negative)
    return str(value) if value < 1 << 20 or len(content) < 4 else hex(value)


def _quoted(raw: bytes) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return ""
    if not text or not all(letter.isprintable() or letter in "\n\t" for letter in text):
        return ""
    text = text.replace("\n", "\\n").replace("\t", "\\t")
    return f'"{text}"' if len(text) <= _MOST_TEXT else f'"{text[:_MOST_TEXT]}…"'
