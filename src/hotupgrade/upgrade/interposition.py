"""Names by which modules find one another: an upgrade must not leave one bound to what a fresh start would not.

The linker binds a name to the first module that defines it, the program before all.  Slots that it has filled stay as
they are, so a new build may neither define a name anew before the one that is in use, nor cease to define one that
another module would then be found for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import Kind
from hotupgrade.binary.relocations import Relocation
from hotupgrade.errors import Reason
from hotupgrade.target.modules import Module, Scope


def refusals(modules: Sequence[Module], module: Module, loaded: Build, new: Build) -> Iterator[Reason]:
    """Names that a fresh start of ``new`` would bind otherwise than the process has; ``loaded``: what it started with.

    A program's copies of its libraries' variables (COPY) are no matter of names: they stay the ones in use.
    """
    before, after = _exports(loaded), _exports(new)
    copied = _copied(loaded) | _copied(new)
    added, removed = sorted(after - before - copied), sorted(before - after - copied)
    if not added and not removed:
        return
    for other in modules:
        users = [name for name in (*added, *removed) if other is not module and other.imports(name)]
        if not users:
            continue
        scope = Scope(modules, other)
        for name in users:
            found = scope.definers(name)
            if name in after and scope.comes_before(module, found[0] if found else None):
                yield _added(module, other, name, found[0] if found else None)
            elif name in before and found[0] is module and len(found) > 1:
                yield _removed(module, other, name, found[1])


def _exports(build: Build) -> set[str]:
    rows = np.flatnonzero(build.entities.exported & (build.entities.kind != Kind.TLS)).tolist()
    return {name for row in rows for name in build.entities.aliases[row]}


def _copied(build: Build) -> set[str]:
    numbers = build.dynamic_relocations.symbol[build.dynamic_relocations.type == Relocation.COPY]
    names = {build.dynamic_symbols[number].name for number in numbers.tolist()}
    rows = {row for name, row in build.by_name.items() if name.split("@")[0] in names}
    return {name for row in rows for name in build.entities.aliases[row]}


def _added(module: Module, other: Module, name: str, present: Module | None) -> Reason:
    now = "nobody defines it" if present is None else f"it is bound to the one of {present.name}"
    text = (
        f"the new build of {module.name} defines {name}, which {other.name} uses: now {now}, a fresh start would bind "
        f"it to the new one; keep {name} out of the dynamic symbols, or restart the program"
    )
    return Reason("interposition", name, text)


def _removed(module: Module, other: Module, name: str, following: Module) -> Reason:
    text = (
        f"{other.name} uses {name} of {module.name}, which the new build does not define any more: a fresh start would "
        f"bind it to the one of {following.name}; only a restart does that"
    )
    return Reason("interposition", name, text)
