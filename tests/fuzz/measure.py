"""Reads every small file that asks for much, each in a process of its own; prints what that took as JSON."""

from __future__ import annotations

import json
import os
import resource
import signal
import time

from fuzz.bombs import BOMBS
from fuzz.targets import Untouched, planned, read_all
from hotupgrade.binary.build import Build
from hotupgrade.errors import Refused

ADDRESSES = 8 << 30  # three images may span 2 GiB each, of which only what is touched is memory
LIMIT_S = 30


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    print(json.dumps({name: apart(name) for name in BOMBS}))


def apart(name: str) -> object:
    """(outcome, seconds, MiB) of one file; what went wrong, as a text, if it did."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(LIMIT_S)
        try:
            found: object = measured(BOMBS[name]())
        except BaseException as error:
            found = repr(error)
        os.write(theirs, json.dumps(found).encode())
        os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(said) if said else f"ended with {os.waitstatus_to_exitcode(status)}"


def measured(content: bytes) -> tuple[str, float, float]:
    before, begin, outcome = peak(), time.monotonic(), "read"
    try:
        old, new = Build.from_bytes(content, "old"), Build.from_bytes(content + b"\n", "new")
        read_all(old)
        planned(old, new, Untouched(old))
    except Refused as error:
        outcome = error.reasons[0].code
    return outcome, time.monotonic() - begin, peak() - before


def peak() -> float:
    """MiB that were resident at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
