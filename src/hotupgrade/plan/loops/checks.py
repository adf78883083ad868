"""What must hold of any loop whose thread is to be moved, with a profile or without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hotupgrade.errors import Reason
from hotupgrade.plan.entries import branching_into_entry
from hotupgrade.plan.loops.sites import OldLoop
from hotupgrade.plan.prototypes import changed_prototypes


def entry_branches(name: str, old: Sequence[OldLoop]) -> Iterator[Reason]:
    """Builds in which running code would meet a jump at the loop's entry."""
    for loop in old:
        flags = np.zeros(len(loop.code.build.entities), np.bool_)
        flags[loop.code.row] = True
        if branching_into_entry(loop.code.build, flags):
            text = (
                f"{name} changed, and its code in {loop.code.build.label} branches into its own first five bytes, where"
                " the jump to the new code would stand; nothing can be done about it here: restart the program"
            )
            yield Reason("loop-entry-branch", name, text)


def callees(name: str, old: Sequence[OldLoop]) -> Iterator[Reason]:
    """Functions that the old loop cannot call when they are new already."""
    yield from _prototypes(name, old)
    yield from _conventions(name, old)


def _conventions(name: str, old: Sequence[OldLoop]) -> Iterator[Reason]:
    """Local functions that changed and whose address was given away: their entry must lead to the new code, but who
    calls them directly may count on what the compiler saw in the old (gcc's -fipa-ra)."""
    seen: set[str] = set()
    for loop in old:
        entities = loop.code.build.entities
        for row in sorted(_reached(loop)):
            callee = entities.names[row]
            if not entities.exported[row] and callee not in seen:
                seen.add(callee)
                text = (
                    f"{callee} changed, and {name}, which changed too, calls it directly while its address is used as "
                    f"well; until its thread has left, {name} would call the new one and may count on registers that "
                    f"the old one left alone: upgrade {callee} first, or {name} first, or leave one of the changes out"
                )
                yield Reason("loop-callee-convention", callee, text)


def _prototypes(name: str, old: Sequence[OldLoop]) -> Iterator[Reason]:
    """Functions that the old loop would call in the old way when they are new already.

    Until its thread has moved, the old loop and the old local functions that it calls lead to the new code of every
    function that has an entry of its own.
    """
    seen: set[str] = set()
    for loop in old:
        changed = {found.name: found for found in changed_prototypes(loop.comparison)}
        for row in sorted(_reached(loop)):
            partner = int(loop.comparison.new_of[row])
            callee = loop.comparison.new.entities.names[partner] if partner >= 0 else ""
            if callee in changed and callee not in seen:
                seen.add(callee)
                text = (
                    f"{changed[callee]}; {name} is in its loop while the code is replaced, and would call it as before"
                    " until it has left: keep the prototype, and give the changed function another name"
                )
                yield Reason("loop-callee-prototype", callee, text)


def _reached(loop: OldLoop) -> set[int]:
    """Rows of replaced functions with an entry of their own that old code of this loop leads to."""
    build, comparison = loop.code.build, loop.comparison
    functions = loop.code.functions
    found: set[int] = set()
    seen: set[int] = set()
    work = [loop.code.row]
    while work:
        row = work.pop()
        if row in seen:
            continue
        seen.add(row)
        for transfer in functions.code(row).transfers:
            if transfer.row < 0 or transfer.row in loop.code.rows:
                continue
            if not build.plain[transfer.row]:
                work.append(transfer.row)
            elif comparison.old_replaced[transfer.row]:
                found.add(transfer.row)
    return found
