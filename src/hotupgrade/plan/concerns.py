"""What no comparison can prove, listed for a person: where equal layout may hide another meaning.

A variable keeps its running value though the new build would start with another; a duty to free or to lock may have
moved; a correction may act only on what is created from now on.  These are hints, each with its reason, not verdicts.
"""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hotupgrade.binary.model import Form, Kind, TargetKind
from hotupgrade.errors import Reason
from hotupgrade.plan.calls import Call, Calls
from hotupgrade.plan.initial import Initial, difference, text_at
from hotupgrade.plan.model import Comparison
from hotupgrade.plan.stem import stem_of


class ConcernKind(enum.StrEnum):
    """In the order in which a person should look."""

    OWNERSHIP = "ownership"  # a changed function frees, locks or initialises otherwise than before
    CREATION = "creation"  # a changed function acts only when something is created
    INITIAL = "initial-value"  # a kept variable would start with another value
    CONSTANT = "constant"  # a table of constants changes in place
    TEXT = "text"  # a changed function names other texts
    DUTIES = "duties"  # a changed function frees, locks or initialises as before


@dataclass(frozen=True, slots=True)
class Concern:
    """One thing to look at: ``subject`` is a symbol, ``evidence`` what the hint rests on."""

    kind: ConcernKind
    subject: str
    text: str
    evidence: tuple[str, ...] = ()


def concerns(comparison: Comparison) -> list[Concern]:
    """All hints on one module, those worth most first."""
    finder = _Finder(comparison)
    found = [*finder.ownership(), *finder.creation(), *finder.contents(), *finder.texts()]
    order = list(ConcernKind)
    return sorted(found, key=lambda concern: (order.index(concern.kind), concern.subject))


def notes(found: Sequence[Concern]) -> Iterator[Reason]:
    """The hints that an operator should see even if he does not ask for an explanation."""
    for concern in found:
        if concern.kind is ConcernKind.OWNERSHIP:
            yield Reason("duties-changed", concern.subject, f"{concern.text}: does that fit what exists already?")
    made = [c.subject for c in found if c.kind is ConcernKind.CREATION and c.evidence != (_CONSTRUCTOR,)]
    if made:
        text = (
            f"what changed in {_names(made)} acts when something is made; what exists keeps what the old code gave it"
        )
        yield Reason("applies-from-now-on", made[0], text)


# What a function's name says that it does.


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_DUTIES = {
    "frees": _set(
        "free cfree realloc reallocarray munmap destroy delete dealloc deallocate release unref decref dispose uninit "
        "deinit fini finish postpone reclaim"
    ),
    "locks": _set("lock unlock trylock rdlock wrlock tryrdlock trywrlock timedlock spinlock acquire"),
    "references": _set("ref incref addref retain"),
    "initialises": _set("init initialize initialise reset reinit"),
}
_CREATION = _set("init initialize initialise create alloc construct constructor new ctor setup")
_WORDS = re.compile(r"[A-Z]?[a-z]+")
_CXX_FREES = re.compile(r"_Zd[la]Pv|_ZN.*D[012]Ev$")
_CXX_CREATION = re.compile(r"_ZN.*C[12]E")
_CONSTRUCTOR = "a constructor"  # of these there is a note anyway
_FREES = frozenset(("free", "realloc", "cfree", "munmap"))
_DEPTH = 4


def duty(name: str) -> str | None:
    """``frees``, ``locks``, ``references``, ``initialises`` or None: what the name of a function says."""
    if _CXX_FREES.match(name):
        return "frees"
    words = {word.lower() for word in _WORDS.findall(name)}
    if words & {"put", "push"}:
        words.discard("uninit")  # room that is not filled yet
    return next((title for title, marks in _DUTIES.items() if words & marks), None)


def creates(name: str) -> bool:
    """Whether the name of a function says that it makes something."""
    return bool(_CXX_CREATION.match(name)) or bool(_CREATION & {word.lower() for word in _WORDS.findall(name)})


