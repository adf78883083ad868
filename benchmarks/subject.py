"""The small program that the curves are measured on: its library in two versions, and a way to talk to it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from program import Program, compile_c

SOURCE = Path(__file__).parent / "programs" / "subject.c"
SONAME = "libfunctions.so.1"


@dataclass(frozen=True)
class Builds:
    """The program and the two versions of its library, which differ in every function."""

    program: Path
    old: Path
    new: Path


def build(functions: int, directory: Path) -> Builds:
    """Compile everything for a library with so many functions."""
    libraries = []
    for version in (1, 2):
        place = directory / f"functions-{functions}-v{version}"
        place.mkdir(parents=True, exist_ok=True)
        source = place / "functions.c"
        source.write_text(_library(functions, version))
        libraries.append(place / SONAME)
        # Placing functions at 16 bytes, as -O2 does, leaves room for a jump in the smallest of them.
        compile_c("-fPIC", "-shared", f"-Wl,-soname,{SONAME}", str(source), "-o", str(libraries[-1]))
    program = directory / f"subject-{functions}"
    rpath = f"-Wl,-rpath,{libraries[0].parent}"
    compile_c(str(SOURCE), str(libraries[0]), rpath, "-o", str(program))
    return Builds(program, *libraries)


def _library(functions: int, version: int) -> str:
    lines = ["typedef long function(long);"]
    for number in range(functions):
        lines.append(f"long function_{number}(long x);")
        lines.append(
            f"long function_{number}(long x) {{ return x * {number % 97 + 3} + {version * 100000 + number}; }}"
        )
    names = ", ".join(f"function_{number}" for number in range(functions))
    lines += [
        "extern function *const functions[];",
        "extern const int function_count;",
        f"function *const functions[] = {{{names}}};",
        f"const int function_count = {functions};",
    ]
    return "\n".join(lines) + "\n"


class Subject(Program):
    """The program, running; leaving the context ends it."""

    def __init__(self, builds: Builds, sleepers: int, cores: Sequence[int]) -> None:
        self.builds = builds
        super().__init__([str(builds.program), str(sleepers), *map(str, cores)])

    def ready(self) -> None:
        self.rate = float(self.ask("rate"))
        self.busy = [int(word) for word in self.ask("tids").split()]

    def largest_us(self, tid: int) -> float:
        """The largest gap of the window."""
        return int(self.ask("largest", tid)) / self.rate

    def gap_us(self, tid: int, tick: int) -> float | None:
        """The gap that contains a moment."""
        ticks = int(self.ask("gap", tid, tick))
        return ticks / self.rate if ticks else None

    def prefer_busy(self) -> None:
        """Let the busy threads go before whatever else wants their cores, as a datapath's cores are its own."""
        with contextlib.suppress(PermissionError):
            for tid in self.busy:
                os.setpriority(os.PRIO_PROCESS, tid, -15)

    def pause_us(self, tid: int, wanted: int) -> tuple[float, float | None]:
        """Take a busy thread away: how long it was by the program's other clock, and the gap that the meter shows."""
        tick, nanoseconds = map(int, self.ask("pause", tid, wanted).split())
        return nanoseconds / 1000, self.gap_us(tid, tick)

    def is_new(self) -> bool:
        """Whether the new library's code runs."""
        return int(self.ask("value", 0)) == 200000
