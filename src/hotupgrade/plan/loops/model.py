"""What is known of a loop, from its profile and from the builds that hold it.  Pure data, in link space.

A *door* is the way in which a thread leaves its loop.  A *site* is a call instruction in the loop's own code that the
upgrade has to know: of a clean-up or set-up call that may be skipped once, of the loop's work, of a call that it sleeps
in.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass


class Door(enum.StrEnum):
    FIELDS = "fields"  # fields of the argument are set, the loop sees them and returns
    LATCH = "latch"  # as FIELDS, by a latch that all of a group look at: a pipe that is written to
    FLAG = "flag"  # a variable of the module is set (a compiled-in safe point)
    SLEEP = "sleep"  # no door: the frame is dropped when the call that the thread sleeps in returns
    NONE = "none"  # the thread cannot be restarted: a change is refused


class SiteKind(enum.StrEnum):
    CLEAN = "clean"  # undoes what its partner SETUP did
    SETUP = "setup"
    WORK = "work"
    SLEEP = "sleep"


@dataclass(frozen=True, slots=True)
class Place:
    """A place that is found from the loop's argument: from it on, each offset is added, and before each but the first
    the word found so far is followed.  ``pmd->exit`` is (728,); ``handler->udpif->exit_latch`` is (0, 96)."""

    offsets: tuple[int, ...]
    size: int  # bytes of what is there
    path: str  # as the profile has it


@dataclass(frozen=True, slots=True)
class Site:
    """A direct call (``call rel32``, 5 bytes at ``vaddr``) in a loop function or one of its pieces."""

    vaddr: int
    kind: SiteKind
    name: str  # of the function that is called
    pair: int = -1  # CLEAN and SETUP: index into LoopPlan.pairs
    value: int | None = None  # what a skipped call returns; None: rax stays as it is


@dataclass(frozen=True, slots=True)
class LoopSide:
    """The loop in one build: ranges [low, high) of its code (the function first, then its pieces), vaddrs."""

    entry: int
    ranges: tuple[tuple[int, int], ...]
    sites: tuple[Site, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """A clean-up and a set-up call that cancel out.  ``why_not`` is empty if both may be skipped, else it says why the
    calls are made as written (the plain way)."""

    clean: str
    setup: str
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Store:
    place: Place
    value: int


@dataclass(frozen=True)
class LoopPlan:
    """One loop that is to be restarted, resolved and checked against the builds.

    ``sides`` holds, by index of image, the loop in every image of the process that has a copy of it; ``new`` is the
    loop in the new build.
    """

    function: str
    thread_names: str  # for people: how such threads are called
    door: Door
    hold_main: bool  # the main thread must stand still meanwhile
    one_by_one: bool  # each thread by itself; else all that share a door as one group
    sides: Mapping[int, LoopSide]
    new: LoopSide
    pairs: tuple[Pair, ...] = ()
    ask: tuple[Store, ...] = ()  # FIELDS: in this order
    clear: tuple[Store, ...] = ()  # FIELDS: what the thread itself puts back when it has left
    wake: tuple[tuple[str, Place], ...] = ()  # functions of the module to call, with the word found there, after "ask"
    leaving: Place | None = None  # a byte that is not 0 when the program itself has asked the thread to end
    latch: Place | None = None  # LATCH: struct { int fds[2]; }, read end first
    flag: str = ""  # FLAG: name of the variable (32 bits)
    flag_vaddr: int = -1  # FLAG: its vaddr in the new build
    thread: Place | None = None  # where the argument holds the thread's own pthread_t: proves whose it is
    limit_us: int = 50_000  # how long the thread, or the whole group, may take to leave and to arrive
    changed: bool = (
        True  # False: it only shares the door of one that changed; such a thread enters it again at its home
    )
