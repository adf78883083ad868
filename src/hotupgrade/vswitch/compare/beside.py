"""Ways that were measured one by one, put beside each other: one document for each number of flows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hotupgrade.vswitch.compare.catalogue import ALL_WAYS

Document = dict[str, Any]
_PLACES = {way.key: place for place, way in enumerate(ALL_WAYS)}


def by_flows(entries: Mapping[str, Document]) -> dict[int, Document]:
    """Of the part "ways", the fewest flows first."""
    found: dict[int, list[Document]] = {}
    for entry in entries.values():
        found.setdefault(entry["result"]["settings"]["flows"], []).append(entry["result"])
    return {flows: together(found[flows]) for flows in sorted(found)}


def together(found: Iterable[Document]) -> Document:
    """One document of what :func:`~hotupgrade.vswitch.compare.run.measure` has found, as tables and pictures show it:
    ways in their usual order, and each proof of a meter once."""
    ordered = sorted(found, key=lambda result: _PLACES[result["way"]["key"]])
    rows = [row for result in ordered for row in result["meter"]]
    document = {
        "settings": ordered[0]["settings"],
        "meter": [row for place, row in enumerate(rows) if row not in rows[:place]],
        "ways": [result["way"] for result in ordered],
    }
    tried = [result["ovs_as_secondary"] for result in ordered if "ovs_as_secondary" in result]
    return document | ({"ovs_as_secondary": tried[-1]} if tried else {})
