"""Where in an entry its values lie, as its abbreviation tells."""

from __future__ import annotations

from typing import NamedTuple

from hotupgrade.binary.debug.abbreviations import WANTED_ATTRIBUTES, Abbreviation, size_of_form


class Place(NamedTuple):
    """Where a value lies: ``offset`` bytes behind the ``gap``-th value of unknown size (0: behind the entry's code)."""

    gap: int
    offset: int
    form: int
    constant: int  # of a value that takes no room


class Gap(NamedTuple):
    """A value whose size is known only when it is read, ``before`` bytes behind the one before it."""

    before: int
    form: int


class Layout(NamedTuple):
    """``behind``: bytes after the last gap."""

    places: dict[int, Place]
    gaps: tuple[Gap, ...]
    behind: int
    repeats: bool  # an attribute is there twice: no compiler makes that


def layout_of(abbreviation: Abbreviation) -> Layout:
    """Of all attributes that are looked at."""
    places: dict[int, Place] = {}
    gaps: list[Gap] = []
    offset, repeats = 0, False
    for attribute, form, constant in abbreviation.attributes:
        if attribute in WANTED_ATTRIBUTES:
            repeats |= attribute in places
            places[attribute] = Place(len(gaps), offset, form, constant)
        size = size_of_form(form, abbreviation.offset_size)
        if size is None:
            gaps.append(Gap(offset, form))
            offset = 0
        else:
            offset += size
    return Layout(places, tuple(gaps), offset, repeats)
