"""Writes the table of docs/real-programs.md from what the tests told: ``python tests/real/table.py``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "real-programs.md"
RESULTS = ROOT / "build" / "real" / "results"
BEGIN, END = "<!-- table: tests/real/table.py -->", "<!-- end of the table -->"
HEAD = ("program", "version", "what changed", "processes", "outcome", "longest break", "command", "clients", "errors")


def main() -> int:
    rows = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    if not rows:
        print("no results: run make test-real first", file=sys.stderr)
        return 1
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table(rows)}{END}{after}")
    return 0


def table(rows: list[dict[str, object]]) -> str:
    lines = [HEAD, ("---",) * len(HEAD), *map(cells, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cells(row: dict[str, object]) -> tuple[str, ...]:
    texts = [row[key] for key in ("program", "version", "changed", "processes", "outcome")]
    rest = (duration(row["break_us"]), seconds(row["prepare_s"]), row["clients"], row["errors"])
    return tuple("" if item is None else str(item).replace("|", "\\|") for item in (*texts, *rest))


def duration(us: object) -> str:
    if not isinstance(us, (int, float)):
        return ""
    return f"{us / 1000:.1f} ms" if us >= 1000 else f"{us:.0f} µs"


def seconds(value: object) -> str:
    return f"{value:.1f} s" if isinstance(value, (int, float)) else ""


if __name__ == "__main__":
    sys.exit(main())
