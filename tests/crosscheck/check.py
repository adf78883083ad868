"""References as the code under test finds them, against the records that the linker left: nothing missing, none false.

A record needs no reference where the place that it names is in the same function, or where the linker has replaced the
instruction by one that names nothing.  A reference needs no record where the assembler knew the answer: a branch or a
``lea`` within one section.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from crosscheck.records import (
    DTPOFF32,
    GOTPC32,
    GOTPC32_TLSDESC,
    GOTPCREL,
    GOTPCRELX,
    GOTTPOFF,
    PC32,
    PLT32,
    REX_GOTPCRELX,
    TLSGD,
    TLSLD,
    TPOFF32,
    Record,
    read_records,
)
from hotupgrade.binary.build import Build
from hotupgrade.binary.code import CodeFacts, read_code
from hotupgrade.binary.model import THREAD_LOCAL_FORMS, Kind, TargetKind
from hotupgrade.binary.thread_locals import below_thread_pointer

RELATIVE = (PC32, PLT32, GOTPCREL, GOTPC32, GOTPCRELX, REX_GOTPCRELX, GOTTPOFF, TLSGD, TLSLD, GOTPC32_TLSDESC)
# "...(%rip)        # 1234 <name>", or "jmp    1234 <name>"
NAMED = re.compile(r"# ([0-9a-f]+)(?: <|$)|\s([0-9a-f]+) <[^>]*>$")
LOOKUP = "__tls_get_addr"
TPOFF64 = 18
RELAXED = (TLSGD, TLSLD, GOTTPOFF, GOTPC32_TLSDESC)  # in executables


@dataclass
class Tally:
    """What came out for one file."""

    functions: int = 0
    references: int = 0
    records: int = 0  # that are in functions and name a place elsewhere
    missing: list[str] = field(default_factory=list)  # records without their reference
    false: list[str] = field(default_factory=list)  # references without a record, that need one
    wrong: list[str] = field(default_factory=list)  # references whose target is not what the record says
    by_assembler: int = 0  # references that the assembler resolved
    nobodys: int = 0  # records in code that no function symbol covers
    thread_locals: int = 0  # fields that hold offsets of thread-locals, as the records say
    found: int = 0  # of these, by data flow
    unproven: int = 0  # places that data flow leaves open
    doubtful: int = 0  # fields that may mean one of two neighbours
    thread_locals_missing: list[str] = field(default_factory=list)
    thread_locals_false: list[str] = field(default_factory=list)
    thread_locals_wrong: list[str] = field(default_factory=list)  # another variable than the record's, and no doubt
    seconds: float = 0.0  # of processor time for all of the analysis, without records

    def faults(self) -> list[str]:
        """All that should not be there, with its kind."""
        kinds = ("missing", "false", "wrong", "thread_locals_missing", "thread_locals_false", "thread_locals_wrong")
        return [f"{kind}: {each}" for kind in kinds for each in getattr(self, kind)]


def check(path: Path) -> Tally:
    build = Build.open(path)
    records = read_records(path)
    assert records, f"{path} was not linked with --emit-relocs"
    begin = time.process_time()
    facts = read_code(build, None)
    tally = Tally(
        functions=int((build.entities.kind == Kind.FUNCTION).sum()),
        references=len(facts.references),
        unproven=len(facts.unproven),
        doubtful=len(facts.doubtful),
        seconds=time.process_time() - begin,
    )
    subject = _Subject(path, build, facts)
    _check_references(subject, records, tally)
    _check_thread_locals(subject, records, tally)
    return tally


class _Subject:
    """A build and what was found in it."""

    def __init__(self, path: Path, build: Build, facts: CodeFacts) -> None:
        self.path = path
        self.build = build
        self.references = facts.references
        self.doubtful = {position for position, _ in facts.doubtful}
        self.unproven = {vaddr for vaddr, _ in facts.unproven}
        relative = ~np.isin(facts.references.form, THREAD_LOCAL_FORMS)
        positions = facts.references.position.tolist()
        self.at = {position: i for i, position in enumerate(positions) if relative[i]}
        self.fields = {position: i for i, position in enumerate(positions) if not relative[i]}
        self.relaxes = build.executable  # the linker has replaced what a library needs __tls_get_addr for

    def function(self, vaddr: int) -> int | None:
        return self.build.function_spans.find_one(vaddr)

    def described(self, vaddr: int) -> str:
        row = self.function(vaddr)
        return f"{vaddr:#x} in {self.build.entities.names[row] if row is not None else '?'}"

    def number(self, vaddr: int) -> int:
        return int.from_bytes(self.build.read(vaddr, 4), "little", signed=True)


# Places that count from the instruction pointer


def _check_references(subject: _Subject, records: Sequence[Record], tally: Tally) -> None:
    recorded = set()
    for record in records:
        if record.type not in RELATIVE:
            continue
        recorded.add(record.place)
        row = subject.function(record.place)
        if row is None:
            tally.nobodys += 1
            continue
        index = subject.at.get(record.place)
        if index is None:
            if not _needs_none(subject, record, row):
                tally.missing.append(f"{subject.described(record.place)}: {record}")
            continue
        tally.records += 1
        if not _agrees(subject, record, index):
            tally.wrong.append(f"{subject.described(record.place)}: {record}")
    seen = _seen_by_objdump(subject.path)
    references = subject.references
    for position, index in subject.at.items():
        if position in recorded:
            continue
        told = (int(references.following[index]), int(references.target[index])) in seen
        if told and _is_known_to_assembler(subject, index):
            tally.by_assembler += 1
        else:
            tally.false.append(subject.described(position))


def _seen_by_objdump(path: Path) -> set[tuple[int, int]]:
    """(vaddr behind the instruction, vaddr that it names) of all code, as another disassembler sees it."""
    text = subprocess.run(["objdump", "-d", "-w", str(path)], capture_output=True, text=True, check=True).stdout
    found: set[tuple[int, int]] = set()
    for line in text.splitlines():
        parts = line.split("\t")
        match = NAMED.search(parts[2]) if len(parts) == 3 else None
        if match:
            following = int(parts[0].rstrip(":"), 16) + len(parts[1].split())
            found.add((following, int(match[1] or match[2], 16)))
    return found


def _needs_none(subject: _Subject, record: Record, row: int) -> bool:
    """Whether a record leads back into its own function, or is about an instruction that the linker has replaced."""
    if subject.relaxes and (record.type in RELAXED or record.symbol.split("@")[0] == LOOKUP):
        return True  # see _fields
    entities = subject.build.entities
    low = int(entities.address[row])
    # Up to eight bytes of an immediate operand may lie between the field and the end of the instruction.
    target = record.value + record.addend + 4
    return low <= target + 8 and target < low + int(subject.build.extent[row])


def _agrees(subject: _Subject, record: Record, index: int) -> bool:
    references, build = subject.references, subject.build
    target, kind = int(references.target[index]), int(references.target_kind[index])
    name = record.symbol.split("@")[0]
    if kind in (TargetKind.GOT, TargetKind.PLT):
        slot = build.slots[int(references.entity[index])]
        if subject.relaxes and name == LOOKUP:
            return slot.relocation == TPOFF64  # the call has become "add x@gottpoff(%rip), %rax"
        if slot.symbol:
            return slot.symbol == name
        # Of the module itself: a word that holds its address, or its offset.
        return record.defined or record.type == TLSLD
    following = int(references.following[index])
    expected = record.value + record.addend + following - record.place
    return target in (expected, record.value)


def _is_known_to_assembler(subject: _Subject, index: int) -> bool:
    """A branch, an address or a constant within one section."""
    references, build = subject.references, subject.build
    here = build.section_at(int(references.position[index]))
    there = build.section_at(int(references.target[index]))
    return here is not None and here == there


# Offsets of thread-locals


def _check_thread_locals(subject: _Subject, records: Sequence[Record], tally: Tally) -> None:
    wanted = dict(_fields(subject, records))
    tally.thread_locals = len(wanted)
    for position, (record, offset) in wanted.items():
        index = subject.fields.get(position)
        if index is None:
            if position not in subject.unproven:
                tally.thread_locals_missing.append(f"{subject.described(position)}: {record}")
            continue
        tally.found += 1
        if not _is_meant(subject, index, record, offset) and position not in subject.doubtful:
            tally.thread_locals_wrong.append(f"{subject.described(position)}: {record}")
    tally.thread_locals_false = [subject.described(position) for position in subject.fields.keys() - wanted.keys()]


def _fields(subject: _Subject, records: Sequence[Record]) -> Iterator[tuple[int, tuple[Record, int]]]:
    """(position, (record, offset in the block)) of every field that holds an offset in this file."""
    below = below_thread_pointer(subject.build) if subject.relaxes else 0
    for record in records:
        if not record.defined or subject.function(record.place) is None:
            continue
        if record.type in (TPOFF32, DTPOFF32):
            place, offset = record.place, record.value + record.addend
        elif subject.relaxes and record.type in (GOTTPOFF, GOTPC32_TLSDESC, TLSGD):
            place, offset = record.place + (8 if record.type == TLSGD else 0), record.value + record.addend + 4
            if place in subject.at or record.symbol == "_TLS_MODULE_BASE_":
                continue  # still a slot; or nothing to be added
        else:
            continue
        assert subject.number(place) == offset - below, subject.described(place)
        yield place, (record, offset)


def _is_meant(subject: _Subject, index: int, record: Record, offset: int) -> bool:
    references, entities = subject.references, subject.build.entities
    row = int(references.entity[index])
    same = row >= 0 and record.symbol.split("@")[0] in entities.aliases[row]
    return same and int(references.target[index].astype(np.int64)) == offset
