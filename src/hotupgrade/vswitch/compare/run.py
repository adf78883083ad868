"""Each way many times on the same traffic, what was kept and what it cost."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.compare import secondary
from hotupgrade.vswitch.compare.bed import PAIRS, RING, SINK, SOURCE, Bed, one_switch
from hotupgrade.vswitch.compare.catalogue import ALL_WAYS
from hotupgrade.vswitch.compare.meter import Meter, prove
from hotupgrade.vswitch.compare.network import Network
from hotupgrade.vswitch.compare.spread import percentile
from hotupgrade.vswitch.compare.standby import primary_and_secondary
from hotupgrade.vswitch.compare.usage import Usage
from hotupgrade.vswitch.compare.ways import Way
from hotupgrade.vswitch.switch import Switch

__all__ = ["PAIRS", "RING", "Settings", "bed", "measure", "summary"]

Document = dict[str, Any]
LIMIT_S = 60.0  # that one run of a way may take, and for how many flows more it may take a second more
FLOWS_PER_S = 1000


@dataclass(frozen=True, slots=True)
class Settings:
    """``runs`` of each way; ``pps`` offered; ``flows`` beside those that carry the traffic; ``only``: keys of ways.

    ``loops``: the build in which threads' own loops changed; without it, what brings that in is left out.
    """

    runs: int = 20
    pps: int = 10_000
    flows: int = 0
    only: tuple[str, ...] = ()
    loops: SwitchBuild | None = None


@contextmanager
def bed(build: SwitchBuild, flows: int) -> Iterator[tuple[Switch, Network]]:
    """A switch whose polling thread forwards between two virtual Ethernet interfaces, and where it is."""
    with one_switch(build, flows) as made:
        yield made.subject, made.network


def measure(
    old: SwitchBuild, new: SwitchBuild, settings: Settings, say: Callable[[str], None]
) -> Iterator[tuple[str, Document]]:
    """One way after the other: its key, and what was found, with the proof of the meter that saw it.

    Raises:
        HotUpgradeError: the meter cannot be trusted here, or a way failed.
    """
    for make, ways in groupby(chosen(settings), key=lambda way: way.bed):
        common = _head(settings)
        if make is primary_and_secondary:
            say("Open vSwitch as a secondary process of DPDK: tried")
            common["ovs_as_secondary"] = secondary.try_it(old)
        with make(old, settings.flows) as made:
            meter = Meter(made.network, SOURCE, SINK, settings.pps)
            say(f"{made.title}: the meter, on pauses made on purpose")
            proof = prove(meter, made.pid)
            common["meter"] = [{"bed": made.title, "pause_ms": pause, **found.document()} for pause, found in proof]
            for way in ways:
                build = settings.loops if way.loops and settings.loops else new
                way.prepare(made.subject, build)
                rows = []
                for turn in range(settings.runs):
                    rows.append(_once(made, meter, way, old, build, LIMIT_S + settings.flows / FLOWS_PER_S))
                    say(f"{way.key} {turn + 1}/{settings.runs}: {rows[-1]['traffic']['break_ms']:.2f} ms")
                yield way.key, common | {"way": _about(way, made) | {"runs": rows, **summary(rows)}}


def chosen(settings: Settings) -> list[Way[Any]]:
    """The ways that are asked for, can be gone, and to which the number of flows makes a difference."""
    asked = (way for way in ALL_WAYS if not settings.only or way.key in settings.only)
    return [way for way in asked if (settings.loops or not way.loops) and not (settings.flows and way.flowless)]


def _about(way: Way[Any], made: Bed[Any]) -> Document:
    return {
        "key": way.key,
        "title": way.title,
        "bed": made.title,
        "ring": made.ring,
        "works": way.works.document(),
        "note": way.note,
    }


def _once(made: Bed[Any], meter: Meter, way: Way[Any], old: SwitchBuild, new: SwitchBuild, limit_s: float) -> Document:
    made.freshen()
    before, standing = made.usage(), made.standing()
    with meter.watch(limit_s) as watch:
        still = made.remember()
        watch.begin()
        begin = time.monotonic()
        own = way.go(made.subject, new)
        took = time.monotonic() - begin
    kept = still(watch.measured.received)
    after = made.usage()
    back = time.monotonic()
    way.back(made.subject, old)
    return {
        "traffic": watch.measured.document(),
        "series": watch.series.document() if watch.series else None,
        "command_s": took,
        "back_s": time.monotonic() - back,
        "kept": kept,
        "extra": _extra(own.get("peak") or after.document(), before, standing),
        "left": after.beyond(before).document(),
        "tool": own.get("tool"),
        "break_us": inside_us(own),
    }


def _extra(peak: Document, before: Usage, standing: Usage) -> Document:
    """What was in use at most, beyond one process that forwards."""
    return {name: peak[name] - before.document()[name] + more for name, more in standing.document().items()}


def inside_us(own: Document) -> float | None:
    """The longest time for which a thread that never sleeps was kept from its work, by its own clock; in µs.

    That is the stop, or for a thread whose loop changed the way from the old loop to the new one.
    """
    found = [own.get("break_us", {}).get("busy_max")]
    for thread in own.get("threads", []):
        restart = thread.get("restart") or {}
        if restart.get("door") == "fields":
            found.append(restart.get("gap_us"))
    return max((value for value in found if value is not None), default=None)


def summary(rows: Sequence[Document]) -> Document:
    """Median, 99th percentile and maximum over the runs; a fact is kept if it was in every run."""
    traffic = [row["traffic"] for row in rows]
    inside = [row["break_us"] for row in rows if row["break_us"] is not None]
    tools = [row["tool"] for row in rows if row["tool"] is not None]
    return {
        "break_ms": _spread([item["break_ms"] for item in traffic]),
        "control_ms": _spread([item["control_ms"] for item in traffic]),
        "lost": _spread([item["lost"] for item in traffic]),
        "loss_ms": _spread([item["loss_ms"] for item in traffic]),
        "inside_us": _spread(inside) if inside else None,
        "command_s": _spread([row["command_s"] for row in rows]),
        "back_s": _spread([row["back_s"] for row in rows]),
        "extra": {name: _spread([row["extra"][name] for row in rows]) for name in rows[0]["extra"]},
        "left": {name: _spread([row["left"][name] for row in rows]) for name in rows[0]["left"]},
        "tool": {name: _spread([tool[name] for tool in tools]) for name in tools[0]} if tools else None,
        "kept": {name: all(row["kept"][name] for row in rows) for name in rows[0]["kept"]},
    }


def _spread(values: Sequence[float]) -> list[float]:
    return [percentile(values, share) for share in (0.5, 0.99, 1.0)]


def _head(settings: Settings) -> Document:
    return {
        "version": 2,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {"kernel": platform.release(), "cores": os.cpu_count()},
        "settings": {"runs": settings.runs, "pps": settings.pps, "flows": settings.flows, "ring": RING},
    }
