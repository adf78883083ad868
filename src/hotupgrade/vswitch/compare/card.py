"""A network card with a switch in it, of the kernel's parts: each wire goes to one of several virtual functions.

In a card the driver's rules say to which function a wire's packets go, and moving them to another is one rule that is
changed.  Here a wire's end and the functions are virtual Ethernet devices, and the rule is a filter of traffic control
that redirects whatever comes in; it is replaced as one.  What a function sends always goes out by its wire.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from hotupgrade.vswitch.compare.network import Network, network
from hotupgrade.vswitch.namespaces import private_namespace

_ALL = ("u32", "match", "u32", "0", "0")  # every packet


@dataclass(frozen=True, slots=True)
class Card:
    """Made by :func:`card`.  ``functions``: a namespace for each, with one interface for each wire."""

    network: Network
    wires: tuple[str, ...]
    functions: tuple[Network, ...]

    def plug(self, function: int) -> None:
        """From now on the packets of all wires go to this function.

        Raises:
            NotNow: the kernel does not take the rules.
        """
        lines = [" ".join(_redirect(wire, _outer(wire, function))) for wire in self.wires]
        script = "".join(f"{line}\n" for line in lines)
        # One program, as each takes milliseconds to start.
        self.network.namespace.run("sh", "-c", 'printf %s "$1" | tc -batch -', "sh", script)


@contextmanager
def card(pairs: Sequence[tuple[str, str]], count: int) -> Iterator[Card]:
    """A card with a wire for each pair: its far end, and the interface that each of ``count`` functions has for it.

    The first function is plugged in.

    Raises:
        NotNow: the kernel lacks a part.
    """
    with ExitStack() as resources:
        wires = {far: f"wire{number}" for number, (far, _) in enumerate(pairs)}
        made = resources.enter_context(network(tuple(wires.items())))
        functions = tuple(Network(resources.enter_context(private_namespace())) for _ in range(count))
        here = made.namespace
        for wire in wires.values():
            here.run("tc", "qdisc", "add", "dev", wire, "clsact")
        for number, function in enumerate(functions):
            for far, inner in pairs:
                outer = _outer(wires[far], number)
                here.connect(outer, function.namespace, inner)
                here.run("tc", "qdisc", "add", "dev", outer, "clsact")
                here.run("tc", *_redirect(outer, wires[far]))
                here.ip("link", "set", outer, "promisc", "on")
                function.namespace.ip("link", "set", inner, "promisc", "on")
        found = Card(made, tuple(wires.values()), functions)
        found.plug(0)
        yield found


def _outer(wire: str, function: int) -> str:
    """The card's side of a function's interface."""
    return f"{wire}-vf{function}"


def _redirect(source: str, target: str) -> tuple[str, ...]:
    """Words for tc(8): whatever comes in at one device goes out by another.  See tc-mirred(8)."""
    place = ("dev", source, "ingress", "protocol", "all", "prio", "1", "handle", "800::1")
    return ("filter", "replace", *place, *_ALL, "action", "mirred", "egress", "redirect", "dev", target)
