"""What else a process may be doing, or have done to it, when it is upgraded.

Each time it runs on, in exactly the old or exactly the new code, and another upgrade works.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
import time
from pathlib import Path

import pytest

from hotupgrade.target import abi
from hotupgrade.target.agent import find
from hotupgrade.target.process import Process
from live import stress
from live.conftest import Start
from live.harness import DONE, NOBODY, NOT_NOW, REFUSED, Builder, Driver, HotUpgrade, Options, Program, running, until
from live.kills import Tally, Victim

# The process ends, or is another.


@pytest.mark.parametrize("how", ["exit", "exec"])
def test_the_process_ends_at_a_random_moment(build: Builder, start: Start, driver: Driver, how: str) -> None:
    outcomes = stress.ends(build, start, driver, how, 8)
    assert sum(outcomes.values()) == 8, outcomes


def test_the_main_thread_has_ended(build: Builder, start: Start, driver: Driver) -> None:
    """Named at once, not after the time limit; the others go on."""
    program = start(build.host(build.library("basic", 1)))
    program.ask("work", "plain", 1, "version", 0, 1)
    assert program.ask("leave") == "left=1"
    stat = Path(f"/proc/{program.pid}/stat")
    until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")
    for words in (("upgrade", program.pid, build.library("basic", 2)), ("status", program.pid)):
        answer = driver(*words, "--json")
        assert (answer.code, answer.codes()) == (NOT_NOW, {"main-ended"}), str(answer)
        assert answer.seconds < 2
    assert program.alive()
    assert len(program.threads()) == 2


# Children.


def test_children_forked_during_a_stop_can_be_upgraded(build: Builder, start: Start, driver: Driver) -> None:
    """A child has the agent as it was when it was forked, in the middle of what its parent's threads did."""
    two = build.library("basic", 2)
    program = start(build.host(build.library("basic", 1)))
    program.ask("sleepers")
    met = upgraded = 0
    for _ in range(12):
        version = program.call("version")
        program.ask("work", "breed", 1, "version")
        answer = driver.rollback(program.pid) if version == 2 else driver.upgrade(program.pid, two)
        assert answer.code in (DONE, NOT_NOW), str(answer)
        program.ask("stop")
        for child in _children(program):
            with Process(child) as process:
                agent = find(process)
                if agent is None or (agent.get("inside") == 0 and agent.get("state") == abi.State.IDLE):
                    continue
                met += 1
                if agent.get("inside") == 0 or upgraded > 3:
                    continue
            three = build.library("basic", 3)
            answer = driver.upgrade(child, three)
            assert answer.code == DONE or answer.codes() == {"no-such-process"}, str(
                answer
            )  # it ends as soon as it can
            until(lambda child=child: _exit_code(child) == 7, what="the child runs the new code, and ends for that")
            upgraded += 1
        if upgraded:
            break
    for child in _children(program):
        os.kill(child, signal.SIGKILL)
    assert upgraded, f"no child was forked with threads in the agent ({met} with a stop that was over)"
    driver.upgraded(program, build.library("basic", 3))
    assert program.call("pair") == 3003003


def _children(program: Program) -> list[int]:
    tasks = Path(f"/proc/{program.pid}/task").iterdir()
    return [
        int(word) for task in tasks for word in (task / "children").read_text().split() if _exit_code(int(word)) < 0
    ]


