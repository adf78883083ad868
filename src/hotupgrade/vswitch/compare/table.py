"""The comparison as text: what happens to the traffic, what it costs, what is kept, where it works; and what the meter
itself is worth.  Nothing here is measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hotupgrade.vswitch.compare.cells import joined

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


def works(documents: Iterable[Document]) -> Iterator[Cells]:
    """Cells in the order of :data:`WORKS`, of ways of which there is something to say, each once."""
    ways = {way["title"]: way["works"] for document in documents for way in document["ways"]}
    for title, found in ways.items():
        if any(found.values()):
            yield (title, *(found[name] for name in WORKS[1:]))


def overview(documents: Mapping[int, Document]) -> str:
    """Every way with every number of flows, as "median (longest)"; empty where it was not run."""
    titles = {way["title"]: None for document in documents.values() for way in document["ways"]}
    by_flows = [{way["title"]: way for way in document["ways"]} for document in documents.values()]
    heads = ["way"]
    for what in ("break, ms", "packets lost", "inside, µs"):
        heads += [f"{what}: {flows:,} flows" for flows in documents]
    rows = []
    for title in titles:
        found = [ways.get(title) for ways in by_flows]
        cells = [title]
        for field, digits in (("break_ms", 1), ("lost", 0), ("inside_us", 1)):
            cells += [_two(way[field], digits) if way and way[field] else "" for way in found]
        rows.append(tuple(cells))
    return joined(heads, rows)


def works_markdown(documents: Iterable[Document]) -> str:
    """Where each way can be gone."""
    return joined(WORKS, works(documents))


def meter_lines(document: Document) -> Iterator[str]:
    """What became of pauses that were made on purpose, on each bed."""
    for row in document["meter"]:
        made = f"{row['pause_ms']:.2f} ms" if row["pause_ms"] else "no pause"
        found = f"{row['gap_ms']:.2f} ms without a packet, a break of {row['break_ms']:.2f} ms, {row['lost']} lost"
        yield f"{row['bed']}, {made}: {found}, the sender's own longest pause {row['sender_gap_ms']:.2f} ms"


def markdown(document: Document) -> str:
    """What was measured with one number of flows."""
    parts = ((TRAFFIC, traffic), (COSTS, costs), (KEPT, state))
    return "\n".join(joined(head, cells(document)) for head, cells in parts)


def _two(values: Sequence[float], digits: int) -> str:
    """Of median, 99th percentile and maximum the first and the last."""
    return f"{values[0]:,.{digits}f} ({values[2]:,.{digits}f})"


def _three(values: Sequence[float], digits: int) -> str:
    return " / ".join(f"{value:,.{digits}f}" for value in values)
