"""What is printed on a terminal: about threads that were restarted, and the history."""

from __future__ import annotations

from typing import Any

import pytest

from hotupgrade.report import words
from unit.report import samples


def printed(document: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> list[str]:
    words.show(document)
    return capsys.readouterr().out.splitlines()


def document(pollers: int = 2) -> dict[str, Any]:
    found = samples.upgrade_with_restarts(pollers)
    return found | {"modules": []}


def test_without_restarts_nothing_is_said_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(samples.upgrade() | {"modules": []}, capsys)
    assert not [line for line in lines if "restart" in line or "tidy" in line]


def test_each_restart_says_its_door_and_its_cost(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(document(), capsys)
    start = lines.index("  restarted in the new code, the others were only parked:")
    assert lines[start + 1 : start + 6] == [
        (
            "    handler6, revalidator7 (handle, revalidate) by its group's latch: 116.0 µs as a group, "
            "out 71.0 µs and in 45.0 µs"
        ),
        (
            "    pmd-c00 (poll) by its own door: break 40.0 µs, out 30.0 µs and in 10.0 µs; "
            "its last work began 210.0 µs after it was asked"
        ),
        (
            "    pmd-c01 (poll) by its own door: break 40.0 µs, out 30.0 µs and in 10.0 µs; "
            "its last work began 210.0 µs after it was asked"
        ),
        "    restarts when its sleep ends: watchdog (watch)",
        "  one more stop to tidy up: busy threads 9.0 µs, longest 400.0 µs",
    ]


def test_what_the_machine_took_is_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(1)
    found["threads"][1]["restart"]["taken_us"] = [[615.0, 630.0]]
    (line,) = [line for line in printed(found, capsys) if "pmd-c00 (poll)" in line]
    assert "in 10.0 µs; of this the machine took 15.0 µs for others; its last work" in line


def test_many_pollers_are_summed_up(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(40)
    found["threads"][-4]["restart"]["gap_us"] = 77.0  # the last poller
    lines = printed(found, capsys)
    assert sum("(poll) by its own door" in line for line in lines) == 11
    assert "    and 29 more, which lost at most 77.0 µs" in lines


def test_a_thread_alone_without_work_says_how_long_it_took(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(0)
    found["threads"] = found["threads"][:2]
    lines = printed(found, capsys)
    assert "    handler6 (handle) by its group's latch: 110.0 µs from being asked to work in the new code" in lines


def test_sleepers_alone(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(0)
    found["threads"] = [found["threads"][0], found["threads"][-1]]
    lines = printed(found, capsys)
    assert "  to be restarted in the new code:" in lines
    assert "    restarts when its sleep ends: watchdog (watch)" in lines


def test_a_rollback_says_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(1) | {"command": "rollback", "from_generation": 1, "generation": 0}
    assert [line for line in printed(found, capsys) if "pmd-c00 (poll) by its own door: break 40.0 µs" in line]


@pytest.mark.parametrize("settle", [{"busy_max": None, "max": 30.0}, None])
def test_a_settling_stop_without_busy_threads_or_none(
    settle: dict[str, Any] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(document() | {"settle_us": settle}, capsys)
    expected = ["  one more stop to tidy up: busy threads –, longest 30.0 µs"] if settle else []
    assert [line for line in lines if "tidy" in line] == expected


def test_a_long_history_shows_the_last_entries_and_where_the_others_are(capsys: pytest.CaptureFixture[str]) -> None:
    entries = [{"time": f"then-{number}", "command": "upgrade", "pid": 1, "generation": 1} for number in range(1102)]
    lines = printed({"command": "history", "ok": True, "entries": entries}, capsys)
    assert lines[0] == "1,002 earlier entries: hotupgrade history --json"
    assert [line.split()[0] for line in lines[2:]] == [f"then-{number}" for number in range(1002, 1102)]
    assert "earlier" not in "".join(printed({"command": "history", "ok": True, "entries": entries[:100]}, capsys))
