"""Where builds come from: new files that the operator names, and the builds that the process holds."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from hotupgrade.binary.build import Build
from hotupgrade.binary.cache import Cache, load_build
from hotupgrade.binary.separate.find import NOWHERE, Search, separate_files
from hotupgrade.binary.separate.places import by_identity
from hotupgrade.errors import NotNow, Reason, Refused
from hotupgrade.files import read_regular
from hotupgrade.target.modules import Module
from hotupgrade.upgrade.debug_sources import DEBUG
from hotupgrade.upgrade.journal import state_folder
from hotupgrade.upgrade.kept import store_path
from hotupgrade.upgrade.trust import own_folder, require_trusted


def open_new(path: Path, cache: Cache, search: Search = NOWHERE) -> Build:
    """A new build from a file that only its owner, or root, can have written; ``search``: for its debug information.

    Raises:
        Refused: the file cannot be read, is no build that can be used, or others may write it or put another in its
        place.
    """
    data = read_regular(path, partial(require_trusted, path))
    return load_build(data, str(path), cache, path.resolve(), search)


def open_loaded(module: Module, cache: Cache, search: Search = NOWHERE) -> Build:
    """The build of the loader's own image, from the very file that is mapped."""
    return load_build(module.contents(), module.path, cache, Path(module.path), search)


def open_earlier(build_id: str, path: str, cache: Cache, search: Search = NOWHERE) -> Build:
    """A build that an earlier upgrade brought into the process.

    Raises:
        NotNow: its file is gone, and so is our copy of it.
    """
    # What the ledger says comes from another process: its paths are looked at, not believed.
    for candidate in (store_path(build_id), Path(path)):
        try:
            data = read_regular(candidate, partial(require_trusted, candidate))
            build = load_build(data, path, cache, Path(path), search)
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


def keep(build: Build) -> None:
    """Keep a copy of a build that a process is about to hold: later upgrades must compare with it."""
    _keep(store_path(build.build_id), build.data)
    keep_debug(build)


def keep_debug(build: Build) -> None:
    """Keep what a build has elsewhere: a package with it goes as soon as the next one is installed."""
    for identity, file in separate_files(build.separate).items():
        _keep(state_folder() / DEBUG / by_identity(identity), file.data)


def _keep(target: Path, content: bytes) -> None:
    if target.exists():
        return
    for folder in reversed(target.relative_to(state_folder()).parents):
        own_folder(state_folder() / folder)
    part = target.with_suffix(f".{os.getpid()}")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(content)
    part.rename(target)
