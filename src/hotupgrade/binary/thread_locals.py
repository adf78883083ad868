"""Where code holds offsets of thread-locals: from link-time records where there are any, else by data flow."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hotupgrade.binary.elf import Table
from hotupgrade.binary.exceptions import ExceptionTable, landing_pads
from hotupgrade.binary.flow import Field, Findings, Module, direct_field, follow
from hotupgrade.binary.graph import Effort, ExhaustedError, Surroundings, graph_of
from hotupgrade.binary.model import I32, Form, Kind, References, Slot, TargetKind
from hotupgrade.binary.relocations import Relocation
from hotupgrade.binary.returns import Returns

if TYPE_CHECKING:
    from hotupgrade.binary.build import Build
    from hotupgrade.binary.code import JumpTable

LOOKUP = "__tls_get_addr"
DATA16 = 0x66
# Linkers make `mov %fs:0, %rax; lea x@tpoff(%rax), %rax` of general dynamic access in executables: the new field is so
# far behind the one that the record tells of (psABI x86-64, "GD to LE").
RELAXED_GENERAL_DYNAMIC = 8
# Instructions to be looked at and values to be held, at least and per byte of code: ten times what real builds need.
LEAST_EFFORT, EFFORT = 100_000, 6
AT_ONCE = 64  # rows of a table that are looked at in the time of one such step
BIAS = 64  # bytes: how far from an object a pointer may begin that a function counts from, and never names otherwise


@dataclass(frozen=True, slots=True)
class ThreadLocalField:
    """Four bytes of code that hold the offset of a thread-local."""

    position: int  # vaddr
    form: Form  # DTPOFF or TPOFF
    target: int  # offset within the module's block
    row: int  # of Entities; -1 where nothing has this offset
    addend: int  # from the start of the row; 0 where there is none
    function: int  # row of Entities


@dataclass(frozen=True)
class ThreadLocals:
    """What the code says about the module's thread-locals."""

    fields: tuple[ThreadLocalField, ...]  # sorted by position
    unproven: tuple[tuple[int, int], ...]  # (vaddr, function) of what may be such a field, or not; sorted
    # (position, row): fields that may mean this object instead; they end it, or lie a little before it.  Sorted.
    doubtful: tuple[tuple[int, int], ...]
    block_slots: frozenset[int]  # indices of slots that name the module's block rather than a variable


NONE = ThreadLocals((), (), (), frozenset())


def below_thread_pointer(build: Build) -> int:
    """Bytes from the thread pointer down to the start of an executable's block.

    The block ends at the thread pointer, but for what its alignment needs (TLS variant II: Drepper, 3.4.6).
    """
    if build.tls is None:
        return 0
    size, alignment = build.tls.memory_size, max(build.tls.alignment, 1)
    return size + (-build.tls.vaddr - size) % alignment


def find_thread_locals(
    build: Build,
    references: References,
    records: Table | None,
    *,
    families: I32,
    tables: Sequence[JumpTable],
    labels: Iterable[int],
    segment_users: Iterable[int],
    from_segment: Sequence[int],
) -> ThreadLocals:
    """``families``: a number per row, shared by a function and its cold parts.  ``labels``: vaddrs within functions
    that are taken as addresses.  ``segment_users``, ``from_segment``: see
    :class:`hotupgrade.binary.references.CodeReferences`.
    """
    if build.tls is None:
        return NONE
    if records is not None:
        return _recorded(build, references, records)
    return _Search(build, references, families, tables, labels, segment_users).found(from_segment)


# From records


def _recorded(build: Build, references: References, records: Table) -> ThreadLocals:
    relative = set(references.position.tolist())  # operands that count from the instruction pointer: slots
    places = _Places(build)
    fields: dict[int, ThreadLocalField] = {}
    unproven = set()
    functions = build.function_spans.find(records["vaddr"].astype(np.int64)).tolist()
    for record, function in zip(records.tolist(), functions, strict=True):
        vaddr, kind, symbol, addend, defined = record
        position = vaddr + (RELAXED_GENERAL_DYNAMIC if kind == Relocation.TLSGD else 0)
        if function < 0 or not defined or vaddr in relative or position in relative:
            continue
        if kind not in (Relocation.TPOFF32, Relocation.DTPOFF32):
            addend += 4  # counts from the end of the field
        form = Form.TPOFF if build.executable else Form.DTPOFF
        if kind == Relocation.GOTPC32_TLSDESC and not _number(build, position):
            continue  # what _TLS_MODULE_BASE_ becomes: nothing is added to the thread pointer
        if _number(build, position) != symbol + addend - (places.below if form == Form.TPOFF else 0):
            unproven.add((position, function))
            continue
        fields[position] = places.field(position, form, symbol + addend, places.meant(symbol, addend), function)
    users = {found.function for found in fields.values()}
    bases = _base_slots(build).values()
    uses = _uses(references, bases)
    adding = {index for index in bases if not users.isdisjoint(references.function[uses[index]].tolist())}
    whole = _whole_blocks(build, references, bases, adding)
    return ThreadLocals(
        tuple(fields[position] for position in sorted(fields)), tuple(sorted(unproven)), (), frozenset(whole)
    )


