"""Processes into which nothing is brought, as their status says."""

from __future__ import annotations

from typing import cast

import pytest

from hotupgrade.errors import Refused
from hotupgrade.target.process import Process
from hotupgrade.upgrade.session import _require_free


class Status:
    """A process that is nothing but its ``/proc/PID/status``."""

    pid = 7

    def __init__(self, **lines: str) -> None:
        self._lines = lines

    def status(self) -> dict[str, str]:
        return self._lines


def code(**lines: str) -> str:
    with pytest.raises(Refused) as refused:
        _require_free(cast(Process, Status(**lines)))
    return refused.value.reasons[0].code


def test_shadow_stacks() -> None:
    """A return through an address that no call has put there would end the process."""
    assert code(Seccomp="0\n", x86_Thread_features="shstk \n") == "shadow-stack"
    assert code(Seccomp="0\n", x86_Thread_features="shstk wrss \n") == "shadow-stack"


def test_seccomp() -> None:
    assert code(Seccomp="2\n", x86_Thread_features="\n") == "seccomp"


@pytest.mark.parametrize(
    "lines",
    [{}, {"Seccomp": "0\n"}, {"Seccomp": "0\n", "x86_Thread_features": "\n", "x86_Thread_features_locked": "\n"}],
)
def test_others(lines: dict[str, str]) -> None:
    _require_free(cast(Process, Status(**lines)))
