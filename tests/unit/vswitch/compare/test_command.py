"""The command: which parts it measures, how it puts pieces together, and what it writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hotupgrade.cli import main as hotupgrade
from hotupgrade.errors import NotNow, Reason
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.compare import __main__ as command
from hotupgrade.vswitch.compare import about, applications, curves, distribution, growth, picture, results, run
from unit.vswitch.compare import samples

Document = dict[str, Any]
Results = Iterator[tuple[str, Document]]
DRAWN = (
    (picture, "draw"),
    (picture, "draw_series"),
    (curves, "draw_growth"),
    (curves, "draw_distribution"),
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Nothing is measured; what would have been, with the settings."""
    found: list[tuple[str, Any]] = []

    def ways(_: SwitchBuild, __: SwitchBuild, settings: run.Settings, say: object) -> Results:
        found.append(("ways", settings))
        for key in settings.only or ("restart", "hot"):
            yield key, samples.ways(settings.flows, key)

    def apps(_: SwitchBuild, __: SwitchBuild, settings: applications.Settings, say: object) -> Results:
        found.append(("applications", settings))
        for key in settings.applications or tuple(one.key for one in applications.APPLICATIONS):
            yield key, samples.applications()

    def grow(_: SwitchBuild, __: SwitchBuild, settings: growth.Settings, say: object) -> Results:
        found.append(("growth", settings))
        for key in settings.axes or tuple(one.key for one in growth.axes()):
            yield key, {"title": key, "points": [samples.point(10, 20.0)]}

    def distribute(_: SwitchBuild, __: SwitchBuild, settings: distribution.Settings, say: object) -> Results:
        found.append(("distribution", settings))
        yield "full speed", samples.distributed()

    for module, name in DRAWN:
        monkeypatch.setattr(module, name, lambda _, path: path.write_bytes(b"a picture"))
    monkeypatch.setattr(command, "find_build", lambda name, builds: SwitchBuild(builds / name))
    monkeypatch.setattr(about, "versions", lambda *_: samples.VERSIONS)
    monkeypatch.setattr(run, "measure", ways)
    monkeypatch.setattr(applications, "measure", apps)
    monkeypatch.setattr(growth, "measure", grow)
    monkeypatch.setattr(distribution, "measure", distribute)
    return found


def call(*words: str) -> Result:
    return CliRunner().invoke(hotupgrade, ["compare", *words])


def test_all_parts(asked: list[tuple[str, Any]], tmp_path: Path) -> None:
    done = call("--output", str(tmp_path), "--page", str(tmp_path / "docs.md"))
    assert done.exit_code == 0, done.output
    assert [settings.flows for part, settings in asked if part == "ways"] == [0, 10_000, 100_000]
    assert {settings.runs for part, settings in asked if part == "ways"} == {20}
    assert [settings for part, settings in asked if part == "distribution"] == [distribution.Settings(200)]
    assert [settings for part, settings in asked if part == "growth"] == [growth.Settings(20, rounds=5)]
    found = results.load(tmp_path / "results.json")
    assert list(found["parts"]) == list(results.PARTS)
    assert set(found["parts"]["applications"]) == {one.key for one in applications.APPLICATIONS}
    assert set(found["parts"]["growth"]) == {one.key for one in growth.axes()}
    for name in ("comparison.png", "delays.png", "growth.png", "distribution.png"):
        assert (tmp_path / "images" / name).is_file()
        assert f"(images/{name})" in (tmp_path / "docs.md").read_text()
        assert f"({name})" in (tmp_path / "comparison.md").read_text()
    assert "## Predictability" in done.output


def test_in_pieces(asked: list[tuple[str, Any]], tmp_path: Path) -> None:
    words = ("--output", str(tmp_path))
    assert call(*words, "--part", "growth", "--axis", "flows", "--runs", "7").exit_code == 0
    assert call(*words, "--part", "ways", "--flows", "5", "--flows", "50", "--only", "hot").exit_code == 0
    (_, grown), (_, first), (_, second) = asked
    assert (grown.axes, grown.runs, grown.rounds) == (("flows",), 7, 1)
    assert (first.flows, second.flows, first.only) == (5, 50, ("hot",))
    parts = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert {part: list(entries) for part, entries in parts.items()} == {
        "growth": ["flows"],
        "ways": ["5 hot", "50 hot"],
    }
    text = (tmp_path / "comparison.md").read_text()
    assert "## How the break of a hot upgrade grows" in text
    assert "## Predictability" not in text


def test_redrawn(asked: list[tuple[str, Any]], tmp_path: Path) -> None:
    page = tmp_path / "comparison.md"
    words = ("--output", str(tmp_path / "results"), "--page", str(page))
    assert call(*words, "--part", "distribution").exit_code == 0
    text = page.read_text()
    page.unlink()
    del asked[:]
    assert call(*words, "--redraw").exit_code == 0
    assert (page.read_text(), asked) == (text, [])
    elsewhere = tmp_path / "elsewhere"
    again = ("--redraw", "--output", str(elsewhere), "--resume", str(page.with_suffix(".json")))
    assert call(*again).exit_code == 0
    assert (elsewhere / "comparison.md").read_text().replace("(distribution", "(images/distribution") == text


def test_quick(asked: list[tuple[str, Any]], tmp_path: Path) -> None:
    assert call("--output", str(tmp_path), "--quick").exit_code == 0
    assert [settings.flows for part, settings in asked if part == "ways"] == [0]
    assert max(settings.runs for _, settings in asked) <= 5
    assert {settings.most for part, settings in asked if part == "growth"} == {1000}


def test_what_was_measured_before_a_failure_is_kept(
    asked: list[tuple[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object, __: object, settings: run.Settings, ___: object) -> Results:
        yield "restart", samples.ways(settings.flows, "restart")
        raise NotNow(Reason("no-hugepages", "pool", "no hugepages: free some memory"))

    monkeypatch.setattr(run, "measure", fail)
    done = call("--output", str(tmp_path), "--part", "growth", "--part", "ways", "--flows", "0")
    assert done.exit_code == 4
    assert "free some memory" in done.output
    parts = results.load(tmp_path / "results.json")["parts"]
    assert {part: list(entries) for part, entries in parts.items()} == {"ways": ["0 restart"]}


def test_one_way_again_leaves_the_others(
    asked: list[tuple[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--output", str(tmp_path), "--part", "ways", "--flows", "0")
    for name, further in (("first", ()), ("second", ("--only", "hot"))):
        monkeypatch.setattr(command, "_command", lambda name=name: name)
        assert call(*words, *further).exit_code == 0
    entries = results.load(tmp_path / "results.json")["parts"]["ways"]
    assert {key: entry["command"] for key, entry in entries.items()} == {"0 restart": "first", "0 hot": "second"}
