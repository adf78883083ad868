"""1,000 idle TCP sessions through connection tracking: which of them still work afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hotupgrade.errors import HotUpgradeError
from hotupgrade.vswitch.compare.application import Application, Figure
from hotupgrade.vswitch.compare.hosts import GUARDED, Hosts
from hotupgrade.vswitch.compare.remote import Remote, remote

Document = dict[str, Any]
SESSIONS = 1000
#: How long an answer may take.  TCP sends a segment that is lost again after 0.2, 0.6, 1.4, 3 and 6.2 s.
LIMIT_S = 8.0


@contextmanager
def _run(hosts: Hosts, _: Path) -> Iterator[Callable[[], Document]]:
    with remote(hosts.server, "sessions") as server, remote(hosts.client, "sessions") as client:
        server.ask("listen", address=hosts.server.address, port=GUARDED)
        client.ask("open", address=hosts.server.address, port=GUARDED, count=SESSIONS)
        before = client.ask("ask", first=0, step=1, limit_s=LIMIT_S)
        if before["answered"] != SESSIONS:
            raise HotUpgradeError(f"sessions do not even work before anything was done: {before}")
        yield lambda: _speak(client, server)


def _speak(client: Remote, server: Remote) -> Document:
    """On every other session the client speaks first, on the rest the server: to a rule set that is not the same."""
    by_side = {
        "client": client.ask("ask", first=0, step=2, limit_s=LIMIT_S),
        "server": server.ask("ask", first=1, step=2, limit_s=LIMIT_S),
    }
    outcomes = {name: sum(side[name] for side in by_side.values()) for name in ("answered", "reset", "hung")}
    return {
        **outcomes,
        "failed_client": by_side["client"]["reset"] + by_side["client"]["hung"],
        "failed_server": by_side["server"]["reset"] + by_side["server"]["hung"],
        "by_first_speaker": by_side,
    }


IDLE = Application(
    "idle",
    f"{SESSIONS:,} idle TCP sessions through connection tracking; afterwards one end of each speaks",
    (
        Figure("answered", "answered"),
        Figure("reset", "reset"),
        Figure("hung", f"no answer in {LIMIT_S:g} s"),
        Figure("failed_client", "failed, client speaks first"),
        Figure("failed_server", "failed, server speaks first"),
    ),
    _run,
    lasts=False,
    flows=True,
)
