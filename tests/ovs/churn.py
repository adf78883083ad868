"""An operator who does not wait: ports, bridges, flows and polling threads come and go.

Every change is seen to have happened, and raises if that takes longer than it may.
"""

from __future__ import annotations

import itertools
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hotupgrade.vswitch import connections as tracked
from hotupgrade.vswitch.processes import wait_until
from hotupgrade.vswitch.switch import BRIDGE, Switch

SECONDS = 60.0  # what any change may take, on a crowded machine
MONITORED = "watched"  # the port that the monitor thread looks after


# What may be done over and over; ``turn`` makes names that were not there before.


def change_everything(switch: Switch, turn: int) -> None:
    """Add, see and take away flows, ports of two kinds and a bridge; ask the daemon itself."""
    change_flows(switch, turn)
    change_ports(switch, turn)
    change_taps(switch, turn)
    change_bridges(switch, turn)
    assert "pmd" in switch.appctl("dpif-netdev/pmd-rxq-show")
    assert BRIDGE in switch.appctl("dpif/show")
    switch.appctl("upcall/show")
    switch.appctl("memory/show")


def change_flows(switch: Switch, turn: int) -> None:
    rules = (f"table=4,priority={priority},udp,tp_dst={1 + turn % 1000},actions=drop" for priority in range(1, 21))
    switch.ofctl("add-flows", BRIDGE, "-", text="\n".join(rules) + "\n")
    assert sum("table=4" in flow.rule for flow in switch.flows()) == 20
    switch.ofctl("del-flows", BRIDGE, "table=4")
    assert not any("table=4" in flow.rule for flow in switch.flows())


def change_ports(switch: Switch, turn: int) -> None:
    """A further DPDK port: the polling thread is made to load its queues anew, twice."""
    name, device = f"more{turn}", f"net_null{100 + turn}"
    settings = ["type=dpdk", f'options:dpdk-devargs="{device}"', "options:n_rxq=1"]
    switch.vsctl("add-port", BRIDGE, name, "--", "set", "interface", name, *settings)
    assert any(f" {name} " in port for port in switch.ports())
    switch.vsctl("del-port", BRIDGE, name)


def change_taps(switch: Switch, turn: int) -> None:
    name = f"tap{turn}"
    switch.vsctl("add-port", BRIDGE, name, "--", "set", "interface", name, "type=internal")
    assert any(f" {name} " in port for port in switch.ports())
    switch.vsctl("del-port", BRIDGE, name)


def change_bridges(switch: Switch, turn: int) -> None:
    name = f"extra{turn}"
    switch.vsctl("add-br", name, "--", "set", "bridge", name, "datapath_type=netdev")
    assert name in switch.bridges()
    switch.vsctl("del-br", name)
    assert name not in switch.bridges()


def rebalance(switch: Switch, turn: int) -> None:
    """Have the queues assigned to the polling threads anew; each is polled as before."""
    before = _queues(switch)
    assert "pmd rxq rebalance requested" in switch.appctl("dpif-netdev/pmd-rxq-rebalance")
    after = _queues(switch)
    ports = {port for port, _, _ in after}  # others may have been taken away by others
    assert {queue for queue in before if queue[0] in ports} <= after


def _queues(switch: Switch) -> set[tuple[str, int, bool]]:
    return {(queue.port, queue.queue, queue.enabled) for queue in switch.rx_queues()}


# Polling threads.


def polling_threads(switch: Switch) -> dict[int, int]:
    """Thread id of each polling thread, by core."""
    names = ((name.partition("/")[0], thread) for thread, name in switch.threads().items())
    return {int(name.removeprefix("pmd-c")): thread for name, thread in names if name.startswith("pmd-c")}


def set_polling_cores(switch: Switch, cores: Iterable[int]) -> None:
    """Change ``pmd-cpu-mask``: threads whose core is no longer named end for good, others start."""
    wanted = set(cores)
    mask = hex(sum(1 << core for core in wanted))
    switch.vsctl("set", "Open_vSwitch", ".", f"other_config:pmd-cpu-mask={mask}")
    wait_until(lambda: polling_threads(switch).keys() == wanted, SECONDS, f"polling threads on cores {wanted}")


