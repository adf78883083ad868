"""The code of one function in one build, with its pieces: whom it calls, what it reads, whether it returns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import iced_x86
import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import Form, Kind, TargetKind
from hotupgrade.plan.pieces import with_pieces
from hotupgrade.plan.stem import stem_of

CALL_SIZE = 5
_CALL = 0xE8
_TRANSFERS = (Form.CALL, Form.JUMP, Form.BRANCH, Form.SHORT, Form.CALL_MEMORY, Form.JUMP_MEMORY)
_HARMLESS = frozenset({"lto_priv"})  # a local name that link-time optimisation made unique
_STRAIGHT = (iced_x86.FlowControl.NEXT,)
_NO_POINTERS = frozenset[int]((iced_x86.Register.NONE, iced_x86.Register.RSP, iced_x86.Register.RIP))


class WrongFunction(Exception):
    """A function is not there in a way that it can be used; says why."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """A call of another function, or a jump to it."""

    vaddr: int  # of the instruction, if it is a call of 5 bytes
    names: frozenset[str]  # of the function, without what the compiler adds to them
    row: int  # -1: another module has it
    direct: bool  # ``call rel32``


class Functions:
    """The functions of a build by name."""

    def __init__(self, build: Build) -> None:
        self.build = build
        self._codes: dict[int, Code] = {}

    def find(self, name: str) -> int | None:
        """The row of a function of which the compiler made nothing else; None if there is none of that name.

        Raises:
            WrongFunction: there are several, or a variant of it.
        """
        plain, variants = self._rows(name)
        if variants:
            other = self.build.entities.names[variants[0]]
            raise WrongFunction(f"the compiler made a variant with another calling convention of it, {other}")
        if len(plain) > 1:
            raise WrongFunction(f"there are {len(plain)} functions of that name")
        return plain[0] if plain else None

    def all_of(self, name: str) -> list[int]:
        """Rows of every function of that name, and of every variant."""
        plain, variants = self._rows(name)
        return plain + variants

    def code(self, row: int) -> Code:
        if row not in self._codes:
            self._codes[row] = Code(self, row)
        return self._codes[row]

    def cold_parts(self, name: str) -> list[int]:
        names = self.build.entities.names
        return [row for row in self._by_base.get(name, ()) if "cold" in stem_of(names[row]).clones]

    def callee(self, index: int) -> tuple[frozenset[str], int]:
        """Names and row (-1: another module has it) of the function that a reference leads to."""
        references = self.build.references
        kind, entity = int(references.target_kind[index]), int(references.entity[index])
        if kind == TargetKind.ENTITY and not references.addend[index]:
            row = entity if self.build.entities.kind[entity] == Kind.FUNCTION else -1
            return self._names(row), row
        if kind in (TargetKind.PLT, TargetKind.GOT) and entity >= 0:
            slot = self.build.slots[entity]
            found = self.build.by_name.get(slot.symbol) if slot.symbol else self.build.row_at(slot.addend)
            row = found if found is not None and self.build.entities.kind[found] == Kind.FUNCTION else -1
            return (frozenset({slot.symbol}) if slot.symbol else self._names(row)), row
        return frozenset(), -1

    def _names(self, row: int) -> frozenset[str]:
        if row < 0:
            return frozenset()
        stems = (stem_of(alias) for alias in self.build.entities.aliases[row])
        # A part of a function is not the function.
        return frozenset(stem.base for stem in stems if not {"part", "cold"} & set(stem.clones))

    def _rows(self, name: str) -> tuple[list[int], list[int]]:
        plain, variants = [], []
        for row in self._by_base.get(name, ()):
            aliases = self.build.entities.aliases[row]
            stems = [stem for stem in map(stem_of, aliases) if stem.base == name]
            if any(not set(stem.clones) - _HARMLESS for stem in stems):
                plain.append(row)
            elif not all("cold" in stem.clones for stem in stems):
                variants.append(row)
        return plain, variants

    @cached_property
    def _by_base(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = defaultdict(list)
        entities = self.build.entities
        for row in np.flatnonzero(entities.kind == Kind.FUNCTION).tolist():
            for base in {stem_of(alias).base for alias in entities.aliases[row]}:
                found[base].append(row)
        return found


class Code:
    """One function and the pieces that are its own."""

    def __init__(self, functions: Functions, row: int) -> None:
        self.functions = functions
        self.build = functions.build
        self.row = row
        self.entry = int(self.build.entities.address[row])

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """The function first."""
        flags = np.zeros(len(self.build.entities), np.bool_)
        flags[self.row] = True
        names = self.build.entities.names
        own = stem_of(names[self.row]).base
        pieces = np.flatnonzero(with_pieces(self.build, flags)).tolist()
        return (self.row, *(row for row in pieces if row != self.row and stem_of(names[row]).base == own))

    @cached_property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """[low, high) of the function and of each piece, vaddrs."""
        starts = [int(self.build.entities.address[row]) for row in self.rows]
        ends = [low + int(self.build.extent[row]) for low, row in zip(starts, self.rows, strict=True)]
        return tuple((low, min(high, self.build.span)) for low, high in zip(starts, ends, strict=True))

    @cached_property
    def transfers(self) -> tuple[Transfer, ...]:
        """To other functions, in the order of their addresses."""
        references = self.build.references
        mine = np.isin(references.function, self.rows) & np.isin(references.form, _TRANSFERS)
        found = []
        for index in np.flatnonzero(mine).tolist():
            names, row = self.functions.callee(index)
            if names and row not in self.rows:
                vaddr = int(references.position[index]) - 1
                direct = references.form[index] == Form.CALL and self.build.read(vaddr, 1)[0] == _CALL
                found.append(Transfer(vaddr, names, row, bool(direct)))
        return tuple(found)

    def calls(self, name: str) -> list[int]:
        """vaddrs of the direct calls of a function."""
        return [transfer.vaddr for transfer in self.transfers if transfer.direct and name in transfer.names]

    def reaches_otherwise(self, name: str) -> bool:
        """Whether it also jumps to the function, or calls it in another way than by ``call rel32``."""
        return any(name in transfer.names and not transfer.direct for transfer in self.transfers)

    @cached_property
    def returns(self) -> bool:
        return any(i.flow_control == iced_x86.FlowControl.RETURN for i in self._instructions())

    @cached_property
    def displacements(self) -> frozenset[int]:
        """Of all memory operands with a base register other than the stack pointer."""
        return frozenset(
            instruction.memory_displacement
            for instruction in self._instructions()
            if instruction.memory_base not in _NO_POINTERS
        )

    @cached_property
    def first_call(self) -> int:
        """vaddr of the call that entering the function leads to before anything is decided; -1 if there is none."""
        for instruction in self._instructions():
            if instruction.code == iced_x86.Code.CALL_REL32_64:
                return instruction.ip
            if instruction.flow_control not in _STRAIGHT:
                break
        return -1

    def _instructions(self) -> Iterator[iced_x86.Instruction]:
        """Of the function, then of its pieces."""
        for low, high in self.ranges:
            yield from iced_x86.Decoder(64, self.build.read(low, high - low), ip=low)
