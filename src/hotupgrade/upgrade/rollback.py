"""Take the last commit back, with the same break: the same words, with the bytes that were there before."""

from __future__ import annotations

import contextlib
import time

import msgspec

from hotupgrade.errors import HotUpgradeError, NotNow, Reason, Refused
from hotupgrade.target.agent import call
from hotupgrade.target.request import Forbidden, Hook, StopReport, Word
from hotupgrade.target.scratch import Scratch
from hotupgrade.upgrade import documents, journal
from hotupgrade.upgrade.commit import Change, Commit, elapsed_us, scratch_size
from hotupgrade.upgrade.documents import Document
from hotupgrade.upgrade.ledger import Generation, Ledger, read_ledger, unpack_words
from hotupgrade.upgrade.recover import recover
from hotupgrade.upgrade.session import Session
from hotupgrade.upgrade.trust import own_folder
from hotupgrade.upgrade.words import reverse


def rollback(pid: int, timeout: float = 10.0) -> Document:
    """Return a process to the generation before the one in force.

    Raises:
        Refused: it was never upgraded, or everything is taken back already.
        NotNow: not possible now; the target is unchanged.
    """
    begin = time.monotonic()
    with Session(pid, exclusive=True) as session:
        if session.agent is None or not session.ledger.generations:
            raise Refused(
                Reason(
                    "nothing-to-roll-back",
                    str(pid),
                    f"process {pid} runs what it started with; there is nothing to roll back",
                )
            )
        own_folder(journal.state_folder())
        recover(session.require_agent(timeout), session.ledger, session.modules)
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
        report, change, prepare_us, cleanup_us = _undo(session, generation, timeout, begin)
        document = documents.head("rollback", pid, session.process.name)
        after = _without_last(session.ledger)
        document |= {
            "from_generation": generation.number,
            "generation": after.generation,
            "reasons": [],
            "modules": [{"name": m.name, "build_id": _build_in_force(after, m.name)} for m in generation.modules],
            **documents.stopped(report, prepare_us, cleanup_us),
            "edits": change.numbers(),
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


def _undo(
    session: Session, generation: Generation, timeout: float, begin: float
) -> tuple[StopReport, Change, float, float]:
    agent = session.require_agent(timeout)
    change = Change(
        reverse([Word(*word) for word in unpack_words(generation.data)]),
        reverse([Word(*word) for word in unpack_words(generation.code)]),
        [Forbidden(low, high, name) for low, high, name in generation.forbidden],
        [Hook(call(address, *arguments), name) for address, arguments, name in generation.hooks],
    )
    with Scratch(agent, scratch_size(session, change)) as scratch:
        commit = Commit(session, agent, scratch, change)
        try:
            commit.prepare(_without_last(session.ledger))
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
    return report, change, prepare_us, elapsed_us(after)


def _without_last(ledger: Ledger) -> Ledger:
    """The ledger after the rollback: the images stay, as old frames may still run in them and a later upgrade uses
    them."""
    last = ledger.generations[-1]
    previous = {item.name: item.previous for item in last.modules}
    modules = [msgspec.structs.replace(m, current=previous.get(m.name, m.current)) for m in ledger.modules]
    return msgspec.structs.replace(ledger, modules=modules, generations=ledger.generations[:-1])


def _build_in_force(ledger: Ledger, name: str) -> str:
    return next((m.images[m.current].build_id for m in ledger.modules if m.name == name), "")
