"""Which row of the new build is which row of the old one, where names are missing: what the structure of both proves.

The proof begins at what has a name or a duty in both builds (exported functions and objects, the loader's arrays) and
goes from there along references: functions that are paired, and equal but for their references, name the same thing in
the same place; so do paired tables.  A function that changed is paired by the places that name it, if it lies between
the same unchanged ones and nothing beside it might as well be what it was.  Of what is left, a function is paired if
its body is the only one of its kind, names nothing that is open, and lies in the same place between the same
neighbours, named by the same others.  One that changed together with all that name it stays open: its old code goes
with its callers, and the new code comes with them.

Two answers for one thing are none.  Of a variable more is asked, since a wrong answer would ruin its value: that it
keeps its distance from its neighbours; where something came or went beside it, that whoever used the one uses the
other.  What is not proven stays open, and whoever needs it is refused by name.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import I32, Form, Kind, TargetKind
from hotupgrade.errors import Reason
from hotupgrade.plan.copies import STARTUP
from hotupgrade.plan.match import CLASS_OF_KIND, Match, Side
from hotupgrade.plan.pieces import is_piece
from hotupgrade.plan.shape import Shapes, equal_shapes, paired_references

OBJECTS = (Kind.OBJECT, Kind.RELRO)
_TEXT = 64  # bytes of unnamed data that serve as a mark
_SHORTEST_BODY = 16  # bytes: many functions are as short as this and say the same
_MOST_ATTEMPTS = 100

_OPEN = ("open",)  # what is not paired
_Body = tuple[bytes, tuple[Hashable, ...]]


def match_structure(old: Shapes, new: Shapes) -> Match:
    """Pairs the rows of two builds without names (:mod:`hotupgrade.binary.bare`)."""
    sides = _Bare(old), _Bare(new)
    banned: tuple[set[int], set[int]] = (set(), set())
    for _ in range(_MOST_ATTEMPTS):
        attempt = _Attempt(*sides, banned)
        attempt.run()
        doubts = attempt.doubts()
        if doubts[0] <= banned[0] and doubts[1] <= banned[1]:
            return Match(attempt.old_of, attempt.new_of, _maybe_old(attempt), tuple(attempt.notes))
        # What was concluded from these may be wrong as well: once more, without them.
        banned = (banned[0] | doubts[0], banned[1] | doubts[1])
    nothing = np.full(len(sides[1].kinds), -1, np.int32), np.full(len(sides[0].kinds), -1, np.int32)
    return Match(*nothing, frozenset(np.flatnonzero(np.isin(new.build.entities.kind, OBJECTS)).tolist()), ())


class _Bare(Side):
    """One build, with what matching by structure asks of it."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__(shapes.build, shapes, {})
        entities = shapes.build.entities
        self.address: list[int] = entities.address.astype(np.int64).tolist()
        starts = {name: row for row, name in enumerate(entities.names) if name in STARTUP}
        self.known: Mapping[str, int] = {**starts, **shapes.build.by_name}  # what has a name, or a duty
        self.fixed = frozenset(self.known.values())

    @cached_property
    def functions_in_order(self) -> list[int]:
        """Rows of the functions, without pieces, by address."""
        return [
            row
            for row, kind in enumerate(self.kinds)
            if kind == Kind.FUNCTION and not is_piece(self.build.entities.names[row])
        ]

    @cached_property
    def pieces(self) -> Mapping[str, list[int]]:
        """Name of a function to its pieces."""
        found: dict[str, list[int]] = defaultdict(list)
        for row, name in enumerate(self.build.entities.names):
            if self.kinds[row] == Kind.FUNCTION and is_piece(name):
                found[name.split(".cold", 1)[0]].append(row)
        return found

    @cached_property
    def sections(self) -> list[str]:
        """Of objects, the section; "" for all else."""
        names = []
        for row, kind in enumerate(self.kinds):
            section = self.build.section_at(self.address[row]) if kind in OBJECTS else None
            names.append(section.name if section else "")
        return names

    @cached_property
    def tables(self) -> Mapping[tuple[int, int], int]:
        """(vaddr, function) of a switch table to the number of its cases."""
        return {(table.vaddr, table.function): table.count for table in self.build.jump_tables}

    @cached_property
    def users(self) -> Mapping[int, frozenset[int]]:
        """Row to the functions and tables that refer to it."""
        return {row: frozenset(found) for row, found in self.referrers.items()}