def _exit_code(pid: int) -> int:
    """Of a zombie; -1 while it runs."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[-1]) >> 8 if fields[0] == "Z" else -1


def test_a_thread_that_nothing_can_interrupt(build: Builder, start: Start, driver: Driver) -> None:
    """It waits for its vfork child nearly always: done in one of the gaps, or given up and named."""
    program = start(build.host(build.library("basic", 1)))
    program.ask("sleepers")
    program.ask("work", "vfork", 1, "version", 0, 3)
    answer = driver.upgrade(program.pid, build.library("basic", 2), "--timeout", 20, limit=60)
    assert answer.code in (DONE, NOT_NOW), str(answer)
    version = 2 if answer.code == DONE else 1
    until(lambda: program.workers().last == {version})
    assert program.workers().failures == 0
    program.check_sleepers()
    program.ask("stop")
    driver.upgraded(program, build.library("basic", 3))
    assert program.call("pair") == 3003003


# Stopped, traced, frozen.


def test_stopped_and_continued_all_the_time(build: Builder, start: Start, driver: Driver) -> None:
    program = start(build.host(build.library("basic", 1)))
    program.ask("sleepers")
    program.ask("work", "busy", 1, "version")
    over = threading.Event()

    def toggle() -> None:
        while not over.is_set():
            os.kill(program.pid, signal.SIGSTOP)
            time.sleep(0.004)
            os.kill(program.pid, signal.SIGCONT)
            time.sleep(0.02)

    thread = threading.Thread(target=toggle)
    thread.start()
    done = 0
    try:
        for _ in range(8):
            version = program.call("version")
            answer = driver.upgrade(program.pid, build.library("basic", 3 if version == 2 else 2), "--timeout", 3)
            assert answer.code in (DONE, NOT_NOW), str(answer)
            done += answer.code == DONE
            now = program.call("version")
            assert now == (version if answer.code == NOT_NOW else 3 if version == 2 else 2), str(answer)
            assert program.call("pair") == now * 1001001
    finally:
        over.set()
        thread.join()
    version = program.call("version")
    driver.upgraded(program, build.library("basic", 1 if version != 1 else 2))
    until(lambda: len(program.workers().last) == 1)
    assert driver.status(program.pid).document["generation"] == done + 1


def test_one_thread_is_traced(build: Builder, start: Start, driver: Driver) -> None:
    """By a debugger that looks at one thread only, not the main one."""
    program = start(build.host(build.library("basic", 1)))
    program.ask("sleepers")
    tid = next(tid for tid, name in program.threads().items() if name == "nanosleep")
    with running(build.program("tracer"), str(tid)):
        before = program.fingerprint("libbasic").contents
        answer = driver.upgrade(program.pid, build.library("basic", 2))
        assert answer.code == NOT_NOW, str(answer)
        assert str(tid) in answer.about()
        assert answer.seconds < 5
        assert program.fingerprint("libbasic").contents == before
        assert program.call("version") == 1
        program.check_sleepers()
    driver.upgraded(program, build.library("basic", 2))
    program.check_sleepers()


FREEZERS = {
    "v2": (Path("/sys/fs/cgroup/unified"), "cgroup.freeze", "1", "0"),
    "v2-alone": (Path("/sys/fs/cgroup"), "cgroup.freeze", "1", "0"),
    "v1": (Path("/sys/fs/cgroup/freezer"), "freezer.state", "FROZEN", "THAWED"),
}


@pytest.mark.parametrize("freezer", [name for name, (root, *_) in FREEZERS.items() if (root / "cgroup.procs").exists()])
def test_a_frozen_control_group(build: Builder, start: Start, driver: Driver, freezer: str) -> None:
    root, name, frozen, thawed = FREEZERS[freezer]
    group = root / f"hotupgrade-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made ({error}): run as root, with {root} writable")
    program = start(build.host(build.library("basic", 1)))
    try:
        program.ask("sleepers")
        time.sleep(0.1)
        (group / "cgroup.procs").write_text(str(program.pid))
        (group / name).write_text(frozen)
        answer = driver.upgrade(program.pid, build.library("basic", 2), "--timeout", 1, limit=40)
        assert answer.code == NOT_NOW, str(answer)
        (group / name).write_text(thawed)
        assert program.call("version") == 1
        assert driver.status(program.pid).document["generation"] == 0
        until(lambda: program.status("TracerPid") == 0)
        driver.upgraded(program, build.library("basic", 3))
        assert program.call("pair") == 3003003
    finally:
        with contextlib.suppress(OSError):
            (group / name).write_text(thawed)
        program.kill()
        until(lambda: not (group / "cgroup.procs").read_text().strip())
        group.rmdir()


# Locks.


def test_the_allocators_locks_are_held(build: Builder, start: Start, driver: Driver) -> None:
    program = start(build.host(build.library("constructors", 1), build.library("basic", 1)))
    program.ask("sleepers")
    program.ask("work", "allocate", 3, "version")
    for version in (2, 3):
        driver.upgraded(program, build.library("constructors", version), build.library("basic", version))
        until(lambda version=version: program.workers().last == {version})
    driver.rolled_back(program)
    until(lambda: program.workers().last == {2})
    assert program.workers().failures == 0
    program.check_sleepers()


@pytest.mark.parametrize("new_thread_local", [False, True], ids=["plain", "new-thread-local"])
def test_the_loaders_lock_is_held(build: Builder, start: Start, driver: Driver, *, new_thread_local: bool) -> None:
    """A constructor sleeps under dlopen().  Most upgrades need no loader; a new thread-local does: it waits outside."""
    flags = Options(emit_relocs=True, flags=("-ftls-model=global-dynamic",))
    new = Options(emit_relocs=True, flags=(*flags.flags, *(["-DNEW_TLS"] if new_thread_local else [])))
    program = start(build.host(build.library("tls", 1, flags)))
    program.ask("sleepers")
    slow = build.library("slow", 1)
    driver.check(program.pid, build.library("tls", 2, new))  # from now on both builds are known
    program.ask("open", slow)
    time.sleep(0.2)
    answer = driver.upgrade(program.pid, build.library("tls", 2, new), "--timeout", 0.2)
    if new_thread_local:
        assert (answer.code, answer.codes()) == (NOT_NOW, {"loader-busy"}), str(answer)
        assert program.call("answer") // 1000000 == 0
        driver.upgraded(program, build.library("tls", 2, new))  # by then the constructor has ended
    assert answer.code == DONE or new_thread_local, str(answer)
    assert (program.call("answer") + 100000) // 1000000 % 1000 == 2
    program.check_sleepers()


# Surroundings.


def test_another_users_process(build: Builder, driver: Driver) -> None:
    """Root upgrades it; it may have locked all the memory that it may lock, and then it is left as it was."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a program as somebody else")
    wrapper = build.directory / "as-nobody"
    host = build.host(build.library("unwind", 1))
    wrapper.write_text(
        f"#!/bin/sh\nulimit -l 65536\nexec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups {host}\n"
    )
    wrapper.chmod(0o755)
    program = Program(wrapper)
    try:
        driver.upgraded(program, build.library("unwind", 2))
        driver.rolled_back(program)
        assert program.call("lock_memory") == 0
        assert program.call("fill_memory", 1) > 0
        before = program.fingerprint("libunwind").contents
        answer = driver.upgrade(program.pid, build.library("unwind", 3))
        assert answer.code == NOT_NOW, str(answer)
        assert program.fingerprint("libunwind").contents == before
        assert program.call("version") == 1
        assert program.call("fill_memory", 0) == 0
        driver.upgraded(program, build.library("unwind", 3))
        assert program.call("version") == 3
    finally:
        program.kill()


