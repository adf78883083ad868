"""Call frame information: where a function keeps its caller's registers, for every place in its code.

An exact second opinion on stacks, next to the conservative scan, which needs no such information.  What cannot be
read, or is of a form that compilers for x86-64 do not write, is an error, never a guess.

Formats: Linux Standard Base, "Exception Frames"; DWARF 5, section 6.4; System V ABI for AMD64, section 3.6.2
(numbers of registers).
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

#: DWARF numbers of the registers that a call keeps, and of the return address.
RBX, RBP, RSP, R12, R13, R14, R15, RETURN = 3, 6, 7, 12, 13, 14, 15, 16
KEPT = (RBX, RBP, RSP, R12, R13, R14, R15)

_MOST_STEPS = 4096  # instructions of one table, operations of one expression
_RELATIVE_32 = 0x1B
_MASK = (1 << 64) - 1

Memory = Callable[[int], int]  # the word at an absolute address


class NoFrameError(Exception):
    """There is no frame information for a place, or none that can be used; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Row:
    """What holds at one place.

    ``cfa`` is (register, offset), or an expression.  ``saved`` says, by register, where its caller's value is: an
    offset from the CFA, or an expression for the address; a register that is not there still has it.
    """

    cfa: tuple[int, int] | bytes
    saved: Mapping[int, int | bytes]
    undefined: frozenset[int]
    signal: bool  # a signal handler's trampoline: the return address is where the thread was interrupted


@dataclass(frozen=True, slots=True)
class _Common:
    code_factor: int
    data_factor: int
    return_register: int
    encoding: int
    sized: bool
    signal: bool
    instructions: bytes


@dataclass
class _State:
    cfa_register: int = RSP
    cfa_offset: int = 8
    cfa_expression: bytes | None = None
    saved: dict[int, int | bytes] = field(default_factory=dict)
    undefined: set[int] = field(default_factory=set)

    def copy(self) -> _State:
        return _State(self.cfa_register, self.cfa_offset, self.cfa_expression, dict(self.saved), set(self.undefined))


class Frames:
    """The frame information of one module.

    ``section`` is its ``.eh_frame`` (an unwinder needs no symbols, so neither does this), ``start`` its vaddr,
    ``label`` a name for messages.
    """

    def __init__(self, section: bytes, start: int, label: str) -> None:
        self._section = section
        self._start = start
        self._label = label

    @cached_property
    def _entries(self) -> list[tuple[int, int, int]]:
        """(first vaddr, end, offset of the FDE), by address."""
        found: list[tuple[int, int, int]] = []
        offset = 0
        while offset + 16 <= len(self._section):
            length, identity, relative, size = struct.unpack_from("<IIiI", self._section, offset)
            if length in (0, 0xFFFFFFFF) or offset + 4 + length > len(self._section):
                break
            if identity:
                first = self._start + offset + 8 + relative
                found.append((first, first + size, offset))
            offset += 4 + length
        return sorted(found)

    def ranges(self) -> list[tuple[int, int]]:
        """(first vaddr, end) of each entry, by address."""
        return [(first, end) for first, end, _ in self._entries]

    def row(self, vaddr: int) -> Row:
        """What holds before the instruction at a vaddr.

        Raises:
            NoFrameError: nothing is known of it.
        """
        first, _, offset = self._entry(vaddr)
        try:
            return self._row(first, offset, vaddr)
        except (struct.error, IndexError, ValueError) as error:
            raise NoFrameError(f"frame information for {vaddr:#x} of {self._label}: {error}") from None

    def bounds(self, vaddr: int) -> tuple[int, int]:
        """[first, end) of the code that one piece of information is about, and that holds a vaddr.

        Raises:
            NoFrameError: nothing is known of it.
        """
        return self._entry(vaddr)[:2]

    def _entry(self, vaddr: int) -> tuple[int, int, int]:
        index = bisect_right(self._entries, vaddr, key=lambda entry: entry[0]) - 1
        if index < 0 or not self._entries[index][0] <= vaddr < self._entries[index][1]:
            raise NoFrameError(f"no frame information for {vaddr:#x} of {self._label}")
        return self._entries[index]

    def _row(self, first: int, offset: int, vaddr: int) -> Row:
        length, identity = struct.unpack_from("<II", self._section, offset)
        common = self._common(offset + 4 - identity)
        if common.encoding != _RELATIVE_32 or common.return_register != RETURN:
            raise ValueError(f"an encoding ({common.encoding:#x}) that is not used on x86-64")
        reader = _Reader(self._section[offset + 16 : offset + 4 + length])
        if common.sized:
            reader.skip(reader.unsigned())
        state = _Program(common).until(reader.rest(), first, vaddr)
        cfa = state.cfa_expression if state.cfa_expression is not None else (state.cfa_register, state.cfa_offset)
        return Row(cfa, dict(state.saved), frozenset(state.undefined), common.signal)

    def _common(self, offset: int) -> _Common:
        length, identity = struct.unpack_from("<II", self._section, offset)
        if identity:
            raise ValueError("an entry that refers to no common part")
        reader = _Reader(self._section[offset + 8 : offset + 4 + length])
        version = reader.byte()
        augmentation = reader.text()
        if version not in (1, 3) or (augmentation and not augmentation.startswith("z")):
            raise ValueError(f"augmentation {augmentation!r} of version {version}")
        code, data = reader.unsigned(), reader.signed()
        register = reader.byte() if version == 1 else reader.unsigned()
        encoding = 0
        if augmentation:
            end = reader.unsigned() + reader.at
            for letter in augmentation[1:]:
                if letter == "R":
                    encoding = reader.byte()
                elif letter == "L":
                    reader.byte()
                elif letter == "P":
                    size = {0x0B: 4, 0x0C: 8, 0x03: 4, 0x00: 8, 0x04: 8}.get(reader.byte() & 0x0F)
                    if size is None:
                        raise ValueError("a personality of another size")
                    reader.skip(size)
                elif letter not in "SB":
                    raise ValueError(f"augmentation {augmentation!r}")
            reader.at = end
        return _Common(code, data, register, encoding, bool(augmentation), "S" in augmentation, reader.rest())


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def __bool__(self) -> bool:
        return self.at < len(self.data)

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def number(self, layout: str) -> int:
        value: int = struct.unpack_from(layout, self.data, self.at)[0]
        self.at += struct.calcsize(layout)
        return value

    def skip(self, size: int) -> None:
        self.at += size

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.data):
            raise ValueError("cut short")
        self.at += size
        return self.data[self.at - size : self.at]

    def rest(self) -> bytes:
        return self.data[self.at :]

    def text(self) -> str:
        end = self.data.index(0, self.at)
        word = self.data[self.at : end].decode("ascii", "replace")
        self.at = end + 1
        return word

    def unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value
            if shift > 70:
                raise ValueError("a number without end")

    def signed(self) -> int:
        begin = self.at
        value = self.unsigned()
        bits = 7 * (self.at - begin)
        return value - (1 << bits) if value >> (bits - 1) & 1 else value


