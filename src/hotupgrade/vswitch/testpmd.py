"""dpdk-testpmd on a terminal of its own: DPDK's program that forwards packets, asked and answered in words."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
import tty
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from hotupgrade.errors import NotNow, Reason
from hotupgrade.vswitch.processes import DIE_WITH_US, end
from hotupgrade.vswitch.started import Started

PROGRAM = "dpdk-testpmd"
PROMPT = "testpmd> "
QUIT_SECONDS = 3.0
# What testpmd says when it does not do what it is told.
COMPLAINTS = re.compile(r"Command not found|Bad arguments|Ambiguous command|Invalid |[Pp]lease stop|not started")


class Testpmd(Started):
    """A running dpdk-testpmd: a context manager, which is gone when the context is left.

    Its standard error goes to a file.  Start it from a thread that outlives it: its process ends with the thread that
    started it.
    """

    def __init__(
        self,
        command: Sequence[str],
        errors: Path,
        *,
        environment: Mapping[str, str] | None = None,
        start_timeout: float = 30.0,
        command_timeout: float = 10.0,
    ) -> None:
        """``command``: wrappers such as ``taskset``, which become what they start, then testpmd with its options."""
        self._words = tuple(command)
        self._errors_file = errors
        self._environment = environment
        self._start_timeout, self._command_timeout = start_timeout, command_timeout
        self._resources = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._terminal = -1

    def stop(self) -> None:
        """End the process; may be called at any time, and again."""
        if self.alive:
            self._quit()
        self._resources.close()
        self._process, self._terminal = None, -1

    @property
    def pid(self) -> int:
        assert self._process is not None, "testpmd has not been started"
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def command(self, words: str) -> str:
        """Have testpmd carry out one command; what it said.

        Raises:
            NotNow: it does not do what it is told, says nothing in time, or has ended.
        """
        os.write(self._terminal, words.encode() + b"\n")
        said = self._read_to_prompt(self._command_timeout, words)
        answer = said.partition("\n")[2]  # the first line is the command itself
        if COMPLAINTS.search(answer):
            raise NotNow(Reason("guest", words, f"{PROGRAM}: {words}: {answer.strip()}"))
        return answer

    def _start(self) -> None:
        """Returns when it waits for commands.

        Raises:
            NotNow: it is not installed, has ended while it started, or took too long.
        """
        if not shutil.which(PROGRAM):
            raise NotNow(Reason("guest", PROGRAM, f"there is no {PROGRAM}: install Debian's package dpdk-dev"))
        # On a terminal: testpmd holds back what it writes to a pipe.
        self._terminal, other = pty.openpty()
        self._resources.callback(os.close, self._terminal)
        tty.setraw(other)
        with self._errors_file.open("wb") as errors:
            command = [*DIE_WITH_US, *self._words]
            self._process = subprocess.Popen(
                command, stdin=other, stdout=other, stderr=errors, cwd="/", env=self._environment
            )
        os.close(other)
        self._resources.callback(end, self._process)
        self._read_to_prompt(self._start_timeout, "its start")

    def _quit(self) -> None:
        """In words: upon SIGTERM it would clean up within the signal's handler, whatever that interrupted."""
        os.write(self._terminal, b"quit\n")
        deadline = time.monotonic() + QUIT_SECONDS
        while self.alive and time.monotonic() < deadline:
            self._read_some()  # it says a lot, and would wait for a reader

    def _read_to_prompt(self, seconds: float, waiting_for: str) -> str:
        """What is said until the next prompt.  The command is echoed first, without a prompt before it.

        Behind the prompt may be what nobody asked for: that a link has changed, say.
        """
        said, deadline = "", time.monotonic() + seconds
        while PROMPT not in said:
            if not self.alive:
                raise NotNow(Reason("guest", PROGRAM, f"{PROGRAM} ended:\n{said[-1000:]}{self._errors()[-1000:]}"))
            if time.monotonic() > deadline:
                words = f"no answer to '{waiting_for}' within {seconds:g} s:\n{said[-1000:]}{self._errors()[-1000:]}"
                raise NotNow(Reason("guest", PROGRAM, f"{PROGRAM}: {words}"))
            said += self._read_some()
        return said.partition(PROMPT)[0]

    def _read_some(self) -> str:
        readable, _, _ = select.select([self._terminal], [], [], 0.1)
        if not readable:
            return ""
        try:
            return os.read(self._terminal, 65536).decode(errors="replace").replace("\r", "")
        except OSError:  # the other end is closed: the process is ending
            time.sleep(0.02)
            return ""

    def _errors(self) -> str:
        return self._errors_file.read_text(errors="replace")
