"""Addresses at which one object ends and the next thing begins: which of the two does an instruction mean?

While both keep their distance it does not matter.  Where they part (one has a home, the other comes along in the new
image) the wrong answer sends a loop past the end of its table, so the code is asked, and in doubt the plan is refused.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass

import iced_x86
import numpy as np
import numpy.typing as npt
from iced_x86 import FlowControl, Instruction, Mnemonic, OpAccess, OpKind, Register

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import I32, I64, THREAD_LOCAL_FORMS, Flags, Form, Kind, References, TargetKind
from hotupgrade.binary.relocations import Relocation
from hotupgrade.plan.homes import NEW, Homes

Indices = npt.NDArray[np.intp]

_FAR = 400  # instructions to follow a pointer
_LARGEST_ROW = 4096  # bytes: no field of a table's first row lies further from its start
_STEP_BEFORE = 4  # instructions between the step of a loop and its test
_ARGUMENTS = frozenset((Register.RDI, Register.RSI, Register.RDX, Register.RCX, Register.R8, Register.R9))
_CLOBBERED = _ARGUMENTS | {Register.RAX, Register.R10, Register.R11}
_READS = (OpAccess.READ, OpAccess.COND_READ, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE)
_WRITES = (OpAccess.WRITE, OpAccess.COND_WRITE, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE)


class Meaning(enum.Enum):
    START = enum.auto()  # of what begins there
    END = enum.auto()  # of the object that ends there
    PASSED = enum.auto()  # to a function: of what begins there, unless something else is known (registers may be stale)
    UNCLEAR = enum.auto()


@dataclass(frozen=True, slots=True)
class Unclear:
    """A reference that means either of two things which part."""

    function: int
    ending: int  # row of the object that ends there
    vaddr: int


def settle(build: Build, homes: Homes, functions: Flags) -> tuple[References, tuple[Unclear, ...]]:
    """The build's references with end pointers attributed to the objects that end there, for some functions.

    Only where it matters, that is, where what ends and what begins at the address will part.
    """
    every = build.references
    candidates, endings, offsets = _candidates(build, functions)
    kind, entity, addend = every.target_kind.copy(), every.entity.copy(), every.addend.copy()
    unclear: list[Unclear] = []
    for index, ending, offset in zip(candidates.tolist(), endings.tolist(), offsets.tolist(), strict=True):
        if not _part(build, homes, index, ending, offset):
            continue
        meaning = _meaning(build, index, ending, offset)
        if meaning is Meaning.END:
            kind[index], entity[index] = TargetKind.ENTITY, ending
            addend[index] = int(build.entities.size[ending]) + offset
        elif meaning is Meaning.UNCLEAR:
            unclear.append(Unclear(int(every.function[index]), ending, int(every.target[index])))
    settled = dataclasses.replace(every, target_kind=kind, entity=entity, addend=addend)
    return settled, tuple(unclear)


def end_pointers(build: Build) -> Indices:
    """References to otherwise unknown places that are the end of an object which the same function uses."""
    every = build.references
    unknown = (every.target_kind == TargetKind.UNKNOWN) & (every.function >= 0)
    functions = np.zeros(len(build.entities), dtype=np.bool_)
    functions[every.function[unknown]] = True
    candidates, _, _ = _candidates(build, functions)
    found: Indices = candidates[unknown[candidates]]
    return found


def _candidates(build: Build, functions: Flags) -> tuple[Indices, I32, I64]:
    """References that take an address at which an object ends that the same function also uses.

    Parallel: the object, and how far behind its end the address lies.  A loop over one field of a table begins at that
    field in the first row, and so ends at the same distance behind the last one.
    """
    every, entities = build.references, build.entities
    data = np.flatnonzero(np.isin(entities.kind, (Kind.OBJECT, Kind.RELRO, Kind.CONSTANT)) & (entities.size > 0))
    ends = (entities.address[data] + entities.size[data]).astype(np.int64)
    order = np.argsort(ends, kind="stable")
    data, ends = data[order].astype(np.int32), ends[order]
    takes = np.flatnonzero((every.form == Form.LEA) & functions[np.maximum(every.function, 0)] & (every.function >= 0))
    if not len(data) or not len(takes):
        return np.empty(0, dtype=np.intp), np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int64)
    place = np.minimum(np.searchsorted(ends, every.target[takes].astype(np.int64)), len(ends) - 1)
    ending = data[place]
    named = every.target_kind[takes] == TargetKind.ENTITY
    hit = (ends[place] == every.target[takes].astype(np.int64)) & ~(named & (every.entity[takes] == ending))
    exact, ending = takes[hit], ending[hit]
    uses = every.target_kind == TargetKind.ENTITY
    used = every.function[uses].astype(np.int64) << 32 | every.entity[uses]
    also = np.isin(every.function[exact].astype(np.int64) << 32 | ending, used)
    if build.bare:  # what lies before an address may be of the same object as what is used
        also |= build.unbounded[ending]
    exact, ending = exact[also], ending[also]
    shifted, objects, offsets = _shifted_ends(build, takes)
    fresh = ~np.isin(shifted, exact)
    return (
        np.concatenate([exact, shifted[fresh]]),
        np.concatenate([ending, objects[fresh]]),
        np.concatenate([np.zeros(len(exact), dtype=np.int64), offsets[fresh]]),
    )


def _shifted_ends(build: Build, takes: Indices) -> tuple[Indices, I32, I64]:
    """Addresses that lie as far behind an object's end as another one, taken by the same function, behind its start."""
    every, entities = build.references, build.entities
    kinds = (Kind.OBJECT, Kind.RELRO, Kind.CONSTANT)
    by_function: dict[int, list[int]] = {}
    for index in takes.tolist():
        by_function.setdefault(int(every.function[index]), []).append(index)
    found: list[tuple[int, int, int]] = []
    for indices in by_function.values():
        ends: dict[int, tuple[int, int]] = {}
        for index in indices:
            row, offset = int(every.entity[index]), int(every.addend[index])
            if every.target_kind[index] != TargetKind.ENTITY or entities.kind[row] not in kinds:
                continue
            size = int(entities.size[row])
            if 0 < offset < min(size, _LARGEST_ROW):
                ends[int(entities.address[row]) + size + offset] = (row, offset)
        if ends:
            found += [(index, *ends[at]) for index in indices if (at := int(every.target[index])) in ends]
    table = np.array(found, dtype=np.int64).reshape(-1, 3)
    return table[:, 0].astype(np.intp), table[:, 1].astype(np.int32), table[:, 2]


