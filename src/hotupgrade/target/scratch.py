"""Working memory in the target for the time of one upgrade: tables that the agent reads."""

from __future__ import annotations

from hotupgrade.errors import HotUpgradeError, NotNow
from hotupgrade.target.agent import (
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    SYS_MMAP,
    SYS_MUNMAP,
    Agent,
    system_call,
)
from hotupgrade.target.maps import PAGE


class Scratch:
    """Anonymous memory, mapped on entry and given back on exit; a bump allocator in between."""

    def __init__(self, agent: Agent, size: int) -> None:
        self._agent = agent
        self._size = -(-size // PAGE) * PAGE
        self._base = self._next = 0

    def __enter__(self) -> Scratch:
        operation = system_call(SYS_MMAP, 0, self._size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        results = self._agent.run([operation])
        self._agent.check([operation], results)
        self._base = self._next = results[0]
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._agent.run([system_call(SYS_MUNMAP, self._base, self._size, fatal=False)])
        except NotNow:
            return  # the process is gone, or a few pages stay with it

    def reserve(self, size: int) -> int:
        """The address of ``size`` bytes, aligned to a cache line."""
        at = -(-self._next // 64) * 64
        if at + size > self._base + self._size:
            raise HotUpgradeError(f"the working memory of {self._size} bytes is too small")
        self._next = at + size
        return at

    def put(self, content: bytes) -> int:
        """Store bytes; returns their address."""
        at = self.reserve(len(content))
        if content:
            self._agent.process.write(at, content)
        return at
