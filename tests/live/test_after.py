"""What gdb, perf and a core file show of an upgraded process."""

from __future__ import annotations

import re
import resource
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from live.conftest import Start
from live.harness import Builder, HotUpgrade, Options, Program, until

FRAMES = Options(flags=("-fno-omit-frame-pointer",))
WAIT, ABORT = -1, -2


@pytest.fixture
def gdb() -> str:
    found = shutil.which("gdb")
    return found or pytest.skip("gdb is not installed (scripts/install-packages base)")


def attached(gdb: str, program: Program, *commands: str) -> str:
    """What gdb answers, attached to a running program that afterwards runs on."""
    return said(gdb, "-p", str(program.pid), *(word for command in commands for word in ("-ex", command)))


def said(*words: str) -> str:
    name, *rest = words
    done = subprocess.run([name, "-batch", "-nx", *rest], capture_output=True, text=True, timeout=50)
    return done.stdout + done.stderr


def order(text: str, *names: str) -> None:
    """The names stand in the text, in this order."""
    at = 0
    for name in names:
        found = text.find(name, at)
        assert found >= 0, f"{name} is not in its place in\n{text}"
        at = found


def waiting(program: Program) -> None:
    """A thread waits in the innermost function."""
    program.ask("thread", "outer", WAIT)
    until(lambda: any(Path(f"/proc/{program.pid}/task/{tid}/syscall").read_text().startswith("230 ")
                      for tid in program.threads()))  # fmt: skip


def released(program: Program) -> None:
    program.call("release")
    until(lambda: len(program.threads()) == 1)


@pytest.mark.timeout(120)
def test_gdb_names_and_unwinds_old_and_new_frames(build: Builder, start: Start, hu: HotUpgrade, gdb: str) -> None:
    program = start(build.host(build.library("afterwards", 1, FRAMES)))
    for version in (2, 3):
        notes = hu.upgraded(program, build.library("afterwards", version, FRAMES))["notes"]
        assert [note["code"] for note in notes] == ["initial-changed"]
        waiting(program)
        in_new_code = ("thread 2", f"frame function work_of_build_{version}")
        printed = ("print limit", "print 'afterwards.c'::releases")
        text = attached(gdb, program, "thread apply all bt", "print limit", *in_new_code, *printed)
        order(text, f"in work_of_build_{version} (x=", "in inner (", "in middle (", "in outer (", "start_thread")
        order(text, "$1 = 10\n", "in work_of_build_", "$2 = 10\n", f"$3 = {version - 2}\n")  # where they live
        released(program)
        assert program.call("outer", 1) == 111 * version
    hu.rolled_back(program)
    hu.rolled_back(program)
    waiting(program)
    order(attached(gdb, program, "thread apply all bt"), "in work_of_build_1 (x=", "in inner (", "in middle (")
    released(program)
    assert program.call("outer", 1) == 111


def test_what_symbols_says_to_gdb_works(build: Builder, start: Start, hu: HotUpgrade, gdb: str) -> None:
    """For a C library that cannot tell: gdb looks at no library by itself here."""
    program = start(build.host(build.library("afterwards", 1, FRAMES)))
    hu.upgraded(program, build.library("afterwards", 2, FRAMES))
    (command,) = hu("symbols", program.pid, "--json").document["gdb"]
    program.ask("work", "busy", 1, "outer", 10_000, -1000)
    words = [gdb, "-iex", "set auto-solib-add off", "-iex", "set confirm off", "-p", str(program.pid)]
    assert "in work_of_build_2 (" not in said(*words, "-ex", "thread apply all bt")
    order(said(*words, "-ex", command, "-ex", "thread apply all bt"), "in work_of_build_2 (", "in inner (")


def test_namespaces_of_the_linker_are_left_alone(build: Builder, start: Start, hu: HotUpgrade, gdb: str) -> None:
    """dlmopen before and after: the linker's list holds its namespaces and ours."""
    program = start(build.host(build.library("afterwards", 1)))
    assert program.call("open_namespace") == 1
    hu.upgraded(program, build.library("afterwards", 2))
    assert program.call("open_namespace") == 1
    hu.upgraded(program, build.library("afterwards", 3))
    text = attached(gdb, program, "info sharedlibrary")
    assert len(re.findall(r"Yes.*/libm\.so\.6$", text, re.MULTILINE)) == 2, text
    for version in (2, 3):
        path = build.library("afterwards", version)
        build_id = re.search(r"Build ID: (\w+)", subprocess.check_output(["readelf", "-n", path], text=True))
        assert build_id
        assert build_id[1] in text


