"""redis: one thread that serves, helpers that sleep, its own benchmark as the load."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

from live.harness import HotUpgrade, Size
from real.harness import Builds, Clients, Journey, Row, Server, Tool, check_bounded, free_port, size_of, tell

N_CLIENTS = 8
SPLIT, WHOLE = b"ERR X\r", b"ERR X  +INJECTED\r"


class Connection:
    """As much of redis's protocol as is needed."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 20)
        self.file = self.socket.makefile("rb")
        self.rounds = 0

    def ask(self, *words: bytes | str) -> bytes | int | None:
        parts = [word.encode() if isinstance(word, str) else word for word in words]
        self.socket.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts))
        line = self.line()
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            length = int(rest)
            return None if length < 0 else self.file.read(length + 2)[:-2]
        assert kind in b"+:", line
        return int(rest) if kind == b":" else rest

    def line(self) -> bytes:
        line = self.file.readline()
        assert line.endswith(b"\n"), "the connection was lost"
        return line


def turn(connection: Connection, number: int) -> None:
    connection.rounds += 1
    key, value = f"key-{number}-{connection.rounds % 20}", f"{connection.rounds}," * (connection.rounds % 300)
    assert connection.ask("SET", key, value) == b"OK"
    assert connection.ask("GET", key) == value.encode()
    assert connection.ask("INCR", f"count-{number}") == connection.rounds
    pushed = connection.ask("RPUSH", f"list-{number}", value)
    assert pushed == 1, pushed
    assert connection.ask("LPOP", f"list-{number}") == value.encode()
    assert connection.ask("EVAL", "return redis.call('incr', KEYS[1])", "1", f"lua-{number}") == connection.rounds


def injected(port: int) -> bytes:
    """What a client gets to read first when a script puts a line end into an error."""
    connection = Connection(port)
    script = b"error(redis.error_reply('X\\r\\n+INJECTED'))"
    connection.socket.sendall(b"*3\r\n$4\r\nEVAL\r\n$%d\r\n%s\r\n$1\r\n0\r\n" % (len(script), script))
    return connection.line()[1 : len(WHOLE) + 1].partition(b" script:")[0]


def settled(server: Server) -> Size:
    """Its size when everybody is connected, and its own threads have come."""
    time.sleep(5)
    return size_of(server.pid)


def test_redis(builds: Callable[[str], Builds], serve: Callable[..., Server], place: Path, hu: HotUpgrade) -> None:
    """CVE-2025-67733: line ends in error replies split the protocol."""
    redis = builds("redis")
    port = free_port()
    words = ["--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--dir", place]
    server = serve(redis.old("bin/redis-server"), *map(str, words))
    server.wait_for_port(port)

    def observe() -> bool:
        """Does the whole error come in one line?"""
        return injected(port).startswith(b"ERR X  +INJECTED")

    bench = [
        redis.old("bin/redis-benchmark"),
        "-p",
        str(port),
        "-c",
        "20",
        "-n",
        "100000000",
        "-t",
        "set,get,lpush,lpop",
    ]
    journey = Journey(hu, lambda: [server.pid], [redis.new("bin/redis-server")])
    with Clients(N_CLIENTS, lambda: Connection(port), turn) as clients, Tool(*bench, "-q") as load:
        before = settled(server)
        journey.there_and_back(observe, False, True, clients.moved_on)
        assert load.running()
        said = load.stop()
        check_bounded(before, size_of(server.pid), resident_kb=512 << 10)
    assert clients.errors() == []
    assert "Error" not in said, said[-500:]
    assert server.end() == 0
    assert "crash" not in server.log.read_text().lower()
    tell(
        Row(
            "redis", redis.version, "CVE-2025-67733 and two more (executable)",
            f"1 process, {before.threads} threads", "works", journey.longest_break_us(), journey.prepare_s(),
            f"redis-benchmark on 20 connections; {clients.done()} checked rounds on {N_CLIENTS}, "
            f"the longest {clients.longest_ms():.1f} ms",
            len(clients.errors()),
        )
    )  # fmt: skip
