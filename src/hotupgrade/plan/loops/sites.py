"""The call sites of a loop that a restart has to know, and which clean-up and set-up calls it may skip."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from hotupgrade.binary.debug.model import Debug
from hotupgrade.plan.fields import difference
from hotupgrade.plan.layouts import changes
from hotupgrade.plan.loops.code import Code
from hotupgrade.plan.loops.model import Pair, Site, SiteKind
from hotupgrade.plan.loops.paths import Types
from hotupgrade.plan.loops.profile import LoopProfile, Returning, Skip, call_name
from hotupgrade.plan.model import Comparison


@dataclass(frozen=True)
class OldLoop:
    """The loop as one image of the process has it; ``comparison`` is of that image's build with the new one."""

    image: int
    code: Code
    comparison: Comparison


@dataclass(frozen=True)
class Skips:
    """The pairs, and for each build (in the order of the loops that were asked for) the sites of those skipped."""

    pairs: tuple[Pair, ...]
    sites: tuple[tuple[Site, ...], ...]


class _NoSkip(Exception):
    """Why the calls are made as written."""


def plain_sites(code: Code, kind: SiteKind, names: Sequence[str]) -> Iterator[Site]:
    """Every direct call of one of these functions."""
    for name in names:
        for vaddr in code.calls(name):
            yield Site(vaddr, kind, name)


def skips(profile: LoopProfile, old: Sequence[OldLoop], new: Code) -> Skips:
    codes = [*(loop.code for loop in old), new]
    pairs: list[Pair] = []
    sites: list[list[Site]] = [[] for _ in codes]
    for number, skip in enumerate(profile.skip):
        clean, setup = (", ".join(map(call_name, calls)) for calls in (skip.clean, skip.setup))
        try:
            chosen = [_Chosen(code, skip) for code in codes]
            _require_same(old, chosen)
            _require_types(skip.types, old, new)
        except _NoSkip as error:
            pairs.append(Pair(clean, setup, str(error)))
            continue
        pairs.append(Pair(chosen[0].clean_name, chosen[0].setup_name))
        for choice, collected in zip(chosen, sites, strict=True):
            collected.extend(choice.sites(number))
    return Skips(tuple(pairs), tuple(tuple(found) for found in sites))


class _Chosen:
    """What of the alternatives one build calls.

    Raises:
        _NoSkip: none, or more than one, or it is no call that could be skipped.
    """

    def __init__(self, code: Code, skip: Skip) -> None:
        self.code = code
        self._first = skip.first
        self._setup = self._choose(skip.setup)
        self._clean = self._choose(skip.clean) if skip.clean else None

    @property
    def setup_name(self) -> str:
        return call_name(self._setup)

    @property
    def clean_name(self) -> str:
        return "" if self._clean is None else call_name(self._clean)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in (self.clean_name, self.setup_name) if name)

    def sites(self, pair: int) -> Iterator[Site]:
        calls = ((SiteKind.SETUP, self._setup), (SiteKind.CLEAN, self._clean))
        for kind, call in calls:
            if call is not None:
                value = call.returns if isinstance(call, Returning) else None
                for vaddr in self._calls(call_name(call)):
                    yield Site(vaddr, kind, call_name(call), pair, value)

    def _choose(self, calls: Sequence[str | Returning]) -> str | Returning:
        found = [call for call in calls if self._calls(call_name(call))]
        label = self.code.build.label
        if not found:
            names = " or ".join(map(call_name, calls))
            how = "does not begin with a direct call of" if self._first else "has no direct call of"
            raise _NoSkip(f"the loop in {label} {how} {names}")
        if len(found) > 1:
            names = " and ".join(map(call_name, found))
            raise _NoSkip(f"the loop in {label} calls {names}: it was inlined in one place, but not in the other")
        name = call_name(found[0])
        for call in calls if not self._first else ():
            if self.code.reaches_otherwise(call_name(call)):
                raise _NoSkip(f"the loop in {label} leads to {call_name(call)} by another instruction than a call")
        if not isinstance(found[0], Returning) and _returns_something(self.code.build.debug, name):
            raise _NoSkip(f"{name} returns something, and the profile does not say what ('returns')")
        return found[0]

    def _calls(self, name: str) -> list[int]:
        calls = self.code.calls(name)
        return [vaddr for vaddr in calls if vaddr == self.code.first_call] if self._first else calls


def _returns_something(debug: Debug, name: str) -> bool:
    texts = [text for function, _, texts in debug.functions if function == name for text in texts]
    texts += debug.imports.get(name, [])
    return any(not text.endswith("-> void") for text in texts)


def _require_same(old: Sequence[OldLoop], chosen: Sequence[_Chosen]) -> None:
    """The calls must mean the same in both builds; what other modules have is taken to."""
    new = chosen[-1]
    for loop, choice in zip(old, chosen[:-1], strict=True):
        comparison = loop.comparison
        rows = [(name, int(comparison.new_of[row])) for name, row in _rows(choice)]
        for name, row in [*rows, *_rows(new)]:
            if row < 0 or not comparison.same[row] or comparison.replaced[row]:
                raise _NoSkip(f"{name} is not the same in {comparison.old.label} and {comparison.new.label}")


def _rows(chosen: _Chosen) -> list[tuple[str, int]]:
    """The called functions that the module has itself."""
    transfers = chosen.code.transfers
    found = {(name, t.row) for name in chosen.names for t in transfers if name in t.names and t.row >= 0}
    return sorted(found)


def _require_types(names: Collection[str], old: Sequence[OldLoop], new: Code) -> None:
    if not names:
        return
    for loop in old:
        before, after = loop.comparison.old, loop.comparison.new
        held: set[str] = set()
        for code in (loop.code, new):
            if code.build.debug.missing:
                raise _NoSkip(f"{code.build.label}: {code.build.debug.missing}, so types cannot be compared")
            types = Types(code.build.debug, code.build.entities.files[code.row])
            for name in names:
                if types.definition(name) is None:
                    raise _NoSkip(f"{code.build.label} has no type '{name}', or several")
                held |= types.held(name)
        for change in changes(before.debug, after.debug):
            if change.name in held:
                raise _NoSkip(f"{change.name} changed: {difference(change.old, change.new)}")
