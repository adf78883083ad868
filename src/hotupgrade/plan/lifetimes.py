"""Types of which no old object can be alive when the new code takes over.

That is proven only for structures whose every mention in the running code is an automatic object of a function that is
replaced (no replaced function is on any stack at the commit), or a pointer that is handed to a local function that is
replaced and whose address nobody takes.  A pointer in a variable, a member of another type, a static object, a result:
each may lead to an object on the heap, and ends the proof.  So does what cannot be read.

What it does not see is an automatic object that is copied to the heap byte by byte, and read from there without any
variable of its type.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from functools import partial

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.debug.mentions import Mentions, all_users
from hotupgrade.binary.model import Flags, Kind
from hotupgrade.plan.model import Comparison
from hotupgrade.plan.stem import stem_of


def short_lived(comparisons: Collection[Comparison], names: Collection[str]) -> frozenset[str]:
    """Those of these types that are proven to have no old object.

    ``comparisons`` are those of every build in the process with the new one: any of them may have left objects.
    """
    proven = {name for name in names if name.startswith(("struct ", "union "))}
    for comparison in comparisons:
        if proven and comparison.old.build_id != comparison.new.build_id:
            proven &= _short_lived_in(comparison, proven)
    return frozenset(proven)


def _short_lived_in(comparison: Comparison, names: Collection[str]) -> set[str]:
    build = comparison.old
    spoken = build.spoken_of(names) if not build.debug.missing else None
    if spoken is None:
        return set()
    functions = _Functions(build, comparison.old_replaced, spoken.inlined)
    return {
        name
        for name in names
        if name not in build.debug.types or _ends_with_its_functions(spoken.mentions[name], functions)
    }


def _ends_with_its_functions(mentions: Mentions, functions: _Functions) -> bool:
    if mentions.elsewhere or not mentions.objects:
        return False
    return all(map(functions.replaced, mentions.objects)) and all(
        map(partial(functions.replaced, local=True), mentions.parameters)
    )


class _Functions:
    """The functions of a build by the names that debug information knows."""

    def __init__(self, build: Build, replaced: Flags, inlined: Mapping[str, set[str]]) -> None:
        self._build = build
        self._replaced = replaced
        self._inlined = inlined
        self._rows: dict[str, list[int]] = defaultdict(list)
        for row in np.flatnonzero(build.entities.kind == Kind.FUNCTION).tolist():
            for alias in build.entities.aliases[row]:
                self._rows[stem_of(alias).base].append(row)

    def replaced(self, name: str, *, local: bool = False) -> bool:
        """Whether all code of a function is replaced, wherever it was inlined; ``local``: and nobody can call it by
        its address or from another module."""
        users = list(all_users(name, self._inlined))
        rows = [row for user in users for row in self._rows.get(user, ())]
        if not rows or not all(user in self._rows or user in self._inlined for user in users):
            return False
        own = self._rows.get(name, ())
        return all(self._replaced[row] for row in rows) and not (local and any(self._build.plain[row] for row in own))
