"""Hot upgrades and roll-backs of a switch, many of them, with what the tool itself measured.

They are made by the engine in this process, where what was read of the builds stays at hand: a command anew each time
would take more of a small machine than the upgrade itself, and change nothing of the break.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from hotupgrade.binary.cache import default_cache
from hotupgrade.errors import HotUpgradeError, NotNow
from hotupgrade.upgrade.perform import Settings
from hotupgrade.upgrade.perform import upgrade as perform
from hotupgrade.upgrade.rollback import rollback
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.compare.cores import others
from hotupgrade.vswitch.cores import own_cores_kept
from hotupgrade.vswitch.demo import LIBRARIES
from hotupgrade.vswitch.switch import Switch

Document = dict[str, Any]
_TRIES, _TIMEOUT_S, _PAUSE_S = 5, 10.0, 0.2


def upgrade(switch: Switch, build: SwitchBuild) -> Document:
    """Bring both libraries of ``build`` in; the document of the upgrade.

    Raises:
        HotUpgradeError: it was refused, or failed.
    """
    files = [build.library(name) for name in LIBRARIES]
    document = _patiently(lambda: perform(switch.pid, files, {}, Settings(timeout=_TIMEOUT_S), default_cache()))
    if document["outcome"] != "done":
        raise HotUpgradeError(f"the upgrade was not made: {document['outcome']} {document['reasons']}")
    return document


def roll_back(switch: Switch) -> Document:
    """Back to the code before the last upgrade; the document of the roll-back.

    Raises:
        HotUpgradeError: it failed.
    """
    return _patiently(lambda: rollback(switch.pid, _TIMEOUT_S))


def _patiently(action: Callable[[], Document]) -> Document:
    """The document; what is not possible now is tried again, since nothing has happened: ``tries`` is how often."""
    for attempt in range(1, _TRIES):
        with suppress(NotNow), _aside():
            return action() | {"tries": attempt}
        time.sleep(_PAUSE_S)
    with _aside():
        return action() | {"tries": _TRIES}


@contextmanager
def _aside() -> Iterator[None]:
    """This process keeps off the cores of those that poll."""
    with own_cores_kept():
        os.sched_setaffinity(0, others())
        yield


@contextmanager
def held(processes: Sequence[int]) -> Iterator[None]:
    """Processes of ours stand still meanwhile: two switches that poll would take one another's processor."""
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in processes:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
