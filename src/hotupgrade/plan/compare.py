"""Two builds of one module: what changed, and what must change hands because of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import I32, Flags, Form, Kind, TargetKind
from hotupgrade.errors import Reason
from hotupgrade.plan.match import Match, Scopes, match
from hotupgrade.plan.meaning import Meaning
from hotupgrade.plan.model import Comparison
from hotupgrade.plan.shape import Indices, ReferencePairs, Shapes, equal_shapes, paired_references, shapes_of


def compare(
    old: Build, new: Build, old_scopes: Scopes | None = None, new_scopes: Scopes | None = None
) -> Comparison:
    """Matches and compares two builds of one module."""
    old_shapes, new_shapes = shapes_of(old), shapes_of(new)
    pairs = match(old_shapes, new_shapes, old_scopes, new_scopes)
    meaning = Meaning(old, new, pairs)
    old_rows, new_rows = _function_pairs(old, new, pairs)
    equal = _equal_functions(meaning, old_shapes, new_shapes, old_rows, new_rows)
    same = np.zeros(len(new.entities), np.bool_)
    same[new_rows[equal & (pairs.old_of[new_rows] == old_rows)]] = True
    closure = _Closure(old, new, pairs)
    closure.change(old_rows[~equal].tolist(), new_rows[~equal].tolist())
    replaced, old_replaced = closure.settle()
    resized, initial = _data_changes(meaning)
    return Comparison(
        old=old,
        new=new,
        old_of=pairs.old_of,
        new_of=pairs.new_of,
        same=same,
        replaced=replaced,
        old_replaced=old_replaced,
        plain_old=old.plain,
        plain_new=new.plain,
        dragged=closure.dragged,
        ambiguous_new=pairs.ambiguous_new,
        resized=resized,
        initial_changed=initial,
        tls_equal=_tls_equal(old, new, pairs),
        notes=(*pairs.notes, *_undecodable(new)),
    )


def _undecodable(build: Build) -> Iterable[Reason]:
    for row in sorted(build.undecodable):
        name = build.entities.names[row]
        text = f"{name} holds bytes that are no instruction, so it counts as changed; nothing can be done about it here"
        yield Reason("undecodable", name, text)


def _function_pairs(old: Build, new: Build, pairs: Match) -> tuple[Indices, Indices]:
    """Every (old, new) pair of functions, seen from both sides."""
    olds = np.flatnonzero((old.entities.kind == Kind.FUNCTION) & (pairs.new_of >= 0))
    news = np.flatnonzero((new.entities.kind == Kind.FUNCTION) & (pairs.old_of >= 0))
    table = np.concatenate(
        [np.stack([olds, pairs.new_of[olds]], axis=1), np.stack([pairs.old_of[news], news], axis=1)]
    ).astype(np.int64)
    table = np.unique(table, axis=0)
    return table[:, 0], table[:, 1]


# Functions


def _equal_functions(
    meaning: Meaning, old: Shapes, new: Shapes, old_rows: Indices, new_rows: Indices
) -> Flags:
    equal = equal_shapes(old, new, old_rows, new_rows)
    equal &= ~np.isin(old_rows, sorted(old.build.undecodable)) & ~np.isin(new_rows, sorted(new.build.undecodable))
    at = np.flatnonzero(equal)
    references = paired_references(old, new, old_rows[at], new_rows[at])
    wrong = ~_equal_references(meaning, references)
    equal[at[np.unique(references.pair[wrong])]] = False
    return equal


def _equal_references(meaning: Meaning, pairs: ReferencePairs) -> Flags:
    old, new = meaning.old.references, meaning.new.references
    kind = old.target_kind[pairs.old]
    equal: Flags = kind == new.target_kind[pairs.new]
    equal &= old.addend[pairs.old] == new.addend[pairs.new]
    entity, partner = old.entity[pairs.old], new.entity[pairs.new]
    _check(equal, kind == TargetKind.ENTITY, lambda i: meaning.same_row(int(entity[i]), int(partner[i])), (entity, partner))
    slots = np.isin(kind, (TargetKind.GOT, TargetKind.PLT))
    first, second = _slot_numbers(meaning)
    equal[slots] &= first[entity[slots]] == second[partner[slots]]

    def anonymous(i: int) -> bool:
        ours, theirs = int(pairs.old[i]), int(pairs.new[i])
        return meaning.same_anonymous(
            int(old.target[ours]),
            int(new.target[theirs]),
            int(old.function[ours]),
            int(new.function[theirs]),
            int(meaning.old.access[ours]),
        )

    def unknown(i: int) -> bool:
        ours, theirs = int(old.target[pairs.old[i]]), int(new.target[pairs.new[i]])
        return meaning.same_neighbour(ours, theirs)

    _each(equal, kind == TargetKind.ANONYMOUS, anonymous)
    _each(equal, kind == TargetKind.UNKNOWN, unknown)
    _forgive_marks(meaning, pairs, equal)
    return equal


def _check(equal: Flags, chosen: Flags, test: "Test", columns: tuple[npt.NDArray[np.int32], ...]) -> None:
    """Asks once for each distinct pair of columns."""
    at = np.flatnonzero(equal & chosen)
    if not len(at):
        return
    key = columns[0][at].astype(np.int64) << 32 | columns[1][at].astype(np.int64)
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    answers = np.array([test(i) for i in at[first].tolist()], np.bool_)
    equal[at] = answers[inverse]
