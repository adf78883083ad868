"""Which functions never return: what stands behind a call of one belongs to something else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from iced_x86 import Decoder, FlowControl

from hotupgrade.binary.model import Kind

if TYPE_CHECKING:
    from hotupgrade.binary.build import Build

# Of the C library, the C++ run time and the compiler's own: what their headers declare so.
NAMES = frozenset(
    (
        *("abort", "exit", "_exit", "_Exit", "quick_exit", "pthread_exit", "thrd_exit"),
        *("longjmp", "siglongjmp", "_longjmp", "__longjmp_chk", "err", "errx", "verr", "verrx"),
        *("__assert_fail", "__assert_perror_fail", "__assert", "__stack_chk_fail", "__chk_fail", "__fortify_fail"),
        *("_Unwind_Resume", "__cxa_throw", "__cxa_rethrow", "__cxa_bad_cast", "__cxa_bad_typeid"),
        *("__cxa_throw_bad_array_new_length", "__cxa_pure_virtual", "__cxa_deleted_virtual", "__cxa_call_unexpected"),
        *("__cxa_call_terminate", "_ZSt9terminatev", "_ZSt10unexpectedv", "__clang_call_terminate"),
    )
)
THROWS = re.compile(r"_ZSt\d+__throw_")  # std::__throw_out_of_range and its like

_FAR = 2000  # instructions to look at
_LONGEST = 15  # bytes of an instruction
_DEEP = 8  # functions within functions


class Returns:
    """Answers for one build; in doubt, a function returns."""

    def __init__(self, build: Build) -> None:
        self._build = build
        self._known: dict[int, bool] = {}
        self._names = {slot.vaddr: slot.symbol for slot in build.slots}
        self._names |= {stub: build.slots[index].symbol for stub, index in build.plt_slot.items()}

    def __call__(self, vaddr: int, depth: int = 0) -> bool:
        """``vaddr`` is what a call leads to: a function, a PLT stub, or the GOT slot that it goes through."""
        known = self._known.get(vaddr)
        if known is None:
            self._known[vaddr] = True  # for those that call themselves on the way
            known = self._known[vaddr] = self._find(vaddr, depth)
        return known

    def _find(self, vaddr: int, depth: int) -> bool:
        build = self._build
        name = self._names.get(vaddr, "")
        row = build.by_name.get(name) if name else build.row_at(vaddr)
        if name in NAMES or THROWS.match(name):
            return False
        if row is None or build.entities.kind[row] != Kind.FUNCTION or depth > _DEEP:
            return True
        start = int(build.entities.address[row])
        if not name and start != vaddr:
            return True  # somewhere within it
        return NAMES.isdisjoint(build.entities.aliases[row]) and self._walk(start, int(build.extent[row]), depth)

    def _walk(self, start: int, size: int, depth: int) -> bool:
        """Whether any way through a function comes to its end, or may."""
        work, seen, stop = [start], set[int](), start + size
        while work:
            vaddr = work.pop()
            near = min(stop, vaddr + _LONGEST * (_FAR + 1))  # no copy of all the rest for each branch
            for instruction in Decoder(64, self._build.image[vaddr:near].tobytes(), ip=vaddr):
                if instruction.ip in seen:
                    break
                seen.add(instruction.ip)
                flow = instruction.flow_control
                if flow in _LEAVES or len(seen) > _FAR:
                    return True
                if flow in _BRANCHES:
                    target = instruction.near_branch_target
                    if start <= target < stop:
                        work.append(target)
                    elif self(target, depth + 1):
                        return True
                if flow in _STOPS:
                    break
                if flow == FlowControl.CALL and not self(instruction.near_branch_target, depth + 1):
                    break
            else:
                return True  # runs on into what follows
        return False


_LEAVES = (FlowControl.RETURN, FlowControl.INDIRECT_BRANCH, FlowControl.XBEGIN_XABORT_XEND)
_BRANCHES = (FlowControl.CONDITIONAL_BRANCH, FlowControl.UNCONDITIONAL_BRANCH)
_STOPS = (FlowControl.UNCONDITIONAL_BRANCH, FlowControl.EXCEPTION, FlowControl.INTERRUPT)