def replace_polling_threads(switch: Switch, turn: int = 0) -> None:
    """End every polling thread for good, and have new ones on the same cores: by way of another core, or of more."""
    before = polling_threads(switch)
    others = set(range(switch.options.cores()[0], max(before) + 1)) - before.keys()
    for core in before if not others else ():
        set_polling_cores(switch, before.keys() - {core})
        set_polling_cores(switch, before)
    if others:
        set_polling_cores(switch, others)
        set_polling_cores(switch, before)
    after = polling_threads(switch)
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values()), (before, after)


# What is there and has to stay.


@contextmanager
def monitored_port(switch: Switch) -> Iterator[None]:
    """A port with BFD: the switch has a monitor thread as long as there is one."""
    settings = ["type=internal", "bfd:enable=true", "bfd:min_tx=100"]
    switch.vsctl("add-port", BRIDGE, MONITORED, "--", "set", "interface", MONITORED, *settings)
    wait_until(lambda: _has_monitor(switch), SECONDS, "the monitor thread")
    try:
        yield
    finally:
        if switch.alive:
            switch.vsctl("del-port", BRIDGE, MONITORED)
            wait_until(lambda: not _has_monitor(switch), SECONDS, "the monitor thread to end")


def _has_monitor(switch: Switch) -> bool:
    return any(name.startswith("monitor") for name in switch.threads().values())


def add_connections(switch: Switch, count: int) -> None:
    """Have the connection tracker know ``count`` connections."""
    tracked.add_connections(switch, BRIDGE, count)
    assert len(tracked.connections(switch)) >= count


# The end.


def delete_bridge(switch: Switch, bridge: str = BRIDGE) -> None:
    """The last bridge takes the datapath along: every polling thread ends, and every other of its threads."""
    switch.vsctl("del-br", bridge)
    assert bridge not in switch.bridges()
    if not switch.bridges():
        wait_until(lambda: not polling_threads(switch), SECONDS, "the polling threads to end")


def leave(switch: Switch) -> None:
    """The switch exits by itself: every thread is joined, every destructor runs."""
    daemon = switch._daemon
    assert daemon is not None
    switch.appctl("exit", "--cleanup")
    try:
        assert daemon.wait(SECONDS) == 0
    except subprocess.TimeoutExpired:
        raise AssertionError(f"the switch does not exit: {_states(switch)}") from None


def _states(switch: Switch) -> list[str]:
    """Each thread with its state and the kernel function that it waits in."""
    tasks = Path(f"/proc/{switch.pid}/task").iterdir()
    return [
        " ".join([(task / "comm").read_text().strip(), _state(task), (task / "wchan").read_text()]) for task in tasks
    ]


def _state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


# All the time.


@contextmanager
def in_background(*actions: Callable[[int], None]) -> Iterator[list[int]]:
    """Repeat each action in a thread of its own; gives how often each was done.  Its errors are raised at the end,
    before any other, which they explain."""
    counts, errors, over = [0] * len(actions), [], threading.Event()

    def repeat(index: int, action: Callable[[int], None]) -> None:
        for turn in itertools.count(10):
            if over.is_set():
                return
            try:
                action(turn)
            except BaseException as error:
                errors.append(error)
                return
            counts[index] += 1

    threads = [threading.Thread(target=repeat, args=pair, daemon=True) for pair in enumerate(actions)]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        over.set()
        for thread in threads:
            thread.join(60)
        if errors:
            raise errors[0]


def wait_for(counts: list[int], more: int, since: list[int] | None = None, limit: float = 30) -> None:
    """Until every action was done ``more`` times."""
    start, deadline = since or [0] * len(counts), time.monotonic() + limit
    while any(count - begin < more for count, begin in zip(counts, start, strict=True)):
        assert time.monotonic() < deadline, f"the changes do not get on: {counts}"
        time.sleep(0.02)
