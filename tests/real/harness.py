"""Programs that nobody here wrote: their two builds, servers that run, and the way there, back and there again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from live.harness import HotUpgrade, Size, check_done

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT / "build" / "real"
RESULTS = REAL / "results"
BUILDING_S = 3600
OF_LIBRARIES = "jemalloc_bg_thd"  # threads that come and go by themselves
PATIENCE = 400  # seconds for one command: large builds, busy machines


# Builds.


@dataclass(frozen=True)
class Builds:
    """What ``scripts/build-real NAME`` has made."""

    name: str
    version: str

    @classmethod
    def of(cls, name: str) -> Builds:
        """Built when it is not there yet."""
        words = [str(ROOT / "scripts" / "build-real"), name]
        done = subprocess.run(words, capture_output=True, text=True, timeout=BUILDING_S)
        assert done.returncode == 0, done.stdout + done.stderr
        return cls(name, (REAL / name / "version").read_text().strip())

    def old(self, file: str) -> Path:
        return REAL / self.name / "old" / file

    def new(self, file: str) -> Path:
        return REAL / self.name / "new" / file


# Servers.


class Server:
    """A server that runs in the foreground; ended by its process id, however the test went."""

    def __init__(self, folder: Path, words: Sequence[str | Path], *, library_path: Path | None = None) -> None:
        self.log = folder / "log"
        environment = dict(os.environ)
        if library_path is not None:
            environment["LD_LIBRARY_PATH"] = str(library_path)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(word) for word in words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, env=environment,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.process.pid

    def alive(self) -> bool:
        return self.process.poll() is None

    def wait_for_port(self, port: int, limit: float = 30) -> None:
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline and self.alive():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(0.05)
        raise AssertionError(f"nothing listens at {port}:\n{self.log.read_text()[-2000:]}")

    def end(self, how: signal.Signals = signal.SIGTERM, limit: float = 30) -> int:
        """Ask it to end as an operator does; returns its exit code."""
        self.process.send_signal(how)
        return self.process.wait(limit)

    def kill(self) -> None:
        """It and its children; stopped first, for a master starts another worker for one that is killed."""
        if self.alive():
            self.process.send_signal(signal.SIGSTOP)
            family = descendants(self.pid)
            self.process.kill()
            for child in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        self.process.wait(10)


@dataclass(frozen=True)
class Member:
    """One process of a server that has several, as ``check_done`` wants it."""

    pid: int
    process: Any = None

    def alive(self) -> bool:
        return Path(f"/proc/{self.pid}").exists()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descendants(pid: int) -> list[int]:
    return [found for child in children(pid) for found in (child, *descendants(child))]


def thread_names(pid: int) -> list[str]:
    return [(task / "comm").read_text().strip() for task in Path(f"/proc/{pid}/task").iterdir()]


def size_of(pid: int) -> Size:
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )  # fmt: skip
    return Size(
        maps=len(Path(f"/proc/{pid}/maps").read_text().splitlines()),
        threads=len([name for name in thread_names(pid) if not name.startswith(OF_LIBRARIES)]),
        descriptors=len(list(Path(f"/proc/{pid}/fd").iterdir())),
        resident_kb=int(status["VmRSS"].split()[0]),
        virtual_kb=int(status["VmSize"].split()[0]),
    )


def our_descriptors(pid: int) -> list[str]:
    """Descriptors of a process that are hotupgrade's; there must be none when no command is at work."""
    links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
    return [link for link in links if "memfd:hotupgrade" in link]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


# Clients in this process.


@dataclass
class Counts:
    """What a client in a thread saw."""

    done: int = 0
    longest_s: float = 0.0
    errors: list[str] = field(default_factory=list)


class Clients:
    """Threads that each make one connection and use it to the end; the first error of each ends it."""

    def __init__(self, count: int, connect: Callable[[], Any], turn: Callable[[Any, int], None]) -> None:
        self.counts = [Counts() for _ in range(count)]
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number, connect, turn), daemon=True) for number in range(count)
        ]

    def _run(self, number: int, connect: Callable[[], Any], turn: Callable[[Any, int], None]) -> None:
        counts = self.counts[number]
        try:
            connection = connect()
            while not self._stop.is_set():
                begin = time.monotonic()
                turn(connection, number)
                counts.longest_s = max(counts.longest_s, time.monotonic() - begin)
                counts.done += 1
        except Exception as error:  # whatever it is, the client saw it
            counts.errors.append(f"client {number} after {counts.done} turns: {error!r}")

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        self.moved_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def errors(self) -> list[str]:
        return [error for counts in self.counts for error in counts.errors]

    def done(self) -> int:
        return sum(counts.done for counts in self.counts)

    def longest_ms(self) -> float:
        return 1000 * max(counts.longest_s for counts in self.counts)

    def moved_on(self, turns: int = 3, limit: float = 30) -> None:
        """Every client has had some more turns, and none saw an error."""
        before = [counts.done for counts in self.counts]
        deadline = time.monotonic() + limit
        while not self.errors() and time.monotonic() < deadline:
            if all(counts.done >= old + turns for counts, old in zip(self.counts, before, strict=True)):
                break
            time.sleep(0.01)
        else:
            raise AssertionError(f"clients are stuck or failed: {self.errors()}, {self.counts}")


