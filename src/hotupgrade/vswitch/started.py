"""What is started as a whole or not at all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self


class Started(ABC):
    """A context manager; what was begun is ended when the context is left, and when not all of it could be begun."""

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @abstractmethod
    def _start(self) -> None:
        """Begin everything."""

    @abstractmethod
    def stop(self) -> None:
        """End what was begun, and give it back; may be called at any time, and again."""