@dataclass(frozen=True, slots=True)
class _Slot:
    """A place between two neighbours that are paired (rows of the new build; -1 at either end)."""

    before: int
    behind: int


class _Attempt:
    """Pairs as much as can be, given rows that must not be paired."""

    def __init__(self, old: _Bare, new: _Bare, banned: tuple[set[int], set[int]]) -> None:
        self.old, self.new = old, new
        self.old_of: I32 = np.full(len(new.kinds), -1, np.int32)
        self.new_of: I32 = np.full(len(old.kinds), -1, np.int32)
        self._banned = banned
        self._for_old: dict[int, set[int]] = defaultdict(set)
        self._for_new: dict[int, set[int]] = defaultdict(set)
        self._touched: set[int] = set()
        self._fresh_functions: list[tuple[int, int]] = []
        self._fresh_objects: list[tuple[int, int]] = []
        self.equal: set[int] = set()  # old functions that are equal to their partners but for their references
        self.notes: list[Reason] = []
        self.voters: dict[int, set[int]] = defaultdict(set)  # old row to old rows that named it and its partner

    def run(self) -> None:
        self._pair_fixed()
        self._vote_by_arrays()
        while True:
            self._follow()
            if not (self._pair_unique_bodies() or self._pair_rows_of_equals()):
                return

    # What is known

    def _pair_fixed(self) -> None:
        """Several names of one address that part are nobody's proof: none of these is paired."""
        partners: dict[int, set[int]] = defaultdict(set)
        for ours, theirs in ((self.old.known, self.new.known),):
            for name in ours.keys() & theirs.keys():
                partners[ours[name]].add(theirs[name])
        for row, found in sorted(partners.items()):
            new = min(found)
            if len(found) == 1 and self.old_of[new] < 0 and self._compatible(row, new):
                self._pair(row, new)
                continue
            name = self.old.build.entities.names[row]
            if not self._compatible(row, new):
                self._note("kind-changed", name, "is of another kind in the new build and counts as a new name")
            elif len(found) > 1:
                text = "had several names for one address, which are distinct in the new build"
                self._note("alias-split", name, text)
            else:
                self._note("variables-merged", name, "shares its address in the new build")

    def _note(self, code: str, subject: str, text: str) -> None:
        self.notes.append(Reason(code, subject, f"{subject} {text}"))

    def _compatible(self, old: int, new: int) -> bool:
        return CLASS_OF_KIND[self.old.kinds[old]] == CLASS_OF_KIND[self.new.kinds[new]]

    def _pair(self, old: int, new: int) -> None:
        self.new_of[old] = new
        self.old_of[new] = old
        if self.old.kinds[old] == Kind.FUNCTION:
            self._fresh_functions.append((old, new))
        else:
            self._fresh_objects.append((old, new))

    # Votes

    def _follow(self) -> None:
        """Follows what is paired until it tells nothing new."""
        while self._fresh_functions or self._fresh_objects:
            functions, self._fresh_functions = self._fresh_functions, []
            self._vote_by_code(functions)
            self._vote_by_pieces(functions)
            self._vote_by_data()
            self._count()

    def _vote(self, old: int, new: int, voter: int) -> None:
        if old in self.old.fixed or new in self.new.fixed:
            return  # a reference to something else than before, or what is known anyway
        self._for_old[old].add(new)
        self._for_new[new].add(old)
        self.voters[old].add(voter)
        self._touched.add(old)

    def _count(self) -> None:
        """Pairs what is voted for and against which nothing is said."""
        touched, self._touched = self._touched, set()
        for old in sorted(touched):
            candidates = self._for_old[old]
            if len(candidates) != 1 or self.new_of[old] >= 0 or old in self._banned[0]:
                continue
            (new,) = candidates
            alone = len(self._for_new[new]) == 1 and self.old_of[new] < 0 and new not in self._banned[1]
            if alone and self._alike(old, new):
                self._pair(old, new)

    def _alike(self, old: int, new: int) -> bool:
        kinds = self.old.kinds[old], self.new.kinds[new]
        return kinds[0] == kinds[1] and self.old.sections[old] == self.new.sections[new]

    def _vote_by_code(self, fresh: Sequence[tuple[int, int]]) -> None:
        rows = np.array(fresh, np.int64).reshape(-1, 2)
        same = equal_shapes(self.old.shapes, self.new.shapes, rows[:, 0], rows[:, 1])
        rows = rows[same]
        self.equal.update(rows[:, 0].tolist())
        pairs = paired_references(self.old.shapes, self.new.shapes, rows[:, 0], rows[:, 1])
        ours, theirs = self.old.target[pairs.old], self.new.target[pairs.new]
        addends = self.old.shapes.references.addend[pairs.old], self.new.shapes.references.addend[pairs.new]
        useful = (ours >= 0) & (theirs >= 0) & (addends[0] == addends[1])
        voters = rows[:, 0][pairs.pair[useful]].tolist()
        for old, new, voter in zip(ours[useful].tolist(), theirs[useful].tolist(), voters, strict=True):
            self._vote(old, new, voter)

    def _vote_by_data(self) -> None:
        fresh, self._fresh_objects = self._fresh_objects, []
        for old, new in fresh:
            theirs = self.new.words.get(new, {})
            for offset, (row, addend) in self.old.words.get(old, {}).items():
                partner = theirs.get(offset)
                if partner is not None and partner[1] == addend:
                    self._vote(row, partner[0], old)

    def _vote_by_pieces(self, fresh: Sequence[tuple[int, int]]) -> None:
        """The pieces of a function follow it."""
        for old, new in fresh:
            ours = self.old.pieces.get(self.old.build.entities.names[old], [])
            theirs = self.new.pieces.get(self.new.build.entities.names[new], [])
            if len(ours) == len(theirs):
                for one, other in zip(ours, theirs, strict=True):
                    if self.new_of[one] < 0 > self.old_of[other] and one not in self._banned[0]:
                        self._vote(one, other, old)

    def _vote_by_arrays(self) -> None:
        """What the loader calls, in its order, if nothing came or went."""
        arrays = ("init_array", "fini_array")
        for ours, theirs in ((getattr(self.old.build, name), getattr(self.new.build, name)) for name in arrays):
            if len(ours) != len(theirs):
                continue
            for first, second in zip(ours, theirs, strict=True):
                old, new = self.old.build.row_at(first), self.new.build.row_at(second)
                if old is not None and new is not None:
                    self._vote(old, new, -1)
        self._count()

    # What is left

    def _pair_unique_bodies(self) -> bool:
        """A body that is alone of its kind on both sides, in the same place between the same neighbours."""
        ours, theirs = self._bodies(self.old, self.new_of), self._bodies(self.new, None)
        places = self._places(self.old), self._places(self.new)
        found = [
            (old, new)
            for body, old in ours.items()
            if (new := theirs.get(body)) is not None and places[0][old] & places[1][new] and self._same_users(old, new)
        ]
        return self._pair_all(found)

    def _places(self, side: _Bare) -> dict[int, set[Hashable]]:
        """Where each open function lies: how many others from either neighbour."""
        return {
            row: {(slot, "first", index), (slot, "last", len(rows) - index)}
            for slot, rows in self._by_slot(side).items()
            for index, row in enumerate(rows)
        }

    def _same_users(self, old: int, new: int) -> bool:
        """Whether those that name a function are the same, as far as they are paired, and as many."""
        ours, theirs = self.old.users.get(old, frozenset()), self.new.users.get(new, frozenset())
        paired = {int(self.new_of[user]) for user in ours} - {-1}
        return len(ours) == len(theirs) and paired == {user for user in theirs if self.old_of[user] >= 0}

    def _pair_rows_of_equals(self) -> bool:
        """All that is left between the same neighbours, if one after the other does the same: mostly, what nobody uses.

        Bodies as short as theirs prove nothing one by one.
        """
        found: list[tuple[int, int]] = []
        ours, theirs = self._by_slot(self.old), self._by_slot(self.new)
        for slot, rows in ours.items():
            partners = theirs.get(slot, [])
            if len(rows) == len(partners) and all(
                self._body(self.old, old, self.new_of) == self._body(self.new, new, None)
                for old, new in zip(rows, partners, strict=True)
            ):
                found += zip(rows, partners, strict=True)
        return self._pair_all(found)

    def _by_slot(self, side: _Bare) -> dict[_Slot, list[int]]:
        return _grouped(self._slots(side))

    def _pair_all(self, found: Sequence[tuple[int, int]]) -> bool:
        """Unless something that is paired speaks against it."""
        done = False
        for old, new in found:
            others = (self._for_old[old] - {new}) | (self._for_new[new] - {old})
            banned = old in self._banned[0] or new in self._banned[1]
            if not others and not banned and self.new_of[old] < 0 > self.old_of[new]:
                self._pair(old, new)
                done = True
        return done

    def _bodies(self, side: _Bare, new_of: I32 | None) -> dict[_Body, int]:
        """What an open function does, in terms of both builds; only what occurs once."""
        found: dict[_Body, int] = {}
        twice: set[_Body] = set()
        for row in self._open_functions(side):
            if side.shapes.extent[row] < _SHORTEST_BODY:
                continue
            body = self._body(side, row, new_of)
            if body in found:
                twice.add(body)
            found[body] = row
        return {body: row for body, row in found.items() if body not in twice and _OPEN not in body[1]}

    def _body(self, side: _Bare, row: int, new_of: I32 | None) -> _Body:
        first, last = int(side.shapes.first[row]), int(side.shapes.last[row])
        return side.shapes.code(row), tuple(self._mark(side, index, new_of) for index in range(first, last))

    def _mark(self, side: _Bare, index: int, new_of: I32 | None) -> Hashable:
        """What a reference names, in terms of both builds."""
        references = side.shapes.references
        row = int(side.target[index])
        if row >= 0:
            partner = int(new_of[row]) if new_of is not None else (row if self.old_of[row] >= 0 else -1)
            return ("row", partner, int(references.addend[index])) if partner >= 0 else _OPEN
        kind, entity = int(references.target_kind[index]), int(references.entity[index])
        if kind in (TargetKind.GOT, TargetKind.PLT):
            return ("import", side.build.slots[entity].symbol)
        target = int(references.target[index])
        if (table := side.tables.get((target, int(references.function[index])))) is not None:
            return ("cases", table)
        if kind == TargetKind.ANONYMOUS and references.form[index] == Form.LEA:
            return ("data", side.build.read(target, min(_TEXT, side.build.span - target)).split(b"\0", 1)[0])
        return ("other", kind)

    def _open_functions(self, side: _Bare) -> Iterator[int]:
        paired, banned = (self.new_of, self._banned[0]) if side is self.old else (self.old_of, self._banned[1])
        for row in side.functions_in_order:
            if paired[row] < 0 and row not in banned and not side.build.unframed[row]:
                yield row

    def _slots(self, side: _Bare) -> dict[int, _Slot]:
        """Between which paired functions each open one lies, as rows of the new build."""
        paired = self.new_of if side is self.old else None
        before, open_rows, found = -1, [], {}
        for row in [*side.functions_in_order, -1]:
            partner = -1 if row < 0 else (int(paired[row]) if paired is not None else row)
            is_paired = row >= 0 and (partner >= 0 if paired is not None else self.old_of[row] >= 0)
            if row >= 0 and not is_paired:
                open_rows.append(row)
                continue
            found.update(dict.fromkeys(open_rows, _Slot(before, partner)))
            before, open_rows = partner, []
        return found

    # Doubts

    def doubts(self) -> tuple[set[int], set[int]]:
        """Rows of which it is not certain what they are."""
        old = {row for row, found in self._for_old.items() if len(found) > 1}
        new = {row for row, found in self._for_new.items() if len(found) > 1}
        for one, other in (*self._doubtful_functions(), *self._misplaced_objects()):
            old.add(one)
            new.add(other)
        # A pair ends with either of its rows.
        old |= {int(self.old_of[row]) for row in new if self.old_of[row] >= 0}
        new |= {int(self.new_of[row]) for row in old if self.new_of[row] >= 0}
        return old - self.old.fixed, new - self.new.fixed

    def _doubtful_functions(self) -> Iterator[tuple[int, int]]:
        """Functions that changed, where the places that name them are not proof enough."""
        changed = [
            (int(row), int(self.new_of[row]))
            for row in self.old.functions_in_order
            if self.new_of[row] >= 0 and row not in self.equal and row not in self.old.fixed
        ]
        if not changed:
            return
        anchors = {row: int(self.new_of[row]) for row in self.equal | self.old.fixed if self.new_of[row] >= 0}
        rooms = self._rooms(self.old, anchors), self._rooms(self.new, {new: new for new in anchors.values()})
        mates = tuple(_grouped(room) for room in rooms)
        ours, theirs = self._codes(self.old, rooms[0]), self._codes(self.new, rooms[1])
        for old, new in changed:
            place = rooms[0][old]
            moved = place != rooms[1][new]
            elsewhere = self.old.shapes.code(old) in theirs or self.new.shapes.code(new) in ours
            if moved or elsewhere or not self._most_alike(old, new, mates[0][place], mates[1][place]):
                yield old, new

    @staticmethod
    def _rooms(side: _Bare, anchors: Mapping[int, int]) -> dict[int, _Slot]:
        """Functions that are not the same, and between which two that are they lie (rows of the new build)."""
        found: dict[int, _Slot] = {}
        before, inside = -1, []
        for row in [*side.functions_in_order, -1]:
            if row >= 0 and row not in anchors:
                inside.append(row)
                continue
            found.update(dict.fromkeys(inside, _Slot(before, anchors.get(row, -1))))
            before, inside = anchors.get(row, -1), []
        return found

    @staticmethod
    def _codes(side: _Bare, rows: Iterable[int]) -> set[bytes]:
        return {side.shapes.code(row) for row in rows}

    def _most_alike(self, old: int, new: int, olds: Sequence[int], news: Sequence[int]) -> bool:
        """Whether no other function that came, went or changed beside these is as much like either of them."""
        if len(olds) == len(news) == 1:
            return True
        ours = {row: self._named_by(self.old, row, self.new_of) for row in olds}
        theirs = {row: self._named_by(self.new, row, None) for row in news}
        best = _alikeness(ours[old], theirs[new])
        return all(_alikeness(ours[old], theirs[row]) < best for row in news if row != new) and all(
            _alikeness(ours[row], theirs[new]) < best for row in olds if row != old
        )

    def _named_by(self, side: _Bare, row: int, new_of: I32 | None) -> frozenset[Hashable]:
        first, last = int(side.shapes.first[row]), int(side.shapes.last[row])
        return frozenset(self._mark(side, index, new_of) for index in range(first, last)) - {_OPEN}

    def partner_by_code(self, old: int) -> int:
        """What everything that names an object says that it is now, proven or not; -1 if there is no such."""
        if self.new_of[old] >= 0:
            return int(self.new_of[old])
        candidates = self._for_old.get(old, set())
        (new,) = candidates if len(candidates) == 1 else (-1,)
        return new if new >= 0 and len(self._for_new[new]) == 1 and self._alike(old, new) else -1

    def _misplaced_objects(self) -> Iterator[tuple[int, int]]:
        for name in sorted({name for name in self.old.sections if name and name in self.new.build.sections}):
            yield from _Neighbours(self, name).misplaced()


