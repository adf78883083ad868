"""A controller that keeps its connection, on a real socket."""

from __future__ import annotations

import asyncio
import os
import struct

import pytest

from hotupgrade.vswitch.compare import controller
from hotupgrade.vswitch.compare.controller import ECHO_REPLY, ECHO_REQUEST, HELLO, Session, message, parse


def test_what_was_written() -> None:
    assert parse("") == Session()
    assert parse("listening 6653\n") == Session()
    first = "listening 6653\nopen 1\nanswer 1\nanswer 1\n"
    assert parse(first) == Session(1, True, 2)
    assert parse(first + "closed 1\n") == Session(1, False, 2)
    # The old connection may be missed after the new one is there.
    assert parse(first + "open 2\nanswer 1\nclosed 1\nanswer 2\n") == Session(2, True, 1)


@pytest.mark.parametrize(
    ("later", "kept"),
    [
        (Session(1, True, 3), True),
        (Session(1, True, 2), False),  # nothing shows that it is still used
        (Session(1, False, 3), False),
        (Session(2, True, 3), False),
    ],
)
def test_a_connection_that_went_on(later: Session, kept: bool) -> None:
    assert Session(1, True, 2).went_on(later) is kept


def test_never_connected_is_not_kept() -> None:
    assert not Session().went_on(Session())


def test_messages() -> None:
    assert message(HELLO) == bytes.fromhex("0100000800000000")
    assert message(ECHO_REQUEST, 7, b"ab") == bytes.fromhex("0102000a00000007") + b"ab"


def test_greets_asks_and_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(controller, "EVERY_S", 0.01)
    monkeypatch.setattr(controller, "_say", lambda what, number: said.append(f"{what} {number}"))

    async def talk() -> None:
        server = await asyncio.start_server(lambda *ends: controller._serve(*ends, 1), "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
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
            while "answer 1" not in said:
                await asyncio.sleep(0.01)
            writer.close()
            while "closed 1" not in said:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(talk(), 20))
    assert said == ["open 1", "answer 1", "closed 1"]


async def _read(reader: asyncio.StreamReader) -> tuple[int, int, bytes]:
    version, kind, length, transaction = struct.unpack("!BBHI", await reader.readexactly(8))
    assert version == 1
    return kind, transaction, await reader.readexactly(length - 8)