def _part(build: Build, homes: Homes, index: int, ending: int, offset: int) -> bool:
    """Whether what ends and what begins at the address will no longer be neighbours."""
    every = build.references
    if every.target_kind[index] == TargetKind.UNKNOWN:
        return True
    if every.target_kind[index] != TargetKind.ENTITY:
        return bool(homes.owner[ending] != NEW)
    begins = int(every.entity[index])
    if homes.owner[ending] == NEW or homes.owner[begins] == NEW:
        return bool(homes.owner[ending] != homes.owner[begins])
    distance = int(homes.address[begins]) + int(every.addend[index]) - int(homes.address[ending])
    return distance != int(build.entities.size[ending]) + offset


def _meaning(build: Build, index: int, ending: int, offset: int) -> Meaning:
    if build.references.target_kind[index] == TargetKind.UNKNOWN:
        return Meaning.END  # nothing else is there
    meaning = _Follower(build, index, ending, offset).follow()
    if meaning is Meaning.UNCLEAR and _is_only_use(build, index):
        return Meaning.START
    return meaning


def _is_only_use(build: Build, index: int) -> bool:
    """Whether what begins at the address would have no user but this one.

    Compilers do not keep data that nobody uses, so this is the use.  Padding is no data.
    """
    every = build.references
    vaddr = int(every.target[index])
    if every.target_kind[index] == TargetKind.ENTITY:
        if build.entities.exported[every.entity[index]]:
            return False
    else:
        bounds = build.boundaries
        following = int(bounds[np.searchsorted(bounds, vaddr, side="right")])
        if not any(build.read(vaddr, following - vaddr)):
            return False
    relocations = build.dynamic_relocations
    pointers = np.isin(relocations.type, (Relocation.RELATIVE, Relocation.IRELATIVE)) & (relocations.addend == vaddr)
    uses = (every.target == vaddr) & ~np.isin(every.form, THREAD_LOCAL_FORMS)
    return int(uses.sum()) == 1 and not pointers.any()


