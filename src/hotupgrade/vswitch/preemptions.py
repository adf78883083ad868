"""When the kernel took a thread's processor away: the machine's own part of a break.

The kernel writes a record whenever it puts a thread on a processor or takes it off (``perf_event_open(2)``, a dummy
event with ``context_switch``), with the moment by CLOCK_MONOTONIC and whether the thread wanted to go on.  That needs
no helper process and costs the thread less than a microsecond a switch.  What a hypervisor takes is not among it.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import mmap
import os
import platform
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

_SYS_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_CLOCK_MONOTONIC = 1
#: linux/perf_event.h
_TYPE_SOFTWARE, _COUNT_SW_DUMMY = 1, 9
_SAMPLE_TID, _SAMPLE_TIME = 1 << 1, 1 << 2
_FLAG_SAMPLE_ID_ALL, _FLAG_USE_CLOCKID, _FLAG_CONTEXT_SWITCH = 1 << 18, 1 << 25, 1 << 26
_FLAG_CLOEXEC = 8
_RECORD_LOST, _RECORD_SWITCH = 2, 14
_MISC_OUT, _MISC_OUT_PREEMPT = 1 << 13, 1 << 14
_HEADER, _SWITCH = struct.Struct("<IHH"), struct.Struct("<IIQ")
_DATA_HEAD, _DATA_TAIL = 1024, 1032  # in struct perf_event_mmap_page
#: Of the ring: 170,000 preemptions between two looks.  When it is full the kernel drops what is new, and a restart is
#: what comes last in a command that has prepared for long.
_PAGES = 2048


@dataclass(frozen=True, slots=True)
class Span:
    """A thread was off its processor though it wanted to run, in ns of CLOCK_MONOTONIC."""

    begin: int
    end: int


class _Attributes(ctypes.Structure):
    """``struct perf_event_attr`` as of version 5 (112 bytes)."""

    _fields_ = [
        ("type", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("config", ctypes.c_uint64),
        ("sample_period", ctypes.c_uint64),
        ("sample_type", ctypes.c_uint64),
        ("read_format", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("rest", ctypes.c_uint64 * 4),
        ("sample_regs_user", ctypes.c_uint64),
        ("sample_stack_user", ctypes.c_uint32),
        ("clockid", ctypes.c_int32),
        ("more", ctypes.c_uint64 * 2),
    ]


@dataclass
class _Thread:
    descriptor: int
    ring: mmap.mmap
    spans: list[Span] = field(default_factory=list)
    off_since: int | None = None
    lost: int = 0


class Recorder:
    """Records for some threads, from entering the context to leaving it."""

    def __init__(self, tids: Iterable[int]) -> None:
        self._tids = tuple(tids)
        self._threads: dict[int, _Thread] = {}

    def __enter__(self) -> Self:
        try:
            for tid in self._tids:
                self._threads[tid] = _open(tid)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    @property
    def lost(self) -> int:
        """Records for which the ring had no room: with any, less is known than was recorded."""
        return sum(thread.lost for thread in self._threads.values())

    def look(self) -> None:
        """Take what the kernel has written; call it more often than once in some thousand switches."""
        for thread in self._threads.values():
            for kind, misc, content in _records(thread.ring):
                if kind == _RECORD_LOST:
                    thread.lost += 1
                elif kind == _RECORD_SWITCH:
                    _take(thread, misc, _SWITCH.unpack_from(content)[2])

    def count(self, tid: int) -> int:
        """How often the thread was preempted, as far as was looked."""
        return len(self._threads[tid].spans)

    def within(self, tid: int, begin: int, end: int) -> list[Span]:
        """What the thread was preempted between two moments, cut to them."""
        spans = self._threads[tid].spans if tid in self._threads else []
        first = bisect.bisect_left(spans, begin, key=lambda span: span.end)
        found = []
        for span in spans[first:]:
            if span.begin >= end:
                break
            found.append(Span(max(span.begin, begin), min(span.end, end)))
        return [span for span in found if span.end > span.begin]

    def around(self, tid: int, moment: int) -> Span | None:
        """When the thread was preempted, if it was at that moment."""
        spans = self._threads[tid].spans if tid in self._threads else []
        first = bisect.bisect_right(spans, moment, key=lambda span: span.end)
        return spans[first] if first < len(spans) and spans[first].begin <= moment else None

    def finish_of(self, tid: int, begin: int, work_ns: int) -> int:
        """When work of so many ns on the processor would have been done, had it begun at ``begin``."""
        end = begin + work_ns
        for span in self.within(tid, begin, begin + 10_000_000_000):
            if span.begin >= end:
                break
            end += span.end - span.begin
        return end

    def _close(self) -> None:
        for thread in self._threads.values():
            thread.ring.close()
            os.close(thread.descriptor)
        self._threads.clear()


def available() -> bool:
    """Whether this process may record switches."""
    try:
        with Recorder([os.getpid()]):
            return True
    except (OSError, KeyError):
        return False


def involuntary_switches(pid: int, tid: int) -> int:
    """How often the kernel has taken the thread's processor away, by its own count: a check of the records."""
    for line in Path(f"/proc/{pid}/task/{tid}/status").read_text().splitlines():
        if line.startswith("nonvoluntary_ctxt_switches:"):
            return int(line.split()[1])
    return 0


