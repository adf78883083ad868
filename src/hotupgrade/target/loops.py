"""Where a thread stands in the loop that it was started with: proven from its stack, without stopping it.

The outermost frames of a thread do not move while it is in its loop.  The proof has three parts.  The thread's own
memory names the loop as the function that it was started with, next to the argument; where another function was, and
called the loop, that one's instructions say with what.  A return address into the loop lies on the stack just where
the loop's frame information puts one.  And from the slot that the loop returns through, the frame information of all
that called it leads to the thread's very beginning, by an exact unwinder.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import iced_x86
import numpy as np
import numpy.typing as npt

from hotupgrade.binary.frames import KEPT, RBP, RSP, NoFrameError, Row
from hotupgrade.errors import NotNow, Reason
from hotupgrade.target.backtrace import Unwinder
from hotupgrade.target.callsite import passed, words_of
from hotupgrade.target.maps import Mapping, mapping_at
from hotupgrade.target.process import Process, ThreadState

_SYS_GET_ROBUST_LIST = 274
#: glibc's struct pthread is smaller, in bytes (nptl/descr.h), and the loop's frame is not further down.
_PTHREAD, _WINDOW = 0xA00, 512 << 10
#: A function has set up its frame within so many bytes.
_BEGINNING = 96
#: A function that starts threads is smaller, in bytes.
_MOST_CODE = 64 << 10
#: The registers that a call keeps, in the order in which the agent has them.
KEPT_ORDER = tuple(number for number in (3, 6, 12, 13, 14, 15) if number in KEPT)

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class LoopCode:
    """A loop as it is in the process: ``home`` is the address that stands for it, ``ranges`` [low, high) are its code
    in force, ``sleeps`` the return addresses of the calls that its threads sleep in."""

    function: str
    home: int
    ranges: tuple[tuple[int, int], ...]
    sleeps: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Asleep:
    """The thread is inside a call of the loop: that returns through ``slot``, which holds ``back``; ``kept`` says where
    the loop's frame has its caller's registers (in :data:`KEPT_ORDER`; 0: it has not saved that)."""

    slot: int
    back: int
    kept: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class InLoop:
    """A thread in its loop, which returns through ``slot``, which holds ``back``."""

    tid: int
    tcb: int
    loop: int  # index
    slot: int
    back: int
    argument: int
    exact: bool  # the argument is surely that; else something else has to prove whose it is
    asleep: Asleep | None


def thread_pointer(process: Process, tid: int, maps: Sequence[Mapping]) -> int | None:
    """The address of a thread's control block, which is its ``pthread_t``.

    The kernel knows each thread's list of robust mutexes, which glibc keeps in that very block (nptl/descr.h); the
    block begins with a pointer to itself (sysdeps/x86_64/nptl/tls.h).  None: not a thread of glibc.
    """
    head, size = ctypes.c_void_p(), ctypes.c_size_t()
    if _libc().syscall(_SYS_GET_ROBUST_LIST, tid, ctypes.byref(head), ctypes.byref(size)) != 0 or not head.value:
        return None
    mapping = mapping_at(maps, head.value)
    if mapping is None:
        return None
    low = max(mapping.start, head.value - _PTHREAD & ~15)
    words = np.frombuffer(process.read(low, (head.value - low) // 16 * 16), np.uint64)
    for index in range(len(words) - 2, -1, -2):
        at = low + 8 * index
        if words[index] == at and index + 2 < len(words) and words[index + 2] == at:
            return at
    return None


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


class LoopFinder:
    """Looks for threads in loops.  ``led``: return addresses that were replaced, by the slot that they belong in."""

    def __init__(
        self,
        process: Process,
        unwinder: Unwinder,
        loops: Sequence[LoopCode],
        led: dict[int, int],
    ) -> None:
        self._process = process
        self._maps = process.maps()
        self._unwinder = unwinder
        self._loops = loops
        self._led = led
        self._rows: dict[int, Row | None] = {}
        self._depths: dict[int, int | None] = {}  # by entry
        self.doubts: dict[int, Reason] = {}  # by thread id

    def find(self, thread: ThreadState, tcb: int) -> InLoop | None:
        """The loop that a thread was started with and is in; None if that is none of these.

        What looks like one of them, but cannot be proven, goes to :attr:`doubts`: whether the thread is in it after
        all, the stop finds out.  ``tcb``: its control block (:func:`thread_pointer`).
        """
        mapping = mapping_at(self._maps, tcb)
        if mapping is None:
            return None
        low = max(mapping.start, tcb - _WINDOW)
        words = np.frombuffer(self._process.read(low, (min(tcb + _PTHREAD, mapping.end) - low) // 8 * 8), np.uint64)
        for index, loop in enumerate(self._loops):
            # Such a pair may also be what a call left behind that has started another thread.
            starts = np.flatnonzero(words[:-1] == np.uint64(loop.home))
            pairs = [(low + 8 * int(at), int(words[at + 1])) for at in starts]
            if pairs:
                found = self._in_loop(thread, tcb, index, words[: (tcb - low) // 8], low, pairs)
                if isinstance(found, InLoop):
                    return found
                self.doubts[thread.tid] = found
        return None

    def _in_loop(
        self, thread: ThreadState, tcb: int, index: int, words: Words, low: int, pairs: Sequence[tuple[int, int]]
    ) -> InLoop | Reason:
        loop = self._loops[index]
        inside = np.zeros(len(words), np.bool_)
        for first, end in loop.ranges:
            inside |= (words > first) & (words < end)
        calls: dict[int, list[tuple[int, int, Row]]] = {}
        depth = self._depth(loop)
        for at in np.flatnonzero(inside).tolist():
            place, back = low + 8 * at, int(words[at])
            row = self._row(back)
            if row is None:
                continue
            for slot in self._slots(row, words, at, low, depth):
                if place < slot < tcb and slot % 8 == 0:
                    calls.setdefault(slot, []).append((place, back, row))
        proven = [slot for slot, found in calls.items() if self._leads_out(slot, found[0], words, low)]
        if len(proven) != 1:
            return _unproven(self._process.pid, thread, loop, f"{len(proven)} places could be its frame")
        slot = proven[0]
        sure = [argument for place, argument in pairs if place >= tcb]
        sure = sure or self._passed(loop, slot, self._registers(slot, calls[slot][0], words, low))
        arguments = set(sure or [argument for place, argument in pairs if place > slot])
        if len(arguments) != 1:
            return _unproven(self._process.pid, thread, loop, f"{len(arguments)} values could be its argument")
        argument, exact = arguments.pop(), bool(sure)
        asleep = self._asleep(thread, loop, slot, calls[slot])
        return InLoop(thread.tid, tcb, index, slot, self._back(slot), argument, exact, asleep)

    def _asleep(
        self, thread: ThreadState, loop: LoopCode, slot: int, calls: Sequence[tuple[int, int, Row]]
    ) -> Asleep | None:
        # What calls that have ended left behind lies below the stack pointer, or in the loop's own frame.  Of a thread
        # that runs, the stop will see where that is: it looks at both, the pointer and the word.
        live = [call for call in calls if thread.sp is None or call[0] >= thread.sp]
        if not live:
            return None
        place, back, row = min(live, key=lambda call: call[0])
        if back not in loop.sleeps:
            return None
        kept = [row.saved.get(number, 0) for number in KEPT_ORDER]
        if not all(isinstance(where, int) for where in kept):
            return None
        return Asleep(place, back, tuple(slot + 8 + where if isinstance(where, int) and where else 0 for where in kept))

    def _row(self, back: int) -> Row | None:
        if back not in self._rows:
            try:
                self._rows[back] = self._unwinder.row(back - 1)
            except (NoFrameError, NotNow, ValueError, KeyError):
                self._rows[back] = None
        return self._rows[back]

    def _depth(self, loop: LoopCode) -> int | None:
        """Bytes of the loop's frame below its frame pointer, if it has one."""
        entry, end = loop.ranges[0]
        if entry not in self._depths:
            code = self._process.read(entry, min(end - entry, _BEGINNING))
            self._depths[entry] = depth_below_frame_pointer(code)
        return self._depths[entry]

    @staticmethod
    def _slots(row: Row, words: Words, at: int, low: int, depth: int | None) -> set[int]:
        """Where the slot may be that the loop returns through, as the frame information of a call in it says."""
        if isinstance(row.cfa, bytes):
            return set()
        register, offset = row.cfa
        place = low + 8 * at
        if register == RSP:
            return {place + 8 + offset - 8}
        found = set()
        if register == RBP and at > 0:
            found.add(int(words[at - 1]) + offset - 8)  # what is called has such a frame, too: it has saved it first
        if register == RBP and depth is not None:
            found.add(place + 8 + depth + offset - 8)
        return found

    def _leads_out(self, slot: int, call: tuple[int, int, Row], words: Words, low: int) -> bool:
        """From the loop's caller on, the unwinder reaches the beginning of the thread."""
        registers = self._registers(slot, call, words, low)
        return self._unwinder.return_slots(self._back(slot) - 1, registers) is not None

    @staticmethod
    def _registers(slot: int, call: tuple[int, int, Row], words: Words, low: int) -> dict[int, int]:
        """What is known of the registers of the loop's caller, by DWARF number."""
        registers = {RSP: slot + 8}
        for number in KEPT_ORDER:
            where = call[2].saved.get(number)
            at = slot + 8 + where if isinstance(where, int) else None
            if at is not None and low <= at < low + 8 * len(words):
                registers[number] = int(words[(at - low) // 8])
        return registers

    def _passed(self, loop: LoopCode, slot: int, registers: dict[int, int]) -> list[int]:
        """The argument that the loop's caller has passed, if its instructions tell; else nothing."""
        back = self._back(slot)
        try:
            start, end = self._unwinder.bounds(back - 1)
            found = passed(self._process.read(start, min(end - start, _MOST_CODE)), start, back)
            places = words_of(found, registers) if found is not None else None
            if places is None or self._process.read_word(places[0]) != loop.home:
                return []
            return [self._process.read_word(places[1])]
        except (NoFrameError, NotNow, ValueError, KeyError):
            return []

    def _back(self, slot: int) -> int:
        return self._led.get(slot) or self._process.read_word(slot)


def depth_below_frame_pointer(code: bytes) -> int | None:
    """How far below its frame pointer the stack pointer of a function is at its calls, as its first instructions say;
    None if they set none up, or in a way that does not tell."""
    depth: int | None = None
    for instruction in iced_x86.Decoder(64, code):
        if instruction.flow_control != iced_x86.FlowControl.NEXT:
            break
        mnemonic, first = int(instruction.mnemonic), int(instruction.op0_register)
        if mnemonic == iced_x86.Mnemonic.MOV and first == iced_x86.Register.RBP:
            depth = 0 if int(instruction.op1_register) == iced_x86.Register.RSP else None
        elif depth is None:
            continue
        elif mnemonic == iced_x86.Mnemonic.PUSH:
            depth += 8
        elif first == iced_x86.Register.RSP:
            if mnemonic not in _MOVES or int(instruction.op1_kind) not in _IMMEDIATE:
                return None
            depth += _MOVES[mnemonic] * ctypes.c_int64(instruction.immediate(1)).value
    return depth


#: 128 bytes are had by adding -128, which is shorter.
_MOVES: dict[int, int] = {iced_x86.Mnemonic.SUB: 1, iced_x86.Mnemonic.ADD: -1}
_IMMEDIATE = (iced_x86.OpKind.IMMEDIATE8TO64, iced_x86.OpKind.IMMEDIATE32TO64)


def _unproven(pid: int, thread: ThreadState, loop: LoopCode, why: str) -> Reason:
    text = (
        f"process {pid}: thread {thread.tid} ({thread.name}) was started with {loop.function}, which has changed, but "
        f"it cannot be proven where its frame lies ({why}), so it cannot be restarted"
    )
    return Reason("loop-unproven", str(thread.tid), text)
