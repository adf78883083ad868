"""What is made up is found again: losses, pauses, packets that come twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotupgrade.errors import HotUpgradeError
from hotupgrade.vswitch.compare.measurement import measure
from hotupgrade.vswitch.compare.packets import SIZE, Seen, read_capture, write_stream

SPACING = 100_000  # ns: 10,000 packets per second
DELAY = 20_000
BEGIN = 1_700_000_000_000_000_000


def stream(count: int = 2000) -> Seen:
    return Seen(np.arange(count), BEGIN + SPACING * np.arange(count))


def passed(sent: Seen, kept: np.ndarray) -> Seen:
    return Seen(sent.number[kept], sent.at_ns[kept] + DELAY)


@settings(deadline=None)  # numpy is loaded by the first
@given(st.sets(st.integers(0, 1999), max_size=500), st.integers(0, 1500))
def test_losses(lost: set[int], event: int) -> None:
    sent = stream()
    received = passed(sent, ~np.isin(sent.number, sorted(lost)))
    found = measure(sent, received, BEGIN + SPACING * event)
    counted = {number for number in lost if number >= event}
    assert (found.sent, found.lost, found.received) == (2000 - event, len(counted), 2000 - event - len(counted))
    assert found.loss_ms == pytest.approx(len(counted) * SPACING / 1e6)
    longest = run = 0
    for number in range(event, 2000):
        run = run + 1 if number in lost else 0
        longest = max(longest, run)
    assert found.break_ms == pytest.approx(longest * SPACING / 1e6, abs=DELAY / 1e6 + 1e-9)


@settings(deadline=None)  # numpy is loaded by the first
@given(st.integers(1, 1998), st.floats(0.2, 500))
def test_a_pause_that_loses_nothing(at: int, milliseconds: float) -> None:
    """Held back and then delivered at once, as a ring does."""
    sent = stream()
    until = sent.at_ns[at] + int(milliseconds * 1e6)
    late = (sent.number >= at) & (sent.at_ns + DELAY < until)
    received = Seen(sent.number, np.where(late, until, sent.at_ns + DELAY))
    found = measure(sent, received, BEGIN)
    assert found.lost == 0
    longest = max(SPACING, int(until - (sent.at_ns[at - 1] + DELAY)))
    assert found.break_ms == pytest.approx(max(DELAY, int(until - sent.at_ns[at])) / 1e6)
    if until <= sent.at_ns[-1]:
        assert found.gap_ms == pytest.approx(longest / 1e6)
        assert found.delay_ms[2] == pytest.approx(max(DELAY, int(until - sent.at_ns[at])) / 1e6)


def test_nothing_comes_any_more() -> None:
    sent = stream()
    found = measure(sent, passed(sent, sent.number < 1000), BEGIN)
    assert found.lost == 1000
    assert found.gap_ms == pytest.approx(100, abs=0.2)
    assert found.gap_at_ms == pytest.approx(99.9, abs=0.2)
    assert found.break_ms == pytest.approx(100)
    never = measure(sent, passed(sent, sent.number < 0), BEGIN)
    assert (never.lost, never.break_ms) == (2000, pytest.approx(200))


def test_what_the_machine_did_before_is_told_from_the_event() -> None:
    """Half a second that ends a tenth of a second before the event; here 1,000 of 20,000 packets were lost in it."""
    sent = stream(20_000)
    at = 10_000
    for first, counts in ((5000, True), (9000, False), (3000, False), (11_000, False)):  # a stretch of 1,000 each
        received = passed(sent, (sent.number < first) | (sent.number >= first + 1000))
        found = measure(sent, received, BEGIN + SPACING * at)
        assert found.control_lost == (1000 if counts else 0)
        assert found.control_ms == pytest.approx(100.02 if counts else 0.02)
    assert found.lost == 1000


def test_without_a_time_before_there_is_no_control() -> None:
    found = measure(stream(), passed(stream(), stream().number >= 0), BEGIN)
    assert (found.control_ms, found.control_lost) == (0, 0)


def test_a_sender_that_pauses_is_no_break() -> None:
    sent = stream()
    late = Seen(sent.number, sent.at_ns + np.where(sent.number >= 1000, 80_000_000, 0))
    found = measure(late, passed(late, late.number >= 0), BEGIN)
    assert found.gap_ms == pytest.approx(80.1)
    assert found.sender_gap_ms == pytest.approx(80.1)
    assert found.break_ms == pytest.approx(0.02)


def test_what_comes_twice_counts_once() -> None:
    sent = stream()
    received = passed(sent, sent.number >= 0)
    double = Seen(np.repeat(received.number, 2), np.repeat(received.at_ns, 2))
    found = measure(sent, double, BEGIN)
    assert (found.lost, found.duplicated) == (0, 2000)


def test_too_little_proves_nothing() -> None:
    sent = stream()
    with pytest.raises(HotUpgradeError, match="only 50 packets"):
        measure(sent, sent, int(sent.at_ns[1950]))


def test_files(tmp_path: Path) -> None:
    write_stream(tmp_path / "stream", 300)
    found = read_capture(tmp_path / "stream")
    assert found.number.tolist() == list(range(300))
    raw = (tmp_path / "stream").read_bytes()
    (tmp_path / "cut").write_bytes(raw[:-7])
    assert len(read_capture(tmp_path / "cut").number) == 299
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "other").write_bytes(b"\0" * 100)
    other = bytearray(raw)
    other[32:36] = (SIZE - 1).to_bytes(4, "little")
    (tmp_path / "sizes").write_bytes(other)
    for name, words in (("empty", "empty"), ("other", "byte order"), ("sizes", "other sizes")):
        with pytest.raises(HotUpgradeError, match=words):
            read_capture(tmp_path / name)
