"""Network namespaces by the processes that live in them: gone with the last of them, without a name anywhere."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotupgrade.errors import NotNow, Reason
from hotupgrade.vswitch.processes import DIE_WITH_US, end, in_network_of, wait_until

COMMAND_SECONDS = 60.0
QUIET = ("net.ipv6.conf.all.disable_ipv6", "net.ipv6.conf.default.disable_ipv6")


@dataclass(frozen=True, slots=True)
class Namespace:
    """The network namespace that process ``pid`` is in."""

    pid: int

    def run(self, *command: str) -> str:
        """What ``command`` prints when it is run in the namespace.

        Raises:
            NotNow: it failed.
        """
        return run([*in_network_of(self.pid), *command])

    def ip(self, *words: str) -> str:
        return self.run("ip", *words)

    def silence(self) -> None:
        """No IPv6: devices would send packets of their own accord, which nobody counts."""
        self.run("sh", "-c", "for name; do echo 1 >/proc/sys/$(echo $name | tr . /); done", "sh", *QUIET)
        self.ip("link", "set", "lo", "up")

    def connect(self, name: str, other: Namespace, other_name: str) -> None:
        """A cable: a pair of virtual Ethernet devices, both up."""
        self.ip("link", "add", name, "type", "veth", "peer", "name", other_name, "netns", str(other.pid))
        self.ip("link", "set", name, "up")
        other.ip("link", "set", other_name, "up")

    def indexes(self) -> dict[str, int]:
        """Every interface's index: another one means that it was made anew."""
        return {link["ifname"]: link["ifindex"] for link in self._json("ip", "-j", "link", "show")}

    def filters(self, device: str) -> list[dict[str, Any]]:
        """The filters of traffic control where packets come in at ``device``, with their counters."""
        return self._json("tc", "-j", "-s", "filter", "show", "dev", device, "ingress")

    def _json(self, *command: str) -> list[dict[str, Any]]:
        text = self.run(*command)
        found = json.loads(text or "[]")
        if not isinstance(found, list):
            raise NotNow(Reason("tool", command[0], f"{' '.join(command)} printed no list: {text[:200]}"))
        return found


@contextmanager
def private_namespace() -> Iterator[Namespace]:
    """A silent namespace of its own, which a sleeping process keeps."""
    holder = subprocess.Popen([*DIE_WITH_US, "unshare", "--net", "--", "sleep", "infinity"], stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: _namespace_of(holder.pid) != _namespace_of("self"), 20.0, "a network namespace")
        made = Namespace(holder.pid)
        made.silence()
        yield made
    finally:
        end(holder)


def _namespace_of(process: int | str) -> Path:
    return Path(f"/proc/{process}/ns/net").readlink()


def run(command: Sequence[str]) -> str:
    """Standard output.

    Raises:
        NotNow: it failed, or took longer than a minute.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS)
    except (subprocess.TimeoutExpired, OSError) as problem:
        raise NotNow(Reason("tool", command[0], f"{' '.join(command)}: {problem}")) from problem
    if done.returncode != 0:
        words = done.stderr.strip() or f"exit code {done.returncode}"
        raise NotNow(Reason("tool", command[0], f"{' '.join(command)}: {words}"))
    return done.stdout
