"""Child processes with bounded lives: started so that they die with us, ended by their own process id."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from hotupgrade.errors import NotNow, Reason

# The kernel kills the child when the thread that started it ends, however it ends.
DIE_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")


def start_time(pid: int) -> int | None:
    """When ``pid`` started, in ticks since boot: id and start name a process for good.  None if it is gone."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(status.rpartition(")")[2].split()[19])


def owner_is_gone(words: str) -> bool:
    """Whether ``<pid>-<start>`` at the beginning of a name (see :func:`owner`) is a process that has ended."""
    match = re.match(r"(\d+)-(\d+)-", words)
    return match is not None and start_time(int(match[1])) != int(match[2])


def owner() -> str:
    """This process, in a form that can be part of a file's name."""
    return f"{os.getpid()}-{start_time(os.getpid())}"


def in_network_of(pid: int) -> tuple[str, ...]:
    """What, put before a command, runs it in the network namespace of a process."""
    return ("nsenter", f"--net=/proc/{pid}/ns/net", "--")


def spawn(
    command: Sequence[str | Path],
    environment: Mapping[str, str],
    output: IO[bytes],
    *,
    own_network: bool = False,
    network_of: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``command``; the process id is that of the command itself, the wrappers have become it.

    ``network_of``: a process whose network namespace it joins; it takes precedence over ``own_network``.
    Call from a thread that outlives the child: see :data:`DIE_WITH_US`.
    """
    network: tuple[str, ...] = ("unshare", "--net", "--") if own_network else ()
    if network_of is not None:
        network = in_network_of(network_of)
    wrapped = [*DIE_WITH_US, *network, *map(str, command)]
    return subprocess.Popen(
        wrapped, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/"
    )


def end(process: subprocess.Popen[bytes], patience: float = 5.0) -> None:
    """Ask the process to end, then make it end."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(patience)


def wait_until(condition: Callable[[], bool], seconds: float, waiting_for: str, pause: float = 0.02) -> None:
    """Poll ``condition`` until it holds; :class:`NotNow` if it does not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise NotNow(Reason("time-limit", waiting_for, f"waited {seconds:g} s for {waiting_for} in vain"))
        time.sleep(pause)
