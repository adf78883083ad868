"""Places where separate debug information may lie, each with the files in it that could be the one that is wanted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Protocol

from hotupgrade.binary.separate.package import Member, find_files
from hotupgrade.binary.separate.unpack import UnpackError
from hotupgrade.errors import Reason, Refused
from hotupgrade.files import read_regular

#: Given a path and the status of what was opened there; raises Refused if it is not to be believed.
Check = Callable[[Path, os.stat_result], None]

_PACKAGED = Path("usr/lib/debug")  # where packages put it, below their root


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is looked for.

    ``identity`` is a build-id (or what a supplementary file has instead) in hexadecimal, "" for none.  ``name`` is what
    a link calls the file, "" for none: a last name, or a path for a supplementary file.  ``module`` is the file whose
    debug information it is, ``folder`` the one that a relative name starts from; None where that is not known.
    """

    identity: str
    name: str
    module: Path | None
    folder: Path | None


def by_identity(identity: str) -> Path:
    """Where a file lies below a folder for debug information."""
    return Path(".build-id", identity[:2], identity[2:] + ".debug")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that could be it.

    ``linked``: it was found by the name in the link, whose CRC counts too.  ``folder``: where names in it start from.
    """

    where: str
    linked: bool
    read: Callable[[], bytes]  # raises Refused
    folder: Path | None = None


class Place(Protocol):
    def candidates(self, wanted: Wanted) -> Iterator[Candidate]:
        """The files that are there, the likeliest first.  Raises Refused: the place cannot be read."""

    def described(self, wanted: Wanted) -> list[str]:
        """Where it looks, for who has to put something there."""


class _Files:
    """A place in the file system."""

    def __init__(self, check: Check) -> None:
        self._check = check

    def candidates(self, wanted: Wanted) -> Iterator[Candidate]:
        seen: set[Path] = set()
        for path, linked in self._paths(wanted):
            if path not in seen and _is_there(path):
                # Names are relative to where a file is, not to where a link to it is.
                yield Candidate(str(path), linked, partial(self._read, path), path.resolve().parent)
            seen.add(path)

    def described(self, wanted: Wanted) -> list[str]:
        return list(dict.fromkeys(str(path) for path, _ in self._paths(wanted)))

    def _paths(self, wanted: Wanted) -> Iterator[tuple[Path, bool]]:
        raise NotImplementedError

    def _read(self, path: Path) -> bytes:
        return read_regular(path, partial(self._check, path))


class Beside(_Files):
    """The folder of the module, and ``.debug`` in it; for a supplement, where its link leads to."""

    def _paths(self, wanted: Wanted) -> Iterator[tuple[Path, bool]]:
        if wanted.name and wanted.folder is not None:
            yield wanted.folder / wanted.name, True
            if "/" not in wanted.name:
                yield wanted.folder / ".debug" / wanted.name, True


class DebugRoot(_Files):
    """A folder like ``/usr/lib/debug``."""

    def __init__(self, root: Path, check: Check) -> None:
        super().__init__(check)
        self._root = root

    def _paths(self, wanted: Wanted) -> Iterator[tuple[Path, bool]]:
        return _below(self._root, wanted)


class NamedFolder(_Files):
    """A folder that the operator named: like ``/usr/lib/debug``, an unpacked package, or just files side by side,
    debug files or copies of the module as it was before it was stripped."""

    def __init__(self, root: Path, check: Check) -> None:
        super().__init__(check)
        self._root = root

    def _paths(self, wanted: Wanted) -> Iterator[tuple[Path, bool]]:
        yield from _below(self._root, wanted)
        yield from _below(self._root / _PACKAGED, wanted)
        if wanted.name:
            yield self._root / PurePosixPath(wanted.name).name, True
        if wanted.module is not None:
            yield self._root / wanted.module.name, False
            for folder in _folders(wanted.module):
                yield self._root / folder / wanted.module.name, False


def _below(root: Path, wanted: Wanted) -> Iterator[tuple[Path, bool]]:
    if len(wanted.identity) > 2:
        yield root / by_identity(wanted.identity), False
    if not wanted.name:
        return
    if "/" in wanted.name:  # of a supplement: packages keep them in .dwz
        path = PurePosixPath(wanted.name)
        yield root / path.relative_to(path.anchor), True
        if ".dwz" in path.parts:
            yield root.joinpath(*path.parts[path.parts.index(".dwz") :]), True
    elif wanted.module is not None:
        for folder in _folders(wanted.module):
            yield root / folder / wanted.name, True


def _folders(module: Path) -> Iterator[Path]:
    """The folder of a module without its leading "/", by each name that packages may know it by.

    ``/lib`` is a link to ``/usr/lib`` on a machine of today, and packages of yesterday say ``/lib``.
    """
    folder = module.parent
    if folder.is_absolute():
        inner = folder.relative_to("/")
        yield inner
        yield inner.relative_to("usr") if inner.parts[:1] == ("usr",) else "usr" / inner


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


class Package:
    """A Debian package that the operator named."""

    def __init__(self, path: Path, content: bytes, check_time: Callable[[], None]) -> None:
        self._path = path
        self._content = content
        self._check_time = check_time
        self._names: frozenset[str] | None = None  # of everything in it, once it was read to its end

    def candidates(self, wanted: Wanted) -> Iterator[Candidate]:
        names = dict(self._inside(wanted))
        if self._names is not None and not self._names & names.keys():
            return
        seen = set[str]()

        def is_wanted(member: Member) -> bool:
            seen.add(member.path)
            return member.path in names

        try:
            for member, content in find_files(self._content, is_wanted, self._check_time):
                where = f"{self._path}: {member.path}"
                yield Candidate(where, names[member.path], partial(bytes, content))
        except UnpackError as error:
            text = f"{self._path} cannot be read: {error}; take a good copy of it, or unpack it with dpkg -x"
            raise Refused(Reason("bad-package", str(self._path), text)) from error
        self._names = frozenset(seen)

    def described(self, wanted: Wanted) -> list[str]:
        return [f"{self._path} ({path})" for path, _ in self._inside(wanted)][:1] or [str(self._path)]

    def _inside(self, wanted: Wanted) -> Iterator[tuple[str, bool]]:
        for path, linked in _below("/" / _PACKAGED, wanted):
            yield str(path), linked
        if wanted.name.startswith("/"):
            yield wanted.name, True
