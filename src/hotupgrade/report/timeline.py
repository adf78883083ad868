"""The break as a picture: what the tool did above, what each thread lost below, on one axis in microseconds.

Preparing and cleaning up take a thousand times longer than the hot window and stop nobody, so they are given in words,
beyond a cut axis.  Inside the window everything is to scale; a datapath's break that would be a hairline there is shown
a second time, enlarged, and says so.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, FancyBboxPatch
from matplotlib.ticker import MaxNLocator

from hotupgrade.report import restart_panels
from hotupgrade.report.document import Document, duration, number, plural, rows, text
from hotupgrade.report.restarts import ARRIVED, GONE, SLEEPING, STAYED, longest_gap, restarts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HOT_PHASES = ("stop", "check", "sync", "replace", "start")
PHASE_COLOURS = {
    "stop": "#4c78a8",
    "check": "#72b7b2",
    "sync": "#9d7bb5",
    "replace": "#e45756",
    "start": "#59a14f",
}
BUSY, ASLEEP, INK, FAINT = "#d9480f", "#a9b8cc", "#1f2933", "#6b7785"
HOW = {"signal": "by signal", "redirect": "by redirection", "leader": "ran the switch"}
#: In place of the above, for threads in loops that changed.
MOVED = {ARRIVED: "restarted", SLEEPING: "restarts on waking", STAYED: "did not leave", GONE: "ended"}

ROWS_AT_MOST = 12  # more threads of one kind than this share one block
WIDTH, LEFT, RIGHT = 12.0, 2.75, 2.55  # inches: the margins hold the words
ROW, BLOCK = 0.30, 1.5  # inches: one thread; a block of many
STRIP, ZOOM_BELOW = 0.62, 0.12  # inches: the phases; share of the window under which a break is enlarged


@dataclass(frozen=True, slots=True)
class Bar:
    """One thread, from parked to released."""

    name: str
    how: str
    busy: bool
    parked: float
    released: float
    lost: float
    restart: str = ""  # the restart's state, of a thread that stood in a loop that changed


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the lower picture: a single thread, or many of a kind drawn as one block."""

    bars: tuple[Bar, ...]

    @property
    def height(self) -> float:
        return ROW if len(self.bars) == 1 else BLOCK

    @property
    def busy(self) -> bool:
        return self.bars[0].busy


def draw(upgrade_document: Document, path: Path) -> None:
    """Write the timeline of an ``upgrade`` or ``rollback`` document as a PNG."""
    bars = _bars(upgrade_document)
    phases = _phases(upgrade_document)
    if not bars and not phases:
        figure = _nothing_happened(upgrade_document)
    else:
        figure = _picture(upgrade_document, phases, bars)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=130, facecolor="white")


# What the document says.


def _bars(document: Document) -> list[Bar]:
    found = []
    for thread in rows(document, "threads"):
        parked, released = number(thread, "parked_us"), number(thread, "released_us")
        if text(thread, "how") == "absent" or parked is None or released is None or released < parked:
            continue
        lost = number(thread, "break_us")
        lost = released - parked if lost is None else lost
        name = text(thread, "name") or f"thread {thread.get('tid', '?')}"
        busy = thread.get("busy") is True
        state = text(thread, "restart", "state")
        found.append(Bar(name, text(thread, "how"), busy, parked, released, lost, state))
    return sorted(found, key=lambda bar: (not bar.busy, bar.parked, bar.name))


def _phases(document: Document) -> list[tuple[str, float, float]]:
    """The hot phases with their begin and end; they follow one another without a gap."""
    lengths = [(phase, number(document, "phases_us", phase)) for phase in HOT_PHASES]
    known = [(phase, length) for phase, length in lengths if length is not None and length >= 0]
    ends = list(itertools.accumulate(length for _, length in known))
    return [(phase, end - length, end) for (phase, length), end in zip(known, ends, strict=True)]


def _rows(bars: Sequence[Bar]) -> list[Row]:
    result: list[Row] = []
    for _, group in itertools.groupby(bars, key=lambda bar: bar.busy):
        kind = tuple(group)
        result += [Row(kind)] if len(kind) > ROWS_AT_MOST else [Row((bar,)) for bar in kind]
    return result


def _title(document: Document) -> str:
    modules = ", ".join(text(module, "name") for module in rows(document, "modules")) or "nothing"
    verb = "rolled back" if text(document, "command") == "rollback" else "upgraded"
    process = text(document, "name") or "a process"
    return f"{modules} {verb} in {process}, live"


