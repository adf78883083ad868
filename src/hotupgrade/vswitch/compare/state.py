"""What a switch knows at one moment, and which of it a later moment still has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotupgrade.vswitch import baseline
from hotupgrade.vswitch.connections import connections, without_time

if TYPE_CHECKING:
    from hotupgrade.vswitch.baseline import Baseline
    from hotupgrade.vswitch.compare.controller import Controller, Session
    from hotupgrade.vswitch.switch import Switch


@dataclass(frozen=True, slots=True)
class State:
    """Beside what :mod:`hotupgrade.vswitch.baseline` looks at."""

    baseline: Baseline
    megaflows: Mapping[str, int]
    connections: frozenset[str]
    session: Session


def take(switch: Switch, controller: Controller) -> State:
    """Read the switch; the traffic goes on meanwhile."""
    return State(
        baseline.take(switch),
        switch.megaflows(),
        without_time(connections(switch)),
        controller.session(),
    )


def kept(before: State, after: State, passed: int) -> dict[str, bool]:
    """By the name of each fact whether it still holds; a counter is kept if it has gone on.

    ``passed``: packets that went through the switch in between.
    """
    facts = {fact.name: fact.ok for fact in baseline.compare(before.baseline, after.baseline)}
    if not before.baseline.pmd_packets:  # without DPDK nothing polls
        del facts["packets counted by polling threads"]
    return facts | {
        "megaflows": went_on(before.megaflows, after.megaflows, passed),
        "tracked connections": before.connections <= after.connections,
        "controller connection": before.session.went_on(after.session),
    }


def went_on(before: Mapping[str, int], after: Mapping[str, int], passed: int) -> bool:
    """Whether the megaflows are those of before.  One that was thrown away and made anew by the next packet looks the
    same; but what passed meanwhile is not in the difference of its counts."""
    gained = sum(after.get(flow, 0) - packets for flow, packets in before.items())
    return before.keys() <= after.keys() and gained >= passed
