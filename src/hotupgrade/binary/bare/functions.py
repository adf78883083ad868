"""Where the functions of a stripped build begin and end.

The frame information has an entry for every function that a compiler made, since exceptions and debuggers must get
through it.  What it lacks are the start files of the compiler and hand-written code: there, exported names and the
places that something calls or points to divide what is left.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import iced_x86
import numpy as np
import numpy.typing as npt

from hotupgrade.binary.code import data_targets
from hotupgrade.binary.elf import SHF_EXECINSTR
from hotupgrade.binary.frames import RSP, Frames, NoFrameError
from hotupgrade.binary.model import Form, Section
from hotupgrade.binary.references import CodeReferences, scan
from hotupgrade.binary.relocations import PLT_SECTIONS
from hotupgrade.binary.symbols import SymbolType

if TYPE_CHECKING:
    from hotupgrade.binary.build import Build

Addresses = npt.NDArray[np.int64]

_FUNCTIONS = (SymbolType.FUNC, SymbolType.GNU_IFUNC)
_BRANCHES = (Form.JUMP, Form.BRANCH, Form.SHORT)
_PADDING = (iced_x86.Mnemonic.NOP, iced_x86.Mnemonic.INT3, iced_x86.Mnemonic.XCHG)
_LONGEST_PADDING = 64
_MOST_CASES = 4096


@dataclass(frozen=True)
class Functions:
    """Disjoint pieces of code, ascending; ``owner`` is the index of the function that a piece is put apart of, or -1.

    ``framed`` is false for what has no frame information: its bounds are guesses, and may hold several functions.
    """

    start: Addresses
    stop: Addresses
    owner: npt.NDArray[np.int32]
    framed: npt.NDArray[np.bool_]
    code: CodeReferences  # ``function`` counts these pieces

    def __len__(self) -> int:
        return len(self.start)


def find_functions(build: Build) -> Functions:
    """Every byte of code outside of the PLT belongs to one of them, but for padding."""
    pieces = _Pieces(build)
    pieces.add_framed()
    pieces.add_exported()
    pieces.fill_gaps()
    start, stop, framed = pieces.columns()
    code = scan(build.image, start.tolist(), stop.tolist(), list(range(len(start))))
    return Functions(start, stop, _owners(build, start, stop, framed, code), framed, code)


def code_sections(build: Build) -> list[Section]:
    """Those that hold functions, ascending."""
    found = [
        section
        for section in build.sections.values()
        if section.flags & SHF_EXECINSTR and section.name not in PLT_SECTIONS and section.size
    ]
    return sorted(found, key=lambda section: section.vaddr)


class _Pieces:
    def __init__(self, build: Build) -> None:
        self._build = build
        self._sections = code_sections(build)
        self._spans: dict[int, tuple[int, bool]] = {}  # start to end, and whether it has frame information

    def columns(self) -> tuple[Addresses, Addresses, npt.NDArray[np.bool_]]:
        table = sorted((start, *rest) for start, rest in self._spans.items())
        start = np.array([row[0] for row in table], np.int64)
        stop = np.array([row[1] for row in table], np.int64)
        following = np.append(start[1:], self._build.span)
        return start, np.minimum(stop, following), np.array([row[2] for row in table], np.bool_)

    def add_framed(self) -> None:
        for first, end in frame_ranges(self._build):
            if self._in_code(first, end):
                self._spans[first] = (max(end, self._spans.get(first, (0, True))[0]), True)

    def add_exported(self) -> None:
        """Those without frame information; the others say the same."""
        for symbol in self._build.dynamic_symbols:
            if not symbol.defined or symbol.type not in _FUNCTIONS or symbol.vaddr in self._spans:
                continue
            end = symbol.vaddr + symbol.size
            if symbol.size and self._in_code(symbol.vaddr, end) and not self._covered(symbol.vaddr, end):
                self._spans[symbol.vaddr] = (end, False)

    def fill_gaps(self) -> None:
        """What nothing bounds is divided where something leads to."""
        gaps = [gap for section in self._sections for gap in self._gaps(section)]
        if not gaps:
            return
        known = set(_places_pointed_to(self._build))
        code = scan(self._build.image, [low for low, _ in gaps], [high for _, high in gaps], list(range(len(gaps))))
        known.update(code.target[np.isin(code.form, (Form.CALL, Form.JUMP, Form.LEA))].astype(np.int64).tolist())
        for low, high in gaps:
            known.update(_inner_calls(self._build, low, high))
            places = sorted({low, *(place for place in known if low < place < high)})
            tails = scan(self._build.image, places, [*places[1:], high], list(range(len(places))))
            known.update(tails.target[tails.form == Form.JUMP].astype(np.int64).tolist())
            known.update(tails.target[tails.form == Form.SHORT].astype(np.int64).tolist())
            places = sorted({low, *(place for place in known if low < place < high)})
            for start, stop in zip(places, [*places[1:], high], strict=True):
                trimmed = _without_padding(self._build, start, stop)
                if trimmed > start:
                    self._spans[start] = (trimmed, False)

    def _gaps(self, section: Section) -> Iterable[tuple[int, int]]:
        at = section.vaddr
        for start, (stop, _) in sorted(self._spans.items()):
            if section.vaddr <= start < section.vaddr + section.size:
                yield from self._gap(at, start)
                at = max(at, stop)
        yield from self._gap(at, section.vaddr + section.size)

    def _gap(self, low: int, high: int) -> Iterable[tuple[int, int]]:
        if (begin := _behind_padding(self._build, low, high)) < high:
            yield begin, high

    def _in_code(self, low: int, high: int) -> bool:
        return any(s.vaddr <= low < high <= s.vaddr + s.size for s in self._sections)

    def _covered(self, low: int, high: int) -> bool:
        return any(start < high and low < stop for start, (stop, _) in self._spans.items())


def frame_ranges(build: Build) -> list[tuple[int, int]]:
    """(first vaddr, end) of everything that has frame information."""
    if build.eh_frame is None:
        return []
    start, size = build.eh_frame
    return [(first, end) for first, end in Frames(build.read(start, size), start, build.label).ranges() if end > first]


def _places_pointed_to(build: Build) -> list[int]:
    found: list[int] = data_targets(build).tolist()
    return found


def _inner_calls(build: Build, low: int, high: int) -> set[int]:
    """Where calls within a gap lead; jumps may be of one function."""
    decoder = iced_x86.Decoder(64, build.read(low, high - low), ip=low)
    return {
        instruction.near_branch_target
        for instruction in decoder
        if instruction.is_call_near and low <= instruction.near_branch_target < high
    }


def _behind_padding(build: Build, low: int, high: int) -> int:
    """The first instruction that is more than padding; ``high`` if there is none."""
    content = build.read(low, high - low)
    if not any(content):
        return high
    for instruction in iced_x86.Decoder(64, content, ip=low):
        zeros = not any(content[instruction.ip - low : instruction.next_ip - low])
        if not zeros and instruction.mnemonic not in _PADDING:
            return instruction.ip
    return high


def _without_padding(build: Build, low: int, high: int) -> int:
    """``high``, or where the padding before it begins."""
    end = low
    for instruction in iced_x86.Decoder(64, build.read(low, high - low), ip=low):
        if instruction.mnemonic not in _PADDING and not instruction.is_invalid:
            end = instruction.next_ip
    return end if high - end < _LONGEST_PADDING else high


# Pieces put apart


def _owners(
    build: Build, start: Addresses, stop: Addresses, framed: npt.NDArray[np.bool_], code: CodeReferences
) -> npt.NDArray[np.int32]:
    """For what runs in the frame of another function, that function.

    That is code which nothing calls, exports or points to and which begins with a frame that somebody else has set up;
    or to which one function alone leads in a way that calls do not: by a condition, by a switch, or to be led back into
    its middle.
    """
    entered, odd = _entered(build, start, code), _FramesOfOthers(build, start, framed)
    users, returns = _branches(start, stop, code)
    owner = np.full(len(start), -1, np.int32)
    for piece, found in users.items():
        if entered[piece]:
            continue
        back = {user for user, _ in found if user in returns.get(piece, ())}
        if odd[piece]:
            candidates = {user for user, _ in found if not odd[user]} or {user for user, _ in found}
            owner[piece] = min(back & candidates or candidates)
        elif len({user for user, _ in found}) == 1 and (back or any(conditional for _, conditional in found)):
            owner[piece] = found[0][0]
    open_ones = np.flatnonzero(~entered & (owner < 0))
    _add_cases(build, start, stop, dict(zip(start[open_ones].tolist(), open_ones.tolist(), strict=True)), owner, code)
    return _to_roots(owner)


def _branches(
    start: Addresses, stop: Addresses, code: CodeReferences
) -> tuple[Mapping[int, list[tuple[int, bool]]], Mapping[int, set[int]]]:
    """Per piece: who jumps there (and whether in a way that no call is made), and into whose middle it jumps."""
    chosen = np.flatnonzero(np.isin(code.form, _BRANCHES))
    target, user = code.target[chosen].astype(np.int64), code.function[chosen]
    place = np.searchsorted(start, target, side="right") - 1
    inside = (place >= 0) & (target < stop[np.maximum(place, 0)]) & (place != user)
    middle = target != start[np.maximum(place, 0)]
    conditional = (code.form[chosen] != Form.JUMP) | middle
    users: dict[int, list[tuple[int, bool]]] = defaultdict(list)
    returns: dict[int, set[int]] = defaultdict(set)
    columns = (user[inside], place[inside], conditional[inside], middle[inside])
    for source, aim, special, into in zip(*(column.tolist() for column in columns), strict=True):
        users[aim].append((source, special))
        if into:
            returns[source].add(aim)
    return users, returns


def _add_cases(
    build: Build,
    start: Addresses,
    stop: Addresses,
    orphans: Mapping[int, int],
    owner: npt.NDArray[np.int32],
    code: CodeReferences,
) -> None:
    """What a switch leads to, of these (by address): its table is in read-only data, and holds distances from there."""
    takes = np.flatnonzero((code.form == Form.LEA) & (code.target % 4 == 0) & (code.target < build.span - 4))
    starts, stops = start.tolist(), stop.tolist()
    for index in takes.tolist():
        table, function = int(code.target[index]), int(code.function[index])
        for orphan in _cases(build, table, function, owner, orphans, starts, stops):
            owner[orphan] = function


def _cases(
    build: Build,
    table: int,
    function: int,
    owner: npt.NDArray[np.int32],
    orphans: Mapping[int, int],
    starts: Sequence[int],
    stops: Sequence[int],
) -> list[int]:
    """The orphans among the cases of a switch; nothing if this is no table of one."""
    found: list[int] = []
    own = False
    for place in range(table, min(table + 4 * _MOST_CASES, build.span - 4), 4):
        target = table + int.from_bytes(build.read(place, 4), "little", signed=True)
        piece = piece_at(starts, stops, target)
        if piece == function or (piece >= 0 and owner[piece] == function):
            own = True
        elif target in orphans:
            found.append(orphans[target])
        else:
            break
    return found if own else []


def _entered(build: Build, start: Addresses, code: CodeReferences) -> npt.NDArray[np.bool_]:
    """What something calls, exports or points to is a function of its own."""
    taken = np.isin(code.form, (Form.CALL, Form.LEA))
    exported = [s.vaddr for s in build.dynamic_symbols if s.defined]
    places = np.concatenate([code.target[taken].astype(np.int64), data_targets(build), np.array(exported, np.int64)])
    result: npt.NDArray[np.bool_] = np.isin(start, places)
    return result


class _FramesOfOthers:
    """Whether a piece begins with a frame that somebody else set up; few are asked about."""

    def __init__(self, build: Build, start: Addresses, framed: npt.NDArray[np.bool_]) -> None:
        self._start, self._framed = start, framed
        self._frames = Frames(build.read(*build.eh_frame), build.eh_frame[0], "") if build.eh_frame else None
        self._known: dict[int, bool] = {}

    def __getitem__(self, piece: int) -> bool:
        if piece not in self._known:
            self._known[piece] = bool(self._framed[piece]) and self._is_odd(int(self._start[piece]))
        return self._known[piece]

    def _is_odd(self, vaddr: int) -> bool:
        if self._frames is None:
            return False
        try:
            row = self._frames.row(vaddr)
        except NoFrameError:
            return False
        return row.cfa != (RSP, 8) or any(register != 16 for register in row.saved)


def _to_roots(owner: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Pieces of pieces belong to the function; of pieces in a circle one must be it."""
    result = owner.copy()
    for piece in np.flatnonzero(owner >= 0).tolist():
        seen, at = {piece}, piece
        while owner[at] >= 0 and int(owner[at]) not in seen:
            at = int(owner[at])
            seen.add(at)
        if owner[at] >= 0:
            at = max(seen)  # compilers put what is rarely used first
        result[piece] = at if at != piece else -1
    return result


def piece_at(start: Sequence[int], stop: Sequence[int], vaddr: int) -> int:
    """Index of the piece that holds an address, or -1."""
    at = bisect_right(start, vaddr) - 1
    return at if at >= 0 and vaddr < stop[at] else -1
