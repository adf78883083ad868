"""Working memory in the target for the time of one upgrade: tables that the agent reads.

It begins with a recovery record, so that a later run of the tool can put back what a killed one left: the protections
of mappings that were opened for writing.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from hotupgrade.errors import HotUpgradeError, NotNow
from hotupgrade.target.agent import (
    MAP_PRIVATE,
    NAME,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    SYS_CLOSE,
    SYS_MMAP,
    SYS_MPROTECT,
    SYS_MUNMAP,
    Agent,
    Operation,
    system_call,
)
from hotupgrade.target.maps import PAGE, Mapping
from hotupgrade.target.process import Process

SCRATCH_NAME = f"{NAME}-scratch"
_MAGIC = 0x3168637461726373  # "scratch1"
_ENTRY = struct.Struct("<QQQ")
_MOST_ENTRIES = (PAGE - 16) // _ENTRY.size


class Scratch:
    """Memory mapped on entry and given back on exit; a bump allocator in between."""

    def __init__(self, agent: Agent, size: int) -> None:
        self._agent = agent
        self._size = -(-size // PAGE) * PAGE + PAGE
        self._base = self._next = 0

    def __enter__(self) -> Scratch:
        descriptor = self._agent.create_file(SCRATCH_NAME, [(0, struct.pack("<QQ", _MAGIC, 0))], self._size)
        operations = [
            system_call(SYS_MMAP, 0, self._size, PROT_READ | PROT_WRITE, MAP_PRIVATE, descriptor, 0, fatal=False),
            system_call(SYS_CLOSE, descriptor, fatal=False),
        ]
        results = self._agent.run(operations)
        self._agent.check([system_call(SYS_MMAP)], results[:1])
        self._base = results[0]
        self._next = self._base + PAGE
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._agent.run([system_call(SYS_MUNMAP, self._base, self._size, fatal=False)])
        except NotNow:
            return  # the process is gone, or the next run finds it by its name

    def reserve(self, size: int) -> int:
        """The address of ``size`` bytes, aligned to a cache line."""
        at = -(-self._next // 64) * 64
        if at + size > self._base + self._size:
            raise HotUpgradeError(f"the working memory of {self._size} bytes is too small")
        self._next = at + size
        return at

    def put(self, content: bytes) -> int:
        """Store bytes; returns their address."""
        at = self.reserve(len(content))
        if content:
            self._agent.process.write(at, content)
        return at

    def open_for_writing(self, mappings: Sequence[Mapping]) -> tuple[list[Operation], list[Operation]]:
        """Operations that make mappings writable, and those that put their protection back; recorded for recovery."""
        entries = [(m.start, m.size, protection(m)) for m in mappings if not m.writable]
        if len(entries) > _MOST_ENTRIES:
            raise HotUpgradeError(f"{len(entries)} mappings are too many to be opened")
        process = self._agent.process
        process.write(self._base + 16, b"".join(_ENTRY.pack(*entry) for entry in entries))
        process.write(self._base, struct.pack("<QQ", _MAGIC, len(entries)))
        opening = [system_call(SYS_MPROTECT, start, size, was | PROT_WRITE) for start, size, was in entries]
        return opening, _closing(entries)


def protection(mapping: Mapping) -> int:
    return (
        (PROT_READ if mapping.readable else 0)
        | (PROT_WRITE if mapping.writable else 0)
        | (PROT_EXEC if mapping.executable else 0)
    )


def _closing(entries: Sequence[tuple[int, int, int]]) -> list[Operation]:
    return [system_call(SYS_MPROTECT, start, size, was, fatal=False) for start, size, was in entries]


def leftovers(process: Process) -> list[Operation]:
    """What puts right the working memory that a killed tool left behind."""
    operations: list[Operation] = []
    for mapping in process.maps():
        if mapping.path != f"/memfd:{SCRATCH_NAME} (deleted)":
            continue
        magic, count = struct.unpack("<QQ", process.read(mapping.start, 16))
        if magic == _MAGIC and count <= _MOST_ENTRIES:
            raw = process.read(mapping.start + 16, count * _ENTRY.size)
            known = {(m.start, m.end) for m in process.maps()}
            entries = [
                (start, size, was) for start, size, was in _ENTRY.iter_unpack(raw) if (start, start + size) in known
            ]
            operations += _closing(entries)
        operations.append(system_call(SYS_MUNMAP, mapping.start, mapping.size, fatal=False))
    return operations
