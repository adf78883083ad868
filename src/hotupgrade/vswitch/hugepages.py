"""Hugepages on loan: added to the pool for as long as a switch runs, then given back.

Others may use the pool at the same time, so a loan is a difference, never an absolute count.  Each loan is written down
beside its owner's process id; a loan whose owner was killed is returned by the next one who asks.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hotupgrade.errors import NotNow, Reason
from hotupgrade.vswitch.processes import start_time

POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
PAGE_MIB = 2
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
        before = _count(pool)
        _grow(pool, before + wanted)
        got = _count(pool) - before
        if got < wanted:
            _set(pool, before)
            raise NotNow(
                Reason(
                    "no-hugepages",
                    str(pool),
                    f"only {max(got, 0)} of {wanted} hugepages of 2 MiB could be reserved: free some memory, "
                    "or reserve them at boot",
                )
            )
        return _write_loan(loans, wanted)


def _grow(pool: Path, target: int) -> None:
    _set(pool, target)
    if _count(pool) < target:  # free memory may be in pieces
        with suppress(OSError):
            COMPACT.write_text("1")
        _set(pool, target)


def _give_back(loan: Path, pool: Path) -> None:
    _set(pool, max(0, _count(pool) - int(loan.read_text())))
    loan.unlink()


def _abandoned(loans: Path) -> Iterator[Path]:
    for loan in sorted(loans.glob("*.loan")):
        owner, started, _ = loan.name.split("-", 2)
        if start_time(int(owner)) != int(started):
            yield loan


def _write_loan(loans: Path, pages: int) -> Path:
    owner = os.getpid()
    prefix = f"{owner}-{start_time(owner)}"
    number = sum(1 for _ in loans.glob(f"{prefix}-*.loan"))
    loan = loans / f"{prefix}-{number}.loan"
    while loan.exists():
        number += 1
        loan = loans / f"{prefix}-{number}.loan"
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


def _count(pool: Path) -> int:
    return int(pool.read_text())


def _set(pool: Path, pages: int) -> None:
    pool.write_text(str(pages))
