"""A network namespace with pairs of virtual interfaces, which outlives a switch that is restarted in it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from hotupgrade.errors import HotUpgradeError
from hotupgrade.vswitch.processes import DIE_WITH_US, end, wait_until

LIFETIME_S = 7200  # should nobody end it


class Network:
    """Pairs ``(near, far)`` of veth interfaces; what is sent into one comes out of the other."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self._pairs = pairs
        self._holder: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        words = [*DIE_WITH_US, "unshare", "--net", "--", "sleep", str(LIFETIME_S)]
        self._holder = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            own = Path("/proc/self/ns/net").readlink()
            wait_until(lambda: Path(f"/proc/{self.pid}/ns/net").readlink() != own, 10, "a network namespace")
            self.run("ip", "link", "set", "lo", "up")
            for pair in self._pairs:
                self.run("ip", "link", "add", pair[0], "type", "veth", "peer", "name", pair[1])
                for name in pair:
                    self.run("sysctl", "-q", "-w", f"net.ipv6.conf.{name}.disable_ipv6=1")
                    self.run("ip", "link", "set", name, "up", "promisc", "on")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._holder is not None:
            end(self._holder)
            self._holder = None

    @property
    def pid(self) -> int:
        """A process that is in it."""
        assert self._holder is not None
        return self._holder.pid

    def inside(self, words: Sequence[str]) -> list[str]:
        """The command that does this in the namespace."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *words]

    def run(self, *words: str) -> str:
        """Raises HotUpgradeError: the command failed."""
        done = subprocess.run(self.inside(words), capture_output=True, text=True, timeout=30)
        if done.returncode:
            raise HotUpgradeError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def start(self, words: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
        """Start a command that ends with us; what it says goes to ``output``."""
        with output.open("wb") as file:
            return subprocess.Popen(
                [*DIE_WITH_US, *self.inside(words)], stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
