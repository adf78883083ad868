"""A process that sleeps in sigsuspend() alone, as the master of nginx does."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from live.conftest import Start
from live.harness import SOURCES, Builder, HotUpgrade, Program, until

SOURCE = str(SOURCES / "suspended.c")


def built(build: Builder, version: int) -> Path:
    """The program in one version; all versions under one name."""
    folder = build.directory / f"suspended-v{version}"
    folder.mkdir(exist_ok=True)
    words = ["gcc", "-O2", "-g", "-fPIE", "-pie", f"-DVERSION={version}", SOURCE, "-o", str(folder / "suspended")]
    subprocess.run(words, check=True, timeout=60)
    return folder / "suspended"


def told(program: Program) -> dict[str, str]:
    os.kill(program.pid, signal.SIGUSR2)
    return dict(word.split("=") for word in program._line(10).split())


def asleep(program: Program) -> bool:
    return Path(f"/proc/{program.pid}/syscall").read_text().startswith("130 ")


def test_sigsuspend_goes_on(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """No signal is lost, no mask is changed, and the call fails only when a signal came."""
    one, two = (built(build, version) for version in (1, 2))
    program = start(one)
    until(lambda: asleep(program))
    steps = (2, lambda: hu.upgraded(program, two)), (1, lambda: hu.rolled_back(program))
    for sent, (version, step) in enumerate(steps, start=1):
        os.kill(program.pid, signal.SIGUSR1)
        until(lambda: asleep(program))
        step()
        until(lambda: asleep(program))
        assert told(program) == {"version": str(version), "count": str(sent), "wrong": "0"}
    os.kill(program.pid, signal.SIGTERM)
    assert program.process.wait(10) == 0
