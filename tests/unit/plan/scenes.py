"""Processes that exist only as bytes: a build loaded by a few lines of Python."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from hotupgrade.binary.build import Build
from hotupgrade.binary.relocations import Relocation
from hotupgrade.plan.rows import Rows

BASE = 0x7F0000000000


class FakeScene:
    """One module at ``base``, relocated as a loader would do it; ``externals`` are other modules' symbols.

    With ``lazy`` the slots of the procedure linkage table still lead back into it.
    """

    def __init__(
        self, build: Build, base: int = BASE, externals: Mapping[str, int] | None = None, *, lazy: bool = False
    ) -> None:
        self.build = build
        self.base = base
        self.externals = dict(externals or {})
        self.memory = bytearray(build.read(0, build.span))
        self.extra: dict[int, bytearray] = {}
        self.resolved: list[str] = []
        self.tls_module: int | None = 5 if build.tls is not None else None
        self.tls_block: int | None = -0x200 if build.tls is not None else None
        rows = Rows(build)
        relocations = build.dynamic_relocations
        for vaddr, kind, number, addend in zip(
            relocations.vaddr.tolist(),
            relocations.type.tolist(),
            relocations.symbol.tolist(),
            relocations.addend.tolist(),
            strict=True,
        ):
            symbol = build.dynamic_symbols[number]
            row = rows.of_symbol(number) if number else -1
            own = base + int(build.entities.address[row]) if row >= 0 else None
            bound = self.externals.get(symbol.name, own or 0)
            offset = int(build.entities.address[row]) if row >= 0 else 0
            if kind == Relocation.JUMP_SLOT and lazy:
                value = base + int.from_bytes(build.read(vaddr, 8), "little")
            elif kind == Relocation.RELATIVE:
                value = base + addend
            elif kind in (Relocation.GLOB_DAT, Relocation.JUMP_SLOT, Relocation.ABS64):
                value = bound + addend if bound else 0
            elif kind == Relocation.DTPMOD64:
                value = self.tls_module or 0
            elif kind == Relocation.DTPOFF64:
                value = offset + addend
            elif kind == Relocation.TPOFF64:
                value = (self.tls_block or 0) + offset + addend
            else:
                continue
            struct.pack_into("<q" if value < 0 else "<Q", self.memory, vaddr, value)

    def map(self, address: int, content: bytes) -> None:
        """More memory: an image that was placed later."""
        self.extra[address] = bytearray(content)

    def read(self, address: int, size: int) -> bytes:
        for start, content in [(self.base, self.memory), *self.extra.items()]:
            if start <= address < start + len(content):
                found = bytes(content[address - start : address - start + size])
                return found + bytes(size - len(found))
        raise AssertionError(f"{size} bytes at {address:#x} are not mapped")

    def write(self, address: int, content: bytes) -> None:
        for start, memory in [(self.base, self.memory), *self.extra.items()]:
            if start <= address < start + len(memory):
                memory[address - start : address - start + len(content)] = content
                return
        raise AssertionError(f"{address:#x} is not mapped")

    def resolve(self, symbol: str, version: str) -> int | None:  # noqa: ARG002
        self.resolved.append(symbol)
        if symbol in self.externals:
            return self.externals[symbol]
        row = self.build.by_name.get(symbol)
        return None if row is None else self.base + int(self.build.entities.address[row])
