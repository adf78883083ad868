"""Processes in surroundings of their own: locked memory, system call filters, namespaces."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from live.conftest import Start
from live.harness import DONE, NOT_NOW, REFUSED, Builder, HotUpgrade, running


def test_locked_memory(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """As a datapath has it (mlockall): the same, and little more memory."""
    program = start(build.host(build.library("unwind", 1), build.library("lists", 1)))
    assert program.call("lock_memory") == 0
    program.call("add", 5)
    before = program.status("VmLck")
    hu.upgraded(program, build.library("unwind", 2), build.library("lists", 2))
    assert (program.call("version"), program.call("sum")) == (2, 10)
    assert program.status("VmLck") - before < 4096
    hu.rolled_back(program)
    assert (program.call("version"), program.call("sum")) == (1, 5)


def test_a_filtered_process(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """Under seccomp: it works, or is refused before anything was changed; the filter never kills the process."""
    program = start(build.host(build.library("unwind", 1)))
    assert program.call("confine") == 0
    before, maps = program.fingerprint("libunwind"), program.maps()
    answer = hu.upgrade(program.pid, build.library("unwind", 2))
    assert answer.code in (DONE, REFUSED, NOT_NOW), str(answer)
    if answer.code == DONE:
        assert program.call("version") == 2
    else:
        assert "seccomp" in answer.about()
        assert program.fingerprint("libunwind") == before
        assert program.maps() == maps
        assert program.call("version") == 1


def test_other_namespaces(build: Builder, hu: HotUpgrade, tmp_path: Path) -> None:
    """A container's process: its file names and process ids mean nothing here; what is mapped counts."""
    if os.geteuid() != 0:
        pytest.skip("only root can make namespaces")
    library = build.library("basic", 1)
    host = build.host(library)
    inside = tmp_path / "inside"
    inside.mkdir()
    script = (
        f"mount -t tmpfs none {inside} && cp {host} {library} {inside} && umount -l {build.directory} 2>/dev/null;"
        f" LD_LIBRARY_PATH={inside} exec {inside}/host"
    )
    shutil.copy2(build.library("basic", 2), inside / library.name)  # seen from outside, this lies at the library's path
    with running("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script) as shell:
        child = int(Path(f"/proc/{shell.pid}/task/{shell.pid}/children").read_text().split()[0])
        maps = Path(f"/proc/{child}/maps").read_text()
        assert f"{inside}/{library.name}" in maps

        def call(name: str) -> str:
            assert shell.stdin is not None
            assert shell.stdout is not None
            shell.stdin.write(f"call {name}\n".encode())
            shell.stdin.flush()
            return shell.stdout.readline().decode().strip()

        assert call("version") == "value=1"
        answer = hu.upgrade(child, build.library("basic", 2))
        assert answer.code == DONE, str(answer)
        assert call("version") == "value=2"
        assert hu.rollback(child).code == DONE
        assert call("version") == "value=1"


def test_no_free_room_within_reach(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """A new image must lie within 2 GiB; with nothing free there it is refused, with a single gap that is used."""
    program = start(build.host(build.library("crowded", 1)))
    program.call("fill")
    before = program.fingerprint("libcrowded")
    answer = hu.upgrade(program.pid, build.library("crowded", 2))
    assert answer.code == REFUSED, str(answer)
    assert answer.codes() == {"no-room"}
    assert program.fingerprint("libcrowded") == before
    assert program.call("make_gap", 1 << 20) == 1
    hu.upgraded(program, build.library("crowded", 2))
    assert program.call("version") == 2
    hu.rolled_back(program)
    assert program.call("version") == 1
