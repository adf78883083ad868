"""The controlling side of :mod:`hotupgrade.vswitch.compare.programs`: a program in a host's namespace that obeys."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hotupgrade.errors import NotNow, Reason
from hotupgrade.vswitch.compare.cores import aside
from hotupgrade.vswitch.compare.hosts import Host
from hotupgrade.vswitch.processes import DIE_WITH_US, end, in_network_of

Document = dict[str, Any]
_PROGRAMS = "hotupgrade.vswitch.compare.programs"


@dataclass(frozen=True, slots=True)
class Remote:
    """A program that runs; made by :func:`remote`."""

    name: str
    _process: subprocess.Popen[str]

    def ask(self, do: str, **words: Any) -> Document:
        """Have it carry out one command; its answer.

        Raises:
            NotNow: it has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **words}) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self._ended() from None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer: Document = json.loads(line)
        return answer

    def _ended(self) -> NotNow:
        return NotNow(Reason("program", self.name, f"the program '{self.name}' of a host ended: see its words above"))


@contextmanager
def remote(host: Host, name: str) -> Iterator[Remote]:
    """The program of that name, in the namespace of ``host``; it ends with the context."""
    place = in_network_of(host.namespace.pid)
    words = [*DIE_WITH_US, *aside(), *place, sys.executable, "-m", f"{_PROGRAMS}.{name}"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    try:
        yield Remote(name, process)
    finally:
        end(process)  # type: ignore[arg-type]  # text or bytes: nothing is read
