"""Who calls whom within one build, as the machine code says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import I32, Flags, Form, Kind, TargetKind
from hotupgrade.plan.rows import Rows
from hotupgrade.plan.stem import stem_of

_TRANSFERS = (Form.CALL, Form.JUMP, Form.BRANCH, Form.CALL_MEMORY, Form.JUMP_MEMORY)
_TAIL = (Form.JUMP, Form.JUMP_MEMORY)


@dataclass(frozen=True, slots=True)
class Call:
    """One transfer to another function."""

    name: str  # of the function, without what the compiler adds to it
    row: int  # -1: it belongs to another module
    tail: bool  # it returns to the caller's caller


class Calls:
    """The calls of a build.  Calls through pointers are not known."""

    def __init__(self, build: Build) -> None:
        self.build = build
        references = build.references
        self._kind = references.target_kind
        self._entity = references.entity
        self._form = references.form
        self._is_transfer: Flags = np.isin(references.form, _TRANSFERS)
        self._by_function = np.argsort(references.function, kind="stable")
        self._sorted = references.function[self._by_function]

    def of(self, row: int) -> Iterator[Call]:
        """The calls of one function, in the order of their addresses."""
        for index in self.references_of(row).tolist():
            if self._is_transfer[index] and (found := self._called(index)) is not None:
                name, callee = found
                if callee != row:
                    yield Call(stem_of(name).base, callee, int(self._form[index]) in _TAIL)

    def references_of(self, row: int) -> npt.NDArray[np.intp]:
        """Indices of the references that one function makes."""
        first, last = np.searchsorted(self._sorted, (row, row + 1))
        return np.sort(self._by_function[first:last])

    @cached_property
    def callers(self) -> dict[int, set[int]]:
        """Functions of this build → those that call them directly."""
        function = self.build.references.function
        called = self._rows_called()
        return _grouped(called, function, self._is_transfer & (function >= 0) & (called >= 0) & (called != function))

    @cached_property
    def takers(self) -> dict[int, set[int]]:
        """Functions of this build → those whose code takes their address."""
        references = self.build.references
        takes = (references.form == Form.LEA) & (self._kind == TargetKind.ENTITY) & (references.function >= 0)
        takes[takes] = self.build.entities.kind[self._entity[takes]] == Kind.FUNCTION
        return _grouped(self._entity, references.function, takes)

    @cached_property
    def bases(self) -> frozenset[str]:
        """The names of all functions, without what the compiler adds to them."""
        rows = np.flatnonzero(self.build.entities.kind == Kind.FUNCTION).tolist()
        return frozenset(stem_of(self.build.entities.names[row]).base for row in rows)

    def _rows_called(self) -> I32:
        """Per reference: the function of this build that it leads to, or -1."""
        found = np.full(len(self._kind), -1, np.int32)
        direct = self._kind == TargetKind.ENTITY
        rows = self._entity[direct]
        found[direct] = np.where(self.build.entities.kind[rows] == Kind.FUNCTION, rows, -1)
        by_slot = np.isin(self._kind, (TargetKind.PLT, TargetKind.GOT)) & (self._entity >= 0)
        slots = np.array([-1 if called is None else called[1] for called in self._slots] or [-1], np.int32)
        found[by_slot] = slots[self._entity[by_slot]]
        return found

    def _called(self, index: int) -> tuple[str, int] | None:
        """Name and row of what a transfer leads to."""
        kind, entity = int(self._kind[index]), int(self._entity[index])
        if kind == TargetKind.ENTITY:
            return (self.build.entities.names[entity], entity) if self._is_function(entity) else None
        if kind in (TargetKind.PLT, TargetKind.GOT) and entity >= 0:
            return self._slots[entity]
        return None

    @cached_property
    def _slots(self) -> list[tuple[str, int] | None]:
        rows = Rows(self.build)
        defined = {
            symbol.name: rows.of_symbol(number)
            for number, symbol in enumerate(self.build.dynamic_symbols)
            if symbol.defined
        }
        found: list[tuple[str, int] | None] = []
        for slot in self.build.slots:
            row = defined.get(slot.symbol, -1) if slot.symbol else rows.one_at(slot.addend)[0]
            name = slot.symbol or (self.build.entities.names[row] if row >= 0 else "")
            found.append((name, row if self._is_function(row) else -1) if name else None)
        return found

    def _is_function(self, row: int) -> bool:
        return row >= 0 and int(self.build.entities.kind[row]) == Kind.FUNCTION


def _grouped(rows: I32, users: I32, chosen: Flags) -> dict[int, set[int]]:
    """Row → users of it, of the references that are chosen."""
    found: dict[int, set[int]] = {}
    for row, user in set(zip(rows[chosen].tolist(), users[chosen].tolist(), strict=True)):
        found.setdefault(row, set()).add(user)
    return found
