"""Pictures of hot upgrades alone: how their breaks are spread, and how they grow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hotupgrade.vswitch.compare.distribution import KINDS

Document = dict[str, Any]


def draw_distribution(result: Document, path: Path) -> None:
    """Write a PNG: which share of the breaks is no longer than what; those with a preemption in them are marked."""
    from matplotlib.figure import Figure  # takes a second to load, and only this needs it

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    for number, (kind, title) in enumerate(KINDS.items()):
        rows = sorted((row for row in result["runs"] if row["kind"] == kind), key=lambda row: row["break_us"])
        shares = [(index + 1) / len(rows) for index in range(len(rows))]
        values = [row["break_us"] for row in rows]
        axes.step(values, shares, where="post", color=f"C{number}", label=f"{title} (n = {len(rows)})")
        hit = [index for index, row in enumerate(rows) if row["preempted_us"] or row["leader_preempted_us"]]
        if hit:
            words = "with a preemption in it"
            axes.plot([values[i] for i in hit], [shares[i] for i in hit], "x", color=f"C{number}", label=words)
    axes.set(xscale="log", xlabel="the polling thread's break, µs", ylabel="share that is no longer", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="lower right")
    figure.savefig(path, dpi=110)


def draw_growth(found: dict[str, Document], path: Path) -> None:
    """Write a PNG: for each thing that grows, every break of the loaded and of the empty switch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    all_axes = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axes, axis in zip(all_axes, found.values(), strict=True):
        for name, colour in (("empty", "tab:gray"), ("loaded", "tab:blue")):
            for point in (point for point in axis["points"] if "runs" in point):
                values = [
                    row["break_us"] for row in point["runs"] if row["switch"] == name and row["kind"] == "upgrade"
                ]
                axes.plot([point["there"]] * len(values), values, "o", alpha=0.35, color=colour, markersize=4)
            medians = [
                (point["there"], point["upgrade"][name]["median"]) for point in axis["points"] if "upgrade" in point
            ]
            if medians:
                axes.plot(*zip(*medians, strict=True), "-", color=colour, label=f"{name}, median")
        axes.set(xscale="log", yscale="log")
        axes.set_xlabel(axis["title"], fontsize="small")
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("the polling thread's break, µs")
    all_axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=110)
