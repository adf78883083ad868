"""What clients of the applications say, read."""

from __future__ import annotations

import json

import pytest

from hotupgrade.errors import HotUpgradeError
from hotupgrade.vswitch.compare import fresh, iperf, web


def interval(seconds: float, megabits: float, retransmits: int = 0) -> dict[str, object]:
    bits = megabits * 1e6
    return {
        "sum": {
            "seconds": seconds,
            "bytes": bits * seconds / 8,
            "bits_per_second": bits,
            "retransmits": retransmits,
        }
    }


def test_iperf3() -> None:
    intervals = [interval(0.1, 100)] * 5 + [interval(0.1, 0, 2)] * 3 + [interval(0.1, 300, 7)] + [interval(0.1, 0)]
    found = iperf.read(json.dumps({"start": {}, "intervals": intervals, "error": "interrupt"}))
    assert found["mbps"] == pytest.approx(80)
    assert found["retransmits"] == 13
    assert found["still_ms"] == pytest.approx(300)
    assert found["seconds"] == pytest.approx(1.0)


@pytest.mark.parametrize("text", ["", "{}", '{"intervals": [], "error": "unable to connect"}', "iperf3: error"])
def test_iperf3_that_measured_nothing(text: str) -> None:
    with pytest.raises(HotUpgradeError, match="nothing"):
        iperf.read(text)


WRK = """\
Running 2m test @ http://198.18.0.2:8080/page
  1 threads and 10 connections
^C  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   218.03us   84.13us   2.31ms   80.25%
  1731 requests in 1.01s, 2.13MB read
  Socket errors: connect 0, read 3, write 1, timeout 0
result {"requests": 1731, "median_ms": 0.205, "p999_ms": 1.100, "max_ms": 2.310, "connect": 0, "read": 3, "write": 1, \
"timeout": 0, "status": 2}
"""


def test_wrk() -> None:
    found = web.read(WRK)
    assert (found["requests"], found["failed"]) == (1731, 6)
    assert (found["median_ms"], found["p999_ms"], found["max_ms"]) == (0.205, 1.1, 2.31)
    assert found["errors"] == {"connect": 0, "read": 3, "write": 1, "timeout": 0, "status": 2}


@pytest.mark.parametrize("text", ["", WRK.replace('"requests": 1731', '"requests": 0'), "unable to connect"])
def test_wrk_that_made_no_request(text: str) -> None:
    with pytest.raises(HotUpgradeError, match="no request"):
        web.read(text)


def test_new_connections() -> None:
    said = {
        "begun": 1004,
        "connect_ms": [0.2] * 997 + [500.0, 1000.0, 3000.0],
        "failed": {"timeout": 1, "ETIMEDOUT": 1, "reset": 1, "EHOSTUNREACH": 1},
    }
    found = fresh.read(said, 4016)
    assert (found["timeouts"], found["resets"], found["errors"]) == (2, 1, 1)
    assert (found["median_ms"], found["p999_ms"], found["max_ms"]) == (0.2, 3000, 3000)
    assert found["upcalls_each"] == 4
    assert fresh.read(said, None)["upcalls_each"] is None


def test_not_one_new_connection() -> None:
    with pytest.raises(HotUpgradeError, match="not one"):
        fresh.read({"begun": 5, "connect_ms": [], "failed": {"timeout": 5}}, 0)
