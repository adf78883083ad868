"""Wrong input: one clear sentence, an exit code, an untouched target."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from live.conftest import Start
from live.harness import NOBODY, NOT_NOW, REFUSED, USAGE, Answer, Builder, HotUpgrade, Program, running, until

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def program(build: Builder, start: Start) -> Program:
    return start(build.host(build.library("basic", 1)))


def check_refused(answer: Answer, codes: tuple[int, ...], *names: str) -> None:
    """One reason or more, each a readable sentence; no traceback anywhere."""
    assert answer.code in codes, str(answer)
    assert answer.document["ok"] is False
    assert answer.document["exit_code"] == answer.code
    assert answer.document["reasons"], str(answer)
    for reason in answer.document["reasons"]:
        assert reason["code"], reason
        assert 10 < len(reason["text"]) < 500, reason
    assert "Traceback" not in answer.out + answer.err
    for name in names:
        assert name in answer.about(), f"{name} is not named\n{answer}"


def check_untouched(hu: HotUpgrade, program: Program, file: Path | str, codes: tuple[int, ...], *names: str) -> None:
    """Both ways to speak give the same exit code, and the program is as it was and can still be upgraded."""
    before, maps = program.fingerprint("libbasic"), program.maps()
    check_refused(hu.upgrade(program.pid, file), codes, *names)
    said = hu("upgrade", program.pid, file)
    assert said.code in codes, str(said)
    assert said.err.strip(), "said in words, too"
    assert "Traceback" not in said.out + said.err
    assert len(said.err) < 2000, said.err
    assert program.fingerprint("libbasic") == before
    assert program.maps() == maps
    assert program.call("version") == 1


def patched(path: Path, offset: int, content: bytes) -> Path:
    data = bytearray(path.read_bytes())
    data[offset : offset + len(content)] = content
    path.write_bytes(data)
    return path


def truncated(path: Path, size: int) -> Path:
    with path.open("rb+") as file:
        file.truncate(size)
    return path


def stripped(path: Path) -> Path:
    subprocess.run(["strip", "--strip-all", str(path)], check=True, timeout=20)
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def loosened(path: Path) -> Path:
    path.chmod(0o666)
    return path


def removed(path: Path) -> Path:
    path.unlink()
    return path


WRONG_FILES: dict[str, tuple[Callable[[Path], Path], tuple[int, ...]]] = {
    "text": (lambda path: written(path, b"This is no program.\n" * 20), (USAGE, REFUSED)),
    "empty": (lambda path: written(path, b""), (USAGE, REFUSED)),
    "other-architecture": (lambda path: patched(path, 18, struct.pack("<H", 183)), (USAGE, REFUSED)),
    "32-bit": (lambda path: patched(path, 4, b"\x01"), (USAGE, REFUSED)),
    "big-endian": (lambda path: patched(path, 5, b"\x02"), (USAGE, REFUSED)),
    "executable": (lambda path: patched(path, 16, struct.pack("<H", 2)), (USAGE, REFUSED)),
    "header-only": (lambda path: truncated(path, 64), (USAGE, REFUSED)),
    "few-bytes": (lambda path: truncated(path, 7), (USAGE, REFUSED)),
    "half": (lambda path: truncated(path, path.stat().st_size // 2), (USAGE, REFUSED)),
    "nearly-whole": (lambda path: truncated(path, path.stat().st_size - 200), (USAGE, REFUSED)),
    "stripped": (stripped, (REFUSED,)),
    "writable-by-others": (loosened, (USAGE, REFUSED)),
    "missing": (removed, (USAGE, REFUSED)),
    "huge-section-offset": (lambda path: patched(path, 40, b"\xff" * 8), (USAGE, REFUSED)),
    "zeroes": (lambda path: written(path, b"\x7fELF" + bytes(path.stat().st_size)), (USAGE, REFUSED)),
}


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_a_wrong_file(build: Builder, program: Program, hu: HotUpgrade, kind: str) -> None:
    spoil, codes = WRONG_FILES[kind]
    file = spoil(build.copy(build.library("basic", 2), kind))
    check_untouched(hu, program, file, codes, file.name)


def test_spoiled_bytes_never_crash_the_tool_or_the_target(build: Builder, program: Program, hu: HotUpgrade) -> None:
    """A file whose tables were overwritten: any verdict, but no crash and no bug report."""
    original = build.library("basic", 2)
    size = original.stat().st_size
    for number, offset in enumerate((32, 56, 64, 200, size // 3, size - 64 * 6, size - 64 * 20)):
        file = patched(build.copy(original, f"spoiled-{number}"), offset, b"\xa5" * 48)
        before = program.fingerprint("libbasic")
        answer = hu.check(program.pid, file)
        assert answer.code in (0, USAGE, REFUSED), f"spoiled at {offset}\n{answer}"
        assert "Traceback" not in answer.out + answer.err
        assert program.fingerprint("libbasic") == before


def test_an_unrelated_library(build: Builder, program: Program, hu: HotUpgrade) -> None:
    check_untouched(hu, program, build.library("statics", 2), (USAGE, REFUSED), "libstatics.so.1")


def test_a_directory(build: Builder, program: Program, hu: HotUpgrade) -> None:
    check_untouched(hu, program, build.directory, (USAGE, REFUSED))


def test_a_directory_that_others_can_write(build: Builder, program: Program, hu: HotUpgrade) -> None:
    """Whoever may replace the file may choose the code."""
    file = build.copy(build.library("basic", 2), "loose-directory")
    file.parent.chmod(0o777)
    check_untouched(hu, program, file, (USAGE, REFUSED))


def test_no_such_process(build: Builder, hu: HotUpgrade) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait(10)
    check_refused(hu.upgrade(ended.pid, build.library("basic", 2)), (NOT_NOW,), str(ended.pid))
    for command in ("inspect", "status", "rollback"):
        check_refused(hu(command, ended.pid, "--json"), (NOT_NOW,), str(ended.pid))


@pytest.mark.parametrize("word", ["abc", "0", "-5", "99999999999999999999", ""])
def test_no_process_id(build: Builder, hu: HotUpgrade, word: str) -> None:
    answer = hu("upgrade", "--json", "--", word, build.library("basic", 2))
    assert answer.code in (USAGE, NOT_NOW), str(answer)
    assert "Traceback" not in answer.out + answer.err


def test_a_zombie(build: Builder, hu: HotUpgrade) -> None:
    zombie = subprocess.Popen(["true"])
    try:
        until(lambda: Path(f"/proc/{zombie.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
        check_refused(hu.upgrade(zombie.pid, build.library("basic", 2)), (NOT_NOW, REFUSED), str(zombie.pid))
    finally:
        zombie.wait(10)


def test_wrong_use(hu: HotUpgrade, program: Program) -> None:
    for words in (
        ("upgrade",),
        ("upgrade", program.pid, "--module", "libbasic.so.1"),
        ("frobnicate",),
        ("upgrade", program.pid, "--no-such-option"),
    ):
        answer = hu(*words)
        assert answer.code == USAGE, str(answer)
        assert "Traceback" not in answer.err
    assert hu("--help").code == 0


def test_the_same_module_twice(build: Builder, program: Program, hu: HotUpgrade) -> None:
    check_refused(
        hu.upgrade(program.pid, build.library("basic", 2), build.library("basic", 3)), (USAGE, REFUSED), "libbasic"
    )


WITHOUT_RIGHTS = {
    "nobody": (f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all"),
    "no-capabilities": ("--bounding-set=-all", "--inh-caps=-all"),
}


@pytest.mark.parametrize("who", WITHOUT_RIGHTS)
def test_no_permission(build: Builder, program: Program, hu: HotUpgrade, who: str) -> None:
    """Another user; and root in a container that took the right to trace away."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    become = ["setpriv", *WITHOUT_RIGHTS[who], sys.executable]
    environment = {**hu.environment, "HOME": "/nonexistent"}
    for name in ("CACHE", "STATE", "DATA"):
        environment[f"XDG_{name}_HOME"] = "/nonexistent/below"
    tried = subprocess.run([*become, "-c", "import hotupgrade"], env=environment, capture_output=True, timeout=30)
    if tried.returncode != 0:
        pytest.skip(f"{who} cannot run this Python")
    before = program.fingerprint("libbasic")
    for command, more in (("upgrade", [str(build.library("basic", 2))]), ("inspect", []), ("rollback", [])):
        words = [command, str(program.pid), *more, "--json"]
        done = subprocess.run(
            [*become, "-m", "hotupgrade.cli", *words], env=environment, capture_output=True, text=True, timeout=30
        )
        answer = hu.read(words, done.returncode, done.stdout, done.stderr)
        check_refused(answer, (NOT_NOW,))
        assert "permi" in answer.about() or "root" in answer.about(), str(answer)
    assert program.fingerprint("libbasic") == before
    assert program.call("version") == 1


