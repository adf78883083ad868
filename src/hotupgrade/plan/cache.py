"""Comparisons of pairs of builds, kept between runs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from hotupgrade.binary.build import Build
from hotupgrade.binary.cache import Cache, Entry, cache_key, entry
from hotupgrade.errors import Reason
from hotupgrade.plan.compare import compare
from hotupgrade.plan.concerns import Concern, ConcernKind, concerns
from hotupgrade.plan.model import Comparison

NEW_ROWS = ("old_of", "same", "replaced", "plain_new")
OLD_ROWS = ("new_of", "old_replaced", "plain_old", "led_old")


def compare_cached(old: Build, new: Build, cache: Cache, loops: Collection[str] = ()) -> Comparison:
    """``loops``: see :func:`hotupgrade.plan.compare.compare`."""
    key = cache_key(" ".join(["comparison", *sorted(loops)]), old, new)
    found = cache.get(key)
    if found is not None:
        try:
            return _comparison(old, new, found)
        except (KeyError, ValueError, IndexError, TypeError):
            pass  # as good as absent
    comparison = compare(old, new, loops=loops)
    cache.put(_entry(key, comparison))
    return comparison


def concerns_cached(comparison: Comparison, cache: Cache) -> list[Concern]:
    key = cache_key("concerns", comparison.old, comparison.new)
    found = cache.get(key)
    if found is not None:
        try:
            return [
                Concern(ConcernKind(kind), subject, text, tuple(more)) for kind, subject, text, *more in found.texts
            ]
        except (ValueError, TypeError):
            pass  # as good as absent
    fresh = concerns(comparison)
    cache.put(entry(key, {}, [[c.kind.value, c.subject, c.text, *c.evidence] for c in fresh]))
    return fresh


def _entry(key: str, comparison: Comparison) -> Entry:
    arrays: dict[str, npt.NDArray[Any]] = {name: getattr(comparison, name) for name in NEW_ROWS + OLD_ROWS}
    arrays["dragged"] = _pairs(comparison.dragged.items())
    arrays["resized"] = _pairs(comparison.resized)
    arrays["initial_changed"] = _pairs(comparison.initial_changed)
    arrays["ambiguous_new"] = np.array(sorted(comparison.ambiguous_new), np.int64)
    arrays["tls_equal"] = np.array([comparison.tls_equal], np.bool_)
    return entry(key, arrays, [[note.code, note.subject, note.text] for note in comparison.notes])


def _pairs(pairs: Any) -> npt.NDArray[np.int64]:
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


def _comparison(old: Build, new: Build, found: Entry) -> Comparison:
    columns: dict[str, Any] = {}
    for names, size, other in ((NEW_ROWS, len(new.entities), old), (OLD_ROWS, len(old.entities), new)):
        for name in names:
            columns[name] = column = found.array(name)
            of_rows = name in ("old_of", "new_of")
            if len(column) != size or column.dtype != (np.int32 if of_rows else np.bool_):
                raise ValueError(name)
            if of_rows and size and not -1 <= column.min() <= column.max() < len(other.entities):
                raise ValueError(name)

    def pairs(name: str, first: Build, second: Build = new) -> tuple[tuple[int, int], ...]:
        rows = found.array(name).reshape(-1, 2)
        if len(rows) and ((rows < 0) | (rows >= (len(first.entities), len(second.entities)))).any():
            raise ValueError(name)
        return tuple((one, other) for one, other in rows.tolist())

    ambiguous = found.array("ambiguous_new")
    if len(ambiguous) and not 0 <= ambiguous.min() <= ambiguous.max() < len(new.entities):
        raise ValueError("ambiguous_new")

    return Comparison(
        old=old,
        new=new,
        **columns,
        dragged=dict(pairs("dragged", new)),
        ambiguous_new=frozenset(ambiguous.tolist()),
        resized=pairs("resized", old),
        initial_changed=pairs("initial_changed", old),
        tls_equal=bool(found.array("tls_equal")[0]),
        notes=tuple(Reason(*texts) for texts in found.texts),
    )
