"""New connections at a steady rate, each of which the datapath has to ask about: an upcall for each direction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hotupgrade.errors import HotUpgradeError
from hotupgrade.vswitch.compare.application import Application, Figure
from hotupgrade.vswitch.compare.hosts import FRESH, Hosts
from hotupgrade.vswitch.compare.remote import remote
from hotupgrade.vswitch.compare.spread import median, percentile
from hotupgrade.vswitch.switch import Switch

Document = dict[str, Any]
PER_SECOND = 100
LIMIT_S = 8.0


@contextmanager
def _run(hosts: Hosts, _: Path) -> Iterator[Callable[[], Document]]:
    with remote(hosts.server, "dialer") as server, remote(hosts.client, "dialer") as client:
        server.ask("answer", address=hosts.server.address, port=FRESH)
        before, pid = _upcalls(hosts.switch), hosts.switch.pid
        client.ask("dial", address=hosts.server.address, port=FRESH, per_second=PER_SECOND, limit_s=LIMIT_S)

        def finish() -> Document:
            said = client.ask("halt")
            # The counters of a switch that was started anew are not those of before.
            upcalls = _upcalls(hosts.switch) - before if hosts.switch.pid == pid else None
            return read(said, upcalls)

        yield finish


def read(said: Document, upcalls: int | None) -> Document:
    """What became of the connections; ``upcalls`` is how many the datapath made meanwhile, if that is known.

    Raises:
        HotUpgradeError: not one connection was made.
    """
    times, failed = said["connect_ms"], said["failed"]
    if not times:
        raise HotUpgradeError(f"of {said['begun']} connections not one was made: {failed}")
    timeouts, resets = failed.get("timeout", 0) + failed.get("ETIMEDOUT", 0), failed.get("reset", 0)
    return {
        "begun": said["begun"],
        "timeouts": timeouts,
        "resets": resets,
        "errors": sum(failed.values()) - timeouts - resets,
        "kinds": failed,
        "median_ms": median(times),
        "p999_ms": percentile(times, 0.999),
        "max_ms": max(times),
        "upcalls_each": None if upcalls is None else upcalls / said["begun"],
    }


def _upcalls(switch: Switch) -> int:
    return sum(pmd.upcalls for pmd in switch.pmd_statistics())


FRESH_CONNECTIONS = Application(
    "fresh",
    f"{PER_SECOND} new TCP connections a second through connection tracking, each with megaflows of its own",
    (
        Figure("begun", "connections"),
        Figure("timeouts", f"not within {LIMIT_S:g} s"),
        Figure("resets", "reset"),
        Figure("errors", "other errors"),
        Figure("median_ms", "connect, median, ms", 2),
        Figure("p999_ms", "99.9th percentile, ms", 1),
        Figure("max_ms", "slowest, ms", 1),
        Figure("upcalls_each", "upcalls each", 1),
    ),
    _run,
    flows=True,
)
