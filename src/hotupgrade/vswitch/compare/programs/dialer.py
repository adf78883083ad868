"""New TCP connections at a steady rate, each of which is opened, speaks once, is answered and closed.

Run by its module's name in a host's namespace; :mod:`hotupgrade.vswitch.compare.fresh` drives it.  Connections are
begun when they are due, whatever became of those before: a pause of the network is felt by all that fall into it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from collections import Counter
from typing import Any

from hotupgrade.vswitch.compare.programs.commands import run

Document = dict[str, Any]


class Dialer:
    """Both sides: ``answer`` on the server, ``dial`` and ``halt`` on the client."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._dialing: asyncio.Task[None] | None = None
        self._open: set[asyncio.Task[None]] = set()
        self.connect_ms: list[float] = []
        self.failed: Counter[str] = Counter()
        self.begun = 0

    async def answer(self, address: str, port: int) -> Document:
        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                writer.write(await reader.read(1))
                await reader.read(1)  # the client closes first
            writer.close()

        self._server = await asyncio.start_server(accepted, address, port, backlog=4096)
        return {}

    async def dial(self, address: str, port: int, per_second: float, limit_s: float) -> Document:
        """Begin; a connection that is not there, or not answered, within the limit has timed out."""
        self._dialing = asyncio.create_task(self._dial((address, port), 1 / per_second, limit_s))
        return {}

    async def halt(self) -> Document:
        """Begin no more, wait for those that are open, and tell."""
        if self._dialing is not None:
            self._dialing.cancel()
        if self._open:
            await asyncio.wait(self._open)
        return {"begun": self.begun, "connect_ms": self.connect_ms, "failed": dict(self.failed)}

    async def _dial(self, address: tuple[str, int], interval: float, limit_s: float) -> None:
        due = time.monotonic()
        while True:
            self.begun += 1
            task = asyncio.create_task(self._connect(address, limit_s))
            self._open.add(task)
            task.add_done_callback(self._open.discard)
            due += interval
            await asyncio.sleep(max(due - time.monotonic(), 0))

    async def _connect(self, address: tuple[str, int], limit_s: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            with socket.socket() as one:
                one.setblocking(False)
                begin = time.perf_counter()
                async with asyncio.timeout(limit_s):
                    await loop.sock_connect(one, address)
                    took = time.perf_counter() - begin
                    await loop.sock_sendall(one, b"?")
                    if not await loop.sock_recv(one, 1):
                        raise ConnectionResetError
            self.connect_ms.append(took * 1000)
        except TimeoutError as error:  # ours, or the kernel's
            self.failed["timeout" if error.errno is None else errno.errorcode[error.errno]] += 1
        except ConnectionResetError:
            self.failed["reset"] += 1
        except OSError as error:
            self.failed[errno.errorcode.get(error.errno or 0, "error")] += 1


def main() -> None:
    dialer = Dialer()
    run({"answer": dialer.answer, "dial": dialer.dial, "halt": dialer.halt})


if __name__ == "__main__":
    main()
