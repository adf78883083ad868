"""``docs/comparison.md`` from the result document.  Nothing is measured here, and what was not run is not in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hotupgrade.vswitch.compare import applications, beside, distribution, growth, table
from hotupgrade.vswitch.compare.cells import joined
from hotupgrade.vswitch.compare.fresh import PER_SECOND
from hotupgrade.vswitch.compare.hosts import RING
from hotupgrade.vswitch.compare.idle import LIMIT_S
from hotupgrade.vswitch.compare.vhost import PAUSE_S, SILENCE_S

Document = dict[str, Any]

_HEAD = """\
# Ways to bring a new build into a virtual switch, side by side

Private copies of Open vSwitch on one machine, under the same traffic; each way is gone many times, and for the control
nothing is done. `make compare` measures and writes this page; nothing in it is by hand, and what was not run is not in
it. Every single run is in [{data}]({data}), but for the course of delays, which is there of each way's median run.
"""

_WAYS = """\
Break: how long the traffic was interrupted, by captures in front of and behind the switch. Inside: what the polling
thread lost by its own clock, as the tool reports it. Three numbers are median / 99th percentile / maximum; of so few
runs the 99th percentile is the maximum, or near it.

After "stop and start" packets pass as soon as their own flows are there, and here those are the first to come (table 0
is first in a dump); with a controller that brings them last it is as long as with flows that are restored.
"""

_PICTURES = {
    "comparison": "Every run of each way on a logarithmic axis, and what the way takes",
    "delays": "How long packets took around the event, in the median run of each way",
    "growth": "Every break of a hot upgrade, of the loaded switch and of the empty one",
    "distribution": "Which share of the breaks is no longer than what",
}

_APPLICATIONS = """\
Two hosts (network namespaces) talk TCP through the switch; in the middle of each window a way is gone. "Nothing" is the
control: what the machine does by itself. A cell is the median of the runs (smallest to largest).
"""

_RULES = """\
The idle sessions and the new connections pass a stateful rule set as of a security group: a connection may be opened
from the client's side (`ct_state=+new`, `ct(commit)`), and what belongs to one may pass (`ct_state=+est`). A switch
that has forgotten a session takes the client's next segment for a new connection, as the rule set does not ask for a
SYN; the server's it drops. So on every other session the client speaks first, and on the rest the server; an answer may
take {limit:g} s. Each of the {rate} new connections a second needs megaflows of its own.
"""

_GUEST = """\
The guest has two vhost-user ports (virtio-user, split rings in its own memory), listens, and is connected to again by a
switch that was started anew. Packets go round in a closed loop as fast as the core allows that it shares with the
switch's main thread, the tool and whoever else: what is lost is lost once. If none comes for {silence:g} ms the guest
sends again. Its counters are read every {pause:g} ms: so finely is known for how long none came.
"""

_GROWTH = """\
Two switches run, one that holds what the first column says and an empty one; in each turn both are upgraded and rolled
back, while the other stands still. Break: of the polling thread, by its own clock, µs, median / 99th percentile. Ratio:
of the medians, loaded to empty, with its 95 % interval (bootstrap). Promised is that it is no longer by more than 10 %;
where the interval of the first runs cannot tell, there may be more.
Preempted: for how long meanwhile, by the kernel's records, somebody else had the processor of a polling thread of the
loaded switch, in the median; without preemptions: those upgrades in which nobody had, nor that of the thread that leads
the stop. "There" is the switch's own count, before and at the
end: a packet was sent for each megaflow and each connection, and both switches are told to keep what is idle
(`max-idle`, `flow-limit`, `max-revalidator`, a time-out policy).
"""

_PORTS_AND_THREADS = """\
Ports are internal ones (taps), as DPDK in Debian's build has room for 32 of its own; the main thread polls them. There
are at most as many polling threads as cores, for Open vSwitch binds each to one. With as many of them as cores, the
tool and the main thread have to wait for a core that one of them is on, and so may the stop.
"""

_DISTRIBUTION = """\
At full speed ({rate:.1f} million packets a second, DPDK's net_null), {runs} hot upgrades and as many roll-backs, one
after the other: what the polling thread lost, in µs.
"""

_PARTS = """\
The second table has the slowest of them all, with the parts of their breaks: until all busy threads stand, while
state is brought over, while words are replaced, until it is let go. Beside them is what the kernel recorded: for how
long within the break somebody else had the processor of the polling thread (PMD), or of the thread that leads the stop.
Interrupts, and what a hypervisor takes, are in neither: a part that is long without a preemption is theirs.
"""

_LIMITS = """\
- **A small machine.** {cores} cores{hypervisor}: one for the polling thread, and {others} for all else: the switch's
  main thread, the tool, both ends of the traffic and whoever else is on the machine. A way that works much before or
  after its break (a start of DPDK, reading two builds) so disturbs the senders and receivers, too, as it would not on a
  server. What a hypervisor takes nobody in the machine sees.
- **No network card.** Packets come by veth and net_af_packet, with a ring of {ring} frames and copies in the kernel.
  What a ring holds is delayed and not lost; a card has another one. How long a card's own start takes after a restart,
  or a virtual function that is moved from one process to another, is not in these figures and would come on top.
- **Rates** are far below what DPDK can do, except in the distribution: senders, receivers and captures share the one
  core.
- **One switch, one pair of builds**: Open vSwitch {openvswitch} with DPDK {dpdk}; into the build "{old}" comes "{new}".
"""


def markdown(document: Document, pictures: Mapping[str, str] | None = None, data: str = "comparison.json") -> str:
    """The page; ``pictures`` are their paths as seen from the page, by the names in :data:`_PICTURES`, and ``data`` is
    where its results are."""
    shown = {name: f"![{_PICTURES[name]}]({path})\n" for name, path in (pictures or {}).items()}
    parts = document["parts"]
    sections = [_HEAD.format(data=data), *_about(parts)]
    if "ways" in parts:
        sections += _ways(parts["ways"], shown)
    if "applications" in parts:
        found = {key: entry["result"] for key, entry in parts["applications"].items()}
        sections += ["## Applications\n", _APPLICATIONS]
        if {"idle", "fresh"} & set(found):
            sections.append(_RULES.format(limit=LIMIT_S, rate=PER_SECOND))
        if "guest" in found:
            sections.append(_GUEST.format(pause=1000 * PAUSE_S, silence=1000 * SILENCE_S))
        sections.append(applications.markdown(found))
    if "growth" in parts:
        found = {key: entry["result"] for key, entry in parts["growth"].items()}
        sections += ["## How the break of a hot upgrade grows\n", _GROWTH]
        if {"ports", "pmds"} & set(found):
            sections.append(_PORTS_AND_THREADS)
        sections += [*filter(None, [shown.get("growth")]), growth.markdown(found)]
    for entry in parts.get("distribution", {}).values():
        sections += _distribution(entry["result"], shown.get("distribution", ""))
    sections += _limits(parts)
    return "\n".join(sections)


def _about(parts: Document) -> Iterator[str]:
    """The machine, the versions, and which command has measured what."""
    entries = [(part, key, entry) for part, found in parts.items() for key, entry in found.items()]
    if not entries:
        return
    yield "## Measured on\n"
    machines = {_machine(entry["machine"]): None for _, _, entry in entries}
    versions = {_versions(entry["versions"]): None for _, _, entry in entries}
    pieces: dict[tuple[str, str], list[Document]] = {}
    for part, key, entry in entries:
        pieces.setdefault((_what(part, key, entry), entry["command"]), []).append(entry)
    yield "\n".join(f"- {words}" for words in (*machines, *versions)) + "\n"
    heads = ("part", "measured", "took, min", "load before", "hypervisor took, s", "command")
    yield joined(
        heads,
        (
            [
                what,
                found[0]["time"],
                f"{sum(entry['seconds'] for entry in found) / 60:.0f}",
                f"{found[0]['machine']['load']:.1f}",
                f"{sum(entry['stolen_s'] for entry in found):.1f}",
                f"`{command}`",
            ]
            for (what, command), found in pieces.items()
        ),
    )


def _what(part: str, key: str, entry: Document) -> str:
    """What was measured; all ways with as many flows are one thing."""
    if part == "ways":
        return f"{part}, {entry['result']['settings']['flows']:,} flows"
    return part if part == "distribution" else f"{part}, {key}"


def _machine(found: Document) -> str:
    kind = "a virtual machine" if found["hypervisor"] else "a machine"
    memory = f"{found['memory_mib'] / 1024:.0f} GiB"
    return f"{kind} with {found['cores']} cores ({found['processor']}), {memory}, Linux {found['kernel']}"


def _versions(found: Document) -> str:
    switch = f"Open vSwitch {found['openvswitch']} with DPDK {found['dpdk']}"
    tool = f"hotupgrade {found['hotupgrade']} (Python {found['python']})"
    return f"{tool}, {switch}: from the build '{found['old']}' to '{found['new']}'"


def _ways(found: Document, shown: Mapping[str, str]) -> Iterator[str]:
    yield "## The ways\n"
    yield _WAYS
    yield from (shown[name] for name in ("comparison", "delays") if name in shown)
    documents = beside.by_flows(found)
    yield "Median (longest) of all runs, by how many further OpenFlow flows the switch has:\n"
    yield table.overview(documents)
    for flows, result in documents.items():
        settings = result["settings"]
        offered = f"{settings['pps']:,} packets of 64 bytes a second offered, a ring of {settings['ring']} frames"
        yield f"### With {flows:,} further OpenFlow flows\n"
        yield f"{offered}.\n"
        yield table.markdown(result)
        yield "The meter, on pauses made on purpose before it was believed:\n"
        yield "\n".join(f"- {line}" for line in table.meter_lines(result)) + "\n"
    yield "### Where each can be gone\n"
    yield "None of this is measured here, but for DPDK.\n"
    yield table.works_markdown(documents.values())
    ways = [way for result in documents.values() for way in result["ways"]]
    notes = list({f"- {way['title']}: {way['note']}": None for way in ways if way.get("note")})
    for tried in (result["ovs_as_secondary"] for result in documents.values() if "ovs_as_secondary" in result):
        words = (
            "forwards" if tried["forwards"] else "starts, and does not forward" if tried["starts"] else "does not start"
        )
        notes.append(f"- Open vSwitch itself as the secondary process of DPDK {words}: {tried['says']}")
    if notes:
        yield "\n".join(notes) + "\n"


def _distribution(result: Document, shown: str) -> Iterator[str]:
    yield "## Predictability\n"
    count = result["upgrade"]["count"]
    yield _DISTRIBUTION.format(rate=result["packets_per_second"] / 1e6, runs=count)
    if shown:
        yield shown
    yield _PARTS
    yield distribution.markdown(result)
    machine = result["machine"]
    if machine:
        hit = 100 * machine["windows_hit"] / machine["windows"]
        share = 100 * machine["share_taken"]
        yield (
            f"The control: in the {machine['seconds']:.0f} s others had {share:.2f} % of the polling thread's core, in "
            f"{machine['preemptions']:,} preemptions; {hit:.2f} % of {machine['windows']:,} spans as long as a break "
            f"had one in them.\n"
        )


def _limits(parts: Document) -> Iterator[str]:
    entries = [entry for found in parts.values() for entry in found.values()]
    if not entries:
        return
    last = entries[-1]
    cores = last["machine"]["cores"]
    rings = sorted({entry["result"]["settings"]["ring"] for entry in parts.get("ways", {}).values()})
    yield "## What these figures are not\n"
    yield _LIMITS.format(
        cores=cores,
        hypervisor=", given by a hypervisor" if last["machine"]["hypervisor"] else "",
        others=cores - 1 if cores > 2 else "one",
        ring=" and ".join(map(str, rings)) or RING,
        **{name: last["versions"][name] for name in ("openvswitch", "dpdk", "old", "new")},
    )
