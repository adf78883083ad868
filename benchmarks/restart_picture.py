"""The breaks by restarts as a picture: which share of them is no longer than what."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from samples import Result

mpl.use("agg")

import matplotlib.pyplot as plt

from hotupgrade.report import timeline

LINES = (
    ("empty_stop", "PMD, a stop that changes nothing", "C7", ":"),
    ("gap", "PMD, its restart", "C1", "-"),
    ("lost", "PMD, stop, restart and settling stop", "C3", "-"),
    ("window", "PMD, as long without a restart", "C0", ":"),
    ("group", "handlers and revalidators (asleep)", "C2", "-"),
)
WANTED = ((60, 0.5, "C1"), (200, 0.95, "C1"), (500, 0.95, "C2"))  # µs, share, colour of the line it is about


def draw(result: Result, directory: Path) -> list[Path]:
    """The distribution, and the timelines of the median upgrade or rollback and of that with the longest break."""
    paths = [_distribution(result, directory / "restarts.png")]
    for name, document in result.facts.get("documents", {}).items():
        paths.append(directory / f"restart-{name}.png")
        timeline.draw(document, paths[-1])
    return paths


def _distribution(result: Result, path: Path) -> Path:
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    for key, label, colour, style in LINES:
        values = sorted(result[key].values)
        if values:
            shares = [(index + 1) / len(values) for index in range(len(values))]
            axes.step(values, shares, where="post", label=f"{label} (n = {len(values)})", color=colour, linestyle=style)
    for limit, share, colour in WANTED:
        axes.plot([limit], [share], "v", color=colour, ms=8)
        words = f"≤ {limit} µs\nfor {share:.0%}"
        axes.annotate(words, (limit, share), (0, -8), textcoords="offset points", size=8, ha="center", va="top")
    axes.set(xscale="log", xlabel="µs", ylabel="share that is no longer", ylim=(0, 1.01))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