class _Program:
    """Interprets the instructions of a CIE, then those of an FDE up to a place."""

    def __init__(self, common: _Common) -> None:
        self._common = common
        self.state = _State()
        self._stack: list[_State] = []
        self._initial = _State()  # what may be gone back to: the rules of the CIE, once they are known
        self._run(_Reader(common.instructions), 0, _MASK)
        self._initial = self.state.copy()

    def until(self, code: bytes, first: int, vaddr: int) -> _State:
        self._run(_Reader(code), first, vaddr)
        return self.state

    def _run(self, reader: _Reader, place: int, until: int) -> None:
        for _ in range(_MOST_STEPS):
            if not reader or place > until:
                return
            operation = reader.byte()
            high, low = operation >> 6, operation & 0x3F
            if high == 1 or operation in (0x01, 0x02, 0x03, 0x04):
                place = self._advance(operation, low if high else 0, reader, place)
            elif high == 2:
                self._save(low, reader.unsigned() * self._common.data_factor)
            elif high == 3:
                self._restore(low)
            else:
                self._other(operation, reader)
        if reader:
            raise ValueError("too many instructions")

    def _advance(self, operation: int, delta: int, reader: _Reader, place: int) -> int:
        if operation == 0x01:
            raise ValueError("an absolute place")
        layout = {0x02: "<B", 0x03: "<H", 0x04: "<I"}.get(operation)
        return place + (reader.number(layout) if layout else delta) * self._common.code_factor

    def _save(self, register: int, where: int | bytes) -> None:
        self.state.saved[register] = where
        self.state.undefined.discard(register)

    def _restore(self, register: int) -> None:
        self.state.saved.pop(register, None)
        self.state.undefined.discard(register)
        if register in self._initial.saved:
            self.state.saved[register] = self._initial.saved[register]

    def _other(self, operation: int, reader: _Reader) -> None:
        state, factor = self.state, self._common.data_factor
        match operation:
            case 0x00:  # nop
                pass
            case 0x05:  # offset_extended
                self._save(reader.unsigned(), reader.unsigned() * factor)
            case 0x11:  # offset_extended_sf
                self._save(reader.unsigned(), reader.signed() * factor)
            case 0x06:  # restore_extended
                self._restore(reader.unsigned())
            case 0x07:  # undefined
                register = reader.unsigned()
                state.saved.pop(register, None)
                state.undefined.add(register)
            case 0x08:  # same_value
                register = reader.unsigned()
                state.saved.pop(register, None)
                state.undefined.discard(register)
            case 0x0A:  # remember_state
                self._stack.append(state.copy())
            case 0x0B:  # restore_state
                self.state = self._stack.pop()
            case 0x0C:  # def_cfa
                state.cfa_register, state.cfa_offset, state.cfa_expression = reader.unsigned(), reader.unsigned(), None
            case 0x0D:  # def_cfa_register
                state.cfa_register = reader.unsigned()
            case 0x0E:  # def_cfa_offset
                state.cfa_offset = reader.unsigned()
            case 0x0F:  # def_cfa_expression
                state.cfa_expression = reader.take(reader.unsigned())
            case 0x10:  # expression
                register = reader.unsigned()
                self._save(register, reader.take(reader.unsigned()))
            case 0x2E:  # GNU_args_size
                reader.unsigned()
            case _:
                raise ValueError(f"an instruction ({operation:#x}) that is not used on x86-64")


