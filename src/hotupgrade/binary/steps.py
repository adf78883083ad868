"""Instructions taken apart, as far as the data flow of :mod:`hotupgrade.binary.flow` needs."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cache

from iced_x86 import (
    Decoder,
    Instruction,
    InstructionInfoFactory,
    MemorySizeExt,
    Mnemonic,
    OpAccess,
    OpKind,
    Register,
    RegisterExt,
)

from hotupgrade.binary.model import U8

LONG = 4  # bytes of a field that the linker fills in
RSP: int = Register.RSP
CALLER_SAVED: frozenset[int] = frozenset(
    (
        Register.RAX, Register.RCX, Register.RDX, Register.RSI, Register.RDI,
        Register.R8, Register.R9, Register.R10, Register.R11,
    )
)  # fmt: skip
RESULTS: tuple[int, ...] = (
    Register.RAX,
    Register.RDX,
    Register.RCX,
)  # the last only in LLVM's conventions for functions of its own
FRAME: tuple[int, ...] = (Register.RSP, Register.RBP)  # registers that hold addresses in the frame
FULL = [RegisterExt.full_register(register) for register in range(256)]  # type: ignore[arg-type]

_READS = (OpAccess.READ, OpAccess.COND_READ, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE)
_WRITES = (OpAccess.WRITE, OpAccess.COND_WRITE, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE)


class Do(enum.IntEnum):
    """How an instruction moves values."""

    GENERIC = 0
    MOVE = 1
    LEA = 2
    ADD = 3
    PUSH = 4
    POP = 5
    EXCHANGE = 6
    CONDITIONAL = 7  # cmov
    CLEAR = 8  # xor of a register with itself
    CALL = 9
    LEAVE = 10
    COMPARE = 11
    SUBTRACT = 12  # a number
    NOTHING = 13


_BY_MNEMONIC = {
    Mnemonic.MOV: Do.MOVE,
    Mnemonic.LEA: Do.LEA,
    Mnemonic.ADD: Do.ADD,
    Mnemonic.PUSH: Do.PUSH,
    Mnemonic.POP: Do.POP,
    Mnemonic.XCHG: Do.EXCHANGE,
    Mnemonic.LEAVE: Do.LEAVE,
    Mnemonic.CALL: Do.CALL,
    Mnemonic.SUB: Do.SUBTRACT,
    Mnemonic.CMP: Do.COMPARE,
    Mnemonic.TEST: Do.COMPARE,
    Mnemonic.NOP: Do.NOTHING,
    Mnemonic.ENDBR64: Do.NOTHING,
}
_CLEARS = (Mnemonic.XOR, Mnemonic.SUB)


@dataclass(frozen=True, slots=True)
class Memory:
    base: int  # full registers; 0 for none
    index: int
    scale: int
    displacement: int  # signed
    size: int  # bytes of the displacement's field
    fs: bool
    absolute: int  # vaddr of an operand relative to the instruction pointer, -1 for others


@dataclass(frozen=True, slots=True)
class Step:
    """An instruction, taken apart once."""

    vaddr: int
    do: Do
    wide: bool  # moves 8 bytes
    target: int  # full register that is written, 0 for none or memory
    source: int  # full register that is read, 0 for none or memory
    memory: Memory | None
    stores: bool  # writes memory
    immediate: int  # signed
    immediate_size: int
    width: int  # bytes of the memory operand
    touched: frozenset[int]  # all full registers that matter
    reads: frozenset[int] = frozenset()  # for GENERIC: full registers, without those of the memory operand
    writes: frozenset[int] = frozenset()
    call: int = -1  # vaddr that a direct call leads to, or of the slot that it goes through
    call_register: int = 0  # the register whose word a call goes through


class Translator:
    """Instructions to steps."""

    def __init__(self, image: U8) -> None:
        self._image = image
        self._info = InstructionInfoFactory()
        self._steps: dict[int, Step] = {}

    def __call__(self, instruction: Instruction) -> Step:
        step = self._steps.get(instruction.ip)
        if step is None:
            step = self._steps[instruction.ip] = self._translated(instruction)
        return step

    def is_prefixed(self, vaddr: int) -> bool:
        """The data16 prefix that general dynamic access has, so that linkers can replace it."""
        return int(self._image[vaddr]) == 0x66

    def field_of(self, vaddr: int) -> int:
        """Where an instruction has its field of four bytes: a displacement, else the immediate operand."""
        decoder = Decoder(64, self._image[vaddr : vaddr + _LONGEST].tobytes(), ip=vaddr)
        offsets = decoder.get_constant_offsets(decoder.decode())
        long = offsets.displacement_size == LONG
        return vaddr + (offsets.displacement_offset if long else offsets.immediate_offset)

    def number_at(self, position: int) -> int:
        return int.from_bytes(self._image[position : position + LONG].tobytes(), "little", signed=True)

    def _translated(self, instruction: Instruction) -> Step:
        count = instruction.op_count
        first = instruction.op0_kind if count else _NO_OPERAND
        second = instruction.op1_kind if count > 1 else _NO_OPERAND
        memory = _memory(instruction) if OpKind.MEMORY in (first, second) or count > 2 else None
        do = _BY_MNEMONIC.get(instruction.mnemonic, Do.GENERIC)
        if do == Do.GENERIC or (do == Do.SUBTRACT and second not in _IMMEDIATE_SIZES):
            do = _unnamed(instruction, second)
        if do == Do.GENERIC:
            return self._generic(instruction, memory)
        target = FULL[instruction.op0_register] if first == OpKind.REGISTER else 0
        source = FULL[instruction.op1_register] if second == OpKind.REGISTER else 0
        if do == Do.PUSH:
            target, source = 0, target
        width = _width(instruction.memory_size) if memory else 0
        size = _IMMEDIATE_SIZES.get(second, 0)
        touched = {target, source, *((memory.base, memory.index) if memory else ())}
        call, call_register = -1, 0
        if do == Do.CALL:
            touched |= CALLER_SAVED
            if first == OpKind.NEAR_BRANCH64:
                call = instruction.near_branch_target
            elif memory and memory.absolute >= 0:
                call = memory.absolute
            elif memory and not memory.index and not memory.displacement:
                call_register = memory.base
        elif do in _MOVES_STACK:
            touched.add(RSP)
        return Step(
            vaddr=instruction.ip,
            do=do,
            wide=(RegisterExt.size(instruction.op0_register) if target else width) == 8,
            target=target,
            source=source,
            memory=memory,
            stores=first == OpKind.MEMORY and do not in (Do.CALL, Do.PUSH, Do.COMPARE),
            immediate=_signed(instruction.immediate(1)) if size else 0,
            immediate_size=size,
            width=width,
            touched=frozenset(touched - {0}),
            call=call,
            call_register=call_register,
        )

    def _generic(self, instruction: Instruction, memory: Memory | None) -> Step:
        info = self._info.info(instruction)
        inside = {memory.base, memory.index} if memory else set()
        reads = {FULL[used.register] for used in info.used_registers() if used.access in _READS}
        writes = {FULL[used.register] for used in info.used_registers() if used.access in _WRITES}
        return Step(
            vaddr=instruction.ip,
            do=Do.GENERIC,
            wide=False,
            target=0,
            source=0,
            memory=memory,
            stores=any(used.access in _WRITES for used in info.used_memory()),
            immediate=0,
            immediate_size=0,
            width=_width(instruction.memory_size) if memory else 0,
            touched=frozenset((reads | writes | inside) - {0}),
            reads=frozenset(reads - inside),
            writes=frozenset(writes),
        )


LONG_IMMEDIATES = (OpKind.IMMEDIATE32TO64, OpKind.IMMEDIATE64)
_LONGEST = 15  # bytes of an instruction
_NO_OPERAND = -1
_MOVES_STACK = (Do.PUSH, Do.POP, Do.LEAVE)
_IMMEDIATE_SIZES: dict[int, int] = {
    OpKind.IMMEDIATE8: 1, OpKind.IMMEDIATE8TO16: 1, OpKind.IMMEDIATE8TO32: 1, OpKind.IMMEDIATE8TO64: 1,
    OpKind.IMMEDIATE16: 2, OpKind.IMMEDIATE32: 4, OpKind.IMMEDIATE32TO64: 4, OpKind.IMMEDIATE64: 8,
}  # fmt: skip
_DISPLACEMENT_SIZES = {8: LONG, 4: LONG, 2: 2, 1: 1, 0: 0}  # by what the disassembler says: bytes of the address


@cache
def _width(memory_size: int) -> int:
    return MemorySizeExt.size(memory_size)  # type: ignore[arg-type]


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _memory(instruction: Instruction) -> Memory | None:
    if instruction.is_ip_rel_memory_operand:
        return Memory(0, 0, 1, 0, LONG, False, instruction.ip_rel_memory_address)
    if OpKind.MEMORY not in [instruction.op_kind(i) for i in range(instruction.op_count)]:
        return None
    return Memory(
        base=FULL[instruction.memory_base],
        index=FULL[instruction.memory_index],
        scale=instruction.memory_index_scale,
        displacement=_signed(instruction.memory_displacement),
        size=_DISPLACEMENT_SIZES[instruction.memory_displ_size],
        fs=instruction.memory_segment == Register.FS,
        absolute=-1,
    )


def _unnamed(instruction: Instruction, second: int) -> Do:
    """What an instruction does whose mnemonic alone does not tell."""
    if instruction.mnemonic in _CLEARS and second == OpKind.REGISTER:
        return Do.CLEAR if int(instruction.op0_register) == int(instruction.op1_register) else Do.GENERIC
    if instruction.op_count == 2 and int(instruction.condition_code):
        return Do.CONDITIONAL
    return Do.GENERIC
