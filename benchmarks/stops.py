"""Upgrades, rollbacks and empty stops of one process, made with the engine itself, and when exactly they happened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hotupgrade.binary.cache import Cache
from hotupgrade.errors import NotNow
from hotupgrade.plan.options import PlanOptions
from hotupgrade.target import abi
from hotupgrade.target import agent as agents
from hotupgrade.target.clock import ticks_per_us
from hotupgrade.target.process import Process
from hotupgrade.target.request import StopRequest
from hotupgrade.target.scratch import Scratch
from hotupgrade.target.stop import Stopper, table_size
from hotupgrade.upgrade import documents
from hotupgrade.upgrade.perform import Settings
from hotupgrade.upgrade.perform import upgrade as perform
from hotupgrade.upgrade.rollback import rollback as undo
from hotupgrade.upgrade.session import Session
from hotupgrade.vswitch.cores import own_cores_kept

Document = dict[str, Any]
TIMEOUT = 10.0
TRIES = 3


@dataclass(frozen=True)
class Target:
    """A process and the builds that it alternates between.

    What was not possible at a moment (on a crowded machine a thread may be late) is tried again, and noted.
    """

    pid: int
    files: Sequence[Path]
    cache: Cache
    failures: list[str] = field(default_factory=list)
    profiles: tuple[Path, ...] = ()  # of loops, beside those that come with the package

    def upgrade(self, options: PlanOptions | None = None, *, measure_empty: bool = True) -> Document:
        settings = Settings(options or PlanOptions(), TIMEOUT, measure_empty=measure_empty, profiles=self.profiles)
        document = self._tried(lambda: perform(self.pid, self.files, {}, settings, self.cache))
        if document["outcome"] != "done":
            raise RuntimeError(f"the upgrade was not made: {document['outcome']} {document['reasons']}")
        return document

    def rollback(self) -> Document:
        return self._tried(lambda: undo(self.pid, TIMEOUT))

    def empty_stop(self) -> Document:
        """A stop that changes nothing, on its own; the fields of an upgrade that have to do with stopping."""
        return self._tried(self._empty_stop)

    def _empty_stop(self) -> Document:
        with Session(self.pid, exclusive=True) as session:
            agent = session.require_agent(TIMEOUT)
            size = table_size(len(session.process.thread_ids()), len(session.process.maps()), 1, 1)
            with Scratch(agent, 2 * size + 65536) as scratch:
                report = Stopper(agent, session.clocks, scratch, 1, 0).stop(StopRequest(), TIMEOUT)
            return documents.stopped(report, 0.0, 0.0)

    def _tried(self, action: Callable[[], Document]) -> Document:
        for _ in range(TRIES - 1):
            try:
                with own_cores_kept():
                    return action()
            except NotNow as error:
                self.failures.append(str(error))
        with own_cores_kept():
            return action()

    def moment_of(self, document: Document, tid: int) -> int:
        """A tick of the time-stamp counter at which the process's last stop certainly held a thread."""
        thread = next(row for row in document["threads"] if row["tid"] == tid)
        with Session(self.pid, exclusive=False) as session:
            rate = ticks_per_us(session.clocks)
        with Process(self.pid) as process:
            agent = agents.find(process)
            assert agent is not None, "a process that was stopped holds the agent"
            begin = int(agent.mailbox().stamps[abi.Stamp.BEGIN])
        return begin + int((thread["parked_us"] + thread["released_us"]) / 2 * rate)


def breaks(document: Document, *, busy: bool) -> list[float]:
    """Each thread's own break, of the busy ones or of the sleepers."""
    return [row["break_us"] for row in document["threads"] if row["busy"] == busy and row["how"] != "absent"]
