"""A small program of our own that is compiled, started, and answers one line with one line."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import Self

FLAGS = ("-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread")


def compile_c(*words: str) -> None:
    done = subprocess.run(["gcc", *FLAGS, *words], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise RuntimeError(f"gcc {' '.join(words)}:\n{done.stderr}")


class Program:
    """The program, running; leaving the context ends it.  It says ``ready`` when it is."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        try:
            if self._line() != "ready":
                raise RuntimeError("the small program did not start")
            self.ready()
        except BaseException:
            self.end()
            raise

    def ready(self) -> None:
        """What is to be asked at first."""

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, *words: object) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        return self._line()

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait(10)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the small program ended with {self._process.wait(10)}")
        return line.strip()
