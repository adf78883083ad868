"""What an application of the comparison is: something that runs between two hosts while a way is gone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotupgrade.vswitch.compare.hosts import Hosts

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a result, for the table: its key, what it is called, and how many digits are meant."""

    key: str
    title: str
    digits: int = 0


@dataclass(frozen=True)
class Application:
    """``run`` starts it for the time of the context, whose value ends it and returns what became of it: a number for
    each of ``figures``, and more.  ``lasts``: the longer the window, the less an event counts in its percentiles, so
    that all windows have to be equally long.  ``flows``: it is about what a switch knows, and says nothing of what
    forwards without."""

    key: str
    title: str
    figures: tuple[Figure, ...]
    run: Callable[[Hosts, Path], AbstractContextManager[Callable[[], Document]]]
    lasts: bool = True
    flows: bool = False
