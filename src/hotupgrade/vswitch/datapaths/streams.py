"""Counted traffic between namespaces: who sends what to whom, and what came of it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hotupgrade.errors import NotNow, Reason
from hotupgrade.vswitch.namespaces import Namespace, private_namespace
from hotupgrade.vswitch.processes import DIE_WITH_US, end, in_network_of

# It needs nothing but Python itself, and starts much faster if told so: in a guest that counts.
PROGRAM = ("-S", "-E", "-P", str(Path(__file__).with_name("endpoint.py")))
SETTLE_SECONDS = 0.5  # after the last frame was sent
SETTLE_TRIES = 20


@dataclass
class Endpoint:
    """The controlling side of :mod:`hotupgrade.vswitch.datapaths.endpoint`."""

    name: str
    address: str
    namespace: Namespace  # made with the endpoint, before its device
    device: str = "eth0"
    _process: subprocess.Popen[str] | None = None
    mac: str = ""

    def ask(self, do: str, **words: Any) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **words}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def listen(self) -> None:
        """Start the program; its device is there."""
        command = [*in_network_of(self.namespace.pid), sys.executable, *PROGRAM, self.device]
        self._process = subprocess.Popen(
            [*DIE_WITH_US, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.mac = str(self._answer()["mac"])

    def _answer(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise NotNow(Reason("endpoint", self.name, f"the traffic program of {self.name} ended"))
        found = json.loads(line)
        assert isinstance(found, dict)
        return found

    def _close(self) -> None:
        if self._process is not None:
            end(self._process)  # type: ignore[arg-type]  # text or bytes: nothing is read


@contextmanager
def endpoint(name: str, address: str) -> Iterator[Endpoint]:
    """An endpoint in a namespace of its own."""
    with private_namespace() as namespace:
        made = Endpoint(name, address, namespace)
        try:
            yield made
        finally:
            made._close()


@dataclass(frozen=True)
class Stream:
    """Frames from one endpoint to another, in one direction."""

    number: int
    name: str
    sender: Endpoint
    receiver: Endpoint
    steady: bool  # a fixed number of flows, else each frame is a flow that nobody has seen before


@dataclass(frozen=True, slots=True)
class Tally:
    """A stream, counted at both ends after it was stopped."""

    name: str
    steady: bool
    sent: int
    received: int
    lost: int
    twice: int
    first: tuple[int, ...]
    by_flow: Mapping[int, int]  # frames sent by port that tells the flow


@dataclass
class Traffic:
    """All streams of a lab: started and stopped together."""

    streams: list[Stream] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def steady(self, name: str, one: Endpoint, other: Endpoint, *, flows: int, rate: float, port: int) -> None:
        """The same ``flows`` UDP flows in both directions, ``rate`` frames a second each way: one end has port 9, the
        other ``port`` and those that follow."""
        self._add(f"{name} →", one, other, (9, port), 1, flows, rate)
        self._add(f"{name} ←", other, one, (port, 9), 0, flows, rate)

    def fresh(self, name: str, one: Endpoint, other: Endpoint, *, rate: float, port: int) -> None:
        """Every frame opens a flow of its own, in both directions."""
        self._add(f"{name} →", one, other, (9, port), 1, 0, rate)
        self._add(f"{name} ←", other, one, (port, 9), 0, 0, rate)

    def start(self) -> None:
        for end_ in self._senders():
            end_.ask("start")

    def stop(self) -> tuple[Tally, ...]:
        """Stop sending, wait for what is on its way, and count."""
        for end_ in self._senders():
            end_.ask("stop")
        sent = {end_.name: end_.ask("sent")["streams"] for end_ in self._senders()}
        tallies: tuple[Tally, ...] = ()
        for _ in range(SETTLE_TRIES):
            time.sleep(SETTLE_SECONDS)
            tallies = tuple(_tally(stream, sent[stream.sender.name][str(stream.number)]) for stream in self.streams)
            if not any(tally.lost for tally in tallies):
                break
        return tallies

    def _senders(self) -> list[Endpoint]:
        return list({stream.sender.name: stream.sender for stream in self.streams}.values())

    def _add(
        self,
        name: str,
        sender: Endpoint,
        receiver: Endpoint,
        ports: tuple[int, int],
        varies: int,
        flows: int,
        rate: float,
    ) -> None:
        number = next(self._numbers)
        sender.ask(
            "stream",
            number=number,
            source=sender.address,
            destination=receiver.address,
            to_mac=receiver.mac,
            ports=ports,
            varies=varies,
            flows=flows,
            interval=1 / rate,
        )
        self.streams.append(Stream(number, name, sender, receiver, flows > 0))


def _tally(stream: Stream, sent: Mapping[str, Any]) -> Tally:
    found = stream.receiver.ask("received", number=stream.number, sent=sent["sent"])
    return Tally(
        name=stream.name,
        steady=stream.steady,
        sent=sent["sent"],
        received=found["received"],
        lost=found["lost"],
        twice=found["twice"],
        first=tuple(found["first"]),
        by_flow={int(port): count for port, count in sent["by_flow"].items()},
    )
