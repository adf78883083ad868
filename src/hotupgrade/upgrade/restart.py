"""Threads whose loop changed are restarted: led out of it by its own door, and into it again in the code in force.

Everything is made ready before the stop.  At the commit, the slot that a loop returns through is made to lead to the
agent's landing, together with all other words.  Then the main thread, which stands still meanwhile and so keeps out
what could interfere, asks one thread after the other to leave, and waits: none of this needs the tool any more.  A
thread that lands enters the loop again at its home, which leads to the code in force, whichever that is.
"""

from __future__ import annotations

import dataclasses
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from hotupgrade.errors import NotNow, Reason
from hotupgrade.plan.entries import JUMP_SIZE, jump_target
from hotupgrade.plan.loops.model import Door, SiteKind
from hotupgrade.target import abi
from hotupgrade.target.agent import Agent, Operation, call, system_call
from hotupgrade.target.backtrace import Unwinder
from hotupgrade.target.clock import Reading, ticks_per_us
from hotupgrade.target.loops import InLoop, LoopCode, LoopFinder, thread_pointer
from hotupgrade.target.moves import MoveTable
from hotupgrade.target.process import Process, ThreadState
from hotupgrade.target.request import LOOP_AT_WORK, Departure, Forbidden, Standing, Word
from hotupgrade.upgrade.ledger import LoopRecord, PlaceRecord, SideRecord
from hotupgrade.upgrade.sites import armed

SYS_READ, SYS_WRITE, SYS_POLL = 0, 1, 7
#: poll(2): data may be read; where struct pollfd says so.
POLLIN, _REVENTS = 1, 6
#: A thread that has left its loop waits no longer than this for the others of its group, in ns.
_PATIENCE_NS = 20_000_000_000
_SITE_KINDS = {SiteKind.CLEAN: abi.SiteKind.CLEAN, SiteKind.SETUP: abi.SiteKind.SETUP, SiteKind.WORK: abi.SiteKind.WORK}


@dataclass(frozen=True, slots=True)
class ThreadRestart:
    """What became of one thread.  Times in µs; None where they do not apply.

    ``state`` is arrived, sleeping (it enters the code in force when its sleep ends), stayed (it did not leave),
    or gone (the program itself has ended it meanwhile).  ``out_us``: from being asked to having left, ``in_us``: from
    there to the first work, or sleep, in the code in force; ``gap_us``: from the begin of the last work before to that
    of the first after.
    """

    tid: int
    function: str
    door: str
    state: str
    begin_us: float | None = None  # when it was asked, after the stop began
    out_us: float | None = None
    in_us: float | None = None
    gap_us: float | None = None
    skipped: tuple[str, ...] = ()
    unbalanced: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Found:
    """A thread that is to leave its loop.

    ``code`` is the entry of the code that it stands in.  ``row`` is its row in the table, if it is led to us already,
    because it was asked in vain before, or not at all.
    """

    place: InLoop
    code: int
    row: int | None = None


@dataclass
class _Group:
    """Threads that leave by one door together."""

    loop: LoopRecord
    threads: list[_Found] = field(default_factory=list)
    loops: list[LoopRecord] = field(default_factory=list)  # of each thread: those that share a latch may differ
    rows: list[int] = field(default_factory=list)  # of each thread

    @property
    def places(self) -> Iterator[tuple[InLoop, LoopRecord]]:
        for found, loop in zip(self.threads, self.loops, strict=True):
            yield found.place, loop

    @property
    def runs(self) -> list[tuple[int, int]]:
        """(first, count) of rows that follow each other."""
        runs: list[tuple[int, int]] = []
        for row in sorted(self.rows):
            if runs and row == sum(runs[-1]):
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((row, 1))
        return runs


