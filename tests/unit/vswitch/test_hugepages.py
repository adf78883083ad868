"""Loans of hugepages, on a pool made of files."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from hotupgrade.errors import NotNow
from hotupgrade.vswitch import hugepages as module
from hotupgrade.vswitch.hugepages import hugepages


@pytest.fixture(autouse=True)
def compaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that asks the kernel to compact its memory; not the real one."""
    monkeypatch.setattr(module, "COMPACT", tmp_path / "compact")
    return tmp_path / "compact"


class Pool:
    """A pool that grants everything up to ``limit`` and has ``free`` pages whatever happens."""

    def __init__(self, home: Path, pages: int, surplus: int = 0, free: int = 10**6) -> None:
        self.path, self.loans = home / "pool", home / "loans"
        self.path.mkdir()
        for name, count in {"nr": pages, "surplus": surplus, "free": free, "resv": 0}.items():
            (self.path / f"{name}_hugepages").write_text(f"{count}\n")

    @property
    def pages(self) -> int:
        return int((self.path / "nr_hugepages").read_text())

    def loan(self, mebibytes: int) -> AbstractContextManager[int]:
        return hugepages(mebibytes, self.path, self.loans)


def test_added_and_taken_away_again(tmp_path: Path) -> None:
    pool = Pool(tmp_path, 5)
    with pool.loan(63) as pages:
        assert pages == 32
        assert pool.pages == 37
    assert pool.pages == 5
    assert not list(pool.loans.glob("*.loan"))


def test_loans_add_up_in_any_order(tmp_path: Path) -> None:
    pool = Pool(tmp_path, 0)
    first, second = pool.loan(20), pool.loan(40)
    first.__enter__()
    second.__enter__()
    assert pool.pages == 30
    first.__exit__(None, None, None)
    assert pool.pages == 20
    second.__exit__(None, None, None)
    assert pool.pages == 0


def test_given_back_after_an_error(tmp_path: Path) -> None:
    pool = Pool(tmp_path, 1)
    with pytest.raises(ZeroDivisionError), pool.loan(2):
        raise ZeroDivisionError
    assert pool.pages == 1


def test_what_a_killed_owner_left_is_returned(tmp_path: Path) -> None:
    pool = Pool(tmp_path, 108)
    pool.loans.mkdir()
    (pool.loans / "999999999-1-0.loan").write_text("100")
    with pool.loan(2):
        assert pool.pages == 9
    assert pool.pages == 8
    assert [file.name for file in pool.loans.iterdir()] == ["lock"]


def test_surplus_pages_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(tmp_path, 10, surplus=8)
    original = module._set
    monkeypatch.setattr(module, "_set", lambda path, pages: original(path, pages + 8))  # as the kernel shows it
    with pool.loan(2):
        assert pool.pages == 11
    assert pool.pages == 10


def test_too_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compaction: Path) -> None:
    pool = Pool(tmp_path, 4)
    original = module._set
    monkeypatch.setattr(module, "_set", lambda path, pages: original(path, min(pages, 6)))
    with pytest.raises(NotNow, match="only 2 of 16 hugepages") as caught, pool.loan(32):
        pytest.fail("granted")
    assert caught.value.reason.code == "no-hugepages"
    assert pool.pages == 4
    assert compaction.read_text() == "1"


def test_pages_that_a_dying_process_still_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(tmp_path, 4, free=3)
    monkeypatch.setattr(module, "FREE_SECONDS", 0.05)
    with pytest.raises(NotNow), pool.loan(8):
        pytest.fail("granted")
    assert pool.pages == 4
