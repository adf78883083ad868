"""Hugepages on loan: added to the pool for as long as a switch runs, then given back.

Others may use the pool at the same time, so a loan is a difference, never an absolute count.  Each loan is written down
beside its owner's process id; a loan whose owner was killed is returned by the next one who asks.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hotupgrade.errors import NotNow, Reason
from hotupgrade.vswitch.processes import owner, owner_is_gone

POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
PAGE_MIB = 2
FREE_SECONDS = 10.0
LOANS = Path("/run/hotupgrade/hugepages")
COMPACT = Path("/proc/sys/vm/compact_memory")


@contextmanager
def hugepages(mebibytes: int, pool: Path = POOL, loans: Path = LOANS) -> Iterator[int]:
    """Add 2 MiB pages for ``mebibytes`` to the pool; yields how many; takes as many away at the end."""
    wanted = -(-mebibytes // PAGE_MIB)
    loan = _borrow(wanted, pool, loans)
    try:
        yield wanted
    finally:
        with _locked(loans):
            _give_back(loan, pool)


def _borrow(wanted: int, pool: Path, loans: Path) -> Path:
    with _locked(loans):
        for loan in _abandoned(loans):
            _give_back(loan, pool)
        before = persistent(pool)
        _grow(pool, before + wanted)
        got = persistent(pool) - before
        if got < wanted or not _free_in_time(pool, wanted):
            _set(pool, before)
            words = f"only {max(got, 0)} of {wanted} hugepages of 2 MiB could be reserved: free some memory"
            raise NotNow(Reason("no-hugepages", str(pool), words))
        return _write_loan(loans, wanted)


def persistent(pool: Path = POOL) -> int:
    """How many pages the pool is meant to have.

    The kernel's count also has the surplus: pages still in use when the pool was made smaller.
    """
    return _read(pool / "nr_hugepages") - _read(pool / "surplus_hugepages")


def _free_in_time(pool: Path, wanted: int) -> bool:
    """Whether ``wanted`` pages are free: growing first counts surplus pages, whose user may still be dying."""
    deadline = time.monotonic() + FREE_SECONDS
    while _read(pool / "free_hugepages") - _read(pool / "resv_hugepages") < wanted:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _grow(pool: Path, target: int) -> None:
    _set(pool, target)
    if persistent(pool) < target:  # free memory may be in pieces
        with suppress(OSError):
            COMPACT.write_text("1")
        _set(pool, target)


def _give_back(loan: Path, pool: Path) -> None:
    _set(pool, max(0, persistent(pool) - int(loan.read_text())))
    loan.unlink()


def _abandoned(loans: Path) -> Iterator[Path]:
    for loan in sorted(loans.glob("*.loan")):
        if owner_is_gone(loan.name):
            yield loan


def _write_loan(loans: Path, pages: int) -> Path:
    names = (loans / f"{owner()}-{number}.loan" for number in itertools.count())
    loan = next(name for name in names if not name.exists())
    loan.write_text(str(pages))
    return loan


@contextmanager
def _locked(loans: Path) -> Iterator[None]:
    try:
        loans.mkdir(parents=True, exist_ok=True)
        lock = os.open(loans / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError as error:
        raise NotNow(Reason("not-root", str(loans), "only root can reserve hugepages: run as root")) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _read(file: Path) -> int:
    return int(file.read_text())


def _set(pool: Path, pages: int) -> None:
    (pool / "nr_hugepages").write_text(str(pages))
