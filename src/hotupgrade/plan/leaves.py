"""The smallest parts of a variable, by name, as its type says: where each lies, and how its value is written."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from hotupgrade.binary.debug.model import ATOMIC, Debug, Definition

_MOST, _DEPTH, _LONGEST = 4096, 32, 60
_SCALAR = re.compile(r"(int|uint|bool|float)(8|16|32|64)\Z")
_ARRAY = re.compile(r"(?P<element>.*?) \[(?P<count>\d+)\](?P<more>(?:\[\d+\])*)\Z", re.DOTALL)
_CHARACTERS = ("int8", "uint8")
_FLOATS = {32: "<f", 64: "<d"}


@dataclass(frozen=True, slots=True)
class Leaf:
    """``path`` is "" for a variable that has no parts, else ``.field`` or ``[2].field``.

    ``bits`` is the width of a bit-field, which begins ``shift`` bits behind ``offset``; 0 for anything else.
    """

    path: str
    offset: int  # bytes
    size: int  # bytes
    text: str
    shift: int = 0
    bits: int = 0


def leaves(debug: Debug, text: str, file: str) -> list[Leaf]:
    """The parts of a variable of this type in this source file; those that are not understood are left out."""
    found: list[Leaf] = []
    for leaf in _Walk(debug, file).parts("", 0, text, _DEPTH):
        found.append(leaf)
        if len(found) >= _MOST:
            break
    return found


def written(debug: Debug, leaf: Leaf, content: bytes, file: str) -> str:
    """The value of a part, as a person writes it; ``content`` is the whole variable."""
    raw = content[leaf.offset : leaf.offset + leaf.size]
    value = int.from_bytes(raw, "little")
    if leaf.bits:
        value = (value >> leaf.shift) & ((1 << leaf.bits) - 1)
    text = leaf.text.removesuffix(ATOMIC)
    if _ARRAY.match(text):
        return quoted(raw.rstrip(b"\0")) or (raw.hex(" ") if any(raw) else '""')
    definition = _definition(debug, text, file)
    if definition is not None:
        name = next((name for name, number in definition.enumerators if number == value), None)
        return name or str(value)
    scalar = _SCALAR.match(text)
    kind, width = (scalar[1], leaf.bits or int(scalar[2])) if scalar else ("pointer", 64)
    if kind == "bool":
        return "true" if value else "false"
    if kind == "float":
        return repr(struct.unpack(_FLOATS[width], raw)[0])
    if kind == "int":
        return str(value - (1 << width) if value >> (width - 1) else value)
    if kind == "uint":
        return str(value) if value < 1 << 20 else hex(value)
    return hex(value) if value else "NULL"


def quoted(raw: bytes) -> str:
    """A text between quotes, cut if it is long; "" if it is no text."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return ""
    if not text or not all(letter.isprintable() or letter in "\n\t" for letter in text):
        return ""
    text = text.replace("\n", "\\n").replace("\t", "\\t")
    return f'"{text}"' if len(text) <= _LONGEST else f'"{text[:_LONGEST]}…"'


def _definition(debug: Debug, text: str, file: str) -> Definition | None:
    """What a text that is just a name stands for in a file."""
    if not (text.startswith("`") and text.endswith("`")):
        return None
    known = debug.types.get(text[1:-1], [])
    place = debug.files.index(file) if file in debug.files else -1
    index = next((index for index, files in known if place in files), known[0][0] if len(known) == 1 else -1)
    return debug.definitions[index] if index >= 0 else None


class _Walk:
    def __init__(self, debug: Debug, file: str) -> None:
        self._debug = debug
        self._file = file

    def parts(self, path: str, offset: int, text: str, depth: int) -> Iterator[Leaf]:
        text = text.removesuffix(ATOMIC)
        size = self._size(text, depth)
        if size is None or not depth:
            return
        if (array := _ARRAY.match(text)) is not None:
            yield from self._elements(path, offset, array, depth)
            return
        definition = _definition(self._debug, text, self._file)
        if definition is None or definition.kind == "enum":
            yield Leaf(path, offset, size, text)
        elif definition.kind == "struct":
            for field in definition.fields:
                name = f"{path}.{field.name}" if field.name else path
                if field.bits:
                    width = -(-(field.bit % 8 + field.bits) // 8)
                    yield Leaf(name, offset + field.bit // 8, width, field.text, field.bit % 8, field.bits)
                elif field.bit >= 0:
                    yield from self.parts(name, offset + field.bit // 8, field.text, depth - 1)

    def _elements(self, path: str, offset: int, array: re.Match[str], depth: int) -> Iterator[Leaf]:
        text = array["element"] + (f" {array['more']}" if array["more"] else "")
        if text in _CHARACTERS:
            yield Leaf(path, offset, int(array["count"]), array[0])
        elif size := self._size(text, depth - 1):
            for index in range(min(int(array["count"]), _MOST)):
                yield from self.parts(f"{path}[{index}]", offset + index * size, text, depth - 1)

    def _size(self, text: str, depth: int) -> int | None:
        """Bytes; None if it is not known."""
        text = text.removesuffix(ATOMIC)
        if not depth:
            return None
        if (array := _ARRAY.match(text)) is not None:
            inner = self._size(array["element"] + (f" {array['more']}" if array["more"] else ""), depth - 1)
            return None if inner is None else inner * int(array["count"])
        if (scalar := _SCALAR.match(text)) is not None:
            return int(scalar[2]) // 8
        if text.endswith(" *"):
            return 8
        definition = _definition(self._debug, text, self._file)
        return definition.size if definition is not None and definition.size >= 0 else None
