"""memcached: worker threads in libevent's loop, clients that keep their connections."""

from __future__ import annotations

import pwd
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from live.harness import HotUpgrade
from real.harness import Builds, Clients, Journey, Row, Server, check_bounded, free_port, size_of, tell

GET, SET, DELETE, INCREMENT, SASL_AUTH = 0x00, 0x01, 0x04, 0x05, 0x21
OK, AUTHENTICATION_FAILED = 0, 0x20
N_CLIENTS = 12


class Connection:
    """memcached's binary protocol, in full trust of nothing that comes back."""

    def __init__(self, port: int, password: str = "first") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        self.state: dict[str, int] = {}
        self.status = self.ask(SASL_AUTH, b"PLAIN", b"\0somebody\0" + password.encode())[0]

    def ask(self, opcode: int, key: bytes, value: bytes = b"", extras: bytes = b"") -> tuple[int, bytes]:
        length = len(extras) + len(key) + len(value)
        header = struct.pack("!BBHBBHIIQ", 0x80, opcode, len(key), len(extras), 0, 0, length, 0xABCD, 0)
        self.socket.sendall(header + extras + key + value)
        head = self._exactly(24)
        magic, code, key_length, extras_length, _, status, length, opaque, _ = struct.unpack("!BBHBBHIIQ", head)
        assert (magic, code, opaque) == (0x81, opcode, 0xABCD), head
        return status, self._exactly(length)[extras_length + key_length :]

    def _exactly(self, length: int) -> bytes:
        received = b""
        while len(received) < length:
            more = self.socket.recv(length - len(received))
            assert more, "the connection was lost"
            received += more
        return received


def turn(connection: Connection, number: int) -> None:
    """One round: what was stored is what comes back, and nothing is counted twice."""
    assert connection.status == OK
    rounds = connection.state["rounds"] = connection.state.get("rounds", 0) + 1
    key, value = f"key-{number}-{rounds % 50}".encode(), f"{number}:{rounds}:".encode() * (rounds % 200 + 1)
    assert connection.ask(SET, key, value, struct.pack("!II", 0, 0))[0] == OK
    assert connection.ask(GET, key) == (OK, value)
    counted = connection.ask(INCREMENT, f"count-{number}".encode(), extras=struct.pack("!QQI", 1, 1, 0))
    assert counted == (OK, struct.pack("!Q", rounds)), counted
    if rounds % 50 == 0:
        assert connection.ask(DELETE, key)[0] == OK


def started(serve: Callable[..., Server], program: Path, place: Path, monkeypatch) -> tuple[Server, int]:
    """memcached with a password file that names one user twice."""
    user = f"somebody@{socket.gethostname()}"  # the library adds the realm
    (place / "passwords").write_text(f"{user}:first\n{user}:second\n")
    (place / "memcached.conf").write_text("mech_list: plain\n")
    monkeypatch.setenv("MEMCACHED_SASL_PWDB", str(place / "passwords"))
    monkeypatch.setenv("SASL_CONF_PATH", str(place))
    port = free_port()
    user = pwd.getpwuid(0).pw_name
    server = serve(program, "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-S", "-B", "binary", "-t", "4", "-u", user)
    server.wait_for_port(port)
    return server, port


def test_memcached(
    builds: Callable[[str], Builds], serve: Callable[..., Server], place: Path, hu: HotUpgrade, monkeypatch
) -> None:
    """CVE-2026-47783 and -47784: the old code stops at the first line of a user, the new one reads the whole file."""
    memcached = builds("memcached")
    server, port = started(serve, memcached.old("bin/memcached"), place, monkeypatch)

    def observe() -> int:
        return Connection(port, "second").status

    journey = Journey(hu, lambda: [server.pid], [memcached.new("bin/memcached")])
    with Clients(N_CLIENTS, lambda: Connection(port), turn) as clients:
        before = size_of(server.pid)
        journey.there_and_back(observe, AUTHENTICATION_FAILED, OK, clients.moved_on)
        check_bounded(before, size_of(server.pid))
    assert clients.errors() == []
    assert server.end() == 0
    tell(
        Row(
            "memcached", memcached.version, "CVE-2026-47783, CVE-2026-47784 (executable)",
            f"1 process, {before.threads} threads", "works", journey.longest_break_us(), journey.prepare_s(),
            f"{clients.done()} rounds on {N_CLIENTS} connections, the longest {clients.longest_ms():.1f} ms",
            len(clients.errors()),
        )
    )  # fmt: skip