class Restart:
    """The restarts of one stop.  A :class:`hotupgrade.target.request.Mover`."""

    def __init__(
        self, agent: Agent, table: MoveTable, loops: Sequence[LoopRecord], unwinder: Unwinder, clocks: Reading
    ) -> None:
        self._agent = agent
        self._process: Process = agent.process
        self._table = table
        self._loops = loops
        self._unwinder = unwinder
        self._clocks = clocks
        self._placed: list[tuple[int, LoopRecord, InLoop]] = []
        self._released: list[int] = []
        self._doubts: dict[int, Reason] = {}
        self._backs: dict[int, int] = {}  # return addresses that were replaced, by slot
        self._asleep: list[ThreadRestart] = []  # from a restart before this one, and still led to the code in force
        self._after: dict[int, int] = {}  # home → entry of the code that it will lead to

    # The calls that come by the agent

    def arming(self, code: Sequence[Word]) -> list[Word]:
        """The words of a change, and what makes the loops' calls come by the agent.  Their rows are written here."""
        for loop in self._loops:
            for site in loop.sites:
                row = abi.Site(
                    real=(site.address + 5 + _signed(site.plain)) & _MASK,
                    kind=_SITE_KINDS[SiteKind(site.kind)],
                    pair=1 << site.pair,
                    alone=int(site.kind == SiteKind.SETUP and not loop.pairs[site.pair][0]),
                    returns=int(site.returns is not None),
                    value=(site.returns or 0) & _MASK,
                )
                self._table.put_site(site.index, row)
        words = armed(self._process, self._loops, code)
        for loop in self._loops:
            side = side_in_force(self._process, loop, words)
            self._after[loop.home] = side.entry if side is not None else 0
        return words

    # At every attempt to stop

    def depart(self, threads: Sequence[ThreadState]) -> Departure:
        """See :class:`hotupgrade.target.request.Mover`."""
        maps = self._process.maps()
        blocks = {thread.tid: thread_pointer(self._process, thread.tid, maps) for thread in threads}
        self._table.forget({block for block in blocks.values() if block is not None})
        led = {int(row.slot): row for row in self._table.led_here()}
        behind = self._table.left_behind()
        self._backs = {slot: int(row.back) for slot, row in led.items()}
        finder = self._finder([_code(self._process, loop) for loop in self._loops])
        standing: dict[int, Standing] = {}
        found: list[_Found] = []
        self._asleep, self._released, self._doubts = [], [], finder.doubts
        words: list[Word] = []
        for thread in threads:
            block = blocks[thread.tid]
            if block is None or thread.tid == self._process.pid:
                continue
            if block in behind and self._is_of(behind[block][1], thread):
                one = self._left_behind(thread, block, *behind[block], standing, words)
            elif (row := next((row for row in led.values() if row.tcb == block), None)) is not None:
                one = None
                self._sleeping(thread, row, standing)
            else:
                place = finder.find(thread, block)
                one = None if place is None else _Found(place, self._entry_in_force(self._loops[place.loop]))
            if one is not None:
                standing[thread.tid] = self._standing(thread, one.place)
                found.append(one)
        return self._prepared(found, standing, words)

    def _finder(self, codes: Sequence[LoopCode]) -> LoopFinder:
        return LoopFinder(self._process, self._unwinder, codes, self._backs)

    def _is_of(self, row: abi.Move, thread: ThreadState) -> bool:
        """Another thread may have the control block of one that has ended; in a forked child it has another number."""
        return row.state != abi.MoveState.STAYED or bool(row.tid == thread.tid)

    def _sleeping(self, thread: ThreadState, row: abi.Move, standing: dict[int, Standing]) -> None:
        """It is led to the code in force already, as soon as its sleep ends."""
        number = self._number(row)
        standing[thread.tid] = Standing(number)
        if number and row.drop:
            loop = self._loops[number - 1]
            self._asleep.append(ThreadRestart(thread.tid, loop.function, loop.door, "sleeping"))

    def _left_behind(
        self,
        thread: ThreadState,
        block: int,
        index: int,
        row: abi.Move,
        standing: dict[int, Standing],
        words: list[Word],
    ) -> _Found | None:
        """A thread that did not leave before: it may be where it should be now, or must be asked once more.

        Which code it stands in is known: what its stack says of that may be left from before.
        """
        number = self._number(row)
        standing[thread.tid] = Standing(number)
        side = self._side_to_leave(self._loops[number - 1], int(row.code)) if number else None
        if side is None:
            if row.state == abi.MoveState.WAITING:  # it was never asked, and so can have its return address back
                words.append(Word(int(row.slot), self._table.landing, int(row.back)))
                self._released.append(index)
            return None
        loop = self._loops[number - 1]
        finder = self._finder([_code_of(loop, side)])
        place = finder.find(thread, block)
        if place is None:
            raise NotNow(finder.doubts.get(thread.tid) or _at_work(self._process.pid, thread, loop).reason)
        if row.state == abi.MoveState.STAYED:
            self._released.append(index)
        place = dataclasses.replace(place, loop=number - 1)
        return _Found(place, side.entry, None if row.state == abi.MoveState.STAYED else index)

    def _side_to_leave(self, loop: LoopRecord, entry: int) -> SideRecord | None:
        """The code that a thread stands in; None if it is that which the change puts in force."""
        now = side_in_force(self._process, loop)
        if self._after.get(loop.home) == entry and (now is None or now.entry != entry):
            return None
        return next((side for side in loop.sides if side.entry == entry), None)

    def _number(self, row: abi.Move) -> int:
        return next((number for number, loop in enumerate(self._loops, 1) if loop.home == row.entry), 0)

    def _standing(self, thread: ThreadState, place: InLoop) -> Standing:
        if not self._drops(place):
            return Standing(place.loop + 1)
        if place.asleep is None:
            raise _at_work(self._process.pid, thread, self._loops[place.loop])
        return Standing(place.loop + 1, place.asleep.slot)

    def explain(self, problem: NotNow) -> NotNow:
        """See :class:`hotupgrade.target.request.Mover`."""
        reason = self._doubts.get(int(problem.reason.subject)) if problem.reason.subject.isdigit() else None
        return NotNow(reason) if reason is not None and problem.reason.code == "active" else problem

    def _drops(self, place: InLoop) -> bool:
        return Door(self._loops[place.loop].door) is Door.SLEEP

    def _prepared(self, found: Sequence[_Found], standing: dict[int, Standing], words: list[Word]) -> Departure:
        groups: dict[object, _Group] = {}
        self._placed = []
        for one in found:
            loop = self._loops[one.place.loop]
            self._require_own(loop, one.place)
            group = groups.setdefault(self._key(loop, one.place), _Group(loop))
            group.threads.append(one)
            group.loops.append(loop)
        after: list[Operation] = []
        patience = 0.0
        for group in groups.values():
            words += self._put(group)
            self._placed += [(row, *place[::-1]) for row, place in zip(group.rows, group.places, strict=True)]
            if Door(group.loop.door) is not Door.SLEEP:
                after += self._operations(group)
                patience += 2 * len(group.runs) * group.loop.limit_us / 1e6
        return Departure(standing, words, after, patience, any(loop.hold_main for _, loop, _ in self._placed))

    def _put(self, group: _Group) -> list[Word]:
        """Have a row for each thread of a group; returns the words that lead them here."""
        pairs = zip(group.threads, group.loops, strict=True)
        fresh = [self._row(group, found, loop) for found, loop in pairs if found.row is None]
        first = self._table.put(fresh) if fresh else 0
        free = iter(range(first, first + len(fresh)))
        words = []
        for found in group.threads:
            if found.row is not None:
                self._table.renew(found.row, time.monotonic_ns() + _PATIENCE_NS)
                group.rows.append(found.row)
                continue
            group.rows.append(next(free))
            place = found.place
            slot = place.asleep if self._drops(place) and place.asleep else place
            words.append(Word(slot.slot, slot.back, self._table.landing))
        return words

    def _key(self, loop: LoopRecord, place: InLoop) -> object:
        door = Door(loop.door)
        if door is Door.LATCH and loop.latch is not None:
            return door, self._at(loop.latch, place.argument)
        if door is Door.FLAG:
            return door, loop.flag
        if door is Door.FIELDS and not loop.one_by_one:
            return door, loop.home
        return door, place.tid

    def _require_own(self, loop: LoopRecord, place: InLoop) -> None:
        """The argument names the thread that it belongs to, or is known otherwise."""
        if loop.thread is None:
            if not place.exact:
                text = (
                    f"process {self._process.pid}: thread {place.tid} was not started with {loop.function} itself, and "
                    f"it cannot be told which argument that was given; start the thread with {loop.function}, or say "
                    f"in a loop profile where the argument names its thread ('thread', see docs/loops.md)"
                )
                raise NotNow(Reason("loop-unproven", str(place.tid), text))
            return
        at = self._at(loop.thread, place.argument)
        if self._process.read_word(at) != place.tcb:
            text = (
                f"process {self._process.pid}: {loop.thread.path} of the argument of {loop.function} does not name "
                f"thread {place.tid}, so it cannot be proven whose argument that is"
            )
            raise NotNow(Reason("loop-unproven", str(place.tid), text))

    def _entry_in_force(self, loop: LoopRecord) -> int:
        side = side_in_force(self._process, loop)
        return side.entry if side is not None else 0

    def _row(self, group: _Group, found: _Found, loop: LoopRecord) -> abi.Move:
        place, door = found.place, Door(group.loop.door)
        drops = place.asleep if self._drops(place) else None
        row = abi.Move(
            state=abi.MoveState.WAITING,
            tid=place.tid,
            tcb=place.tcb,
            slot=drops.slot if drops else place.slot,
            back=drops.back if drops else place.back,
            drop=place.slot if drops else 0,
            entry=loop.home,
            argument=place.argument,
            # What a safe point compares is the thread's own: who has come back does not leave by it once more.
            together=int(door is Door.LATCH or (door is not Door.FLAG and len(group.threads) > 1)),
            works=int(_is_told(loop, drops is not None)),
            leaving=self._at(loop.leaving, place.argument) if loop.leaving else 0,
            clears=min(len(loop.clear), 2),
            patience_ns=time.monotonic_ns() + _PATIENCE_NS,
            code=found.code,
        )
        for index, address in enumerate(drops.kept if drops else ()):
            row.kept[index] = address
        for index, (where, value) in enumerate(loop.clear[:2]):
            row.clear_address[index] = self._at(where, place.argument)
            row.clear_size[index], row.clear_value[index] = where.size, value
        return row

    def _operations(self, group: _Group) -> list[Operation]:
        """Ask, wait, let in; and what takes it back.  The last operation ends the list."""

        def each(kind: abi.OpKind) -> list[Operation]:
            return [Operation(kind, first, (count,)) for first, count in group.runs]

        limit = int(group.loop.limit_us * ticks_per_us(self._clocks))
        undo = [*self._put_back(group), *self._clear(group)]
        undo += [*each(abi.OpKind.REVOKE), *each(abi.OpKind.ENTER), Operation(abi.OpKind.END)]
        going = [*each(abi.OpKind.ASK), *self._ask(group), *each(abi.OpKind.LAND)]
        going += [*self._put_back(group), *each(abi.OpKind.ENTER), *each(abi.OpKind.ARRIVE)]
        going.append(Operation(abi.OpKind.SKIP, len(undo)))
        for index, operation in enumerate(going):
            if operation.kind in (abi.OpKind.LAND, abi.OpKind.ARRIVE):
                to_undo = len(going) - index
                arguments = (*operation.arguments, limit, to_undo)
                going[index] = dataclasses.replace(operation, arguments=arguments)
        going += undo
        return [*self._expectations(group, len(going)), *going]

    def _expectations(self, group: _Group, distance: int) -> list[Operation]:
        """Nobody is asked whom the program itself has asked to end: that is looked at with the main thread held.

        ``distance``: from the last of these to the end of the group's operations, whose last ends the list.
        """
        wanted = [
            (self._at(loop.leaving, place.argument), loop.leaving.size)
            for place, loop in group.places
            if loop.leaving is not None
        ]
        return [
            Operation(abi.OpKind.EXPECT, address, (size, 0, len(wanted) - 1 - index + distance - 1))
            for index, (address, size) in enumerate(wanted)
        ]

    def _ask(self, group: _Group) -> list[Operation]:
        operations = []
        for place, loop in group.places:
            for where, value in loop.ask:
                operations.append(_store(self._at(where, place.argument), where.size, value))
            for function, where in loop.wake:
                operations.append(call(function, self._process.read_word(self._at(where, place.argument))))
        if (fds := self._latch(group)) is not None:
            operations.append(system_call(SYS_WRITE, fds[1], self._agent.mailbox_address, 1, fatal=False))
        if group.loop.flag:
            # Tells the threads that are meant: hotupgrade.h compares it with the thread's own return address.
            operations.append(_store(group.loop.flag, 4, self._table.landing & 0xFFFFFFFF))
        return operations

    def _put_back(self, group: _Group) -> list[Operation]:
        """What all of a group were asked by; each thread clears by itself what is its own."""
        operations = []
        if (fds := self._latch(group)) is not None:
            # The program may have taken it out itself; and who reads from an empty pipe waits.
            at = self._table.spare
            look = [_store(at, 8, fds[0] | POLLIN << 32), system_call(SYS_POLL, at, 1, 0, fatal=False)]
            read = system_call(SYS_READ, fds[0], at, 1, fatal=False)
            operations += [*look, Operation(abi.OpKind.EXPECT, at + _REVENTS, (2, POLLIN, 1)), read]
        if group.loop.flag:
            operations.append(_store(group.loop.flag, 4, 0))
        return operations

    def _clear(self, group: _Group) -> list[Operation]:
        return [
            _store(self._at(where, place.argument), where.size, value)
            for place, loop in group.places
            for where, value in loop.clear
        ]

    def _latch(self, group: _Group) -> tuple[int, int] | None:
        """The ends of the latch's pipe, for reading and for writing."""
        if group.loop.latch is None:
            return None
        raw = self._process.read(self._at(group.loop.latch, group.threads[0].place.argument), 8)
        read_end, write_end = struct.unpack("<ii", raw)
        return read_end, write_end

    def _at(self, place: PlaceRecord, argument: int) -> int:
        at = argument
        for index, offset in enumerate(place.offsets):
            at = (self._process.read_word(at) if index else at) + offset
        return at

    # After the stop

    def wait_for_sleepers(self, seconds: float) -> None:
        """Wait, for a while, for sleepers whose first call in the new code is to be skipped."""
        limit = time.monotonic() + seconds
        wanted = [i for i, loop, p in self._placed if self._drops(p) and _is_told(loop, drops=True)]
        while wanted and time.monotonic() < limit:
            rows = self._table.rows()
            if not any(rows[i].state in (abi.MoveState.WAITING, abi.MoveState.ENTERED) for i in wanted):
                return
            time.sleep(0.002)

    def outcome(self) -> list[ThreadRestart]:
        """What became of each thread."""
        rows = self._table.rows()
        rate = ticks_per_us(self._clocks)
        begin = int(self._agent.mailbox().stamps[abi.Stamp.BEGIN])
        return [*self._asleep] + [
            _restarted(rows[index], loop, place, rate, begin) for index, loop, place in self._placed
        ]

    def finish(self) -> None:
        """After a stop that was made: rows of slots that it has given back are free."""
        for index in self._released:
            self._table.set_state(index, abi.MoveState.FREE)


