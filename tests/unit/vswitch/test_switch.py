"""What can be said of a switch before one is started."""

from __future__ import annotations

import os

import pytest

from hotupgrade.vswitch.switch import SwitchOptions


@pytest.mark.parametrize(
    ("ports", "actions"),
    [
        (1, ["in_port"]),
        (2, ["output:2", "output:1"]),
        (3, ["output:2", "output:1", "output:1"]),
        (4, ["output:2", "output:1", "output:4", "output:3"]),
    ],
)
def test_pairs_forward_to_one_another(ports: int, actions: list[str]) -> None:
    rules = SwitchOptions(ports=ports).forwarding_rules()
    assert [rule.partition("actions=")[2] for rule in rules] == actions
    assert [f"in_port={port}," in rules[port - 1] for port in range(1, ports + 1)] == [True] * ports


def test_ports_forward_to_their_kind() -> None:
    options = SwitchOptions(ports=1, vhost_ports=3)
    assert [rule.partition("priority=10,")[2] for rule in options.forwarding_rules()] == [
        "in_port=1,actions=in_port",
        "in_port=2,actions=output:3",
        "in_port=3,actions=output:2",
        "in_port=4,actions=output:2",
    ]
    assert [options.vhost_number(port) for port in (1, 2, 3)] == [2, 3, 4]
    assert SwitchOptions(ports=0, vhost_ports=1).forwarding_rules()[0].endswith("in_port=1,actions=in_port")


def test_memory_grows_with_guests() -> None:
    assert SwitchOptions().memory() == SwitchOptions().memory_mib
    assert SwitchOptions(vhost_ports=2).memory() > SwitchOptions(vhost_ports=1).memory() > SwitchOptions().memory()


def test_own_rules_replace_them() -> None:
    assert SwitchOptions(rules=()).forwarding_rules() == ()
    assert SwitchOptions(rules=("a", "b")).forwarding_rules() == ("a", "b")


def test_cores_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {2, 3, 5})
    assert SwitchOptions().cores() == (2, (5,))
    assert SwitchOptions(main_core=3, pmd_cores=(2, 5)).cores() == (3, (2, 5))
