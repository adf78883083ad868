"""The calls of loops that come by the agent for a while: the words that make them, and that give them back.

A call may stand so near to the entry of its function that a jump there takes some of its bytes.  While there is one,
nothing runs that call, so it is left alone; as soon as the jump goes, the call is made to come by too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from hotupgrade.plan.entries import JUMP_SIZE, jump_target
from hotupgrade.target.process import Process
from hotupgrade.target.request import Word
from hotupgrade.upgrade.ledger import LoopRecord, SideRecord, SiteRecord

_CALL_SIZE = 5


def armed(process: Process, loops: Sequence[LoopRecord], code: Sequence[Word]) -> list[Word]:
    """The words of a change, and with them those that make the loops' calls come by the agent."""
    return _words(process, loops, code, armed=True)


def given_back(process: Process, loops: Sequence[LoopRecord]) -> list[Word]:
    """The words that give the calls back what they were; none for what is so already."""
    return _words(process, loops, (), armed=False)


def _words(process: Process, loops: Sequence[LoopRecord], code: Sequence[Word], *, armed: bool) -> list[Word]:
    memory = _Memory(process, {word.address: word for word in code})
    for loop in loops:
        for site in loop.sites:
            covered = [side.entry for side in _sides_over(loop, site) if memory.leads_away(side.entry)]
            displacement = site.stub - site.address - _CALL_SIZE if armed and not covered else site.plain
            for at, byte in enumerate(struct.pack("<I", displacement & 0xFFFFFFFF), site.address + 1):
                memory.put(at, None if any(entry <= at < entry + JUMP_SIZE for entry in covered) else byte)
    return list(memory.words())


def _sides_over(loop: LoopRecord, site: SiteRecord) -> Iterator[SideRecord]:
    """Where a jump at the entry takes bytes of the call."""
    for side in loop.sides:
        if side.entry - _CALL_SIZE < site.address < side.entry + JUMP_SIZE:
            yield side


@dataclass
class _Memory:
    """Words as they are, and as they are to be."""

    process: Process
    change: dict[int, Word]
    _before: dict[int, bytes] = field(default_factory=dict)
    _after: dict[int, bytearray] = field(default_factory=dict)
    _put: dict[int, set[int]] = field(default_factory=dict)  # bytes of calls, by word

    def leads_away(self, entry: int) -> bool:
        """Whether there will be a jump."""
        content = bytes(self._word(at // 8 * 8)[at % 8] for at in range(entry, entry + JUMP_SIZE))
        return jump_target(entry, content) is not None

    def put(self, at: int, byte: int | None) -> None:
        """A byte of a call.  None: a jump takes its place; but until now it may have been as we have put it."""
        word = self._word(at // 8 * 8)
        if byte is not None:
            word[at % 8] = byte
        self._put.setdefault(at // 8 * 8, set()).add(at % 8)

    def words(self) -> Iterator[Word]:
        for at in sorted({*self.change, *self._after}):
            after = int.from_bytes(self._word(at), "little")
            before = self._expected(at)
            if before != after or at in self.change:
                yield Word(at, before, after)

    def _word(self, at: int) -> bytearray:
        if at not in self._after:
            self._before[at] = self.process.read(at, 8)
            word = self.change.get(at)
            self._after[at] = bytearray(self._before[at] if word is None else word.new.to_bytes(8, "little"))
        return self._after[at]

    def _expected(self, at: int) -> int:
        """What the word must hold when it is replaced: what the plan says, but for calls that come by us already."""
        present = self._before[at]
        if at not in self.change:
            return int.from_bytes(present, "little")
        planned = bytearray(self.change[at].old.to_bytes(8, "little"))
        for index in self._put.get(at, ()):
            planned[index] = present[index]
        return int.from_bytes(planned, "little")