def test_no_descriptor_is_left(build: Builder, start: Start, driver: Driver) -> None:
    program = start(build.host(build.library("basic", 1)))
    maps = program.maps()
    limits = resource.prlimit(program.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(program.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    answer = driver.upgrade(program.pid, build.library("basic", 2))
    assert answer.code == NOT_NOW, str(answer)
    assert program.maps() == maps
    assert program.call("version") == 1
    resource.prlimit(program.pid, resource.RLIMIT_NOFILE, limits)
    driver.upgraded(program, build.library("basic", 2))
    resource.prlimit(program.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    answer = driver.rollback(program.pid)
    assert answer.code == NOT_NOW, str(answer)
    assert program.call("version") == 2
    resource.prlimit(program.pid, resource.RLIMIT_NOFILE, limits)
    driver.rolled_back(program)
    assert program.call("version") == 1


def test_code_is_protected_from_changes(build: Builder, start: Start, driver: Driver) -> None:
    """As SELinux or PR_SET_MDWE do: refused, and nothing changed."""
    program = start(build.host(build.library("unwind", 1)))
    if program.call("harden") != 0:
        pytest.skip("this kernel has no PR_SET_MDWE")
    before = program.fingerprint("libunwind").contents
    answer = driver.upgrade(program.pid, build.library("unwind", 2))
    assert answer.code in (NOT_NOW, REFUSED), str(answer)
    assert program.fingerprint("libunwind").contents == before
    assert program.call("version") == 1


def test_everything_was_deleted_on_disk(build: Builder, start: Start, driver: Driver) -> None:
    """The program and its library: what is mapped counts."""
    folder = build.directory / "short-lived"
    folder.mkdir(exist_ok=True)
    library = build.copy(build.library("basic", 1), "deleted")
    host = folder / "host"
    host.write_bytes(build.host().read_bytes())
    host.chmod(0o755)
    program = start(host, library)
    library.unlink()
    host.unlink()
    driver.upgraded(program, build.library("basic", 2))
    assert program.call("pair") == 2002002
    driver.rolled_back(program)
    driver.upgraded(program, build.library("basic", 3))
    assert program.call("pair") == 3003003


# The tool is killed under load; each step one by one is in test_every_step.py.


def test_killed_at_random(build: Builder, start: Start, hu: HotUpgrade, driver: Driver) -> None:
    tally = Tally()
    stress.kills_at_random(Victim(build, start), hu, 6, tally, checker=driver)
    assert tally.kills == 6
