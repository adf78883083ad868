"""A scene that reads each page of the process once."""

from __future__ import annotations

from hotupgrade.plan.model import Scene

_PAGE = 4096


class Snapshot:
    """Answers from memory what was asked before; code and constants are assumed not to change meanwhile."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._pages: dict[int, bytes] = {}
        self._symbols: dict[tuple[str, str], int | None] = {}

    def read(self, address: int, size: int) -> bytes:
        first, last = address // _PAGE, (address + size - 1) // _PAGE
        if first == last:
            return self._page(first)[address % _PAGE : address % _PAGE + size]
        start = address - first * _PAGE
        return b"".join(self._page(page) for page in range(first, last + 1))[start : start + size]

    def resolve(self, symbol: str, version: str) -> int | None:
        key = (symbol, version)
        if key not in self._symbols:
            self._symbols[key] = self._scene.resolve(symbol, version)
        return self._symbols[key]

    @property
    def tls_module(self) -> int | None:
        return self._scene.tls_module

    @property
    def tls_block(self) -> int | None:
        return self._scene.tls_block

    def _page(self, page: int) -> bytes:
        content = self._pages.get(page)
        if content is None:
            content = self._pages[page] = self._scene.read(page * _PAGE, _PAGE)
        return content
