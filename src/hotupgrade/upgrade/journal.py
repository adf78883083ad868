"""The journal: the operator's record on disk of what was done to which process.

One file of JSON lines, mode 0600, in ``$XDG_STATE_HOME/hotupgrade`` (root: ``/var/lib/hotupgrade``).  It is never
read to decide anything: what a process holds is told by the ledger in its memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Any

import msgspec

from hotupgrade.upgrade.trust import own_folder

FORMAT_VERSION = 1


def state_folder() -> Path:
    """Where the journal lies."""
    if os.geteuid() == 0:
        return Path("/var/lib/hotupgrade")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "hotupgrade"


def append(entry: dict[str, Any], folder: Path | None = None) -> None:
    """Add one entry; written by a single append, under a lock, and synced."""
    folder = own_folder(folder or state_folder())
    descriptor = os.open(
        folder / "journal.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
    )
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, msgspec.json.encode({"format": FORMAT_VERSION, **entry}) + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(folder: Path | None = None) -> list[dict[str, Any]]:
    """All entries, oldest first; a line that was cut short by a crash is left out."""
    path = (folder or state_folder()) / "journal.jsonl"
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    entries: list[dict[str, Any]] = []
    for line in lines:
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            entry = msgspec.json.decode(line)
            if isinstance(entry, dict):
                entries.append(entry)
    return entries
