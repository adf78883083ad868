"""What a call passed, as the instructions before it say: where the function came from, and its first argument.

A function that starts threads may keep what it was given in its own frame, and calls the one with the other.  Both
words are still there for as long as the call lasts; which they are, only its instructions tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import iced_x86

from hotupgrade.binary.frames import RBP, RSP

_BASES: dict[int, int] = {iced_x86.Register.RSP: RSP, iced_x86.Register.RBP: RBP}
_WRITES = (
    iced_x86.OpAccess.WRITE,
    iced_x86.OpAccess.COND_WRITE,
    iced_x86.OpAccess.READ_WRITE,
    iced_x86.OpAccess.READ_COND_WRITE,
)
_BRANCHES = (iced_x86.FlowControl.CONDITIONAL_BRANCH, iced_x86.FlowControl.UNCONDITIONAL_BRANCH)


@dataclass(frozen=True, slots=True)
class Word:
    """A word in the frame of the function that calls: ``base`` is a register (by DWARF number) at the call."""

    base: int
    offset: int


@dataclass(frozen=True, slots=True)
class Passed:
    """Where the words lie that were called, and passed."""

    function: Word
    argument: Word


def passed(code: bytes, start: int, back: int) -> Passed | None:
    """What the call passed that returns to ``back``; None if that cannot be told for sure.

    Args:
        code: the function that calls, from its first instruction at ``start`` on.
    """
    instructions = list(iced_x86.Decoder(64, code, ip=start))
    at = next((index for index, one in enumerate(instructions) if one.next_ip == back), None)
    if at is None or instructions[at].flow_control != iced_x86.FlowControl.INDIRECT_CALL:
        return None
    first = max((i + 1 for i in range(at) if instructions[i].flow_control != iced_x86.FlowControl.NEXT), default=0)
    if any(one.flow_control == iced_x86.FlowControl.INDIRECT_BRANCH for one in instructions):
        return None  # it may lead anywhere
    targets = {one.near_branch_target for one in instructions if one.flow_control in _BRANCHES}
    known = _Known()
    for instruction in instructions[first : at + 1]:
        if instruction.ip in targets:
            known.registers.clear()
        if instruction is not instructions[at]:
            known.run(instruction)
    function = known.operand(instructions[at], 0)
    argument = known.registers.get(int(iced_x86.Register.RDI))
    return Passed(function, argument) if function is not None and argument is not None else None


class _Known:
    """Registers that hold what a word of the frame holds."""

    def __init__(self) -> None:
        self.registers: dict[int, Word] = {}
        self._factory = iced_x86.InstructionInfoFactory()

    def run(self, instruction: iced_x86.Instruction) -> None:
        loaded = self.operand(instruction, 1) if _is_move(instruction) else None
        info = self._factory.info(instruction)
        for used in info.used_registers():
            if used.access in _WRITES:
                self._forget(int(iced_x86.RegisterExt.full_register(used.register)))
        for memory in info.used_memory():
            if memory.access in _WRITES:
                self.registers.clear()  # it may be just the word
        if loaded is not None:
            self.registers[int(instruction.op0_register)] = loaded

    def operand(self, instruction: iced_x86.Instruction, number: int) -> Word | None:
        """Which word an operand of eight bytes is."""
        if instruction.op_kind(number) == iced_x86.OpKind.REGISTER:
            return self.registers.get(int(instruction.op_register(number)))
        base = _BASES.get(int(instruction.memory_base))
        plain = instruction.op_kind(number) == iced_x86.OpKind.MEMORY and instruction.memory_index == 0
        if base is None or not plain or iced_x86.MemorySizeExt.size(instruction.memory_size) != 8:
            return None
        displacement = instruction.memory_displacement
        return Word(base, displacement - (1 << 64) if displacement >> 63 else displacement)

    def _forget(self, register: int) -> None:
        self.registers.pop(register, None)
        if register in _BASES:
            self.registers = {key: word for key, word in self.registers.items() if word.base != _BASES[register]}


def _is_move(instruction: iced_x86.Instruction) -> bool:
    to = instruction.op0_kind == iced_x86.OpKind.REGISTER and iced_x86.RegisterExt.is_gpr64(instruction.op0_register)
    return bool(to and instruction.mnemonic == iced_x86.Mnemonic.MOV)


def words_of(found: Passed, registers: Mapping[int, int]) -> Sequence[int] | None:
    """Addresses of both words, from the registers of the frame that called; None if those are not known."""
    if not {found.function.base, found.argument.base} <= registers.keys():
        return None
    return [(registers[word.base] + word.offset) & ((1 << 64) - 1) for word in (found.function, found.argument)]
