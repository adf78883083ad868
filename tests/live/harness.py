"""Builds the small programs in versions, starts them, speaks to them, and upgrades them with the real command."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hotupgrade

SOURCES = Path(__file__).parent / "programs"
PACKAGE = Path(hotupgrade.__file__).parents[1]
WARNINGS = ("-Wall", "-Wextra", "-Werror")
NOBODY = 65534

DONE, BUG, USAGE, REFUSED, NOT_NOW = 0, 1, 2, 3, 4


# Building.


@dataclass(frozen=True)
class Options:
    """How a library is built and linked."""

    emit_relocs: bool = False
    now: bool = False  # bind every symbol at start
    flags: tuple[str, ...] = ()
    compiler: str = ""  # "": gcc or g++

    def words(self) -> list[str]:
        return [
            *self.flags,
            *(["-Wl,--emit-relocs"] if self.emit_relocs else []),
            "-Wl,-z,now" if self.now else "-Wl,-z,lazy",
        ]


PLAIN = Options()
PIE = Options(flags=("-fPIE", "-pie", "-rdynamic"))


class Builder:
    """Compiles on demand, each thing once; every build of a library lies in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def library(
        self, name: str, version: int = 1, options: Options = PLAIN, *, uses: Sequence[Path] = (), label: str = ""
    ) -> Path:
        """``libNAME.so.1`` of one version; ``uses`` are libraries that it needs."""
        source = next(path for path in (SOURCES / f"{name}.c", SOURCES / f"{name}.cpp") if path.exists())
        compiler = options.compiler or ("g++" if source.suffix == ".cpp" else "gcc")
        soname = f"lib{name}.so.1"
        words = [compiler, "-O2", "-g", "-fPIC", "-shared", "-pthread", *WARNINGS, f"-DVERSION={version}"]
        words += [f"-Wl,-soname,{soname}", *options.words(), str(source), *_needs(uses)]
        return self.built(f"{name}-v{version}{label}", soname, words)

    def bundle(self, name: str, parts: Sequence[str], version: int = 1, options: Options = PLAIN) -> Path:
        """``libNAME.so.1`` of one version, with the code of several subjects in C in it."""
        soname = f"lib{name}.so.1"
        words = [options.compiler or "gcc", "-O2", "-g", "-fPIC", "-shared", "-pthread", *WARNINGS]
        words += [f"-DVERSION={version}", f"-Wl,-soname,{soname}", *options.words()]
        return self.built(f"{name}-v{version}", soname, [*words, *(str(SOURCES / f"{part}.c") for part in parts)])

    def host(self, *libraries: Path, extra: str = "", flags: Sequence[str] = (), now: bool = False) -> Path:
        """The host program, bound to ``libraries`` at its start."""
        parts = ["host", "sleepers", "workers", *([extra] if extra else [])]
        compiler = ["gcc", "-O2", "-g", "-pthread", *WARNINGS, *flags]
        objects = [str(self.built(part, f"{part}.o", [*compiler, "-c", str(SOURCES / f"{part}.c")])) for part in parts]
        words = [*compiler, *objects, "-rdynamic", *_needs(libraries)]
        words.append("-Wl,-z,now" if now else "-Wl,-z,lazy")
        return self.built(f"host-{'-'.join(library.parent.name for library in libraries) or 'bare'}", "host", words)

    def executable(
        self,
        subjects: Sequence[str],
        version: int = 1,
        options: Options = PIE,
        *,
        uses: Sequence[Path] = (),
        needs: Sequence[str] = (),
    ) -> Path:
        """The host program with the subjects' own code in it, in one version; ``uses`` as for a library.

        ``needs``: linker words besides those.
        """
        sources = [next(p for p in (SOURCES / f"{s}.c", SOURCES / f"{s}.cpp") if p.exists()) for s in subjects]
        sources = [*(SOURCES / f"{part}.c" for part in ("host", "sleepers", "workers")), *sources]
        flags = ["-O2", "-g", "-pthread", *WARNINGS, f"-DVERSION={version}", *options.flags]
        compiler = options.compiler or "gcc"
        suite = {".c": compiler, ".cpp": {"gcc": "g++"}.get(compiler, f"{compiler}++")}
        objects = [
            self.built(f"{path.stem}-v{version}", f"{path.stem}.o", [suite[path.suffix], *flags, "-c", str(path)])
            for path in sources
        ]
        linker = suite[".cpp" if any(path.suffix == ".cpp" for path in sources) else ".c"]
        words = [linker, *flags, *options.words(), *map(str, objects), *needs, *_needs(uses)]
        return self.built(f"{'-'.join(subjects)}-v{version}", "program", words)

    def program(self, name: str, *flags: str) -> Path:
        words = ["gcc", "-O2", "-g", *WARNINGS, str(SOURCES / f"{name}.c"), *flags]
        return self.built(name, name, words)

    def copy(self, of: Path, label: str) -> Path:
        """A private copy of a built file, under the same name, to be spoiled."""
        directory = self.directory / f"copy-{label}"
        directory.mkdir(exist_ok=True)
        return Path(shutil.copy2(of, directory / of.name))

    def built(self, label: str, file_name: str, words: list[str]) -> Path:
        """What a command makes with ``-o``, once."""
        digest = hashlib.sha256("\0".join(words).encode()).hexdigest()[:8]
        directory = self.directory / f"{label}-{digest}"
        path = directory / file_name
        if not path.exists():
            directory.mkdir(exist_ok=True)
            done = subprocess.run([*words, "-o", str(path)], capture_output=True, text=True, timeout=180)
            assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr}"
        return path


