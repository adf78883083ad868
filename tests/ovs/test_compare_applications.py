"""Applications between two hosts, on the real switch, in short: ``make compare`` does it in full."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.compare import applications, hot, idle
from hotupgrade.vswitch.compare.application import Application
from hotupgrade.vswitch.compare.fresh import FRESH_CONNECTIONS
from hotupgrade.vswitch.compare.hosts import Hosts, hosts
from hotupgrade.vswitch.compare.idle import IDLE
from hotupgrade.vswitch.compare.iperf import IPERF, RATE
from hotupgrade.vswitch.compare.needs import program
from hotupgrade.vswitch.compare.vhost import GUEST, switch_and_guest
from hotupgrade.vswitch.compare.ways import restart
from hotupgrade.vswitch.compare.web import WEB

SECONDS = 1.0
SESSIONS = 100


@pytest.fixture(autouse=True)
def _tools(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in applications.PROGRAMS:
        assert program(name)
    monkeypatch.setattr(idle, "SESSIONS", SESSIONS)
    monkeypatch.setattr(idle, "LIMIT_S", 3.0)


@pytest.fixture
def between(vulnerable: SwitchBuild) -> Iterator[Hosts]:
    with hosts(vulnerable) as made:
        yield made


def test_every_application_notices_nothing_of_a_hot_upgrade(between: Hosts, fixed: SwitchBuild, tmp_path: Path) -> None:
    """All at once, and a roll-back as well."""
    between_hosts = [one for one in applications.APPLICATIONS if one is not GUEST]
    with ExitStack() as running:
        ends = {one.key: running.enter_context(one.run(between, tmp_path)) for one in between_hosts}
        time.sleep(SECONDS)
        hot.upgrade(between.switch, fixed)
        hot.roll_back(between.switch)
        found = {key: finish() for key, finish in ends.items()}
    for application in between_hosts:
        assert {figure.key for figure in application.figures} <= set(found[application.key])
    assert found[IPERF.key]["mbps"] > RATE / 4, "this one is a matter of how crowded the machine is"
    assert found[WEB.key]["failed"] == 0
    assert found[WEB.key]["requests"] > 100
    assert found[IDLE.key]["answered"] == SESSIONS
    fresh = found[FRESH_CONNECTIONS.key]
    assert (fresh["resets"], fresh["errors"]) == (0, 0)
    assert fresh["begun"] > 50
    assert fresh["upcalls_each"] >= 2, "one for each direction"


def test_sessions_are_behind_connection_tracking(between: Hosts, tmp_path: Path) -> None:
    with IDLE.run(between, tmp_path) as finish:
        tracked = between.switch.appctl("dpctl/dump-conntrack").count("state=ESTABLISHED")
        assert tracked == SESSIONS
        between.switch.appctl("dpctl/flush-conntrack")
        found = finish()
    assert found["failed_client"] == 0, "what the client sends is taken for a new connection"
    assert found["failed_server"] == SESSIONS // 2, "what the server sends is not"


def test_a_guest_stays_while_the_switch_is_started_anew(
    vulnerable: SwitchBuild, fixed: SwitchBuild, tmp_path: Path
) -> None:
    with switch_and_guest(vulnerable) as place:
        place.freshen()
        with GUEST.run(place, tmp_path) as finish:
            time.sleep(SECONDS / 2)
            hot.upgrade(place.subject, fixed)
            found = finish()
        assert (found["lost"], found["launched"]) == (0, place.guest.options.launched(2))
        with GUEST.run(place, tmp_path) as finish:
            time.sleep(SECONDS / 2)
            begin = time.monotonic()
            restart(place.subject, fixed)
            place.freshen()
            took = time.monotonic() - begin
            time.sleep(2 * SECONDS)
            found = finish()
        assert 0.1 < found["still_ms"] / 1000 < took + SECONDS, "it goes on by itself"


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("application", applications.APPLICATIONS, ids=lambda one: one.key)
def test_restart_beside_hot_upgrade(application: Application, vulnerable: SwitchBuild, fixed: SwitchBuild) -> None:
    only = ("nothing", "restart", "hot", "twins", "standby")
    settings = applications.Settings(1, only, (application.key,), window_s=6.0)
    document = dict(applications.measure(vulnerable, fixed, settings, print))
    found = {way["key"]: way for way in document[application.key]["ways"]}
    assert set(found) == set(only)
    senseless = {"standby"} if application.flows else {"twins", "standby"} if application is GUEST else set()
    assert {key for key, way in found.items() if "failed" in way} == senseless
    ways = {key: way["runs"][0] for key, way in found.items() if way["runs"]}
    if application is IDLE:
        assert ways["hot"]["answered"] == ways["nothing"]["answered"] == SESSIONS
        for key in ("restart", "twins"):
            assert ways[key]["hung"] + ways[key]["reset"] > 0, "the second switch knows nothing of them either"
    if application in {WEB, FRESH_CONNECTIONS}:
        assert ways["hot"]["max_ms"] < ways["restart"]["max_ms"]
    if application is GUEST:
        assert ways["restart"]["still_ms"] > ways["hot"]["still_ms"]
        assert ways["hot"]["lost"] == 0
        assert ways["hot"]["looks"] > 50
    if application is IPERF:
        assert ways["restart"]["still_ms"] > ways["hot"]["still_ms"]
    assert document[application.key]["title"] in applications.markdown(document)
