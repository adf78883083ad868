"""Which displacements in the code are offsets of thread-locals, followed from where the code gets their base.

Code reaches a thread-local of its own module in few ways, all of them sequences that linkers must know (psABI x86-64,
4.4 "Thread-Local Storage" relocations; U. Drepper, "ELF Handling For Thread-Local Storage", 4.4.6 and 5.4):

- local dynamic: ``lea x@tlsld(%rip), %rdi; call __tls_get_addr`` gives the start of the module's block, and
  ``x@dtpoff(%rax)`` names a variable;
- descriptors: ``lea _TLS_MODULE_BASE_@tlsdesc(%rip), %rax; call *(%rax)`` gives the block's offset from the thread
  pointer, which keeps all other registers, and ``%fs:x@dtpoff(%rax)`` names a variable;
- local exec, in executables: ``%fs:x@tpoff``, or ``mov %fs:0, %rax`` and ``x@tpoff(%rax)``;
- what linkers make of the others in executables: ``mov $x@tpoff, %rax`` and ``lea x@tpoff(%rax), %rax``, which count
  from the thread pointer once it is added, or once the segment register is used.

A base is followed through registers and the stack.  It ends where an offset of four bytes is added: then it is the
address of a variable.  What may be a base on one path and something else on another is no proof (compilers do such
things when a variable is live on one path only), unless the offset itself tells: an assembler writes a number in the
shortest form, so a field of four bytes that would fit in one was left for the linker, and among fields that do not
count from the instruction pointer those are the thread-local ones.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TypeVar

from iced_x86 import (
    Decoder,
    FlowControl,
    Instruction,
    InstructionInfoFactory,
    MemorySizeExt,
    Mnemonic,
    OpAccess,
    OpKind,
    Register,
    RegisterExt,
)

from hotupgrade.binary.graph import CALLS, Block, Graph
from hotupgrade.binary.model import U8

LONG = 4  # bytes of a field that the linker fills in


class Origin(enum.IntEnum):
    """What a value is, as far as thread-locals go."""

    OTHER = 0  # anything else, complete addresses of thread-locals among it
    BLOCK = 1  # start of the module's block (``detail``: the slot); an offset is to come
    POINTER = 2  # the thread pointer; in an executable, an offset is to come
    OFFSET = 3  # from the thread pointer to a variable, complete
    CONSTANT = 4  # a number in the code (``detail``: vaddr of the instruction) that may be such an offset
    SLOT = 5  # address of the pair of GOT slots from which BLOCK or OFFSET comes (``detail``: the slot)
    STACK = 6  # an address in the frame (``detail``: see Place)


Place = tuple[int, int]  # in the frame: (vaddr of what set the stack pointer, 0 for the caller; distance from there)
Atom = tuple[Origin, int | Place]
Value = frozenset[Atom]  # one of these

OTHER: Value = frozenset(((Origin.OTHER, 0),))
ORIGINS_OF_BASES = (Origin.BLOCK, Origin.POINTER, Origin.CONSTANT, Origin.SLOT)


@dataclass(frozen=True)
class Module:
    """What the flow must know of the module."""

    executable: bool  # the linker knows how far its block is from the thread pointer
    block: int  # bytes of the block
    below: int  # bytes from the thread pointer down to the start of an executable's block
    base_slots: Mapping[int, int]  # vaddr -> index: pairs from which the block's start may come
    offset_slots: frozenset[int]  # vaddrs of words and descriptors from which a complete offset comes
    lookups: frozenset[int]  # vaddrs of PLT stubs and GOT slots that lead to __tls_get_addr


@dataclass(frozen=True, slots=True)
class Field:
    """Four bytes of code that hold an offset of a thread-local."""

    position: int
    value: int
    from_pointer: bool  # counts from the thread pointer; else from the start of the block
    slots: frozenset[int]  # from which the base comes
    sure: bool  # the base is one on every path
    told: bool  # its own form tells that it is the linker's
    indexed: bool  # something else is added as well
    takes_address: bool  # nothing is read or written there


@dataclass
class Findings:
    """What was found in one function."""

    fields: dict[int, Field] = field(default_factory=dict)  # by position
    unproven: set[int] = field(default_factory=set)  # vaddrs of what may be an offset of a thread-local, or not
    plain: dict[int, set[int]] = field(default_factory=dict)  # slot -> vaddrs that use its base without an offset


_RSP, _RAX = Register.RSP, Register.RAX
_CALLER_SAVED = frozenset(
    (
        Register.RAX, Register.RCX, Register.RDX, Register.RSI, Register.RDI,
        Register.R8, Register.R9, Register.R10, Register.R11,
    )
)  # fmt: skip
_READS = (OpAccess.READ, OpAccess.COND_READ, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE)
_WRITES = (OpAccess.WRITE, OpAccess.COND_WRITE, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE)


class _Do(enum.IntEnum):
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
    Mnemonic.MOV: _Do.MOVE,
    Mnemonic.LEA: _Do.LEA,
    Mnemonic.ADD: _Do.ADD,
    Mnemonic.PUSH: _Do.PUSH,
    Mnemonic.POP: _Do.POP,
    Mnemonic.XCHG: _Do.EXCHANGE,
    Mnemonic.LEAVE: _Do.LEAVE,
    Mnemonic.CALL: _Do.CALL,
    Mnemonic.SUB: _Do.SUBTRACT,
    Mnemonic.CMP: _Do.COMPARE,
    Mnemonic.TEST: _Do.COMPARE,
    Mnemonic.NOP: _Do.NOTHING,
    Mnemonic.ENDBR64: _Do.NOTHING,
}
_CLEARS = (Mnemonic.XOR, Mnemonic.SUB)


@dataclass(frozen=True, slots=True)
class _Memory:
    base: int  # full registers; 0 for none
    index: int
    scale: int
    displacement: int  # signed
    size: int  # bytes of the displacement's field
    fs: bool
    absolute: int  # vaddr of an operand relative to the instruction pointer, -1 for others


@dataclass(frozen=True, slots=True)
class _Step:
    """An instruction, taken apart once."""

    vaddr: int
    do: _Do
    wide: bool  # moves 8 bytes
    target: int  # full register that is written, 0 for none or memory
    source: int  # full register that is read, 0 for none or memory
    memory: _Memory | None
    stores: bool  # writes memory
    immediate: int  # signed
    immediate_size: int
    width: int  # bytes of the memory operand
    touched: frozenset[int]  # all full registers that matter
    reads: frozenset[int] = frozenset()  # for GENERIC: full registers, without those of the memory operand
    writes: frozenset[int] = frozenset()
    call: int = -1  # vaddr that a direct call leads to, or of the slot that it goes through
    call_register: int = 0  # the register whose word a call goes through


class _Translator:
    """Instructions to steps."""

    def __init__(self, image: U8) -> None:
        self._image = image
        self._info = InstructionInfoFactory()
        self._steps: dict[int, _Step] = {}

    def __call__(self, instruction: Instruction) -> _Step:
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

    def _translated(self, instruction: Instruction) -> _Step:
        count = instruction.op_count
        first = instruction.op0_kind if count else _NO_OPERAND
        second = instruction.op1_kind if count > 1 else _NO_OPERAND
        memory = _memory(instruction) if OpKind.MEMORY in (first, second) or count > 2 else None
        do = _BY_MNEMONIC.get(instruction.mnemonic, _Do.GENERIC)
        if do == _Do.GENERIC or (do == _Do.SUBTRACT and second not in _IMMEDIATE_SIZES):
            do = _unnamed(instruction, second)
        if do == _Do.GENERIC:
            return self._generic(instruction, memory)
        target = _FULL[instruction.op0_register] if first == OpKind.REGISTER else 0
        source = _FULL[instruction.op1_register] if second == OpKind.REGISTER else 0
        if do == _Do.PUSH:
            target, source = 0, target
        width = _width(instruction.memory_size) if memory else 0
        size = _IMMEDIATE_SIZES.get(second, 0)
        touched = {target, source, *((memory.base, memory.index) if memory else ())}
        call, call_register = -1, 0
        if do == _Do.CALL:
            touched |= _CALLER_SAVED
            if first == OpKind.NEAR_BRANCH64:
                call = instruction.near_branch_target
            elif memory and memory.absolute >= 0:
                call = memory.absolute
            elif memory and not memory.index and not memory.displacement:
                call_register = memory.base
        elif do in _MOVES_STACK:
            touched.add(_RSP)
        return _Step(
            vaddr=instruction.ip,
            do=do,
            wide=(RegisterExt.size(instruction.op0_register) if target else width) == 8,
            target=target,
            source=source,
            memory=memory,
            stores=first == OpKind.MEMORY and do not in (_Do.CALL, _Do.PUSH, _Do.COMPARE),
            immediate=_signed(instruction.immediate(1)) if size else 0,
            immediate_size=size,
            width=width,
            touched=frozenset(touched - {0}),
            call=call,
            call_register=call_register,
        )

    def _generic(self, instruction: Instruction, memory: _Memory | None) -> _Step:
        info = self._info.info(instruction)
        inside = {memory.base, memory.index} if memory else set()
        reads = {_FULL[used.register] for used in info.used_registers() if used.access in _READS}
        writes = {_FULL[used.register] for used in info.used_registers() if used.access in _WRITES}
        return _Step(
            vaddr=instruction.ip,
            do=_Do.GENERIC,
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


_FRAME = (Register.RSP, Register.RBP)
_LONG_IMMEDIATES = (OpKind.IMMEDIATE32TO64, OpKind.IMMEDIATE64)
_LONGEST = 15  # bytes of an instruction
_NO_OPERAND = -1
_FULL = [RegisterExt.full_register(register) for register in range(256)]  # type: ignore[arg-type]
_MOVES_STACK = (_Do.PUSH, _Do.POP, _Do.LEAVE)
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


def _memory(instruction: Instruction) -> _Memory | None:
    if instruction.is_ip_rel_memory_operand:
        return _Memory(0, 0, 1, 0, LONG, False, instruction.ip_rel_memory_address)
    if OpKind.MEMORY not in [instruction.op_kind(i) for i in range(instruction.op_count)]:
        return None
    return _Memory(
        base=_FULL[instruction.memory_base],
        index=_FULL[instruction.memory_index],
        scale=instruction.memory_index_scale,
        displacement=_signed(instruction.memory_displacement),
        size=_DISPLACEMENT_SIZES[instruction.memory_displ_size],
        fs=instruction.memory_segment == Register.FS,
        absolute=-1,
    )


def _unnamed(instruction: Instruction, second: int) -> _Do:
    """What an instruction does whose mnemonic alone does not tell."""
    if instruction.mnemonic in _CLEARS and second == OpKind.REGISTER:
        return _Do.CLEAR if int(instruction.op0_register) == int(instruction.op1_register) else _Do.GENERIC
    if instruction.op_count == 2 and int(instruction.condition_code):
        return _Do.CONDITIONAL
    return _Do.GENERIC


class _State:
    """What registers and words of the stack hold; what is not there is OTHER."""

    __slots__ = ("registers", "stack")

    def __init__(self, registers: dict[int, Value], stack: dict[Place, Value]) -> None:
        self.registers, self.stack = registers, stack

    def copy(self) -> _State:
        return _State(dict(self.registers), dict(self.stack))

    def join(self, other: _State) -> bool:
        """Takes in what may hold on another way here; whether that changes anything."""
        first = _join(self.registers, other.registers)
        return _join(self.stack, other.stack) or first

    def is_bare(self) -> bool:
        """Whether nothing but the frame is known."""
        return not self.stack and all(
            register in _FRAME and len(value) == 1 and next(iter(value))[0] == Origin.STACK
            for register, value in self.registers.items()
        )


Key = TypeVar("Key")


def _join(mine: dict[Key, Value], theirs: Mapping[Key, Value]) -> bool:
    changed = False
    for key in mine.keys() | theirs.keys():
        before = mine.get(key, OTHER)
        after = _united(before, theirs.get(key, OTHER))
        if after != before:
            mine[key] = after
            changed = True
    return changed


def _united(first: Value, second: Value) -> Value:
    """One of two values.  What may be one or another place in the frame is not followed any further."""
    if first == second:
        return first
    return frozenset(_OTHER_ATOM if atom[0] == Origin.STACK else atom for atom in first | second)


def follow(image: U8, module: Module, graph: Graph) -> Findings:
    """All fields of a function that hold offsets of thread-locals, and what may be one."""
    flow = _Flow(_Translator(image), module, graph)
    flow.settle()
    return flow.findings()


class _Flow:
    def __init__(self, translate: _Translator, module: Module, graph: Graph) -> None:
        self._translate = translate
        self._module = module
        self._graph = graph
        self._incoming: dict[int, _State] = {}
        self._state = _State({}, {})
        self._marks: dict[int, list[tuple[int, Instruction]]] = {}
        self._found: Findings | None = None  # only while findings are collected

    # What holds where

    def settle(self) -> None:
        """What may hold at the start of each block, joined over all ways there."""
        for start in self._graph.entries:
            # Where the stack pointer is in code that nothing seems to lead to is not known: a frame of its own, then.
            frame = start if start in self._graph.astray else 0
            self._incoming[start] = _State({_RSP: _stack((frame, 0))}, {})
        work = list(self._graph.entries)
        returns: list[tuple[int, _State]] = []  # what comes back from a call: last, see _arrive
        while work or returns:
            if not work:
                start, after = returns.pop()
                if self._arrive(start, after, from_call=True):
                    work.append(start)
                continue
            block = self._graph.blocks[work.pop()]
            after = self._after(block)
            from_call = block.instructions[-1].flow_control in CALLS
            for successor in block.successors:
                if successor not in self._graph.blocks:
                    continue
                if from_call:
                    returns.append((successor, after.copy()))
                elif self._arrive(successor, after, from_call=False):
                    work.append(successor)

    def _arrive(self, start: int, after: _State, *, from_call: bool) -> bool:
        """Whether the start of a block learns something.

        A call from which control seems to come back with another frame than what follows has does not return.
        """
        known = self._incoming.get(start)
        if known is None:
            self._incoming[start] = after.copy()
            return True
        if from_call and known.registers.get(_RSP) != after.registers.get(_RSP):
            return False
        return known.join(after)

    def findings(self) -> Findings:
        self._found = found = Findings()
        for start in sorted(self._incoming):
            block = self._graph.blocks[start]
            after = self._after(block)
            astray = block.leaves or any(successor not in self._graph.blocks for successor in block.successors)
            if astray and self._runs_on(block) and _holds_block(after):
                found.unproven.add(block.instructions[-1].ip)
        for start in self._graph.astray:
            self._doubt_all(self._graph.blocks[start], found)
        for position in found.unproven & found.fields.keys():
            del found.fields[position]
        return found

    def _doubt_all(self, block: Block, found: Findings) -> None:
        """Nobody knows what registers hold in code that nothing seems to lead to."""
        for step in map(self._translate, block.instructions):
            memory = step.memory
            number, size = step.immediate if step.do == _Do.ADD else 0, step.immediate_size
            if memory is not None:
                in_register = memory.base not in (0, _RSP) or memory.index
                number, size = memory.displacement, memory.size if in_register and memory.absolute < 0 else 0
            like = self._is_below(number) if self._module.executable else self._is_inside(number)
            if like and size == LONG and self._translate.field_of(step.vaddr) not in found.fields:
                found.unproven.add(step.vaddr)

    @staticmethod
    def _runs_on(block: Block) -> bool:
        """Whether what leaves the function by the end of a block is more than a call that does not return."""
        return block.instructions[-1].flow_control not in (*CALLS, FlowControl.UNCONDITIONAL_BRANCH)

    def _after(self, block: Block) -> _State:
        self._state = state = self._incoming[block.start].copy()
        first = 0
        if state.is_bare():
            first = self._run_bare(block)
        for instruction in block.instructions[first:]:
            step = self._translate(instruction)
            if not step.touched.isdisjoint(state.registers) or self._is_notable(step):
                self._take(step)
        return state

    def _run_bare(self, block: Block) -> int:
        """As long as nothing but the frame is known, only what moves it matters, and what a base comes from.

        Gives the number of instructions that are dealt with.
        """
        for index, instruction in self._landmarks(block):
            step = self._translate(instruction)
            if not step.touched.isdisjoint(self._state.registers) or self._is_notable(step):
                self._take(step)
                if not self._state.is_bare():
                    return index + 1
        return len(block.instructions)

    def _landmarks(self, block: Block) -> list[tuple[int, Instruction]]:
        found = self._marks.get(block.start)
        if found is None:
            marked = [(i, each) for i, each in enumerate(block.instructions) if self._is_landmark(each)]
            found = self._marks[block.start] = marked
        return found

    def _is_landmark(self, instruction: Instruction) -> bool:
        if instruction.is_ip_rel_memory_operand:
            address = instruction.ip_rel_memory_address
            return address in self._module.base_slots or address in self._module.offset_slots
        frame = _FULL[instruction.op0_register] in _FRAME or instruction.stack_pointer_increment
        if frame or instruction.mnemonic == Mnemonic.LEAVE:
            return instruction.flow_control == FlowControl.NEXT
        if not self._module.executable:
            return False
        number = instruction.op1_kind in _LONG_IMMEDIATES or instruction.mnemonic == Mnemonic.LEA
        return bool(number or instruction.memory_segment == Register.FS)

    def _is_notable(self, step: _Step) -> bool:
        """Whether a base may come into being here."""
        memory = step.memory
        if memory is None:
            return step.immediate_size >= LONG and self._module.executable
        if memory.fs or memory.absolute in self._module.base_slots or memory.absolute in self._module.offset_slots:
            return True
        return step.do == _Do.LEA and memory.size == LONG and self._module.executable

    # One instruction

    def _take(self, step: _Step) -> None:
        if step.do == _Do.CALL:
            self._call(step)
        elif step.do == _Do.LEA:
            self._set(step.target, self._load_address(step) if step.wide else OTHER)
        elif step.do == _Do.MOVE:
            self._move(step)
        elif step.do == _Do.ADD:
            self._add(step)
        elif step.do == _Do.SUBTRACT:
            self._subtract(step)
        elif step.do == _Do.PUSH:
            self._push(step)
        elif step.do == _Do.POP:
            self._pop(step)
        elif step.do == _Do.LEAVE:
            self._set(_RSP, self._get(Register.RBP))
            self._set(Register.RBP, self._at(self._get(_RSP)))
            self._shift_stack(8)
        elif step.do == _Do.CONDITIONAL and step.wide:
            self._set(step.target, _united(self._get(step.target), self._operand(step)))
        elif step.do == _Do.EXCHANGE and step.wide and step.memory is None:
            first, second = self._get(step.target), self._get(step.source)
            self._set(step.target, second)
            self._set(step.source, first)
        elif step.do == _Do.CLEAR:
            self._set(step.target, OTHER)
        elif step.do == _Do.NOTHING:
            pass
        elif step.do == _Do.COMPARE:
            if step.memory:
                self._address(step, step.memory)
        else:
            self._anything(step)

    def _move(self, step: _Step) -> None:
        if step.target:
            self._set(step.target, self._operand(step) if step.wide else self._narrow(step))
            return
        assert step.memory
        place = self._address(step, step.memory)
        self._store(step, place, self._get(step.source) if step.source and step.wide else OTHER)

    def _narrow(self, step: _Step) -> Value:
        if step.memory:
            self._address(step, step.memory)
        return OTHER

    def _add(self, step: _Step) -> None:
        if not step.target or not step.wide:
            self._anything(step)
            return
        value = self._get(step.target)
        if step.source or step.memory:
            self._set(step.target, self._sum(step, value, self._operand(step)))
            return
        self._set(step.target, self._displaced(step, value, step.immediate, step.immediate_size, lea=True))

    def _subtract(self, step: _Step) -> None:
        value = self._get(step.target)
        if not step.target or not step.wide or _has(value, Origin.BLOCK):
            self._anything(step)
            return
        self._set(step.target, _shifted(value, -step.immediate))

    def _push(self, step: _Step) -> None:
        value = self._get(step.source) if step.source else self._operand(step) if step.memory else OTHER
        self._shift_stack(-8)
        self._write(self._get(_RSP), value, 8)

    def _pop(self, step: _Step) -> None:
        value = self._at(self._get(_RSP))
        self._shift_stack(8)
        if step.target:
            self._set(step.target, value)
        elif step.memory:
            self._store(step, self._address(step, step.memory), value)

    def _call(self, step: _Step) -> None:
        if step.memory:
            self._address(step, step.memory)
        argument = self._get(Register.RDI)
        through = self._get(step.call_register) if step.call_register else OTHER
        if _has(through, Origin.SLOT):
            # A descriptor's function keeps every register but the one in which it returns.
            self._set(_RAX, self._looked_up(step, through))
            return
        result = OTHER
        if _has(argument, Origin.SLOT):
            if step.call in self._module.lookups:
                result = self._looked_up(step, argument)
            else:
                self._doubt(step.vaddr)
        for register in _CALLER_SAVED & self._state.registers.keys():
            # A callee that the compiler saw may leave such a register alone, and the caller count on it (-fipa-ra).
            kept = frozenset(atom for atom in self._get(register) if atom[0] != Origin.SLOT)
            self._set(register, kept | OTHER)
        self._set(_RAX, result)

    def _looked_up(self, step: _Step, slots: Value) -> Value:
        atoms: set[Atom] = set()
        for origin, detail in slots:
            if origin != Origin.SLOT:
                self._doubt(step.vaddr)
                atoms |= OTHER
            elif detail == _COMPLETE:
                atoms.add((Origin.OFFSET, 0))
            else:
                atoms.add((Origin.BLOCK, detail))
        return frozenset(atoms)

    def _anything(self, step: _Step) -> None:
        """An instruction that does with values what is not followed."""
        if step.memory:
            place = self._address(step, step.memory)
            if step.stores:
                self._store(step, place, OTHER)
        for register in step.reads:
            self._lose(step, self._get(register))
        for register in step.writes:
            if register == _RSP:
                self._set(_RSP, _stack((step.vaddr, 0)))  # aligned, or with room of a size that is not known
            else:
                self._set(register, OTHER)

    # Operands

    def _operand(self, step: _Step) -> Value:
        """The 8 bytes that are read: a register, a word of memory or a number."""
        if step.source:
            return self._get(step.source)
        memory = step.memory
        if memory is None:
            if step.immediate_size >= LONG and self._is_below(step.immediate):
                return _constant(step.vaddr)
            return OTHER
        place = self._address(step, memory)
        if memory.absolute in self._module.offset_slots:
            return _OFFSET
        if memory.fs:
            thread_pointer = not memory.base and not memory.index and memory.displacement == 0 and step.width == 8
            return _POINTER if thread_pointer and self._module.executable else OTHER
        return self._at(place)

    def _load_address(self, step: _Step) -> Value:
        memory = step.memory
        assert memory
        if memory.absolute in self._module.base_slots:
            return OTHER if self._translate.is_prefixed(step.vaddr) else _slot(self._module.base_slots[memory.absolute])
        if memory.absolute in self._module.offset_slots:
            return _slot(_COMPLETE)
        return self._address(step, memory, lea=True)

    def _address(self, step: _Step, memory: _Memory, *, lea: bool = False) -> Value:
        """What the address of a memory operand is; takes note of an offset in it."""
        if memory.absolute >= 0:
            return OTHER
        if not memory.base and not memory.index:
            if memory.fs and self._is_below(memory.displacement):
                self._field(step, memory.displacement, OTHER, from_pointer=True, sure=True, indexed=False)
            return OTHER
        value = self._get(memory.base) if memory.base else None
        if memory.index:
            index = self._get(memory.index)
            if memory.scale != 1:
                self._lose(step, index)
                index = OTHER
            value = index if value is None else self._sum(step, value, index)
        assert value is not None
        indexed = bool(memory.base and memory.index)
        if memory.fs and not _has(value, Origin.BLOCK):
            self._from_segment(step, memory, value)
            return OTHER
        return self._displaced(step, value, memory.displacement, memory.size, lea=lea, indexed=indexed)

    def _displaced(
        self, step: _Step, value: Value, number: int, size: int, *, lea: bool, indexed: bool = False
    ) -> Value:
        """A value and a number that is written in the code."""
        for origin, within in ((Origin.BLOCK, self._is_inside), (Origin.POINTER, self._is_below)):
            if not _has(value, origin):
                continue
            if size != LONG:
                if not lea:
                    self._use_plainly(step, value)
                return value
            sure = all(atom[0] == origin for atom in value)
            told = _is_short(number)
            if told or within(number):
                from_pointer = origin == Origin.POINTER
                self._field(
                    step, number, value, from_pointer=from_pointer, sure=sure, indexed=indexed, takes_address=lea
                )
            elif sure and origin == Origin.BLOCK:
                self._doubt(step.vaddr)
            return OTHER
        if not lea:
            return _shifted(value, number)
        if value == OTHER and size == LONG and self._is_below(number):
            return _constant(step.vaddr)
        return _shifted(value, number)

    def _from_segment(self, step: _Step, memory: _Memory, value: Value) -> None:
        """An operand that counts from the thread pointer, with something in registers."""
        field_like = memory.size == LONG and self._is_below(memory.displacement)
        if value == OTHER:
            if field_like:
                self._field(step, memory.displacement, value, from_pointer=True, sure=True, indexed=True)
            return
        sure = all(origin == Origin.CONSTANT for origin, _ in value)
        for origin, detail in value:
            if origin == Origin.CONSTANT:
                self._prove_constant(int(detail), sure)  # type: ignore[arg-type]
        if field_like and _has(value, Origin.OTHER):
            self._field(step, memory.displacement, value, from_pointer=True, sure=False, indexed=True)

    def _sum(self, step: _Step, first: Value, second: Value) -> Value:
        if first == OTHER and _is_plain(second):
            return second
        if second == OTHER and _is_plain(first):
            return first
        sure = len(first) == 1 and len(second) == 1
        return frozenset(self._sum_of_atoms(step, one, other, sure) for one in first for other in second)

    def _sum_of_atoms(self, step: _Step, first: Atom, second: Atom, sure: bool) -> Atom:
        for one, other in ((first, second), (second, first)):
            if one[0] == Origin.BLOCK and other[0] == Origin.BLOCK:
                self._doubt(step.vaddr)
                return _OTHER_ATOM
            if one[0] == Origin.BLOCK:
                return one
            if one[0] == Origin.POINTER and other[0] == Origin.CONSTANT:
                self._prove_constant(int(other[1]), sure)  # type: ignore[arg-type]
                return _OTHER_ATOM
            if one[0] == Origin.OFFSET and other[0] in (Origin.OTHER, Origin.CONSTANT):
                return one
            if one[0] in (Origin.POINTER, Origin.CONSTANT) and other[0] == Origin.OTHER:
                return one
        return _OTHER_ATOM

    def _prove_constant(self, vaddr: int, sure: bool) -> None:
        """The number in an instruction turns out to be an offset from the thread pointer."""
        if self._found is not None:
            number = self._translate.number_at(self._translate.field_of(vaddr))
            self._record(vaddr, Field(vaddr, number, True, frozenset(), sure, False, True, True))

    # Registers and the stack

    def _get(self, register: int) -> Value:
        return self._state.registers.get(register, OTHER)

    def _set(self, register: int, value: Value) -> None:
        if value == OTHER:
            self._state.registers.pop(register, None)
        else:
            self._state.registers[register] = value

    def _at(self, address: Value) -> Value:
        """The word at an address."""
        atoms: set[Atom] = set()
        for origin, place in address:
            atoms |= self._state.stack.get(place, OTHER) if origin == Origin.STACK else OTHER  # type: ignore[arg-type]
        return frozenset(atoms)

    def _store(self, step: _Step, address: Value, value: Value) -> None:
        if not self._write(address, value, step.width or 8):
            self._lose(step, value)

    def _write(self, address: Value, value: Value, width: int) -> bool:
        """Whether it is known where the word is now."""
        atoms = [place for origin, place in address if origin == Origin.STACK]
        if len(address) != 1 or not atoms:
            return False
        frame, offset = atoms[0]  # type: ignore[misc]
        stack = self._state.stack
        for place in [p for p in stack if p[0] == frame and offset - 8 < p[1] < offset + width]:
            del stack[place]
        if value != OTHER and width == 8:
            stack[frame, offset] = value
        return True

    def _shift_stack(self, by: int) -> None:
        self._set(_RSP, _shifted(self._get(_RSP), by))

    # What is found

    def _is_inside(self, offset: int) -> bool:
        return 0 <= offset <= self._module.block

    def _is_below(self, offset: int) -> bool:
        return self._module.executable and -self._module.below <= offset < 0

    def _field(
        self,
        step: _Step,
        number: int,
        base: Value,
        *,
        from_pointer: bool,
        sure: bool,
        indexed: bool,
        takes_address: bool = False,
    ) -> None:
        if self._found is not None:
            slots = frozenset(int(detail) for origin, detail in base if origin == Origin.BLOCK)  # type: ignore[arg-type]
            told = _is_short(number)
            self._record(step.vaddr, Field(0, number, from_pointer, slots, sure, told, indexed, takes_address))

    def _record(self, vaddr: int, found: Field) -> None:
        assert self._found is not None
        found = replace(found, position=self._translate.field_of(vaddr))
        before = self._found.fields.setdefault(found.position, found)
        if not (found.sure or found.told) or (before.slots, before.from_pointer) != (found.slots, found.from_pointer):
            self._found.unproven.add(found.position)

    def _doubt(self, vaddr: int) -> None:
        if self._found is not None:
            self._found.unproven.add(vaddr)

    def _lose(self, step: _Step, value: Value) -> None:
        """A base goes where it is not followed."""
        if all(origin == Origin.BLOCK for origin, _ in value):
            self._use_plainly(step, value)

    def _use_plainly(self, step: _Step, value: Value) -> None:
        """The start of the block is used without an offset: if it is what it seems, something was not understood."""
        if self._found is not None and all(origin == Origin.BLOCK for origin, _ in value):
            for _, slot in value:
                self._found.plain.setdefault(int(slot), set()).add(step.vaddr)  # type: ignore[arg-type]


_COMPLETE = -1  # the slot that holds a complete offset
_OTHER_ATOM: Atom = (Origin.OTHER, 0)
_OFFSET: Value = frozenset(((Origin.OFFSET, 0),))
_POINTER: Value = frozenset(((Origin.POINTER, 0),))


def _stack(place: Place) -> Value:
    return frozenset(((Origin.STACK, place),))


def _constant(position: int) -> Value:
    return frozenset(((Origin.CONSTANT, position),))


def _slot(index: int) -> Value:
    return frozenset(((Origin.SLOT, index),))


def _has(value: Value, origin: Origin) -> bool:
    return any(atom[0] == origin for atom in value)


def _is_plain(value: Value) -> bool:
    """Whether adding something unknown leaves the value what it is."""
    return not any(origin in (Origin.STACK, Origin.SLOT) for origin, _ in value)


def _shifted(value: Value, by: int) -> Value:
    """Adds a number to what holds addresses in the frame; the rest stays what it is, but for slots."""
    return frozenset(
        (origin, (detail[0], detail[1] + by))  # type: ignore[index]
        if origin == Origin.STACK
        else _OTHER_ATOM
        if origin == Origin.SLOT and by
        else (origin, detail)
        for origin, detail in value
    )


def _is_short(number: int) -> bool:
    """Whether an assembler would have written it in one byte."""
    return -128 <= number < 128


def _holds_block(state: _State) -> bool:
    return any(_has(value, Origin.BLOCK) for value in (*state.registers.values(), *state.stack.values()))
