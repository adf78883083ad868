"""What the soak does to the real switch."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hotupgrade.vswitch import vulnerability
from hotupgrade.vswitch.switch import BRIDGE, Switch
from live.harness import DONE, HotUpgrade

ALL, NONE = [True] * len(vulnerability.PROBES), [False] * len(vulnerability.PROBES)


def holes(switch: Switch) -> list[bool]:
    """For every probe whether the switch is vulnerable."""
    return [finding.vulnerable for finding in vulnerability.examine(switch)]


def check_log(log: str) -> None:
    """Nothing that a program says when it falls over."""
    wrong = ("|EMER|", "assertion", "Segmentation", "SIGSEGV", "terminated by", "double free", "corrupt", "panic")
    assert [line for line in log.splitlines() if any(word in line for word in wrong)] == []


def _flows(switch: Switch, turn: int) -> None:
    rules = (f"table=4,priority={priority},udp,tp_dst={1 + turn % 1000},actions=drop" for priority in range(1, 21))
    switch.ofctl("add-flows", BRIDGE, "-", text="\n".join(rules) + "\n")
    assert sum("table=4" in flow.rule for flow in switch.flows()) == 20
    switch.ofctl("del-flows", BRIDGE, "table=4")


def _ports(switch: Switch, turn: int) -> None:
    name, device = f"more{turn}", f"net_null{100 + turn}"
    switch.vsctl(
        "add-port", BRIDGE, name, "--", "set", "interface", name, "type=dpdk", f'options:dpdk-devargs="{device}"'
    )
    assert any(f" {name} " in port for port in switch.ports())
    switch.vsctl("del-port", BRIDGE, name)


def _bridges(switch: Switch, turn: int) -> None:
    name = f"extra{turn}"
    switch.vsctl("add-br", name, "--", "set", "bridge", name, "datapath_type=netdev")
    assert name in switch.bridges()
    switch.vsctl("del-br", name)


@contextmanager
def changes_in_background(switch: Switch, counts: dict[str, int]) -> Iterator[None]:
    """Flows, ports and bridges come and go, as fast as the switch takes them; an error is raised at the end."""
    errors: list[BaseException] = []
    over = threading.Event()

    def repeat() -> None:
        for turn in itertools.count(10):
            for name, change in (("flows", _flows), ("ports", _ports), ("bridges", _bridges)):
                if over.is_set():
                    return
                try:
                    change(switch, turn)
                except BaseException as error:
                    errors.append(error)
                    return
                counts[name] = counts.get(name, 0) + 1

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)
    if errors:
        raise errors[0]


def kill_once(switch: Switch, hu: HotUpgrade, checker: HotUpgrade, files: Sequence[Path], chance: random.Random) -> int:
    """Kill an upgrade at a random moment; the switch is wholly old or wholly new, as ``status`` says."""
    process = hu.start("upgrade", switch.pid, *files, "--json")
    time.sleep(chance.uniform(0.3, 4.0))
    process.kill()
    process.communicate(timeout=10)
    deadline = time.monotonic() + 10
    while True:
        assert switch.alive, switch.log()[-2000:]
        status = checker("status", switch.pid, "--json")
        assert status.code == DONE, str(status)
        expected = NONE if status.document["generation"] else ALL
        if holes(switch) == expected:
            break
        assert time.monotonic() < deadline, str(status)
        time.sleep(0.2)
    for _ in range(20):
        if not status.document["generation"]:
            return 1
        answer = checker("rollback", switch.pid, "--json")
        if answer.code == DONE:
            break
    assert holes(switch) == ALL
    return 1
