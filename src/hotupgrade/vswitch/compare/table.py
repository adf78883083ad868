"""The comparison as text: what happens to the traffic, what it costs, what is kept, where it works; and what the meter
itself is worth.  Nothing here is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

Document = dict[str, Any]
TRAFFIC = ("way", "runs", "break, ms", "just before, ms", "packets lost", "lost ÷ rate, ms", "inside, µs")
COSTS = ("way", "command, s", "way back, s", "memory, MiB", "hugepages, MiB", "cores", "the tool's own", "not kept")
#: Facts that not everything that forwards has, beside those that all have.
STATE = ("OpenFlow flows", "megaflows", "tracked connections", "packets counted by flows", "controller connection")
KEPT = ("way", *STATE)
WORKS = ("way", "kernel datapath", "DPDK", "offload")

Cells = tuple[str, ...]


def traffic(document: Document) -> Iterator[Cells]:
    """Cells in the order of :data:`TRAFFIC`; "median / 99th percentile / maximum" where there are several numbers.

    "Just before": the break in half a second without an event, in the same runs."""
    for way in document["ways"]:
        yield (
            way["title"],
            str(len(way["runs"])),
            _three(way["break_ms"], 2),
            _three(way["control_ms"], 2),
            _three(way["lost"], 0),
            _three(way["loss_ms"], 2),
            _three(way["inside_us"], 1) if way["inside_us"] else "",
        )


def costs(document: Document) -> Iterator[Cells]:
    """Cells in the order of :data:`COSTS`; medians.

    Memory, hugepages and cores: what was in use at most, beyond one process that forwards.
    """
    for way in document["ways"]:
        extra, tool = way["extra"], way["tool"]
        lost = [name for name, kept in way["kept"].items() if not kept]
        yield (
            way["title"],
            f"{way['command_s'][0]:.1f}",
            f"{way['back_s'][0]:.1f}",
            f"{extra['private_kb'][0] / 1024:+.1f}",
            f"{extra['hugepages_kb'][0] / 1024:+.0f}",
            f"{extra['polling'][0]:+.0f}",
            f"{tool['memory_kb'][0] / 1024:.0f} MiB, {tool['cpu_s'][0]:.1f} s of a core" if tool else "",
            ", ".join(lost) or "nothing",
        )


def state(document: Document) -> Iterator[Cells]:
    """Cells in the order of :data:`KEPT`; empty where there is nothing of the kind."""
    words = {True: "kept", False: "lost", None: ""}
    for way in document["ways"]:
        yield (way["title"], *(words[way["kept"].get(name)] for name in STATE))


def works(document: Document) -> Iterator[Cells]:
    """Cells in the order of :data:`WORKS`, of ways of which there is something to say."""
    for way in document["ways"]:
        if any(way["works"].values()):
            yield (way["title"], *(way["works"][name] for name in WORKS[1:]))


def meter_lines(document: Document) -> Iterator[str]:
    """What became of pauses that were made on purpose, on each bed."""
    for row in document["meter"]:
        made = f"{row['pause_ms']:.2f} ms" if row["pause_ms"] else "no pause"
        found = f"{row['gap_ms']:.2f} ms without a packet, a break of {row['break_ms']:.2f} ms, {row['lost']} lost"
        yield f"{row['bed']}, {made}: {found}, the sender's own longest pause {row['sender_gap_ms']:.2f} ms"


def markdown(document: Document) -> str:
    """All tables for a page."""
    parts = ((TRAFFIC, traffic), (COSTS, costs), (KEPT, state), (WORKS, works))
    return "\n".join(_markdown(head, tuple(cells(document))) for head, cells in parts)


def _markdown(head: Cells, rows: Sequence[Cells]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _three(values: Sequence[float], digits: int) -> str:
    return " / ".join(f"{value:,.{digits}f}" for value in values)
