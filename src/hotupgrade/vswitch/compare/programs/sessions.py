"""One end of many idle TCP sessions.  Either end may speak after the silence, and must get an answer.

Run by its module's name in a host's namespace; :mod:`hotupgrade.vswitch.compare.idle` drives it.  A message is its kind
and the session's number: the opener numbers the sessions, so that both ends name one alike.
"""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from typing import Any

from hotupgrade.vswitch.compare.programs.commands import run

Document = dict[str, Any]
MESSAGE = struct.Struct("!cH")
ASK, ANSWER = b"?", b"!"
#: So many speak at once, and then so long nobody else: all at once would overflow a ring of the switch.
GROUP, PAUSE_S = 25, 0.01


class Session:
    """One session of this end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._answer: asyncio.Future[str] | None = None
        self._broken = False

    async def serve(self, known: dict[int, Session]) -> None:
        """Answer what is asked until the session breaks; ``known`` learns its number."""
        try:
            while message := await self._reader.readexactly(MESSAGE.size):
                kind, number = MESSAGE.unpack(message)
                known.setdefault(number, self)
                if kind == ASK:
                    self._writer.write(MESSAGE.pack(ANSWER, number))
                else:
                    self._settle("answered")
        except (OSError, asyncio.IncompleteReadError):
            self._broken = True
            self._settle("reset")

    async def ask(self, number: int, limit_s: float) -> str:
        """``answered``, ``reset``, or ``hung`` if neither comes within the limit."""
        if self._broken:
            return "reset"
        self._answer = asyncio.get_running_loop().create_future()
        self._writer.write(MESSAGE.pack(ASK, number))
        try:
            return await asyncio.wait_for(self._answer, limit_s)
        except TimeoutError:
            return "hung"
        finally:
            self._answer = None

    def _settle(self, outcome: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(outcome)


class End:
    """All sessions of this end, by number."""

    def __init__(self) -> None:
        self.sessions: dict[int, Session] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, address: str, port: int) -> Document:
        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await Session(reader, writer).serve(self.sessions)

        self._server = await asyncio.start_server(accepted, address, port, backlog=1024)
        return {}

    async def open(self, address: str, port: int, count: int) -> Document:
        """``count`` further sessions, each of which has spoken once."""
        first = len(self.sessions)
        for number in range(first, first + count):
            reader, writer = await asyncio.open_connection(address, port)
            session = self.sessions[number] = Session(reader, writer)
            task = asyncio.create_task(session.serve(self.sessions))
            self._tasks.add(task)
        return {"open": len(self.sessions)}

    async def ask(self, first: int, step: int, limit_s: float) -> Document:
        """Speak on every ``step``-th session from ``first`` on; how many ended how."""
        chosen = [number for number in sorted(self.sessions) if number % step == first]
        asked = []
        for index, number in enumerate(chosen):
            asked.append(asyncio.create_task(self.sessions[number].ask(number, limit_s)))
            if index % GROUP == GROUP - 1:
                await asyncio.sleep(PAUSE_S)
        outcomes = Counter(await asyncio.gather(*asked))
        return {name: outcomes[name] for name in ("answered", "reset", "hung")}


def main() -> None:
    end = End()
    run({"listen": end.listen, "open": end.open, "ask": end.ask})


if __name__ == "__main__":
    main()
