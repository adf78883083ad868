"""The comparison as a picture: every run a dot, on a logarithmic axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Document = dict[str, Any]
LEAST_MS = 0.05  # what is shorter than two packets' distance is drawn there


def draw(document: Document, path: Path) -> None:
    """Write a PNG."""
    from matplotlib.figure import Figure  # takes a second to load, and only this needs it

    ways = document["ways"]
    figure = Figure(figsize=(9, 0.8 + 0.6 * len(ways)), layout="constrained")
    axes = figure.add_subplot()
    for index, way in enumerate(reversed(ways)):
        values = [max(row["traffic"]["break_ms"], LEAST_MS) for row in way["runs"]]
        axes.plot(values, [index] * len(values), "o", alpha=0.4, color="tab:blue")
        axes.plot([max(way["break_ms"][0], LEAST_MS)], [index], "|", markersize=18, color="black")
    axes.set_xscale("log")
    axes.set_yticks(range(len(ways)), [way["title"] for way in reversed(ways)])
    settings = document["settings"]
    axes.set_xlabel(f"traffic interrupted, ms ({settings['pps']:,} packets/s offered, ring of {settings['ring']})")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
