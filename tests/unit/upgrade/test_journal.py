from __future__ import annotations

import stat
from pathlib import Path

from hotupgrade.upgrade import journal


def test_entries_are_kept_in_order(tmp_path: Path) -> None:
    for number in range(3):
        journal.append({"generation": number}, tmp_path)
    assert [entry["generation"] for entry in journal.read(tmp_path)] == [0, 1, 2]


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    journal.append({}, tmp_path)
    assert stat.S_IMODE((tmp_path / "journal.jsonl").stat().st_mode) == 0o600


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    journal.append({"generation": 1}, tmp_path)
    with open(tmp_path / "journal.jsonl", "ab") as file:
        file.write(b'{"generation": 2, "na')
    assert [entry["generation"] for entry in journal.read(tmp_path)] == [1]


def test_no_journal_is_an_empty_one(tmp_path: Path) -> None:
    assert journal.read(tmp_path / "nowhere") == []
