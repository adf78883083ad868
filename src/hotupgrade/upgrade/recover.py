"""Put right what a tool that was killed left in the target: nothing of it is in force, as the ledger tells."""

from __future__ import annotations

import contextlib
from pathlib import Path

from hotupgrade.target.agent import NAME, SYS_CLOSE, SYS_MUNMAP, Agent, Operation, system_call
from hotupgrade.target.images import ANNEX
from hotupgrade.target.maps import Mapping
from hotupgrade.target.modules import Module
from hotupgrade.target.scratch import leftovers
from hotupgrade.upgrade.ledger import Ledger
from hotupgrade.upgrade.unwinding import release_frames

LEDGER_NAME = f"{NAME}-ledger"
_BATCH = 12


def recover(agent: Agent, ledger: Ledger, modules: tuple[Module, ...]) -> int:
    """Give back orphaned descriptors, working memory, ledgers and images; returns how many things were put right."""
    operations = [*_descriptors(agent), *leftovers(agent.process), *_ledgers(agent), *_images(agent, ledger, modules)]
    for start in range(0, len(operations), _BATCH):
        agent.run(operations[start : start + _BATCH])
    return len(operations)


def _descriptors(agent: Agent) -> list[Operation]:
    found = []
    for entry in Path(f"/proc/{agent.process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(entry.readlink()).startswith(f"/memfd:{NAME}"):
                found.append(system_call(SYS_CLOSE, int(entry.name), fatal=False))
    return found


def _ledgers(agent: Agent) -> list[Operation]:
    current = agent.get("ledger")
    return [
        system_call(SYS_MUNMAP, m.start, m.size, fatal=False)
        for m in agent.process.maps()
        if m.path == f"/memfd:{LEDGER_NAME} (deleted)" and not m.start <= current < m.end
    ]


def _images(agent: Agent, ledger: Ledger, modules: tuple[Module, ...]) -> list[Operation]:
    """Images that were mapped for a commit that never came."""
    process = agent.process
    known = {image.start for module in ledger.modules for image in module.images}
    known |= {start for generation in ledger.generations for start, _ in generation.stubs}
    known |= {start for start, _ in ledger.unsettled.stubs} if ledger.unsettled else set()
    orphans: dict[tuple[int, str], list[Mapping]] = {}
    for mapping in process.maps():
        if mapping.path.startswith(f"/memfd:{NAME}:"):
            orphans.setdefault((mapping.inode, mapping.path), []).append(mapping)
    operations: list[Operation] = []
    for parts in orphans.values():
        start, end = parts[0].start, parts[-1].end
        if start in known or parts[0].offset != 0:
            continue
        released = release_frames(process, modules, start, end - ANNEX)
        if released is None:
            continue  # who unwinds may still look into it
        operations += released
        operations.append(system_call(SYS_MUNMAP, start, end - start, fatal=False))
    return operations
