"""The control flow of one function and its cold parts: blocks of instructions and where each leads.

What is not known of a jump is answered with too many successors, never with too few: an analysis that joins over all
of them may come to know less, but nothing wrong.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from iced_x86 import Decoder, FlowControl, Instruction, Mnemonic

from hotupgrade.binary.model import U8

CALLS = (FlowControl.CALL, FlowControl.INDIRECT_CALL)
_BRANCHES = (FlowControl.CONDITIONAL_BRANCH, FlowControl.UNCONDITIONAL_BRANCH, FlowControl.XBEGIN_XABORT_XEND)
_ENDS = (
    FlowControl.UNCONDITIONAL_BRANCH,
    FlowControl.INDIRECT_BRANCH,
    FlowControl.RETURN,
    FlowControl.EXCEPTION,
    FlowControl.INTERRUPT,
)


@dataclass(frozen=True, slots=True)
class Block:
    """Instructions that run one after the other; only the last one branches or calls."""

    start: int
    instructions: tuple[Instruction, ...]
    successors: tuple[int, ...]  # starts of blocks
    leaves: tuple[int, ...]  # vaddrs outside the function that a jump, or running on, leads to


@dataclass(frozen=True)
class Graph:
    blocks: Mapping[int, Block]
    entries: tuple[int, ...]  # where calls come in

    @cached_property
    def predecessors(self) -> Mapping[int, list[int]]:
        found: dict[int, list[int]] = {start: [] for start in self.blocks}
        for start, block in self.blocks.items():
            for successor in block.successors:
                found.setdefault(successor, []).append(start)
        return found


class ExhaustedError(Exception):
    """A function is so odd that to follow it takes more than it is worth."""


class Effort:
    """What may be spent on all functions of a build together, so that no file can ask for hours or for all memory."""

    def __init__(self, limit: int) -> None:
        self.left = limit

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise ExhaustedError


@dataclass(frozen=True)
class Surroundings:
    """What must be known of a function besides its instructions."""

    tables: frozenset[int]  # where its switch tables and label addresses lead
    landing_pads: Callable[[int], Iterable[int]]  # by the vaddr of a call: where an exception from it lands
    effort: Effort


def graph_of(image: U8, ranges: Sequence[tuple[int, int]], around: Surroundings, entries: Iterable[int]) -> Graph:
    """``ranges``: half-open vaddr ranges of the function's parts, ascending.  ``entries``: the starts of the parts
    that are called.  Calls end a block, because an exception may leave there.
    """
    starts = [low for low, _ in ranges]

    def inside(vaddr: int) -> bool:
        at = bisect_right(starts, vaddr) - 1
        return at >= 0 and vaddr < ranges[at][1]

    decoded = [list(Decoder(64, image[low:high].tobytes(), ip=low)) for low, high in ranges]
    flows: dict[int, tuple[list[int], list[int]]] = {}
    leaders = {*entries, *(vaddr for vaddr in around.tables if inside(vaddr))}
    for instructions in decoded:
        for instruction in instructions:
            flow = instruction.flow_control
            if flow == FlowControl.NEXT:
                continue
            successors, leaves = _flow(instruction, flow, around, inside)
            around.effort.spend(1 + len(successors) + len(leaves))
            flows[instruction.ip] = successors, leaves
            leaders.update(successors)
            leaders.add(instruction.next_ip)
    blocks: dict[int, Block] = {}
    for (low, high), instructions in zip(ranges, decoded, strict=True):
        leaders.add(low)
        _cut(instructions, high, leaders, flows, blocks, inside)
    return Graph(blocks, tuple(vaddr for vaddr in entries if vaddr in blocks))


def _flow(
    instruction: Instruction, flow: int, around: Surroundings, inside: Callable[[int], bool]
) -> tuple[list[int], list[int]]:
    """(successors within the function, vaddrs outside) of an instruction that does more than run on."""
    candidates: list[int] = []
    if flow not in _ENDS:
        candidates.append(instruction.next_ip)
    if flow in _BRANCHES:
        candidates.append(instruction.near_branch_target)
    elif flow == FlowControl.INDIRECT_BRANCH:
        around.effort.spend(len(around.tables))
        candidates.extend(sorted(around.tables))
    elif flow in CALLS:
        candidates.extend(around.landing_pads(instruction.ip))
    return [vaddr for vaddr in candidates if inside(vaddr)], [vaddr for vaddr in candidates if not inside(vaddr)]


def _cut(
    instructions: Sequence[Instruction],
    stop: int,
    leaders: set[int],
    flows: Mapping[int, tuple[list[int], list[int]]],
    blocks: dict[int, Block],
    inside: Callable[[int], bool],
) -> None:
    """Cuts one part into blocks at ``leaders``."""
    run: list[Instruction] = []
    for instruction in instructions:
        run.append(instruction)
        following = instruction.next_ip
        flow = flows.get(instruction.ip)
        if flow is None and following not in leaders and following < stop:
            continue
        if flow is None:
            flow = ([following], []) if inside(following) else ([], [following])
        blocks[run[0].ip] = Block(run[0].ip, tuple(run), tuple(flow[0]), tuple(flow[1]))
        run = []


def is_padding(block: Block) -> bool:
    """Nothing but no-operations, and what makes a processor stop there if it comes by all the same."""
    return all(
        instruction.flow_control in (FlowControl.EXCEPTION, FlowControl.INTERRUPT)
        or _is_no_operation(instruction)
        or instruction.is_invalid
        for instruction in block.instructions
    )


def _is_no_operation(instruction: Instruction) -> bool:
    if instruction.mnemonic == Mnemonic.XCHG:
        return instruction.op0_register == instruction.op1_register
    return instruction.mnemonic in (Mnemonic.NOP, Mnemonic.ENDBR64)