def _whole_blocks(build: Build, references: References, slots: Collection[int], adding: Collection[int]) -> set[int]:
    """The slots that name the block: one that names the variable at its start has the same contents.

    ``adding``: descriptors to whose result the code adds offsets.
    """

    uses = _uses(references, slots)

    def names_block(index: int) -> bool:
        if build.slots[index].relocation == Relocation.TLSDESC:
            return index in adding
        return not any(_is_general_dynamic(build, place) for place in references.position[uses[index]].tolist())

    return {index for index in slots if names_block(index)}


def _uses(references: References, slots: Iterable[int]) -> Mapping[int, list[int]]:
    """Indices of the references that name each of these slots."""
    found: dict[int, list[int]] = {slot: [] for slot in slots}
    for index in np.flatnonzero(references.target_kind == TargetKind.GOT).tolist():
        if (slot := int(references.entity[index])) in found:
            found[slot].append(index)
    return found


def _is_general_dynamic(build: Build, position: int) -> bool:
    """The ABI has general-dynamic access pad its lea with a prefix, so that linkers can replace it."""
    return bool(build.image[position - 4] == DATA16)


def _number(build: Build, position: int) -> int:
    return int.from_bytes(build.image[position : position + 4].tobytes(), "little", signed=True)


def _base_slots(build: Build) -> dict[int, int]:
    """vaddr to index of the slots that may name the start of the block."""
    found = {}
    for index, slot in enumerate(build.slots):
        if not slot.symbol and _may_name_block(build, index, slot):
            found[slot.vaddr] = index
    return found


def _may_name_block(build: Build, index: int, slot: Slot) -> bool:
    if slot.relocation == Relocation.TLSDESC:
        return slot.addend == 0
    if slot.relocation != Relocation.DTPMOD64:
        return False
    behind = build.slots[index + 1] if index + 1 < len(build.slots) else None
    filled_in = behind is not None and behind.vaddr == slot.vaddr + 8 and behind.relocation != 0
    return not filled_in and not any(build.read(slot.vaddr + 8, 8))