_MASK = (1 << 64) - 1


def _is_told(loop: LoopRecord, drops: bool) -> bool:
    """Whether the thread itself tells that it has arrived: by working, or by a call that it skips."""
    if drops:
        return any(site.kind == SiteKind.SETUP for site in loop.sites)
    return any(site.kind == SiteKind.WORK for site in loop.sites)


def _restarted(row: abi.Move, loop: LoopRecord, place: InLoop, rate: float, begin: int) -> ThreadRestart:
    states = {abi.MoveState.ARRIVED: "arrived", abi.MoveState.ENTERED: "arrived", abi.MoveState.FREE: "gone"}
    drops = bool(row.drop)
    state = (
        "sleeping" if drops and row.state == abi.MoveState.WAITING else states.get(abi.MoveState(row.state), "stayed")
    )
    if row.state == abi.MoveState.ENTERED and _is_told(loop, drops) and not drops:
        state = "stayed"  # in the new code, but nobody has seen it work there
    names = [clean or setup for clean, setup in loop.pairs]
    skipped = int(row.set_up)
    # Where no work tells, the leader has looked whether it sleeps, later; on its way it was as soon as it entered.
    works = any(site.kind == SiteKind.WORK for site in loop.sites)
    arrived = int((works and row.arrived) or row.entered)
    return ThreadRestart(
        place.tid,
        loop.function,
        loop.door,
        state,
        (row.asked - begin) / rate if row.asked else None,
        (row.left - row.asked) / rate if row.asked and row.left else None,
        (arrived - row.left) / rate if row.left and arrived else None,
        (row.arrived - row.worked) / rate if row.worked and row.arrived else None,
        tuple(name for bit, name in enumerate(names) if skipped >> bit & 1),
        tuple(name for bit, name in enumerate(names) if int(row.cleaned) >> bit & 1 and not skipped >> bit & 1),
    )


