"""An OpenFlow controller that only keeps its connections: it greets, answers, and asks whether the switch is there.

``python -m hotupgrade.vswitch.compare.controller PORT`` listens, in a network namespace that nobody else reaches, and
writes one line for everything that happens to a connection.

Source: OpenFlow Switch Specification 1.0.0, sections 5.1 (header), 5.5.1 and 5.5.2.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hotupgrade.vswitch.processes import end, wait_until

if TYPE_CHECKING:
    from hotupgrade.vswitch.compare.network import Network

PORT = 6653
VERSION = 1
HELLO, ECHO_REQUEST, ECHO_REPLY = 0, 2, 3
EVERY_S = 0.2  # as often it asks
_HEADER = struct.Struct("!BBHI")
_START_S = 15.0


@dataclass(frozen=True, slots=True)
class Session:
    """The last connection: its number, of all so far; whether it is there; how often the switch has answered."""

    number: int = 0
    open: bool = False
    answers: int = 0

    def went_on(self, later: Session) -> bool:
        """Whether it is the same connection later, and was used."""
        return self.open and later.open and later.number == self.number and later.answers > self.answers


class Controller:
    """A running controller; made by :func:`controller`."""

    def __init__(self, process: subprocess.Popen[bytes], words: Path) -> None:
        self._process, self._words = process, words

    @staticmethod
    def target(address: str = "127.0.0.1") -> str:
        """As a bridge is told that reaches it by ``address``."""
        return f"tcp:{address}:{PORT}"

    @property
    def listening(self) -> bool:
        return "listening" in self._said()

    def session(self) -> Session:
        return parse(self._said())

    def wait_for_answer(self, seconds: float = _START_S) -> None:
        """Until a switch has answered once more.

        Raises:
            NotNow: none did.
        """
        before = self.session()

        def answered() -> bool:
            now = self.session()
            return now.open and (now.number, now.answers) > (before.number, before.answers)

        wait_until(answered, seconds, "the switch to answer its controller")

    def _said(self) -> str:
        return self._words.read_text(errors="replace")


@contextmanager
def controller(network: Network, words: Path) -> Iterator[Controller]:
    """Run one in the network; what happens is noted in the file ``words``."""
    process = network.start([sys.executable, "-m", __name__, str(PORT)], words)
    try:
        made = Controller(process, words)
        wait_until(lambda: made.listening, _START_S, "the controller to listen")
        yield made
    finally:
        end(process)


def parse(words: str) -> Session:
    """The last connection in what a controller has written."""
    session = Session()
    for line in words.splitlines():
        what, _, number = line.partition(" ")
        if what == "open":
            session = Session(int(number), open=True)
        elif number == str(session.number) and what == "answer":
            session = Session(session.number, session.open, session.answers + 1)
        elif number == str(session.number) and what == "closed":
            session = Session(session.number, open=False, answers=session.answers)
    return session


def message(kind: int, transaction: int = 0, body: bytes = b"") -> bytes:
    return _HEADER.pack(VERSION, kind, _HEADER.size + len(body), transaction) + body


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
    _say("open", number)
    writer.write(message(HELLO))
    asking = asyncio.create_task(_ask(writer))
    try:
        while True:
            _, kind, length, transaction = _HEADER.unpack(await reader.readexactly(_HEADER.size))
            body = await reader.readexactly(length - _HEADER.size)
            if kind == ECHO_REQUEST:
                writer.write(message(ECHO_REPLY, transaction, body))
            elif kind == ECHO_REPLY:
                _say("answer", number)
    except (asyncio.IncompleteReadError, OSError):
        pass  # the switch has gone
    finally:
        asking.cancel()
        writer.close()
        _say("closed", number)


async def _ask(writer: asyncio.StreamWriter) -> None:
    for transaction in itertools.count(1):
        await asyncio.sleep(EVERY_S)
        writer.write(message(ECHO_REQUEST, transaction))


def _say(what: str, number: int) -> None:
    sys.stdout.write(f"{what} {number}\n")
    sys.stdout.flush()


async def _listen(port: int) -> None:
    numbers = itertools.count(1)
    server = await asyncio.start_server(lambda reader, writer: _serve(reader, writer, next(numbers)), "0.0.0.0", port)
    _say("listening", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_listen(int(sys.argv[1])))
