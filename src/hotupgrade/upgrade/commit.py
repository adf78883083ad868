"""What an upgrade and a rollback share: open the pages, stop, switch ledgers, close the pages, verify."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from hotupgrade.errors import HotUpgradeError, NotNow, Reason
from hotupgrade.target.agent import (
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    SYS_CLOSE,
    SYS_MMAP,
    SYS_MUNMAP,
    Agent,
    Operation,
    system_call,
)
from hotupgrade.target.backtrace import Region, Unwinder
from hotupgrade.target.images import touch
from hotupgrade.target.maps import PAGE, mapping_at
from hotupgrade.target.request import Bystander, Forbidden, Hook, Mover, StopReport, StopRequest, Word
from hotupgrade.target.scratch import Scratch
from hotupgrade.target.stop import Stopper, table_size
from hotupgrade.target.suspended import coroutines
from hotupgrade.upgrade.ledger import Ledger, encode
from hotupgrade.upgrade.recover import LEDGER_NAME
from hotupgrade.upgrade.session import Session
from hotupgrade.upgrade.words import mappings_of, pages


@dataclass(frozen=True)
class Change:
    """Words to be replaced in one stop, where no thread may stand meanwhile, and calls to be made right after."""

    data: Sequence[Word]
    code: Sequence[Word]
    forbidden: Sequence[Forbidden]
    hooks: Sequence[Hook] = ()
    after: Sequence[Operation] = ()

    @property
    def words(self) -> list[Word]:
        return [*self.data, *self.code]

    def numbers(self) -> dict[str, int]:
        """The ``edits`` of a document."""
        words = self.words
        return {"count": len(words), "bytes": 8 * len(words), "pages": len(pages(words))}


def unwinder_of(session: Session) -> Unwinder:
    """Walks stacks of the process, through the code of all upgrades."""
    images = [image for module in session.ledger.modules for image in module.images if image.start]
    regions = [Region(i.start, i.start + i.size, i.eh_frame) for i in images if i.eh_frame]
    return Unwinder(session.process, session.modules, regions)


def scratch_size(session: Session, change: Change, calls: int = 0) -> int:
    """Working memory for this change, and for as many calls of loops that are to come by the agent."""
    process = session.process
    words = len(change.words) + 1 + 2 * calls
    tables = table_size(len(process.thread_ids()), len(process.maps()), words, len(change.forbidden), len(change.hooks))
    return 2 * tables + 16 * (len(pages(change.words)) + 2 * calls) + 65536


class Commit:
    """One stop that puts a change and a new ledger in force together."""

    def __init__(
        self, session: Session, agent: Agent, scratch: Scratch, change: Change, mover: Mover | None = None
    ) -> None:
        self._mover = mover
        self._session = session
        self._agent = agent
        self._scratch = scratch
        self._change = change
        self._closing: list[Operation] = []
        self._stopper = Stopper(
            agent, session.clocks, scratch, len(change.words) + 1, len(change.forbidden), len(change.hooks)
        )
        self._coroutines = coroutines(session.modules)
        self._unwinder = unwinder_of(session)
        self._old_ledger = agent.get("ledger")
        self._ledger_at = self._ledger_room = 0

    def prepare(self, ledger: Ledger) -> None:
        """Make the pages writable and present, and put the new ledger into the target, not yet in force."""
        process = self._session.process
        opening, self._closing = self._scratch.open_for_writing(mappings_of(process.maps(), self._change.words))
        operations = [*opening, *touch(self._scratch, pages(self._change.words), write=True)]
        results = self._agent.run(opening)
        self._agent.check(opening, results)
        if len(operations) > len(opening):
            self._agent.run(operations[len(opening) :])
        body = encode(ledger)
        # Two places of equal size: the second takes the record of how long the break was.
        self._ledger_room = -(-(len(body) + 4096) // PAGE) * PAGE
        descriptor = self._agent.create_file(LEDGER_NAME, [(0, body)], 2 * self._ledger_room)
        mapping = system_call(SYS_MMAP, 0, 2 * self._ledger_room, PROT_READ | PROT_WRITE, MAP_PRIVATE, descriptor, 0)
        results = self._agent.run([mapping, system_call(SYS_CLOSE, descriptor, fatal=False)])
        self._agent.check([mapping], results[:1])
        self._ledger_at = results[0]

    def empty_stop(self, timeout: float) -> StopReport:
        """The same stop, with all its checks, without any edit: the control."""
        mover = None if self._mover is None else Bystander(self._mover)
        request = StopRequest(
            forbidden=self._change.forbidden, coroutines=self._coroutines, unwinder=self._unwinder, mover=mover
        )
        return self._stopper.stop(request, timeout)

    def stop(self, timeout: float) -> StopReport:
        """Replace.  Raises NotNow, with nothing changed, if it was not possible in time."""
        change = self._change
        switch = Word(self._agent.field_address("ledger"), self._old_ledger, self._ledger_at)
        code = [*change.code, switch]
        request = StopRequest(
            change.data,
            code,
            change.forbidden,
            change.hooks,
            self._coroutines,
            change.after,
            self._unwinder,
            self._mover,
        )
        return self._stopper.stop(request, timeout)

    @property
    def in_force(self) -> bool:
        """Whether the commit was made: the ledger is switched with it, by the same loop of stores."""
        try:
            return bool(self._ledger_at) and self._agent.get("ledger") == self._ledger_at
        except (NotNow, ValueError):
            return False  # the process is gone

    def finish(self, timeout: float) -> Reason | None:
        """Tidy up after the commit, for as long as it takes up to ``timeout`` seconds.

        Returns:
            None, or a note: what was left to the next command.
        """
        limit = time.monotonic() + timeout
        while True:
            try:
                self.close(committed=True)
                return None
            except NotNow as problem:
                if time.monotonic() > limit or problem.reason.code == "no-such-process":
                    text = f"it is done, but not tidied up, which the next command does: {problem.reason.text}"
                    return Reason("unfinished", problem.reason.subject, text)
            time.sleep(0.01)

    def verify(self) -> None:
        """Read every word back.

        Raises:
            HotUpgradeError: one is not what the plan says; the change is in force, but something else changes this
            process.
        """
        process = self._session.process
        for word in self._change.words:
            if process.read_word(word.address) != word.new:
                raise HotUpgradeError(
                    f"the word at {word.address:#x} is not what was written there: something else changes it"
                )

    def record(self, ledger: Ledger) -> None:
        """Replace the ledger in force by one that says more, by a single store."""
        body = encode(ledger)
        if len(body) <= self._ledger_room:
            self._session.process.write(self._ledger_at + self._ledger_room, body)
            self._agent.set(ledger=self._ledger_at + self._ledger_room)

    def close(self, *, committed: bool) -> None:
        """Put page protections back and give back the ledger that is not in force."""
        operations = list(self._closing)
        if committed and self._old_ledger:
            mapping = mapping_at(self._session.process.maps(), self._old_ledger)
            if mapping is not None and mapping.path.startswith(f"/memfd:{LEDGER_NAME}"):
                operations.append(system_call(SYS_MUNMAP, mapping.start, mapping.size, fatal=False))
        elif not committed and self._ledger_at:
            operations.append(system_call(SYS_MUNMAP, self._ledger_at, 2 * self._ledger_room, fatal=False))
        if operations:
            self._agent.run(operations)


def elapsed_us(since: float) -> float:
    return (time.monotonic() - since) * 1e6