def _store(address: int, size: int, value: int) -> Operation:
    return Operation(abi.OpKind.STORE, address, (size, value))


def _signed(displacement: int) -> int:
    return (displacement & 0xFFFFFFFF) - (1 << 32) if displacement & 0x80000000 else displacement & 0xFFFFFFFF


def side_in_force(process: Process, loop: LoopRecord, words: Sequence[Word] = ()) -> SideRecord | None:
    """The code that the loop's home leads to now, or with these words replaced."""
    first = loop.home // 8 * 8
    content = bytearray(process.read(first, 16))
    for word in words:
        if word.address in (first, first + 8):
            content[word.address - first : word.address - first + 8] = word.new.to_bytes(8, "little")
    target = jump_target(loop.home, bytes(content[loop.home - first : loop.home - first + JUMP_SIZE]))
    by_entry = {side.entry: side for side in loop.sides}
    return by_entry.get(target or 0) or by_entry.get(loop.home)


def _code(process: Process, loop: LoopRecord) -> LoopCode:
    side = side_in_force(process, loop)
    if side is None:
        text = f"process {process.pid}: {loop.function} leads to code that no upgrade has brought"
        raise NotNow(Reason("loop-unproven", loop.function, text))
    return _code_of(loop, side)


def _code_of(loop: LoopRecord, side: SideRecord) -> LoopCode:
    return LoopCode(loop.function, loop.home, tuple(side.ranges), frozenset(side.sleeps))


