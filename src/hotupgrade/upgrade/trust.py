"""Files and folders that are believed: only where nobody else could have written them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hotupgrade.errors import Reason, Refused

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def require_trusted(path: Path, status: os.stat_result) -> None:
    """Refuse an open file, of this status, that another user may change or exchange.

    A sticky folder (/tmp) lets only owners do so.

    Raises:
        Refused: the file, or a folder above it, is not root's or ours, or may be written by others.
    """
    _require_owned(path, status)
    folder = Path(os.path.realpath(path)).parent
    for place in (folder, *folder.parents):
        about = place.stat()
        if not about.st_mode & stat.S_ISVTX:
            _require_owned(place, about)


def _require_owned(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & _OTHERS_WRITE:
        raise Refused(
            Reason(
                "writable-by-others",
                str(path),
                f"{path} may be written by other users than its owner; code from there is not let into a process "
                f"(chmod go-w, chown)",
            )
        )


def own_folder(folder: Path) -> Path:
    """A folder of ours, made if it is not there, for nobody else to write.

    Raises:
        Refused: it belongs to somebody else, is a symbolic link, others may write to it, or it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        text = f"{folder}, for the journal and for copies of builds, cannot be made: {os.strerror(error.errno or 0)}"
        raise Refused(Reason("state-folder", str(folder), text)) from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & _OTHERS_WRITE:
        text = f"{folder} must be a folder of the user who runs hotupgrade, that nobody else may write to"
        raise Refused(Reason("state-folder", str(folder), text))
    return folder
