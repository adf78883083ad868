"""A controller that keeps its connection, on a real socket."""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path

import pytest

from hotupgrade.vswitch.compare import controller
from hotupgrade.vswitch.compare.controller import ECHO_REPLY, ECHO_REQUEST, HELLO, Session, message, parse

SOCKET = Path("/run/br0.mgmt")


def test_what_was_written() -> None:
    assert parse(SOCKET, "") == Session(SOCKET)
    first = "open 1\nanswer 1\nanswer 1\n"
    assert parse(SOCKET, first) == Session(SOCKET, 1, True, 2)
    assert parse(SOCKET, first + "closed 1\n") == Session(SOCKET, 1, False, 2)
    assert parse(SOCKET, first + "closed 1\nopen 2\nanswer 2\n") == Session(SOCKET, 2, True, 1)


@pytest.mark.parametrize(
    ("later", "kept"),
    [
        (Session(SOCKET, 1, True, 3), True),
        (Session(SOCKET, 1, True, 2), False),  # nothing shows that it is still used
        (Session(SOCKET, 1, False, 3), False),
        (Session(SOCKET, 2, True, 3), False),
        (Session(SOCKET.with_name("br1.mgmt"), 1, True, 3), False),  # to another switch
    ],
)
def test_a_connection_that_went_on(later: Session, kept: bool) -> None:
    assert Session(SOCKET, 1, True, 2).went_on(later) is kept


def test_never_connected_is_not_kept() -> None:
    assert not Session(SOCKET).went_on(Session(SOCKET))


def test_messages() -> None:
    assert message(HELLO) == bytes.fromhex("0100000800000000")
    assert message(ECHO_REQUEST, 7, b"ab") == bytes.fromhex("0102000a00000007") + b"ab"


def test_greets_asks_and_answers_and_comes_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[str] = []
    monkeypatch.setattr(controller, "EVERY_S", 0.01)
    monkeypatch.setattr(controller, "_say", lambda what, number: said.append(f"{what} {number}"))

    async def switch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await _read(reader) == (HELLO, 0, b"")
        body = os.urandom(100)
        writer.write(message(ECHO_REQUEST, 9, body)[:50])  # in two pieces
        await asyncio.sleep(0.01)
        writer.write(message(ECHO_REQUEST, 9, body)[50:])
        seen = [await _read(reader) for _ in range(5)]
        assert (ECHO_REPLY, 9, body) in seen
        asked = [transaction for kind, transaction, _ in seen if kind == ECHO_REQUEST]
        assert asked == list(range(1, len(asked) + 1))
        writer.write(message(ECHO_REPLY, asked[0]))
        await writer.drain()
        writer.close()

    async def talk() -> None:
        keeping = asyncio.create_task(controller._keep(str(tmp_path / "socket")))
        await asyncio.sleep(0.1)  # nobody is there yet
        async with await asyncio.start_unix_server(switch, tmp_path / "socket"):
            while "closed 2" not in said:
                await asyncio.sleep(0.01)
        keeping.cancel()

    asyncio.run(asyncio.wait_for(talk(), 20))
    assert said[:6] == ["open 1", "answer 1", "closed 1", "open 2", "answer 2", "closed 2"]


async def _read(reader: asyncio.StreamReader) -> tuple[int, int, bytes]:
    version, kind, length, transaction = struct.unpack("!BBHI", await reader.readexactly(8))
    assert version == 1
    return kind, transaction, await reader.readexactly(length - 8)
