"""Loops as the ledger has them: absolute addresses, and stubs through which their calls can come by the agent."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hotupgrade.binary.model import Kind
from hotupgrade.errors import Reason, Refused
from hotupgrade.plan.entries import JUMP_SIZE, jump_target
from hotupgrade.plan.loops.model import LoopPlan, LoopSide, Place, SiteKind
from hotupgrade.target.moves import MOST_SITES
from hotupgrade.target.process import Process
from hotupgrade.target.request import Word
from hotupgrade.upgrade.ledger import Ledger, LoopRecord, PlaceRecord, SideRecord, SiteRecord
from hotupgrade.upgrade.prepare import Planned
from hotupgrade.upgrade.scene import LiveScene
from hotupgrade.upgrade.words import to_words

#: "push $imm32; jmp *slot(%rip)", padded; the slot holds the address of the agent's gate.
_STUB = struct.Struct("<BiBBi5x")
_PUSH, _JUMP_THROUGH = 0x68, (0xFF, 0x25)
_CALL, _CALL_SIZE = 0xE8, 5


@dataclass(frozen=True)
class Stubs:
    """Code at ``start``: one stub for each site."""

    start: int
    code: bytes


def stubs_size(plans: Sequence[LoopPlan]) -> int:
    """Bytes that the stubs of these loops take."""
    return _STUB.size * sum(len(side.sites) for plan in plans for side in (*plan.sides.values(), plan.new)) + 8


def free_sites(ledger: Ledger, count: int) -> int:
    """The first of ``count`` rows for sites that no generation uses.

    Raises:
        Refused: there are not so many.
    """
    loops = [loop for generation in ledger.generations for loop in generation.loops]
    first = max((site.index + 1 for loop in loops for site in loop.sites), default=0)
    if first + count > MOST_SITES:
        text = "the upgrades that are in force have used up the rows for calls of loops; roll some of them back first"
        raise Refused(Reason("too-many-loops", "", text))
    return first


def record_loops(
    item: Planned, plans: Sequence[LoopPlan], scene: LiveScene, process: Process, first: int, start: int, gate: int
) -> tuple[list[LoopRecord], Stubs]:
    """Records of a module's loops, and the stubs for their calls.  The new image must be in its place.

    Args:
        first: number of the first row for calls.
        start: where the stubs will be.
        gate: the agent's address that they lead to.

    Raises:
        Refused: a loop cannot be had in this process.
    """
    numbers = iter(range(first, MOST_SITES))
    stubs = iter(range(start, start + stubs_size(plans), _STUB.size))
    records = [_Recorder(item, plan, scene, process, numbers, stubs).record() for plan in plans]
    sites = sorted((site for record in records for site in record.sites), key=lambda site: site.stub)
    return records, Stubs(start, stub_code(sites, start, gate))


def stub_code(sites: Sequence[SiteRecord], start: int, gate: int) -> bytes:
    """One stub for each site, and behind them the word that all of them jump through."""
    slot = start + _STUB.size * len(sites)
    stubs = [
        _STUB.pack(_PUSH, site.index, *_JUMP_THROUGH, slot - (start + _STUB.size * number + 11))
        for number, site in enumerate(sites)
    ]
    return b"".join(stubs) + struct.pack("<Q", gate)


class _Recorder:
    def __init__(
        self,
        item: Planned,
        plan: LoopPlan,
        scene: LiveScene,
        process: Process,
        numbers: Iterator[int],
        stubs: Iterator[int],
    ) -> None:
        self._item = item
        self._plan = plan
        self._scene = scene
        self._process = process
        self._numbers = numbers
        self._stubs = stubs
        self._change = {word.address: word for words in to_words(item.plan.edits) for word in words}

    def record(self) -> LoopRecord:
        plan, images = self._plan, self._item.candidate.images
        placed = self._item.plan.placed
        sides = [(images[index].base, side) for index, side in sorted(plan.sides.items())]
        home = sides[0][0] + sides[0][1].entry
        if all((base + side.entry) != placed.base + plan.new.entry for base, side in sides):
            row = placed.build.row_at(plan.new.entry)
            if placed.placed is None or row in placed.placed:
                sides.append((placed.base, plan.new))
        return LoopRecord(
            function=plan.function,
            home=home,
            door=plan.door.value,
            hold_main=plan.hold_main,
            one_by_one=plan.one_by_one,
            sides=[_side(base, side) for base, side in sides],
            sites=[site for base, side in sides for site in self._sites(base, side)],
            pairs=[(pair.clean, pair.setup) for pair in plan.pairs],
            ask=[(_place(store.place), store.value) for store in plan.ask],
            clear=[(_place(store.place), store.value) for store in plan.clear],
            wake=[(self._function(name), _place(place)) for name, place in plan.wake],
            leaving=_place(plan.leaving) if plan.leaving else None,
            latch=_place(plan.latch) if plan.latch else None,
            flag=self._flag() if plan.flag else 0,
            thread=_place(plan.thread) if plan.thread else None,
            limit_us=plan.limit_us,
        )

    def _sites(self, base: int, side: LoopSide) -> Iterator[SiteRecord]:
        for site in side.sites:
            if site.kind is SiteKind.SLEEP:
                continue
            address = base + site.vaddr
            content = self._call(base + side.entry, address)
            if content is None:
                continue
            if content[0] != _CALL:
                text = f"the call of {site.name} in {self._plan.function} (at {address:#x}) is not what the file has"
                raise Refused(Reason("loop-profile-mismatch", self._plan.function, text))
            yield SiteRecord(
                address=address,
                plain=int.from_bytes(content[1:], "little"),
                stub=next(self._stubs),
                index=next(self._numbers),
                kind=site.kind.value,
                pair=max(site.pair, 0),
                returns=site.value,
            )

    def _call(self, entry: int, address: int) -> bytes | None:
        """The instruction, as it is or as it will be; None if a jump at the function's entry covers it all along."""
        for change in ({}, self._change):
            content = self._read(entry, JUMP_SIZE, change)
            if not entry <= address < entry + JUMP_SIZE or jump_target(entry, content) is None:
                return self._read(address, _CALL_SIZE, change)
        return None

    def _read(self, address: int, size: int, change: Mapping[int, Word]) -> bytes:
        first = address // 8 * 8
        content = bytearray(self._process.read(first, -(-(address + size - first) // 8) * 8))
        for at in range(first, first + len(content), 8):
            if at in change:
                content[at - first : at - first + 8] = change[at].new.to_bytes(8, "little")
        return bytes(content[address - first : address - first + size])

    def _function(self, name: str) -> int:
        """The home of a function of the module, exported or not (a program exports little), or of another module's."""
        first = self._item.candidate.images[0]
        row = first.build.by_name.get(name)
        if row is not None and int(first.build.entities.kind[row]) == Kind.FUNCTION:
            return first.base + int(first.build.entities.address[row])
        address = self._scene.resolve(name, "")
        if address is None:
            text = f"{self._plan.function}: its profile has {name} called, which the process does not have"
            raise Refused(Reason("loop-profile-mismatch", self._plan.function, text))
        return address

    def _flag(self) -> int:
        """The home of the variable."""
        candidate = self._item.candidate
        row = candidate.new.row_at(self._plan.flag_vaddr)
        for image, comparison in zip(candidate.images, candidate.comparisons, strict=True):
            old = -1 if row is None else int(comparison.old_of[row])
            if old >= 0:
                return image.base + int(image.build.entities.address[old])
        text = f"{self._plan.function}: the running build has no {self._plan.flag}"
        raise Refused(Reason("loop-profile-mismatch", self._plan.function, text))


def _side(base: int, side: LoopSide) -> SideRecord:
    return SideRecord(
        entry=base + side.entry,
        ranges=[(base + low, base + high) for low, high in side.ranges],
        sleeps=[base + site.vaddr + 5 for site in side.sites if site.kind is SiteKind.SLEEP],
    )


def _place(place: Place) -> PlaceRecord:
    return PlaceRecord(offsets=list(place.offsets), size=place.size, path=place.path)
