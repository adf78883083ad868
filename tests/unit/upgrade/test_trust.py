from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from hotupgrade.errors import Refused
from hotupgrade.files import read_regular
from hotupgrade.upgrade import journal, ledger
from hotupgrade.upgrade.kept import store_path
from hotupgrade.upgrade.trust import own_folder, require_trusted

NOBODY = 65534


def trusted(path: Path) -> bytes:
    return read_regular(path, partial(require_trusted, path))


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(b"x")
    assert trusted(path) == b"x"
    path.chmod(mode)
    with pytest.raises(Refused, match="written by other users"):
        trusted(path)


def test_what_was_opened_counts_not_what_stands_there_later(tmp_path: Path) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(b"x")

    def exchange(status: os.stat_result) -> None:
        path.rename(tmp_path / "gone")
        path.write_bytes(b"y")
        path.chmod(0o666)
        require_trusted(path, status)

    assert read_regular(path, exchange) == b"x"


def as_link(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir(mode=0o700)
    folder.rmdir()
    folder.symlink_to(folder.parent / "elsewhere")


def as_file(folder: Path) -> None:
    folder.rmdir()
    folder.write_bytes(b"")


@pytest.mark.parametrize(
    "spoil",
    [lambda f: f.chmod(0o770), lambda f: f.chmod(0o707), as_link, as_file],
    ids=["group", "others", "link", "file"],
)
def test_a_folder_that_is_not_ours_alone(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    folder = own_folder(tmp_path / "state")
    assert folder.stat().st_mode & 0o777 == 0o700
    spoil(folder)
    with pytest.raises(Refused) as refused:
        journal.append({}, folder)
    assert refused.value.reasons[0].code == "state-folder"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else; run as root")
def test_a_folder_of_somebody_else(tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "state")
    os.chown(folder, NOBODY, NOBODY)
    with pytest.raises(Refused):
        own_folder(folder)


@pytest.mark.parametrize("word", ["../../etc/passwd", "", "ab/cd", "A1", "a" * 200])
def test_a_build_id_is_no_path(word: str) -> None:
    with pytest.raises(ValueError, match="build-id"):
        store_path(word)
    record = ledger.ImageRecord(
        build_id=word, path="", base=0, start=0, size=0, placed=None, owned=[], tls_offsets={}, exports={}, pages=0
    )
    held = ledger.Ledger(modules=[ledger.ModuleRecord(name="x", base=0, images=[record], current=0)])
    raw = ledger.encode(held)
    with pytest.raises(ValueError, match="build"):
        ledger.decode(raw[:24], raw[24:])
