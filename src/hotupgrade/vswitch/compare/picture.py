"""The comparison as a picture: every run a dot, on a logarithmic axis, and beside it what the way takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hotupgrade.vswitch.compare.results import median_run
from hotupgrade.vswitch.compare.spread import percentile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Document = dict[str, Any]
NONE_MS = 0.002  # a logarithmic axis has no zero: what is none is drawn there, apart from all else
LEAST_MIB = 1.0


def _own_clock_ms(row: Document) -> float | None:
    return None if row["break_us"] is None else float(row["break_us"]) / 1000


#: Colour, meaning, place in a way's line, and of a run its value in ms.
_SERIES: tuple[tuple[str, str, float, Callable[[Document], float | None]], ...] = (
    ("tab:blue", "longest that a packet was waited for", 0.2, lambda row: row["traffic"]["break_ms"]),
    ("tab:red", "lost ÷ rate", 0.0, lambda row: row["traffic"]["loss_ms"]),
    ("tab:green", "what a polling thread lost by its own clock", -0.2, _own_clock_ms),
)


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
    """Each run's break, its loss as time at the rate that was offered, and what was seen from inside."""
    for colour, label, shift, value_of in _SERIES:
        axes.plot([], [], "o", color=colour, label=label)
        for index, way in enumerate(ways):
            found = [value for row in way["runs"] if (value := value_of(row)) is not None]
            values = [max(value, NONE_MS) for value in found]
            axes.plot(values, [index + shift] * len(values), "o", alpha=0.4, color=colour)
            if values:
                axes.plot([percentile(values, 0.5)], [index + shift], "|", markersize=14, color="black")
    axes.axvline(NONE_MS, color="black", linewidth=0.8, linestyle=":")
    axes.text(NONE_MS, -0.7, " none", va="center", fontsize="small")
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
        _around_the_event(axes, median_run(way["runs"]))
        axes.set_title(way["title"], loc="left", fontsize="small")
    figure.supxlabel("sent so many ms after the begin")
    figure.supylabel("longest delay, ms")
    figure.savefig(path, dpi=110)


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
