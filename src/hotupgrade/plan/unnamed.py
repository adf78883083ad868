"""Unnamed read-only data: strings, floating constants, jump tables.  They have no size, so it must be inferred."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.plan.targets import Targets

_LONGEST = 1 << 20


class Unnamed:
    """The unnamed data of one build."""

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self._build = targets.build
        self._bounds = targets.build.boundaries
        self._tables = {table.vaddr: table.vaddr + 4 * table.count for table in targets.build.jump_tables}
        self._strings: dict[int, bytes | None] = {}

    def end(self, vaddr: int) -> int:
        """Where the item at ``vaddr`` ends, at the latest: behind its first NUL, or where the next one begins.

        Of the two, the later: the tail of a merged string may be an item of its own, and other data contain zeros.
        """
        bound = max(self._bound_after(vaddr), self._tables.get(vaddr, 0))
        last = int(self._bounds[-1]) if len(self._bounds) else bound
        return max(bound, self._text_end(vaddr, last))

    def _text_end(self, vaddr: int, last: int) -> int:
        """Behind the first NUL; ``last`` if there is none before that; ``vaddr`` if it is too far away for a text."""
        at, step = vaddr, 256
        while at < last and step <= _LONGEST:
            content = self._build.read(at, min(step, last - at))
            terminator = content.find(b"\0")
            if terminator >= 0:
                return at + terminator + 1
            at += len(content)
            step *= 4
        return last if at >= last else vaddr

    def string(self, vaddr: int) -> bytes | None:
        """The text at ``vaddr`` without its NUL; None where it does not look like one (a wide string does not)."""
        if vaddr not in self._strings:
            self._strings[vaddr] = self._read_string(vaddr)
        return self._strings[vaddr]

    def holds_pointers(self, vaddr: int) -> bool:
        return len(self._targets.within(vaddr, self.end(vaddr))) > 0

    def content(self, vaddr: int) -> bytes:
        return self._build.read(vaddr, self.end(vaddr) - vaddr)

    def _read_string(self, vaddr: int) -> bytes | None:
        for chunk in _growing(self._build, vaddr):
            terminator = chunk.find(b"\0")
            if terminator >= 0:
                text = chunk[:terminator]
                return text if _is_text(text) and self._is_narrow(vaddr, terminator) else None
        return None

    def _is_narrow(self, vaddr: int, length: int) -> bool:
        """A single letter may be the first of a wide string, unless something else is known to begin behind its NUL."""
        return length > 1 or (length == 1 and self._bound_after(vaddr) == vaddr + 2)

    def _bound_after(self, vaddr: int) -> int:
        index = int(np.searchsorted(self._bounds, vaddr, side="right"))
        return int(self._bounds[index]) if index < len(self._bounds) else vaddr


def equal(ours: Unnamed, our_vaddr: int, theirs: Unnamed, their_vaddr: int) -> bool:
    """Whether two items say the same.  In doubt (they are no strings, and their sizes are guesses) they do not."""
    if ours.holds_pointers(our_vaddr) or theirs.holds_pointers(their_vaddr):
        return False  # what they hold is not in the file
    text = ours.string(our_vaddr)
    if text is not None:
        return text == theirs.string(their_vaddr)
    return ours.content(our_vaddr) == theirs.content(their_vaddr)


def _growing(build: Build, vaddr: int) -> Iterator[bytes]:
    size = 128
    while True:
        size = min(size, build.span - vaddr)
        yield build.read(vaddr, size)
        if size in (build.span - vaddr, _LONGEST):
            return
        size = min(4 * size, _LONGEST)


def _is_text(text: bytes) -> bool:
    return all(byte >= 0x20 or byte in b"\t\n\r\f\v\a\b\x1b" for byte in text)
