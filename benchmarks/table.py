"""The results for a person."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text
from samples import Result


def show(results: Sequence[Result], console: Console) -> None:
    for result in results:
        table = Table(title=f"{result.name} ({result.seconds:.0f} s)", title_justify="left", header_style="dim")
        for heading in ("", "", "measured (median)", "control", "asked for", "n", ""):
            table.add_column(heading, overflow="fold", justify="right" if heading == "n" else "left")
        for row in result.rows:
            mark = Text("") if row.holds is None else Text("✓", "green") if row.holds else Text("✗", "bold red")
            count = str(row.count) if row.count else ""
            table.add_row(mark, row.name, row.measured, row.control, row.criterion, count, Text(row.note, "dim"))
        console.print(table)


def verdict(results: Sequence[Result], console: Console) -> None:
    """One line: what does not hold."""
    judged = [row for result in results for row in result.rows if row.holds is not None]
    missed = [row.name.strip() for row in judged if not row.holds]
    words = f"{len(judged) - len(missed)} of {len(judged)} criteria hold"
    if missed:
        words += f"; not: {'; '.join(missed)}"
    console.print(Text(words, "bold red" if missed else "bold green"), soft_wrap=True)
