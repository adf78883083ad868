"""Whether the meter of restarts finds pauses whose length is known: on the way out of a loop, and on the way in.

A small program's worker waits in its own loop function, after the last work and before the first, and notes by
CLOCK_MONOTONIC how long that was.  The restart is made and measured as that of any other thread.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from program import Program, compile_c
from samples import Effort, Result, Row
from stops import Target

from hotupgrade.binary.cache import Cache
from hotupgrade.report.restarts import Restart, restarts

PROGRAMS = Path(__file__).parent / "programs"
SONAME = "libloop.so.1"
PAUSES_US = (1000, 2000, 5000, 10000)
WAYS = ("out", "in")


class Looper(Program):
    """The program, with its worker in the loop of the old library."""

    def __init__(self, program: Path) -> None:
        super().__init__([str(program), str(max(os.sched_getaffinity(0)))])

    def ready(self) -> None:
        with contextlib.suppress(PermissionError):  # its core is its own, as far as others on the machine let it
            os.setpriority(os.PRIO_PROCESS, int(self.ask("tid")), -15)

    def pause(self, out: int, into: int) -> None:
        """Wait so many µs on each way, from the next restart on."""
        self.ask("pauses", out, into)

    def waited_us(self) -> dict[str, float]:
        return dict(zip(WAYS, (int(word) / 1000 for word in self.ask("waited").split()), strict=True))

    def version(self) -> int:
        return int(self.ask("version"))


def restart_meter(directory: Path, effort: Effort) -> Result:
    """Pauses on each way, and none; each turn is an upgrade and a rollback."""
    result = Result("restart_meter")
    program, new = build(directory)
    with Looper(program) as looper:
        target = Target(looper.pid, [new], Cache(directory / "cache"), profiles=(PROGRAMS / "loop.toml",))
        for _ in effort.turns():
            for wanted in (0, *PAUSES_US):
                for way in WAYS:
                    looper.pause(wanted if way == "out" else 0, wanted if way == "in" else 0)
                    _take(result, looper, target, way, wanted)
    result.facts["not_now"] = target.failures
    result.rows = [_row(result, way, wanted) for way in WAYS for wanted in PAUSES_US]
    result.rows.append(_quiet_row(result))
    return result


def build(directory: Path) -> tuple[Path, Path]:
    """The program with its old library, and the new library."""
    libraries = []
    for version in (1, 2):
        place = directory / f"loop-v{version}"
        place.mkdir(parents=True, exist_ok=True)
        libraries.append(place / SONAME)
        shared = ("-fPIC", "-shared", f"-Wl,-soname,{SONAME}", f"-DVERSION={version}")
        compile_c(*shared, str(PROGRAMS / "loop.c"), "-o", str(libraries[-1]))
    program = directory / "loop-host"
    rpath = f"-Wl,-rpath,{libraries[0].parent}"
    compile_c(str(PROGRAMS / "loop_host.c"), str(libraries[0]), rpath, "-o", str(program))
    return program, libraries[1]


def _take(result: Result, looper: Looper, target: Target, way: str, wanted: int) -> None:
    for version, action in ((2, lambda: target.upgrade(measure_empty=False)), (1, target.rollback)):
        (one,) = restarts(action())
        if looper.version() != version:
            raise RuntimeError(f"the small program is in the loop of version {looper.version()}, not {version}")
        if one.gap is None:  # it was asked before it worked again after the stop: no last work was seen
            result.take("unseen", "1", 1)
            continue
        true = looper.waited_us()[way]
        result.take(f"{way}_{wanted}_gap", "µs", one.gap)
        result.take(f"{way}_{wanted}_true", "µs", true)
        result.take(f"{way}_{wanted}_part", "µs", _part(one, way))


def _part(one: Restart, way: str) -> float:
    """The part of the gap that is said to be spent on this way."""
    into = (one.arrived or 0.0) - (one.left or 0.0)
    return into if way == "in" else (one.gap or 0.0) - into


def _row(result: Result, way: str, wanted: int) -> Row:
    gap, true, part = (result[f"{way}_{wanted}_{kind}"] for kind in ("gap", "true", "part"))
    beside = result[f"{way}_0_gap"].median
    ratios = [(found - beside) / real for found, real in zip(gap.values, true.values, strict=True)]
    shares = [found / real for found, real in zip(part.values, true.values, strict=True)]
    # Another program that takes the core beside the pause makes the gap longer, never shorter.
    least = min(ratios, default=0.0)
    return Row(
        f"restart's meter: a pause of {wanted / 1000:g} ms on the way {way}",
        f"{gap.median / 1000:.3f} ms",
        f"by the program's other clock {true.median / 1000:.3f} ms",
        "smallest ratio ± 5 %",
        abs(least - 1) <= 0.05,
        len(gap.values),
        f"(gap − {beside:.1f} µs) ÷ pause from {least:.3f} to {max(ratios, default=0.0):.3f}; "
        f"{way}_us alone ÷ pause at least {min(shares, default=0.0):.3f}",
    )


def _quiet_row(result: Result) -> Row:
    values = result["out_0_gap"].values + result["in_0_gap"].values
    result.take("quiet", "µs", *values)
    quiet = result["quiet"]
    return Row(
        "restart's meter: the gap without a pause",
        f"{quiet.median:.1f} µs (p95 {quiet.p95:.1f} µs)",
        count=len(quiet.values),
        note="what leaving and entering cost the small program; "
        f"{len(result['unseen'].values)} restarts left out: asked before they had worked again after the stop",
    )
