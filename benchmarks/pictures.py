"""The curves as pictures."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from samples import Result

mpl.use("agg")

import matplotlib.pyplot as plt

AXES = {
    "sleepers": "sleeping threads (1 busy)",
    "busy": "busy threads (2 sleeping)",
    "functions": "changed functions",
}
LINES = (
    ("upgrade_outside", "busy, from outside", "C3", "-"),
    ("empty_outside", "busy, from outside, empty stop", "C3", ":"),
    ("upgrade_inside", "busy, own clock", "C0", "-"),
    ("empty_inside", "busy, own clock, empty stop", "C0", ":"),
    ("upgrade_sleepers_max", "sleeper, longest", "C2", "-"),
    ("empty_sleepers_max", "sleeper, longest, empty stop", "C2", ":"),
)


def draw(result: Result, directory: Path) -> Path:
    """Medians as lines, from the smallest sample to the 95th percentile as bars."""
    points = result.facts["points"]
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for key, label, colour, style in LINES:
        series = [result[f"{point}_{key}"] for point in points]
        shown = [(point, one) for point, one in zip(points, series, strict=True) if one.values]
        if not shown:
            continue
        x = [point for point, _ in shown]
        y = [one.median for _, one in shown]
        low = [max(one.median - min(one.values), 0) for _, one in shown]
        high = [max(one.p95 - one.median, 0) for _, one in shown]
        axes.errorbar(x, y, yerr=(low, high), label=label, color=colour, linestyle=style, marker="o", capsize=3)
    axes.set(
        xlabel=AXES[result.name], ylabel="break in µs", yscale="log", xscale="linear" if max(points) < 10 else "log"
    )
    axes.set_xticks(points, [str(point) for point in points])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    path = directory / f"{result.name}.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
