"""Loop profiles: what their author says of a loop that never returns, as TOML (see ``docs/loops.md``)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import msgspec

from hotupgrade.errors import Reason, Refused
from hotupgrade.plan.loops.model import Door
from hotupgrade.plan.loops.paths import WrongPath, parse

BUILTIN = Path(__file__).resolve().parents[2] / "profiles"

MOST_CLEARS = 2  # what a thread that has left puts back itself (struct hu_move)
_LARGEST = (1 << 64) - 1
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*\Z")


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """A table of the file; ``one_by_one`` is written ``one-by-one`` there."""


class Returning(_Table, frozen=True):
    """A call, and what it is to return when it is skipped."""

    call: str
    returns: int


class Skip(_Table, frozen=True):
    """A clean-up and a set-up call that cancel out.  Each is a list of alternatives, as compilers inline."""

    setup: tuple[str | Returning, ...]
    clean: tuple[str | Returning, ...] = ()
    types: tuple[str, ...] = ()  # equal in both builds, or the calls are made
    required: bool = False  # without the skip the thread cannot be restarted
    first: bool = False  # only the very first call of the loop function is meant


class LoopProfile(_Table, frozen=True):
    """One ``[[loop]]``.  Paths (``udpif->exit_latch``) start at what the loop's argument points to."""

    module: str | tuple[str, ...]  # patterns of names (fnmatch)
    function: str
    threads: str
    door: Door
    reason: str = ""  # NONE: why
    argument: str = ""  # the type that the loop's argument points to; "": it has none that matters
    ask: tuple[tuple[str, int], ...] = ()
    clear: tuple[tuple[str, int], ...] = ()
    wake: tuple[tuple[str, str], ...] = ()
    leaving: str = ""
    latch: str = ""
    latch_test: str = "latch_is_set"
    sleeps: tuple[str, ...] = ()
    work: tuple[str, ...] = ()
    thread: str = ""
    group: str = ""  # loops of one group look at the same door, so they are restarted together
    together: tuple[str, ...] = ()
    hold: Literal["", "main"] = ""
    one_by_one: bool = False
    limit_us: int = 50_000
    skip: tuple[Skip, ...] = ()

    @property
    def patterns(self) -> tuple[str, ...]:
        return (self.module,) if isinstance(self.module, str) else self.module

    def is_of(self, module: str) -> bool:
        """Whether the loop is one of a module of this name."""
        return any(fnmatchcase(module, pattern) for pattern in self.patterns)

    @property
    def paths(self) -> dict[str, list[str]]:
        """Every path, by the key that holds it."""
        return {
            "ask": [path for path, _ in self.ask],
            "clear": [path for path, _ in self.clear],
            "wake": [path for _, path in self.wake],
            "leaving": [self.leaving] if self.leaving else [],
            "latch": [self.latch] if self.latch else [],
            "thread": [self.thread] if self.thread else [],
        }


class _File(_Table, frozen=True):
    loop: tuple[LoopProfile, ...]


def read_profiles(paths: Sequence[Path]) -> list[LoopProfile]:
    """All loops of these files, in this order.

    Raises:
        Refused: ``bad-profile``: a file cannot be read, or says what makes no sense.
    """
    return [profile for path in paths for profile in _read(path)]


def builtin_profiles() -> list[Path]:
    """The profiles that come with hotupgrade."""
    return sorted(BUILTIN.glob("*.toml"))


def call_name(call: str | Returning) -> str:
    return call if isinstance(call, str) else call.call


