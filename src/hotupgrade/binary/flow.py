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

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from iced_x86 import FlowControl, Instruction, Mnemonic, Register

from hotupgrade.binary.graph import CALLS, Block, Effort, Graph, is_padding
from hotupgrade.binary.model import U8
from hotupgrade.binary.steps import (
    CALLER_SAVED,
    FRAME,
    FULL,
    LONG,
    LONG_IMMEDIATES,
    RESULTS,
    RSP,
    Do,
    Memory,
    Step,
    Translator,
)
from hotupgrade.binary.values import (
    COMPLETE,
    MOVING,
    NOTHING,
    OTHER,
    Atom,
    Origin,
    State,
    Value,
    has,
    is_only,
    moved,
    united,
    value,
)

PAGE = 4096


@dataclass(frozen=True)
class Module:
    """What the flow must know of the module."""

    executable: bool  # the linker knows how far its block is from the thread pointer
    block: int  # bytes of the block
    below: int  # bytes from the thread pointer down to the start of an executable's block
    base_slots: Mapping[int, int]  # vaddr -> index: pairs from which the block's start may come
    offset_slots: frozenset[int]  # vaddrs of words and descriptors from which a complete offset comes
    lookups: frozenset[int]  # vaddrs of PLT stubs and GOT slots that lead to __tls_get_addr
    returns: Callable[[int], bool]  # whether a call that leads to this vaddr, or goes through this slot, comes back


@dataclass(frozen=True, slots=True)
class Field:
    """Four bytes of code that hold an offset of a thread-local."""

    vaddr: int  # of the instruction
    position: int
    number: int
    from_pointer: bool  # counts from the thread pointer; else from the start of the block
    slots: frozenset[int]  # from which the base comes
    told: bool  # its own form tells that it is the linker's
    indexed: bool  # something else is added
    loose: bool  # that, or nothing is read or written there: what is meant may lie elsewhere


@dataclass
class Findings:
    """What was found in one function."""

    fields: dict[int, Field] = field(default_factory=dict)  # by position
    unproven: set[int] = field(default_factory=set)  # vaddrs of what may be an offset of a thread-local, or not
    plain: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))  # slot -> uses of its base as it is
    # By the vaddr of the instruction that made an address: how far from there something is read or written.
    touched: Mapping[int, set[int]] = field(default_factory=dict)


def follow(image: U8, module: Module, graph: Graph, effort: Effort) -> Findings:
    """All fields of a function that hold offsets of thread-locals, and what may be one.

    Raises:
        ExhaustedError: that cannot be found out with reasonable effort.
    """
    flow = _Flow(Translator(image), module, graph, effort)
    flow.settle()
    return flow.findings()


def direct_field(image: U8, vaddr: int) -> Field:
    """Of an instruction with an operand at a fixed place before the thread pointer."""
    translate = Translator(image)
    position = translate.field_of(vaddr)
    number = translate.number_at(position)
    return Field(vaddr, position, number, True, frozenset(), told=_is_short(number), indexed=False, loose=False)


