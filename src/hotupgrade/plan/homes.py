"""Where every name of a new build lives in the process: its home.

The home of a name is the address that it first had.  It lies in image 0 if the name is paired there, else in the first
later image that owned it; a name without either is new, and its home will be the image that is about to be placed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import I32, I64, Flags, Kind
from hotupgrade.plan.model import Comparison, Image

NEW = -1

READ_ONLY = (Kind.CONSTANT, Kind.RELRO)

_SUFFIX = re.compile(r"\.\d+$")


@dataclass(frozen=True)
class Rehomed:
    """A constant that has a partner but cannot keep its home: it has another size, or is of another kind now."""

    row: int
    image: int
    partner: int


@dataclass(frozen=True)
class Homes:
    """Parallel to the rows of the new build's entities."""

    owner: I32  # index of the image that holds the home; NEW where there is none yet
    partner: I32  # row in that image's build; -1 where there is none
    address: I64  # absolute; for Kind.TLS the offset from the module's block; 0 where the name is new
    unproven: Flags  # mutable, and it cannot be told whether it has a home: must not be used
    rehomed: tuple[Rehomed, ...]


def find_homes(images: Sequence[Image], current: int, new: Build, comparisons: Sequence[Comparison]) -> Homes:
    """The homes of all rows of ``new``.  ``comparisons[k]`` is that of ``images[k].build`` with ``new``."""
    count = len(new.entities)
    owner = np.full(count, NEW, dtype=np.int32)
    partner = np.full(count, -1, dtype=np.int32)
    address = np.zeros(count, dtype=np.int64)
    unproven = np.zeros(count, dtype=np.bool_)
    # Without names nobody can tell whether a table that is written at start has a home: its address may be compared.
    mutable = np.isin(new.entities.kind, (Kind.OBJECT, Kind.TLS, *([Kind.RELRO] if new.bare else [])))
    nameless = unsized(new)
    rehomed: list[Rehomed] = []
    for index, (image, comparison) in enumerate(zip(images, comparisons, strict=True)):
        pairs = partners(image, new, comparison)
        owned = _owned(image, index)
        paired = (pairs >= 0) & owned[np.maximum(pairs, 0)] & ~nameless
        if index:
            paired &= ~(mutable & (image.build.entities.size[np.maximum(pairs, 0)] != new.entities.size))
        unproven |= paired & mutable & (owner != NEW)
        fresh = paired & (owner == NEW)
        leaves = fresh & ~_keeps_home(image.build, pairs, new)
        rehomed += [Rehomed(row, index, int(pairs[row])) for row in np.flatnonzero(leaves).tolist()]
        fresh &= ~leaves
        owner[fresh] = index
        partner[fresh] = pairs[fresh]
        address[fresh] = _addresses(image, index)[pairs[fresh]]
    rehomed += _exports_of_another_kind(images[0].build, new, owner)
    moved = {entry.row for entry in rehomed}
    for row in np.flatnonzero(mutable & (owner == NEW)).tolist():
        unproven[row] = row not in moved and _may_have_home(row, images, current, new, comparisons)
    return Homes(owner, partner, address, unproven, tuple(entry for entry in rehomed if owner[entry.row] == NEW))


def _exports_of_another_kind(first: Build, new: Build, owner: I32) -> list[Rehomed]:
    """Exported names that were constant and are not any more, or the other way round: they are not even paired."""
    found: list[Rehomed] = []
    for row in np.flatnonzero(new.entities.exported & (owner == NEW)).tolist():
        partner = first.by_name.get(new.entities.names[row])
        data = (Kind.OBJECT, *READ_ONLY)
        if partner is not None and {int(new.entities.kind[row]), int(first.entities.kind[partner])} <= set(data):
            found.append(Rehomed(row, 0, partner))
    return found


def unsized(build: Build) -> Flags:
    """Constants whose symbol says no size: they cannot be compared, nor updated in place, and count as unnamed data.

    The linker leaves such symbols (``.LC7``) to strings and numbers with ``--emit-relocs``.
    """
    flags: Flags = np.isin(build.entities.kind, READ_ONLY) & (build.entities.size == 0) & ~build.entities.exported
    return flags


def partners(image: Image, new: Build, comparison: Comparison) -> I32:
    """The row of the image's build that is paired with each row of ``new``; a build is paired with itself."""
    if image.build.build_id == new.build_id:
        return np.arange(len(new.entities), dtype=np.int32)
    return comparison.old_of


def _owned(image: Image, index: int) -> Flags:
    flags = np.full(len(image.build.entities), index == 0, dtype=np.bool_)
    if index:
        flags[list(image.owned)] = True
    return flags


def _addresses(image: Image, index: int) -> I64:
    """Absolute addresses (thread-locals: offsets from the module's block) of all rows of an image."""
    entities = image.build.entities
    addresses = entities.address.astype(np.int64)
    tls = entities.kind == Kind.TLS
    addresses[~tls] += image.base
    if index:
        for row, offset in image.tls_offsets.items():
            addresses[row] = offset
    return addresses


def _keeps_home(old: Build, pairs: I32, new: Build) -> Flags:
    """False for a constant that outgrew its place or became writable.  (Resized variables are refused elsewhere.)"""
    partner = np.maximum(pairs, 0)
    after = new.entities.kind
    same_size = old.entities.size[partner] == new.entities.size
    was_constant = np.isin(old.entities.kind[partner], READ_ONLY)
    keeps: Flags = np.where(np.isin(after, READ_ONLY), same_size, ~((after == Kind.OBJECT) & was_constant))
    return keeps


def _may_have_home(
    row: int, images: Sequence[Image], current: int, new: Build, comparisons: Sequence[Comparison]
) -> bool:
    """Whether a variable without a proven home may yet have one."""
    if any(
        row in comparison.ambiguous_new
        for image, comparison in zip(images, comparisons, strict=True)
        if image.build.build_id != new.build_id
    ):
        return True
    middle = int(comparisons[current].old_of[row])
    if current == 0 or middle < 0 or images[current].build.build_id == new.build_id:
        return False
    # The running build has this variable without owning it: it has a home under a name that the first build does not
    # pair with the new one, or the running build never used it.
    name = _SUFFIX.sub("", images[current].build.entities.names[middle])
    return any(
        _SUFFIX.sub("", candidate) == name
        for image in images[:current]
        for candidate, kind in zip(image.build.entities.names, image.build.entities.kind.tolist(), strict=True)
        if kind in (Kind.OBJECT, Kind.TLS)
    )