class Tool:
    """A client program of the server's own (wrk, redis-benchmark, pgbench) that runs for a bounded time."""

    def __init__(self, *words: str | Path, environment: dict[str, str] | None = None) -> None:
        self.words = [str(word) for word in words]
        self.process = subprocess.Popen(
            self.words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip

    def running(self) -> bool:
        return self.process.poll() is None

    def finish(self, limit: float = 120) -> str:
        """What it said; it must have ended well."""
        out, _ = self.process.communicate(timeout=limit)
        assert self.process.returncode == 0, f"{self.words}: {self.process.returncode}\n{out[-3000:]}"
        return out

    def stop(self, how: signal.Signals = signal.SIGINT, limit: float = 30) -> str:
        """Ended before its time; what it said until then."""
        if self.running():
            self.process.send_signal(how)
        out, _ = self.process.communicate(timeout=limit)
        return out

    def __enter__(self) -> Tool:
        return self

    def __exit__(self, *_: object) -> None:
        if self.running():
            self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired, ValueError):
            self.process.communicate(timeout=10)


# There, back, and there again.


@dataclass(frozen=True)
class Switch:
    """One upgrade or rollback of one process."""

    what: str
    pid: int
    threads: int
    break_us: float
    seconds: float
    attempts: int
    functions: int

    @classmethod
    def read(cls, what: str, pid: int, document: dict[str, Any], seconds: float) -> Switch:
        return cls(
            what, pid, len(document["threads"]), document["break_us"]["max"], round(seconds, 2),
            document["attempts"], sum(len(module.get("changed", ())) for module in document.get("modules", ())),
        )  # fmt: skip


Observe = Callable[[], object]


class Journey:
    """Switches all processes of a server, and looks through a client's eyes whether it shows."""

    def __init__(self, hu: HotUpgrade, pids: Callable[[], list[int]], files: Sequence[Path | str]) -> None:
        self.hu = hu
        self.pids = pids
        self.files = files
        self.switches: list[Switch] = []

    def upgrade(self, *words: str) -> None:
        self._each("upgrade", *self.files, *words)

    def rollback(self) -> None:
        self._each("rollback")

    def _each(self, what: str, *words: Path | str) -> None:
        for pid in self.pids():
            answer = self.hu(what, pid, *words, "--json", limit=PATIENCE)
            check_done(answer, Member(pid))  # type: ignore[arg-type]
            self.switches.append(Switch.read(what, pid, answer.document, answer.seconds))

    def there_and_back(self, observe: Observe, old: object, new: object, between: Callable[[], None]) -> None:
        """Old, new, old, new; ``between``: what the clients must have managed before the next step."""
        between()
        assert observe() == old
        for switch, wanted in ((self.upgrade, new), (self.rollback, old), (self.upgrade, new)):
            switch()
            assert observe() == wanted, f"after {switch.__name__}"
            between()

    def prepare_s(self) -> float:
        """The longest command."""
        return max(switch.seconds for switch in self.switches)

    def longest_break_us(self) -> float:
        return max(switch.break_us for switch in self.switches)


def check_bounded(
    before: Size, after: Size, *, maps: int = 60, resident_kb: int = 64 << 10, descriptors: int = 0
) -> None:
    """Threads and descriptors as before; a few mappings for the new image.

    ``descriptors``: how many more the program may have opened for itself meanwhile.
    """
    assert after.threads == before.threads, (before, after)
    assert after.descriptors <= before.descriptors + descriptors, (before, after)
    assert after.maps <= before.maps + maps, (before, after)
    assert after.resident_kb <= before.resident_kb + resident_kb, (before, after)


# What is told.


@dataclass(frozen=True)
class Row:
    """A line of the table in docs/real-programs.md."""

    program: str
    version: str
    changed: str
    processes: str
    outcome: str
    break_us: float | None = None
    prepare_s: float | None = None
    clients: str = ""
    errors: int | None = None


def tell(row: Row) -> None:
    """Kept for ``tests/real/table.py``."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    name = "".join(letter if letter.isalnum() else "-" for letter in f"{row.program} {row.changed}")[:80]
    (RESULTS / f"{name}.json").write_text(json.dumps(asdict(row), indent=1))


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    try:
        yield server
    finally:
        server.kill()
