"""What differs between two definitions of one type, in words: sizes, then fields or enumerators by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from hotupgrade.binary.debug.model import Definition, Field, plain

LISTED = 6  # differences that are listed before "and N more"

_COUNTS_OTHERS = re.compile(r"(^|_)(N|NUM|MAX|LAST|COUNT|END|SENTINEL)(_|$)|_MAX$")


def difference(old: Definition, new: Definition) -> str:
    """For a structure or union: ``296 → 312 bytes, +alg_expectations at 208``."""
    parts = []
    if old.kind != new.kind:
        parts.append(f"{old.kind} → {new.kind}")
    if old.size != new.size:
        parts.append(f"{old.size} → {new.size} bytes")
    if old.alignment != new.alignment:
        parts.append(f"alignment {old.alignment or 'natural'} → {new.alignment or 'natural'}")
    return ", ".join([*parts, *listed(list(_fields(old.fields, new.fields)))])


def listed(parts: Sequence[str]) -> list[str]:
    more = [f"and {len(parts) - LISTED} more"] if len(parts) > LISTED else []
    return [*parts[:LISTED], *more]


def _fields(old: Sequence[Field], new: Sequence[Field]) -> Iterator[str]:
    before, after = _by_name(old), _by_name(new)
    gone = {name: field for name, field in before.items() if name not in after}
    fresh = {name: field for name, field in after.items() if name not in before}
    for name, field in list(gone.items()):
        for other, candidate in fresh.items():
            if (field.bit, field.bits, field.text) == (candidate.bit, candidate.bits, candidate.text):
                yield f"{name} is called {other} (same place, same type; does it mean the same?)"
                del gone[name], fresh[other]
                break
    yield from (f"-{name}{_place(field)}" for name, field in gone.items())
    yield from (f"+{name}{_place(field)}" for name, field in fresh.items())
    common = [(name, before[name], after[name]) for name in before if name in after]
    for name, ours, theirs in common:
        if ours.text != theirs.text:
            yield f"{name}: {plain(ours.text)} → {plain(theirs.text)}"
        elif ours.bits != theirs.bits:
            yield f"{name}: {_width(ours)} → {_width(theirs)}"
    for name, ours, theirs in common:
        if ours.bit != theirs.bit:
            yield f"{name} moved{_place(ours)} →{_place(theirs).removeprefix(' at')}"


def _by_name(fields: Sequence[Field]) -> dict[str, Field]:
    """Names that repeat (or are empty) are numbered."""
    found: dict[str, Field] = {}
    for field in fields:
        name, number = field.name or "(unnamed)", 2
        while name in found:
            name, number = f"{field.name or '(unnamed)'} #{number}", number + 1
        found[name] = field
    return found


def _place(field: Field) -> str:
    if field.name.startswith("<virtual"):
        return f" {field.text}"
    if field.bit < 0:
        return ""
    whole, rest = divmod(field.bit, 8)
    return f" at {whole} bit {rest}" if rest or field.bits else f" at {whole}"


def _width(field: Field) -> str:
    return f"{field.bits} bits" if field.bits else "no bit-field"


# Enumerations


def changed_enumerators(old: Definition, new: Definition) -> list[str]:
    """``COLOUR_BLUE 1 → 2``, for each that has another value or is gone."""
    before, after = dict(old.enumerators), dict(new.enumerators)
    names = {value: name for name, value in new.enumerators if name not in before}
    found = []
    for name, value in before.items():
        if name not in after:
            other = names.get(value)
            found.append(f"{name} {value} → " + (f"called {other}" if other else "gone"))
        elif after[name] != value:
            hint = " (it seems to count the others)" if _COUNTS_OTHERS.search(name) else ""
            found.append(f"{name} {value} → {after[name]}{hint}")
    return found


def added_enumerators(old: Definition, new: Definition) -> list[str]:
    before = dict(old.enumerators)
    return [name for name, _ in new.enumerators if name not in before]