class _Neighbours:
    """The objects of one section, in order, and whether what is paired keeps its distance.

    What the code alone would pair counts as a neighbour too: else one doubt would be all that another rests on.
    """

    def __init__(self, attempt: _Attempt, section: str) -> None:
        self._attempt = attempt
        self._old, self._new = attempt.old, attempt.new
        rows = [row for row, name in enumerate(self._old.sections) if name == section]
        found = ((row, attempt.partner_by_code(row)) for row in rows)
        self._pairs = sorted((pair for pair in found if pair[1] >= 0), key=lambda pair: self._old.address[pair[0]])
        known = {row for row, _ in self._pairs}
        self._open = sorted(self._old.address[row] for row in rows if row not in known)
        self._edges = self._bounds(self._old.build, section), self._bounds(self._new.build, section)

    @staticmethod
    def _bounds(build: Build, name: str) -> tuple[int, int]:
        section = build.sections[name]
        return section.vaddr, section.vaddr + section.size

    def misplaced(self) -> Iterator[tuple[int, int]]:
        old = [self._edges[0][0], *(self._old.address[row] for row, _ in self._pairs), self._edges[0][1]]
        new = [self._edges[1][0], *(self._new.address[row] for _, row in self._pairs), self._edges[1][1]]
        for index, (row, partner) in enumerate(self._pairs, 1):
            if row in self._old.fixed:
                continue
            ordered = new[index - 1] <= new[index] <= new[index + 1]
            good = ordered and all(
                old[index] - old[side] == new[index] - new[side] or self._witnessed(row, partner, old[index], old[side])
                for side in (index - 1, index + 1)
            )
            if not good:
                yield row, partner

    def _witnessed(self, row: int, partner: int, vaddr: int, neighbour: int) -> bool:
        """Whether something makes up for a neighbour that moved.

        That is that all objects of the section have found their partners, in their order; or that who used the one
        uses the other, and nothing vanished in between: one of two variables that went might be the other.  Then only
        equal code counts.
        """
        if not self._open:
            return True
        low, high = sorted((vaddr, neighbour))
        vanished = bisect_left(self._open, high) > bisect_left(self._open, low + 1)
        ours, theirs = self._old.users.get(row, frozenset()), self._new.users.get(partner, frozenset())
        if {int(self._attempt.new_of[user]) for user in ours} != set(theirs):
            return False
        functions = {user for user in ours if self._old.kinds[user] == Kind.FUNCTION}
        return not vanished or functions <= self._attempt.equal


