"""What the kernel says of the machine."""

from __future__ import annotations

from pathlib import Path


def field(path: str, name: str) -> str:
    """The first value of that name in a file of "name: value" lines, such as /proc/cpuinfo; nothing if there is none.

    Raises:
        OSError: there is no such file.
    """
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
