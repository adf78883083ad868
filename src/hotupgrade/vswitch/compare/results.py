"""The result document of the comparison: what several invocations have found, put together.

``{"version": 4, "parts": {PART: {KEY: ENTRY}}}``: what was measured of the part "ways" goes by the number of flows and
the way, of "applications" by application, of "growth" by what grows, and of "distribution" there is one.  An entry has
the ``result`` and what it was measured on, when, how long that took, and by which command.  Measuring anew takes the
place of what was there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hotupgrade.errors import UsageError

Document = dict[str, Any]
VERSION = 4
_CLOSE: dict[str, Any] = {"separators": (",", ":"), "ensure_ascii": False}
PARTS = ("ways", "applications", "growth", "distribution")


def empty() -> Document:
    return {"version": VERSION, "parts": {}}


def load(path: Path) -> Document:
    """What is there; :func:`empty` if nothing is, or it is the document of an earlier version.

    Raises:
        UsageError: the file is none of ours.
    """
    if not path.exists():
        return empty()
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        version = document["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a document of 'hotupgrade compare': move it away") from error
    if version != VERSION or "parts" not in document:
        return empty()
    assert isinstance(document, dict)
    return document


def merge(document: Mapping[str, Any], part: str, entries: Mapping[str, Any]) -> Document:
    """``document`` with the entries of a part; those of the same key are replaced, others stay."""
    parts = dict(document["parts"])
    parts[part] = {**parts.get(part, {}), **entries}
    return {**document, "parts": parts}


def brief(document: Mapping[str, Any]) -> Document:
    """What is worth keeping beside a page: all that it was written of, and so all but most of the series."""
    parts = dict(document["parts"])
    parts["ways"] = {key: _without_series(entry) for key, entry in parts.get("ways", {}).items()}
    return {**document, "parts": {part: parts[part] for part in PARTS if parts.get(part)}}


def _without_series(entry: Mapping[str, Any]) -> Document:
    way = entry["result"]["way"]
    kept = median_run(way["runs"])
    runs = [row if row is kept else {**row, "series": None} for row in way["runs"]]
    return {**entry, "result": {**entry["result"], "way": {**way, "runs": runs}}}


def median_run(runs: Sequence[Document]) -> Document:
    """The run whose break is the median."""
    ordered = sorted(runs, key=lambda row: row["traffic"]["break_ms"])
    return ordered[len(ordered) // 2]


def publish(path: Path, document: Mapping[str, Any]) -> None:
    """Briefly (:func:`brief`), numbers with as many digits as were meant, and an entry a line: for version control."""
    parts = []
    for part, entries in brief(document)["parts"].items():
        lines = (f"{json.dumps(key)}:{json.dumps(_rounded(entry), **_CLOSE)}" for key, entry in entries.items())
        parts.append(f"{json.dumps(part)}:{{\n" + ",\n".join(lines) + "\n}")
    path.write_text(f'{{"version":{document["version"]},"parts":{{\n' + ",\n".join(parts) + "\n}}\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def save(path: Path, document: Document) -> None:
    """As a whole or not at all: a long comparison may be ended at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    new.replace(path)
