"""A build that was instrumented by a sanitizer needs that sanitizer's run time, from the start of the process on."""

from __future__ import annotations

from collections.abc import Iterator

from hotupgrade.binary.build import Build
from hotupgrade.errors import Reason
from hotupgrade.plan.model import Scene

#: What only the run time of a sanitizer defines; every instrumented module calls it from a constructor.
RUN_TIMES = {
    "__asan_init": "AddressSanitizer",
    "__hwasan_init": "HWAddressSanitizer",
    "__msan_init": "MemorySanitizer",
    "__tsan_init": "ThreadSanitizer",
}


def missing_run_times(new: Build, scene: Scene) -> Iterator[Reason]:
    """Instrumented code reads and writes shadow memory, which is not there in a process that began without."""
    for symbol in new.dynamic_symbols:
        sanitizer = RUN_TIMES.get(symbol.name)
        if sanitizer and not symbol.defined and scene.resolve(symbol.name, symbol.version) is None:
            text = (
                f"{new.label} is instrumented by {sanitizer}, but the process is not: its code would use memory that"
                " is not there; build it without (-fno-sanitize=all)"
            )
            yield Reason("sanitizer-missing", new.label, text)
