"""Where our copies of builds lie.  Apart from who makes them: who only looks has no need to know what a build is."""

from __future__ import annotations

from pathlib import Path

from hotupgrade.upgrade.journal import state_folder
from hotupgrade.upgrade.ledger import BUILD_ID


def store_path(build_id: str) -> Path:
    """Where our copy of a build lies.

    Raises:
        ValueError: this is no build-id.
    """
    if not BUILD_ID.fullmatch(build_id):
        raise ValueError(f"{build_id!r} is no build-id")
    return state_folder() / "builds" / build_id