class _Finder:
    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._old, self._new = comparison.old, comparison.new
        self._old_calls, self._new_calls = Calls(self._old), Calls(self._new)
        self._new_initial = Initial(self._new)

    @cached_property
    def _changed(self) -> list[tuple[int, int, str]]:
        """(old row, new row, name) of functions whose own meaning changed; pieces belong to their functions."""
        comparison = self._comparison
        rows = [row for row in np.flatnonzero(comparison.replaced).tolist() if row not in comparison.dragged]
        names = self._new.entities.names
        return [
            (int(comparison.old_of[row]), row, names[row])
            for row in rows
            if comparison.old_of[row] >= 0 and not _is_piece(names[row])
        ]

    # Ownership

    def ownership(self) -> Iterator[Concern]:
        for old, new, name in self._changed:
            was = self._duties(self._old_calls, self._new_calls, old)
            now = self._duties(self._new_calls, self._old_calls, new)
            if was != now:
                yield Concern(
                    ConcernKind.OWNERSHIP,
                    name,
                    f"{name} {_difference(was, now)}",
                    (f"was: {_listed(was)}", f"now: {_listed(now)}"),
                )
            elif now:
                yield Concern(ConcernKind.DUTIES, name, f"{name}: {_listed(now)}, as before")

    def _duties(self, calls: Calls, other: Calls, row: int) -> Counter[str]:
        """How often a function calls each function that frees, locks, references or initialises."""
        found: Counter[str] = Counter()
        for call in self._reached(calls, other, row, {row}):
            if duty(call.name) or self._wraps_free(calls, call):
                found[call.name] += 1
        return found

    def _reached(self, calls: Calls, other: Calls, row: int, seen: set[int]) -> Iterator[Call]:
        """Calls of a function and of its pieces.

        A function that only one of the builds has was merged into its callers in the other, or is new: its calls count
        as theirs, unless its own name says enough.
        """
        for call in calls.of(row):
            name = calls.build.entities.names[call.row] if call.row >= 0 else ""
            alone = call.row >= 0 and call.name not in other.bases
            merged = alone and (not calls.build.entities.exported[call.row] or duty(call.name) is None)
            if name and (_is_piece(name) or merged):
                if call.row not in seen and len(seen) < _DEPTH * 8:
                    seen.add(call.row)
                    yield from self._reached(calls, other, call.row, seen)
            else:
                yield call

    @staticmethod
    def _wraps_free(calls: Calls, call: Call) -> bool:
        return call.row >= 0 and any(inner.tail and inner.name in _FREES for inner in calls.of(call.row))

    # Creation

    def creation(self) -> Iterator[Concern]:
        for _, new, name in self._changed:
            reason = self._creation_reason(new, frozenset())
            if reason:
                text = f"{name} acts when something is made ({reason}): what exists keeps what the old code gave it"
                yield Concern(ConcernKind.CREATION, name, text, (reason,))

    def _creation_reason(self, row: int, above: frozenset[int]) -> str:
        """Why a function is taken to run only when something is made; "" if it is not."""
        name = self._new.entities.names[row]
        if int(self._new.entities.address[row]) in self._new.init_array:
            return _CONSTRUCTOR if not above else f"{name}() is a constructor"
        if creates(stem_of(name).base):
            return "by its name" if not above else f"called only from {name}()"
        callers = self._new_calls.callers.get(row, set()) - {row}
        takers = self._new_calls.takers.get(row, set())
        members = self._new_initial.members(row)
        once = bool(takers) and all(self._runs_once(taker) for taker in takers)
        unexplained = bool(self._new.taken[row]) and not takers and not members
        if unexplained or (takers and not once) or len(above) >= _DEPTH or callers & above:
            return ""
        if not all(creates(member.rpartition(".")[2]) for member in members):
            return ""
        if not all(self._creation_reason(caller, above | {row}) for caller in callers):
            return ""
        reasons = ["run by pthread_once()"] if once else []
        reasons += [f"it is {_names(members)}"] if members else []
        if callers:
            here = "here " if self._new.entities.exported[row] else ""
            names = _names([f"{self._new.entities.names[caller]}()" for caller in sorted(callers)])
            reasons.append(f"called {here}only from {names}")
        return " and ".join(reasons)

    def _runs_once(self, row: int) -> bool:
        return any(call.name == "pthread_once" for call in self._new_calls.of(row))

    # Contents

    def contents(self) -> Iterator[Concern]:
        if not self._comparison.initial_changed:
            return
        old, new = Initial(self._old), self._new_initial
        for old_row, row in self._comparison.initial_changed:
            name, what = self._new.entities.names[row], difference(old, old_row, new, row)
            if int(self._new.entities.kind[row]) in (Kind.OBJECT, Kind.TLS):
                text = f"{name}: {what}; the running value stays"
                yield Concern(ConcernKind.INITIAL, name, text, (what,))
            elif stem_of(name).base not in ("__func__", "__FUNCTION__", "__PRETTY_FUNCTION__"):
                yield Concern(ConcernKind.CONSTANT, name, f"{name}: {what}; changes with the commit", (what,))

    # Texts

    def texts(self) -> Iterator[Concern]:
        for old, new, name in self._changed:
            was, now = _texts(self._old_calls, old), _texts(self._new_calls, new)
            evidence = (*(f"- {text}" for text in sorted(was - now)), *(f"+ {text}" for text in sorted(now - was)))
            if evidence:
                yield Concern(ConcernKind.TEXT, name, f"{name} names other texts: {', '.join(evidence)}", evidence)


def _is_piece(name: str) -> bool:
    return bool({"cold", "part"} & set(stem_of(name).clones))


def _texts(calls: Calls, row: int) -> set[str]:
    """Texts that a function names.  Short ones may be numbers that look like letters."""
    build, found = calls.build, set()
    for index in calls.references_of(row).tolist():
        references = build.references
        if references.form[index] == Form.LEA and references.target_kind[index] == TargetKind.ANONYMOUS:
            text = text_at(build, int(references.target[index]))
            if len(text) > 5:
                found.add(text)
    return found


def _difference(was: Counter[str], now: Counter[str]) -> str:
    gained = [_times(name, now[name]) for name in sorted(now) if not was[name]]
    lost = [_times(name, was[name]) for name in sorted(was) if not now[name]]
    other = [
        f"calls {_times(name, now[name])} instead of {was[name]}×"
        for name in sorted(was)
        if now[name] and now[name] != was[name]
    ]
    parts = [f"now calls {', '.join(gained)}"] if gained else []
    parts += [f"no longer calls {', '.join(lost)}"] if lost else []
    return "; ".join(parts + other)


def _listed(duties: Counter[str]) -> str:
    return ", ".join(_times(name, count) for name, count in sorted(duties.items())) or "nothing"


def _times(name: str, count: int) -> str:
    return f"{name}()" if count == 1 else f"{name}() {count}×"


def _names(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
