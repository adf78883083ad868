"""Package first, upgrade after: the modules of a process whose files on disk are other builds than those that run."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hotupgrade.binary.elf import find_build_id
from hotupgrade.errors import Reason, Refused
from hotupgrade.target.modules import Module
from hotupgrade.upgrade.session import Session

_PT_NOTE = 4
_HEADER, _PROGRAM_HEADER = 64, 56
_MOST_HEADERS, _MOST_NOTES = 64, 1 << 16


@dataclass(frozen=True)
class OnDisk:
    """A module, and the file by which the loader would find it today."""

    module: Module
    path: Path


def replaced_on_disk(session: Session) -> tuple[list[OnDisk], list[Reason]]:
    """The modules that a start of the program today would load other builds of; and notes on files that are gone.

    Raises:
        Refused: the process sees other files than we do.
    """
    _require_same_files(session.process.pid)
    found, notes = [], []
    for module in session.modules:
        path = _path_today(module)
        if path is None:
            continue
        try:
            if any(mapping.inode == path.stat().st_ino for mapping in module.mappings):
                continue  # the very file
        except OSError:
            if module.deleted:
                notes.append(_gone(module, path))
            continue
        if _build_id(path) != _running(session, module):
            found.append(OnDisk(module, path))
    return found, notes


def _require_same_files(pid: int) -> None:
    """The paths of a process in another mount namespace, or below another root, are not ours."""
    for name in ("ns/mnt", "root"):
        if not Path(f"/proc/{pid}/{name}").samefile(f"/proc/self/{name}"):
            text = (
                f"process {pid} sees other files than this command does (a container?), so its files on disk are not "
                f"looked at; name the files with the new builds"
            )
            raise Refused(Reason("other-files", str(pid), text))


def _path_today(module: Module) -> Path | None:
    """None for what comes from no file: the kernel's own object, memory files."""
    if not module.path.startswith("/") or module.path.startswith("/memfd:"):
        return None
    # What was opened may be a link, which a new package lets lead to another file.
    return Path(module.opened if module.opened.startswith("/") else module.path)


def _running(session: Session, module: Module) -> str:
    record = session.ledger.module(module.name, module.base)
    return record.images[record.current].build_id if record else module.build_id


def _gone(module: Module, path: Path) -> Reason:
    text = f"{module.name}: its file {path} is gone, and none has taken its place; it is left as it is"
    return Reason("file-gone", module.name, text)


def _build_id(path: Path) -> str:
    """The build-id of a file; "?" if it has none or cannot be read, which whoever opens it will explain."""
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER)
            start, count = struct.unpack_from("<Q", header, 32)[0], struct.unpack_from("<H", header, 56)[0]
            file.seek(start)
            table = file.read(_PROGRAM_HEADER * min(count, _MOST_HEADERS))
            for offset, size, alignment in _notes(table):
                file.seek(offset)
                if found := find_build_id(file.read(min(size, _MOST_NOTES)), alignment):
                    return found
    except (OSError, struct.error, ValueError, OverflowError):
        pass
    return "?"


def _notes(table: bytes) -> Iterator[tuple[int, int, int]]:
    for at in range(0, len(table) - _PROGRAM_HEADER + 1, _PROGRAM_HEADER):
        kind, _, offset, _, _, size, _, alignment = struct.unpack_from("<IIQQQQQQ", table, at)
        if kind == _PT_NOTE:
            yield offset, size, 8 if alignment == 8 else 4