def with_loops(forbidden: Sequence[Forbidden], loops: Sequence[LoopRecord]) -> list[Forbidden]:
    """The same ranges, those of loops as theirs; and the entries of loops, which a jump may be written over."""
    found = []
    for item in forbidden:
        number = next((k for k, loop in enumerate(loops, 1) if _is_of(item, loop)), 0)
        found.append(Forbidden(item.low, item.high, item.name, number))
    found += [Forbidden(side.entry, side.entry + JUMP_SIZE, loop.function) for loop in loops for side in loop.sides]
    return found


def _is_of(item: Forbidden, loop: LoopRecord) -> bool:
    return any(low <= item.low and item.high <= high for side in loop.sides for low, high in side.ranges)


def _at_work(pid: int, thread: ThreadState, loop: LoopRecord) -> NotNow:
    text = (
        f"process {pid}: thread {thread.tid} ({thread.name}) is at work in {loop.function}, which has changed; it can "
        f"be led into the new code only while it sleeps"
    )
    return NotNow(Reason(LOOP_AT_WORK, str(thread.tid), text))


def failures(pid: int, threads: Sequence[ThreadRestart]) -> Iterator[Reason]:
    """What did not go as it must, thread by thread."""
    for thread in threads:
        if thread.state == "stayed":
            text = (
                f"process {pid}: thread {thread.tid} did not leave {thread.function} in time, or was not seen to work "
                f"in it again; everything goes on in the code that was in force before"
            )
            yield Reason("restart-failed", str(thread.tid), text)
        elif thread.unbalanced:
            text = (
                f"process {pid}: thread {thread.tid} left {thread.function} without {', '.join(thread.unbalanced)}, "
                f"and entered it again without the call that goes with it"
            )
            yield Reason("restart-unbalanced", str(thread.tid), text)
