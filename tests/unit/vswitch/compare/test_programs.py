"""The programs of the hosts, both ends in one process on the loopback interface."""

from __future__ import annotations

import asyncio

from hotupgrade.vswitch.compare.programs.dialer import Dialer
from hotupgrade.vswitch.compare.programs.sessions import End

HERE = "127.0.0.1"


async def _free_port() -> int:
    server = await asyncio.start_server(lambda *_: None, HERE, 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port


def test_either_end_of_a_session_may_speak() -> None:
    async def talk() -> None:
        one, other, port = End(), End(), await _free_port()
        await one.listen(HERE, port)
        assert await other.open(HERE, port, 60) == {"open": 60}
        assert await other.ask(0, 1, 5) == {"answered": 60, "reset": 0, "hung": 0}
        assert await one.ask(1, 2, 5) == {"answered": 30, "reset": 0, "hung": 0}, "it has learnt every number"

    asyncio.run(talk())


def test_sessions_that_hang_and_sessions_that_are_reset() -> None:
    async def talk() -> None:
        port = await _free_port()
        writers: list[asyncio.StreamWriter] = []

        async def mute(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)

        server = await asyncio.start_server(mute, HERE, port)
        end = End()
        await end.open(HERE, port, 4)
        assert await end.ask(0, 1, 0.05) == {"answered": 0, "reset": 0, "hung": 4}
        for writer in writers[:3]:
            writer.transport.abort()
        await asyncio.sleep(0.05)
        assert await end.ask(0, 1, 0.05) == {"answered": 0, "reset": 3, "hung": 1}
        server.close()
        writers[3].transport.abort()

    asyncio.run(talk())


def test_connections_at_a_rate() -> None:
    async def talk() -> None:
        server, client, port = Dialer(), Dialer(), await _free_port()
        await server.answer(HERE, port)
        await client.dial(HERE, port, 200, 5)
        await asyncio.sleep(0.3)
        found = await client.halt()
        assert found["failed"] == {}
        assert 5 < len(found["connect_ms"]) == found["begun"] < 100
        assert all(0 < value < 5000 for value in found["connect_ms"])

    asyncio.run(talk())


def test_connections_that_fail() -> None:
    async def talk() -> None:
        port = await _free_port()
        client = Dialer()
        await client.dial(HERE, port, 100, 5)
        await asyncio.sleep(0.05)
        found = await client.halt()
        assert found["connect_ms"] == []
        assert found["failed"] == {"ECONNREFUSED": found["begun"]}

        async def rude(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        async def mute(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            await reader.read()

        for handler, kind in ((rude, "reset"), (mute, "timeout")):
            server = await asyncio.start_server(handler, HERE, port)
            client = Dialer()
            await client.dial(HERE, port, 100, 0.2)
            await asyncio.sleep(0.05)
            found = await client.halt()
            assert found["failed"] == {kind: found["begun"]}
            server.close()

    asyncio.run(talk())
