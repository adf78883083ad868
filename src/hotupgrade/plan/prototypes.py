"""Prototypes of changed functions: who calls them, and whether those callers change with them.

Within a module nothing can go wrong: a caller that changed is replaced in the same commit, and one that did not is
what the new build itself has.  Callers in other modules are another matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.debug.model import ATOMIC, Debug, plain
from hotupgrade.binary.model import Kind
from hotupgrade.errors import Reason
from hotupgrade.plan.model import Comparison
from hotupgrade.plan.stem import stem_of

Texts = frozenset[str]


@dataclass(frozen=True)
class Changed:
    """A function that changed and has another prototype."""

    name: str
    names: tuple[str, ...]  # with its aliases
    exported: bool
    old: Texts
    new: Texts

    def __str__(self) -> str:
        return f"{self.name}: {_either(self.old)} becomes {_either(self.new)}"


def changed_prototypes(comparison: Comparison) -> list[Changed]:
    """By name.  A prototype that only one build knows says nothing."""
    atomics = comparison.old.debug.atomics and comparison.new.debug.atomics
    rows = np.flatnonzero(comparison.replaced & (comparison.old_of >= 0)).tolist()
    wanted = _names(comparison.new, rows) | _names(comparison.old, comparison.old_of[rows].tolist())
    old = _Prototypes(comparison.old.debug, wanted, atomics)
    new = _Prototypes(comparison.new.debug, wanted, atomics)
    found = []
    for row in rows:
        before = old.of(comparison.old, int(comparison.old_of[row]))
        after = new.of(comparison.new, row)
        if before and after and before != after:
            entities = comparison.new.entities
            exported = bool(entities.exported[row])
            found.append(Changed(entities.names[row], entities.aliases[row], exported, before, after))
    return sorted(found, key=lambda changed: changed.name)


def prototype_notes(comparison: Comparison) -> Iterator[Reason]:
    for changed in changed_prototypes(comparison):
        text = f"{changed}; its callers in this module change in the same commit"
        yield Reason("prototype-changed", changed.name, text)


def prototype_reasons(
    comparison: Comparison, importers: Mapping[str, Callable[[str], bool]], upgraded: Mapping[str, Debug]
) -> Iterator[Reason]:
    """Changed prototypes of functions that other modules call.

    Args:
        comparison: of the module that defines them.
        importers: other modules of the process, and whether each imports a name.
        upgraded: those of them that get a new build in the same commit, and what that says.
    """
    for changed in changed_prototypes(comparison):
        if not changed.exported:
            continue
        for module, imports in importers.items():
            wanted = [name for name in changed.names if imports(name)]
            if not wanted:
                continue
            debug = upgraded.get(module)
            if debug is not None and any(changed.new & set(debug.imports.get(name, ())) for name in wanted):
                continue  # it is compiled for the new prototype, and changes in the same commit
            text = (
                f"{changed}; {module} calls it as before"
                f"{'' if debug is None else ' (its new build declares it otherwise)'}: upgrade both together"
            )
            yield Reason("prototype-changed", changed.name, text)
            break


def _names(build: Build, rows: Iterable[int]) -> set[str]:
    return {stem_of(alias).base for row in rows for alias in build.entities.aliases[row]}


class _Prototypes:
    """Those of some functions, by the names that debug information has for them."""

    def __init__(self, debug: Debug, wanted: Collection[str], atomics: bool) -> None:
        functions = [entry for entry in debug.functions if entry[0] in wanted]
        self._texts = {
            (name, file): frozenset(text if atomics else text.replace(ATOMIC, "") for text in texts)
            for name, file, texts in functions
        }
        self._files = Counter(name for name, _, _ in functions)
        self._lone = {name: texts for (name, _), texts in self._texts.items() if self._files[name] == 1}

    def of(self, build: Build, row: int) -> Texts:
        """Of a function, whatever clones the compiler made of it; nothing if it is not known."""
        entities = build.entities
        if entities.kind[row] != Kind.FUNCTION:
            return frozenset()
        file = entities.files[row].rsplit("/", 1)[-1]
        for alias in entities.aliases[row]:
            name = stem_of(alias).base
            # Link-time optimisation loses files of local names.
            found = self._texts.get((name, "")) or self._texts.get((name, file)) or self._lone.get(name)
            if found:
                return found
        return frozenset()


def _either(texts: Texts) -> str:
    return " or ".join(plain(text) for text in sorted(texts))
