"""Whether an address of the old build and one of the new build mean the same, once names are paired."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from hotupgrade.binary.bare.functions import frame_ranges
from hotupgrade.binary.build import Build
from hotupgrade.binary.code import JumpTable
from hotupgrade.binary.elf import SHF_EXECINSTR, SHF_WRITE
from hotupgrade.binary.model import I64, U8, Flags, Kind, Slot
from hotupgrade.binary.relocations import Relocation, relocation_target
from hotupgrade.plan.match import Match
from hotupgrade.plan.pieces import TRANSFERS

RESERVED_SLOTS = 3  # .got.plt begins with words for the loader
MAX_DEPTH = 4  # data that point to data that point to data: beyond this, call it different
MAX_STRING = 1 << 20
_SHORT = 256  # bytes that are compared at once sooner than one looks where they come from
_AT_ONCE = 512  # places
CHUNK = 1 << 20  # bytes compared at once: a variable may be as large as the image
MAX_SOURCE_LINE = 512
START_FILES = ("crtstuff.c",)
# What __FILE__ ":" __LINE__ leaves behind: every edit of a file shifts it, and nothing but messages depends on it.
SOURCE_LINE = re.compile(rb"([\w./+-]+\.(?:c|h|cc|cpp|cxx|hh|hpp|inc|ipp)):\d+\0")


# Plain numbers: members of enumerations take long to be looked up, and these are by the ten thousand.
_BY_ADDRESS = (int(Relocation.RELATIVE), int(Relocation.IRELATIVE))
_FUNCTION, _CONSTANT = int(Kind.FUNCTION), int(Kind.CONSTANT)


class _Index:
    """Sorted addresses as lists: for single questions, bisection over a list is ten times faster than over an array."""

    def __init__(self, build: Build) -> None:
        self.build = build
        relocations = build.dynamic_relocations
        self.edges: list[int] = build.boundaries.tolist()
        self.places: list[int] = relocations.vaddr.tolist()
        self.types: list[int] = relocations.type.tolist()
        self.addends: list[int] = relocations.addend.tolist()
        self.symbols: list[int] = relocations.symbol.tolist()

    def rooms(self, vaddrs: I64) -> I64:
        """:meth:`room` of many places."""
        edges = np.append(self.build.boundaries, self.build.span)
        found: I64 = edges[np.searchsorted(edges[:-1], vaddrs, side="right")] - vaddrs
        return found

    def are_relocated(self, vaddrs: I64, sizes: I64) -> Flags:
        """Which ranges hold words that the loader fills."""
        places = self.build.dynamic_relocations.vaddr.astype(np.int64)
        found: Flags = np.searchsorted(places, vaddrs) != np.searchsorted(places, vaddrs + sizes)
        return found

    def room(self, vaddr: int) -> int:
        """Bytes up to where a piece of anonymous data must have ended."""
        at = bisect_right(self.edges, vaddr)
        return (self.edges[at] if at < len(self.edges) else self.build.span) - vaddr

    def relocations(self, vaddr: int, size: int) -> range:
        return range(bisect_left(self.places, vaddr), bisect_left(self.places, vaddr + size))


@dataclass
class Meaning:
    """Answers are remembered: the same string is referred to from many places."""

    old: Build
    new: Build
    pairs: Match
    shifted_lines: set[int] = field(default_factory=set)  # new functions that differ in a source line's number only
    _data: dict[tuple[int, int, int], bool] = field(default_factory=dict)
    _same_tables: dict[tuple[int, int, int], bool] = field(default_factory=dict)
    _tables: tuple[dict[tuple[int, int], JumpTable], dict[tuple[int, int], JumpTable]] = field(init=False)

    _index: tuple[_Index, _Index] = field(init=False)
    _thread_locals: tuple[dict[int, int], dict[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        self._tables = (_by_place(self.old), _by_place(self.new))
        self._index = (_Index(self.old), _Index(self.new))
        self._thread_locals = (_thread_locals(self.old), _thread_locals(self.new))

    # Names

    def same_row(self, old: int, new: int) -> bool:
        """Paired, or constants that nobody can tell apart; and of equal size, since code depends on it."""
        paired = self.pairs.new_of[old] == new or self.pairs.old_of[new] == old
        ours, theirs = self.old.entities, self.new.entities
        kind = ours.kind[old]
        if kind == _FUNCTION:
            return bool(paired)
        if paired and self.old.bare and ours.kind[old] == Kind.OBJECT == theirs.kind[new]:
            # Without names a size is only a distance; see hotupgrade.plan.unproven for what that asks of users.
            return bool(self.old.unbounded[old] or self.new.unbounded[new] or ours.size[old] == theirs.size[new])
        if ours.size[old] != theirs.size[new]:
            return False
        if paired:
            return True
        both_constant = kind == _CONSTANT == theirs.kind[new]
        partner = int(self.pairs.new_of[old])
        return bool(both_constant and partner >= 0 and self._equal_constants(partner, new))

    def _equal_constants(self, first: int, second: int) -> bool:
        entities = self.new.entities
        if entities.size[first] != entities.size[second] or entities.exported[first] or entities.exported[second]:
            return False
        size = int(entities.size[first])
        places = [int(entities.address[row]) for row in (first, second)]
        return self.new.read(places[0], size) == self.new.read(places[1], size)

    # Slots

    def slot(self, build: Build, index: int) -> Hashable:
        """What the loader puts into a GOT slot, in terms that both builds share."""
        slot = build.slots[index]
        if slot.relocation == Relocation.DTPMOD64:
            return ("thread-local pair", slot.symbol, self._version(build, slot), self._pair_offset(build, index))
        if slot.symbol:
            return self._symbol(build, slot)
        if slot.relocation in (Relocation.RELATIVE, Relocation.IRELATIVE):
            return (slot.relocation, *self._place(build, slot.addend))
        if slot.relocation in (Relocation.TPOFF64, Relocation.DTPOFF64, Relocation.TLSDESC):
            return (slot.relocation, *self._thread_local(build, slot.addend))
        section = build.section_at(slot.vaddr)
        offset = slot.vaddr - section.vaddr if section else -1
        if section and section.name == ".got.plt" and offset < 8 * RESERVED_SLOTS:
            return ("loader", offset)
        return ("constant", build.read(slot.vaddr, 8))

    def _symbol(self, build: Build, slot: Slot) -> Hashable:
        # The linker calls through either kind of slot, depending on whether anyone takes the function's address.
        plain_address = slot.relocation in (Relocation.JUMP_SLOT, Relocation.GLOB_DAT)
        relocation = Relocation.GLOB_DAT if plain_address else slot.relocation
        row = build.by_name.get(slot.symbol)
        # The size of an object matters to the code that uses it.
        size = int(build.entities.size[row]) if row is not None and build.entities.kind[row] != Kind.FUNCTION else 0
        return (relocation, slot.symbol, self._version(build, slot), slot.addend, row is None, size)

    @staticmethod
    def _version(build: Build, slot: Slot) -> str:
        """The module's own symbols may come with a new version name in every release."""
        return "" if slot.symbol in build.by_name else slot.version

    def _pair_offset(self, build: Build, index: int) -> Hashable:
        """The second word of a thread-local pair: an offset known at link time, or a relocation."""
        if index + 1 >= len(build.slots) or build.slots[index + 1].vaddr != build.slots[index].vaddr + 8:
            return ("alone",)
        following = build.slots[index + 1]
        if following.relocation == Relocation.DTPOFF64:
            return self.slot(build, index + 1)
        return self._thread_local(build, int.from_bytes(build.read(following.vaddr, 8), "little"))

    def _place(self, build: Build, vaddr: int) -> tuple[Hashable, ...]:
        row = build.row_at(vaddr)
        if row is None:
            return ("unnamed", build is self.old, vaddr)
        return self._row(build, row, vaddr - int(build.entities.address[row]))

    def _thread_local(self, build: Build, offset: int) -> tuple[Hashable, ...]:
        row = self._thread_locals[build is self.new].get(offset % (1 << 64))
        return ("thread-local offset", offset) if row is None else self._row(build, row, 0)

    def _row(self, build: Build, row: int, addend: int) -> tuple[Hashable, ...]:
        """In terms of new rows; old rows without a partner equal nothing."""
        is_old = build is self.old
        partner = int(self.pairs.new_of[row]) if is_old else row
        if partner < 0:
            return ("removed", row)
        size = int(build.entities.size[row]) if build.entities.kind[row] != Kind.FUNCTION else 0
        return ("row", partner, addend, size)

    # Addresses

    def same_address(self, old: int, new: int, depth: int = 0) -> bool:
        """Two places that a data word points to."""
        ours, theirs = self.old.row_at(old), self.new.row_at(new)
        if (ours is None) != (theirs is None):
            return False
        if ours is not None and theirs is not None:
            delta = old - int(self.old.entities.address[ours])
            return delta == new - int(self.new.entities.address[theirs]) and self.same_row(ours, theirs)
        if self._is_constant_data(self.old, old) and self._is_constant_data(self.new, new):
            return self.same_data(old, new, depth)
        return self.same_neighbour(old, new) and self.same_data(old, new, depth)

    @staticmethod
    def _is_constant_data(build: Build, vaddr: int) -> bool:
        section = build.section_at(vaddr)
        if section is None or section.flags & 4 or section.type == 8:
            return False
        low, high = build.relro or (0, 0)
        return not section.flags & 1 or (low <= section.vaddr and section.vaddr + section.size <= high)

    def same_neighbour(self, old: int, new: int) -> bool:
        """An unnamed place in writable memory: the same distance behind the same name, in the same section.

        What lies there is another question.
        """
        if (place := _in_nameless_section(self.old, old)) is not None:
            return place == _in_nameless_section(self.new, new) and self.same_data(old, new, 0)
        ours, theirs = _preceding(self.old, old), _preceding(self.new, new)
        if ours is None or theirs is None or ours[1] != theirs[1] or ours[2] != theirs[2]:
            return False
        # Unnamed code has contents that nobody compared.
        return self.old.entities.kind[ours[0]] != Kind.FUNCTION and self.same_row(ours[0], theirs[0])

    # Constants that hand-written code has beside it, in a section that nobody writes

    def are_in_code(self, old: int, new: int) -> bool:
        """Whether both places lie among the instructions of their builds, outside of every function."""
        sections = (self.old.section_at(old), self.new.section_at(new))
        return all(
            section is not None and section.flags & (SHF_EXECINSTR | SHF_WRITE) == SHF_EXECINSTR for section in sections
        )

    def same_constants_in_code(self, old: int, new: int, access: int) -> bool:
        """``access``: bytes that are read; 0 where an address is taken: of all up to the next function, then.

        Code without a name would have contents that nobody compared, whatever its bytes are.
        """
        size = access or min(self._index[0].room(old), self._index[1].room(new))
        if any(self._has_code(which, vaddr, size) for which, vaddr in ((0, old), (1, new))):
            return False
        return self.same_bytes(old, new, size)

    def _has_code(self, which: int, vaddr: int, size: int) -> bool:
        """Whether something jumps there, or an unwinder would find its way through it."""
        entered = self._entered[which]
        at = bisect_left(entered, vaddr)
        return at < len(entered) and entered[at] < vaddr + size

    @cached_property
    def _entered(self) -> tuple[list[int], list[int]]:
        """Sorted: where jumps and calls lead, and what has frame information begins."""
        return _entered(self.old), _entered(self.new)

    def same_mark(self, old: int, new: int, function: int) -> bool:
        """``__TMC_END__`` and its like, in the start files of the compiler."""
        if self.new.entities.files[function] not in START_FILES:
            return False
        return bool(set(self.old.marks.get(old, ())) & set(self.new.marks.get(new, ())))

    # Anonymous data

    def same_anonymous(self, old: int, new: int, old_function: int, new_function: int, access: int) -> bool:
        """``access``: bytes that the instruction reads; 0 when it only takes the address."""
        if access:
            return self.same_bytes(old, new, access)
        ours = self._tables[0].get((old, old_function))
        theirs = self._tables[1].get((new, new_function))
        if (ours is None) != (theirs is None):
            return False
        if ours is not None and theirs is not None:
            return self.same_table(ours, theirs)
        if self.same_data(old, new, 0):
            return True
        if not self.same_source_line(old, new):
            return False
        self.shifted_lines.add(new_function)
        return True

    def surely_same_anonymous(self, old: I64, new: I64, access: I64) -> Flags:
        """Of many pairs, those of which :meth:`same_anonymous` is sure to say that they are the same."""
        tables = [np.array([vaddr for vaddr, _ in found], np.int64) for found in self._tables]
        sure: Flags = ~np.isin(old, tables[0]) & ~np.isin(new, tables[1])
        taken, read = sure & (access == 0), access > 0
        sure[taken] = self.surely_same_data(old[taken], new[taken])
        sure[read] = self.surely_same_bytes(old[read], new[read], access[read])
        return sure

    def same_source_line(self, old: int, new: int) -> bool:
        """``file.c:100`` and ``file.c:120``."""
        ours, theirs = (
            SOURCE_LINE.match(build.read(vaddr, min(MAX_SOURCE_LINE, build.span - vaddr)))
            for build, vaddr in ((self.old, old), (self.new, new))
        )
        return ours is not None and theirs is not None and ours[1] == theirs[1]

    def same_data(self, old: int, new: int, depth: int) -> bool:
        """As far as both may reach, and in any case up to the end of a string.

        Strings may share their tails, so that another reference in the middle ends nothing: hence the string rule.
        """
        size = min(self._index[0].room(old), self._index[1].room(new))
        size = max(size, min(_string_length(self.old, old), _string_length(self.new, new)))
        size = min(size, self.old.span - old, self.new.span - new)
        return self.same_bytes(old, new, size, depth)

    def surely_same_data(self, old: I64, new: I64) -> Flags:
        """Of many pairs of places, those of which :meth:`same_data` will say that they are the same, and which are
        short; the others are to be asked one by one."""
        size = np.minimum(self._index[0].rooms(old), self._index[1].rooms(new))
        lengths = np.minimum(_short_lengths(self.old, old), _short_lengths(self.new, new))
        size = np.minimum(np.maximum(size, lengths), np.minimum(self.old.span - old, self.new.span - new))
        return self.surely_same_bytes(old, new, size)

    def surely_same_bytes(self, old: I64, new: I64, size: I64) -> Flags:
        """The same for :meth:`same_bytes`."""
        sure = (size <= _SHORT) & (old + size <= self.old.span) & (new + size <= self.new.span)
        at = np.flatnonzero(sure)
        for begin in range(0, len(at), _AT_ONCE):
            part = at[begin : begin + _AT_ONCE]
            counts = np.arange(_SHORT) < size[part, None]
            first, second = _short_contents(self.old, old[part]), _short_contents(self.new, new[part])
            sure[part] = ((first == second) | ~counts).all(axis=1)
        sure &= ~self._index[0].are_relocated(old, size) & ~self._index[1].are_relocated(new, size)
        return sure

    def same_bytes(self, old: int, new: int, size: int, depth: int = 0) -> bool:
        """Equal contents; words that the loader fills must point to the same thing."""
        key = (old, new, size)
        known = self._data.get(key)
        if known is None:
            self._data[key] = known = self._same_bytes(old, new, size, depth)
        return known

    def _same_bytes(self, old: int, new: int, size: int, depth: int) -> bool:
        if old + size > self.old.span or new + size > self.new.span:
            return False
        ours, theirs = self._index[0].relocations(old, size), self._index[1].relocations(new, size)
        if not ours and not theirs:
            if size <= _SHORT:
                return self.old.read(old, size) == self.new.read(new, size)
            if self.old.is_empty(old, size) and self.new.is_empty(new, size):
                return True
            return all(
                self.old.read(old + at, min(CHUNK, size - at)) == self.new.read(new + at, min(CHUNK, size - at))
                for at in range(0, size, CHUNK)
            )
        if len(ours) != len(theirs) or depth >= MAX_DEPTH:
            return False
        first, second = bytearray(self.old.read(old, size)), bytearray(self.new.read(new, size))
        for i, j in zip(ours, theirs, strict=True):
            place = self._index[0].places[i] - old
            if place != self._index[1].places[j] - new or not self.same_word(i, j, depth + 1):
                return False
            first[place : place + 8] = second[place : place + 8] = bytes(8)
        return first[:size] == second[:size]

    def same_word(self, old: int, new: int, depth: int) -> bool:
        """Two dynamic relocations, by index."""
        ours, theirs = self._index
        if ours.types[old] != theirs.types[new]:
            return False
        if ours.types[old] in _BY_ADDRESS:
            return self.same_address(ours.addends[old], theirs.addends[new], depth)
        first = self.old.dynamic_symbols[ours.symbols[old]] if ours.symbols[old] else None
        second = self.new.dynamic_symbols[theirs.symbols[new]] if theirs.symbols[new] else None
        equal = ours.addends[old] == theirs.addends[new]
        if first is None or second is None:
            return first is second and equal
        if first.defined and second.defined:
            target = relocation_target(self.old.dynamic_relocations, self.old.dynamic_symbols, old)
            other = relocation_target(self.new.dynamic_relocations, self.new.dynamic_symbols, new)
            if target is not None and other is not None and not self.same_address(target, other, depth):
                return False
            return first.name == second.name and equal
        identity = (first.name, first.version, first.defined) == (second.name, second.version, second.defined)
        return identity and equal

    def same_exceptions(self, old: int, new: int) -> bool:
        """What two functions (by address) catch and clean up."""
        if old not in self.old.exception_tables and new not in self.new.exception_tables:
            return True
        ours, theirs = self.old.exception_tables.get(old), self.new.exception_tables.get(new)
        if ours is None or theirs is None or (ours.content, ours.encoding) != (theirs.content, theirs.encoding):
            return False
        return len(ours.types) == len(theirs.types) and all(
            first == second if 0 in (first, second) else self.same_address(first, second)
            for first, second in zip(ours.types, theirs.types, strict=True)
        )

    def same_table(self, old: JumpTable, new: JumpTable) -> bool:
        """Entry by entry: the same distance into paired functions."""
        if old.count != new.count:
            return False
        key = old.vaddr, new.vaddr, old.count
        known = self._same_tables.get(key)
        if known is None:
            old_rows, old_offsets = _entries(self.old, old)
            new_rows, new_offsets = _entries(self.new, new)
            known = bool((old_offsets == new_offsets).all() and (self.pairs.new_of[old_rows] == new_rows).all())
            self._same_tables[key] = known
        return known