def _read(path: Path) -> tuple[LoopProfile, ...]:
    try:
        with path.open("rb") as file:
            content: dict[str, Any] = tomllib.load(file)
        loops = msgspec.convert(content, _File).loop
    except OSError as error:
        raise _bad(path, f"it cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(path, f"it is not TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise _bad(path, str(error)) from None
    seen: set[tuple[str, str]] = set()
    for loop in loops:
        if wrong := next(_faults(loop), ""):
            raise _bad(path, f"loop {loop.function or '(without a name)'}: {wrong}")
        for pattern in loop.patterns:
            if (pattern, loop.function) in seen:
                raise _bad(path, f"loop {loop.function}: it is described twice for {pattern}")
            seen.add((pattern, loop.function))
    return loops


def _bad(path: Path, what: str) -> Refused:
    return Refused(Reason("bad-profile", str(path), f"{path} is no loop profile: {what}; see docs/loops.md"))


def _faults(loop: LoopProfile) -> Iterator[str]:
    """What msgspec does not see."""
    if not all(loop.patterns) or not loop.patterns:
        yield "'module' is empty"
    yield from _names("function", [loop.function])
    yield from _names("together", loop.together)
    yield from _names("work", loop.work)
    yield from _names("sleeps", loop.sleeps)
    yield from _names("latch-test", [loop.latch_test])
    yield from _names("wake", [function for function, _ in loop.wake])
    yield from _door(loop)
    if any(loop.paths.values()) and not loop.argument:
        yield "it has paths, but no 'argument' to start from"
    for key, paths in loop.paths.items():
        for text in paths:
            try:
                parse(text)
            except WrongPath as error:
                yield f"'{key}': {error}"
    for key, stores in (("ask", loop.ask), ("clear", loop.clear)):
        for text, value in stores:
            if not 0 <= value <= _LARGEST:
                yield f"'{key}': {value} for {text} is not a number from 0 to 2^64 - 1"
    if len(loop.clear) > MOST_CLEARS:
        yield f"'clear' has more than {MOST_CLEARS} fields"
    if not 0 < loop.limit_us <= 60_000_000:
        yield f"'limit-us' is {loop.limit_us}; it must be from 1 to 60000000 (a minute)"
    for skip in loop.skip:
        yield from _skip(skip)


def _names(key: str, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        if not _IDENTIFIER.match(name):
            yield f"'{key}': '{name}' is no name of a function"


_NEEDED = {Door.FIELDS: ("ask",), Door.LATCH: ("latch",), Door.SLEEP: ("sleeps",), Door.NONE: ("reason",)}
_DOORS = {
    "ask": (Door.FIELDS,),
    "clear": (Door.FIELDS,),
    "wake": (Door.FIELDS,),
    "leaving": (Door.FIELDS, Door.LATCH),
    "latch": (Door.LATCH,),
    "sleeps": (Door.SLEEP,),
    "reason": (Door.NONE,),
    "group": (Door.FIELDS, Door.LATCH),
    "hold": (Door.FIELDS, Door.LATCH),
    "one_by_one": (Door.FIELDS, Door.LATCH),
    "skip": (Door.FIELDS, Door.LATCH, Door.SLEEP),
}


def _door(loop: LoopProfile) -> Iterator[str]:
    """Every door has keys of its own."""
    if loop.door is Door.FLAG:
        yield "a compiled-in safe point needs no profile"
        return
    for key in _NEEDED[loop.door]:
        if not getattr(loop, key):
            yield f"door '{loop.door}' needs '{key}'"
    for key, doors in _DOORS.items():
        if getattr(loop, key) and loop.door not in doors:
            yield f"'{key.replace('_', '-')}' means nothing for door '{loop.door}'"
    if loop.group and loop.one_by_one:
        yield "a 'group' cannot be restarted one by one"


def _skip(skip: Skip) -> Iterator[str]:
    yield from _names("skip", [call_name(call) for call in (*skip.clean, *skip.setup)])
    if not skip.setup:
        yield "a 'skip' needs 'setup': what is cleaned up is missing otherwise"
    if skip.first and skip.clean:
        yield "'first' is for a 'skip' that has only 'setup'"
    for call in (*skip.clean, *skip.setup):
        if isinstance(call, Returning) and not -(1 << 63) <= call.returns <= _LARGEST:
            yield f"{call.call} cannot return {call.returns}"
