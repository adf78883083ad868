"""One end of the traffic: a program in a namespace that sends numbered frames and counts those that come.

Run as ``python endpoint.py DEVICE``, with one JSON document a line on standard input
(:class:`hotupgrade.vswitch.datapaths.streams.Endpoint` writes them) and one answer a line on standard output.  It works
below the kernel's protocols: nothing is answered, nothing resent, so a frame that is lost is lost for good.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import struct
import sys
import time
from dataclasses import dataclass, field
from typing import Any

MAGIC = b"hotup"
PAYLOAD = struct.Struct("!5sBQ")
ETHERNET, IPV4 = 14, 0x0800
UDP = 17
RECEIVE_BUFFER = 64 << 20
MOST_AT_ONCE = 64
SO_RCVBUFFORCE = 33


@dataclass
class Sending:
    """A stream on its way out.  Which flow a frame belongs to follows from its number."""

    number: int
    source: str
    destination: str
    to_mac: bytes
    ports: tuple[int, int]
    varies: int  # which of the two ports: 0 or 1
    flows: int  # how many ports; 0: each frame has a port of its own
    interval: float
    sent: int = 0
    by_flow: dict[int, int] = field(default_factory=dict)
    due: float = 0.0

    def frame(self, from_mac: bytes) -> bytes:
        ports = list(self.ports)
        ports[self.varies] += self.sent % self.flows if self.flows else self.sent
        payload = PAYLOAD.pack(MAGIC, self.number, self.sent)
        udp = struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload
        return self.to_mac + from_mac + struct.pack("!H", IPV4) + _ipv4(self.source, self.destination, UDP, udp)

    def count(self) -> None:
        if self.flows:
            port = self.ports[self.varies] + self.sent % self.flows
            self.by_flow[port] = self.by_flow.get(port, 0) + 1
        self.sent += 1


@dataclass
class Received:
    """A stream as it came in."""

    numbers: set[int] = field(default_factory=set)
    twice: int = 0

    def count(self, number: int) -> None:
        self.twice += number in self.numbers
        self.numbers.add(number)

    def missing(self, sent: int) -> list[int]:
        return [number for number in range(sent) if number not in self.numbers]


def _ipv4(source: str, destination: str, protocol: int, payload: bytes) -> bytes:
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0x4000, 64, protocol, 0)
    total = sum(struct.unpack("!10H", head + addresses))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack("!H", ~total & 0xFFFF) + addresses + payload


class Endpoint:
    """The loop: commands, frames that come, frames that are due."""

    def __init__(self, device: str) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(IPV4))
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        self.socket.bind((device, IPV4))
        self.socket.setblocking(False)
        self.mac: bytes = self.socket.getsockname()[4]
        self.streams: list[Sending] = []
        self.received: dict[int, Received] = {}
        self.sending = False
        self.refused = 0

    def run(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self.socket, selectors.EVENT_READ, self._receive)
        selector.register(sys.stdin, selectors.EVENT_READ, self._command)
        self._say({"mac": self.mac.hex(":")})
        while True:
            for key, _ in selector.select(self._patience()):
                if key.data() is False:
                    return
            self._send()

    def _patience(self) -> float | None:
        if not self.sending or not self.streams:
            return None
        return max(0.0, min(stream.due for stream in self.streams) - time.monotonic())

    def _send(self) -> None:
        now = time.monotonic()
        for stream in self.streams if self.sending else ():
            if stream.due > now:
                continue
            try:
                self.socket.send(stream.frame(self.mac))
                stream.count()
            except OSError:  # the device's queue is full: this frame was not sent, and comes again
                self.refused += 1
            stream.due = max(stream.due + stream.interval, now)

    def _receive(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(MOST_AT_ONCE):
                frame, address = self.socket.recvfrom(2048)
                at = frame.find(MAGIC, ETHERNET)
                if address[2] != socket.PACKET_OUTGOING and at >= 0:
                    _, number, count = PAYLOAD.unpack_from(frame, at)
                    self.received.setdefault(number, Received()).count(count)

    def _command(self) -> bool:
        line = sys.stdin.readline()
        if not line:
            return False
        request = json.loads(line)
        self._say(getattr(self, f"do_{request.pop('do')}")(**request))
        return True

    def _say(self, answer: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

    # Commands.

    def do_stream(self, **words: Any) -> dict[str, Any]:
        """Add a stream; it is sent from the next ``start``."""
        words["to_mac"] = bytes.fromhex(words["to_mac"].replace(":", ""))
        self.streams.append(Sending(**{**words, "ports": tuple(words["ports"])}))
        return {}

    def do_start(self) -> dict[str, Any]:
        begin = time.monotonic()
        for stream in self.streams:
            stream.due = begin
        self.sending = True
        return {}

    def do_stop(self) -> dict[str, Any]:
        self.sending = False
        return {}

    def do_packet(self, to_mac: str, source: str, destination: str, protocol: int) -> dict[str, Any]:
        """One packet that belongs to no stream."""
        to = bytes.fromhex(to_mac.replace(":", ""))
        packet = _ipv4(source, destination, protocol, b"\0" * 26)
        self.socket.send(to + self.mac + struct.pack("!H", IPV4) + packet)
        return {}

    def do_sent(self) -> dict[str, Any]:
        """By stream: how many, and by port how many."""
        sent = {stream.number: {"sent": stream.sent, "by_flow": stream.by_flow} for stream in self.streams}
        return {"streams": sent, "refused": self.refused}

    def do_received(self, number: int, sent: int) -> dict[str, Any]:
        """What came of a stream of which ``sent`` frames were sent."""
        stream = self.received.get(number, Received())
        missing = stream.missing(sent)
        return {"received": len(stream.numbers), "twice": stream.twice, "lost": len(missing), "first": missing[:10]}


if __name__ == "__main__":
    Endpoint(sys.argv[1]).run()
