"""Edits as the agent applies them: aligned 64-bit words, each once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hotupgrade.plan.model import Edit, EditKind
from hotupgrade.target.maps import PAGE, Mapping, mapping_at
from hotupgrade.target.request import Word


def to_words(edits: Iterable[Edit]) -> tuple[list[Word], list[Word]]:
    """(data words, code words).  Edits that share a word are merged: each changes only the bytes it means to change."""
    data: dict[int, tuple[bytes, bytearray]] = {}
    code: dict[int, tuple[bytes, bytearray]] = {}
    for edit in edits:
        table = code if edit.kind is EditKind.JUMP else data
        for offset in range(0, len(edit.old), 8):
            old, new = edit.old[offset : offset + 8], edit.new[offset : offset + 8]
            _before, after = table.setdefault(edit.address + offset, (old, bytearray(old)))
            for index in range(8):
                if new[index] != old[index]:
                    after[index] = new[index]
    return _words(data), _words(code)


def _words(table: dict[int, tuple[bytes, bytearray]]) -> list[Word]:
    return [
        Word(address, int.from_bytes(old, "little"), int.from_bytes(new, "little"))
        for address, (old, new) in sorted(table.items())
        if old != bytes(new)
    ]


def reverse(words: Sequence[Word]) -> list[Word]:
    return [Word(word.address, word.new, word.old) for word in words]


def pages(words: Iterable[Word]) -> list[int]:
    """The pages that the words lie in."""
    return sorted({word.address // PAGE * PAGE for word in words})


def mappings_of(maps: Sequence[Mapping], words: Iterable[Word]) -> list[Mapping]:
    """The mappings that the words lie in."""
    found = {m.start: m for page in pages(words) if (m := mapping_at(maps, page)) is not None}
    return [found[start] for start in sorted(found)]
