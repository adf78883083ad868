"""From the instructions of a build to references with classified targets, and to what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from hotupgrade.binary.elf import SHF_ALLOC, SHF_EXECINSTR, SHF_TLS, SHF_WRITE, SectionType, Table
from hotupgrade.binary.model import I32, I64, U8, Entities, Flags, Form, Kind, References, TargetKind
from hotupgrade.binary.references import CodeReferences, scan
from hotupgrade.binary.relocations import GOT_SECTIONS, Relocation, relocation_target
from hotupgrade.binary.templates import template_uses
from hotupgrade.binary.thread_locals import ThreadLocals, find_thread_locals

if TYPE_CHECKING:
    from hotupgrade.binary.build import Build

Addresses = npt.NDArray[np.int64]
_BRANCHES = (Form.JUMP, Form.BRANCH, Form.SHORT)
MIN_TABLE = 2  # entries: a shorter switch is compiled to comparisons
MIN_TEXT = 4  # characters: what is shorter may be a number that looks like a text


@dataclass(frozen=True, slots=True)
class JumpTable:
    """A switch table in anonymous read-only data: ``count`` int32 entries, each ``target - vaddr``.

    The function that owns the table and every function that an entry points into must run from the same image.
    """

    vaddr: int
    count: int
    function: int  # row of Entities whose code names the table
    targets: tuple[int, ...]  # rows of Entities that entries point into (the function itself, its .cold part)


@dataclass(frozen=True)
class CodeFacts:
    """All that disassembly tells; the part of a build that is worth caching."""

    references: References
    access: I32
    undecodable: frozenset[int]
    jump_tables: tuple[JumpTable, ...]
    # See hotupgrade.binary.thread_locals.ThreadLocals
    unproven: tuple[tuple[int, int], ...] = ()
    doubtful: tuple[tuple[int, int], ...] = ()
    block_slots: frozenset[int] = frozenset()


class FactsStore(Protocol):
    """Where facts are kept between runs; a miss is no error."""

    def load(self, build: Build) -> CodeFacts | None: ...

    def save(self, build: Build, facts: CodeFacts) -> None: ...


def read_code(build: Build, records: Table | None) -> CodeFacts:
    """``records``: what the linker kept about thread-locals (--emit-relocs), if it did."""
    spans = build.function_spans
    segments = build.executable and build.tls is not None
    found = scan(build.image, spans.start.tolist(), spans.stop.tolist(), spans.row.tolist(), segments=segments)
    keep = _leaves_function(build, found)
    plain = _classified(build, found, keep)
    jump_tables = find_jump_tables(build, plain)
    thread_locals = find_thread_locals(
        build,
        plain,
        records,
        families=build.families,
        tables=jump_tables,
        labels=[*found.target[~keep & (found.form == Form.LEA)].tolist(), *data_targets(build).tolist()],
        segment_users=found.segment_users,
        from_segment=found.from_segment,
    )
    references = _merged(plain, thread_locals)
    access = np.zeros(len(references), np.int32)
    at = np.searchsorted(references.position, found.position[keep])
    access[at] = found.access[keep]
    return CodeFacts(
        references=references,
        access=access,
        undecodable=frozenset(found.undecodable),
        jump_tables=jump_tables,
        unproven=thread_locals.unproven,
        doubtful=thread_locals.doubtful,
        block_slots=thread_locals.block_slots,
    )


def _leaves_function(build: Build, found: CodeReferences) -> Flags:
    """Operands that name a place inside their own function move with it, but for a ``lea`` of its very start.

    So do branches to its end, unless that is the start of something: clang -O0 has them behind calls that never return.
    """
    target = found.target.astype(np.int64)
    start = build.entities.address[found.function].astype(np.int64)
    stop = start + build.extent[found.function]
    inside = (target >= start) & (target < stop)
    at_end = np.flatnonzero((target == stop) & np.isin(found.form, _BRANCHES))
    inside[at_end] = build.row_spans.find(target[at_end]) < 0
    keep: Flags = ~inside | ((found.form == Form.LEA) & (target == start))
    return keep


def _classified(build: Build, found: CodeReferences, keep: Flags) -> References:
    target = found.target[keep].astype(np.int64)
    kind, entity, addend = classify(build, target)
    unnamed = np.zeros(len(keep), np.bool_)
    unnamed[keep] = kind == TargetKind.UNKNOWN
    kind[template_uses(build, found, unnamed, data_targets(build))[keep]] = TargetKind.ANONYMOUS
    _attribute_jumps_behind(build, found.form[keep], target, found.function[keep], (kind, entity, addend))
    return References(
        position=found.position[keep],
        following=found.following[keep],
        form=found.form[keep],
        target=found.target[keep],
        function=found.function[keep],
        target_kind=kind,
        entity=entity,
        addend=addend,
    )


def _attribute_jumps_behind(
    build: Build, form: U8, target: Addresses, function: I32, found: tuple[npt.NDArray[np.uint8], I32, I64]
) -> None:
    """Jumps to the very end of a function from its cold part.

    They follow calls that the compiler has been told not to return from (``__builtin_unreachable()``), and are never
    made.  They belong to that function, as all jumps between its parts do.
    """
    kind, entity, addend = found
    jumps = np.flatnonzero((kind == TargetKind.UNKNOWN) & np.isin(form, _BRANCHES))
    if not len(jumps):
        return
    row = build.function_spans.find(target[jumps] - 1)
    row = np.where(row >= 0, row, 0)
    end = build.entities.address[row].astype(np.int64) + build.extent[row]
    family = build.families
    belongs = (end == target[jumps]) & (family[row] >= 0) & (family[row] == family[function[jumps]])
    at, row = jumps[belongs], row[belongs]
    kind[at], entity[at], addend[at] = TargetKind.ENTITY, row, build.extent[row]


def classify(build: Build, target: Addresses) -> tuple[npt.NDArray[np.uint8], I32, I64]:
    """(target kind, entity or slot, addend) of addresses in link space."""
    kind = np.full(len(target), TargetKind.UNKNOWN, np.uint8)
    entity = np.full(len(target), -1, np.int32)
    addend = np.zeros(len(target), np.int64)
    anonymous = _in_ranges(anonymous_ranges(build), target)
    kind[anonymous] = TargetKind.ANONYMOUS
    row = build.row_spans.find(target)
    named = row >= 0
    kind[named] = TargetKind.ENTITY
    entity[named] = row[named]
    addend[named] = target[named] - build.entities.address[row[named]].astype(np.int64)
    slot_at = np.array([slot.vaddr for slot in build.slots], np.int64)
    if len(slot_at):
        at = np.searchsorted(slot_at, target, side="right") - 1
        hit = (at >= 0) & (target < slot_at[at] + 8)
        kind[hit] = TargetKind.GOT
        entity[hit] = at[hit]
        addend[hit] = target[hit] - slot_at[at[hit]]
    if build.plt_slot:
        stubs = np.array(sorted(build.plt_slot), np.int64)
        slots = np.array([build.plt_slot[stub] for stub in stubs.tolist()], np.int32)
        at = np.minimum(np.searchsorted(stubs, target), len(stubs) - 1)
        hit = stubs[at] == target
        kind[hit] = TargetKind.PLT
        entity[hit] = slots[at[hit]]
        addend[hit] = 0
    return kind, entity, addend


def anonymous_ranges(build: Build) -> list[tuple[int, int]]:
    """Sections that hold data which nobody writes once relocation is done."""
    ranges = []
    low, high = build.relro or (0, 0)
    for section in build.sections.values():
        if not section.flags & SHF_ALLOC or section.flags & (SHF_EXECINSTR | SHF_TLS):
            continue
        if section.name in GOT_SECTIONS or section.name == ".dynamic" or section.type == SectionType.NOBITS:
            continue
        protected = low <= section.vaddr and section.vaddr + section.size <= high
        if protected or not section.flags & SHF_WRITE:
            ranges.append((section.vaddr, section.vaddr + section.size))
    return sorted(ranges)


def _in_ranges(ranges: Sequence[tuple[int, int]], target: Addresses) -> Flags:
    """``ranges`` ascend."""
    if not ranges:
        return np.zeros(len(target), np.bool_)
    start, stop = np.array(ranges, np.int64).T
    reached = np.maximum.accumulate(stop)
    at = np.searchsorted(start, target, side="right") - 1
    inside: Flags = (at >= 0) & (target < reached[np.maximum(at, 0)])
    return inside


def _merged(references: References, thread_locals: ThreadLocals) -> References:
    """Adds the fields that hold thread-local offsets."""
    fields = thread_locals.fields
    if not fields:
        return references
    position = np.array([field.position for field in fields], np.int64)
    target = np.array([field.target for field in fields], np.int64)
    entity = np.array([field.row for field in fields], np.int32)
    columns = {
        "position": position.astype(np.uint64),
        "following": (position + 4).astype(np.uint64),
        "form": np.array([field.form for field in fields], np.uint8),
        "target": target.astype(np.uint64),
        "function": np.array([field.function for field in fields], np.int32),
        "target_kind": np.where(entity >= 0, TargetKind.ENTITY, TargetKind.UNKNOWN).astype(np.uint8),
        "entity": entity,
        "addend": np.array([field.addend for field in fields], np.int64),
    }
    merged = {name: np.concatenate([getattr(references, name), column]) for name, column in columns.items()}
    order = np.argsort(merged["position"], kind="stable")
    return References(**{name: column[order] for name, column in merged.items()})


# What follows from the references


def data_targets(build: Build) -> Addresses:
    """Every vaddr of this module that a data word (or the loader) points to; call slots do not count."""
    relocations = build.dynamic_relocations
    relative = np.isin(relocations.type, (Relocation.RELATIVE, Relocation.IRELATIVE))
    found = relocations.addend[relative].tolist()
    symbolic = np.isin(relocations.type, (Relocation.ABS64, Relocation.GLOB_DAT))
    for index in np.flatnonzero(symbolic).tolist():
        target = relocation_target(relocations, build.dynamic_symbols, index)
        if target is not None:
            found.append(target)
    found.extend(v for v in (build.init, build.fini, build.entry or None) if v is not None)
    found.extend(build.init_array)
    found.extend(build.fini_array)
    return np.array([vaddr for vaddr in found if 0 <= vaddr < build.span], np.int64)


def address_taken(build: Build) -> Flags:
    entities, references = build.entities, build.references
    function = entities.kind == Kind.FUNCTION
    taken = np.zeros(len(entities), np.bool_)
    by_code = (references.form == Form.LEA) & (references.target_kind == TargetKind.ENTITY) & (references.addend == 0)
    taken[references.entity[by_code]] = True
    targets = np.unique(data_targets(build))
    taken |= np.isin(entities.address.astype(np.int64), targets)
    result: Flags = taken & function
    return result


def boundaries(build: Build) -> Addresses:
    """Addresses at which a piece of anonymous data must end at the latest: everything that is named or pointed to."""
    entities, references = build.entities, build.references
    fixed = entities.kind != Kind.TLS
    start = entities.address[fixed].astype(np.int64)
    stop = start + np.maximum(build.extent[fixed], 1)
    anonymous = references.target_kind == TargetKind.ANONYMOUS
    pointed = np.concatenate([references.target[anonymous].astype(np.int64), data_targets(build)])
    if build.bare:
        pointed = certain_starts(build, pointed)
    edges = [
        vaddr
        for section in build.sections.values()
        if section.flags & SHF_ALLOC
        for vaddr in (section.vaddr, min(section.vaddr + section.size, build.span))
        if vaddr <= build.span
    ]
    return np.unique(np.concatenate([start, stop, pointed, np.array(edges, np.int64)]))


def certain_starts(build: Build, vaddrs: Addresses) -> Addresses:
    """Of these places in unnamed data, those at which something begins for certain.

    The others may lie in the middle of a table that nobody names: switch tables and texts do not.
    """
    tables = {table.vaddr for table in build.jump_tables}
    ends = {table.vaddr + 4 * table.count for table in build.jump_tables}
    return np.array(
        [vaddr for vaddr in np.unique(vaddrs).tolist() if vaddr in tables or vaddr in ends or _is_text(build, vaddr)],
        np.int64,
    )


def _is_text(build: Build, vaddr: int) -> bool:
    """Whether a text of some length begins here, behind the end of another or at the start of a section."""
    content = build.read(vaddr, min(256, build.span - vaddr))
    text = content.split(b"\0", 1)[0]
    if len(text) < MIN_TEXT or not all(byte >= 0x20 or byte in b"\t\n\r" for byte in text):
        return False
    return vaddr == 0 or build.read(vaddr - 1, 1) == b"\0"


# Switch tables


def find_jump_tables(build: Build, references: References) -> tuple[JumpTable, ...]:
    """Tables are told by their contents: entries that, relative to the table, lie in the function or its cold part."""
    candidate = (references.form == Form.LEA) & (references.target_kind == TargetKind.ANONYMOUS)
    candidate &= references.target % 4 == 0
    pairs = np.unique(
        np.stack([references.target[candidate].astype(np.int64), references.function[candidate].astype(np.int64)]),
        axis=1,
    )
    if not pairs.shape[1]:
        return ()
    family = build.families
    edges = _edges(build, references)
    tables = []
    likely = _starts_like_table(build, pairs[0], pairs[1], family)
    measured: dict[tuple[int, int], tuple[int, tuple[int, ...]]] = {}  # once, however many functions name a table
    for vaddr, function in zip(pairs[0][likely].tolist(), pairs[1][likely].tolist(), strict=True):
        key = vaddr, int(family[function])
        if key not in measured:
            limit = int(edges[np.searchsorted(edges, vaddr, side="right")]) if edges[-1] > vaddr else build.span
            rows = _entry_rows(build, vaddr, (limit - vaddr) // 4)
            fits = (rows >= 0) & (family[rows] == key[1])
            count = len(fits) if fits.all() else int(np.argmin(fits))
            measured[key] = count, tuple(np.unique(rows[:count]).tolist())
        count, targets = measured[key]
        if count >= MIN_TABLE:
            tables.append(JumpTable(vaddr, count, function, targets))
    return tuple(tables)


def _edges(build: Build, references: References) -> Addresses:
    anonymous = references.target_kind == TargetKind.ANONYMOUS
    ends = [high for _, high in anonymous_ranges(build)]
    return np.unique(
        np.concatenate(
            [
                references.target[anonymous].astype(np.int64),
                build.entities.address[build.entities.kind != Kind.TLS].astype(np.int64),
                np.array(ends, np.int64),
            ]
        )
    )


def _entry_rows(build: Build, vaddr: int, count: int) -> I32:
    entries = np.frombuffer(build.image[vaddr : vaddr + 4 * count].tobytes(), "<i4")
    return build.function_spans.find(vaddr + entries.astype(np.int64))


def _starts_like_table(build: Build, vaddrs: Addresses, functions: Addresses, family: I32) -> Flags:
    fits = vaddrs + 4 * MIN_TABLE <= build.span
    result = fits.copy()
    for index in range(MIN_TABLE):
        place = np.where(fits, vaddrs + 4 * index, 0)
        entry = build.image[place[:, None] + np.arange(4)].copy().view("<i4")[:, 0]
        row = build.function_spans.find(vaddrs + entry)
        result &= (row >= 0) & (family[row] == family[functions])
    return result


def families(entities: Entities) -> I32:
    """A number shared by a function and its cold parts."""
    numbers: dict[str, int] = {}
    family = np.full(len(entities), -1, np.int32)
    for row in np.flatnonzero(entities.kind == Kind.FUNCTION).tolist():
        keys = [name.split(".cold", 1)[0] for name in entities.aliases[row]]
        number = next((numbers[key] for key in keys if key in numbers), len(numbers))
        for key in keys:
            numbers.setdefault(key, number)
        family[row] = number
    return family


def tables_by_address(tables: Sequence[JumpTable]) -> Mapping[tuple[int, int], JumpTable]:
    """(vaddr, function) to table: hand-written code may share one between functions."""
    return {(table.vaddr, table.function): table for table in tables}
