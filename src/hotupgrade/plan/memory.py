"""The contents of a new image while it is being made: sparse, in pages."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import I32, I64, Flags
from hotupgrade.plan.model import Piece, Protection

PAGE = 4096
_TRAP = 0xCC


class ImageMemory:
    """Link-space memory of one build; only pages that were put to use will exist."""

    def __init__(self, build: Build) -> None:
        self._build = build
        self.size = pages_up(build.span)
        self._content = np.zeros(self.size, dtype=np.uint8)
        self._used = np.zeros(self.size // PAGE, dtype=np.bool_)
        self._executable = _pages(build, "executable")
        self._writable = _pages(build, "writable") & ~_relro_pages(build)

    def use(self, low: int, high: int) -> None:
        """Makes the pages of [low, high) present.  A fresh page of code is filled with traps."""
        pages = slice(low // PAGE, -(-high // PAGE))
        if self._used[pages].all():
            return
        fresh = np.flatnonzero(~self._used[pages] & self._executable[pages]) + low // PAGE
        for page in fresh.tolist():
            self._content[page * PAGE : (page + 1) * PAGE] = _TRAP
        self._used[pages] = True

    def put(self, vaddr: int, content: bytes) -> None:
        if content:
            self.use(vaddr, vaddr + len(content))
            self._content[vaddr : vaddr + len(content)] = np.frombuffer(content, dtype=np.uint8)

    def copy(self, low: int, high: int) -> None:
        """The build's own bytes of [low, high)."""
        self.put(low, self._build.read(low, high - low))

    def put_word(self, vaddr: int, value: int) -> None:
        self.put(vaddr, struct.pack("<Q", value & ((1 << 64) - 1)))

    def put_fields(self, positions: I64, values: I32) -> None:
        """4-byte fields in pages that are in use."""
        encoded = values.astype("<i4").view(np.uint8).reshape(-1, 4)
        for place in range(4):
            self._content[positions + place] = encoded[:, place]

    def pieces(self) -> tuple[Piece, ...]:
        filled = self._used & self._content.reshape(-1, PAGE).any(axis=1)
        return tuple(
            Piece(first * PAGE, self._content[first * PAGE : last * PAGE].tobytes())
            for first, last, value in _runs(filled)
            if value
        )

    def protections(self) -> tuple[Protection, ...]:
        """For every page: what is in use as its segment says, the rest read-only."""
        state = (self._used & self._executable) * 2 + (self._used & self._writable) * 1
        return tuple(
            Protection(first * PAGE, (last - first) * PAGE, writable=bool(value & 1), executable=bool(value & 2))
            for first, last, value in _runs(state)
        )


def pages_up(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _pages(build: Build, attribute: str) -> Flags:
    flags = np.zeros(pages_up(build.span) // PAGE, dtype=np.bool_)
    for segment in build.segments:
        if getattr(segment, attribute):
            flags[segment.vaddr // PAGE : -(-(segment.vaddr + segment.memory_size) // PAGE)] = True
    return flags


def _relro_pages(build: Build) -> Flags:
    flags = np.zeros(pages_up(build.span) // PAGE, dtype=np.bool_)
    if build.relro is not None:
        low, high = build.relro
        flags[low // PAGE : high // PAGE] = True
    return flags


def _runs(values: np.ndarray[tuple[int], np.dtype[np.generic]]) -> Iterator[tuple[int, int, int]]:
    """(first, last + 1, value) of each run of equal values."""
    if not len(values):
        return
    edges = np.flatnonzero(values[1:] != values[:-1]) + 1
    bounds = [0, *edges.tolist(), len(values)]
    for first, last in pairwise(bounds):
        yield first, last, int(values[first])