def _entered(build: Build) -> list[int]:
    references = build.references
    jumps = np.isin(references.form, TRANSFERS)
    return sorted({*references.target[jumps].tolist(), *(first for first, _ in frame_ranges(build))})


def _thread_locals(build: Build) -> dict[int, int]:
    """Offset to row; the first of several."""
    rows = np.flatnonzero(build.entities.kind == Kind.TLS)[::-1]
    return dict(zip(build.entities.address[rows].tolist(), rows.tolist(), strict=True))


def _by_place(build: Build) -> dict[tuple[int, int], JumpTable]:
    return {(table.vaddr, table.function): table for table in build.jump_tables}


def _entries(build: Build, table: JumpTable) -> tuple[np.ndarray, np.ndarray]:
    entries = np.frombuffer(build.read(table.vaddr, 4 * table.count), "<i4").astype(np.int64) + table.vaddr
    rows = build.function_spans.find(entries)
    return rows, entries - build.entities.address[rows].astype(np.int64)


def _preceding(build: Build, vaddr: int) -> tuple[int, int, str] | None:
    """(row, distance from its start, section) of the name before an address."""
    spans = build.row_spans
    at = int(np.searchsorted(spans.start, vaddr, side="right")) - 1
    # The end of a section is where "one beyond its last object" points.
    section = build.section_at(vaddr) or build.section_at(vaddr - 1)
    if at < 0 or section is None or spans.start[at] < section.vaddr:
        return None
    row = int(spans.row[at])
    return row, vaddr - int(build.entities.address[row]), section.name