def _needs(libraries: Sequence[Path]) -> list[str]:
    words = ["-Wl,--no-as-needed"] if libraries else []
    for library in libraries:
        words += [str(library), f"-Wl,-rpath,{library.parent}"]
    return words


# A running program.


class Program:
    """A host program that runs; always ended, by its process id."""

    def __init__(self, path: Path, *arguments: str | Path, folder: Path | None = None) -> None:
        self.path = path
        self.stderr_path = path.parent / f"stderr-{os.getpid()}-{time.monotonic_ns()}"
        with self.stderr_path.open("wb") as errors:
            self.process = subprocess.Popen(
                [str(path), *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=folder,
                bufsize=0,
            )
        self._received = b""
        try:
            ready = self._line(10)
            assert ready == "ready", f"{path.name} said {ready!r}: {self.stderr_path.read_text()}"
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        return self.process.pid

    def ask(self, *words: object, limit: float = 10) -> str:
        """Send one command, return the line that answers it."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write((" ".join(map(str, words)) + "\n").encode())
        except BrokenPipeError:
            raise AssertionError(self._ended()) from None
        return self._line(limit)

    def facts(self, *words: object, limit: float = 10) -> dict[str, str]:
        """An answer of the form ``key=value key=value``."""
        answer = self.ask(*words, limit=limit)
        return dict(word.split("=", 1) for word in answer.split())

    def call(self, name: str, argument: int = 0) -> int:
        answer = self.facts("call", name, argument)
        assert "value" in answer, f"{name}: {answer}"
        return int(answer["value"])

    def address(self, name: str) -> int:
        return int(self.facts("address", name)["value"])

    def workers(self) -> Workers:
        return Workers.read(self.facts("workers"))

    def alive(self) -> bool:
        return self.process.poll() is None

    def check_sleepers(self) -> int:
        """No sleeping thread saw an error or woke early; returns how many naps were counted."""
        answer = self.facts("errors")
        assert (answer["errors"], answer["early"]) == ("0", "0"), f"sleepers were disturbed: {answer}"
        return int(answer["naps"])

    def quit(self, limit: float = 10) -> str:
        """End through exit(); returns what the program still said."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"quit\n")
        said = []
        while (line := self._line(limit, at_end="")) != "":
            said.append(line)
        assert self.process.wait(limit) == 0, f"ended with {self.process.returncode}: {self.stderr_path.read_text()}"
        return "\n".join(said)

    def kill(self) -> None:
        if self.alive():
            self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _line(self, limit: float, at_end: str | None = None) -> str:
        assert self.process.stdout is not None
        deadline = time.monotonic() + limit
        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            assert left > 0, f"no answer within {limit} s; {self.threads()}"
            if not select.select([self.process.stdout], [], [], left)[0]:
                continue
            read = os.read(self.process.stdout.fileno(), 65536)
            if not read:
                if at_end is not None:
                    return at_end
                raise AssertionError(self._ended())
            self._received += read
        line, _, self._received = self._received.partition(b"\n")
        return line.decode()

    def _ended(self) -> str:
        """How the program ended: by which signal or with which code, and its last words."""
        return f"the program ended with {self.process.wait(10)}: {self.stderr_path.read_text()}"

    # What the kernel says of it.

    def maps(self) -> list[str]:
        return Path(f"/proc/{self.pid}/maps").read_text().splitlines()

    def status(self, key: str) -> int:
        found = re.search(rf"^{key}:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text(), re.MULTILINE)
        assert found is not None
        return int(found[1])

    def threads(self) -> dict[int, str]:
        result = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir() if self.alive() else ():
            with contextlib.suppress(OSError):
                result[int(task.name)] = (task / "comm").read_text().strip()
        return result

    def descriptors(self) -> list[str]:
        return sorted(entry.name for entry in Path(f"/proc/{self.pid}/fd").iterdir())

    def size(self) -> Size:
        return Size(
            maps=len(self.maps()),
            threads=len(self.threads()),
            descriptors=len(self.descriptors()),
            resident_kb=self.status("VmRSS"),
            virtual_kb=self.status("VmSize"),
        )

    def fingerprint(self, library: str) -> Fingerprint:
        """What must not change when nothing may be touched: mappings, code and data of a library, threads, files."""
        digest = hashlib.sha256()
        with Path(f"/proc/{self.pid}/mem").open("rb", buffering=0) as memory:
            for line in self.maps():
                low, high = (int(part, 16) for part in line.split()[0].split("-"))
                if library in line and line.split()[1].startswith("r"):
                    memory.seek(low)
                    digest.update(memory.read(high - low))
        status = Path(f"/proc/{self.pid}/status").read_text()
        kept = tuple(re.findall(r"^(?:TracerPid|SigBlk|SigIgn|SigCgt|Threads):.*$", status, re.MULTILINE))
        mappings = tuple(line.split()[0] + line.split()[1] for line in self.maps() if "[heap]" not in line)
        return Fingerprint(mappings, digest.hexdigest(), tuple(self.descriptors()), kept)


@dataclass(frozen=True)
class Size:
    maps: int
    threads: int
    descriptors: int
    resident_kb: int
    virtual_kb: int


@dataclass(frozen=True)
class Fingerprint:
    mappings: tuple[str, ...]
    contents: str
    descriptors: tuple[str, ...]
    status: tuple[str, ...]


@dataclass(frozen=True)
class Workers:
    """What the worker threads counted."""

    calls: int
    least: int
    changes: int
    failures: int
    last: set[int]
    values: set[int]

    @classmethod
    def read(cls, answer: Mapping[str, str]) -> Workers:
        numbers = {key: int(answer[key]) for key in ("calls", "least", "changes", "failures")}
        return cls(**numbers, last=_numbers(answer["last"]), values=_numbers(answer["values"]))


def _numbers(words: str) -> set[int]:
    return {int(word) for word in words.split(",") if word}


# The command.


@dataclass(frozen=True)
class Answer:
    """What one run of ``hotupgrade`` gave."""

    words: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float
    document: dict[str, Any] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        return str(self.document.get("outcome"))

    def codes(self) -> set[str]:
        return {reason["code"] for reason in self.document.get("reasons", [])}

    def about(self) -> str:
        """Everything that the reasons say, to look for names in."""
        return json.dumps(self.document.get("reasons", [])) + self.err

    def __str__(self) -> str:
        return f"hotupgrade {' '.join(self.words)}: exit {self.code} after {self.seconds:.1f} s\n{self.out}\n{self.err}"


class HotUpgrade:
    """The real command, with its cache and journal in a directory of the test session."""

    def __init__(self, directory: Path) -> None:
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(PACKAGE),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(directory),
            "XDG_CACHE_HOME": str(directory / "cache"),
            "XDG_STATE_HOME": str(directory / "state"),
            "XDG_DATA_HOME": str(directory / "data"),
            "XDG_RUNTIME_DIR": str(directory / "run"),
        }

    def start(self, *words: object) -> subprocess.Popen[str]:
        """Start the command and leave it running."""
        return subprocess.Popen(
            [sys.executable, "-m", "hotupgrade.cli", *map(str, words)],
            env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def finish(self, process: subprocess.Popen[str], *words: object, limit: float = 60) -> Answer:
        """Wait for a command that was started, and read what it said."""
        begin = time.monotonic()
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate(timeout=10)
            raise AssertionError(f"{words} did not end within {limit} s\n{out}\n{err}") from None
        return self.read(words, process.returncode, out, err, time.monotonic() - begin)

    def read(self, words: Sequence[object], code: int, out: str, err: str, seconds: float = 0.0) -> Answer:
        """What a command that has ended gave."""
        document = {}
        if "--json" in words and code >= 0:
            try:
                document = json.loads(out)
            except ValueError:
                raise AssertionError(f"{words}: exit {code} and no single document:\n{out}\n{err}") from None
        return Answer(tuple(map(str, words)), code, out, err, seconds, document)

    def __call__(self, *words: object, limit: float = 60) -> Answer:
        return self.finish(self.start(*words), *words, limit=limit)

    def upgrade(self, pid: int, *words: object, limit: float = 60) -> Answer:
        return self("upgrade", pid, *words, "--json", limit=limit)

    def check(self, pid: int, *words: object) -> Answer:
        return self("check", pid, *words, "--json")

    def rollback(self, pid: int, *words: object) -> Answer:
        return self("rollback", pid, *words, "--json")

    def status(self, pid: int) -> Answer:
        return self("status", pid, "--json")

    def upgraded(self, program: Program, *words: object) -> dict[str, Any]:
        """An upgrade that must succeed; its document is looked at for what it always holds."""
        answer = self.upgrade(program.pid, *words)
        check_done(answer, program)
        return answer.document

    def rolled_back(self, program: Program) -> dict[str, Any]:
        answer = self.rollback(program.pid)
        check_done(answer, program)
        return answer.document


DRIVER = """
import contextlib, faulthandler, gc, io, json, signal, sys
from hotupgrade.cli import main
faulthandler.register(signal.SIGUSR2, all_threads=True)
for line in sys.stdin:
    out, code = io.StringIO(), 0
    try:
        with contextlib.redirect_stdout(out):
            main(json.loads(line), standalone_mode=False)
    except SystemExit as end:
        code = end.code
    print(json.dumps([code, out.getvalue()]), flush=True)
    gc.collect()  # the command itself never does, since its process ends
"""


class Driver(HotUpgrade):
    """The same command, run many times in one Python process: for tests that need it by the hundred."""

    def __init__(self, other: HotUpgrade) -> None:
        self.environment = other.environment
        self._process = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate(timeout=10)

    def __call__(self, *words: object, limit: float = 60) -> Answer:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        begin = time.monotonic()
        self._process.stdin.write(json.dumps([str(word) for word in words]) + "\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], limit)[0]:
            self._process.send_signal(signal.SIGUSR2)  # where is it?
            time.sleep(2)
            self._process.kill()
            raise AssertionError(f"{words} did not end within {limit} s\n{self._process.communicate(timeout=10)[1]}")
        line = self._process.stdout.readline()
        assert line, self._process.communicate(timeout=10)[1]
        code, out = json.loads(line)
        return self.read(words, code, out, "", time.monotonic() - begin)


PHASES = ("prepare", "stop", "check", "sync", "replace", "start", "cleanup")


def check_done(answer: Answer, program: Program) -> None:
    """A switch that was made says so, in full, and its numbers make sense."""
    document = answer.document
    assert answer.code == DONE, str(answer)
    assert program.alive(), f"the program ended with {program.process.poll()}\n{answer}"
    assert (document["version"], document["ok"], document["outcome"], document["pid"]) == (
        1,
        True,
        "done",
        program.pid,
    ), str(answer)
    assert all(document["phases_us"][phase] >= 0 for phase in PHASES), document["phases_us"]
    assert document["threads"], str(answer)
    for thread in document["threads"]:
        assert thread["how"] in {"signal", "redirect", "leader", "absent"}, thread
        if thread["how"] != "absent":
            assert 0 <= thread["break_us"] < 10_000_000, thread
            assert thread["released_us"] >= thread["parked_us"], thread
    assert document["break_us"]["max"] >= 0
    assert document["attempts"] >= 1
    assert document["edits"]["count"] >= 0


# Small helpers of the tests.


def until(condition: Any, limit: float = 10, what: str = "") -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit} s: {what or condition}"
        time.sleep(0.005)


@contextlib.contextmanager
def running(*words: str | Path, ready: bool = True) -> Iterator[subprocess.Popen[bytes]]:
    """Some other program, ended at the end."""
    process = subprocess.Popen([str(word) for word in words], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        if ready:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == b"ready"
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait(10)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
