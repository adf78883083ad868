"""Debug information made by hand: units of entries, encoded as DWARF 5."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hotupgrade.binary.debug.constants import Form
from hotupgrade.binary.model import Section

_PACKED = {
    Form.DATA1: "<B", Form.DATA2: "<H", Form.DATA4: "<I", Form.DATA8: "<Q", Form.REF1: "<B", Form.REF4: "<I",
    Form.STRP: "<I", Form.SEC_OFFSET: "<I", Form.ADDR: "<Q", Form.FLAG: "<B",
}  # fmt: skip


@dataclass(eq=False)
class Die:
    """An entry: attributes as (attribute, form, value); a reference's value is another entry of the unit."""

    tag: int
    attributes: list[tuple[int, int, Any]] = field(default_factory=list)
    children: list[Die] = field(default_factory=list)


def leb(value: int, *, signed: bool = False) -> bytes:
    found = bytearray()
    while True:
        byte = value & 0x7F
        value >>= 7
        if value == (-(byte >> 6 & 1) if signed else 0):
            return bytes([*found, byte])
        found.append(byte | 0x80)


class Writer:
    """Units that share the tables of names; each has its own table of abbreviations."""

    def __init__(self) -> None:
        self.info = bytearray()
        self.abbreviations = bytearray()
        self.strings = bytearray(b"\0")
        self._known: dict[str, int] = {}

    def add(self, root: Die) -> None:
        codes: dict[bytes, int] = {}
        offsets: dict[int, int] = {}
        fixes: list[tuple[int, Die]] = []
        body = bytearray(struct.pack("<HBBI", 5, 1, 8, len(self.abbreviations)))
        self._write(body, root, codes, offsets, fixes)
        for place, target in fixes:
            struct.pack_into("<I", body, place, offsets[id(target)])
        self.info += struct.pack("<I", len(body)) + body
        for content, code in codes.items():
            self.abbreviations += leb(code) + content
        self.abbreviations += b"\0"

    def file(self) -> tuple[bytes, dict[str, Section]]:
        """A file that is nothing but debug sections."""
        data, where = b"", {}
        contents = {"info": self.info, "abbrev": self.abbreviations, "str": self.strings}
        for name, content in contents.items():
            where[f".debug_{name}"] = Section(f".debug_{name}", 0, len(content), len(data), 1, 0, 0)
            data += bytes(content)
        return data, where

    def _write(
        self,
        body: bytearray,
        die: Die,
        codes: dict[bytes, int],
        offsets: dict[int, int],
        fixes: list[tuple[int, Die]],
    ) -> None:
        offsets[id(die)] = 4 + len(body)
        body += leb(codes.setdefault(self._shape(die), len(codes) + 1))
        for _, form, value in die.attributes:
            if form == Form.REF4 and isinstance(value, Die):
                fixes.append((len(body), value))
                body += bytes(4)
            else:
                body += self._value(form, value)
        if die.children:
            for child in die.children:
                self._write(body, child, codes, offsets, fixes)
            body += b"\0"

    @staticmethod
    def _shape(die: Die) -> bytes:
        found = leb(die.tag) + bytes([bool(die.children)])
        for attribute, form, value in die.attributes:
            found += leb(attribute) + leb(form)
            if form == Form.IMPLICIT_CONST:
                found += leb(value, signed=True)
        return found + b"\0\0"

    def _value(self, form: int, value: Any) -> bytes:
        if form in (Form.FLAG_PRESENT, Form.IMPLICIT_CONST):
            return b""
        if form == Form.STRING:
            return value.encode() + b"\0"
        if form == Form.STRP:
            return struct.pack("<I", self._string(value))
        if form in (Form.SDATA, Form.UDATA):
            return leb(value, signed=form == Form.SDATA)
        if form == Form.EXPRLOC:
            return leb(len(value)) + value
        return struct.pack(_PACKED[form], value)

    def _string(self, text: str) -> int:
        if text not in self._known:
            self._known[text] = len(self.strings)
            self.strings += text.encode() + b"\0"
        return self._known[text]


def written(roots: Sequence[Die]) -> tuple[bytes, dict[str, Section]]:
    writer = Writer()
    for root in roots:
        writer.add(root)
    return writer.file()