def _subtitle(document: Document) -> str:
    busy, longest = number(document, "break_us", "busy_max"), number(document, "break_us", "max")
    parts = []
    gap = longest_gap(restarts(document))
    if busy is not None:
        by_restart = f", and {duration(gap)} by their restart" if gap is not None else ""
        parts.append(f"the busy threads lost at most {duration(busy)}{by_restart}")
    if longest is not None:
        parts.append(f"no thread was held longer than {duration(longest)}")
    parts.append(plural(number(document, "functions", "changed"), "function") + " changed")
    edits, size = number(document, "edits", "count"), number(document, "edits", "bytes")
    if edits is not None and size is not None:
        parts.append(f"{plural(edits, 'edit')}, {plural(size, 'byte')}")
    return " · ".join(part for part in parts if not part.startswith(" "))


def _footer(document: Document) -> str:
    parts = [
        "Each thread by its own time-stamp counter, phases by CLOCK_MONOTONIC, both from the begin of “stop”.",
        "A sleeping thread loses nothing unless it would have woken in its bar.",
    ]
    attempts = number(document, "attempts")
    if attempts is not None and attempts > 1:
        parts.append(f"Shown is the last of {attempts:.0f} stops; the earlier ones were given up and released.")
    if document.get("settle_us"):
        parts.append("The settling stop gives the calls of the restarted loops back what they were; nothing else.")
    absent = [text(thread, "name") for thread in rows(document, "threads") if text(thread, "how") == "absent"]
    if absent:
        shown = ", ".join(absent[:4]) + (" and others" if len(absent) > 4 else "")
        parts.append(f"Not parked (ended by themselves, or ran no code of the module): {shown}.")
    return "  ".join(parts)


# The picture.


def _picture(document: Document, phases: list[tuple[str, float, float]], bars: list[Bar]) -> Figure:
    lines = _rows(bars)
    window = max([end for _, _, end in phases] + [bar.released for bar in bars] + [1.0])
    limits = (min([-0.005 * window] + [bar.parked for bar in bars]), 1.005 * window)
    enlarged = _enlarged([bar for bar in bars if bar.busy], window)
    unit = "µs since the begin of “stop”"
    footer = _wrapped(_footer(document))
    sheet = _Sheet(0.98)
    sheet.add(STRIP, lambda axes: _draw_phases(axes, document, phases, limits))
    threads = sheet.add(
        max(sum(line.height for line in lines), ROW) + 0.15,
        lambda axes: _draw_threads(axes, lines, phases, limits),
        unit if enlarged is None else "µs",
        above=0.42,
    )
    zoom = None
    if enlarged is not None:
        busy = [line for line in lines if line.busy]
        zoom = sheet.add(
            sum(line.height for line in busy) + 0.45,
            lambda axes: _draw_threads(axes, busy, phases, enlarged, named_phases=True),
            f"{unit}, enlarged around the busy threads’ break",
            above=0.82,
        )
    _add_restarts(sheet, document, unit)
    figure, drawn = sheet.draw(below=0.92 + 0.16 * footer.count("\n"))
    if enlarged is not None and zoom is not None:
        _connect(figure, drawn[threads], drawn[zoom], enlarged)
    left, height = 0.3 / WIDTH, sheet.height(0.92 + 0.16 * footer.count("\n"))
    figure.text(left, 1 - 0.30 / height, _title(document), size=14, weight="bold", color=INK, va="center")
    subtitle = _subtitle(document)
    fitting = 10.5 if len(subtitle) < 125 else 9.3
    figure.text(left, 1 - 0.60 / height, subtitle, size=fitting, color=INK, va="center")
    figure.text(left, 0.20 / height, footer, size=8, color=FAINT, va="bottom", linespacing=1.4)
    return figure


def _add_restarts(sheet: _Sheet, document: Document, unit: str) -> None:
    found = restarts(document)
    ways, losses = restart_panels.ways(found), restart_panels.losses(found)
    if ways:
        moved = sum(one.moved for one in found)
        sheet.add(
            restart_panels.ROW * len(ways),
            lambda axes: restart_panels.draw_ways(axes, ways, moved),
            f"{unit}, after it",
            above=0.62 + restart_panels.HEAD,
        )
    if losses:
        told = sum(one.gap is not None for one in found)
        sheet.add(
            restart_panels.ROW * len(losses),
            lambda axes: restart_panels.draw_losses(axes, losses, told),
            "µs, from the begin of each column",
            above=0.68 + restart_panels.HEAD,
            located=False,
        )


@dataclass
class _Panel:
    top: float
    height: float
    draw: Callable[[Axes], None]
    axis: str
    located: bool


