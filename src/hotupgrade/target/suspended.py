"""Stacks that no thread stands on: coroutines, fibres, contexts that were put aside.

A thread that comes back to such a stack returns into whatever code it left there, so they count for the check as those
of threads do.  Where only glibc's ``ucontext`` switches stacks, each suspended one is described by a ``ucontext_t``
somewhere in memory, which is known by a pointer to itself; what lies between its saved stack pointer and the end of
its stack is looked at.  Where other means are in use (Boost's contexts, ``longjmp`` between stacks) nothing tells what
is a stack, and every word of the process's own memory is taken for a possible return address.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hotupgrade.target.agent import NAME
from hotupgrade.target.maps import PAGE, Mapping, mapping_at
from hotupgrade.target.modules import Module
from hotupgrade.target.process import Process

#: Functions that begin or switch stacks, by the libraries that are known to be used for it: glibc, Boost.Context,
#: Tencent's and other libcos, libcoro.
_UCONTEXT = "makecontext"
_OTHERS = ("make_fcontext", "jump_fcontext", "ontop_fcontext", "co_create", "co_switch", "coro_transfer")
#: OpenSSL brings its own use of makecontext, but leaves a stack only where an engine or a provider asks for that.
_OPENSSL, _OPENSSL_PAUSE = "libcrypto.so", "ASYNC_pause_job"
_JUMPS = ("longjmp", "_longjmp", "siglongjmp", "__longjmp_chk")

#: glibc's ucontext_t on x86-64 (sysdeps/unix/sysv/linux/x86/sys/ucontext.h): offsets in bytes.
_SS_SP, _SS_SIZE, _RSP, _RIP, _FPREGS, _FPREGS_MEM = 16, 32, 160, 168, 224, 424
#: No stack of a coroutine is larger, in bytes.
_MOST_STACK = 64 << 20
#: More memory than this is not searched while threads are stopped, in bytes.
MOST_SEARCHED = 256 << 20
#: Nor is more address space looked through for what is present in it: what a sanitizer reserves has terabytes.
_MOST_SPANNED = 32 << 30

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Coroutines:
    """``user`` is the module that switches stacks; ``described``: every suspended stack has its ucontext_t."""

    user: str
    described: bool


@dataclass(frozen=True, slots=True)
class Found:
    """A word at ``place`` that leads to ``code``, on a stack that no thread stands on."""

    place: int
    code: int


class TooMuchMemoryError(Exception):
    """There is more to search than a stop may last."""


def coroutines(modules: Sequence[Module]) -> Coroutines | None:
    """Whether, and how, a process switches stacks; None if it does not."""
    others = next((m.name for m in modules if any(m.mentions(name) for name in _OTHERS)), None)
    if others is not None:
        return Coroutines(others, described=False)
    paused = any(m.mentions(_OPENSSL_PAUSE) for m in modules if not m.name.startswith(_OPENSSL))
    users = [m for m in modules if m.imports(_UCONTEXT) and (paused or not m.name.startswith(_OPENSSL))]
    if not users:
        return None
    return Coroutines(users[0].name, described=not any(m.imports(jump) for m in users for jump in _JUMPS))


def find_suspended(
    process: Process, how: Coroutines, watched: Sequence[tuple[int, int]], threads: Sequence[tuple[int, int]]
) -> Found | None:
    """A return address into a watched range on a stack that no thread stands on.

    Args:
        watched: ranges (low, high), sorted and disjoint; an address is a hit if low < address < high.
        threads: (stack pointer, thread control block) of every thread.  Their stacks are somebody else's to check.

    Raises:
        TooMuchMemoryError: more than :data:`MOST_SEARCHED` bytes would have to be looked at.
    """
    maps = process.maps()
    blocks = list(_resident(process, maps))
    if how.described:
        contexts = sorted({at for start, words in blocks for at in _contexts(start, words)})
        return next((hit for at in contexts if (hit := _in_context(process, at, watched))), None)
    live = [_stack_range(maps, sp, tcb) for sp, tcb in threads]
    for start, words in blocks:
        for index in hits_in(words, watched):
            place = start + 8 * index
            if not any(low <= place < high for low, high in live):
                return Found(place, int(words[index]))
    return None


def hits_in(words: Words, watched: Sequence[tuple[int, int]]) -> list[int]:
    """Indices of the words that could be return addresses into one of the ranges, which are sorted and disjoint."""
    lows = np.array([low for low, _ in watched], np.uint64)
    highs = np.array([high for _, high in watched], np.uint64)
    index = np.searchsorted(lows, words, side="left") - 1  # the last range that begins below the word
    return np.flatnonzero((index >= 0) & (words < highs[np.maximum(index, 0)])).tolist()


def _in_context(process: Process, at: int, watched: Sequence[tuple[int, int]]) -> Found | None:
    try:
        low, size = process.read_word(at + _SS_SP), process.read_word(at + _SS_SIZE)
        sp, pc = process.read_word(at + _RSP), process.read_word(at + _RIP)
        if not (low <= sp <= low + size and size <= _MOST_STACK):
            return None  # of a thread's own stack, which is looked at with the thread; or no context at all
        words = np.frombuffer(process.read(sp & ~7, (low + size - (sp & ~7)) // 8 * 8), np.uint64)
    except ValueError:
        return None  # its stack is gone
    if any(first < pc < end for first, end in watched):
        return Found(at + _RIP, pc)
    return next((Found((sp & ~7) + 8 * i, int(words[i])) for i in hits_in(words, watched)), None)


def _contexts(start: int, words: Words) -> list[int]:
    """Addresses of what may be a ucontext_t: glibc has each point at its own place for floating-point registers."""
    addresses = np.uint64(start) + np.arange(len(words), dtype=np.uint64) * np.uint64(8)
    found = np.flatnonzero(words == addresses + np.uint64(_FPREGS_MEM - _FPREGS))
    return [start + 8 * index - _FPREGS for index in found.tolist()]


def _stack_range(maps: Sequence[Mapping], sp: int, tcb: int) -> tuple[int, int]:
    """The stack around a stack pointer; what is below the pointer belongs to it if nothing else can lie there."""
    mapping = mapping_at(maps, sp)
    if mapping is None:
        return sp, sp
    before = mapping_at(maps, mapping.start - 1)
    guarded = before is not None and before.permissions[:3] == "---"
    top = tcb if sp < tcb < mapping.end else mapping.end
    return (mapping.start if guarded or mapping.path == "[stack]" else sp), top


def _resident(process: Process, maps: Sequence[Mapping]) -> Iterator[tuple[int, Words]]:
    """What is present of the process's own writable memory, in pieces: (address, words)."""
    searched = spanned = 0
    for mapping in maps:
        ours = mapping.path.startswith(f"/memfd:{NAME}")
        if ours or not (mapping.writable and mapping.readable and mapping.private):
            continue
        spanned += mapping.size
        if spanned > _MOST_SPANNED:
            raise TooMuchMemoryError
        present = process.present_pages(mapping.start, mapping.size // PAGE)
        edges = np.flatnonzero(np.diff(present.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
        for first, end in edges.tolist():
            searched += (end - first) * PAGE
            if searched > MOST_SEARCHED:
                raise TooMuchMemoryError
            try:
                yield (
                    mapping.start + first * PAGE,
                    np.frombuffer(process.read(mapping.start + first * PAGE, (end - first) * PAGE), np.uint64),
                )
            except ValueError:
                continue  # given back meanwhile, or not ours to read
