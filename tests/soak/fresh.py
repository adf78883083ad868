"""First upgrades of switches that have only just started: the agent comes in while threads are still being made, and
is called by threads that have just woken, in the midst of the allocator for example."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hotupgrade.vswitch import vulnerability
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.switch import Switch
from live.harness import DONE, Driver, HotUpgrade
from soak.switch import ALL, NONE, changes_in_background, check_log, holes

#: Seconds after a start within which the upgrade begins: threads are still being made, or have just been.
SOON = 1.5
ATTEMPTS = 20  # a switch that is starting may have no thread at rest for a while


@dataclass
class Numbers:
    switches: int = 0
    not_now: int = 0
    changes: dict[str, int] = field(default_factory=dict)


def first_upgrades(
    hu: HotUpgrade,
    seed: int,
    over: Callable[[int], bool],
    old: SwitchBuild,
    files: Sequence[Path],
    report: Callable[[dict[str, Any]], None],
) -> None:
    """One switch after the other is upgraded and rolled back soon after its start, while flows, ports and bridges come
    and go; raises if one of them suffers.  What was done goes to ``report`` in any case."""
    numbers, chance = Numbers(), random.Random(seed)
    try:
        with Driver(hu) as driver:
            while not over(numbers.switches):
                with Switch(old) as switch:
                    vulnerability.prepare(switch)
                    with changes_in_background(switch, numbers.changes):
                        time.sleep(chance.uniform(0, SOON))
                        for command, words, expected in (("upgrade", files, NONE), ("rollback", (), ALL)):
                            _until_done(driver, switch, command, words, numbers)
                            assert holes(switch) == expected, command
                    check_log(switch.log())
                numbers.switches += 1
    finally:
        report(asdict(numbers))


def _until_done(driver: Driver, switch: Switch, command: str, words: Sequence[Path], numbers: Numbers) -> None:
    for _ in range(ATTEMPTS):
        answer = driver(command, switch.pid, *words, "--json", limit=60)
        assert switch.alive, f"{answer}\n{switch.log()[-2000:]}"
        if answer.outcome != "not-now":
            assert answer.code == DONE, str(answer)
            return
        numbers.not_now += 1
    raise AssertionError(f"{command}: not now, {ATTEMPTS} times: {answer}")
