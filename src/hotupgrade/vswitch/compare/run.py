"""The comparison: each way many times on the same traffic, and what was kept."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotupgrade.vswitch import baseline
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.compare.meter import Meter, prove
from hotupgrade.vswitch.compare.network import Network, network
from hotupgrade.vswitch.compare.ways import WAYS, Way, look
from hotupgrade.vswitch.switch import BRIDGE, Switch, SwitchOptions

Document = dict[str, Any]
#: The switch's end of each pair, and ours.
PAIRS = (("send", "into"), ("receive", "outof"))
#: Frames that the receiving ring of net_af_packet holds (its default).
RING = 512
LIMIT_S = 60.0  # that one run of a way may take


@dataclass(frozen=True, slots=True)
class Settings:
    """``runs`` of each way; ``pps`` offered; ``flows`` beside those that carry the traffic."""

    runs: int = 20
    pps: int = 10_000
    flows: int = 0
    only: tuple[str, ...] = ()


@contextmanager
def bed(build: SwitchBuild, flows: int) -> Iterator[tuple[Switch, Network]]:
    """A switch whose polling thread forwards between two veth interfaces."""
    with network(PAIRS) as made:
        devices = tuple(f"net_af_packet{i},iface={pair[1]},framecnt={RING}" for i, pair in enumerate(PAIRS))
        options = SwitchOptions(devices=devices, network_of=made.pid)
        with Switch(build, options) as switch:
            for first in range(0, flows, 10_000):
                rules = (_rule(number) for number in range(first, min(first + 10_000, flows)))
                switch.ofctl("add-flows", BRIDGE, "-", text="\n".join(rules) + "\n")
            yield switch, made


def _rule(number: int) -> str:
    address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    return f"table=1,priority={100 + number % 7},ip,nw_dst={address},actions=output:{1 + number % 2}"


def compare(old: SwitchBuild, new: SwitchBuild, settings: Settings, say: Callable[[str], None]) -> Document:
    """Everything, for the table, the page and the picture.

    Raises:
        HotUpgradeError: the meter cannot be trusted here, or a way failed.
    """
    ways = [way for way in WAYS if not settings.only or way.key in settings.only]
    with bed(old, settings.flows) as (switch, made):
        meter = Meter(made, PAIRS[0][0], PAIRS[1][0], settings.pps)
        say("the meter: pauses made on purpose")
        proof = prove(meter, switch.pid)
        document = _head(settings) | {
            "meter": [{"pause_ms": pause, **found.document()} for pause, found in proof],
            "ways": [],
        }
        look(switch, new)
        for way in ways:
            rows = []
            for turn in range(settings.runs):
                rows.append(_once(switch, meter, way, old, new))
                say(f"{way.key} {turn + 1}/{settings.runs}: {rows[-1]['traffic']['break_ms']:.2f} ms")
            document["ways"].append({"key": way.key, "title": way.title, "runs": rows, **summary(rows)})
    return document


def _once(switch: Switch, meter: Meter, way: Way, old: SwitchBuild, new: SwitchBuild) -> Document:
    before = baseline.take(switch)
    megaflows = set(switch.megaflows())
    memory = _private_kb(switch.pid)
    with meter.watch(LIMIT_S) as watch:
        begin = time.monotonic()
        own = way.go(switch, new)
        took = time.monotonic() - begin
    kept = {fact.name: fact.ok for fact in baseline.compare(before, baseline.take(switch))}
    kept["megaflows"] = megaflows <= set(switch.megaflows())
    after = _private_kb(switch.pid)
    back = time.monotonic()
    way.back(switch, old)
    return {
        "traffic": watch.measured.document(),
        "command_s": took,
        "back_s": time.monotonic() - back,
        "kept": kept,
        "memory_kb": after - memory,
        "break_us": own.get("break_us", {}).get("busy_max"),
    }


def summary(rows: Sequence[Document]) -> Document:
    """Median, 99th percentile and maximum over the runs; a fact is kept if it was in every run."""
    traffic = [row["traffic"] for row in rows]
    inside = [row["break_us"] for row in rows if row["break_us"] is not None]
    return {
        "break_ms": _spread([item["break_ms"] for item in traffic]),
        "lost": _spread([item["lost"] for item in traffic]),
        "inside_us": _spread(inside) if inside else None,
        "command_s": _spread([row["command_s"] for row in rows]),
        "back_s": _spread([row["back_s"] for row in rows]),
        "memory_kb": _spread([row["memory_kb"] for row in rows]),
        "kept": {name: all(row["kept"][name] for row in rows) for name in rows[0]["kept"]},
    }


def _spread(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered[min(int(len(ordered) * part), len(ordered) - 1)] for part in (0.5, 0.99, 1.0)]


def _private_kb(pid: int) -> int:
    """Memory of the process that nobody shares, in KiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_"))


def _head(settings: Settings) -> Document:
    return {
        "version": 1,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {"kernel": platform.release(), "cores": os.cpu_count()},
        "settings": {"runs": settings.runs, "pps": settings.pps, "flows": settings.flows, "ring": RING},
    }
