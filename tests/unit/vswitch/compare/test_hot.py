"""Hot upgrades for a measurement: what is not possible now is tried again, and processes stand still meanwhile."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, cast

import pytest

from hotupgrade.errors import HotUpgradeError, NotNow, Reason
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.compare import hot
from hotupgrade.vswitch.processes import wait_until
from hotupgrade.vswitch.switch import Switch


class Pretended:
    pid = 1


SWITCH = cast("Switch", Pretended())


def test_what_is_not_possible_now_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    left = 2

    def undo(pid: int, timeout: float) -> dict[str, Any]:
        nonlocal left
        if left:
            left -= 1
            raise NotNow(Reason("late", "thread", "a thread is late: try again"))
        return {"pid": pid}

    monkeypatch.setattr(hot, "rollback", undo)
    monkeypatch.setattr(hot, "_PAUSE_S", 0.0)
    assert hot.roll_back(SWITCH) == {"pid": 1, "tries": 3}
    left = 99
    with pytest.raises(NotNow):
        hot.roll_back(SWITCH)


def test_an_upgrade_that_was_not_made_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in hot.LIBRARIES:
        (tmp_path / "lib").mkdir(exist_ok=True)
        (tmp_path / "lib" / f"{name}-3.1.so.0").touch()
    monkeypatch.setattr(hot, "perform", lambda *_: {"outcome": "nothing-to-do", "reasons": []})
    with pytest.raises(HotUpgradeError, match="nothing-to-do"):
        hot.upgrade(SWITCH, SwitchBuild(tmp_path))


def test_processes_stand_still_meanwhile() -> None:
    with subprocess.Popen(["sleep", "60"]) as one:

        def state() -> str:
            return Path(f"/proc/{one.pid}/stat").read_text().rpartition(")")[2].split()[0]

        with hot.held([one.pid]):
            wait_until(lambda: state() == "T", 5, "it to stop")
        wait_until(lambda: state() != "T", 5, "it to go on")
        with hot.held([one.pid]):
            one.kill()
            one.wait()
