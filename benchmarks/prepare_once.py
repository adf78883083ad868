"""One preparation in a process of its own, as the command line makes it, with a cache of the caller's choice.

usage: prepare_once.py PID CACHE_DIRECTORY NEW...     (a dry run: everything is planned, nothing is placed)
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
from pathlib import Path


def main() -> None:
    gc.disable()  # as the command does
    begin = time.monotonic()
    from hotupgrade.binary.cache import Cache
    from hotupgrade.upgrade.perform import Settings, upgrade

    loaded = time.monotonic()
    processor = _processor_seconds()
    document = upgrade(
        int(sys.argv[1]), [Path(word) for word in sys.argv[3:]], {}, Settings(dry_run=True), Cache(Path(sys.argv[2]))
    )
    done = time.monotonic()
    found = {
        "outcome": document["outcome"],
        "seconds": done - loaded,
        "processor_seconds": _processor_seconds() - processor,
        "import_seconds": loaded - begin,
        "peak_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    print(json.dumps(found))


def _processor_seconds() -> float:
    """Of this process and those that it has started and waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main()
