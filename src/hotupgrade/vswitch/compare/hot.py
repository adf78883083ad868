"""Hot upgrades and roll-backs of a switch by the command, with what the command itself measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hotupgrade.errors import HotUpgradeError
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.demo import LIBRARIES
from hotupgrade.vswitch.switch import Switch

Document = dict[str, Any]
POLLING = "pmd-"
_ATTEMPTS, _LIMIT_S, _PAUSE_S = 5, 120.0, 0.2
_NOT_NOW = 4  # exit code


def upgrade(switch: Switch, build: SwitchBuild) -> Document:
    """Bring both libraries of ``build`` in; the command's document.

    Raises:
        HotUpgradeError: it was refused, or failed.
    """
    return _command("upgrade", str(switch.pid), *(str(build.library(name)) for name in LIBRARIES))


def roll_back(switch: Switch) -> Document:
    """Back to the code before the last upgrade; the command's document.

    Raises:
        HotUpgradeError: it failed.
    """
    return _command("rollback", str(switch.pid))


def polling_break_us(document: Document) -> float:
    """The longest break of a thread that polls ports, by its own clock, in µs: what traffic sees.

    ``busy_max`` of the document also counts threads that only happened to be at work when the stop began.

    Raises:
        HotUpgradeError: no thread polls.
    """
    breaks: list[float] = [row["break_us"] for row in polling(document)]
    if not breaks:
        raise HotUpgradeError("no polling thread was stopped: has the switch ports that are polled?")
    return max(breaks)


def polling(document: Document) -> Iterator[Document]:
    """What the document says of each polling thread."""
    return (row for row in document["threads"] if row["name"].startswith(POLLING) and row["how"] != "absent")


def _command(*words: str) -> Document:
    """The document; where it says "not now" it is asked again, since nothing has happened; ``commands`` is how often it
    was asked."""
    said = ""
    for attempt in range(1, _ATTEMPTS + 1):
        command = [sys.executable, "-m", "hotupgrade.cli", *words, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S)
        if done.returncode == 0:
            document: Document = json.loads(done.stdout)
            if document["outcome"] == "done":
                return document | {"commands": attempt}
        said = done.stdout[-2000:] + done.stderr[-500:]
        if done.returncode != _NOT_NOW:
            break
        time.sleep(_PAUSE_S)
    raise HotUpgradeError(f"hotupgrade {' '.join(words)}: {said}")


@contextmanager
def held(processes: Sequence[int]) -> Iterator[None]:
    """Processes of ours stand still meanwhile: two switches that poll would take one another's processor."""
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)
