"""The processors that this process may use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def own_cores_kept() -> Iterator[None]:
    """A stop ties the tool to cores without busy threads, as a command of its own may; what measures goes on."""
    cores = os.sched_getaffinity(0)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
