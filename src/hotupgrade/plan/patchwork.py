"""Collects byte changes and hands them out as edits of whole, aligned 8-byte words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hotupgrade.plan.model import Edit, EditKind

WORD = 8


@dataclass
class _Word:
    old: bytes
    new: bytearray
    kind: EditKind
    what: str


class Patchwork:
    """Changes may share a word; what is not changed keeps its present content.  ``read`` reads the process."""

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        self._read = read
        self._words: dict[int, _Word] = {}

    def add(self, address: int, content: bytes, kind: EditKind, what: str) -> None:
        low = address - address % WORD
        high = -(-(address + len(content)) // WORD) * WORD
        present = self._read(low, high - low)
        for place in range(low, high, WORD):
            old = present[place - low : place - low + WORD]
            word = self._words.setdefault(place, _Word(old, bytearray(old), kind, what))
            first, last = max(address, place), min(address + len(content), place + WORD)
            word.new[first - place : last - place] = content[first - address : last - address]

    def edits(self) -> tuple[Edit, ...]:
        """By address; neighbouring words of the same purpose in one edit, unchanged words left out."""
        runs: list[tuple[int, list[_Word]]] = []
        for address in sorted(self._words):
            word = self._words[address]
            if word.old == word.new:
                continue
            if runs and _continues(runs[-1], address, word):
                runs[-1][1].append(word)
            else:
                runs.append((address, [word]))
        return tuple(_edit(address, words) for address, words in runs)


def _continues(run: tuple[int, list[_Word]], address: int, word: _Word) -> bool:
    start, words = run
    return address == start + WORD * len(words) and (words[0].kind, words[0].what) == (word.kind, word.what)


def _edit(address: int, words: list[_Word]) -> Edit:
    old, new = b"".join(word.old for word in words), b"".join(bytes(word.new) for word in words)
    return Edit(address, old, new, words[0].kind, words[0].what)
