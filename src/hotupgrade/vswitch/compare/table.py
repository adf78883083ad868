"""The comparison as text: one row a way, and what the meter itself is worth.  Nothing here is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

Document = dict[str, Any]
HEAD = (
    "way",
    "runs",
    "break, ms",
    "packets lost",
    "inside, µs",
    "command, s",
    "way back, s",
    "memory, MiB",
    "not kept",
)


def rows(document: Document) -> Iterator[tuple[str, ...]]:
    """Cells in the order of :data:`HEAD`; "median / 99th percentile / maximum" where there are several numbers."""
    for way in document["ways"]:
        lost = [name for name, kept in way["kept"].items() if not kept]
        yield (
            way["title"],
            str(len(way["runs"])),
            _three(way["break_ms"], 2),
            _three(way["lost"], 0),
            _three(way["inside_us"], 1) if way["inside_us"] else "",
            f"{way['command_s'][0]:.1f}",
            f"{way['back_s'][0]:.1f}",
            f"{way['memory_kb'][0] / 1024:+.1f}",
            ", ".join(lost) or "nothing",
        )


def meter_lines(document: Document) -> Iterator[str]:
    """What became of pauses that were made on purpose."""
    for row in document["meter"]:
        made = f"{row['pause_ms']:g} ms" if row["pause_ms"] else "no pause"
        found = f"{row['gap_ms']:.2f} ms without a packet, {row['lost']} lost"
        yield f"{made}: {found}, the sender's own longest pause {row['sender_gap_ms']:.2f} ms"


def markdown(document: Document) -> str:
    """The table for a page."""
    lines = [HEAD, ("---",) * len(HEAD), *rows(document)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _three(values: Sequence[float], digits: int) -> str:
    return " / ".join(f"{value:,.{digits}f}" for value in values)
