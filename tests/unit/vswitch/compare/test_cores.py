"""Polling threads have cores to themselves, as far as there are enough."""

from __future__ import annotations

import os
import subprocess

import pytest

from hotupgrade.vswitch.compare import cores


@pytest.mark.parametrize(
    ("usable", "first", "second", "others"),
    [
        ({3}, 3, 3, (3,)),
        ({0, 1}, 1, 1, (0,)),
        ({0, 1, 2}, 2, 1, (0,)),
        ({4, 5, 6, 7}, 7, 6, (4, 5)),
    ],
)
def test_who_runs_where(
    monkeypatch: pytest.MonkeyPatch, usable: set[int], first: int, second: int, others: tuple[int, ...]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: usable)
    assert (cores.polling(), cores.polling(1), cores.others()) == (first, second, others)


def test_a_command_is_kept_there() -> None:
    shown = subprocess.run([*cores.aside(), "nproc"], capture_output=True, text=True, check=True).stdout
    assert int(shown) == len(cores.others())
