"""What registers and words of the stack may hold, as far as thread-locals go."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

from hotupgrade.binary.steps import FRAME


class Origin(enum.IntEnum):
    OTHER = 0  # anything else
    BLOCK = 1  # start of the module's thread-local block (``detail``: index of the slot); an offset is to come
    POINTER = 2  # the thread pointer; in an executable, an offset may be to come
    OFFSET = 3  # from the thread pointer to a variable, complete
    CONSTANT = 4  # a number in the code (``detail``: vaddr of the instruction) that may be such an offset
    SLOT = 5  # address of the GOT slots from which BLOCK or OFFSET comes (``detail``: index of the slot)
    ADDRESS = 6  # of a variable, or its offset (``detail``: vaddr of the instruction that made it), and ``more`` bytes
    STACK = 7  # an address in a frame (``detail``: vaddr of what set the frame up, 0: the caller), and ``more`` bytes


class Atom(NamedTuple):
    origin: Origin
    detail: int = 0
    more: int = 0


Value = frozenset[Atom]  # one of these

MOVING = (Origin.STACK, Origin.ADDRESS)  # what may be in one place or in another is not followed any further
COMPLETE = -1  # for Origin.SLOT: what it holds is no base

NOTHING = Atom(Origin.OTHER)
OTHER: Value = frozenset((NOTHING,))


def value(origin: Origin, detail: int = 0, more: int = 0) -> Value:
    return frozenset((Atom(origin, detail, more),))


def has(held: Value, origin: Origin) -> bool:
    return any(atom.origin == origin for atom in held)


def is_only(held: Value, origin: Origin) -> bool:
    return all(atom.origin == origin for atom in held)


def united(first: Value, second: Value) -> Value:
    """One of two values."""
    if first == second:
        return first
    return frozenset(NOTHING if atom.origin in MOVING else atom for atom in first | second)


def moved(held: Value, by: int) -> Value:
    """A value and a number that is no offset of a thread-local."""
    return frozenset(_moved(atom, by) for atom in held)


def _moved(atom: Atom, by: int) -> Atom:
    if atom.origin in MOVING:
        return Atom(atom.origin, atom.detail, atom.more + by)
    return NOTHING if atom.origin == Origin.SLOT and by else atom


class State:
    """What is held where; what is not here holds OTHER."""

    __slots__ = ("registers", "stack")

    def __init__(self, registers: dict[int, Value], stack: dict[tuple[int, int], Value]) -> None:
        self.registers = registers  # full registers
        self.stack = stack  # by frame and distance, see Origin.STACK

    def copy(self) -> State:
        return State(dict(self.registers), dict(self.stack))

    def join(self, other: State) -> bool:
        """Takes in what may be held on another way here; whether that changes anything."""
        first = _join(self.registers, other.registers)
        return _join(self.stack, other.stack) or first

    def is_bare(self) -> bool:
        """Whether nothing but the frame is known."""
        return not self.stack and all(
            register in FRAME and len(held) == 1 and is_only(held, Origin.STACK)
            for register, held in self.registers.items()
        )

    def size(self) -> int:
        """How much there is to be copied and compared."""
        return sum(map(len, self.registers.values())) + sum(map(len, self.stack.values()))

    def all(self) -> Iterable[Value]:
        return (*self.registers.values(), *self.stack.values())

    def get(self, register: int) -> Value:
        return self.registers.get(register, OTHER)

    def set(self, register: int, held: Value) -> None:
        if held == OTHER:
            self.registers.pop(register, None)
        else:
            self.registers[register] = held

    def read(self, address: Value) -> Value:
        """The word at an address."""
        words = [self.stack.get(atom[1:], OTHER) if atom.origin == Origin.STACK else OTHER for atom in address]
        return words[0] if len(words) == 1 else frozenset().union(*words)

    def write(self, address: Value, held: Value, width: int) -> bool:
        """Whether it is known where the value is now."""
        if len(address) != 1 or not is_only(address, Origin.STACK):
            return False
        ((_, frame, at),) = address
        for place in range(at - 7, at + width) if self.stack else ():
            self.stack.pop((frame, place), None)
        if held != OTHER and width == 8:
            self.stack[frame, at] = held
        return True


_Key = TypeVar("_Key")


def _join(mine: dict[_Key, Value], theirs: Mapping[_Key, Value]) -> bool:
    changed = False
    for key in mine.keys() | theirs.keys():
        before = mine.get(key, OTHER)
        after = united(before, theirs.get(key, OTHER))
        if after != before:
            mine[key] = after
            changed = True
    return changed
