"""What an application of the comparison is: something that runs between two hosts while a way is gone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hotupgrade.vswitch.builds import SwitchBuild

Document = dict[str, Any]


class Place(Protocol):
    """Where an application runs: two hosts (:mod:`hotupgrade.vswitch.compare.hosts`), mostly."""

    @property
    def subject(self) -> Any:
        """What ways are given."""

    def freshen(self) -> object:
        """Comes before each run."""


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
    forwards without.  ``between``: what it needs is not two hosts but this, which is there for one switch alone."""

    key: str
    title: str
    figures: tuple[Figure, ...]
    run: Callable[[Any, Path], AbstractContextManager[Callable[[], Document]]]
    lasts: bool = True
    flows: bool = False
    between: Callable[[SwitchBuild], AbstractContextManager[Place]] | None = None
