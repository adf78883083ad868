"""Threads that stand in a changed loop which nobody has said how to leave: no upgrade is to be had by waiting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hotupgrade.errors import NotNow, Reason
from hotupgrade.plan.loops.endless import StartFunction, start_functions
from hotupgrade.target.loops import LoopCode, LoopFinder, thread_pointer
from hotupgrade.target.moves import find_moves
from hotupgrade.target.process import ThreadState
from hotupgrade.upgrade.commit import unwinder_of
from hotupgrade.upgrade.prepare import Candidate
from hotupgrade.upgrade.session import Session

#: Reasons why a stop was not to be had that name a thread which may be in such a loop.
_ABOUT_A_THREAD = ("active", "stop-asleep")


def threads_without_door(session: Session, candidates: Sequence[Candidate]) -> list[Reason]:
    """Refusals for loops that never return, once for each thread that is surely in one.

    Those that could not be found out from here make the stop fail (see :func:`explained`).
    """
    functions = [function for function in _functions(candidates) if function.endless]
    threads = session.process.threads() if functions else []
    return [
        _refusal(session.process.pid, thread, function) for thread, function in _standing(session, functions, threads)
    ]


def explained(session: Session, candidates: Sequence[Candidate], problem: NotNow) -> Reason | None:
    """Why a stop was not to be had for as long as it was tried, if that is how a thread spends its life."""
    pid, subject = session.process.pid, problem.reason.subject
    if problem.reason.code not in _ABOUT_A_THREAD or not subject.isdigit():
        return None
    thread = session.process.thread(int(subject))
    if thread is None:
        return None
    functions = list(_functions(candidates))
    if thread.tid == pid and any(candidate.module.executable for candidate in candidates):
        # The main thread is always in main(), which nothing can be done about.
        for function in functions:
            if function.function == "main":
                text = (
                    f"process {pid}: its main thread is in main() for as long as the process lives, and main() has "
                    f"changed; leave that change out, or restart the program"
                )
                return Reason("loop-without-profile", "main", text)
    return next((_refusal(pid, *found) for found in _standing(session, functions, [thread])), None)


def _functions(candidates: Sequence[Candidate]) -> Iterator[StartFunction]:
    for candidate in candidates:
        if not candidate.nothing_to_do:
            led = {(index, side.entry) for plan in candidate.loops for index, side in plan.sides.items()}
            yield from start_functions(candidate.images, candidate.comparisons, led)


def _standing(
    session: Session, functions: Sequence[StartFunction], threads: Sequence[ThreadState]
) -> Iterator[tuple[ThreadState, StartFunction]]:
    """Threads that were started with one of these functions, and are in it."""
    process = session.process
    table = find_moves(session.agent) if session.agent is not None else None
    led = {int(row.slot): int(row.back) for row in table.led_here()} if table is not None else {}
    codes = [LoopCode(function.function, function.home, function.ranges) for function in functions]
    finder = LoopFinder(process, unwinder_of(session), codes, led)
    maps = process.maps()
    for thread in threads:
        block = thread_pointer(process, thread.tid, maps)
        place = finder.find(thread, block) if block is not None else None
        if place is not None:
            yield thread, functions[place.loop]


def _refusal(pid: int, thread: ThreadState, function: StartFunction) -> Reason:
    name = function.function
    ends = "never returns" if function.endless else "did not return in time"
    text = (
        f"process {pid}: thread {thread.tid} ({thread.name}) is in {name}, the function that it was started with, "
        f"which has changed and {ends}; nothing says how the thread is to leave it: write a loop profile for {name} "
        f"(--profile, see docs/loops.md), compile a safe point into it (hotupgrade.h), or leave that change out"
    )
    return Reason("loop-without-profile", name, text)
