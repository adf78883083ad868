"""The tool is killed while it upgrades the real switch at full speed; the soak does the same at length."""

from __future__ import annotations

import random

import pytest

from hotupgrade.vswitch import baseline
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.demo import LIBRARIES
from hotupgrade.vswitch.switch import Switch
from live.harness import HotUpgrade
from soak.switch import ALL, check_log, holes, kill_once


@pytest.mark.slow
def test_the_tool_is_killed(switch: Switch, fixed: SwitchBuild, tmp_path_factory: pytest.TempPathFactory) -> None:
    hu = HotUpgrade(tmp_path_factory.mktemp("home"))
    files = [fixed.library(name) for name in LIBRARIES]
    before, chance = baseline.take(switch), random.Random(3)
    hu("check", switch.pid, *files)  # from now on both builds are known
    for _ in range(3):
        kill_once(switch, hu, hu, files, chance)
    assert holes(switch) == ALL
    assert [fact for fact in baseline.compare(before, baseline.take(switch)) if not fact.ok] == []
    check_log(switch.log())
