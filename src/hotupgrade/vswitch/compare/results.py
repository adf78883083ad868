"""The result document of the comparison: what several invocations have found, put together.

``{"version": 4, "parts": {PART: {KEY: ENTRY}}}``: what was measured of the part "ways" goes by the number of flows and
the way, of "applications" by application, of "growth" by what grows, and of "distribution" there is one.  An entry has
the ``result`` and what it was measured on, when, how long that took, and by which command.  Measuring anew takes the
place of what was there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hotupgrade.errors import UsageError

Document = dict[str, Any]
VERSION = 4
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


def save(path: Path, document: Document) -> None:
    """As a whole or not at all: a long comparison may be ended at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    new.replace(path)
