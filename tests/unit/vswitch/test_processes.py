"""Children with bounded lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hotupgrade.errors import NotNow
from hotupgrade.vswitch.processes import end, owner, owner_is_gone, spawn, start_time, wait_until

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
)


def start(tmp_path: Path, *command: str) -> subprocess.Popen[bytes]:
    with (tmp_path / "output").open("wb") as output:
        return spawn(command, os.environ, output)


def test_the_id_is_that_of_the_command(tmp_path: Path) -> None:
    process = start(tmp_path, "sleep", "60")
    try:
        comm = Path(f"/proc/{process.pid}/comm")
        wait_until(lambda: comm.read_text() == "sleep\n", 5, "the command to run")
    finally:
        end(process)
    assert process.returncode == -signal.SIGTERM
    end(process)  # again, without effect


def test_a_process_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    process = start(tmp_path, sys.executable, "-c", STUBBORN)
    wait_until(lambda: b"ready" in (tmp_path / "output").read_bytes(), 10, "the program")
    end(process, patience=0.1)
    assert process.returncode == -signal.SIGKILL


def test_waiting_is_bounded() -> None:
    begin = time.monotonic()
    with pytest.raises(NotNow, match=r"waited 0\.1 s for a miracle in vain"):
        wait_until(lambda: False, 0.1, "a miracle")
    assert time.monotonic() - begin < 1


def test_owners() -> None:
    assert start_time(os.getpid()) is not None
    assert start_time(999999999) is None
    assert not owner_is_gone(f"{owner()}-rest")
    assert owner_is_gone("999999999-1-rest")
    assert owner_is_gone(f"{os.getpid()}-1-rest")  # the id was used again
    assert not owner_is_gone("something else")