def _grouped(rooms: Mapping[int, _Slot]) -> dict[_Slot, list[int]]:
    found: dict[_Slot, list[int]] = defaultdict(list)
    for row, slot in rooms.items():
        found[slot].append(row)
    return found


def _alikeness(ours: frozenset[Hashable], theirs: frozenset[Hashable]) -> float:
    """What two functions name in common, of all that they name."""
    return len(ours & theirs) / max(len(ours | theirs), 1)


def _maybe_old(attempt: _Attempt) -> frozenset[int]:
    """Objects of the new build that may be of the old one, though it is not proven which.

    What is certainly new: every object of the old build has its partner, and the place lies beyond whatever the object
    before it can reach to, as long as that has the size that it had.
    """
    old, new = attempt.old, attempt.new
    open_rows = [row for row, kind in enumerate(new.kinds) if kind in OBJECTS and attempt.old_of[row] < 0]
    lost = any(kind in OBJECTS and attempt.new_of[row] < 0 for row, kind in enumerate(old.kinds))
    if lost:
        return frozenset(open_rows)
    return frozenset(row for row in open_rows if not _beyond(attempt, row))


def _beyond(attempt: _Attempt, row: int) -> bool:
    new, old = attempt.new, attempt.old
    before = [r for r in _same_section(new, row) if attempt.old_of[r] >= 0 and new.address[r] < new.address[row]]
    if not before:
        return True
    last = max(before, key=lambda r: new.address[r])
    reach = old.sizes[int(attempt.old_of[last])]
    return new.address[row] - new.address[last] >= reach


def _same_section(side: _Bare, row: int) -> Iterable[int]:
    return (other for other, name in enumerate(side.sections) if name == side.sections[row])
