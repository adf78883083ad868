"""Take the last commit back, with the same break: the same words, with the bytes that were there before."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from hotupgrade.errors import HotUpgradeError, NotNow, Reason, Refused
from hotupgrade.target.agent import call
from hotupgrade.target.moves import bring_moves
from hotupgrade.target.process import Process
from hotupgrade.target.request import Forbidden, Hook, StopReport, Word
from hotupgrade.target.scratch import Scratch
from hotupgrade.upgrade import documents, journal
from hotupgrade.upgrade.commit import Change, Commit, elapsed_us, scratch_size, unwinder_of
from hotupgrade.upgrade.documents import Document
from hotupgrade.upgrade.ledger import Generation, Ledger, Unsettled, read_ledger, unpack_words
from hotupgrade.upgrade.recover import recover
from hotupgrade.upgrade.restart import Restart, ThreadRestart, failures, side_in_force, with_loops
from hotupgrade.upgrade.session import Session
from hotupgrade.upgrade.settle import settle
from hotupgrade.upgrade.trust import own_folder
from hotupgrade.upgrade.words import reverse

#: How long sleepers are waited for whose first call in the code in force is to be skipped, in seconds.
SLEEPERS_S = 1.0


def rollback(pid: int, timeout: float = 10.0) -> Document:
    """Return a process to the generation before the one in force.

    Raises:
        Refused: it was never upgraded, or everything is taken back already.
        NotNow: not possible now; the target is unchanged.
    """
    begin = time.monotonic()
    with Session(pid, exclusive=True) as session:
        if session.ledger.generations or session.ledger.unsettled is not None:
            own_folder(journal.state_folder())
            recover(session.require_agent(timeout), session.ledger, session.modules)
            settle(session, session.require_agent(timeout), timeout)
        if not session.ledger.generations:
            raise Refused(
                Reason(
                    "nothing-to-roll-back",
                    str(pid),
                    f"process {pid} runs what it started with; there is nothing to roll back",
                )
            )
        generation = session.ledger.generations[-1]
        if generation.one_way:
            raise Refused(
                Reason(
                    "no-way-back",
                    generation.one_way,
                    f"generation {generation.number} was reached by {generation.one_way}(), and its build brings "
                    "nothing that takes back what that did: the old code would find old state",
                )
            )
        done = _undo(session, generation, timeout, begin)
        document = documents.head("rollback", pid, session.process.name)
        after = session.ledger
        document |= {
            "from_generation": generation.number,
            "generation": after.generation,
            "reasons": [],
            "modules": [{"name": m.name, "build_id": _build_in_force(after, m.name)} for m in generation.modules],
            **documents.stopped(done.report, done.prepare_us, done.cleanup_us, done.restarted, done.settling),
            "edits": done.change.numbers(),
        }
        journal.append(
            {
                key: document[key]
                for key in ("time", "command", "pid", "name", "outcome", "generation", "modules", "break_us")
            }
        )
        return document


def in_force(problem: BaseException) -> HotUpgradeError:
    """The error for a commit that was made, though its stop did not end well: nothing may be taken away any more."""
    return HotUpgradeError(f"the change is in force (status says so), but not tidied up: {problem}")


def undo_last(session: Session, timeout: float) -> None:
    """Take back a commit that this very session made."""
    session.ledger = read_ledger(session.agent)
    _undo(session, session.ledger.generations[-1], timeout, time.monotonic())


@dataclass(frozen=True)
class _Done:
    report: StopReport
    change: Change
    prepare_us: float
    cleanup_us: float
    restarted: Sequence[ThreadRestart] = ()
    settling: StopReport | None = None


def _undo(session: Session, generation: Generation, timeout: float, begin: float) -> _Done:
    """Take a generation back; if a thread does not come along, put it in force again."""
    there = session.ledger
    done, restart = _switch(session, _undone(generation), _without_last(there), generation, timeout, begin)
    if restart is None:
        return done
    try:
        concluded = conclude(session, restart, timeout)
    except NotNow:
        redone = msgspec.structs.replace(there, unsettled=_unsettled(generation, last=False))
        try:
            _, again = _switch(
                session, _redone(session.process, generation), redone, generation, timeout, time.monotonic()
            )
            if again is not None:
                conclude(session, again, timeout)
        except NotNow as problem:
            raise in_force(problem) from problem
        raise
    return dataclasses.replace(done, restarted=concluded.restarted, settling=concluded.settling)


def _undone(generation: Generation) -> Change:
    return Change(
        reverse([Word(*word) for word in unpack_words(generation.data)]),
        reverse([Word(*word) for word in unpack_words(generation.code)]),
        [Forbidden(low, high, name) for low, high, name in generation.forbidden],
        [Hook(call(address, *arguments), name) for address, arguments, name in generation.hooks],
    )


def _redone(process: Process, generation: Generation) -> Change:
    """For a rollback that failed half-way: nothing but threads in loops has run in the old code, for a moment.

    Those that did not come along stand in the new code, and so where they should be.
    """
    left = [side for loop in generation.loops if (side := side_in_force(process, loop)) is not None]
    return Change(
        [Word(*word) for word in unpack_words(generation.data)],
        [Word(*word) for word in unpack_words(generation.code)],
        [Forbidden(low, high, "a loop") for side in left for low, high in side.ranges],
    )


def _switch(
    session: Session, plain: Change, ledger: Ledger, generation: Generation, timeout: float, begin: float
) -> tuple[_Done, Restart | None]:
    agent = session.require_agent(timeout)
    change, restart = plain, None
    if generation.loops:
        restart = Restart(agent, bring_moves(agent), generation.loops, unwinder_of(session), session.clocks)
        change = dataclasses.replace(
            plain, code=restart.arming(plain.code), forbidden=with_loops(plain.forbidden, generation.loops)
        )
    with Scratch(agent, scratch_size(session, change)) as scratch:
        commit = Commit(session, agent, scratch, change, restart)
        try:
            commit.prepare(ledger)
            prepare_us = elapsed_us(begin)
            report = commit.stop(timeout)
        except BaseException as problem:
            if commit.in_force:
                raise in_force(problem) from problem
            with contextlib.suppress(NotNow):
                commit.close(committed=False)
            raise
        after = time.monotonic()
        commit.finish(timeout)
        commit.verify()
    session.ledger = ledger
    return _Done(report, plain, prepare_us, elapsed_us(after)), restart


@dataclass(frozen=True)
class Conclusion:
    """What became of the threads, and the further stop that settled; or a note that it is left to the next command."""

    restarted: Sequence[ThreadRestart] = ()
    settling: StopReport | None = None
    notes: tuple[Reason, ...] = ()


def conclude(session: Session, restart: Restart, timeout: float) -> Conclusion:
    """After the stop: see what became of the threads, and settle.

    Raises:
        NotNow: a thread did not come along; what it was asked for is taken back, the code in force is not.
    """
    restart.finish()
    restart.wait_for_sleepers(SLEEPERS_S)
    threads = restart.outcome()
    wrong = list(failures(session.process.pid, threads))
    if wrong:
        raise NotNow(wrong[0])
    try:
        return Conclusion(threads, settle(session, session.require_agent(timeout), timeout))
    except NotNow as problem:
        text = (
            "it is done, but calls in restarted loops still come by the agent, which costs some nanoseconds each; the "
            f"next command settles that: {problem.reason.text}"
        )
        return Conclusion(threads, None, (Reason("unsettled", problem.reason.subject, text),))


def _without_last(ledger: Ledger) -> Ledger:
    """The ledger after the rollback: the images stay, as old frames may still run in them and a later upgrade uses
    them."""
    last = ledger.generations[-1]
    previous = {item.name: item.previous for item in last.modules}
    modules = [msgspec.structs.replace(m, current=previous.get(m.name, m.current)) for m in ledger.modules]
    return msgspec.structs.replace(
        ledger, modules=modules, generations=ledger.generations[:-1], unsettled=_unsettled(last, last=True)
    )


def _unsettled(generation: Generation, *, last: bool) -> Unsettled | None:
    return Unsettled(loops=generation.loops, stubs=generation.stubs, last=last) if generation.stubs else None


def _build_in_force(ledger: Ledger, name: str) -> str:
    return next((m.images[m.current].build_id for m in ledger.modules if m.name == name), "")