@dataclass(frozen=True)
class _Path:
    """Code to be looked at, and what registers hold when it begins."""

    vaddr: int
    holders: frozenset[int]  # the address in question
    starts: frozenset[int]  # the start of the object that ends there
    stepped: frozenset[int]  # something that was added to a moment ago


class _Follower:
    """Follows a pointer from the ``lea`` that makes it to the uses that tell what it points to, on all paths."""

    def __init__(self, build: Build, index: int, ending: int, offset: int = 0) -> None:
        every = build.references
        self._build = build
        self._index = index
        self._first = int(build.entities.address[ending]) + offset
        self._unnamed = every.target_kind[index] == TargetKind.ANONYMOUS
        row = int(every.function[index])
        self._low = int(build.entities.address[row])
        self._high = self._low + int(build.extent[row])
        self._info = iced_x86.InstructionInfoFactory()
        self._holders: set[int] = set()
        self._starts: set[int] = set()
        self._steps: list[set[int]] = []
        self._paths: list[_Path] = []

    def follow(self) -> Meaning:
        every = self._build.references
        position, start = int(every.position[self._index]), int(every.following[self._index])
        self._find_starts(position)
        holder = self._destination(position, start)
        self._paths = [_Path(start, frozenset({holder}), frozenset(self._starts), frozenset())]
        seen: set[_Path] = set()
        meanings: set[Meaning] = set()
        budget = _FAR
        while self._paths and budget > 0:
            path = self._paths.pop()
            if path in seen or not path.holders:
                continue
            seen.add(path)
            meaning, looked_at = self._walk(path, budget)
            budget -= looked_at
            meanings.add(meaning)
        if sure := meanings & {Meaning.START, Meaning.END}:
            return sure.pop() if len(sure) == 1 else Meaning.UNCLEAR
        return Meaning.START if Meaning.PASSED in meanings else Meaning.UNCLEAR

    def _walk(self, path: _Path, budget: int) -> tuple[Meaning, int]:
        """One path to its first telling use or to its end; branches off are left in ``_paths``."""
        self._holders, self._starts, self._steps = set(path.holders), set(path.starts), [set(path.stepped)]
        count = 0
        for count, instruction in enumerate(self._decoder(path.vaddr), 1):
            if count > budget or not self._holders:
                break
            if (meaning := self._use(instruction)) is not None:
                return meaning, count
            self._track_starts(instruction)
            self._track_steps(instruction)
            if self._branches(instruction):
                break
        return Meaning.UNCLEAR, count

    def _branches(self, instruction: Instruction) -> bool:
        """Takes note of where a branch leads; whether the code behind it is not reached."""
        flow = instruction.flow_control
        if flow in (FlowControl.UNCONDITIONAL_BRANCH, FlowControl.CONDITIONAL_BRANCH) and not self._leaves(instruction):
            stepped = frozenset().union(*self._steps)
            target = instruction.near_branch_target
            self._paths.append(_Path(target, frozenset(self._holders), frozenset(self._starts), stepped))
        return flow in (FlowControl.UNCONDITIONAL_BRANCH, FlowControl.RETURN, FlowControl.INDIRECT_BRANCH)

    def _decoder(self, vaddr: int) -> iced_x86.Decoder:
        inside = self._low <= vaddr < self._high
        code = self._build.read(vaddr, self._high - vaddr) if inside else b""
        return iced_x86.Decoder(64, code, ip=vaddr)

    def _destination(self, position: int, following: int) -> int:
        """The register that ``lea disp32(%rip), reg`` writes."""
        code = self._build.read(position - 3, following - position + 3)
        instruction = iced_x86.Decoder(64, code, ip=position - 3).decode()
        return _full(instruction.op0_register)

    def _use(self, instruction: Instruction) -> Meaning | None:
        """What this instruction says of the pointer; None if nothing yet.  Keeps track of who holds it."""
        in_base = _full(instruction.memory_base) in self._holders
        in_index = _full(instruction.memory_index) in self._holders
        if in_base or in_index:
            return self._dereferenced(instruction, in_index)
        calls = instruction.flow_control in (FlowControl.CALL, FlowControl.INDIRECT_CALL)
        if calls or (instruction.flow_control == FlowControl.UNCONDITIONAL_BRANCH and self._leaves(instruction)):
            return self._passed()
        reads = self._registers(instruction, _READS) & self._holders
        if instruction.mnemonic in (Mnemonic.CMP, Mnemonic.SUB) and reads:
            return self._compared(instruction)
        if instruction.mnemonic == Mnemonic.MOV and reads and instruction.op0_kind == OpKind.REGISTER:
            self._holders.add(_full(instruction.op0_register))
            return None
        if reads:
            return Meaning.UNCLEAR
        self._holders -= self._registers(instruction, _WRITES)
        return None

    def _dereferenced(self, instruction: Instruction, in_index: bool) -> Meaning:
        """Nothing may be read at the end of an object; with an index, only a switch table is told for sure."""
        forward = instruction.memory_displacement < 1 << 63
        indexed = in_index or instruction.memory_index != Register.NONE
        if not indexed and forward:
            return Meaning.START
        if instruction.mnemonic == Mnemonic.MOVSXD and instruction.memory_index_scale == 4 and self._unnamed:
            return Meaning.START
        return Meaning.UNCLEAR

    def _passed(self) -> Meaning | None:
        """A call: an object is passed, unless the start of the other object is passed too, as a range."""
        if self._holders & _ARGUMENTS:
            return Meaning.UNCLEAR if self._starts & _ARGUMENTS else Meaning.PASSED
        self._holders -= _CLOBBERED
        return None

    def _find_starts(self, position: int) -> None:
        """Which registers hold the start of the object when the address is made; branches are not looked at."""
        for instruction in self._decoder(self._low):
            if instruction.next_ip > position:
                return
            self._track_starts(instruction)

    def _track_starts(self, instruction: Instruction) -> None:
        written = self._registers(instruction, _WRITES)
        if instruction.mnemonic == Mnemonic.LEA and instruction.is_ip_rel_memory_operand:
            starts = instruction.ip_rel_memory_address == self._first
        else:
            copied = instruction.op1_kind == OpKind.REGISTER and _full(instruction.op1_register) in self._starts
            starts = instruction.mnemonic == Mnemonic.MOV and copied
        if instruction.flow_control in (FlowControl.CALL, FlowControl.INDIRECT_CALL):
            written |= _CLOBBERED
        self._starts = self._starts | written if starts else self._starts - written

    def _track_steps(self, instruction: Instruction) -> None:
        steps = instruction.mnemonic in (Mnemonic.ADD, Mnemonic.LEA) and instruction.op0_kind == OpKind.REGISTER
        self._steps = [*self._steps[1 - _STEP_BEFORE :], {_full(instruction.op0_register)} if steps else set()]

    def _compared(self, instruction: Instruction) -> Meaning | None:
        """The test of a loop, or of an identity.  Unnamed data have none."""
        others = self._registers(instruction, _READS) - self._holders
        if self._unnamed or others & set().union(*self._steps):
            return Meaning.END
        return None if instruction.mnemonic == Mnemonic.CMP else Meaning.UNCLEAR

    def _leaves(self, instruction: Instruction) -> bool:
        return not self._low <= instruction.near_branch_target < self._high

    def _registers(self, instruction: Instruction, accesses: tuple[int, ...]) -> set[int]:
        return {
            _full(used.register) for used in self._info.info(instruction).used_registers() if used.access in accesses
        }


def _full(register: int) -> int:
    return int(iced_x86.RegisterExt.full_register(register)) if register else 0  # type: ignore[arg-type]