class _Sheet:
    """Panels below one another, each as high as it needs to be, in inches."""

    def __init__(self, top: float) -> None:
        self._end = top
        self._panels: list[_Panel] = []

    def add(
        self, height: float, draw: Callable[[Axes], None], axis: str = "", *, above: float = 0.0, located: bool = True
    ) -> int:
        """Add a panel; its number.  ``located``: its ticks may be chosen freely."""
        self._panels.append(_Panel(self._end + above, height, draw, axis, located))
        self._end += above + height
        return len(self._panels) - 1

    def height(self, below: float) -> float:
        return self._end + below

    def draw(self, below: float) -> tuple[Figure, list[Axes]]:
        height = self.height(below)
        figure = Figure(figsize=(WIDTH, height))
        FigureCanvasAgg(figure)
        plot_width = WIDTH - LEFT - RIGHT
        drawn = []
        for panel in self._panels:
            bottom = 1 - (panel.top + panel.height) / height
            axes = figure.add_axes((LEFT / WIDTH, bottom, plot_width / WIDTH, panel.height / height))
            panel.draw(axes)
            if panel.axis:
                _label_axis(axes, panel.axis, located=panel.located)
            drawn.append(axes)
        return figure, drawn


def _enlarged(busy: Sequence[Bar], window: float) -> tuple[float, float] | None:
    if not busy:
        return None
    begin, end = min(bar.parked for bar in busy), max(bar.released for bar in busy)
    span = max(end - begin, 1e-3)
    return (begin - 0.12 * span, end + 0.12 * span) if span < ZOOM_BELOW * window else None


def _draw_phases(
    axes: Axes, document: Document, phases: list[tuple[str, float, float]], limits: tuple[float, float]
) -> None:
    window = limits[1] - limits[0]
    for phase, begin, end in phases:
        axes.barh(0, end - begin, left=begin, height=1, color=PHASE_COLOURS[phase], linewidth=0)
        if end - begin > 0.09 * window:
            label = f"{phase} {duration(end - begin)}"
            fits = end - begin > 0.017 * window * len(label) / 1.6
            axes.text((begin + end) / 2, 0, label if fits else phase, ha="center", va="center", size=9, color="white")
    axes.set_xlim(*limits)
    axes.set_ylim(-0.5, 0.5)
    axes.axis("off")
    _beyond_the_cut(axes, document, "prepare", -1)
    _beyond_the_cut(axes, document, "cleanup", +1)
    _phase_key(axes, phases)


def _beyond_the_cut(axes: Axes, document: Document, phase: str, side: int) -> None:
    """A phase that is too long for the axis: a box beside it, with the two strokes of a cut between."""
    length = number(document, "phases_us", phase)
    if length is None:
        return
    wide = 0.25
    left = -0.035 - wide if side < 0 else 1.035
    box = FancyBboxPatch(
        (left, 0.06), wide, 0.88, boxstyle="round,pad=0,rounding_size=0.015", transform=axes.transAxes,
        facecolor="#eef1f5", edgecolor="#c6ced8", clip_on=False, mutation_aspect=12,
    )  # fmt: skip
    axes.add_patch(box)
    middle = left + wide / 2
    words = f"{phase} {duration(length)}"
    note = "nobody stopped, not to scale"
    axes.text(middle, 0.66, words, transform=axes.transAxes, ha="center", va="center", size=9.5, color=INK)
    axes.text(middle, 0.31, note, transform=axes.transAxes, ha="center", va="center", size=7.5, color=FAINT)
    cut = -0.018 if side < 0 else 1.018
    for shift in (-0.0035, 0.0035):
        x = [cut + shift - 0.004, cut + shift + 0.004]
        axes.plot(x, [0.1, 0.9], transform=axes.transAxes, color=FAINT, linewidth=1, clip_on=False)


def _phase_key(axes: Axes, phases: list[tuple[str, float, float]]) -> None:
    """Every hot phase with its length, for those too narrow to carry their name."""
    whole = phases[-1][2] if phases else 0.0
    entries = [(phase, f"{phase} {duration(end - begin)}") for phase, begin, end in phases]
    x = 0.0
    for phase, words in entries:
        axes.plot([x + 0.008], [-0.30], "s", transform=axes.transAxes, color=PHASE_COLOURS[phase], ms=6, clip_on=False)
        axes.text(x + 0.02, -0.30, words, transform=axes.transAxes, size=8.5, color=INK, va="center")
        x += 0.042 + 0.0098 * len(words)
    if entries:
        total = f"hot window {duration(whole)}"
        axes.text(1.0, -0.30, total, transform=axes.transAxes, size=8.5, color=FAINT, va="center", ha="right")