def test_a_static_executable(build: Builder, hu: HotUpgrade) -> None:
    with running(build.program("alone", "-static")) as alone:
        answer = hu.upgrade(alone.pid, build.library("basic", 2))
        check_refused(answer, (USAGE, REFUSED, NOT_NOW))
        assert "static" in answer.about()
        assert alone.poll() is None


def test_a_traced_process(build: Builder, program: Program, hu: HotUpgrade) -> None:
    with running(build.program("tracer"), str(program.pid)) as tracer:
        before = program.fingerprint("libbasic")
        answer = hu.upgrade(program.pid, build.library("basic", 2))
        check_refused(answer, (NOT_NOW,), str(tracer.pid))
        assert program.fingerprint("libbasic") == before
        assert program.call("version") == 1
    until(lambda: program.status("TracerPid") == 0)
    hu.upgraded(program, build.library("basic", 2))


def test_a_kernel_thread_and_itself(build: Builder, hu: HotUpgrade) -> None:
    check_refused(hu.upgrade(2, build.library("basic", 2)), (USAGE, REFUSED, NOT_NOW))


def test_no_json_document_without_being_asked(build: Builder, program: Program, hu: HotUpgrade) -> None:
    answer = hu("upgrade", program.pid, build.library("statics", 2))
    assert answer.code in (USAGE, REFUSED)
    assert not answer.out.lstrip().startswith("{")


def test_a_stranger_cannot_keep_an_upgrade_out(build: Builder, start: Start, hu: HotUpgrade) -> None:
    """Who may not trace the process can lock what every user can open, but not what the upgrade locks."""
    program = start(build.host(build.library("basic", 1)))
    script = f"""
import fcntl, os, sys
os.setuid({NOBODY})
fcntl.flock(os.open("/proc/{program.pid}", os.O_RDONLY), fcntl.LOCK_EX)
try:
    os.open("/proc/{program.pid}/mem", os.O_RDONLY)
except OSError:
    print("ready", flush=True)
sys.stdin.read()
"""
    with running(sys.executable, "-c", script):
        hu.upgraded(program, build.library("basic", 2))
    assert program.call("version") == 2
