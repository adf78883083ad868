"""Where a build speaks of certain types: what decides whether an object of them can outlive a call.

This is asked only for types that differ, which is seldom; so it is read anew, in more detail than what is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from hotupgrade.binary.debug.constants import At, Tag
from hotupgrade.binary.debug.describe import function_name, name_of, origin, type_of
from hotupgrade.binary.debug.model import SHORTENED, names_in
from hotupgrade.binary.debug.read import STUMBLES, function_around, static_places
from hotupgrade.binary.debug.sections import Sections, Supplement, Unusable
from hotupgrade.binary.debug.units import Entry, Units
from hotupgrade.binary.model import Section

_SPEAKING = (Tag.VARIABLE, Tag.PARAMETER, Tag.MEMBER, Tag.INHERITANCE, Tag.SUBPROGRAM, Tag.SUBROUTINE_TYPE)
_BODIES = (Tag.STRUCTURE, Tag.CLASS, Tag.UNION)


@dataclass
class Mentions:
    """Of one type: functions with an automatic object of it, functions that are given a pointer to one, and all else
    (in words), which an object of the type may be reached through at any time."""

    objects: set[str] = field(default_factory=set)
    parameters: set[str] = field(default_factory=set)
    elsewhere: set[str] = field(default_factory=set)


@dataclass
class Spoken:
    """``inlined``: function to those that it was inlined into."""

    mentions: Mapping[str, Mentions]
    inlined: Mapping[str, set[str]]


def read_mentions(
    data: bytes, sections: Mapping[str, Section], names: Collection[str], supplement: Supplement | None = None
) -> Spoken | None:
    """None: it cannot be read."""
    try:
        shared = None if supplement is None else Sections(*supplement)
        return _read(Units(Sections(data, sections), {Tag.INLINED_SUBROUTINE, Tag.VARIABLE}, shared), names)
    except (Unusable, *STUMBLES):
        return None


def _read(units: Units, names: Collection[str]) -> Spoken:
    mentions = {name: Mentions() for name in names}
    inlined: dict[str, set[str]] = defaultdict(set)
    for unit in units:
        for entry in unit.load().values():
            if entry.tag == Tag.INLINED_SUBROUTINE:
                inlined[function_name(origin(entry))].add(function_around(entry))
            elif entry.tag in _SPEAKING:
                text = type_of(entry)
                for name in names if SHORTENED in text else dict.fromkeys(names_in(text)):
                    if name in mentions:
                        _add(mentions[name], entry, name, text)
    return Spoken(mentions, inlined)


def _add(mentions: Mentions, entry: Entry, name: str, text: str) -> None:
    function = function_around(entry)
    by_value = text == f"`{name}`" or (text.startswith(f"`{name}` [") and "*" not in text)
    parent = entry.parent
    if entry.tag == Tag.PARAMETER and parent is not None and parent.tag == Tag.SUBPROGRAM and function:
        if by_value:
            mentions.objects.add(function)
            return
        if text == f"`{name}` *":
            mentions.parameters.add(function)
            return
    elif entry.tag == Tag.SUBPROGRAM and by_value:
        mentions.objects.add(function_name(entry))
        return
    elif entry.tag == Tag.VARIABLE and function and by_value and not _is_static(entry):
        mentions.objects.add(function)
        return
    mentions.elsewhere.add(_where(entry, function))


def _is_static(entry: Entry) -> bool:
    """A variable of a function that does not live on its stack."""
    location = entry.values.get(At.LOCATION)
    fixed = isinstance(location, bytes) and bool(static_places(entry, location))
    return fixed or At.EXTERNAL in entry.values or At.DECLARATION in entry.values


def _where(entry: Entry, function: str) -> str:
    if entry.tag in (Tag.MEMBER, Tag.INHERITANCE):
        return f"a member of {name_of(entry.parent) if entry.parent and entry.parent.tag in _BODIES else 'something'}"
    return f"{entry.name or 'a pointer'} in {function}" if function else entry.name or "a prototype"


def all_users(function: str, inlined: Mapping[str, set[str]]) -> Iterator[str]:
    """A function and all those that it was inlined into, directly or not."""
    seen, work = {function}, [function]
    while work:
        name = work.pop()
        yield name
        fresh = inlined.get(name, set()) - seen
        seen |= fresh
        work += fresh
