"""Where builds come from: new files that the operator names, and the builds that the process holds."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hotupgrade.binary.build import Build
from hotupgrade.binary.cache import Cache, load_build
from hotupgrade.errors import NotNow, Reason, Refused
from hotupgrade.files import read_regular
from hotupgrade.target.modules import Module
from hotupgrade.upgrade.journal import state_folder


def open_new(path: Path, cache: Cache) -> Build:
    """A new build from a file that only its owner, or root, can have written.

    Raises:
        Refused: the file cannot be read, is no build that can be used, or others may write it or put another in its
        place.
    """
    return load_build(read_regular(path, lambda status: _require_trusted(path, status)), str(path), cache)


def _require_trusted(path: Path, status: os.stat_result) -> None:
    """Refuse a file that another user may change or exchange.  A sticky folder (/tmp) lets only owners do so."""
    _require_owned(path, status)
    folder = Path(os.path.realpath(path)).parent
    for place in (folder, *folder.parents):
        about = place.stat()
        if not about.st_mode & stat.S_ISVTX:
            _require_owned(place, about)


def _require_owned(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Refused(
            Reason(
                "writable-by-others",
                str(path),
                f"{path} may be written by other users than its owner; code from there is not let into a process "
                f"(chmod go-w, chown)",
            )
        )


def open_loaded(module: Module, cache: Cache) -> Build:
    """The build of the loader's own image, from the very file that is mapped."""
    return load_build(module.contents(), module.path, cache)


def open_earlier(build_id: str, path: str, cache: Cache) -> Build:
    """A build that an earlier upgrade brought into the process.

    Raises:
        NotNow: its file is gone, and so is our copy of it.
    """
    for candidate in (store_path(build_id), Path(path)):
        try:
            build = load_build(read_regular(candidate), path, cache)
        except Refused:
            continue
        if build.build_id == build_id:
            return build
    raise NotNow(
        Reason(
            "no-earlier-build",
            path,
            f"{path} (build-id {build_id}), which the process holds from an earlier upgrade, is neither there nor "
            f"in {state_folder()}; "
            "put it back",
        )
    )


def store_path(build_id: str) -> Path:
    return state_folder() / "builds" / build_id


def keep(build: Build) -> None:
    """Keep a copy of a build that a process is about to hold: later upgrades must compare with it."""
    target = store_path(build.build_id)
    if target.exists():
        return
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = target.with_suffix(f".{os.getpid()}")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(build.data)
    part.rename(target)
