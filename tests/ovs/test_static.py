"""Open vSwitch as Debian links it: everything in one program, which is upgraded while it forwards at full speed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hotupgrade.vswitch import baseline, vulnerability
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.demo import run_hotupgrade
from hotupgrade.vswitch.switch import Switch
from ovs.churn import change_everything, leave
from ovs.harness import ALL, NONE, Document, attempt, check_forwards, check_goes_on, check_log, holes, rollback, upgrade

# The builds are made on demand; each test starts a switch that polls for ever.
pytestmark = [pytest.mark.full, pytest.mark.timeout(1200)]

PATCHES = Path(__file__).parent / "patches"
PROGRAM = "ovs-vswitchd"
#: Threads whose loops changed, and that are led out of them at once.
LED_OUT = {"pmd_thread_main", "udpif_upcall_handler", "udpif_revalidator"}


@pytest.fixture(scope="module")
def old(build_static: Callable[..., SwitchBuild]) -> SwitchBuild:
    return build_static("vulnerable")


@pytest.fixture(scope="module")
def new(build_static: Callable[..., SwitchBuild]) -> SwitchBuild:
    return build_static("fixed")


@pytest.fixture
def running(old: SwitchBuild) -> Iterator[Switch]:
    with Switch(old) as switch:
        vulnerability.prepare(switch)
        yield switch


def restarted(document: Document) -> dict[str, str]:
    found = [thread["restart"] for thread in document["threads"] if thread["restart"]]
    return {restart["function"]: restart["state"] for restart in found}


def test_there_and_back_and_there_again(running: Switch, new: SwitchBuild) -> None:
    before, program = baseline.take(running), str(new.program(PROGRAM))
    assert holes(running) == ALL
    document = run_hotupgrade(["check", str(running.pid), program, "--json"])
    assert document["verdict"] == "upgradable", document["reasons"]
    (module,) = document["modules"]
    assert module["name"] == PROGRAM
    functions = module["functions"]
    assert set(functions["changed"]) == {"classifier_lookup__", "do_xlate_actions", "netdev_tc_flow_put"}
    assert functions["dragged"] == []

    document = upgrade(running, program)
    assert document["edits"]["count"] <= 6
    assert document["memory_bytes"] <= 1_000_000
    assert holes(running) == NONE
    check_goes_on(before, running)
    change_everything(running, 1)
    before = baseline.take(running)
    rollback(running)
    assert holes(running) == ALL
    check_goes_on(before, running)
    assert upgrade(running, program)["modules"][0]["reused"]
    assert holes(running) == NONE
    check_goes_on(before, running)
    leave(running)
    check_log(running.log())


def test_package_first_upgrade_after(old: SwitchBuild, new: SwitchBuild, tmp_path: Path) -> None:
    """The usual order: the files on disk are replaced, then the running switch takes them over."""
    installed = SwitchBuild(Path(shutil.copytree(old.root, tmp_path / "installed")))
    with Switch(installed) as switch:
        vulnerability.prepare(switch)
        before = baseline.take(switch)
        assert attempt("upgrade", switch)[1]["outcome"] == "nothing-to-do"
        for name in (PROGRAM, "ovs-appctl"):
            part = tmp_path / name
            shutil.copy2(new.program(name), part)
            part.rename(installed.program(name))
        document = upgrade(switch)
        assert [module["name"] for module in document["modules"]] == [PROGRAM]
        assert holes(switch) == NONE
        check_goes_on(before, switch)
        assert attempt("upgrade", switch)[1]["outcome"] == "nothing-to-do"
        check_log(switch.log())


def test_loops_of_the_program_are_restarted(new: SwitchBuild, build_static: Callable[..., SwitchBuild]) -> None:
    loops = build_static("loops", PATCHES / "loops.patch")
    with Switch(new) as switch:
        before = baseline.take(switch)
        document = upgrade(switch, str(loops.program(PROGRAM)), "--timeout", "60")
        states = restarted(document)
        assert {function for function, state in states.items() if state == "arrived"} >= LED_OUT
        assert set(states.values()) <= {"arrived", "sleeping"}
        check_goes_on(before, switch)
        check_forwards(switch)
        assert "second build: pmd_thread_main has polled" in switch.log()
        states = restarted(run_hotupgrade(["rollback", str(switch.pid), "--timeout", "60", "--json"]))
        assert {function for function, state in states.items() if state == "arrived"} >= LED_OUT
        check_goes_on(before, switch)
        check_forwards(switch)
        check_log(switch.log())
