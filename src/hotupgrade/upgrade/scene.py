"""A plan's view of a live module: what :class:`hotupgrade.plan.model.Scene` asks for, answered from the process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hotupgrade.target.modules import Module, Scope, tls_block
from hotupgrade.target.process import Process

_STT_GNU_IFUNC = 10


class LiveScene:
    """The process as one of its modules sees it."""

    def __init__(
        self, process: Process, modules: Sequence[Module], module: Module, newcomers: Mapping[str, int] | None = None
    ) -> None:
        """``newcomers``: exported names that no loaded file has, but a new build in the process, or on its way
        there."""
        self._process = process
        self._modules = modules
        self._scope = Scope(modules, module)
        self._tls = tls_block(modules, module)
        self._newcomers = newcomers or {}

    def read(self, address: int, size: int) -> bytes:
        return self._process.read(address, size)

    def resolve(self, symbol: str, version: str) -> int | None:
        found = self._scope.define(symbol, version)
        if found is None:
            return self._newcomers.get(symbol)
        if found.type == _STT_GNU_IFUNC:
            return self._chosen(symbol)
        return found.address

    def _chosen(self, symbol: str) -> int | None:
        """The implementation of an IFUNC, as a module that uses it has it in its table already."""
        for module in self._modules:
            value = module.bound(symbol)
            if value is not None:
                return value
        return None

    @property
    def tls_module(self) -> int | None:
        return self._tls[0]

    @property
    def tls_block(self) -> int | None:
        return self._tls[1]
