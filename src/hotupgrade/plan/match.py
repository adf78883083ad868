"""Which name of the new build is which name of the old one.

Global names say it themselves.  Local names repeat by the hundreds and compilers number them afresh, so evidence is
collected, the strongest first:

1. a local name that is alone in its file, and that the compiler did not number, or alone in its function;
2. position: paired functions (or objects), equal but for their references, name the same thing in the same place;
3. context: even in a function that changed, a reference between the same code and the same neighbours;
4. who refers to it: the same set of functions, and the same size.

State that is then still open is reported as ambiguous, never guessed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.model import I32, Kind, TargetKind
from hotupgrade.binary.relocations import Relocation, relocation_target
from hotupgrade.errors import Reason
from hotupgrade.plan.shape import Indices, Shapes, equal_shapes, paired_references
from hotupgrade.plan.stem import stem_of

# Read-only data keep their kind class when they gain or lose relocations: .rodata and .data.rel.ro are one.
CLASS_OF_KIND: dict[int, int] = {Kind.FUNCTION: 1, Kind.OBJECT: 2, Kind.RELRO: 3, Kind.CONSTANT: 3, Kind.TLS: 4}
MUTABLE = (Kind.OBJECT, Kind.RELRO, Kind.TLS)
STRING_PREFIX = 64  # bytes of anonymous data that serve as a token of context

Key = tuple[str, str, tuple[str, ...], int]
Scopes = Mapping[int, str]


@dataclass(frozen=True)
class Match:
    """``new_of`` may map several old rows to one new row: functions that the new build folded, equal constants."""

    old_of: I32
    new_of: I32
    ambiguous_new: frozenset[int]
    notes: tuple[Reason, ...]


class Side:
    """One build, prepared for matching."""

    def __init__(self, build: Build, shapes: Shapes, scopes: Scopes) -> None:
        self.build = build
        self.shapes = shapes
        self.scopes = scopes
        self.kinds: list[int] = build.entities.kind.tolist()
        self.sizes: list[int] = build.entities.size.tolist()
        self.local: list[bool] = _local_rows(build)

    @cached_property
    def keys(self) -> list[Key]:
        """Local name without what the compiler made up, per row."""
        entities = self.build.entities
        keys = []
        for name, file, kind in zip(entities.names, entities.files, self.kinds, strict=True):
            stem = stem_of(name)
            keys.append((file.rsplit("/", 1)[-1], stem.base, stem.clones, CLASS_OF_KIND[kind]))
        return keys

    @cached_property
    def functions(self) -> frozenset[str]:
        """Names of the functions that the build has, inlined ones included as far as they have statics."""
        entities = self.build.entities
        named = {
            stem_of(name).base
            for aliases, kind in zip(entities.aliases, self.kinds, strict=True)
            if kind == Kind.FUNCTION
            for name in aliases
        }
        return frozenset(named.union(self.scopes.values()))

    @cached_property
    def target(self) -> Indices:
        """Per reference, the row it means: directly, or through a GOT slot that holds a local address; else -1."""
        references = self.shapes.references
        row = np.where(references.target_kind == TargetKind.ENTITY, references.entity, -1).astype(np.int64)
        by_slot = np.isin(references.target_kind, (TargetKind.GOT, TargetKind.PLT))
        row[by_slot] = self._slot_rows[references.entity[by_slot]]
        return row

    @cached_property
    def _slot_rows(self) -> Indices:
        thread_local = {
            int(address): row
            for row, (address, kind) in enumerate(zip(self.build.entities.address.tolist(), self.kinds, strict=True))
            if kind == Kind.TLS
        }
        rows = np.full(max(len(self.build.slots), 1), -1, np.int64)
        for index, slot in enumerate(self.build.slots):
            if slot.symbol:
                continue
            if slot.relocation == Relocation.RELATIVE:
                row = self.build.row_at(slot.addend)
                rows[index] = -1 if row is None else row
            elif slot.relocation in (Relocation.TPOFF64, Relocation.DTPOFF64, Relocation.TLSDESC):
                rows[index] = thread_local.get(slot.addend, -1)
        return rows

    @cached_property
    def words(self) -> dict[int, dict[int, tuple[int, int]]]:
        """Data row to {offset: (row, offset) that the word there points to}."""
        relocations, build = self.build.dynamic_relocations, self.build
        chosen = [
            (index, target)
            for index in np.flatnonzero(np.isin(relocations.type, (Relocation.RELATIVE, Relocation.ABS64))).tolist()
            if (target := relocation_target(relocations, build.dynamic_symbols, index)) is not None
        ]
        places = relocations.vaddr[[index for index, _ in chosen]].astype(np.int64)
        targets = np.array([target for _, target in chosen], np.int64)
        owners, rows = build.row_spans.find(places), build.row_spans.find(targets)
        start = build.entities.address.astype(np.int64)
        found: dict[int, dict[int, tuple[int, int]]] = defaultdict(dict)
        good = np.flatnonzero((owners >= 0) & (rows >= 0))
        columns = (
            owners[good],
            places[good] - start[owners[good]],
            rows[good],
            targets[good] - start[rows[good]],
        )
        for owner, offset, row, addend in zip(*(column.tolist() for column in columns), strict=True):
            found[owner][offset] = (row, addend)
        return found

    @cached_property
    def referrers(self) -> dict[int, list[int]]:
        """Row to the rows (functions and objects) that refer to it."""
        users: dict[int, set[int]] = defaultdict(set)
        known = self.target >= 0
        pairs = np.unique(
            np.stack([self.target[known], self.shapes.references.function[known].astype(np.int64)]), axis=1
        )
        for row, function in pairs.T.tolist():
            users[row].add(function)
        for owner, pointed in self.words.items():
            for row, _ in pointed.values():
                users[row].add(owner)
        return {row: sorted(found) for row, found in users.items()}

    def content(self, row: int) -> bytes:
        entities = self.build.entities
        return self.build.read(int(entities.address[row]), int(entities.size[row]))

    def describe(self, row: int) -> str:
        file = self.build.entities.files[row]
        return self.build.entities.names[row] + (f" ({file})" if file else "")


def _local_rows(build: Build) -> list[bool]:
    local = [True] * len(build.entities)
    for row in build.by_name.values():
        local[row] = False
    return local


class Matcher:
    def __init__(self, old: Side, new: Side) -> None:
        self.old, self.new = old, new
        self.old_of = np.full(len(new.kinds), -1, np.int32)
        self.new_of = np.full(len(old.kinds), -1, np.int32)
        self.notes: list[Reason] = []
        self.voted: set[tuple[int, int]] = set()
        self._fresh_objects: list[tuple[int, int]] = []

    def run(self) -> Match:
        self._pair_globals()
        self._pair_unnumbered()
        self._pair_by_scope()
        self._settle()
        self._pair_by_context()
        self._settle()
        self._pair_by_referrers()
        self._settle()
        self._pair_moved()
        self._settle()
        self._pair_thread_locals_by_layout()
        self._pair_functions_by_order()
        self._pair_equal_constants()
        return Match(self.old_of, self.new_of, self._ambiguous(), tuple(self.notes))

    # Bookkeeping

    def _pair(self, old: int, new: int) -> None:
        self.new_of[old] = new
        self.old_of[new] = old
        if self.old.kinds[old] != Kind.FUNCTION:
            self._fresh_objects.append((old, new))

    def _compatible(self, old: int, new: int) -> bool:
        return CLASS_OF_KIND[self.old.kinds[old]] == CLASS_OF_KIND[self.new.kinds[new]]

    def _open_groups(self) -> list[tuple[list[int], list[int]]]:
        """Unpaired local rows that share a key."""
        groups: dict[Key, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for index, (side, paired) in enumerate(((self.old, self.new_of), (self.new, self.old_of))):
            for row in np.flatnonzero(paired < 0).tolist():
                if side.local[row]:
                    groups[side.keys[row]][index].append(row)
        return [group for group in groups.values() if group[0] and group[1]]

    def _pair_mutual(self, votes: Counter[tuple[int, int]]) -> int:
        """Pairs what is voted for by nobody else, on either side."""
        old_count = Counter(old for old, _ in votes)
        new_count = Counter(new for _, new in votes)
        paired = 0
        for old, new in votes:
            if old_count[old] == 1 and new_count[new] == 1 and self.new_of[old] < 0 and self.old_of[new] < 0:
                self._pair(old, new)
                paired += 1
        return paired

    # 0. Global names

    def _pair_globals(self) -> None:
        partners: dict[int, dict[int, None]] = defaultdict(dict)
        new_names = self.new.build.by_name
        for row, names in self._global_names(self.old):
            for name in names:
                new = new_names.get(name)
                if new is None:
                    continue
                if self._compatible(row, new):
                    partners[row][new] = None
                else:
                    self._note("kind-changed", name, "is of another kind in the new build and counts as a new name")
        for row, found in partners.items():
            first, *others = found
            self.new_of[row] = first
            if others and self.old.build.plain[row] | (self.old.kinds[row] != Kind.FUNCTION):
                name = self.old.describe(row)
                self._note(
                    "alias-split",
                    name,
                    "had several names for one address, which are distinct in the new build",
                )
        for row in np.flatnonzero(self.new_of >= 0).tolist():
            new = int(self.new_of[row])
            if self.old_of[new] < 0:
                self._pair(row, new)
            elif self.old.kinds[row] in MUTABLE:
                self.new_of[row] = -1
                self._note("variables-merged", self.old.describe(row), "shares its address in the new build")
            elif self.new.build.entities.names[new] in self.old.build.entities.aliases[row]:
                self._pair(row, new)  # the preferred name decides who is the partner

    @staticmethod
    def _global_names(side: Side) -> Iterable[tuple[int, list[str]]]:
        names: dict[int, list[str]] = defaultdict(list)
        for name, row in side.build.by_name.items():
            names[row].append(name)
        for row, found in sorted(names.items()):
            preferred = side.build.entities.names[row]
            yield row, sorted(found, key=lambda name: name != preferred)

    def _note(self, code: str, subject: str, text: str) -> None:
        self.notes.append(Reason(code, subject, f"{subject} {text}"))

    # 1. Local names that are alone

    def _pair_unnumbered(self) -> None:
        for old_rows, new_rows in self._open_groups():
            if len(old_rows) == 1 == len(new_rows):
                old, new = old_rows[0], new_rows[0]
                if self._unnumbered(self.old, old) and self._unnumbered(self.new, new):
                    self._pair(old, new)

    @staticmethod
    def _unnumbered(side: Side, row: int) -> bool:
        return not stem_of(side.build.entities.names[row]).numbered or side.kinds[row] == Kind.FUNCTION

    def _pair_by_scope(self) -> None:
        """Statics that debug information says to be the only ones of their name in one function."""
        for old_rows, new_rows in self._open_groups():
            groups: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
            for index, (side, rows) in enumerate(((self.old, old_rows), (self.new, new_rows))):
                for row in rows:
                    if scope := side.scopes.get(row):
                        groups[scope][index].append(row)
            for olds, news in groups.values():
                if len(olds) == 1 == len(news):
                    self._pair(olds[0], news[0])

    def _apart(self, old: int, new: int) -> bool:
        """Whether two rows are known to be statics of different functions, each of which both builds have."""
        before, after = self.old.scopes.get(old), self.new.scopes.get(new)
        if not before or not after or before == after:
            return False
        return {before, after} <= self.old.functions & self.new.functions

    # 2. Position

    def _settle(self) -> None:
        """Follows paired functions and objects until they tell nothing new."""
        while self._vote_by_code() + self._vote_by_data():
            pass

    def _vote_by_code(self) -> int:
        old_rows, new_rows = self._unvoted_functions()
        if not len(old_rows):
            return 0
        equal = equal_shapes(self.old.shapes, self.new.shapes, old_rows, new_rows)
        pairs = paired_references(self.old.shapes, self.new.shapes, old_rows[equal], new_rows[equal])
        old_target, new_target = self.old.target[pairs.old], self.new.target[pairs.new]
        same_place = self.old.shapes.references.addend[pairs.old] == self.new.shapes.references.addend[pairs.new]
        useful = (old_target >= 0) & (new_target >= 0) & same_place
        useful &= (self.new_of[old_target] < 0) & (self.old_of[new_target] < 0)
        votes = np.stack([old_target[useful], new_target[useful]], axis=1).tolist()
        return self._pair_mutual(self._credible(votes))

    def _unvoted_functions(self) -> tuple[Indices, Indices]:
        paired = np.flatnonzero((self.new_of >= 0) & (self.old.build.entities.kind == Kind.FUNCTION))
        both = zip(paired.tolist(), self.new_of[paired].tolist(), strict=True)
        fresh = [pair for pair in both if pair not in self.voted]
        self.voted.update(fresh)
        table = np.array(fresh, np.int64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def _vote_by_data(self) -> int:
        votes = []
        objects, self._fresh_objects = self._fresh_objects, []
        for old, new in objects:
            if self.old.sizes[old] != self.new.sizes[new] or old not in self.old.words:
                continue
            theirs = self.new.words.get(new, {})
            for offset, (row, addend) in self.old.words[old].items():
                partner = theirs.get(offset)
                if partner is not None and partner[1] == addend and self.new_of[row] < 0 > self.old_of[partner[0]]:
                    votes.append([row, partner[0]])
        return self._pair_mutual(self._credible(votes))

    def _credible(self, votes: Sequence[Sequence[int]]) -> Counter[tuple[int, int]]:
        """Votes between names that may be the same."""
        return Counter(
            (old, new)
            for old, new in votes
            if self.old.local[old]
            and self.new.local[new]
            and self.old.keys[old] == self.new.keys[new]
            and not self._apart(old, new)
        )

    # 3. Context

    def _pair_by_context(self) -> None:
        """In functions that changed: the same reference between the same code and the same neighbours."""
        wanted = {row for group in self._open_groups() for row in group[0]}
        functions = {f for row in wanted for f in self.old.referrers.get(row, ()) if self.old.kinds[f] == Kind.FUNCTION}
        votes: Counter[tuple[int, int]] = Counter()
        for function in sorted(functions):
            partner = int(self.new_of[function])
            if partner < 0:
                continue
            ours = self._contexts(self.old, function, self.new_of)
            theirs = self._contexts(self.new, partner, None)
            for token in ours.keys() & theirs.keys():
                old, new = ours[token], theirs[token]
                open_pair = self.new_of[old] < 0 and self.old_of[new] < 0
                if open_pair and self.old.keys[old] == self.new.keys[new] and not self._apart(old, new):
                    votes[old, new] += 1
        self._pair_mutual(votes)

    def _contexts(self, side: Side, function: int, new_of: I32 | None) -> dict[Hashable, int]:
        """Token to the open local row it stands for, where the token occurs only once in the function."""
        shapes, references = side.shapes, side.shapes.references
        first, last = int(shapes.first[function]), int(shapes.last[function])
        code, start = shapes.code(function), int(shapes.start[function])
        names = [self._reference_token(side, index, new_of) for index in range(first, last)]
        seen: dict[Hashable, int] = {}
        repeated: set[Hashable] = set()
        for index in range(first, last):
            row = int(side.target[index])
            at = int(references.position[index]) - start
            near = code[max(at - 8, 0) : at + 8]
            i = index - first
            token = (names[i], int(references.addend[index]), near, names[max(i - 1, 0) : i], names[i + 1 : i + 2])
            key = (token[0], token[1], near, tuple(token[3]), tuple(token[4]))
            if key in seen:
                repeated.add(key)
            if row >= 0:
                seen[key] = row
        return {key: row for key, row in seen.items() if key not in repeated}

    def _reference_token(self, side: Side, index: int, new_of: I32 | None) -> Hashable:
        references = side.shapes.references
        row = int(side.target[index])
        if row >= 0:
            partner = int(new_of[row]) if new_of is not None else (row if self.old_of[row] >= 0 else -1)
            return ("row", partner) if partner >= 0 else ("open", side.keys[row])
        kind, entity = int(references.target_kind[index]), int(references.entity[index])
        if kind in (TargetKind.GOT, TargetKind.PLT):
            return ("import", side.build.slots[entity].symbol)
        if kind == TargetKind.ANONYMOUS:
            target = int(references.target[index])
            text = side.build.read(target, min(STRING_PREFIX, side.build.span - target))
            return ("data", text.split(b"\0", 1)[0])
        return ("other", kind)

    # 4. Who refers to it

    def _pair_by_referrers(self) -> None:
        for exact_size in (True, False):
            for old_rows, new_rows in self._open_groups():
                self._pair_equal_signatures(old_rows, new_rows, exact_size)
        for old_rows, new_rows in self._open_groups():
            votes: Counter[tuple[int, int]] = Counter()
            theirs = {new: set(self._signature(self.new, new)) for new in new_rows}
            for old in old_rows:
                ours = set(self._signature(self.old, old))
                for new, users in theirs.items():
                    if ours & users and not self._apart(old, new):
                        votes[old, new] += 1
            self._pair_mutual(votes)

    def _pair_equal_signatures(self, old_rows: Sequence[int], new_rows: Sequence[int], exact_size: bool) -> None:
        def collect(side: Side, rows: Sequence[int]) -> dict[Hashable, list[int]]:
            found: dict[Hashable, list[int]] = defaultdict(list)
            for row in rows:
                users = tuple(sorted(map(repr, self._signature(side, row))))
                if users:
                    found[users, side.sizes[row] if exact_size else 0].append(row)
            return found

        theirs = collect(self.new, new_rows)
        for signature, rows in collect(self.old, old_rows).items():
            partners = theirs.get(signature, [])
            if len(rows) == 1 == len(partners) and not self._apart(rows[0], partners[0]):
                self._pair(rows[0], partners[0])

    def _signature(self, side: Side, row: int) -> list[Hashable]:
        """The users of a row, named so that both sides say the same."""
        users: list[Hashable] = []
        for user in side.referrers.get(row, ()):
            partner = int(self.new_of[user]) if side is self.old else user
            if partner >= 0 and self.old_of[partner] >= 0:
                users.append(partner)
            elif side.local[user]:
                users.append(side.keys[user])
            else:
                users.append(side.build.entities.names[user])
        return users

    # 5. What moved to another file, or became static or global

    def _pair_moved(self) -> None:
        def leftovers(side: Side, paired: I32) -> dict[tuple[str, int], list[int]]:
            found: dict[tuple[str, int], list[int]] = defaultdict(list)
            for row in np.flatnonzero(paired < 0).tolist():
                stem = stem_of(side.build.entities.names[row])
                if not stem.numbered and not stem.clones:
                    found[stem.base, CLASS_OF_KIND[side.kinds[row]]].append(row)
            return found

        theirs = leftovers(self.new, self.old_of)
        for key, rows in leftovers(self.old, self.new_of).items():
            partners = theirs.get(key, [])
            if len(rows) == 1 == len(partners):
                self._pair(rows[0], partners[0])

    # 6. Last means, each only where it cannot do harm

    def _pair_thread_locals_by_layout(self) -> None:
        """Code may name a thread-local in a way that proves nothing; an unchanged block is then the only evidence."""
        if _thread_local_layout(self.old) != _thread_local_layout(self.new):
            return
        place = {
            int(address): row
            for row, (address, kind) in enumerate(
                zip(self.old.build.entities.address.tolist(), self.old.kinds, strict=True)
            )
            if kind == Kind.TLS
        }
        for new in np.flatnonzero((self.new.build.entities.kind == Kind.TLS) & (self.old_of < 0)).tolist():
            old = place[int(self.new.build.entities.address[new])]
            if self.new_of[old] < 0:
                self._pair(old, new)

    def _pair_functions_by_order(self) -> None:
        """Clones of one function whose address nobody takes: a wrong pair only makes them count as changed."""
        for old_rows, new_rows in self._open_groups():
            if self.old.kinds[old_rows[0]] != Kind.FUNCTION:
                continue
            olds = [row for row in old_rows if not self.old.build.plain[row]]
            news = [row for row in new_rows if not self.new.build.plain[row]]
            for old, new in zip(olds, news, strict=False):
                self._pair(old, new)

    def _pair_equal_constants(self) -> None:
        """Constants have no identity that a compiler promises to keep: equal content under the same name will do."""
        places: dict[Hashable, int] = {}
        for row in np.flatnonzero(self.old.build.entities.kind == Kind.CONSTANT).tolist():
            if self.old.local[row]:
                places.setdefault((self.old.keys[row], self.old.content(row)), row)
        taken: dict[Hashable, int] = {}
        for row in np.flatnonzero(self.new.build.entities.kind == Kind.CONSTANT).tolist():
            if not self.new.local[row]:
                continue
            content: Hashable = (self.new.keys[row], self.new.content(row))
            taken.setdefault(content, row)
            if self.old_of[row] < 0 and content in places:
                self.old_of[row] = places[content]
        for key, row in places.items():
            if self.new_of[row] < 0 and key in taken:
                self.new_of[row] = taken[key]
        for row in np.flatnonzero((self.old.build.entities.kind == Kind.CONSTANT) & (self.new_of < 0)).tolist():
            if self.old.local[row]:
                self.new_of[row] = taken.get((self.old.keys[row], self.old.content(row)), -1)

    def _ambiguous(self) -> frozenset[int]:
        return frozenset(
            new
            for olds, news in self._open_groups()
            for new in news
            if self.new.kinds[new] in MUTABLE and not all(self._apart(old, new) for old in olds)
        )


def _thread_local_layout(side: Side) -> list[tuple[int, int, Key]]:
    rows = np.flatnonzero(side.build.entities.kind == Kind.TLS).tolist()
    return [(int(side.build.entities.address[row]), side.sizes[row], side.keys[row]) for row in rows]


def match(old: Shapes, new: Shapes, old_scopes: Scopes | None = None, new_scopes: Scopes | None = None) -> Match:
    """Pairs the rows of two builds.

    ``old_scopes`` and ``new_scopes`` may name, from debug information, the function that a static local belongs to.
    """
    return Matcher(Side(old.build, old, old_scopes or {}), Side(new.build, new, new_scopes or {})).run()
