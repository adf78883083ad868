"""Restarts as pictures: the way of each thread on the clock of the stop, and what each busy thread lost in all.

In the first panel, time is that of the stop: who was asked when, what it did then.  In the second all spans have one
scale, but begin where each thread's own loss begins: the stop itself, the restart, the settling stop some milliseconds
later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotupgrade.report.document import duration, plural
from hotupgrade.report.restarts import KINDS, Group, Restart, groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"on": "#d5dbe3", "out": "#f28e2b", "wait": "#b9a2d0", "in": "#2b8a3e"}
PARKED, SETTLED, TAKEN, INK, FAINT = "#d9480f", "#8c6d5a", "#1f2933", "#1f2933", "#6b7785"
ROWS_AT_MOST = 12  # those with the longest way, or loss; the others are counted in words
ROW, HEAD = 0.30, 0.42  # inches: a thread; what the title and the key take above the panel


@dataclass(frozen=True, slots=True)
class Way:
    """A thread in the first panel, and when the last of its group had left."""

    restart: Restart
    group: Group


@dataclass(frozen=True, slots=True)
class Loss:
    """A busy thread in the second panel.  ``columns`` are where its stop, restart and settling stop are drawn."""

    restart: Restart
    columns: tuple[float, float, float]


def ways(found: Sequence[Restart]) -> list[Way]:
    """The longest of them, in the order in which they were asked."""
    every = [Way(member, group) for group in groups(found) for member in group.members]
    kept = sorted(every, key=lambda way: -_length(way.restart))[:ROWS_AT_MOST]
    return [way for way in every if way in kept]


def losses(found: Iterable[Restart]) -> list[Loss]:
    """The busy threads that lost most, in columns of one scale."""
    known = sorted((one for one in found if one.gap is not None), key=lambda one: -(one.lost or 0.0))[:ROWS_AT_MOST]
    if not known:
        return []
    widest = [max(_columns(one)[index] for one in known) for index in range(3)]
    between = 0.06 * max(sum(widest), 1.0)
    second = widest[0] + between
    return [Loss(one, (0.0, second, second + widest[1] + between)) for one in known]


def draw_ways(axes: Axes, shown: Sequence[Way], of: int) -> None:
    """The first panel, for ``shown`` of ``of`` threads; its axis is in µs since the begin of the stop."""
    begin = min(way.group.asked for way in shown)
    end = max(way.group.arrived for way in shown)
    span = max(end - begin, 1.0)
    for line, way in enumerate(shown):
        for part in way.restart.parts(way.group.left):
            _bar(axes, line, part.begin, part.length, COLOURS[part.kind])
        for taken in way.restart.taken:
            _taken(axes, line, max(taken[0], begin), min(taken[1], end))
        _words(axes, line, way.restart.name, _way_words(way), busy=way.restart.gap is not None)
    _frame(axes, len(shown), (begin - 0.01 * span, end + 0.01 * span))
    _head(axes, len(shown), "Threads led into the new code" + _left_out(len(shown), of))
    _key(axes, len(shown), [(COLOURS[kind], words) for kind, words in KINDS.items()])


def draw_losses(axes: Axes, shown: Sequence[Loss], of: int) -> None:
    """The second panel, for ``shown`` of ``of`` threads; its axis is in µs, begun anew for each column."""
    columns = shown[0].columns
    for line, loss in enumerate(shown):
        one = loss.restart
        _bar(axes, line, columns[0], one.parked or 0.0, PARKED)
        for kind, begin, length in _gap_parts(one):
            _bar(axes, line, columns[1] + begin, length, COLOURS[kind])
        for begin, end in one.taken:
            zero = columns[1] - (one.worked or 0.0)
            _taken(axes, line, max(begin + zero, columns[1]), min(end + zero, columns[1] + (one.gap or 0.0)))
        _bar(axes, line, columns[2], one.settle or 0.0, SETTLED)
        _words(axes, line, one.name, _loss_words(one), busy=True)
    right = max(columns[2] + (loss.restart.settle or 0.0) for loss in shown)
    _frame(axes, len(shown), (-0.01 * right, 1.03 * right))
    narrow = columns[1] < 0.09 * right
    for left, words in zip(columns, ("the stop", "the restart: out, in", "the settling stop"), strict=True):
        side = "right" if narrow and not left else "left"  # or the second would lie over the first
        axes.text(left, -0.22, words, size=8, color=FAINT, va="center", ha=side)
        axes.axvline(left, color=FAINT, linewidth=0.6, alpha=0.5)
    _ticks(axes, columns, right)
    _head(axes, len(shown), "What busy threads lost, to one scale" + _left_out(len(shown), of))
    if any(loss.restart.taken for loss in shown):
        words, place = "hatched: preempted by the machine", 1.0 + 0.30 / _inches(len(shown))
        axes.text(1.0, place, words, transform=axes.transAxes, size=8, color=FAINT, ha="right", va="center")


# What is drawn.


def _columns(one: Restart) -> tuple[float, float, float]:
    return (one.parked or 0.0, one.gap or 0.0, one.settle or 0.0)


def _length(one: Restart) -> float:
    return one.gap if one.gap is not None else (one.arrived or 0.0) - (one.asked or 0.0)


def _gap_parts(one: Restart) -> Iterator[tuple[str, float, float]]:
    """(kind, begin, length) of what a gap consists of, from its own begin on."""
    into = (one.arrived or 0.0) - (one.left or 0.0)
    gap = one.gap or 0.0
    yield "out", 0.0, max(gap - into, 0.0)
    yield "in", max(gap - into, 0.0), min(into, gap)


def _way_words(way: Way) -> str:
    one = way.restart
    if one.gap is not None:
        skipped = f", {plural(len(one.skipped), 'call')} skipped" if one.skipped else ""
        return f"break {duration(one.gap)}{skipped}"
    if len(way.group.members) > 1:
        return f"in a group of {len(way.group.members)}: {duration(way.group.lasted)}"
    return f"{duration(way.group.lasted)}, {'since asked' if one.busy else 'asleep'}"


def _loss_words(one: Restart) -> str:
    if one.taken_us:
        return f"{duration(one.lost)}, {duration(one.taken_us)} by the machine"
    return f"{duration(one.lost)} in all, {duration(one.gap)} by restart"


def _left_out(shown: int, of: int) -> str:
    return f" (the longest {shown} of {of})" if shown < of else ""


# How it is drawn.


def _inches(rows: int) -> float:
    return ROW * rows


def _bar(axes: Axes, line: int, begin: float, length: float, colour: str) -> None:
    axes.barh(line + 0.5, length, left=begin, height=0.62, color=colour, linewidth=0)


def _taken(axes: Axes, line: int, begin: float, end: float) -> None:
    if end > begin:
        axes.barh(
            line + 0.5,
            end - begin,
            left=begin,
            height=0.62,
            facecolor="none",
            edgecolor=TAKEN,
            hatch="/////",
            linewidth=0,
        )


def _words(axes: Axes, line: int, left: str, right: str, *, busy: bool) -> None:
    side = axes.get_yaxis_transform()
    colour = PARKED if busy else INK
    short = left if len(left) <= 30 else left[:29] + "…"
    axes.text(-0.012, line + 0.5, short, transform=side, ha="right", va="center", size=9, color=colour)
    weight = "bold" if busy else "normal"
    axes.text(1.012, line + 0.5, right, transform=side, va="center", size=8.5, color=colour, weight=weight)


def _frame(axes: Axes, rows: int, limits: tuple[float, float]) -> None:
    axes.set_xlim(*limits)
    axes.set_ylim(rows, 0)
    axes.set_yticks([])
    for spine in ("top", "left", "right"):
        axes.spines[spine].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)


def _head(axes: Axes, rows: int, words: str) -> None:
    place = 1.0 + 0.30 / _inches(rows)
    axes.text(0.0, place, words, transform=axes.transAxes, size=9.5, color=INK, weight="bold", va="center")


def _key(axes: Axes, rows: int, entries: Sequence[tuple[str, str]]) -> None:
    place, x = 1.0 + 0.11 / _inches(rows), 0.0
    for colour, words in entries:
        axes.plot([x + 0.008], [place], "s", transform=axes.transAxes, color=colour, ms=6, clip_on=False)
        axes.text(x + 0.02, place, words, transform=axes.transAxes, size=8, color=INK, va="center")
        x += 0.045 + 0.0088 * len(words)


def _ticks(axes: Axes, columns: tuple[float, float, float], right: float) -> None:
    """A round step that fits all columns, counted from the begin of each."""
    step = next(size for size in _round_steps() if right / size <= 12)
    ends = (*columns[1:], right * 1.03)
    places, labels = [], []
    for begin, end in zip(columns, ends, strict=True):
        count = int((end - begin - 0.03 * right) / step)  # the next column's first label needs room
        places += [begin + step * index for index in range(count + 1)]
        labels += [f"{step * index:g}" for index in range(count + 1)]
    axes.set_xticks(places, labels)


def _round_steps() -> Iterator[float]:
    size = 1.0
    while True:
        yield from (size, 2 * size, 5 * size)
        size *= 10
