"""Replaced functions that a thread can be started with, and whether they can ever end."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import iced_x86
import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.plan.copies import present, startup
from hotupgrade.plan.loops.code import Functions
from hotupgrade.plan.model import Comparison, Image

_LEAVES = (iced_x86.FlowControl.RETURN, iced_x86.FlowControl.INDIRECT_BRANCH)
_BRANCHES = (iced_x86.FlowControl.UNCONDITIONAL_BRANCH, iced_x86.FlowControl.CONDITIONAL_BRANCH)


@dataclass(frozen=True, slots=True)
class StartFunction:
    """A function that others may hold the address of, in one image of a process; addresses are absolute."""

    function: str
    home: int  # what stands for it
    ranges: tuple[tuple[int, int], ...]  # [low, high) of its code
    endless: bool


def start_functions(
    images: Sequence[Image], comparisons: Sequence[Comparison], led: Collection[tuple[int, int]]
) -> Iterator[StartFunction]:
    """Those that are replaced, in every image.  ``led``: (index of the image, vaddr) of loops that threads are led out
    of, which are left out."""
    for index, (image, comparison) in enumerate(zip(images, comparisons, strict=True)):
        if image.build.build_id == comparison.new.build_id:
            continue
        functions = Functions(image.build)
        chosen = present(image, index) & comparison.old_replaced & ~startup(image.build) & comparison.plain_old
        for row in np.flatnonzero(chosen).tolist():
            vaddr = int(image.build.entities.address[row])
            if (index, vaddr) in led:
                continue
            ranges: tuple[tuple[int, int], ...] = ((vaddr, vaddr + int(image.build.extent[row])),)
            endless = not _has(image.build, ranges[0], _LEAVES)
            if endless:  # so far, without its pieces, which take time to find
                ranges = functions.code(row).ranges
                endless = _is_endless(image.build, ranges)
            yield StartFunction(
                image.build.entities.names[row],
                _home(images[0], comparisons[0], int(comparison.new_of[row]), image.base + vaddr),
                tuple((image.base + low, image.base + high) for low, high in ranges),
                endless,
            )


def _is_endless(build: Build, ranges: Sequence[tuple[int, int]]) -> bool:
    """Whether no instruction returns, or may jump to another function.  A jump that is computed may."""
    for bounds in ranges:
        for instruction in _instructions(build, bounds):
            if instruction.flow_control in _LEAVES:
                return False
            target = instruction.near_branch_target
            if instruction.flow_control in _BRANCHES and not any(low <= target < high for low, high in ranges):
                return False
    return True


def _has(build: Build, bounds: tuple[int, int], flows: Collection[int]) -> bool:
    return any(instruction.flow_control in flows for instruction in _instructions(build, bounds))


def _instructions(build: Build, bounds: tuple[int, int]) -> iced_x86.Decoder:
    low, high = bounds
    return iced_x86.Decoder(64, build.read(low, high - low), ip=low)


def _home(first: Image, comparison: Comparison, new_row: int, otherwise: int) -> int:
    """The address by which the program knows a function: where the loader's image has it, if it does."""
    row = int(comparison.old_of[new_row]) if new_row >= 0 else -1
    return otherwise if row < 0 else first.base + int(first.build.entities.address[row])
