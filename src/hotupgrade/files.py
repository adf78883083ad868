"""Reading files that may be anything: pipes, devices, files without end."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from hotupgrade.errors import Reason, Refused

#: Bytes.  A module larger than this, debug information and all, has not been met; its contents are held in memory.
MOST = 1 << 30


def read_regular(path: Path | str, check: Callable[[os.stat_result], None] | None = None) -> bytes:
    """The contents of a regular file, read through one descriptor: what happens to the path meanwhile does not matter.

    ``check`` is given the status of what was opened, and raises if that is not to be read.

    Raises:
        Refused: it cannot be read, is no regular file, or is larger than ``MOST`` bytes.
    """
    label = os.fspath(path)
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else str(error)
        text = f"{label} cannot be read: {what}; name a shared library or an executable"
        raise Refused(Reason("unreadable", label, text)) from error
    try:
        return _read(descriptor, label, check)
    except OSError as error:
        text = f"{label} cannot be read: {error.strerror}; take a good copy of it"
        raise Refused(Reason("unreadable", label, text)) from error
    finally:
        os.close(descriptor)


def _read(descriptor: int, label: str, check: Callable[[os.stat_result], None] | None) -> bytes:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        text = f"{label} is not a regular file; name a shared library or an executable"
        raise Refused(Reason("not-a-file", label, text))
    if check is not None:
        check(status)
    with open(descriptor, "rb", closefd=False) as file:
        # A file may grow while it is read, and those of some file systems do not say their size.
        content: bytes | None = file.read(MOST + 1) if status.st_size <= MOST else b""
    if content is None:
        raise BlockingIOError(errno.EAGAIN, "it has nothing to be read now")  # some files of /proc
    if status.st_size > MOST or len(content) > MOST:
        text = f"{label} is larger than {MOST >> 30} GiB; no module to upgrade is"
        raise Refused(Reason("too-large", label, text))
    return content
