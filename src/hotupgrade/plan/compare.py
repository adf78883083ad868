"""Two builds of one module: what changed, and what must change hands because of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from functools import cached_property

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import I32, THREAD_LOCAL_FORMS, Flags, Form, Kind, Segment, TargetKind
from hotupgrade.errors import Reason
from hotupgrade.plan.boundary import end_pointers
from hotupgrade.plan.copies import of_undefined_instructions
from hotupgrade.plan.entries import has_room
from hotupgrade.plan.match import Match, Scopes, match
from hotupgrade.plan.meaning import Meaning
from hotupgrade.plan.migrations import migrated_pairs
from hotupgrade.plan.model import Comparison
from hotupgrade.plan.padding import is_between_functions
from hotupgrade.plan.pieces import TRANSFERS, is_piece
from hotupgrade.plan.scopes import scopes_of
from hotupgrade.plan.shape import Indices, ReferencePairs, Shapes, equal_shapes, paired_references, shapes_of
from hotupgrade.plan.structure import match_structure


def compare(
    old: Build,
    new: Build,
    old_scopes: Scopes | None = None,
    new_scopes: Scopes | None = None,
    loops: Collection[str] = (),
) -> Comparison:
    """Matches and compares two builds of one module.

    ``old_scopes`` and ``new_scopes`` say to which function a static belongs; without them debug information does, if
    both builds have it.  ``loops`` names functions of which the old copy may run on for a while after it was replaced.
    """
    if old_scopes is None and new_scopes is None and not (old.debug.missing or new.debug.missing):
        old_scopes, new_scopes = scopes_of(old), scopes_of(new)
    old_shapes, new_shapes = shapes_of(old), shapes_of(new)
    if old.bare or new.bare:
        pairs = match_structure(old_shapes, new_shapes)
    else:
        pairs = match(old_shapes, new_shapes, old_scopes, new_scopes)
    for old_row, new_row in migrated_pairs(old, new):
        pairs.new_of[old_row] = pairs.old_of[new_row] = -1  # whoever names it has changed, then
    meaning = Meaning(old, new, pairs)
    old_rows, new_rows = _function_pairs(old, new, pairs)
    equal = _equal_functions(meaning, old_shapes, new_shapes, old_rows, new_rows)
    if not (tls_equal := _tls_equal(old, new, pairs)):
        # Equal numbers, perhaps, but as offsets they mean other variables.
        unproven = [{row for _, row in build.facts.unproven} for build in (old, new)]
        equal &= ~np.isin(old_rows, list(unproven[0])) & ~np.isin(new_rows, list(unproven[1]))
    same = np.zeros(len(new.entities), np.bool_)
    same[new_rows[equal & (pairs.old_of[new_rows] == old_rows)]] = True
    closure = _Closure(old, new, pairs, loops)
    closure.change(old_rows[~equal].tolist(), new_rows[~equal].tolist())
    replaced, old_replaced, led_old = closure.settle()
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
        led_old=led_old,
        dragged=closure.dragged,
        ambiguous_new=pairs.ambiguous_new,
        resized=resized,
        initial_changed=initial,
        tls_equal=tls_equal,
        notes=(*pairs.notes, *_undecodable(new), *_shifted_lines(meaning, same)),
    )


def _undecodable(build: Build) -> Iterable[Reason]:
    for row in sorted(build.undecodable):
        name = build.entities.names[row]
        text = f"{name} holds bytes that are no instruction, so it counts as changed; nothing can be done about it here"
        yield Reason("undecodable", name, text)


def _shifted_lines(meaning: Meaning, same: Flags) -> Iterable[Reason]:
    names = sorted(meaning.new.entities.names[row] for row in meaning.shifted_lines if same[row])
    if names:
        text = (
            f"{len(names)} functions differ only in the line number of a source position that they pass on for "
            "messages; they count as the same and go on naming the old line"
        )
        yield Reason("source-lines-shifted", ", ".join(names), text)


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


def _equal_functions(meaning: Meaning, old: Shapes, new: Shapes, old_rows: Indices, new_rows: Indices) -> Flags:
    equal = equal_shapes(old, new, old_rows, new_rows)
    equal &= ~np.isin(old_rows, sorted(old.build.undecodable)) & ~np.isin(new_rows, sorted(new.build.undecodable))
    at = np.flatnonzero(equal)
    references = paired_references(old, new, old_rows[at], new_rows[at])
    wrong = ~_equal_references(meaning, old, new, references)
    equal[at[np.unique(references.pair[wrong])]] = False
    if old.build.exception_tables or new.build.exception_tables:
        for i in np.flatnonzero(equal).tolist():
            equal[i] = meaning.same_exceptions(int(old.start[old_rows[i]]), int(new.start[new_rows[i]]))
    return equal


def _equal_references(meaning: Meaning, old_shapes: Shapes, new_shapes: Shapes, pairs: ReferencePairs) -> Flags:
    old, new = old_shapes.references, new_shapes.references
    kind = old.target_kind[pairs.old]
    equal: Flags = kind == new.target_kind[pairs.new]
    equal &= old.addend[pairs.old] == new.addend[pairs.new]
    entity, partner = old.entity[pairs.old], new.entity[pairs.new]
    _check_once(equal, kind == TargetKind.ENTITY, entity, partner, meaning.same_row)
    slots = equal & np.isin(kind, (TargetKind.GOT, TargetKind.PLT))
    first, second = _slot_numbers(meaning)
    equal[slots] = first[entity[slots]] == second[partner[slots]]
    old_target, new_target = old.target[pairs.old].astype(np.int64), new.target[pairs.new].astype(np.int64)
    anonymous = np.flatnonzero(equal & (kind == TargetKind.ANONYMOUS))
    access = old_shapes.access[pairs.old[anonymous]].astype(np.int64)
    sure = meaning.surely_same_anonymous(old_target[anonymous], new_target[anonymous], access)
    for i in anonymous[~sure].tolist():
        equal[i] = meaning.same_anonymous(
            int(old_target[i]),
            int(new_target[i]),
            int(old.function[pairs.old[i]]),
            int(new.function[pairs.new[i]]),
            int(old_shapes.access[pairs.old[i]]),
        )
    unnamed = np.isin(old.form[pairs.old], THREAD_LOCAL_FORMS) & equal & (kind == TargetKind.UNKNOWN)
    equal[unnamed] = old_target[unnamed] == new_target[unnamed]
    unknown = np.flatnonzero(equal & (kind == TargetKind.UNKNOWN) & ~unnamed)
    number = of_undefined_instructions(meaning.old, old.position[pairs.old[unknown]].astype(np.int64))
    ours = old_target - old.following[pairs.old].astype(np.int64)
    theirs = new_target - new.following[pairs.new].astype(np.int64)
    equal[unknown[number]] = (ours == theirs)[unknown[number]]
    unknown = unknown[~number]
    ends = _ends(meaning.old, pairs.old[unknown]) & _ends(meaning.new, pairs.new[unknown])
    for i, is_end in zip(unknown.tolist(), ends.tolist(), strict=True):
        places = int(old_target[i]), int(new_target[i])
        if old.form[pairs.old[i]] in (Form.LEA, Form.MEMORY) and meaning.are_in_code(*places):
            equal[i] = meaning.same_constants_in_code(*places, int(old_shapes.access[pairs.old[i]]))
            continue
        if old.form[pairs.old[i]] in TRANSFERS and _are_between_functions(meaning, *places):
            equal[i] = ours[i] == theirs[i]
            continue
        # What lies behind the end of an object is no matter; elsewhere it may be a constant that changed.
        equal[i] = meaning.same_neighbour(*places) and (is_end or meaning.same_data(*places, 0))
    for i in np.flatnonzero(~equal & (old.form[pairs.old] == Form.LEA)).tolist():
        equal[i] = meaning.same_mark(int(old_target[i]), int(new_target[i]), int(new.function[pairs.new[i]]))
    return equal


def _are_between_functions(meaning: Meaning, old: int, new: int) -> bool:
    return is_between_functions(meaning.old, old) and is_between_functions(meaning.new, new)


def _ends(build: Build, indices: Indices) -> Flags:
    """Which references take an address only to compare with it, as the end of an object."""
    flags: Flags = np.isin(indices, end_pointers(build)) if len(indices) else np.zeros(0, np.bool_)
    return flags


def _check_once(equal: Flags, chosen: Flags, first: I32, second: I32, test: Callable[[int, int], bool]) -> None:
    """Asks once for each distinct pair."""
    at = np.flatnonzero(equal & chosen)
    if not len(at):
        return
    distinct, inverse = np.unique(np.stack([first[at], second[at]]), axis=1, return_inverse=True)
    answers = np.array([test(ours, theirs) for ours, theirs in distinct.T.tolist()], np.bool_)
    equal[at] = answers[inverse.reshape(-1)]


def _slot_numbers(meaning: Meaning) -> tuple[I32, I32]:
    """Slots of both builds as numbers that are equal when the loader fills them with the same thing."""
    numbers: dict[Hashable, int] = {}

    def number(build: Build) -> I32:
        meanings = (meaning.slot(build, index) for index in range(len(build.slots)))
        return np.array([numbers.setdefault(found, len(numbers)) for found in meanings] or [-1], np.int32)

    return number(meaning.old), number(meaning.new)


# Who changes hands


class _Closure:
    """The set of functions that must run from the new image, grown until it is closed.

    A caller that is the same in both builds may stay: its code fits the new function as it fits the old one, whatever
    the compiler made of what it saw in either, and the jump at the old function's entry keeps every register.  So:

    - Who jumps into the middle of a changed function, or leads there by a switch table, is a piece of it.
    - A replaced function takes along what it reaches by means that cannot be re-pointed: entries of its switch tables,
      jumps of one byte.
    - Where no jump can be put at the entry of a changed function, or none may be, who refers to it comes along.  None
      may be where old code that the new build does not have may yet call the function: such code counts on what its
      compiler saw inside it (-fipa-ra: registers that it leaves alone, a stack that need not be aligned), and inside
      what that calls.  But who gave away its address, or its name, must bear a jump, and follows the plain calling
      convention.
    """

    def __init__(self, old: Build, new: Build, pairs: Match, loops: Collection[str]) -> None:
        self.old, self.new, self.pairs = old, new, pairs
        self._loops = [row for row, names in enumerate(old.entities.aliases) if not {*names}.isdisjoint(loops)]
        self.replaced = np.zeros(len(new.entities), np.bool_)
        self.old_replaced = (old.entities.kind == Kind.FUNCTION) & (pairs.new_of < 0)
        self.dragged: dict[int, int] = {}
        self.apart: set[int] = set()  # old rows that are replaced and get no jump
        self._work: list[int] = []
        self._old_users, self._old_joined = _users(old), _joined(old)
        self._new_users, self._new_joined = _users(new), _joined(new)
        self._old_rows = _old_rows(pairs)

    def change(self, old_rows: Iterable[int], new_rows: Iterable[int]) -> None:
        for old, new in zip(old_rows, new_rows, strict=True):
            self.old_replaced[old] = True
            self._replace(new, None)

    def settle(self) -> tuple[Flags, Flags, Flags]:
        """(new functions that are replaced, old ones, old ones whose entries lead to the new ones)."""
        while True:
            while self._work:
                row = self._work.pop()
                for follower in sorted(self._followers(row)):
                    self._replace(follower, row)
            stale = self._called_by_what_is_gone()
            for row in stale - self.apart:
                self._part(row)
            if not self._work:
                break
        led = self.old_replaced & (self.pairs.new_of >= 0)
        led[list(self.apart)] = False
        return self.replaced, self.old_replaced, led

    def _replace(self, row: int, because_of: int | None) -> None:
        if self.replaced[row] or self.pairs.old_of[row] < 0:
            return
        self.replaced[row] = True
        for old in self._old_rows[row]:
            self.old_replaced[old] = True
            if not self._bears_jump(old):
                self.apart.add(old)
        if because_of is not None:
            self.dragged[row] = because_of
        self._work.append(row)

    def _bears_jump(self, old: int) -> bool:
        if self.old.plain[old]:
            return True
        return not is_piece(self.old.entities.names[old]) and has_room(self.old, old)

    def _part(self, old: int) -> None:
        """No jump at this entry, after all: look at its function again."""
        self.apart.add(old)
        self._work.append(int(self.pairs.new_of[old]))

    def _followers(self, row: int) -> set[int]:
        olds = self._old_rows[row]
        found = set(self._new_joined.get(row, ()))
        old_found = {user for old in olds for user in self._old_joined.get(old, ())}
        if not self.apart.isdisjoint(olds):
            found |= self._new_users.get(row, set())
            old_found |= {user for old in olds for user in self._old_users.get(old, ())}
        return found | {int(self.pairs.new_of[old]) for old in old_found if self.pairs.new_of[old] >= 0}

    def _called_by_what_is_gone(self) -> set[int]:
        """Old functions that are replaced and may yet be called by old code which is not in the new build.

        Removed functions are called as long as somebody may hold their address, and loops run on until their threads
        have left them.
        """
        removed = (self.old.entities.kind == Kind.FUNCTION) & (self.pairs.new_of < 0)
        found: set[int] = set()
        work = np.flatnonzero(removed & self.old.plain).tolist()
        work += [row for row in self._loops if self.old_replaced[row]]
        seen = set(work)
        while work:
            for callee in self._callees.get(work.pop(), ()):
                if callee in seen or self.old.plain[callee]:
                    continue
                seen.add(callee)
                work.append(callee)
                if self.old_replaced[callee] and self.pairs.new_of[callee] >= 0:
                    found.add(callee)
        return found

    @cached_property
    def _callees(self) -> Mapping[int, list[int]]:
        callees: dict[int, list[int]] = defaultdict(list)
        for callee, users in self._old_users.items():
            for user in users:
                callees[user].append(callee)
        return callees


def _old_rows(pairs: Match) -> Mapping[int, list[int]]:
    rows: dict[int, list[int]] = defaultdict(list)
    for old in np.flatnonzero(pairs.new_of >= 0).tolist():
        rows[int(pairs.new_of[old])].append(old)
    for new in np.flatnonzero(pairs.old_of >= 0).tolist():
        if int(pairs.old_of[new]) not in rows[new]:
            rows[new].append(int(pairs.old_of[new]))
    return rows


def _to_functions(build: Build) -> Flags:
    references = build.references
    named: Flags = references.target_kind == TargetKind.ENTITY
    named[named] = build.entities.kind[references.entity[named]] == Kind.FUNCTION
    return named


def _users(build: Build) -> dict[int, set[int]]:
    """Function to the functions that refer to it."""
    return _grouped(build, _to_functions(build))


def _joined(build: Build) -> dict[int, set[int]]:
    """Function to those that must follow it, whatever its calling contract."""
    references = build.references
    joined = _grouped(build, _to_functions(build) & (references.addend != 0))
    for i in np.flatnonzero(_to_functions(build) & (references.form == Form.SHORT)).tolist():
        joined.setdefault(int(references.function[i]), set()).add(int(references.entity[i]))
    for table in build.jump_tables:
        joined.setdefault(table.function, set()).update(table.targets)
        for target in table.targets:
            joined.setdefault(target, set()).add(table.function)
    return joined


def _grouped(build: Build, chosen: Flags) -> dict[int, set[int]]:
    found: dict[int, set[int]] = defaultdict(set)
    at = np.flatnonzero(chosen)
    references = build.references
    for target, user in zip(references.entity[at].tolist(), references.function[at].tolist(), strict=True):
        found[target].add(user)
    return dict(found)


# Data


def _data_changes(meaning: Meaning) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
    """(pairs of another size, pairs of the same size with other initial contents)."""
    old, new, pairs = meaning.old, meaning.new, meaning.pairs
    news = np.flatnonzero((new.entities.kind != Kind.FUNCTION) & (pairs.old_of >= 0))
    olds = pairs.old_of[news]
    equal_size = old.entities.size[olds] == new.entities.size[news]
    resized = tuple(zip(olds[~equal_size].tolist(), news[~equal_size].tolist(), strict=True))
    olds, news = olds[equal_size], news[equal_size]
    sure = old.entities.kind[olds] != Kind.TLS
    places = old.entities.address[olds[sure]], new.entities.address[news[sure]], new.entities.size[news[sure]]
    sure[sure] = meaning.surely_same_bytes(*(each.astype(np.int64) for each in places))
    changed = tuple(
        (ours, theirs)
        for ours, theirs in zip(olds[~sure].tolist(), news[~sure].tolist(), strict=True)
        if not _same_contents(meaning, ours, theirs)
    )
    return resized, changed


def _same_contents(meaning: Meaning, old: int, new: int) -> bool:
    ours, theirs = meaning.old.entities, meaning.new.entities
    size, places = int(ours.size[old]), (int(ours.address[old]), int(theirs.address[new]))
    if ours.kind[old] != Kind.TLS:
        return meaning.same_bytes(*places, size)
    blocks = meaning.old.tls, meaning.new.tls
    if blocks[0] is None or blocks[1] is None:
        return False
    first = _initial(meaning.old, blocks[0], places[0], size)
    second = _initial(meaning.new, blocks[1], places[1], size)
    return first == second


def _initial(build: Build, block: Segment, offset: int, size: int) -> bytes:
    stored = max(0, min(size, block.file_size - offset))
    return build.read(block.vaddr + offset, stored) + bytes(size - stored)


def _tls_equal(old: Build, new: Build, pairs: Match) -> bool:
    rows = np.flatnonzero(new.entities.kind == Kind.TLS)
    partners = pairs.old_of[rows]
    if (partners < 0).any() or (old.entities.address[partners] != new.entities.address[rows]).any():
        return False
    if not new.executable:
        return True
    # An executable reaches its thread-locals from the end of the block.
    return _block_shape(old) == _block_shape(new)


def _block_shape(build: Build) -> tuple[int, int]:
    return (build.tls.memory_size, build.tls.alignment) if build.tls else (0, 0)
