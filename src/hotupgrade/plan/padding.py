"""Places between two functions where there is nothing but padding."""

from __future__ import annotations

import iced_x86
import numpy as np

from hotupgrade.binary.build import Build

#: Functions are aligned to 64 bytes at the most.
LONGEST = 64
_NOTHING = (iced_x86.Mnemonic.NOP, iced_x86.Mnemonic.INT3)


def is_between_functions(build: Build, vaddr: int) -> bool:
    """Whether a place lies in the padding before a function.

    No program jumps there.  What looks like a jump that does is text behind a function of assembler's: OpenSSL's
    ``RC4_options`` holds "rc4(8x,int)", whose letters are conditional jumps.
    """
    spans = build.function_spans
    at = int(np.searchsorted(spans.start, vaddr, side="right"))
    if not 0 < at < len(spans.start):
        return False
    low, high = int(spans.stop[at - 1]), int(spans.start[at])
    if not low <= vaddr < high or high - low > LONGEST:
        return False
    decoder = iced_x86.Decoder(64, build.read(low, high - low), ip=low)
    return all(instruction.mnemonic in _NOTHING for instruction in decoder)