def _draw_threads(
    axes: Axes,
    lines: Sequence[Row],
    phases: list[tuple[str, float, float]],
    limits: tuple[float, float],
    named_phases: bool = False,
) -> None:
    for phase, begin, end in phases:
        axes.axvspan(begin, end, color=PHASE_COLOURS[phase], alpha=0.10, linewidth=0)
        seen = min(end, limits[1]) - max(begin, limits[0])
        if named_phases and seen > 0.06 * (limits[1] - limits[0]):
            middle = max(begin, limits[0]) + seen / 2
            axes.text(
                middle, 0.97, phase, transform=axes.get_xaxis_transform(), size=8,
                color=PHASE_COLOURS[phase], ha="center", va="top", weight="bold",
            )  # fmt: skip
    top = 0.3 if named_phases else 0.0
    for line in lines:
        middle = top + line.height / 2
        _draw_row(axes, line, top)
        kind = BUSY if line.busy else INK
        weight = "bold" if line.busy else "normal"
        side = axes.get_yaxis_transform()
        axes.text(-0.012, middle, _left_words(line), transform=side, ha="right", va="center", size=9, color=kind)
        axes.text(1.012, middle, _right_words(line), transform=side, va="center", size=9, color=kind, weight=weight)
        top += line.height
    axes.set_xlim(*limits)
    axes.set_ylim(max(top, ROW) + 0.08, -0.07)
    axes.set_yticks([])
    for spine in ("top", "left", "right"):
        axes.spines[spine].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)


def _draw_row(axes: Axes, line: Row, top: float) -> None:
    colour = BUSY if line.busy else ASLEEP
    if len(line.bars) == 1:
        bar = line.bars[0]
        middle = top + line.height / 2
        axes.barh(middle, bar.released - bar.parked, left=bar.parked, height=0.62 * line.height, color=colour)
        return
    step = 0.86 * line.height / len(line.bars)
    heights = (top + 0.07 * line.height + step * (index + 0.5) for index in range(len(line.bars)))
    segments = [[(bar.parked, y), (bar.released, y)] for bar, y in zip(line.bars, heights, strict=True)]
    axes.add_collection(LineCollection(segments, colors=colour, linewidths=max(72 * step * 0.72, 0.5), capstyle="butt"))


def _left_words(line: Row) -> str:
    if len(line.bars) > 1:
        kind = "busy threads" if line.busy else "threads asleep"
        return f"{len(line.bars)} {kind}\n{_common(bar.name for bar in line.bars)}"
    return _shortened(line.bars[0].name)


def _right_words(line: Row) -> str:
    lost = [bar.lost for bar in line.bars]
    if len(line.bars) > 1:
        return f"median {duration(statistics.median(lost))}\nlongest {duration(max(lost))}"
    bar = line.bars[0]
    state = "busy" if bar.busy else "asleep"
    how = MOVED.get(bar.restart, bar.restart) or HOW.get(bar.how, bar.how)
    return f"{duration(bar.lost)}  {state}" + (f", {how}" if how else "")


def _common(thread_names: Iterator[str]) -> str:
    """``handler*, revalidator*``: the names of many threads without their numbers, most frequent first."""
    stems: dict[str, int] = {}
    for name in thread_names:
        stem = name.rstrip("0123456789").rstrip("-_:/ ") or name
        stems[stem] = stems.get(stem, 0) + 1
    ranked = sorted(stems, key=lambda stem: (-stems[stem], stem))
    return ", ".join(_shortened(stem, 14) for stem in ranked[:2]) + (" …" if len(ranked) > 2 else "")


def _shortened(name: str, most: int = 30) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _label_axis(axes: Axes, words: str, *, located: bool) -> None:
    axes.set_xlabel(words, size=9, color=FAINT)
    axes.tick_params(axis="x", colors=FAINT, labelsize=8.5)
    if not located:
        return
    axes.xaxis.set_major_locator(MaxNLocator(8))
    axes.ticklabel_format(axis="x", style="plain", useOffset=False)


def _connect(figure: Figure, above: Axes, below: Axes, limits: tuple[float, float]) -> None:
    low = above.get_ylim()[0]
    for x, corner in ((limits[0], 0.0), (limits[1], 1.0)):
        figure.add_artist(
            ConnectionPatch(
                xyA=(x, low), coordsA=above.transData, xyB=(corner, 1.0), coordsB=below.transAxes,
                color=BUSY, linewidth=0.8, alpha=0.6,
            )
        )  # fmt: skip


def _nothing_happened(document: Document) -> Figure:
    figure = Figure(figsize=(WIDTH, 1.9))
    FigureCanvasAgg(figure)
    outcome = text(document, "outcome", default="not known")
    figure.text(0.03, 0.72, "No thread was stopped", size=14, weight="bold", color=INK)
    figure.text(0.03, 0.50, f"Outcome: {outcome}", size=11, color=INK)
    reasons = [text(reason, "text") for reason in rows(document, "reasons")]
    figure.text(0.03, 0.40, _wrapped("  ".join(reasons)), size=9, color=FAINT, va="top")
    return figure


def _wrapped(words: str, most: int = 180) -> str:
    lines, line = [], ""
    for word in words.split(" "):
        if line and len(line) + len(word) + 1 > most:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return "\n".join([*lines, line])
