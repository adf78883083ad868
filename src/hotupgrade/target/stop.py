"""One stop: park every thread, have the agent apply a list of edits, let all go.

The sleepers are parked first, by sending each, stopped for a moment by ptrace, through the agent, where it sleeps on;
its system call is made again afterwards, so that the program sees no EINTR.  Then one of them, the leader, signals
the busy threads; the last of those to arrive applies the edits.  From the leader's start on nothing depends on the
tool any more.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence

import numpy as np

from hotupgrade.errors import HotUpgradeError, NotNow, Reason
from hotupgrade.target import abi, native
from hotupgrade.target.agent import (
    LEADER_CALLS,
    POLLING,
    SLEEPERS_FIRST,
    VISIT_TIMEOUT_US,
    Agent,
    Operation,
    has_calls,
    is_denied,
    leaders,
    refuse_visit,
    runners,
    system_call,
    with_room,
)
from hotupgrade.target.busy import busy_threads, free_signal, stay_off, touch_stacks
from hotupgrade.target.clock import Reading, ticks_per_us
from hotupgrade.target.maps import mapping_at
from hotupgrade.target.process import ThreadState, main_has_ended
from hotupgrade.target.request import (
    LOOP_AT_WORK,
    Departure,
    Standing,
    StopReport,
    StopRequest,
    ThreadBreak,
    merge,
    merged_by_loop,
)
from hotupgrade.target.scratch import Scratch
from hotupgrade.target.suspended import MOST_SEARCHED, TooMuchMemoryError, find_suspended, hits_in

#: How long one attempt may hold sleepers, and busy threads, in seconds; doubled with each attempt up to eightfold.
SLEEPER_LIMIT, BUSY_LIMIT = 0.25, 0.01
SYS_FUTEX, FUTEX_WAKE_PRIVATE = 202, 129
#: How long threads may take to leave the agent after a stop, in seconds.
SETTLE_LIMIT = 5.0
#: How long the calls after a commit (constructors) are waited for, in seconds.
AFTER_LIMIT = 10.0
#: More words than this that only look like return addresses are not excused.
MOST_EXCUSES = 256
#: Not parked, and no reason to give up: it has ended, or is handling a signal.
_COME_AGAIN = (abi.VisitStatus.GONE, abi.VisitStatus.DENIED, abi.VisitStatus.SIGNALLED)


_ANYHOW = Standing(0)
#: How soon it is looked again whether a loop's thread has gone to sleep, in seconds.
_LOOK_AGAIN = 0.001
#: Room for threads that are born while the others are being parked.
SPARE_ROWS = 64
_SPARE_MAPPINGS = 512


def table_size(threads: int, mappings: int, words: int, forbidden: int, hooks: int = 0) -> int:
    """Bytes of working memory that stops with these numbers need."""
    rows = threads * 2 + SPARE_ROWS
    sizes = (
        2 * rows * ctypes.sizeof(abi.Thread),
        (mappings + _SPARE_MAPPINGS) * ctypes.sizeof(abi.Range),
        (words + rows) * ctypes.sizeof(abi.Edit),
        (2 * forbidden + 1) * ctypes.sizeof(abi.Range),
        hooks * ctypes.sizeof(abi.Op),
        8 * MOST_EXCUSES,
    )
    return sum(sizes) + 64 * (len(sizes) + 1)


class Stopper:
    """Makes stops in one process, with tables in working memory of the target (see :func:`table_size`)."""

    def __init__(
        self, agent: Agent, since: Reading, scratch: Scratch, words: int, forbidden: int, hooks: int = 0
    ) -> None:
        self.agent = agent
        self._since = since
        self._rows = len(agent.process.thread_ids()) * 2 + SPARE_ROWS
        self._most_mappings = len(agent.process.maps()) + _SPARE_MAPPINGS // 2
        self._most_words = words + self._rows  # one of every thread may be a return address
        self._edits_at = scratch.reserve(self._most_words * ctypes.sizeof(abi.Edit))
        self._watches_at = scratch.reserve((2 * forbidden + 1) * ctypes.sizeof(abi.Range))
        self._excuses_at = scratch.reserve(8 * MOST_EXCUSES)
        self._hooks_at = scratch.reserve(hooks * ctypes.sizeof(abi.Op))
        self._stacks_at = scratch.reserve(self._most_mappings * ctypes.sizeof(abi.Range))
        # Attempts take turns with two tables, so that a thread that comes late for one is no part of the next.
        self._tables = [scratch.reserve(self._rows * ctypes.sizeof(abi.Thread)) for _ in range(2)]

    def stop(self, request: StopRequest, timeout: float) -> StopReport:
        """Make one stop, trying again until it succeeds or the time is up.

        Raises:
            NotNow: not within ``timeout`` seconds, or not possible; nothing was changed.
        """
        self._request = request
        self._doubted: set[int] = set()
        self._drowsy: set[int] = set()  # seen busy, but asleep when they were to be signalled
        allowed = os.sched_getaffinity(0)
        try:
            return self._until(time.monotonic() + timeout)
        finally:
            os.sched_setaffinity(0, allowed)

    def _until(self, limit: float) -> StopReport:
        request = self._request
        attempt = 0
        while True:
            problem = self._attempt(request, attempt)
            if problem is not None and problem.reason.code == LOOP_AT_WORK and time.monotonic() <= limit:
                time.sleep(_LOOK_AGAIN)  # nobody was parked for it
                continue
            attempt += 1
            if problem is None:
                return self._report(attempt)
            if time.monotonic() > limit or problem.reason.code in (
                "no-permission",
                "thread-halted",
                "no-such-process",
                "changed-under-us",
                "hook-failed",
                "too-much-memory",
            ):
                raise request.mover.explain(problem) if request.mover else problem
            time.sleep(min(0.002 * 2**attempt, 0.1))

    @property
    def _searches(self) -> bool:
        """Whether stacks that no thread stands on are to be looked for."""
        return self._request.coroutines is not None and bool(self._request.forbidden)

    def _attempt(self, request: StopRequest, attempt: int) -> NotNow | None:
        agent, process = self.agent, self.agent.process
        busy = busy_threads(agent)
        states = process.threads()
        number = free_signal(agent, states)
        # One that blocks the signal is stopped as sleepers are.
        busy = frozenset(t.tid for t in states if t.tid in busy and not t.blocked_signals >> (number - 1) & 1)
        busy -= self._drowsy
        if self._searches:
            busy = frozenset()  # while one runs, what was searched may change
        self._cores = frozenset(t.processor for t in states if t.tid in busy)
        stay_off(self._cores)
        try:
            self._depart(states)
        except NotNow as error:
            return error
        only_main = bool(request.after) or self._departure.hold_main
        choice = self._leaders(states, busy, only_main) or self._leaders_soon(states, busy, only_main)
        if not choice and not (only_main or request.hooks or has_calls(self._after)):
            choice = [t for t in runners(states) if t.tid not in self._departure.standing]
            busy -= {t.tid for t in choice[:1]}  # it stops the others; nobody signals it
            self._cores = frozenset(t.processor for t in states if t.tid in busy)
        if not choice:
            return NotNow(
                Reason(
                    "main-busy" if only_main else "no-thread",
                    str(process.pid),
                    f"process {process.pid}: constructors are to be run, or threads restarted, but the main thread is "
                    f"never asleep to do it"
                    if only_main
                    else f"process {process.pid}: no thread is asleep in a system call that can be interrupted",
                )
            )
        leader = choice[0]
        if len(states) + SPARE_ROWS // 2 > self._rows:
            return NotNow(
                Reason("too-many-threads", str(process.pid), "threads are created faster than they can be parked")
            )
        table_at = self._tables[attempt % 2]
        self._table = (abi.Thread * self._rows)()
        self._names = {t.tid: t.name for t in states}
        self._absent: list[int] = []
        self._leader = leader.tid
        self._write_tables(request, states, busy, leader.tid)
        now = native.time_stamp()
        rate = ticks_per_us(self._since)
        patience = 2 ** min(attempt, 3)
        hold = SLEEPER_LIMIT * patience
        agent.set(
            state=abi.State.IDLE,
            sleepers=0,
            sleepers_in=0,
            busy=len(busy),
            busy_in=0,
            threads=table_at,
            thread_count=self._rows,
            signal=number,
            reason=0,
            reason_tid=0,
            reason_address=0,
            search=int(self._searches or bool(self._doubted)),
            excuse_count=0,
            busy_limit=int(BUSY_LIMIT * max(1, len(busy)) * patience * 1e6 * rate),
        )
        process.write(table_at, bytes(self._table))
        if busy and request.forbidden:
            touch_stacks(agent)
        now = native.time_stamp()
        process.write(agent.field_address("stamps"), now.to_bytes(8, "little") + bytes(8 * (len(abi.Stamp) - 1)))
        agent.set(
            deadline_tsc=int(now + hold * 1e6 * rate),
            deadline_ns=time.monotonic_ns() + int(hold * 1e9),
            state=abi.State.STOPPING,
        )
        self._limit = time.monotonic() + hold
        try:
            problem = self._park(busy, leader.tid, table_at) or self._lead(leader.tid, table_at)
        except NotNow as error:
            problem = error
        if problem is not None:
            self._give_up()
        self._settle(table_at)
        return problem

    def _leaders(self, states: Sequence[ThreadState], busy: frozenset[int], only_main: bool) -> list[ThreadState]:
        """The sleepers that may lead, best first."""
        absent = busy | self._departure.standing.keys() if self._departure.after else busy
        choice = [t for t in leaders(states, self.agent.process.pid, only_main) if t.tid not in absent]
        if self._departure.hold_main:
            # Anywhere else it may be about to do, or wait for, just what it is to be kept from.
            choice = [t for t in choice if t.system_call in POLLING]
        if self._request.hooks or has_calls(self._after):
            choice = with_room(self.agent.process, choice)
        return choice

    def _leaders_soon(self, states: Sequence[ThreadState], busy: frozenset[int], only_main: bool) -> list[ThreadState]:
        """The same a little later: better than to interrupt a thread that runs."""
        known = {t.tid for t in states}
        limit = time.monotonic() + SLEEPERS_FIRST
        while time.monotonic() < limit:
            time.sleep(_LOOK_AGAIN)
            now = [t for t in self.agent.process.threads() if t.tid in known]
            if choice := self._leaders(now, busy, only_main):
                return choice
        return []

    def _give_up(self) -> None:
        """Let go whoever is parked already, unless the agent itself has decided otherwise."""
        agent = self.agent
        if agent.get("state") != abi.State.STOPPING:
            return
        agent.set(state=abi.State.ABORTED)
        wake = system_call(SYS_FUTEX, agent.field_address("state"), FUTEX_WAKE_PRIVATE, 0x7FFFFFFF, fatal=False)
        with contextlib.suppress(NotNow):  # they have limits of their own
            agent.run([wake], timeout=0.1, idle=False)

    def _write_tables(
        self, request: StopRequest, states: Sequence[ThreadState], busy: frozenset[int], leader: int
    ) -> None:
        """Everything that the agent reads, but for what changes while threads are being parked."""
        for index, thread in enumerate([t for t in states if t.tid in busy or t.tid == leader]):
            self._table[index].tid = thread.tid
            self._table[index].busy = int(thread.tid in busy)
            standing = self._departure.standing.get(thread.tid, _ANYHOW)
            self._table[index].loop, self._table[index].live = standing.loop, standing.live
        self._used = sum(1 for row in self._table if row.tid)
        self._write_words()
        ranges = merged_by_loop(request.forbidden)
        watches = (abi.Range * len(ranges))(*(abi.Range(*row) for row in ranges))
        maps = self.agent.process.maps()
        stacks = [(m.start, m.end) for m in maps if m.writable and m.readable][: self._most_mappings]
        mappings = (abi.Range * len(stacks))(*(abi.Range(low, high) for low, high in stacks))
        hooks = (abi.Op * len(request.hooks))(*(hook.operation.pack() for hook in request.hooks))
        self.agent.process.write(self._hooks_at, bytes(hooks))
        self.agent.process.write(self._watches_at, bytes(watches))
        self.agent.process.write(self._stacks_at, bytes(mappings))
        self.agent.set(
            hooks=self._hooks_at,
            hook_count=len(hooks),
            watches=self._watches_at,
            watch_count=len(ranges),
            watch_low=ranges[0][0] if ranges else 0,
            watch_high=max(high for _, high, _ in ranges) if ranges else 0,
            stacks=self._stacks_at,
            stack_count=len(stacks),
            main_stack=next((m.end - 8 for m in maps if m.path == "[stack]"), 0),
        )

    def _park(self, busy: frozenset[int], leader: int, table_at: int) -> NotNow | None:
        """Send every sleeper to the agent, also those born meanwhile, until none is left that we do not know."""
        agent, process = self.agent, self.agent.process
        known = set(busy) | {leader}
        row_of = {int(row.tid): index for index, row in enumerate(self._table) if row.tid}
        parked = 0
        while True:
            tids = process.thread_ids()
            fresh = [tid for tid in tids if tid not in known]
            if not fresh:
                break
            if time.monotonic() > self._limit:
                return NotNow(
                    Reason(
                        "thread-late",
                        str(fresh[0]),
                        f"process {process.pid}: thread {fresh[0]} could not be parked in time",
                    )
                )
            for tid in [t for t in fresh if t not in self._names]:
                state = process.thread(tid)
                self._names[tid] = state.name if state else ""
            if fresh == [process.pid] and main_has_ended(process.pid):
                known.add(process.pid)  # it is counted as long as the others live, and never runs again
                self._absent.append(process.pid)
                continue
            visits = (abi.Visit * len(fresh))()
            for visit, tid in zip(visits, fresh, strict=True):
                if tid not in row_of:
                    if self._used == self._rows:
                        return NotNow(
                            Reason(
                                "too-many-threads",
                                str(process.pid),
                                "threads are created faster than they can be parked",
                            )
                        )
                    row_of[tid] = self._used
                    self._used += 1
                visit.tid, visit.thread = tid, table_at + row_of[tid] * ctypes.sizeof(abi.Thread)
                process.write(visit.thread, tid.to_bytes(8, "little"))
                self._write_standing(tid, int(visit.thread))
            native.redirect(
                visits,
                agent.process.memory,
                agent.entry,
                min(VISIT_TIMEOUT_US, int(max(self._limit - time.monotonic(), 0.001) * 1e6)),
            )
            for visit in visits:
                if visit.status == abi.VisitStatus.DONE:
                    known.add(visit.tid)
                    parked += 1
                elif is_denied(process, visit) or visit.status not in _COME_AGAIN:
                    return refuse_visit(process.pid, visit)
        agent.set(sleepers=parked, expected_threads=len(tids))
        if self._request.mover is not None and not row_of.keys() <= self._asked:
            return self._depart_again(row_of, table_at, leader)
        return None

    def _depart_again(self, rows: Mapping[int, int], table_at: int, leader: int) -> NotNow | None:
        """Threads were born while the others were being parked; they may be in loops, too.  All stand still by now."""
        self._depart(self.agent.process.threads())
        if self._departure.hold_main and leader != self.agent.process.pid:
            pid = self.agent.process.pid
            return NotNow(Reason("no-thread", str(pid), f"process {pid}: threads were born that only main can restart"))
        for tid, row in rows.items():
            self._write_standing(tid, table_at + row * ctypes.sizeof(abi.Thread))
        self._write_words()
        return None

    def _depart(self, states: Sequence[ThreadState]) -> None:
        """Ask the mover which threads are led out of their loops; raises NotNow if one cannot be."""
        mover = self._request.mover
        self._departure = mover.depart(states) if mover else Departure()
        self._after = [*self._request.after, *self._departure.after]
        self._asked = {state.tid for state in states}

    def _write_standing(self, tid: int, row_at: int) -> None:
        standing = self._departure.standing.get(tid, _ANYHOW)
        self.agent.process.write(row_at + abi.Thread.loop.offset, struct.pack("<QQ", standing.loop, standing.live))

    def _write_words(self) -> None:
        words = [*self._request.data, *self._request.code, *self._departure.words]
        if len(words) > self._most_words:
            raise NotNow(Reason("too-many-threads", str(self.agent.process.pid), "too many threads are restarted"))
        edits = (abi.Edit * len(words))(*(abi.Edit(w.address, w.old, w.new) for w in words))
        self.agent.process.write(self._edits_at, bytes(edits))
        self.agent.set(edits=self._edits_at, edit_count=len(words), sync_count=len(self._request.data))

    def _lead(self, leader: int, table_at: int) -> NotNow | None:
        agent = self.agent
        agent.keep_off(self._cores, leader)
        agent.set(hold=int(self._departure.hold_main))
        agent.process.write(agent.field_address("calls"), abi.set_of_calls(POLLING))
        after = self._after
        serial = agent.write_operations([Operation(abi.OpKind.STOP), *after], idle=False)
        row = next(index for index, row in enumerate(self._table) if row.tid == leader)
        visits = (abi.Visit * 1)()
        visits[0].tid, visits[0].lead, visits[0].thread = leader, serial, table_at + row * ctypes.sizeof(abi.Thread)
        native.redirect(
            visits,
            agent.process.memory,
            agent.entry,
            min(VISIT_TIMEOUT_US, int(max(self._limit - time.monotonic(), 0.001) * 1e6)),
            LEADER_CALLS if self._request.hooks or has_calls(after) else None,
        )
        if visits[0].status == abi.VisitStatus.DENIED and not is_denied(agent.process, visits[0]):
            visits[0].status = abi.VisitStatus.GONE
        if visits[0].status != abi.VisitStatus.DONE:
            return refuse_visit(agent.process.pid, visits[0])
        if (problem := self._search(table_at)) is not None:
            return problem
        limit = (AFTER_LIMIT if after else 2.0) + self._departure.patience
        try:
            agent.wait(serial, max(self._limit - time.monotonic(), 0) + limit)
        except NotNow:
            if after and agent.get("state") == abi.State.COMMITTED:
                raise HotUpgradeError(
                    f"process {agent.process.pid}: the new code is in force, but what the main thread was given to do "
                    f"after it (constructors, restarts) has not ended within {limit:.0f} s; it goes on"
                ) from None
            raise
        if agent.get("state") == abi.State.COMMITTED:
            return None
        return self._aborted()

    def _search(self, table_at: int) -> NotNow | None:
        """With every sleeper in the agent: look at what its own scan cannot tell."""
        if not self._searches and not self._doubted:
            return None
        agent = self.agent
        while True:
            table = type(self._table).from_buffer_copy(agent.process.read(table_at, ctypes.sizeof(self._table)))
            here = [row for row in table if row.arrived and not row.busy]
            if len(here) == agent.get("sleepers") + 1:
                break
            if agent.get("state") != abi.State.STOPPING or time.monotonic() > self._limit:
                return None  # the agent knows why
            time.sleep(0.0001)
        if self._searches and (problem := self._search_suspended(here)) is not None:
            return problem
        self._excuse([row for row in here if int(row.tid) in self._doubted])
        agent.set(search=0)
        return None

    def _search_suspended(self, here: Sequence[abi.Thread]) -> NotNow | None:
        """Look through the stacks that no thread stands on."""
        request, process = self._request, self.agent.process
        assert request.coroutines is not None
        threads = [(int(row.sp), int(row.tcb)) for row in here]
        try:
            found = find_suspended(process, request.coroutines, merge(request.forbidden), threads)
        except TooMuchMemoryError:
            return NotNow(
                Reason(
                    "too-much-memory",
                    str(process.pid),
                    f"process {process.pid}: {request.coroutines.user} switches stacks in a way of its own, and the "
                    f"process has more than {MOST_SEARCHED >> 20} MiB in which suspended ones might lie: too much to "
                    f"be searched in a stop",
                )
            )
        if found is not None:
            where = f"a suspended stack at {found.place:#x}"
            return NotNow(Reason("active", str(process.pid), self._active(where, found.code)))
        return None

    def _excuse(self, threads: Sequence[abi.Thread]) -> None:
        """Tell the agent of words on the stacks of these threads that only look like return addresses."""
        process = self.agent.process
        excuses: list[int] = []
        for row in threads:
            if row.arrived == abi.ON_ALTERNATE or self._request.unwinder is None:
                continue
            at = int(row.sp) - abi.RED_ZONE - ctypes.sizeof(abi.Frame)
            frame = abi.Frame.from_buffer_copy(process.read(at, ctypes.sizeof(abi.Frame)))
            mapping = mapping_at(process.maps(), int(row.sp))
            slots = self._request.unwinder.return_slots(int(row.pc), frame.registers(int(row.sp)))
            if slots is None or mapping is None:
                continue
            low = -(-int(row.sp) // 8) * 8
            words = np.frombuffer(process.read(low, (mapping.end - low) // 8 * 8), np.uint64)
            hits = [low + 8 * index for index in hits_in(words, merge(self._request.forbidden))]
            excuses += [address for address in hits if address not in slots]
        excuses = excuses[:MOST_EXCUSES]
        process.write(self._excuses_at, struct.pack(f"<{len(excuses)}Q", *excuses))
        self.agent.set(excuses=self._excuses_at, excuse_count=len(excuses))

    def _aborted(self) -> NotNow:
        """The reason that the agent gives for an aborted stop, in words."""
        box = self.agent.mailbox()
        pid = self.agent.process.pid
        tid = int(box.reason_tid)
        thread = f"thread {tid} ({self._names.get(tid, '?')})"
        known = box.reason in {reason.value for reason in abi.StopReason}
        reason = abi.StopReason(box.reason) if known else abi.StopReason.OK
        if reason is abi.StopReason.HOOK:
            hooks = self._request.hooks
            name = hooks[int(box.reason_address)].name if box.reason_address < len(hooks) else "a function"
            text = f"process {pid}: {name}() of the new build reported a failure; nothing was changed"
            return NotNow(Reason("hook-failed", name, text))
        if reason is abi.StopReason.ASLEEP:
            self._drowsy.add(tid)
        if reason is abi.StopReason.ACTIVE:
            self._doubted.add(tid)
            return NotNow(Reason("active", str(tid), self._active(thread, int(box.reason_address))))
        words = {
            abi.StopReason.OK: "the stop was given up",
            abi.StopReason.LATE: f"{thread if tid else 'a thread'} did not arrive in time",
            abi.StopReason.GONE: f"{thread} ended while it was to be stopped",
            abi.StopReason.STRANGER: "a thread was created while the others were being stopped",
            abi.StopReason.MISMATCH: f"the bytes at {box.reason_address:#x} are not what they were a moment ago; "
            f"something else changes this process",
            abi.StopReason.NO_TASK_FD: "/proc is not visible in the process, so its threads cannot be counted",
            abi.StopReason.NO_HANDLER: "the process may not set a signal handler",
            abi.StopReason.ASLEEP: f"{thread} sleeps now and then",
            abi.StopReason.OCCUPIED: f"{thread} does not wait for something to do, but for something that it has begun",
            abi.StopReason.ELSEWHERE: f"{thread if tid else 'a thread'} woke from the sleep out of which it was to be "
            f"led into the new code",
            abi.StopReason.NO_STACK: f"the stack of {thread} could not be found or is too large to be checked",
        }
        moving = reason is abi.StopReason.MISMATCH and int(box.reason_address) in {
            word.address for word in self._departure.words
        }
        if moving:
            return NotNow(Reason("stop-elsewhere", str(pid), f"process {pid}: {words[abi.StopReason.ELSEWHERE]}"))
        code = (
            "changed-under-us" if reason is abi.StopReason.MISMATCH else f"stop-{reason.name.lower().replace('_', '-')}"
        )
        return NotNow(Reason(code, str(tid or pid), f"process {pid}: {words[reason]}"))

    def _active(self, thread: str, address: int) -> str:
        ranges = sorted(self._request.forbidden, key=lambda f: f.low)
        index = bisect_right(ranges, address, key=lambda f: f.low) - 1
        name = (
            next((f.name for f in ranges[max(index, 0) :: -1] if f.low < address < f.high), f"{address:#x}")
            if ranges
            else "?"
        )
        return f"process {self.agent.process.pid}: {thread} is inside {name}, which is to be replaced"

    def _settle(self, table_at: int) -> None:
        """Wait until every thread that was in this stop has left the agent: only then may its tables go."""
        agent, process = self.agent, self.agent.process
        limit = time.monotonic() + SETTLE_LIMIT
        while True:
            self._table = type(self._table).from_buffer_copy(process.read(table_at, ctypes.sizeof(self._table)))
            left = [int(row.tid) for row in self._table if row.arrived and not row.released]
            if not left and agent.get("inside") == 0:
                return
            if time.monotonic() > limit:
                agent.abandon()
                raise NotNow(
                    Reason(
                        "not-settled",
                        str(process.pid),
                        f"process {process.pid}: threads have not left the agent {SETTLE_LIMIT} s after the stop; "
                        f"is it stopped by a signal?",
                    )
                )
            time.sleep(0.0002)

    def _report(self, attempts: int) -> StopReport:
        box = self.agent.mailbox()
        rate = ticks_per_us(self._since)
        begin = box.stamps[abi.Stamp.BEGIN]

        def since(stamp: int) -> float:
            return float(stamp - begin) / rate

        at = {stamp: since(box.stamps[stamp]) for stamp in abi.Stamp}
        threads = []
        for row in self._table:
            if not row.tid or not row.arrived:
                continue
            how = "signal" if row.busy else "leader" if row.tid == self._leader else "redirect"
            threads.append(
                ThreadBreak(
                    int(row.tid),
                    self._names.get(int(row.tid), ""),
                    how,
                    bool(row.busy),
                    (row.released - row.parked) / rate,
                    since(row.parked),
                    since(row.released),
                )
            )
        threads.extend(
            ThreadBreak(tid, self._names.get(tid, ""), "absent", False, 0.0, 0.0, 0.0) for tid in self._absent
        )
        last_out = max((t.released_us for t in threads), default=at[abi.Stamp.RELEASED])
        phases = {
            "stop": at[abi.Stamp.PARKED] + (at[abi.Stamp.STOPPED] - at[abi.Stamp.CHECKED]),
            "check": at[abi.Stamp.CHECKED] - at[abi.Stamp.PARKED],
            "sync": at[abi.Stamp.SYNCED] - at[abi.Stamp.STOPPED],
            "replace": at[abi.Stamp.REPLACED] - at[abi.Stamp.SYNCED],
            "start": last_out - at[abi.Stamp.REPLACED],
        }
        return StopReport(phases, tuple(threads), attempts)
