"""PostgreSQL: a process for each connection, forked by the postmaster; pgbench runs all the time."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from live.harness import HotUpgrade
from real.harness import (
    REAL,
    Builds,
    Journey,
    Row,
    Server,
    Tool,
    check_bounded,
    children,
    free_port,
    our_descriptors,
    size_of,
    tell,
)

USER = "nobody"  # the server refuses to run as root
N_CONNECTIONS, RATE = 4, 200  # transactions a second: the machine is not ours alone
OPENED = 30  # files of tables and indexes that a backend keeps open once it has met them
PASSING = re.compile(r"^$|autovacuum worker|: guest ")
ALLOWED, DENIED = "CREATE STATISTICS", "permission denied for schema theirs"


@dataclass(frozen=True)
class Database:
    server: Server
    port: int
    tools: Path

    def pids(self) -> list[int]:
        """The postmaster first: who is forked after it has the new code from it.

        Without those that come and go by themselves, within seconds: workers of autovacuum, and who serves a guest.
        """
        return [self.server.pid, *(pid for pid in children(self.server.pid) if not PASSING.search(title(pid)))]

    def backends(self) -> list[int]:
        """Those that serve a connection."""
        return [pid for pid in children(self.server.pid) if re.search(r"127\.0\.0\.1\(\d+\)", title(pid))]

    def sql(self, text: str, user: str = "boss") -> str:
        words = [self.tools / "psql", "-h", "127.0.0.1", "-p", self.port, "-U", user, "-d", "postgres", "-c", text]
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=60)
        return (done.stdout + done.stderr).strip()


def title(pid: int) -> str:
    """What a server process says that it does; "" when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def as_user(words: list[str]) -> list[str]:
    return ["setpriv", "--reuid", USER, "--regid", "nogroup", "--clear-groups", *words]


@pytest.fixture
def database(builds: Callable[[str], Builds], place: Path, serve: Callable[..., Server]) -> Iterator[Database]:
    postgresql = builds("postgresql-15")
    prefix = place / "prefix"  # the server finds its files beside itself
    shutil.copytree(REAL / postgresql.name / "prefix", prefix, symlinks=True)
    shutil.copy2(postgresql.old("bin/postgres"), prefix / "bin" / "postgres")
    data = place / "data"
    data.mkdir()
    os.chown(data, pwd.getpwnam(USER).pw_uid, -1)
    words = as_user(
        [str(prefix / "bin/initdb"), "-D", str(data), "-U", "boss", "--no-sync", "--auth=trust", "-E", "UTF8"]
    )
    subprocess.run([*words, "--locale=C"], check=True, capture_output=True, timeout=300, cwd=place)
    port = free_port()
    settings = ["-h", "127.0.0.1", "-p", str(port), "-k", "", "-c", "fsync=off", "-c", "max_connections=40"]
    server = serve(*as_user([str(prefix / "bin/postgres"), "-D", str(data), *settings]))
    server.wait_for_port(port)
    return Database(server, port, prefix / "bin")


def test_postgresql(database: Database, builds: Callable[[str], Builds], hu: HotUpgrade) -> None:
    """CVE-2025-12817: CREATE STATISTICS asks for the right to create in the schema."""
    postgresql = builds("postgresql-15")
    for text in (
        "CREATE ROLE guest LOGIN", "CREATE SCHEMA theirs", "GRANT USAGE ON SCHEMA theirs TO guest",
        "CREATE SCHEMA own AUTHORIZATION guest",
    ):  # fmt: skip
        assert "ERROR" not in database.sql(text)
    database.sql("CREATE TABLE own.t (a int, b int)", "guest")
    numbers = iter(range(1000))

    def observe() -> bool:
        """May a guest create statistics where it may create nothing?  A new connection: a backend forked just now."""
        said = database.sql(f"CREATE STATISTICS theirs.s{next(numbers)} ON a, b FROM own.t", "guest")
        assert ALLOWED in said or DENIED in said, said
        return ALLOWED in said

    where = ["-h", "127.0.0.1", "-p", str(database.port), "-U", "boss"]
    subprocess.run([database.tools / "pgbench", *where, "-i", "-s", "2", "postgres"], check=True, capture_output=True)
    bench = [
        database.tools / "pgbench",
        *where,
        "-c",
        str(N_CONNECTIONS),
        "-j",
        "1",
        "-T",
        "3600",
        "-R",
        str(RATE),
        "postgres",
    ]
    journey = Journey(hu, database.pids, [builds("postgresql-15").new("bin/postgres")])
    with Tool(*bench) as load:
        backends = until_connected(database)
        sizes = {pid: size_of(pid) for pid in database.pids()}
        journey.there_and_back(observe, True, False, lambda: time.sleep(2))
        for pid, before in sizes.items():
            check_bounded(before, size_of(pid), descriptors=OPENED)
            assert our_descriptors(pid) == []
        assert set(backends) <= set(database.backends()), "a backend was lost"
        for pid in backends:
            assert hu.status(pid).document["generation"] == 1
        assert load.running()
        load.process.send_signal(signal.SIGALRM)  # by which it knows that its time is over
        said = load.finish()
    assert "number of failed transactions: 0" in said, said
    log = database.server.log.read_text()
    assert not re.search(r"PANIC|FATAL|terminated by signal|crash", log), log[-3000:]
    database.server.end(signal.SIGINT)
    done = re.search(r"number of transactions actually processed: (\d+)", said)
    assert done is not None
    tell(
        Row(
            "PostgreSQL", postgresql.version, "CVE-2025-12817 (executable)",
            f"{len(sizes)} processes of one thread", "works", journey.longest_break_us(), journey.prepare_s(),
            f"pgbench on {N_CONNECTIONS} connections: {done[1]} transactions; new backends by fork", 0,
        )
    )  # fmt: skip


def until_connected(database: Database) -> list[int]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if len(found := database.backends()) >= N_CONNECTIONS:
            return found
        time.sleep(0.1)
    raise AssertionError("pgbench did not connect")