def _in_nameless_section(build: Build, vaddr: int) -> tuple[str, int] | None:
    """(section, distance from its start) of an address in a data section that holds no names at all, and has a name
    that somebody chose (``__rseq_cs``); None for any other."""
    section = build.section_at(vaddr)
    if section is None or section.flags & 4 or section.type == 8 or not section.name.isidentifier():
        return None
    first, last = np.searchsorted(build.row_spans.start, (section.vaddr, section.vaddr + section.size))
    return None if last > first else (section.name, vaddr - section.vaddr)


def _short_contents(build: Build, vaddrs: I64) -> U8:
    """The first bytes of places, one below the other; behind the image there are zeros."""
    places = vaddrs[:, None] + np.arange(_SHORT)
    content: U8 = build.image[np.minimum(places, build.span - 1)]
    content[places >= build.span] = 0
    return content


def _short_lengths(build: Build, vaddrs: I64) -> I64:
    """Bytes up to and including the first NUL; of longer ones, more than may be short."""
    lengths = np.full(len(vaddrs), _SHORT + 1, np.int64)
    for begin in range(0, len(vaddrs), _AT_ONCE):
        nul = _short_contents(build, vaddrs[begin : begin + _AT_ONCE]) == 0
        ends = nul.any(axis=1)
        lengths[begin : begin + _AT_ONCE][ends] = nul[ends].argmax(axis=1) + 1
    return lengths


def _string_length(build: Build, vaddr: int) -> int:
    """Bytes up to and including the first NUL."""
    size = 64
    while size <= MAX_STRING:
        text = build.read(vaddr, min(size, build.span - vaddr))
        end = text.find(b"\0")
        if end >= 0:
            return end + 1
        if len(text) < size:
            return len(text)
        size *= 8
    return MAX_STRING