# Walking


@dataclass(frozen=True)
class Caller:
    """Where a call returns to: ``slot`` is the address of the word that says so, ``registers`` what it finds."""

    slot: int
    pc: int
    registers: Mapping[int, int]  # by DWARF number; one that is not there is not known


def caller(row: Row, frame_registers: Mapping[int, int], read: Memory) -> Caller | None:
    """The caller of a frame; None of the outermost one.

    Args:
        row: what holds at the frame's place.
        frame_registers: by DWARF number.
        read: the word at an absolute address.

    Raises:
        NoFrameError: a value that is needed is not known.
    """
    if RETURN in row.undefined:
        return None
    if isinstance(row.cfa, bytes):
        cfa = _evaluate(row.cfa, frame_registers, read, [])
    else:
        cfa = _known(frame_registers, row.cfa[0]) + row.cfa[1]
    registers = {number: value for number, value in frame_registers.items() if number not in row.undefined}
    registers[RSP] = cfa
    slot = 0
    for number, where in row.saved.items():
        place = (cfa + where if isinstance(where, int) else _evaluate(where, frame_registers, read, [cfa])) & _MASK
        registers[number] = read(place)
        if number == RETURN:
            slot = place
    if not slot:
        raise NoFrameError("no return address")
    return Caller(slot, registers.pop(RETURN), registers)


def _known(registers: Mapping[int, int], number: int) -> int:
    if number not in registers:
        raise NoFrameError(f"register {number} is not known")
    return registers[number]


#: DW_OP_and, plus, shl, ge.
_OPERATORS: Mapping[int, Callable[[int, int], int]] = {
    0x1A: lambda first, second: first & second,
    0x22: lambda first, second: first + second,
    0x24: lambda first, second: first << (second & 63),
    0x2A: lambda first, second: int(first >= second),
}


def _evaluate(expression: bytes, registers: Mapping[int, int], read: Memory, stack: list[int]) -> int:
    """A DWARF expression, as far as compilers and glibc use them here (PLT entries, signal trampolines)."""
    try:
        return _value(expression, registers, read, stack)
    except (struct.error, IndexError) as error:
        raise NoFrameError(f"an expression that is cut off, or takes what it does not have: {error}") from None


def _value(expression: bytes, registers: Mapping[int, int], read: Memory, stack: list[int]) -> int:
    reader = _Reader(expression)
    for _ in range(_MOST_STEPS):
        if not reader:
            break
        operation = reader.byte()
        if 0x30 <= operation <= 0x4F:
            stack.append(operation - 0x30)
        elif 0x70 <= operation <= 0x8F:
            stack.append(_known(registers, operation - 0x70) + reader.signed() & _MASK)
        elif operation in (0x08, 0x09):
            stack.append(reader.number("<B" if operation == 0x08 else "<b"))
        elif operation == 0x06:
            stack.append(read(stack.pop()))
        elif operation in _OPERATORS:
            second, first = stack.pop(), stack.pop()
            stack.append(_OPERATORS[operation](first, second) & _MASK)
        elif operation == 0x23:
            stack.append(stack.pop() + reader.unsigned() & _MASK)
        else:
            raise NoFrameError(f"an expression with an operation ({operation:#x}) that is not used here")
    if not stack:
        raise NoFrameError("an expression without a value")
    return stack[-1]