class _Places:
    """The thread-locals of a build by their offsets."""

    def __init__(self, build: Build) -> None:
        entities = build.entities
        self.rows = np.flatnonzero(entities.kind == Kind.TLS).tolist()
        self.start = [int(entities.address[row]) for row in self.rows]
        self.size = [int(entities.size[row]) for row in self.rows]
        self._address = dict(zip(self.rows, self.start, strict=True))
        self._size = dict(zip(self.rows, self.size, strict=True))
        self._largest = max(self.size, default=0)
        self._columns = np.array(self.start, np.int64), np.array(self.size, np.int64)
        self.below = below_thread_pointer(build) if build.executable else 0

    def field(self, position: int, form: Form, target: int, row: int, function: int) -> ThreadLocalField:
        addend = target - self._address[row] if row >= 0 else 0
        return ThreadLocalField(position, form, target, row, addend, function)

    def at(self, offset: int) -> int:
        """The row at an offset, or else the one that ends there; -1 if there is none."""
        at = bisect_right(self.start, offset) - 1
        return self.rows[at] if at >= 0 and offset <= self.start[at] + self.size[at] else -1

    def inside(self, offset: int) -> int:
        row = self.at(offset)
        return row if row >= 0 and offset < self._address[row] + self._size[row] else -1

    def meant(self, symbol: int, addend: int) -> int:
        """The row of a symbol, or what lies at its addend (a symbol of a section)."""
        at = bisect_right(self.start, symbol) - 1
        return self.rows[at] if at >= 0 and self.start[at] == symbol else self.at(symbol + addend)

    def size_of(self, row: int) -> int:
        return self._size[row]

    def starts_at(self, offset: int) -> bool:
        at = bisect_left(self.start, offset)
        return at < len(self.start) and self.start[at] == offset

    def near(self, offset: int, effort: Effort) -> list[tuple[int, int, int]]:
        """(row, start, size) of what a pointer may mean from which a loop begins, or at which it ends.

        Raises:
            ExhaustedError: there is too much to be looked at.
        """
        low = bisect_left(self.start, offset - self._largest - BIAS)
        high = bisect_right(self.start, offset + self._largest)
        start, size = (column[low:high] for column in self._columns)
        found = np.flatnonzero((start - size <= offset) & (offset <= start + size + BIAS)) + low
        effort.spend((high - low) // AT_ONCE + len(found))
        return [(self.rows[index], self.start[index], self.size[index]) for index in found.tolist()]


# By data flow


class _Search:
    def __init__(
        self,
        build: Build,
        references: References,
        families: I32,
        tables: Sequence[JumpTable],
        labels: Iterable[int],
        segment_users: Iterable[int],
    ) -> None:
        self._build = build
        self._references = references
        self._families = families
        self._segment_users = segment_users
        self._base_slots = _base_slots(build)
        self._places = _Places(build)
        self._labels = sorted(set(labels))
        code = sum(segment.file_size for segment in build.segments if segment.executable)
        self._effort = Effort(LEAST_EFFORT + EFFORT * code)
        self._tables: dict[int, set[int]] = defaultdict(set)  # family to where its switch tables lead
        # Once for a function and its parts, however many of them name a table.
        for vaddr, count, family in {(table.vaddr, table.count, int(families[table.function])) for table in tables}:
            entries = np.frombuffer(build.read(vaddr, 4 * count), "<i4")
            self._tables[family].update((entries + vaddr).tolist())

    def found(self, from_segment: Sequence[int]) -> ThreadLocals:
        members = self._members()
        module = self._module()
        findings = {family: self._followed(module, family, rows) for family, rows in members.items()}
        # Elsewhere there is nothing to be followed.
        rows = self._build.function_spans.find(np.array(from_segment, np.int64))
        direct = Findings()
        for vaddr, row in zip(from_segment, rows.tolist(), strict=True):
            if int(self._families[row]) not in members:
                field = direct_field(self._build.image, vaddr)
                direct.fields[field.position] = field
        return self._judged({**findings, -1: direct})

    def _followed(self, module: Module, family: int, members: Sequence[int]) -> Findings:
        try:
            graph = graph_of(self._build.image, *self._described(family, members))
            return follow(self._build.image, module, graph, self._effort)
        except ExhaustedError:
            return Findings(unproven={int(self._build.function_spans.start[index]) for index in members})

    def _module(self) -> Module:
        build = self._build
        complete = {slot.vaddr for slot in build.slots if slot.relocation in (Relocation.TPOFF64, Relocation.TLSDESC)}
        lookups = {slot.vaddr for slot in build.slots if slot.symbol == LOOKUP}
        lookups |= {stub for stub, index in build.plt_slot.items() if build.slots[index].symbol == LOOKUP}
        return Module(
            executable=build.executable,
            block=build.tls.memory_size if build.tls else 0,
            below=self._places.below,
            base_slots=self._base_slots,
            offset_slots=frozenset(complete - self._base_slots.keys()),
            lookups=frozenset(lookups),
            returns=Returns(build),
        )

    def _members(self) -> dict[int, list[int]]:
        """The functions that touch thread-locals, each with its cold parts: indices into ``Build.function_spans``."""
        references = self._references
        uses = (references.target_kind == TargetKind.GOT) & np.isin(references.entity, list(self._base_slots.values()))
        users = set(np.unique(references.function[uses]).tolist()) | set(self._segment_users)
        wanted = {int(self._families[row]) for row in users}
        members: dict[int, list[int]] = {family: [] for family in wanted}
        spans = self._families[self._build.function_spans.row]
        for index in np.flatnonzero(np.isin(spans, list(wanted))).tolist():
            members[int(spans[index])].append(index)
        return members

    def _described(self, family: int, members: Sequence[int]) -> tuple[list[tuple[int, int]], Surroundings, list[int]]:
        """(ranges, what is known of jumps and calls, entries) of a function."""
        spans, entities = self._build.function_spans, self._build.entities
        ranges = [(int(spans.start[i]), int(spans.stop[i])) for i in members]
        entries = []
        pads: dict[int, ExceptionTable] = {}
        for index in members:
            row, start = int(spans.row[index]), int(spans.start[index])
            if start == int(entities.address[row]) and ".cold" not in entities.names[row]:
                entries.append(start)
            table = self._build.exception_tables.get(int(entities.address[row]))
            if table is not None:
                pads[start] = table
        inside = {vaddr for low, high in ranges for vaddr in self._labels_within(low + 1, high)}
        around = Surroundings(frozenset(self._tables[family] | inside), landing_pads(pads), self._effort)
        return ranges, around, entries

    def _labels_within(self, low: int, high: int) -> list[int]:
        return self._labels[bisect_left(self._labels, low) : bisect_left(self._labels, high)]

    # What the findings come to

    def _judged(self, findings: Mapping[int, Findings]) -> ThreadLocals:
        whole = self._whole_blocks([each for found in findings.values() for each in found.fields.values()])
        fields: list[ThreadLocalField] = []
        doubtful: list[tuple[int, int]] = []
        unproven: set[int] = set()
        for found in findings.values():
            kept = [each for each in found.fields.values() if each.slots <= whole]
            unproven.update(each.position for each in found.fields.values() if self._is_puzzling(each, whole))
            used = Counter(self._places.at(self._target(each)) for each in kept)
            for each in kept:
                try:
                    row, others = self._meant(each, found.touched.get(each.vaddr, ()), used)
                except ExhaustedError:
                    unproven.add(each.position)
                    continue
                fields.append(self._field(each, row))
                doubtful += [(each.position, other) for other in others]
            unproven |= found.unproven
            for slot in found.plain.keys() & whole:
                unproven |= found.plain[slot]
        places = sorted(unproven)
        owners = self._build.function_spans.find(np.array(places, np.int64)).tolist()
        return ThreadLocals(
            tuple(sorted(fields, key=lambda each: each.position)),
            tuple(zip(places, owners, strict=True)),
            tuple(sorted(doubtful)),
            frozenset(whole),
        )

    def _whole_blocks(self, fields: Iterable[Field]) -> set[int]:
        """The slots that name the block.

        A descriptor of the variable at the start of the block has the same contents.  If nothing beyond that variable
        is reached through it, and no field tells that it was the linker's, it does not matter which of the two it is.
        """
        first = self._places.at(0)
        reach = int(self._build.entities.size[first]) if first >= 0 else 0
        beyond: set[int] = set()
        for found in fields:
            if found.told or not 0 <= found.number < reach:
                beyond |= found.slots
        return _whole_blocks(self._build, self._references, self._base_slots.values(), beyond)

    def _is_puzzling(self, found: Field, whole: set[int]) -> bool:
        """A field that counts from what does not name the block after all; what descriptors give may be a variable."""
        return any(self._build.slots[slot].relocation == Relocation.DTPMOD64 for slot in found.slots - whole)

    def _meant(self, found: Field, touched: Iterable[int], used: Mapping[int, int]) -> tuple[int, set[int]]:
        """(the row that a field means, others that it may mean instead).

        A read or write at a fixed place lies within what it means.  An address, or a place that an index is added to,
        may lie behind an object or before it; what is read or written through it tells.  ``used``: how many fields of
        the function, this one included, mean a row by where they are.
        """
        target, places = self._target(found), self._places
        row = places.at(target)
        if not found.loose:
            return row, set()
        told = {places.inside(target + distance) for distance in touched} - {-1}
        if told:
            return (row if row in told else min(told)), told - {row if row in told else min(told)}
        # The start of something is what is meant as a rule; but nobody counts through what is no array.
        natural = places.starts_at(target) and not (found.indexed and row >= 0 and places.size_of(row) <= BIAS)
        others = set()
        for near, start, size in places.near(target, self._effort):
            before = start - target
            # The function need not name an array in any other way if it counts from one instead of nought.
            shifted = 0 < before <= min(BIAS, size - 1) and not natural
            if used.get(near, 0) > (near == row) or shifted:
                others.add(near)
        if row < 0 and len(others) == 1:
            return others.pop(), set()
        return row, others - {row}

    def _target(self, found: Field) -> int:
        return found.number + (self._places.below if found.from_pointer else 0)

    def _field(self, found: Field, row: int) -> ThreadLocalField:
        form = Form.TPOFF if found.from_pointer else Form.DTPOFF
        function = int(self._build.function_spans.find(np.array([found.position], np.int64))[0])
        return self._places.field(found.position, form, self._target(found), row, function)