class _Flow:
    def __init__(self, translate: Translator, module: Module, graph: Graph, effort: Effort) -> None:
        self._effort = effort
        self._translate = translate
        self._module = module
        self._graph = graph
        self._incoming: dict[int, State] = {}
        self._astray: set[int] = set()  # blocks that nothing seems to lead to
        self._is_searching = False  # where those lead
        self._state = State({}, {})
        self._marks: dict[int, list[tuple[int, Instruction]]] = {}
        self._touched: dict[int, set[int]] = defaultdict(set)  # see Findings
        self._found: Findings | None = None  # only while findings are collected

    # What holds where

    def settle(self) -> None:
        """What may hold at the start of each block, joined over all ways there."""
        self._spread(self._graph.entries)
        self._is_searching = True
        for start in sorted(self._graph.blocks):
            if start not in self._incoming and not is_padding(self._graph.blocks[start]):
                self._astray.add(start)
                self._spread([start])

    def _spread(self, entries: Sequence[int]) -> None:
        for start in entries:
            # Where the stack pointer is in code that nothing seems to lead to is not known: a frame of its own, then.
            frame = 0 if start in self._graph.entries else start
            self._incoming[start] = State({RSP: value(Origin.STACK, frame)}, {})
        work = list(entries)
        returns: list[tuple[int, State]] = []  # what comes back from a call: last, see _arrive
        while work or returns:
            if not work:
                start, after = returns.pop()
                if self._arrive(start, after, from_call=True):
                    work.append(start)
                continue
            block = self._graph.blocks[work.pop()]
            after = self._after(block)
            from_call = block.instructions[-1].flow_control in CALLS
            if len(block.successors) > 1:
                self._effort.spend(len(block.successors) * after.size())
            for successor in block.successors:
                if successor not in self._graph.blocks:
                    continue
                if from_call:
                    if self._comes_back(block, successor):
                        returns.append((successor, after.copy()))
                elif self._arrive(successor, after, from_call=False):
                    work.append(successor)

    def _comes_back(self, block: Block, successor: int) -> bool:
        """Whether the call at a block's end leads on.  Asked only where it matters: where another way comes in, maybe
        behind some padding.
        """
        if len(self._graph.predecessors[successor]) == 1 and not is_padding(self._graph.blocks[successor]):
            return True
        last = block.instructions[-1]
        if successor != last.next_ip or block.successors.count(successor) > 1:
            return True  # by an exception
        step = self._translate(last)
        return step.call < 0 or self._module.returns(step.call)

    def _arrive(self, start: int, after: State, *, from_call: bool) -> bool:
        """Whether the start of a block learns something.

        A call from which control seems to come back with another frame than what follows has does not return.
        """
        known = self._incoming.get(start)
        if known is None:
            self._incoming[start] = after.copy()
            if self._is_searching:
                self._astray.add(start)
            return True
        if known.get(RSP) != after.get(RSP):
            if from_call:
                return False
            if self._is_searching:  # that code has found its way; its frame is the one that is known here
                after = after.copy()
                after.set(RSP, known.get(RSP))
        return known.join(after)

    def _after(self, block: Block) -> State:
        self._state = state = self._incoming[block.start].copy()
        self._effort.spend(len(block.instructions) + state.size())
        first = self._run_bare(block) if state.is_bare() else 0
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
        frame = FULL[instruction.op0_register] in FRAME or instruction.stack_pointer_increment
        copied = instruction.op1_register in FRAME and instruction.mnemonic == Mnemonic.MOV
        if frame or copied or instruction.mnemonic == Mnemonic.LEAVE:
            return instruction.flow_control == FlowControl.NEXT
        if not self._module.executable:
            return False
        number = instruction.op1_kind in LONG_IMMEDIATES or instruction.mnemonic == Mnemonic.LEA
        return bool(number or instruction.memory_segment == Register.FS)

    def _is_notable(self, step: Step) -> bool:
        """Whether a base may come into being here."""
        memory = step.memory
        if memory is None:
            return step.immediate_size >= LONG and self._module.executable
        if memory.fs or memory.absolute in self._module.base_slots or memory.absolute in self._module.offset_slots:
            return True
        return step.do == Do.LEA and memory.size == LONG and self._module.executable

    # One instruction

    def _take(self, step: Step) -> None:
        state = self._state
        self._effort.spend(sum(len(state.registers[each]) for each in step.touched if each in state.registers))
        if step.do == Do.CALL:
            self._call(step)
        elif step.do == Do.LEA:
            state.set(step.target, self._load_address(step) if step.wide else OTHER)
        elif step.do == Do.MOVE:
            self._move(step)
        elif step.do == Do.ADD:
            self._add(step)
        elif step.do == Do.SUBTRACT:
            self._subtract(step)
        elif step.do == Do.PUSH:
            held = self._operand(step) if step.source or step.memory else OTHER
            self._shift_stack(-8)
            state.write(state.get(RSP), held, 8)
        elif step.do == Do.POP:
            self._pop(step)
        elif step.do == Do.LEAVE:
            state.set(RSP, state.get(Register.RBP))
            state.set(Register.RBP, state.read(state.get(RSP)))
            self._shift_stack(8)
        elif step.do == Do.CONDITIONAL and step.wide:
            held = self._operand(step)
            self._effort.spend(len(held))
            state.set(step.target, united(state.get(step.target), held))
        elif step.do == Do.EXCHANGE and step.wide and step.memory is None:
            first, second = state.get(step.target), state.get(step.source)
            state.set(step.target, second)
            state.set(step.source, first)
        elif step.do == Do.CLEAR:
            state.set(step.target, OTHER)
        elif step.do == Do.COMPARE:
            if step.memory:
                self._address(step, step.memory)
        elif step.do != Do.NOTHING:
            self._anything(step)

    def _move(self, step: Step) -> None:
        if step.target and step.wide:
            self._state.set(step.target, self._operand(step))
            return
        address = self._address(step, step.memory) if step.memory else OTHER
        if step.target:
            self._state.set(step.target, OTHER)
        else:
            self._store(step, address, self._state.get(step.source) if step.source and step.wide else OTHER)

    def _add(self, step: Step) -> None:
        if not step.target or not step.wide:
            self._anything(step)
            return
        held = self._state.get(step.target)
        if step.source or step.memory:
            after = self._sum(step, held, self._operand(step))
        else:
            after = self._displaced(step, held, step.immediate, step.immediate_size, lea=True)
        self._state.set(step.target, after)

    def _subtract(self, step: Step) -> None:
        held = self._state.get(step.target)
        if not step.target or not step.wide or has(held, Origin.BLOCK):
            self._anything(step)
            return
        self._state.set(step.target, moved(held, -step.immediate))

    def _pop(self, step: Step) -> None:
        held = self._state.read(self._state.get(RSP))
        self._shift_stack(8)
        if step.target:
            self._state.set(step.target, held)
        elif step.memory:
            self._store(step, self._address(step, step.memory), held)

    def _call(self, step: Step) -> None:
        state = self._state
        if step.memory:
            self._address(step, step.memory)
        argument = state.get(Register.RDI)
        through = state.get(step.call_register) if step.call_register else OTHER
        if has(through, Origin.SLOT):
            # A descriptor's function keeps every register but the one in which it returns.
            state.set(Register.RAX, self._looked_up(step, through))
            return
        result = OTHER
        if has(argument, Origin.SLOT):
            if step.call in self._module.lookups:
                result = self._looked_up(step, argument)
            else:
                self._doubt(step.vaddr)
        for register in CALLER_SAVED & state.registers.keys():
            # Nobody reads what a call may have left there, unless the compiler saw the callee and knows that it leaves
            # the register alone (-fipa-ra): then it holds what it held.  Results are another matter.
            kept = frozenset(NOTHING if atom.origin == Origin.SLOT else atom for atom in state.get(register))
            state.set(register, united(kept, OTHER) if register in RESULTS else kept)
        state.set(Register.RAX, result)

    def _looked_up(self, step: Step, slots: Value) -> Value:
        atoms = set()
        for origin, detail, _ in slots:
            if origin != Origin.SLOT:
                self._doubt(step.vaddr)
                atoms.add(NOTHING)
            else:
                atoms.add(Atom(Origin.OFFSET) if detail == COMPLETE else Atom(Origin.BLOCK, detail))
        return frozenset(atoms)

    def _anything(self, step: Step) -> None:
        """An instruction that does with values what is not followed."""
        if step.memory:
            address = self._address(step, step.memory)
            if step.stores:
                self._store(step, address, OTHER)
        for register in step.reads:
            self._use_plainly(step, self._state.get(register))
        for register in step.writes:
            # The stack pointer: aligned, or with room of a size that is not known.
            self._state.set(register, value(Origin.STACK, step.vaddr) if register == RSP else OTHER)

    # Operands

    def _operand(self, step: Step) -> Value:
        """The 8 bytes that are read: a register, a word of memory or a number."""
        if step.source:
            return self._state.get(step.source)
        memory = step.memory
        if memory is None:
            return self._number(step, step.immediate, step.immediate_size)
        address = self._address(step, memory)
        if memory.absolute in self._module.offset_slots:
            return value(Origin.OFFSET)
        if memory.fs:
            thread_pointer = not memory.base and not memory.index and memory.displacement == 0 and step.width == 8
            return value(Origin.POINTER) if thread_pointer else OTHER
        return self._state.read(address)

    def _number(self, step: Step, number: int, size: int) -> Value:
        """A number by itself."""
        return value(Origin.CONSTANT, step.vaddr) if size == LONG and self._is_below(number) else OTHER

    def _load_address(self, step: Step) -> Value:
        memory = step.memory
        assert memory
        if memory.absolute in self._module.base_slots:
            if self._translate.is_prefixed(step.vaddr):
                return OTHER  # of the variable at the start of the block
            return value(Origin.SLOT, self._module.base_slots[memory.absolute])
        if memory.absolute in self._module.offset_slots:
            return value(Origin.SLOT, COMPLETE)
        return self._address(step, memory, lea=True)

    def _address(self, step: Step, memory: Memory, *, lea: bool = False) -> Value:
        """What the address of a memory operand is; takes note of an offset in it."""
        if memory.absolute >= 0:
            return OTHER
        if not memory.base and not memory.index:
            if not memory.fs:
                return self._number(step, memory.displacement, memory.size) if lea else OTHER
            if self._module.executable and memory.displacement < 0:
                self._note(step, memory.displacement, OTHER, from_pointer=True, sure=True)
            return OTHER
        held = self._state.get(memory.base) if memory.base else None
        if memory.index:
            index = self._state.get(memory.index)
            if memory.scale != 1:
                self._use_plainly(step, index)
                index = OTHER
            held = index if held is None else self._sum(step, held, index)
        assert held is not None
        indexed = bool(memory.index)
        if not lea:
            self._touch(held, memory.displacement)
        if memory.fs and not has(held, Origin.BLOCK):
            self._from_segment(step, memory, held)
            return OTHER
        return self._displaced(step, held, memory.displacement, memory.size, lea=lea, indexed=indexed)

    def _displaced(self, step: Step, held: Value, number: int, size: int, *, lea: bool, indexed: bool = False) -> Value:
        """A value and a number that is written in the code.  ``lea``: nothing is read or written there."""
        for origin, is_near in ((Origin.BLOCK, self._is_inside), (Origin.POINTER, self._is_below)):
            if not has(held, origin) or (origin == Origin.POINTER and not self._module.executable):
                continue
            if size != LONG:
                if not lea:
                    self._use_plainly(step, held)
                return held
            sure = is_only(held, origin)
            # Behind the thread pointer there are other things.
            if _is_short(number) or is_near(number) or (sure and (origin == Origin.BLOCK or number < 0)):
                from_pointer = origin == Origin.POINTER
                self._note(step, number, held, from_pointer=from_pointer, sure=sure, lea=lea, indexed=indexed)
                return value(Origin.ADDRESS, step.vaddr)
            return OTHER
        if lea and held == OTHER:
            return self._number(step, number, size)
        return moved(held, number)

    def _from_segment(self, step: Step, memory: Memory, held: Value) -> None:
        """An operand that counts from the thread pointer, with something in registers."""
        sure = is_only(held, Origin.CONSTANT)
        for atom in held:
            if atom.origin == Origin.CONSTANT:
                self._prove_constant(atom.detail, sure)
                if not memory.index:
                    self._touch(value(Origin.ADDRESS, atom.detail), memory.displacement)
        if memory.size == LONG and self._is_below(memory.displacement) and has(held, Origin.OTHER):
            self._note(step, memory.displacement, OTHER, from_pointer=True, sure=held == OTHER, indexed=True)

    def _sum(self, step: Step, first: Value, second: Value) -> Value:
        self._effort.spend(len(first) * len(second) - 1)
        sure = len(first) == 1 and len(second) == 1
        return frozenset(self._sum_of_atoms(step, one, other, sure) for one in first for other in second)

    def _sum_of_atoms(self, step: Step, first: Atom, second: Atom, sure: bool) -> Atom:
        one, other = sorted((first, second), reverse=True)  # by origin
        kinds = one.origin, other.origin
        if other.origin == Origin.OTHER:
            return one if one.origin not in (*MOVING, Origin.SLOT) else NOTHING
        if kinds == (Origin.BLOCK, Origin.BLOCK):
            self._doubt(step.vaddr)
        elif other.origin == Origin.BLOCK:
            return other  # and the thread pointer, for instance
        elif kinds == (Origin.CONSTANT, Origin.POINTER):
            self._prove_constant(one.detail, sure)
            return Atom(Origin.ADDRESS, one.detail)
        elif kinds == (Origin.CONSTANT, Origin.OFFSET):
            return other
        elif kinds == (Origin.ADDRESS, Origin.POINTER):
            return one
        return NOTHING

    def _store(self, step: Step, address: Value, held: Value) -> None:
        if not self._state.write(address, held, step.width or 8):
            self._use_plainly(step, held)

    def _shift_stack(self, by: int) -> None:
        self._state.set(RSP, moved(self._state.get(RSP), by))

    # What is found

    def findings(self) -> Findings:
        self._found = found = Findings(touched=self._touched)
        for start in sorted(self._incoming):
            block = self._graph.blocks[start]
            after = self._after(block)
            astray = block.leaves or any(successor not in self._graph.blocks for successor in block.successors)
            if astray and self._runs_on(block) and any(has(held, Origin.BLOCK) for held in after.all()):
                found.unproven.add(block.instructions[-1].ip)
        for start in sorted(self._astray):
            self._doubt_all(self._graph.blocks[start], found)
        for position in found.unproven & found.fields.keys():
            del found.fields[position]
        return found

    @staticmethod
    def _runs_on(block: Block) -> bool:
        """Whether what leaves the function by the end of a block is more than a call that does not return."""
        return block.instructions[-1].flow_control not in (*CALLS, FlowControl.UNCONDITIONAL_BRANCH)

    def _doubt_all(self, block: Block, found: Findings) -> None:
        """Nobody knows what registers hold in code that nothing seems to lead to."""
        for step in map(self._translate, block.instructions):
            memory = step.memory
            number, size = step.immediate if step.do == Do.ADD else 0, step.immediate_size
            if memory is not None:
                in_register = memory.base not in (0, RSP) or memory.index
                number, size = memory.displacement, memory.size if in_register and memory.absolute < 0 else 0
            like = self._is_below(number) if self._module.executable else self._is_inside(number)
            if like and size == LONG and self._translate.field_of(step.vaddr) not in found.fields:
                found.unproven.add(step.vaddr)

    def _is_inside(self, offset: int) -> bool:
        """Whether a number may be an offset in the block, or of a pointer that a loop begins or ends with."""
        return -self._module.block <= offset <= 2 * self._module.block

    def _is_below(self, offset: int) -> bool:
        """The same for an offset from the thread pointer."""
        return self._module.executable and -2 * self._module.below - PAGE <= offset < 0

    def _note(
        self,
        step: Step,
        number: int,
        base: Value,
        *,
        from_pointer: bool,
        sure: bool,
        lea: bool = False,
        indexed: bool = False,
    ) -> None:
        if self._found is not None:
            slots = frozenset(atom.detail for atom in base if atom.origin == Origin.BLOCK)
            position, told = self._translate.field_of(step.vaddr), _is_short(number)
            self._record(
                Field(step.vaddr, position, number, from_pointer, slots, told, indexed, loose=lea or indexed),
                proven=sure or told,
            )

    def _prove_constant(self, vaddr: int, sure: bool) -> None:
        """The number in an instruction turns out to be an offset from the thread pointer."""
        if self._found is not None:
            position = self._translate.field_of(vaddr)
            number = self._translate.number_at(position)
            self._record(
                Field(vaddr, position, number, True, frozenset(), told=False, indexed=False, loose=True), proven=sure
            )

    def _record(self, found: Field, *, proven: bool) -> None:
        assert self._found is not None
        before = self._found.fields.setdefault(found.position, found)
        if not proven or (before.slots, before.from_pointer) != (found.slots, found.from_pointer):
            self._found.unproven.add(found.position)

    def _doubt(self, vaddr: int) -> None:
        if self._found is not None:
            self._found.unproven.add(vaddr)

    def _touch(self, address: Value, displacement: int) -> None:
        # Also while values are still being found out: what was so once is so on some way.
        for origin, detail, more in address:
            if origin == Origin.ADDRESS:
                self._touched[detail].add(more + displacement)

    def _use_plainly(self, step: Step, held: Value) -> None:
        """The start of the block goes somewhere without an offset: if it is what it seems, all is not understood."""
        self._effort.spend(len(held))
        if self._found is not None and is_only(held, Origin.BLOCK):
            for atom in held:
                self._found.plain[atom.detail].add(step.vaddr)


def _is_short(number: int) -> bool:
    """Whether an assembler would have written it in one byte."""
    return -128 <= number < 128
