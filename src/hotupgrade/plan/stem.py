"""What of a local name survives a rebuild: compilers number their statics and clones afresh each time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_NUMBER = re.compile(r"\d+\Z")
_WORD = re.compile(r"[a-z_A-Z]\w*\Z")


@dataclass(frozen=True, slots=True)
class Stem:
    """``foo.isra.0.cold`` is base ``foo``, clones ``(isra, cold)``; ``rl.17`` is base ``rl``, numbered."""

    base: str
    clones: tuple[str, ...]
    numbered: bool  # a number of the compiler's own was dropped: the name alone identifies nothing


@lru_cache(maxsize=1 << 16)
def stem_of(name: str) -> Stem:
    if "." not in name[1:]:
        return Stem(name, (), False)
    head, *tail = name[1:].split(".")
    clones = tuple(part for part in tail if not _NUMBER.match(part))
    if not all(_WORD.match(part) for part in clones):
        return Stem(name, (), False)  # not a compiler's suffix but part of the name
    return Stem(name[0] + head, clones, len(clones) < len(tail))
