"""An OpenFlow controller that only keeps its connection: it greets, answers, and asks whether the switch is there.

It connects to the bridge's management socket, as ovn-controller does, and again whenever it has been cut off.
``python -m hotupgrade.vswitch.compare.controller SOCKET`` writes one line for everything that happens.

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
from dataclasses import dataclass, replace
from pathlib import Path

from hotupgrade.vswitch.processes import DIE_WITH_US, end, wait_until

VERSION = 1
HELLO, ECHO_REQUEST, ECHO_REPLY = 0, 2, 3
EVERY_S = 0.2  # as often it asks
RETRY_S = 0.05
_HEADER = struct.Struct("!BBHI")
_ANSWER_S = 30.0


@dataclass(frozen=True, slots=True)
class Session:
    """The last connection to a socket: its number, of all so far; whether it is there; how often was answered."""

    socket: Path
    number: int = 0
    open: bool = False
    answers: int = 0

    def went_on(self, later: Session) -> bool:
        """Whether it is the same connection later, and was used."""
        same = (self.socket, self.number) == (later.socket, later.number)
        return same and self.open and later.open and later.answers > self.answers


class Controller:
    """A running controller; made by :func:`controller`."""

    def __init__(self, socket: Path, words: Path) -> None:
        self._socket, self._words = socket, words

    def session(self) -> Session:
        return parse(self._socket, self._words.read_text(errors="replace"))

    def wait_for_answer(self, seconds: float = _ANSWER_S) -> None:
        """Until a switch has answered once more.

        Raises:
            NotNow: none did.
        """
        before = self.session()

        def answered() -> bool:
            now = self.session()
            return now.open and (now.number, now.answers) > (before.number, before.answers)

        wait_until(answered, seconds, "the switch to answer its controller")


@contextmanager
def controller(socket: Path, words: Path) -> Iterator[Controller]:
    """Run one; what happens is noted in the file ``words``.  Returns when the switch has answered."""
    with words.open("wb") as output:
        command = [*DIE_WITH_US, sys.executable, "-m", __name__, str(socket)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        made = Controller(socket, words)
        made.wait_for_answer()
        yield made
    finally:
        end(process)


def parse(socket: Path, words: str) -> Session:
    """The last connection in what a controller has written."""
    session = Session(socket)
    for line in words.splitlines():
        what, _, number = line.partition(" ")
        if what == "open":
            session = Session(socket, int(number), open=True)
        elif number == str(session.number) and what == "answer":
            session = replace(session, answers=session.answers + 1)
        elif number == str(session.number) and what == "closed":
            session = replace(session, open=False)
    return session


def message(kind: int, transaction: int = 0, body: bytes = b"") -> bytes:
    return _HEADER.pack(VERSION, kind, _HEADER.size + len(body), transaction) + body


async def _talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
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


async def _keep(socket: str) -> None:
    number = 0
    while True:
        try:
            ends = await asyncio.open_unix_connection(socket)
        except OSError:  # the switch is not there yet, or not any more
            await asyncio.sleep(RETRY_S)
            continue
        number += 1
        await _talk(*ends, number)


if __name__ == "__main__":
    asyncio.run(_keep(sys.argv[1]))
