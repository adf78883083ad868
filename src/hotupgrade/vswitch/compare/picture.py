"""The comparison as a picture: every run a dot, on a logarithmic axis, and beside it what the way takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Document = dict[str, Any]
LEAST_MS = 0.05  # what is shorter than two packets' distance is drawn there
LEAST_MIB = 1.0


def draw(document: Document, path: Path) -> None:
    """Write a PNG."""
    from matplotlib.figure import Figure  # takes a second to load, and only this needs it

    ways = list(reversed(document["ways"]))
    figure = Figure(figsize=(12, 1.0 + 0.55 * len(ways)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    _breaks(left, ways, document["settings"])
    _costs(right, ways)
    left.set_yticks(range(len(ways)), [way["title"] for way in ways])
    figure.legend(loc="outside upper center", ncols=2, fontsize="small")
    figure.savefig(path, dpi=110)


def _breaks(axes: Axes, ways: Sequence[Document], settings: Document) -> None:
    """Each run's break and, as time at the rate that was offered, its loss."""
    for index, way in enumerate(ways):
        for field, colour, shift in (("break_ms", "tab:blue", 0.12), ("loss_ms", "tab:red", -0.12)):
            values = [max(row["traffic"][field], LEAST_MS) for row in way["runs"]]
            label = {"break_ms": "longest that a packet was waited for", "loss_ms": "lost ÷ rate"}[field]
            place = [index + shift] * len(values)
            axes.plot(values, place, "o", alpha=0.4, color=colour, label=None if index else label)
            axes.plot([max(way[field][0], LEAST_MS)], [index + shift], "|", markersize=14, color="black")
    axes.set_xscale("log")
    axes.set_xlabel(f"traffic interrupted, ms ({settings['pps']:,} packets/s offered, ring of {settings['ring']})")
    axes.grid(axis="x", alpha=0.3)


def _costs(axes: Axes, ways: Sequence[Document]) -> None:
    """Memory with hugepages, and in words the cores."""
    for index, way in enumerate(ways):
        extra = way["extra"]
        mib = (extra["private_kb"][0] + extra["hugepages_kb"][0]) / 1024
        axes.barh([index], [max(mib, LEAST_MIB)], left=0, height=0.5, color="tab:gray")
        cores = extra["polling"][0]
        axes.annotate(f" {cores:+.0f} core" if cores else "", (max(mib, LEAST_MIB), index), va="center")
    axes.set_xlabel("further memory, MiB")
    axes.set_xlim(0, 1.4 * axes.get_xlim()[1])  # room for the words
    axes.grid(axis="x", alpha=0.3)


def draw_series(document: Document, path: Path) -> None:
    """Write a PNG: for each way its median run, how long packets took around the event, and which were lost."""
    from matplotlib.figure import Figure

    ways = document["ways"]
    figure = Figure(figsize=(10, 0.6 + 1.3 * len(ways)), layout="constrained")
    for axes, way in zip(figure.subplots(len(ways), 1, sharey=True, squeeze=False)[:, 0], ways, strict=True):
        _around_the_event(axes, median_run(way))
        axes.set_title(way["title"], loc="left", fontsize="small")
    figure.supxlabel("sent so many ms after the begin")
    figure.supylabel("longest delay, ms")
    figure.savefig(path, dpi=110)


def median_run(way: Document) -> Document:
    """The run whose break is the median."""
    ordered: list[Document] = sorted(way["runs"], key=lambda row: row["traffic"]["break_ms"])
    return ordered[len(ordered) // 2]


def _around_the_event(axes: Axes, row: Document) -> None:
    """Delays as a line, with gaps where no packet came; spans with losses as red bands."""
    series = row["series"]
    times = [series["begin_ms"] + number * series["span_ms"] for number in range(len(series["lost"]))]
    axes.semilogy(times, [float("nan") if delay is None else delay for delay in series["delay_ms"]], linewidth=1)
    for begin, lost in zip(times, series["lost"], strict=True):
        if lost:
            axes.axvspan(begin, begin + series["span_ms"], color="tab:red", alpha=0.3, linewidth=0)
    axes.axvline(0, color="black", linewidth=0.8, linestyle=":")
    axes.grid(alpha=0.3)
