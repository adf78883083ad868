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
    for _ in range(2):  # flows learn from revalidators what passed; the round that is under way may have begun too soon
        switch.appctl("revalidator/wait")
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
    then, now = before.baseline, after.baseline
    facts = {fact.name: fact.ok for fact in baseline.compare(then, now)}
    facts |= {
        "packets counted by flows": went_on(then.flow_packets, now.flow_packets, passed),
        "packets counted by ports": went_on(then.port_packets, now.port_packets, 2 * passed),  # in, and out
        "packets counted by polling threads": went_on(then.pmd_packets, now.pmd_packets, passed),
    }
    if not then.pmd_packets:  # without DPDK nothing polls
        del facts["packets counted by polling threads"]
    return facts | {
        "megaflows": went_on(before.megaflows, after.megaflows, passed),
        "tracked connections": before.connections <= after.connections,
        "controller connection": before.session.went_on(after.session),
    }


def went_on(before: Mapping[str, int], after: Mapping[str, int], passed: int) -> bool:
    """Whether these counters went on from where they were.

    One that began anew may be larger than before, and a megaflow that was thrown away is made anew by the next packet,
    in the same words; but then what passed meanwhile is not in the difference.
    """
    back = any(after.get(key, -1) < count for key, count in before.items())
    gained = sum(after.get(key, 0) - count for key, count in before.items())
    return not back and gained >= passed
