"""After threads were restarted: a further stop gives the calls of their loops back what they were.

Until then those calls come by the agent, which lets them pass.  That is right, but slower, and not what the file has.
"""

from __future__ import annotations

import msgspec

from hotupgrade.target.agent import Agent
from hotupgrade.target.images import unmap_image
from hotupgrade.target.request import Forbidden, StopReport
from hotupgrade.target.scratch import Scratch
from hotupgrade.upgrade.commit import Change, Commit, scratch_size
from hotupgrade.upgrade.ledger import read_ledger
from hotupgrade.upgrade.session import Session
from hotupgrade.upgrade.sites import given_back


def settle(session: Session, agent: Agent, timeout: float) -> StopReport | None:
    """Settle what the ledger says is not; None if there is nothing.

    Raises:
        NotNow: not within ``timeout`` seconds; the calls go on coming by the agent, and the next command tries again.
    """
    ledger = read_ledger(agent)
    session.ledger = ledger
    unsettled = ledger.unsettled
    if unsettled is None:
        return None
    words = given_back(session.process, unsettled.loops)
    forbidden = [Forbidden(start - 1, start + size, "the way to the agent") for start, size in unsettled.stubs]
    change = Change((), words, forbidden)
    with Scratch(agent, scratch_size(session, change)) as scratch:
        commit = Commit(session, agent, scratch, change)
        try:
            commit.prepare(msgspec.structs.replace(ledger, unsettled=None))
            report = commit.stop(timeout)
        except BaseException:
            if not commit.in_force:
                commit.close(committed=False)
            raise
        commit.finish(timeout)
        commit.verify()
    session.ledger = read_ledger(agent)
    if unsettled.last:
        agent.run([unmap_image(start, size) for start, size in unsettled.stubs])
    return report
