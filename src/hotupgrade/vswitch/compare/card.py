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
        lines = [" ".join(redirect(wire, _outer(wire, function))) for wire in self.wires]
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
    wires = [f"wire{number}" for number in range(len(pairs))]
    cables = [(far, wire) for (far, _), wire in zip(pairs, wires, strict=True)]
    inner = [name for _, name in pairs]
    with network(cables) as made, card_at(made, wires, inner, count) as found:
        yield found


@contextmanager
def card_at(made: Network, wires: Sequence[str], inner: Sequence[str], count: int) -> Iterator[Card]:
    """A card at wires that are there; ``inner``: what each function's interfaces for them are called.

    Raises:
        NotNow: the kernel lacks a part.
    """
    here = made.namespace
    with ExitStack() as resources:
        functions = tuple(Network(resources.enter_context(private_namespace())) for _ in range(count))
        for wire in wires:
            here.run("tc", "qdisc", "add", "dev", wire, "clsact")
        for number, function in enumerate(functions):
            for wire, name in zip(wires, inner, strict=True):
                outer = _outer(wire, number)
                here.connect(outer, function.namespace, name)
                here.run("tc", "qdisc", "add", "dev", outer, "clsact")
                here.run("tc", *redirect(outer, wire))
                here.ip("link", "set", outer, "promisc", "on")
                function.namespace.ip("link", "set", name, "promisc", "on")
        found = Card(made, tuple(wires), functions)
        found.plug(0)
        yield found


def connect(place: Network, one: str, other: str) -> None:
    """What comes in at one interface goes out by the other, and the reverse; again if one of them is new.

    Raises:
        NotNow: the kernel lacks a part.
    """
    for source, target in ((one, other), (other, one)):
        place.namespace.run("tc", "qdisc", "replace", "dev", source, "clsact")
        place.namespace.run("tc", *redirect(source, target))


def _outer(wire: str, function: int) -> str:
    """The card's side of a function's interface."""
    return f"{wire}-vf{function}"


def redirect(source: str, target: str) -> tuple[str, ...]:
    """Words for tc(8): whatever comes in at one device goes out by another.  See tc-mirred(8)."""
    place = ("dev", source, "ingress", "protocol", "all", "prio", "1", "handle", "800::1")
    return ("filter", "replace", *place, *_ALL, "action", "mirred", "egress", "redirect", "dev", target)
