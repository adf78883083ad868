"""What code does with an address that it takes: is it of what begins there, or the end of what lies before?"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import iced_x86
from iced_x86 import FlowControl, Instruction, Mnemonic, OpAccess, OpKind, Register

from hotupgrade.binary.model import U8

_FAR = 400  # instructions to follow a pointer
_STEP_BEFORE = 4  # instructions between the step of a loop and its test
_ARGUMENTS = frozenset((Register.RDI, Register.RSI, Register.RDX, Register.RCX, Register.R8, Register.R9))
_CLOBBERED = _ARGUMENTS | {Register.RAX, Register.R10, Register.R11}
_RESULTS = frozenset((Register.RAX, Register.RDX))
_READS = (OpAccess.READ, OpAccess.COND_READ, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE)
_WRITES = (OpAccess.WRITE, OpAccess.COND_WRITE, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE)


class Meaning(enum.Enum):
    START = enum.auto()  # of what begins there
    END = enum.auto()  # of the object that ends there
    PASSED = enum.auto()  # to a function: of what begins there, unless something else is known (registers may be stale)
    UNCLEAR = enum.auto()
    UNUSED = enum.auto()  # on one path


@dataclass(frozen=True, slots=True)
class Taken:
    """An address that ``lea disp32(%rip), reg`` takes."""

    low: int  # the function, vaddrs
    high: int
    position: int  # of the displacement
    following: int
    first: int  # where a loop begins that would end at the address
    unnamed: bool  # what begins there has no name, and is constant: nobody asks for its identity


def meaning_of(image: U8, taken: Taken) -> Meaning:
    """What the first telling use on each path says.  Compilers do not keep an address for two purposes."""
    meanings = _Follower(image, taken).follow()
    if sure := meanings & {Meaning.START, Meaning.END}:
        return sure.pop() if len(sure) == 1 else Meaning.UNCLEAR
    return Meaning.START if Meaning.PASSED in meanings else Meaning.UNCLEAR


def is_end(image: U8, taken: Taken) -> bool:
    """Whether the address is only ever what a loop compares with: on every path that uses it at all.

    To be asked where nothing is known of what lies there: it may be a variable, or a constant that changes.
    """
    meanings = _Follower(image, taken).follow()
    return Meaning.END in meanings and meanings <= {Meaning.END, Meaning.UNUSED}


@dataclass(frozen=True)
class _Path:
    """Code to be looked at, and what registers hold when it begins."""

    vaddr: int
    holders: frozenset[int]  # the address in question
    starts: frozenset[int]  # the start of the object that ends there
    stepped: frozenset[int]  # something that was added to a moment ago


class _Follower:
    """Follows a pointer from the ``lea`` that makes it to the uses that tell what it points to, on all paths."""

    def __init__(self, image: U8, taken: Taken) -> None:
        self._image = image
        self._taken = taken
        self._info = iced_x86.InstructionInfoFactory()
        self._holders: set[int] = set()
        self._starts: set[int] = set()
        self._steps: list[set[int]] = []
        self._paths: list[_Path] = []
        self._goes_on_elsewhere = False  # with the address, in another function

    def follow(self) -> set[Meaning]:
        """The first telling use of every path."""
        position, start = self._taken.position, self._taken.following
        self._look_before(position)
        holder = self._destination(position, start)
        stepped = frozenset().union(*self._steps)
        self._paths = [_Path(start, frozenset({holder}), frozenset(self._starts), stepped)]
        seen: set[_Path] = set()
        meanings: set[Meaning] = set()
        budget = _FAR
        while self._paths:
            path = self._paths.pop()
            if path in seen or not path.holders:
                continue
            if budget <= 0:
                meanings.add(Meaning.UNCLEAR)
                break
            seen.add(path)
            meaning, looked_at = self._walk(path, budget)
            budget -= looked_at
            meanings.add(meaning)
        if self._goes_on_elsewhere:
            meanings.add(Meaning.UNCLEAR)
        return meanings

    def _walk(self, path: _Path, budget: int) -> tuple[Meaning, int]:
        """One path to its first telling use or to its end; branches off are left in ``_paths``."""
        self._holders, self._starts, self._steps = set(path.holders), set(path.starts), [set(path.stepped)]
        count = 0
        for count, instruction in enumerate(self._decoder(path.vaddr), 1):
            if not self._holders:
                break
            if count > budget:
                return Meaning.UNCLEAR, count
            if (meaning := self._use(instruction)) is not None:
                return meaning, count
            self._track_starts(instruction)
            self._track_steps(instruction)
            if self._branches(instruction):
                return self._at_the_end(instruction), count
        else:
            return Meaning.UNCLEAR, count  # it runs on, out of the function
        return Meaning.UNUSED, count

    def _at_the_end(self, instruction: Instruction) -> Meaning:
        """Of a path that ends with an instruction: what still holds the address then may go with it."""
        flow = instruction.flow_control
        if flow == FlowControl.UNCONDITIONAL_BRANCH and not self._leaves(instruction):
            return Meaning.UNUSED  # the path goes on, as another
        returned = flow == FlowControl.RETURN and not self._holders & _RESULTS
        return Meaning.UNUSED if returned else Meaning.UNCLEAR

    def _branches(self, instruction: Instruction) -> bool:
        """Takes note of where a branch leads; whether the code behind it is not reached."""
        flow = instruction.flow_control
        branches = flow in (FlowControl.UNCONDITIONAL_BRANCH, FlowControl.CONDITIONAL_BRANCH)
        if branches and self._leaves(instruction):
            self._goes_on_elsewhere = True
        elif branches:
            stepped = frozenset().union(*self._steps)
            target = instruction.near_branch_target
            self._paths.append(_Path(target, frozenset(self._holders), frozenset(self._starts), stepped))
        return flow in (FlowControl.UNCONDITIONAL_BRANCH, FlowControl.RETURN, FlowControl.INDIRECT_BRANCH)

    def _decoder(self, vaddr: int) -> iced_x86.Decoder:
        inside = self._taken.low <= vaddr < self._taken.high
        code = self._image[vaddr : self._taken.high].tobytes() if inside else b""
        return iced_x86.Decoder(64, code, ip=vaddr)

    def _destination(self, position: int, following: int) -> int:
        """The register that ``lea disp32(%rip), reg`` writes."""
        code = self._image[position - 3 : following].tobytes()
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
        if instruction.mnemonic == Mnemonic.MOVSXD and instruction.memory_index_scale == 4 and self._taken.unnamed:
            return Meaning.START
        return Meaning.UNCLEAR

    def _passed(self) -> Meaning | None:
        """A call: an object is passed, unless the start of the other object is passed too, as a range."""
        if self._holders & _ARGUMENTS:
            return Meaning.UNCLEAR if self._starts & _ARGUMENTS else Meaning.PASSED
        self._holders -= _CLOBBERED
        return None

    def _look_before(self, position: int) -> None:
        """Which registers hold the start of the object when the address is made, or have just been added to.

        Branches are not looked at.
        """
        for instruction in self._decoder(self._taken.low):
            if instruction.next_ip > position:
                return
            self._track_starts(instruction)
            self._track_steps(instruction)

    def _track_starts(self, instruction: Instruction) -> None:
        written = self._registers(instruction, _WRITES)
        if instruction.mnemonic == Mnemonic.LEA and instruction.is_ip_rel_memory_operand:
            starts = instruction.ip_rel_memory_address == self._taken.first
        else:
            copied = instruction.op1_kind == OpKind.REGISTER and _full(instruction.op1_register) in self._starts
            starts = instruction.mnemonic == Mnemonic.MOV and copied
        if instruction.flow_control in (FlowControl.CALL, FlowControl.INDIRECT_CALL):
            written |= _CLOBBERED
        self._starts = self._starts | written if starts else self._starts - written

    def _track_steps(self, instruction: Instruction) -> None:
        steps = instruction.op0_kind == OpKind.REGISTER and _ascends(instruction)
        self._steps = [*self._steps[1 - _STEP_BEFORE :], {_full(instruction.op0_register)} if steps else set()]

    def _compared(self, instruction: Instruction) -> Meaning | None:
        """The test of a loop, or of an identity.  Unnamed data have none."""
        others = self._registers(instruction, _READS) - self._holders
        if self._taken.unnamed or others & set().union(*self._steps):
            return Meaning.END
        return None if instruction.mnemonic == Mnemonic.CMP else Meaning.UNCLEAR

    def _leaves(self, instruction: Instruction) -> bool:
        return not self._taken.low <= instruction.near_branch_target < self._taken.high

    def _registers(self, instruction: Instruction, accesses: tuple[int, ...]) -> set[int]:
        return {
            _full(used.register) for used in self._info.info(instruction).used_registers() if used.access in accesses
        }


def _ascends(instruction: Instruction) -> bool:
    """Whether it may be the step of a loop towards higher addresses; one towards lower ones ends at a start."""
    if instruction.mnemonic == Mnemonic.LEA:
        return not instruction.is_ip_rel_memory_operand and instruction.memory_displacement < 1 << 63
    if instruction.mnemonic != Mnemonic.ADD:
        return False
    return instruction.op1_kind in (OpKind.REGISTER, OpKind.MEMORY) or instruction.immediate(1) < 1 << 63


def _full(register: int) -> int:
    return int(iced_x86.RegisterExt.full_register(register)) if register else 0  # type: ignore[arg-type]
