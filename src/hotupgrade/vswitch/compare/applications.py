"""What users of a switch notice of each way: programs that talk through it while it is gone.

Each application runs by itself, over the same switch and the same hosts or the same guest, in windows of the same
length; in the middle of each a way is gone, and for the control nothing is done.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotupgrade.errors import HotUpgradeError
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.compare import run
from hotupgrade.vswitch.compare.application import Application, Place
from hotupgrade.vswitch.compare.bed import one_switch
from hotupgrade.vswitch.compare.cells import failed, joined
from hotupgrade.vswitch.compare.fresh import FRESH_CONNECTIONS
from hotupgrade.vswitch.compare.hosts import RING
from hotupgrade.vswitch.compare.idle import IDLE
from hotupgrade.vswitch.compare.iperf import IPERF
from hotupgrade.vswitch.compare.needs import program
from hotupgrade.vswitch.compare.spread import spread
from hotupgrade.vswitch.compare.vhost import GUEST
from hotupgrade.vswitch.compare.ways import Way
from hotupgrade.vswitch.compare.web import WEB

Document = dict[str, Any]
Say = Callable[[str], None]
Make = Callable[[SwitchBuild], AbstractContextManager[Place]]
APPLICATIONS = (IPERF, WEB, IDLE, FRESH_CONNECTIONS, GUEST)
PROGRAMS = ("ethtool", "iperf3", "nginx", "wrk")
#: Before the event, and how long a window lasts at least, in seconds.
LEAD_S, WINDOW_S = 2.0, 10.0
#: After the event, if it took longer than the window: TCP comes back after its last time-out.
TRAIL_S = 3.0
NO_FLOWS = "it has no flows and tracks no connections"
ONE_SWITCH = "a guest's port connects to one process"


@dataclass(frozen=True, slots=True)
class Settings:
    """``runs`` of each way under each application; ``only`` and ``loops`` as of :class:`run.Settings`."""

    runs: int = 5
    only: tuple[str, ...] = ()
    applications: tuple[str, ...] = ()
    window_s: float = WINDOW_S
    loops: SwitchBuild | None = None

    def ways(self) -> list[Way[Any]]:
        """Those that can be gone between hosts: all with DPDK."""
        return [way for way in run.chosen(run.Settings(only=self.only, loops=self.loops)) if way.between]


def measure(old: SwitchBuild, new: SwitchBuild, settings: Settings, say: Say) -> Iterator[tuple[str, Document]]:
    """One application after the other: its key, and by way each run and what is said about all of them.

    A way that cannot be gone under an application is in the document with the reason, and the switch is made anew.

    Raises:
        HotUpgradeError: there can be no such switch here, or a program is missing.
    """
    for name in PROGRAMS:
        program(name)
    for application in APPLICATIONS:
        if settings.applications and application.key not in settings.applications:
            continue
        yield (
            application.key,
            {
                "title": application.title,
                "figures": [[figure.key, figure.title, figure.digits] for figure in application.figures],
                "window_s": settings.window_s if application.lasts else None,
                "ring": RING,
                "ways": _ways(application, old, new, settings, say),
            },
        )


def _ways(application: Application, old: SwitchBuild, new: SwitchBuild, settings: Settings, say: Say) -> list[Document]:
    found: list[Document] = []
    left, senseless = _sorted_out(application, settings.ways())
    while left:  # once more for each way that has failed: it may have left anything behind
        make = left[0][1]
        with make(old) as between:
            while left and left[0][1] is make:
                way, _ = left.pop(0)
                build = settings.loops if way.loops and settings.loops else new
                try:
                    way.prepare(between.subject, build)
                    rows = [
                        _once(between, application, way, (old, build), settings.window_s, say)
                        for _ in range(settings.runs)
                    ]
                except HotUpgradeError as error:
                    say(f"{application.key}, {way.key}: {error}")
                    found.append({"key": way.key, "title": way.title, "runs": [], "failed": str(error)})
                    break
                figures = {figure.key: _summary(figure.key, rows) for figure in application.figures}
                found.append({"key": way.key, "title": way.title, "runs": rows, "figures": figures})
    return found + [{"key": way.key, "title": way.title, "runs": [], "failed": why} for way, why in senseless]


def _sorted_out(
    application: Application, ways: Sequence[Way[Any]]
) -> tuple[list[tuple[Way[Any], Make]], list[tuple[Way[Any], str]]]:
    """Ways with what they are gone on, and those that make no sense under this application, with the reason."""
    possible: list[tuple[Way[Any], Make]] = []
    senseless = []
    for way in ways:
        if application.flows and way.flowless:
            senseless.append((way, NO_FLOWS))
        elif application.between and way.bed is not one_switch:
            senseless.append((way, ONE_SWITCH))
        elif make := application.between or way.between:
            possible.append((way, make))
    return possible, senseless


def _once(
    between: Place,
    application: Application,
    way: Way[Any],
    builds: tuple[SwitchBuild, SwitchBuild],
    window_s: float,
    say: Say,
) -> Document:
    old, new = builds
    between.freshen()
    with tempfile.TemporaryDirectory(prefix="hotupgrade-application-") as folder:
        begin = time.monotonic()
        with application.run(between, Path(folder)) as finish:
            if application.lasts:
                time.sleep(LEAD_S)
            went = time.monotonic()
            own = way.go(between.subject, new)
            took = time.monotonic() - went
            if application.lasts:
                time.sleep(max(window_s - (time.monotonic() - begin), TRAIL_S))
            result = finish()
    lasted = time.monotonic() - begin
    way.back(between.subject, old)
    words = ", ".join(f"{figure.title} {result[figure.key]}" for figure in application.figures)
    say(f"{application.key}, {way.key}: {words}")
    return {**result, "command_s": took, "lasted_s": lasted, "break_us": run.inside_us(own)}


def _summary(key: str, rows: Sequence[Document]) -> Document | None:
    """Median and extremes of the runs; None if it is not known of each."""
    values = [row[key] for row in rows]
    return None if None in values else spread(values)


def markdown(document: Document) -> str:
    """A table for each application: a way a row; "median (smallest to largest)" where the runs differ."""
    return "\n".join(_table(part) for part in document.values())


def _table(part: Document) -> str:
    figures = part["figures"]
    heads = ("way", "runs", *(title for _, title, _ in figures))
    window = f", in windows of {part['window_s']:g} s" if part["window_s"] else ""
    return f"**{part['title']}**{window}\n\n{joined(heads, (_row(way, figures) for way in part['ways']))}"


def _row(way: Document, figures: Sequence[tuple[str, str, int]]) -> list[str]:
    if not way["runs"]:
        return [way["title"], "0", *failed(way["failed"], len(figures))]
    return [way["title"], str(len(way["runs"])), *(_cell(way["figures"][key], digits) for key, _, digits in figures)]


def _cell(found: Document | None, digits: int) -> str:
    if found is None:
        return "not counted"
    median, low, high = (f"{found[name]:,.{digits}f}" for name in ("median", "min", "max"))
    return median if low == high else f"{median} ({low} to {high})"