def _open(tid: int) -> _Thread:
    attributes = _Attributes(
        type=_TYPE_SOFTWARE,
        size=ctypes.sizeof(_Attributes),
        config=_COUNT_SW_DUMMY,
        sample_type=_SAMPLE_TID | _SAMPLE_TIME,
        flags=_FLAG_SAMPLE_ID_ALL | _FLAG_USE_CLOCKID | _FLAG_CONTEXT_SWITCH,
        clockid=_CLOCK_MONOTONIC,
    )
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    number = _SYS_PERF_EVENT_OPEN[platform.machine()]
    descriptor = libc.syscall(
        ctypes.c_long(number), ctypes.byref(attributes), ctypes.c_int(tid), ctypes.c_int(-1), ctypes.c_int(-1),
        ctypes.c_ulong(_FLAG_CLOEXEC),
    )  # fmt: skip
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), f"perf_event_open for thread {tid}: {os.strerror(ctypes.get_errno())}")
    try:
        ring = mmap.mmap(descriptor, (1 + _PAGES) * mmap.PAGESIZE, mmap.MAP_SHARED)
    except BaseException:
        os.close(descriptor)
        raise
    return _Thread(descriptor, ring)


def _records(ring: mmap.mmap) -> Iterator[tuple[int, int, bytes]]:
    """(type, misc, content) of each new record; they are given back to the kernel at the end."""
    (head,) = struct.unpack_from("<Q", ring, _DATA_HEAD)
    (tail,) = struct.unpack_from("<Q", ring, _DATA_TAIL)
    size = _PAGES * mmap.PAGESIZE
    while tail < head:
        kind, misc, length = _HEADER.unpack(_bytes(ring, tail % size, _HEADER.size, size))
        yield kind, misc, _bytes(ring, (tail + _HEADER.size) % size, length - _HEADER.size, size)
        tail += length
    struct.pack_into("<Q", ring, _DATA_TAIL, head)


def _bytes(ring: mmap.mmap, at: int, length: int, size: int) -> bytes:
    first = min(length, size - at)
    start = mmap.PAGESIZE
    return ring[start + at : start + at + first] + ring[start : start + length - first]


def _take(thread: _Thread, misc: int, moment: int) -> None:
    if misc & _MISC_OUT:
        thread.off_since = moment if misc & _MISC_OUT_PREEMPT else None
    elif thread.off_since is not None:
        thread.spans.append(Span(thread.off_since, moment))
        thread.off_since = None


def total(spans: Sequence[Span]) -> int:
    """Nanoseconds of all of them."""
    return sum(span.end - span.begin for span in spans)


@contextlib.contextmanager
def recording(tids: Iterable[int]) -> Iterator[Recorder | None]:
    """A recorder, or None where the kernel gives none; the counts in /proc are there always."""
    if not available():
        yield None
        return
    with Recorder(tids) as recorder:
        yield recorder