def check_core(gdb: str, program: Program, core: Path) -> str:
    text = said(gdb, str(program.path), str(core), "-ex", "thread apply all bt", "-ex", "print limit",
                "-ex", "disassemble 'work_of_build_2'")  # fmt: skip
    order(text, "in work_of_build_2 (x=", "in inner (", "in middle (", "in outer (")
    assert "$1 = 10\n" in text
    # The code is the one that ran, not that of the file: its calls lead to where this process has things.
    assert re.search(r"call +0x[0-9a-f]+ <(abort|usleep|backtrace)@plt>", text), text
    return text


def test_a_core_of_a_crash_opens(build: Builder, start: Start, hu: HotUpgrade, gdb: str, tmp_path: Path) -> None:
    if not (pattern := Path("/proc/sys/kernel/core_pattern").read_text().strip()).startswith("core"):
        pytest.skip(f"cores do not go to the working directory here (kernel.core_pattern is {pattern})")
    program = start(build.host(build.library("afterwards", 1, FRAMES)), folder=tmp_path)
    resource.prlimit(program.pid, resource.RLIMIT_CORE, (1 << 30, 1 << 30))
    hu.upgraded(program, build.library("afterwards", 2, FRAMES))
    with pytest.raises(AssertionError, match="ended with -6"):
        program.call("outer", ABORT)
    (core,) = tmp_path.glob("core*")
    order(check_core(gdb, program, core), "in work_of_build_2 (x=-2)")
    assert core.stat().st_size < 8 << 20


def test_a_core_by_gcore_opens(build: Builder, start: Start, hu: HotUpgrade, gdb: str, tmp_path: Path) -> None:
    program = start(build.host(build.library("afterwards", 1, FRAMES)))
    hu.upgraded(program, build.library("afterwards", 2, FRAMES))
    waiting(program)
    attached(gdb, program, f"generate-core-file {tmp_path}/core")
    check_core(gdb, program, tmp_path / "core")
    assert program.call("outer", 1) == 222


@pytest.mark.parametrize("unwinder", ["fp", "dwarf"])
def test_perf_names_and_unwinds_old_and_new_frames(
    build: Builder, start: Start, hu: HotUpgrade, tmp_path: Path, unwinder: str
) -> None:
    """As ``hotupgrade symbols`` says: the code of two builds that ran while perf recorded."""
    if shutil.which("perf") is None:
        pytest.skip("perf is not installed (scripts/install-packages base)")
    flags = ("-fno-omit-frame-pointer",)
    program = start(build.host(build.library("afterwards", 1, FRAMES), flags=flags))
    hu.upgraded(program, build.library("afterwards", 2, FRAMES))
    hu.upgraded(program, build.library("afterwards", 3, FRAMES))
    program.ask("work", "busy", 1, "outer", 5, -1000)

    def perf(*words: str) -> subprocess.CompletedProcess[str]:
        words = ("perf", "--buildid-dir", str(tmp_path / "cache"), *words)
        return subprocess.run(words, capture_output=True, text=True, timeout=50, cwd=tmp_path)

    record = ["record", "-e", "cpu-clock", "-F", "199", "--call-graph", unwinder, "-p", str(program.pid)]
    recorded = perf(*record, "-o", "perf.data", "--", "sleep", "0.5")
    if "perf_event_paranoid" in recorded.stderr:
        pytest.skip("perf may not look at processes here: sysctl kernel.perf_event_paranoid=1")
    assert recorded.returncode == 0, recorded.stderr
    program.ask("stop")
    hu.rolled_back(program)
    program.ask("work", "busy", 1, "outer", 5, -1000)
    assert (done := perf(*record, "-o", "later.data", "--", "sleep", "0.5")).returncode == 0, done.stderr
    document = hu("symbols", program.pid, "--json").document
    assert [image["active"] for image in document["images"]] == [True, False]
    later = document["perf"][-1].replace("perf.data", "later.data").replace("named.data", "later-named.data")
    for command in (*document["perf"], later):
        assert (done := perf(*shlex.split(command)[1:])).returncode == 0, done.stderr
    for data, version in (("named.data", 3), ("later-named.data", 2)):
        report = perf("report", "-i", data, "--stdio", "--no-children", "-g", "caller").stdout
        order(report, f"[.] work_of_build_{version}", "outer", "middle", "inner", f"work_of_build_{version}")
    assert program.call("outer", 1) == 222
    words = hu("symbols", program.pid)
    assert "add-symbol-file" in words.out, str(words)
