"""The demonstration's own words and files, with a switch and a command line that only pretend."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from hotupgrade.errors import HotUpgradeError
from hotupgrade.vswitch import baseline, demo, vulnerability
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.flows import Flow
from hotupgrade.vswitch.statistics import Rate
from hotupgrade.vswitch.switch import Switch, SwitchOptions
from unit.report import samples
from unit.vswitch.test_baseline import BEFORE


class Pretending:
    """A switch whose code is whatever the last command made it."""

    def __init__(self, build: SwitchBuild) -> None:
        self.build, self.options, self.pid = build, SwitchOptions(), 10
        self.fixed, self.effective, self.moment, self.speed = False, True, 0, 25_000_000
        self.commands: list[list[str]] = []

    def flows(self) -> tuple[Flow, ...]:
        return (Flow("a", 1, 1),)

    def bridges(self) -> tuple[str, ...]:
        return ("br0",)

    def ports(self) -> tuple[str, ...]:
        return ("br0: null1 1/1 (dpdk)",)

    def threads(self) -> dict[int, str]:
        return {10: "ovs-vswitchd"}

    def rate(self, seconds: float) -> Rate:
        return Rate(int(self.speed * seconds), int(2.6e9 * seconds), seconds)

    def hotupgrade(self, arguments: list[str]) -> dict[str, Any]:
        self.commands.append(arguments)
        if self.effective and arguments[0] in ("upgrade", "rollback"):
            self.fixed = arguments[0] == "upgrade"
        return {**samples.upgrade(), "command": arguments[0]}

    def examine(self, _switch: Switch) -> tuple[vulnerability.Finding, ...]:
        return tuple(
            vulnerability.Finding(probe.cve, probe.summary, "recirc_id=0", probe.needed, not self.fixed)
            for probe in vulnerability.PROBES
        )

    def take(self, _switch: Switch) -> baseline.Baseline:
        self.moment += 1
        grown = {name: {"x": self.moment} for name in ("flow_packets", "port_packets", "pmd_packets")}
        return replace(BEFORE, **grown)  # type: ignore[arg-type]


@pytest.fixture
def build(tmp_path: Path) -> SwitchBuild:
    for name in demo.LIBRARIES:
        (tmp_path / "fixed/lib").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"fixed/lib/{name}-3.1.so.0").touch()
    return SwitchBuild(tmp_path / "fixed")


@pytest.fixture
def switch(build: SwitchBuild, monkeypatch: pytest.MonkeyPatch) -> Pretending:
    pretending = Pretending(build)
    monkeypatch.setattr(demo, "run_hotupgrade", pretending.hotupgrade)
    monkeypatch.setattr(vulnerability, "examine", pretending.examine)
    monkeypatch.setattr(baseline, "take", pretending.take)
    return pretending


@pytest.fixture
def demonstration(switch: Pretending, build: SwitchBuild) -> demo.Demonstration:
    return demo.Demonstration(cast(Switch, switch), build, Console(width=120, record=True, quiet=False, stderr=True))


def test_steps_in_order(demonstration: demo.Demonstration, switch: Pretending) -> None:
    demonstration.run()
    assert demonstration.ok
    assert [command[0] for command in switch.commands] == ["check", "upgrade", "status", "rollback", "upgrade"]
    assert all("--json" in command for command in switch.commands)
    assert all(command[1] == "10" for command in switch.commands)
    named = [Path(word).name for word in switch.commands[1] if word.endswith(".so.0")]
    assert named == ["libopenvswitch-3.1.so.0", "libofproto-3.1.so.0"]
    assert [step["document"].get("command") for step in demonstration.steps] == [
        *(None, None, "check", "upgrade", None, "status", "rollback", None, "upgrade", None)
    ]


def test_an_upgrade_without_effect_is_noticed(demonstration: demo.Demonstration, switch: Pretending) -> None:
    switch.effective = False
    demonstration.run()
    assert not demonstration.ok
    wrong = [fact.name for fact in demonstration.facts if not fact.ok]
    assert wrong == [
        f"CVE-2023-1668 and CVE-2023-5366, {when}"
        for when in ("by the upgrade", "by the roll-back", "by the second upgrade")
    ]


def test_a_slower_switch_is_noticed(demonstration: demo.Demonstration) -> None:
    before, after = Rate(1000, 1000, 1.0), Rate(800, 1000, 1.0)
    fact = demo._rate_fact(before, after)
    assert not fact.ok
    assert "× 0.800" in fact.after


def test_files(demonstration: demo.Demonstration, tmp_path: Path) -> None:
    demonstration.run()
    data, picture, html = demo.write(demonstration, tmp_path / "demo")
    report = json.loads(data.read_text())
    assert report["ok"] is True
    assert len(report["steps"]) == 10
    assert {fact["ok"] for fact in report["facts"]} == {True}
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert demo.TITLE in html.read_text()
    demo.show(demonstration)
    assert "busy threads stopped for 18.0 µs" in demonstration.console.export_text()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import sys; sys.exit('refused: layout of struct x')", "refused: layout of struct x"),
        ("print('not json')", "this is no JSON document: 'not json"),
        ("print('[]')", "this is no JSON document"),
    ],
)
def test_a_command_that_fails(program: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "hotupgrade"
    script.write_text(f"#!{sys.executable}\n{program}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(HotUpgradeError, match=words):
        demo.run_hotupgrade(["check", "1"])


def test_a_command_that_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "hotupgrade"
    script.write_text(f'#!{sys.executable}\nimport json, sys\nprint(json.dumps({{"got": sys.argv[1:]}}))\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert demo.run_hotupgrade(["check", "1"]) == {"got": ["check", "1"]}
