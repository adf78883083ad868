"""How a program is told what to do: a JSON document a line on standard input, an answer a line on standard output."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Document = dict[str, Any]
Command = Callable[..., Awaitable[Document]]


def run(commands: Mapping[str, Command]) -> None:
    """All of such a program: it may hold as many connections as the machine allows, and an interrupt is its end."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(obey(commands))


async def obey(commands: Mapping[str, Command]) -> None:
    """Carry out what comes, one after the other, until standard input ends.

    ``{"do": NAME, ...}`` calls the command of that name with the other fields.
    """
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        words = json.loads(line)
        answer = await commands[words.pop("do")](**words)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
