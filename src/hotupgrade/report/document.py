"""Tolerant reading of the ``--json`` documents: a field that is missing or of another type is simply not known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Document = Mapping[str, Any]


def section(document: object, *keys: str) -> Document:
    """The mapping below ``keys``; empty if there is none."""
    found = _below(document, keys)
    return found if isinstance(found, Mapping) else {}


def rows(document: object, *keys: str) -> list[Document]:
    """The mappings in the list below ``keys``."""
    found = _below(document, keys)
    if not isinstance(found, Sequence) or isinstance(found, str | bytes):
        return []
    return [row for row in found if isinstance(row, Mapping)]


def number(document: object, *keys: str) -> float | None:
    """The number below ``keys``; None if there is none (a truth value is not a number)."""
    found = _below(document, keys)
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return float(found) if math.isfinite(found) else None


def text(document: object, *keys: str, default: str = "") -> str:
    """What stands below ``keys``, as one would read it aloud."""
    found = _below(document, keys)
    if found is None:
        return default
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, float):
        return f"{found:,.4g}" if abs(found) < 10_000 else f"{found:,.0f}"
    if isinstance(found, int):
        return f"{found:,}"
    if isinstance(found, Sequence) and not isinstance(found, str | bytes):
        return ", ".join(str(item) for item in found)
    return str(found)


def names(document: object, *keys: str) -> list[str]:
    """The list of names below ``keys``; a bare count names nothing."""
    found = _below(document, keys)
    if not isinstance(found, Sequence) or isinstance(found, str | bytes):
        return []
    return [str(item) for item in found]


def duration(microseconds: float | None) -> str:
    """A span of time in the unit that a person would choose."""
    if microseconds is None:
        return "not known"
    if abs(microseconds) >= 999_950:
        return f"{microseconds / 1e6:.2f} s"
    if abs(microseconds) >= 999.5:
        return f"{_digits(microseconds / 1e3)} ms"
    return f"{_digits(microseconds)} µs"


def plural(count: float | None, singular: str, several: str = "") -> str:
    """``3 functions``, ``1 function``; empty if the count is not known."""
    if count is None:
        return ""
    return f"{count:,.0f} {singular if count == 1 else several or singular + 's'}"


def _digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.1f}"


def _below(document: object, keys: Sequence[str]) -> object:
    found = document
    for key in keys:
        if not isinstance(found, Mapping):
            return None
        found = found.get(key)
    return found
