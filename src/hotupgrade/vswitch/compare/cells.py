"""Tables of a page, as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def joined(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def failed(words: str, width: int) -> list[str]:
    """So many cells, the first of which says that something was not possible, and why: the first line of an error."""
    return [f"not possible: {words.partition(chr(10))[0].replace('|', '/')}", *[""] * (width - 1)]
